/* Upkeep of the quick tables. Compiled for general registers only: light helpers call it. */
#include "engine/translate/quick.h"

#include "engine/translate/code.h"
#include "engine/translate/light.h"

static void log_add(uint16_t *log, unsigned *count, unsigned index)
{
	if (*count < QUICK_LOG)
		log[*count] = (uint16_t)index;
	if (*count <= QUICK_LOG)
		(*count)++;
}

static void log_far(struct quick_log *log, uint32_t index)
{
	if (log->fars < QUICK_LOG)
		log->far[log->fars] = index;
	if (log->fars <= QUICK_LOG)
		log->fars++;
}

/* An entry of zeros matches address 0: in the first stands something that no address of that index matches. */
static const struct quick_jump none = {0, 0}, none_first = {1, 0};

static void jump_forget(struct tr_vcpu *v, bool kernel, unsigned index)
{
	struct quick_tables *q = &v->quick[kernel];
	const struct quick_jump first = {-QUICK_FIRST, (uint64_t)(uintptr_t)v->engine->glue_jump_first};
	q->jump[index] = index ? none : first;
	q->second[index] = index ? none : none_first;
}

void quick_begin(struct tr_vcpu *v, bool kernel)
{
	if (!v->quick_log[kernel].begun)
		jump_forget(v, kernel, 0);
	v->quick_log[kernel].begun = true;
}

void quick_jump_fill(struct tr_vcpu *v, bool kernel, uint64_t linear, const struct block *b)
{
	struct quick_log *log = &v->quick_log[kernel];
	struct quick_tables *q = &v->quick[kernel];
	unsigned index = linear % QUICK_ENTRIES;
	struct quick_jump *e = index ? &q->jump[index] : &q->second[0];
	if (!e->minus)
		log_add(log->jump, &log->jumps, index);
	else if (index && e->minus != -linear)
		q->second[index] = *e;
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
	const struct quick_log *log = &v->quick_log[kernel];
	for (unsigned i = 0; i < (log->pages <= QUICK_LOG ? log->pages : CODE_SLOTS); i++) {
		unsigned slot = log->pages <= QUICK_LOG ? log->page[i] : i;
		if (v->place[slot][kernel].seen)
			show_at(v, kernel, slot);
	}
}

bool quick_page_known(const struct tr_vcpu *v, bool kernel, const struct code_page *page, uint64_t linear)
{
	const struct code_place *p = &v->place[page->slot][kernel];
	return p->seen && p->linear == (linear & PAGE_MASK);
}

bool quick_page_is_at(struct tr_vcpu *v, bool kernel, const struct code_page *page, uint64_t linear)
{
	struct quick_log *log = &v->quick_log[kernel];
	struct code_place *p = &v->place[page->slot][kernel];
	if (p->seen)
		return p->linear == (linear & PAGE_MASK);
	log_add(log->page, &log->pages, page->slot);
	p->linear = linear & PAGE_MASK;
	show_at(v, kernel, page->slot);
	return true;
}

void quick_far_fill(struct tr_vcpu *v, bool kernel, const struct far_jump *jump, const struct block *b, uint64_t linear)
{
	const struct block *from = block_of(v->engine, jump->from);
	uint64_t to = (uint64_t)(uintptr_t)block_entry_quick(v->engine, b);
	if (!from->page || !quick_page_known(v, kernel, page_of(v->engine, from->page), v->vpage) ||
	    !quick_page_known(v, kernel, page_of(v->engine, b->page), linear) || v->far[jump->index] == to)
		return;
	log_far(&v->quick_log[kernel], jump->index);
	v->far[jump->index] = to;
}

static void fars_forget(struct tr_vcpu *v, struct quick_log *log)
{
	const struct tr_engine *eng = v->engine;
	for (unsigned i = 0; i < (log->fars <= QUICK_LOG ? log->fars : eng->fars); i++) {
		uint32_t index = log->fars <= QUICK_LOG ? log->far[i] : i;
		v->far[index] = (uint64_t)(uintptr_t)host_at(eng, eng->far_cold[index]);
	}
	log->fars = 0;
}

/* Is the page of code where it was, by the page tables as they are? */
static bool page_stays(struct tr_vcpu *v, uint16_t slot)
{
	const struct tr_engine *eng = v->engine;
	uint64_t linear = v->place[slot][0].linear;
	struct x86_mapping m;
	if (!mmu_probe(&v->cpu, linear, ACC_EXEC | ACC_USER, &m) ||
	    (m.gpa & PAGE_MASK) != page_of(eng, eng->slot_page[slot])->gpa)
		return false;
	note_code_at(v, linear, m.page_shift);
	return true;
}

static bool pages_stay(struct tr_vcpu *v)
{
	const struct quick_log *log = &v->quick_log[0];
	unsigned n = 0;
	while (log->pages <= QUICK_LOG && n < log->pages && page_stays(v, log->page[n]))
		n++;
	return n == log->pages;
}

void quick_user_refresh(struct tr_vcpu *v)
{
	const struct quick_log *log = &v->quick_log[0];
	bool used = log->jumps || log->fars; /* else there is nothing that a look at each page could save */
	if (v->cpu.cr3 != v->quick_cr3 || !used || !pages_stay(v))
		quick_flush(v, false);
	v->quick_cr3 = v->cpu.cr3;
	v->quick_stale = false;
}

void quick_flush(struct tr_vcpu *v, bool kernel)
{
	struct quick_log *log = &v->quick_log[kernel];
	for (unsigned i = 0; i < (log->jumps <= QUICK_LOG ? log->jumps : QUICK_ENTRIES); i++)
		jump_forget(v, kernel, log->jumps <= QUICK_LOG ? log->jump[i] : i);
	for (unsigned i = 0; i < (log->pages <= QUICK_LOG ? log->pages : CODE_SLOTS); i++)
		v->place[log->pages <= QUICK_LOG ? log->page[i] : i][kernel].seen = 0;
	fars_forget(v, log);
	v->quick_lost = true;
	if (log->begun)
		jump_forget(v, kernel, 0);
	log->jumps = log->pages = 0;
}
