/* PVH, the direct boot of ELF kernels (Xen's docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h, version 1). */
#include "boot/elf.h"

#include <string.h>

enum { XEN_ELFNOTE_PHYS32_ENTRY = 18 };
enum { NOTE_HEAD = 12, NOTES_MAX = 65536 /* more than that of notes is not looked at */ };
enum { START_MAGIC = 0x336ec578, START_VERSION = 1 };

/* Offsets in hvm_start_info, and where what it points to lies, from LAYOUT_INFO on. */
enum {
	SI_MAGIC = 0,
	SI_VERSION = 4,
	SI_NR_MODULES = 12,
	SI_MODLIST = 16,
	SI_CMDLINE = 24,
	SI_RSDP = 32,
	SI_MEMMAP = 40,
	SI_MEMMAP_ENTRIES = 48,
	MODULE_AT = 0x100,
	MEMMAP_AT = 0x200,
	MEMMAP_ENTRY = 24,
};

/* Looks for the entry address among the notes of one segment. */
static bool find_in_notes(const struct boot_file *file, const struct elf_segment *s, uint64_t *entry)
{
	uint64_t len = MIN(s->filesz, NOTES_MAX);

	for (uint64_t off = 0; in_file(off, NOTE_HEAD, len);) {
		uint8_t note[NOTE_HEAD + 4 + 8] = {0};
		if (!boot_peek(file, s->offset + off, note, MIN(sizeof(note), len - off)))
			return false;
		uint64_t namesz = get32(note), descsz = get32(note + 4);
		uint64_t desc = off + NOTE_HEAD + align_up(namesz, 4);

		if (!in_file(desc, descsz, len))
			return false;
		if (get32(note + 8) == XEN_ELFNOTE_PHYS32_ENTRY && namesz == 4 && !memcmp(note + NOTE_HEAD, "Xen", 4) &&
		    (descsz == 4 || descsz == 8)) {
			*entry = descsz == 8 ? get64(note + NOTE_HEAD + 4) : get32(note + NOTE_HEAD + 4);
			return true;
		}
		off = desc + align_up(descsz, 4);
	}
	return false;
}

static bool find_entry(const struct boot_file *file, const struct elf_file *elf, uint64_t *entry)
{
	for (unsigned i = 0; i < elf->count; i++) {
		const struct elf_segment *s = &elf->segment[i];
		if (s->type == ELF_PT_NOTE && find_in_notes(file, s, entry))
			return true;
	}
	return false;
}

bool boot_is_pvh(const struct boot_file *file)
{
	struct elf_file elf;
	uint64_t entry;

	return elf_parse(file, &elf) && find_entry(file, &elf, &entry);
}

static bool write_start_info(const struct boot_config *config, uint64_t initrd)
{
	uint8_t info[LAYOUT_INFO_SIZE] = {0};

	put32(info + SI_MAGIC, START_MAGIC);
	put32(info + SI_VERSION, START_VERSION);
	put64(info + SI_CMDLINE, LAYOUT_CMDLINE);
	put64(info + SI_RSDP, config->rsdp);
	put64(info + SI_MEMMAP, LAYOUT_INFO + MEMMAP_AT);
	put32(info + SI_MEMMAP_ENTRIES, config->regions);
	for (unsigned i = 0; i < config->regions; i++) {
		uint8_t *e = info + MEMMAP_AT + (size_t)i * MEMMAP_ENTRY;
		put64(e, config->region[i].base);
		put64(e + 8, config->region[i].size);
		put32(e + 16, config->region[i].type);
	}
	if (initrd) {
		put32(info + SI_NR_MODULES, 1);
		put64(info + SI_MODLIST, LAYOUT_INFO + MODULE_AT);
		put64(info + MODULE_AT, initrd);
		put64(info + MODULE_AT + 8, config->initrd.len);
	}
	return guest_memory_write(config->mem, LAYOUT_INFO, info, sizeof(info));
}

bool boot_pvh(const struct boot_config *config, struct error *err)
{
	const struct boot_file *file = &config->kernel;
	uint64_t entry, end, initrd;
	struct elf_file elf;

	if (!elf_parse(file, &elf) || !find_entry(file, &elf, &entry))
		return error_set(err, "%s has no PVH entry", file->name);
	if (entry < LAYOUT_KERNEL_MIN || entry >= GiB(4))
		return error_set(err,
				 "%s has its PVH entry at %#llx, which is not between 1 MiB and 4 GiB: it is damaged",
				 file->name, (unsigned long long)entry);
	if (!elf_load(config, &elf, &end, err) || !boot_place_initrd(config, end, GiB(4), false, &initrd, err) ||
	    !boot_place_cmdline(config, LAYOUT_CMDLINE_MAX, err))
		return false;
	if (!write_start_info(config, initrd))
		return error_set(err, "the machine has too little memory for a kernel: give it more with --memory");
	boot_enter_protected(config, entry);
	config->cpu->gpr[RBX] = LAYOUT_INFO;
	return true;
}
