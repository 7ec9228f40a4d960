#include "host/shared.h"

#include "host/host.h"
#include "host/internal.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int host_memfd(const char *name, unsigned flags)
{
	int fd = memfd_create(name, MFD_CLOEXEC | flags);

	return fd < 0 && errno == EINVAL ? memfd_create(name, MFD_CLOEXEC) : fd;
}

bool host_shared_alloc(struct host_shared *mem, uint64_t size)
{
	*mem = (struct host_shared){.fd = -1};
	if (!size || align_up(size, PAGE_SIZE) < size)
		return !host_fail_with(size ? ENOMEM : EINVAL);
	size = align_up(size, PAGE_SIZE);
	int fd = size >= HUGE_PAGE ? host_huge_file() : -1;
	bool huge = fd >= 0;
	if (!huge)
		fd = host_memfd("doppel-memory", HOST_MEMFD_DATA);
	if (fd < 0)
		return !host_fail();
	void *p = MAP_FAILED;
	if (!RETRY_EINTR(ftruncate(fd, (off_t)size)))
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (p == MAP_FAILED) {
		host_fail();
		close(fd);
		return false;
	}
	madvise(p, size, MADV_HUGEPAGE); /* a wish */
	*mem = (struct host_shared){.at = p, .size = size, .fd = fd, .huge = huge};
	return true;
}

void host_shared_free(struct host_shared *mem)
{
	if (!mem->at)
		return;
	ENSURE(!munmap(mem->at, mem->size));
	close(mem->fd);
	*mem = (struct host_shared){.fd = -1};
}

void host_shared_discard(const struct host_shared *mem, uint64_t offset, uint64_t len)
{
	const int how = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	if (RETRY_EINTR(fallocate(mem->fd, how, (off_t)offset, (off_t)len)))
		memset(mem->at + offset, 0, len);
}

void host_shared_write(const struct host_shared *mem, uint64_t offset, const void *src, uint64_t len)
{
	uint64_t first = align_down(offset, PAGE_SIZE);
	const uint8_t *from = src;

	if (mem->huge)
		host_shared_populate(mem, first, align_up(offset + len, PAGE_SIZE) - first);
	while (len) {
		ssize_t n = mem->huge ? 0 : RETRY_EINTR(pwrite(mem->fd, from, len, (off_t)offset));

		if (n <= 0) {
			memcpy(mem->at + offset, from, len);
			return;
		}
		from += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
}

bool host_shared_read(const struct host_shared *mem, uint64_t offset, struct host_file *file, uint64_t from,
		      uint64_t len)
{
	uint64_t first = align_down(offset, PAGE_SIZE);

	host_shared_populate(mem, first, align_up(offset + len, PAGE_SIZE) - first);
	return host_file_pread(file, mem->at + offset, len, from) == (int64_t)len;
}
