/* I/O APIC (Intel 82093AA data sheet 3.0-3.4; the EOI register is ICH9's, 13.5.1). */
#include "dev/ioapic.h"

#include "host/thread.h"

#include <stdlib.h>
#include <string.h>

/* Redirection entry. */
#define ENTRY_VECTOR(e) ((uint8_t)(e))
#define ENTRY_MODE(e) bits(e, 10, 8)
#define ENTRY_LOGICAL BIT(11)
#define ENTRY_REMOTE_IRR BIT(14)
#define ENTRY_LEVEL BIT(15)
#define ENTRY_MASKED BIT(16)
#define ENTRY_DEST(e) ((uint8_t)((e) >> 56))
#define ENTRY_WRITABLE (0xffull << 56 | BIT(16) | BIT(15) | BIT(13) | 0xfff)

enum { WINDOW_SELECT = 0x00, WINDOW_DATA = 0x10, WINDOW_EOI = 0x40 };
enum { REG_ID = 0, REG_VERSION = 1, REG_ARBITRATION = 2, REG_ENTRIES = 0x10 };
#define VERSION_VALUE (0x20 | (IOAPIC_PINS - 1) << 16)

struct ioapic {
	struct ioapic_config config;
	struct host_mutex lock; /* released before anything is sent */
	uint8_t select, id;
	uint32_t lines; /* levels of the inputs */
	uint64_t entry[IOAPIC_PINS];
};

/* Messages that a change gave rise to, sent once the lock is released. */
struct outbox {
	unsigned count;
	struct {
		unsigned pin;
		uint64_t entry;
	} out[IOAPIC_PINS];
};

static bool is_acknowledged(uint64_t entry)
{
	return (entry & ENTRY_LEVEL) && ENTRY_MODE(entry) <= APIC_LOWEST;
}

static void put(struct ioapic *io, struct outbox *box, unsigned pin)
{
	box->out[box->count].pin = pin;
	box->out[box->count++].entry = io->entry[pin];
}

/* A level-triggered input that is asserted asks again whenever it may. The lock is held. */
static void evaluate_level(struct ioapic *io, struct outbox *box, unsigned pin)
{
	uint64_t e = io->entry[pin];

	if (!(e & ENTRY_LEVEL) || (e & (ENTRY_MASKED | ENTRY_REMOTE_IRR)) || !(io->lines & BIT(pin)))
		return;
	if (is_acknowledged(e))
		io->entry[pin] |= ENTRY_REMOTE_IRR;
	put(io, box, pin);
}

/* Nobody took it: there will be no EOI to wait for. */
static void not_taken(struct ioapic *io, unsigned pin)
{
	host_lock(&io->lock);
	io->entry[pin] &= ~ENTRY_REMOTE_IRR;
	host_unlock(&io->lock);
}

/* Without the lock. */
static void send(struct ioapic *io, const struct outbox *box)
{
	for (unsigned i = 0; i < box->count; i++) {
		uint64_t e = box->out[i].entry;
		struct apic_message msg = {
			.dest = ENTRY_DEST(e),
			.logical = e & ENTRY_LOGICAL,
			.level = is_acknowledged(e),
			.mode = ENTRY_MODE(e),
			.vector = ENTRY_VECTOR(e),
		};

		if (msg.mode == APIC_SIPI)
			continue;
		if (!apic_bus_send(io->config.apics, &msg) && is_acknowledged(e))
			not_taken(io, box->out[i].pin);
	}
}

static void set_line(void *opaque, unsigned pin, bool level)
{
	struct ioapic *io = opaque;
	struct outbox box = {0};
	bool was;

	host_lock(&io->lock);
	was = io->lines & BIT(pin);
	io->lines = (io->lines & ~(uint32_t)BIT(pin)) | (uint32_t)level << pin;
	if (level && io->entry[pin] & ENTRY_LEVEL)
		evaluate_level(io, &box, pin);
	else if (level && !was && !(io->entry[pin] & ENTRY_MASKED)) /* an edge while masked is lost (3.2.4) */
		put(io, &box, pin);
	host_unlock(&io->lock);
	send(io, &box);
}

static bool line_waits(void *opaque, unsigned pin)
{
	struct ioapic *io = opaque;
	uint64_t e;

	host_lock(&io->lock);
	e = io->entry[pin];
	host_unlock(&io->lock);
	struct apic_message msg = {
		.dest = ENTRY_DEST(e),
		.logical = e & ENTRY_LOGICAL,
		.mode = ENTRY_MODE(e),
		.vector = ENTRY_VECTOR(e),
	};
	return !(e & ENTRY_MASKED) && msg.mode <= APIC_LOWEST && apic_bus_waits(io->config.apics, &msg);
}

/* The EOI of a vector ends every level-triggered interrupt of it. */
static void eoi(void *opaque, uint8_t vector)
{
	struct ioapic *io = opaque;
	struct outbox box = {0};

	host_lock(&io->lock);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t e = io->entry[pin];

		if (!(e & ENTRY_REMOTE_IRR) || ENTRY_VECTOR(e) != vector)
			continue;
		io->entry[pin] &= ~ENTRY_REMOTE_IRR;
		evaluate_level(io, &box, pin);
	}
	host_unlock(&io->lock);
	send(io, &box);
}

/* Register of the data window; the lock is held. */
static uint32_t read_reg(const struct ioapic *io)
{
	unsigned i = io->select - REG_ENTRIES;

	switch (io->select) {
	case REG_ID:
	case REG_ARBITRATION:
		return (uint32_t)io->id << 24;
	case REG_VERSION:
		return VERSION_VALUE;
	default:
		return i / 2 < IOAPIC_PINS ? io->entry[i / 2] >> (i % 2 * 32) : 0;
	}
}

static void write_entry(struct ioapic *io, unsigned i, uint32_t value, struct outbox *box)
{
	unsigned pin = i / 2, shift = i % 2 * 32;
	uint64_t mask = (0xffffffffull << shift) & ENTRY_WRITABLE;
	uint64_t e = (io->entry[pin] & ~mask) | ((uint64_t)value << shift & mask);

	if (!is_acknowledged(e)) /* remote IRR means nothing for an edge, and is clear */
		e &= ~ENTRY_REMOTE_IRR;
	io->entry[pin] = e;
	evaluate_level(io, box, pin);
}

static void write_reg(struct ioapic *io, uint32_t value, struct outbox *box)
{
	unsigned i = io->select - REG_ENTRIES;

	if (io->select == REG_ID)
		io->id = (value >> 24) & 0xf;
	else if (io->select >= REG_ENTRIES && i / 2 < IOAPIC_PINS)
		write_entry(io, i, value, box);
}

static uint64_t mmio_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct ioapic *io = opaque;
	uint64_t value = 0;

	host_lock(&io->lock);
	if (off == WINDOW_SELECT)
		value = io->select;
	else if (off == WINDOW_DATA)
		value = read_reg(io);
	host_unlock(&io->lock);
	return value;
}

static void mmio_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct ioapic *io = opaque;
	struct outbox box = {0};

	if (off == WINDOW_EOI) {
		eoi(io, value);
		return;
	}
	host_lock(&io->lock);
	if (off == WINDOW_SELECT)
		io->select = value;
	else if (off == WINDOW_DATA && len >= 4)
		write_reg(io, value, &box);
	host_unlock(&io->lock);
	send(io, &box);
}

static const struct bus_ops mmio_ops = {mmio_read, mmio_write};

/* The levels of the inputs are the devices' affair, who lower them at their own reset. */
static void reset(void *opaque)
{
	struct ioapic *io = opaque;

	host_lock(&io->lock);
	io->select = 0;
	io->id = io->config.id & 0xf;
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		io->entry[i] = ENTRY_MASKED;
	host_unlock(&io->lock);
}

static void state(void *opaque, struct state_stream *s)
{
	struct ioapic *io = opaque;

	host_lock(&io->lock);
	state_field(s, io->select);
	state_field(s, io->id);
	state_field(s, io->lines);
	state_field(s, io->entry);
	io->lines &= BIT(IOAPIC_PINS) - 1;
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		io->entry[i] &= ENTRY_WRITABLE | ENTRY_REMOTE_IRR;
	host_unlock(&io->lock);
}

static void destroy(void *opaque)
{
	struct ioapic *io = opaque;

	bus_remove(io->config.bus, BUS_MMIO, io->config.base);
	host_mutex_destroy(&io->lock);
	free(io);
}

struct ioapic *ioapic_create(const struct ioapic_config *config)
{
	struct bus_region region = {"I/O APIC", config->base, PAGE_SIZE, &mmio_ops, NULL};
	struct ioapic *io = calloc(1, sizeof(*io));

	if (!io)
		return NULL;
	io->config = *config;
	host_mutex_init(&io->lock);
	reset(io);
	region.opaque = io;
	if (!bus_add(config->bus, BUS_MMIO, region)) {
		host_mutex_destroy(&io->lock);
		free(io);
		return NULL;
	}
	apic_bus_set_eoi(config->apics, eoi, io);
	return io;
}

struct device ioapic_device(struct ioapic *io)
{
	return (struct device){.name = "I/O APIC", .opaque = io, .reset = reset, .state = state, .destroy = destroy};
}

struct irq_line ioapic_line(struct ioapic *io, unsigned pin)
{
	ENSURE(pin < IOAPIC_PINS);
	return (struct irq_line){.set = set_line, .opaque = io, .pin = pin, .waits = line_waits};
}

bool ioapic_enabled(struct ioapic *io, unsigned pin)
{
	bool enabled;

	host_lock(&io->lock);
	enabled = !(io->entry[pin] & ENTRY_MASKED);
	host_unlock(&io->lock);
	return enabled;
}
