/*
 * The local APIC's timer (SDM Vol. 3A 11.5.4): one-shot, periodic, TSC deadline.
 *
 * Every change first sees to what has expired until now under the old settings, then arms the host's timer for what
 * comes next: so nothing is lost or delivered twice, however late the clock's thread runs.
 */
#include "dev/lapic_internal.h"

/* A guest may ask for a period of a few ns; the clock's thread is not woken more often than this. */
#define PERIOD_MIN_NS 20000u

static uint32_t timer_lvt(const struct lapic *apic)
{
	return lapic_get(&apic->lvt[LVT_TIMER]);
}

/* Divide configuration register, bits 3, 1, 0: 0 divides by 2, 6 by 128, 7 by 1 (figure 11-10). */
static unsigned divide_shift(uint32_t divide)
{
	return (((divide >> 1 & 4) | (divide & 3)) + 1) & 7;
}

static uint64_t period(const struct lapic_timer *t)
{
	return (uint64_t)t->initial << divide_shift(t->divide);
}

static uint64_t now(const struct lapic *apic)
{
	return clock_now(apic->bus->config.clock);
}

static uint64_t guest_tsc(const struct lapic *apic)
{
	return clock_ticks(apic->bus->config.clock) + apic->timer.tsc_offset;
}

/* The VM's time when the guest's TSC reaches the deadline, rounded up; a past deadline is now. */
static uint64_t deadline_ns(const struct lapic *apic, uint64_t at)
{
	const struct lapic_timer *t = &apic->timer;
	uint64_t tsc = guest_tsc(apic);

	if (t->tsc_deadline <= tsc)
		return at;
	if (t->tsc_deadline - tsc > INT64_MAX) /* more than half the TSC's range away: centuries */
		return CLOCK_NEVER - 1;
	return clock_ticks_ns(apic->bus->config.clock, t->tsc_deadline - t->tsc_offset);
}

static bool expired(const struct lapic *apic, uint64_t at)
{
	const struct lapic_timer *t = &apic->timer;

	if (LVT_TIMER_MODE(timer_lvt(apic)) == TIMER_DEADLINE)
		return t->tsc_deadline && t->tsc_deadline <= guest_tsc(apic);
	return t->counting && t->next <= at;
}

/* Sees to an expiry until `at`; true: an interrupt is due. The lock is held. */
static bool settle(struct lapic *apic, uint64_t at)
{
	struct lapic_timer *t = &apic->timer;
	uint32_t lvt = timer_lvt(apic);

	if (!expired(apic, at))
		return false;
	switch (LVT_TIMER_MODE(lvt)) {
	case TIMER_PERIODIC:
		/* Periods that passed meanwhile are one interrupt, as they are one bit of IRR; the phase stays. */
		t->start = at - (at - t->start) % period(t);
		t->next = t->start + period(t);
		break;
	case TIMER_DEADLINE:
		t->tsc_deadline = 0;
		break;
	default:
		t->counting = false;
	}
	return !(lvt & LVT_MASKED);
}

/*
 * While the last one's request waits, another is one with it: then the host's timer stands still until the processor
 * has taken that, for a guest that takes none, or is held, is not to keep the clock's thread running.
 */
static uint64_t next_period(const struct lapic *apic, uint64_t at)
{
	const struct lapic_timer *t = &apic->timer;

	if (lapic_requested(apic, LVT_VECTOR(timer_lvt(apic))))
		return CLOCK_NEVER;
	return period(t) < PERIOD_MIN_NS ? MAX(t->next, at + PERIOD_MIN_NS) : t->next;
}

/* The lock is held. */
static void arm(struct lapic *apic, uint64_t at)
{
	struct lapic_timer *t = &apic->timer;
	uint32_t lvt = timer_lvt(apic);
	uint64_t when = CLOCK_NEVER;

	if (lvt & LVT_MASKED)
		when = CLOCK_NEVER;
	else if (LVT_TIMER_MODE(lvt) == TIMER_DEADLINE)
		when = t->tsc_deadline ? deadline_ns(apic, at) : CLOCK_NEVER;
	else if (t->counting && LVT_TIMER_MODE(lvt) == TIMER_PERIODIC)
		when = next_period(apic, at);
	else if (t->counting)
		when = t->next;
	if (when == CLOCK_NEVER && t->armed == CLOCK_NEVER)
		return;
	t->armed = when;
	clock_timer_set(t->timer, when);
}

/* Every change is made between these two. */
static uint64_t change_begin(struct lapic *apic, bool *due)
{
	uint64_t at;

	host_lock(&apic->timer.lock);
	at = now(apic);
	*due = settle(apic, at);
	return at;
}

static void change_end(struct lapic *apic, uint64_t at, bool due)
{
	/* A deadline in the past fires at once, on this thread. */
	due |= settle(apic, at);
	arm(apic, at);
	host_unlock(&apic->timer.lock);
	if (due)
		lapic_local(apic, LVT_TIMER);
}

static void fire(void *opaque)
{
	struct lapic *apic = opaque;
	bool due;
	uint64_t at = change_begin(apic, &due);

	apic->timer.armed = 0; /* it fired: arm it anew, were it for the same moment */
	change_end(apic, at, due);
}

bool lapic_timer_taking(struct lapic *apic, uint8_t vector)
{
	uint32_t lvt = timer_lvt(apic);

	if (LVT_TIMER_MODE(lvt) != TIMER_PERIODIC || LVT_VECTOR(lvt) != vector)
		return false;
	host_lock(&apic->timer.lock);
	settle(apic, now(apic));
	return true;
}

void lapic_timer_taken(struct lapic *apic)
{
	arm(apic, now(apic));
	host_unlock(&apic->timer.lock);
}

bool lapic_timer_init(struct lapic *apic)
{
	struct lapic_timer *t = &apic->timer;

	host_mutex_init(&t->lock);
	t->armed = CLOCK_NEVER;
	t->timer = clock_timer_create(apic->bus->config.clock, fire, apic);
	return t->timer;
}

void lapic_timer_destroy(struct lapic *apic)
{
	if (apic->timer.timer)
		clock_timer_destroy(apic->timer.timer);
	host_mutex_destroy(&apic->timer.lock);
}

/* The TSC's offset is the processor's, and stays. */
void lapic_timer_reset(struct lapic *apic)
{
	struct lapic_timer *t = &apic->timer;

	host_lock(&t->lock);
	t->initial = t->divide = 0;
	t->counting = false;
	t->tsc_deadline = 0;
	lapic_put(&apic->lvt[LVT_TIMER], LVT_MASKED);
	arm(apic, now(apic));
	host_unlock(&t->lock);
}

/* Counting begins anew; 0 stops it. Ignored in TSC-deadline mode, in which reads give 0. */
void lapic_timer_set_initial(struct lapic *apic, uint32_t count)
{
	struct lapic_timer *t = &apic->timer;
	bool due;
	uint64_t at = change_begin(apic, &due);

	if (LVT_TIMER_MODE(timer_lvt(apic)) != TIMER_DEADLINE) {
		t->initial = count;
		t->counting = count;
		t->start = at;
		t->next = at + period(t);
	}
	change_end(apic, at, due);
}

/* What is left of the count, in units of the divider, rounded up: 0 only when it has expired. */
static uint32_t remaining(const struct lapic *apic, uint64_t at)
{
	const struct lapic_timer *t = &apic->timer;
	uint64_t gone = at - t->start;
	unsigned shift = divide_shift(t->divide);

	if (!t->counting || LVT_TIMER_MODE(timer_lvt(apic)) == TIMER_DEADLINE)
		return 0;
	if (LVT_TIMER_MODE(timer_lvt(apic)) == TIMER_PERIODIC)
		gone %= period(t);
	if (gone >= period(t))
		return 0;
	return (period(t) - gone + (1u << shift) - 1) >> shift;
}

/* The count goes on from where it is, at the new pace. */
void lapic_timer_set_divide(struct lapic *apic, uint32_t divide)
{
	struct lapic_timer *t = &apic->timer;
	bool due;
	uint64_t at = change_begin(apic, &due);
	uint32_t left = remaining(apic, at);

	t->divide = divide & 0xb;
	t->start = at - ((uint64_t)(t->initial - left) << divide_shift(t->divide));
	t->next = at + ((uint64_t)left << divide_shift(t->divide));
	change_end(apic, at, due);
}

/* A change of mode from or to TSC deadline disarms the timer (11.5.4.1). */
void lapic_timer_set_lvt(struct lapic *apic, uint32_t lvt)
{
	struct lapic_timer *t = &apic->timer;
	bool due, deadline = LVT_TIMER_MODE(lvt) == TIMER_DEADLINE;
	uint64_t at = change_begin(apic, &due);

	if (due) /* with the old vector */
		lapic_local(apic, LVT_TIMER);
	if (deadline != (LVT_TIMER_MODE(timer_lvt(apic)) == TIMER_DEADLINE)) {
		t->counting = false;
		t->initial = 0;
		t->tsc_deadline = 0;
	}
	lapic_put(&apic->lvt[LVT_TIMER], lvt);
	change_end(apic, at, false);
}

uint32_t lapic_timer_current(struct lapic *apic)
{
	uint32_t left;

	host_lock(&apic->timer.lock);
	left = remaining(apic, now(apic));
	host_unlock(&apic->timer.lock);
	return left;
}

uint64_t lapic_timer_tsc_deadline(struct lapic *apic)
{
	struct lapic_timer *t = &apic->timer;
	uint64_t deadline;

	host_lock(&t->lock);
	deadline = expired(apic, now(apic)) && LVT_TIMER_MODE(timer_lvt(apic)) == TIMER_DEADLINE ? 0 : t->tsc_deadline;
	host_unlock(&t->lock);
	return deadline;
}

/* Ignored outside of TSC-deadline mode (11.5.4.1). */
void lapic_timer_set_tsc_deadline(struct lapic *apic, uint64_t deadline)
{
	bool due;
	uint64_t at = change_begin(apic, &due);

	if (LVT_TIMER_MODE(timer_lvt(apic)) == TIMER_DEADLINE)
		apic->timer.tsc_deadline = deadline;
	change_end(apic, at, due);
}

void lapic_set_tsc_offset(struct lapic *apic, uint64_t offset)
{
	host_lock(&apic->timer.lock);
	apic->timer.tsc_offset = offset;
	change_end(apic, now(apic), false);
}

uint64_t lapic_timer_deadline(struct lapic *apic)
{
	uint64_t armed;

	host_lock(&apic->timer.lock);
	armed = apic->timer.armed;
	host_unlock(&apic->timer.lock);
	return armed;
}

/* Times are saved as distances from now: the clock of who loads them starts elsewhere. LVT is loaded already. */
void lapic_timer_state(struct lapic *apic, struct state_stream *s)
{
	struct lapic_timer *t = &apic->timer;
	uint64_t at, gone, left;

	host_lock(&t->lock);
	at = now(apic);
	gone = at - t->start;
	left = t->next > at ? t->next - at : 0;
	state_field(s, t->initial);
	state_field(s, t->divide);
	state_flag(s, &t->counting);
	state_field(s, t->tsc_deadline);
	state_field(s, gone);
	state_field(s, left);
	if (!s->saving) {
		t->divide &= 0xb;
		t->counting = t->counting && t->initial;
		t->start = at - gone;
		t->next = at + MIN(left, period(t));
		arm(apic, at);
	}
	host_unlock(&t->lock);
}
