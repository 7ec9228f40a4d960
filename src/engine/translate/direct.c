/* Running user code directly, and who gets to: see direct.h. What it is shown: direct_show.c. */
#include "engine/translate/direct.h"

#include "engine/translate/light.h"
#include "engine/translate/window_space.h"
#include "host/host.h"

#define AFTER_NS 10000000u   /* of running with windows */
#define AFTER_PAGE_NS 60000u /* and for each page that it has there: twice what it takes to show it anew */
#define SAMPLE_NS 8000000u
#define FAULTS_START 4         /* page faults from one sample to the next: more do not let it pay */
#define FAULTS_STOP 64         /* and with so many it costs */
#define CREDIT_NS 20000000u    /* of gain, to begin with */
#define HALF_NS 400000000u     /* so much time is looked at, older one counts half */
#define PATIENCE_NS 500000000u /* until the next try, doubled each time */
#define PATIENCE_MOST_NS 16000000000u
#define RETRY_NS 1000000000u
#define IN_VAIN_MOST 2 /* doublings of how long it must have run, one for each time in a row that it did not pay */

/* A stretch of it. */
struct stretch {
	struct host_space_state state;
	unsigned stops;
	bool unfit; /* the host would not show what is to be shown: what it shows is not known */
	bool lost;
};

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
		d->made++;
	} else {
		d->retry = __builtin_ia32_rdtsc() + ns_to_tsc(v, RETRY_NS);
	}
	return process;
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
	s->account.gain = ns_to_tsc(v, CREDIT_NS);
	s->account.cost = 0;
}

/* The process goes to others, and this address space is translated for a while. */
static void stop(struct tr_vcpu *v, struct window_space *s)
{
	struct direct_account *a = &s->account;
	a->patience = a->patience ? MIN(a->patience * 2, ns_to_tsc(v, PATIENCE_MOST_NS)) : ns_to_tsc(v, PATIENCE_NS);
	a->refused_until = __builtin_ia32_rdtsc() + a->patience;
	v->direct.refused++;
	v->direct.in_vain = MIN(v->direct.in_vain + 1, IN_VAIN_MOST);
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

/* Page faults of user code from sample to sample, older ones for less; in sixteenths. */
static bool sample_faults(struct tr_vcpu *v, uint64_t tsc)
{
	struct direct *d = &v->direct;
	if (tsc - d->sampled < ns_to_tsc(v, SAMPLE_NS))
		return false;
	d->fault_rate = (d->fault_rate + 16 * (d->page_faults - d->sampled_faults)) / 2;
	d->sampled_faults = d->page_faults;
	d->sampled = tsc;
	return true;
}

/* It has run for so long that it may go on for as long as it takes to pay. */
static bool runs_long(const struct tr_vcpu *v, const struct window_space *s, uint64_t tsc)
{
	uint64_t after = ns_to_tsc(v, AFTER_NS + (uint64_t)s->count * AFTER_PAGE_NS) << v->direct.in_vain;
	return tsc - s->since > after && tsc > s->account.refused_until;
}

void direct_sample(struct tr_vcpu *v)
{
	struct window_space *s = space_here(v);
	uint64_t tsc = __builtin_ia32_rdtsc();
	if (!v->engine->spaces || !sample_faults(v, tsc) || !s)
		return;
	if (s->apart && v->direct.fault_rate > 16 * FAULTS_STOP && !v->engine->eager_direct)
		stop(v, s);
	else if (!s->apart && v->direct.fault_rate < 16 * FAULTS_START && runs_long(v, s, tsc))
		start(v, s);
}

void direct_eagerly(struct tr_vcpu *v)
{
	struct window_space *s = space_here(v);
	if (s && !s->apart && __builtin_ia32_rdtsc() > s->account.refused_until)
		start(v, s);
	v->direct.due = s && s->apart;
}

/*
 * After a stretch in which the process has run for `ran`, of which `system` was Linux' own, and this thread for `here`,
 * in ns. By itself it ran twice as fast as translated, or nearly: that is the gain. All the rest went into stops and
 * what is shown, and costs half as much again by what follows. Time that neither had a processor is nobody's doing.
 */
static void account(struct tr_vcpu *v, struct window_space *s, const struct stretch *r, uint64_t ran, uint64_t system,
		    uint64_t here)
{
	struct direct_account *a = &s->account;
	v->direct.stops += r->stops;
	system = MIN(system, ran);
	a->gain += ns_to_tsc(v, ran - system);
	a->cost += ns_to_tsc(v, (here + system) / 2 * 3);
	if (a->gain + a->cost > ns_to_tsc(v, HALF_NS)) {
		v->direct.in_vain = 0;
		a->gain /= 2;
		a->cost /= 2;
	}
	if (r->unfit || (a->cost > a->gain && !v->engine->eager_direct))
		stop(v, s);
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
		return direct_fault(v, s, r->state.rip, address, go_on);
	case HOST_SPACE_CALL:
		d->calls++;
		return DIRECT_STEP;
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
		enum host_space_stop why = host_space_run(s->apart, &r->state, &address);
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
	uint64_t since = host_thread_time_ns();
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
	uint64_t ran = host_space_time_ns(process);
	atomic_fetch_add_explicit(&v->direct.time_ns, ran, memory_order_relaxed);
	account(v, s, &r, ran, host_space_system_ns(process), host_thread_time_ns() - since);
	struct x86_exception exc = v->cpu.exc;
	if (direct_state_put(&v->cpu, &r.state) != V_DONE)
		return DIRECT_RAISE;
	v->cpu.exc = exc;
	return next;
}
