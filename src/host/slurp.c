/* Whole files into memory: of a size that is bounded, and what cannot be the right one is not read to its end. */
#include "host/host.h"
#include "host/internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define FIRST 65536u

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

static bool fits(const struct slurp *s)
{
	struct stat st;

	if (fstat(s->fd, &st))
		return !host_fail();
	return !S_ISREG(st.st_mode) || (uint64_t)st.st_size <= s->limit || !host_fail_with(EFBIG);
}

static bool slurp(struct slurp *s, host_look *look, void *opaque)
{
	bool end;

	if (!fits(s) || !read_to(s, FIRST, &end))
		return false;
	if (look && !look(opaque, s->data, s->used))
		return !host_fail_with(ECANCELED);
	return end || read_to(s, UINT64_MAX, &end);
}

void *host_file_read_whole(const char *path, uint64_t limit, host_look *look, void *opaque, size_t *len)
{
	struct slurp s = {.fd = RETRY_EINTR(open(path, O_RDONLY | O_CLOEXEC)), .limit = limit};
	bool good = s.fd >= 0 || !host_fail();

	if (s.fd >= 0) {
		good = slurp(&s, look, opaque);
		close(s.fd);
	}
	if (!good) {
		free(s.data);
		return NULL;
	}
	*len = s.used;
	return s.data;
}

void *host_file_slurp(const char *path, size_t *len)
{
	return host_file_read_whole(path, SIZE_MAX / 4, NULL, NULL, len);
}
