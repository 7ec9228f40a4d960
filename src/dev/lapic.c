/* Local APIC: accepting, ordering and completing interrupts (SDM Vol. 3A 11.8), reset and state. */
#include "dev/lapic_internal.h"

#include <string.h>

static void set_bit(_Atomic uint64_t word[4], uint8_t vector, bool value)
{
	if (value)
		atomic_fetch_or_explicit(&word[vector / 64], BIT(vector % 64), memory_order_relaxed);
	else
		atomic_fetch_and_explicit(&word[vector / 64], ~BIT(vector % 64), memory_order_relaxed);
}

/* The highest vector whose bit is set, or -1. */
static int highest(const _Atomic uint64_t word[4])
{
	for (int i = 3; i >= 0; i--) {
		uint64_t w = atomic_load_explicit(&word[i], memory_order_acquire);

		if (w)
			return i * 64 + 63 - __builtin_clzll(w);
	}
	return -1;
}

static void notify(struct lapic *apic, enum apic_event event, uint8_t vector)
{
	const struct apic_bus_config *config = &apic->bus->config;

	config->notify(config->opaque, apic->id, event, vector);
}

static void request(struct lapic *apic, uint8_t vector, bool level)
{
	uint64_t old;

	set_bit(apic->tmr, vector, level);
	/* Release: who finds the request finds its trigger mode too. */
	old = atomic_fetch_or_explicit(&apic->irr[vector / 64], BIT(vector % 64), memory_order_release);
	if (!(old & BIT(vector % 64)))
		notify(apic, APIC_EVENT_INTERRUPT, vector);
}

static bool accept_fixed(struct lapic *apic, const struct apic_message *msg)
{
	if (!lapic_software_enabled(apic))
		return false;
	if (msg->vector < 16)
		lapic_error(apic, ESR_RECEIVE_VECTOR);
	else
		request(apic, msg->vector, msg->level);
	return true;
}

static void latch(struct lapic *apic, enum apic_event event, uint8_t vector)
{
	/* INIT forgets a SIPI that came before it (SDM Vol. 3A 9.4). */
	if (event == APIC_EVENT_INIT)
		atomic_fetch_and(&apic->events, ~(uint32_t)BIT(APIC_EVENT_SIPI));
	if (event == APIC_EVENT_SIPI)
		atomic_store(&apic->sipi_vector, vector);
	atomic_fetch_or(&apic->events, (uint32_t)BIT(event));
	notify(apic, event, vector);
}

bool lapic_accept(struct lapic *apic, const struct apic_message *msg)
{
	switch (msg->mode) {
	case APIC_FIXED:
	case APIC_LOWEST:
		return accept_fixed(apic, msg);
	case APIC_NMI:
		latch(apic, APIC_EVENT_NMI, 0);
		return true;
	case APIC_INIT:
		latch(apic, APIC_EVENT_INIT, 0);
		return true;
	case APIC_SIPI:
		latch(apic, APIC_EVENT_SIPI, msg->vector);
		return true;
	case APIC_EXTINT:
		atomic_store(&apic->extint_message, true);
		notify(apic, APIC_EVENT_EXTINT, 0);
		return true;
	default: /* SMI: there is no system management mode here; 3 is reserved */
		return true;
	}
}

void lapic_local(struct lapic *apic, enum lapic_lvt source)
{
	uint32_t lvt = lapic_get(&apic->lvt[source]);
	struct apic_message msg = {.mode = LVT_MODE(lvt), .vector = LVT_VECTOR(lvt)};

	if (source == LVT_LINT0 && !lapic_enabled(apic)) { /* the pins are INTR and NMI then (11.4.3) */
		notify(apic, APIC_EVENT_EXTINT, 0);
		return;
	}
	if (source == LVT_LINT1 && !lapic_enabled(apic)) {
		latch(apic, APIC_EVENT_NMI, 0);
		return;
	}
	if (!lapic_enabled(apic) || (lvt & LVT_MASKED))
		return;
	if (msg.mode == APIC_EXTINT) /* its level counts, not its edge: extint_pending */
		notify(apic, APIC_EVENT_EXTINT, 0);
	else
		lapic_accept(apic, &msg);
}

void lapic_error(struct lapic *apic, uint32_t error)
{
	uint32_t lvt = lapic_get(&apic->lvt[LVT_ERROR]);

	atomic_fetch_or(&apic->errors, error);
	/* A bad vector in the error entry itself raises nothing more. */
	if (!(lvt & LVT_MASKED) && LVT_VECTOR(lvt) >= 16)
		request(apic, LVT_VECTOR(lvt), false);
}

uint32_t lapic_ppr(const struct lapic *apic)
{
	uint32_t tpr = lapic_get(&apic->tpr);
	int serving = highest(apic->isr);

	return serving >= 0 && (uint32_t)serving >> 4 > tpr >> 4 ? (uint32_t)serving & 0xf0 : tpr;
}

/* Does the 8259 ask, and is its way to this processor open? */
static bool extint_pending(struct lapic *apic)
{
	const struct apic_extint *pic = &apic->bus->extint;
	uint32_t lint0 = lapic_get(&apic->lvt[LVT_LINT0]);
	bool wired =
		apic->id == 0 && (!lapic_enabled(apic) || (!(lint0 & LVT_MASKED) && LVT_MODE(lint0) == APIC_EXTINT));

	if (!wired && !atomic_load_explicit(&apic->extint_message, memory_order_relaxed))
		return false;
	return pic->pending && pic->pending(pic->opaque);
}

int lapic_pending(struct lapic *apic)
{
	int vector;

	if (extint_pending(apic))
		return LAPIC_EXTINT;
	if (!lapic_enabled(apic))
		return LAPIC_NONE;
	vector = highest(apic->irr);
	return vector >= 0 && (uint32_t)vector >> 4 > lapic_ppr(apic) >> 4 ? vector : LAPIC_NONE;
}

int lapic_ack(struct lapic *apic)
{
	int vector = lapic_pending(apic);
	bool timer;

	if (vector == LAPIC_EXTINT) {
		atomic_store(&apic->extint_message, false);
		return apic->bus->extint.ack(apic->bus->extint.opaque);
	}
	if (vector >= 0) {
		timer = lapic_timer_taking(apic, vector);
		set_bit(apic->irr, vector, false);
		set_bit(apic->isr, vector, true);
		if (timer)
			lapic_timer_taken(apic);
	}
	return vector;
}

void lapic_eoi(struct lapic *apic)
{
	int vector = highest(apic->isr);

	if (vector < 0)
		return;
	set_bit(apic->isr, vector, false);
	if (atomic_load(&apic->tmr[vector / 64]) & BIT(vector % 64) && apic->bus->eoi)
		apic->bus->eoi(apic->bus->eoi_opaque, vector);
}

bool lapic_eoi_is_plain(const struct lapic *apic)
{
	uint64_t requested = 0, level = 0;
	int served = 0;

	for (unsigned i = 0; i < 4; i++) {
		uint64_t isr = atomic_load_explicit(&apic->isr[i], memory_order_relaxed);

		served += __builtin_popcountll(isr);
		level |= isr & atomic_load_explicit(&apic->tmr[i], memory_order_relaxed);
		requested |= atomic_load_explicit(&apic->irr[i], memory_order_relaxed);
	}
	return served == 1 && !level && !requested;
}

void lapic_end_interrupt(struct lapic *apic)
{
	lapic_eoi(apic);
}

uint32_t lapic_events(const struct lapic *apic)
{
	return atomic_load(&apic->events);
}

uint32_t lapic_take_events(struct lapic *apic, uint8_t *sipi_vector)
{
	uint32_t events = lapic_get(&apic->events) ? atomic_exchange(&apic->events, 0) : 0;

	*sipi_vector = atomic_load(&apic->sipi_vector);
	return events;
}

uint64_t lapic_cr8(const struct lapic *apic)
{
	return lapic_get(&apic->tpr) >> 4;
}

void lapic_set_cr8(struct lapic *apic, uint64_t value)
{
	lapic_put(&apic->tpr, (value & 0xf) << 4);
}

uint64_t lapic_base(const struct lapic *apic)
{
	return atomic_load(&apic->base);
}

/* Registers as after reset (SDM Vol. 3A 11.4.7.1); the mode is IA32_APIC_BASE's. */
static void reset_registers(struct lapic *apic)
{
	for (unsigned i = 0; i < 4; i++) {
		atomic_store(&apic->irr[i], 0);
		atomic_store(&apic->isr[i], 0);
		atomic_store(&apic->tmr[i], 0);
	}
	for (unsigned i = 0; i < LVTS; i++)
		lapic_put(&apic->lvt[i], LVT_MASKED);
	lapic_timer_reset(apic);
	lapic_put(&apic->tpr, 0);
	lapic_put(&apic->svr, 0xff);
	lapic_put(&apic->ldr, lapic_x2apic(apic) ? (apic->id >> 4) << 16 | 1u << (apic->id & 15) : 0);
	lapic_put(&apic->dfr, ~0u);
	lapic_put(&apic->errors, 0);
	lapic_put(&apic->esr, 0);
	atomic_store(&apic->extint_message, false);
	apic->icr = 0;
}

void lapic_reset(struct lapic *apic, bool init)
{
	if (!init) {
		uint64_t bsp = apic->id == 0 ? APIC_BASE_BSP : 0;

		atomic_store(&apic->base, APIC_MMIO_BASE | APIC_BASE_ENABLE | bsp);
	}
	reset_registers(apic);
	/* What was latched before INIT went with it when that was taken; a SIPI that has come since is for after it. */
	if (!init)
		atomic_store(&apic->events, 0);
}

void lapic_virtual_wire(struct lapic *apic)
{
	lapic_put(&apic->svr, SVR_ENABLE | 0xff);
	lapic_put(&apic->lvt[LVT_LINT0], APIC_EXTINT << 8);
	lapic_put(&apic->lvt[LVT_LINT1], APIC_NMI << 8);
}

/* The bits that a guest may set. */
static uint64_t base_bits(const struct apic_bus_config *config)
{
	uint64_t address = ((config->phys_bits ? BIT(config->phys_bits) : BIT(52)) - 1) & ~0xfffull;

	return address | APIC_BASE_BSP | APIC_BASE_ENABLE | (config->x2apic ? APIC_BASE_EXTD : 0);
}

uint64_t lapic_possible_base(const struct lapic *apic, uint64_t value)
{
	value &= base_bits(&apic->bus->config) & ~APIC_BASE_BSP;
	if (!(value & APIC_BASE_ENABLE))
		value &= ~APIC_BASE_EXTD;
	return value | (apic->id == 0 ? APIC_BASE_BSP : 0);
}

/*
 * Modes by bits 11 (enable) and 10 (x2APIC), SDM Vol. 3A 11.12.5: disabled ↔ xAPIC → x2APIC → disabled, all else is
 * #GP. Another base address is kept, and the register page is then nowhere.
 */
bool lapic_set_base(struct lapic *apic, uint64_t value)
{
	uint64_t old = lapic_base(apic), mode = value & (APIC_BASE_ENABLE | APIC_BASE_EXTD);
	uint64_t old_mode = old & (APIC_BASE_ENABLE | APIC_BASE_EXTD);

	if (value & ~base_bits(&apic->bus->config))
		return false;
	if (mode == APIC_BASE_EXTD)
		return false;
	if ((mode & APIC_BASE_EXTD) && !(old_mode & APIC_BASE_ENABLE))
		return false;
	if ((old_mode & APIC_BASE_EXTD) && mode == APIC_BASE_ENABLE)
		return false;
	atomic_store(&apic->base, (value & ~APIC_BASE_BSP) | (old & APIC_BASE_BSP));
	if (mode == old_mode)
		return true;
	if (!(mode & APIC_BASE_ENABLE)) {
		reset_registers(apic);
	} else if (mode & APIC_BASE_EXTD) {
		lapic_put(&apic->ldr, (apic->id >> 4) << 16 | 1u << (apic->id & 15));
		apic->icr = (uint32_t)apic->icr;
	}
	return true;
}

/* An atomic word through a plain one, both ways. */
#define state_atomic(s, lvalue)                                                     \
	do {                                                                        \
		__typeof__(atomic_load(&(lvalue))) plain_ = atomic_load(&(lvalue)); \
		state_field((s), plain_);                                           \
		atomic_store(&(lvalue), plain_);                                    \
	} while (0)

void lapic_state(struct lapic *apic, struct state_stream *s)
{
	bool extint = apic->extint_message;

	state_atomic(s, apic->base);
	state_atomic(s, apic->tpr);
	state_atomic(s, apic->svr);
	state_atomic(s, apic->ldr);
	state_atomic(s, apic->dfr);
	for (unsigned i = 0; i < LVTS; i++)
		state_atomic(s, apic->lvt[i]);
	for (unsigned i = 0; i < 4; i++) {
		state_atomic(s, apic->irr[i]);
		state_atomic(s, apic->isr[i]);
		state_atomic(s, apic->tmr[i]);
	}
	state_atomic(s, apic->errors);
	state_atomic(s, apic->esr);
	state_atomic(s, apic->events);
	state_atomic(s, apic->sipi_vector);
	state_flag(s, &extint);
	apic->extint_message = extint;
	state_field(s, apic->icr);
	if (!s->saving)
		lapic_regs_loaded(apic);
	lapic_timer_state(apic, s);
}
