/*
 * The client of a server of blocks. One thread owns the connection: it sends the requests that were submitted, several
 * at once, takes the answers, and makes the connection anew when it breaks.
 *
 * What was under way then is sent again: nobody has been told that it is done. Writes that were answered but not yet
 * flushed may be lost with the server, and so the next flush fails: that is how the guest hears of it.
 */
#include "host/nbd.h"
#include "host/confine.h"
#include "host/file.h"
#include "host/internal.h"
#include "host/nbd_library.h"
#include "host/thread.h"

#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DEPTH 64u           /* requests that are sent before the first is answered */
#define PIECE_MAX MiB(4)    /* of one request on the wire, unless the server wants less */
#define COPY_MAX KiB(256)   /* small pieces are gathered up to that length: libnbd takes one piece only */
#define NO_COPY_MIN KiB(64) /* ... and not if the first is that long */
#define RANGE_MAX GiB(1)    /* to discard or zero at once */

#define NS_PER_S 1000000000ull
#define CONNECT_NS (8 * NS_PER_S)
#define SILENCE_NS (20 * NS_PER_S) /* of a server that owes answers */
#define RETRY_NS (NS_PER_S / 4)    /* between two attempts */
#define REST_NS (3 * NS_PER_S)     /* after those came to nothing, requests fail at once */
#define TRIES_MAX 4u               /* of a request: it may be what the server does not survive */

struct host_nbd {
	struct host_nbd_config c;
	char *uri;
	struct host_nbd_info info;
	uint64_t piece_max;
	bool flushes;
	char why[256]; /* there is no connection */

	struct host_mutex lock;
	struct host_cond ended;        /* for host_nbd_run */
	struct host_io *first, **last; /* submitted, not begun */
	atomic_bool stop;
	bool asleep;
	int wake; /* eventfd */
	struct host_thread thread;

	/* The thread's own. */
	struct nbd_handle *h; /* NULL: not connected */
	unsigned under_way;
	struct host_io *done, **done_last;
	struct host_io *failed, **failed_last; /* by an error, or because the connection broke */
	uint64_t progress_at, rest_until;
	uint64_t written, flushed; /* writes answered, and how many of them a flush has covered */
	bool lost;
};

/* What goes over the wire at a time for one request. */
struct part {
	struct host_nbd *nbd;
	struct host_io *io;
	uint64_t len, written;
	uint8_t copy[]; /* several pieces in one */
};

bool host_is_nbd_uri(const char *path)
{
	static const char *const schemes[] = {"nbd://", "nbds://", "nbd+unix://", "nbds+unix://"};

	for (unsigned i = 0; i < ARRAY_LEN(schemes); i++)
		if (!strncmp(path, schemes[i], strlen(schemes[i])))
			return true;
	return false;
}

bool host_program_exists(const char *name)
{
	const char *path = getenv("PATH");
	char file[4096];

	for (path = path ? path : "/usr/bin:/bin"; *path;) {
		int len = (int)strcspn(path, ":");

		if (snprintf(file, sizeof(file), "%.*s/%s", len, path, name) < (int)sizeof(file) && !access(file, X_OK))
			return true;
		path += len + (path[len] == ':');
	}
	return false;
}

/* ---- Lists ---- */

static void append(struct host_io ***last, struct host_io *io)
{
	io->next = NULL;
	**last = io;
	*last = &io->next;
}

static void end(struct host_nbd *nbd, struct host_io *io, int error)
{
	io->error = error;
	append(&nbd->done_last, io);
}

/* Tells everyone whose requests have ended. */
static void tell(struct host_nbd *nbd)
{
	struct host_io *list = NULL, **last = &list, *next;

	for (struct host_io *io = nbd->done; io; io = next) {
		next = io->next;
		if (!io->waiter) {
			append(&last, io);
			continue;
		}
		host_lock(&nbd->lock);
		*io->waiter = true;
		host_cond_broadcast(&nbd->ended);
		host_unlock(&nbd->lock);
	}
	nbd->done = NULL;
	nbd->done_last = &nbd->done;
	if (list)
		nbd->c.done(nbd->c.opaque, list);
}

/* ---- The connection ---- */

/* Lets the connection do what it can until `ready` says so. */
static bool wait_connected(struct nbd_handle *h, uint64_t deadline)
{
	while (!libnbd.aio_is_ready(h)) {
		unsigned direction = libnbd.aio_get_direction(h);
		struct pollfd p = {.fd = libnbd.aio_get_fd(h)};
		uint64_t now = host_now_ns();

		if (libnbd.aio_is_dead(h) == 1 || libnbd.aio_is_closed(h) == 1 || now >= deadline)
			return false;
		p.events = (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
			   (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
		if (poll(&p, 1, (int)((deadline - now) / 1000000 + 1)) <= 0)
			continue;
		if ((p.revents & (POLLIN | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
			libnbd.aio_notify_read(h);
		else if ((p.revents & (POLLOUT | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
			libnbd.aio_notify_write(h);
	}
	return true;
}

/* The library's error begins with the name of the function that found it. */
static void keep_error(struct host_nbd *nbd)
{
	const char *text = libnbd.get_error(), *colon = text ? strstr(text, ": ") : NULL;

	snprintf(nbd->why, sizeof(nbd->why), "%s", colon ? colon + 2 : text ? text : "it does not answer");
}

static struct nbd_handle *connect_to(struct host_nbd *nbd, uint64_t deadline)
{
	struct nbd_handle *h = libnbd.create();
	int result;

	if (!h)
		return NULL;
	nbd->why[0] = 0;
	result = nbd->uri ? libnbd.aio_connect_uri(h, nbd->uri)
			  : libnbd.aio_connect_systemd_socket_activation(h, (char **)nbd->c.server);
	if (!result && wait_connected(h, deadline))
		return h;
	keep_error(nbd);
	libnbd.close(h);
	return NULL;
}

static bool look(struct host_nbd *nbd, struct nbd_handle *h, struct host_nbd_info *info)
{
	int64_t size = libnbd.get_size(h), least = libnbd.get_block_size(h, LIBNBD_SIZE_MINIMUM),
		most = libnbd.get_block_size(h, LIBNBD_SIZE_MAXIMUM);

	if (size < 0)
		return false;
	*info = (struct host_nbd_info){
		.size = (uint64_t)size,
		.block_min = least > 1 ? (unsigned)least : 1,
		.readonly = libnbd.is_read_only(h) == 1,
		.trims = libnbd.can_trim(h) == 1,
		.zeroes = libnbd.can_zero(h) == 1,
	};
	nbd->flushes = libnbd.can_flush(h) == 1;
	nbd->piece_max = most > 0 ? MIN((uint64_t)most, PIECE_MAX) : PIECE_MAX;
	return true;
}

/* Again, to the server that we had; a started one is gone for good. */
static bool reconnect(struct host_nbd *nbd)
{
	uint64_t now = host_now_ns(), deadline = now + CONNECT_NS;
	struct host_nbd_info info;

	while (nbd->uri && now >= nbd->rest_until && now < deadline && !nbd->stop) {
		nbd->h = connect_to(nbd, deadline);
		if (nbd->h && look(nbd, nbd->h, &info) && info.size == nbd->info.size &&
		    (nbd->c.readonly || !info.readonly) && info.block_min <= nbd->info.block_min) {
			nbd->lost |= nbd->written > nbd->flushed;
			nbd->progress_at = host_now_ns();
			return true;
		}
		if (nbd->h)
			libnbd.close(nbd->h);
		nbd->h = NULL;
		host_sleep_ns(RETRY_NS);
		now = host_now_ns();
	}
	if (now >= nbd->rest_until)
		nbd->rest_until = now + REST_NS;
	return false;
}

/* ---- Requests ---- */

/* The bytes for the next part lie in `copy`, or are the first piece itself. */
static bool is_copied(const struct host_io *io)
{
	return io->n > 1 && io->iov->len < NO_COPY_MIN;
}

static uint64_t part_length(const struct host_nbd *nbd, const struct host_io *io)
{
	uint64_t left = io->len - io->moved, piece;

	switch (io->op) {
	case HOST_IO_READ:
	case HOST_IO_WRITE:
		if (is_copied(io))
			return MIN(left, MIN(COPY_MAX, nbd->piece_max));
		/* Whole blocks: what is left of the piece goes with the next. */
		piece = MIN(io->iov->len, nbd->piece_max);
		return io->n > 1 ? align_down(piece, nbd->info.block_min) : piece;
	default:
		return MIN(left, RANGE_MAX);
	}
}

static int part_ended(void *opaque, int *error)
{
	struct part *p = opaque;
	struct host_nbd *nbd = p->nbd;
	struct host_io *io = p->io;

	nbd->under_way--;
	nbd->progress_at = host_now_ns();
	io->error = *error;
	if (*error) {
		append(&nbd->failed_last, io);
	} else {
		if (io->op == HOST_IO_READ && is_copied(io))
			host_io_copy(io, p->copy, p->len, false);
		nbd->written += io->op != HOST_IO_READ && io->op != HOST_IO_FLUSH;
		if (io->op == HOST_IO_FLUSH)
			nbd->flushed = MAX(nbd->flushed, p->written);
		host_io_consume(io, p->len);
		append(&nbd->failed_last, io); /* goes on, or is done: see go_on */
	}
	free(p);
	return 1;
}

static struct part *make_part(struct host_nbd *nbd, struct host_io *io, bool copied)
{
	uint64_t len = io->op == HOST_IO_FLUSH ? 0 : part_length(nbd, io);
	struct part *p = malloc(sizeof(*p) + (copied ? len : 0));

	if (!p)
		return NULL;
	*p = (struct part){.nbd = nbd, .io = io, .len = len, .written = nbd->written};
	return p;
}

static int64_t send_part(struct host_nbd *nbd, struct host_io *io, struct part *p, bool copied)
{
	nbd_completion_callback cb = {.callback = part_ended, .user_data = p};
	uint64_t at = io->off + io->moved;
	uint8_t *bytes = copied ? p->copy : NULL;

	switch (io->op) {
	case HOST_IO_READ:
		return libnbd.aio_pread(nbd->h, bytes ? bytes : io->iov->base, p->len, at, cb, 0);
	case HOST_IO_WRITE:
		if (copied)
			host_io_copy(io, bytes, p->len, true);
		return libnbd.aio_pwrite(nbd->h, bytes ? bytes : io->iov->base, p->len, at, cb, 0);
	case HOST_IO_FLUSH:
		return libnbd.aio_flush(nbd->h, cb, 0);
	case HOST_IO_DISCARD:
		return libnbd.aio_trim(nbd->h, p->len, at, cb, 0);
	case HOST_IO_ZERO:
		return libnbd.aio_zero(nbd->h, p->len, at, cb, io->unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE);
	}
	return -1;
}

/* True: it has ended already. */
static bool needs_nothing(struct host_nbd *nbd, struct host_io *io)
{
	if (io->op != HOST_IO_FLUSH) {
		if (io->moved < io->len)
			return false;
		end(nbd, io, 0);
		return true;
	}
	if (nbd->lost) {
		nbd->lost = false;
		nbd->flushed = nbd->written;
		end(nbd, io, HOST_IO_LOST);
		return true;
	}
	if (nbd->flushes)
		return false;
	end(nbd, io, 0);
	return true;
}

static void begin(struct host_nbd *nbd, struct host_io *io)
{
	bool copied = (io->op == HOST_IO_READ || io->op == HOST_IO_WRITE) && is_copied(io);
	struct part *p;

	if (needs_nothing(nbd, io))
		return;
	p = make_part(nbd, io, copied);
	if (!p) {
		end(nbd, io, ENOMEM);
		return;
	}
	if (!nbd->under_way++)
		nbd->progress_at = host_now_ns();
	if (send_part(nbd, io, p, copied) >= 0)
		return;
	/* Refused here, before it was sent: its callback is not called. */
	nbd->under_way--;
	free(p);
	io->error = libnbd.get_errno() ? libnbd.get_errno() : EIO;
	append(&nbd->failed_last, io);
}

static bool broken(struct host_nbd *nbd)
{
	return !nbd->h || libnbd.aio_is_dead(nbd->h) == 1 || libnbd.aio_is_closed(nbd->h) == 1;
}

/* Parts have ended: the next part, the end, or, when the connection broke, the same part once more on a new one. */
static void go_on(struct host_nbd *nbd)
{
	struct host_io *list = nbd->failed, *next;
	bool gone = broken(nbd);

	nbd->failed = NULL;
	nbd->failed_last = &nbd->failed;
	if (gone && nbd->h && !nbd->under_way) {
		libnbd.close(nbd->h);
		nbd->h = NULL;
	}
	for (struct host_io *io = list; io; io = next) {
		next = io->next;
		if (io->error && (!gone || ++io->tries >= TRIES_MAX))
			end(nbd, io, gone ? HOST_IO_LOST : io->error);
		else if (!io->error && (io->op == HOST_IO_FLUSH || io->moved >= io->len))
			end(nbd, io, 0);
		else if (nbd->h || reconnect(nbd))
			begin(nbd, io);
		else
			end(nbd, io, HOST_IO_LOST);
	}
}

/* ---- The thread ---- */

/* What may be begun now; none: from now on the thread must be woken. */
static struct host_io *take(struct host_nbd *nbd, bool *stop)
{
	struct host_io *list = NULL, **last = &list;

	host_lock(&nbd->lock);
	for (unsigned n = nbd->under_way; nbd->first && n < DEPTH; n++) {
		struct host_io *io = nbd->first;

		nbd->first = io->next;
		append(&last, io);
	}
	if (!nbd->first)
		nbd->last = &nbd->first;
	nbd->asleep = !list;
	*stop = nbd->stop;
	host_unlock(&nbd->lock);
	return list;
}

/* A server that owes answers and says nothing is as good as gone. */
static void mind_silence(struct host_nbd *nbd)
{
	int fd = libnbd.aio_get_fd(nbd->h);

	if (!nbd->under_way || fd < 0 || host_now_ns() - nbd->progress_at < SILENCE_NS)
		return;
	shutdown(fd, SHUT_RDWR);
	nbd->progress_at = host_now_ns();
}

static void wait_events(struct host_nbd *nbd, bool wait)
{
	struct pollfd p[2] = {{.fd = nbd->wake, .events = POLLIN}, {.fd = -1}};
	unsigned direction = 0;
	uint64_t count;

	if (nbd->h) {
		direction = libnbd.aio_get_direction(nbd->h);
		p[1].fd = libnbd.aio_get_fd(nbd->h);
		p[1].events = (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
			      (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0);
	}
	if (poll(p, 2, !wait ? 0 : nbd->under_way ? 1000 : -1) < 0)
		return;
	if (p[0].revents && RETRY_EINTR(read(nbd->wake, &count, sizeof(count))) < 0)
		ENSURE(errno == EAGAIN);
	if (!nbd->h)
		return;
	if ((p[1].revents & (POLLIN | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
		libnbd.aio_notify_read(nbd->h);
	else if ((p[1].revents & (POLLOUT | POLLHUP | POLLERR)) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
		libnbd.aio_notify_write(nbd->h);
	mind_silence(nbd);
}

static void *nbd_main(void *arg)
{
	struct host_nbd *nbd = arg;
	bool stop;

	for (;;) {
		struct host_io *list = take(nbd, &stop), *next;

		if (stop && !list && !nbd->under_way)
			break;
		for (struct host_io *io = list; io; io = next) {
			next = io->next;
			if (broken(nbd) && !nbd->under_way)
				go_on(nbd); /* closes it */
			if (nbd->h || reconnect(nbd))
				begin(nbd, io);
			else
				end(nbd, io, HOST_IO_LOST);
		}
		wait_events(nbd, !list && !nbd->done && !nbd->failed);
		go_on(nbd);
		tell(nbd);
	}
	return NULL;
}

/* ---- Outside the thread ---- */

static void free_nbd(struct host_nbd *nbd)
{
	if (nbd->h) {
		libnbd.shutdown(nbd->h, 0);
		libnbd.close(nbd->h);
	}
	if (nbd->wake >= 0)
		close(nbd->wake);
	host_cond_destroy(&nbd->ended);
	host_mutex_destroy(&nbd->lock);
	free(nbd->uri);
	free(nbd);
}

static bool start(struct host_nbd *nbd)
{
	nbd->h = connect_to(nbd, host_now_ns() + CONNECT_NS);
	if (!nbd->h)
		return false;
	if (!look(nbd, nbd->h, &nbd->info)) {
		keep_error(nbd);
		return false;
	}
	if (!host_thread_start(&nbd->thread, "nbd", nbd_main, nbd)) {
		snprintf(nbd->why, sizeof(nbd->why), "no thread for it: see the limit on processes (ulimit -u)");
		return false;
	}
	return true;
}

/* What a later connection will take: it resolves the server's name again. */
static void keep_reach(struct host_nbd *nbd)
{
	static const char *const files[] = {"/etc/nsswitch.conf", "/etc/hosts",    "/etc/resolv.conf",
					    "/etc/host.conf",     "/etc/services", "/etc/gai.conf"};

	host_need(HOST_NEED_SERVER);
	for (unsigned i = 0; i < ARRAY_LEN(files) && nbd->uri; i++)
		host_need_file(files[i]);
}

/* The socket by which libnbd meets a server that it has started: both have it open, and nobody else is to find it. */
static void remove_socket(struct host_nbd *nbd)
{
	struct sockaddr_un addr = {0};
	socklen_t len = sizeof(addr) - 1;
	int fd = libnbd.aio_get_fd(nbd->h);

	if (nbd->uri || fd < 0 || getpeername(fd, (struct sockaddr *)&addr, &len) || addr.sun_family != AF_UNIX)
		return;
	if (addr.sun_path[0] && !unlink(addr.sun_path))
		rmdir(dirname(addr.sun_path));
}

struct host_nbd *host_nbd_open(const struct host_nbd_config *config, struct host_nbd_info *info, char *why, size_t room)
{
	const char *lacks = libnbd_load();
	struct host_nbd *nbd = lacks ? NULL : calloc(1, sizeof(*nbd));

	if (!nbd) {
		snprintf(why, room, "%s", lacks ? lacks : "out of memory");
		return NULL;
	}
	nbd->c = *config;
	nbd->last = &nbd->first;
	nbd->done_last = &nbd->done;
	nbd->failed_last = &nbd->failed;
	host_mutex_init(&nbd->lock);
	host_cond_init(&nbd->ended);
	nbd->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	nbd->uri = config->uri ? strdup(config->uri) : NULL;
	if (nbd->wake >= 0 && (nbd->uri || !config->uri) && start(nbd)) {
		*info = nbd->info;
		remove_socket(nbd);
		keep_reach(nbd);
		return nbd;
	}
	snprintf(why, room, "%s", nbd->why[0] ? nbd->why : "out of memory or file descriptors");
	free_nbd(nbd);
	return NULL;
}

void host_nbd_submit(struct host_nbd *nbd, struct host_io *list)
{
	const uint64_t one = 1;
	bool asleep;

	if (!list)
		return;
	host_lock(&nbd->lock);
	*nbd->last = list;
	for (; list; list = list->next) {
		list->moved = 0;
		list->tries = 0;
		nbd->last = &list->next;
	}
	asleep = nbd->asleep;
	nbd->asleep = false;
	host_unlock(&nbd->lock);
	if (asleep && RETRY_EINTR(write(nbd->wake, &one, sizeof(one))) < 0)
		ENSURE(errno == EAGAIN);
}

void host_nbd_run(struct host_nbd *nbd, struct host_io *io)
{
	bool ended = false;

	io->next = NULL;
	io->waiter = &ended;
	host_nbd_submit(nbd, io);
	host_lock(&nbd->lock);
	while (!ended)
		host_cond_wait(&nbd->ended, &nbd->lock);
	host_unlock(&nbd->lock);
	io->waiter = NULL;
}

void host_nbd_close(struct host_nbd *nbd)
{
	const uint64_t one = 1;

	host_lock(&nbd->lock);
	nbd->stop = true;
	host_unlock(&nbd->lock);
	if (write(nbd->wake, &one, sizeof(one)) < 0)
		ENSURE(errno == EAGAIN);
	host_thread_join(&nbd->thread);
	free_nbd(nbd);
}
