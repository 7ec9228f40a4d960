/*
 * 8254 (Intel 8254 data sheet) and port 0x61.
 *
 * Time is counted in ticks of 1.193182 MHz since the VM started, so that nothing rounds: each channel knows the tick at
 * which its count began. What a channel shows is worked out when it is asked.
 */
#include "dev/pit8254.h"

#include "dev/pit_channel.h"
#include "host/thread.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1000000000ull
#define CHANNELS 3

/* Interrupts closer together than this are spread: a guest may program a count of 2. */
#define PULSE_MIN_NS 50000u
/* How often an overdue one is tried that cannot be asked for yet, or was not taken. */
#define OWED_PACE_NS 250000u
/* Ticks that came too late to be interrupts of their own are made up for, up to this many. */
#define OWED_MAX 4096u

struct pit8254 {
	struct pit8254_config config;
	struct host_mutex lock; /* held while the line is set: order device → 8259, I/O APIC */
	struct clock_timer *timer;
	struct pit_channel ch[CHANNELS];
	uint8_t port61;        /* bits 3:0 */
	uint64_t next_edge;    /* tick of channel 0's next interrupt, PIT_NEVER: none comes */
	_Atomic uint32_t owed; /* interrupts that are overdue; changed under the lock */
};

static uint64_t now_ticks(const struct pit8254 *pit)
{
	return (unsigned __int128)clock_now(pit->config.clock) * PIT_HZ / NS_PER_S;
}

/* The first ns at which now_ticks() is `tick`. */
static uint64_t tick_ns(uint64_t tick)
{
	return ((unsigned __int128)tick * NS_PER_S + PIT_HZ - 1) / PIT_HZ;
}

/* Control word with SC = 3: latches counts (bit 5 clear) and status (bit 4 clear) of the channels in bits 3:1. */
static void read_back(struct pit8254 *pit, uint8_t value, uint64_t now)
{
	for (unsigned i = 0; i < CHANNELS; i++) {
		if (!(value & 2 << i))
			continue;
		if (!(value & 0x20))
			pit_channel_latch_count(&pit->ch[i], now);
		if (!(value & 0x10))
			pit_channel_latch_status(&pit->ch[i], now);
	}
}

static void write_control(struct pit8254 *pit, uint8_t value, uint64_t now)
{
	unsigned i = value >> 6;

	if (i == 3)
		read_back(pit, value, now);
	else if ((value >> 4 & 3) == PIT_ACCESS_LATCH)
		pit_channel_latch_count(&pit->ch[i], now);
	else
		pit_channel_set_mode(&pit->ch[i], value);
}

static void arm(struct pit8254 *pit)
{
	uint64_t soonest = clock_now(pit->config.clock) + PULSE_MIN_NS, at;

	if (pit->next_edge == PIT_NEVER && !pit->owed)
		at = CLOCK_NEVER;
	else if (pit->owed)
		at = soonest - PULSE_MIN_NS + OWED_PACE_NS;
	else if (pit_channel_is_periodic(&pit->ch[0]) && tick_ns(pit->ch[0].count) < PULSE_MIN_NS)
		at = MAX(soonest, tick_ns(pit->next_edge));
	else
		at = tick_ns(pit->next_edge);
	clock_timer_set(pit->timer, at);
}

/* After channel 0 was programmed: its output as it is now, and when it will rise. */
static void reprogrammed(struct pit8254 *pit, uint64_t now)
{
	struct pit_channel *c = &pit->ch[0];

	pit->owed = 0;
	pit->next_edge = pit_channel_edge_after(c, now);
	irq_set(&pit->config.irq, pit_channel_output(c, now));
	arm(pit);
}

/*
 * Brings all channels up to `now`. Channel 0's edges since then become interrupts owed: the timer, which was set for
 * the first of them, delivers. Every access begins with this.
 */
static void advance(struct pit8254 *pit, uint64_t now)
{
	struct pit_channel *c = &pit->ch[0];

	while (pit->next_edge <= now) {
		uint64_t edge = pit->next_edge, whole;

		pit_channel_settle(c, edge);
		/* A period at a time until a new count has taken effect, then all that passed at once. */
		whole = pit_channel_is_periodic(c) && !c->next_count ? (now - edge) / c->count : 0;
		pit->owed = MIN(pit->owed + whole + 1, OWED_MAX);
		pit->next_edge = pit_channel_edge_after(c, edge + whole * c->count);
	}
	for (unsigned i = 0; i < CHANNELS; i++)
		pit_channel_settle(&pit->ch[i], now);
}

/* A guest that counts its time in ticks gets each, however late its processor is in taking them. */
static void deliver(struct pit8254 *pit)
{
	host_lock(&pit->lock);
	advance(pit, now_ticks(pit));
	if (pit->owed && !irq_waits(&pit->config.irq)) {
		pit->owed--;
		irq_set(&pit->config.irq, false);
		irq_set(&pit->config.irq, true);
	}
	arm(pit);
	host_unlock(&pit->lock);
}

static void fire(void *opaque)
{
	deliver(opaque);
}

void pit8254_interrupt_taken(struct pit8254 *pit)
{
	if (atomic_load_explicit(&pit->owed, memory_order_relaxed))
		deliver(pit);
}

static void write_port(struct pit8254 *pit, unsigned port, uint8_t value)
{
	uint64_t now = now_ticks(pit);
	bool was_periodic = pit_channel_is_periodic(&pit->ch[0]) && pit->ch[0].loaded;

	advance(pit, now);
	if (port == 3)
		write_control(pit, value, now);
	else
		pit_channel_write(&pit->ch[port], value, now);
	/* A new count of a running periodic mode changes nothing until the period ends. */
	if ((port == 0 && !(was_periodic && pit->ch[0].next_count)) ||
	    (port == 3 && value >> 6 == 0 && (value >> 4 & 3) != PIT_ACCESS_LATCH))
		reprogrammed(pit, now);
}

static void polled(const struct pit8254 *pit, unsigned cpu, bool set)
{
	if (pit->config.polled)
		pit->config.polled(pit->config.opaque, cpu, set);
}

static uint64_t port_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct pit8254 *pit = opaque;
	uint64_t value = 0, now;

	polled(pit, cpu, false);
	host_lock(&pit->lock);
	now = now_ticks(pit);
	advance(pit, now);
	for (unsigned i = 0; i < len; i++) /* the control word can't be read */
		value |= (uint64_t)(off + i < CHANNELS ? pit_channel_read(&pit->ch[off + i], now) : 0xff) << (i * 8);
	host_unlock(&pit->lock);
	return value;
}

static void port_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct pit8254 *pit = opaque;

	polled(pit, cpu, true);
	host_lock(&pit->lock);
	for (unsigned i = 0; i < len; i++)
		write_port(pit, off + i, value >> (i * 8));
	host_unlock(&pit->lock);
}

/*
 * Port 0x61 (ICH9 13.7.1): bit 0 gate 2, bit 1 speaker, bits 3:2 NMI enables (kept), bit 4 toggles at the refresh rate
 * of 15 us, bit 5 is channel 2's output.
 */
static uint64_t port61_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct pit8254 *pit = opaque;
	uint64_t value, now;

	polled(pit, cpu, false);
	host_lock(&pit->lock);
	now = now_ticks(pit);
	advance(pit, now);
	value = pit->port61 | (now / 18 & 1) << 4 | pit_channel_output(&pit->ch[2], now) << 5;
	host_unlock(&pit->lock);
	return value;
}

static void port61_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct pit8254 *pit = opaque;
	uint64_t now;

	host_lock(&pit->lock);
	now = now_ticks(pit);
	advance(pit, now);
	pit->port61 = value & 0xf;
	pit_channel_set_gate(&pit->ch[2], value & 1, now);
	host_unlock(&pit->lock);
}

static const struct bus_ops ops = {port_read, port_write};
static const struct bus_ops port61_ops = {port61_read, port61_write};

static void reset(void *opaque)
{
	struct pit8254 *pit = opaque;

	host_lock(&pit->lock);
	for (unsigned i = 0; i < CHANNELS; i++)
		pit->ch[i] = (struct pit_channel){.access = PIT_ACCESS_BOTH, .mode = 3, .gate = i != 2};
	pit->port61 = 0;
	reprogrammed(pit, now_ticks(pit));
	host_unlock(&pit->lock);
}

static void state(void *opaque, struct state_stream *s)
{
	struct pit8254 *pit = opaque;
	uint64_t now;
	uint32_t owed;

	host_lock(&pit->lock);
	now = now_ticks(pit);
	advance(pit, now);
	owed = pit->owed;
	for (unsigned i = 0; i < CHANNELS; i++)
		pit_channel_state(&pit->ch[i], s, now);
	state_field(s, pit->port61);
	state_field(s, owed);
	pit->port61 &= 0xf;
	pit->owed = MIN(owed, OWED_MAX);
	if (!s->saving) {
		pit->next_edge = pit_channel_edge_after(&pit->ch[0], now);
		arm(pit);
	}
	host_unlock(&pit->lock);
}

static void release(struct pit8254 *pit)
{
	if (pit->timer)
		clock_timer_destroy(pit->timer);
	host_mutex_destroy(&pit->lock);
	free(pit);
}

static void destroy(void *opaque)
{
	struct pit8254 *pit = opaque;

	bus_remove(pit->config.bus, BUS_PORT, 0x40);
	bus_remove(pit->config.bus, BUS_PORT, 0x61);
	release(pit);
}

struct pit8254 *pit8254_create(const struct pit8254_config *config)
{
	struct pit8254 *pit = calloc(1, sizeof(*pit));

	if (!pit)
		return NULL;
	pit->config = *config;
	host_mutex_init(&pit->lock);
	pit->timer = clock_timer_create(config->clock, fire, pit);
	if (!pit->timer || !bus_add(config->bus, BUS_PORT, (struct bus_region){"8254", 0x40, 4, &ops, pit})) {
		release(pit);
		return NULL;
	}
	if (!bus_add(config->bus, BUS_PORT, (struct bus_region){"port 0x61", 0x61, 1, &port61_ops, pit})) {
		bus_remove(config->bus, BUS_PORT, 0x40);
		release(pit);
		return NULL;
	}
	reset(pit);
	return pit;
}

struct device pit8254_device(struct pit8254 *pit)
{
	return (struct device){.name = "8254", .opaque = pit, .reset = reset, .state = state, .destroy = destroy};
}
