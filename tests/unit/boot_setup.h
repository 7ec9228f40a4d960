/* A guest's memory, its processor and a boot_config around them, for the tests of the loaders. */
#ifndef DOPPEL_TESTS_BOOT_SETUP_H
#define DOPPEL_TESTS_BOOT_SETUP_H

#include "boot_files.h"
#include "unit.h"

static struct guest_memory mem;
static struct x86_cpu cpu;
static struct test_file file;
static struct error err;

__attribute__((unused)) static struct boot_config setup(uint64_t memory)
{
	struct boot_config config = {
		.mem = &mem,
		.cpu = &cpu,
		.kernel = {"kernel", file.data, file.len, NULL},
		.initrd = {"initrd", NULL, 0, NULL},
		.cmdline = "console=ttyS0",
		.rsdp = 0xe0000,
		.regions = 2,
		.region = {{0, 0x9fc00, BOOT_RAM}, {0x100000, memory - 0x100000, BOOT_RAM}},
	};

	REQUIRE(guest_memory_init(&mem, memory, &err));
	memset(&cpu, 0xa5, sizeof(cpu));
	cpu.ops = NULL;
	err.text[0] = 0;
	return config;
}

/* Loads what is in `file` with 64 MiB of memory. */
__attribute__((unused)) static bool load(void)
{
	struct boot_config config = setup(MiB(64));

	return boot_load(&config, &err);
}

/* Loads, expects a refusal whose words contain `words`. */
__attribute__((unused)) static void refused(const char *words)
{
	if (load())
		UNIT_FAIL("loaded; expected: ... %s ...", words);
	else if (!strstr(err.text, words) || !strstr(err.text, "kernel"))
		UNIT_FAIL("\"%s\" does not say \"%s\"", err.text, words);
	guest_memory_destroy(&mem);
}

__attribute__((unused)) static uint64_t guest(uint64_t gpa, unsigned len)
{
	uint64_t v = 0;

	if (!guest_memory_read(&mem, gpa, &v, len))
		UNIT_FAIL("%#llx is no memory", (unsigned long long)gpa);
	return v;
}

/* Flat protected mode as PVH and multiboot ask for it; Linux's 32-bit entry too. */
__attribute__((unused)) static void check_protected(uint64_t entry)
{
	CHECK_EQ(cpu.rip, entry);
	CHECK_EQ(cpu.cr0 & (CR0_PE | CR0_PG), CR0_PE);
	CHECK_EQ(cpu.cr4, 0);
	CHECK_EQ(cpu.efer, 0);
	CHECK_EQ(cpu.rflags, FL_FIXED1);
	CHECK_EQ(cpu.cpl, 0);
	CHECK_EQ(cpu.seg[SEG_CS].attr, 0xc09b);
	for (unsigned i = 0; i < X86_SEGS; i++) {
		CHECK_EQ(cpu.seg[i].base, 0);
		CHECK_EQ(cpu.seg[i].limit, UINT32_MAX);
		if (i != SEG_CS)
			CHECK_EQ(cpu.seg[i].attr, 0xc093);
	}
}

#endif
