/* Where an instruction's memory operand is. */
#include "arch/x86/debug.h"
#include "arch/x86/insn.h"

uint64_t x86_effective_address(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t ea = (uint64_t)insn->disp;

	if (insn->base == 16)
		ea += cpu->rip + insn->len;
	else if (insn->base >= 0)
		ea += cpu->gpr[insn->base];
	if (insn->index >= 0 && !(insn->flags & INSN_VSIB))
		ea += cpu->gpr[insn->index] * insn->scale;
	return zext(ea, insn->addrsize);
}

void x86_note_access(struct x86_cpu *cpu, uint64_t linear, unsigned len, bool write)
{
	if (x86_data_breakpoints_armed(cpu))
		x86_data_breakpoint(cpu, linear, len, write);
}
