/*
 * String instructions through windows: the host's own, on host addresses in RSI and RDI for its time. The direction
 * flag is clear in code that has windows (tlb_mode_changed).
 */
#include "engine/translate/trans.h"

/* So many elements at most in one go, for nothing interrupts them: 16 bits of a count. */
#define COUNT_BITS 16

static bool plain_prefixes(const struct x86_insn *insn)
{
	for (unsigned i = 0; i < insn->opcode_off; i++)
		if (insn->bytes[i] == 0x64 || insn->bytes[i] == 0x65 || insn->bytes[i] == 0xf0)
			return false;
	return true;
}

/* Larger counts are for the helper. */
static struct cold *check_count(struct trans *t, const struct x86_insn *insn)
{
	struct emit *e = &t->e;
	regs_lend(t, RCX, H_TMP);
	asm_mov_imm(e, H_DELTA, COUNT_BITS);
	asm_shrx(e, RCX, RCX, H_DELTA);
	uint8_t *on = asm_jrcxz(e);
	struct cold *c = cold_add(t, COLD_STRING, asm_jmp(e));
	c->rcx_in_tmp = true;
	c->insn = insn;
	asm_patch8(on, e->p);
	regs_give_back(t, RCX, H_TMP);
	return c;
}

static void to_host(struct trans *t, unsigned reg, unsigned delta, uint8_t moved)
{
	asm_lea(&t->e, 8, reg, (int)reg, (int)delta, 1, 0);
	t->moved |= moved;
	map_here(t);
}

/* reg -= delta, but without the flags that SUB makes. */
static void from_host(struct trans *t, unsigned reg, unsigned delta, uint8_t moved)
{
	asm_mov(&t->e, H_TMP, delta);
	asm_not(&t->e, H_TMP);
	asm_lea(&t->e, 8, reg, (int)reg, H_TMP, 1, 1);
	t->moved &= (uint8_t)~moved;
	map_here(t);
}

bool window_string(struct trans *t, const struct x86_insn *insn)
{
	uint8_t op = insn->opcode | 1;
	bool src = op == 0xa5 || op == 0xa7 || op == 0xad, dst = op != 0xad;
	if (t->mode != MODE_64 || insn->addrsize != 8 || !plain_prefixes(insn) || t->eng->no_string)
		return false;
	regs_fixed(t);
	if (flags_merge(insn))
		flags_need(t);
	struct cold *cold = insn->flags & (INSN_REP | INSN_REPNE) ? check_count(t, insn) : NULL;
	if (flags_merge(insn)) /* it changes them element by element, and may fault after each */
		t->flags = FLAGS_HOST;
	if (src)
		window_delta(t, H_ADDR, RSI);
	if (dst)
		window_delta(t, H_DELTA, RDI);
	if (src)
		to_host(t, RSI, H_ADDR, MOVED_RSI);
	if (dst)
		to_host(t, RDI, H_DELTA, MOVED_RDI);
	emit_bytes(&t->e, insn->bytes, insn->len);
	if (dst)
		from_host(t, RDI, H_DELTA, MOVED_RDI);
	if (src)
		from_host(t, RSI, H_ADDR, MOVED_RSI);
	if (insn->fl_write & FL_ARITH)
		t->flags = FLAGS_HOST;
	if (cold) {
		cold->resume = t->e.p;
		cold->flags_after = (uint8_t)t->flags;
	}
	return true;
}
