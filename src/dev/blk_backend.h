/*
 * What a disk's contents are on: a raw image or block device of the host (blk_raw.c), a server of blocks (blk_nbd.c),
 * and for snapshot=on what was written since on top of one of them (blk_overlay.c). Requests are as host/io.h has them.
 */
#ifndef DOPPEL_DEV_BLK_BACKEND_H
#define DOPPEL_DEV_BLK_BACKEND_H

#include "bus/bus.h"
#include "host/io.h"

struct blk_backend;

struct blk_backend_ops {
	/* Carries out a READ or WRITE if that needs no waiting; false: it was not done. Any thread. NULL: never. */
	bool (*attempt)(struct blk_backend *be, struct host_io *io);
	/* Carries out a request, and waits for it. Any thread. */
	void (*run)(struct blk_backend *be, struct host_io *io);
	/* Starts a list of requests; each comes back through be->done. Any thread. */
	void (*submit)(struct blk_backend *be, struct host_io *list);
	/* Saves or loads what is not kept elsewhere; NULL: nothing. Nothing is under way. */
	void (*state)(struct blk_backend *be, struct state_stream *s);
	/* Waits for what is under way and frees *be. */
	void (*close)(struct blk_backend *be);
};

/* Made by an open function, which fills in all but `done` and `opaque`; those are there before the first submit. */
struct blk_backend {
	const struct blk_backend_ops *ops;
	uint64_t size;      /* in bytes, constant */
	unsigned alignment; /* what offsets and lengths must be multiples of */
	bool readonly;      /* it cannot be written to */
	bool discards, zeroes;
	/* `run` of a small write mostly ends in the host's cache, and so takes no longer than waking a thread. */
	bool quick;
	void (*done)(void *opaque, struct host_io *list); /* as host/io.h's */
	void *opaque;
};

struct blk_raw_config {
	const char *path;
	bool readonly;
	bool direct;   /* past the host's cache */
	bool blocking; /* only attempt and run will be used */
	bool probe;    /* opened to be closed again: it need not be a raw image */
};

/* NULL: err names the file and the fix. */
struct blk_backend *blk_raw_open(const struct blk_raw_config *config, struct error *err);
struct blk_nbd_config {
	const char *uri;   /* or NULL: */
	const char *qcow2; /* an image that qemu-nbd is started for */
	bool readonly, direct;
};

struct blk_backend *blk_nbd_open(const struct blk_nbd_config *config, struct error *err);
/* Takes `base` over, also when it fails. */
struct blk_backend *blk_overlay_open(struct blk_backend *base, struct error *err);

/* The part [skip, skip+len) of `iov`, as pieces in `out` (room for n); returns how many. */
unsigned blk_iov_slice(const struct host_iovec *iov, unsigned n, uint64_t skip, uint64_t len, struct host_iovec *out);

#endif
