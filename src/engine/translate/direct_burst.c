/*
 * Bursts: page faults and system calls that come one soon after the other, as where a program fills memory that it has
 * got. A stop takes longer than what lies between them takes translated. So from the second in a row the program runs
 * translated, until it has been quiet for as long as a few stops take: what came soon is expected to come soon again,
 * and what did not, not. An alarm tells of that, for code that is quiet meets nothing else.
 */
#include "engine/translate/direct.h"

#include "engine/translate/window_space.h"
#include "host/thread_timer.h"

#define STEPS 4 /* of a burst that goes on; each waits twice as long, this often */

/* In a signal handler, on the virtual CPU's thread. */
static void ring(void *opaque, uint64_t pc)
{
	struct tr_vcpu *v = opaque;
	if (!v->direct.burst)
		return;
	v->direct.rang = true;
	poll_set(v);
}

void direct_thread_enter(struct tr_vcpu *v)
{
	const struct tr_engine *eng = v->engine;
	bool wanted = eng->spaces && !eng->no_burst && (!eng->eager_direct || eng->eager_burst);
	v->direct.alarm = wanted && host_thread_timer_enter(HOST_TIMER_ALARM, ring, v);
}

void direct_thread_leave(struct tr_vcpu *v)
{
	host_thread_timer_leave(HOST_TIMER_ALARM);
	v->direct.alarm = v->direct.burst = false;
}

static uint64_t quiet(const struct tr_vcpu *v)
{
	return v->direct.quiet << MIN(v->direct.burst_rings / 2, STEPS);
}

static void set_alarm(const struct tr_vcpu *v, uint64_t ticks)
{
	host_thread_timer_set(HOST_TIMER_ALARM, MAX(tsc_to_ns(v, ticks), 1), 0);
}

void direct_burst_begin(struct tr_vcpu *v)
{
	struct direct *d = &v->direct;
	if (!d->alarm)
		return;
	d->burst = true;
	d->soon = false;
	d->event = __builtin_ia32_rdtsc();
	d->bursts++;
	d->burst_rings = 0;
	d->burst_returns = d->made_by_user.call_returns;
	set_alarm(v, quiet(v));
}

void direct_burst_look(struct tr_vcpu *v)
{
	struct direct *d = &v->direct;
	if (likely(!d->rang))
		return;
	uint64_t tsc = __builtin_ia32_rdtsc();
	d->rang = false;
	if (d->burst_returns != d->made_by_user.call_returns) /* nobody has noted when */
		d->event = tsc;
	d->burst_returns = d->made_by_user.call_returns;
	d->burst_rings++;
	if (tsc - d->event >= quiet(v))
		d->burst = false;
	else
		set_alarm(v, d->event + quiet(v) - tsc);
}
