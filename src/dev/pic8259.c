/* The 8259A pair (Intel 8259A data sheet, "Operation Command Words" ff.; ELCR: ICH9 data sheet 13.4.8). */
#include "dev/pic8259.h"

#include "host/thread.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { MASTER, SLAVE, CHIPS };
#define CASCADE 2

struct chip {
	uint8_t lines; /* inputs' levels */
	uint8_t irr, imr, isr;
	uint8_t elcr;     /* 1: level-triggered */
	uint8_t base;     /* ICW2: vector of IR0 */
	uint8_t top;      /* the input of highest priority */
	uint8_t next_icw; /* 2..4 while initialization goes on, else 0 */
	bool level_all;   /* ICW1 LTIM */
	bool single, want_icw4;
	bool auto_eoi, rotate_auto, nested; /* ICW4 AEOI, rotate in AEOI mode, special fully nested mode */
	bool special_mask, read_isr, poll;
};

struct pic8259 {
	struct pic8259_config config;
	struct host_mutex lock; /* released before INTR is told */
	struct chip chip[CHIPS];
	_Atomic bool intr;
};

/* Which inputs can be level-triggered: not the timer, keyboard, cascade; clock and coprocessor. */
static const uint8_t elcr_mask[CHIPS] = {0xf8, 0xde};

/* Distance of the first set bit from the top priority, 8 if none: 0 is the most urgent. */
static unsigned rank(const struct chip *c, uint8_t set)
{
	for (unsigned i = 0; i < 8; i++)
		if (set & 1 << ((c->top + i) & 7))
			return i;
	return 8;
}

/* The input to be served next, or -1. */
static int chip_pending(const struct chip *c, bool is_master)
{
	uint8_t serving = c->isr;
	unsigned want = rank(c, c->irr & ~c->imr);

	if (c->special_mask)
		serving &= ~c->imr;
	if (is_master && c->nested) /* the slave's more urgent inputs may interrupt its less urgent ones */
		serving &= ~(1 << CASCADE);
	return want < rank(c, serving) ? (int)((c->top + want) & 7) : -1;
}

static bool is_level(const struct chip *c, unsigned irq)
{
	return c->level_all || c->elcr & 1 << irq;
}

/* An edge's request is dropped if its line falls before it is acknowledged: IR7 is then what the CPU gets. */
static void chip_set(struct chip *c, unsigned irq, bool level)
{
	uint8_t bit = 1 << irq;

	if (!level)
		c->irr &= ~bit;
	else if (is_level(c, irq) || !(c->lines & bit))
		c->irr |= bit;
	c->lines = level ? c->lines | bit : c->lines & ~bit;
}

/* The slave's output follows to the master, the master's to INTR. The cascade is taken as a level. The lock is held. */
static void update(struct pic8259 *pic)
{
	struct chip *m = &pic->chip[MASTER];

	if (chip_pending(&pic->chip[SLAVE], false) >= 0)
		m->irr |= 1 << CASCADE;
	else
		m->irr &= ~(1 << CASCADE);
	atomic_store(&pic->intr, chip_pending(m, true) >= 0);
}

static void lock(struct pic8259 *pic, bool *was)
{
	host_lock(&pic->lock);
	*was = atomic_load(&pic->intr);
}

static void unlock(struct pic8259 *pic, bool was)
{
	bool is;

	update(pic);
	is = atomic_load(&pic->intr);
	host_unlock(&pic->lock);
	if (is != was)
		irq_set(&pic->config.intr, is);
}

static void set_line(void *opaque, unsigned irq, bool level)
{
	struct pic8259 *pic = opaque;
	bool was;

	lock(pic, &was);
	if (irq != CASCADE)
		chip_set(&pic->chip[irq / 8], irq & 7, level);
	unlock(pic, was);
}

static bool line_waits(void *opaque, unsigned irq)
{
	struct pic8259 *pic = opaque;
	const struct chip *c = &pic->chip[irq / 8];
	bool waits;

	host_lock(&pic->lock);
	waits = c->irr & ~c->imr & 1 << (irq & 7);
	host_unlock(&pic->lock);
	return waits;
}

static void rotate_to_bottom(struct chip *c, unsigned irq)
{
	c->top = (irq + 1) & 7;
}

/* One chip's acknowledge cycle: the input, 7 if there is none any more. */
static unsigned chip_ack(struct chip *c, bool is_master)
{
	int irq = chip_pending(c, is_master);

	if (irq < 0)
		return 7;
	if (!is_level(c, irq))
		c->irr &= ~(1 << irq);
	if (!c->auto_eoi)
		c->isr |= 1 << irq;
	else if (c->rotate_auto)
		rotate_to_bottom(c, irq);
	return irq;
}

bool pic8259_pending(void *opaque)
{
	struct pic8259 *pic = opaque;

	return atomic_load_explicit(&pic->intr, memory_order_acquire);
}

int pic8259_ack(void *opaque)
{
	struct pic8259 *pic = opaque;
	struct chip *m = &pic->chip[MASTER], *s = &pic->chip[SLAVE];
	bool was, cascade;
	unsigned irq;
	int vector;

	lock(pic, &was);
	cascade = chip_pending(m, true) == CASCADE;
	irq = chip_ack(m, true);
	vector = cascade ? s->base + chip_ack(s, false) : m->base + irq;
	unlock(pic, was);
	return vector;
}

/* ICW1 (bit 4 set): begins initialization. The edge sense is reset: a line must fall before it can ask again. */
static void icw1(struct chip *c, uint8_t value)
{
	struct chip fresh = {.lines = c->lines, .elcr = c->elcr, .base = c->base};

	fresh.next_icw = 2;
	fresh.want_icw4 = value & 1;
	fresh.single = value & 2;
	fresh.level_all = value & 8;
	*c = fresh;
	for (unsigned i = 0; i < 8; i++)
		if (is_level(c, i))
			c->irr |= c->lines & 1 << i;
}

/* OCW2: end of interrupt and rotation, by bits 7:5; bits 2:0 name a level. */
static void ocw2(struct chip *c, uint8_t value)
{
	enum { EOI = 1, SPECIFIC = 2, ROTATE = 4 };
	unsigned command = value >> 5, irq = value & 7, serving;

	if (command == ROTATE || command == 0) {
		c->rotate_auto = command;
		return;
	}
	if (command == SPECIFIC) /* no operation */
		return;
	if ((command & EOI) && !(command & SPECIFIC)) {
		serving = rank(c, c->special_mask ? c->isr & ~c->imr : c->isr);
		if (serving == 8)
			return;
		irq = (c->top + serving) & 7;
	}
	if (command & EOI)
		c->isr &= ~(1 << irq);
	if (command & ROTATE)
		rotate_to_bottom(c, irq);
}

static void ocw3(struct chip *c, uint8_t value)
{
	if (value & 0x40)
		c->special_mask = value & 0x20;
	if (value & 4)
		c->poll = true;
	else if (value & 2)
		c->read_isr = value & 1;
}

static void write_even(struct chip *c, uint8_t value)
{
	if (value & 0x10)
		icw1(c, value);
	else if (value & 8)
		ocw3(c, value);
	else
		ocw2(c, value);
}

/* ICW2 to ICW4 while initialization goes on, else OCW1. ICW3 is how the chips are wired, which we know. */
static void write_odd(struct chip *c, uint8_t value)
{
	switch (c->next_icw) {
	case 2:
		c->base = value & 0xf8;
		c->next_icw = !c->single ? 3 : c->want_icw4 ? 4 : 0;
		break;
	case 3:
		c->next_icw = c->want_icw4 ? 4 : 0;
		break;
	case 4:
		c->auto_eoi = value & 2;
		c->nested = value & 0x10;
		c->next_icw = 0;
		break;
	default:
		c->imr = value;
	}
}

/* A read after a poll command is an acknowledge cycle of that chip: bit 7 and the input. */
static uint8_t read_poll(struct chip *c, bool is_master)
{
	c->poll = false;
	return chip_pending(c, is_master) >= 0 ? 0x80 | chip_ack(c, is_master) : 0;
}

static uint8_t read_chip(struct pic8259 *pic, unsigned chip, unsigned off)
{
	struct chip *c = &pic->chip[chip];

	if (c->poll)
		return read_poll(c, chip == MASTER);
	if (off)
		return c->imr;
	return c->read_isr ? c->isr : c->irr;
}

static uint64_t port_read(struct pic8259 *pic, unsigned chip, unsigned off)
{
	uint8_t value;
	bool was;

	lock(pic, &was);
	value = read_chip(pic, chip, off);
	unlock(pic, was);
	return value;
}

static void port_write(struct pic8259 *pic, unsigned chip, unsigned off, uint8_t value)
{
	bool was;

	lock(pic, &was);
	if (off)
		write_odd(&pic->chip[chip], value);
	else
		write_even(&pic->chip[chip], value);
	unlock(pic, was);
}

/* A 16-bit access takes both ports of a chip in turn; the bus hands it over whole. */
static uint64_t read_bytes(struct pic8259 *pic, unsigned chip, uint64_t off, unsigned len)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < len; i++)
		value |= port_read(pic, chip, off + i) << (i * 8);
	return value;
}

static void write_bytes(struct pic8259 *pic, unsigned chip, uint64_t off, unsigned len, uint64_t value)
{
	for (unsigned i = 0; i < len; i++)
		port_write(pic, chip, off + i, value >> (i * 8));
}

static uint64_t master_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	return read_bytes(opaque, MASTER, off, len);
}

static void master_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	write_bytes(opaque, MASTER, off, len, value);
}

static uint64_t slave_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	return read_bytes(opaque, SLAVE, off, len);
}

static void slave_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	write_bytes(opaque, SLAVE, off, len, value);
}

static uint64_t elcr_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct pic8259 *pic = opaque;
	uint64_t value = 0;
	bool was;

	lock(pic, &was);
	for (unsigned i = 0; i < len; i++)
		value |= (uint64_t)pic->chip[off + i].elcr << (i * 8);
	unlock(pic, was);
	return value;
}

static void elcr_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct pic8259 *pic = opaque;
	bool was;

	lock(pic, &was);
	for (unsigned i = 0; i < len; i++) {
		struct chip *c = &pic->chip[off + i];

		c->elcr = value >> (i * 8) & elcr_mask[off + i];
		c->irr = (c->irr & ~c->elcr) | (c->lines & c->elcr);
	}
	unlock(pic, was);
}

static const struct bus_ops ops[] = {
	{master_read, master_write},
	{slave_read, slave_write},
	{elcr_read, elcr_write},
};
static const uint16_t ports[] = {0x20, 0xa0, 0x4d0};

/* Lines keep their levels, as in the I/O APIC. All is masked until software initializes the chips. */
static void reset(void *opaque)
{
	struct pic8259 *pic = opaque;
	bool was;

	lock(pic, &was);
	for (unsigned i = 0; i < CHIPS; i++)
		pic->chip[i] = (struct chip){.lines = pic->chip[i].lines, .imr = 0xff};
	unlock(pic, was);
}

static void chip_state(struct chip *c, struct state_stream *s)
{
	uint8_t *bytes[] = {&c->lines, &c->irr, &c->imr, &c->isr, &c->elcr, &c->base, &c->top, &c->next_icw};
	bool *flags[] = {&c->level_all, &c->single,       &c->want_icw4, &c->auto_eoi, &c->rotate_auto,
			 &c->nested,    &c->special_mask, &c->read_isr,  &c->poll};

	for (unsigned i = 0; i < ARRAY_LEN(bytes); i++)
		state_field(s, *bytes[i]);
	for (unsigned i = 0; i < ARRAY_LEN(flags); i++) {
		uint8_t flag = *flags[i];

		state_field(s, flag);
		*flags[i] = flag;
	}
	c->base &= 0xf8;
	c->top &= 7;
}

static void state(void *opaque, struct state_stream *s)
{
	struct pic8259 *pic = opaque;
	bool was;

	lock(pic, &was);
	for (unsigned i = 0; i < CHIPS; i++)
		chip_state(&pic->chip[i], s);
	unlock(pic, was);
}

static void destroy(void *opaque)
{
	struct pic8259 *pic = opaque;

	for (unsigned i = 0; i < ARRAY_LEN(ports); i++)
		bus_remove(pic->config.bus, BUS_PORT, ports[i]);
	host_mutex_destroy(&pic->lock);
	free(pic);
}

struct pic8259 *pic8259_create(const struct pic8259_config *config)
{
	struct pic8259 *pic = calloc(1, sizeof(*pic));

	if (!pic)
		return NULL;
	pic->config = *config;
	host_mutex_init(&pic->lock);
	reset(pic);
	for (unsigned i = 0; i < ARRAY_LEN(ports); i++) {
		if (!bus_add(config->bus, BUS_PORT, (struct bus_region){"8259", ports[i], 2, &ops[i], pic})) {
			while (i--)
				bus_remove(config->bus, BUS_PORT, ports[i]);
			host_mutex_destroy(&pic->lock);
			free(pic);
			return NULL;
		}
	}
	return pic;
}

struct device pic8259_device(struct pic8259 *pic)
{
	return (struct device){.name = "8259", .opaque = pic, .reset = reset, .state = state, .destroy = destroy};
}

struct irq_line pic8259_line(struct pic8259 *pic, unsigned irq)
{
	ENSURE(irq < 16);
	return (struct irq_line){.set = set_line, .opaque = pic, .pin = irq, .waits = line_waits};
}
