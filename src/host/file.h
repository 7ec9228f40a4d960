/* An open file, between the files of src/host only. */
#ifndef DOPPEL_HOST_FILE_H
#define DOPPEL_HOST_FILE_H

#include "host/host.h"

#include <stdatomic.h>
#include <sys/stat.h>

struct host_file {
	int fd;
	mode_t mode;
	bool locked;
	/* HOST_FILE_DIRECT: what offsets and lengths, and what addresses must be multiples of; else 1. */
	unsigned align, memory_align;
	atomic_bool waits_to_write; /* its file system cannot say whether a write would wait */
};

/* Whether these pieces may be moved as they are. False: by a copy, or, when `off` or the length are off too, not at
 * all. */
bool host_file_aligned(const struct host_file *f, const struct host_iovec *iov, unsigned n, uint64_t off);

#endif
