/*
 * One guest instruction on the host. The instruction keeps its registers, but for RSP, which stays the host's: where
 * the guest's RSP is named another register stands for it. The memory operand's address is in a register that the
 * instruction does not name. Code is kept by the instruction's bytes, so that most steps only look it up.
 */
#include "arch/x86/cpuid.h"
#include "engine/translate/thunk_internal.h"

#include "bus/memory.h"
#include "host/guest_signals.h"

#include <string.h>
#include <Zydis/Mnemonic.h>

/* The thunk that runs on this thread, for the fault handler. */
static _Thread_local struct thunk *running;

static uint32_t host_mxcsr_mask(void)
{
	_Alignas(16) uint8_t fx[512] = {0};
	uint32_t mask;

	__asm__ volatile("fxsave %0" : "=m"(fx));
	memcpy(&mask, fx + XS_MXCSR_MASK, 4);
	return mask ? mask : 0xffbf; /* SDM Vol. 1 11.6.6 */
}

struct thunk *thunk_create(void)
{
	uint32_t xcr0 = x86_host_xcr0();
	struct thunk *t;

	if (!(xcr0 & XCR0_SSE))
		return NULL;
	t = host_memory_alloc(sizeof(*t));
	if (!t)
		return NULL;
	if (!host_code_alloc(&t->code, (size_t)THUNK_SLOTS * THUNK_SLOT_SIZE)) {
		host_memory_free(t, sizeof(*t));
		return NULL;
	}
	t->run.avx = xcr0 & XCR0_AVX;
	t->mxcsr_mask = host_mxcsr_mask();
	return t;
}

void thunk_destroy(struct thunk *t)
{
	if (!t)
		return;
	host_code_free(&t->code);
	host_memory_free(t, sizeof(*t));
}

static bool in_code(const struct thunk *t, uint64_t rip)
{
	return rip - (uint64_t)t->code.rx < t->code.size;
}

bool thunk_claim_fault(struct host_fault_context *ctx)
{
	struct thunk *t = running;

	if (!t || !in_code(t, ctx->rip))
		return false;
	t->fault = (int)ctx->fault;
	ctx->rip = (uint64_t)thunk_run_done;
	return true;
}

static enum verdict raise_host_fault(struct x86_cpu *cpu, int fault)
{
	switch (fault) {
	case HOST_FAULT_DIVIDE:
		return x86_raise(cpu, X86_DE);
	case HOST_FAULT_FPU:
		return x86_raise(cpu, X86_MF);
	case HOST_FAULT_SIMD:
		return x86_raise(cpu, cpu->cr4 & CR4_OSXMMEXCPT ? X86_XM : X86_UD);
	case HOST_FAULT_BUS:
		return x86_raise_error(cpu, X86_AC, 0);
	case HOST_FAULT_ILLEGAL:
	case HOST_FAULT_TRAP:
		return x86_raise(cpu, X86_UD);
	default:
		return x86_raise_error(cpu, X86_GP, 0);
	}
}

/* Runs run.code on the registers in run.gpr; what faulted is in t->fault. */
static void run(struct thunk *t)
{
	t->fault = -1;
	running = t;
	__asm__ volatile("" ::: "memory");
	thunk_run_code(&t->run);
	__asm__ volatile("" ::: "memory");
	running = NULL;
}

/* The last x87 instruction's address, operand and opcode are the guest's, not those of the code that ran for it. */
static void correct_x87_pointers(const struct thunk *t, const struct x86_cpu *cpu, const struct x86_insn *insn,
				 uint8_t *xsave, const struct thunk_operand *op)
{
	uint64_t fip, fdp;
	uint16_t fop = (uint16_t)((insn->opcode & 7) << 8 | insn->modrm);

	memcpy(&fip, xsave + XS_FIP, 8);
	if (!in_code(t, fip))
		return;
	memcpy(xsave + XS_FIP, &cpu->rip, 8);
	memcpy(&fdp, xsave + XS_FDP, 8);
	if (op->host && fdp == (uint64_t)op->host) {
		fdp = x86_effective_address(cpu, insn);
		memcpy(xsave + XS_FDP, &fdp, 8);
	}
	if (memcmp(xsave + XS_FOP, (uint8_t[2]){0, 0}, 2) != 0)
		memcpy(xsave + XS_FOP, &fop, 2);
}

static void load_registers(struct thunk *t, const struct x86_cpu *cpu, const struct x86_insn *insn,
			   const struct thunk_slot *s, const struct thunk_operand *op)
{
	uint64_t flags = cpu->rflags & FL_ARITH;

	if (thunk_checks_alignment(cpu))
		flags |= FL_AC;
	memcpy(t->run.gpr, cpu->gpr, sizeof(t->run.gpr));
	t->run.gpr[s->rsp] = cpu->gpr[RSP];
	t->run.gpr[s->mem] = (uint64_t)op->host;
	t->run.flags = flags | FL_FIXED1 | FL_IF;
	if (insn->flags & INSN_BITOFF) /* the rest of the offset has moved the operand */
		t->run.gpr[insn->reg == RSP ? s->rsp : insn->reg] &= insn->opsize * 8u - 1;
}

static void store_registers(const struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn,
			    const struct thunk_slot *s)
{
	for (unsigned i = 0, write = insn->gpr_write; write; i++, write >>= 1) {
		if (write & 1)
			cpu->gpr[i] = t->run.gpr[i == RSP ? s->rsp : i];
	}
	cpu->rflags = (cpu->rflags & ~(uint64_t)FL_ARITH) | (t->run.flags & FL_ARITH);
}

/* BT m, r: the offset moves the operand by whole words; what is left of it stays in the register (SDM Vol. 2 BT). */
static uint64_t bit_offset(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	int64_t bit = sext(cpu->gpr[insn->reg], insn->opsize);
	int64_t bits_in = (int64_t)insn->opsize * 8;

	return (uint64_t)((bit & ~(bits_in - 1)) / 8);
}

uint64_t thunk_operand_offset(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t off = x86_effective_address(cpu, insn);

	return insn->flags & INSN_BITOFF ? zext(off + bit_offset(cpu, insn), insn->addrsize) : off;
}

/* AMD's MXCSR.MM lifts the rule for all but the moves that are named aligned; the host applies it to the operand
 * itself. */
static bool misaligned(const struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t off)
{
	uint64_t linear = off + x86_operand_base(cpu, insn);
	uint32_t mxcsr;

	if (!(insn->flags & INSN_ALIGN) || !(linear & (insn->mem_size - 1u)))
		return false;
	memcpy(&mxcsr, cpu->xsave + XS_MXCSR, 4);
	return !(insn->flags & INSN_SSE) || !(mxcsr & BIT(17));
}

/* FNSAVE, FRSTOR, FNSTENV, FLDENV: AMD's processors look at the first word, then at the last byte; CR2 shows it. */
static enum verdict probe_environment(struct x86_cpu *cpu, const struct thunk_operand *op)
{
	enum verdict v;

	if (!x86_is_amd(cpu))
		return V_DONE;
	v = thunk_probe(cpu, op->linear, op->size == 14 || op->size == 94 ? 2 : 4, op->write);
	return v == V_DONE ? thunk_probe(cpu, op->linear + op->size - 1, 1, op->write) : v;
}

static enum verdict open_operand(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn,
				 struct thunk_operand *op)
{
	uint64_t off = thunk_operand_offset(cpu, insn);
	enum verdict v;

	op->size = insn->mem_size;
	op->read = insn->mem_read;
	op->write = insn->mem_write;
	if (misaligned(cpu, insn, off)) /* comes before #SS */
		return x86_raise_error(cpu, X86_GP, 0);
	v = thunk_linear(cpu, insn->seg, off, op->size, op->write, &op->linear);
	if (v == V_DONE && insn->cls == CLS_SPECIAL && (insn->flags & INSN_FPU))
		v = probe_environment(cpu, op);
	if (v != V_DONE)
		return v;
	return thunk_operand_open(t, cpu, op);
}

/* Vector state to run on: the guest's own, or a copy when the write that follows may still fail. */
static uint8_t *pick_xsave(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn,
			   const struct thunk_operand *op)
{
	if (!(insn->flags & (INSN_FPU | INSN_SSE | INSN_AVX)))
		return NULL;
	if (op->in_place || !op->write)
		return cpu->xsave;
	memcpy(t->xsave, cpu->xsave, sizeof(t->xsave));
	return t->xsave;
}

/* A register-only instruction of ours on the guest's vector state. */
static void run_own(struct thunk *t, struct x86_cpu *cpu, const char *code, uint8_t len)
{
	struct x86_insn insn;

	x86_decode(&insn, (const uint8_t *)code, len, MODE_64, NULL);
	ENSURE(thunk_find_slot(t, &insn));
	t->run.flags = FL_FIXED1 | FL_IF;
	t->run.xsave = cpu->xsave;
	run(t);
}

/* FNSTENV, FNSTCW, FNSAVE, FNSTSW: they run with an x87 exception pending. */
static bool waits(const struct x86_insn *insn)
{
	return !(insn->map == 0 && (insn->opcode == 0xd9 || insn->opcode == 0xdd) && (insn->modrm >> 3 & 7) >= 6);
}

/* An x87 exception that is pending comes before any fault of the memory operand (SDM Vol. 3A table 6-2). */
static enum verdict check_pending(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if ((insn->flags & (INSN_FPU | INSN_MEM)) != (INSN_FPU | INSN_MEM) || !(cpu->xsave[XS_FSW] & 0x3f) ||
	    !waits(insn))
		return V_DONE;
	run_own(t, cpu, "\x9b", 1); /* fwait */
	return t->fault >= 0 ? raise_host_fault(cpu, t->fault) : V_DONE;
}

/* A run on the bounce buffer, without effect on the guest: what it comes to is in t->fault and t->xsave. */
static void rehearse(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn, const struct thunk_slot *s,
		     struct thunk_operand *op)
{
	op->host = t->bounce + (op->linear & 63);
	memset(op->host, 0, op->size);
	load_registers(t, cpu, insn, s, op);
	memcpy(t->xsave, cpu->xsave, sizeof(t->xsave));
	t->run.xsave = t->xsave;
	run(t);
}

/* On Intel's processors MMX's stores have brought TOP to 0 when they fault, and no more. */
static void zero_top(uint8_t *xsave)
{
	unsigned top = xsave[XS_FSW + 1] >> 3 & 7;
	uint8_t old[8 * 16];

	memcpy(old, xsave + XS_ST(0), sizeof(old));
	for (unsigned i = 0; i < 8; i++)
		memcpy(xsave + XS_ST((i + top) & 7), old + (size_t)i * 16, 16);
	xsave[XS_FSW + 1] &= (uint8_t) ~(7u << 3);
}

/* VCVTPS2PH has converted: its flags are in MXCSR, and an exception that is not masked comes first. */
static enum verdict leave_conversion(struct thunk *t, struct x86_cpu *cpu)
{
	memcpy(cpu->xsave + XS_MXCSR, t->xsave + XS_MXCSR, 4);
	return t->fault == HOST_FAULT_SIMD ? raise_host_fault(cpu, t->fault) : V_INJECT;
}

/* Exceptions that keep an x87 store from memory if they are not masked: all but inexact results. */
#define FSW_NO_STORE 0x1f

/*
 * Where an x87 store meets such an exception, that waits, and nothing is stored, so nothing faults. Stores of ten bytes
 * have written the first eight where only the others are in a page that faults.
 */
static enum verdict leave_x87(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn,
			      const struct thunk_slot *s, const struct thunk_operand *op)
{
	struct x86_exception fault = cpu->exc;

	if (t->fault >= 0)
		return V_INJECT;
	if (t->xsave[XS_FSW] & ~t->xsave[XS_FCW] & FSW_NO_STORE) {
		correct_x87_pointers(t, cpu, insn, t->xsave, op);
		memcpy(cpu->xsave, t->xsave, sizeof(t->xsave));
		store_registers(t, cpu, insn, s);
		return thunk_retire(cpu, insn, V_DONE);
	}
	if (op->size == 10 && fault.vector == X86_PF && thunk_probe(cpu, op->linear, 8, true) == V_DONE)
		thunk_write(cpu, op->linear, op->host, 8);
	cpu->exc = fault;
	return V_INJECT;
}

/*
 * A fault of the operand is due. Alignment comes before pages: a rehearsal tells whether the host finds it misaligned.
 * And Intel's processors leave traces: so far have they come by then.
 */
static enum verdict operand_fault(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn,
				  const struct thunk_slot *s, struct thunk_operand *op)
{
	struct x86_exception fault = cpu->exc;
	bool page = fault.vector == X86_PF, fpu = insn->flags & INSN_FPU;
	bool traces = !x86_is_amd(cpu) && op->write && insn->cls == CLS_PLAIN;
	bool converts = traces && insn->mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH;
	bool x87 = traces && fpu && !insn->map && waits(insn);

	t->fault = -1;
	if (converts || x87 || (page && thunk_checks_alignment(cpu)))
		rehearse(t, cpu, insn, s, op);
	cpu->exc = fault;
	if (traces && fpu && insn->map) /* MMX */
		zero_top(cpu->xsave);
	if (page && t->fault == HOST_FAULT_BUS)
		return raise_host_fault(cpu, t->fault);
	if (converts)
		return leave_conversion(t, cpu);
	return x87 ? leave_x87(t, cpu, insn, s, op) : V_INJECT;
}

static enum verdict step_host(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct thunk_operand op = {0};
	enum verdict v = check_pending(t, cpu, insn);
	const struct thunk_slot *s = thunk_find_slot(t, insn);

	if (!s)
		return x86_raise(cpu, X86_UD);
	if (v != V_DONE)
		return v;
	if (insn->flags & INSN_MEM) {
		v = open_operand(t, cpu, insn, &op);
		if (v != V_DONE)
			return v == V_INJECT ? operand_fault(t, cpu, insn, s, &op) : v;
	}
	load_registers(t, cpu, insn, s, &op);
	t->run.xsave = pick_xsave(t, cpu, insn, &op);
	run(t);
	if (t->run.xsave && (insn->flags & INSN_FPU))
		correct_x87_pointers(t, cpu, insn, t->run.xsave, &op);
	v = t->fault >= 0 ? raise_host_fault(cpu, t->fault) : thunk_operand_close(t, cpu, &op);
	if (t->run.xsave == t->xsave &&
	    (v == V_DONE || v == V_EXIT || t->fault >= 0)) /* #XM leaves its flags in MXCSR */
		memcpy(cpu->xsave, t->xsave, sizeof(t->xsave));
	if (v != V_DONE && v != V_EXIT)
		return v;
	store_registers(t, cpu, insn, s);
	return thunk_retire(cpu, insn, v);
}

static enum verdict step_lea(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t ea = x86_effective_address(cpu, insn), *reg = &cpu->gpr[insn->reg];

	*reg = insn->opsize == 2 ? (*reg & ~0xffffull) | (uint16_t)ea : zext(ea, insn->opsize);
	return thunk_retire(cpu, insn, V_DONE);
}

static enum verdict step_plain(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->map == 0 && insn->opcode == 0x8d && !(insn->flags & INSN_VEX))
		return step_lea(cpu, insn);
	return step_host(t, cpu, insn);
}

void thunk_canonicalize(struct thunk *t, struct x86_cpu *cpu)
{
	run_own(t, cpu, "\x90", 1);
}

enum verdict thunk_enter_mmx(struct thunk *t, struct x86_cpu *cpu)
{
	run_own(t, cpu, "\x0f\x7e\xc0", 3); /* movd eax, mm0: reads only */
	return t->fault >= 0 ? raise_host_fault(cpu, t->fault) : V_DONE;
}

/* VZEROALL, VZEROUPPER outside 64-bit mode: registers 8 to 15 stay. */
static enum verdict step_vzero(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint8_t xmm[128], ymmh[128];
	enum verdict v;

	thunk_xsave_fill(cpu->xsave);
	memcpy(xmm, cpu->xsave + XS_XMM(8), sizeof(xmm));
	memcpy(ymmh, cpu->xsave + XS_YMMH(8), sizeof(ymmh));
	v = step_host(t, cpu, insn);
	thunk_xsave_fill(cpu->xsave);
	memcpy(cpu->xsave + XS_XMM(8), xmm, sizeof(xmm));
	memcpy(cpu->xsave + XS_YMMH(8), ymmh, sizeof(ymmh));
	cpu->xsave[XS_BV] |= XCR0_SSE | XCR0_AVX;
	return v;
}

static enum verdict step_special(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->flags & INSN_VSIB)
		return thunk_gather(cpu, insn);
	if (insn->flags & INSN_BITOFF)
		return step_host(t, cpu, insn);
	if (insn->map == 1 && insn->opcode == 0x77)
		return step_vzero(t, cpu, insn);
	if (insn->map == 0 && (insn->flags & INSN_FPU)) /* FNSAVE, FRSTOR, FNSTENV, FLDENV */
		return step_host(t, cpu, insn);
	if (insn->map == 1 && insn->opcode == 0xae && (insn->flags & INSN_FPU))
		return (insn->modrm >> 3 & 7) < 2 ? thunk_fxsave(t, cpu, insn) : thunk_xsave(t, cpu, insn);
	if (insn->map == 1 && insn->opcode == 0xc7)
		return thunk_xsave(t, cpu, insn);
	if (insn->flags & (INSN_FPU | INSN_SSE | INSN_AVX))
		return thunk_masked(t, cpu, insn);
	return x86_emulate_general(cpu, insn);
}

enum verdict thunk_step(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	enum verdict v = x86_fpu_gate(cpu, insn);

	if (v != V_DONE)
		return v;
	if (insn->cls == CLS_PLAIN)
		return step_plain(t, cpu, insn);
	if (insn->cls == CLS_SPECIAL)
		return step_special(t, cpu, insn);
	return x86_raise(cpu, X86_UD);
}
