/* What the files of the local APIC share: apic_bus.c, lapic.c, lapic_regs.c, lapic_timer.c. */
#ifndef DOPPEL_DEV_LAPIC_INTERNAL_H
#define DOPPEL_DEV_LAPIC_INTERNAL_H

#include "dev/lapic.h"
#include "host/thread.h"

#include <stdatomic.h>

/* Register numbers: offset in the register page / 16, and MSR - 0x800 (SDM Vol. 3A tables 11-1 and 11-6). */
enum apic_reg {
	REG_ID = 0x02,
	REG_VERSION = 0x03,
	REG_TPR = 0x08,
	REG_APR = 0x09,
	REG_PPR = 0x0a,
	REG_EOI = 0x0b,
	REG_RRD = 0x0c,
	REG_LDR = 0x0d,
	REG_DFR = 0x0e,
	REG_SVR = 0x0f,
	REG_ISR = 0x10,
	REG_TMR = 0x18,
	REG_IRR = 0x20,
	REG_ESR = 0x28,
	REG_ICR = 0x30,
	REG_ICR_HIGH = 0x31,
	REG_LVT_TIMER = 0x32,
	REG_LVT_THERMAL = 0x33,
	REG_LVT_PERF = 0x34,
	REG_LVT_LINT0 = 0x35,
	REG_LVT_LINT1 = 0x36,
	REG_LVT_ERROR = 0x37,
	REG_TIMER_INITIAL = 0x38,
	REG_TIMER_CURRENT = 0x39,
	REG_TIMER_DIVIDE = 0x3e,
	REG_SELF_IPI = 0x3f,
	APIC_REGS = 0x40,
};

/* Local vector table, in the order of its registers from REG_LVT_TIMER. */
enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVTS };

#define LVT_MASKED BIT(16)
#define LVT_VECTOR(lvt) ((lvt)&0xff)
#define LVT_MODE(lvt) (((lvt) >> 8) & 7)
#define LVT_TIMER_MODE(lvt) (((lvt) >> 17) & 3)
enum lapic_timer_mode { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_DEADLINE };

#define SVR_ENABLE BIT(8)

/* Error status register (SDM Vol. 3A figure 11-9). */
enum { ESR_SEND_VECTOR = 1 << 5, ESR_RECEIVE_VECTOR = 1 << 6, ESR_REGISTER = 1 << 7 };

/*
 * The timer counts in ns (a bus clock of 1 GHz) shifted right by the divider. `start` is when the count began, and may
 * have wrapped: only differences to it mean anything. `next` is the first expiry that was not yet seen to.
 */
struct lapic_timer {
	struct host_mutex lock; /* all of it, and the timer's part of LVT changes; a leaf but for the clock's own */
	struct clock_timer *timer;
	uint32_t initial, divide;
	bool counting;
	uint64_t start, next, armed;
	uint64_t tsc_deadline;
	uint64_t tsc_offset;
};

struct lapic {
	struct apic_bus *bus;
	uint32_t id;
	_Atomic uint64_t base;
	/* Read by senders of interrupts, written by the processor. */
	_Atomic uint32_t tpr, svr, ldr, dfr;
	_Atomic uint32_t lvt[LVTS];
	/* Vector v is bit v % 64 of word v / 64. Anyone sets bits of irr; the processor alone clears them. */
	_Atomic uint64_t irr[4], isr[4], tmr[4];
	_Atomic uint32_t errors, esr; /* gathered since the last write of ESR; shown */
	_Atomic uint32_t events;
	_Atomic uint8_t sipi_vector;
	_Atomic bool extint_message; /* an ExtINT message came by way of the I/O APIC */
	uint64_t icr;
	struct lapic_timer timer;
};

struct apic_bus {
	struct apic_bus_config config;
	struct apic_extint extint;
	void (*eoi)(void *opaque, uint8_t vector);
	void *eoi_opaque;
	_Atomic unsigned next_lowest; /* where the search for the lowest priority begins */
	_Atomic bool lint1;
	struct bus *attached;
	struct lapic lapic[]; /* config.cpus */
};

static inline uint32_t lapic_get(const _Atomic uint32_t *reg)
{
	return atomic_load_explicit(reg, memory_order_relaxed);
}

static inline void lapic_put(_Atomic uint32_t *reg, uint32_t value)
{
	atomic_store_explicit(reg, value, memory_order_relaxed);
}

static inline bool lapic_enabled(const struct lapic *apic)
{
	return atomic_load_explicit(&apic->base, memory_order_relaxed) & APIC_BASE_ENABLE;
}

static inline bool lapic_x2apic(const struct lapic *apic)
{
	return atomic_load_explicit(&apic->base, memory_order_relaxed) & APIC_BASE_EXTD;
}

static inline bool lapic_requested(const struct lapic *apic, uint8_t vector)
{
	return atomic_load_explicit(&apic->irr[vector / 64], memory_order_relaxed) >> (vector % 64) & 1;
}

static inline bool lapic_software_enabled(const struct lapic *apic)
{
	return lapic_get(&apic->svr) & SVR_ENABLE;
}

/* lapic.c */
/* Takes a message that is meant for this processor. False: it is not listening. Any thread. */
bool lapic_accept(struct lapic *apic, const struct apic_message *msg);
/* A local source (timer, LINT pin) fires: delivery as its LVT entry says. Any thread. */
void lapic_local(struct lapic *apic, enum lapic_lvt source);
void lapic_error(struct lapic *apic, uint32_t error);
void lapic_eoi(struct lapic *apic);
uint32_t lapic_ppr(const struct lapic *apic);
bool lapic_set_base(struct lapic *apic, uint64_t value);

/* What can be of a value of IA32_APIC_BASE from outside. */
uint64_t lapic_possible_base(const struct lapic *apic, uint64_t value);

/* lapic_regs.c */
/* Of what a stream had, what a guest could have written stays. */
void lapic_regs_loaded(struct lapic *apic);

/* apic_bus.c */
enum apic_shorthand { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };
/* An IPI from `from`; its dest counts for SHORTHAND_NONE. */
void apic_bus_ipi(struct lapic *from, const struct apic_message *msg, enum apic_shorthand shorthand);

/* lapic_timer.c */
bool lapic_timer_init(struct lapic *apic);
void lapic_timer_destroy(struct lapic *apic);
void lapic_timer_reset(struct lapic *apic);
void lapic_timer_set_initial(struct lapic *apic, uint32_t count);
void lapic_timer_set_divide(struct lapic *apic, uint32_t divide);
void lapic_timer_set_lvt(struct lapic *apic, uint32_t lvt);
uint32_t lapic_timer_current(struct lapic *apic);
/*
 * Before and after a request becomes service. Periods until the first are one with that request. True: it may be the
 * timer's, whose lock is held from then on, and the second is to follow.
 */
bool lapic_timer_taking(struct lapic *apic, uint8_t vector);
void lapic_timer_taken(struct lapic *apic);
uint64_t lapic_timer_tsc_deadline(struct lapic *apic);
void lapic_timer_set_tsc_deadline(struct lapic *apic, uint64_t deadline);
void lapic_timer_state(struct lapic *apic, struct state_stream *s);

#endif
