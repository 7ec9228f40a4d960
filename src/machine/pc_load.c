/* What a PC's firmware does before it hands over to a kernel, and the kernel itself. */
#include "machine/board.h"

#include "dev/lapic.h"
#include "host/host.h"
#include "machine/acpi.h"
#include "machine/smbios.h"

#include <stdlib.h>
#include <string.h>

#define EBDA 0x9fc00ull
#define LOW_MEMORY_END 0xa0000ull
#define KERNEL_MAX GiB(1)
#define ROM_AREA 0xe0000ull /* up to 1 MiB: the tables are there */

/* BIOS data area: what systems still look up there. */
static bool write_bios_data(struct guest_memory *mem)
{
	uint8_t bda[0x100] = {0};
	uint8_t ebda_kib = 1;

	bda[0x00] = PC_COM1 & 0xff; /* COM1's port */
	bda[0x01] = PC_COM1 >> 8;
	bda[0x0e] = (EBDA >> 4) & 0xff; /* segment of the extended area */
	bda[0x0f] = EBDA >> 12;
	bda[0x11] = 0x02;                /* equipment: one serial port */
	bda[0x13] = (EBDA >> 10) & 0xff; /* KiB of base memory */
	bda[0x14] = EBDA >> 18;
	return guest_memory_write(mem, 0x400, bda, sizeof(bda)) && guest_memory_write(mem, EBDA, &ebda_kib, 1);
}

/* The edge/level registers: PCI's interrupts and the SCI are level triggered. */
static void set_trigger_modes(struct pc *pc)
{
	uint16_t level = BIT(5) | BIT(9) | BIT(10) | BIT(11) | BIT(12);

	bus_write(pc->c.bus, BUS_PORT, 0x4d0, 1, level & 0xff, 0);
	bus_write(pc->c.bus, BUS_PORT, 0x4d1, 1, level >> 8, 0);
}

static void add_region(struct boot_config *boot, uint64_t base, uint64_t end, enum boot_region_type type)
{
	if (base < end)
		boot->region[boot->regions++] = (struct boot_region){base, end - base, type};
}

/* The memory map, as int 15h e820 would tell it. */
static void map_memory(const struct guest_memory *mem, struct boot_config *boot)
{
	add_region(boot, 0, EBDA, BOOT_RAM);
	add_region(boot, EBDA, LOW_MEMORY_END, BOOT_RESERVED);
	add_region(boot, ROM_AREA, MiB(1), BOOT_RESERVED);
	for (unsigned i = 0; i < mem->count; i++) {
		const struct guest_range *r = &mem->range[i];
		if (r->gpa < PC_ECAM)
			add_region(boot, MAX(r->gpa, MiB(1)), r->gpa + r->size, BOOT_RAM);
	}
	add_region(boot, PC_ECAM, PC_ECAM + MiB(PC_ECAM_BUSES), BOOT_RESERVED);
	for (unsigned i = 0; i < mem->count; i++) {
		const struct guest_range *r = &mem->range[i];
		if (r->gpa >= PC_ECAM)
			add_region(boot, r->gpa, r->gpa + r->size, BOOT_RAM);
	}
}

struct look {
	const char *path;
	struct error *err;
	bool refused;
};

static bool look_at_kernel(void *opaque, const uint8_t *data, size_t len)
{
	struct look *look = opaque;

	look->refused = !boot_check((struct boot_file){look->path, data, len, NULL}, look->err);
	return !look->refused;
}

/*
 * The beginning of a file that can be read as often as it is needed: the rest goes straight into guest memory. False:
 * there is no such file, or it cannot be read; *file tells.
 */
static bool read_head(const char *path, uint64_t limit, struct host_file **file, uint8_t **data, size_t *len)
{
	if (!*file)
		*file = host_file_keep(path);
	if (*file)
		*data = host_file_read_head(*file, BOOT_HEAD, limit, len);
	return *data;
}

static struct boot_file boot_file(const char *path, const uint8_t *data, size_t len, struct host_file *file)
{
	return (struct boot_file){path, data, len, file};
}

static bool read_kernel(struct pc *pc, struct error *err)
{
	struct look look = {pc->kernel_path, err, false};

	if (pc->kernel)
		return true;
	if (!pc->kernel_path)
		return error_set(err, "no kernel is given: --kernel names one (Debian's /boot/vmlinuz-*)");
	if (read_head(pc->kernel_path, KERNEL_MAX, &pc->kernel_file, &pc->kernel, &pc->kernel_len))
		return boot_check(boot_file(pc->kernel_path, pc->kernel, pc->kernel_len, pc->kernel_file), err);
	if (!pc->kernel_file)
		pc->kernel = host_file_read_whole(pc->kernel_path, KERNEL_MAX, look_at_kernel, &look, &pc->kernel_len);
	if (pc->kernel || look.refused)
		return pc->kernel;
	if (host_failed_too_long())
		return error_set(err, "%s has more than 1 GiB, so it is no kernel: give one (Debian's /boot/vmlinuz-*)",
				 pc->kernel_path);
	return error_set(err, "cannot read the kernel %s: %s", pc->kernel_path, host_error_text());
}

static bool read_initrd(struct pc *pc, struct error *err)
{
	uint64_t memory = pc->c.mem->pages * PAGE_SIZE;

	if (pc->initrd || !pc->initrd_path)
		return true;
	if (!read_head(pc->initrd_path, memory, &pc->initrd_file, &pc->initrd, &pc->initrd_len) && !pc->initrd_file)
		pc->initrd = host_file_read_whole(pc->initrd_path, memory, NULL, NULL, &pc->initrd_len);
	if (!pc->initrd && host_failed_too_long())
		return error_set(err,
				 "the initrd %s is larger than the machine's memory of %llu MiB: give it more with "
				 "--memory",
				 pc->initrd_path, (unsigned long long)(memory >> 20));
	if (!pc->initrd)
		return error_set(err, "cannot read the initrd %s: %s", pc->initrd_path, host_error_text());
	if (!pc->initrd_len)
		return error_set(err, "the initrd %s is empty: give an initramfs, or leave --initrd out",
				 pc->initrd_path);
	return true;
}

/* The guest has its copy. What can be read again at a reset is read again. */
static void forget(uint8_t **data, const struct host_file *file)
{
	if (!file)
		return;
	free(*data);
	*data = NULL;
}

static bool read_files(struct pc *pc, struct error *err)
{
	return read_kernel(pc, err) && read_initrd(pc, err);
}

bool pc_load(struct pc *pc, struct error *err)
{
	struct acpi_config acpi = {.cpus = pc->c.cpus, .keyboard = pc->keyboard, .window64 = pc->window64};
	struct boot_config boot = {.mem = pc->c.mem, .cpu = pc->c.cpu[0], .cmdline = pc->cmdline};
	struct lapic *lapic = apic_bus_lapic(pc->apics, 0);

	if (!read_files(pc, err))
		return false;
	boot.kernel = boot_file(pc->kernel_path, pc->kernel, pc->kernel_len, pc->kernel_file);
	boot.initrd = boot_file(pc->initrd_path, pc->initrd, pc->initrd_len, pc->initrd_file);
	boot.rsdp = acpi_write(pc->c.mem, &acpi);
	if (!boot.rsdp || !smbios_write(pc->c.mem) || !write_bios_data(pc->c.mem))
		return error_set(err, "the machine has less than 1 MiB of memory: give it more with --memory");
	map_memory(pc->c.mem, &boot);
	set_trigger_modes(pc);
	lapic_virtual_wire(lapic);
	pc->c.cpu[0]->apic_base = lapic_base(lapic);
	if (!boot_load(&boot, err))
		return false;
	forget(&pc->kernel, pc->kernel_file);
	forget(&pc->initrd, pc->initrd_file);
	return true;
}
