/*
 * The VM's clock and its timers. Time is in nanoseconds since the VM started, and stands still while the VM is paused.
 * It is the host's TSC, scaled: so it and the guest's TSC, and all that devices work out from it, are one clock.
 */
#ifndef DOPPEL_BUS_CLOCK_H
#define DOPPEL_BUS_CLOCK_H

#include "base/base.h"
#include "host/thread.h"

struct clock_timer;
struct vm_clock;

#define CLOCK_NEVER UINT64_MAX

/*
 * Paused at time 0; starts the thread that fires timers. NULL on failure (out of memory, no thread). How fast the TSC
 * runs need not be known yet (host_tsc_hz): it is asked for when time first goes on, or is set.
 */
struct vm_clock *clock_create(void);
void clock_destroy(struct vm_clock *clock);
uint64_t clock_now(const struct vm_clock *clock);
/* The same in ticks of the TSC. */
uint64_t clock_ticks(const struct vm_clock *clock);
/* The first ns at which clock_ticks() is as much. */
uint64_t clock_ticks_ns(const struct vm_clock *clock, uint64_t ticks);
/* What the host's TSC is ahead of clock_ticks(), unless paused; changes with clock_resume, clock_lose and clock_set. */
uint64_t clock_base(const struct vm_clock *clock);
/* After it returns no timer fires, and none is in its `fire` (unless called from there). */
void clock_pause(struct vm_clock *clock);
/* Returns by how much that moved clock_base: 0 when it was not paused. */
uint64_t clock_resume(struct vm_clock *clock);
/*
 * While paused: the last `ticks` of the TSC did not pass for the VM. Its time steps back by them, but not to before its
 * start; returns how many it was. Timers that fired meanwhile have fired. For a VM none of whose processors looked.
 */
uint64_t clock_lose(struct vm_clock *clock, uint64_t ticks);
/* Makes the VM's time `now`, as when a saved VM is loaded. */
void clock_set(struct vm_clock *clock, uint64_t now);
/* Frequency of the host's TSC in Hz, measured or told by the host, and constant; the guest's runs at the same rate. */
uint64_t clock_tsc_hz(const struct vm_clock *clock);
/* Host wall-clock time in seconds and nanoseconds since 1970, UTC: what the CMOS clock shows at start. */
void clock_wall(uint64_t *sec, uint32_t *nsec);

/* `fire` runs on the clock's thread or in clock_fire_due, one at a time, with no lock of the clock held; it may arm
 * timers again. */
struct clock_timer *clock_timer_create(struct vm_clock *clock, void (*fire)(void *opaque), void *opaque);
/* After it returns, `fire` is not running and will not run again. Not to be called from `fire`. */
void clock_timer_destroy(struct clock_timer *timer);
/* Fires once at `deadline` (at once if it is past); replaces an earlier deadline; CLOCK_NEVER disarms. Any thread. */
void clock_timer_set(struct clock_timer *timer, uint64_t deadline);

/* The host's TSC when the next timer is due, UINT64_MAX when none is. Cheap; may be outdated when it returns. */
uint64_t clock_due_tsc(const struct vm_clock *clock);
/*
 * Fires on this thread what is due when the host's TSC is `at`, or waits for another thread that is at it. The clock's
 * thread fires by itself, but may run late on a busy host: by this, who looks at the time sees to it that what is due
 * before has happened. With no lock held.
 */
void clock_fire_due(struct vm_clock *clock, uint64_t at);

#endif
