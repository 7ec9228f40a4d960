/*
 * Which programs run for long, and which are not worth running directly, as they have shown before: see direct.h. An
 * address space tells nothing of that, since the next process has another one; but the first page of a program comes
 * from the file system's cache, and stays where it is from process to process. Compiled for general registers only.
 */
#include "engine/translate/direct.h"

#include "engine/translate/window_space.h"

#define LEVELS 4u

uint64_t direct_program(const struct guest_memory *mem, uint64_t cr3)
{
	uint64_t entry = table_first_entry(mem, cr3, ENTRIES / 2);
	for (unsigned level = 1; level < LEVELS && entry && !(entry & ENTRY_LARGE); level++)
		entry = table_first_entry(mem, entry, ENTRIES);
	return entry & ENTRY_TABLE;
}

static unsigned place(uint64_t page)
{
	return (unsigned)((page >> PAGE_SHIFT) % DIRECT_PROGRAMS);
}

static const struct direct_known *known(const struct direct_programs *p, uint64_t page)
{
	const struct direct_known *k = &p->known[place(page)];
	return page && k->page == page ? k : NULL;
}

/* For something to be written down there. NULL: it is not known which program it is. */
static struct direct_known *know(struct direct_programs *p, uint64_t page)
{
	struct direct_known *k = &p->known[place(page)];
	if (!page)
		return NULL;
	if (k->page != page)
		*k = (struct direct_known){.page = page};
	return k;
}

unsigned direct_program_failures(const struct direct_programs *p, uint64_t page)
{
	const struct direct_known *k = known(p, page);
	return k ? k->failures : 0;
}

void direct_program_lasts(struct direct_programs *p, uint64_t page)
{
	struct direct_known *k = know(p, page);
	if (k)
		k->trust = DIRECT_TRUST;
}

bool direct_program_will_last(struct direct_programs *p, uint64_t page)
{
	if (!known(p, page) || !known(p, page)->trust)
		return false;
	know(p, page)->trust--;
	return true;
}

void direct_program_judge(struct direct_programs *p, const struct direct_account *a)
{
	unsigned failures = direct_program_failures(p, a->program);
	bool pays = a->gain > a->cost + a->credit;
	if (!a->program || (pays && !failures))
		return;
	know(p, a->program)->failures = pays ? 0 : MIN(failures + 1, DIRECT_FAILURES);
}
