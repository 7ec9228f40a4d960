/* A disk's contents: a raw image file or a block device of the host, and for snapshot=on what was written since. */
#ifndef DOPPEL_DEV_BLK_IMAGE_H
#define DOPPEL_DEV_BLK_IMAGE_H

#include "bus/bus.h"
#include "host/host.h"

#define BLK_SECTOR 512
#define BLK_IOV_MAX 256 /* pieces of one transfer */

struct blk_image;

/* NULL: err names the image and what to do. `path` is borrowed for the call. */
struct blk_image *blk_image_open(const char *path, bool readonly, bool snapshot, struct error *err);
void blk_image_close(struct blk_image *image);
/* In bytes, a multiple of BLK_SECTOR; does not change. */
uint64_t blk_image_size(const struct blk_image *image);

/*
 * Transfers at any offset and length within the size, from any thread, several at once; those that overlap happen in
 * any order. False: the host's error, which has been logged.
 */
bool blk_image_read(struct blk_image *image, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len);
bool blk_image_write(struct blk_image *image, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len);
/* The range reads as zeroes afterwards; its room on the host is given back where that is possible. */
bool blk_image_zero(struct blk_image *image, uint64_t off, uint64_t len);
/* What was written is on stable storage. */
bool blk_image_flush(struct blk_image *image);

/* snapshot=on: what was written since. Otherwise the image is the state, and its size is noted. Nothing else goes on.
 */
void blk_image_state(struct blk_image *image, struct state_stream *s);

/* The part [skip, skip+len) of `iov`, as pieces in `out` (room for n); returns how many. */
unsigned blk_iov_slice(const struct host_iovec *iov, unsigned n, uint64_t skip, uint64_t len, struct host_iovec *out);

#endif
