/* Upkeep of the quick tables. Compiled for general registers only: light helpers call it. */
#include "engine/translate/quick.h"

#include "engine/translate/code.h"
#include "engine/translate/light.h"

/* How many there are to go through, and number `i` of them: where they are too many to tell, all `most`. */
static uint32_t list_length(const struct quick_list *list, uint32_t most)
{
	return list->count <= QUICK_LOG ? list->count : most;
}

static uint32_t list_at(const struct quick_list *list, uint32_t i)
{
	return list->count <= QUICK_LOG ? list->at[i] : i;
}

/* An entry of zeros matches address 0: in the first stands something that no address of that index matches. */
static const struct quick_jump none = {0, 0}, none_first = {1, 0};

static void jump_forget(struct tr_vcpu *v, bool kernel, unsigned index)
{
	const struct quick_jump first = {-QUICK_FIRST, (uint64_t)(uintptr_t)v->engine->glue_jump_first};
	v->quick[kernel].jump[index] = index ? none : first;
}

static void second_forget(struct tr_vcpu *v, bool kernel, unsigned index)
{
	v->quick[kernel].second[index] = index ? none : none_first;
}

static void returns_forget(struct tr_vcpu *v)
{
	for (unsigned i = 0; i < RETURNS; i++) {
		v->returns.not_address[i] = 0;
		v->returns.host[i] = v->jump_any;
	}
}

static void begin(struct tr_vcpu *v, bool kernel)
{
	if (!kernel)
		returns_forget(v);
	jump_forget(v, kernel, 0);
	second_forget(v, kernel, 0);
}

void quick_begin(struct tr_vcpu *v, bool kernel)
{
	if (!v->quick_log[kernel].begun)
		begin(v, kernel);
	v->quick_log[kernel].begun = true;
}

void quick_jump_fill(struct tr_vcpu *v, bool kernel, uint64_t linear, const struct block *b)
{
	struct quick_tables *q = &v->quick[kernel];
	struct quick_log *log = &v->quick_log[kernel];
	unsigned index = linear % QUICK_ENTRIES;
	struct quick_jump *e = &q->jump[index], *second = &q->second[index];
	if (!index) {
		e = second; /* always in the list */
	} else if (!e->minus) {
		quick_list_add(&log->jump, index);
	} else if (e->minus != -linear) {
		if (!second->minus)
			quick_list_add(&log->second, index);
		*second = *e;
	}
	*e = (struct quick_jump){-linear, (uint64_t)(uintptr_t)block_entry_quick(v->engine, b)};
}

static void show_at(struct tr_vcpu *v, bool kernel, unsigned slot)
{
	struct code_place *p = &v->place[slot][kernel];
	uint64_t seen = p->linear + v->window_delta[kernel][region_of(p->linear)];
	p->seen = seen ? seen : 1; /* without windows nobody uses it */
}

void quick_deltas_changed(struct tr_vcpu *v, bool kernel)
{
	const struct quick_list *pages = &v->quick_log[kernel].page;
	for (uint32_t i = 0; i < list_length(pages, CODE_SLOTS); i++)
		if (v->place[list_at(pages, i)][kernel].seen)
			show_at(v, kernel, list_at(pages, i));
}

bool quick_page_known(const struct tr_vcpu *v, bool kernel, const struct code_page *page, uint64_t linear)
{
	const struct code_place *p = &v->place[page->slot][kernel];
	return p->seen && p->linear == (linear & PAGE_MASK);
}

bool quick_slot_is_at(struct tr_vcpu *v, bool kernel, uint32_t slot, uint64_t linear)
{
	struct code_place *p = &v->place[slot][kernel];
	if (p->seen)
		return p->linear == (linear & PAGE_MASK);
	quick_list_add(&v->quick_log[kernel].page, slot);
	p->linear = linear & PAGE_MASK;
	show_at(v, kernel, slot);
	return true;
}

bool quick_page_is_at(struct tr_vcpu *v, bool kernel, const struct code_page *page, uint64_t linear)
{
	return quick_slot_is_at(v, kernel, page->slot, linear);
}

void quick_far_fill(struct tr_vcpu *v, bool kernel, const struct far_jump *jump, const struct block *b, uint64_t linear)
{
	const struct block *from = block_of(v->engine, jump->from);
	uint64_t to = (uint64_t)(uintptr_t)block_entry_quick(v->engine, b);
	if (!from->page || !quick_page_known(v, kernel, page_of(v->engine, from->page), v->vpage) ||
	    !quick_page_known(v, kernel, page_of(v->engine, b->page), linear) || v->far[jump->index] == to)
		return;
	quick_list_add(&v->quick_log[kernel].far, jump->index);
	v->far[jump->index] = to;
}

static void far_forget(struct tr_vcpu *v, uint32_t index)
{
	v->far[index] = (uint64_t)(uintptr_t)host_at(v->engine, v->engine->far_cold[index]);
}

bool quick_page_stays(struct tr_vcpu *v, uint32_t slot, uint64_t linear)
{
	const struct tr_engine *eng = v->engine;
	struct x86_mapping m;
	if (!mmu_probe(&v->cpu, linear, ACC_EXEC | ACC_USER, &m) ||
	    (m.gpa & PAGE_MASK) != page_of(eng, eng->slot_page[slot])->gpa)
		return false;
	note_code_at(v, linear, m.page_shift);
	return true;
}

static bool pages_stay(struct tr_vcpu *v)
{
	const struct quick_list *pages = &v->quick_log[0].page;
	uint32_t n = 0;
	while (pages->count <= QUICK_LOG && n < pages->count &&
	       quick_page_stays(v, pages->at[n], v->place[pages->at[n]][0].linear))
		n++;
	return n == pages->count;
}

void quick_user_refresh(struct tr_vcpu *v)
{
	const struct quick_log *log = &v->quick_log[0];
	bool used = log->jump.count || log->far.count; /* else there is nothing that a look at each page could save */
	bool other = v->cpu.cr3 != v->quick_cr3, reuse = !v->engine->no_reuse;
	if (other && used && reuse)
		quick_save(v, v->quick_cr3);
	if (other || !used || !reuse || !pages_stay(v)) {
		quick_flush(v, false);
		itlb_flush_user(v); /* what is found there has its place */
	}
	if (other && reuse)
		quick_restore(v, v->cpu.cr3);
	v->quick_cr3 = v->cpu.cr3;
	v->quick_stale = false;
}

void quick_fars_lost(struct tr_vcpu *v)
{
	v->quick_log[0].far.count = QUICK_LOG + 1;
}

void quick_flush(struct tr_vcpu *v, bool kernel)
{
	struct quick_log *log = &v->quick_log[kernel];
	for (uint32_t i = 0; i < list_length(&log->jump, QUICK_ENTRIES); i++)
		jump_forget(v, kernel, list_at(&log->jump, i));
	for (uint32_t i = 0; i < list_length(&log->second, QUICK_ENTRIES); i++)
		second_forget(v, kernel, list_at(&log->second, i));
	for (uint32_t i = 0; i < list_length(&log->page, CODE_SLOTS); i++)
		v->place[list_at(&log->page, i)][kernel].seen = 0;
	uint32_t fars = atomic_load(&v->engine->fars_known);
	for (uint32_t i = 0; i < list_length(&log->far, fars); i++)
		if (list_at(&log->far, i) < fars)
			far_forget(v, list_at(&log->far, i));
	if (log->begun)
		begin(v, kernel);
	log->jump.count = log->second.count = log->page.count = log->far.count = 0;
	v->quick_lost = true;
}
