/* Running user code directly, and who gets to: see direct.h. What it is shown: direct_show.c. */
#include "engine/translate/direct.h"

#include "engine/translate/light.h"
#include "engine/translate/window_space.h"
#include "host/host.h"

#define AFTER_NS 3000000u /* of running with windows, and twice what it takes to show anew what it has there */
#define SAMPLE_NS 3500000u
/* Of the time, what stops may cost: translated, from when on it pays to begin; and directly, for it to pay. */
#define STOPS_BEGIN_NS (SAMPLE_NS / 2)
#define STOPS_MOST_NS (SAMPLE_NS / 4 * 3)
#define CREDIT_NS 20000000u    /* of gain, to begin with */
#define HALF_NS 400000000u     /* so much time is looked at, older one counts half */
#define PATIENCE_NS 200000000u /* until the next try, doubled each time */
#define PATIENCE_MOST_NS 16000000000u
#define RETRY_NS 1000000000u

/* A stretch of it. */
struct stretch {
	struct host_space_state state;
	unsigned stops;
	bool unfit; /* the host would not show what is to be shown: what it shows is not known */
	bool lost;
};

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
	s->account.program = direct_program(v->engine->mem, v->cpu.cr3);
	time_taken(v, process); /* by others who had it */
	host_space_system_ns(process);
}

/* The process goes to others, and this address space is translated for a while. */
static void stop(struct tr_vcpu *v, struct window_space *s)
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

/* It has run for so long that it may go on for as long as it takes to pay. */
static bool runs_long(const struct tr_vcpu *v, const struct window_space *s, uint64_t tsc)
{
	uint64_t program = direct_program(v->engine->mem, v->cpu.cr3);
	uint64_t after = ns_to_tsc(v, AFTER_NS + 2 * show_all_ns(v, s));
	after <<= direct_program_failures(&v->direct.programs, program);
	return tsc - s->since > after && tsc > s->account.refused_until;
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
static void account(struct tr_vcpu *v, struct window_space *s, uint64_t ran, uint64_t system, uint64_t here)
{
	struct direct_account *a = &s->account;
	system = MIN(system, ran);
	a->gain += ns_to_tsc(v, (ran - system) / 2 * 3);
	a->cost += ns_to_tsc(v, here + system);
	if (a->gain + a->cost > ns_to_tsc(v, HALF_NS)) {
		direct_program_judge(&v->direct.programs, &s->account);
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

/* --- running */

/* One that has stopped meanwhile stops once more when it is run next: nobody needs to wait for anybody here. */
void direct_kick_slowly(struct tr_vcpu *v)
{
	struct host_space *process = atomic_load(&v->direct.running);
	if (process)
		host_space_kick(process);
}

static bool ends_in(struct tr_vcpu *v, const struct host_space_state *state, uint8_t byte)
{
	const uint8_t *last = light_access(&v->cpu, state->rip - 1, 1, ACC_READ | ACC_USER);
	return last && *last == byte;
}

/* INT 3 is CD 03, INT3 is CC. */
static enum direct_next at_int3(struct tr_vcpu *v, struct host_space_state *state)
{
	state->rip -= ends_in(v, state, 3) ? 2 : 1;
	return DIRECT_STEP;
}

static enum direct_next at_int1(struct tr_vcpu *v, struct host_space_state *state)
{
	state->rip -= ends_in(v, state, 0xf1);
	return DIRECT_STEP;
}

static enum direct_next stepped(struct x86_cpu *cpu)
{
	cpu->exc = (struct x86_exception){.vector = X86_DB, .trap = true, .dr6 = BIT(14)};
	return DIRECT_RAISE;
}

/* The guest's kernel will see to it. */
static enum direct_next for_guest(struct tr_vcpu *v)
{
	struct direct *d = &v->direct;
	d->soon = d->ran < d->stop || v->engine->eager_burst;
	d->ran = 0;
	return DIRECT_STEP;
}

static enum direct_next at_fault(struct tr_vcpu *v, struct window_space *s, struct stretch *r, uint64_t address,
				 bool *shown)
{
	enum direct_next next = direct_fault(v, s, r->state.rip, address, shown);
	return next == DIRECT_STEP && !*shown ? for_guest(v) : next;
}

static enum direct_next stopped(struct tr_vcpu *v, struct window_space *s, struct stretch *r, enum host_space_stop why,
				uint64_t address, bool *go_on)
{
	struct direct *d = &v->direct;
	switch (why) {
	case HOST_SPACE_KICKED:
		d->kicks++;
		*go_on = true;
		return DIRECT_AGAIN;
	case HOST_SPACE_FAULT:
		d->faults++;
		return at_fault(v, s, r, address, go_on);
	case HOST_SPACE_CALL:
		d->calls++;
		return for_guest(v);
	case HOST_SPACE_UNSHOWN:
		r->unfit = true;
		return DIRECT_AGAIN;
	case HOST_SPACE_LOST:
		r->lost = true;
		return DIRECT_AGAIN;
	default:
		break;
	}
	d->exceptions++;
	if (why == HOST_SPACE_INT3)
		return at_int3(v, &r->state);
	if (why == HOST_SPACE_INT1)
		return at_int1(v, &r->state);
	return why == HOST_SPACE_STEPPED ? stepped(&v->cpu) : DIRECT_STEP;
}

/* In code, with the process to be kicked. */
static enum direct_next run_on(struct tr_vcpu *v, struct window_space *s, struct stretch *r)
{
	enum direct_next next = DIRECT_AGAIN;
	for (bool go_on = true; go_on;) {
		uint64_t address;
		go_on = false;
		if (poll_wanted(v))
			break;
		r->unfit = !direct_settle(v, s);
		if (r->unfit || poll_wanted(v)) /* once more: it may have taken kicks that came meanwhile */
			break;
		uint64_t since = __builtin_ia32_rdtsc();
		enum host_space_stop why = host_space_run(s->apart, &r->state, &address);
		uint64_t took = __builtin_ia32_rdtsc() - since;
		v->direct.ran += took - MIN(took, v->direct.stop);
		r->stops++;
		next = stopped(v, s, r, why, address, &go_on);
	}
	return next;
}

/* Somebody has killed the process, and nobody can tell what became of the program: as when a processor breaks down. */
static enum direct_next lose(struct tr_vcpu *v, struct window_space *s)
{
	log_error("a process in which the guest's user code ran was killed, and what ran there is lost");
	s->apart = NULL;
	v->direct.due = false;
	x86_raise(&v->cpu, X86_MC);
	return DIRECT_RAISE;
}

/* The guest has something of its own where the process has what is ours: it would be taken for the guest's. */
static bool is_in_our_place(const struct tr_vcpu *v)
{
	uint64_t place = host_spaces_place(v->engine->spaces);
	struct x86_mapping m;
	return mmu_probe(&v->cpu, place, ACC_READ | ACC_USER, &m) ||
	       mmu_probe(&v->cpu, place + PAGE_SIZE, ACC_READ | ACC_USER, &m);
}

enum direct_next direct_run(struct tr_vcpu *v)
{
	struct window_space *s = v->windows.now;
	struct host_space *process = s->apart;
	if (is_in_our_place(v)) {
		stop(v, s);
		return DIRECT_AGAIN;
	}
	unsigned measured = stretches_measured(s);
	uint64_t since = measured ? host_thread_time_ns() : 0;
	v->direct.soon = false;
	struct stretch r = {.lost = !host_space_set_xstate(process, v->cpu.xsave)};
	enum direct_next next = DIRECT_AGAIN;
	direct_state_get(&v->cpu, &r.state);
	vcpu_code_enter(v);
	atomic_store(&v->direct.running, process);
	if (!r.lost)
		next = run_on(v, s, &r);
	atomic_store(&v->direct.running, NULL);
	vcpu_code_leave(v);
	if (r.lost || !host_space_get_xstate(process, v->cpu.xsave))
		return lose(v, s);
	v->direct.stops += r.stops;
	v->direct.kept = true;
	if (measured)
		account(v, s, time_taken(v, process), host_space_system_ns(process),
			(host_thread_time_ns() - since) * measured);
	if (r.unfit || (s->account.cost > s->account.gain && !v->engine->eager_direct))
		stop(v, s);
	struct x86_exception exc = v->cpu.exc;
	if (direct_state_put(&v->cpu, &r.state) != V_DONE)
		return DIRECT_RAISE;
	v->cpu.exc = exc;
	return next;
}
