/* Software interrupts and the fast system calls (SDM Vol. 2 INT, SYSCALL, SYSENTER; APM Vol. 3). */
#include "arch/x86/internal.h"

/* Delivered here and not by the engine, because only here the return address is known. */
static enum verdict software_interrupt(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned vector,
				       unsigned flags)
{
	uint64_t tf = cpu->rflags & FL_TF;

	TRY(deliver_event(cpu, vector, flags, 0, next_rip(cpu, insn)));
	if (tf)
		cpu->db_pending |= X86_NO_STEP;
	return V_DONE;
}

enum verdict sys_int(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (vm86_mode(cpu) && iopl(cpu) < 3)
		return raise_gp(cpu, 0);
	return software_interrupt(cpu, insn, insn->imm & 0xff, EVENT_SOFT);
}

enum verdict sys_int1(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t held = cpu->db_pending & 0xf; /* by a MOV SS before it: both are one #DB */

	TRY(software_interrupt(cpu, insn, X86_DB, 0));
	if (held)
		cpu->dr6 = (cpu->dr6 & ~0xfull) | held;
	cpu->db_pending &= (uint8_t)~0xf;
	return V_DONE;
}

enum verdict sys_int3(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return software_interrupt(cpu, insn, X86_BP, EVENT_SOFT);
}

enum verdict sys_into(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->mode == MODE_64)
		return raise_ud(cpu);
	if (cpu->rflags & FL_OF)
		return software_interrupt(cpu, insn, X86_OF, EVENT_SOFT);
	cpu->rip = next_rip(cpu, insn);
	return V_DONE;
}

#define ATTR_CODE(dpl) (0x009b | (dpl) << 5 | SEG_ATTR_G)
#define ATTR_DATA(dpl) (0x0093 | (dpl) << 5 | SEG_ATTR_G | SEG_ATTR_DB)

/* The flat segments that fast system calls load without looking at any table. */
static void set_flat_pair(struct x86_cpu *cpu, unsigned cs, unsigned ss, unsigned cpl, bool wide)
{
	uint16_t attr = (uint16_t)(ATTR_CODE(cpl) | (wide ? SEG_ATTR_L : SEG_ATTR_DB));

	cpu->seg[SEG_CS] = (struct x86_segment){.limit = 0xffffffff, .sel = (uint16_t)cs, .attr = attr};
	cpu->seg[SEG_SS] =
		(struct x86_segment){.limit = 0xffffffff, .sel = (uint16_t)ss, .attr = (uint16_t)ATTR_DATA(cpl)};
	cpu->cpl = (uint8_t)cpl;
}

static void load_flat_pair(struct x86_cpu *cpu, unsigned cs, unsigned ss, unsigned cpl, bool wide)
{
	set_flat_pair(cpu, cs, ss, cpl, wide);
	mode_changed(cpu);
}

/* SYSCALL single-steps by the new TF: a trap after it only when TF survives SFMASK. */
static void note_step(struct x86_cpu *cpu, uint64_t was)
{
	if (was & FL_TF && !(cpu->rflags & FL_TF))
		cpu->db_pending |= X86_NO_STEP;
}

/* In long mode, but for what follows from the mode's change. */
static void enter_long(struct x86_cpu *cpu, uint64_t next, uint64_t target)
{
	uint64_t was = cpu->rflags & ~(uint64_t)FL_RF;
	unsigned cs = cpu->star >> 32 & 0xfffc;

	cpu->gpr[RCX] = next;
	cpu->gpr[R11] = was;
	cpu->rip = target;
	cpu->rflags = (was & ~cpu->sfmask) | FL_FIXED1;
	set_flat_pair(cpu, cs, cs + 8, 0, true);
}

static enum verdict syscall_long(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t was = cpu->rflags;

	enter_long(cpu, next_rip(cpu, insn), insn->mode == MODE_64 ? cpu->lstar : cpu->cstar);
	mode_changed(cpu);
	note_step(cpu, was);
	return V_DONE;
}

bool x86_syscall_quickly(struct x86_cpu *cpu, uint64_t next)
{
	if (!(cpu->efer & EFER_SCE) || cpu->rflags & FL_TF || !x86_code64(cpu))
		return false;
	enter_long(cpu, next, cpu->lstar);
	return true;
}

/* AMD's, outside long mode. */
static enum verdict syscall_legacy(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned cs = cpu->star >> 32 & 0xfffc;

	cpu->gpr[RCX] = next_rip(cpu, insn);
	cpu->rip = (uint32_t)cpu->star;
	cpu->rflags &= ~(uint64_t)(FL_VM | FL_IF | FL_RF);
	load_flat_pair(cpu, cs, cs + 8, 0, false);
	return V_DONE;
}

enum verdict sys_syscall(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!(cpu->efer & EFER_SCE) || real_mode(cpu))
		return raise_ud(cpu);
	if (insn->mode != MODE_64 && !x86_is_amd(cpu))
		return raise_ud(cpu);
	return x86_long_mode(cpu) ? syscall_long(cpu, insn) : syscall_legacy(cpu, insn);
}

#define SYSRET_FLAGS 0x3c7fd7 /* all but RF and VM (SDM Vol. 2, SYSRET) */

/* But for what follows from the mode's change. */
static void return_to_user(struct x86_cpu *cpu, bool wide)
{
	unsigned base = cpu->star >> 48;

	if (x86_long_mode(cpu))
		cpu->rflags = (cpu->gpr[R11] & SYSRET_FLAGS) | FL_FIXED1;
	else
		cpu->rflags |= FL_IF;
	cpu->rip = wide ? cpu->gpr[RCX] : (uint32_t)cpu->gpr[RCX];
	set_flat_pair(cpu, ((wide ? base + 16 : base) & 0xffff) | 3, ((base + 8) & 0xffff) | 3, 3, wide);
}

enum verdict sys_sysret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	bool wide = insn->mode == MODE_64 && insn->flags & INSN_REXW;

	if (!(cpu->efer & EFER_SCE) || real_mode(cpu) || (insn->mode != MODE_64 && !x86_is_amd(cpu)))
		return raise_ud(cpu);
	if (cpu->cpl)
		return raise_gp(cpu, 0);
	/* Intel faults here, still at CPL 0; AMD at the target, at CPL 3. */
	if (wide && !x86_is_amd(cpu) && !x86_canonical(cpu->gpr[RCX]))
		return raise_gp(cpu, 0);
	return_to_user(cpu, wide);
	mode_changed(cpu);
	return V_DONE;
}

bool x86_sysret_quickly(struct x86_cpu *cpu)
{
	if (!(cpu->efer & EFER_SCE) || cpu->cpl || !x86_code64(cpu) || !x86_canonical(cpu->gpr[RCX]) ||
	    cpu->gpr[R11] & (FL_TF | FL_AC))
		return false;
	return_to_user(cpu, true);
	return true;
}

enum verdict sys_sysenter(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	bool wide = x86_long_mode(cpu);
	unsigned cs = cpu->sysenter_cs & 0xfffc;

	if (x86_is_amd(cpu) && wide)
		return raise_ud(cpu);
	if (real_mode(cpu) || !cs)
		return raise_gp(cpu, 0);
	cpu->rflags &= ~(uint64_t)(FL_VM | FL_IF | FL_RF);
	cpu->rip = wide ? cpu->sysenter_eip : (uint32_t)cpu->sysenter_eip;
	cpu->gpr[RSP] = wide ? cpu->sysenter_esp : (uint32_t)cpu->sysenter_esp;
	load_flat_pair(cpu, cs, cs + 8, 0, wide);
	return V_DONE;
}

enum verdict sys_sysexit(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	bool wide = insn->mode == MODE_64 && insn->flags & INSN_REXW;
	unsigned base = cpu->sysenter_cs & 0xfffc;

	if (x86_is_amd(cpu) && x86_long_mode(cpu))
		return cpu->cpl ? raise_gp(cpu, 0) : raise_ud(cpu);
	if (real_mode(cpu) || cpu->cpl || !base)
		return raise_gp(cpu, 0);
	if (wide && (!x86_canonical(cpu->gpr[RCX]) || !x86_canonical(cpu->gpr[RDX])))
		return raise_gp(cpu, 0);
	cpu->rip = wide ? cpu->gpr[RDX] : (uint32_t)cpu->gpr[RDX];
	cpu->gpr[RSP] = wide ? cpu->gpr[RCX] : (uint32_t)cpu->gpr[RCX];
	base += wide ? 32 : 16;
	load_flat_pair(cpu, (base & 0xffff) | 3, ((base + 8) & 0xffff) | 3, 3, wide);
	return V_DONE;
}
