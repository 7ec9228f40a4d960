/* What a disk is on, chosen by what the user named. */
#include "dev/blk_image.h"

#include "host/thread.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/*
 * A small write to the host's cache is a copy and takes a few microseconds, less than a thread needs to wake up. Hosts
 * do not say beforehand whether it will be more than that (most file systems have no RWF_NOWAIT for it), as when too
 * much waits to be written back. So it is tried; and when one took long, the next are left to the threads for a time
 * that makes the processor's loss a small part.
 */
#define QUICK_MAX KiB(64)
#define SLOW_NS 500000u
#define REST_FACTOR 50u

struct blk_image {
	struct blk_backend *be;
	bool readonly;
	unsigned block_size;
	atomic_bool warned;
	_Atomic uint64_t rest_until; /* no quick writes before this time */
	void (*done)(void *opaque, struct host_io *list);
	void *opaque;
	char name[];
};

unsigned blk_iov_slice(const struct host_iovec *iov, unsigned n, uint64_t skip, uint64_t len, struct host_iovec *out)
{
	unsigned used = 0;

	for (unsigned i = 0; i < n && len; i++) {
		if (skip >= iov[i].len) {
			skip -= iov[i].len;
			continue;
		}
		size_t part = MIN(iov[i].len - skip, len);
		out[used++] = (struct host_iovec){(char *)iov[i].base + skip, part};
		len -= part;
		skip = 0;
	}
	return used;
}

/* The guest gets an I/O error each time; the user is told the first. */
static void report(struct blk_image *image, const struct host_io *io)
{
	static const char *const what[] = {[HOST_IO_READ] = "read",
					   [HOST_IO_WRITE] = "write",
					   [HOST_IO_FLUSH] = "write out",
					   [HOST_IO_DISCARD] = "discard",
					   [HOST_IO_ZERO] = "write zeroes"};

	if (io->error && !atomic_exchange(&image->warned, true))
		log_warn("disk image '%s': cannot %s at byte %" PRIu64 ": %s; the guest gets an I/O error", image->name,
			 what[io->op], io->off, host_io_error_text(io->error));
}

static void image_done(void *opaque, struct host_io *list)
{
	struct blk_image *image = opaque;

	for (const struct host_io *io = list; io; io = io->next)
		report(image, io);
	image->done(image->opaque, list);
}

bool blk_format_find(const char *name, enum blk_format *format)
{
	static const char *const names[] = {[BLK_FORMAT_RAW] = "raw", [BLK_FORMAT_QCOW2] = "qcow2"};

	*format = BLK_FORMAT_AUTO;
	for (unsigned i = BLK_FORMAT_RAW; name && i < ARRAY_LEN(names); i++)
		if (!strcmp(name, names[i]))
			*format = i;
	return !name || *format != BLK_FORMAT_AUTO;
}

static bool check_blocks(struct blk_image *image, const struct blk_image_config *c, struct error *err)
{
	unsigned needed = MAX(BLK_SECTOR, image->be->alignment);

	image->block_size = c->block_size ? c->block_size : needed;
	if (image->block_size < needed)
		return error_set(err, "disk image '%s' has blocks of %u bytes%s: give blocksize=%u", image->name,
				 needed, c->direct ? " under direct=on" : "", needed);
	if (image->be->size % image->block_size)
		return error_set(err,
				 "disk image '%s' has %" PRIu64
				 " bytes, which is no multiple of its blocks of %u: make it longer with 'truncate -s "
				 "%%%u', or give blocksize=512",
				 image->name, image->be->size, image->block_size, image->block_size);
	return true;
}

struct blk_image *blk_image_on(struct blk_backend *be, const struct blk_image_config *config, const char *name,
			       struct error *err)
{
	size_t len = strlen(name) + 1;
	struct blk_image *image = calloc(1, sizeof(*image) + len);

	if (!image) {
		error_set(err, "out of memory");
		be->ops->close(be);
		return NULL;
	}
	memcpy(image->name, name, len);
	image->be = be;
	image->readonly = config->readonly;
	be->done = image_done;
	be->opaque = image;
	if (check_blocks(image, config, err))
		return image;
	blk_image_close(image);
	return NULL;
}

static struct blk_backend *open_backend(const struct blk_image_config *config, struct error *err)
{
	struct blk_raw_config raw = {
		.path = config->path,
		.readonly = config->readonly || config->snapshot,
		.direct = config->direct,
		.blocking = config->snapshot && !config->readonly,
	};
	struct blk_backend *be = blk_raw_open(&raw, err);

	return be && config->snapshot && !config->readonly ? blk_overlay_open(be, err) : be;
}

struct blk_image *blk_image_open(const struct blk_image_config *config, struct error *err)
{
	struct blk_backend *be = open_backend(config, err);

	return be ? blk_image_on(be, config, config->path, err) : NULL;
}

void blk_image_close(struct blk_image *image)
{
	if (!image)
		return;
	image->be->ops->close(image->be);
	free(image);
}

void blk_image_start(struct blk_image *image, void (*done)(void *opaque, struct host_io *list), void *opaque)
{
	image->done = done;
	image->opaque = opaque;
}

uint64_t blk_image_size(const struct blk_image *image)
{
	return image->be->size;
}

unsigned blk_image_block_size(const struct blk_image *image)
{
	return image->block_size;
}

bool blk_image_readonly(const struct blk_image *image)
{
	return image->readonly;
}

bool blk_image_discards(const struct blk_image *image)
{
	return image->be->discards && !image->readonly;
}

bool blk_image_zeroes(const struct blk_image *image)
{
	return image->be->zeroes && !image->readonly;
}

static bool may_be_quick(struct blk_image *image, const struct host_io *io, uint64_t now)
{
	return image->be->quick && io->op == HOST_IO_WRITE && io->len <= QUICK_MAX &&
	       now >= atomic_load_explicit(&image->rest_until, memory_order_relaxed);
}

static bool attempt(struct blk_image *image, struct host_io *io)
{
	struct blk_backend *be = image->be;

	if (be->ops->attempt && be->ops->attempt(be, io))
		return true;
	if (io->op != HOST_IO_WRITE)
		return false;
	uint64_t now = host_now_ns();
	if (!may_be_quick(image, io, now))
		return false;
	be->ops->run(be, io);
	uint64_t end = host_now_ns();
	if (end - now > SLOW_NS)
		atomic_store_explicit(&image->rest_until, end + (end - now) * REST_FACTOR, memory_order_relaxed);
	return true;
}

bool blk_image_try(struct blk_image *image, struct host_io *io)
{
	if (io->op == HOST_IO_FLUSH && image->readonly) {
		io->error = 0;
		return true;
	}
	if (!attempt(image, io))
		return false;
	report(image, io);
	return true;
}

void blk_image_submit(struct blk_image *image, struct host_io *list)
{
	image->be->ops->submit(image->be, list);
}

void blk_image_state(struct blk_image *image, struct state_stream *s)
{
	uint64_t size = image->be->size;
	bool overlay = image->be->ops->state;

	state_field(s, size);
	state_flag(s, &overlay);
	if (size != image->be->size || overlay != !!image->be->ops->state)
		s->failed = true;
	if (s->failed)
		return;
	if (overlay) {
		image->be->ops->state(image->be, s);
	} else if (s->saving && !image->readonly) {
		struct host_io flush = {.op = HOST_IO_FLUSH};

		image->be->ops->run(image->be, &flush);
		report(image, &flush);
	}
}
