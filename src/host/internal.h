/* Between the files of src/host only. */
#ifndef DOPPEL_HOST_INTERNAL_H
#define DOPPEL_HOST_INTERNAL_H

#include "base/base.h"

#include <errno.h>

/* Keeps errno (or the error number given) for host_error_text(); returns -1. */
int host_fail(void);
int host_fail_with(int error);

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
