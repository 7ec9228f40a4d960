/* IRET in all modes (SDM Vol. 2, IRET; Vol. 3A 7.14). */
#include "arch/x86/far.h"

enum { IRET_RIP, IRET_CS, IRET_FLAGS, IRET_RSP, IRET_SS };

/* Which bits of RFLAGS a return may change, with this operand size, at the current privilege. */
static uint64_t flags_mask(const struct x86_cpu *cpu, unsigned size)
{
	uint64_t mask = FL_ARITH | FL_TF | FL_DF | FL_NT;

	if (size >= 4)
		mask |= FL_RF | FL_AC | FL_ID;
	if (cpu->cpl <= iopl(cpu))
		mask |= FL_IF;
	if (cpu->cpl == 0) {
		mask |= FL_IOPL;
		if (size >= 4)
			mask |= FL_VIF | FL_VIP;
	}
	return mask;
}

static void load_flags(struct x86_cpu *cpu, uint64_t image, uint64_t mask)
{
	cpu->rflags = (cpu->rflags & ~mask) | (image & mask) | FL_FIXED1;
}

/* Real mode, and virtual-8086 mode with IOPL 3, which can't change IOPL. */
static enum verdict iret_flat(struct x86_cpu *cpu, unsigned size)
{
	uint64_t item[3], mask = FL_ARITH | FL_TF | FL_IF | FL_DF | FL_NT;
	struct stack s;

	if (vm86_mode(cpu) && iopl(cpu) < 3)
		return raise_gp(cpu, 0);
	stack_current(cpu, &s);
	TRY(stack_pop(cpu, &s, item, 3, size));
	if (item[IRET_RIP] > cpu->seg[SEG_CS].limit)
		return raise_gp(cpu, 0);
	stack_commit(cpu, &s);
	seg_load_flat(cpu, SEG_CS, (uint16_t)item[IRET_CS]);
	cpu->rip = item[IRET_RIP];
	if (real_mode(cpu))
		mask |= FL_IOPL;
	if (size >= 4)
		mask |= FL_RF | FL_AC | FL_ID;
	load_flags(cpu, item[IRET_FLAGS], mask);
	return V_DONE;
}

/* From CPL 0 to virtual-8086 mode: the frame goes on with ES, DS, FS, GS. */
static enum verdict iret_to_vm86(struct x86_cpu *cpu, struct stack *s, const uint64_t item[3])
{
	uint64_t more[6];

	TRY(stack_pop(cpu, s, more, 6, 4));
	if (item[IRET_RIP] > 0xffff)
		return raise_gp(cpu, 0);
	load_flags(cpu, item[IRET_FLAGS], flags_mask(cpu, 4) | FL_VM);
	cpu->cpl = 3;
	cpu->rip = item[IRET_RIP];
	cpu->gpr[RSP] = more[0];
	seg_load_flat(cpu, SEG_CS, (uint16_t)item[IRET_CS]);
	seg_load_flat(cpu, SEG_SS, (uint16_t)more[1]);
	seg_load_flat(cpu, SEG_ES, (uint16_t)more[2]);
	seg_load_flat(cpu, SEG_DS, (uint16_t)more[3]);
	seg_load_flat(cpu, SEG_FS, (uint16_t)more[4]);
	seg_load_flat(cpu, SEG_GS, (uint16_t)more[5]);
	return V_DONE;
}

static enum verdict iret_same(struct x86_cpu *cpu, const struct stack *s, const uint64_t item[3], unsigned size)
{
	struct descriptor cs;

	TRY(far_check_return_cs(cpu, (uint16_t)item[IRET_CS], item[IRET_RIP], &cs));
	TRY(desc_set_bit(cpu, &cs, 1));
	stack_commit(cpu, s);
	load_flags(cpu, item[IRET_FLAGS], flags_mask(cpu, size));
	seg_load_cs(cpu, &cs, (uint16_t)item[IRET_CS], cpu->cpl);
	cpu->rip = item[IRET_RIP];
	return V_DONE;
}

/* With SS:RSP in the frame: to outer privilege, and always in 64-bit mode. */
static enum verdict iret_with_stack(struct x86_cpu *cpu, const uint64_t item[5], unsigned size)
{
	unsigned rpl = item[IRET_CS] & 3;
	struct descriptor cs, ss;
	bool outer;

	TRY(far_check_return_cs(cpu, (uint16_t)item[IRET_CS], item[IRET_RIP], &cs));
	TRY(far_check_return_ss(cpu, (uint16_t)item[IRET_SS], &cs, rpl, &ss));
	TRY(desc_set_bit(cpu, &cs, 1));
	load_flags(cpu, item[IRET_FLAGS], flags_mask(cpu, size)); /* at the old privilege */
	far_load_stack(cpu, &cs, &ss, item[IRET_RSP]);
	outer = rpl > cpu->cpl;
	seg_load_cs(cpu, &cs, (uint16_t)item[IRET_CS], rpl);
	cpu->rip = item[IRET_RIP];
	if (outer)
		seg_drop_inner(cpu);
	return V_DONE;
}

static enum verdict iret_protected(struct x86_cpu *cpu, unsigned size)
{
	uint64_t item[5];
	struct stack s;

	stack_current(cpu, &s);
	if (x86_code64(cpu)) {
		TRY(stack_pop(cpu, &s, item, 5, size));
		return iret_with_stack(cpu, item, size);
	}
	TRY(stack_pop(cpu, &s, item, 3, size));
	if (size == 4 && item[IRET_FLAGS] & FL_VM && cpu->cpl == 0 && !x86_long_mode(cpu))
		return iret_to_vm86(cpu, &s, item);
	if ((item[IRET_CS] & 3) <= cpu->cpl)
		return iret_same(cpu, &s, item, size);
	TRY(stack_pop(cpu, &s, item + 3, 2, size));
	return iret_with_stack(cpu, item, size);
}

/* NT: return to the task that the TSS names. */
static enum verdict iret_task(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	const struct x86_segment *tr = &cpu->seg[SEG_TR];
	uint16_t link;

	if (x86_long_mode(cpu))
		return raise_gp(cpu, 0);
	TRY(mem_read(cpu, tr->base, &link, 2, ACC_IMPLICIT));
	return task_switch(cpu, link, TASK_IRET, next_rip(cpu, insn), 0);
}

enum verdict sys_iret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = plain_opsize(insn);

	if (flat_selectors(cpu))
		TRY(iret_flat(cpu, size));
	else if (cpu->rflags & FL_NT)
		TRY(iret_task(cpu, insn));
	else
		TRY(iret_protected(cpu, size));
	cpu->nmi_blocked = false;
	mode_changed(cpu);
	return V_DONE;
}
