/*
 * Which pages of memory may be written through the TLB: so that those that become code can be taken out of it, without
 * a look at all of its entries. Compiled for general registers only: light helpers call it.
 */
#include "engine/translate/light.h"

/* Where the TLB has write tags of a page: at one place (of each mode's part), which is this less one, or at several. */
enum { WRITTEN_NOWHERE, WRITTEN_MANY = TLB_ENTRIES + 1 };
_Static_assert(WRITTEN_MANY <= UINT16_MAX, "as written_at has it");

static uint64_t ram_page(const struct tr_vcpu *v, uint64_t gpa)
{
	return guest_memory_page_index(v->engine->mem, gpa);
}

/* --- by the virtual CPU's own thread, before the tag is set */

static void filter_add(struct tr_vcpu *v, uint64_t page, bool global)
{
	_Atomic uint64_t *word = &v->write_filter[global][page % WRITE_FILTER_BITS / 64];
	uint64_t bit = BIT(page % 64), was = atomic_load_explicit(word, memory_order_relaxed);
	if (was & bit)
		return;
	atomic_store_explicit(word, was | bit, memory_order_relaxed);
	if (global)
		return;
	flush_note(v->write_log, &v->write_logged, FEW_LOGGED, word - v->write_filter[0]);
}

/* What has a tag there, if anything has, is the only page with one that shares this one's word. */
static bool is_in_use(const struct tr_vcpu *v, unsigned place, uint64_t page)
{
	for (unsigned m = 0; m < MMU_MODES; m++) {
		const struct tlb_entry *e = &v->tlb[m][place];
		if (e->tag_write != TLB_NONE && (ram_page(v, e->meta & PAGE_MASK) - page) % WRITTEN_PAGES == 0)
			return true;
	}
	return false;
}

void tlb_writes_add(struct tr_vcpu *v, const struct tlb_entry *e, uint64_t page, bool global)
{
	_Atomic uint16_t *at = &v->written_at[page % WRITTEN_PAGES];
	unsigned place = (unsigned)(e - v->tlb[0]) % TLB_ENTRIES, was = atomic_load_explicit(at, memory_order_relaxed);
	filter_add(v, page, global);
	if (was == place + 1 || was == WRITTEN_MANY)
		return;
	bool other = was != WRITTEN_NOWHERE && is_in_use(v, was - 1, page);
	atomic_store_explicit(at, (uint16_t)(other ? WRITTEN_MANY : place + 1), memory_order_relaxed);
}

static void filter_clear(struct tr_vcpu *v, bool global)
{
	for (unsigned i = 0; i < ARRAY_LEN(v->write_filter[global]); i++)
		atomic_store_explicit(&v->write_filter[global][i], 0, memory_order_relaxed);
}

void tlb_writes_forget_local(struct tr_vcpu *v)
{
	if (v->write_logged > FEW_LOGGED)
		filter_clear(v, false);
	for (unsigned i = 0; v->write_logged <= FEW_LOGGED && i < v->write_logged; i++)
		atomic_store_explicit(&v->write_filter[false][v->write_log[i]], 0, memory_order_relaxed);
	v->write_logged = 0;
}

void tlb_writes_forget(struct tr_vcpu *v)
{
	tlb_writes_forget_local(v);
	filter_clear(v, true);
}

/* --- by whoever has the engine's lock, after code[] was set */

static bool may_have_written(const struct tr_vcpu *v, uint64_t page)
{
	unsigned word = page % WRITE_FILTER_BITS / 64;
	return (atomic_load(&v->write_filter[false][word]) | atomic_load(&v->write_filter[true][word])) &
	       BIT(page % 64);
}

/* Leaves entries whose write tag another thread reads in place: only its store is atomic, and only towards TLB_NONE. */
static void protect_at(struct tr_vcpu *v, unsigned place, uint64_t gpa)
{
	for (unsigned m = 0; m < MMU_MODES; m++) {
		struct tlb_entry *e = &v->tlb[m][place];
		if ((e->meta & PAGE_MASK) == gpa && e->tag_write != TLB_NONE)
			atomic_store(&e->tag_write, TLB_NONE);
	}
}

/*
 * That it is nowhere any more can be said where no other page shares the word: should its own thread be adding it now,
 * that finds code[] set, and does not.
 */
static void protect(struct tr_vcpu *v, uint64_t page, uint64_t gpa)
{
	_Atomic uint16_t *at = &v->written_at[page % WRITTEN_PAGES];
	unsigned place = atomic_load(at);
	if (place == WRITTEN_NOWHERE)
		return;
	if (place != WRITTEN_MANY) {
		protect_at(v, place - 1, gpa);
		return;
	}
	for (unsigned i = 0; i < TLB_ENTRIES; i++)
		protect_at(v, i, gpa);
	if (v->engine->mem->pages <= WRITTEN_PAGES)
		atomic_store(at, WRITTEN_NOWHERE);
}

/*
 * False: `v` is running, or about to (vcpu_code_enter), and may be between a look at its TLB and the store. The filter
 * tells, rather than the TLB, where another entry may have come into the place since.
 */
static bool protect_from(struct tr_vcpu *v, uint64_t page, uint64_t gpa)
{
	bool written = may_have_written(v, page), apart = !window_protect(v, gpa);
	if (written)
		protect(v, page, gpa);
	return !(written || apart) || !atomic_load(&v->in_code);
}

bool tlb_protect(struct tr_engine *eng, uint64_t gpa)
{
	uint64_t page = guest_memory_page_index(eng->mem, gpa);
	bool done = true;
	for (unsigned c = 0; c < eng->cpus; c++)
		if (eng->vcpu[c] && !protect_from(eng->vcpu[c], page, gpa))
			done = false;
	return done;
}
