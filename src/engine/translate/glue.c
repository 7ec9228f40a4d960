/*
 * The few pieces of host code between C and translated code. They are emitted rather than assembled, so that offsets
 * come from the structures themselves and translated code reaches them by a direct jump.
 */
#include "engine/translate/asm.h"
#include "engine/translate/light.h"

/* Registers that translated code holds guest registers in; R9, R10, R11 are in memory at all times. */
bool glue_in_host(unsigned reg)
{
	return reg != R9 && reg != R10 && reg != R11;
}

/*
 * From translated code to C: the guest's registers to memory. Its stack pointer first of all, for that may be one with
 * which some hosts cannot be interrupted (docs/translator.md).
 */
static void leave_guest(struct emit *e, bool flags)
{
	static const uint8_t lahf_seto_al[] = {0x9f, 0x0f, 0x90, 0xc0};
	asm_store_gs(e, 8, RSP, RSP * 8);
	asm_load_gs(e, 8, RSP, VCPU_OFF(host_rsp));
	for (unsigned r = 0; r < X86_GPRS; r++)
		if (glue_in_host(r) && r != RSP)
			asm_store_gs(e, 8, r, (int32_t)r * 8);
	if (flags) {
		emit_bytes(e, lahf_seto_al, sizeof(lahf_seto_al));
		asm_store16_gs(e, RAX, VCPU_OFF(saved_flags));
	}
	asm_load_gs(e, 8, RDI, VCPU_OFF(self));
}

static void load_guest(struct emit *e)
{
	for (unsigned r = 0; r < X86_GPRS; r++)
		if (glue_in_host(r))
			asm_load_gs(e, 8, r, (int32_t)r * 8);
}

static void push(struct emit *e, unsigned reg, bool pop)
{
	if (reg >= 8)
		emit8(e, 0x41);
	emit8(e, (uint8_t)((pop ? 0x58 : 0x50) | (reg & 7)));
}

static const uint8_t callee_saved[] = {RBX, RBP, R12, R13, R14, R15};

/* XSAVE64 (ext 4) or XRSTOR64 (ext 5) of the guest's x87, SSE and AVX state at [rdi + xsave]. */
static void vector_state(struct emit *e, unsigned ext)
{
	asm_mov_imm(e, RAX, XCR0_X87 | XCR0_SSE | XCR0_AVX);
	asm_mov_imm(e, RDX, 0);
	asm_rm(e, 0x0fae, 8, ext, false, RDI, VCPU_OFF(cpu.xsave));
}

/* void enter(struct tr_vcpu *v, const uint8_t *pc) */
static void emit_enter(struct emit *e)
{
	for (unsigned i = 0; i < ARRAY_LEN(callee_saved); i++)
		push(e, callee_saved[i], false);
	asm_alu_imm(e, ALU_SUB, 8, RSP, 8); /* the stack is 16-byte aligned from here on */
	asm_rm(e, 0x89, 8, RSP, false, RDI, VCPU_OFF(host_rsp));
	asm_mov(e, R11, RSI);
	vector_state(e, 5);
	load_guest(e);
	asm_jmp_reg(e, R11);
}

static void emit_exit_stored(struct tr_engine *eng, struct emit *e)
{
	static const uint8_t ldmxcsr_default[] = {0x0f, 0xae, 0x14, 0x24}; /* ldmxcsr [rsp] */
	static const uint8_t fninit[] = {0xdb, 0xe3};

	eng->glue_exit_stored = code_rx(eng, e->p);
	asm_load_gs(e, 8, RSP, VCPU_OFF(host_rsp));
	asm_load_gs(e, 8, RDI, VCPU_OFF(self));
	vector_state(e, 4);
	asm_rm(e, 0xc7, 4, 0, false, RSP, 0); /* mov dword [rsp], 0x1f80 */
	emit32(e, 0x1f80);
	emit_bytes(e, ldmxcsr_default, sizeof(ldmxcsr_default));
	emit_bytes(e, fninit, sizeof(fninit));
	asm_alu_imm(e, ALU_ADD, 8, RSP, 8);
	for (unsigned i = ARRAY_LEN(callee_saved); i-- > 0;)
		push(e, callee_saved[i], true);
	emit8(e, 0xc3);
}

static void jump(const struct tr_engine *eng, struct emit *e, const uint8_t *glue)
{
	asm_patch32(asm_jmp(e), eng->code.rw + (glue - eng->code.rx));
}

static void emit_exit(struct tr_engine *eng, struct emit *e, bool flags)
{
	eng->glue_exit[flags] = code_rx(eng, e->p);
	leave_guest(e, flags);
	asm_rr(e, 0x0fb7, 4, RAX, R11);
	asm_store_gs(e, 4, RAX, VCPU_OFF(rip_off));
	asm_shift_imm(e, SH_SHR, 4, R11, 16);
	asm_store_gs(e, 4, R11, VCPU_OFF(exit_code));
	jump(eng, e, eng->glue_exit_stored);
}

/* Back from a light helper: RAX is where to go on; H_ADDR and H_DELTA are what a TLB miss filled in. */
static void emit_resume(struct emit *e)
{
	asm_store_gs(e, 8, RAX, VCPU_OFF(next_pc));
	load_guest(e);
	asm_load_gs(e, 8, H_ADDR, VCPU_OFF(tlb_va));
	asm_load_gs(e, 8, H_DELTA, VCPU_OFF(tlb_delta));
	asm_jmp_gs(e, -1, VCPU_OFF(next_pc));
}

/* R9: the helper; R11: its second argument. */
static const uint8_t *emit_call(struct tr_engine *eng, struct emit *e, bool flags)
{
	const uint8_t *here = code_rx(eng, e->p);
	leave_guest(e, flags);
	asm_mov(e, RSI, R11);
	asm_rr(e, 0xff, 4, 2, R9); /* call r9 */
	emit_resume(e);
	return here;
}

static const struct {
	uint64_t (*helper)(struct tr_vcpu *v, uint64_t arg);
	bool address; /* takes H_ADDR as tlb_va */
} helpers[HELPERS] = {
	[HELPER_LINK] = {light_link, false},           [HELPER_FAR] = {light_far, true},
	[HELPER_FAR_QUICK] = {light_far_quick, false}, [HELPER_JUMP] = {light_jump, true},
	[HELPER_TARGET] = {light_target, true},        [HELPER_TAIL] = {light_tail, false},
	[HELPER_SHARE] = {light_share, false},         [HELPER_SYSTEM] = {light_system, false},
	[HELPER_GENERAL] = {light_general, false},     [HELPER_XSTATE] = {light_xstate, false},
	[HELPER_SYSCALL] = {light_syscall, false},     [HELPER_SYSRET] = {light_sysret, false},
};

static void emit_helpers(struct tr_engine *eng, struct emit *e, bool flags)
{
	const uint8_t *call = emit_call(eng, e, flags);
	for (unsigned i = 0; i < HELPERS; i++) {
		eng->glue_helper[i][flags] = code_rx(eng, e->p);
		if (helpers[i].address)
			asm_store_gs(e, 8, H_ADDR, VCPU_OFF(tlb_va));
		asm_mov_imm(e, R9, (uint64_t)(uintptr_t)helpers[i].helper);
		jump(eng, e, call);
	}
}

static void emit_miss(struct tr_engine *eng, struct emit *e)
{
	eng->glue_miss = code_rx(eng, e->p);
	asm_store_gs(e, 8, H_ADDR, VCPU_OFF(tlb_va));
	leave_guest(e, false);
	asm_mov(e, RSI, H_ADDR);
	asm_mov(e, RDX, R11);
	asm_mov(e, RCX, R9);
	asm_mov_imm(e, RAX, (uint64_t)(uintptr_t)light_miss);
	asm_rr(e, 0xff, 4, 2, RAX);
	emit_resume(e);
}

static void emit_jumps(struct tr_engine *eng, struct emit *e)
{
	eng->glue_jump_first = code_rx(eng, e->p);
	asm_mov_imm(e, H_ADDR, QUICK_FIRST);
	eng->glue_jump_any = code_rx(eng, e->p);
	asm_mov_imm(e, R11, JUMP_ARG(0, 0));
	jump(eng, e, eng->glue_helper[HELPER_JUMP][true]);
}

/* Quick entries want the guest's flags in the host's. */
static void emit_quick(struct tr_engine *eng, struct emit *e)
{
	static const uint8_t add_al_7f_sahf[] = {0x04, 0x7f, 0x9e};
	eng->glue_quick = code_rx(eng, e->p);
	asm_mov(e, R9, RAX);
	asm_rm(e, 0x0fb7, 4, RAX, true, -1, VCPU_OFF(saved_flags));
	emit_bytes(e, add_al_7f_sahf, sizeof(add_al_7f_sahf));
	asm_mov(e, RAX, R9);
	asm_jmp_gs(e, -1, VCPU_OFF(quick_pc));
}

void glue_emit(struct tr_engine *eng)
{
	struct emit *e = &eng->emit[PART_HOT];
	eng->enter = (void (*)(struct tr_vcpu *, const uint8_t *))(uintptr_t)code_rx(eng, e->p);
	emit_enter(e);
	emit_exit_stored(eng, e);
	emit_miss(eng, e);
	for (unsigned flags = 0; flags < 2; flags++) {
		emit_exit(eng, e, flags);
		emit_helpers(eng, e, flags);
	}
	emit_jumps(eng, e);
	emit_quick(eng, e);
}
