/* Instructions that translated code hands to C: light helpers for most, the slow path for the rest. */
#include "engine/translate/trans.h"

void trans_step(struct trans *t)
{
	regs_flush(t);
	exit_code(t, TRX_STEP, t->off);
	t->ended = true;
}

/* Control goes elsewhere, or what the next instruction's bytes or meaning are may have changed: the block ends here. */
static bool ends_block(const struct x86_insn *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_RDMSR:
	case ZYDIS_MNEMONIC_WRMSR:
	case ZYDIS_MNEMONIC_SWAPGS:
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
	case ZYDIS_MNEMONIC_SGDT:
	case ZYDIS_MNEMONIC_SIDT:
	case ZYDIS_MNEMONIC_LGDT:
	case ZYDIS_MNEMONIC_LIDT:
	case ZYDIS_MNEMONIC_LLDT:
	case ZYDIS_MNEMONIC_LTR:
	case ZYDIS_MNEMONIC_SLDT:
	case ZYDIS_MNEMONIC_STR:
	case ZYDIS_MNEMONIC_SMSW:
	case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL:
	case ZYDIS_MNEMONIC_VERR:
	case ZYDIS_MNEMONIC_VERW:
	case ZYDIS_MNEMONIC_XGETBV:
	case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_RDPMC:
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE:
		return false;
	case ZYDIS_MNEMONIC_MOV:
		return insn->map == 1 && insn->opcode >= 0x21 && insn->opcode <= 0x23;
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
		return false;
	default:
		return insn->cls == CLS_SYSTEM;
	}
}

static enum helper helper_for(const struct x86_insn *insn)
{
	if (light_xstate_knows(insn))
		return HELPER_XSTATE;
	if (insn->mode == MODE_64 && insn->mnemonic == ZYDIS_MNEMONIC_SYSCALL && !(insn->flags & INSN_LOCK))
		return HELPER_SYSCALL;
	if (insn->mode == MODE_64 && insn->mnemonic == ZYDIS_MNEMONIC_SYSRET && (insn->flags & INSN_REXW) &&
	    !(insn->flags & INSN_LOCK))
		return HELPER_SYSRET;
	return insn->cls == CLS_SYSTEM ? HELPER_SYSTEM : HELPER_GENERAL;
}

void call_helper(struct trans *t, enum helper helper, uint32_t arg)
{
	quick_tell_page(t);
	asm_mov_imm(&t->e, R11, arg);
	jmp_glue(t, t->eng->glue_helper[helper][t->flags == FLAGS_HOST]);
	t->flags = FLAGS_SAVED;
}

/* The helper for it, and back with flags where the block has them. */
void cold_emit_string(struct trans *t, const struct cold *c)
{
	struct call_insn *call = code_new(t->eng, struct call_insn);
	call_helper(t, HELPER_GENERAL, record_at(t->eng, call));
	*call = (struct call_insn){.insn = *c->insn, .off = c->off, .resume = code_at(t->eng, t->e.p)};
	flags_resume(t, (enum flags_at)c->flags_after, c->resume);
}

void trans_call(struct trans *t, const struct x86_insn *insn)
{
	bool system = insn->cls == CLS_SYSTEM, end = ends_block(insn) || insn->cls == CLS_BRANCH;
	struct call_insn *call = code_new(t->eng, struct call_insn);
	regs_flush(t);
	call_helper(t, helper_for(insn), record_at(t->eng, call));
	*call = (struct call_insn){.insn = *insn, .off = t->off, .resume = end ? 0 : code_at(t->eng, t->e.p)};
	t->ended = end;
	if (insn->mnemonic == ZYDIS_MNEMONIC_STI ||
	    (system && (insn->mnemonic == ZYDIS_MNEMONIC_MOV || insn->mnemonic == ZYDIS_MNEMONIC_POP)))
		t->shadow = true;
}
