/* Threads and locks, from the host's operating system. */
#ifndef DOPPEL_HOST_THREAD_H
#define DOPPEL_HOST_THREAD_H

#include "base/base.h"

#include <pthread.h>

struct host_mutex {
	pthread_mutex_t m;
};
struct host_cond {
	pthread_cond_t c;
};
struct host_rwlock {
	pthread_rwlock_t l;
};
struct host_thread {
	pthread_t t;
};

void host_mutex_init(struct host_mutex *m);
void host_mutex_destroy(struct host_mutex *m);
void host_lock(struct host_mutex *m);
void host_unlock(struct host_mutex *m);

void host_cond_init(struct host_cond *c); /* waits by the monotonic clock */
void host_cond_destroy(struct host_cond *c);
void host_cond_wait(struct host_cond *c, struct host_mutex *m);
/* Until signalled or host_now_ns() reaches `deadline`; false on time-out. */
bool host_cond_wait_until(struct host_cond *c, struct host_mutex *m, uint64_t deadline);
void host_cond_signal(struct host_cond *c);
void host_cond_broadcast(struct host_cond *c);

/*
 * Sleeps while *word is `value`; may return before. Who changes the word wakes afterwards, at most one. Of a change and
 * a wait at the same time, the wait sees the change or gets the wake-up.
 */
void host_word_wait(_Atomic unsigned *word, unsigned value);
void host_word_wake(_Atomic unsigned *word);

/*
 * Before a sleep that ends by another thread. To wake a thread on another of the host's processors takes ten
 * microseconds and more, of both. So a thread whose last sleep was about that short first looks for a while itself for
 * what it waits for, and between two looks lets others have the processor. Where they take it for long, sleeping is
 * better: who is woken has it back at once. A thread that sleeps for longer, as in an idle guest, does not look at all.
 */
#define HOST_LINGER_NS 50000u
struct host_linger {
	uint64_t from, window, rest_until;
};
void host_linger_begin(struct host_linger *l);
/* Whether to look (again) before the sleep. */
bool host_linger(struct host_linger *l);
/* What was waited for is there. Returns how long it took, in ns. */
uint64_t host_linger_end(struct host_linger *l);

void host_rwlock_init(struct host_rwlock *l);
void host_rwlock_destroy(struct host_rwlock *l);
void host_rdlock(struct host_rwlock *l);
void host_wrlock(struct host_rwlock *l);
void host_rwunlock(struct host_rwlock *l);

/* Starts fn(arg) on a thread named `name` (15 characters are kept). Ordinary signals are blocked on it. */
bool host_thread_start(struct host_thread *t, const char *name, void *(*fn)(void *), void *arg);
void host_thread_join(struct host_thread *t);
/* How long *t, which has been started and not joined, has been running on a processor, in ns; 0: it has ended. */
uint64_t host_thread_time_of(const struct host_thread *t);
/*
 * Has fn() run on the caller, and in a signal handler on every thread of host_thread_start that there is; those started
 * later come from one that has run it. Returns when it has run; false when a thread did not answer.
 */
bool host_thread_all(void (*fn)(void));
/* Whether those threads can be sent signals by this one. */
bool host_thread_reach_all(void);
/* Whether this thread is *t. */
bool host_thread_is_current(const struct host_thread *t);

#endif
