/* Small kernels of each kind, made byte by byte, for the tests of the loaders. */
#ifndef DOPPEL_TESTS_BOOT_FILES_H
#define DOPPEL_TESTS_BOOT_FILES_H

#include "boot/boot.h"

#include <string.h>

#define FILE_MAX 8192

struct test_file {
	uint8_t data[FILE_MAX];
	size_t len;
};

static inline void set16(struct test_file *f, size_t at, uint16_t v)
{
	memcpy(f->data + at, &v, sizeof(v));
}

static inline void set32(struct test_file *f, size_t at, uint32_t v)
{
	memcpy(f->data + at, &v, sizeof(v));
}

static inline void set64(struct test_file *f, size_t at, uint64_t v)
{
	memcpy(f->data + at, &v, sizeof(v));
}

/* A bzImage of protocol 2.15 with one setup sector and 2 KiB of kernel, each byte of which is 0x90; 64-bit,
 * relocatable. */
static inline void make_bzimage(struct test_file *f)
{
	memset(f, 0, sizeof(*f));
	f->len = 1024 + 2048;
	memset(f->data + 1024, 0x90, 2048);
	f->data[0x1f1] = 1;
	set32(f, 0x1f4, 2048 / 16);
	set16(f, 0x1fe, 0xaa55);
	f->data[0x200] = 0xeb;
	f->data[0x201] = 0x6a; /* the header ends at 0x26c */
	memcpy(f->data + 0x202, "HdrS", 4);
	set16(f, 0x206, 0x20f);
	f->data[0x211] = 1;          /* loaded high */
	set32(f, 0x214, 0x100000);   /* code32_start */
	set32(f, 0x22c, 0x7fffffff); /* initrd_addr_max */
	set32(f, 0x230, 0x200000);   /* kernel_alignment */
	f->data[0x234] = 1;          /* relocatable */
	set16(f, 0x236, 3);          /* 64-bit entry, may be above 4 GiB */
	set32(f, 0x238, 2047);       /* cmdline_size */
	set64(f, 0x258, 0x1000000);  /* pref_address */
	set32(f, 0x260, 0x800000);   /* init_size */
}

/* An ELF file with room for two program headers: the first loads 256 bytes, with 256 more of zeroes, at 2 MiB. */
static inline void make_elf(struct test_file *f, bool is64)
{
	unsigned ph = 64, size = is64 ? 56 : 32;

	memset(f, 0, sizeof(*f));
	f->len = 0x600;
	memcpy(f->data, "\177ELF", 4);
	f->data[4] = is64 ? 2 : 1;
	f->data[5] = f->data[6] = 1;
	set16(f, 16, 2);
	set16(f, 18, is64 ? 62 : 3);
	set32(f, 20, 1);
	memset(f->data + 0x400, 0x90, 0x100);
	if (is64) {
		set64(f, 24, 0x200010), set64(f, 32, ph), set16(f, 54, size), set16(f, 56, 1);
		set32(f, ph, 1), set64(f, ph + 8, 0x400), set64(f, ph + 16, 0xffffffff80200000),
			set64(f, ph + 24, 0x200000);
		set64(f, ph + 32, 0x100), set64(f, ph + 40, 0x200);
	} else {
		set32(f, 24, 0x200010), set32(f, 28, ph), set16(f, 42, size), set16(f, 44, 1);
		set32(f, ph, 1), set32(f, ph + 4, 0x400), set32(f, ph + 8, 0x200000), set32(f, ph + 12, 0x200000);
		set32(f, ph + 16, 0x100), set32(f, ph + 20, 0x200);
	}
}

/* make_elf with a second program header: a note that names 0x200040 as the PVH entry. */
static inline void make_pvh(struct test_file *f, bool is64)
{
	unsigned ph = 64 + (is64 ? 56 : 32), note = 0x500;

	make_elf(f, is64);
	set16(f, is64 ? 56 : 44, 2);
	set32(f, ph, 4);
	if (is64)
		set64(f, ph + 8, note), set64(f, ph + 32, 48);
	else
		set32(f, ph + 4, note), set32(f, ph + 16, 48);
	/* Another note of Xen's comes first. */
	set32(f, note, 4), set32(f, note + 4, 8), set32(f, note + 8, 6);
	memcpy(f->data + note + 12, "Xen", 4);
	set32(f, note + 24, 4), set32(f, note + 28, 4), set32(f, note + 32, 18);
	memcpy(f->data + note + 36, "Xen", 4);
	set32(f, note + 40, 0x200040);
}

/* A multiboot header with `flags` at `at`; the address fields, for flag 16, say that the header lies at 1 MiB + `at`.
 */
static inline void add_multiboot(struct test_file *f, unsigned at, uint32_t flags)
{
	set32(f, at, 0x1badb002);
	set32(f, at + 4, flags);
	set32(f, at + 8, -(0x1badb002 + flags));
	if (!(flags & 0x10000))
		return;
	set32(f, at + 12, 0x100000 + at);
	set32(f, at + 16, 0x100000);
	set32(f, at + 20, 0x100000 + 0x500); /* end of what is loaded */
	set32(f, at + 24, 0x100000 + 0x800); /* end of zeroes */
	set32(f, at + 28, 0x100020);
}

#endif
