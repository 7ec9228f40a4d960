/* Who gets windows and when they go: see window.h. Compiled for general registers only. */
#include "engine/translate/direct.h"
#include "engine/translate/window_space.h"

#define PROMOTE_NS 6000000u /* of running user code, interrupt after interrupt */
#define LASTS 4             /* interrupts with windows, and it is a program that runs long */
#define FLUSHES_MAX 3       /* from one interrupt to the next: other address spaces run in between */
#define SIGNAL_NS 20000u    /* what a fault costs beside what is measured */
#define CREDIT_NS 40000000u /* what windows may cost to begin with */
#define REFUSE_NS 2000000000u
#define DEBT_SHARE 8 /* the share of the time that faults may cost before instructions give up */

/*
 * Three eighths of the time may be spent on keeping windows, which make user code about twice as fast, and something to
 * begin with. What has cost more goes when user code is interrupted next: at once.
 */
static bool too_dear(const struct tr_vcpu *v, const struct window_space *s, uint64_t tsc)
{
	return s->cost > ns_to_tsc(v, CREDIT_NS) + (tsc - s->since) / 8 * 3;
}

static void charge(struct tr_vcpu *v, struct window_space *s, uint64_t ticks)
{
	uint64_t tsc = __builtin_ia32_rdtsc(), paid = (tsc - s->debt_at) / DEBT_SHARE;
	s->cost += ticks;
	s->debt = s->debt > paid ? s->debt - paid + ticks : ticks;
	s->debt_at = tsc;
	if (!v->engine->eager_window && too_dear(v, s, tsc))
		poll_set(v);
}

static void delta_none(struct tr_vcpu *v, bool kernel, uint8_t region)
{
	v->window_delta[kernel][region] = v->engine->slots.limbo - region_start(region);
}

/* What translated code adds to addresses, of CPL 0 or user code: by the regions of `s`, NULL for none. */
static void deltas_set(struct tr_vcpu *v, bool kernel, const struct window_space *s)
{
	uint64_t *delta = v->window_delta[kernel];
	struct window_deltas *set = &v->windows.deltas[kernel];
	for (unsigned i = 0; i < set->count; i++)
		delta_none(v, kernel, set->region[i]);
	set->count = s ? s->regions : 0;
	for (unsigned i = 0; i < set->count; i++) {
		set->region[i] = s->guest[i];
		delta[s->guest[i]] = s->host[i] - region_start(s->guest[i]);
	}
	quick_deltas_changed(v, kernel);
}

static struct window_space *space_find(struct windows *w, uint64_t cr3)
{
	for (unsigned i = 0; i < WINDOW_SPACES; i++)
		if (w->space[i] && w->space[i]->cr3 == cr3)
			return w->space[i];
	return NULL;
}

static void now_set(struct tr_vcpu *v, struct window_space *s)
{
	v->windows.now = s;
	deltas_set(v, false, s);
}

static bool promote(struct tr_vcpu *v, uint64_t cr3, uint64_t tsc, bool trusted);

/* Back from a page fault, the page will be used at once. */
static void show_faulted(struct tr_vcpu *v, struct window_space *s)
{
	struct windows *w = &v->windows;
	struct x86_mapping m;
	uint64_t va = w->faulted & ~1ull, start = __builtin_ia32_rdtsc();
	w->faulted = 0;
	if (space_region_find(s, va) >= 0 && mmu_probe(&v->cpu, va, ACC_READ | ACC_USER, &m) &&
	    space_show(v, s, va, &m, false, s->apart) && s->apart) {
		struct window_page *p = space_page_of(s, va);
		if (!(p->va & WINDOW_APART_EXEC)) /* a page of code stays that */
			apart_show(v, s, p, false);
	}
	charge(v, s, __builtin_ia32_rdtsc() - start);
}

static void revalidate(struct tr_vcpu *v, struct window_space *s)
{
	uint64_t start = __builtin_ia32_rdtsc();
	space_revalidate(v, s);
	charge(v, s, __builtin_ia32_rdtsc() - start);
}

#define LIFE_PAGES 4  /* fewer say nothing */
#define LIFE_SHARE 16 /* who has only freed much keeps more of them, */
#define LIFE_FEW 8    /* or so many: the stack, and what is around it */

/*
 * Compares what is shown with the page tables. False: next to nothing of it is there any more, so this is another
 * address space, with its table where one that is no more had it. It is to earn its windows like any other.
 */
static bool lives_on(struct tr_vcpu *v, struct window_space *s)
{
	struct windows *w = &v->windows;
	unsigned before = s->stale ? s->count : 0;
	revalidate(v, s);
	if (before < LIFE_PAGES || s->count > MIN(before / LIFE_SHARE, LIFE_FEW))
		return true;
	w->absent_cr3 = w->sampled_cr3 = s->cr3;
	w->sampled_since = __builtin_ia32_rdtsc();
	w->sampled_asked = false;
	now_set(v, NULL);
	space_drop(v, s);
	jc_flush_local(v);
	return false;
}

static bool enter_space(struct tr_vcpu *v, uint64_t cr3)
{
	struct windows *w = &v->windows;
	struct window_space *s = space_find(w, cr3);
	if (s != w->now)
		now_set(v, s);
	w->absent_cr3 = s ? WINDOW_FREE : cr3;
	if (!s)
		return false;
	s->used = ++w->entries;
	s->stale |= s->pcid != x86_pcid(&v->cpu);
	s->pcid = x86_pcid(&v->cpu);
	if ((s->stale || s->pendings) && !lives_on(v, s))
		return false;
	if (w->faulted)
		show_faulted(v, s);
	return true;
}

/* To the page tables, as far as a TLB must be. */
static bool is_true(const struct window_space *s, int pcid)
{
	return s->pcid == pcid && !s->stale && !s->pendings;
}

bool window_enter(struct tr_vcpu *v)
{
	struct windows *w = &v->windows;
	uint64_t cr3 = space_of(&v->cpu);
	if (likely(w->now ? w->now->cr3 == cr3 && is_true(w->now, x86_pcid(&v->cpu)) && !w->faulted
			  : w->absent_cr3 == cr3 || !w->entries))
		return w->now || (v->engine->eager_window && promote(v, cr3, 0, false));
	window_lock(&w->lock);
	bool on = enter_space(v, cr3);
	window_unlock(&w->lock);
	return on;
}

static bool kernel_promote(struct tr_vcpu *v, unsigned mmu);
static void kernel_drop(struct tr_vcpu *v);

bool window_enter_kernel(struct tr_vcpu *v, unsigned mmu)
{
	struct windows *w = &v->windows;
	struct window_space *s = w->kernel;
	if (!s)
		return __builtin_ia32_rdtsc() >= w->kernel_refused && kernel_promote(v, mmu);
	if (s->mmu != mmu) {
		kernel_drop(v);
		return kernel_promote(v, mmu);
	}
	if (unlikely(s->stale || s->stale_local || s->pendings)) {
		window_lock(&w->lock);
		revalidate(v, s);
		window_unlock(&w->lock);
	}
	return true;
}

/* Another thread may hide one of the kernel's pages meanwhile (window_protect). */
static void flush_locals(struct tr_vcpu *v, bool doubt, int pcid)
{
	struct windows *w = &v->windows;
	if (!w->kernel || !w->kernel->locals)
		return;
	window_lock(&w->lock);
	if (doubt)
		space_locals_doubt(w->kernel, pcid);
	w->kernel->stale_local = !space_locals_known(w->kernel, x86_pcid(&v->cpu));
	window_unlock(&w->lock);
}

void window_flush(struct tr_vcpu *v, bool global, int pcid)
{
	struct windows *w = &v->windows;
	w->flushes++;
	for (unsigned i = 0; i < WINDOW_SPACES; i++)
		if (w->space[i] && (pcid < 0 || w->space[i]->pcid == pcid))
			w->space[i]->stale = true;
	if (w->kernel && global)
		w->kernel->stale = true;
	flush_locals(v, true, pcid);
}

void window_pcid_changed(struct tr_vcpu *v)
{
	flush_locals(v, false, -1);
}

static void flush_page(struct window_space *s, uint64_t va)
{
	if (s->pieces[region_of(va) / 64] >> (region_of(va) % 64) & 1)
		s->stale = true;
	if (!space_page_of(s, va))
		return;
	if (s->pendings < WINDOW_PENDING)
		s->pending[s->pendings++] = va;
	else
		s->stale = true;
}

/* Of any PCID: it may be another's page, or global, and so of all. */
void window_flush_page(struct tr_vcpu *v, uint64_t va)
{
	struct windows *w = &v->windows;
	if (!w->entries && !w->kernel)
		return;
	window_lock(&w->lock);
	for (unsigned i = 0; i < WINDOW_SPACES; i++)
		if (w->space[i] && w->space[i]->count)
			flush_page(w->space[i], va);
	if (w->kernel) {
		flush_page(w->kernel, va);
		w->kernel->stale_local |= space_local_doubt(w->kernel, va);
	}
	window_unlock(&w->lock);
}

bool window_protect(struct tr_vcpu *v, uint64_t gpa)
{
	struct windows *w = &v->windows;
	bool done = true;
	window_lock(&w->lock);
	for (unsigned n = 0; n < WINDOW_SPACES; n++)
		if (w->space[n] && !space_protect(v, w->space[n], gpa))
			done = false;
	if (w->kernel)
		space_protect(v, w->kernel, gpa);
	window_unlock(&w->lock);
	return done;
}

void window_regions_add(struct tr_vcpu *v, struct window_space *s)
{
	space_regions_add(v, s);
	deltas_set(v, space_is_kernel(s), s);
}

#define REGIONS_SKIP_MOST 64

/*
 * An access to a region that has no window: it may have come into use. To look for such takes three times as long as
 * the fault, and kernels have addresses that never get windows (Linux patches itself at one), so it is not done at
 * each.
 */
static void region_missing(struct tr_vcpu *v, struct window_space *s)
{
	unsigned before = s->regions;
	if (s->skip) {
		s->skip--;
		return;
	}
	window_regions_add(v, s);
	s->skips = s->regions == before ? MIN(2 * s->skips + 1, REGIONS_SKIP_MOST) : 0;
	s->skip = s->skips;
}

/* A host fault at `address`: true if the access can be tried again. */
static bool fault(struct tr_vcpu *v, struct window_space *s, uint64_t address, bool write)
{
	struct windows *w = &v->windows;
	struct x86_mapping m;
	uint64_t va;
	if (address - v->engine->slots.limbo < REGION_SIZE) {
		window_lock(&w->lock);
		region_missing(v, s);
		window_unlock(&w->lock);
		return false; /* next time */
	}
	if (!space_guest_address(s, address, &va))
		return false;
	if (!x86_canonical(va) ||
	    mmu_translate(&v->cpu, va, (write ? ACC_WRITE : ACC_READ) | s->access, &m) != V_DONE) {
		w->faulted = space_is_kernel(s) ? 0 : va | 1;
		return false;
	}
	if (!is_ram(v, m.gpa)) {
		w->device = true;
		return false;
	}
	/* Linux has such in its direct map, where it has cut large pages. */
	if (space_is_kernel(s) && !m.global && s->locals == WINDOW_LOCALS) {
		w->hopeless = true;
		return false;
	}
	window_lock(&w->lock);
	bool again = space_show(v, s, va, &m, write, false);
	w->to_code = write && !again;
	window_unlock(&w->lock);
	return again;
}

bool window_fault(struct tr_vcpu *v, bool kernel, uint64_t address, bool write)
{
	struct window_space *s = kernel ? v->windows.kernel : v->windows.now;
	if (!s)
		return false;
	v->windows.faults++;
	uint64_t start = __builtin_ia32_rdtsc();
	bool again = fault(v, s, address, write);
	charge(v, s, __builtin_ia32_rdtsc() - start + ns_to_tsc(v, SIGNAL_NS));
	return again;
}

/* --- who gets windows */

static struct window_space *space_free(struct tr_vcpu *v)
{
	struct windows *w = &v->windows;
	struct window_space *oldest = NULL;
	for (unsigned i = 0; i < WINDOW_SPACES; i++) {
		if (!w->space[i])
			return NULL;
		if (w->space[i]->cr3 == WINDOW_FREE)
			return w->space[i];
		if (!oldest || w->space[i]->used < oldest->used)
			oldest = w->space[i];
	}
	space_drop(v, oldest);
	return oldest;
}

/* From now on there is other code for the addresses that the jump cache knows. */
static bool promote(struct tr_vcpu *v, uint64_t cr3, uint64_t tsc, bool trusted)
{
	struct windows *w = &v->windows;
	window_lock(&w->lock);
	struct window_space *s = space_free(v);
	bool on = false;
	if (s) {
		s->cr3 = cr3;
		s->pcid = x86_pcid(&v->cpu);
		s->access = ACC_USER;
		s->mmu = MMU_USER;
		s->cost = s->debt = 0;
		s->samples = s->skip = s->skips = 0;
		s->trusted = trusted;
		s->since = s->debt_at = tsc;
		s->stale = false;
		s->account = (struct direct_account){0};
		w->entries++;
		w->absent_cr3 = WINDOW_FREE;
		on = space_regions_add(v, s);
		if (on)
			now_set(v, s);
		else
			space_drop(v, s);
		jc_flush_local(v);
	}
	window_unlock(&w->lock);
	return on;
}

static void refuse(struct tr_vcpu *v, struct window_space *s, uint64_t tsc)
{
	struct windows *w = &v->windows;
	w->refused_cr3 = s->cr3;
	w->refused_until = tsc + ns_to_tsc(v, REFUSE_NS);
	window_lock(&w->lock);
	now_set(v, NULL);
	space_drop(v, s);
	jc_flush_local(v);
	window_unlock(&w->lock);
}

static void kernel_refuse(struct tr_vcpu *v)
{
	v->windows.kernel_refused = __builtin_ia32_rdtsc() + ns_to_tsc(v, REFUSE_NS);
}

/* Code that was translated for the kernel without windows, or with them, is not looked for any more. */
static bool kernel_promote(struct tr_vcpu *v, unsigned mmu)
{
	struct windows *w = &v->windows;
	struct window_space *s = host_memory_alloc(sizeof(*s));
	if (!s) {
		kernel_refuse(v);
		return false;
	}
	s->cr3 = WINDOW_KERNEL;
	s->mmu = (uint8_t)mmu;
	s->access = mmu == MMU_KERNEL ? ACC_IMPLICIT : 0; /* SMAP whatever AC is now */
	s->since = s->debt_at = __builtin_ia32_rdtsc();
	window_lock(&w->lock);
	bool on = space_regions_add(v, s);
	if (on) {
		w->kernel = s;
		deltas_set(v, true, s);
	} else {
		space_drop(v, s);
		host_memory_free(s, sizeof(*s));
		kernel_refuse(v);
	}
	window_unlock(&w->lock);
	jc_flush(v);
	return on;
}

static void kernel_drop(struct tr_vcpu *v)
{
	struct windows *w = &v->windows;
	struct window_space *s = w->kernel;
	window_lock(&w->lock);
	w->kernel = NULL;
	deltas_set(v, true, NULL);
	space_drop(v, s);
	host_memory_free(s, sizeof(*s));
	jc_flush(v);
	window_unlock(&w->lock);
}

/* One of those that have windows. */
static void sample_known(struct tr_vcpu *v, struct window_space *s, uint64_t tsc)
{
	if (too_dear(v, s, tsc))
		refuse(v, s, tsc);
	else if (++s->samples == LASTS)
		direct_program_lasts(&v->direct.programs, program_here(v));
}

/* The program will run for long, as it did before. It is asked once. */
static bool will_last(struct tr_vcpu *v)
{
	struct windows *w = &v->windows;
	bool asked = w->sampled_asked;
	w->sampled_asked = true;
	return !asked && direct_program_will_last(&v->direct.programs, program_here(v));
}

/* One of those that have none. `alone`: no other has run since the last interrupt. */
static void sample_other(struct tr_vcpu *v, uint64_t cr3, bool alone, uint64_t tsc)
{
	struct windows *w = &v->windows;
	if (w->sampled_cr3 != cr3 || !alone) {
		w->sampled_cr3 = cr3;
		w->sampled_since = tsc;
		w->sampled_asked = false;
	}
	if (!alone || (w->refused_cr3 == cr3 && tsc < w->refused_until))
		return;
	bool long_since = tsc - w->sampled_since > ns_to_tsc(v, PROMOTE_NS), trusted = !long_since && will_last(v);
	if (long_since || trusted)
		promote(v, cr3, tsc, trusted);
}

void window_sample(struct tr_vcpu *v)
{
	struct windows *w = &v->windows;
	uint64_t cr3 = space_of(&v->cpu), tsc = __builtin_ia32_rdtsc();
	window_give_chances(v, tsc);
	if (v->engine->no_window || !x86_code64(&v->cpu))
		return;
	if (w->kernel && too_dear(v, w->kernel, tsc)) {
		kernel_drop(v);
		kernel_refuse(v);
	}
	if (v->cpu.cpl != 3)
		return;
	bool alone = w->flushes - w->sampled_flushes <= FLUSHES_MAX;
	w->sampled_flushes = w->flushes;
	if (w->now && w->now->cr3 == cr3)
		sample_known(v, w->now, tsc);
	else
		sample_other(v, cr3, alone, tsc);
}

/* --- life */

bool window_init(struct tr_engine *eng)
{
	struct window_slots *slots = &eng->slots;
	slots->limbo = host_window_reserve(REGION_SIZE, REGION_MARGIN);
	return slots->limbo;
}

void window_destroy(struct tr_engine *eng)
{
	struct window_slots *slots = &eng->slots;
	host_window_release(slots->limbo, REGION_SIZE, REGION_MARGIN);
	for (unsigned i = 0; i < slots->made; i++)
		host_window_release(slots->at[i], REGION_SIZE, REGION_MARGIN);
}

void window_vcpu_init(struct tr_vcpu *v)
{
	v->windows.sampled_cr3 = v->windows.refused_cr3 = v->windows.absent_cr3 = WINDOW_FREE;
	v->windows.kernel_refused = v->engine->no_window || v->engine->no_kernel_window ? UINT64_MAX : 0;
	for (unsigned i = 0; i < WINDOW_SPACES && !v->engine->no_window; i++) {
		v->windows.space[i] = host_memory_alloc(sizeof(struct window_space));
		if (v->windows.space[i])
			v->windows.space[i]->cr3 = WINDOW_FREE;
	}
	for (unsigned r = 0; r < REGION_COUNT; r++) {
		delta_none(v, false, (uint8_t)r);
		delta_none(v, true, (uint8_t)r);
	}
}

void window_vcpu_destroy(struct tr_vcpu *v)
{
	for (unsigned i = 0; i < WINDOW_SPACES; i++) {
		if (v->windows.space[i])
			space_forget(v->windows.space[i]);
		host_memory_free(v->windows.space[i], sizeof(struct window_space));
	}
	if (v->windows.kernel)
		space_forget(v->windows.kernel);
	host_memory_free(v->windows.kernel, sizeof(struct window_space));
}
