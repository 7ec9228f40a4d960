/*
 * Which programs are not worth running directly, as they have shown before: see direct.h. An address space tells
 * nothing of that, since the next process has another one; but the first page of a program comes from the file system's
 * cache, and stays where it is from process to process. Compiled for general registers only.
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

unsigned direct_program_failures(const struct direct_programs *p, uint64_t page)
{
	return page && p->known[place(page)].page == page ? p->known[place(page)].failures : 0;
}

void direct_program_judge(struct direct_programs *p, const struct direct_account *a)
{
	unsigned failures = direct_program_failures(p, a->program), at = place(a->program);
	bool pays = a->gain > a->cost + a->credit;
	if (!a->program || (pays && !failures))
		return;
	p->known[at].page = a->program;
	p->known[at].failures = pays ? 0 : MIN(failures + 1, DIRECT_FAILURES);
}
