/*
 * Model-specific registers: a table of those that exist, where they live and what may be written. The set is what
 * kernels read and write without asking first; everything else raises #GP(0), which is how kernels find out (SDM Vol.
 * 4; AMD's PPR).
 */
#include "arch/x86/internal.h"

enum msr_kind {
	MSR_FIELD,     /* kept in a field of struct x86_cpu; bits outside `mask` must be 0 */
	MSR_CANONICAL, /* the same, and must be a canonical address */
	MSR_CONST,     /* reads as `mask`; a write raises #GP(0) */
	MSR_QUIET,     /* reads as `mask`; writes are taken and forgotten */
	MSR_FN,        /* has functions of its own */
};

enum { MSR_ANY, MSR_AMD, MSR_INTEL };

struct msr {
	uint32_t first, last;
	uint8_t kind, vendor;
	uint16_t field; /* offset; of the first register of a range */
	uint64_t mask;
	enum verdict (*check)(struct x86_cpu *cpu, uint32_t msr, uint64_t value); /* more checks of a write, or NULL */
	uint64_t (*read)(const struct x86_cpu *cpu);
	enum verdict (*write)(struct x86_cpu *cpu, uint64_t value);
};

#define FIELD(f) offsetof(struct x86_cpu, f)
#define ONE(n) .first = (n), .last = (n)

static bool memory_type_good(unsigned type)
{
	return type <= 6 && (BIT(type) & 0x73); /* UC, WC, WT, WP, WB */
}

static enum verdict check_pat(struct x86_cpu *cpu, uint32_t msr, uint64_t value)
{
	for (unsigned i = 0; i < 64; i += 8) {
		unsigned type = value >> i & 0xff;

		if (type != 7 && !memory_type_good(type)) /* 7 is UC- */
			return raise_gp(cpu, 0);
	}
	return V_DONE;
}

static enum verdict check_mtrr_fixed(struct x86_cpu *cpu, uint32_t msr, uint64_t value)
{
	for (unsigned i = 0; i < 64; i += 8)
		if (!memory_type_good(value >> i & 0xff))
			return raise_gp(cpu, 0);
	return V_DONE;
}

static enum verdict check_mtrr_variable(struct x86_cpu *cpu, uint32_t msr, uint64_t value)
{
	uint64_t reserved = phys_reserved(cpu) | ~(BIT(52) - 1) | (msr & 1 ? 0x7ff : 0xf00);

	if (value & reserved || (!(msr & 1) && !memory_type_good(value & 0xff)))
		return raise_gp(cpu, 0);
	return V_DONE;
}

static enum verdict check_mtrr_default(struct x86_cpu *cpu, uint32_t msr, uint64_t value)
{
	return memory_type_good(value & 0xff) ? V_DONE : raise_gp(cpu, 0);
}

static uint64_t read_efer(const struct x86_cpu *cpu)
{
	return cpu->efer;
}

static uint64_t read_fs_base(const struct x86_cpu *cpu)
{
	return cpu->seg[SEG_FS].base;
}

static uint64_t read_gs_base(const struct x86_cpu *cpu)
{
	return cpu->seg[SEG_GS].base;
}

static enum verdict write_seg_base(struct x86_cpu *cpu, enum x86_seg seg, uint64_t value)
{
	if (!x86_canonical(value))
		return raise_gp(cpu, 0);
	cpu->seg[seg].base = value;
	return V_DONE;
}

static enum verdict write_fs_base(struct x86_cpu *cpu, uint64_t value)
{
	return write_seg_base(cpu, SEG_FS, value);
}

static enum verdict write_gs_base(struct x86_cpu *cpu, uint64_t value)
{
	return write_seg_base(cpu, SEG_GS, value);
}

/* A write of the TSC or of TSC_ADJUST moves the other by as much (SDM Vol. 3B 19.17.3). */
static enum verdict write_tsc(struct x86_cpu *cpu, uint64_t value)
{
	uint64_t delta = value - guest_tsc(cpu);

	cpu->tsc_offset += delta;
	cpu->tsc_adjust += delta;
	return V_DONE;
}

static uint64_t read_tsc_adjust(const struct x86_cpu *cpu)
{
	return cpu->tsc_adjust;
}

static enum verdict write_tsc_adjust(struct x86_cpu *cpu, uint64_t value)
{
	cpu->tsc_offset += value - cpu->tsc_adjust;
	cpu->tsc_adjust = value;
	return V_DONE;
}

/* MISC_ENABLE: what firmware reports stays as it is; software may switch fast strings and the like. */
#define MISC_ENABLE_READ_ONLY (BIT(7) | BIT(11) | BIT(12))

static uint64_t read_misc_enable(const struct x86_cpu *cpu)
{
	return cpu->misc_enable;
}

static enum verdict write_misc_enable(struct x86_cpu *cpu, uint64_t value)
{
	uint64_t fixed = MISC_ENABLE_READ_ONLY;

	cpu->misc_enable = (value & ~fixed) | (cpu->misc_enable & fixed);
	return V_DONE;
}

/* As high as can be: what microcode mends, it mends on the host, and kernels need not work around its absence. */
#define UCODE_REV_INTEL (0xffffffffull << 32) /* in the upper half */
#define UCODE_REV_AMD 0xffffffffull
#define MTRR_CAP 0x508 /* write combining, fixed ranges, 8 variable ranges */
#define HWCR BIT(24)   /* the TSC counts at the P0 frequency: it is invariant */
#define DE_CFG BIT(1)  /* LFENCE is serializing */
#define FEATURE_CONTROL_LOCKED 1
#define SPEC_CTRL_BITS (BIT(0) | BIT(1) | BIT(2) | BIT(10)) /* IBRS, STIBP, SSBD, BHI_DIS_S */

static const struct msr msrs[] = {
	{ONE(0x10), MSR_FN, .read = guest_tsc, .write = write_tsc},
	{ONE(0x17), MSR_CONST, MSR_INTEL},
	{ONE(0x3a), MSR_CONST, MSR_INTEL, .mask = FEATURE_CONTROL_LOCKED},
	{ONE(0x3b), MSR_FN, .read = read_tsc_adjust, .write = write_tsc_adjust},
	{ONE(0x48), MSR_FIELD, MSR_INTEL, FIELD(spec_ctrl), SPEC_CTRL_BITS},
	{ONE(0x49), MSR_QUIET, MSR_INTEL}, /* PRED_CMD */
	{ONE(0x8b), MSR_QUIET, MSR_INTEL, .mask = UCODE_REV_INTEL},
	{ONE(0x8b), MSR_CONST, MSR_AMD, .mask = UCODE_REV_AMD},
	{ONE(0xfe), MSR_CONST, .mask = MTRR_CAP},
	{ONE(0x10a), MSR_CONST, MSR_INTEL, .mask = X86_ARCH_CAPABILITIES},
	{ONE(0x174), MSR_FIELD, .field = FIELD(sysenter_cs), .mask = 0xffffffff},
	{ONE(0x175), MSR_CANONICAL, .field = FIELD(sysenter_esp)},
	{ONE(0x176), MSR_CANONICAL, .field = FIELD(sysenter_eip)},
	{ONE(0x179), MSR_CONST}, /* MCG_CAP: no banks */
	{ONE(0x17a), MSR_FIELD, .field = FIELD(mcg_status), .mask = 7},
	{ONE(0x1a0), MSR_FN, MSR_INTEL, .read = read_misc_enable, .write = write_misc_enable},
	{ONE(0x1d9), MSR_QUIET}, /* DEBUGCTL: no branch records */
	{0x200, 0x20f, MSR_FIELD, .field = FIELD(mtrr_var), .mask = ~0ull, .check = check_mtrr_variable},
	{ONE(0x250), MSR_FIELD, .field = FIELD(mtrr_fixed[0]), .mask = ~0ull, .check = check_mtrr_fixed},
	{0x258, 0x259, MSR_FIELD, .field = FIELD(mtrr_fixed[1]), .mask = ~0ull, .check = check_mtrr_fixed},
	{0x268, 0x26f, MSR_FIELD, .field = FIELD(mtrr_fixed[3]), .mask = ~0ull, .check = check_mtrr_fixed},
	{ONE(0x277), MSR_FIELD, .field = FIELD(pat), .mask = ~0ull, .check = check_pat},
	{ONE(0x2ff), MSR_FIELD, .field = FIELD(mtrr_def_type), .mask = 0xcff, .check = check_mtrr_default},
	{ONE(0xda0), MSR_FN}, /* XSS: nothing to save but what XCR0 names */
	{ONE(0xc0000080), MSR_FN, .read = read_efer, .write = write_efer},
	{ONE(0xc0000081), MSR_FIELD, .field = FIELD(star), .mask = ~0ull},
	{ONE(0xc0000082), MSR_CANONICAL, .field = FIELD(lstar)},
	{ONE(0xc0000083), MSR_CANONICAL, .field = FIELD(cstar)},
	{ONE(0xc0000084), MSR_FIELD, .field = FIELD(sfmask), .mask = 0xffffffff},
	{ONE(0xc0000100), MSR_FN, .read = read_fs_base, .write = write_fs_base},
	{ONE(0xc0000101), MSR_FN, .read = read_gs_base, .write = write_gs_base},
	{ONE(0xc0000102), MSR_CANONICAL, .field = FIELD(kernel_gs_base)},
	{ONE(0xc0000103), MSR_FIELD, .field = FIELD(tsc_aux), .mask = 0xffffffff},
	{ONE(0xc0010010), MSR_QUIET, MSR_AMD}, /* SYSCFG */
	{ONE(0xc0010015), MSR_QUIET, MSR_AMD, .mask = HWCR},
	{ONE(0xc001001f), MSR_QUIET, MSR_AMD}, /* NB_CFG */
	{ONE(0xc0011029), MSR_QUIET, MSR_AMD, .mask = DE_CFG},
};

static const struct msr *find(const struct x86_cpu *cpu, uint32_t n)
{
	unsigned other = x86_is_amd(cpu) ? MSR_INTEL : MSR_AMD;

	for (unsigned i = 0; i < ARRAY_LEN(msrs); i++)
		if (n >= msrs[i].first && n <= msrs[i].last && msrs[i].vendor != other)
			return &msrs[i];
	return NULL;
}

static uint64_t *field_of(struct x86_cpu *cpu, const struct msr *m, uint32_t n)
{
	return (uint64_t *)((char *)cpu + m->field) + (n - m->first);
}

/*
 * Those that the monitor answers: IA32_APIC_BASE, TSC_DEADLINE and the x2APIC's registers; and the paravirtual ones,
 * where it says that they are all #GP(0) if none is offered.
 */
static bool msr_external(uint32_t n)
{
	return n == 0x1b || n == 0x6e0 || (n >= 0x800 && n <= 0x8ff) || n == 0x11 || n == 0x12 || n >> 8 == 0x4b564d;
}

/* V_INJECT: #GP(0), unknown or refused. */
static enum verdict msr_read(struct x86_cpu *cpu, uint32_t n, uint64_t *value)
{
	const struct msr *m = find(cpu, n);

	if (!m)
		return raise_gp(cpu, 0);
	switch (m->kind) {
	case MSR_FIELD:
	case MSR_CANONICAL:
		*value = *field_of(cpu, m, n);
		break;
	case MSR_FN:
		*value = m->read ? m->read(cpu) : 0;
		break;
	default:
		*value = m->mask;
	}
	return V_DONE;
}

static enum verdict check_field(struct x86_cpu *cpu, const struct msr *m, uint32_t n, uint64_t value)
{
	if (m->kind == MSR_CANONICAL ? !x86_canonical(value) : value & ~m->mask)
		return raise_gp(cpu, 0);
	return m->check ? m->check(cpu, n, value) : V_DONE;
}

static enum verdict msr_write(struct x86_cpu *cpu, uint32_t n, uint64_t value)
{
	const struct msr *m = find(cpu, n);

	if (!m || m->kind == MSR_CONST)
		return raise_gp(cpu, 0);
	if (m->kind == MSR_QUIET)
		return V_DONE;
	if (m->kind == MSR_FN)
		return m->write ? m->write(cpu, value) : value ? raise_gp(cpu, 0) : V_DONE;
	TRY(check_field(cpu, m, n, value));
	*field_of(cpu, m, n) = value;
	return V_DONE;
}

bool msrs_good(const struct x86_cpu *cpu)
{
	struct x86_cpu scratch = *cpu; /* what is not good is an exception of this one's */

	for (unsigned i = 0; i < ARRAY_LEN(msrs); i++) {
		const struct msr *m = &msrs[i];
		for (uint32_t n = m->first; n <= m->last && m->kind <= MSR_CANONICAL; n++)
			if (find(cpu, n) == m && check_field(&scratch, m, n, *field_of(&scratch, m, n)) != V_DONE)
				return false;
	}
	return true;
}

enum verdict sys_rdmsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint32_t n = (uint32_t)cpu->gpr[RCX];
	struct x86_exit *x = &cpu->exit;
	uint64_t value;

	if (!msr_external(n)) {
		TRY(msr_read(cpu, n, &value));
	} else if (x->kind == EXIT_MSR && !x->write && x->completed && x->addr == n) {
		bool fault = x->fault;

		value = x->data;
		*x = (struct x86_exit){0};
		if (fault)
			return raise_gp(cpu, 0);
	} else {
		*x = (struct x86_exit){.kind = EXIT_MSR, .addr = n, .len = insn->len};
		return V_EXIT;
	}
	cpu->gpr[RAX] = (uint32_t)value;
	cpu->gpr[RDX] = value >> 32;
	return V_DONE;
}

/* The core's own, but the local APIC is told: its deadline is one of the TSC's. */
static bool moves_tsc(uint32_t n)
{
	return n == 0x10 || n == 0x3b;
}

enum verdict sys_wrmsr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint32_t n = (uint32_t)cpu->gpr[RCX];
	uint64_t value = (uint32_t)cpu->gpr[RAX] | cpu->gpr[RDX] << 32;

	if (!msr_external(n)) {
		TRY(msr_write(cpu, n, value));
		if (!moves_tsc(n))
			return V_DONE;
	}
	cpu->exit = (struct x86_exit){.kind = EXIT_MSR, .write = true, .addr = n, .data = value, .len = insn->len};
	return V_EXIT;
}
