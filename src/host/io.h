/*
 * Requests on a file or a remote disk that go on while their caller does something else: several at once, their
 * memory's bytes moved without a copy where the host lets us.
 *
 * Who makes a request keeps it, and what it points to, until it comes back through `done`, with `error` 0 or the
 * reason. A list of them is linked by `next`. `done` is called from threads of this part only, never from within a
 * submit, and gets requests in the order in which they ended.
 */
#ifndef DOPPEL_HOST_IO_H
#define DOPPEL_HOST_IO_H

#include "base/base.h"
#include "host/host.h"

enum host_io_op {
	HOST_IO_READ,
	HOST_IO_WRITE,
	HOST_IO_FLUSH,   /* all writes that have ended are on stable storage afterwards */
	HOST_IO_DISCARD, /* the range's contents do not matter any more; nothing happens where that is not possible */
	HOST_IO_ZERO,    /* the range reads as zeroes afterwards */
};

/* Errors of our own, beside the host's error numbers. */
enum { HOST_IO_ENDED = -1 /* the file ends before the range does */, HOST_IO_LOST = -2 /* the server is gone */ };

struct host_io {
	enum host_io_op op;
	bool unmap; /* ZERO: room on the host may be given back */
	int error;
	uint64_t off, len;
	struct host_iovec *iov; /* READ and WRITE: `len` bytes in `n` pieces; used up on the way */
	unsigned n;
	struct host_io *next;
	void *own; /* the caller's */

	/* Who carries it out has these; the caller leaves them 0. */
	uint64_t moved;
	unsigned tries;
	bool *waiter;
};

/* The last failure on this thread, as an error number. */
int host_error_number(void);
/* "No space left on device" */
const char *host_io_error_text(int error);

/* Carries out a request on this thread; sets its error. */
void host_io_run(struct host_file *f, struct host_io *io);
/*
 * Carries out a READ or WRITE if that needs no waiting (its bytes are in the host's cache) and says true; else false,
 * and some of it may have been done. Its pieces stay as they are.
 */
bool host_io_try(struct host_file *f, struct host_io *io);

struct host_aio_config {
	const char *name; /* of its threads */
	struct host_file *file;
	void (*run)(void *opaque,
		    struct host_io *io); /* instead of on `file`: carries one out, on one of the threads */
	bool no_ring;                    /* threads also where the kernel has io_uring */
	void (*done)(void *opaque, struct host_io *list);
	void *opaque;
};

struct host_aio;

/* io_uring where the kernel has it and lets us, else threads. NULL: see host_error_text(). */
struct host_aio *host_aio_create(const struct host_aio_config *config);
bool host_aio_has_ring(const struct host_aio *aio);
void host_aio_submit(struct host_aio *aio, struct host_io *list);
/* Waits for what is under way. */
void host_aio_destroy(struct host_aio *aio);

#endif
