/* Control registers: what may be written when, and the transitions to and from long mode (SDM Vol.
 * 3A 2.5, 4.1, 10.8.5). */
#include "arch/x86/internal.h"
#include "bus/memory.h"

static bool pae_paging(const struct x86_cpu *cpu)
{
	return cpu->cr0 & CR0_PG && cpu->cr4 & CR4_PAE && !x86_long_mode(cpu);
}

/* PAE's four top entries are checked when they are "loaded", at MOV to a control register (SDM Vol. 3A 4.4.1). */
static bool pdptes_good(const struct x86_cpu *cpu, uint64_t cr3)
{
	uint64_t reserved = phys_reserved(cpu) | ~(BIT(52) - 1) | 0x1e6;

	for (unsigned i = 0; i < 4; i++) {
		const uint64_t *p = guest_memory_ptr(cpu->mem, (cr3 & 0xffffffe0) + 8ull * i, 8, false);

		if (!p || (*p & 1 && *p & reserved))
			return false;
	}
	return true;
}

/* Turns paging on: with EFER.LME this is the entry to long mode. */
static enum verdict check_paging_on(struct x86_cpu *cpu)
{
	if (cpu->efer & EFER_LME) {
		if (!(cpu->cr4 & CR4_PAE) || cpu->seg[SEG_CS].attr & SEG_ATTR_L)
			return raise_gp(cpu, 0);
		/* Intel's look at TR too (SDM Vol. 2, MOV to control registers; not APM Vol. 2 14.6.1). */
		return !x86_is_amd(cpu) && !(cpu->seg[SEG_TR].attr & 8) ? raise_gp(cpu, 0) : V_DONE;
	}
	if (cpu->cr4 & CR4_PAE && !pdptes_good(cpu, cpu->cr3))
		return raise_gp(cpu, 0);
	return V_DONE;
}

static enum verdict check_cr0(struct x86_cpu *cpu, uint64_t value)
{
	uint64_t change = value ^ cpu->cr0;

	if (value >> 32)
		return raise_gp(cpu, 0);
	if ((value & CR0_PG && !(value & CR0_PE)) || (value & CR0_NW && !(value & CR0_CD)))
		return raise_gp(cpu, 0);
	if (change & CR0_PG && value & CR0_PG)
		return check_paging_on(cpu);
	if (change & CR0_PG && (x86_code64(cpu) || cpu->cr4 & CR4_PCIDE))
		return raise_gp(cpu, 0);
	return V_DONE;
}

enum verdict write_cr0(struct x86_cpu *cpu, uint64_t value)
{
	uint64_t change = value ^ cpu->cr0;

	TRY(check_cr0(cpu, value));
	cpu->cr0 = (value & CR0_DEFINED) | CR0_ET;
	if (change & CR0_PG) {
		if (value & CR0_PG && cpu->efer & EFER_LME)
			cpu->efer |= EFER_LMA;
		else
			cpu->efer &= ~EFER_LMA;
	}
	if (change & (CR0_PG | CR0_WP | CR0_PE))
		flush_all(cpu, true, -1);
	mode_changed(cpu);
	return V_DONE;
}

enum verdict write_cr3(struct x86_cpu *cpu, uint64_t value)
{
	bool pcid = cpu->cr4 & CR4_PCIDE, keep = pcid && value >> 63;
	uint64_t reserved = phys_reserved(cpu) | ~(BIT(52) - 1);

	if (pcid)
		reserved &= ~BIT(63);
	if (x86_long_mode(cpu)) {
		if (value & reserved)
			return raise_gp(cpu, 0);
	} else {
		value = (uint32_t)value;
		if (pae_paging(cpu) && !pdptes_good(cpu, value))
			return raise_gp(cpu, 0);
	}
	cpu->cr3 = value & ~BIT(63);
	if (!keep)
		flush_all(cpu, false, x86_pcid(cpu));
	else if (cpu->ops && cpu->ops->space_changed)
		cpu->ops->space_changed(cpu);
	mode_changed(cpu);
	return V_DONE;
}

uint64_t cr4_allowed(const struct x86_cpu *cpu)
{
	static const struct {
		enum x86_feature feature;
		uint64_t bit;
	} optional[] = {
		{FEAT_UMIP, CR4_UMIP},     {FEAT_FSGSBASE, CR4_FSGSBASE}, {FEAT_PCID, CR4_PCIDE},
		{FEAT_XSAVE, CR4_OSXSAVE}, {FEAT_SMEP, CR4_SMEP},         {FEAT_SMAP, CR4_SMAP},
	};
	uint64_t allowed =
		CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR | CR4_OSXMMEXCPT;

	for (unsigned i = 0; i < ARRAY_LEN(optional); i++)
		if (cpu_has(cpu, optional[i].feature))
			allowed |= optional[i].bit;
	return allowed;
}

static enum verdict check_cr4(struct x86_cpu *cpu, uint64_t value)
{
	uint64_t change = value ^ cpu->cr4;

	if (value & ~cr4_allowed(cpu))
		return raise_gp(cpu, 0);
	if (x86_long_mode(cpu) && !(value & CR4_PAE))
		return raise_gp(cpu, 0);
	if (change & value & CR4_PCIDE && (!x86_long_mode(cpu) || cpu->cr3 & 0xfff))
		return raise_gp(cpu, 0);
	if (cpu->cr0 & CR0_PG && !x86_long_mode(cpu) && value & CR4_PAE &&
	    change & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP) && !pdptes_good(cpu, cpu->cr3))
		return raise_gp(cpu, 0);
	return V_DONE;
}

enum verdict write_cr4(struct x86_cpu *cpu, uint64_t value)
{
	uint64_t change = value ^ cpu->cr4;

	TRY(check_cr4(cpu, value));
	cpu->cr4 = value;
	if (change & (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP))
		flush_all(cpu, true, -1);
	mode_changed(cpu);
	return V_DONE;
}

#define EFER_AUTOIBRS BIT(21) /* AMD */

uint64_t efer_allowed(const struct x86_cpu *cpu)
{
	return EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE | (x86_is_amd(cpu) ? EFER_AUTOIBRS : 0);
}

enum verdict write_efer(struct x86_cpu *cpu, uint64_t value)
{
	uint64_t change = value ^ cpu->efer;

	if (value & ~efer_allowed(cpu))
		return raise_gp(cpu, 0);
	if (change & EFER_LME && cpu->cr0 & CR0_PG)
		return raise_gp(cpu, 0);
	cpu->efer = (value & ~EFER_LMA) | (cpu->efer & EFER_LMA);
	if (change & EFER_NXE)
		flush_all(cpu, true, -1);
	mode_changed(cpu);
	return V_DONE;
}
