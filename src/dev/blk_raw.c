/* Raw images: a file, or a block device of the host. */
#include "dev/blk_image.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct blk_raw {
	struct blk_backend be;
	struct host_file *file;
	struct host_aio *aio; /* NULL: attempt and run only */
};

static struct blk_raw *raw(struct blk_backend *be)
{
	return container_of(be, struct blk_raw, be);
}

static bool raw_attempt(struct blk_backend *be, struct host_io *io)
{
	return (io->op == HOST_IO_READ || io->op == HOST_IO_WRITE) && host_io_try(raw(be)->file, io);
}

static void raw_run(struct blk_backend *be, struct host_io *io)
{
	host_io_run(raw(be)->file, io);
}

static void raw_submit(struct blk_backend *be, struct host_io *list)
{
	host_aio_submit(raw(be)->aio, list);
}

static void raw_close(struct blk_backend *be)
{
	struct blk_raw *r = raw(be);

	host_aio_destroy(r->aio);
	host_file_close(r->file);
	free(r);
}

static const struct blk_backend_ops raw_ops = {
	.attempt = raw_attempt, .run = raw_run, .submit = raw_submit, .close = raw_close};

static void raw_done(void *opaque, struct host_io *list)
{
	struct blk_raw *r = opaque;

	r->be.done(r->be.opaque, list);
}

/* Why it could not be opened, and what would help. */
static struct host_file *explain(const struct blk_raw_config *c, unsigned flags, struct error *err)
{
	char why[128];
	struct host_file *probe;
	const char *help = "";

	strncpy(why, host_error_text(), sizeof(why) - 1);
	why[sizeof(why) - 1] = 0;
	/* The same with less tells a read-only file from one that is not there. */
	probe = flags & HOST_FILE_WRITE ? host_file_open(c->path, flags & ~(unsigned)HOST_FILE_WRITE) : NULL;
	if (probe) {
		help = "; add ',readonly' or ',snapshot=on' to leave it as it is";
	} else if (flags & HOST_FILE_DIRECT) {
		probe = host_file_open(c->path, HOST_FILE_READ);
		help = probe ? "; its file system may not know direct=on: leave that out" : "";
	}
	error_set(err, "cannot open disk image '%s'%s: %s%s", c->path, probe && *help ? " in this way" : "", why, help);
	host_file_close(probe);
	return NULL;
}

static struct host_file *open_file(const struct blk_raw_config *c, struct error *err)
{
	unsigned flags = HOST_FILE_READ | (c->readonly ? 0 : HOST_FILE_WRITE) | (c->direct ? HOST_FILE_DIRECT : 0);
	struct host_file *f = host_file_open(c->path, flags);

	return f ? f : explain(c, flags, err);
}

static bool lock(struct blk_raw *r, const struct blk_raw_config *c, struct error *err)
{
	int result = host_file_lock(r->file, !c->readonly);

	if (result > 0)
		return error_set(err,
				 "disk image '%s' is in use by another virtual machine%s, or given twice: end that one "
				 "first, or give both "
				 "',readonly' or ',snapshot=on'",
				 c->path, c->readonly ? ", which writes to it" : "");
	if (result < 0)
		log_info("disk image '%s' cannot be locked: %s; see to it that no one else writes to it", c->path,
			 host_error_text());
	return true;
}

static bool check_size(struct blk_raw *r, const char *path, struct error *err)
{
	int64_t size = host_file_size(r->file);

	if (size < 0)
		return error_set(err, "cannot tell the size of disk image '%s': %s", path, host_error_text());
	if (size == 0)
		return error_set(
			err, "disk image '%s' is empty; give it a size first, for example with 'truncate -s 8G'", path);
	if (size % BLK_SECTOR)
		return error_set(err,
				 "disk image '%s' has %" PRId64
				 " bytes, which is no multiple of %d; is it a raw image? "
				 "Make it longer with 'truncate -s %%%d'",
				 path, size, BLK_SECTOR, BLK_SECTOR);
	r->be.size = size;
	return true;
}

static bool check_read(struct blk_raw *r, const char *path, struct error *err)
{
	uint8_t first[PAGE_SIZE];
	uint64_t len = MIN(r->be.size, MAX(BLK_SECTOR, r->be.alignment));

	if (host_file_pread(r->file, first, len, 0) == (int64_t)len)
		return true;
	return error_set(err, "cannot read disk image '%s': %s", path, host_error_text());
}

static bool start(struct blk_raw *r, const struct blk_raw_config *c, struct error *err)
{
	struct host_aio_config aio = {.name = "disk", .file = r->file, .done = raw_done, .opaque = r};

	if (c->blocking)
		return true;
	r->aio = host_aio_create(&aio);
	return r->aio || error_set(err,
				   "cannot start a thread for disk image '%s': %s; see the limit on processes "
				   "(ulimit -u)",
				   c->path, host_error_text());
}

struct blk_backend *blk_raw_open(const struct blk_raw_config *config, struct error *err)
{
	struct blk_raw *r = calloc(1, sizeof(*r));

	if (!r) {
		error_set(err, "out of memory");
		return NULL;
	}
	r->be = (struct blk_backend){.ops = &raw_ops,
				     .alignment = 1,
				     .readonly = config->readonly,
				     .discards = true,
				     .zeroes = true,
				     .quick = !config->direct};
	r->file = open_file(config, err);
	if (r->file)
		r->be.alignment = host_file_alignment(r->file);
	if (r->file && lock(r, config, err) &&
	    (config->probe || (check_size(r, config->path, err) && check_read(r, config->path, err))) &&
	    start(r, config, err))
		return &r->be;
	raw_close(&r->be);
	return NULL;
}
