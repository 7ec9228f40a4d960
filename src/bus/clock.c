/* The VM's clock, and the thread that fires its timers from a binary heap ordered by deadline. */
#include "bus/clock.h"

#include "host/host.h"

#include <stdatomic.h>
#include <stdlib.h>

#define NOT_QUEUED UINT32_MAX

struct clock_timer {
	struct vm_clock *clock;
	void (*fire)(void *opaque);
	void *opaque;
	uint64_t deadline;
	uint32_t at; /* place in the heap, or NOT_QUEUED */
	bool dying;  /* being destroyed: cannot be armed any more */
};

struct vm_clock {
	struct host_mutex lock; /* of all that follows but `time` */
	struct host_cond wake;  /* the thread: an earlier deadline, a resume, the end */
	struct host_cond idle;  /* who waits for `firing` to end */
	struct host_thread thread;
	struct clock_timer **heap;
	uint32_t queued, timers, room; /* room for every timer there is: arming cannot fail */
	struct clock_timer *firing;
	uint64_t sleeping_until; /* VM time up to which the thread sleeps by itself; 0 when it does not sleep */
	bool paused, quit;

	/*
	 * What clock_now reads without the lock, as a sequence lock: `seq` is odd while the two are being changed. VM
	 * time is host time less `offset`, or `frozen` while paused (else CLOCK_NEVER).
	 */
	struct {
		_Atomic uint32_t seq;
		_Atomic uint64_t offset, frozen;
	} time;
};

uint64_t clock_now(const struct vm_clock *clock)
{
	uint64_t offset, frozen, now;
	uint32_t seq;

	do {
		seq = atomic_load_explicit(&clock->time.seq, memory_order_acquire);
		offset = atomic_load_explicit(&clock->time.offset, memory_order_acquire);
		frozen = atomic_load_explicit(&clock->time.frozen, memory_order_acquire);
		now = host_now_ns();
	} while (seq & 1 || atomic_load_explicit(&clock->time.seq, memory_order_acquire) != seq);
	return frozen != CLOCK_NEVER ? frozen : now - offset;
}

/*
 * Between these two the time is changed; the caller holds the lock, so there is one writer. He reads the host's clock
 * in between too: what a reader took before is then not later than what he takes, and time never steps back.
 */
static void change_begin(struct vm_clock *clock)
{
	atomic_fetch_add(&clock->time.seq, 1);
}

static void change_end(struct vm_clock *clock, uint64_t offset, uint64_t frozen)
{
	atomic_store(&clock->time.offset, offset);
	atomic_store(&clock->time.frozen, frozen);
	atomic_fetch_add(&clock->time.seq, 1);
}

static void heap_put(struct vm_clock *clock, uint32_t at, struct clock_timer *t)
{
	clock->heap[at] = t;
	t->at = at;
}

static void sift_up(struct vm_clock *clock, uint32_t at, struct clock_timer *t)
{
	while (at && clock->heap[(at - 1) / 2]->deadline > t->deadline) {
		heap_put(clock, at, clock->heap[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	heap_put(clock, at, t);
}

static void sift_down(struct vm_clock *clock, uint32_t at, struct clock_timer *t)
{
	for (;;) {
		uint32_t child = at * 2 + 1;

		if (child + 1 < clock->queued && clock->heap[child + 1]->deadline < clock->heap[child]->deadline)
			child++;
		if (child >= clock->queued || clock->heap[child]->deadline >= t->deadline)
			break;
		heap_put(clock, at, clock->heap[child]);
		at = child;
	}
	heap_put(clock, at, t);
}

static void heap_add(struct vm_clock *clock, struct clock_timer *t)
{
	sift_up(clock, clock->queued++, t);
}

static void heap_remove(struct vm_clock *clock, struct clock_timer *t)
{
	struct clock_timer *last;
	uint32_t at = t->at;

	if (at == NOT_QUEUED)
		return;
	t->at = NOT_QUEUED;
	last = clock->heap[--clock->queued];
	if (last == t)
		return;
	if (at && clock->heap[(at - 1) / 2]->deadline > last->deadline)
		sift_up(clock, at, last);
	else
		sift_down(clock, at, last);
}

static void fire(struct vm_clock *clock, struct clock_timer *t)
{
	heap_remove(clock, t);
	clock->firing = t;
	host_unlock(&clock->lock);
	t->fire(t->opaque);
	host_lock(&clock->lock);
	clock->firing = NULL;
	host_cond_broadcast(&clock->idle);
}

static void sleep_until(struct vm_clock *clock, uint64_t deadline)
{
	uint64_t offset = atomic_load(&clock->time.offset);
	bool never = deadline == CLOCK_NEVER || deadline > CLOCK_NEVER - 1 - offset;

	clock->sleeping_until = deadline;
	host_cond_wait_until(&clock->wake, &clock->lock, never ? UINT64_MAX : deadline + offset);
	clock->sleeping_until = 0;
}

static void *timer_thread(void *opaque)
{
	struct vm_clock *clock = opaque;

	host_lock(&clock->lock);
	while (!clock->quit) {
		struct clock_timer *next = clock->queued && !clock->paused ? clock->heap[0] : NULL;

		if (next && next->deadline <= clock_now(clock))
			fire(clock, next);
		else
			sleep_until(clock, next ? next->deadline : CLOCK_NEVER);
	}
	host_unlock(&clock->lock);
	return NULL;
}

struct vm_clock *clock_create(void)
{
	struct vm_clock *clock = calloc(1, sizeof(*clock));

	if (!clock)
		return NULL;
	host_tsc_hz(); /* measured now, not at a device's first access */
	host_mutex_init(&clock->lock);
	host_cond_init(&clock->wake);
	host_cond_init(&clock->idle);
	change_begin(clock);
	change_end(clock, host_now_ns(), CLOCK_NEVER);
	if (host_thread_start(&clock->thread, "clock", timer_thread, clock))
		return clock;
	host_cond_destroy(&clock->idle);
	host_cond_destroy(&clock->wake);
	host_mutex_destroy(&clock->lock);
	free(clock);
	return NULL;
}

void clock_destroy(struct vm_clock *clock)
{
	if (!clock)
		return;
	host_lock(&clock->lock);
	clock->quit = true;
	host_cond_signal(&clock->wake);
	host_unlock(&clock->lock);
	host_thread_join(&clock->thread);
	ENSURE(!clock->timers); /* a timer left over would point to a clock that is gone */
	host_cond_destroy(&clock->idle);
	host_cond_destroy(&clock->wake);
	host_mutex_destroy(&clock->lock);
	free(clock->heap);
	free(clock);
}

/* Waits until no timer (NULL), or not this one, is in its `fire`; at once on the clock's own thread. */
static void wait_fired(struct vm_clock *clock, const struct clock_timer *t)
{
	if (host_thread_is_current(&clock->thread))
		return;
	while (clock->firing && (!t || clock->firing == t))
		host_cond_wait(&clock->idle, &clock->lock);
}

void clock_pause(struct vm_clock *clock)
{
	host_lock(&clock->lock);
	if (!clock->paused) {
		uint64_t offset = clock->time.offset;

		clock->paused = true;
		change_begin(clock);
		change_end(clock, offset, host_now_ns() - offset);
	}
	wait_fired(clock, NULL);
	host_unlock(&clock->lock);
}

void clock_resume(struct vm_clock *clock)
{
	host_lock(&clock->lock);
	if (clock->paused) {
		clock->paused = false;
		change_begin(clock);
		change_end(clock, host_now_ns() - clock->time.frozen, CLOCK_NEVER);
		host_cond_signal(&clock->wake);
	}
	host_unlock(&clock->lock);
}

void clock_set(struct vm_clock *clock, uint64_t now)
{
	host_lock(&clock->lock);
	change_begin(clock);
	change_end(clock, host_now_ns() - now, clock->paused ? now : CLOCK_NEVER);
	host_cond_signal(&clock->wake);
	host_unlock(&clock->lock);
}

void clock_lose(struct vm_clock *clock, uint64_t ns)
{
	host_lock(&clock->lock);
	if (!clock->paused) {
		uint64_t offset = clock->time.offset;

		change_begin(clock);
		change_end(clock, offset + MIN(ns, host_now_ns() - offset), CLOCK_NEVER);
	}
	host_unlock(&clock->lock);
}

uint64_t clock_tsc_hz(const struct vm_clock *clock)
{
	return host_tsc_hz();
}

void clock_wall(uint64_t *sec, uint32_t *nsec)
{
	host_wall_time(sec, nsec);
}

static bool make_room(struct vm_clock *clock)
{
	uint32_t room = clock->room ? clock->room * 2 : 16;
	struct clock_timer **heap;

	if (clock->timers < clock->room)
		return true;
	heap = realloc(clock->heap, room * sizeof(struct clock_timer *));
	if (!heap)
		return false;
	clock->heap = heap;
	clock->room = room;
	return true;
}

struct clock_timer *clock_timer_create(struct vm_clock *clock, void (*fire_fn)(void *opaque), void *opaque)
{
	struct clock_timer *t = malloc(sizeof(*t));
	bool ok;

	if (!t)
		return NULL;
	*t = (struct clock_timer){
		.clock = clock, .fire = fire_fn, .opaque = opaque, .deadline = CLOCK_NEVER, .at = NOT_QUEUED};
	host_lock(&clock->lock);
	ok = make_room(clock);
	clock->timers += ok;
	host_unlock(&clock->lock);
	if (!ok) {
		free(t);
		return NULL;
	}
	return t;
}

void clock_timer_destroy(struct clock_timer *timer)
{
	struct vm_clock *clock;

	if (!timer)
		return;
	clock = timer->clock;
	host_lock(&clock->lock);
	timer->dying = true; /* else one that arms itself for the past could be caught firing each time that we look */
	heap_remove(clock, timer);
	wait_fired(clock, timer);
	clock->timers--;
	host_unlock(&clock->lock);
	free(timer);
}

void clock_timer_set(struct clock_timer *timer, uint64_t deadline)
{
	struct vm_clock *clock = timer->clock;

	host_lock(&clock->lock);
	heap_remove(clock, timer);
	timer->deadline = deadline;
	if (deadline != CLOCK_NEVER && !timer->dying)
		heap_add(clock, timer);
	/* A deadline that moved away costs no wake-up here: the thread wakes in vain at the old one, and sleeps on. */
	if (deadline < clock->sleeping_until && !clock->paused)
		host_cond_signal(&clock->wake);
	host_unlock(&clock->lock);
}
