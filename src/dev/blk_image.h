/*
 * A disk's contents as a block device uses them: a back end (blk_backend.h) that was chosen by what the user named,
 * what may not be done to it, and the host's errors told to the user once.
 */
#ifndef DOPPEL_DEV_BLK_IMAGE_H
#define DOPPEL_DEV_BLK_IMAGE_H

#include "bus/bus.h"
#include "dev/blk_backend.h"

#define BLK_SECTOR 512
#define BLK_IOV_MAX 256 /* pieces of one transfer */

enum blk_format { BLK_FORMAT_AUTO, BLK_FORMAT_RAW, BLK_FORMAT_QCOW2 };

struct blk_image_config {
	const char *path; /* borrowed for the call */
	enum blk_format format;
	bool readonly, snapshot, direct;
	unsigned block_size; /* 512 or 4096; 0: as small as the image allows */
};

/* NULL names BLK_FORMAT_AUTO. False: there is no such format. */
bool blk_format_find(const char *name, enum blk_format *format);

struct blk_image;

/* NULL: err names the image and what to do. */
struct blk_image *blk_image_open(const struct blk_image_config *config, struct error *err);
/* On a back end of one's own, which is taken over, also when it fails. `name` is for messages. */
struct blk_image *blk_image_on(struct blk_backend *be, const struct blk_image_config *config, const char *name,
			       struct error *err);
void blk_image_close(struct blk_image *image);
/* Where requests come back to; before the first. */
void blk_image_start(struct blk_image *image, void (*done)(void *opaque, struct host_io *list), void *opaque);

/* In bytes, a multiple of the block size; constant. */
uint64_t blk_image_size(const struct blk_image *image);
unsigned blk_image_block_size(const struct blk_image *image);
bool blk_image_readonly(const struct blk_image *image);
bool blk_image_discards(const struct blk_image *image);
bool blk_image_zeroes(const struct blk_image *image);

/*
 * Requests within the size, from any thread, several at once; those that overlap happen in any order. try: true if the
 * request has been carried out here and now, because that took no waiting to speak of.
 */
bool blk_image_try(struct blk_image *image, struct host_io *io);
void blk_image_submit(struct blk_image *image, struct host_io *list);

/* snapshot=on: what was written since. Otherwise the image is the state, and its size is noted. Nothing else goes on.
 */
void blk_image_state(struct blk_image *image, struct state_stream *s);

#endif
