/*
 * For tests of devices: a clock that stands still until told, a bus, and wires that remember. Include in one file of
 * the program; the functions of bus/clock.h are defined here.
 */
#ifndef DOPPEL_TESTS_DEVICE_TEST_H
#define DOPPEL_TESTS_DEVICE_TEST_H

#include "bus/bus.h"
#include "bus/clock.h"
#include "unit.h"

#define NS_PER_S 1000000000ull

/* ---- Clock ---- */

struct clock_timer {
	struct vm_clock *clock;
	void (*fire)(void *opaque);
	void *opaque;
	uint64_t deadline;
	struct clock_timer *next;
};

struct vm_clock {
	uint64_t now;
	struct clock_timer *timers;
	unsigned fired;
};

static uint64_t test_wall_ns = 1700000000ull * NS_PER_S; /* at clock time 0 */
static struct vm_clock test_clock;

uint64_t clock_now(const struct vm_clock *clock)
{
	return clock->now;
}

/* The TSC runs at 2 GHz. */
__attribute__((unused)) uint64_t clock_ticks(const struct vm_clock *clock)
{
	return clock->now * 2;
}

__attribute__((unused)) uint64_t clock_ticks_ns(const struct vm_clock *clock, uint64_t ticks)
{
	return ticks / 2 + ticks % 2;
}

uint64_t clock_tsc_hz(const struct vm_clock *clock)
{
	return 2000000000;
}

void clock_wall(uint64_t *sec, uint32_t *nsec)
{
	*sec = (test_wall_ns + test_clock.now) / NS_PER_S;
	*nsec = (test_wall_ns + test_clock.now) % NS_PER_S;
}

struct clock_timer *clock_timer_create(struct vm_clock *clock, void (*fire)(void *opaque), void *opaque)
{
	struct clock_timer *t = calloc(1, sizeof(*t));

	*t = (struct clock_timer){clock, fire, opaque, CLOCK_NEVER, clock->timers};
	clock->timers = t;
	return t;
}

void clock_timer_destroy(struct clock_timer *timer)
{
	struct clock_timer **p = &timer->clock->timers;

	while (*p != timer)
		p = &(*p)->next;
	*p = timer->next;
	free(timer);
}

void clock_timer_set(struct clock_timer *timer, uint64_t deadline)
{
	timer->deadline = deadline;
}

__attribute__((unused)) static struct clock_timer *first_timer(void)
{
	struct clock_timer *first = NULL;

	for (struct clock_timer *t = test_clock.timers; t; t = t->next)
		if (t->deadline != CLOCK_NEVER && (!first || t->deadline < first->deadline))
			first = t;
	return first;
}

/* Lets `ns` pass; timers fire at their moment. */
__attribute__((unused)) static void pass(uint64_t ns)
{
	uint64_t end = test_clock.now + ns;

	for (struct clock_timer *t = first_timer(); t && t->deadline <= end; t = first_timer()) {
		test_clock.now = MAX(test_clock.now, t->deadline);
		t->deadline = CLOCK_NEVER;
		test_clock.fired++;
		t->fire(t->opaque);
	}
	test_clock.now = end;
}

/* Lets `ns` pass with the clock's thread asleep; what was due fires at the end. */
__attribute__((unused)) static void pass_late(uint64_t ns)
{
	test_clock.now += ns;
	pass(0);
}

/* ---- Bus ---- */

static struct bus test_bus;

__attribute__((unused)) static void setup(void)
{
	test_clock = (struct vm_clock){.timers = test_clock.timers};
	bus_init(&test_bus);
}

/* All that a device took must be back. */
__attribute__((unused)) static void teardown(void)
{
	CHECK_EQ(test_bus.count[BUS_PORT], 0);
	CHECK_EQ(test_bus.count[BUS_MMIO], 0);
	CHECK(!test_clock.timers);
	bus_destroy(&test_bus);
}

__attribute__((unused)) static uint64_t in(unsigned port, unsigned len)
{
	return bus_read(&test_bus, BUS_PORT, port, len, 0);
}

__attribute__((unused)) static void out(unsigned port, uint64_t value, unsigned len)
{
	bus_write(&test_bus, BUS_PORT, port, len, value, 0);
}

#define inb(port) in(port, 1)
#define outb(port, value) out(port, value, 1)

/* ---- Wires ---- */

struct wire {
	bool level;
	unsigned rises, sets;
	bool waits; /* nobody has taken the last one */
};

__attribute__((unused)) static void wire_set(void *opaque, unsigned pin, bool level)
{
	struct wire *w = (struct wire *)opaque + pin;

	w->rises += level && !w->level;
	w->sets++;
	w->level = level;
}

__attribute__((unused)) static bool wire_waits(void *opaque, unsigned pin)
{
	return ((struct wire *)opaque)[pin].waits;
}

#define WIRE(w) ((struct irq_line){.set = wire_set, .opaque = &(w), .waits = wire_waits})

/* ---- State ---- */

/* Saves one device and loads it into another. */
__attribute__((unused)) static void move_state(struct device from, struct device to)
{
	struct state_stream save = {.saving = true}, load = {0};

	from.state(from.opaque, &save);
	CHECK(!save.failed);
	load.data = save.data;
	load.len = save.len;
	to.state(to.opaque, &load);
	CHECK(!load.failed);
	CHECK_EQ(load.pos, load.len);
	state_end(&save);
}

/* Loads noise, and a stream that ends early: the device may refuse, and must live. */
__attribute__((unused)) static void load_noise(struct device dev, unsigned seed)
{
	static uint8_t noise[65536];
	uint32_t x = seed * 2654435761u + 1;

	for (size_t i = 0; i < sizeof(noise); i++) {
		x = x * 1664525 + 1013904223;
		noise[i] = x >> 24;
	}
	for (size_t len = 0; len < sizeof(noise); len = len * 2 + 1) {
		struct state_stream load = {.data = noise, .len = len};

		dev.state(dev.opaque, &load);
	}
}

/* Any accesses to ports [base, base+n), as a hostile guest would. */
__attribute__((unused)) static void fuzz_ports(unsigned base, unsigned n, unsigned seed, unsigned rounds)
{
	uint32_t x = seed * 2654435761u + 1;

	for (unsigned i = 0; i < rounds; i++) {
		unsigned len = 1u << (i % 3), port;

		x = x * 1664525 + 1013904223;
		port = base + (x >> 8) % n;
		if (x >> 31)
			out(port, x >> 3, len);
		else
			in(port, len);
		pass((x >> 16 & 0xff) * (uint64_t)(x >> 24));
	}
}

#endif
