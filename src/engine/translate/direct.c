/* Running user code directly: see direct.h. Who gets to: direct_pay.c. What it is shown: direct_show.c. */
#include "engine/translate/direct.h"

#include "engine/translate/light.h"
#include "engine/translate/window_space.h"
#include "host/host.h"

/* A stretch of it. */
struct stretch {
	struct host_space_state state;
	unsigned stops;
	bool unfit; /* the host would not show what is to be shown: what it shows is not known */
	bool lost;
};

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
		direct_stop(v, s);
		return DIRECT_AGAIN;
	}
	struct direct_measure measure = direct_measure_begin(s);
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
	direct_measure_end(v, s, measure);
	if (r.unfit || !direct_pays(v, s))
		direct_stop(v, s);
	struct x86_exception exc = v->cpu.exc;
	if (direct_state_put(&v->cpu, &r.state) != V_DONE)
		return DIRECT_RAISE;
	v->cpu.exc = exc;
	return next;
}
