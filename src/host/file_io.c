/* The bytes of files and block devices: whole transfers at offsets. */
#include "host/file.h"
#include "host/internal.h"
#include "host/io.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define IOV_CHUNK 64u
#define TRANSFER_MAX GiB(1) /* of one system call: Linux stops at 2 GiB less a page */
#define COPY_CHUNK KiB(256)

int64_t host_file_pread(struct host_file *f, void *buf, uint64_t len, uint64_t off)
{
	struct host_iovec v = {.base = buf, .len = len};

	return host_file_preadv(f, &v, 1, off);
}

int64_t host_file_pwrite(struct host_file *f, const void *buf, uint64_t len, uint64_t off)
{
	struct host_iovec v = {.base = (void *)buf, .len = len};

	return host_file_pwritev(f, &v, 1, off);
}

/* Where a transfer over several pieces stands. */
struct cursor {
	const struct host_iovec *iov;
	unsigned n;
	size_t skip; /* bytes of iov[0] that are done */
};

/* The next system call's pieces; their number, 0 at the end. */
static unsigned next_pieces(const struct cursor *c, struct iovec *out)
{
	uint64_t room = TRANSFER_MAX;
	size_t skip = c->skip;
	unsigned used = 0;

	for (unsigned i = 0; i < c->n && used < IOV_CHUNK && room; i++) {
		size_t len = MIN(c->iov[i].len - skip, room);

		if (len) {
			out[used++] = (struct iovec){.iov_base = (char *)c->iov[i].base + skip, .iov_len = len};
			room -= len;
		}
		skip = 0;
	}
	return used;
}

static void advance(struct cursor *c, size_t done)
{
	while (c->n && done >= c->iov->len - c->skip) {
		done -= c->iov->len - c->skip;
		c->iov++;
		c->n--;
		c->skip = 0;
	}
	c->skip += done;
}

typedef ssize_t (*transfer_fn)(int fd, const struct iovec *iov, int n, off_t off, int flags);

static int64_t transfer_as_is(struct host_file *f, transfer_fn fn, int flags, const struct host_iovec *iov, unsigned n,
			      uint64_t off)
{
	struct cursor c = {.iov = iov, .n = n};
	struct iovec pieces[IOV_CHUNK];
	unsigned used;
	int64_t total = 0;

	while ((used = next_pieces(&c, pieces))) {
		ssize_t done;

		if (off > INT64_MAX - TRANSFER_MAX)
			return host_fail_with(EFBIG);
		done = RETRY_EINTR(fn(f->fd, pieces, (int)used, (off_t)off, flags));
		if (done < 0)
			return host_fail();
		if (!done)
			break;
		advance(&c, (size_t)done);
		off += (uint64_t)done;
		total += done;
	}
	return total;
}

bool host_file_aligned(const struct host_file *f, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	if (f->align == 1)
		return true;
	for (unsigned i = 0; i < n; i++)
		if (iov[i].len % f->align || (uintptr_t)iov[i].base % f->memory_align)
			return false;
	return off % f->align == 0;
}

static uint64_t iov_length(const struct host_iovec *iov, unsigned n)
{
	uint64_t len = 0;

	for (unsigned i = 0; i < n; i++)
		len += iov[i].len;
	return len;
}

/* Between the pieces, from where the cursor stands, and `len` bytes at `buf`. */
static void copy_pieces(struct cursor *c, uint8_t *buf, size_t len, bool in)
{
	while (len) {
		size_t n = MIN(len, c->iov->len - c->skip);
		uint8_t *piece = (uint8_t *)c->iov->base + c->skip;

		memcpy(in ? buf : piece, in ? piece : buf, n);
		buf += n;
		len -= n;
		advance(c, n);
	}
}

void host_io_copy(const struct host_io *io, uint8_t *buf, size_t len, bool in)
{
	struct cursor c = {.iov = io->iov, .n = io->n};

	copy_pieces(&c, buf, len, in);
}

void host_io_consume(struct host_io *io, size_t len)
{
	io->moved += len;
	while (io->n && len >= io->iov->len) {
		len -= io->iov->len;
		io->iov++;
		io->n--;
	}
	if (len && io->n) {
		io->iov->base = (char *)io->iov->base + len;
		io->iov->len -= len;
	}
}

/* O_DIRECT with pieces that lie where it cannot move them: through a buffer that lies right. */
static int64_t transfer_by_copy(struct host_file *f, transfer_fn fn, const struct host_iovec *iov, unsigned n,
				uint64_t off)
{
	uint64_t left = iov_length(iov, n), room = MIN(left, COPY_CHUNK);
	struct cursor c = {.iov = iov, .n = n};
	bool write = fn == pwritev2;
	int64_t total = 0, done = 0;
	uint8_t *buf;

	if (left % f->align || off % f->align)
		return host_fail_with(EINVAL);
	buf = aligned_alloc(MAX(f->memory_align, PAGE_SIZE), align_up(room, MAX(f->memory_align, PAGE_SIZE)));
	if (!buf)
		return host_fail_with(ENOMEM);
	for (; left; left -= done, off += done, total += done) {
		struct host_iovec piece = {buf, MIN(left, room)};

		if (write)
			copy_pieces(&c, buf, piece.len, true);
		done = transfer_as_is(f, fn, 0, &piece, 1, off);
		if (done <= 0)
			break;
		if (!write)
			copy_pieces(&c, buf, done, false);
		if (done < (int64_t)piece.len) {
			total += done;
			break;
		}
	}
	free(buf);
	return done < 0 ? -1 : total;
}

static int64_t transfer(struct host_file *f, transfer_fn fn, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	if (host_file_aligned(f, iov, n, off))
		return transfer_as_is(f, fn, 0, iov, n, off);
	return transfer_by_copy(f, fn, iov, n, off);
}

int64_t host_file_preadv(struct host_file *f, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	return transfer(f, preadv2, iov, n, off);
}

int64_t host_file_pwritev(struct host_file *f, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	return transfer(f, pwritev2, iov, n, off);
}

int host_file_sync(struct host_file *f)
{
	return RETRY_EINTR(fdatasync(f->fd)) ? host_fail() : 0;
}

/* For file systems that cannot punch holes. */
static int write_zeroes(struct host_file *f, uint64_t off, uint64_t len)
{
	static const uint8_t zeroes[65536];
	int64_t size = host_file_size(f);

	if (size < 0)
		return -1;
	if (off >= (uint64_t)size)
		return 0;
	len = MIN(len, (uint64_t)size - off);
	while (len) {
		int64_t n = host_file_pwrite(f, zeroes, MIN(len, sizeof(zeroes)), off);

		if (n <= 0)
			return n ? -1 : host_fail_with(ENOSPC);
		off += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

/* 1: the file system can do nothing of the kind. */
static int allocate(struct host_file *f, int mode, uint64_t off, uint64_t len)
{
	if (!RETRY_EINTR(fallocate(f->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len)))
		return 0;
	if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL || errno == ENODEV)
		return 1;
	return host_fail();
}

static int zero(struct host_file *f, const int *modes, unsigned count, uint64_t off, uint64_t len)
{
	if (!len)
		return 0;
	if (off > INT64_MAX || len > INT64_MAX - off)
		return host_fail_with(EFBIG);
	for (unsigned i = 0; i < count; i++) {
		int result = allocate(f, modes[i], off, len);

		if (result <= 0)
			return result;
	}
	return write_zeroes(f, off, len);
}

int host_file_punch(struct host_file *f, uint64_t off, uint64_t len)
{
	static const int modes[] = {FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};

	return zero(f, modes, ARRAY_LEN(modes), off, len);
}

int host_file_zero(struct host_file *f, uint64_t off, uint64_t len)
{
	static const int modes[] = {FALLOC_FL_ZERO_RANGE};

	return zero(f, modes, ARRAY_LEN(modes), off, len);
}

const char *host_io_error_text(int error)
{
	if (error == HOST_IO_ENDED)
		return "it ends before that: was it cut off?";
	if (error == HOST_IO_LOST)
		return "the connection to its server is lost";
	host_fail_with(error);
	return host_error_text();
}

/* The pieces are those of what has not been moved yet. */
static int run_transfer(struct host_file *f, struct host_io *io)
{
	int64_t done = transfer(f, io->op == HOST_IO_READ ? preadv2 : pwritev2, io->iov, io->n, io->off + io->moved);

	if (done < 0)
		return errno;
	return done == (int64_t)(io->len - io->moved) ? 0 : HOST_IO_ENDED;
}

static int run_discard(struct host_file *f, const struct host_io *io)
{
	int result = io->len ? allocate(f, FALLOC_FL_PUNCH_HOLE, io->off, io->len) : 0;

	return result < 0 ? errno : 0;
}

void host_io_run(struct host_file *f, struct host_io *io)
{
	int result = 0;

	switch (io->op) {
	case HOST_IO_READ:
	case HOST_IO_WRITE:
		io->error = run_transfer(f, io);
		return;
	case HOST_IO_DISCARD:
		io->error = run_discard(f, io);
		return;
	case HOST_IO_FLUSH:
		result = host_file_sync(f);
		break;
	case HOST_IO_ZERO:
		result = (io->unmap ? host_file_punch : host_file_zero)(f, io->off, io->len);
		break;
	}
	io->error = result ? errno : 0;
}

bool host_io_try(struct host_file *f, struct host_io *io)
{
	bool write = io->op == HOST_IO_WRITE;

	/* Past the cache there is always a wait. */
	if (f->align > 1 || (write && atomic_load_explicit(&f->waits_to_write, memory_order_relaxed)))
		return false;
	int64_t done = transfer_as_is(f, write ? pwritev2 : preadv2, RWF_NOWAIT, io->iov, io->n, io->off);
	if (done < 0 && write && errno == EOPNOTSUPP)
		atomic_store_explicit(&f->waits_to_write, true, memory_order_relaxed);
	io->error = 0;
	return done == (int64_t)io->len;
}
