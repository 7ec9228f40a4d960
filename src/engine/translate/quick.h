/*
 * How code with windows (window.h) finds the code of another page without touching the guest's flags, which stay
 * in the host's: two tables, indexed by sixteen bits of an address and compared by adding up to zero in RCX, which
 * JRCXZ tests. An entry holds what is to be added, the negative of what it stands for; an entry of zeros stands for
 * nothing.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_QUICK_H
#define DOPPEL_ENGINE_TRANSLATE_QUICK_H

#include "base/base.h"

struct tr_vcpu;
struct block;
struct code_page;

#define QUICK_BITS 16
#define QUICK_ENTRIES (1u << QUICK_BITS)
#define QUICK_LOG 4096

/* Where an indirect jump goes, by the low bits of the linear address. */
struct quick_jump {
	uint64_t minus; /* linear address, negated */
	uint64_t host;  /* block_entry_indirect */
};

/* Not touched before quick_begin. */
struct quick_tables {
	struct quick_jump jump[QUICK_ENTRIES];
	struct quick_jump second[QUICK_ENTRIES]; /* what had to make way in `jump`; looked at by cold code */
	uint64_t page[QUICK_ENTRIES]; /* -(linear page address + quick_tag), by the low bits of the page's number */
};

/* What there is to forget; a count above the log's length: too many to tell. */
struct quick_log {
	bool begun;
	unsigned jumps, pages;
	uint16_t jump[QUICK_LOG], page[QUICK_LOG];
};

/*
 * Tells pages of code apart when it is added to a canonical page address: no two sums of different pages or addresses
 * are equal, for the address leaves the low 12 bits free, and says in bits 63:48 nothing that bit 47 does not. Never 0.
 */
uint64_t quick_tag(const struct code_page *page);
#define QUICK_TAG_NONE (0xfffull | 0x7fffull << 49) /* no page's */

/* `kernel`: CPL 0's, not user code's. Code with windows is going to run. */
void quick_begin(struct tr_vcpu *v, bool kernel);
void quick_jump_fill(struct tr_vcpu *v, bool kernel, uint64_t linear, const struct block *b);
void quick_page_fill(struct tr_vcpu *v, bool kernel, uint64_t linear, const struct code_page *page);
void quick_flush(struct tr_vcpu *v, bool kernel);

#endif
