/*
 * Ways into a guest: puts a kernel into guest memory and sets the boot processor's registers as its boot protocol asks.
 * What kind a file is, its content says. Files are borrowed bytes, so a machine that resets can load the same again.
 */
#ifndef DOPPEL_BOOT_BOOT_H
#define DOPPEL_BOOT_BOOT_H

#include "arch/x86/state.h"
#include "bus/memory.h"
#include "host/host.h"

/* A file's bytes, and the name that errors call it by. */
struct boot_file {
	const char *name;
	const uint8_t *data; /* all of them, or the first BOOT_HEAD */
	size_t len;          /* how many the file has */
	struct host_file
		*rest; /* where those behind BOOT_HEAD are read when they are placed; NULL: all are at `data` */
};
#define BOOT_HEAD 65536u

/* Types as in ACPI 6.4 table 15.1, which all of e820, PVH and multiboot use. */
enum boot_region_type { BOOT_RAM = 1, BOOT_RESERVED = 2, BOOT_ACPI = 3, BOOT_ACPI_NVS = 4 };

#define BOOT_REGIONS 16

struct boot_region {
	uint64_t base, size;
	enum boot_region_type type;
};

struct boot_config {
	struct guest_memory *mem;
	struct x86_cpu *cpu; /* has just been reset */
	struct boot_file kernel;
	struct boot_file initrd; /* len 0: none */
	const char *cmdline;     /* not NULL */
	uint64_t rsdp;           /* guest-physical address of the ACPI tables' root, 0: none */
	unsigned regions;
	struct boot_region region[BOOT_REGIONS]; /* the memory map, ascending */
};

/*
 * Looks at the beginning of a kernel, 64 KiB or all of it. False: it is none that could be loaded, and err says what it
 * is instead and what to give.
 */
bool boot_check(struct boot_file head, struct error *err);

/*
 * Loads a bzImage, an ELF file with a PVH note or a multiboot v1 kernel. False: err names the file and the fix; guest
 * memory may have been written then, the processor has not. Uses memory below 640 KiB (boot/layout.h) for what it hands
 * over.
 */
bool boot_load(const struct boot_config *config, struct error *err);

#endif
