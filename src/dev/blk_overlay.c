/*
 * Writes kept aside. A block is in the overlay or not; one that is written in part is completed from the image first.
 * Readers take no lock: a block's bit is set after its contents are there. Writers take turns.
 */
#include "dev/blk_overlay.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 4096ull /* what file systems write in */
#define WORD 64

struct blk_overlay {
	struct host_file *base, *file; /* a block has the same offset in both */
	uint64_t size, blocks;
	struct host_mutex lock;
	_Atomic uint64_t *map;
};

struct blk_overlay *blk_overlay_create(struct host_file *base, uint64_t size, struct error *err)
{
	struct blk_overlay *o = calloc(1, sizeof(*o));

	if (o) {
		o->base = base;
		o->size = size;
		o->blocks = align_up(size, BLOCK) / BLOCK;
		o->map = calloc(o->blocks / WORD + 1, sizeof(*o->map));
		host_mutex_init(&o->lock);
	}
	if (!o || !o->map) {
		error_set(err, "out of memory");
	} else {
		o->file = host_file_temp();
		if (o->file)
			return o;
		error_set(err, "cannot make a temporary file for snapshot=on: %s; TMPDIR can name another folder",
			  host_error_text());
	}
	blk_overlay_destroy(o);
	return NULL;
}

void blk_overlay_destroy(struct blk_overlay *o)
{
	if (!o)
		return;
	host_file_close(o->file);
	host_mutex_destroy(&o->lock);
	free((void *)o->map);
	free(o);
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

static bool run_read(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len,
		     bool in)
{
	int64_t got = host_file_preadv(in ? o->file : o->base, iov, n, off);

	/* The overlay's file may end before blocks that were zeroed. */
	if (in && got >= 0)
		iov_zero(iov, n, got);
	return in ? got >= 0 : got == (int64_t)len;
}

bool blk_overlay_read(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	struct host_iovec part[BLK_IOV_MAX];

	for (uint64_t done = 0, run; done < len; done += run) {
		bool in = present(o, (off + done) / BLOCK);
		run = same_run(o, off + done, len - done, in);
		unsigned parts = blk_iov_slice(iov, n, done, run, part);
		if (!run_read(o, part, parts, off + done, run, in))
			return false;
	}
	return true;
}

static void iov_copy(const struct host_iovec *iov, unsigned n, uint8_t *dst)
{
	for (unsigned i = 0; i < n; i++) {
		memcpy(dst, iov[i].base, iov[i].len);
		dst += iov[i].len;
	}
}

/* Less than a block: completed with what the block held, and written whole. */
static bool write_partly(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	uint8_t block[BLOCK] = {0};
	uint64_t start = align_down(off, BLOCK);
	struct host_iovec whole = {block, MIN(BLOCK, o->size - start)};

	if (!run_read(o, &whole, 1, start, whole.len, present(o, start / BLOCK)))
		return false;
	if (iov)
		iov_copy(iov, n, block + (off - start));
	else
		memset(block + (off - start), 0, len);
	return host_file_pwrite(o->file, block, BLOCK, start) == (int64_t)BLOCK;
}

static bool write_whole(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	if (iov)
		return host_file_pwritev(o->file, iov, n, off) == (int64_t)len;
	return host_file_punch(o->file, off, len) == 0;
}

bool blk_overlay_write(struct blk_overlay *o, const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len)
{
	struct host_iovec part[BLK_IOV_MAX];
	bool ok = true;

	host_lock(&o->lock);
	for (uint64_t done = 0, run; ok && done < len; done += run) {
		uint64_t at = off + done, left = len - done, in_block = BLOCK - at % BLOCK;
		bool whole = in_block == BLOCK && left >= BLOCK;
		run = whole ? align_down(left, BLOCK) : MIN(in_block, left);
		unsigned parts = iov ? blk_iov_slice(iov, n, done, run, part) : 0;
		ok = (whole ? write_whole : write_partly)(o, iov ? part : NULL, parts, at, run);
		if (ok)
			set_present(o, at / BLOCK, whole ? run / BLOCK : 1);
	}
	host_unlock(&o->lock);
	return ok;
}

/* Each block that is there: its number plus one, and its contents; then a zero. */
static void save_blocks(struct blk_overlay *o, struct state_stream *s)
{
	uint8_t block[BLOCK];
	struct host_iovec iov = {block, BLOCK};
	uint64_t mark;

	for (uint64_t b = 0; b < o->blocks && !s->failed; b++) {
		if (!present(o, b))
			continue;
		mark = b + 1;
		if (!run_read(o, &iov, 1, b * BLOCK, BLOCK, true))
			s->failed = true;
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
			s->failed = true;
			return;
		}
		set_present(o, mark - 1, 1);
	}
}

void blk_overlay_state(struct blk_overlay *o, struct state_stream *s)
{
	if (s->saving)
		save_blocks(o, s);
	else
		load_blocks(o, s);
}
