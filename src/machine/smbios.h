/* What the machine is called (SMBIOS 2.8, DSP0134): for systems that want to know, and complain when there is nothing.
 */
#ifndef DOPPEL_MACHINE_SMBIOS_H
#define DOPPEL_MACHINE_SMBIOS_H

#include "bus/memory.h"

/* Where systems look for the entry point; in a reserved range. */
#define SMBIOS_TABLES 0xf0000ull
#define SMBIOS_TABLES_SIZE 0x1000ull

/* Builds entry point and structures into `buf` (SMBIOS_TABLES_SIZE bytes), to be put at SMBIOS_TABLES. */
void smbios_build(uint8_t *buf);
/* The same in guest memory; false if there is no RAM. */
bool smbios_write(struct guest_memory *mem);

#endif
