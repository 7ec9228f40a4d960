/* ELF files, checked before anything is believed: offsets, counts and sizes are the file's word. */
#include "boot/elf.h"

#include <string.h>

enum { EM_386 = 3, EM_X86_64 = 62 };

static void parse_segment(const uint8_t *p, bool is64, struct elf_segment *s)
{
	s->type = get32(p);
	if (is64)
		*s = (struct elf_segment){s->type,       get64(p + 8),  get64(p + 16),
					  get64(p + 24), get64(p + 32), get64(p + 40)};
	else
		*s = (struct elf_segment){s->type,       get32(p + 4),  get32(p + 8),
					  get32(p + 12), get32(p + 16), get32(p + 20)};
}

static bool in_whole(const struct boot_file *file, const struct elf_segment *s)
{
	return in_file(s->offset, s->filesz, file->len) || (s->type != ELF_PT_LOAD && s->type != ELF_PT_NOTE);
}

/* The table of segments. False: the file is no ELF file for x86, or has more segments than are kept. */
static bool parse_header(const struct boot_file *file, struct elf_file *elf, uint64_t *table, unsigned *size)
{
	const uint8_t *p = file->data;

	memset(elf, 0, sizeof(*elf));
	if (file->len < 64 || memcmp(p, "\177ELF", 4) != 0 || (p[4] != 1 && p[4] != 2) || p[5] != 1)
		return false;
	elf->is64 = p[4] == 2;
	if (get16(p + 18) != EM_386 && get16(p + 18) != EM_X86_64)
		return false;
	elf->entry = elf->is64 ? get64(p + 24) : get32(p + 24);
	*table = elf->is64 ? get64(p + 32) : get32(p + 28);
	*size = get16(p + (elf->is64 ? 54 : 42));
	elf->count = get16(p + (elf->is64 ? 56 : 44));
	return *size >= (elf->is64 ? 56u : 32u) && elf->count <= ELF_SEGMENTS;
}

static bool parse_segments(const struct boot_file *file, struct elf_file *elf, uint64_t table, unsigned size)
{
	if (!in_file(table, (uint64_t)size * elf->count, file->len))
		return false;
	for (unsigned i = 0; i < elf->count; i++) {
		uint8_t entry[56];
		if (!boot_peek(file, table + (uint64_t)i * size, entry, elf->is64 ? 56 : 32))
			return false;
		parse_segment(entry, elf->is64, &elf->segment[i]);
		if (!in_whole(file, &elf->segment[i]))
			return false;
	}
	return true;
}

bool elf_parse(const struct boot_file *file, struct elf_file *elf)
{
	uint64_t table;
	unsigned size;

	return parse_header(file, elf, &table, &size) && parse_segments(file, elf, table, size);
}

bool elf_is_truncated(const struct boot_file *file)
{
	struct elf_file elf;
	uint64_t table;
	unsigned size;

	return parse_header(file, &elf, &table, &size) && !parse_segments(file, &elf, table, size);
}

static bool load_segment(const struct boot_config *config, const struct elf_segment *s, uint64_t *end,
			 struct error *err)
{
	const struct boot_file *file = &config->kernel;

	if (!s->memsz)
		return true;
	if (s->filesz > s->memsz)
		return error_set(err, "%s has a segment that is longer in the file than in memory: it is damaged",
				 file->name);
	if (s->paddr < LAYOUT_KERNEL_MIN)
		return error_set(err, "%s has a segment at %#llx; this machine loads at 1 MiB and above", file->name,
				 (unsigned long long)s->paddr);
	if (!guest_memory_ptr(config->mem, s->paddr, s->memsz, true) ||
	    !boot_zero(config, s->paddr + s->filesz, s->memsz - s->filesz))
		return error_set(
			err,
			"%s has a segment of %llu KiB at %#llx, where the machine has no memory: give it more with "
			"--memory",
			file->name, (unsigned long long)(s->memsz >> 10), (unsigned long long)s->paddr);
	*end = MAX(*end, s->paddr + s->memsz);
	return boot_put(config, s->paddr, file, s->offset, s->filesz, err);
}

bool elf_load(const struct boot_config *config, const struct elf_file *elf, uint64_t *end, struct error *err)
{
	*end = 0;
	for (unsigned i = 0; i < elf->count; i++)
		if (elf->segment[i].type == ELF_PT_LOAD && !load_segment(config, &elf->segment[i], end, err))
			return false;
	if (!*end)
		return error_set(err, "%s has nothing to load: it is no kernel", config->kernel.name);
	return true;
}
