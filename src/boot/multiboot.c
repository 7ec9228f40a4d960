/* Multiboot, version 0.6.96: ELF32 kernels, and others that give their addresses in the header (its "a.out kludge"). */
#include "boot/elf.h"

#include <string.h>

enum { HEADER_MAGIC = 0x1badb002, LOADER_MAGIC = 0x2badb002, HEADER_SEARCH = 8192 };
enum { WANT_PAGE_ALIGN = 1 << 0, WANT_MEMORY = 1 << 1, WANT_VIDEO = 1 << 2, HAS_ADDRESSES = 1 << 16 };
/* Bits 0..15 must be understood or the kernel refused (3.1.2). */
enum { FLAGS_KNOWN = WANT_PAGE_ALIGN | WANT_MEMORY | WANT_VIDEO, FLAGS_REQUIRED = 0xffff };

/* Flags and offsets of the boot information (3.3), and where what it points to lies, from LAYOUT_INFO on. */
enum { INFO_MEMORY = 1 << 0, INFO_CMDLINE = 1 << 2, INFO_MODS = 1 << 3, INFO_MMAP = 1 << 6, INFO_LOADER_NAME = 1 << 9 };
enum {
	MBI_FLAGS = 0,
	MBI_MEM_LOWER = 4,
	MBI_MEM_UPPER = 8,
	MBI_CMDLINE = 16,
	MBI_MODS_COUNT = 20,
	MBI_MODS_ADDR = 24,
	MBI_MMAP_LENGTH = 44,
	MBI_MMAP_ADDR = 48,
	MBI_LOADER_NAME = 64,
	MODULE_AT = 0x100,
	LOADER_NAME_AT = 0x140,
	MMAP_AT = 0x200,
	MMAP_ENTRY = 24, /* its size field does not count itself */
	MODULE_NAME_AT = 0x800,
	MODULE_NAME_MAX = 0x7ff,
};

/* Finds the header: 12 bytes on a 4-byte boundary in the first 8192 bytes that sum up to 0. */
static bool find_header(const struct boot_file *file, uint64_t *off)
{
	for (*off = 0; *off < HEADER_SEARCH && in_file(*off, 12, file->len); *off += 4) {
		const uint8_t *p = file->data + *off;
		if (get32(p) == HEADER_MAGIC && (uint32_t)(get32(p) + get32(p + 4) + get32(p + 8)) == 0)
			return true;
	}
	return false;
}

bool boot_is_multiboot(const struct boot_file *file)
{
	uint64_t off;

	return find_header(file, &off);
}

/* Loads by the address fields (3.1.3): the header's own address tells where the file's first loaded byte is. */
static bool load_by_addresses(const struct boot_config *config, uint64_t off, uint64_t *end, uint32_t *entry,
			      struct error *err)
{
	const struct boot_file *file = &config->kernel;
	const uint8_t *p = file->data + off;
	uint64_t header, load, load_end, bss_end, start, len;

	if (!in_file(off, 32, file->len))
		return error_set(err, "%s is truncated in its multiboot header: copy it again", file->name);
	header = get32(p + 12), load = get32(p + 16), load_end = get32(p + 20), bss_end = get32(p + 24);
	*entry = get32(p + 28);
	if (load > header || header - load > off)
		return error_set(err, "%s has a multiboot header whose addresses contradict its place: it is damaged",
				 file->name);
	start = off - (header - load);
	len = load_end ? load_end - load : file->len - start;
	if ((load_end && load_end < load) || !in_file(start, len, file->len))
		return error_set(err, "%s is shorter than its multiboot header says: copy it again", file->name);
	*end = MAX(load + len, bss_end);
	if (!boot_has_room(config, load, len) || !boot_zero(config, load + len, *end - (load + len)))
		return error_set(
			err,
			"%s wants to be loaded at %#llx to %#llx, where the machine has no memory for it: kernels go "
			"at 1 MiB and above; --memory gives it more",
			file->name, (unsigned long long)load, (unsigned long long)*end);
	return boot_put(config, load, file, start, len, err);
}

/* Some kernels link their entry at a virtual address; it means the same byte's physical one. */
static uint32_t physical_entry(const struct elf_file *elf)
{
	for (unsigned i = 0; i < elf->count; i++) {
		const struct elf_segment *s = &elf->segment[i];
		if (s->type == ELF_PT_LOAD && elf->entry - s->vaddr < s->memsz)
			return elf->entry - s->vaddr + s->paddr;
	}
	return elf->entry;
}

static bool load_elf(const struct boot_config *config, uint64_t *end, uint32_t *entry, struct error *err)
{
	struct elf_file elf;

	if (!elf_parse(&config->kernel, &elf) || elf.is64)
		return error_set(
			err,
			"%s has a multiboot header but is no whole ELF32 file for x86 and gives no addresses: copy it "
			"again, or take a 32-bit build",
			config->kernel.name);
	*entry = physical_entry(&elf);
	return elf_load(config, &elf, end, err);
}

static uint32_t put_modules(const struct boot_config *config, uint8_t *mbi, uint64_t initrd)
{
	size_t name = strlen(config->initrd.name ? config->initrd.name : "");

	if (!initrd)
		return 0;
	put32(mbi + MBI_MODS_COUNT, 1);
	put32(mbi + MBI_MODS_ADDR, LAYOUT_INFO + MODULE_AT);
	put32(mbi + MODULE_AT, initrd);
	put32(mbi + MODULE_AT + 4, initrd + config->initrd.len);
	put32(mbi + MODULE_AT + 8, LAYOUT_INFO + MODULE_NAME_AT);
	if (name)
		memcpy(mbi + MODULE_NAME_AT, config->initrd.name, MIN(name, MODULE_NAME_MAX));
	return INFO_MODS;
}

static bool write_info(const struct boot_config *config, uint64_t initrd)
{
	static const char loader[] = "doppel";
	uint8_t mbi[LAYOUT_INFO_SIZE] = {0};
	uint32_t flags = INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_LOADER_NAME;

	flags |= put_modules(config, mbi, initrd);
	put32(mbi + MBI_FLAGS, flags);
	put32(mbi + MBI_MEM_LOWER, 639);
	put32(mbi + MBI_MEM_UPPER, (boot_low_ram(config->mem) - MiB(1)) >> 10);
	put32(mbi + MBI_CMDLINE, LAYOUT_CMDLINE);
	put32(mbi + MBI_MMAP_LENGTH, config->regions * MMAP_ENTRY);
	put32(mbi + MBI_MMAP_ADDR, LAYOUT_INFO + MMAP_AT);
	put32(mbi + MBI_LOADER_NAME, LAYOUT_INFO + LOADER_NAME_AT);
	memcpy(mbi + LOADER_NAME_AT, loader, sizeof(loader));
	for (unsigned i = 0; i < config->regions; i++) {
		uint8_t *e = mbi + MMAP_AT + (size_t)i * MMAP_ENTRY;
		put32(e, MMAP_ENTRY - 4);
		put64(e + 4, config->region[i].base);
		put64(e + 12, config->region[i].size);
		put32(e + 20, config->region[i].type);
	}
	return guest_memory_write(config->mem, LAYOUT_INFO, mbi, sizeof(mbi));
}

bool boot_multiboot(const struct boot_config *config, struct error *err)
{
	const struct boot_file *file = &config->kernel;
	uint64_t off, end = 0, initrd;
	uint32_t flags, entry = 0;

	if (!find_header(file, &off))
		return error_set(err, "%s has no multiboot header", file->name);
	flags = get32(file->data + off + 4);
	if (flags & FLAGS_REQUIRED & ~FLAGS_KNOWN)
		return error_set(err,
				 "%s asks the multiboot loader for something unknown (flags %#x): take another kernel",
				 file->name, flags);
	if (flags & HAS_ADDRESSES ? !load_by_addresses(config, off, &end, &entry, err)
				  : !load_elf(config, &end, &entry, err))
		return false;
	if (!boot_place_initrd(config, end, GiB(4), false, &initrd, err) ||
	    !boot_place_cmdline(config, LAYOUT_CMDLINE_MAX, err))
		return false;
	if (!write_info(config, initrd))
		return error_set(err, "the machine has too little memory for a kernel: give it more with --memory");
	boot_enter_protected(config, entry);
	config->cpu->gpr[RAX] = LOADER_MAGIC;
	config->cpu->gpr[RBX] = LAYOUT_INFO;
	return true;
}
