/*
 * A system call, and nothing else: errno stays as it is. For code that is compiled for general registers only, and for
 * a child that shares memory with its parent.
 */
#ifndef DOPPEL_HOST_SYSTEM_CALL_H
#define DOPPEL_HOST_SYSTEM_CALL_H

#include "base/base.h"

#include <sys/syscall.h>

/* What Linux returns: an error is its number, negated. */
static inline long system_call(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	register uint64_t r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

#endif
