/*
 * Hostile kernel files against the loaders: the input is the file. A loader may refuse anything. What it accepts must
 * leave the processor at an entry, with tables in place.
 */
#include "fuzz.h"

#include "boot/boot.h"
#include "bus/memory.h"

#define MEMORY MiB(40)

static struct guest_memory mem;

static void run(const uint8_t *data, size_t len)
{
	struct x86_cpu cpu = {0};
	struct error err = {{0}};
	uint64_t gdt;
	struct boot_config config = {
		.mem = &mem,
		.cpu = &cpu,
		.kernel = {.name = "kernel", .data = data, .len = len},
		.initrd = {.name = "initrd", .data = data, .len = MIN(len, 100)},
		.cmdline = "console=ttyS0",
		.rsdp = 0xe0000,
		.regions = 1,
		.region = {{0x100000, MEMORY - 0x100000, BOOT_RAM}},
	};

	if (boot_load(&config, &err)) {
		EXPECT(cpu.cr0 & CR0_PE);
		EXPECT(cpu.rip < GiB(4));
		EXPECT(guest_memory_read(&mem, cpu.gdtr.base + cpu.seg[SEG_CS].sel, &gdt, sizeof(gdt)) && gdt);
	} else {
		EXPECT(err.text[0]);
	}
}

static void start(void)
{
	struct error err;

	if (!mem.shared.at && !guest_memory_init(&mem, MEMORY, &err))
		found(err.text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	start();
	run(data, len);
	return 0;
}
