/* Debug registers and single step (SDM Vol. 3B 17.2, 17.3). */
#include "arch/x86/internal.h"

/* DR7.R/Wn (SDM Vol. 3B 17.2.4). */
enum { BP_EXECUTE = 0, BP_WRITE = 1, BP_IO = 2, BP_ACCESS = 3 };

/* DR7.LENn to bytes: 10b is eight. */
static const uint8_t bp_len[4] = {1, 2, 8, 4};

static bool bp_enabled(uint64_t dr7, unsigned n)
{
	return dr7 >> (2 * n) & 3;
}

static unsigned bp_kind(uint64_t dr7, unsigned n)
{
	return dr7 >> (16 + 4 * n) & 3;
}

/* True when [addr, addr+len) meets breakpoint `n`, whose address is taken aligned to its length (17.2.5). */
static bool bp_overlaps(const struct x86_cpu *cpu, unsigned n, uint64_t addr, unsigned len)
{
	uint64_t size = bp_len[cpu->dr7 >> (18 + 4 * n) & 3];
	uint64_t base = cpu->dr[n] & ~(size - 1);
	return addr - base < size || base - addr < len;
}

static enum verdict raise_debug(struct x86_cpu *cpu, uint64_t dr6, bool trap)
{
	x86_raise(cpu, X86_DB);
	cpu->exc.trap = trap;
	cpu->exc.dr6 = dr6;
	return V_INJECT;
}

static uint64_t linear_rip(const struct x86_cpu *cpu)
{
	return x86_code64(cpu) ? cpu->rip : (uint32_t)(cpu->seg[SEG_CS].base + cpu->rip);
}

enum verdict x86_before_instruction(struct x86_cpu *cpu)
{
	/*
	 * MOV SS and POP SS hold #DB off until after the instruction that follows them (SDM Vol. 3A 6.8.3); on AMD's
	 * processors not that instruction's own breakpoint, which takes with it what is held off.
	 */
	if (cpu->shadow != 2)
		cpu->db_pending = 0;
	else if (!x86_is_amd(cpu))
		return V_DONE;
	if (!(cpu->dr7 & DR7_ENABLED) || (cpu->rflags & FL_RF))
		return V_DONE;
	uint64_t hit = 0, rip = linear_rip(cpu);
	for (unsigned n = 0; n < 4; n++) {
		if (bp_enabled(cpu->dr7, n) && bp_kind(cpu->dr7, n) == BP_EXECUTE && cpu->dr[n] == rip)
			hit |= BIT(n);
	}
	return hit ? raise_debug(cpu, hit | (cpu->db_pending & 0xf), false) : V_DONE;
}

void x86_data_breakpoint(struct x86_cpu *cpu, uint64_t linear, unsigned len, bool write)
{
	for (unsigned n = 0; n < 4; n++) {
		unsigned kind = bp_kind(cpu->dr7, n);
		if (bp_enabled(cpu->dr7, n) && (kind == BP_ACCESS || (kind == BP_WRITE && write)) &&
		    bp_overlaps(cpu, n, linear, len))
			cpu->db_pending |= BIT(n);
	}
}

void x86_io_breakpoint(struct x86_cpu *cpu, uint16_t port, unsigned len)
{
	if (!(cpu->cr4 & CR4_DE))
		return;
	for (unsigned n = 0; n < 4; n++) {
		if (bp_enabled(cpu->dr7, n) && bp_kind(cpu->dr7, n) == BP_IO && bp_overlaps(cpu, n, port, len))
			cpu->db_pending |= BIT(n);
	}
}

enum verdict x86_after_instruction(struct x86_cpu *cpu, uint64_t was)
{
	/* RF lasts one instruction. IRET sets it for the next one, and then it was clear before (17.3.1.1). */
	if (was & FL_RF)
		cpu->rflags &= ~(uint64_t)FL_RF;
	if (cpu->shadow == 2)
		return V_DONE;
	uint64_t dr6 = cpu->db_pending & 0xf;
	if (was & FL_TF && !(cpu->db_pending & X86_NO_STEP))
		dr6 |= DR6_BS;
	cpu->db_pending = 0;
	return dr6 ? raise_debug(cpu, dr6, true) : V_DONE;
}
