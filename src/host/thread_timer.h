/* Timers of a thread's own, whose signals interrupt it whatever it is about. */
#ifndef DOPPEL_HOST_THREAD_TIMER_H
#define DOPPEL_HOST_THREAD_TIMER_H

#include "base/base.h"

/* What for: of each, a thread has one at most. */
enum host_timer_use { HOST_TIMER_SAMPLE, HOST_TIMER_ALARM, HOST_TIMER_USES };

/* In a signal handler, with what the thread's program counter is: it may do no more than count, or set a word. */
typedef void (*host_timer_fn)(void *opaque, uint64_t pc);

/* On this thread, which has an alternate signal stack. False: the host would not; the reason is in host_error_text().
 */
bool host_thread_timer_enter(enum host_timer_use use, host_timer_fn fn, void *opaque);
/* After `first_ns` of real time, and then each `period_ns`, unless that is 0. Both 0: not any more. */
void host_thread_timer_set(enum host_timer_use use, uint64_t first_ns, uint64_t period_ns);
/* Does nothing where there is none. */
void host_thread_timer_leave(enum host_timer_use use);

#endif
