/*
 * Unix sockets that carry streams, and waiting for many of them. A stream is a descriptor; nothing here waits but
 * host_watch_wait. Functions that can fail return -1 and leave the reason in host_error_text().
 */
#ifndef DOPPEL_HOST_STREAM_H
#define DOPPEL_HOST_STREAM_H

#include "base/base.h"
#include "host/host.h"

#define HOST_STREAM_PATH 107 /* bytes of a socket's path, at most */

/* Takes the place of a socket that a process which was killed has left. */
int host_stream_listen(const char *path, int backlog);
/* Closes it, and removes its path. */
void host_stream_unlisten(int listener);
int host_stream_connect(const char *path);
void host_stream_close(int stream);
/* No more is read (false) or written (true). */
void host_stream_shutdown(int stream, bool write);

enum { HOST_STREAM_LATER = -2 }; /* nothing there now, or no room */
/* A new client; -1 or HOST_STREAM_LATER. */
int host_stream_accept(int listener);
/* Bytes moved; 0 when reading: the end. -1: the other side is gone. Or HOST_STREAM_LATER. */
int64_t host_stream_read(int stream, const struct host_iovec *iov, unsigned n);
int64_t host_stream_write(int stream, const struct host_iovec *iov, unsigned n);

/* ---- Waiting ---- */

struct host_watch;
struct host_ready {
	uint64_t token;
	bool read, write; /* both, when the other side has hung up */
};

struct host_watch *host_watch_create(void); /* NULL: no descriptors left */
void host_watch_destroy(struct host_watch *watch);
/* Asks to be told once. A stream is watched until it is closed; any thread. */
bool host_watch_once(struct host_watch *watch, int stream, uint64_t token, bool read, bool write);
/* Waits until something is ready or somebody wakes it; how many of ready[] are filled. */
unsigned host_watch_wait(struct host_watch *watch, struct host_ready *ready, unsigned room);
void host_watch_wake(struct host_watch *watch);

#endif
