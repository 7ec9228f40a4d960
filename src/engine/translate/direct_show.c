/*
 * What the process in which user code runs directly is shown, and when: data that it has touched, code that can run,
 * and their neighbours. The lists of changes: window_apart.c.
 */
#include "engine/translate/direct.h"

#include "engine/translate/code.h"
#include "engine/translate/light.h"
#include "engine/translate/window_space.h"

#include <string.h>

#define PAUSE_NS 500000u /* of translated code, where code cannot run directly; mostly until an interrupt */

/* All changes are made before it runs next. False: the host would not make those before. */
static bool settle(struct tr_vcpu *v, struct window_space *s)
{
	struct host_space_change list[HOST_SPACE_CHANGES];
	unsigned n = 0;
	uint64_t breaks[HOST_SPACE_BREAKS];
	if (likely(!s->changes && !s->apart_lost && !s->breaks_changed))
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
	memcpy(breaks, s->breaks, sizeof(breaks));
	s->breaks_changed = false;
	window_unlock(&v->windows.lock);
	return host_space_break(s->apart, breaks) && host_space_change(s->apart, list, n);
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
		if (i < s->count && !(s->page[i].va & WINDOW_APART))
			apart_show(v, s, &s->page[i], false);
		window_unlock(&v->windows.lock);
	}
	return settle(v, s);
}

bool direct_settle(struct tr_vcpu *v, struct window_space *s)
{
	return s->apart_new ? show_all(v, s) : settle(v, s);
}

/*
 * Its neighbours come with the page at `va`: one list of changes costs little more than one change. Accessed bits are
 * set as by a processor that looks ahead. With the lock.
 */
static void show_row(struct tr_vcpu *v, struct window_space *s, uint64_t va)
{
	struct x86_mapping m;
	va &= ~(WINDOW_ROW * PAGE_SIZE - 1ull);
	for (uint64_t at = va; at != va + WINDOW_ROW * PAGE_SIZE; at += PAGE_SIZE) {
		struct window_page *p = space_page_of(s, at);
		if (!p && mmu_translate(&v->cpu, at, ACC_READ | ACC_USER, &m) == V_DONE && is_ram(v, m.gpa) &&
		    space_show(v, s, at, &m, false, true))
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
	if ((!p || write) && !space_show(v, s, va, &m, write, true))
		return false;
	show_row(v, s, va);
	p = space_page_of(s, va);
	return p && p->va & WINDOW_APART; /* neighbours may have needed its room */
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
	const struct direct_host *host = &v->engine->direct_host;
	return (!before || direct_scan_join(before, here, host)) && (!behind || direct_scan_join(here, behind, host));
}

/* The page of code at `va`, which can run directly. With the lock. */
static bool show_code(struct tr_vcpu *v, struct window_space *s, uint64_t va, const struct x86_mapping *m)
{
	struct window_page *p = space_page_of(s, va);
	if (!p && space_region_find(s, va) >= 0 && space_show(v, s, va, m, false, true))
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

/* Out of code. Whether the page at `va` can run, which is `m` there. */
static bool claim(struct tr_vcpu *v, uint64_t va, const struct x86_mapping *m)
{
	struct x86_mapping b;
	const uint8_t *before = NULL;
	if (executable(v, va - PAGE_SIZE, &b))
		before = guest_memory_ptr(v->engine->mem, b.gpa & PAGE_MASK, PAGE_SIZE, false);
	return code_claim(v, m->gpa & PAGE_MASK, before);
}

static bool needs_breaks(const struct tr_vcpu *v, uint64_t gpa)
{
	return code_breaks(v->engine, gpa & PAGE_MASK)[0];
}

/* The same, with what this host has to stop it where it must not go on. */
static bool can_run(struct tr_vcpu *v, struct window_space *s, uint64_t va, const struct x86_mapping *m)
{
	return claim(v, va, m) && (!needs_breaks(v, m->gpa) || host_space_can_break(s->apart));
}

static void claim_near(struct tr_vcpu *v, uint64_t va)
{
	struct x86_mapping m;
	for (uint64_t at = va - NEAR * PAGE_SIZE; at != va + NEAR * PAGE_SIZE; at += PAGE_SIZE)
		if (at != va && executable(v, at, &m))
			claim(v, at, &m);
}

/* With the lock. Those that need breakpoints, which are few, come when they are executed. */
static void show_near(struct tr_vcpu *v, struct window_space *s, uint64_t va)
{
	struct x86_mapping m;
	for (uint64_t at = va - NEAR * PAGE_SIZE; at != va + NEAR * PAGE_SIZE; at += PAGE_SIZE) {
		const struct window_page *p = space_page_of(s, at);
		if (!(p && p->va & WINDOW_APART_EXEC) && executable(v, at, &m) &&
		    code_is_claimed(v->engine, m.gpa & PAGE_MASK) && !needs_breaks(v, m.gpa))
			show_code(v, s, at, &m);
	}
}

/* The instruction at `rip` could not be fetched, from `va` on. */
static enum direct_next fetch_fault(struct tr_vcpu *v, struct window_space *s, uint64_t rip, uint64_t va, bool *shown)
{
	struct x86_mapping m;
	if (!executable(v, va, &m))
		return DIRECT_STEP;
	vcpu_code_leave(v);
	va &= PAGE_MASK;
	enum direct_next next = DIRECT_AGAIN;
	bool fit = can_run(v, s, va, &m);
	if (fit)
		claim_near(v, va);
	vcpu_code_enter(v);
	if (fit) {
		window_lock(&v->windows.lock);
		/* Two pages that it begins and ends in must not drive each other out for ever. */
		bool room = (rip & PAGE_MASK) == va || apart_has_breaks_for(v->engine, s, m.gpa & PAGE_MASK);
		if (!room)
			next = DIRECT_STEP;
		*shown = room && code_is_claimed(v->engine, m.gpa & PAGE_MASK) && show_code(v, s, va, &m);
		if (*shown)
			show_near(v, s, va);
		window_unlock(&v->windows.lock);
	}
	if (!*shown && next == DIRECT_AGAIN)
		v->direct.later = __builtin_ia32_rdtsc() + ns_to_tsc(v, PAUSE_NS);
	return next;
}

/* What a fetch faults at: the instruction, or the page that it goes on in. */
static bool is_fetch(uint64_t rip, uint64_t va)
{
	return va == rip || ((va & ~PAGE_MASK) == 0 && va - rip < X86_INSN_MAX);
}

enum direct_next direct_fault(struct tr_vcpu *v, struct window_space *s, uint64_t rip, uint64_t va, bool *shown)
{
	if (va >= HOST_SPACE_TOP)
		return DIRECT_STEP;
	window_lock(&v->windows.lock);
	const struct window_page *p = space_page_of(s, va);
	bool executed = p && p->va & WINDOW_APART_EXEC, fetch = is_fetch(rip, va) && !executed;
	if (!fetch && !(executed && code_copy(v->engine, p->gpa))) /* a copy is not to be read */
		*shown = show_data(v, s, va);
	window_unlock(&v->windows.lock);
	return fetch ? fetch_fault(v, s, rip, va, shown) : DIRECT_STEP;
}
