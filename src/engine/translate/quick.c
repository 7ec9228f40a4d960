/* Upkeep of the quick tables. Compiled for general registers only: light helpers call it. */
#include "engine/translate/quick.h"

#include "engine/translate/code.h"

uint64_t quick_tag(const struct code_page *page)
{
	uint64_t n = page->index + 1;
	ENSURE(n < (1u << 27) - 1);
	return (n & 0xfff) | n >> 12 << 49;
}

static void log_add(uint16_t *log, unsigned *count, unsigned index)
{
	if (*count < QUICK_LOG)
		log[*count] = (uint16_t)index;
	if (*count <= QUICK_LOG)
		(*count)++;
}

/* An entry of zeros matches address 0: in the first stands something that no address of that index matches. */
static const struct quick_jump none = {0, 0}, none_first = {1, 0};

static void jump_forget(struct quick_tables *q, unsigned index)
{
	q->jump[index] = q->second[index] = index ? none : none_first;
}

void quick_begin(struct tr_vcpu *v, bool kernel)
{
	if (!v->quick_log[kernel].begun)
		jump_forget(&v->quick[kernel], 0);
	v->quick_log[kernel].begun = true;
}

void quick_jump_fill(struct tr_vcpu *v, bool kernel, uint64_t linear, const struct block *b)
{
	struct quick_log *log = &v->quick_log[kernel];
	unsigned index = linear % QUICK_ENTRIES;
	struct quick_jump *e = &v->quick[kernel].jump[index];
	if (!e->minus)
		log_add(log->jump, &log->jumps, index);
	else if (e->minus != -linear)
		v->quick[kernel].second[index] = *e;
	*e = (struct quick_jump){-linear, (uint64_t)(uintptr_t)block_entry_indirect(v->engine, b)};
}

void quick_page_fill(struct tr_vcpu *v, bool kernel, uint64_t linear, const struct code_page *page)
{
	struct quick_log *log = &v->quick_log[kernel];
	unsigned index = (linear >> PAGE_SHIFT) % QUICK_ENTRIES;
	uint64_t *e = &v->quick[kernel].page[index];
	if (!*e)
		log_add(log->page, &log->pages, index);
	*e = -((linear & PAGE_MASK) + quick_tag(page));
}

void quick_flush(struct tr_vcpu *v, bool kernel)
{
	struct quick_log *log = &v->quick_log[kernel];
	struct quick_tables *q = &v->quick[kernel];
	for (unsigned i = 0; i < (log->jumps <= QUICK_LOG ? log->jumps : QUICK_ENTRIES); i++)
		jump_forget(q, log->jumps <= QUICK_LOG ? log->jump[i] : i);
	for (unsigned i = 0; i < (log->pages <= QUICK_LOG ? log->pages : QUICK_ENTRIES); i++)
		q->page[log->pages <= QUICK_LOG ? log->page[i] : i] = 0;
	if (log->begun)
		jump_forget(q, 0);
	log->jumps = log->pages = 0;
}
