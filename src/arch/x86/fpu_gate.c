/*
 * May this x87, MMX, SSE or AVX instruction run now? CR0, CR4 and XCR0 decide, before anything else is looked at (SDM
 * Vol. 3A tables 2-2, 13-1 and 13-3; Vol. 2 2.4 for VEX).
 */
#include "engine/translate/thunk.h"

enum unit { UNIT_NONE, UNIT_X87, UNIT_WAIT, UNIT_FXSAVE, UNIT_XSAVE, UNIT_MMX, UNIT_SSE, UNIT_AVX };

static enum unit group_0fae(const struct x86_insn *insn)
{
	switch ((insn->modrm >> 3) & 7) {
	case 0:
	case 1:
		return UNIT_FXSAVE;
	case 2: /* LDMXCSR, STMXCSR */
	case 3:
		return UNIT_SSE;
	default:
		return UNIT_XSAVE;
	}
}

static enum unit unit_of(const struct x86_insn *insn)
{
	if (insn->flags & INSN_AVX)
		return UNIT_AVX;
	if (insn->map == 0)
		return insn->opcode == 0x9b ? UNIT_WAIT : UNIT_X87;
	if (insn->map == 1 && insn->opcode == 0xae)
		return group_0fae(insn);
	if (insn->map == 1 && insn->opcode == 0xc7)
		return UNIT_XSAVE;
	return insn->flags & INSN_SSE ? UNIT_SSE : UNIT_MMX;
}

static bool is_undefined(const struct x86_cpu *cpu, enum unit unit)
{
	switch (unit) {
	case UNIT_MMX:
		return cpu->cr0 & CR0_EM;
	case UNIT_SSE:
		return (cpu->cr0 & CR0_EM) || !(cpu->cr4 & CR4_OSFXSR);
	case UNIT_XSAVE:
		return !(cpu->cr4 & CR4_OSXSAVE);
	case UNIT_AVX:
		return !(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX);
	default:
		return false;
	}
}

static bool is_unavailable(const struct x86_cpu *cpu, enum unit unit)
{
	switch (unit) {
	case UNIT_WAIT:
		return (cpu->cr0 & CR0_MP) && (cpu->cr0 & CR0_TS);
	case UNIT_X87:
	case UNIT_FXSAVE:
		return cpu->cr0 & (CR0_EM | CR0_TS);
	default:
		return cpu->cr0 & CR0_TS;
	}
}

enum verdict x86_fpu_gate(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	enum unit unit;

	/* VEX is not known in real and virtual-8086 mode; its general-register instructions have no other condition. */
	if ((insn->flags & INSN_VEX) && (!(cpu->cr0 & CR0_PE) || (cpu->rflags & FL_VM)))
		return x86_raise(cpu, X86_UD);
	if (!(insn->flags & (INSN_FPU | INSN_SSE | INSN_AVX)))
		return V_DONE;
	unit = unit_of(insn);
	if (is_undefined(cpu, unit))
		return x86_raise(cpu, X86_UD);
	if (is_unavailable(cpu, unit))
		return x86_raise(cpu, X86_NM);
	return V_DONE;
}
