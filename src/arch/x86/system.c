/* The privileged and sensitive instructions: which function carries out which mnemonic, and how they retire. */
#include "arch/x86/internal.h"

#include <Zydis/Mnemonic.h>

enum {
	SYS_TRANSFER = 1,  /* sets rip itself */
	SYS_KEEP_RF = 2,   /* loads RF */
	SYS_PROTECTED = 4, /* #UD in real and virtual-8086 mode */
	SYS_CPL0 = 8,      /* #GP(0) unless at CPL 0 */
};

struct sys_op {
	sys_fn *fn;
	uint8_t flags;
};

#define OP(name, fn, flags) [ZYDIS_MNEMONIC_##name] = {fn, flags}

static const struct sys_op sys_ops[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
	OP(MOV, sys_mov, 0),
	OP(PUSH, sys_push, 0),
	OP(POP, sys_pop, 0),
	OP(LDS, sys_load_far, 0),
	OP(LES, sys_load_far, 0),
	OP(LFS, sys_load_far, 0),
	OP(LGS, sys_load_far, 0),
	OP(LSS, sys_load_far, 0),

	OP(JMP, sys_far_jmp, SYS_TRANSFER),
	OP(CALL, sys_far_call, SYS_TRANSFER),
	OP(RET, sys_far_ret, SYS_TRANSFER),
	OP(IRET, sys_iret, SYS_TRANSFER | SYS_KEEP_RF),
	OP(IRETD, sys_iret, SYS_TRANSFER | SYS_KEEP_RF),
	OP(IRETQ, sys_iret, SYS_TRANSFER | SYS_KEEP_RF),
	OP(INT, sys_int, SYS_TRANSFER),
	OP(INT1, sys_int1, SYS_TRANSFER),
	OP(INT3, sys_int3, SYS_TRANSFER),
	OP(INTO, sys_into, SYS_TRANSFER),
	OP(SYSCALL, sys_syscall, SYS_TRANSFER),
	OP(SYSRET, sys_sysret, SYS_TRANSFER),
	OP(SYSENTER, sys_sysenter, SYS_TRANSFER),
	OP(SYSEXIT, sys_sysexit, SYS_TRANSFER),

	OP(SGDT, sys_sgdt, 0),
	OP(SIDT, sys_sidt, 0),
	OP(LGDT, sys_lgdt, SYS_CPL0),
	OP(LIDT, sys_lidt, SYS_CPL0),
	OP(SLDT, sys_sldt, SYS_PROTECTED),
	OP(STR, sys_str, SYS_PROTECTED),
	OP(LLDT, sys_lldt, SYS_PROTECTED | SYS_CPL0),
	OP(LTR, sys_ltr, SYS_PROTECTED | SYS_CPL0),
	OP(VERR, sys_verr, SYS_PROTECTED),
	OP(VERW, sys_verw, SYS_PROTECTED),
	OP(LAR, sys_lar, SYS_PROTECTED),
	OP(LSL, sys_lsl, SYS_PROTECTED),
	OP(ARPL, sys_arpl, SYS_PROTECTED),
	OP(SMSW, sys_smsw, 0),
	OP(LMSW, sys_lmsw, SYS_CPL0),
	OP(CLTS, sys_clts, SYS_CPL0),

	OP(RDMSR, sys_rdmsr, SYS_CPL0),
	OP(WRMSR, sys_wrmsr, SYS_CPL0),
	OP(CPUID, sys_cpuid, 0),
	OP(VMCALL, sys_hypercall, 0),
	OP(VMMCALL, sys_hypercall, 0),
	OP(RDTSC, sys_rdtsc, 0),
	OP(RDTSCP, sys_rdtscp, 0),
	OP(RDPMC, sys_rdpmc, 0),
	OP(RDPID, sys_rdpid, 0),
	OP(XGETBV, sys_xgetbv, 0),
	OP(XSETBV, sys_xsetbv, 0),
	OP(INVLPG, sys_invlpg, SYS_CPL0),
	OP(INVPCID, sys_invpcid, 0),
	OP(INVD, sys_invd, SYS_CPL0),
	OP(WBINVD, sys_invd, SYS_CPL0),
	OP(HLT, sys_hlt, SYS_CPL0),
	OP(SWAPGS, sys_swapgs, 0),
	OP(RDFSBASE, sys_fsgsbase, 0),
	OP(RDGSBASE, sys_fsgsbase, 0),
	OP(WRFSBASE, sys_fsgsbase, 0),
	OP(WRGSBASE, sys_fsgsbase, 0),

	OP(CLI, sys_cli, 0),
	OP(STI, sys_sti, 0),
	OP(CLAC, sys_clac, 0),
	OP(STAC, sys_stac, 0),
	OP(PUSHF, sys_pushf, 0),
	OP(PUSHFD, sys_pushf, 0),
	OP(PUSHFQ, sys_pushf, 0),
	OP(POPF, sys_popf, 0),
	OP(POPFD, sys_popf, 0),
	OP(POPFQ, sys_popf, 0),

	OP(IN, sys_in, 0),
	OP(OUT, sys_out, 0),
	OP(INSB, sys_ins, SYS_TRANSFER),
	OP(INSW, sys_ins, SYS_TRANSFER),
	OP(INSD, sys_ins, SYS_TRANSFER),
	OP(OUTSB, sys_outs, SYS_TRANSFER),
	OP(OUTSW, sys_outs, SYS_TRANSFER),
	OP(OUTSD, sys_outs, SYS_TRANSFER),
};

static enum verdict carry_out(struct x86_cpu *cpu, const struct x86_insn *insn, const struct sys_op *op)
{
	if (!op->fn || insn->flags & INSN_LOCK)
		return raise_ud(cpu);
	if (op->flags & SYS_PROTECTED && flat_selectors(cpu))
		return raise_ud(cpu);
	if (op->flags & SYS_CPL0 && cpu->cpl)
		return raise_gp(cpu, 0);
	return op->fn(cpu, insn);
}

enum verdict x86_emulate_system(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	static const struct sys_op none;
	const struct sys_op *op = insn->mnemonic < ARRAY_LEN(sys_ops) ? &sys_ops[insn->mnemonic] : &none;
	uint64_t next = next_rip(cpu, insn);
	uint8_t shadow = cpu->shadow;
	enum verdict v;

	cpu->shadow = 0; /* those that begin a new one set it */
	v = carry_out(cpu, insn, op);
	if (v == V_RETRY || (v == V_EXIT && !x86_retires(cpu, v) && cpu->exit.kind != EXIT_SHUTDOWN)) {
		cpu->shadow = shadow;
		return v;
	}
	cpu->mmio.count = cpu->mmio.next = 0;
	if (v == V_INJECT) {
		cpu->shadow = shadow;
		return v;
	}
	if (!(op->flags & SYS_KEEP_RF))
		cpu->rflags &= ~(uint64_t)FL_RF;
	if (!(op->flags & SYS_TRANSFER))
		cpu->rip = next;
	return v;
}
