/* I/O APIC against the 82093AA data sheet. */
#include "dev/ioapic.h"
#include "dev/lapic.h"
#include "device_test.h"

#define BASE 0xfec00000ull

static struct apic_bus *apics;
static struct ioapic *io;
static struct lapic *l[2];

static void notify(void *opaque, unsigned cpu, enum apic_event event, uint8_t vector) {}

static void lapic_wr(unsigned cpu, unsigned off, uint32_t value)
{
	lapic_mmio_write(l[cpu], off, 4, value);
}

static void begin(void)
{
	struct apic_bus_config config = {.clock = &test_clock, .cpus = 2, .notify = notify};

	setup();
	apics = apic_bus_create(&config);
	io = ioapic_create(&(struct ioapic_config){.bus = &test_bus, .base = BASE, .id = 2, .apics = apics});
	REQUIRE(apics && io);
	for (unsigned i = 0; i < 2; i++) {
		l[i] = apic_bus_lapic(apics, i);
		lapic_wr(i, 0xf0, 0x1ff);
		lapic_wr(i, 0xd0, 1u << (24 + i));
	}
}

static void end(void)
{
	struct device d = ioapic_device(io), a = apic_bus_device(apics);

	d.destroy(d.opaque);
	a.destroy(a.opaque);
	teardown();
}

static uint32_t rd(unsigned reg)
{
	bus_write(&test_bus, BUS_MMIO, BASE, 4, reg, 0);
	return bus_read(&test_bus, BUS_MMIO, BASE + 0x10, 4, 0);
}

static void wr(unsigned reg, uint32_t value)
{
	bus_write(&test_bus, BUS_MMIO, BASE, 4, reg, 0);
	bus_write(&test_bus, BUS_MMIO, BASE + 0x10, 4, value, 0);
}

static void entry(unsigned pin, unsigned cpu, uint32_t low)
{
	wr(0x11 + 2 * pin, cpu << 24);
	wr(0x10 + 2 * pin, low);
}

static void set(unsigned pin, bool level)
{
	struct irq_line line = ioapic_line(io, pin);

	irq_set(&line, level);
}

/* The interrupt that the CPU takes and ends, or LAPIC_NONE. */
static int take(unsigned cpu)
{
	int v = lapic_ack(l[cpu]);

	if (v >= 0)
		lapic_wr(cpu, 0xb0, 0);
	return v;
}

TEST(registers)
{
	begin();
	CHECK_EQ(rd(0), 2u << 24);
	CHECK_EQ(rd(1), 0x00170020);
	wr(0, 0xff000000);
	CHECK_EQ(rd(0), 0x0f000000);
	CHECK_EQ(rd(0x10), 0x10000);
	CHECK_EQ(rd(0x3e), 0x10000);
	CHECK_EQ(rd(0x40), 0); /* beyond the last */
	wr(0x40, 5);
	wr(0x10, 0xffffffff);
	CHECK_EQ(rd(0x10), 0x1afff); /* delivery status and remote IRR are read-only */
	wr(0x11, 0xffffffff);
	CHECK_EQ(rd(0x11), 0xff000000);
	end();
}

TEST(edges)
{
	begin();
	set(4, true);
	set(4, false);
	entry(4, 1, 0x44);
	CHECK_EQ(take(1), LAPIC_NONE); /* masked edges are lost */
	set(4, true);
	CHECK_EQ(take(1), 0x44);
	set(4, true); /* no edge */
	CHECK_EQ(take(1), LAPIC_NONE);
	set(4, false);
	set(4, true);
	CHECK_EQ(take(1), 0x44);
	set(4, false);
	entry(4, 0x03, 0x844); /* logical */
	set(4, true);
	CHECK_EQ(take(0), 0x44);
	CHECK_EQ(take(1), 0x44);
	end();
}

TEST(levels)
{
	begin();
	entry(9, 0, 0x8059);
	set(9, true);
	CHECK_EQ(rd(0x10 + 18), 0xc059); /* remote IRR */
	CHECK_EQ(lapic_ack(l[0]), 0x59);
	set(9, false);
	set(9, true);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE); /* waits for EOI */
	lapic_wr(0, 0xb0, 0);
	CHECK_EQ(lapic_ack(l[0]), 0x59); /* still asserted: again */
	set(9, false);
	lapic_wr(0, 0xb0, 0);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	CHECK_EQ(rd(0x10 + 18), 0x8059);
	end();
}

TEST(level_masking)
{
	begin();
	entry(16, 0, 0x1a060);
	set(16, true);
	CHECK_EQ(take(0), LAPIC_NONE);
	wr(0x10 + 32, 0xa060); /* unmasked while asserted */
	CHECK_EQ(lapic_ack(l[0]), 0x60);
	wr(0x10 + 32, 0x1a060); /* masked in service: EOI must still clear remote IRR */
	CHECK_EQ(rd(0x10 + 32), 0x1e060);
	lapic_wr(0, 0xb0, 0);
	CHECK_EQ(rd(0x10 + 32), 0x1a060);
	CHECK_EQ(take(0), LAPIC_NONE);
	wr(0x10 + 32, 0xa060);
	CHECK_EQ(lapic_ack(l[0]), 0x60);
	/* to edge and back: the old way to clear remote IRR */
	wr(0x10 + 32, 0x12060);
	CHECK_EQ(rd(0x10 + 32), 0x12060);
	wr(0x10 + 32, 0xa060);
	lapic_wr(0, 0xb0, 0);
	CHECK_EQ(take(0), 0x60);
	end();
}

TEST(eoi_register)
{
	begin();
	entry(9, 0, 0x8059);
	entry(10, 0, 0x8059); /* shared vector */
	set(9, true);
	set(10, true);
	CHECK_EQ(lapic_ack(l[0]), 0x59);
	bus_write(&test_bus, BUS_MMIO, BASE + 0x40, 4, 0x58, 0);
	CHECK_EQ(rd(0x10 + 18), 0xc059);
	set(9, false);
	set(10, false);
	bus_write(&test_bus, BUS_MMIO, BASE + 0x40, 4, 0x59, 0);
	CHECK_EQ(rd(0x10 + 18), 0x8059);
	CHECK_EQ(rd(0x10 + 20), 0x8059);
	end();
}

TEST(nobody_listens)
{
	begin();
	entry(9, 7, 0x8059); /* no such CPU */
	set(9, true);
	CHECK_EQ(rd(0x10 + 18), 0x8059); /* there will be no EOI: it may ask again */
	entry(9, 0, 0x8059);
	CHECK_EQ(take(0), 0x59);
	end();
}

TEST(other_modes)
{
	uint8_t vector;

	begin();
	entry(3, 1, 0x400);
	set(3, true);
	CHECK_EQ(lapic_take_events(l[1], &vector), BIT(APIC_EVENT_NMI));
	entry(5, 1, 0x608); /* reserved */
	set(5, true);
	CHECK_EQ(lapic_take_events(l[1], &vector), 0);
	entry(6, 0x03, 0x966); /* lowest priority */
	lapic_wr(0, 0x80, 0x10);
	set(6, true);
	CHECK_EQ(take(1), 0x66);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	end();
}

TEST(state)
{
	begin();
	struct bus other_bus;
	struct ioapic *other;
	struct device e;

	bus_init(&other_bus);
	other = ioapic_create(&(struct ioapic_config){.bus = &other_bus, .base = BASE, .apics = apics});
	e = ioapic_device(other);
	entry(9, 0, 0x8059);
	set(9, true);
	move_state(ioapic_device(io), e);
	bus_write(&other_bus, BUS_MMIO, BASE, 4, 0x10 + 18, 0);
	CHECK_EQ(bus_read(&other_bus, BUS_MMIO, BASE + 0x10, 4, 0), 0xc059);
	for (unsigned i = 0; i < 100; i++)
		load_noise(e, i);
	e.destroy(e.opaque);
	bus_destroy(&other_bus);
	apic_bus_set_eoi(apics, NULL, NULL); /* the other's; with it gone nobody listens */
	end();
}

TEST(hostile)
{
	uint32_t x = 99;

	begin();
	for (unsigned i = 0; i < 300000; i++) {
		x = x * 1664525 + 1013904223;
		if (x >> 30 == 0)
			set(x % IOAPIC_PINS, i & 1);
		else if (x >> 30 == 1)
			bus_write(&test_bus, BUS_MMIO, BASE + (x >> 8 & 0xfff & ~7u), 1u << (i & 3), x * 2654435761u,
				  0);
		else
			wr(x >> 8 & 0x3f, x * 2654435761u);
		take(i & 1);
	}
	end();
}

UNIT_MAIN()
