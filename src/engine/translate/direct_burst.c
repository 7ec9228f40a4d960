/*
 * Bursts: page faults and system calls that come one soon after the other, as where a program fills memory that it has
 * got. A stop takes longer than what lies between them takes translated. So from the second in a row the program runs
 * translated, until it has been quiet for as long as a few stops take: what came soon is expected to come soon again,
 * and what did not, not. An alarm tells of that, for code that is quiet meets nothing else. Where what is expected
 * seldom comes, as an account tells, bursts are passed over, ever more of them.
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

static void set_alarm(const struct tr_vcpu *v, uint64_t ticks)
{
	host_thread_timer_set(HOST_TIMER_ALARM, MAX(tsc_to_ns(v, ticks), 1), 0);
}

#define ALARM_NS 200000u /* soon enough to be the next for which Linux sets its own */
#define ALARM_TRIES 4

/* On hosts that are virtual, to set a timer and to be interrupted by it can take as long as a stop. */
static void learn_alarm(struct tr_vcpu *v)
{
	uint64_t least = UINT64_MAX;
	for (unsigned i = 0; i < ALARM_TRIES; i++) {
		uint64_t from = __builtin_ia32_rdtsc();
		set_alarm(v, ns_to_tsc(v, ALARM_NS));
		least = MIN(least, __builtin_ia32_rdtsc() - from);
	}
	host_thread_timer_set(HOST_TIMER_ALARM, 0, 0);
	v->direct.alarm_cost = 2 * least;
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

#define SKIPS 128 /* that are passed over at first, after they did not pay */
#define SKIPS_MOST 16384
#define JUDGED_NS 2000000u /* of gain and cost: then it is judged, and older ones count half */

/* It did not pay lately. */
static bool skips(struct direct_account *a)
{
	if (!a->burst_skip)
		return false;
	a->burst_skip--;
	return true;
}

/*
 * Each page fault and system call would have been a stop, and each page shown. What lay between them, and the quiet at
 * the end, took two and a half times as long as it would have (direct_pay.c), and the alarm came on top.
 */
static void judge(struct tr_vcpu *v, struct direct_account *a, uint64_t tsc)
{
	struct direct *d = &v->direct;
	uint64_t faults = d->all_faults - d->from.faults, returns = d->made_by_user.call_returns - d->from.returns;
	a->burst_gain += (faults + returns) * d->stop + faults * ns_to_tsc(v, d->costs.show);
	a->burst_cost += (tsc - d->from.tsc) / 5 * 3 + (d->burst_rings + 1) * d->alarm_cost;
	if (a->burst_gain + a->burst_cost < ns_to_tsc(v, JUDGED_NS))
		return;
	if (a->burst_cost > a->burst_gain)
		a->burst_skip = a->burst_skips = MIN(MAX(2 * a->burst_skips, SKIPS), SKIPS_MOST);
	else
		a->burst_skips /= 2;
	a->burst_gain /= 2;
	a->burst_cost /= 2;
}

void direct_burst_begin(struct tr_vcpu *v)
{
	struct direct *d = &v->direct;
	if (!d->alarm)
		return;
	d->soon = false;
	if (!v->engine->eager_burst && skips(&v->windows.now->account))
		return;
	if (!d->alarm_cost)
		learn_alarm(v);
	d->burst = true;
	d->event = __builtin_ia32_rdtsc();
	d->bursts++;
	d->burst_rings = 0;
	d->burst_returns = d->made_by_user.call_returns;
	d->from.space = v->windows.now;
	d->from.tsc = d->event;
	d->from.faults = d->all_faults;
	d->from.returns = d->burst_returns;
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
	if (tsc - d->event < quiet(v)) {
		set_alarm(v, d->event + quiet(v) - tsc);
		return;
	}
	d->burst = false;
	if (v->windows.now && v->windows.now == d->from.space)
		judge(v, &v->windows.now->account, tsc);
}
