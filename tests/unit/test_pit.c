/* 8254 and port 0x61 against the data sheet. */
#include "dev/pit8254.h"
#include "device_test.h"

static struct wire irq;
static struct pit8254 *pit;

/* Ends at the first ns at which `n` more ticks have passed. */
static void ticks(uint64_t n)
{
	uint64_t now = (unsigned __int128)test_clock.now * PIT_HZ / NS_PER_S;

	pass(((unsigned __int128)(now + n) * NS_PER_S + PIT_HZ - 1) / PIT_HZ - test_clock.now);
}

static void begin(void)
{
	setup();
	irq = (struct wire){0};
	pit = pit8254_create(&(struct pit8254_config){.bus = &test_bus, .clock = &test_clock, .irq = WIRE(irq)});
	REQUIRE(pit);
	ticks(1000);
}

static void end(void)
{
	struct device d = pit8254_device(pit);

	d.destroy(d.opaque);
	teardown();
}

static void program(unsigned ch, unsigned mode, uint16_t count)
{
	outb(0x43, ch << 6 | 0x30 | mode << 1);
	outb(0x40 + ch, count);
	outb(0x40 + ch, count >> 8);
}

static uint16_t count(unsigned ch)
{
	outb(0x43, ch << 6);
	uint8_t low = inb(0x40 + ch);

	return low | inb(0x40 + ch) << 8;
}

static uint8_t status(unsigned ch)
{
	outb(0x43, 0xe0 | 2 << ch);
	return inb(0x40 + ch);
}

TEST(mode_0)
{
	begin();
	program(0, 0, 100);
	CHECK_EQ(count(0), 100);
	CHECK(!irq.level);
	ticks(99);
	CHECK_EQ(count(0), 1);
	CHECK_EQ(status(0), 0x30);
	CHECK(!irq.level);
	irq.rises = 0;
	ticks(1);
	CHECK_EQ(irq.rises, 1);
	CHECK_EQ(status(0), 0xb0);
	ticks(10);
	CHECK_EQ(count(0), 65526); /* counts on */
	ticks(100000);
	CHECK_EQ(irq.rises, 1); /* once */
	outb(0x40, 50);         /* half a count stops it, a whole one begins anew, output low */
	outb(0x40, 0);
	CHECK(!irq.level);
	ticks(50);
	CHECK(irq.level);
	end();
}

TEST(mode_2)
{
	begin();
	program(0, 2, 1000);
	irq.rises = 0;
	ticks(999);
	CHECK_EQ(count(0), 1);
	CHECK_EQ(status(0) & 0x80, 0); /* low for the last tick */
	ticks(1);
	CHECK_EQ(count(0), 1000);
	CHECK_EQ(irq.rises, 1);
	ticks(1000 * 10);
	CHECK_EQ(irq.rises, 11);
	/* a new count waits for the end of the period */
	ticks(300);
	outb(0x40, 0xd0);
	outb(0x40, 0x07);
	CHECK_EQ(status(0) & 0x40, 0x40); /* null count: not in effect */
	CHECK_EQ(count(0), 700);
	ticks(700);
	CHECK_EQ(irq.rises, 12);
	CHECK_EQ(status(0) & 0x40, 0);
	CHECK_EQ(count(0), 2000);
	ticks(1999);
	CHECK_EQ(irq.rises, 12);
	ticks(1);
	CHECK_EQ(irq.rises, 13);
	end();
}

TEST(no_drift)
{
	begin();
	program(0, 2, 4772); /* 250 Hz */
	irq.rises = 0;
	pass(100 * NS_PER_S);
	CHECK_EQ(irq.rises, 100 * PIT_HZ / 4772);
	end();
}

/* The clock's thread slept: what it missed is made up for, faster than it would have come. */
TEST(late_ticks)
{
	begin();
	program(0, 2, 1193); /* 1 ms */
	irq.rises = 0;
	pass_late(10 * 1000000);
	CHECK_EQ(irq.rises, 1);
	ticks(1193 * 20);
	CHECK(irq.rises >= 29);
	ticks(1193 * 100);
	CHECK(irq.rises >= 129 && irq.rises <= 131);
	end();
}

/* The processor slept: an interrupt that has not been taken is not followed by another, which would be lost. */
TEST(ticks_not_taken)
{
	begin();
	program(0, 2, 1193); /* 1 ms */
	irq.rises = 0;
	ticks(1193);
	irq.waits = true;
	ticks(1193 * 50);
	CHECK_EQ(irq.rises, 1);
	irq.waits = false;
	ticks(1193 * 100);
	CHECK(irq.rises >= 150 && irq.rises <= 152);
	end();
}

TEST(read_between_edges)
{
	begin();
	program(0, 2, 1000);
	irq.rises = 0;
	for (unsigned i = 0; i < 20000; i++) { /* reads don't swallow edges */
		ticks(1);
		count(0);
	}
	CHECK_EQ(irq.rises, 20);
	end();
}

TEST(too_fast)
{
	begin();
	program(0, 2, 2);
	test_clock.fired = 0;
	pass(10000000);
	CHECK(test_clock.fired <= 201);
	program(0, 2, 1);
	pass(10000000);
	program(0, 0, 0);
	irq.rises = 0;
	pass(10000000);
	CHECK_EQ(irq.rises, 0); /* nothing owed from before */
	end();
}

TEST(mode_3)
{
	begin();
	program(2, 3, 1000);
	outb(0x61, 1);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	CHECK_EQ(count(2), 1000);
	ticks(250);
	CHECK_EQ(count(2), 500);
	ticks(249);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	ticks(1);
	CHECK_EQ(inb(0x61) & 0x20, 0);
	CHECK_EQ(count(2), 1000); /* by twos, twice through */
	ticks(500);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	outb(0x61, 0); /* gate low: output high, no counting */
	ticks(600);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	outb(0x61, 1); /* begins anew */
	CHECK_EQ(count(2), 1000);
	end();
}

TEST(mode_4)
{
	begin();
	program(0, 4, 500);
	CHECK_EQ(status(0) & 0x80, 0x80);
	irq.rises = 0;
	ticks(500);
	CHECK_EQ(status(0) & 0x80, 0);
	ticks(1);
	CHECK_EQ(irq.rises, 1);
	ticks(200000);
	CHECK_EQ(irq.rises, 1);
	outb(0x40, 100); /* again, without a control word: how a one-shot event timer uses it */
	outb(0x40, 0);
	CHECK_EQ(irq.rises, 1);
	ticks(101);
	CHECK_EQ(irq.rises, 2);
	end();
}

/* The gate of channel 2 falls and rises. */
static void trigger(void)
{
	outb(0x61, 0);
	outb(0x61, 1);
}

/* The output of channel 2 is low for `n` ticks, and no longer. */
static void check_rises_after(unsigned n)
{
	ticks(n - 1);
	CHECK_EQ(inb(0x61) & 0x20, 0);
	ticks(1);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
}

TEST(triggered_modes)
{
	begin();
	outb(0x61, 0);
	program(2, 1, 100);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	ticks(500);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	outb(0x61, 1);
	CHECK_EQ(inb(0x61) & 0x20, 0);
	ticks(50);
	trigger(); /* the gate's fall changes nothing, its rise begins again */
	check_rises_after(100);
	program(2, 5, 100);
	trigger();
	check_rises_after(101);
	end();
}

/* A pulse, and what follows it, is not changed by a new count: that is for the next trigger (modes 1 and 5). */
TEST(triggered_modes_keep_their_count)
{
	begin();
	outb(0x61, 0);
	program(2, 1, 100);
	CHECK_EQ(status(2) & 0x40, 0x40); /* not in the counting element before the trigger */
	outb(0x61, 1);
	CHECK_EQ(status(2) & 0x40, 0);
	ticks(40);
	outb(0x42, 200);
	outb(0x42, 0);
	CHECK_EQ(count(2), 60);
	CHECK_EQ(status(2), 0x72); /* low, null count */
	ticks(60);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	outb(0x42, 44); /* after the pulse as well */
	outb(0x42, 1);
	ticks(50);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	CHECK_EQ(count(2), 65536 - 50);
	trigger();
	CHECK_EQ(count(2), 300);
	CHECK_EQ(status(2), 0x32);
	check_rises_after(300);
	program(2, 5, 100);
	trigger();
	ticks(50);
	outb(0x42, 200);
	outb(0x42, 0);
	ticks(50);
	CHECK_EQ(inb(0x61) & 0x20, 0); /* the strobe of the first */
	end();
}

/* As Linux calibrates the TSC: mode 0 on channel 2, gate on, read the count's high byte, wait for the output. */
TEST(calibration)
{
	begin();
	outb(0x61, (inb(0x61) & ~2) | 1);
	outb(0x43, 0xb0);
	outb(0x42, 0xff);
	outb(0x42, 0xff);
	for (unsigned high = 0xff; high > 0xf0; high--) {
		uint8_t low = inb(0x42);

		CHECK_EQ(inb(0x42), high);
		CHECK_EQ(low, 0xff);
		ticks(256);
	}
	CHECK_EQ(inb(0x61) & 0x20, 0);
	ticks(65535);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	end();
}

static unsigned looks, sets;

static void look(void *opaque, unsigned cpu, bool set)
{
	CHECK(opaque == &looks);
	looks++;
	sets += set;
}

TEST(tells_who_polls)
{
	struct device d;

	setup();
	irq = (struct wire){0};
	pit = pit8254_create(&(struct pit8254_config){
		.bus = &test_bus, .clock = &test_clock, .irq = WIRE(irq), .polled = look, .opaque = &looks});
	REQUIRE(pit);
	program(2, 0, 100);
	CHECK_EQ(looks, 3);
	CHECK_EQ(sets, 3);
	inb(0x42);
	inb(0x61);
	CHECK_EQ(looks, 5);
	CHECK_EQ(sets, 3);
	d = pit8254_device(pit);
	d.destroy(d.opaque);
	teardown();
}

TEST(gate_pauses_mode_0)
{
	begin();
	outb(0x61, 1);
	program(2, 0, 1000);
	ticks(400);
	outb(0x61, 0);
	ticks(5000);
	CHECK_EQ(count(2), 600);
	outb(0x61, 1);
	ticks(599);
	CHECK_EQ(inb(0x61) & 0x20, 0);
	ticks(1);
	CHECK_EQ(inb(0x61) & 0x20, 0x20);
	end();
}

TEST(bcd_and_byte_access)
{
	begin();
	outb(0x43, 0x31 | 2 << 1);
	outb(0x40, 0x00);
	outb(0x40, 0x10); /* 1000 decimal */
	ticks(1);
	CHECK_EQ(count(0), 0x999);
	outb(0x43, 0x91); /* channel 2, low byte only, BCD, mode 0 */
	outb(0x61, 1);
	outb(0x42, 0x50);
	ticks(1);
	CHECK_EQ(inb(0x42), 0x49);
	CHECK_EQ(inb(0x42), 0x49);
	outb(0x43, 0xa0); /* high byte only: 0x200 */
	outb(0x42, 2);
	ticks(0x100);
	CHECK_EQ(inb(0x42), 1);
	program(0, 2, 0); /* 0 is 65536 */
	ticks(65535);
	CHECK_EQ(count(0), 1);
	ticks(1);
	CHECK_EQ(count(0), 0);
	end();
}

TEST(latches)
{
	begin();
	program(0, 2, 1000);
	outb(0x43, 0); /* latch */
	ticks(10);
	outb(0x43, 0); /* ignored until read */
	CHECK_EQ(inb(0x40), 1000 & 0xff);
	CHECK_EQ(inb(0x40), 1000 >> 8);
	CHECK_EQ(inb(0x40), 990 & 0xff); /* live */
	inb(0x40);
	outb(0x43, 0xc2); /* count and status of channel 0: status comes first */
	ticks(100);
	CHECK_EQ(inb(0x40), 0xb4);
	CHECK_EQ(inb(0x40), 990 & 0xff);
	CHECK_EQ(inb(0x40), 990 >> 8);
	CHECK_EQ(inb(0x43), 0xff);
	end();
}

TEST(state)
{
	begin();
	struct bus other_bus;
	struct wire other_irq = {0};
	struct pit8254 *other;
	struct device e;

	bus_init(&other_bus);
	other = pit8254_create(
		&(struct pit8254_config){.bus = &other_bus, .clock = &test_clock, .irq = WIRE(other_irq)});
	e = pit8254_device(other);
	program(0, 2, 1000);
	program(2, 0, 5000);
	outb(0x61, 1);
	ticks(300);
	outb(0x40, 0xd0);
	outb(0x40, 0x07);
	move_state(pit8254_device(pit), e);
	other_irq.rises = irq.rises = 0;
	ticks(700);
	CHECK_EQ(other_irq.rises, 1);
	ticks(2000);
	CHECK_EQ(other_irq.rises, 2);
	CHECK_EQ(irq.rises, 2);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, 0x61, 1, 0) & 1, 1);
	outb(0x61, 0); /* a one-shot under way, and the count of the next */
	program(2, 1, 100);
	outb(0x61, 1);
	ticks(40);
	outb(0x42, 200);
	outb(0x42, 0);
	move_state(pit8254_device(pit), e);
	ticks(60);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, 0x61, 1, 0) & 0x20, 0x20);
	bus_write(&other_bus, BUS_PORT, 0x61, 1, 0, 0);
	bus_write(&other_bus, BUS_PORT, 0x61, 1, 1, 0);
	ticks(199);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, 0x61, 1, 0) & 0x20, 0);
	ticks(1);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, 0x61, 1, 0) & 0x20, 0x20);
	for (unsigned i = 0; i < 300; i++) {
		load_noise(e, i);
		pass(1000000);
		bus_read(&other_bus, BUS_PORT, 0x40, 1, 0);
		bus_write(&other_bus, BUS_PORT, 0x43, 1, 0xc0 | i, 0);
		bus_write(&other_bus, BUS_PORT, 0x40, 1, i, 0);
	}
	e.destroy(e.opaque);
	bus_destroy(&other_bus);
	end();
}

TEST(hostile)
{
	begin();
	for (unsigned i = 0; i < 2000; i++) {
		fuzz_ports(0x40, 4, i, 100);
		fuzz_ports(0x61, 1, i, 3);
		if (i % 50 == 0)
			pass_late(NS_PER_S);
	}
	end();
}

UNIT_MAIN()
