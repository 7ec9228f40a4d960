/* Copies of pages of code in which some instructions are faults: which of them are whose. See direct.h. */
#include "engine/translate/direct.h"

#include "host/host.h"

bool direct_copies_init(struct direct_copies *c)
{
	*c = (struct direct_copies){0};
	if (!host_shared_alloc(&c->pages, DIRECT_COPIES * PAGE_SIZE))
		return false;
	host_memory_hide(c->pages.at, c->pages.size); /* guest memory, too */
	return true;
}

void direct_copies_destroy(struct direct_copies *c)
{
	host_shared_free(&c->pages);
}

/* From 1; 0: there is none left. */
static unsigned first_free(const struct direct_copies *c)
{
	for (unsigned i = 0; i < ARRAY_LEN(c->used); i++)
		if (~c->used[i])
			return i * 64 + (unsigned)__builtin_ctzll(~c->used[i]) + 1;
	return 0;
}

static uint64_t *word_of(struct direct_copies *c, unsigned number)
{
	return &c->used[(number - 1) / 64];
}

unsigned direct_copy_make(struct direct_copies *c, const uint8_t *page, const uint8_t *before,
			  const struct direct_host *host)
{
	unsigned number = host->faults & HOST_SPACE_CODE_FAULTS ? first_free(c) : 0;
	if (!number || !direct_trap(c->pages.at + direct_copy_offset(number), page, before, host))
		return 0;
	*word_of(c, number) |= BIT((number - 1) % 64);
	return number;
}

void direct_copy_release(struct direct_copies *c, unsigned number)
{
	if (number)
		*word_of(c, number) &= ~BIT((number - 1) % 64);
}
