/* Exceptions and interrupts through the IDT: gates, privilege changes, frames (SDM Vol. 3A ch. 7; APM Vol. 2 ch. 8). */
#include "arch/x86/internal.h"

struct gate {
	uint64_t offset;
	uint16_t sel;
	uint8_t type, dpl, ist;
	bool present;
};

/* An event on its way: where it comes from and where it goes. */
struct event {
	unsigned vector, flags;
	uint32_t error, ext;
	uint64_t next; /* where the handler returns to */
	struct gate gate;
	struct descriptor cs, ss;
	uint16_t ss_sel;
	unsigned cpl; /* the handler's */
	struct stack stack;
};

static bool gate_type_good(const struct x86_cpu *cpu, unsigned type)
{
	unsigned good = BIT(DESC_INT32) | BIT(DESC_TRAP32);

	if (!x86_long_mode(cpu))
		good |= BIT(DESC_TASK) | BIT(DESC_INT16) | BIT(DESC_TRAP16);
	return good >> type & 1;
}

static enum verdict read_gate(struct x86_cpu *cpu, struct event *e)
{
	unsigned size = x86_long_mode(cpu) ? 16 : 8;
	uint64_t at = cpu->idtr.base + (uint64_t)e->vector * size;
	uint32_t raw[4] = {0}, error = e->vector * 8 | 2 | e->ext;
	struct gate *g = &e->gate;

	if (e->vector * size + size - 1 > cpu->idtr.limit)
		return raise_gp(cpu, error);
	TRY(table_read(cpu, at, raw, size, X86_GP, error));
	g->offset = (raw[0] & 0xffff) | (raw[1] & 0xffff0000) | (uint64_t)raw[2] << 32;
	g->sel = (uint16_t)(raw[0] >> 16);
	g->ist = x86_long_mode(cpu) ? raw[1] & 7 : 0;
	g->type = raw[1] >> 8 & 0x1f; /* S included: it must be 0 */
	g->dpl = raw[1] >> 13 & 3;
	g->present = raw[1] & BIT(15);
	if (!gate_type_good(cpu, g->type))
		return raise_gp(cpu, error);
	if (e->flags & EVENT_SOFT && g->dpl < cpu->cpl)
		return raise_gp(cpu, error);
	if (!g->present)
		return x86_raise_error(cpu, X86_NP, error);
	if (!(g->type & 8)) /* 16-bit gates have 16-bit offsets */
		g->offset &= 0xffff;
	return V_DONE;
}

/* The handler's code segment: sets e->cs and e->cpl. */
static enum verdict check_handler(struct x86_cpu *cpu, struct event *e)
{
	uint32_t error = (e->gate.sel & ~3u) | e->ext;
	uint16_t attr;

	if (sel_null(e->gate.sel))
		return raise_gp(cpu, e->ext);
	TRY(desc_read(cpu, e->gate.sel, X86_GP, e->ext, &e->cs));
	attr = e->cs.seg.attr;
	if (!desc_code(attr) || SEG_ATTR_DPL(attr) > cpu->cpl)
		return raise_gp(cpu, error);
	if (!(attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, error);
	if (x86_long_mode(cpu) && (attr & (SEG_ATTR_L | SEG_ATTR_DB)) != SEG_ATTR_L)
		return raise_gp(cpu, error);
	e->cpl = desc_conforming(attr) ? cpu->cpl : SEG_ATTR_DPL(attr);
	if (vm86_mode(cpu) && e->cpl)
		return raise_gp(cpu, error);
	if (x86_long_mode(cpu) ? !x86_canonical(e->gate.offset) : e->gate.offset > e->cs.seg.limit)
		return raise_gp(cpu, e->ext);
	return V_DONE;
}

static enum verdict choose_stack64(struct x86_cpu *cpu, struct event *e)
{
	struct stack *s = &e->stack;

	s->wide = true;
	s->mask = ~0ull;
	s->sp = cpu->gpr[RSP];
	s->sel = 0;
	if (e->gate.ist)
		TRY(tss_ist(cpu, e->gate.ist, e->ext, &s->sp));
	else if (e->cpl < cpu->cpl)
		TRY(tss_stack(cpu, e->cpl, e->ext, &e->ss_sel, &s->sp));
	s->sp &= ~0xfull;
	return V_DONE;
}

static enum verdict choose_stack32(struct x86_cpu *cpu, struct event *e)
{
	struct stack *s = &e->stack;

	stack_current(cpu, s);
	if (e->cpl == cpu->cpl)
		return V_DONE;
	TRY(tss_stack(cpu, e->cpl, e->ext, &e->ss_sel, &s->sp));
	if (sel_null(e->ss_sel))
		return x86_raise_error(cpu, X86_TS, e->ext);
	TRY(desc_read(cpu, e->ss_sel, X86_TS, e->ext, &e->ss));
	TRY(desc_check_stack(cpu, &e->ss, e->ss_sel, e->cpl, X86_TS, e->ext));
	s->ss = e->ss.seg;
	s->sel = e->ss_sel;
	s->mask = s->ss.attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;
	s->sp &= s->mask;
	return V_DONE;
}

static enum verdict choose_stack(struct x86_cpu *cpu, struct event *e)
{
	TRY(x86_long_mode(cpu) ? choose_stack64(cpu, e) : choose_stack32(cpu, e));
	e->stack.ext = e->ext;
	/* RFLAGS.AC lifts SMAP only for code that ran with it at supervisor level. */
	e->stack.access = e->cpl == 3 ? ACC_USER : cpu->cpl < 3 && cpu->rflags & FL_AC ? 0 : ACC_IMPLICIT;
	return V_DONE;
}

static enum verdict push_frame(struct x86_cpu *cpu, struct event *e)
{
	unsigned n = 0, size = x86_long_mode(cpu) ? 8 : e->gate.type & 8 ? 4 : 2;
	uint64_t item[10];
	enum verdict v;

	if (vm86_mode(cpu)) {
		static const uint8_t segs[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
		for (unsigned i = 0; i < ARRAY_LEN(segs); i++)
			item[n++] = cpu->seg[segs[i]].sel;
	}
	if (size == 8 || e->cpl != cpu->cpl) {
		item[n++] = cpu->seg[SEG_SS].sel;
		item[n++] = cpu->gpr[RSP];
	}
	item[n++] = cpu->rflags | (e->flags & EVENT_RF ? FL_RF : 0);
	item[n++] = cpu->seg[SEG_CS].sel;
	item[n++] = e->next;
	if (e->flags & EVENT_ERROR)
		item[n++] = e->error;
	v = stack_push(cpu, &e->stack, item, n, size);
	if (v == V_EXIT) { /* a stack in device memory: the frame is lost */
		cpu->exit.kind = EXIT_NONE;
		cpu->mmio_out.count = cpu->mmio_out.next = 0;
		v = V_DONE;
	}
	return v;
}

static void load_stack_segment(struct x86_cpu *cpu, const struct event *e)
{
	if (e->cpl == cpu->cpl)
		return;
	if (x86_long_mode(cpu))
		seg_load_null_ss(cpu, e->cpl);
	else
		cpu->seg[SEG_SS] = e->ss.seg;
}

/* The part that can't fail. */
static void enter_handler(struct x86_cpu *cpu, const struct event *e)
{
	load_stack_segment(cpu, e);
	stack_commit(cpu, &e->stack);
	if (vm86_mode(cpu)) {
		static const uint8_t segs[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};
		for (unsigned i = 0; i < ARRAY_LEN(segs); i++)
			cpu->seg[segs[i]] = (struct x86_segment){0};
	}
	seg_load_cs(cpu, &e->cs, e->gate.sel, e->cpl);
	cpu->rip = e->gate.offset;
	cpu->rflags &= ~(uint64_t)(FL_TF | FL_NT | FL_RF | FL_VM);
	if (!(e->gate.type & 1))
		cpu->rflags &= ~(uint64_t)FL_IF;
}

static enum verdict task_gate(struct x86_cpu *cpu, const struct event *e)
{
	struct stack s;
	uint64_t error = e->error;

	TRY(task_switch(cpu, e->gate.sel, TASK_EVENT, e->next, e->ext));
	if (!(e->flags & EVENT_ERROR))
		return V_DONE;
	stack_current(cpu, &s);
	TRY(stack_push(cpu, &s, &error, 1, cpu->seg[SEG_TR].attr & 8 ? 4 : 2));
	stack_commit(cpu, &s);
	return V_DONE;
}

/* Real mode's interrupt table (SDM Vol. 3B 21.1.4): no error codes. */
static enum verdict deliver_real(struct x86_cpu *cpu, unsigned vector, uint64_t next)
{
	uint64_t item[3] = {cpu->rflags, cpu->seg[SEG_CS].sel, next};
	uint16_t raw[2];
	struct stack s;

	if (vector * 4 + 3 > cpu->idtr.limit)
		return raise_gp(cpu, 0);
	TRY(mem_read(cpu, cpu->idtr.base + 4ull * vector, raw, 4, ACC_IMPLICIT));
	stack_current(cpu, &s);
	s.access = ACC_IMPLICIT;
	TRY(stack_push(cpu, &s, item, 3, 2));
	stack_commit(cpu, &s);
	seg_load_flat(cpu, SEG_CS, raw[1]);
	cpu->rip = raw[0];
	cpu->rflags &= ~(uint64_t)(FL_IF | FL_TF | FL_AC | FL_RF);
	return V_DONE;
}

static enum verdict deliver_protected(struct x86_cpu *cpu, struct event *e)
{
	TRY(read_gate(cpu, e));
	if (e->gate.type == DESC_TASK)
		return task_gate(cpu, e);
	TRY(check_handler(cpu, e));
	TRY(choose_stack(cpu, e));
	TRY(desc_set_bit(cpu, &e->cs, 1));
	if (!x86_long_mode(cpu) && e->cpl != cpu->cpl)
		TRY(desc_set_bit(cpu, &e->ss, 1));
	TRY(push_frame(cpu, e));
	enter_handler(cpu, e);
	return V_DONE;
}

enum verdict deliver_event(struct x86_cpu *cpu, unsigned vector, unsigned flags, uint32_t error, uint64_t next)
{
	struct event e;

	e.vector = vector;
	e.flags = flags;
	e.error = error;
	e.next = next;
	e.ext = flags & EVENT_SOFT ? 0 : 1;
	TRY(real_mode(cpu) ? deliver_real(cpu, vector, next) : deliver_protected(cpu, &e));
	cpu->shadow = 0;
	cpu->halted = false;
	mode_changed(cpu);
	return V_DONE;
}

/* Classes of SDM Vol. 3A table 7-4. */
static bool contributory(unsigned vector)
{
	return (BIT(X86_DE) | BIT(X86_TS) | BIT(X86_NP) | BIT(X86_SS) | BIT(X86_GP)) >> vector & 1;
}

/* Table 7-5: does the second exception, met while the first was delivered, make a double fault? */
static bool makes_double(unsigned first, unsigned second)
{
	if (first == X86_PF)
		return second == X86_PF || contributory(second);
	return contributory(first) && contributory(second);
}

/*
 * Faults push RF set, so that the restarted instruction meets no breakpoint again (SDM Vol. 3B 19.3.1.1): of #DB that
 * of MOV DR, but not that of a breakpoint itself.
 */
static bool pushes_rf(const struct x86_exception *x)
{
	const uint64_t not_faults = BIT(X86_DB) | BIT(X86_NMI) | BIT(X86_BP) | BIT(X86_OF) | BIT(X86_DF) | BIT(X86_MC);

	if (x->vector == X86_DB && x->dr6 & DR6_BD)
		return true;
	return !x->soft && !x->trap && !(not_faults >> x->vector & 1);
}

/* What an exception leaves in registers even when its delivery fails. */
static void record_cause(struct x86_cpu *cpu, const struct x86_exception *x)
{
	if (x->vector == X86_PF) {
		cpu->cr2 = x->cr2;
	} else if (x->vector == X86_DB) {
		cpu->dr6 = (cpu->dr6 & ~0xfull) | x->dr6;
		cpu->dr7 &= ~BIT(13); /* GD: the handler may use the debug registers */
	}
}

static enum verdict shutdown(struct x86_cpu *cpu)
{
	cpu->exit = (struct x86_exit){.kind = EXIT_SHUTDOWN};
	return V_EXIT;
}

enum verdict x86_deliver_exception(struct x86_cpu *cpu)
{
	cpu->db_pending = 0;
	for (;;) {
		struct x86_exception x = cpu->exc;
		unsigned flags =
			(x.has_error ? EVENT_ERROR : 0) | (x.soft ? EVENT_SOFT : 0) | (pushes_rf(&x) ? EVENT_RF : 0);
		enum verdict v;

		record_cause(cpu, &x);
		v = deliver_event(cpu, x.vector, flags, x.error, cpu->rip);
		if (v != V_INJECT)
			return v;
		if (x.vector == X86_DF)
			return shutdown(cpu);
		if (makes_double(x.vector, cpu->exc.vector)) {
			record_cause(cpu, &cpu->exc);
			x86_raise_error(cpu, X86_DF, 0);
		}
	}
}

enum verdict x86_deliver_interrupt(struct x86_cpu *cpu, uint8_t vector)
{
	enum verdict v = deliver_event(cpu, vector, 0, 0, cpu->rip);

	return v == V_INJECT ? x86_deliver_exception(cpu) : v;
}

enum verdict x86_deliver_nmi(struct x86_cpu *cpu)
{
	enum verdict v;

	cpu->nmi_blocked = true;
	v = deliver_event(cpu, X86_NMI, 0, 0, cpu->rip);
	return v == V_INJECT ? x86_deliver_exception(cpu) : v;
}
