/* What a disk is on, chosen by what the user named. */
#include "dev/blk_image.h"

#include "host/nbd.h"

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
		log_error("disk image '%s': cannot %s at byte %" PRIu64 ": %s; the guest gets an I/O error",
			  image->name, what[io->op], io->off, host_io_error_text(io->error));
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

static bool ends_in(const char *path, const char *end)
{
	size_t len = strlen(path), n = strlen(end);

	return len >= n && !strcmp(path + len - n, end);
}

/* How images begin that are not the disk itself. */
static const struct magic {
	unsigned off, len;
	const char *bytes, *name;
} magics[] = {
	{0, 4, "QFI\xfb", "qcow2"},
	{0, 4, "KDMV", "VMDK"},
	{0, 4, "COWD", "VMDK"},
	{0, 21, "# Disk DescriptorFile", "VMDK"},
	{0, 8, "vhdxfile", "VHDX"},
	{0, 8, "conectix", "VHD"},
	{64, 4, "\x7f\x10\xda\xbe", "VDI"},
};
#define QCOW2 (&magics[0])
#define MAGIC_END 68 /* of the furthest */

/* NULL: it begins as none of them, or cannot be read: whoever opens it says why. */
static const struct magic *find_magic(const char *path)
{
	struct host_file *f = host_file_open(path, HOST_FILE_READ);
	uint8_t head[MAGIC_END] = {0};
	const struct magic *found = NULL;

	if (f && host_file_pread(f, head, sizeof(head), 0) > 0)
		for (unsigned i = 0; i < ARRAY_LEN(magics) && !found; i++)
			if (!memcmp(head + magics[i].off, magics[i].bytes, magics[i].len))
				found = &magics[i];
	host_file_close(f);
	return found;
}

static bool refuse_foreign(const char *path, const char *name, struct error *err)
{
	return error_set(
		err,
		"disk image '%s' begins as a %s image, which is not known here: 'qemu-img convert -O raw' makes "
		"a raw one, or give format=raw if it is the guest's own disk as it stands",
		path, name);
}

/*
 * A guest can write whatever it likes into its raw disk, the beginning of a qcow2 image too, and in there the name of
 * any file of the host as what lies below. So contents alone never make an image qcow2: its name or the user must say
 * the same. Other formats are refused: a guest would find, and write over, what is no disk.
 */
static bool find_format(const struct blk_image_config *c, enum blk_format *format, struct error *err)
{
	const struct magic *begins = find_magic(c->path);
	bool magic = begins == QCOW2, named = ends_in(c->path, ".qcow2");
	struct host_file *f = NULL;

	*format = c->format;
	if (c->format == BLK_FORMAT_RAW)
		return true;
	if (c->format == BLK_FORMAT_AUTO) {
		if (begins && !magic)
			return refuse_foreign(c->path, begins->name, err);
		*format = magic && named ? BLK_FORMAT_QCOW2 : BLK_FORMAT_RAW;
		if (magic && !named)
			return error_set(err,
					 "disk image '%s' begins as a qcow2 image: give format=qcow2 if it is one, or "
					 "format=raw "
					 "if it is the guest's own disk as it stands",
					 c->path);
	}
	if (magic || !(named || c->format == BLK_FORMAT_QCOW2) || !(f = host_file_open(c->path, HOST_FILE_READ)))
		return true;
	host_file_close(f);
	return error_set(err, "disk image '%s' is no qcow2 image: give format=raw to use it as it stands", c->path);
}

/* Does what an open of a raw image would do first, for errors of the same kind; qemu-nbd then locks the image itself.
 */
static bool qcow2_ready(const struct blk_image_config *c, struct error *err)
{
	struct blk_raw_config raw = {
		.path = c->path, .readonly = c->readonly || c->snapshot, .blocking = true, .probe = true};
	struct blk_backend *be = blk_raw_open(&raw, err);

	if (!be)
		return false;
	be->ops->close(be);
	return host_program_exists("qemu-nbd") ||
	       error_set(
		       err,
		       "disk image '%s' is qcow2, and qemu-nbd, which reads those, is not installed: it is in Debian's "
		       "package qemu-utils",
		       c->path);
}

static struct blk_backend *open_remote(const struct blk_image_config *c, bool uri, struct error *err)
{
	struct blk_nbd_config nbd = {
		.uri = uri ? c->path : NULL,
		.qcow2 = uri ? NULL : c->path,
		.readonly = c->readonly || c->snapshot,
		.direct = c->direct,
	};

	if (uri && c->direct) {
		error_set(err, "disk '%s': direct=on is for image files; leave it out, its server decides", c->path);
		return NULL;
	}
	if (uri && c->format == BLK_FORMAT_QCOW2) {
		error_set(err, "disk '%s': its server gives out the disk, not an image: leave format=qcow2 out",
			  c->path);
		return NULL;
	}
	return uri || qcow2_ready(c, err) ? blk_nbd_open(&nbd, err) : NULL;
}

static struct blk_backend *open_backend(const struct blk_image_config *config, struct error *err)
{
	struct blk_raw_config raw = {
		.path = config->path,
		.readonly = config->readonly || config->snapshot,
		.direct = config->direct,
		.blocking = config->snapshot && !config->readonly,
	};
	bool uri = host_is_nbd_uri(config->path);
	enum blk_format format = config->format;
	struct blk_backend *be;

	if (!uri && !find_format(config, &format, err))
		return NULL;
	be = uri || format == BLK_FORMAT_QCOW2 ? open_remote(config, uri, err) : blk_raw_open(&raw, err);
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
	void (*state)(struct blk_backend * be, struct state_stream * s) = image->be->ops->state;
	bool overlay = state;

	state_field(s, size);
	state_flag(s, &overlay);
	if (size != image->be->size || overlay != !!state)
		state_refuse(s, "a disk of another size or kind");
	if (s->failed)
		return;
	if (state) {
		state(image->be, s);
	} else if (s->saving && !image->readonly) {
		struct host_io flush = {.op = HOST_IO_FLUSH};

		image->be->ops->run(image->be, &flush);
		report(image, &flush);
	}
}
