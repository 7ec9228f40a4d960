/* The loadable parts of an ELF file for x86 (System V ABI, ch. 4-5), 32-bit or 64-bit. */
#ifndef DOPPEL_BOOT_ELF_H
#define DOPPEL_BOOT_ELF_H

#include "boot/layout.h"

#define ELF_SEGMENTS 64
enum { ELF_PT_LOAD = 1, ELF_PT_NOTE = 4 };

struct elf_segment {
	uint32_t type;
	uint64_t offset, vaddr, paddr, filesz, memsz;
};

struct elf_file {
	bool is64;
	uint64_t entry;
	unsigned count;
	struct elf_segment segment[ELF_SEGMENTS];
};

/* False, without words, unless it is a whole ELF file for x86 whose segments lie in the file. */
bool elf_parse(const struct boot_file *file, struct elf_file *elf);
/* An ELF file for x86, but for parts that its headers name and the file has not. */
bool elf_is_truncated(const struct boot_file *file);
/* Copies the PT_LOAD segments to their physical addresses; *end is the first address above all of them. */
bool elf_load(const struct boot_config *config, const struct elf_file *elf, uint64_t *end, struct error *err);

#endif
