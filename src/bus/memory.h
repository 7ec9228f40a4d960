/*
 * Guest-physical memory. The only way to it is (address, length, access) → pointer or NULL: there is no pointer into
 * guest memory without a length. RAM may lie in several ranges (below and above the PCI hole), all in one host mapping.
 */
#ifndef DOPPEL_BUS_MEMORY_H
#define DOPPEL_BUS_MEMORY_H

#include "base/base.h"
#include "host/shared.h"

#include <stdatomic.h>

#define GUEST_MEMORY_RANGES 8

struct guest_range {
	uint64_t gpa, size; /* multiples of the page size */
	uint8_t *host;
	bool readonly; /* ROM: writes are dropped */
};

/*
 * `code[page]` is set for RAM pages (counted over all ranges in order, see page_index) that an engine has made
 * translations of; who writes such a page must say so afterwards by guest_memory_wrote.
 */
struct guest_memory {
	unsigned count;
	struct guest_range range[GUEST_MEMORY_RANGES]; /* ascending, disjoint */
	uint64_t pages;
	_Atomic uint8_t *code;
	void (*code_written)(void *opaque, uint64_t gpa, uint64_t len); /* set by the engine, or NULL */
	void *code_opaque;
	struct host_shared shared;  /* all RAM, ranges in order: engines may show pieces of it elsewhere as well */
	_Atomic uint8_t *populated; /* by GUEST_MEMORY_CHUNK of it: see guest_memory_touch */
};

/* Lays out `size` bytes of RAM as a PC does: below the 3 GiB hole, the rest from 4 GiB. False: err says why. */
bool guest_memory_init(struct guest_memory *mem, uint64_t size, struct error *err);
void guest_memory_destroy(struct guest_memory *mem);

/* The range that holds all of [gpa, gpa+len), or NULL. len 0 is not in any. */
static inline const struct guest_range *guest_range_find(const struct guest_memory *mem, uint64_t gpa, uint64_t len)
{
	for (unsigned i = 0; i < mem->count; i++) {
		const struct guest_range *r = &mem->range[i];
		if (gpa - r->gpa < r->size && len && len <= r->size - (gpa - r->gpa))
			return r;
	}
	return NULL;
}

/* Pointer to [gpa, gpa+len) for reading, or for writing too; NULL unless all of it is RAM of one range (writable if
 * `write`). */
static inline void *guest_memory_ptr(const struct guest_memory *mem, uint64_t gpa, uint64_t len, bool write)
{
	const struct guest_range *r = guest_range_find(mem, gpa, len);
	if (!r || (write && r->readonly))
		return NULL;
	return r->host + (gpa - r->gpa);
}

/* Index of the page in `code`; the caller knows that gpa is RAM. */
uint64_t guest_memory_page_index(const struct guest_memory *mem, uint64_t gpa);

/* To be called after bytes were written through a pointer: tells the engine if a page among them holds translated code.
 */
void guest_memory_wrote(struct guest_memory *mem, uint64_t gpa, uint64_t len);

/*
 * The page that `host` points into is about to be used. Asking the host for it and its neighbours in one go is several
 * times cheaper than a page fault each. What is not RAM's own memory (a ROM) stays as it is. General registers only.
 */
#define GUEST_MEMORY_CHUNK KiB(128)
void guest_memory_touch_slowly(struct guest_memory *mem, uint64_t chunk);
static inline void guest_memory_touch(struct guest_memory *mem, const uint8_t *host)
{
	uint64_t offset = (uint64_t)(host - mem->shared.at), chunk = offset / GUEST_MEMORY_CHUNK;
	if (unlikely(offset < mem->shared.size && !atomic_load_explicit(&mem->populated[chunk], memory_order_relaxed)))
		guest_memory_touch_slowly(mem, chunk);
}

/* Gives whole pages back to the host: they read as zeroes. Nothing happens unless all is RAM that can be written. */
bool guest_memory_discard(struct guest_memory *mem, uint64_t gpa, uint64_t len);

/* Copies; false (and nothing copied) unless the whole range is RAM. For devices and loaders. */
bool guest_memory_read(const struct guest_memory *mem, uint64_t gpa, void *dst, uint64_t len);
bool guest_memory_write(struct guest_memory *mem, uint64_t gpa, const void *src, uint64_t len);
/* From byte `off` of a file on; false also when that cannot be read, and then some may have been. */
bool guest_memory_read_file(struct guest_memory *mem, uint64_t gpa, struct host_file *file, uint64_t off, uint64_t len);

#endif
