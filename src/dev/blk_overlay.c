/*
 * What a guest wrote to a disk with snapshot=on: a sparse temporary file, and a map of the blocks that are in it. One
 * that is written in part is completed from the image first. Readers take no lock: a block's bit is set after its
 * contents are there. Writers take turns.
 */
#include "dev/blk_image.h"
#include "host/thread.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 4096ull /* what file systems write in */
#define WORD 64

struct blk_overlay {
	struct blk_backend be;
	struct blk_backend *base;
	struct host_file *file; /* a block has the same offset here as in the base */
	struct host_aio *aio;   /* threads that wait for base and file */
	uint64_t size, blocks;
	struct host_mutex lock;
	_Atomic uint64_t *map;
};

static struct blk_overlay *overlay(struct blk_backend *be)
{
	return container_of(be, struct blk_overlay, be);
}

static bool present(const struct blk_overlay *o, uint64_t block)
{
	return atomic_load_explicit(&o->map[block / WORD], memory_order_acquire) >> block % WORD & 1;
}

static void set_present(struct blk_overlay *o, uint64_t first, uint64_t count)
{
	for (uint64_t b = first; b < first + count; b++)
		atomic_fetch_or_explicit(&o->map[b / WORD], 1ull << b % WORD, memory_order_release);
}

static void iov_zero(const struct host_iovec *iov, unsigned n, uint64_t skip)
{
	for (unsigned i = 0; i < n; i++) {
		if (skip < iov[i].len)
			memset((char *)iov[i].base + skip, 0, iov[i].len - skip);
		skip -= MIN(skip, iov[i].len);
	}
}

/* Bytes from `off` on, up to `len`, whose blocks are all in the overlay, or all not. */
static uint64_t same_run(const struct blk_overlay *o, uint64_t off, uint64_t len, bool in)
{
	uint64_t end = align_down(off, BLOCK) + BLOCK;

	while (end - off < len && present(o, end / BLOCK) == in)
		end += BLOCK;
	return MIN(end - off, len);
}

/* All of these return 0 or what host_io's error has. */
static int base_read(struct blk_overlay *o, struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	struct host_io io = {.op = HOST_IO_READ, .off = off, .len = len, .iov = iov, .n = n};

	o->base->ops->run(o->base, &io);
	return io.error;
}

static int run_read(struct blk_overlay *o, struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len, bool in)
{
	int64_t got;

	if (!in)
		return base_read(o, iov, n, off, len);
	got = host_file_preadv(o->file, iov, n, off);
	/* The overlay's file may end before blocks that were zeroed. */
	if (got >= 0)
		iov_zero(iov, n, got);
	return got < 0 ? host_error_number() : 0;
}

static int overlay_read(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	struct host_iovec part[BLK_IOV_MAX];
	int error = 0;

	for (uint64_t done = 0, run; done < len && !error; done += run) {
		bool in = present(o, (off + done) / BLOCK);
		run = same_run(o, off + done, len - done, in);
		unsigned parts = blk_iov_slice(iov, n, done, run, part);
		error = run_read(o, part, parts, off + done, run, in);
	}
	return error;
}

static void iov_copy(const struct host_iovec *iov, unsigned n, uint8_t *dst)
{
	for (unsigned i = 0; i < n; i++) {
		memcpy(dst, iov[i].base, iov[i].len);
		dst += iov[i].len;
	}
}

static int file_write(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	return host_file_pwritev(o->file, iov, n, off) < 0 ? host_error_number() : 0;
}

/* Less than a block: completed with what the block held, and written whole. */
static int write_partly(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	uint8_t block[BLOCK] = {0};
	uint64_t start = align_down(off, BLOCK);
	struct host_iovec whole = {block, MIN(BLOCK, o->size - start)};
	int error = run_read(o, &whole, 1, start, whole.len, present(o, start / BLOCK));

	if (error)
		return error;
	if (iov)
		iov_copy(iov, n, block + (off - start));
	else
		memset(block + (off - start), 0, len);
	whole = (struct host_iovec){block, BLOCK};
	return file_write(o, &whole, 1, start);
}

static int write_whole(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	if (iov)
		return file_write(o, iov, n, off);
	return host_file_punch(o->file, off, len) ? host_error_number() : 0;
}

/* To write zeroes, iov is NULL. */
static int overlay_write(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	struct host_iovec part[BLK_IOV_MAX];
	int error = 0;

	host_lock(&o->lock);
	for (uint64_t done = 0, run; !error && done < len; done += run) {
		uint64_t at = off + done, left = len - done, in_block = BLOCK - at % BLOCK;
		bool whole = in_block == BLOCK && left >= BLOCK;
		run = whole ? align_down(left, BLOCK) : MIN(in_block, left);
		unsigned parts = iov ? blk_iov_slice(iov, n, done, run, part) : 0;
		error = (whole ? write_whole : write_partly)(o, iov ? part : NULL, parts, at, run);
		if (!error)
			set_present(o, at / BLOCK, whole ? run / BLOCK : 1);
	}
	host_unlock(&o->lock);
	return error;
}

/* Each block that is there: its number plus one, and its contents; then a zero. */
static void save_blocks(struct blk_overlay *o, struct state_stream *s)
{
	uint8_t block[BLOCK];
	uint64_t mark;

	for (uint64_t b = 0; b < o->blocks && !s->failed; b++) {
		if (!present(o, b))
			continue;
		mark = b + 1;
		struct host_iovec iov = {block, BLOCK};
		if (run_read(o, &iov, 1, b * BLOCK, BLOCK, true))
			state_refuse(s, "what a disk cannot read");
		state_field(s, mark);
		state_field(s, block);
	}
	mark = 0;
	state_field(s, mark);
}

static void load_blocks(struct blk_overlay *o, struct state_stream *s)
{
	uint8_t block[BLOCK];
	uint64_t mark = 0;

	for (uint64_t w = 0; w <= o->blocks / WORD; w++)
		atomic_store(&o->map[w], 0);
	for (;;) {
		state_field(s, mark);
		if (s->failed || mark == 0)
			return;
		state_field(s, block);
		if (mark > o->blocks || s->failed ||
		    host_file_pwrite(o->file, block, BLOCK, (mark - 1) * BLOCK) != (int64_t)BLOCK) {
			state_refuse(s, "more than a disk here takes");
			return;
		}
		set_present(o, mark - 1, 1);
	}
}

static void overlay_state(struct blk_backend *be, struct state_stream *s)
{
	if (s->saving)
		save_blocks(overlay(be), s);
	else
		load_blocks(overlay(be), s);
}

static void overlay_run(struct blk_backend *be, struct host_io *io)
{
	struct blk_overlay *o = overlay(be);

	switch (io->op) {
	case HOST_IO_READ:
		io->error = overlay_read(o, io->iov, io->n, io->off, io->len);
		break;
	case HOST_IO_WRITE:
		io->error = overlay_write(o, io->iov, io->n, io->off, io->len);
		break;
	case HOST_IO_DISCARD:
	case HOST_IO_ZERO:
		io->error = overlay_write(o, NULL, 0, io->off, io->len);
		break;
	case HOST_IO_FLUSH: /* it vanishes with the machine: nothing of it needs to be stable */
		io->error = 0;
		break;
	}
}

static bool overlay_attempt(struct blk_backend *be, struct host_io *io)
{
	struct blk_overlay *o = overlay(be);

	if (io->op == HOST_IO_FLUSH) {
		io->error = 0;
		return true;
	}
	if (io->op != HOST_IO_READ || !io->len)
		return false;
	bool in = present(o, io->off / BLOCK);
	if (same_run(o, io->off, io->len, in) < io->len)
		return false;
	if (in)
		return host_io_try(o->file, io);
	return o->base->ops->attempt && o->base->ops->attempt(o->base, io);
}

static void overlay_submit(struct blk_backend *be, struct host_io *list)
{
	host_aio_submit(overlay(be)->aio, list);
}

static void overlay_close(struct blk_backend *be)
{
	struct blk_overlay *o = overlay(be);

	host_aio_destroy(o->aio);
	host_file_close(o->file);
	o->base->ops->close(o->base);
	host_mutex_destroy(&o->lock);
	free((void *)o->map);
	free(o);
}

static const struct blk_backend_ops overlay_ops = {
	.attempt = overlay_attempt,
	.run = overlay_run,
	.submit = overlay_submit,
	.state = overlay_state,
	.close = overlay_close,
};

/* On a thread of o->aio. */
static void on_thread(void *opaque, struct host_io *io)
{
	struct blk_overlay *o = opaque;

	overlay_run(&o->be, io);
}

static void on_done(void *opaque, struct host_io *list)
{
	struct blk_overlay *o = opaque;

	o->be.done(o->be.opaque, list);
}

static bool start(struct blk_overlay *o, struct error *err)
{
	struct host_aio_config aio = {.name = "disk", .run = on_thread, .done = on_done, .opaque = o};

	o->map = calloc(o->blocks / WORD + 1, sizeof(*o->map));
	if (!o->map)
		return error_set(err, "out of memory");
	o->file = host_file_temp();
	if (!o->file)
		return error_set(err,
				 "cannot make a temporary file for snapshot=on: %s; TMPDIR can name another folder",
				 host_error_text());
	o->aio = host_aio_create(&aio);
	return o->aio || error_set(err, "cannot start a thread for a disk: %s; see the limit on processes (ulimit -u)",
				   host_error_text());
}

struct blk_backend *blk_overlay_open(struct blk_backend *base, struct error *err)
{
	struct blk_overlay *o = calloc(1, sizeof(*o));

	if (!o) {
		base->ops->close(base);
		error_set(err, "out of memory");
		return NULL;
	}
	o->be = (struct blk_backend){.ops = &overlay_ops,
				     .size = base->size,
				     .alignment = base->alignment,
				     .discards = true,
				     .zeroes = true,
				     .quick = base->quick};
	o->base = base;
	o->size = base->size;
	o->blocks = align_up(base->size, BLOCK) / BLOCK;
	host_mutex_init(&o->lock);
	if (start(o, err))
		return &o->be;
	overlay_close(&o->be);
	return NULL;
}
