/* CMOS clock against the MC146818A data sheet. */
#include "dev/rtc.h"
#include "device_test.h"

#define MS 1000000ull

static struct wire irq;
static struct rtc *rtc;

static uint8_t rd(unsigned index)
{
	outb(0x70, index);
	return inb(0x71);
}

static void wr(unsigned index, uint8_t value)
{
	outb(0x70, index);
	outb(0x71, value);
}

/* 2023-11-14 22:13:20 UTC, a Tuesday */
static void begin(void)
{
	setup();
	test_wall_ns = 1700000000 * NS_PER_S;
	irq = (struct wire){0};
	rtc = rtc_create(&(struct rtc_config){.bus = &test_bus, .clock = &test_clock, .irq = WIRE(irq)});
	REQUIRE(rtc);
}

static void end(void)
{
	struct device d = rtc_device(rtc);

	d.destroy(d.opaque);
	teardown();
}

/* Registers 9 to 0 without alarms as one number: yymmddwwhhmmss. */
static uint64_t date(void)
{
	static const uint8_t order[] = {9, 8, 7, 6, 4, 2, 0};
	uint64_t v = 0;

	for (unsigned i = 0; i < ARRAY_LEN(order); i++)
		v = v << 8 | rd(order[i]);
	return v;
}

TEST(shows_the_host)
{
	begin();
	CHECK_EQ(date(), 0x23111403221320);
	CHECK_EQ(rd(0x32), 0x20);
	CHECK_EQ(rd(0x0d), 0x80);
	pass(100 * 60 * NS_PER_S);
	CHECK_EQ(date(), 0x23111403235320);
	pass(7 * 60 * NS_PER_S);
	CHECK_EQ(date(), 0x23111504000020);
	end();
}

TEST(formats)
{
	begin();
	wr(0x0b, 0x06); /* binary, 24 h */
	CHECK_EQ(rd(4), 22);
	CHECK_EQ(rd(9), 23);
	wr(0x0b, 0x00);        /* BCD, 12 h */
	CHECK_EQ(rd(4), 0x90); /* 10 PM */
	pass(2 * 3600 * NS_PER_S);
	CHECK_EQ(rd(4), 0x12); /* midnight */
	pass(12 * 3600 * NS_PER_S);
	CHECK_EQ(rd(4), 0x92); /* noon */
	end();
}

TEST(leap_years)
{
	begin();
	test_wall_ns = 951782399 * NS_PER_S; /* 2000-02-28 23:59:59 */
	CHECK_EQ(date(), 0x00022802235959);
	pass(NS_PER_S);
	CHECK_EQ(date(), 0x00022903000000);
	test_wall_ns = 4107542399 * NS_PER_S; /* 2100-02-28 23:59:59 */
	test_clock.now = 0;
	pass(NS_PER_S);
	CHECK_EQ(date(), 0x00030102000000);
	CHECK_EQ(rd(0x32), 0x21);
	end();
}

/* As Linux sets it: SET, divider reset, the registers, and back. */
static void set_as_linux(uint64_t time)
{
	uint8_t b = rd(0x0b), a = rd(0x0a) & 0x7f;
	static const uint8_t order[] = {0, 2, 4, 7, 8, 9};

	wr(0x0b, b | 0x80);
	wr(0x0a, a | 0x70);
	for (unsigned i = 0; i < ARRAY_LEN(order); i++)
		wr(order[i], time >> i * 8);
	wr(0x32, 0x20);
	wr(0x0b, b);
	wr(0x0a, a);
}

TEST(set)
{
	begin();
	pass(300 * MS);
	set_as_linux(0x300228101112);
	CHECK_EQ(rd(0), 0x12);
	pass(499 * MS);
	CHECK_EQ(rd(0), 0x12);
	pass(1 * MS); /* half a second after the divider was let go */
	CHECK_EQ(rd(0), 0x13);
	pass(86400 * NS_PER_S);
	CHECK_EQ(date(), 0x30030106101113);
	end();
}

TEST(set_without_divider)
{
	begin();
	pass(300 * MS);
	wr(0x0b, 0x82);
	wr(0, 0x30);
	pass(5 * NS_PER_S); /* held */
	CHECK_EQ(rd(0), 0x30);
	CHECK_EQ(rd(2), 0x13);
	wr(0x0b, 0x02);
	pass(699 * MS);
	CHECK_EQ(rd(0), 0x30);
	pass(1 * MS);
	CHECK_EQ(rd(0), 0x31);
	wr(2, 0x59); /* on the fly */
	CHECK_EQ(date(), 0x23111403225931);
	end();
}

/* Set as far ahead as can be, and the host's clock goes on for long. */
TEST(end_of_time)
{
	begin();
	wr(0x0b, 0x82);
	wr(9, 0x99);
	wr(0x32, 0x22);
	wr(0x0b, 0x02);
	CHECK_EQ(date(), 0x23070601141320);
	CHECK_EQ(rd(0x32), 0x22);
	for (unsigned i = 0; i < 4; i++) {
		pass(2000000000 * NS_PER_S);
		CHECK_EQ(date(), 0x55031404160000);
	}
	CHECK_EQ(rd(0x32), 0x22);
	set_as_linux(0x300228101112);
	CHECK_EQ(rd(9), 0x30);
	end();
}

TEST(nonsense_times)
{
	begin();
	for (unsigned i = 0; i < 256; i++) {
		wr(0x0b, i & 6);
		for (unsigned reg = 0; reg < 10; reg++)
			wr(reg, i * 37 + reg * 11);
		wr(0x32, i);
		date();
		wr(0x0b, 0x80 | (i & 6));
		for (unsigned reg = 0; reg < 10; reg++)
			wr(reg, 0xff);
		wr(0x32, 0xff);
		wr(0x0b, i & 6);
		date();
		pass(NS_PER_S);
	}
	end();
}

TEST(update_in_progress)
{
	unsigned us = 0;

	begin();
	CHECK_EQ(rd(0x0a), 0x26);
	for (unsigned i = 0; i < 100000; i++) {
		pass(10000);
		us += rd(0x0a) & 0x80 ? 10 : 0;
	}
	CHECK(us >= 2200 && us <= 2240);
	/* Its fall is the new second. */
	while (!(rd(0x0a) & 0x80))
		pass(10000);
	CHECK_EQ(rd(0), 0x21);
	while (rd(0x0a) & 0x80)
		pass(10000);
	CHECK_EQ(rd(0), 0x22);
	wr(0x0b, 0x82); /* never while held */
	for (unsigned i = 0; i < 1000; i++) {
		pass(1 * MS);
		CHECK_EQ(rd(0x0a) & 0x80, 0);
	}
	end();
}

TEST(update_interrupt)
{
	begin();
	pass(500 * MS);
	rd(0x0c);
	wr(0x0b, 0x12);
	pass(499 * MS);
	CHECK(!irq.level);
	pass(1 * MS);
	CHECK(irq.level);
	CHECK_EQ(rd(0x0c) & 0xb0, 0x90);
	CHECK(!irq.level);
	CHECK_EQ(rd(0x0c), 0);
	pass(10 * NS_PER_S);
	CHECK_EQ(irq.rises, 2); /* it was not read meanwhile */
	wr(0x0b, 0x92);
	CHECK_EQ(rd(0x0b), 0x82); /* SET clears UIE */
	end();
}

TEST(polled_flags)
{
	begin();
	rd(0x0c);
	pass(NS_PER_S);
	CHECK_EQ(rd(0x0c) & 0xd0, 0x50); /* UF and PF without their enables: no IRQF */
	CHECK_EQ(irq.rises, 0);
	end();
}

TEST(alarm)
{
	begin();
	wr(1, 0x30);
	wr(3, 0x13);
	wr(5, 0x22);
	rd(0x0c);
	wr(0x0b, 0x22);
	pass(9 * NS_PER_S);
	CHECK(!irq.level);
	pass(NS_PER_S);
	CHECK(irq.level);
	CHECK_EQ(rd(0x0c) & 0xa0, 0xa0);
	pass(86400 * NS_PER_S - 1);
	CHECK(!irq.level);
	pass(1);
	CHECK(irq.level);
	rd(0x0c);
	wr(3, 0xff); /* any minute */
	wr(5, 0xc0); /* any hour */
	irq.rises = 0;
	for (unsigned i = 0; i < 600; i++) {
		pass(NS_PER_S);
		rd(0x0c);
	}
	CHECK_EQ(irq.rises, 10);
	end();
}

/* An alarm that passed while nobody looked is seen at the next look. */
TEST(alarm_polled)
{
	begin();
	wr(1, 0x30);
	wr(3, 0x13);
	wr(5, 0x22);
	rd(0x0c);
	pass(3600 * NS_PER_S);
	CHECK_EQ(rd(0x0c) & 0x20, 0x20);
	pass(20 * 3600 * NS_PER_S);
	CHECK_EQ(rd(0x0c) & 0x20, 0);
	pass(100 * 86400 * NS_PER_S);
	CHECK_EQ(rd(0x0c) & 0x20, 0x20);
	end();
}

TEST(periodic)
{
	begin();
	wr(0x0a, 0x26); /* 1024 Hz */
	wr(0x0b, 0x42);
	for (unsigned i = 0; i < 10240; i++) {
		pass(NS_PER_S / 1024);
		if (irq.level)
			rd(0x0c);
	}
	pass(NS_PER_S / 1024);
	CHECK(irq.rises >= 10239 && irq.rises <= 10241);
	wr(0x0a, 0x20);
	rd(0x0c);
	irq.rises = 0;
	pass(NS_PER_S);
	CHECK_EQ(irq.rises, 0);
	wr(0x0a, 0x21); /* 256 Hz */
	for (unsigned i = 0; i < 1000; i++) {
		pass(MS);
		if (irq.level)
			rd(0x0c);
	}
	CHECK(irq.rises >= 255 && irq.rises <= 257);
	end();
}

TEST(nvram)
{
	begin();
	for (unsigned i = 0x0e; i < 0x80; i++)
		if (i != 0x32)
			wr(i, i ^ 0x5a);
	for (unsigned i = 0x0e; i < 0x80; i++)
		if (i != 0x32)
			CHECK_EQ(rd(0x80 | i), i ^ 0x5a); /* bit 7 is the NMI mask */
	rtc_set_nvram(rtc, 0x34, 0x77);
	rtc_set_nvram(rtc, 0, 0x77);
	rtc_set_nvram(rtc, 200, 0x77);
	CHECK_EQ(rd(0x34), 0x77);
	CHECK_EQ(rd(0), 0x20);
	wr(0x0d, 0);
	CHECK_EQ(rd(0x0d), 0x80);
	wr(0x0c, 0xff);
	CHECK_EQ(rd(0x0c) & 0x80, 0);
	end();
}

TEST(state)
{
	begin();
	struct bus other_bus;
	struct wire other_irq = {0};
	struct rtc *other;
	struct device e;

	bus_init(&other_bus);
	other = rtc_create(&(struct rtc_config){.bus = &other_bus, .clock = &test_clock, .irq = WIRE(other_irq)});
	e = rtc_device(other);
	set_as_linux(0x300228101112);
	wr(0x0b, 0x12);
	wr(0x40, 0x99);
	outb(0x70, 0x40);
	move_state(rtc_device(rtc), e);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, 0x71, 1, 0), 0x99);
	pass(NS_PER_S);
	CHECK(other_irq.level);
	bus_write(&other_bus, BUS_PORT, 0x70, 1, 9, 0);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, 0x71, 1, 0), 0x30);
	/* Its line as it was before is not shown to who has been loaded already, and has it low. */
	bus_read(&test_bus, BUS_PORT, 0x71, 1, 0);
	wr(0x0b, 0x02);
	rd(0x0c);
	CHECK(other_irq.level && !irq.level);
	other_irq = (struct wire){0};
	move_state(rtc_device(rtc), e);
	CHECK_EQ(other_irq.rises, 0);
	for (unsigned i = 0; i < 100; i++) {
		load_noise(e, i);
		pass(NS_PER_S);
		bus_read(&other_bus, BUS_PORT, 0x71, 1, 0);
	}
	e.destroy(e.opaque);
	bus_destroy(&other_bus);
	end();
}

TEST(hostile)
{
	begin();
	for (unsigned i = 0; i < 1000; i++) {
		fuzz_ports(0x70, 2, i, 200);
		if (i % 10 == 0)
			pass(NS_PER_S);
		if (i % 100 == 0)
			pass(10000 * NS_PER_S);
	}
	end();
}

UNIT_MAIN()
