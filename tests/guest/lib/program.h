/* User code as programs have it, in a state in which an engine may leave it to the processor itself. */
#ifndef PROGRAM_H
#define PROGRAM_H

#include "guest.h"

/* User code at USER_CODE with its data and stack; it ends with UD2. */
static inline struct frame program(const void *begin, const void *end)
{
	struct frame f = user_code(begin, end, 64);
	f.rflags |= FL_IF;
	return f;
}
#define PROGRAM(name) program(name, name##_end)

static inline struct trap *run_to_end(const struct frame *f)
{
	struct trap *t = run_frame(f);
	CHECK_EQ(t->f.vector, UD);
	return t;
}

/* The same on another processor (smp_post). */
static inline void run_there(void *f)
{
	enable_for_programs();
	run_to_end(f);
}

/* Where the page that the program has at `va` is. */
static inline void *page_at(u64 va)
{
	return (void *)(*walk(va, 1, false) & PTE_ADDR);
}

#endif
