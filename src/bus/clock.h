/* The VM's clock and its timers. Time is in nanoseconds since the VM started, and stands still while the VM is paused.
 */
#ifndef DOPPEL_BUS_CLOCK_H
#define DOPPEL_BUS_CLOCK_H

#include "base/base.h"
#include "host/thread.h"

struct clock_timer;
struct vm_clock;

#define CLOCK_NEVER UINT64_MAX

/* Starts the thread that fires timers. NULL on failure (out of memory, no thread). */
struct vm_clock *clock_create(void);
void clock_destroy(struct vm_clock *clock);
uint64_t clock_now(const struct vm_clock *clock);
/* After it returns no timer fires, and none is in its `fire` (unless called from there). */
void clock_pause(struct vm_clock *clock);
void clock_resume(struct vm_clock *clock);
/*
 * The last `ns` did not pass for the VM: its time steps back by them. Timers that fired meanwhile have fired. For a VM
 * none of whose processors ran meanwhile.
 */
void clock_lose(struct vm_clock *clock, uint64_t ns);
/* Makes the VM's time `now`, as when a saved VM is loaded. */
void clock_set(struct vm_clock *clock, uint64_t now);
/* Frequency of the host's TSC in Hz, measured or told by the host, and constant; the guest's runs at the same rate. */
uint64_t clock_tsc_hz(const struct vm_clock *clock);
/* Host wall-clock time in seconds and nanoseconds since 1970, UTC: what the CMOS clock shows at start. */
void clock_wall(uint64_t *sec, uint32_t *nsec);

/* `fire` runs on the clock's thread, with no lock of the clock held; it may arm timers again. */
struct clock_timer *clock_timer_create(struct vm_clock *clock, void (*fire)(void *opaque), void *opaque);
/* After it returns, `fire` is not running and will not run again. Not to be called from `fire`. */
void clock_timer_destroy(struct clock_timer *timer);
/* Fires once at `deadline` (at once if it is past); replaces an earlier deadline; CLOCK_NEVER disarms. Any thread. */
void clock_timer_set(struct clock_timer *timer, uint64_t deadline);

#endif
