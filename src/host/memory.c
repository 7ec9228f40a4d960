/* Memory for the guest and for generated code. */
#include "host/host.h"
#include "host/internal.h"

#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* Maps `size` bytes at a multiple of `align` (both multiples of the page size). */
static void *map_aligned(uint64_t size, uint64_t align)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	uint64_t room = size + align - PAGE_SIZE, start, at;
	void *p;

	if (room < size) {
		host_fail_with(ENOMEM);
		return NULL;
	}
	p = mmap(NULL, room, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (p == MAP_FAILED) {
		host_fail();
		return NULL;
	}
	start = (uint64_t)p;
	at = align_up(start, align);
	if (at > start)
		munmap(p, at - start);
	if (start + room > at + size)
		munmap((void *)(at + size), start + room - (at + size));
	return (void *)at;
}

void *host_memory_alloc(uint64_t size)
{
	bool huge = size >= HUGE_PAGE;
	void *p;

	if (!size || align_up(size, PAGE_SIZE) < size) {
		host_fail_with(size ? ENOMEM : EINVAL);
		return NULL;
	}
	p = map_aligned(align_up(size, PAGE_SIZE), huge ? HUGE_PAGE : PAGE_SIZE);
	if (p && huge)
		madvise(p, align_up(size, PAGE_SIZE), MADV_HUGEPAGE); /* a wish: a kernel without them says no */
	return p;
}

uint64_t host_memory_resident(const void *p, uint64_t size)
{
	unsigned char there[4096];
	uint64_t pages = 0, step = sizeof(there) * PAGE_SIZE;

	for (uint64_t off = 0; off < size; off += step) {
		uint64_t len = MIN(step, size - off);

		if (mincore((char *)(uintptr_t)p + off, len, there))
			return 0;
		for (uint64_t i = 0; i < (len + PAGE_SIZE - 1) / PAGE_SIZE; i++)
			pages += there[i] & 1;
	}
	return pages * PAGE_SIZE;
}

void host_memory_hide(void *p, uint64_t size)
{
	madvise(p, align_up(size, PAGE_SIZE), MADV_DONTDUMP); /* only a kernel built without says no */
}

void host_memory_small_pages(void *p, uint64_t size)
{
	madvise(p, size, MADV_NOHUGEPAGE);
}

void host_memory_populate(void *p, uint64_t size)
{
	madvise(p, size, MADV_POPULATE_WRITE);
}

void host_memory_free(void *p, uint64_t size)
{
	if (p)
		ENSURE(!munmap(p, align_up(size, PAGE_SIZE)));
}

static void *map_huge(size_t size)
{
	int fd = size >= HUGE_PAGE ? host_huge_file() : -1;
	void *p = MAP_FAILED;

	if (fd < 0)
		return p;
	if (!RETRY_EINTR(ftruncate(fd, (off_t)size)))
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	close(fd);
	return p;
}

/*
 * Shared memory, in large pages where that can be had, and the same once more: mremap of length 0 (mremap(2)). Unlike
 * two mappings of a memfd it is anonymous to perf(1), which then looks for names of what is in it.
 */
bool host_code_alloc(struct host_code *code, size_t size)
{
	*code = (struct host_code){0};
	if (!size || align_up(size, PAGE_SIZE) < size)
		return !host_fail_with(size ? ENOMEM : EINVAL);
	size = align_up(size, PAGE_SIZE);
	void *rw = map_huge(size);
	if (rw == MAP_FAILED)
		rw = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (rw == MAP_FAILED)
		return !host_fail();
	/* The second mapping takes both on. */
	host_memory_hide(rw, size);
	if (size >= HUGE_PAGE)
		madvise(rw, size, MADV_HUGEPAGE);
	void *rx = mremap(rw, 0, size, MREMAP_MAYMOVE);
	*code = (struct host_code){.rw = rw, .rx = rx, .size = size};
	if (rx != MAP_FAILED && !mprotect(rx, size, PROT_READ | PROT_EXEC))
		return true;
	host_fail();
	if (rx == MAP_FAILED)
		munmap(rw, size);
	else
		host_code_free(code);
	*code = (struct host_code){0};
	return false;
}

void host_code_populate(const struct host_code *code, size_t offset, size_t len)
{
	madvise(code->rw + offset, len, MADV_POPULATE_WRITE);
	madvise(code->rx + offset, len, MADV_POPULATE_READ);
}

void host_code_free(struct host_code *code)
{
	if (code->size) {
		ENSURE(!munmap(code->rw, code->size));
		ENSURE(!munmap(code->rx, code->size));
	}
	*code = (struct host_code){0};
}
