/* Between the files of src/host only. */
#ifndef DOPPEL_HOST_INTERNAL_H
#define DOPPEL_HOST_INTERNAL_H

#include "base/base.h"

#include <errno.h>

/* Keeps errno (or the error number given) for host_error_text(); returns -1. */
int host_fail(void);
int host_fail_with(int error);

/* Failures that no error number of the host's stands for. */
enum {
	FAIL_NO_WRITER = 1 << 16, /* a pipe that nobody writes to */
	FAIL_NO_STORAGE,          /* neither a file nor a block device */
};

#define HUGE_PAGE MiB(2)
/*
 * A file without a name, of size 0 yet, for memory to be shared in large pages (after madvise: MADV_HUGEPAGE), or -1.
 * Not after host_confine.
 */
int host_huge_file(void);

/*
 * A memfd that is no program, or is one (MFD_NOEXEC_SEAL, MFD_EXEC): an administrator may allow no others (sysctl
 * vm.memfd_noexec), and Linux before 6.3 does not know how to say so.
 */
enum { HOST_MEMFD_DATA = 8, HOST_MEMFD_PROGRAM = 16 };
int host_memfd(const char *name, unsigned flags);

/* Repeats a system call that a signal interrupted. */
#define RETRY_EINTR(call)                                      \
	({                                                     \
		__typeof__(call) retry_result_;                \
		do                                             \
			retry_result_ = (call);                \
		while (retry_result_ == -1 && errno == EINTR); \
		retry_result_;                                 \
	})

#endif
