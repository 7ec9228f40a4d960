/* The part of shared.h that is for general registers only. */
#include "host/shared.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static long system_call(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	register uint64_t r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

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
