/* The bus and state streams. */
#include "bus/bus.h"
#include "unit/unit.h"

static struct bus bus;

/* What the last access was; reads give the offset in every byte. */
static struct {
	const char *who;
	uint64_t off, value;
	unsigned len, cpu, reads, writes;
} last;

static uint64_t on_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	uint64_t value = 0;

	last.who = opaque;
	last.off = off;
	last.len = len;
	last.cpu = cpu;
	last.reads++;
	for (unsigned i = 0; i < 8; i++) /* more than asked for */
		value |= ((off + i) & 0xff) << (i * 8);
	return value;
}

static void on_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	last.who = opaque;
	last.off = off;
	last.len = len;
	last.value = value;
	last.cpu = cpu;
	last.writes++;
}

static const struct bus_ops ops = {on_read, on_write};

static bool add(enum bus_space space, const char *name, uint64_t base, uint64_t size)
{
	return bus_add(&bus, space, (struct bus_region){name, base, size, &ops, (void *)name});
}

static void setup(void)
{
	bus_init(&bus);
	memset(&last, 0, sizeof(last));
	last.who = "nobody";
}

TEST(dispatch)
{
	setup();
	CHECK(add(BUS_PORT, "b", 0x3f8, 8));
	CHECK(add(BUS_PORT, "a", 0x70, 2));
	CHECK(add(BUS_MMIO, "m", 0x3f8, 8));
	CHECK_EQ(bus_read(&bus, BUS_PORT, 0x3fa, 1, 5), 2);
	CHECK_STR(last.who, "b");
	CHECK_EQ(last.off, 2);
	CHECK_EQ(last.cpu, 5);
	bus_write(&bus, BUS_PORT, 0x71, 1, 0x1234, 1);
	CHECK_STR(last.who, "a");
	CHECK_EQ(last.off, 1);
	CHECK_EQ(last.value, 0x34);
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0x3f8, 8, 0), 0x0706050403020100);
	CHECK_STR(last.who, "m");
	CHECK_EQ(last.len, 8);
	bus_destroy(&bus);
}

TEST(nobody)
{
	setup();
	CHECK(add(BUS_MMIO, "m", 0x1000, 0x1000));
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0xfff, 1, 0), 0xff);
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0x2000, 4, 0), 0xffffffff);
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0xffffffffffffffff, 8, 0), ~0ull);
	CHECK_EQ(bus_read(&bus, BUS_PORT, 0x1000, 2, 0), 0xffff);
	bus_write(&bus, BUS_MMIO, 0x2000, 8, 1, 0);
	CHECK_STR(last.who, "nobody");
	bus_destroy(&bus);
}

TEST(straddle)
{
	setup();
	CHECK(add(BUS_MMIO, "a", 0x1000, 6));
	CHECK(add(BUS_MMIO, "b", 0x1006, 0x10));
	/* Bytes 4 and 5 of a, 0 and 1 of b. */
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0x1004, 4, 0), 0x01000504);
	CHECK_EQ(last.reads, 2);
	/* Odd: byte 5 of a alone, then 0 of b alone, then 1 and 2. */
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0x1005, 4, 0), 0x02010005);
	/* Before the first: all ones, then byte 0 of a. */
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0xfff, 2, 0), 0x00ff);
	/* Behind the last. */
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0x1012, 8, 0), 0xffffffff0f0e0d0c);
	last.writes = 0;
	bus_write(&bus, BUS_MMIO, 0x1005, 2, 0xbbaa, 0);
	CHECK_EQ(last.writes, 2);
	CHECK_STR(last.who, "b");
	CHECK_EQ(last.value, 0xbb);
	bus_destroy(&bus);
}

TEST(overlap)
{
	setup();
	CHECK(add(BUS_MMIO, "m", 0x1000, 0x1000));
	CHECK(!add(BUS_MMIO, "x", 0x1000, 0x1000));
	CHECK(!add(BUS_MMIO, "x", 0x1fff, 1));
	CHECK(!add(BUS_MMIO, "x", 0xfff, 2));
	CHECK(!add(BUS_MMIO, "x", 0, 0x10000));
	CHECK(!add(BUS_MMIO, "x", 0x5000, 0));
	CHECK(!add(BUS_MMIO, "x", ~0ull, 2));
	CHECK(add(BUS_MMIO, "before", 0xfff, 1));
	CHECK(add(BUS_MMIO, "after", 0x2000, 1));
	CHECK(add(BUS_MMIO, "top", ~0ull, 1));
	bus_read(&bus, BUS_MMIO, ~0ull, 1, 0);
	CHECK_STR(last.who, "top");
	CHECK_EQ(bus.count[BUS_MMIO], 4);
	bus_destroy(&bus);
}

TEST(remove)
{
	setup();
	CHECK(add(BUS_MMIO, "a", 0x1000, 0x1000));
	CHECK(add(BUS_MMIO, "b", 0x2000, 0x1000));
	CHECK(add(BUS_MMIO, "c", 0x3000, 0x1000));
	bus_remove(&bus, BUS_MMIO, 0x2800); /* not a base */
	bus_remove(&bus, BUS_MMIO, 0x0);
	bus_remove(&bus, BUS_PORT, 0x2000);
	CHECK_EQ(bus.count[BUS_MMIO], 3);
	bus_remove(&bus, BUS_MMIO, 0x2000);
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0x2000, 1, 0), 0xff);
	bus_read(&bus, BUS_MMIO, 0x3000, 1, 0);
	CHECK_STR(last.who, "c");
	CHECK(add(BUS_MMIO, "d", 0x2000, 0x1000));
	bus_read(&bus, BUS_MMIO, 0x2fff, 1, 0);
	CHECK_STR(last.who, "d");
	bus_destroy(&bus);
}

TEST(full)
{
	setup();
	for (unsigned i = 0; i < BUS_REGIONS; i++) /* in a shuffled order */
		CHECK(add(BUS_PORT, "p", (i * 37 % BUS_REGIONS) * 8, 8));
	CHECK(!add(BUS_PORT, "p", 0x8000, 8));
	for (unsigned i = 0; i < BUS_REGIONS; i++)
		CHECK_EQ(bus_read(&bus, BUS_PORT, i * 8 + 3, 1, 0), 3);
	bus_remove(&bus, BUS_PORT, 8);
	CHECK(add(BUS_PORT, "p", 0x8000, 8));
	bus_destroy(&bus);
}

/* A handler that moves its own region, as a PCI function does when its BAR is written. */
static void move(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	static const struct bus_ops moving = {on_read, move};

	bus_remove(&bus, BUS_MMIO, 0x1000);
	CHECK(bus_add(&bus, BUS_MMIO, (struct bus_region){"moved", value, 16, &moving, "moved"}));
}

static const struct bus_ops move_ops = {on_read, move};

TEST(handler_moves_its_region)
{
	setup();
	CHECK(bus_add(&bus, BUS_MMIO, (struct bus_region){"m", 0x1000, 16, &move_ops, "m"}));
	bus_write(&bus, BUS_MMIO, 0x1000, 4, 0x8000, 0);
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0x1000, 1, 0), 0xff);
	CHECK_EQ(bus_read(&bus, BUS_MMIO, 0x8001, 1, 0), 1);
	bus_destroy(&bus);
}

static _Atomic bool stop;

static uint64_t plain_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	return 0x11111111;
}

static const struct bus_ops plain_ops = {plain_read, NULL};

static void *reader(void *arg)
{
	while (!stop) {
		uint64_t always = bus_read(&bus, BUS_MMIO, 0x9000, 4, 0);
		uint64_t sometimes = bus_read(&bus, BUS_MMIO, 0x5000, 4, 0);

		if (always != 0x11111111 || (sometimes != 0x11111111 && sometimes != 0xffffffff))
			return arg;
	}
	return NULL;
}

TEST(threads)
{
	pthread_t t[4];

	setup();
	stop = false;
	CHECK(bus_add(&bus, BUS_MMIO, (struct bus_region){"a", 0x9000, 16, &plain_ops, NULL}));
	bus_write(&bus, BUS_MMIO, 0x9000, 4, 0, 0); /* no handler: dropped */
	for (unsigned i = 0; i < ARRAY_LEN(t); i++)
		REQUIRE(!pthread_create(&t[i], NULL, reader, &bus));
	for (unsigned i = 0; i < 20000; i++) {
		bus_remove(&bus, BUS_MMIO, 0x5000);
		CHECK(bus_add(&bus, BUS_MMIO, (struct bus_region){"b", 0x5000, 16, &plain_ops, NULL}));
	}
	stop = true;
	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		void *bad;

		pthread_join(t[i], &bad);
		CHECK(!bad);
	}
	bus_destroy(&bus);
}

struct part {
	uint8_t a;
	uint64_t b;
	char c[3];
};

static void part_state(struct part *p, struct state_stream *s)
{
	state_mark(s, 0x50415254);
	state_field(s, p->a);
	state_field(s, p->b);
	state_field(s, p->c);
}

TEST(state_round_trip)
{
	struct part p = {1, 0x123456789abcdef0, "xy"}, q = {0};
	struct state_stream out = {.saving = true}, in;

	part_state(&p, &out);
	CHECK(!out.failed);
	CHECK_EQ(out.len, 4 + 1 + 8 + 3);
	in = (struct state_stream){.data = out.data, .len = out.len};
	part_state(&q, &in);
	CHECK(!in.failed);
	CHECK_EQ(in.pos, in.len);
	CHECK_EQ(q.a, 1);
	CHECK_EQ(q.b, 0x123456789abcdef0);
	CHECK_STR(q.c, "xy");
	state_end(&out);
}

/* Every shorter stream fails, and never reads behind its end (the sanitizers watch: each has a buffer of its own). */
TEST(state_truncated)
{
	struct part p = {1, 2, "xy"};
	struct state_stream out = {.saving = true};

	part_state(&p, &out);
	for (size_t len = 0; len < out.len; len++) {
		struct part q = {.b = 77};
		struct state_stream in = {.data = malloc(len ? len : 1), .len = len};

		memcpy(in.data, out.data, len);
		part_state(&q, &in);
		CHECK(in.failed);
		CHECK_EQ(q.b, len >= 13 ? 2 : 77);
		free(in.data);
	}
	state_end(&out);
	CHECK(!out.data);
}

TEST(state_of_another)
{
	struct part p = {1, 2, "xy"}, q = {.a = 9};
	struct state_stream out = {.saving = true}, in;

	part_state(&p, &out);
	out.data[0] ^= 1;
	in = (struct state_stream){.data = out.data, .len = out.len};
	part_state(&q, &in);
	CHECK(in.failed);
	CHECK_EQ(q.a, 9);
	state_end(&out);
}

TEST(state_grows)
{
	static uint8_t block[100000], back[100000];
	struct state_stream out = {.saving = true}, in;
	uint32_t mark;

	for (unsigned i = 0; i < sizeof(block); i++)
		block[i] = (uint8_t)(i * 7);
	for (uint32_t i = 0; i < 100; i++) {
		mark = i;
		state_field(&out, mark);
		state_bytes(&out, block, i * 1000);
	}
	CHECK(!out.failed);
	in = (struct state_stream){.data = out.data, .len = out.len};
	for (uint32_t i = 0; i < 100; i++) {
		state_field(&in, mark);
		CHECK_EQ(mark, i);
		state_bytes(&in, back, i * 1000);
		CHECK_MEM(back, block, i * 1000);
	}
	CHECK(!in.failed);
	state_bytes(&out, block, SIZE_MAX); /* too much ever */
	CHECK(out.failed);
	state_end(&out);
}

UNIT_MAIN()
