/*
 * What the loaders share: where in low memory they put what they hand over, and the processor's state at a kernel's
 * entry. Kernels themselves lie at 1 MiB or above.
 */
#ifndef DOPPEL_BOOT_LAYOUT_H
#define DOPPEL_BOOT_LAYOUT_H

#include "boot/boot.h"

enum {
	LAYOUT_GDT = 0x1000,
	LAYOUT_STACK = 0x6ff0, /* grows down; no protocol promises one */
	LAYOUT_INFO = 0x7000,  /* zero page, hvm_start_info or multiboot information, with what it points to */
	LAYOUT_INFO_SIZE = 0x1000,
	LAYOUT_PAGES = 0x9000, /* six pages of page tables: the first 4 GiB, one to one */
	LAYOUT_CMDLINE = 0x20000,
	LAYOUT_CMDLINE_MAX = 0x10000,
	LAYOUT_KERNEL_MIN = 0x100000,
};

/* Selectors of the GDT at LAYOUT_GDT: as Linux's boot protocol names them (Documentation/arch/x86/boot.rst). */
enum { BOOT_CS = 0x10, BOOT_DS = 0x18, BOOT_TSS = 0x20 };

/* Little-endian fields of a file; the caller has checked that they are there. */
static inline uint16_t get16(const uint8_t *p)
{
	return p[0] | p[1] << 8;
}
static inline uint32_t get32(const uint8_t *p)
{
	return get16(p) | (uint32_t)get16(p + 2) << 16;
}
static inline uint64_t get64(const uint8_t *p)
{
	return get32(p) | (uint64_t)get32(p + 4) << 32;
}
static inline void put32(uint8_t *p, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		p[i] = v >> (8 * i);
}
static inline void put64(uint8_t *p, uint64_t v)
{
	put32(p, v);
	put32(p + 4, v >> 32);
}

/* True when [off, off + len) lies inside a file of `size` bytes. */
static inline bool in_file(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

/* Each loader: `boot_is_...` looks at the content only; the other loads it. */
bool boot_is_bzimage(const struct boot_file *file);
bool boot_bzimage(const struct boot_config *config, struct error *err);
bool boot_is_pvh(const struct boot_file *file);
bool boot_pvh(const struct boot_config *config, struct error *err);
bool boot_is_multiboot(const struct boot_file *file);
bool boot_multiboot(const struct boot_config *config, struct error *err);

/* End of the RAM that starts at 0: at most 3 GiB. */
uint64_t boot_low_ram(const struct guest_memory *mem);
/* Whether a range is all RAM at or above LAYOUT_KERNEL_MIN. */
bool boot_has_room(const struct boot_config *config, uint64_t gpa, uint64_t len);
/* Zeroes one; false when there is no room. */
bool boot_zero(const struct boot_config *config, uint64_t gpa, uint64_t len);
/*
 * Puts bytes [off, off + len) of a file, which it has, where there is room. False: err says why they cannot be read.
 */
bool boot_put(const struct boot_config *config, uint64_t gpa, const struct boot_file *file, uint64_t off, uint64_t len,
	      struct error *err);
/* Copies a few bytes that the file has, wherever they are in it; false when they cannot be read. */
bool boot_peek(const struct boot_file *file, uint64_t off, void *dst, size_t len);

/*
 * Puts the initrd as high as it goes: below `limit`, above `floor` (the kernel's end), on a page of its own; above 4
 * GiB when it does not fit there and `high` allows it. *gpa is 0 without an initrd. False: err says how much memory is
 * missing.
 */
bool boot_place_initrd(const struct boot_config *config, uint64_t floor, uint64_t limit, bool high, uint64_t *gpa,
		       struct error *err);
/* Puts the command line at LAYOUT_CMDLINE; `max` characters at most. */
bool boot_place_cmdline(const struct boot_config *config, uint64_t max, struct error *err);

/* Protected mode without paging, flat segments, interrupts off. General registers are zero but for rsp. */
void boot_enter_protected(const struct boot_config *config, uint32_t entry);
/* Long mode, the first 4 GiB mapped one to one, flat segments, interrupts off. */
void boot_enter_long(const struct boot_config *config, uint64_t entry);

#endif
