/* Far JMP, CALL and RET: direct, through call gates, and to other tasks (SDM Vol. 3A 5.8; Vol. 2 CALL, JMP, RET). */
#include "arch/x86/far.h"

struct far_ptr {
	uint64_t off;
	uint16_t sel;
	unsigned size; /* of the offset: the operand size */
};

static uint64_t load_le(const uint8_t *p, unsigned len)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < len; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

static enum verdict read_far_ptr(struct x86_cpu *cpu, const struct x86_insn *insn, struct far_ptr *f)
{
	unsigned size = plain_opsize(insn);
	uint8_t raw[10];
	const uint8_t *p = raw;
	uint64_t linear;

	if (size == 8 && x86_is_amd(cpu))
		size = 4; /* AMD has no 16:64 pointers: REX.W is ignored */
	if (insn->opcode == 0xff) {
		if (modrm_is_reg(insn))
			return raise_ud(cpu);
		TRY(operand_linear(cpu, insn, 0, size + 2, ACC_READ, &linear));
		TRY(check_alignment(cpu, linear, size));
		TRY(mem_read(cpu, linear, raw, size + 2, x86_access_mode(cpu)));
	} else {
		p = insn->bytes + insn->imm_off;
	}
	f->size = size;
	f->off = load_le(p, size);
	f->sel = (uint16_t)load_le(p + size, 2);
	return V_DONE;
}

/* A direct transfer keeps the privilege level: checks of the code segment in `d`. */
static enum verdict check_direct(struct x86_cpu *cpu, uint16_t sel, const struct descriptor *d)
{
	uint16_t attr = d->seg.attr;
	unsigned dpl = SEG_ATTR_DPL(attr);

	if (desc_conforming(attr) ? dpl > cpu->cpl : (sel & 3u) > cpu->cpl || dpl != cpu->cpl)
		return raise_gp(cpu, sel & ~3u);
	if (!(attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, sel & ~3u);
	if (x86_long_mode(cpu) && attr & SEG_ATTR_L && attr & SEG_ATTR_DB)
		return raise_gp(cpu, sel & ~3u);
	return V_DONE;
}

/* #GP(0) unless `off` is canonical (64-bit code) or within the limit. */
static enum verdict far_check_offset(struct x86_cpu *cpu, const struct descriptor *cs, uint64_t off)
{
	if (x86_long_mode(cpu) && cs->seg.attr & SEG_ATTR_L ? x86_canonical(off) : off <= cs->seg.limit)
		return V_DONE;
	return raise_gp(cpu, 0);
}

/* A call gate and the code segment behind it. */
struct call_gate {
	uint64_t off;
	uint16_t sel;
	unsigned size;   /* of what is pushed: 2, 4, 8 */
	unsigned params; /* copied from the old stack */
	struct descriptor cs;
};

static enum verdict check_gate_target(struct x86_cpu *cpu, struct call_gate *g, bool call)
{
	uint32_t error = g->sel & ~3u;
	unsigned dpl;
	uint16_t attr;

	if (sel_null(g->sel))
		return raise_gp(cpu, 0);
	TRY(desc_read(cpu, g->sel, X86_GP, 0, &g->cs));
	attr = g->cs.seg.attr;
	dpl = SEG_ATTR_DPL(attr);
	if (!desc_code(attr) || dpl > cpu->cpl)
		return raise_gp(cpu, error);
	if (!call && !desc_conforming(attr) && dpl != cpu->cpl)
		return raise_gp(cpu, error);
	if (x86_long_mode(cpu) && (attr & (SEG_ATTR_L | SEG_ATTR_DB)) != SEG_ATTR_L)
		return raise_gp(cpu, error);
	if (!(attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, error);
	return far_check_offset(cpu, &g->cs, g->off);
}

static enum verdict read_call_gate(struct x86_cpu *cpu, uint16_t sel, struct descriptor *d, bool call,
				   struct call_gate *g)
{
	unsigned dpl = SEG_ATTR_DPL(d->seg.attr);

	if (dpl < cpu->cpl || dpl < (sel & 3u))
		return raise_gp(cpu, sel & ~3u);
	if (!(d->seg.attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, sel & ~3u);
	TRY(desc_read_high(cpu, sel, d));
	g->sel = (uint16_t)(d->raw[0] >> 16);
	g->off = (d->raw[0] & 0xffff) | (d->raw[1] & 0xffff0000);
	g->size = d->seg.attr & 8 ? 4 : 2;
	g->params = d->raw[1] & 31;
	if (g->size == 2)
		g->off &= 0xffff;
	if (x86_long_mode(cpu)) {
		g->off |= (uint64_t)d->raw[2] << 32;
		g->size = 8;
		g->params = 0;
	}
	return check_gate_target(cpu, g, call);
}

static void enter_cs(struct x86_cpu *cpu, const struct descriptor *cs, uint16_t sel, unsigned cpl, uint64_t rip)
{
	seg_load_cs(cpu, cs, sel, cpl);
	cpu->rip = rip;
	mode_changed(cpu);
}

/* Which way a far transfer to this descriptor goes. */
enum far_kind { FAR_CODE, FAR_GATE, FAR_TASK_GATE, FAR_TSS, FAR_BAD };

static enum far_kind far_kind(const struct x86_cpu *cpu, uint16_t attr)
{
	unsigned type = attr & 0x1f;

	if (desc_code(attr))
		return FAR_CODE;
	if (type == DESC_CALL32 || (type == DESC_CALL16 && !x86_long_mode(cpu)))
		return FAR_GATE;
	if (x86_long_mode(cpu))
		return FAR_BAD;
	if (type == DESC_TASK)
		return FAR_TASK_GATE;
	return type == DESC_TSS16 || type == DESC_TSS32 ? FAR_TSS : FAR_BAD;
}

/* JMP or CALL to a TSS or task gate. */
static enum verdict far_task(struct x86_cpu *cpu, const struct x86_insn *insn, uint16_t sel, const struct descriptor *d,
			     enum task_source source)
{
	unsigned dpl = SEG_ATTR_DPL(d->seg.attr);

	if (dpl < cpu->cpl || dpl < (sel & 3u))
		return raise_gp(cpu, sel & ~3u);
	if ((d->seg.attr & 0x1f) == DESC_TASK) {
		if (!(d->seg.attr & SEG_ATTR_P))
			return x86_raise_error(cpu, X86_NP, sel & ~3u);
		sel = (uint16_t)(d->raw[0] >> 16);
	}
	return task_switch(cpu, sel, source, next_rip(cpu, insn), 0);
}

static enum verdict far_flat_jmp(struct x86_cpu *cpu, const struct far_ptr *f)
{
	if (f->off > cpu->seg[SEG_CS].limit)
		return raise_gp(cpu, 0);
	seg_load_flat(cpu, SEG_CS, f->sel);
	cpu->rip = f->off;
	mode_changed(cpu);
	return V_DONE;
}

enum verdict sys_far_jmp(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct descriptor d;
	struct call_gate g;
	struct far_ptr f;

	TRY(read_far_ptr(cpu, insn, &f));
	if (flat_selectors(cpu))
		return far_flat_jmp(cpu, &f);
	if (sel_null(f.sel))
		return raise_gp(cpu, 0);
	TRY(desc_read(cpu, f.sel, X86_GP, 0, &d));
	switch (far_kind(cpu, d.seg.attr)) {
	case FAR_CODE:
		TRY(check_direct(cpu, f.sel, &d));
		TRY(far_check_offset(cpu, &d, f.off));
		TRY(desc_set_bit(cpu, &d, 1));
		enter_cs(cpu, &d, f.sel, cpu->cpl, f.off);
		return V_DONE;
	case FAR_GATE:
		TRY(read_call_gate(cpu, f.sel, &d, false, &g));
		TRY(desc_set_bit(cpu, &g.cs, 1));
		enter_cs(cpu, &g.cs, g.sel, cpu->cpl, g.off);
		return V_DONE;
	case FAR_TASK_GATE:
	case FAR_TSS:
		return far_task(cpu, insn, f.sel, &d, TASK_JMP);
	default:
		return raise_gp(cpu, f.sel & ~3u);
	}
}

/* Pushes CS:RIP on the current stack, then the part that can't fail. */
static enum verdict call_same(struct x86_cpu *cpu, const struct x86_insn *insn, const struct descriptor *cs,
			      uint16_t sel, uint64_t off, unsigned size)
{
	uint64_t item[2] = {cpu->seg[SEG_CS].sel, next_rip(cpu, insn)};
	struct stack s;
	enum verdict v;

	stack_current(cpu, &s);
	v = stack_push(cpu, &s, item, 2, size);
	if (!x86_retires(cpu, v))
		return v;
	stack_commit(cpu, &s);
	if (cs)
		seg_load_cs(cpu, cs, sel, cpu->cpl);
	else
		seg_load_flat(cpu, SEG_CS, sel);
	cpu->rip = off;
	mode_changed(cpu);
	return v;
}

/* The inner stack of a call gate: from the TSS, checked. */
static enum verdict gate_stack(struct x86_cpu *cpu, unsigned cpl, struct stack *s, struct descriptor *ss, uint16_t *sel)
{
	stack_current(cpu, s);
	s->access = cpl == 3 ? ACC_USER : ACC_IMPLICIT;
	TRY(tss_stack(cpu, cpl, 0, sel, &s->sp));
	if (x86_long_mode(cpu)) {
		s->wide = true;
		s->mask = ~0ull;
		return V_DONE;
	}
	if (sel_null(*sel))
		return x86_raise_error(cpu, X86_TS, 0);
	TRY(desc_read(cpu, *sel, X86_TS, 0, ss));
	TRY(desc_check_stack(cpu, ss, *sel, cpl, X86_TS, 0));
	s->ss = ss->seg;
	s->sel = *sel;
	s->mask = ss->seg.attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;
	s->sp &= s->mask;
	return V_DONE;
}

#define GATE_ITEMS (31 + 4)

/* SS, RSP, parameters, CS, RIP: what the inner stack gets. */
static enum verdict gate_frame(struct x86_cpu *cpu, const struct x86_insn *insn, const struct call_gate *g,
			       uint64_t item[GATE_ITEMS], unsigned *n)
{
	struct stack old;
	uint64_t param[31];

	item[0] = cpu->seg[SEG_SS].sel;
	item[1] = cpu->gpr[RSP];
	*n = 2;
	if (g->params) {
		stack_current(cpu, &old);
		TRY(stack_pop(cpu, &old, param, g->params, g->size));
	}
	for (unsigned i = g->params; i > 0; i--)
		item[(*n)++] = param[i - 1];
	item[(*n)++] = cpu->seg[SEG_CS].sel;
	item[(*n)++] = next_rip(cpu, insn);
	return V_DONE;
}

static enum verdict call_inner(struct x86_cpu *cpu, const struct x86_insn *insn, struct call_gate *g)
{
	unsigned cpl = SEG_ATTR_DPL(g->cs.seg.attr), n;
	uint64_t item[GATE_ITEMS];
	struct descriptor ss;
	struct stack s;
	uint16_t sel;

	TRY(gate_stack(cpu, cpl, &s, &ss, &sel));
	TRY(gate_frame(cpu, insn, g, item, &n));
	TRY(desc_set_bit(cpu, &g->cs, 1));
	if (!x86_long_mode(cpu))
		TRY(desc_set_bit(cpu, &ss, 1));
	TRY(stack_push(cpu, &s, item, n, g->size));
	if (x86_long_mode(cpu))
		seg_load_null_ss(cpu, cpl);
	else
		cpu->seg[SEG_SS] = ss.seg;
	stack_commit(cpu, &s);
	enter_cs(cpu, &g->cs, g->sel, cpl, g->off);
	return V_DONE;
}

static enum verdict call_gate(struct x86_cpu *cpu, const struct x86_insn *insn, uint16_t sel, struct descriptor *d)
{
	struct call_gate g;
	uint16_t attr;

	TRY(read_call_gate(cpu, sel, d, true, &g));
	attr = g.cs.seg.attr;
	if (!desc_conforming(attr) && SEG_ATTR_DPL(attr) < cpu->cpl)
		return call_inner(cpu, insn, &g);
	TRY(desc_set_bit(cpu, &g.cs, 1));
	return call_same(cpu, insn, &g.cs, g.sel, g.off, g.size);
}

static enum verdict far_flat_call(struct x86_cpu *cpu, const struct x86_insn *insn, const struct far_ptr *f)
{
	if (f->off > cpu->seg[SEG_CS].limit)
		return raise_gp(cpu, 0);
	return call_same(cpu, insn, NULL, f->sel, f->off, f->size);
}

enum verdict sys_far_call(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct descriptor d;
	struct far_ptr f;

	TRY(read_far_ptr(cpu, insn, &f));
	if (flat_selectors(cpu))
		return far_flat_call(cpu, insn, &f);
	if (sel_null(f.sel))
		return raise_gp(cpu, 0);
	TRY(desc_read(cpu, f.sel, X86_GP, 0, &d));
	switch (far_kind(cpu, d.seg.attr)) {
	case FAR_CODE:
		TRY(check_direct(cpu, f.sel, &d));
		TRY(far_check_offset(cpu, &d, f.off));
		TRY(desc_set_bit(cpu, &d, 1));
		return call_same(cpu, insn, &d, f.sel, f.off, f.size);
	case FAR_GATE:
		return call_gate(cpu, insn, f.sel, &d);
	case FAR_TASK_GATE:
	case FAR_TSS:
		return far_task(cpu, insn, f.sel, &d, TASK_CALL);
	default:
		return raise_gp(cpu, f.sel & ~3u);
	}
}

/* --- returns, shared with IRET --- */

enum verdict far_check_return_cs(struct x86_cpu *cpu, uint16_t sel, uint64_t off, struct descriptor *cs)
{
	uint32_t error = sel & ~3u;
	unsigned rpl = sel & 3u, dpl;
	uint16_t attr;

	if (sel_null(sel))
		return raise_gp(cpu, 0);
	TRY(desc_read(cpu, sel, X86_GP, 0, cs));
	attr = cs->seg.attr;
	dpl = SEG_ATTR_DPL(attr);
	if (!desc_code(attr) || rpl < cpu->cpl)
		return raise_gp(cpu, error);
	if (desc_conforming(attr) ? dpl > rpl : dpl != rpl)
		return raise_gp(cpu, error);
	if (!(attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, error);
	if (x86_long_mode(cpu) && attr & SEG_ATTR_L && attr & SEG_ATTR_DB)
		return raise_gp(cpu, error);
	return far_check_offset(cpu, cs, off);
}

enum verdict far_check_return_ss(struct x86_cpu *cpu, uint16_t sel, const struct descriptor *cs, unsigned rpl,
				 struct descriptor *ss)
{
	if (sel_null(sel)) {
		/* To 64-bit code above user level only (SDM Vol. 3A 5.8.5.1). */
		if (!x86_long_mode(cpu) || !(cs->seg.attr & SEG_ATTR_L) || rpl == 3 || (sel & 3u) != rpl)
			return raise_gp(cpu, 0);
		ss->seg = (struct x86_segment){.sel = sel, .attr = (uint16_t)(rpl << 5)};
		return V_DONE;
	}
	TRY(desc_read(cpu, sel, X86_GP, 0, ss));
	TRY(desc_check_stack(cpu, ss, sel, rpl, X86_GP, 0));
	return desc_set_bit(cpu, ss, 1);
}

void far_load_stack(struct x86_cpu *cpu, const struct descriptor *cs, const struct descriptor *ss, uint64_t rsp)
{
	cpu->seg[SEG_SS] = ss->seg;
	if (x86_long_mode(cpu) && cs->seg.attr & SEG_ATTR_L)
		cpu->gpr[RSP] = rsp;
	else
		gpr_set(cpu, RSP, rsp, ss->seg.attr & SEG_ATTR_DB ? 4 : 2);
}

static enum verdict ret_flat(struct x86_cpu *cpu, struct stack *s, unsigned size, unsigned release)
{
	uint64_t item[2];

	TRY(stack_pop(cpu, s, item, 2, size));
	if (item[0] > cpu->seg[SEG_CS].limit)
		return raise_gp(cpu, 0);
	s->sp = (s->sp + release) & s->mask;
	stack_commit(cpu, s);
	seg_load_flat(cpu, SEG_CS, (uint16_t)item[1]);
	cpu->rip = item[0];
	mode_changed(cpu);
	return V_DONE;
}

/* To outer privilege: the caller's stack follows the parameters, which are dropped from both stacks. */
static enum verdict ret_outer(struct x86_cpu *cpu, struct stack *s, struct descriptor *cs, const uint64_t target[2],
			      unsigned size, unsigned release)
{
	unsigned rpl = target[1] & 3;
	struct descriptor ss;
	uint64_t outer[2];

	s->sp = (s->sp + release) & s->mask;
	TRY(stack_pop(cpu, s, outer, 2, size));
	TRY(far_check_return_ss(cpu, (uint16_t)outer[1], cs, rpl, &ss));
	TRY(desc_set_bit(cpu, cs, 1));
	far_load_stack(cpu, cs, &ss, outer[0] + release);
	seg_load_cs(cpu, cs, (uint16_t)target[1], rpl);
	cpu->rip = target[0];
	seg_drop_inner(cpu);
	mode_changed(cpu);
	return V_DONE;
}

enum verdict sys_far_ret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = plain_opsize(insn), release = insn->opcode == 0xca ? insn->imm & 0xffff : 0;
	struct descriptor cs;
	uint64_t item[2];
	struct stack s;

	stack_current(cpu, &s);
	if (flat_selectors(cpu))
		return ret_flat(cpu, &s, size, release);
	TRY(stack_pop(cpu, &s, item, 2, size));
	TRY(far_check_return_cs(cpu, (uint16_t)item[1], item[0], &cs));
	if ((item[1] & 3) > cpu->cpl)
		return ret_outer(cpu, &s, &cs, item, size, release);
	TRY(desc_set_bit(cpu, &cs, 1));
	s.sp = (s.sp + release) & s.mask;
	stack_commit(cpu, &s);
	enter_cs(cpu, &cs, (uint16_t)item[1], cpu->cpl, item[0]);
	return V_DONE;
}

static enum verdict adopt_cs(struct x86_cpu *cpu, uint16_t sel)
{
	struct descriptor d;

	if (sel_null(sel))
		return raise_gp(cpu, 0);
	TRY(desc_read(cpu, sel, X86_GP, 0, &d));
	if (!desc_code(d.seg.attr))
		return raise_gp(cpu, sel & ~3u);
	TRY(check_direct(cpu, sel, &d));
	seg_load_cs(cpu, &d, sel, 3);
	return V_DONE;
}

enum verdict x86_adopt_selectors(struct x86_cpu *cpu, const uint16_t sel[X86_SEGS])
{
	uint64_t fs_base = cpu->seg[SEG_FS].base, gs_base = cpu->seg[SEG_GS].base;
	enum verdict all = V_DONE;

	for (unsigned i = 0; i < X86_SEGS; i++) {
		enum verdict one = V_DONE;

		if (sel[i] != cpu->seg[i].sel)
			one = i == SEG_CS ? adopt_cs(cpu, sel[i]) : x86_load_segment(cpu, (enum x86_seg)i, sel[i]);
		if (one != V_DONE)
			all = one;
	}
	cpu->seg[SEG_FS].base = fs_base;
	cpu->seg[SEG_GS].base = gs_base;
	return all;
}
