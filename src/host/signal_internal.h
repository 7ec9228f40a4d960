/* What files of src/host that have signals of their own share. */
#ifndef DOPPEL_HOST_SIGNAL_INTERNAL_H
#define DOPPEL_HOST_SIGNAL_INTERNAL_H

#include <pthread.h>
#include <signal.h>

/*
 * void entry(int, siginfo_t *, void *): a handler for threads that run guest code, which goes on to `handler`. It is
 * the kernel's first instruction in us: it clears DF and TF but not AC, which may be the guest's, and C code is free to
 * access memory unaligned. GS is the guest's here as well; C code uses FS only. Vector and x87 state are fresh, the
 * frame has the guest's.
 */
#define SIGNAL_ENTRY(entry, handler)                         \
	void entry(int sig, siginfo_t *info, void *uc);      \
	__asm__(".pushsection .text\n"                       \
		".hidden " #entry "\n"                       \
		".globl " #entry "\n"                        \
		".type " #entry ", @function\n" #entry ":\n" \
		"	endbr64\n"                                 \
		"	pushfq\n"                                  \
		"	andl $~0x40000, (%rsp)\n"                  \
		"	popfq\n"                                   \
		"	jmp " #handler "\n"                  \
		".size " #entry ", . - " #entry "\n"         \
		".popsection\n")

/* `how`: as of pthread_sigmask, for one signal of this thread's. */
static inline void signal_mask_one(int sig, int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, sig);
	pthread_sigmask(how, &set, NULL);
}

#endif
