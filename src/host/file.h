/* An open file, between the files of src/host only. */
#ifndef DOPPEL_HOST_FILE_H
#define DOPPEL_HOST_FILE_H

#include "host/io.h"

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

/* Takes `len` bytes off the front of a request's pieces: they have been moved. */
void host_io_consume(struct host_io *io, size_t len);
/* Between the front of a request's pieces and `len` bytes at `buf`; in: into buf. */
void host_io_copy(const struct host_io *io, uint8_t *buf, size_t len, bool in);

#endif
