/* Whole files into memory: of a size that is bounded, and what cannot be the right one is not read to its end. */
#include "host/host.h"
#include "host/internal.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIRST 65536u
#define WRITER_WAIT_MS 500

struct slurp {
	int fd;
	uint64_t limit;
	uint8_t *data;
	size_t room, used;
};

/* Makes room for at least one byte more than there is, up to one above the limit. */
static bool grow(struct slurp *s)
{
	size_t room = s->room ? s->room * 2 : FIRST;
	uint8_t *more;

	if (s->used < s->room)
		return true;
	if (s->limit < room)
		room = (size_t)s->limit + 1;
	more = s->used > s->limit ? NULL : realloc(s->data, room);
	if (!more)
		return !host_fail_with(s->used > s->limit ? EFBIG : ENOMEM);
	s->data = more;
	s->room = room;
	return true;
}

/* Reads until there are `size` bytes or the file has ended. What it reads may be a pipe, whose size is not known. */
static bool read_to(struct slurp *s, uint64_t size, bool *end)
{
	for (*end = false; !*end && s->used < size;) {
		if (!grow(s))
			return false;
		ssize_t n = RETRY_EINTR(read(s->fd, s->data + s->used, s->room - s->used));
		if (n < 0)
			return !host_fail();
		s->used += (size_t)n;
		*end = !n;
	}
	return true;
}

/* *size: of the file, 0 when that cannot be known. */
static bool fits(const struct slurp *s, uint64_t *size)
{
	struct stat st;

	if (fstat(s->fd, &st))
		return !host_fail();
	*size = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
	return *size <= s->limit || !host_fail_with(EFBIG);
}

/* To be freed by free(). */
static void *large_pages(uint64_t size)
{
	void *p = NULL;

	if (size > SIZE_MAX / 4 || posix_memalign(&p, HUGE_PAGE, align_up(size, HUGE_PAGE)))
		return NULL;
	madvise(p, align_up(size, HUGE_PAGE), MADV_HUGEPAGE);
	return p;
}

/*
 * Room for all of a file of known size, in large pages: to have each small page of a kernel and its initrd brought in,
 * and moved when the room grows, takes longer than all else before a guest's first instruction. Best effort: there is
 * grow.
 */
static void expect(struct slurp *s, uint64_t size)
{
	void *room = size < HUGE_PAGE ? NULL : large_pages(size + 1);

	if (!room)
		return;
	if (s->used)
		memcpy(room, s->data, s->used);
	free(s->data);
	s->data = room;
	s->room = (size_t)size + 1;
}

static bool slurp(struct slurp *s, host_look *look, void *opaque)
{
	uint64_t size = 0;
	bool end;

	if (!fits(s, &size) || !read_to(s, FIRST, &end))
		return false;
	if (look && !look(opaque, s->data, s->used))
		return !host_fail_with(ECANCELED);
	if (end)
		return true;
	expect(s, size);
	return read_to(s, UINT64_MAX, &end);
}

/*
 * To open a pipe waits for who writes, and would wait for ever when nobody does. So it is opened without waiting (the
 * file has O_NONBLOCK); who has it open a moment later may take as long as he likes, since then a read finds nothing
 * yet (EAGAIN) instead of the end.
 */
static bool await_writer(struct slurp *s)
{
	struct pollfd p = {.fd = s->fd, .events = POLLIN};
	struct stat st;
	ssize_t n;

	if (fstat(s->fd, &st))
		return !host_fail();
	if (S_ISFIFO(st.st_mode)) {
		poll(&p, 1, WRITER_WAIT_MS);
		if (!grow(s))
			return false;
		n = read(s->fd, s->data, s->room);
		if (!n)
			return !host_fail_with(FAIL_NO_WRITER);
		if (n < 0 && errno != EAGAIN)
			return !host_fail();
		s->used = n > 0 ? (size_t)n : 0;
	}
	return !fcntl(s->fd, F_SETFL, 0) || !host_fail();
}

void *host_file_read_whole(const char *path, uint64_t limit, host_look *look, void *opaque, size_t *len)
{
	struct slurp s = {.fd = RETRY_EINTR(open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)), .limit = limit};
	bool good = s.fd >= 0 || !host_fail();

	if (s.fd >= 0) {
		good = await_writer(&s) && slurp(&s, look, opaque);
		close(s.fd);
	}
	if (!good) {
		free(s.data);
		return NULL;
	}
	*len = s.used;
	return s.data;
}

struct host_file *host_file_keep(const char *path)
{
	struct stat st;

	/* To open a pipe would wait for who writes. */
	return !stat(path, &st) && S_ISREG(st.st_mode) ? host_file_open(path, HOST_FILE_READ) : NULL;
}

void *host_file_read_head(struct host_file *f, size_t most, uint64_t limit, size_t *len)
{
	int64_t size = host_file_size(f);
	void *data = NULL;

	if (size < 0)
		return NULL;
	if ((uint64_t)size > limit || !(data = malloc(most))) {
		host_fail_with((uint64_t)size > limit ? EFBIG : ENOMEM);
		return NULL;
	}
	int64_t there = host_file_pread(f, data, MIN((uint64_t)size, most), 0);
	if (there == (int64_t)MIN((uint64_t)size, most)) {
		*len = (size_t)size;
		return data;
	}
	if (there >= 0)
		host_fail_with(ENODATA);
	free(data);
	return NULL;
}

void *host_file_slurp(const char *path, size_t *len)
{
	return host_file_read_whole(path, SIZE_MAX / 4, NULL, NULL, len);
}
