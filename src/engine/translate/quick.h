/*
 * How code with windows (window.h) finds the code of another page without touching the guest's flags, which stay
 * in the host's.
 *
 * Indirect jumps: a table, indexed by sixteen bits of the address and compared by adding up to zero in RCX, which
 * JRCXZ tests. An entry holds what is to be added, the negative of what it stands for; an entry of zeros stands for
 * nothing.
 *
 * Direct jumps: each has a pointer of its own, tr_vcpu.far, and compares nothing. The pointer leads to the target's
 * block once the target's page has been looked up, and else to the jump's cold code. It is true as long as two things
 * are: nothing has been flushed that the look-up went by, and the page that the jump is in is where it was. For the
 * latter, from one flush to the next a page of code is executed at one linear address only (tr_vcpu.place). From there
 * code with windows takes what it says relative to its own address: while it runs, the place of its page is known.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_QUICK_H
#define DOPPEL_ENGINE_TRANSLATE_QUICK_H

#include "base/base.h"

struct tr_vcpu;
struct block;
struct code_page;
struct far_jump;

#define QUICK_BITS 16
#define QUICK_ENTRIES (1u << QUICK_BITS)
#define QUICK_LOG 32768
#define QUICK_SPACES 3        /* address spaces whose code is remembered: as many as have windows */
#define CODE_SLOTS (1u << 15) /* pages of code that there can be */
#define FAR_JUMPS (1u << 18)  /* direct jumps to other pages; those beyond go by the table */

/* Where an indirect jump goes, by the low bits of the linear address. */
struct quick_jump {
	uint64_t minus; /* linear address, negated */
	uint64_t host;  /* block_entry_quick */
};

/*
 * run_on's value when nobody asks for attention: PDEP by it makes of a linear address where in `jump` its entry is.
 * When somebody asks, that is the first entry, which has the address QUICK_FIRST, whose own entry is another.
 */
#define QUICK_FIRST 1ull
#define QUICK_MASK ((uint64_t)(QUICK_ENTRIES - 1) * sizeof(struct quick_jump))

/* Not touched before quick_begin. */
struct quick_tables {
	struct quick_jump jump[QUICK_ENTRIES];
	struct quick_jump second[QUICK_ENTRIES]; /* what had to make way in `jump`, or belongs in its first entry;
						    looked at by cold code */
};

/*
 * Where the last calls of user code return to, by their places on the stack: PEXT by return_mask makes of a stack
 * pointer which one. When somebody asks for attention, or there is none, that is the first, whose host code is
 * glue_jump_any, as that of a place of which nothing is known: not_address of 0 matches one address.
 */
#define RETURNS 256
#define RETURN_MASK ((uint64_t)(RETURNS - 1) * 8)
struct quick_returns {
	uint64_t not_address[RETURNS]; /* linear address, each bit the other way round */
	uint64_t host[RETURNS];
};

/* Where a page of code is executed. */
struct code_place {
	uint64_t linear; /* page address */
	uint64_t seen;   /* the same through windows, a host address; 0: neither is known */
};

/* What there is to forget; a count above the length: too many to tell. */
struct quick_list {
	unsigned count;
	uint32_t at[QUICK_LOG];
};

static inline void quick_list_add(struct quick_list *list, uint32_t at)
{
	if (list->count < QUICK_LOG)
		list->at[list->count] = at;
	if (list->count <= QUICK_LOG)
		list->count++;
}

struct quick_log {
	bool begun;
	struct quick_list jump; /* indices */
	struct quick_list second;
	struct quick_list page; /* code_page.slot */
	struct quick_list far;  /* far_jump.index */
};

/* How often what is known of an address space was known again, of how often it may be; and how much was known before.
 */
struct quick_turns {
	unsigned taken, most, before;
};

/* `kernel`: CPL 0's, not user code's. Code with windows is going to run. */
void quick_begin(struct tr_vcpu *v, bool kernel);
void quick_jump_fill(struct tr_vcpu *v, bool kernel, uint64_t linear, const struct block *b);
/*
 * Code of `page` may be executed at `linear` from now on. False: it was executed elsewhere since the last flush, and
 * all that is known must be flushed first.
 */
bool quick_page_is_at(struct tr_vcpu *v, bool kernel, const struct code_page *page, uint64_t linear);
bool quick_slot_is_at(struct tr_vcpu *v, bool kernel, uint32_t slot, uint64_t linear); /* by its slot */
bool quick_page_known(const struct tr_vcpu *v, bool kernel, const struct code_page *page, uint64_t linear);
/* Takes `jump`, which is in the page at v->vpage, to `b` at `linear` from now on, if that will stay true. */
void quick_far_fill(struct tr_vcpu *v, bool kernel, const struct far_jump *jump, const struct block *b,
		    uint64_t linear);
/* window_delta is another. */
void quick_deltas_changed(struct tr_vcpu *v, bool kernel);
void quick_flush(struct tr_vcpu *v, bool kernel);
/* The cache has been emptied: at the next flush all far pointers go, whatever is known of them. */
void quick_fars_lost(struct tr_vcpu *v);
/* Is the page of code at `linear`, by the page tables as they are? */
bool quick_page_stays(struct tr_vcpu *v, uint32_t slot, uint64_t linear);
/*
 * User code is about to run, and what is known of where it is has been flushed: if all the pages are where they were
 * when this address space ran last, as nearly always, it is still known.
 */
void quick_user_refresh(struct tr_vcpu *v);

/*
 * quick_saved.c: what is known of user code is kept for this address space; and is known again, if it is still true by
 * the page tables. Blocks may go meanwhile, out of translated code: then all is forgotten before it is used.
 */
void quick_save(struct tr_vcpu *v, uint64_t cr3);
void quick_restore(struct tr_vcpu *v, uint64_t cr3);
/* Blocks have gone. */
void quick_saved_forget(struct tr_vcpu *v);
void quick_saved_free(struct tr_vcpu *v);

#endif
