/* What a guest wrote to a disk with snapshot=on: a sparse temporary file, and a map of the blocks that are in it. */
#ifndef DOPPEL_DEV_BLK_OVERLAY_H
#define DOPPEL_DEV_BLK_OVERLAY_H

#include "dev/blk_image.h"

struct blk_overlay;

/* Over `base`, which is borrowed, of `size` bytes. NULL: err says why. */
struct blk_overlay *blk_overlay_create(struct host_file *base, uint64_t size, struct error *err);
void blk_overlay_destroy(struct blk_overlay *o);
/* As blk_image's. To write zeroes, iov is NULL. False: see host_error_text(). */
bool blk_overlay_read(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len);
bool blk_overlay_write(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len);
void blk_overlay_state(struct blk_overlay *o, struct state_stream *s);

#endif
