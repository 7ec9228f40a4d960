/*
 * 8254 (Intel 8254 data sheet) and port 0x61.
 *
 * Time is counted in ticks of 1.193182 MHz since the VM started, so that nothing rounds: each channel knows the tick at
 * which its count began. What a channel shows is worked out when it is asked.
 */
#include "dev/pit8254.h"

#include "host/thread.h"

#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1000000000ull
#define CHANNELS 3
#define NEVER UINT64_MAX

/* Interrupts closer together than this are spread: a guest may program a count of 2. */
#define PULSE_MIN_NS 50000u
/* Ticks that came too late to be interrupts of their own are made up for, up to this many. */
#define OWED_MAX 4096u

enum access { ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH };

struct channel {
	uint8_t mode;	      /* 0..5 */
	uint8_t access;	      /* enum access, 1..3 */
	bool bcd, gate;
	bool high_next_write, high_next_read; /* ACCESS_BOTH: the low byte has passed */
	uint8_t low_byte;     /* written, waiting for the high one */
	bool loaded;	      /* has a count since the mode was set */
	bool running;	      /* false: `frozen` ticks have been counted, and no more are (gate, half-written count) */
	uint32_t count;	      /* initial count, 1..65536 (10000 in BCD) */
	uint32_t next_count;  /* modes 2 and 3: takes effect when the period ends, at next_start; 0 none */
	uint64_t next_start;
	uint64_t start;	      /* tick at which the count began, when running */
	uint64_t frozen;
	bool count_latched, status_latched;
	uint16_t latch;
	uint8_t status;
};

struct pit8254 {
	struct pit8254_config config;
	struct host_mutex lock; /* held while the line is set: order device → 8259, I/O APIC */
	struct clock_timer *timer;
	struct channel ch[CHANNELS];
	uint8_t port61;	      /* bits 3:0 */
	uint64_t next_edge;   /* tick of channel 0's next interrupt, NEVER: none comes */
	uint32_t owed;	      /* interrupts that are overdue */
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

static bool is_periodic(const struct channel *c)
{
	return c->mode == 2 || c->mode == 3;
}

/* Modes 1 and 5 wait for the gate to rise; their count runs on whatever it does then. */
static bool is_triggered(const struct channel *c)
{
	return c->mode == 1 || c->mode == 5;
}

static uint64_t elapsed(const struct channel *c, uint64_t now)
{
	return c->running ? now - c->start : c->frozen;
}

/* A new count of a periodic mode begins with the next period. */
static void settle(struct channel *c, uint64_t now)
{
	if (!c->next_count || !c->running || (int64_t)(now - c->next_start) < 0)
		return;
	c->start = c->next_start;
	c->count = c->next_count;
	c->next_count = 0;
}

static bool output(struct channel *c, uint64_t now)
{
	uint64_t gone = elapsed(c, now);

	if (!c->loaded)
		return c->mode != 0;
	switch (c->mode) {
	case 0:
		return gone >= c->count;
	case 1:
		return gone >= c->count;
	case 2:
		return gone % c->count != c->count - 1 || !c->gate;
	case 3:
		return gone % c->count < (c->count + 1) / 2 || !c->gate;
	default: /* 4, 5: low for one tick at the end */
		return gone != c->count;
	}
}

static uint16_t to_bcd(unsigned v)
{
	return v / 1000 % 10 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10;
}

static unsigned from_bcd(uint16_t v)
{
	return (v >> 12 & 15) * 1000 + (v >> 8 & 15) * 100 + (v >> 4 & 15) * 10 + (v & 15);
}

/* The counting element. */
static uint16_t counter(const struct channel *c, uint64_t now)
{
	uint64_t gone = elapsed(c, now), range = c->bcd ? 10000 : 65536;
	uint64_t left;

	if (!c->loaded)
		return 0;
	if (c->mode == 2)
		left = c->count - gone % c->count;
	else if (c->mode == 3) /* counts by twos, through the value once for each half of the square */
		left = c->count - gone * 2 % c->count;
	else
		left = (c->count + range - gone % range) % range;
	return c->bcd ? to_bcd(left % range) : left;
}

static uint8_t status(struct channel *c, uint64_t now)
{
	bool null = !c->loaded || c->next_count || c->high_next_write;

	return output(c, now) << 7 | null << 6 | c->access << 4 | c->mode << 1 | c->bcd;
}

static void start(struct channel *c, uint64_t now)
{
	if (c->next_count)
		c->count = c->next_count;
	c->next_count = 0;
	c->running = c->gate;
	c->start = now;
	c->frozen = 0;
}

static void freeze(struct channel *c, uint64_t now)
{
	c->frozen = elapsed(c, now);
	c->running = false;
}

static void load(struct channel *c, uint16_t value, uint64_t now)
{
	uint32_t count = c->bcd ? from_bcd(value) : value;

	if (!count)
		count = c->bcd ? 10000 : 65536;
	if (c->loaded && c->running && is_periodic(c)) {
		c->next_count = count;
		c->next_start = c->start + (elapsed(c, now) / c->count + 1) * c->count;
		return;
	}
	c->count = count;
	c->next_count = 0;
	if (is_triggered(c)) { /* armed; as if its count had run out long ago until the gate rises */
		c->running = false;
		c->frozen = c->loaded ? c->frozen : UINT32_MAX;
	} else {
		start(c, now);
	}
	c->loaded = true;
}

static void write_count(struct channel *c, uint8_t value, uint64_t now)
{
	switch (c->access) {
	case ACCESS_LOW:
		load(c, value, now);
		break;
	case ACCESS_HIGH:
		load(c, value << 8, now);
		break;
	default:
		if (c->high_next_write)
			load(c, c->low_byte | value << 8, now);
		else if (c->mode == 0 && c->loaded) /* the first byte stops the count */
			freeze(c, now);
		c->low_byte = value;
		c->high_next_write = !c->high_next_write;
	}
}

static uint8_t read_count(struct channel *c, uint64_t now)
{
	uint16_t value;
	bool high = c->access == ACCESS_HIGH || (c->access == ACCESS_BOTH && c->high_next_read);

	if (c->status_latched) {
		c->status_latched = false;
		return c->status;
	}
	value = c->count_latched ? c->latch : counter(c, now);
	if (c->access == ACCESS_BOTH)
		c->high_next_read = !c->high_next_read;
	if (c->access != ACCESS_BOTH || !c->high_next_read)
		c->count_latched = false;
	return high ? value >> 8 : value;
}

static void latch_count(struct channel *c, uint64_t now)
{
	if (c->count_latched)
		return;
	c->latch = counter(c, now);
	c->count_latched = true;
}

static void latch_status(struct channel *c, uint64_t now)
{
	if (c->status_latched)
		return;
	c->status = status(c, now);
	c->status_latched = true;
}

static void set_gate(struct channel *c, bool gate, uint64_t now)
{
	bool rises = gate && !c->gate;

	if (gate == c->gate)
		return;
	if (!gate && !is_triggered(c) && c->running)
		freeze(c, now);
	c->gate = gate;
	if (!rises || !c->loaded)
		return;
	if (is_periodic(c) || is_triggered(c)) {
		start(c, now);
	} else if (!c->high_next_write || c->mode != 0) { /* goes on where it was */
		c->start = now - c->frozen;
		c->running = true;
	}
}

/* Control word with SC = 3: latches counts (bit 5 clear) and status (bit 4 clear) of the channels in bits 3:1. */
static void read_back(struct pit8254 *pit, uint8_t value, uint64_t now)
{
	for (unsigned i = 0; i < CHANNELS; i++) {
		if (!(value & 2 << i))
			continue;
		if (!(value & 0x20))
			latch_count(&pit->ch[i], now);
		if (!(value & 0x10))
			latch_status(&pit->ch[i], now);
	}
}

static void set_mode(struct channel *c, uint8_t value)
{
	bool gate = c->gate;

	*c = (struct channel){.gate = gate, .access = value >> 4 & 3, .mode = value >> 1 & 7, .bcd = value & 1};
	if (c->mode > 5) /* bit 2 of the mode is a don't-care for 2 and 3 */
		c->mode &= 3;
}

static void write_control(struct pit8254 *pit, uint8_t value, uint64_t now)
{
	unsigned i = value >> 6;

	if (i == 3)
		read_back(pit, value, now);
	else if ((value >> 4 & 3) == ACCESS_LATCH)
		latch_count(&pit->ch[i], now);
	else
		set_mode(&pit->ch[i], value);
}

/* Channel 0's next rising edge after `now`. */
static uint64_t edge_after(struct channel *c, uint64_t now)
{
	if (!c->loaded || !c->running)
		return NEVER;
	if (is_periodic(c))
		return c->start + (elapsed(c, now) / c->count + 1) * c->count;
	if (c->mode == 4)
		return elapsed(c, now) <= c->count ? c->start + c->count + 1 : NEVER;
	return elapsed(c, now) < c->count ? c->start + c->count : NEVER;
}

static void arm(struct pit8254 *pit)
{
	uint64_t soonest = clock_now(pit->config.clock) + PULSE_MIN_NS, at;

	if (pit->next_edge == NEVER && !pit->owed)
		at = CLOCK_NEVER;
	else if (pit->owed) /* the overdue ones come at twice the pace */
		at = MAX(soonest, clock_now(pit->config.clock) + tick_ns(pit->ch[0].count) / 2);
	else if (is_periodic(&pit->ch[0]) && tick_ns(pit->ch[0].count) < PULSE_MIN_NS)
		at = MAX(soonest, tick_ns(pit->next_edge));
	else
		at = tick_ns(pit->next_edge);
	clock_timer_set(pit->timer, at);
}

/* After channel 0 was programmed: its output as it is now, and when it will rise. */
static void reprogrammed(struct pit8254 *pit, uint64_t now)
{
	struct channel *c = &pit->ch[0];

	pit->owed = 0;
	pit->next_edge = edge_after(c, now);
	irq_set(&pit->config.irq, output(c, now));
	arm(pit);
}

/*
 * Brings all channels up to `now`. Channel 0's edges since then become interrupts owed: the timer, which was set for the first
 * of them, delivers. Every access begins with this.
 */
static void advance(struct pit8254 *pit, uint64_t now)
{
	struct channel *c = &pit->ch[0];

	while (pit->next_edge <= now) {
		uint64_t edge = pit->next_edge, whole;

		settle(c, edge);
		/* A period at a time until a new count has taken effect, then all that passed at once. */
		whole = is_periodic(c) && !c->next_count ? (now - edge) / c->count : 0;
		pit->owed = MIN(pit->owed + whole + 1, OWED_MAX);
		pit->next_edge = edge_after(c, edge + whole * c->count);
	}
	for (unsigned i = 0; i < CHANNELS; i++)
		settle(&pit->ch[i], now);
}

static void fire(void *opaque)
{
	struct pit8254 *pit = opaque;

	host_lock(&pit->lock);
	advance(pit, now_ticks(pit));
	if (pit->owed) {
		pit->owed--;
		irq_set(&pit->config.irq, false);
		irq_set(&pit->config.irq, true);
	}
	arm(pit);
	host_unlock(&pit->lock);
}

static void write_port(struct pit8254 *pit, unsigned port, uint8_t value)
{
	uint64_t now = now_ticks(pit);
	bool was_periodic = is_periodic(&pit->ch[0]) && pit->ch[0].loaded;

	advance(pit, now);
	if (port == 3)
		write_control(pit, value, now);
	else
		write_count(&pit->ch[port], value, now);
	/* A new count of a running periodic mode changes nothing until the period ends. */
	if ((port == 0 && !(was_periodic && pit->ch[0].next_count)) ||
	    (port == 3 && value >> 6 == 0 && (value >> 4 & 3) != ACCESS_LATCH))
		reprogrammed(pit, now);
}

static uint64_t port_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct pit8254 *pit = opaque;
	uint64_t value = 0, now;

	host_lock(&pit->lock);
	now = now_ticks(pit);
	advance(pit, now);
	for (unsigned i = 0; i < len; i++) /* the control word can't be read */
		value |= (uint64_t)(off + i < CHANNELS ? read_count(&pit->ch[off + i], now) : 0xff) << (i * 8);
	host_unlock(&pit->lock);
	return value;
}

static void port_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct pit8254 *pit = opaque;

	host_lock(&pit->lock);
	for (unsigned i = 0; i < len; i++)
		write_port(pit, off + i, value >> (i * 8));
	host_unlock(&pit->lock);
}

/*
 * Port 0x61 (ICH9 13.7.1): bit 0 gate 2, bit 1 speaker, bits 3:2 NMI enables (kept), bit 4 toggles at the refresh rate of
 * 15 us, bit 5 is channel 2's output.
 */
static uint64_t port61_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct pit8254 *pit = opaque;
	uint64_t value, now;

	host_lock(&pit->lock);
	now = now_ticks(pit);
	advance(pit, now);
	value = pit->port61 | (now / 18 & 1) << 4 | output(&pit->ch[2], now) << 5;
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
	set_gate(&pit->ch[2], value & 1, now);
	host_unlock(&pit->lock);
}

static const struct bus_ops ops = {port_read, port_write};
static const struct bus_ops port61_ops = {port61_read, port61_write};

static void reset(void *opaque)
{
	struct pit8254 *pit = opaque;

	host_lock(&pit->lock);
	for (unsigned i = 0; i < CHANNELS; i++)
		pit->ch[i] = (struct channel){.access = ACCESS_BOTH, .mode = 3, .gate = i != 2};
	pit->port61 = 0;
	reprogrammed(pit, now_ticks(pit));
	host_unlock(&pit->lock);
}

/* Ticks are saved as distances from now; the other's clock starts elsewhere. */
static void channel_state(struct channel *c, struct state_stream *s, uint64_t now)
{
	uint64_t gone = elapsed(c, now), wait = c->next_start - now;
	uint8_t flags = c->bcd | c->gate << 1 | c->high_next_write << 2 | c->high_next_read << 3 | c->loaded << 4 |
			c->running << 5 | c->count_latched << 6 | c->status_latched << 7;

	state_field(s, c->mode);
	state_field(s, c->access);
	state_field(s, flags);
	state_field(s, c->low_byte);
	state_field(s, c->count);
	state_field(s, c->next_count);
	state_field(s, gone);
	state_field(s, wait);
	state_field(s, c->latch);
	state_field(s, c->status);
	if (s->saving)
		return;
	if (c->mode > 5 || c->access < ACCESS_LOW || c->access > ACCESS_BOTH || c->count > 65536 || c->next_count > 65536 ||
	    ((flags & 0x10) && !c->count))
		s->failed = true;
	if (s->failed) { /* whatever comes of this machine, it must not divide by 0 */
		*c = (struct channel){.access = ACCESS_BOTH, .mode = 3};
		return;
	}
	c->bcd = flags & 1;
	c->gate = flags & 2;
	c->high_next_write = flags & 4;
	c->high_next_read = flags & 8;
	c->loaded = flags & 0x10;
	c->running = flags & 0x20;
	c->count_latched = flags & 0x40;
	c->status_latched = flags & 0x80;
	c->start = now - gone;
	c->frozen = gone;
	c->next_start = now + MIN(wait, c->count); /* no later than a period from now */
}

static void state(void *opaque, struct state_stream *s)
{
	struct pit8254 *pit = opaque;
	uint64_t now;

	host_lock(&pit->lock);
	now = now_ticks(pit);
	advance(pit, now);
	for (unsigned i = 0; i < CHANNELS; i++)
		channel_state(&pit->ch[i], s, now);
	state_field(s, pit->port61);
	state_field(s, pit->owed);
	pit->port61 &= 0xf;
	pit->owed = MIN(pit->owed, OWED_MAX);
	if (!s->saving) {
		pit->next_edge = edge_after(&pit->ch[0], now);
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
