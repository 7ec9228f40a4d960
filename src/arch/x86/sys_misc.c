/* Flags, time stamps, identification, FS and GS bases, halting: the short system instructions. */
#include "arch/x86/internal.h"

#include <Zydis/Mnemonic.h>

static uint64_t host_tsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return lo | (uint64_t)hi << 32;
}

uint64_t guest_tsc(const struct x86_cpu *cpu)
{
	return host_tsc() + cpu->tsc_offset;
}

/* EDX:EAX, and the upper halves cleared. */
static void set_edx_eax(struct x86_cpu *cpu, uint64_t value)
{
	cpu->gpr[RAX] = (uint32_t)value;
	cpu->gpr[RDX] = value >> 32;
}

static uint64_t get_edx_eax(const struct x86_cpu *cpu)
{
	return (uint32_t)cpu->gpr[RAX] | cpu->gpr[RDX] << 32;
}

enum verdict sys_cpuid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint32_t out[4];

	x86_cpuid(cpu, (uint32_t)cpu->gpr[RAX], (uint32_t)cpu->gpr[RCX], out);
	cpu->gpr[RAX] = out[0];
	cpu->gpr[RBX] = out[1];
	cpu->gpr[RCX] = out[2];
	cpu->gpr[RDX] = out[3];
	return V_DONE;
}

/* Either vendor's: what kernels use goes by the processor's, what runs it does not matter. */
enum verdict sys_hypercall(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!cpu->model->pv)
		return raise_ud(cpu);
	cpu->exit = (struct x86_exit){.kind = EXIT_HYPERCALL, .write = true, .len = insn->len};
	return V_EXIT;
}

/* What is due by the time to be read happens before: interrupts come in the order of time, however late we are. */
static enum verdict read_time(struct x86_cpu *cpu, uint64_t *tsc)
{
	struct x86_exit *x = &cpu->exit;
	uint64_t now;

	if (x->kind == EXIT_TIME && x->completed) {
		*tsc = x->data;
		*x = (struct x86_exit){0};
		return V_DONE;
	}
	now = host_tsc();
	*tsc = now + cpu->tsc_offset;
	if (now < cpu->tsc_due)
		return V_DONE;
	*x = (struct x86_exit){.kind = EXIT_TIME, .addr = now};
	return V_EXIT;
}

enum verdict sys_rdtsc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t tsc;

	if (cpu->cr4 & CR4_TSD && cpu->cpl)
		return raise_gp(cpu, 0);
	TRY(read_time(cpu, &tsc));
	set_edx_eax(cpu, tsc);
	return V_DONE;
}

enum verdict sys_rdtscp(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!cpu_has(cpu, FEAT_RDTSCP))
		return raise_ud(cpu);
	TRY(sys_rdtsc(cpu, insn));
	cpu->gpr[RCX] = cpu->tsc_aux;
	return V_DONE;
}

enum verdict sys_rdpid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!cpu_has(cpu, FEAT_RDPID) || !modrm_is_reg(insn))
		return raise_ud(cpu);
	cpu->gpr[insn->rm] = cpu->tsc_aux;
	return V_DONE;
}

/* There are no counters: every number is a wrong one. */
enum verdict sys_rdpmc(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return raise_gp(cpu, 0);
}

enum verdict sys_xgetbv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint32_t n = (uint32_t)cpu->gpr[RCX];

	if (!(cpu->cr4 & CR4_OSXSAVE))
		return raise_ud(cpu);
	if (n > 1 || (n == 1 && !cpu_has(cpu, FEAT_XGETBV1)))
		return raise_gp(cpu, 0);
	/* 1 is XINUSE: a component may be called in use although it is in its initial state (SDM Vol. 1 13.6). */
	set_edx_eax(cpu, cpu->xcr0);
	return V_DONE;
}

bool xcr0_good(const struct x86_cpu *cpu, uint64_t value)
{
	uint64_t allowed = XCR0_X87 | XCR0_SSE | (cpu_has(cpu, FEAT_AVX) ? XCR0_AVX : 0);

	return !(value & ~allowed) && value & XCR0_X87 && (!(value & XCR0_AVX) || value & XCR0_SSE);
}

enum verdict sys_xsetbv(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value = get_edx_eax(cpu);

	if (!(cpu->cr4 & CR4_OSXSAVE))
		return raise_ud(cpu);
	if (cpu->cpl || (uint32_t)cpu->gpr[RCX] || !xcr0_good(cpu, value))
		return raise_gp(cpu, 0);
	cpu->xcr0 = value;
	mode_changed(cpu);
	return V_DONE;
}

/* INVD, WBINVD: memory is coherent with everything that looks at it. */
enum verdict sys_invd(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return V_DONE;
}

enum verdict sys_hlt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->halted = true;
	cpu->exit = (struct x86_exit){.kind = EXIT_HLT};
	return V_EXIT;
}

enum verdict sys_swapgs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t base = cpu->seg[SEG_GS].base;

	if (insn->mode != MODE_64)
		return raise_ud(cpu);
	if (cpu->cpl)
		return raise_gp(cpu, 0);
	cpu->seg[SEG_GS].base = cpu->kernel_gs_base;
	cpu->kernel_gs_base = base;
	return V_DONE;
}

enum verdict sys_fsgsbase(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	bool fs = insn->mnemonic == ZYDIS_MNEMONIC_RDFSBASE || insn->mnemonic == ZYDIS_MNEMONIC_WRFSBASE;
	bool write = insn->mnemonic == ZYDIS_MNEMONIC_WRFSBASE || insn->mnemonic == ZYDIS_MNEMONIC_WRGSBASE;
	struct x86_segment *s = &cpu->seg[fs ? SEG_FS : SEG_GS];
	unsigned size = insn->flags & INSN_REXW ? 8 : 4;
	uint64_t value;

	if (insn->mode != MODE_64 || !(cpu->cr4 & CR4_FSGSBASE) || !modrm_is_reg(insn))
		return raise_ud(cpu);
	if (!write) {
		gpr_set(cpu, insn->rm, s->base, size);
		return V_DONE;
	}
	value = gpr_get(cpu, insn->rm, size);
	if (!x86_canonical(value))
		return raise_gp(cpu, 0);
	s->base = value;
	return V_DONE;
}

enum verdict sys_cli(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!real_mode(cpu) && cpu->cpl > iopl(cpu))
		return raise_gp(cpu, 0);
	cpu->rflags &= ~(uint64_t)FL_IF;
	return V_DONE;
}

enum verdict sys_sti(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!real_mode(cpu) && cpu->cpl > iopl(cpu))
		return raise_gp(cpu, 0);
	if (!(cpu->rflags & FL_IF))
		cpu->shadow = 1;
	cpu->rflags |= FL_IF;
	return V_DONE;
}

static enum verdict set_ac(struct x86_cpu *cpu, bool value)
{
	if (cpu->cpl || !cpu_has(cpu, FEAT_SMAP))
		return raise_ud(cpu);
	cpu->rflags = (cpu->rflags & ~(uint64_t)FL_AC) | (value ? FL_AC : 0);
	mode_changed(cpu);
	return V_DONE;
}

enum verdict sys_clac(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return set_ac(cpu, false);
}

enum verdict sys_stac(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return set_ac(cpu, true);
}

enum verdict sys_pushf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t image = cpu->rflags & ~(uint64_t)(FL_VM | FL_RF);
	struct stack s;
	enum verdict v;

	if (vm86_mode(cpu) && iopl(cpu) < 3)
		return raise_gp(cpu, 0);
	stack_current(cpu, &s);
	v = stack_push(cpu, &s, &image, 1, stack_opsize(insn));
	if (x86_retires(cpu, v))
		stack_commit(cpu, &s);
	return v;
}

enum verdict sys_popf(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t image, was = cpu->rflags, mask = FL_ARITH | FL_TF | FL_DF | FL_NT;
	unsigned size = stack_opsize(insn);
	struct stack s;

	if (vm86_mode(cpu) && iopl(cpu) < 3)
		return raise_gp(cpu, 0);
	stack_current(cpu, &s);
	TRY(stack_pop(cpu, &s, &image, 1, size));
	stack_commit(cpu, &s);
	if (size > 2)
		mask |= FL_AC | FL_ID;
	if (real_mode(cpu) || cpu->cpl <= iopl(cpu))
		mask |= FL_IF;
	if (cpu->cpl == 0)
		mask |= FL_IOPL;
	cpu->rflags = (was & ~mask) | (image & mask) | FL_FIXED1;
	if ((cpu->rflags ^ was) & (FL_AC | FL_TF))
		mode_changed(cpu);
	return V_DONE;
}
