/* Guest-physical memory: RAM laid out as on a PC, in one host mapping. */
#include "bus/memory.h"

#include "host/host.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define HOLE_START GiB(3)
#define HOLE_END GiB(4)
#define RAM_MAX (GiB(512) - (HOLE_END - HOLE_START)) /* the 64-bit PCI window starts at 512 GiB */

static bool check_size(uint64_t size, struct error *err)
{
	if (size < PAGE_SIZE || size & ~PAGE_MASK)
		return error_set(err, "memory size %" PRIu64 " is not a multiple of 4096 bytes; say for example 1G",
				 size);
	if (size > RAM_MAX)
		return error_set(err,
				 "memory size %" PRIu64 "M is more than the machine can hold; at most %" PRIu64 "M",
				 size >> 20, (uint64_t)RAM_MAX >> 20);
	return true;
}

bool guest_memory_init(struct guest_memory *mem, uint64_t size, struct error *err)
{
	uint64_t low = MIN(size, HOLE_START);

	*mem = (struct guest_memory){0};
	if (!check_size(size, err))
		return false;
	if (!host_shared_alloc(&mem->shared, size))
		return error_set(err, "cannot get %" PRIu64 "M of memory for the guest: %s; use a smaller --memory",
				 size >> 20, host_error_text());
	host_memory_hide(mem->shared.at, size);
	mem->pages = size >> PAGE_SHIFT;
	mem->code = calloc(mem->pages, sizeof(*mem->code));
	mem->populated = calloc(size / GUEST_MEMORY_CHUNK + 1, sizeof(*mem->populated));
	if (!mem->code || !mem->populated) {
		guest_memory_destroy(mem);
		return error_set(err, "cannot get memory for the page table of %" PRIu64 "M; use a smaller --memory",
				 size >> 20);
	}
	mem->range[mem->count++] = (struct guest_range){.gpa = 0, .size = low, .host = mem->shared.at};
	if (size > low)
		mem->range[mem->count++] =
			(struct guest_range){.gpa = HOLE_END, .size = size - low, .host = mem->shared.at + low};
	return true;
}

void guest_memory_destroy(struct guest_memory *mem)
{
	host_shared_free(&mem->shared);
	free((void *)mem->code);
	free((void *)mem->populated);
	*mem = (struct guest_memory){0};
}

uint64_t guest_memory_page_index(const struct guest_memory *mem, uint64_t gpa)
{
	uint64_t before = 0;

	for (unsigned i = 0; i < mem->count; i++) {
		const struct guest_range *r = &mem->range[i];

		if (gpa - r->gpa < r->size)
			return before + ((gpa - r->gpa) >> PAGE_SHIFT);
		before += r->size >> PAGE_SHIFT;
	}
	invariant_failed("the page is RAM", __FILE__, __LINE__);
}

void guest_memory_touch_slowly(struct guest_memory *mem, uint64_t chunk)
{
	uint64_t offset = chunk * GUEST_MEMORY_CHUNK;

	atomic_store_explicit(&mem->populated[chunk], 1, memory_order_relaxed);
	host_shared_populate(&mem->shared, offset, MIN(GUEST_MEMORY_CHUNK, mem->shared.size - offset));
}

static bool any_code(const struct guest_memory *mem, uint64_t first, uint64_t last)
{
	for (uint64_t page = first; page <= last; page++)
		if (atomic_load_explicit(&mem->code[page], memory_order_relaxed))
			return true;
	return false;
}

void guest_memory_wrote(struct guest_memory *mem, uint64_t gpa, uint64_t len)
{
	uint64_t first;

	if (!guest_range_find(mem, gpa, len))
		return;
	/*
	 * Dekker's handshake with a translator on another thread, which sets code[] and then reads the bytes: one of
	 * the two sees what the other did. Hence the store of the bytes must be out before code[] is looked at.
	 */
	atomic_thread_fence(memory_order_seq_cst);
	first = guest_memory_page_index(mem, gpa);
	if (any_code(mem, first, first + (((gpa & ~PAGE_MASK) + len - 1) >> PAGE_SHIFT)) && mem->code_written)
		mem->code_written(mem->code_opaque, gpa, len);
}

bool guest_memory_discard(struct guest_memory *mem, uint64_t gpa, uint64_t len)
{
	const uint8_t *host = guest_memory_ptr(mem, gpa, len, true);

	if (!host || (gpa | len) & ~PAGE_MASK)
		return false;
	uint64_t offset = (uint64_t)(host - mem->shared.at), end = offset + len;
	host_shared_discard(&mem->shared, offset, len);
	/* What is gone as a whole is asked for as a whole when it is used again. */
	for (uint64_t chunk = align_up(offset, GUEST_MEMORY_CHUNK) / GUEST_MEMORY_CHUNK;
	     (chunk + 1) * GUEST_MEMORY_CHUNK <= end; chunk++)
		atomic_store_explicit(&mem->populated[chunk], 0, memory_order_relaxed);
	guest_memory_wrote(mem, gpa, len);
	return true;
}

bool guest_memory_read(const struct guest_memory *mem, uint64_t gpa, void *dst, uint64_t len)
{
	const void *src = guest_memory_ptr(mem, gpa, len, false);

	if (src)
		memcpy(dst, src, len);
	return src || !len;
}

bool guest_memory_read_file(struct guest_memory *mem, uint64_t gpa, struct host_file *file, uint64_t off, uint64_t len)
{
	uint8_t *dst = guest_memory_ptr(mem, gpa, len, true);

	if (!dst || !host_shared_read(&mem->shared, (uint64_t)(dst - mem->shared.at), file, off, len))
		return false;
	guest_memory_wrote(mem, gpa, len);
	return true;
}

bool guest_memory_write(struct guest_memory *mem, uint64_t gpa, const void *src, uint64_t len)
{
	void *dst = guest_memory_ptr(mem, gpa, len, true);

	if (dst) {
		if (len >= GUEST_MEMORY_CHUNK)
			host_shared_write(&mem->shared, (uint64_t)((uint8_t *)dst - mem->shared.at), src, len);
		else
			memcpy(dst, src, len);
		guest_memory_wrote(mem, gpa, len);
	}
	return dst || !len;
}
