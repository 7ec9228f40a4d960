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

static void jump_forget(struct tr_vcpu *v, unsigned index)
{
	v->quick.jump[index] = index ? none : none_first;
}

void quick_begin(struct tr_vcpu *v)
{
	if (!v->quick_log.begun)
		jump_forget(v, 0);
	v->quick_log.begun = true;
}

void quick_jump_fill(struct tr_vcpu *v, uint64_t linear, const struct block *b)
{
	unsigned index = linear % QUICK_ENTRIES;
	struct quick_jump *e = &v->quick.jump[index];
	if (!e->minus)
		log_add(v->quick_log.jump, &v->quick_log.jumps, index);
	*e = (struct quick_jump){-linear, (uint64_t)(uintptr_t)block_entry_indirect(v->engine, b)};
}

void quick_page_fill(struct tr_vcpu *v, uint64_t linear, const struct code_page *page)
{
	unsigned index = (linear >> PAGE_SHIFT) % QUICK_ENTRIES;
	uint64_t *e = &v->quick.page[index];
	if (!*e)
		log_add(v->quick_log.page, &v->quick_log.pages, index);
	*e = -((linear & PAGE_MASK) + quick_tag(page));
}

void quick_flush(struct tr_vcpu *v)
{
	struct quick_log *q = &v->quick_log;
	for (unsigned i = 0; i < (q->jumps <= QUICK_LOG ? q->jumps : QUICK_ENTRIES); i++)
		jump_forget(v, q->jumps <= QUICK_LOG ? q->jump[i] : i);
	for (unsigned i = 0; i < (q->pages <= QUICK_LOG ? q->pages : QUICK_ENTRIES); i++)
		v->quick.page[q->pages <= QUICK_LOG ? q->page[i] : i] = 0;
	if (q->begun)
		jump_forget(v, 0);
	q->jumps = q->pages = 0;
}
