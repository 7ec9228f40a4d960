/* Memory for the guest and for generated code. */
#include "host/host.h"
#include "host/internal.h"

#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE MiB(2)

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

void host_memory_free(void *p, uint64_t size)
{
	if (p)
		ENSURE(!munmap(p, align_up(size, PAGE_SIZE)));
}

static bool map_code(struct host_code *code, int fd, size_t size)
{
	void *rw = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *rx;

	if (rw == MAP_FAILED)
		return !host_fail();
	rx = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (rx == MAP_FAILED) {
		host_fail();
		munmap(rw, size);
		return false;
	}
	*code = (struct host_code){.rw = rw, .rx = rx, .size = size};
	return true;
}

bool host_code_alloc(struct host_code *code, size_t size)
{
	bool ok;
	int fd;

	*code = (struct host_code){0};
	if (!size || align_up(size, PAGE_SIZE) < size)
		return !host_fail_with(size ? ENOMEM : EINVAL);
	size = align_up(size, PAGE_SIZE);
	fd = memfd_create("doppel-code", MFD_CLOEXEC);
	if (fd < 0)
		return !host_fail();
	ok = !RETRY_EINTR(ftruncate(fd, (off_t)size)) ? map_code(code, fd, size) : !host_fail();
	close(fd); /* the mappings keep it */
	return ok;
}

void host_code_free(struct host_code *code)
{
	if (code->size) {
		ENSURE(!munmap(code->rw, code->size));
		ENSURE(!munmap(code->rx, code->size));
	}
	*code = (struct host_code){0};
}
