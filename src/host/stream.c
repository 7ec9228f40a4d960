/* Unix sockets, and waiting for them by epoll. */
#include "host/stream.h"

#include "host/confine.h"
#include "host/internal.h"

#include <fcntl.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define IOV_MOST 64u
#define WAKE_TOKEN UINT64_MAX
#define READY_MOST 64u

static int new_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

static bool address(struct sockaddr_un *addr, const char *path)
{
	*addr = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) > HOST_STREAM_PATH)
		return false;
	memcpy(addr->sun_path, path, strlen(path) + 1);
	return true;
}

/* Whether `addr`, a socket, is one that nobody listens on any more: left over from a process that was killed. */
static bool is_stale(const struct sockaddr_un *addr)
{
	int fd = new_socket();
	bool stale = fd >= 0 && connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) && errno == ECONNREFUSED;

	if (fd >= 0)
		close(fd);
	return stale;
}

static bool bind_listen(int fd, const struct sockaddr_un *addr, int backlog)
{
	const struct sockaddr *sa = (const struct sockaddr *)addr;
	struct stat st;
	bool socket, stale;

	if (!bind(fd, sa, sizeof(*addr)))
		return !listen(fd, backlog);
	if (errno != EADDRINUSE)
		return false;
	socket = !lstat(addr->sun_path, &st) && S_ISSOCK(st.st_mode);
	stale = socket && is_stale(addr);
	errno = socket ? EADDRINUSE : EEXIST;
	return stale && !unlink(addr->sun_path) && !bind(fd, sa, sizeof(*addr)) && !listen(fd, backlog);
}

/* The socket's name is removed at the end, so its folder stays within reach. Should it not, a dead name is left. */
static void keep_folder(const char *path)
{
	char *copy = strdup(path);
	int fd = copy ? open(dirname(copy), O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;

	if (fd >= 0) {
		host_need_path(fd, HOST_PATH_REMOVE);
		close(fd);
	}
	free(copy);
}

int host_stream_listen(const char *path, int backlog)
{
	struct sockaddr_un addr;
	int fd, problem;

	if (!address(&addr, path))
		return host_fail_with(ENAMETOOLONG);
	fd = new_socket();
	if (fd >= 0 && bind_listen(fd, &addr, backlog)) {
		host_need(HOST_NEED_CLIENTS);
		keep_folder(path);
		return fd;
	}
	problem = errno;
	host_stream_close(fd);
	return host_fail_with(problem);
}

void host_stream_unlisten(int listener)
{
	struct sockaddr_un addr;
	socklen_t len = sizeof(addr);

	if (listener < 0)
		return;
	if (!getsockname(listener, (struct sockaddr *)&addr, &len) && len > offsetof(struct sockaddr_un, sun_path))
		unlink(addr.sun_path);
	close(listener);
}

int host_stream_connect(const char *path)
{
	struct sockaddr_un addr;
	int fd, problem;

	if (!address(&addr, path))
		return host_fail_with(ENAMETOOLONG);
	fd = new_socket();
	/* With a Unix socket it is done at once, or refused when too many wait. */
	if (fd >= 0 && !connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		return fd;
	problem = errno;
	host_stream_close(fd);
	return host_fail_with(problem);
}

void host_stream_close(int stream)
{
	if (stream >= 0)
		close(stream);
}

void host_stream_shutdown(int stream, bool write)
{
	shutdown(stream, write ? SHUT_WR : SHUT_RD);
}

static int64_t outcome(int64_t n)
{
	if (n >= 0)
		return n;
	return errno == EAGAIN || errno == EWOULDBLOCK ? HOST_STREAM_LATER : host_fail();
}

int host_stream_accept(int listener)
{
	return (int)outcome(RETRY_EINTR(accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)));
}

static struct msghdr message(const struct host_iovec *iov, unsigned n, struct iovec *part)
{
	n = MIN(n, IOV_MOST);
	for (unsigned i = 0; i < n; i++)
		part[i] = (struct iovec){iov[i].base, iov[i].len};
	return (struct msghdr){.msg_iov = part, .msg_iovlen = n};
}

int64_t host_stream_read(int stream, const struct host_iovec *iov, unsigned n)
{
	struct iovec part[IOV_MOST];
	struct msghdr m = message(iov, n, part);

	return outcome(RETRY_EINTR(recvmsg(stream, &m, MSG_DONTWAIT)));
}

int64_t host_stream_write(int stream, const struct host_iovec *iov, unsigned n)
{
	struct iovec part[IOV_MOST];
	struct msghdr m = message(iov, n, part);

	return outcome(RETRY_EINTR(sendmsg(stream, &m, MSG_DONTWAIT | MSG_NOSIGNAL)));
}

struct host_watch {
	int epoll, event;
};

struct host_watch *host_watch_create(void)
{
	struct host_watch *w = calloc(1, sizeof(*w));
	struct epoll_event e = {.events = EPOLLIN, .data.u64 = WAKE_TOKEN};

	if (!w)
		return NULL;
	w->epoll = epoll_create1(EPOLL_CLOEXEC);
	w->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	host_need(HOST_NEED_STREAMS);
	if (w->epoll >= 0 && w->event >= 0 && !epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->event, &e))
		return w;
	host_fail();
	host_watch_destroy(w);
	return NULL;
}

void host_watch_destroy(struct host_watch *w)
{
	if (!w)
		return;
	host_stream_close(w->epoll);
	host_stream_close(w->event);
	free(w);
}

bool host_watch_once(struct host_watch *w, int stream, uint64_t token, bool read, bool write)
{
	struct epoll_event e = {
		.events = EPOLLONESHOT | (read ? EPOLLIN : 0u) | (write ? EPOLLOUT : 0u),
		.data.u64 = token,
	};

	if (!epoll_ctl(w->epoll, EPOLL_CTL_MOD, stream, &e))
		return true;
	return (errno == ENOENT && !epoll_ctl(w->epoll, EPOLL_CTL_ADD, stream, &e)) || !host_fail();
}

unsigned host_watch_wait(struct host_watch *w, struct host_ready *ready, unsigned room)
{
	struct epoll_event e[READY_MOST];
	int n = epoll_wait(w->epoll, e, (int)MIN(room, READY_MOST), -1);
	unsigned done = 0;
	uint64_t count;

	for (int i = 0; i < n; i++) {
		if (e[i].data.u64 == WAKE_TOKEN) {
			(void)!read(w->event, &count, sizeof(count));
			continue;
		}
		bool gone = e[i].events & (EPOLLHUP | EPOLLERR);
		ready[done++] = (struct host_ready){e[i].data.u64, gone || e[i].events & EPOLLIN,
						    gone || e[i].events & EPOLLOUT};
	}
	return done;
}

void host_watch_wake(struct host_watch *w)
{
	uint64_t one = 1;

	(void)!write(w->event, &one, sizeof(one));
}
