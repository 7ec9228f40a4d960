/*
 * The bus: which device answers which port or guest-physical address. Handlers run on the thread of the virtual CPU
 * that made the access, several at once; a device locks its own state.
 */
#ifndef DOPPEL_BUS_BUS_H
#define DOPPEL_BUS_BUS_H

#include "base/base.h"
#include "host/thread.h"

enum bus_space { BUS_PORT, BUS_MMIO, BUS_SPACES };

struct bus_region;

/* `off` is relative to the region; len 1, 2, 4 or 8 (ports: up to 4). The whole access lies inside the region. */
struct bus_ops {
	uint64_t (*read)(void *opaque, uint64_t off, unsigned len, unsigned cpu);
	void (*write)(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu);
};

struct bus_region {
	const char *name;
	uint64_t base, size;
	const struct bus_ops *ops;
	void *opaque;
};

#define BUS_REGIONS 128

struct bus {
	struct host_rwlock lock;
	unsigned count[BUS_SPACES];
	struct bus_region region[BUS_SPACES][BUS_REGIONS]; /* sorted by base */
};

void bus_init(struct bus *bus);
void bus_destroy(struct bus *bus);
/* False when it overlaps another region or there is no room. Regions can come and go while the guest runs (PCI BARs).
 */
bool bus_add(struct bus *bus, enum bus_space space, struct bus_region region);
void bus_remove(struct bus *bus, enum bus_space space, uint64_t base);
/* Nobody there: reads give all ones, writes are dropped, as on a PC. */
uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned len, unsigned cpu);
void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, unsigned len, uint64_t value, unsigned cpu);

/* An interrupt line: a wire from a device to whatever takes it (I/O APIC and 8259 inputs). Any thread may set it. */
struct irq_line {
	void (*set)(void *opaque, unsigned pin, bool level);
	void *opaque;
	unsigned pin;
	/*
	 * May be NULL. The last edge has come and no processor has taken the interrupt yet: another one now would be
	 * lost. A hint, to devices whose every interrupt counts.
	 */
	bool (*waits)(void *opaque, unsigned pin);
};

static inline bool irq_waits(const struct irq_line *irq)
{
	return irq->waits && irq->waits(irq->opaque, irq->pin);
}

static inline void irq_set(const struct irq_line *irq, bool level)
{
	if (irq->set)
		irq->set(irq->opaque, irq->pin, level);
}

/* A message-signalled interrupt: a write of `data` to `addr` (SDM Vol. 3A 10.11), taken by the local APICs. */
struct msi_sink {
	void (*send)(void *opaque, uint64_t addr, uint32_t data);
	void *opaque;
};

/*
 * Every stateful part saves and loads. A part writes its fields through `state_stream`; a snapshot is all parts in a
 * row. One function serves both ways: it calls state_bytes for each field; `saving` tells the direction. A bad stream
 * sets `failed`.
 */
struct state_stream {
	bool saving, failed;
	const char *why; /* it failed, as what the state has or is; a constant */
	uint8_t *data;   /* saving: grows (owned by the stream); loading: borrowed */
	size_t len, pos;
};

/* Once failed, a stream does nothing: fields keep what they have. */
void state_bytes(struct state_stream *s, void *field, size_t len);
#define state_field(s, lvalue) state_bytes((s), &(lvalue), sizeof(lvalue))

/* A bool: whatever byte a bad stream has for it, it comes out as one. */
static inline void state_flag(struct state_stream *s, bool *flag)
{
	uint8_t byte = *flag;

	state_bytes(s, &byte, sizeof(byte));
	*flag = byte != 0;
}
/* What has been loaded is not taken; the first reason counts. */
void state_refuse(struct state_stream *s, const char *why);
/* A part's name and version, so that a stream of another machine fails here and not somewhere later. */
void state_mark(struct state_stream *s, uint32_t mark);
/* Frees what a saving stream owns. */
void state_end(struct state_stream *s);

/* A device on the machine: what the board needs to reset, save and remove it. */
struct device {
	const char *name;
	void *opaque;
	void (*reset)(void *opaque);
	void (*state)(void *opaque, struct state_stream *s);
	void (*destroy)(void *opaque);
	/*
	 * For devices with threads of their own (NULL: none). Between them the device leaves guest memory and interrupt
	 * lines alone; a snapshot pauses all devices, saves or loads all parts and memory, and resumes all.
	 */
	void (*pause)(void *opaque);
	void (*resume)(void *opaque);
};

#endif
