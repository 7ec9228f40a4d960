/*
 * Requests on a file that go on by themselves: by io_uring, on a ring that one thread owns, else by threads that wait
 * for one request each.
 *
 * Whoever submits only puts his list into the queue and wakes the ring's thread; the kernel then runs what it has to do
 * at the end of a request on that thread and not on a virtual CPU's. The ring can reach its file and its own eventfd,
 * and do what is in `allowed` below: nothing else, whoever gets hold of it.
 */
#include "host/file.h"
#include "host/internal.h"
#include "host/io.h"
#include "host/thread.h"

#include <liburing.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define RING_ENTRIES 256
#define THREADS 4

enum { FIXED_FILE, FIXED_WAKE, FIXED_FILES };

struct host_aio {
	struct host_aio_config c;
	struct host_mutex lock;
	struct host_cond work;
	struct host_io *first, **last; /* submitted, not begun */
	bool stop, asleep;             /* the ring's thread waits and looks at the queue only when it is woken */
	enum { STARTS, RUNS, FAILED } ring_thread;
	struct host_thread thread[THREADS];
	unsigned threads;

	/* The ring's thread's own. */
	bool has_ring, waking;
	struct io_uring ring;
	int wake;
	uint64_t woken; /* what the eventfd is read into */
	unsigned under_way;
	struct host_io *ended, **ended_last;
};

/* ---- Threads ---- */

static struct host_io *take_one(struct host_aio *aio)
{
	struct host_io *io = aio->first;

	aio->first = io->next;
	if (!aio->first)
		aio->last = &aio->first;
	io->next = NULL;
	return io;
}

static void *thread_main(void *arg)
{
	struct host_aio *aio = arg;

	host_lock(&aio->lock);
	while (aio->first || !aio->stop) {
		if (!aio->first) {
			host_cond_wait(&aio->work, &aio->lock);
			continue;
		}
		struct host_io *io = take_one(aio);
		host_unlock(&aio->lock);
		if (aio->c.run)
			aio->c.run(aio->c.opaque, io);
		else
			host_io_run(aio->c.file, io);
		aio->c.done(aio->c.opaque, io);
		host_lock(&aio->lock);
	}
	host_unlock(&aio->lock);
	return NULL;
}

/* ---- The ring ---- */

static void ring_ended(struct host_aio *aio, struct host_io *io, int error)
{
	io->error = error;
	io->next = NULL;
	*aio->ended_last = io;
	aio->ended_last = &io->next;
}

static struct io_uring_sqe *ring_entry(struct host_aio *aio)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&aio->ring);

	/* Full: the kernel takes what is there, and all entries are free again. */
	while (!sqe) {
		io_uring_submit(&aio->ring);
		sqe = io_uring_get_sqe(&aio->ring);
	}
	return sqe;
}

static void ring_push(struct host_aio *aio, struct io_uring_sqe *sqe, struct host_io *io)
{
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, io);
	aio->under_way++;
}

/* What the ring cannot do, or only with more ado than it happens often: at once, on the ring's thread. */
static void ring_run(struct host_aio *aio, struct host_io *io)
{
	host_io_run(aio->c.file, io);
	ring_ended(aio, io, io->error);
}

static void ring_begin(struct host_aio *aio, struct host_io *io)
{
	struct io_uring_sqe *sqe;
	const struct iovec *iov = (const struct iovec *)io->iov;

	_Static_assert(sizeof(struct iovec) == sizeof(struct host_iovec), "the same pieces");
	switch (io->op) {
	case HOST_IO_READ:
	case HOST_IO_WRITE:
		if (!io->n || !host_file_aligned(aio->c.file, io->iov, io->n, io->off + io->moved)) {
			ring_run(aio, io);
			return;
		}
		sqe = ring_entry(aio);
		if (io->op == HOST_IO_READ)
			io_uring_prep_readv(sqe, FIXED_FILE, iov, io->n, io->off + io->moved);
		else
			io_uring_prep_writev(sqe, FIXED_FILE, iov, io->n, io->off + io->moved);
		break;
	case HOST_IO_FLUSH:
		sqe = ring_entry(aio);
		io_uring_prep_fsync(sqe, FIXED_FILE, IORING_FSYNC_DATASYNC);
		break;
	case HOST_IO_DISCARD:
	case HOST_IO_ZERO:
		if (!io->len) {
			ring_ended(aio, io, 0);
			return;
		}
		sqe = ring_entry(aio);
		int mode = io->op == HOST_IO_DISCARD || io->unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
		io_uring_prep_fallocate(sqe, FIXED_FILE, mode | FALLOC_FL_KEEP_SIZE, (off_t)io->off, (off_t)io->len);
		break;
	default:
		ring_ended(aio, io, ENOSYS);
		return;
	}
	ring_push(aio, sqe, io);
}

static void transfer_ended(struct host_aio *aio, struct host_io *io, int result)
{
	if (result == 0) {
		ring_ended(aio, io, HOST_IO_ENDED);
		return;
	}
	host_io_consume(io, result);
	if (io->moved >= io->len)
		ring_ended(aio, io, 0);
	else
		ring_begin(aio, io);
}

static void request_ended(struct host_aio *aio, struct host_io *io, int result)
{
	bool transfer = io->op == HOST_IO_READ || io->op == HOST_IO_WRITE;

	aio->under_way--;
	if (result == -EAGAIN || result == -EINTR)
		ring_begin(aio, io);
	else if (result >= 0 && transfer)
		transfer_ended(aio, io, result);
	else if (result < 0 && (io->op == HOST_IO_DISCARD || io->op == HOST_IO_ZERO) && result != -ENOSPC &&
		 result != -EIO)
		ring_run(aio, io); /* it knows other ways */
	else
		ring_ended(aio, io, -result);
}

/* A read of the eventfd is under way all the time, so that a wait for the ring ends when there is a list to begin. */
static void ring_await_wake(struct host_aio *aio)
{
	struct io_uring_sqe *sqe;

	if (aio->waking)
		return;
	aio->waking = true;
	sqe = ring_entry(aio);
	io_uring_prep_read(sqe, FIXED_WAKE, &aio->woken, sizeof(aio->woken), 0);
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, NULL);
}

static void ring_reap(struct host_aio *aio)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&aio->ring, &cqe)) {
		struct host_io *io = io_uring_cqe_get_data(cqe);
		int result = cqe->res;

		io_uring_cqe_seen(&aio->ring, cqe);
		if (io)
			request_ended(aio, io, result);
		else
			aio->waking = false;
	}
}

static void ring_tell(struct host_aio *aio)
{
	struct host_io *list = aio->ended;

	if (!list)
		return;
	aio->ended = NULL;
	aio->ended_last = &aio->ended;
	aio->c.done(aio->c.opaque, list);
}

/* The lists that came in; none: from now on the thread must be woken. */
static struct host_io *ring_take(struct host_aio *aio, bool *stop)
{
	host_lock(&aio->lock);
	struct host_io *list = aio->first;
	aio->first = NULL;
	aio->last = &aio->first;
	aio->asleep = !list;
	*stop = aio->stop;
	host_unlock(&aio->lock);
	return list;
}

/* Version 2.3 of the library does not export its own functions for these two. */
static bool ring_register(struct host_aio *aio, unsigned what, const void *arg, unsigned n)
{
	return io_uring_register((unsigned)aio->ring.ring_fd, what, arg, n) >= 0;
}

static bool ring_enable(struct host_aio *aio)
{
	bool good = ring_register(aio, IORING_REGISTER_ENABLE_RINGS, NULL, 0);

	host_lock(&aio->lock);
	aio->ring_thread = good ? RUNS : FAILED;
	host_cond_broadcast(&aio->work);
	host_unlock(&aio->lock);
	return good;
}

static void *ring_main(void *arg)
{
	struct host_aio *aio = arg;
	bool stop;

	if (!ring_enable(aio))
		return NULL;
	for (;;) {
		struct host_io *list = ring_take(aio, &stop);
		if (!list && stop && !aio->under_way)
			break;
		for (struct host_io *io = list, *next; io; io = next) {
			next = io->next;
			ring_begin(aio, io);
		}
		ring_await_wake(aio);
		if (list || aio->ended)
			io_uring_submit_and_get_events(&aio->ring);
		else
			io_uring_submit_and_wait(&aio->ring, 1);
		ring_reap(aio);
		ring_tell(aio);
	}
	return NULL;
}

static bool restrict_ring(struct host_aio *aio)
{
	static const uint8_t allowed[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE,
					  IORING_OP_READ};
	struct io_uring_restriction r[ARRAY_LEN(allowed) + 2] = {0};
	const int fds[FIXED_FILES] = {[FIXED_FILE] = aio->c.file->fd, [FIXED_WAKE] = aio->wake};
	unsigned n = 0;

	if (io_uring_register_files(&aio->ring, fds, FIXED_FILES))
		return false;
	for (; n < ARRAY_LEN(allowed); n++) {
		r[n].opcode = IORING_RESTRICTION_SQE_OP;
		r[n].sqe_op = allowed[n];
	}
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	r[n++].sqe_flags = IOSQE_FIXED_FILE;
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
	r[n++].sqe_flags = IOSQE_FIXED_FILE;
	return ring_register(aio, IORING_REGISTER_RESTRICTIONS, r, n);
}

/* It begins disabled, so that the thread that enables it is the one that it belongs to (IORING_SETUP_SINGLE_ISSUER). */
static bool make_ring(struct host_aio *aio)
{
	static const unsigned flags[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0};
	struct io_uring_params params;
	int error = -1;

	aio->wake = eventfd(0, EFD_CLOEXEC);
	if (aio->wake < 0)
		return false;
	for (unsigned i = 0; i < ARRAY_LEN(flags) && error; i++) {
		params = (struct io_uring_params){.flags = IORING_SETUP_R_DISABLED | flags[i]};
		error = io_uring_queue_init_params(RING_ENTRIES, &aio->ring, &params);
	}
	if (!error && restrict_ring(aio))
		return true;
	if (!error)
		io_uring_queue_exit(&aio->ring);
	close(aio->wake);
	return false;
}

/* ---- Both ---- */

static void free_ring(struct host_aio *aio)
{
	io_uring_queue_exit(&aio->ring);
	close(aio->wake);
	aio->has_ring = false;
}

static bool start_threads(struct host_aio *aio, unsigned count, void *(*fn)(void *arg))
{
	for (; aio->threads < count; aio->threads++)
		if (!host_thread_start(&aio->thread[aio->threads], aio->c.name, fn, aio))
			return !host_fail();
	return true;
}

/* Waits until the thread has what it needs: afterwards the process may give up the rights to it. */
static bool start_ring(struct host_aio *aio)
{
	if (!start_threads(aio, 1, ring_main))
		return false;
	host_lock(&aio->lock);
	while (aio->ring_thread == STARTS)
		host_cond_wait(&aio->work, &aio->lock);
	host_unlock(&aio->lock);
	if (aio->ring_thread == RUNS)
		return true;
	host_thread_join(&aio->thread[--aio->threads]);
	return false;
}

static bool start(struct host_aio *aio)
{
	if (aio->has_ring && start_ring(aio))
		return true;
	if (aio->has_ring)
		free_ring(aio);
	return start_threads(aio, THREADS, thread_main);
}

struct host_aio *host_aio_create(const struct host_aio_config *config)
{
	struct host_aio *aio = calloc(1, sizeof(*aio));

	if (!aio) {
		host_fail();
		return NULL;
	}
	aio->c = *config;
	aio->last = &aio->first;
	aio->ended_last = &aio->ended;
	host_mutex_init(&aio->lock);
	host_cond_init(&aio->work);
	aio->has_ring = !config->run && !config->no_ring && make_ring(aio);
	if (start(aio))
		return aio;
	host_aio_destroy(aio);
	return NULL;
}

bool host_aio_has_ring(const struct host_aio *aio)
{
	return aio->has_ring;
}

static void wake(struct host_aio *aio)
{
	const uint64_t one = 1;

	if (RETRY_EINTR(write(aio->wake, &one, sizeof(one))) < 0)
		ENSURE(errno == EAGAIN); /* it counts as high as it can, and is read soon */
}

void host_aio_submit(struct host_aio *aio, struct host_io *list)
{
	bool asleep, many = list && list->next;

	if (!list)
		return;
	host_lock(&aio->lock);
	*aio->last = list;
	for (; list; list = list->next) {
		list->moved = 0;
		aio->last = &list->next;
	}
	asleep = aio->asleep;
	aio->asleep = false;
	if (!aio->has_ring && many)
		host_cond_broadcast(&aio->work);
	else if (!aio->has_ring)
		host_cond_signal(&aio->work);
	host_unlock(&aio->lock);
	if (aio->has_ring && asleep)
		wake(aio);
}

void host_aio_destroy(struct host_aio *aio)
{
	if (!aio)
		return;
	host_lock(&aio->lock);
	aio->stop = true;
	host_cond_broadcast(&aio->work);
	host_unlock(&aio->lock);
	if (aio->has_ring)
		wake(aio);
	while (aio->threads)
		host_thread_join(&aio->thread[--aio->threads]);
	if (aio->has_ring)
		free_ring(aio);
	host_cond_destroy(&aio->work);
	host_mutex_destroy(&aio->lock);
	free(aio);
}
