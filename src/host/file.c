/* Files and block devices: whole transfers at offsets. */
#include "host/host.h"
#include "host/internal.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define IOV_CHUNK 64u
#define TRANSFER_MAX GiB(1) /* of one system call: Linux stops at 2 GiB less a page */

struct host_file {
	int fd;
	mode_t mode;
};

static struct host_file *wrap(int fd)
{
	struct host_file *f = malloc(sizeof(*f));
	struct stat st;

	if (!f || fstat(fd, &st)) {
		host_fail();
		goto fail;
	}
	if (S_ISDIR(st.st_mode)) {
		host_fail_with(EISDIR);
		goto fail;
	}
	f->fd = fd;
	f->mode = st.st_mode;
	return f;
fail:
	free(f);
	close(fd);
	return NULL;
}

static int open_retry(const char *path, int flags)
{
	return RETRY_EINTR(open(path, flags | O_CLOEXEC | O_NOCTTY, 0666));
}

struct host_file *host_file_open(const char *path, unsigned flags)
{
	int how = flags & HOST_FILE_WRITE ? (flags & HOST_FILE_READ ? O_RDWR : O_WRONLY) : O_RDONLY;
	int fd = open_retry(path, how | (flags & HOST_FILE_CREATE ? O_CREAT : 0));

	if (fd < 0) {
		host_fail();
		return NULL;
	}
	return wrap(fd);
}

struct host_file *host_file_temp(void)
{
	const char *set = getenv("TMPDIR"), *dirs[] = {set && *set ? set : "/var/tmp", "/tmp"};
	char path[PATH_MAX];

	for (unsigned i = 0; i < ARRAY_LEN(dirs); i++) {
		int fd = RETRY_EINTR(open(dirs[i], O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));

		if (fd < 0 && snprintf(path, sizeof(path), "%s/doppel-XXXXXX", dirs[i]) < (int)sizeof(path)) {
			/* A file system without O_TMPFILE. */
			fd = mkostemp(path, O_CLOEXEC);
			if (fd >= 0)
				unlink(path);
		}
		if (fd >= 0)
			return wrap(fd);
	}
	host_fail();
	return NULL;
}

void host_file_close(struct host_file *f)
{
	if (!f)
		return;
	close(f->fd);
	free(f);
}

int64_t host_file_size(struct host_file *f)
{
	off_t end = lseek(f->fd, 0, SEEK_END);

	return end < 0 ? host_fail() : end;
}

bool host_file_is_regular(struct host_file *f)
{
	return S_ISREG(f->mode);
}

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

typedef ssize_t (*transfer_fn)(int fd, const struct iovec *iov, int n, off_t off);

static int64_t transfer(struct host_file *f, transfer_fn fn, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	struct cursor c = {.iov = iov, .n = n};
	struct iovec pieces[IOV_CHUNK];
	unsigned used;
	int64_t total = 0;

	while ((used = next_pieces(&c, pieces))) {
		ssize_t done;

		if (off > INT64_MAX - TRANSFER_MAX)
			return host_fail_with(EFBIG);
		done = RETRY_EINTR(fn(f->fd, pieces, (int)used, (off_t)off));
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

int64_t host_file_preadv(struct host_file *f, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	return transfer(f, preadv, iov, n, off);
}

int64_t host_file_pwritev(struct host_file *f, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	return transfer(f, pwritev, iov, n, off);
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

int host_file_punch(struct host_file *f, uint64_t off, uint64_t len)
{
	static const int modes[] = {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				    FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE};

	if (!len)
		return 0;
	if (off > INT64_MAX || len > INT64_MAX - off)
		return host_fail_with(EFBIG);
	for (unsigned i = 0; i < ARRAY_LEN(modes); i++) {
		if (!RETRY_EINTR(fallocate(f->fd, modes[i], (off_t)off, (off_t)len)))
			return 0;
		if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL && errno != ENODEV)
			return host_fail();
	}
	return write_zeroes(f, off, len);
}
