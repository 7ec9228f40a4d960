/*
 * Who gets to run directly (direct.h), and for how long: by what it costs here, as measured, and what it gains. What a
 * program for which it did not pay has left behind: direct_program.c.
 */
#include "engine/translate/direct.h"

#include "engine/translate/light.h"
#include "engine/translate/window_space.h"
#include "host/host.h"

#define AFTER_NS 3000000u /* of running with windows, and twice what it takes to show anew what it has there */
#define SAMPLE_NS 3500000u
/* Of the time, what stops may cost: translated, from when on it pays to begin; and directly, for it to pay. */
#define STOPS_BEGIN_NS (SAMPLE_NS / 2)
#define STOPS_MOST_NS (3ull * SAMPLE_NS / 4)
#define CREDIT_NS 20000000u    /* of gain, to begin with */
#define HALF_NS 400000000u     /* so much time is looked at, older one counts half */
#define PATIENCE_NS 200000000u /* until the next try, doubled each time */
#define PATIENCE_MOST_NS 16000000000u
#define RETRY_NS 1000000000u

static void learn_costs(struct tr_vcpu *v, const struct host_space_costs *c)
{
	v->direct.costs = *c;
	v->direct.stop = ns_to_tsc(v, c->stop);
	v->direct.quiet = 3 * v->direct.stop;
}

void direct_init(struct tr_vcpu *v)
{
	learn_costs(v, &(struct host_space_costs){.stop = 20000, .show = 5000, .page_fault = 2000});
}

/* --- who gets a process */

static struct host_space *process_get(struct tr_vcpu *v)
{
	struct direct *d = &v->direct;
	if (d->idle_count)
		return d->idle[--d->idle_count];
	if (d->made == WINDOW_SPACES || (__builtin_ia32_rdtsc() < d->retry && !v->engine->eager_direct))
		return NULL;
	struct host_space *process = host_space_create(v->engine->spaces);
	if (process) {
		v->engine->direct_host.faults = host_space_faults(process); /* as of all of them */
		learn_costs(v, host_space_costs(process));
		d->made++;
	} else {
		d->retry = __builtin_ia32_rdtsc() + ns_to_tsc(v, RETRY_NS);
	}
	return process;
}

/* What the process has run since this was asked before, in ns. */
static uint64_t time_taken(struct tr_vcpu *v, struct host_space *process)
{
	uint64_t ran = host_space_time_ns(process);
	atomic_fetch_add_explicit(&v->direct.time_ns, ran, memory_order_relaxed);
	return ran;
}

/* What it takes to show a process what the windows show. */
static uint64_t show_all_ns(const struct tr_vcpu *v, const struct window_space *s)
{
	return s->count * v->direct.costs.show;
}

/* The first one tells what they take here: before it is known nobody can say whether it pays. */
static void try_out(struct tr_vcpu *v)
{
	struct host_space *process = v->direct.made ? NULL : process_get(v);
	if (process)
		v->direct.idle[v->direct.idle_count++] = process;
}

static void start(struct tr_vcpu *v, struct window_space *s)
{
	struct host_space *process = process_get(v);
	if (!process)
		return;
	window_lock(&v->windows.lock);
	s->apart = process;
	apart_clear(s);
	window_unlock(&v->windows.lock);
	s->apart_new = !v->engine->eager_direct;
	s->account.gain = s->account.credit = ns_to_tsc(v, CREDIT_NS + 2 * show_all_ns(v, s));
	s->account.cost = 0;
	s->account.stretches = 0;
	s->account.burst_gain = s->account.burst_cost = 0;
	s->account.burst_skip = s->account.burst_skips = 0;
	s->account.program = program_here(v);
	time_taken(v, process); /* by others who had it */
	host_space_system_ns(process);
}

void direct_stop(struct tr_vcpu *v, struct window_space *s)
{
	struct direct_account *a = &s->account;
	a->patience = a->patience ? MIN(a->patience * 2, ns_to_tsc(v, PATIENCE_MOST_NS)) : ns_to_tsc(v, PATIENCE_NS);
	a->refused_until = __builtin_ia32_rdtsc() + a->patience;
	a->gain = 0; /* for what is learned of it */
	v->direct.refused++;
	window_lock(&v->windows.lock);
	apart_clear(s);
	apart_release(v, s);
	window_unlock(&v->windows.lock);
	v->direct.due = false;
}

/* That of the user code at hand, NULL where it has no windows. */
static struct window_space *space_here(const struct tr_vcpu *v)
{
	struct window_space *s = v->windows.now;
	if (!v->engine->spaces || v->cpu.cpl != 3 || !s || s->cr3 != space_of(&v->cpu))
		return NULL;
	return s;
}

/*
 * What user code does that stops a process, or would. A page fault is a stop and a page to be shown, and costs as much
 * again by the way through the guest's kernel.
 */
static uint64_t stops_cost(const struct tr_vcpu *v, struct direct_stops since)
{
	const struct host_space_costs *c = &v->direct.costs;
	uint64_t faults = v->direct.made_by_user.page_faults - since.page_faults;
	uint64_t returns = v->direct.made_by_user.call_returns - since.call_returns;
	return faults * 2 * (c->stop + c->show + c->page_fault) + returns * c->stop;
}

/* False: it is too early. */
static bool sample_stops(struct tr_vcpu *v, uint64_t tsc)
{
	struct direct *d = &v->direct;
	if (tsc - d->sampled < ns_to_tsc(v, SAMPLE_NS))
		return false;
	d->stops_cost = (d->stops_cost + stops_cost(v, d->sampled_stops)) / 2;
	d->sampled_stops = d->made_by_user;
	d->sampled = tsc;
	return true;
}

/* It has run for so long that it may go on for as long as it takes to pay; or its program did before. */
static bool runs_long(const struct tr_vcpu *v, const struct window_space *s, uint64_t tsc)
{
	unsigned failures = direct_program_failures(&v->direct.programs, program_here(v));
	uint64_t after = ns_to_tsc(v, AFTER_NS + 2 * show_all_ns(v, s)) << failures;
	return tsc > s->account.refused_until && (tsc - s->since > after || (s->trusted && !failures));
}

static void consider(struct tr_vcpu *v, struct window_space *s)
{
	try_out(v);
	if (v->direct.stops_cost < STOPS_BEGIN_NS)
		start(v, s);
}

void direct_rest(struct tr_vcpu *v)
{
	if (v->direct.kept)
		host_space_roam();
	v->direct.kept = false;
}

static void rest_if_unused(struct tr_vcpu *v)
{
	if (v->direct.stops == v->direct.kept_for)
		direct_rest(v);
	v->direct.kept_for = v->direct.stops;
}

void direct_sample(struct tr_vcpu *v)
{
	struct window_space *s = space_here(v);
	uint64_t tsc = __builtin_ia32_rdtsc();
	if (!v->engine->spaces || !sample_stops(v, tsc))
		return;
	rest_if_unused(v);
	if (!s)
		return;
	if (s->apart && v->direct.stops_cost > STOPS_MOST_NS && !v->engine->eager_direct)
		v->direct.later = tsc + ns_to_tsc(v, SAMPLE_NS);
	else if (!s->apart && v->direct.stops_cost < SAMPLE_NS && runs_long(v, s, tsc))
		consider(v, s);
}

void direct_eagerly(struct tr_vcpu *v)
{
	struct window_space *s = space_here(v);
	if (s && !s->apart && __builtin_ia32_rdtsc() > s->account.refused_until)
		start(v, s);
	v->direct.due = s && s->apart;
}

/*
 * After stretches in which the process has run for `ran`, of which `system` was Linux' own, and this thread for `here`,
 * in ns. By itself it ran two and a half times as fast as translated, or nearly: that is the gain. All the rest went
 * into stops and what is shown. Time that neither had a processor is nobody's doing.
 */
static void account(struct tr_vcpu *v, struct direct_account *a, uint64_t ran, uint64_t system, uint64_t here)
{
	system = MIN(system, ran);
	a->gain += ns_to_tsc(v, (ran - system) / 2 * 3);
	a->cost += ns_to_tsc(v, here + system);
	if (a->gain + a->cost > ns_to_tsc(v, HALF_NS)) {
		direct_program_judge(&v->direct.programs, a);
		a->gain /= 2;
		a->cost /= 2;
		a->credit /= 2;
	}
}

#define MEASURED 8 /* of so many stretches, one: to read the clocks takes a tenth of the time of one that is short */

/* Those since it was measured before, this one among them; 0: it is not to be. The first, which shows all, alone. */
static unsigned stretches_measured(struct window_space *s)
{
	if (s->apart_new)
		return 1;
	if (++s->account.stretches < MEASURED)
		return 0;
	s->account.stretches = 0;
	return MEASURED;
}

struct direct_measure direct_measure_begin(struct window_space *s)
{
	unsigned stretches = stretches_measured(s);
	return (struct direct_measure){stretches, stretches ? host_thread_time_ns() : 0};
}

void direct_measure_end(struct tr_vcpu *v, struct window_space *s, struct direct_measure m)
{
	if (!m.stretches)
		return;
	uint64_t ran = time_taken(v, s->apart), here = (host_thread_time_ns() - m.since) * m.stretches;
	account(v, &s->account, ran, host_space_system_ns(s->apart), here);
}

bool direct_pays(const struct tr_vcpu *v, const struct window_space *s)
{
	return s->account.cost <= s->account.gain || v->engine->eager_direct;
}
