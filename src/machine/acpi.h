/* The firmware's tables that describe the board (ACPI 6.4, ch. 5). */
#ifndef DOPPEL_MACHINE_ACPI_H
#define DOPPEL_MACHINE_ACPI_H

#include "bus/memory.h"

/* Where they lie: below 1 MiB, where systems look for the root pointer, in a reserved range. */
#define ACPI_TABLES 0xe0000ull
#define ACPI_TABLES_SIZE 0x10000ull

struct acpi_config {
	unsigned cpus;
	bool keyboard; /* an 8042 with a keyboard */
	bool window64; /* PCI's window above 4 GiB: the processor can address it */
};

/*
 * Builds all tables into `buf` (ACPI_TABLES_SIZE bytes), to be put at ACPI_TABLES. Returns the bytes used; the root
 * pointer is at the start.
 */
size_t acpi_build(uint8_t *buf, const struct acpi_config *config);
/* The same in guest memory; returns the root pointer's address, 0 if there is no RAM. */
uint64_t acpi_write(struct guest_memory *mem, const struct acpi_config *config);

struct aml;
/* The contents of the DSDT, without its header (dsdt.c). */
void dsdt_build(struct aml *aml, const struct acpi_config *config);

#endif
