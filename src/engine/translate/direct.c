/* Running user code directly, and who gets to: see direct.h. What is shown: window_apart.c. */
#include "engine/translate/direct.h"

#include "engine/translate/code.h"
#include "engine/translate/light.h"
#include "engine/translate/window_space.h"

#include <string.h>

#define AFTER_NS 24000000u /* of running with windows */
#define SAMPLE_NS 8000000u
#define FAULTS_START 4         /* page faults from one sample to the next: more do not let it pay */
#define FAULTS_STOP 24         /* and with so many it costs */
#define CREDIT_NS 40000000u    /* what stops may cost beside their share of the time */
#define HALF_NS 100000000u     /* so much time is looked at, older one counts half */
#define PATIENCE_NS 500000000u /* until the next try, doubled each time */
#define PATIENCE_MOST_NS 16000000000u
#define PAUSE_NS 500000u /* of translated code, where code cannot run directly; mostly until an interrupt */
#define RETRY_NS 1000000000u

static uint64_t ticks(void)
{
	return __builtin_ia32_rdtsc();
}

/* A stretch of it. */
struct stretch {
	struct host_space_state state;
	unsigned stops, trips; /* trips: lists of changes as well */
	bool unfit;            /* the host would not show what is to be shown */
	bool lost;
};

/* --- who gets a process */

static struct host_space *process_get(struct tr_vcpu *v)
{
	struct direct *d = &v->direct;
	if (d->idle_count)
		return d->idle[--d->idle_count];
	if (d->made == WINDOW_SPACES || (ticks() < d->retry && !v->engine->eager_direct))
		return NULL;
	struct host_space *process = host_space_create(v->engine->spaces);
	if (process) {
		v->engine->direct_faults = host_space_faults(process); /* as of all of them */
		d->made++;
	} else {
		d->retry = ticks() + ns_to_tsc(v, RETRY_NS);
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
	s->account.time = s->account.cost = 0;
	s->account.since = ticks();
}

/* The process goes to others, and this address space is translated for a while. */
static void stop(struct tr_vcpu *v, struct window_space *s)
{
	struct direct_account *a = &s->account;
	a->patience = a->patience ? MIN(a->patience * 2, ns_to_tsc(v, PATIENCE_MOST_NS)) : ns_to_tsc(v, PATIENCE_NS);
	a->refused_until = ticks() + a->patience;
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
	if (!v->engine->spaces || v->cpu.cpl != 3 || !s || s->cr3 != (v->cpu.cr3 & 0x000ffffffffff000ull))
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

void direct_sample(struct tr_vcpu *v)
{
	struct window_space *s = space_here(v);
	uint64_t tsc = ticks();
	if (!sample_faults(v, tsc) || !s)
		return;
	if (s->apart && v->direct.fault_rate > 16 * FAULTS_STOP && !v->engine->eager_direct)
		stop(v, s);
	else if (!s->apart && v->direct.fault_rate < 16 * FAULTS_START && tsc - s->since > ns_to_tsc(v, AFTER_NS) &&
		 tsc > s->account.refused_until)
		start(v, s);
}

void direct_eagerly(struct tr_vcpu *v)
{
	struct window_space *s = space_here(v);
	if (s && !s->apart && ticks() > s->account.refused_until)
		start(v, s);
	v->direct.due = s && s->apart;
}

/*
 * After a stretch. A stop, or a list of changes, costs twice what it takes by itself, with all that follows from it.
 * While that is less than half of the time it runs twice as fast as translated, or nearly.
 */
static void account(struct tr_vcpu *v, struct window_space *s, const struct stretch *r)
{
	struct direct_account *a = &s->account;
	uint64_t tsc = ticks();
	v->direct.stops += r->stops;
	a->cost += 2 * r->trips * ns_to_tsc(v, host_space_stop_ns(s->apart));
	a->time += tsc - a->since;
	a->since = tsc;
	if (a->time > ns_to_tsc(v, HALF_NS)) {
		a->time /= 2;
		a->cost /= 2;
	}
	if (r->unfit || (a->cost > a->time / 2 + ns_to_tsc(v, CREDIT_NS) && !v->engine->eager_direct))
		stop(v, s);
}

/* --- what is shown */

/* Has all changes done. False: the host would not. */
static bool settle(struct tr_vcpu *v, struct window_space *s)
{
	struct host_space_change list[HOST_SPACE_CHANGES];
	unsigned n = 0;
	if (likely(!s->changes && !s->apart_lost))
		return true;
	window_lock(&v->windows.lock);
	if (s->apart_lost) {
		uint64_t place = host_spaces_place(v->engine->spaces), behind = place + HOST_SPACE_OURS;
		list[n++] = (struct host_space_change){.len = place};
		list[n++] = (struct host_space_change){.at = behind, .len = HOST_SPACE_TOP - behind};
	}
	memcpy(&list[n], s->change, s->changes * sizeof(*list));
	n += s->changes;
	s->changes = 0;
	s->apart_lost = false;
	window_unlock(&v->windows.lock);
	if (host_space_change(s->apart, list, n))
		return true;
	window_lock(&v->windows.lock);
	apart_clear(s);
	window_unlock(&v->windows.lock);
	return false;
}

#define AT_ONCE 2048 /* pages that a new process is shown before it needs them */

/* Data that is shown through windows already. False: the host would not. */
static bool show_all(struct tr_vcpu *v, struct window_space *s)
{
	unsigned most = MIN(s->count, AT_ONCE);
	s->apart_new = false;
	for (unsigned i = 0; i < most; i++) {
		if (s->changes == WINDOW_CHANGES && !settle(v, s))
			return false;
		window_lock(&v->windows.lock);
		if (!(s->page[i].va & WINDOW_APART))
			apart_show(v, s, &s->page[i], false);
		window_unlock(&v->windows.lock);
	}
	return settle(v, s);
}

static bool is_ram(const struct tr_vcpu *v, uint64_t gpa)
{
	return guest_range_find(v->engine->mem, gpa, 1);
}

#define ROW 16

/*
 * Its neighbours come with the page at `va`: one list of changes costs little more than one change. Accessed bits are
 * set as by a processor that looks ahead. With the lock.
 */
static void show_row(struct tr_vcpu *v, struct window_space *s, uint64_t va)
{
	struct x86_mapping m;
	va &= ~(ROW * PAGE_SIZE - 1ull);
	for (uint64_t at = va; at != va + ROW * PAGE_SIZE; at += PAGE_SIZE) {
		struct window_page *p = space_page_of(s, at);
		if (!p && mmu_translate(&v->cpu, at, ACC_READ | ACC_USER, &m) == V_DONE && is_ram(v, m.gpa) &&
		    space_show(v, s, at, &m, false))
			p = space_page_of(s, at);
		if (p && !(p->va & WINDOW_APART))
			apart_show(v, s, p, false);
	}
}

/* Shows the page of data at `va`; if it is shown already, and readable, the access was a store. With the lock. */
static bool show_data(struct tr_vcpu *v, struct window_space *s, uint64_t va)
{
	struct window_page *p = space_page_of(s, va);
	struct x86_mapping m;
	bool write = p && p->va & WINDOW_APART;
	if (write && p->va & WINDOW_WRITABLE)
		return false;
	if (mmu_translate(&v->cpu, va, (write ? ACC_WRITE : ACC_READ) | ACC_USER, &m) != V_DONE) {
		v->windows.faulted = va | 1;
		return false;
	}
	if (space_region_find(s, va) < 0)
		window_regions_add(v, s);
	if (space_region_find(s, va) < 0 || !is_ram(v, m.gpa))
		return false;
	if ((!p || write) && !space_show(v, s, va, &m, write))
		return false;
	if (!apart_show(v, s, space_page_of(s, va), false))
		return false;
	show_row(v, s, va);
	return true;
}

/* The bytes of the page at `va` if it is executed as well, else NULL. */
static const uint8_t *executed_at(struct tr_vcpu *v, struct window_space *s, uint64_t va)
{
	const struct window_page *p = space_page_of(s, va);
	return p && p->va & WINDOW_APART_EXEC ? guest_memory_ptr(v->engine->mem, p->gpa, PAGE_SIZE, false) : NULL;
}

/* Instructions that go on in the next page: whichever of two neighbours is shown later is looked at together with the
 * other. */
static bool joins(struct tr_vcpu *v, struct window_space *s, const struct window_page *p)
{
	const uint8_t *here = guest_memory_ptr(v->engine->mem, p->gpa, PAGE_SIZE, false);
	const uint8_t *before = executed_at(v, s, (p->va & PAGE_MASK) - PAGE_SIZE);
	const uint8_t *behind = executed_at(v, s, (p->va & PAGE_MASK) + PAGE_SIZE);
	unsigned faults = v->engine->direct_faults;
	return (!before || direct_scan_join(before, here, faults)) &&
	       (!behind || direct_scan_join(here, behind, faults));
}

/* The page of code at `va`, which can run directly. With the lock. */
static bool show_code(struct tr_vcpu *v, struct window_space *s, uint64_t va, const struct x86_mapping *m)
{
	struct window_page *p = space_page_of(s, va);
	if (!p && space_region_find(s, va) >= 0 && space_show(v, s, va, m, false))
		p = space_page_of(s, va);
	if (!p || p->va & (WINDOW_LARGE | WINDOW_WRITABLE) || p->gpa != (m->gpa & PAGE_MASK) || !joins(v, s, p))
		return false;
	return apart_show(v, s, p, true);
}

#define NEAR 8 /* pages on either side that are shown as well, if they can run */

/*
 * The RAM page that is executed at `va`; false: none is. Sets accessed bits, as a processor does that fetches ahead
 * (SDM Vol. 3A 4.10.2.3).
 */
static bool executable(struct tr_vcpu *v, uint64_t va, struct x86_mapping *m)
{
	return mmu_translate(&v->cpu, va, ACC_EXEC | ACC_USER, m) == V_DONE && is_ram(v, m->gpa);
}

/* Out of code. */
static void claim_near(struct tr_vcpu *v, uint64_t va)
{
	struct x86_mapping m;
	for (uint64_t at = va - NEAR * PAGE_SIZE; at != va + NEAR * PAGE_SIZE; at += PAGE_SIZE)
		if (at != va && executable(v, at, &m))
			code_claim(v, m.gpa & PAGE_MASK);
}

/* With the lock. */
static void show_near(struct tr_vcpu *v, struct window_space *s, uint64_t va)
{
	struct x86_mapping m;
	for (uint64_t at = va - NEAR * PAGE_SIZE; at != va + NEAR * PAGE_SIZE; at += PAGE_SIZE) {
		const struct window_page *p = space_page_of(s, at);
		if (!(p && p->va & WINDOW_APART_EXEC) && executable(v, at, &m) &&
		    code_is_claimed(v->engine, m.gpa & PAGE_MASK))
			show_code(v, s, at, &m);
	}
}

/* An instruction could not be fetched from `va`. */
static enum direct_next fetch_fault(struct tr_vcpu *v, struct window_space *s, uint64_t va, bool *shown)
{
	struct x86_mapping m;
	if (!executable(v, va, &m))
		return DIRECT_STEP;
	vcpu_code_leave(v);
	bool fit = code_claim(v, m.gpa & PAGE_MASK);
	if (fit)
		claim_near(v, va & PAGE_MASK);
	vcpu_code_enter(v);
	if (fit) {
		window_lock(&v->windows.lock);
		*shown = code_is_claimed(v->engine, m.gpa & PAGE_MASK) && show_code(v, s, va, &m);
		if (*shown)
			show_near(v, s, va & PAGE_MASK);
		window_unlock(&v->windows.lock);
	}
	if (!*shown)
		v->direct.later = ticks() + ns_to_tsc(v, PAUSE_NS);
	return DIRECT_AGAIN;
}

#define INSN_MAX 15

/* What a fetch faults at: the instruction, or the page that it goes on in. */
static bool is_fetch(uint64_t rip, uint64_t va)
{
	return va == rip || ((va & ~PAGE_MASK) == 0 && va - rip < INSN_MAX);
}

static enum direct_next fault(struct tr_vcpu *v, struct window_space *s, uint64_t rip, uint64_t va, bool *shown)
{
	if (va >= HOST_SPACE_TOP)
		return DIRECT_STEP;
	window_lock(&v->windows.lock);
	struct window_page *p = space_page_of(s, va);
	bool fetch = is_fetch(rip, va) && !(p && p->va & WINDOW_APART_EXEC);
	if (!fetch)
		*shown = show_data(v, s, va);
	window_unlock(&v->windows.lock);
	return fetch ? fetch_fault(v, s, va, shown) : DIRECT_STEP;
}

/* --- running */

static void running_set(struct tr_vcpu *v, struct host_space *process)
{
	window_lock(&v->direct.lock);
	atomic_store(&v->direct.running, process);
	window_unlock(&v->direct.lock);
}

void direct_kick_slowly(struct tr_vcpu *v)
{
	window_lock(&v->direct.lock);
	struct host_space *process = atomic_load(&v->direct.running);
	if (process)
		host_space_kick(process);
	window_unlock(&v->direct.lock);
}

/* INT 3 is CD 03, INT3 is CC. */
static enum direct_next at_int3(struct tr_vcpu *v, struct host_space_state *state)
{
	const uint8_t *last = light_access(&v->cpu, state->rip - 1, 1, ACC_READ | ACC_USER);
	state->rip -= last && *last == 3 ? 2 : 1;
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
		return fault(v, s, r->state.rip, address, go_on);
	case HOST_SPACE_CALL:
		d->calls++;
		return DIRECT_STEP;
	case HOST_SPACE_LOST:
		r->lost = true;
		return DIRECT_AGAIN;
	default:
		break;
	}
	d->exceptions++;
	if (why == HOST_SPACE_INT3)
		return at_int3(v, &r->state);
	return why == HOST_SPACE_STEPPED ? stepped(&v->cpu) : DIRECT_STEP;
}

/* In code, with the process to be kicked. */
static enum direct_next run_on(struct tr_vcpu *v, struct window_space *s, struct stretch *r)
{
	enum direct_next next = DIRECT_AGAIN;
	for (bool go_on = true; go_on;) {
		uint64_t address;
		bool changes = s->changes || s->apart_lost;
		go_on = false;
		r->unfit = !(s->apart_new ? show_all(v, s) : settle(v, s));
		if (r->unfit || poll_wanted(v)) /* not before: a change takes kicks that come meanwhile */
			break;
		enum host_space_stop why = host_space_run(s->apart, &r->state, &address);
		r->stops++;
		r->trips += 1 + changes;
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
	struct stretch r = {.lost = !host_space_set_xstate(process, v->cpu.xsave)};
	enum direct_next next = DIRECT_AGAIN;
	direct_state_get(&v->cpu, &r.state);
	vcpu_code_enter(v);
	running_set(v, process);
	if (!r.lost)
		next = run_on(v, s, &r);
	running_set(v, NULL);
	vcpu_code_leave(v);
	if (r.lost || !host_space_get_xstate(process, v->cpu.xsave))
		return lose(v, s);
	atomic_fetch_add_explicit(&v->direct.time_ns, host_space_time_ns(process), memory_order_relaxed);
	account(v, s, &r);
	struct x86_exception exc = v->cpu.exc;
	if (direct_state_put(&v->cpu, &r.state) != V_DONE)
		return DIRECT_RAISE;
	v->cpu.exc = exc;
	return next;
}
