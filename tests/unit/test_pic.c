/* The 8259 pair against its data sheet. */
#include "dev/pic8259.h"
#include "device_test.h"

static struct wire intr;
static struct pic8259 *pic;

static void init_pic(uint8_t icw4)
{
	static const uint16_t base[] = {0x20, 0xa0};

	for (unsigned i = 0; i < 2; i++) {
		outb(base[i], 0x11);
		outb(base[i] + 1, i ? 0x28 : 0x20);
		outb(base[i] + 1, i ? 2 : 4);
		outb(base[i] + 1, icw4);
		outb(base[i] + 1, 0);
	}
}

static void begin(void)
{
	setup();
	intr = (struct wire){0};
	pic = pic8259_create(&(struct pic8259_config){.bus = &test_bus, .intr = WIRE(intr)});
	REQUIRE(pic);
	init_pic(1);
}

static void end(void)
{
	struct device d = pic8259_device(pic);

	d.destroy(d.opaque);
	teardown();
}

static void set(unsigned irq, bool level)
{
	struct irq_line line = pic8259_line(pic, irq);

	irq_set(&line, level);
}

static uint8_t isr(unsigned base)
{
	outb(base, 0x0b);
	return inb(base);
}

static uint8_t irr(unsigned base)
{
	outb(base, 0x0a);
	return inb(base);
}

TEST(edge)
{
	begin();
	CHECK(!pic8259_pending(pic));
	set(4, true);
	CHECK(pic8259_pending(pic) && intr.level);
	CHECK_EQ(irr(0x20), 0x10);
	CHECK_EQ(pic8259_ack(pic), 0x24);
	CHECK(!pic8259_pending(pic));
	CHECK_EQ(isr(0x20), 0x10);
	CHECK_EQ(irr(0x20), 0);
	outb(0x20, 0x20); /* EOI; the line is still high: no new edge */
	CHECK_EQ(isr(0x20), 0);
	CHECK(!pic8259_pending(pic));
	set(4, false);
	set(4, true);
	CHECK_EQ(pic8259_ack(pic), 0x24);
	end();
}

TEST(spurious)
{
	begin();
	set(4, true);
	set(4, false); /* gone before the acknowledge */
	CHECK(!pic8259_pending(pic));
	CHECK_EQ(pic8259_ack(pic), 0x27);
	CHECK_EQ(isr(0x20), 0); /* a spurious one is not in service */
	set(12, true);
	outb(0xa1, 0x10); /* masked at the slave meanwhile: nothing pending at all */
	CHECK_EQ(pic8259_ack(pic), 0x27);
	end();
}

TEST(priorities)
{
	begin();
	set(5, true);
	set(3, true);
	CHECK_EQ(pic8259_ack(pic), 0x23);
	CHECK(!pic8259_pending(pic)); /* 5 waits for 3's EOI */
	set(1, true);                 /* but 1 is more urgent */
	CHECK_EQ(pic8259_ack(pic), 0x21);
	outb(0x20, 0x20);
	CHECK(!pic8259_pending(pic));
	outb(0x20, 0x20);
	CHECK_EQ(pic8259_ack(pic), 0x25);
	outb(0x20, 0x65); /* specific EOI of 5 */
	CHECK_EQ(isr(0x20), 0);
	end();
}

TEST(masks)
{
	begin();
	outb(0x21, 0x10);
	CHECK_EQ(inb(0x21), 0x10);
	set(4, true);
	CHECK(!pic8259_pending(pic));
	outb(0x21, 0); /* pending while masked */
	CHECK_EQ(pic8259_ack(pic), 0x24);
	end();
}

TEST(cascade)
{
	begin();
	set(12, true);
	set(9, true);
	CHECK_EQ(pic8259_ack(pic), 0x29);
	CHECK_EQ(isr(0xa0), 2);
	CHECK_EQ(isr(0x20), 4);
	CHECK(!pic8259_pending(pic));
	outb(0xa0, 0x20);
	CHECK(!pic8259_pending(pic)); /* the master's IR2 is in service still */
	outb(0x20, 0x20);
	CHECK_EQ(pic8259_ack(pic), 0x2c);
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
	CHECK(!pic8259_pending(pic));
	set(2, true); /* nobody is wired there */
	CHECK(!pic8259_pending(pic));
	end();
}

TEST(special_fully_nested)
{
	begin();
	outb(0x20, 0x11);
	outb(0x21, 0x20);
	outb(0x21, 4);
	outb(0x21, 0x11);
	outb(0x21, 0);
	set(12, true);
	CHECK_EQ(pic8259_ack(pic), 0x2c);
	set(9, true); /* more urgent, at the same slave */
	CHECK_EQ(pic8259_ack(pic), 0x29);
	end();
}

TEST(level)
{
	begin();
	outb(0x4d1, 0xff);
	CHECK_EQ(inb(0x4d1), 0xde); /* IRQ 8 and 13 can't be */
	outb(0x4d0, 0xff);
	CHECK_EQ(inb(0x4d0), 0xf8);
	set(11, true);
	CHECK_EQ(pic8259_ack(pic), 0x2b);
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
	CHECK_EQ(pic8259_ack(pic), 0x2b); /* still asserted: again */
	set(11, false);
	outb(0xa0, 0x20);
	outb(0x20, 0x20);
	CHECK(!pic8259_pending(pic));
	end();
}

TEST(auto_eoi_and_rotation)
{
	begin();
	init_pic(3);
	outb(0x20, 0x80); /* rotate in automatic EOI mode */
	set(3, true);
	set(4, true);
	CHECK_EQ(pic8259_ack(pic), 0x23);
	CHECK_EQ(isr(0x20), 0);
	set(3, false);
	set(3, true);
	CHECK_EQ(pic8259_ack(pic), 0x24); /* 3 is the least urgent now */
	CHECK_EQ(pic8259_ack(pic), 0x23);
	init_pic(1);
	outb(0x20, 0xc4); /* 4 becomes the lowest, 5 the highest */
	set(5, false);
	set(5, true);
	set(0, true);
	CHECK_EQ(pic8259_ack(pic), 0x25);
	outb(0x20, 0xa0); /* rotate on EOI: 5 is the lowest now */
	CHECK_EQ(pic8259_ack(pic), 0x20);
	end();
}

TEST(special_mask)
{
	begin();
	set(3, true);
	CHECK_EQ(pic8259_ack(pic), 0x23);
	set(5, true);
	CHECK(!pic8259_pending(pic));
	outb(0x20, 0x68); /* special mask mode: what is masked does not hold up others */
	outb(0x21, 0x08);
	CHECK_EQ(pic8259_ack(pic), 0x25);
	end();
}

TEST(poll)
{
	begin();
	outb(0x20, 0x0c);
	CHECK_EQ(inb(0x20), 0);
	set(6, true);
	outb(0x20, 0x0c);
	CHECK_EQ(inb(0x20), 0x86);
	CHECK_EQ(isr(0x20), 0x40);
	end();
}

TEST(initialization_clears)
{
	begin();
	set(4, true);
	outb(0x21, 0xff);
	outb(0x20, 0x11);
	CHECK_EQ(irr(0x20), 0); /* the edge sense is reset */
	outb(0x21, 0x40);
	outb(0x21, 4);
	outb(0x21, 1);
	CHECK_EQ(inb(0x21), 0);
	set(4, false);
	set(4, true);
	CHECK_EQ(pic8259_ack(pic), 0x44);
	end();
}

TEST(reset_masks_all)
{
	begin();
	struct device d = pic8259_device(pic);

	d.reset(d.opaque);
	for (unsigned i = 0; i < 16; i++)
		set(i, true);
	CHECK(!pic8259_pending(pic));
	end();
}

TEST(state)
{
	begin();
	struct bus other_bus;
	struct wire other_intr = {0};
	struct device d = pic8259_device(pic), e;
	struct pic8259 *other;

	bus_init(&other_bus);
	other = pic8259_create(&(struct pic8259_config){.bus = &other_bus, .intr = WIRE(other_intr)});
	e = pic8259_device(other);
	set(12, true);
	set(3, true);
	pic8259_ack(pic);
	outb(0x20, 0x20);
	move_state(d, e);
	CHECK(pic8259_pending(other) && other_intr.level);
	CHECK_EQ(pic8259_ack(other), pic8259_ack(pic));
	for (unsigned i = 0; i < 100; i++)
		load_noise(e, i);
	e.destroy(e.opaque);
	bus_destroy(&other_bus);
	end();
}

TEST(hostile)
{
	begin();
	for (unsigned i = 0; i < 20000; i++) {
		fuzz_ports(0x20, 2, i, 2);
		fuzz_ports(0xa0, 2, i + 1, 2);
		fuzz_ports(0x4d0, 2, i + 2, 1);
		set(i * 7 % 16, i & 1);
		if (pic8259_pending(pic)) {
			int v = pic8259_ack(pic);

			CHECK(v >= 0 && v <= 255);
		}
	}
	end();
}

UNIT_MAIN()
