/*
 * One TLB check for several accesses. Accesses of one block from the same unchanged base register, or from a stack
 * pointer that moved by known amounts only, mostly lie in one page: the first checks the whole range that all of them
 * touch and keeps the page's delta in a slot; the others just add it. Where the range does not lie in one page the
 * block is left for a variant of it that shares nothing (KEY_NOSHARE).
 *
 * Through windows what is shared is the region's delta, which no known move of a base register changes: where it leaves
 * the region, the access faults.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_SHARE_H
#define DOPPEL_ENGINE_TRANSLATE_SHARE_H

#include "arch/x86/insn.h"

#define SHARE_SLOTS 16
#define SHARE_SPAN 512 /* bytes that one check covers at most */

struct share {
	int8_t slot;    /* -1: not shared */
	bool last;      /* nobody needs the slot any more */
	bool leader;    /* does the check; what follows is about it */
	bool write;     /* some access of the group writes */
	bool own_write; /* the leader's own does */
	int32_t lo,
		hi;  /* range of all accesses, from the base register's value at the leader; hi is past the last byte */
	int32_t own; /* the leader's own displacement */
};

/* What an instruction of a block does to memory: by its operand, and on the stack. */
struct share_insn {
	struct share mem, stack;
};

/* Plans the sharing in `n` decoded instructions of 64-bit code. Operands where `alone` is share nothing. */
void share_plan(const struct x86_insn *insn, unsigned n, bool window, const bool *alone, struct share_insn *out);
/* A write of `reg` that moves it by a known amount, which is small: ADD, SUB and LEA with a constant. */
#define SHARE_MOVE_MAX (1 << 20) /* so that all those of a block do not add up to a window's margin */
bool share_known_move(const struct x86_insn *insn, unsigned reg, int32_t *by);
/* An explicit operand that can be in a group: [base + disp], of which the base is the address; no segment base. */
bool share_possible(const struct x86_insn *insn);

#endif
