/*
 * Which programs are not worth running directly, as they have shown before: see direct.h. An address space tells
 * nothing of that, since the next process has another one; but the first page of a program comes from the file system's
 * cache, and stays where it is from process to process. Compiled for general registers only.
 */
#include "engine/translate/direct.h"

#include "bus/memory.h"

#define ENTRY_PRESENT 1u
#define ENTRY_LARGE 0x80u
#define ENTRY_PAGE 0x000ffffffffff000ull
#define ENTRIES 512u
#define LEVELS 4u

/* The first entry in use, 0: there is none. */
static uint64_t first_entry(const struct guest_memory *mem, uint64_t table, unsigned n)
{
	const uint64_t *entry = guest_memory_ptr(mem, table & ENTRY_PAGE, PAGE_SIZE, false);
	for (unsigned i = 0; entry && i < n; i++)
		if (entry[i] & ENTRY_PRESENT)
			return entry[i];
	return 0;
}

uint64_t direct_program(const struct guest_memory *mem, uint64_t cr3)
{
	uint64_t entry = first_entry(mem, cr3, ENTRIES / 2);
	for (unsigned level = 1; level < LEVELS && entry && !(entry & ENTRY_LARGE); level++)
		entry = first_entry(mem, entry, ENTRIES);
	return entry & ENTRY_PAGE;
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
