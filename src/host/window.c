/* The part of shared.h that is for general registers only. */
#include "host/shared.h"
#include "host/system_call.h"

#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static bool map(uint64_t at, uint64_t len, unsigned rights, unsigned flags, int fd, uint64_t offset)
{
	return system_call(SYS_mmap, at, len, rights, flags | MAP_FIXED, (uint64_t)fd, offset) == (long)at;
}

void host_shared_populate(const struct host_shared *mem, uint64_t offset, uint64_t len)
{
	system_call(SYS_madvise, (uint64_t)(uintptr_t)mem->at + offset, len, MADV_POPULATE_WRITE, 0, 0, 0);
}

bool host_window_show(const struct host_shared *mem, uint64_t at, uint64_t offset, uint64_t len, bool writable)
{
	return map(at, len, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_POPULATE, mem->fd, offset);
}

bool host_window_hide(uint64_t at, uint64_t len)
{
	return map(at, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

uint64_t host_window_reserve(uint64_t size, uint64_t margin)
{
	const unsigned flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	long at = system_call(SYS_mmap, 0, size + 2 * margin, PROT_NONE, flags, (uint64_t)-1, 0);

	return at < 0 && at > -4096 ? 0 : (uint64_t)at + margin;
}

void host_window_release(uint64_t at, uint64_t size, uint64_t margin)
{
	if (at)
		ENSURE(!system_call(SYS_munmap, at - margin, size + 2 * margin, 0, 0, 0, 0));
}
