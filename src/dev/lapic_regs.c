/* The local APIC's registers, in memory (xAPIC) and as MSRs (x2APIC): SDM Vol. 3A 11.4.1, 11.5, 11.6, 11.12.1. */
#include "dev/lapic_internal.h"

enum {
	R = 1,  /* xAPIC: readable */
	W = 2,  /* xAPIC: writable */
	R2 = 4, /* x2APIC: readable */
	W2 = 8, /* x2APIC: writable */
	RW = R | W | R2 | W2,
	RO = R | R2,
};

/* `writable` bits are kept; `ignored` ones may be set in a write to an MSR, without effect; all others are #GP there.
 */
static const struct reg_info {
	uint8_t access;
	uint32_t writable, ignored;
} regs[APIC_REGS] = {
	[REG_ID] = {RO | W, 0, 0},
	[REG_VERSION] = {RO, 0, 0},
	[REG_TPR] = {RW, 0xff, 0},
	[REG_APR] = {R, 0, 0},
	[REG_PPR] = {RO, 0, 0},
	[REG_EOI] = {W | W2, 0, 0},
	[REG_RRD] = {R, 0, 0},
	[REG_LDR] = {RO | W, 0xff000000, 0},
	[REG_DFR] = {R | W, 0xf0000000, 0},
	[REG_SVR] = {RW, 0x3ff, 0},
	[REG_ISR... REG_ISR + 7] = {RO, 0, 0},
	[REG_TMR... REG_TMR + 7] = {RO, 0, 0},
	[REG_IRR... REG_IRR + 7] = {RO, 0, 0},
	[REG_ESR] = {RW, 0, 0},
	[REG_ICR] = {RW, 0x000ccfff, 0x1000},
	[REG_ICR_HIGH] = {R | W, 0xff000000, 0},
	[REG_LVT_TIMER] = {RW, 0x000700ff, 0x1000},
	[REG_LVT_THERMAL] = {RW, 0x000107ff, 0x1000},
	[REG_LVT_PERF] = {RW, 0x000107ff, 0x1000},
	[REG_LVT_LINT0] = {RW, 0x0001a7ff, 0x5000},
	[REG_LVT_LINT1] = {RW, 0x0001a7ff, 0x5000},
	[REG_LVT_ERROR] = {RW, 0x000100ff, 0x1000},
	[REG_TIMER_INITIAL] = {RW, 0xffffffff, 0},
	[REG_TIMER_CURRENT] = {RO, 0, 0},
	[REG_TIMER_DIVIDE] = {RW, 0xb, 0},
	[REG_SELF_IPI] = {W2, 0xff, 0},
};

/* Version 0x14 (integrated), highest LVT entry 5, no EOI-broadcast suppression. */
#define VERSION_VALUE (0x14 | (LVTS - 1) << 16)

static uint32_t read_vectors(const _Atomic uint64_t word[4], unsigned i)
{
	return atomic_load(&word[i / 2]) >> (i % 2 * 32);
}

static uint32_t read_reg(struct lapic *apic, unsigned reg)
{
	switch (reg) {
	case REG_ID:
		return lapic_x2apic(apic) ? apic->id : apic->id << 24;
	case REG_VERSION:
		return VERSION_VALUE;
	case REG_TPR:
		return lapic_get(&apic->tpr);
	case REG_PPR:
		return lapic_ppr(apic);
	case REG_LDR:
		return lapic_get(&apic->ldr);
	case REG_DFR:
		return lapic_get(&apic->dfr);
	case REG_SVR:
		return lapic_get(&apic->svr);
	case REG_ISR ... REG_ISR + 7:
		return read_vectors(apic->isr, reg - REG_ISR);
	case REG_TMR ... REG_TMR + 7:
		return read_vectors(apic->tmr, reg - REG_TMR);
	case REG_IRR ... REG_IRR + 7:
		return read_vectors(apic->irr, reg - REG_IRR);
	case REG_ESR:
		return lapic_get(&apic->esr);
	case REG_ICR:
		return apic->icr;
	case REG_ICR_HIGH:
		return apic->icr >> 32;
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		return lapic_get(&apic->lvt[reg - REG_LVT_TIMER]);
	case REG_TIMER_INITIAL:
		return apic->timer.initial;
	case REG_TIMER_CURRENT:
		return lapic_timer_current(apic);
	case REG_TIMER_DIVIDE:
		return apic->timer.divide;
	default: /* APR, RRD: of no meaning since the APIC bus went */
		return 0;
	}
}

static void write_lvt(struct lapic *apic, enum lapic_lvt i, uint32_t value)
{
	if (!lapic_software_enabled(apic)) /* 11.4.7.2 */
		value |= LVT_MASKED;
	if (i == LVT_TIMER)
		lapic_timer_set_lvt(apic, value);
	else
		lapic_put(&apic->lvt[i], value);
	if (i == LVT_LINT0 && apic->bus->extint.pending && apic->bus->extint.pending(apic->bus->extint.opaque))
		lapic_local(apic, LVT_LINT0);
}

static void write_svr(struct lapic *apic, uint32_t value)
{
	lapic_put(&apic->svr, value);
	if (value & SVR_ENABLE)
		return;
	for (unsigned i = 0; i < LVTS; i++)
		write_lvt(apic, i, lapic_get(&apic->lvt[i]));
}

static void send_ipi(struct lapic *apic, uint32_t low, uint32_t dest)
{
	bool wide = lapic_x2apic(apic);
	struct apic_message msg = {
		.dest = wide ? dest : dest >> 24,
		.logical = low & BIT(11),
		.wide = wide,
		.mode = (low >> 8) & 7,
		.vector = low & 0xff,
	};

	/* INIT level de-assert is of the old APICs' arbitration only (table 11-3). */
	if (msg.mode == APIC_INIT && (low & BIT(15)) && !(low & BIT(14)))
		return;
	if (msg.mode <= APIC_LOWEST && msg.vector < 16)
		lapic_error(apic, ESR_SEND_VECTOR);
	else
		apic_bus_ipi(apic, &msg, (low >> 18) & 3);
}

static void write_reg(struct lapic *apic, unsigned reg, uint32_t value)
{
	switch (reg) {
	case REG_TPR:
		lapic_put(&apic->tpr, value);
		break;
	case REG_EOI:
		lapic_eoi(apic);
		break;
	case REG_LDR:
		lapic_put(&apic->ldr, value);
		break;
	case REG_DFR:
		lapic_put(&apic->dfr, value | 0x0fffffff);
		break;
	case REG_SVR:
		write_svr(apic, value);
		break;
	case REG_ESR:
		lapic_put(&apic->esr, atomic_exchange(&apic->errors, 0));
		break;
	case REG_ICR_HIGH:
		apic->icr = (uint32_t)apic->icr | (uint64_t)value << 32;
		break;
	case REG_ICR:
		apic->icr = (apic->icr & ~0xffffffffull) | value;
		send_ipi(apic, value, apic->icr >> 32);
		break;
	case REG_LVT_TIMER ... REG_LVT_ERROR:
		write_lvt(apic, reg - REG_LVT_TIMER, value);
		break;
	case REG_TIMER_INITIAL:
		lapic_timer_set_initial(apic, value);
		break;
	case REG_TIMER_DIVIDE:
		lapic_timer_set_divide(apic, value);
		break;
	case REG_SELF_IPI:
		send_ipi(apic, value | SHORTHAND_SELF << 18, 0);
		break;
	default: /* the ID is the processor's number and stays */
		break;
	}
}

static uint32_t writable(const struct lapic *apic, unsigned reg)
{
	if (reg == REG_LVT_TIMER && !apic->bus->config.tsc_deadline)
		return regs[reg].writable & ~BIT(18);
	return regs[reg].writable;
}

void lapic_regs_loaded(struct lapic *apic)
{
	atomic_store(&apic->base, lapic_possible_base(apic, lapic_base(apic)));
	lapic_put(&apic->tpr, lapic_get(&apic->tpr) & writable(apic, REG_TPR));
	lapic_put(&apic->svr, lapic_get(&apic->svr) & writable(apic, REG_SVR));
	for (unsigned i = 0; i < LVTS; i++)
		lapic_put(&apic->lvt[i], lapic_get(&apic->lvt[i]) & writable(apic, REG_LVT_TIMER + i));
}

/* The page answers where it is by default, in xAPIC mode. */
static bool page_present(const struct lapic *apic)
{
	uint64_t base = lapic_base(apic);

	return (base & (APIC_BASE_ENABLE | APIC_BASE_EXTD)) == APIC_BASE_ENABLE && (base & PAGE_MASK) == APIC_MMIO_BASE;
}

/* Registers are 32 bits wide on 16-byte boundaries, and to be accessed whole (11.4.1). Parts of them can be read. */
uint64_t lapic_mmio_read(struct lapic *apic, uint32_t off, unsigned len)
{
	unsigned reg = off >> 4;

	if (!page_present(apic))
		return zext(~0ull, len);
	if (reg >= APIC_REGS || !(regs[reg].access & R)) {
		lapic_error(apic, ESR_REGISTER);
		return 0;
	}
	return (off & 15) < 4 ? zext(read_reg(apic, reg) >> (off & 15) * 8, len) : 0;
}

void lapic_mmio_write(struct lapic *apic, uint32_t off, unsigned len, uint64_t value)
{
	unsigned reg = off >> 4;

	if (!page_present(apic) || (off & 15) || len < 4)
		return;
	if (reg >= APIC_REGS || !(regs[reg].access & W))
		lapic_error(apic, ESR_REGISTER);
	else
		write_reg(apic, reg, value & writable(apic, reg));
}

static bool x2apic_read(struct lapic *apic, unsigned reg, uint64_t *value)
{
	if (!lapic_x2apic(apic) || reg >= APIC_REGS || !(regs[reg].access & R2))
		return false;
	*value = reg == REG_ICR ? apic->icr : read_reg(apic, reg);
	return true;
}

static bool x2apic_write(struct lapic *apic, unsigned reg, uint64_t value)
{
	uint64_t allowed;

	if (!lapic_x2apic(apic) || reg >= APIC_REGS || !(regs[reg].access & W2))
		return false;
	allowed = writable(apic, reg) | regs[reg].ignored | (reg == REG_ICR ? 0xffffffffull << 32 : 0);
	if (value & ~allowed)
		return false;
	if (reg == REG_ICR)
		apic->icr = value & 0xffffffffull << 32;
	write_reg(apic, reg, value & writable(apic, reg));
	return true;
}

bool lapic_msr_read(struct lapic *apic, uint32_t msr, uint64_t *value)
{
	switch (msr) {
	case MSR_IA32_APIC_BASE:
		*value = lapic_base(apic);
		return true;
	case MSR_IA32_TSC_DEADLINE:
		*value = lapic_timer_tsc_deadline(apic);
		return apic->bus->config.tsc_deadline;
	case MSR_X2APIC_FIRST ... MSR_X2APIC_LAST:
		return x2apic_read(apic, msr - MSR_X2APIC_FIRST, value);
	default:
		return false;
	}
}

bool lapic_msr_write(struct lapic *apic, uint32_t msr, uint64_t value)
{
	switch (msr) {
	case MSR_IA32_APIC_BASE:
		return lapic_set_base(apic, value);
	case MSR_IA32_TSC_DEADLINE:
		if (apic->bus->config.tsc_deadline)
			lapic_timer_set_tsc_deadline(apic, value);
		return apic->bus->config.tsc_deadline;
	case MSR_X2APIC_FIRST ... MSR_X2APIC_LAST:
		return x2apic_write(apic, msr - MSR_X2APIC_FIRST, value);
	default:
		return false;
	}
}
