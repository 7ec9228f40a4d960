#include "engine/translate/step.h"

#include "arch/x86/debug.h"
#include "engine/translate/light.h"
#include "engine/translate/thunk.h"

#include <Zydis/Mnemonic.h>

bool step_is_general(const struct x86_insn *insn)
{
	static const uint16_t general[] = {
		ZYDIS_MNEMONIC_CLD,         ZYDIS_MNEMONIC_STD,        ZYDIS_MNEMONIC_XLAT,
		ZYDIS_MNEMONIC_PREFETCH,    ZYDIS_MNEMONIC_PREFETCHW,  ZYDIS_MNEMONIC_PREFETCHWT1,
		ZYDIS_MNEMONIC_PREFETCHNTA, ZYDIS_MNEMONIC_PREFETCHT0, ZYDIS_MNEMONIC_PREFETCHT1,
		ZYDIS_MNEMONIC_PREFETCHT2,  ZYDIS_MNEMONIC_CLFLUSH,    ZYDIS_MNEMONIC_CLFLUSHOPT,
		ZYDIS_MNEMONIC_CLWB,        ZYDIS_MNEMONIC_BOUND,      ZYDIS_MNEMONIC_AAA,
		ZYDIS_MNEMONIC_AAD,         ZYDIS_MNEMONIC_AAM,        ZYDIS_MNEMONIC_AAS,
		ZYDIS_MNEMONIC_DAA,         ZYDIS_MNEMONIC_DAS,        ZYDIS_MNEMONIC_SALC,
	};
	for (unsigned i = 0; i < ARRAY_LEN(general); i++)
		if (insn->mnemonic == general[i])
			return true;
	return false;
}

void step_decode(struct tr_vcpu *v, struct x86_insn *insn, const uint8_t *p, size_t len, enum x86_mode mode)
{
	if (v->engine->no_decode_cache)
		x86_decode(insn, p, len, mode, v->engine->model);
	else
		x86_decode_cached(&v->decoded, insn, p, len, mode, v->engine->model);
}

enum verdict step_fetch(struct tr_vcpu *v, struct x86_insn *insn)
{
	struct x86_cpu *cpu = &v->cpu;
	uint8_t bytes[15];
	enum verdict verdict = V_DONE;
	if (x86_code64(cpu) ? !x86_canonical(cpu->rip) : cpu->rip > cpu->seg[SEG_CS].limit)
		return x86_raise_error(cpu, X86_GP, 0);
	unsigned n = mem_fetch(cpu, linear_rip(cpu), bytes, sizeof(bytes), &verdict);
	step_decode(v, insn, bytes, n, x86_mode(cpu));
	switch (insn->cls) {
	case CLS_PARTIAL:
		if (verdict == V_DONE || verdict == V_EXIT) /* from where there is no memory */
			return x86_raise(cpu, X86_UD);
		return verdict;
	case CLS_TOOLONG:
		return x86_raise_error(cpu, X86_GP, 0);
	case CLS_INVALID:
		return x86_raise(cpu, X86_UD);
	default:
		break;
	}
	if (!x86_code64(cpu) && cpu->rip + insn->len - 1 > cpu->seg[SEG_CS].limit)
		return x86_raise_error(cpu, X86_GP, 0);
	return V_DONE;
}

/* A locked operand that crosses a page cannot be one access on the host: nobody else may do one meanwhile. */
static bool split_lock(struct tr_vcpu *v, const struct x86_insn *insn)
{
	if (!(insn->flags & INSN_MEM) || (!(insn->flags & INSN_LOCK) && insn->mnemonic != ZYDIS_MNEMONIC_XCHG))
		return false;
	uint64_t linear = thunk_operand_offset(&v->cpu, insn) + x86_operand_base(&v->cpu, insn);
	return (linear & ~PAGE_MASK) + insn->mem_size > PAGE_SIZE;
}

static enum verdict thunk_exclusive(struct tr_vcpu *v, const struct x86_insn *insn)
{
	vcpu_code_leave(v);
	exclusive_begin(v->engine, v);
	v->exclusive = true;
	enum verdict r = thunk_step(v->thunk, &v->cpu, insn);
	v->exclusive = false;
	exclusive_end(v->engine);
	vcpu_code_enter(v);
	return r;
}

static enum verdict carry_out(struct tr_vcpu *v, const struct x86_insn *insn)
{
	switch (insn->cls) {
	case CLS_SYSTEM:
		return x86_emulate_system(&v->cpu, insn);
	case CLS_BRANCH:
	case CLS_STACK:
	case CLS_STRING:
		return x86_emulate_general(&v->cpu, insn);
	case CLS_SPECIAL:
		if (step_is_general(insn))
			return x86_emulate_general(&v->cpu, insn);
		break;
	default:
		break;
	}
	return split_lock(v, insn) ? thunk_exclusive(v, insn) : thunk_step(v->thunk, &v->cpu, insn);
}

static bool is_iret(const struct x86_insn *insn)
{
	return insn->mnemonic == ZYDIS_MNEMONIC_IRET || insn->mnemonic == ZYDIS_MNEMONIC_IRETD ||
	       insn->mnemonic == ZYDIS_MNEMONIC_IRETQ;
}

static bool is_repeated(const struct x86_insn *insn)
{
	bool ins_outs = insn->cls == CLS_SYSTEM && !insn->map && (insn->opcode & 0xfc) == 0x6c;

	return insn->flags & (INSN_REP | INSN_REPNE) && (insn->cls == CLS_STRING || ins_outs);
}

/*
 * RF goes when the instruction that it was set for is through (SDM Vol. 3B 17.3.1.1). What IRET has loaded is for the
 * next one; and a repeated one that goes on has it, so that its breakpoint is met once. Returns RFLAGS as they were,
 * with RF if it is to go.
 */
static uint64_t keep_rf(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t rip, uint64_t was)
{
	if (is_iret(insn))
		return was & ~(uint64_t)FL_RF;
	if (!is_repeated(insn) || cpu->rip != rip)
		return was;
	cpu->rflags |= FL_RF;
	return was & ~(uint64_t)FL_RF;
}

/* An instruction has retired with `verdict`: its debug trap, which waits for what the monitor is asked to do. */
static enum verdict traps(struct x86_cpu *cpu, enum verdict verdict, uint64_t was)
{
	enum verdict trap = x86_after_instruction(cpu, was);

	if (verdict == V_DONE || trap == V_DONE)
		return verdict == V_DONE ? trap : verdict;
	if (cpu->exit.kind == EXIT_HLT) { /* over already: a debug exception ends it (SDM Vol. 2, HLT) */
		cpu->exit = (struct x86_exit){0};
		cpu->halted = false;
		return trap;
	}
	cpu->db_pending = X86_TRAP_DUE;
	return verdict;
}

/* As if it were translated: it does not run while somebody is exclusive, who may be in the middle of a split lock. */
static enum verdict carry_out_in_turn(struct tr_vcpu *v, const struct x86_insn *insn)
{
	vcpu_code_enter(v);
	v->stepping = true;
	enum verdict r = carry_out(v, insn);
	v->stepping = false;
	vcpu_code_leave(v);
	return r;
}

enum verdict step(struct tr_vcpu *v)
{
	struct x86_cpu *cpu = &v->cpu;
	struct x86_insn insn;
	uint64_t was = cpu->rflags, rip = cpu->rip;
	uint8_t shadow = cpu->shadow;
	bool debug = x86_debug_active(cpu);
	enum verdict verdict = V_DONE;

	v->stats.single_steps++;
	cpu->mmio.next = 0;
	if (debug)
		verdict = x86_before_instruction(cpu);
	if (verdict == V_DONE)
		verdict = step_fetch(v, &insn);
	if (verdict == V_DONE)
		verdict = carry_out_in_turn(v, &insn);
	if (verdict == V_DONE && insn.mnemonic == ZYDIS_MNEMONIC_SYSRET && (cpu->rflags & FL_TF)) {
		debug = true; /* the TF that SYSRET loads traps after SYSRET itself */
		was |= FL_TF;
	}
	bool retired = verdict == V_DONE || (verdict == V_EXIT && (cpu->exit.write || cpu->exit.kind == EXIT_HLT));
	if (retired || verdict == V_INJECT)
		cpu->mmio.count = cpu->mmio.next = 0;
	if (retired && shadow && cpu->shadow == shadow)
		cpu->shadow = 0;
	if (!debug || !retired)
		return verdict;
	return traps(cpu, verdict, keep_rf(cpu, &insn, rip, was));
}

enum verdict step_trap_due(struct tr_vcpu *v)
{
	struct x86_cpu *cpu = &v->cpu;

	if (!(cpu->db_pending & X86_TRAP_DUE))
		return V_DONE;
	cpu->db_pending = 0;
	return V_INJECT;
}
