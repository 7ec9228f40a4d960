/* A counter of the 8254 (Intel 8254 data sheet, "Mode Definitions", "Read-Back Command"). */
#include "dev/pit_channel.h"

bool pit_channel_is_periodic(const struct pit_channel *c)
{
	return c->mode == 2 || c->mode == 3;
}

/* Modes 1 and 5 wait for the gate to rise; their count runs on whatever it does then. */
static bool is_triggered(const struct pit_channel *c)
{
	return c->mode == 1 || c->mode == 5;
}

static uint64_t elapsed(const struct pit_channel *c, uint64_t now)
{
	return c->running ? now - c->start : c->frozen;
}

/* A new count of a periodic mode begins with the next period; that of a triggered one waits for the trigger. */
void pit_channel_settle(struct pit_channel *c, uint64_t now)
{
	if (!c->next_count || is_triggered(c) || !c->running || (int64_t)(now - c->next_start) < 0)
		return;
	c->start = c->next_start;
	c->count = c->next_count;
	c->next_count = 0;
}

bool pit_channel_output(const struct pit_channel *c, uint64_t now)
{
	uint64_t gone = elapsed(c, now);

	if (!c->loaded)
		return c->mode != 0;
	switch (c->mode) {
	case 0:
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
static uint16_t counter(const struct pit_channel *c, uint64_t now)
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

static uint8_t status(const struct pit_channel *c, uint64_t now)
{
	bool null = !c->loaded || c->next_count || c->high_next_write;

	return pit_channel_output(c, now) << 7 | null << 6 | c->access << 4 | c->mode << 1 | c->bcd;
}

static void start(struct pit_channel *c, uint64_t now)
{
	if (c->next_count)
		c->count = c->next_count;
	c->next_count = 0;
	c->running = c->gate;
	c->start = now;
	c->frozen = 0;
}

static void freeze(struct pit_channel *c, uint64_t now)
{
	c->frozen = elapsed(c, now);
	c->running = false;
}

static void load(struct pit_channel *c, uint16_t value, uint64_t now)
{
	uint32_t count = c->bcd ? from_bcd(value) : value;

	if (!count)
		count = c->bcd ? 10000 : 65536;
	if (c->loaded && c->running && pit_channel_is_periodic(c)) {
		c->next_count = count;
		c->next_start = c->start + (elapsed(c, now) / c->count + 1) * c->count;
		return;
	}
	if (is_triggered(c)) {
		c->next_count = count;
		if (!c->loaded) { /* armed; as if a count had run out long ago until the gate rises */
			c->count = count;
			c->running = false;
			c->frozen = UINT32_MAX;
		}
	} else {
		c->count = count;
		c->next_count = 0;
		start(c, now);
	}
	c->loaded = true;
}

void pit_channel_write(struct pit_channel *c, uint8_t value, uint64_t now)
{
	switch (c->access) {
	case PIT_ACCESS_LOW:
		load(c, value, now);
		break;
	case PIT_ACCESS_HIGH:
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

uint8_t pit_channel_read(struct pit_channel *c, uint64_t now)
{
	uint16_t value;
	bool high = c->access == PIT_ACCESS_HIGH || (c->access == PIT_ACCESS_BOTH && c->high_next_read);

	if (c->status_latched) {
		c->status_latched = false;
		return c->status;
	}
	value = c->count_latched ? c->latch : counter(c, now);
	if (c->access == PIT_ACCESS_BOTH)
		c->high_next_read = !c->high_next_read;
	if (c->access != PIT_ACCESS_BOTH || !c->high_next_read)
		c->count_latched = false;
	return high ? value >> 8 : value;
}

void pit_channel_latch_count(struct pit_channel *c, uint64_t now)
{
	if (c->count_latched)
		return;
	c->latch = counter(c, now);
	c->count_latched = true;
}

void pit_channel_latch_status(struct pit_channel *c, uint64_t now)
{
	if (c->status_latched)
		return;
	c->status = status(c, now);
	c->status_latched = true;
}

void pit_channel_set_gate(struct pit_channel *c, bool gate, uint64_t now)
{
	bool rises = gate && !c->gate;

	if (gate == c->gate)
		return;
	if (!gate && !is_triggered(c) && c->running)
		freeze(c, now);
	c->gate = gate;
	if (!rises || !c->loaded)
		return;
	if (pit_channel_is_periodic(c) || is_triggered(c)) {
		start(c, now);
	} else if (!c->high_next_write || c->mode != 0) { /* goes on where it was */
		c->start = now - c->frozen;
		c->running = true;
	}
}

void pit_channel_set_mode(struct pit_channel *c, uint8_t value)
{
	bool gate = c->gate;

	*c = (struct pit_channel){.gate = gate, .access = value >> 4 & 3, .mode = value >> 1 & 7, .bcd = value & 1};
	if (c->mode > 5) /* bit 2 of the mode is a don't-care for 2 and 3 */
		c->mode &= 3;
}

/* Channel 0's next rising edge after `now`. */
uint64_t pit_channel_edge_after(const struct pit_channel *c, uint64_t now)
{
	if (!c->loaded || !c->running)
		return PIT_NEVER;
	if (pit_channel_is_periodic(c))
		return c->start + (elapsed(c, now) / c->count + 1) * c->count;
	if (c->mode == 4)
		return elapsed(c, now) <= c->count ? c->start + c->count + 1 : PIT_NEVER;
	return elapsed(c, now) < c->count ? c->start + c->count : PIT_NEVER;
}

/* Ticks are saved as distances from now; the other's clock starts elsewhere. */
void pit_channel_state(struct pit_channel *c, struct state_stream *s, uint64_t now)
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
	if (c->mode > 5 || c->access < PIT_ACCESS_LOW || c->access > PIT_ACCESS_BOTH || c->count > 65536 ||
	    c->next_count > 65536 || ((flags & 0x10) && !c->count))
		state_refuse(s, "a timer (8254) in a state that cannot be");
	if (s->failed) { /* whatever comes of this machine, it must not divide by 0 */
		*c = (struct pit_channel){.access = PIT_ACCESS_BOTH, .mode = 3};
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
