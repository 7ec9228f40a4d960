/* 16550A against the PC16550D data sheet. */
#include "dev/uart16550.h"
#include "device_test.h"

#define BASE 0x3f8

static struct wire irq;
static struct uart16550 *uart;
static uint8_t sent[65536];
static size_t sent_len;
static unsigned ready;

static void take(void *opaque, const uint8_t *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		sent[sent_len++ % sizeof(sent)] = data[i];
}

static void input_ready(void *opaque)
{
	ready++;
}

static uint8_t rd(unsigned reg)
{
	return inb(BASE + reg);
}

static void wr(unsigned reg, uint8_t value)
{
	outb(BASE + reg, value);
}

static void receive(const char *s)
{
	CHECK_EQ(uart16550_receive(uart, (const uint8_t *)s, strlen(s)), strlen(s));
}

static void begin(void)
{
	struct uart16550_config config = {
		.bus = &test_bus, .port = BASE, .irq = WIRE(irq), .write = take, .input_ready = input_ready};

	setup();
	irq = (struct wire){0};
	sent_len = ready = 0;
	uart = uart16550_create(&config);
	REQUIRE(uart);
}

static void end(void)
{
	struct device d = uart16550_device(uart);

	d.destroy(d.opaque);
	teardown();
}

TEST(registers)
{
	begin();
	CHECK_EQ(rd(2), 0x01);
	CHECK_EQ(rd(5), 0x60);
	CHECK_EQ(rd(6), 0xb0);
	wr(7, 0xa5);
	CHECK_EQ(rd(7), 0xa5);
	wr(1, 0xff);
	CHECK_EQ(rd(1), 0x0f);
	wr(3, 0x83); /* divisor latch */
	wr(0, 0x01);
	wr(1, 0x00);
	CHECK_EQ(rd(0), 1);
	CHECK_EQ(rd(1), 0);
	wr(3, 0x03);
	CHECK_EQ(rd(1), 0x0f);
	CHECK_EQ(sent_len, 0);
	wr(4, 0xff);
	CHECK_EQ(rd(4), 0x1f);
	wr(4, 0);
	wr(2, 0x01); /* FIFO: IIR says so, as Linux looks for a 16550A */
	CHECK_EQ(rd(2) & 0xc0, 0xc0);
	wr(2, 0x00);
	CHECK_EQ(rd(2) & 0xc0, 0);
	end();
}

TEST(loopback)
{
	begin();
	wr(4, 0x1a); /* RTS, OUT2: Linux wants CTS and DCD */
	CHECK_EQ(rd(6) & 0xf0, 0x90);
	wr(4, 0x15);
	CHECK_EQ(rd(6) & 0xf0, 0x60);
	wr(4, 0x1f);
	CHECK_EQ(rd(6) & 0xf0, 0xf0);
	wr(0, 'x');
	CHECK_EQ(rd(5), 0x61);
	CHECK_EQ(rd(0), 'x');
	CHECK_EQ(sent_len, 0);
	receive("typed"); /* not seen while looped back */
	CHECK_EQ(rd(5), 0x60);
	wr(3, 0x43); /* break: a 0 with BI and FE */
	CHECK_EQ(rd(5), 0x60 | 0x19);
	CHECK_EQ(rd(5), 0x61); /* the errors show once */
	CHECK_EQ(rd(0), 0);
	wr(3, 0x03);
	wr(4, 0x0b);
	CHECK_EQ(rd(5), 0x61);
	CHECK_EQ(rd(0), 't');
	end();
}

TEST(modem_status)
{
	begin();
	wr(4, 0x18); /* looped back: all inputs but DCD fall */
	CHECK_EQ(rd(6), 0x80 | 0x03);
	CHECK_EQ(rd(6), 0x80); /* deltas clear by reading */
	wr(4, 0x1c);
	CHECK_EQ(rd(6), 0xc0); /* RI rises: no delta */
	wr(1, 8);
	wr(4, 0x18);
	CHECK_EQ(rd(2) & 0xf, 0); /* TERI */
	CHECK_EQ(rd(6), 0x84);
	CHECK_EQ(rd(2) & 0xf, 1);
	end();
}

TEST(transmit_interrupt)
{
	begin();
	wr(4, 8);
	wr(1, 2); /* empty: enabling it asks at once */
	CHECK(irq.level);
	CHECK_EQ(rd(2), 0x02);
	CHECK(!irq.level); /* reading IIR took it back */
	CHECK_EQ(rd(2), 0x01);
	wr(0, 'a');
	CHECK(irq.level); /* sent, so empty again */
	irq.rises = 0;
	wr(0, 'b');
	CHECK_EQ(irq.rises, 1); /* an edge for each */
	wr(1, 0);
	CHECK(!irq.level);
	wr(1, 2);
	CHECK(irq.level); /* Linux tells a working UART by this */
	CHECK_EQ(sent_len, 2);
	CHECK_MEM(sent, "ab", 2);
	wr(4, 0); /* OUT2 gates the line */
	CHECK(!irq.level);
	CHECK_EQ(rd(2), 2);
	end();
}

/* The divisor's low byte lies where the transmitter's does, and is none: an interrupt that waits goes on waiting. */
TEST(divisor_sends_nothing)
{
	begin();
	wr(4, 8);
	wr(1, 2);
	CHECK(irq.level);
	irq.rises = 0;
	wr(3, 0x83);
	wr(0, 1);
	wr(1, 0);
	wr(3, 0x03);
	CHECK(irq.level);
	CHECK_EQ(irq.rises, 0);
	CHECK_EQ(rd(2), 0x02);
	wr(3, 0x83); /* nor does it ask for one */
	wr(0, 2);
	CHECK(!irq.level);
	CHECK_EQ(rd(2), 0x01);
	CHECK_EQ(sent_len, 0);
	end();
}

TEST(receive_fifo)
{
	begin();
	wr(2, 0x81); /* trigger at 8 */
	wr(4, 0x0b);
	wr(1, 1);
	receive("1234567");
	CHECK(irq.level);
	CHECK_EQ(rd(2), 0xcc); /* below the level: time-out */
	receive("8");
	CHECK_EQ(rd(2), 0xc4);
	for (unsigned i = 0; i < 8; i++) {
		CHECK_EQ(rd(5), 0x61);
		CHECK_EQ(rd(0), '1' + i);
	}
	CHECK_EQ(rd(5), 0x60);
	CHECK(!irq.level);
	CHECK_EQ(rd(0), '8'); /* the last one again */
	end();
}

TEST(interrupt_priorities)
{
	begin();
	wr(2, 1);
	wr(1, 0xf);
	wr(4, 0x1b);
	rd(6);
	wr(0, 'x');
	wr(3, 0x40);
	wr(4, 0x1f);
	wr(4, 0x1b);
	/* 'x' is at the top without errors: data first, and the line status when the break gets there */
	CHECK_EQ(rd(2), 0xc4);
	rd(0);
	CHECK_EQ(rd(2), 0xc6);
	CHECK_EQ(rd(5) & 0x9f, 0x99);
	CHECK_EQ(rd(2), 0xc4);
	rd(0);
	CHECK_EQ(rd(2), 0xc2);
	CHECK_EQ(rd(2), 0xc0);
	CHECK_EQ(rd(6) & 0xf, 4);
	CHECK_EQ(rd(2), 0xc1);
	end();
}

TEST(overrun)
{
	begin();
	wr(2, 1);
	wr(4, 0x10);
	for (unsigned i = 0; i < 17; i++)
		wr(0, i);
	CHECK_EQ(rd(5), 0x63);
	CHECK_EQ(rd(5), 0x61);
	for (unsigned i = 0; i < 16; i++)
		CHECK_EQ(rd(0), i);
	wr(2, 0); /* without FIFO the newer one replaces the older */
	wr(0, 'a');
	wr(0, 'b');
	CHECK_EQ(rd(5), 0x63);
	CHECK_EQ(rd(0), 'b');
	end();
}

/* What was typed before the guest is ready stays, however it sets up the port. */
TEST(typed_ahead)
{
	char got[6] = "";

	begin();
	receive("hello");
	wr(2, 1);
	wr(2, 7); /* clears the FIFOs */
	wr(2, 0);
	CHECK_EQ(rd(5), 0x60);
	rd(0);
	wr(2, 0xc7);
	wr(4, 8);
	wr(1, 1);
	CHECK(irq.level);
	for (unsigned i = 0; i < 5; i++)
		got[i] = rd(0);
	CHECK_STR(got, "hello");
	CHECK(!irq.level);
	end();
}

/* A guest that polls, without RTS or interrupts. */
TEST(polled)
{
	char got[4] = "";
	unsigned n = 0;

	begin();
	receive("abc");
	for (unsigned i = 0; i < 200 && n < 3; i++) {
		wr(0, '.');
		CHECK_EQ(rd(5), 0x60); /* waiting to send is no wait for input */
		for (unsigned j = 0; j < 20 && n < 3; j++)
			if (rd(5) & 1)
				got[n++] = rd(0);
	}
	CHECK_STR(got, "abc");
	end();
}

TEST(backlog)
{
	uint8_t data[10000], byte;
	size_t taken, more = 0;

	begin();
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = i * 7;
	wr(2, 1);
	wr(4, 0x0b);
	taken = uart16550_receive(uart, data, sizeof(data));
	CHECK(taken >= 4096 && taken < sizeof(data));
	for (size_t i = 0; i < sizeof(data); i++) {
		CHECK_EQ(rd(5) & 1, 1);
		byte = rd(0);
		if (byte != data[i])
			UNIT_FAIL("byte %zu is %u", i, byte);
		if (ready) {
			ready = 0;
			taken += uart16550_receive(uart, data + taken, sizeof(data) - taken);
			more++;
		}
	}
	CHECK_EQ(taken, sizeof(data));
	CHECK(more >= 2 && more < 10); /* said only after a refusal, and not for each byte */
	CHECK_EQ(rd(5), 0x60);
	end();
}

TEST(state)
{
	begin();
	struct bus other_bus;
	struct wire other_irq = {0};
	struct uart16550 *other;
	struct device e;

	bus_init(&other_bus);
	other = uart16550_create(&(struct uart16550_config){.bus = &other_bus, .port = BASE, .irq = WIRE(other_irq)});
	e = uart16550_device(other);
	wr(2, 1);
	wr(4, 0x0b);
	wr(1, 3);
	wr(7, 0x12);
	receive("0123456789abcdefXYZ");
	move_state(uart16550_device(uart), e);
	CHECK(other_irq.level);
	for (const char *p = "0123456789abcdefXYZ"; *p; p++)
		CHECK_EQ(bus_read(&other_bus, BUS_PORT, BASE, 1, 0), *p);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, BASE + 2, 1, 0), 0xc2);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, BASE + 7, 1, 0), 0x12);
	for (unsigned i = 0; i < 200; i++) {
		load_noise(e, i);
		for (unsigned j = 0; j < 100; j++)
			bus_read(&other_bus, BUS_PORT, BASE + j % 8, 1, 0);
		bus_write(&other_bus, BUS_PORT, BASE + 2, 1, i, 0);
	}
	e.destroy(e.opaque);
	bus_destroy(&other_bus);
	end();
}

TEST(hostile)
{
	uint8_t data[100] = {0};

	begin();
	for (unsigned i = 0; i < 5000; i++) {
		fuzz_ports(BASE, 8, i, 50);
		uart16550_receive(uart, data, i % 100);
	}
	end();
}

UNIT_MAIN()
