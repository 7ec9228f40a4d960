/* Memory operands through windows (window.h): three instructions, none of which touches flags, and the access itself.
 */
#include "engine/translate/rewrite.h"
#include "engine/translate/trans.h"

void window_delta(struct trans *t, unsigned delta, unsigned reg)
{
	asm_rorx(&t->e, delta, reg, REGION_SHIFT);
	asm_rr(&t->e, 0x0fb6, 4, delta, delta);
	asm_load_gs_index(&t->e, delta, delta,
			  VCPU_OFF(window_delta) + t->kernel * (int32_t)sizeof(t->v->window_delta[0]));
}

struct host_mem window_fixed(struct trans *t)
{
	window_delta(t, H_DELTA, H_ADDR);
	return (struct host_mem){H_ADDR, H_DELTA, 0};
}

/*
 * stack_delta is of the region that RSP is in, or has left by less than a window's margin. Moves by known amounts leave
 * it as it is, and a loop could add up as many of them as it likes. So each block that moves RSP accesses something
 * near it as well, which faults when it is not in its region any more, or finds its region before it is left.
 */
static void stack_is_sure(struct trans *t)
{
	t->stack_moved = false;
	t->stack_sure = true;
}

/* [guest register base + disp]. `s`: the slot that keeps the delta for other accesses, if any. */
static struct host_mem based(struct trans *t, const struct share *s, unsigned base, int32_t disp, uint8_t avoid)
{
	unsigned host = regs_use(t, base), delta;
	if (base == RSP) {
		if (!(t->insn->flags & (INSN_AVX | INSN_FPU))) /* some access nothing: by a mask, by an exception */
			stack_is_sure(t);
		return (struct host_mem){RSP, (int8_t)regs_slot(t, SLOT_STACK, avoid), disp};
	}
	if (s->slot >= 0 && !s->leader) {
		delta = regs_slot(t, (unsigned)s->slot, avoid);
	} else {
		delta = regs_scratch(t, avoid);
		window_delta(t, delta, host);
		if (s->slot >= 0)
			regs_slot_made(t, (unsigned)s->slot, delta);
	}
	if (s->slot >= 0 && s->last)
		regs_slot_done(t, (unsigned)s->slot);
	return (struct host_mem){(uint8_t)host, (int8_t)delta, disp};
}

void window_stack_after(struct trans *t, const struct x86_insn *insn)
{
	int32_t by;
	if (share_known_move(insn, RSP, &by))
		t->stack_moved |= !t->stack_sure;
	else
		window_stack_moved(t);
}

void window_stack_settle(struct trans *t)
{
	if (t->stack_moved)
		window_stack_moved(t);
}

void window_stack_moved(struct trans *t)
{
	stack_is_sure(t);
	regs_slot_done(t, SLOT_STACK);
	t->regs.pinned = 0;
	unsigned delta = regs_scratch(t, 0);
	window_delta(t, delta, RSP);
	asm_store_gs(&t->e, 8, delta, VCPU_OFF(stack_delta));
	regs_release(t, delta);
}

struct host_mem window_stack(struct trans *t, int32_t disp, uint8_t avoid)
{
	return based(t, &t->sharing->stack, RSP, disp, avoid);
}

/* The address in a register of its own, which may be the home of what it was made from. */
static unsigned address(struct trans *t, const struct x86_insn *insn, uint8_t avoid)
{
	struct emit *e = &t->e;
	unsigned addr;
	if (insn->base == 16) {
		addr = regs_scratch(t, avoid);
		mem_page_address(t, addr, t->next + insn->disp);
		if (insn->addrsize == 4)
			asm_rr(e, 0x8b, 4, addr, addr);
		return addr;
	}
	int base = insn->base < 0 ? -1 : (int)regs_use(t, (unsigned)insn->base);
	int index = insn->index < 0 ? -1 : (int)regs_use(t, (unsigned)insn->index);
	if (base >= 0 && spilled((unsigned)base))
		regs_release(t, (unsigned)base);
	if (index >= 0 && spilled((unsigned)index))
		regs_release(t, (unsigned)index);
	addr = regs_scratch(t, avoid);
	if (base < 0 && index < 0)
		asm_mov_imm(e, addr, zext((uint64_t)insn->disp, insn->addrsize));
	else
		asm_lea(e, insn->addrsize, addr, base, index, insn->scale ? insn->scale : 1, (int32_t)insn->disp);
	return addr;
}

static void add_segment(struct trans *t, unsigned addr, unsigned seg, uint8_t avoid)
{
	unsigned base = regs_scratch(t, avoid);
	asm_load_gs(&t->e, 8, base, mem_segment_base(seg));
	asm_lea(&t->e, 8, addr, (int)addr, (int)base, 1, 0);
	regs_release(t, base);
}

/* Relative to RIP: the host's address of this page is known, and 2 GiB on either side of a region there is nothing. */
static bool relative(const struct trans *t, const struct x86_insn *insn, int32_t *disp)
{
	int64_t d = t->next + insn->disp;
	*disp = (int32_t)d;
	return insn->base == 16 && insn->addrsize == 8 && insn->seg != SEG_FS && insn->seg != SEG_GS && d == *disp;
}

static struct host_mem window_operand(struct trans *t, const struct x86_insn *insn, uint8_t avoid)
{
	int32_t disp;
	if (relative(t, insn, &disp)) {
		unsigned page = regs_scratch(t, avoid);
		asm_load_gs(&t->e, 8, page, quick_seen(t));
		return (struct host_mem){(uint8_t)page, -1, disp};
	}
	if (share_possible(insn))
		return based(t, &t->sharing->mem, (unsigned)insn->base, (int32_t)insn->disp, avoid);
	unsigned addr = address(t, insn, avoid);
	if (insn->seg == SEG_FS || insn->seg == SEG_GS)
		add_segment(t, addr, insn->seg, avoid);
	unsigned delta = regs_scratch(t, avoid);
	window_delta(t, delta, addr);
	return (struct host_mem){(uint8_t)addr, (int8_t)delta, 0};
}

struct host_mem window_flat(struct trans *t, const struct x86_insn *insn)
{
	struct host_mem m = window_operand(t, insn, 0);
	regs_fixed(t);
	asm_lea(&t->e, 8, H_ADDR, m.base, m.index, 1, m.disp);
	regs_release(t, H_DELTA);
	return (struct host_mem){H_ADDR, -1, 0};
}

/* Whether the host's three registers are enough for what the instruction names, and for its address. */
static bool fits(const struct x86_insn *insn, uint8_t named)
{
	unsigned address = (insn->base >= 0 && insn->base < X86_GPRS ? 1u << insn->base : 0) |
			   (insn->index >= 0 ? 1u << insn->index : 0);
	if (insn->flags & (INSN_HIGH8 | INSN_VSIB)) /* AH and its like go with no register but the low ones */
		return false;
	if (share_possible(insn))
		return __builtin_popcount(named | regs_mask(address)) <= 2;
	return __builtin_popcount(named) <= 1;
}

bool window_plain(struct trans *t, const struct x86_insn *insn)
{
	unsigned gprs = named_gprs(insn);
	uint8_t named = regs_mask(gprs);
	struct rewrite_map map = {.gpr = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}};
	if (!fits(insn, named))
		return false;
	if (flags_merge(insn))
		flags_need(t);
	struct host_mem m = window_operand(t, insn, named);
	regs_operands(t, insn);
	map.mem_base = (int8_t)m.base;
	map.mem_index = m.index;
	map.mem_disp = m.disp;
	map_here(t);
	if (!rewrite_plain(&t->e, insn, &map)) {
		trans_step(t);
		return true;
	}
	regs_written(t, insn->gpr_write & gprs);
	return true;
}
