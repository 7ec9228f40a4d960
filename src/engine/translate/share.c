#include "engine/translate/share.h"

#include <Zydis/Mnemonic.h>

struct group {
	bool write;
	unsigned members;
	int32_t lo, hi; /* from the base's value at the leader */
	int32_t moved;  /* how far the base (RSP only) has moved since */
	struct share *leader;
	struct share *member[64 * 2];
};

struct plan {
	struct group group[X86_GPRS]; /* one for each base register */
	uint32_t open;                /* BIT(base), of those that go on */
	unsigned slots;
	bool window;
};

static void close_group(struct plan *p, unsigned base)
{
	struct group *g = &p->group[base];
	p->open &= ~BIT(base);
	if (g->members < 2 || p->slots == SHARE_SLOTS)
		return;
	for (unsigned i = 0; i < g->members; i++)
		g->member[i]->slot = (int8_t)p->slots;
	p->slots++;
	g->member[g->members - 1]->last = true;
	g->leader->leader = true;
	g->leader->lo = g->lo;
	g->leader->hi = g->hi;
	g->leader->write = g->write;
}

static void close_all(struct plan *p)
{
	while (p->open)
		close_group(p, (unsigned)__builtin_ctz(p->open));
}

/* Its members are left as they are: they are many, and next to none will be in use. */
static void open_group(struct plan *p, unsigned base, struct share *leader, int32_t lo, int32_t hi)
{
	struct group *g = &p->group[base];
	p->open |= BIT(base);
	g->leader = leader;
	g->lo = lo;
	g->hi = hi;
	g->moved = 0;
	g->members = 0;
	g->write = false;
}

static void add_access(struct plan *p, struct share *s, unsigned base, int64_t disp, unsigned size, bool write)
{
	struct group *g = &p->group[base];
	bool open = p->open & BIT(base);
	int64_t lo = disp + (open ? g->moved : 0), hi = lo + size;
	if (open && !p->window && (MAX(hi, g->hi) - MIN(lo, g->lo) > SHARE_SPAN)) {
		close_group(p, base);
		open = false;
		lo = disp;
		hi = lo + size;
	}
	if (!open) {
		open_group(p, base, s, (int32_t)lo, (int32_t)hi);
		s->own_write = write;
		s->own = (int32_t)disp;
	}
	g->lo = MIN(g->lo, (int32_t)lo);
	g->hi = MAX(g->hi, (int32_t)hi);
	g->write |= write;
	g->member[g->members++] = s;
}

/* A base register with more beside it is an index, and the displacement the address. */
#define DISP_MAX (1 << 24)

bool share_possible(const struct x86_insn *insn)
{
	return (insn->flags & INSN_MEM) && !(insn->flags & INSN_VSIB) && insn->addrsize == 8 && insn->base >= 0 &&
	       insn->base < X86_GPRS && insn->index < 0 && insn->seg != SEG_FS && insn->seg != SEG_GS &&
	       insn->disp >= -DISP_MAX && insn->disp <= DISP_MAX && insn->mem_size <= 64;
}

static void move_stack(struct plan *p, int32_t by)
{
	if (p->open & BIT(RSP))
		p->group[RSP].moved += by;
}

static bool small(int64_t move, int32_t *by)
{
	*by = (int32_t)move;
	return move >= -SHARE_MOVE_MAX && move <= SHARE_MOVE_MAX;
}

bool share_known_move(const struct x86_insn *insn, unsigned reg, int32_t *by)
{
	if (insn->opsize != 8 || (insn->flags & INSN_MEM))
		return false;
	if (insn->mnemonic == ZYDIS_MNEMONIC_LEA) {
		return insn->reg == reg && insn->base == (int)reg && insn->index < 0 && insn->addrsize == 8 &&
		       small(insn->disp, by);
	}
	bool accumulator = insn->map == 0 && (insn->opcode == 0x05 || insn->opcode == 0x2d);
	if (!insn->imm_len || (accumulator ? reg != RAX : !(insn->flags & INSN_RM_GPR) || insn->rm != reg))
		return false;
	if (insn->mnemonic != ZYDIS_MNEMONIC_SUB && insn->mnemonic != ZYDIS_MNEMONIC_ADD)
		return false;
	return small(insn->mnemonic == ZYDIS_MNEMONIC_SUB ? -(int64_t)insn->imm : (int64_t)insn->imm, by);
}

static void plan_stack(struct plan *p, const struct x86_insn *insn, struct share_insn *out)
{
	if (insn->opsize != 8) {
		close_all(p);
		return;
	}
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_CALL:
		add_access(p, &out->stack, RSP, -8, 8, true);
		move_stack(p, -8);
		break;
	case ZYDIS_MNEMONIC_POP:
		if (insn->flags & INSN_MEM) {
			close_all(p);
			break;
		}
		add_access(p, &out->stack, RSP, 0, 8, false);
		move_stack(p, 8);
		break;
	case ZYDIS_MNEMONIC_RET:
		add_access(p, &out->stack, RSP, 0, 8, false);
		break;
	default:
		close_all(p);
		break;
	}
}

static bool pops_rsp(const struct x86_insn *insn)
{
	return insn->mnemonic == ZYDIS_MNEMONIC_POP && !(insn->flags & INSN_MEM) && x86_stack_register(insn) == RSP;
}

static void close_written(struct plan *p, const struct x86_insn *insn)
{
	bool stack = insn->cls == CLS_STACK || insn->cls == CLS_BRANCH;
	int32_t by;
	for (uint32_t left = insn->gpr_write & p->open; left; left &= left - 1) {
		unsigned r = (unsigned)__builtin_ctz(left);
		if (r == RSP && stack && !pops_rsp(insn))
			continue;
		if (r == RSP && share_known_move(insn, r, &by))
			move_stack(p, by);
		else if (p->window && share_known_move(insn, r, &by) && by == (int16_t)by)
			continue;
		else
			close_group(p, r);
	}
}

void share_plan(const struct x86_insn *insn, unsigned n, bool window, const bool *alone, struct share_insn *out)
{
	struct plan plan, *p = &plan;
	p->slots = 0;
	p->open = 0;
	p->window = window;
	for (unsigned i = 0; i < n; i++, insn++) {
		out[i] = (struct share_insn){.mem.slot = -1, .stack.slot = -1};
		if (insn->cls != CLS_PLAIN && insn->cls != CLS_STACK && insn->cls != CLS_BRANCH) {
			close_all(p); /* a helper, which may change what is mapped */
			continue;
		}
		if (share_possible(insn) && !alone[i])
			add_access(p, &out[i].mem, (unsigned)insn->base, insn->disp, insn->mem_size, insn->mem_write);
		if (insn->cls == CLS_STACK || (insn->cls == CLS_BRANCH && (insn->gpr_write & 1u << RSP)))
			plan_stack(p, insn, &out[i]);
		close_written(p, insn);
	}
	close_all(p);
}
