/* Power-on state and INIT (SDM Vol. 3A 10.1, table 10-1). */
#include "arch/x86/internal.h"

#define REAL_DATA_ATTR 0x0093 /* present, read/write, accessed */
#define MTRR_VALID BIT(11)

static void reset_segments(struct x86_cpu *cpu)
{
	for (unsigned i = 0; i < X86_SEGS; i++)
		cpu->seg[i] = (struct x86_segment){.limit = 0xffff, .attr = REAL_DATA_ATTR};
	cpu->seg[SEG_CS] = (struct x86_segment){.base = 0xffff0000, .limit = 0xffff, .sel = 0xf000, .attr = 0x009b};
	cpu->seg[SEG_LDTR] = (struct x86_segment){.limit = 0xffff, .attr = 0x0082};
	cpu->seg[SEG_TR] = (struct x86_segment){.limit = 0xffff, .attr = 0x008b};
	cpu->gdtr = cpu->idtr = (struct x86_table){.limit = 0xffff};
}

/*
 * Memory types as a PC's firmware leaves them: write-back but for the VGA hole and the windows of PCI. Equal on all
 * processors, or the kernel complains.
 */
static void reset_mtrrs(struct x86_cpu *cpu)
{
	uint64_t phys = BIT(cpu->model ? cpu->model->phys_bits : 40) - 1;

	for (unsigned i = 0; i < ARRAY_LEN(cpu->mtrr_fixed); i++)
		cpu->mtrr_fixed[i] = i == 2 ? 0 : i < 2 ? 0x0606060606060606 : 0x0505050505050505;
	for (unsigned i = 0; i < ARRAY_LEN(cpu->mtrr_var); i++)
		cpu->mtrr_var[i] = 0;
	cpu->mtrr_var[0] = GiB(3);
	cpu->mtrr_var[1] = (phys & ~(GiB(1) - 1)) | MTRR_VALID;
	cpu->mtrr_var[2] = GiB(512);
	cpu->mtrr_var[3] = (phys & ~(GiB(256) - 1)) | MTRR_VALID;
	cpu->mtrr_def_type = 0xc06;
}

static void reset_vector_state(struct x86_cpu *cpu)
{
	for (unsigned i = 0; i < sizeof(cpu->xsave); i++)
		cpu->xsave[i] = 0;
	cpu->xsave[0] = 0x40; /* FCW */
	cpu->xsave[4] = 0xff; /* all registers hold +0.0: no tag is "empty" */
	cpu->xsave[24] = 0x80;
	cpu->xsave[25] = 0x1f; /* MXCSR */
	cpu->xsave[512] = XCR0_X87 | XCR0_SSE;
}

static void reset_msrs(struct x86_cpu *cpu)
{
	cpu->star = cpu->lstar = cpu->cstar = cpu->sfmask = cpu->kernel_gs_base = cpu->tsc_aux = 0;
	cpu->sysenter_cs = cpu->sysenter_esp = cpu->sysenter_eip = 0;
	cpu->pat = 0x0007040600070406;
	cpu->misc_enable = BIT(0) | BIT(11) | BIT(12); /* fast strings; no branch trace, no PEBS */
	cpu->tsc_adjust = 0;
	cpu->tsc_due = UINT64_MAX;
	cpu->apic_base = 0xfee00000 | BIT(11) | (cpu->id ? 0 : BIT(8));
	cpu->spec_ctrl = cpu->mcg_status = cpu->mcg_cap = 0;
	reset_mtrrs(cpu);
}

static void reset_core(struct x86_cpu *cpu)
{
	for (unsigned i = 0; i < X86_GPRS; i++)
		cpu->gpr[i] = 0;
	cpu->gpr[RDX] = 0x600;
	if (cpu->model && cpu->model->count) {
		uint32_t out[4];
		x86_cpuid(cpu, 1, 0, out);
		cpu->gpr[RDX] = out[0];
	}
	cpu->rip = 0xfff0;
	cpu->rflags = FL_FIXED1;
	cpu->cr2 = cpu->cr3 = cpu->cr4 = cpu->efer = 0;
	for (unsigned i = 0; i < 4; i++)
		cpu->dr[i] = 0;
	cpu->dr6 = 0xffff0ff0;
	cpu->dr7 = 0x400;
	cpu->cpl = cpu->shadow = cpu->db_pending = 0;
	cpu->nmi_blocked = cpu->halted = false;
	cpu->exc = (struct x86_exception){0};
	cpu->exit = (struct x86_exit){0};
	cpu->mmio.count = cpu->mmio.next = cpu->mmio_out.count = cpu->mmio_out.next = 0;
	reset_segments(cpu);
}

void x86_cpu_reset(struct x86_cpu *cpu, bool init)
{
	/* INIT leaves the caches' control bits, vector state and most MSRs as they are. */
	uint64_t cache = init ? cpu->cr0 & (CR0_CD | CR0_NW) : CR0_CD | CR0_NW;

	reset_core(cpu);
	cpu->cr0 = CR0_ET | cache;
	if (!init) {
		cpu->xcr0 = XCR0_X87;
		reset_msrs(cpu);
		reset_vector_state(cpu);
	}
	flush_all(cpu, true, -1);
	mode_changed(cpu);
}

void x86_start_ap(struct x86_cpu *cpu, uint8_t vector)
{
	cpu->seg[SEG_CS].sel = (uint16_t)(vector << 8);
	cpu->seg[SEG_CS].base = (uint64_t)vector << 12;
	cpu->rip = 0;
	cpu->halted = false;
	mode_changed(cpu);
}
