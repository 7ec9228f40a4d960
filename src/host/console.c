/* A console at work: one thread reads, one writes, so that neither a full guest nor a stopped reader holds the other
 * up. */
#include "host/console.h"

#include "host/console_io.h"
#include "host/host.h"
#include "host/internal.h"
#include "host/terminal.h"
#include "host/thread.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define RING_SIZE 65536u
#define INPUT_SIZE 4096u
#define CHUNK 1024u /* of one write; below PIPE_BUF, so that a pipe that polls ready takes it whole */
#define ROOM_WAIT_NS 2000000000ull
#define FLUSH_WAIT_NS 1000000000ull
#define GATHER_NS 500000 /* the guest sends byte by byte: let some come together, but for the first after a pause */
#define PAUSE_NS 5000000
#define POLL_MS 100 /* to look again at what cannot be polled for */

struct host_console {
	struct console_io io; /* in, out: changed by the reader, under the lock and while the writer is not `writing` */
	size_t (*input)(void *opaque, const uint8_t *data, size_t len);
	void *opaque;
	struct host_thread reader, writer;
	bool started;
	int wake; /* eventfd: the reader is to look again */

	struct host_mutex lock;
	struct host_cond filled, drained; /* the ring; `drained` also when `writing` ends */
	bool quit, writing, stalled, warned;
	size_t head, used; /* first byte and number of bytes in the ring */
	uint8_t ring[RING_SIZE];

	bool failed; /* the writer's own: it has told that output is lost */

	/* The reader's own. */
	uint8_t held[INPUT_SIZE];
	size_t held_at, held_len;
};

/* What poll says of `fd` within `ms`; POLLNVAL counts as an end. */
static short poll_one(int fd, short events, int ms)
{
	struct pollfd p = {.fd = fd, .events = events};

	return RETRY_EINTR(poll(&p, 1, ms)) > 0 ? p.revents : 0;
}

static ssize_t put(int fd, const uint8_t *data, size_t len)
{
	ssize_t n = send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && errno == ENOTSOCK)
		n = write(fd, data, len);
	return n;
}

/* Who hangs up may do so; but a disk without room, say, is not what the user wants. */
static void tell_failed(struct host_console *c, int error)
{
	if (c->failed || (error != ENOSPC && error != EDQUOT && error != EFBIG && (error != EIO || !c->io.file)))
		return;
	c->failed = true;
	log_error("console %s: cannot write the guest's output: %s; it is lost", c->io.where, strerror(error));
}

/* Writes up to `len` bytes to fd. How many are done with: all of them when there is nobody to write to; 0: try again.
 */
static size_t write_some(struct host_console *c, int fd, const uint8_t *data, size_t len)
{
	short events;
	ssize_t n;

	if (fd < 0)
		return len;
	events = poll_one(fd, POLLOUT, POLL_MS);
	if (events & (POLLHUP | POLLERR | POLLNVAL))
		return len;
	if (!(events & POLLOUT))
		return 0;
	n = put(fd, data, len);
	if (n >= 0)
		return (size_t)n;
	if (errno == EAGAIN || errno == EINTR)
		return 0;
	tell_failed(c, errno);
	return len;
}

/* Takes bytes from the ring's head to the host. The lock is held, but not while writing. False: no progress. */
static bool drain(struct host_console *c)
{
	uint8_t chunk[CHUNK];
	size_t len = MIN(MIN(c->used, CHUNK), RING_SIZE - c->head), done;
	int fd = c->io.out;

	memcpy(chunk, c->ring + c->head, len);
	c->writing = true;
	host_unlock(&c->lock);
	done = write_some(c, fd, chunk, len);
	host_lock(&c->lock);
	c->writing = false;
	c->head = (c->head + done) % RING_SIZE;
	c->used -= done;
	if (done)
		c->stalled = false;
	host_cond_broadcast(&c->drained);
	return done;
}

static void *writer_thread(void *opaque)
{
	struct host_console *c = opaque;
	uint64_t give_up = 0, written = 0; /* when something was, last */

	host_lock(&c->lock);
	for (;;) {
		if (!c->used) {
			if (c->quit)
				break;
			host_cond_wait(&c->filled, &c->lock);
			if (!c->quit && c->used < CHUNK && host_now_ns() - written < PAUSE_NS) {
				host_unlock(&c->lock);
				host_sleep_ns(GATHER_NS);
				host_lock(&c->lock);
			}
		} else if (drain(c)) {
			give_up = 0;
			written = host_now_ns();
		} else if (c->quit) {
			if (!give_up)
				give_up = host_now_ns() + FLUSH_WAIT_NS;
			else if (host_now_ns() > give_up)
				break;
		}
	}
	host_unlock(&c->lock);
	return NULL;
}

/* Waits for room in the ring. The lock is held. */
static bool wait_room(struct host_console *c)
{
	uint64_t deadline = host_now_ns() + ROOM_WAIT_NS;

	while (c->used == RING_SIZE && !c->stalled && c->started)
		if (!host_cond_wait_until(&c->drained, &c->lock, deadline) && c->used == RING_SIZE)
			c->stalled = true;
	return c->used < RING_SIZE;
}

static void ring_put(struct host_console *c, const uint8_t *data, size_t len)
{
	size_t tail = (c->head + c->used) % RING_SIZE, first = MIN(len, RING_SIZE - tail);

	memcpy(c->ring + tail, data, first);
	memcpy(c->ring, data + first, len - first);
	c->used += len;
}

void host_console_write(struct host_console *c, const uint8_t *data, size_t len)
{
	bool lost = false;

	host_lock(&c->lock);
	while (len && !lost) {
		size_t n;

		lost = !wait_room(c);
		n = MIN(len, RING_SIZE - c->used);
		if (!c->used && n)
			host_cond_signal(&c->filled);
		ring_put(c, data, n);
		data += n;
		len -= n;
	}
	lost = lost && !c->warned;
	c->warned |= lost;
	host_unlock(&c->lock);
	if (lost)
		log_warn("console %s: nobody takes the guest's output; some of it is lost", c->io.where);
}

/* Gives the guest what is held. False: it did not take all of it. */
static bool offer(struct host_console *c)
{
	while (c->held_at < c->held_len) {
		size_t left = c->held_len - c->held_at;
		size_t taken = c->input ? c->input(c->opaque, c->held + c->held_at, left) : left;

		if (!taken)
			return false;
		c->held_at += MIN(taken, left);
	}
	c->held_at = c->held_len = 0;
	return true;
}

/* The other end of the input is another from now on (-1: none); a socket's client is also where output goes. */
static void change_input(struct host_console *c, int fd)
{
	int old = c->io.in;

	host_lock(&c->lock);
	if (c->io.listen >= 0) {
		c->io.out = fd;
		while (c->writing)
			host_cond_wait(&c->drained, &c->lock);
	}
	c->io.in = fd;
	host_unlock(&c->lock);
	if (old >= 0 && c->io.close_in)
		close(old);
}

static void read_input(struct host_console *c, short events)
{
	ssize_t n;

	if (!(events & (POLLIN | POLLHUP | POLLERR)))
		return change_input(c, -1); /* POLLNVAL: closed under our feet */
	n = read(c->io.in, c->held, sizeof(c->held));
	if (n > 0) {
		c->held_len = (size_t)n;
	} else if (!n) {
		/* A raw terminal reads nothing when another process was faster; gone is only one that has hung up. */
		if (!c->io.terminal || events & POLLHUP)
			change_input(c, -1);
	} else if (errno == EIO && (c->io.pty || c->io.terminal)) {
		/* Nobody has the pty open, or we are in the background: it may be different later. */
		poll_one(c->wake, POLLIN, POLL_MS);
	} else if (errno != EAGAIN && errno != EINTR) {
		change_input(c, -1);
	}
}

static void accept_client(struct host_console *c)
{
	int fd = accept4(c->io.listen, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd >= 0)
		change_input(c, fd);
	else if (errno != EAGAIN && errno != EINTR)
		poll_one(c->wake, POLLIN, POLL_MS); /* no descriptors left, say */
}

/* One wait for whatever can happen next, and what it asks for. */
static void reader_step(struct host_console *c)
{
	bool all = offer(c);
	struct pollfd p[] = {
		{.fd = c->wake, .events = POLLIN},
		{.fd = all ? c->io.in : -1, .events = POLLIN},
		{.fd = c->io.in < 0 ? c->io.listen : -1, .events = POLLIN},
	};
	uint64_t count;

	if (poll(p, ARRAY_LEN(p), all ? -1 : POLL_MS) <= 0)
		return;
	if (p[0].revents)
		(void)!read(c->wake, &count, sizeof(count));
	if (p[1].revents)
		read_input(c, p[1].revents);
	if (p[2].revents)
		accept_client(c);
}

static void *reader_thread(void *opaque)
{
	struct host_console *c = opaque;
	bool quit = false;

	while (!quit) {
		reader_step(c);
		host_lock(&c->lock);
		quit = c->quit;
		host_unlock(&c->lock);
	}
	return NULL;
}

void host_console_more(struct host_console *c)
{
	uint64_t one = 1;

	(void)!write(c->wake, &one, sizeof(one));
}

struct host_console *host_console_create(const char *spec, struct error *err)
{
	struct host_console *c = calloc(1, sizeof(*c));

	if (!c) {
		error_set(err, "out of memory");
		return NULL;
	}
	c->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->wake < 0 || !console_open(&c->io, spec, err)) {
		if (c->wake < 0) {
			host_fail();
			error_set(err, "cannot make an event for the console: %s", host_error_text());
		} else {
			close(c->wake);
		}
		free(c);
		return NULL;
	}
	host_mutex_init(&c->lock);
	host_cond_init(&c->filled);
	host_cond_init(&c->drained);
	return c;
}

/* Ends the threads. */
static void stop(struct host_console *c, bool reader, bool writer)
{
	host_lock(&c->lock);
	c->quit = true;
	host_cond_signal(&c->filled);
	host_unlock(&c->lock);
	host_console_more(c);
	if (reader)
		host_thread_join(&c->reader);
	if (writer)
		host_thread_join(&c->writer);
}

bool host_console_start(struct host_console *c, size_t (*input)(void *opaque, const uint8_t *data, size_t len),
			void *opaque, struct error *err)
{
	bool writer, reader;

	c->input = input;
	c->opaque = opaque;
	console_begin(&c->io);
	if (c->io.terminal && !host_terminal_raw())
		return error_set(err, "cannot set the terminal's modes: %s", host_error_text());
	writer = host_thread_start(&c->writer, "console out", writer_thread, c);
	reader = writer && host_thread_start(&c->reader, "console in", reader_thread, c);
	if (!reader) {
		stop(c, false, writer);
		return error_set(err, "cannot start the console's threads: %s; see the limit on processes (ulimit -u)",
				 host_error_text());
	}
	host_lock(&c->lock);
	c->started = true;
	host_unlock(&c->lock);
	return true;
}

bool host_console_is_terminal(const struct host_console *c)
{
	return c->io.terminal;
}

const char *host_console_where(const struct host_console *c)
{
	return c->io.where;
}

void host_console_destroy(struct host_console *c)
{
	if (!c)
		return;
	if (c->started)
		stop(c, true, true);
	if (c->io.terminal)
		host_terminal_restore();
	console_close(&c->io);
	close(c->wake);
	host_cond_destroy(&c->drained);
	host_cond_destroy(&c->filled);
	host_mutex_destroy(&c->lock);
	free(c);
}
