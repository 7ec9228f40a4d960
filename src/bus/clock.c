/* The VM's clock, and the thread that fires its timers from a binary heap ordered by deadline. */
#include "bus/clock.h"

#include "host/host.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <x86intrin.h>

#define NOT_QUEUED UINT32_MAX
#define NS_PER_S 1000000000u
#define SCALE_BITS 40 /* of struct vm_clock's ns_per_tick: an error of less than 1 in 10^12 */

struct clock_timer {
	struct vm_clock *clock;
	void (*fire)(void *opaque);
	void *opaque;
	uint64_t deadline;
	uint64_t fired, interval; /* the last deadline at which it fired, and from the one before it to that */
	uint32_t at;              /* place in the heap, or NOT_QUEUED */
	bool dying;               /* being destroyed: cannot be armed any more */
};

struct vm_clock {
	struct host_mutex lock; /* of all that follows but `time` and `due` */
	struct host_cond wake;  /* the thread: an earlier deadline, a resume, the end */
	struct host_cond idle;  /* who waits for `firing` to end */
	struct host_thread thread;
	struct clock_timer **heap;
	uint32_t queued, timers, room; /* room for every timer there is: arming cannot fail */
	struct clock_timer *firing;    /* by whoever: one at a time */
	uint64_t sleeping_until;       /* VM time up to which the thread sleeps by itself; 0 when it does not sleep */
	uint64_t expected;             /* VM time for which a timer is likely to be armed; in the past: none is */
	bool paused, quit;
	_Atomic uint64_t
		ns_per_tick; /* of the TSC, as a fraction of SCALE_BITS bits; 0 until it matters, then constant */

	/*
	 * What clock_now reads without the lock, as a sequence lock: `seq` is odd while the two are being changed. The
	 * VM's time began when the host's TSC was `base`; while paused it stands at TSC `frozen` (else CLOCK_NEVER).
	 */
	struct {
		_Atomic uint32_t seq;
		_Atomic uint64_t base, frozen;
	} time;
	_Atomic uint64_t due; /* clock_due_tsc */
};

/* Not before what is written above it has been done: the sequence lock relies on that. */
static uint64_t tsc(void)
{
	_mm_lfence();
	return __rdtsc();
}

/* Before the time has first gone on there are no ticks, and 0 of them are 0 ns at any rate. */
static uint64_t rate(const struct vm_clock *clock)
{
	return atomic_load_explicit(&clock->ns_per_tick, memory_order_relaxed);
}

static uint64_t to_ns(const struct vm_clock *clock, uint64_t ticks)
{
	return (uint64_t)((unsigned __int128)ticks * rate(clock) >> SCALE_BITS);
}

/* The fewest ticks in which `ns` pass. */
static uint64_t to_ticks(const struct vm_clock *clock, uint64_t ns)
{
	unsigned __int128 ticks = ((unsigned __int128)ns << SCALE_BITS) + rate(clock) - 1;

	ticks /= rate(clock);
	return ticks > UINT64_MAX ? UINT64_MAX : (uint64_t)ticks;
}

/* The VM's time as the host's TSC where it stands or now, and where it began. */
static uint64_t read_time(const struct vm_clock *clock, uint64_t *base)
{
	uint64_t frozen, now;
	uint32_t seq;

	do {
		seq = atomic_load_explicit(&clock->time.seq, memory_order_acquire);
		*base = atomic_load_explicit(&clock->time.base, memory_order_acquire);
		frozen = atomic_load_explicit(&clock->time.frozen, memory_order_acquire);
		now = tsc();
	} while (seq & 1 || atomic_load_explicit(&clock->time.seq, memory_order_acquire) != seq);
	return frozen != CLOCK_NEVER ? frozen : now;
}

/* TSCs of different processors may differ by a few ticks: the time before the beginning is the beginning. */
static uint64_t ticks_between(uint64_t base, uint64_t at)
{
	return (int64_t)(at - base) < 0 ? 0 : at - base;
}

uint64_t clock_now(const struct vm_clock *clock)
{
	return to_ns(clock, clock_ticks(clock));
}

uint64_t clock_ticks(const struct vm_clock *clock)
{
	uint64_t base, at = read_time(clock, &base);

	return ticks_between(base, at);
}

uint64_t clock_base(const struct vm_clock *clock)
{
	return atomic_load(&clock->time.base);
}

uint64_t clock_ticks_ns(const struct vm_clock *clock, uint64_t ticks)
{
	unsigned __int128 ns = (unsigned __int128)ticks * rate(clock);

	return (uint64_t)((ns + BIT(SCALE_BITS) - 1) >> SCALE_BITS);
}

uint64_t clock_due_tsc(const struct vm_clock *clock)
{
	return atomic_load_explicit(&clock->due, memory_order_acquire);
}

/* After the first deadline, or time itself, may have changed; the lock is held. */
static void publish(struct vm_clock *clock)
{
	uint64_t ticks = UINT64_MAX, base = clock->time.base;

	if (clock->queued && !clock->paused)
		ticks = to_ticks(clock, clock->heap[0]->deadline);
	atomic_store_explicit(&clock->due, ticks > UINT64_MAX - base ? UINT64_MAX : base + ticks, memory_order_release);
}

static void know_rate(struct vm_clock *clock)
{
	if (!rate(clock))
		clock->ns_per_tick = (uint64_t)(((unsigned __int128)NS_PER_S << SCALE_BITS) / host_tsc_hz());
}

/*
 * Between these two the time is changed; the caller holds the lock, so there is one writer. He reads the TSC in between
 * too: what a reader took before is then not later than what he takes, and time never steps back.
 */
static void change_begin(struct vm_clock *clock)
{
	atomic_fetch_add(&clock->time.seq, 1);
}

static void change_end(struct vm_clock *clock, uint64_t base, uint64_t frozen)
{
	atomic_store(&clock->time.base, base);
	atomic_store(&clock->time.frozen, frozen);
	atomic_fetch_add(&clock->time.seq, 1);
	publish(clock);
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

#define INTERVAL_MOST 20000000u
#define LATE_MOST 20000u /* so much later than it should be a timer may fire, rather than that the thread is woken */

static bool alike(uint64_t a, uint64_t b)
{
	return MAX(a, b) - MIN(a, b) <= MIN(a, b) / 16;
}

/*
 * A kernel's tick arms its timer anew each time that it fires. The thread sleeps until about then of its own accord: to
 * be woken for that, on another processor, would be a good part of what a tick costs.
 */
static void expect(struct vm_clock *clock, struct clock_timer *t)
{
	uint64_t interval = t->deadline - t->fired;

	if (alike(interval, t->interval) && interval <= INTERVAL_MOST)
		clock->expected = t->deadline + interval + LATE_MOST / 2;
	t->interval = interval;
	t->fired = t->deadline;
}

static void fire(struct vm_clock *clock, struct clock_timer *t)
{
	expect(clock, t);
	heap_remove(clock, t);
	publish(clock);
	clock->firing = t;
	host_unlock(&clock->lock);
	t->fire(t->opaque);
	host_lock(&clock->lock);
	clock->firing = NULL;
	host_cond_broadcast(&clock->idle);
}

void clock_fire_due(struct vm_clock *clock, uint64_t at)
{
	host_lock(&clock->lock);
	/* Each at most once: one that arms itself for the past does not keep the processor. */
	for (uint32_t left = clock->timers; left && !clock->paused; left--) {
		while (clock->firing)
			host_cond_wait(&clock->idle, &clock->lock);
		if (clock->paused || !clock->queued ||
		    clock->heap[0]->deadline > to_ns(clock, ticks_between(clock->time.base, at)))
			break;
		fire(clock, clock->heap[0]);
	}
	host_unlock(&clock->lock);
}

static void sleep_until(struct vm_clock *clock, uint64_t deadline)
{
	uint64_t host = host_now_ns(), now = clock_now(clock);
	uint64_t left = deadline > now ? deadline - now : 0;

	clock->sleeping_until = deadline;
	host_cond_wait_until(&clock->wake, &clock->lock,
			     deadline == CLOCK_NEVER || left > UINT64_MAX - host ? UINT64_MAX : host + left);
	clock->sleeping_until = 0;
}

/* Until when the thread sleeps if nobody wakes it, `next` being the first timer that is armed, or NULL. */
static uint64_t next_look(const struct vm_clock *clock, const struct clock_timer *next)
{
	uint64_t deadline = next ? next->deadline : CLOCK_NEVER;

	if (clock->paused || clock->expected <= clock_now(clock))
		return deadline;
	return MIN(deadline, clock->expected);
}

static void *timer_thread(void *opaque)
{
	struct vm_clock *clock = opaque;

	host_lock(&clock->lock);
	while (!clock->quit) {
		struct clock_timer *next = clock->queued && !clock->paused ? clock->heap[0] : NULL;

		if (clock->firing)
			host_cond_wait(&clock->idle, &clock->lock);
		else if (next && next->deadline <= clock_now(clock))
			fire(clock, next);
		else
			sleep_until(clock, next_look(clock, next));
	}
	host_unlock(&clock->lock);
	return NULL;
}

struct vm_clock *clock_create(void)
{
	struct vm_clock *clock = calloc(1, sizeof(*clock));
	uint64_t now = tsc();

	if (!clock)
		return NULL;
	host_mutex_init(&clock->lock);
	host_cond_init(&clock->wake);
	host_cond_init(&clock->idle);
	clock->paused = true;
	change_begin(clock);
	change_end(clock, now, now);
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
		clock->paused = true;
		change_begin(clock);
		change_end(clock, clock->time.base, tsc());
	}
	wait_fired(clock, NULL);
	host_unlock(&clock->lock);
}

uint64_t clock_resume(struct vm_clock *clock)
{
	uint64_t stood = 0;

	know_rate(clock);
	host_lock(&clock->lock);
	if (clock->paused) {
		clock->paused = false;
		change_begin(clock);
		stood = tsc() - clock->time.frozen;
		change_end(clock, clock->time.base + stood, CLOCK_NEVER);
		host_cond_signal(&clock->wake);
	}
	host_unlock(&clock->lock);
	return stood;
}

void clock_set(struct vm_clock *clock, uint64_t now)
{
	know_rate(clock);
	host_lock(&clock->lock);
	change_begin(clock);
	change_end(clock, (clock->paused ? clock->time.frozen : tsc()) - to_ticks(clock, now), clock->time.frozen);
	host_cond_signal(&clock->wake);
	host_unlock(&clock->lock);
}

uint64_t clock_lose(struct vm_clock *clock, uint64_t ticks)
{
	host_lock(&clock->lock);
	change_begin(clock);
	ticks = clock->paused ? MIN(ticks, clock->time.frozen - clock->time.base) : 0;
	change_end(clock, clock->time.base, clock->paused ? clock->time.frozen - ticks : CLOCK_NEVER);
	host_unlock(&clock->lock);
	return ticks;
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
	publish(clock);
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
	publish(clock);
	/* A deadline that moved away costs no wake-up here: the thread wakes in vain at the old one, and sleeps on. */
	if (deadline < clock->sleeping_until - MIN(clock->sleeping_until, LATE_MOST) && !clock->paused)
		host_cond_signal(&clock->wake);
	host_unlock(&clock->lock);
}
