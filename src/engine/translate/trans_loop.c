/*
 * Loops of one short block: several turns of them in a row, which share what they look up, and of which the last one
 * alone looks whether somebody asks for attention.
 */
#include "engine/translate/trans.h"

#define TURNS 4

static bool is_conditional(const struct x86_insn *insn)
{
	return insn->cls == CLS_BRANCH && insn->opsize == 8 &&
	       ((insn->map == 0 && (insn->opcode & 0xf0) == 0x70) || (insn->map == 1 && (insn->opcode & 0xf0) == 0x80));
}

bool branch_goes_on(const struct x86_insn *insn)
{
	return is_conditional(insn) && (int64_t)insn->imm >= 0;
}

bool branch_turns(const struct x86_insn *insn)
{
	return is_conditional(insn) && (int64_t)insn->imm < 0;
}

/* Nothing that may leave the block, nor wait. */
static bool stays(const struct x86_insn *insn)
{
	return insn->cls == CLS_PLAIN || insn->cls == CLS_STACK || branch_goes_on(insn);
}

/* Whether the last of `n` instructions of the block leads back to the first, and they are all of a loop. */
static bool is_loop(const struct trans *t, unsigned n)
{
	int64_t len = 0;
	for (unsigned i = 0; i < n; i++)
		len += t->insns[i].len;
	for (unsigned i = 0; i + 1 < n; i++)
		if (!stays(&t->insns[i]))
			return false;
	return branch_turns(&t->insns[n - 1]) && len + (int64_t)t->insns[n - 1].imm == 0;
}

unsigned loop_turns(struct trans *t, unsigned n)
{
	unsigned turns = MIN(TURNS, BLOCK_INSNS / n);
	if (!t->window || t->mode != MODE_64 || t->eng->no_link || t->eng->no_loop || !is_loop(t, n))
		return n;
	for (unsigned i = n; i < n * turns; i++) {
		t->insns[i] = t->insns[i - n];
		t->by_tlb[i] = t->by_tlb[i - n];
	}
	return n * turns;
}
