/*
 * One counter of an 8254. Nothing here knows of time or interrupts: `now` is in ticks of the counters' clock, and what
 * a channel shows is worked out from when its count began.
 */
#ifndef DOPPEL_DEV_PIT_CHANNEL_H
#define DOPPEL_DEV_PIT_CHANNEL_H

#include "bus/bus.h"

#define PIT_NEVER UINT64_MAX

enum pit_access { PIT_ACCESS_LATCH, PIT_ACCESS_LOW, PIT_ACCESS_HIGH, PIT_ACCESS_BOTH };

struct pit_channel {
	uint8_t mode;   /* 0..5 */
	uint8_t access; /* enum pit_access, 1..3 */
	bool bcd, gate;
	bool high_next_write, high_next_read; /* PIT_ACCESS_BOTH: the low byte has passed */
	uint8_t low_byte;                     /* written, waiting for the high one */
	bool loaded;                          /* has a count since the mode was set */
	bool running;   /* false: `frozen` ticks have been counted, and no more are (gate, half-written count) */
	uint32_t count; /* initial count, 1..65536 (10000 in BCD) */
	/* Takes effect in modes 2 and 3 when the period ends, at next_start, in 1 and 5 with the trigger; 0 none. */
	uint32_t next_count;
	uint64_t next_start;
	uint64_t start; /* tick at which the count began, when running */
	uint64_t frozen;
	bool count_latched, status_latched;
	uint16_t latch;
	uint8_t status;
};

bool pit_channel_is_periodic(const struct pit_channel *c);
/* A new count of a periodic mode takes effect if its moment has come. To be called before all that follows. */
void pit_channel_settle(struct pit_channel *c, uint64_t now);
/* The OUT pin. */
bool pit_channel_output(const struct pit_channel *c, uint64_t now);
/* The tick of OUT's next rising edge after `now`, or PIT_NEVER. */
uint64_t pit_channel_edge_after(const struct pit_channel *c, uint64_t now);
/* The data port. */
uint8_t pit_channel_read(struct pit_channel *c, uint64_t now);
void pit_channel_write(struct pit_channel *c, uint8_t value, uint64_t now);
/* The control word: counter latch, the two of read-back, and a new mode. */
void pit_channel_latch_count(struct pit_channel *c, uint64_t now);
void pit_channel_latch_status(struct pit_channel *c, uint64_t now);
void pit_channel_set_mode(struct pit_channel *c, uint8_t value);
void pit_channel_set_gate(struct pit_channel *c, bool gate, uint64_t now);
void pit_channel_state(struct pit_channel *c, struct state_stream *s, uint64_t now);

#endif
