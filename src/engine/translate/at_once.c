/*
 * Writes that the monitor sees to while the processor stays in translated code: those to the local APIC, which ends an
 * interrupt and sets a timer all the time. C like any other: light_call_out is the way here.
 */
#include "engine/translate/light.h"
#include "engine/translate/step.h"

#include <Zydis/Mnemonic.h>

bool at_once_exit(struct tr_vcpu *v)
{
	bool done = v->engine->at_once(v->engine->monitor, v->index, &v->cpu.exit);
	v->stats.at_once += done;
	return done;
}

/* MOV of 32 bits from a register or an immediate to memory at tlb_va, as kernels write device registers. */
static bool is_plain_store(const struct tr_vcpu *v, const struct x86_insn *insn)
{
	return insn->mnemonic == ZYDIS_MNEMONIC_MOV && !insn->map && (insn->opcode == 0x89 || insn->opcode == 0xc7) &&
	       (insn->flags & INSN_MEM) && insn->opsize == AT_ONCE_SIZE &&
	       x86_effective_address(&v->cpu, insn) + x86_operand_base(&v->cpu, insn) == v->tlb_va;
}

bool at_once_store(struct tr_vcpu *v)
{
	struct x86_cpu *cpu = &v->cpu;
	struct x86_insn insn;

	if (step_fetch(v, &insn) != V_DONE || !is_plain_store(v, &insn))
		return false;
	cpu->exit = (struct x86_exit){.kind = EXIT_MMIO,
				      .write = true,
				      .len = AT_ONCE_SIZE,
				      .addr = v->device,
				      .data = insn.opcode == 0x89 ? (uint32_t)cpu->gpr[insn.reg] : (uint32_t)insn.imm};
	bool done = at_once_exit(v);
	cpu->exit = (struct x86_exit){0};
	if (done)
		cpu->rip = x86_code64(cpu) ? cpu->rip + insn.len : (uint32_t)(cpu->rip + insn.len);
	return done;
}
