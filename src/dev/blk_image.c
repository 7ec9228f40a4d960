/* Raw disk images. */
#include "dev/blk_overlay.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct blk_image {
	struct host_file *file;
	struct blk_overlay *overlay; /* snapshot=on, or NULL */
	uint64_t size;
	bool readonly;
	atomic_bool warned;
	char path[];
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

static struct host_file *open_file(const char *path, bool write, struct error *err)
{
	struct host_file *f = host_file_open(path, HOST_FILE_READ | (write ? HOST_FILE_WRITE : 0));
	struct host_file *probe;

	if (f)
		return f;
	char why[128];
	strncpy(why, host_error_text(), sizeof(why) - 1);
	why[sizeof(why) - 1] = 0;
	/* The same without writing tells a read-only file from one that is not there. */
	probe = write ? host_file_open(path, HOST_FILE_READ) : NULL;
	error_set(err, "cannot open disk image '%s'%s: %s%s", path, probe ? " for writing" : "", why,
		  probe ? "; add ',readonly' or ',snapshot=on' to leave it as it is" : "");
	host_file_close(probe);
	return NULL;
}

static bool check_size(struct blk_image *image, struct error *err)
{
	uint8_t first[BLK_SECTOR];
	int64_t size = host_file_size(image->file);

	if (size < 0)
		return error_set(err, "cannot tell the size of disk image '%s': %s", image->path, host_error_text());
	if (size == 0)
		return error_set(err,
				 "disk image '%s' is empty; give it a size first, for example with 'truncate -s 8G'",
				 image->path);
	if (size % BLK_SECTOR)
		return error_set(err,
				 "disk image '%s' has %" PRId64
				 " bytes, which is no multiple of %d; is it a raw image? "
				 "Make it longer with 'truncate -s %%%d'",
				 image->path, size, BLK_SECTOR, BLK_SECTOR);
	image->size = size;
	if (host_file_pread(image->file, first, sizeof(first), 0) != sizeof(first))
		return error_set(err, "cannot read disk image '%s': %s", image->path, host_error_text());
	return true;
}

struct blk_image *blk_image_open(const char *path, bool readonly, bool snapshot, struct error *err)
{
	size_t len = strlen(path) + 1;
	struct blk_image *image = calloc(1, sizeof(*image) + len);

	if (!image) {
		error_set(err, "out of memory");
		return NULL;
	}
	memcpy(image->path, path, len);
	image->readonly = readonly;
	image->file = open_file(path, !readonly && !snapshot, err);
	if (!image->file || !check_size(image, err))
		goto fail;
	if (snapshot && !readonly) {
		image->overlay = blk_overlay_create(image->file, image->size, err);
		if (!image->overlay)
			goto fail;
	}
	return image;
fail:
	blk_image_close(image);
	return NULL;
}

void blk_image_close(struct blk_image *image)
{
	if (!image)
		return;
	blk_overlay_destroy(image->overlay);
	host_file_close(image->file);
	free(image);
}

uint64_t blk_image_size(const struct blk_image *image)
{
	return image->size;
}

/* The guest gets an I/O error each time; the user is told the first. */
static bool report(struct blk_image *image, bool ok, const char *what, uint64_t off)
{
	if (!ok && !atomic_exchange(&image->warned, true))
		log_warn("disk image '%s': cannot %s at byte %" PRIu64 ": %s", image->path, what, off,
			 host_error_text());
	return ok;
}

bool blk_image_read(struct blk_image *image, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	bool ok = image->overlay ? blk_overlay_read(image->overlay, iov, n, off, len)
				 : host_file_preadv(image->file, iov, n, off) == (int64_t)len;

	return report(image, ok, "read", off);
}

bool blk_image_write(struct blk_image *image, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	if (image->readonly)
		return false;
	bool ok = image->overlay ? blk_overlay_write(image->overlay, iov, n, off, len)
				 : host_file_pwritev(image->file, iov, n, off) == (int64_t)len;
	return report(image, ok, "write", off);
}

bool blk_image_zero(struct blk_image *image, uint64_t off, uint64_t len)
{
	if (image->readonly)
		return false;
	bool ok = image->overlay ? blk_overlay_write(image->overlay, NULL, 0, off, len)
				 : host_file_punch(image->file, off, len) == 0;
	return report(image, ok, "write zeroes", off);
}

bool blk_image_flush(struct blk_image *image)
{
	/* An overlay vanishes with the machine: nothing of it needs to be stable. */
	if (image->readonly || image->overlay)
		return true;
	return report(image, host_file_sync(image->file) == 0, "sync", 0);
}

void blk_image_state(struct blk_image *image, struct state_stream *s)
{
	uint64_t size = image->size;
	bool overlay = image->overlay;

	state_field(s, size);
	state_flag(s, &overlay);
	if (size != image->size || overlay != !!image->overlay)
		s->failed = true;
	if (s->failed)
		return;
	if (image->overlay)
		blk_overlay_state(image->overlay, s);
	else if (s->saving)
		blk_image_flush(image);
}
