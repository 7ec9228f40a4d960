/* Guest-physical memory around its edges. */
#include "bus/memory.h"
#include "host/host.h"
#include "host/thread.h"
#include "unit/unit.h"

#include <stdlib.h>
#include <string.h>

static struct guest_memory mem;

static void setup(uint64_t size)
{
	struct error err;

	REQUIRE(guest_memory_init(&mem, size, &err));
}

TEST(small)
{
	setup(MiB(64));
	CHECK_EQ(mem.count, 1);
	CHECK_EQ(mem.pages, MiB(64) / PAGE_SIZE);
	CHECK(guest_memory_ptr(&mem, 0, MiB(64), true) == mem.range[0].host);
	CHECK(!guest_memory_ptr(&mem, 0, MiB(64) + 1, true));
	CHECK(!guest_memory_ptr(&mem, 0, 0, false));
	CHECK(guest_memory_ptr(&mem, MiB(64) - 1, 1, false) == mem.range[0].host + MiB(64) - 1);
	CHECK(!guest_memory_ptr(&mem, MiB(64) - 1, 2, false));
	CHECK(!guest_memory_ptr(&mem, MiB(64), 1, false));
	guest_memory_destroy(&mem);
	CHECK(!guest_memory_ptr(&mem, 0, 1, false));
}

TEST(lengths_that_wrap)
{
	setup(MiB(1));
	CHECK(!guest_memory_ptr(&mem, 0x1000, ~0ull, false));
	CHECK(!guest_memory_ptr(&mem, 0x1000, ~0ull - 0xfff, false));
	CHECK(!guest_memory_ptr(&mem, ~0ull, 1, false));
	CHECK(!guest_memory_ptr(&mem, ~0ull, 2, false));
	CHECK(!guest_memory_ptr(&mem, ~0ull - 0xfff, 0x2000, false));
	guest_memory_destroy(&mem);
}

TEST(around_the_hole)
{
	uint8_t *low, *high;

	setup(GiB(5));
	CHECK_EQ(mem.count, 2);
	CHECK_EQ(mem.range[1].gpa, GiB(4));
	CHECK_EQ(mem.range[1].size, GiB(2));
	low = guest_memory_ptr(&mem, GiB(3) - 8, 8, true);
	high = guest_memory_ptr(&mem, GiB(4), 8, true);
	CHECK(low && high && low != high);
	CHECK(!guest_memory_ptr(&mem, GiB(3) - 8, 9, true)); /* though the host's bytes go on */
	CHECK(!guest_memory_ptr(&mem, GiB(3), 1, true));
	CHECK(!guest_memory_ptr(&mem, GiB(4) - 1, 1, true));
	CHECK(!guest_memory_ptr(&mem, GiB(4) - 1, 2, true));
	CHECK(guest_memory_ptr(&mem, GiB(6) - 1, 1, true));
	CHECK(!guest_memory_ptr(&mem, GiB(6), 1, true));
	*low = 1;
	*high = 2;
	CHECK_EQ(*low, 1);
	CHECK_EQ(guest_memory_page_index(&mem, GiB(3) - 1), GiB(3) / PAGE_SIZE - 1);
	CHECK_EQ(guest_memory_page_index(&mem, GiB(4) + 4096), GiB(3) / PAGE_SIZE + 1);
	guest_memory_destroy(&mem);
}

TEST(exactly_three_gib)
{
	setup(GiB(3));
	CHECK_EQ(mem.count, 1);
	CHECK(!guest_memory_ptr(&mem, GiB(4), 1, false));
	guest_memory_destroy(&mem);
	setup(GiB(3) + PAGE_SIZE);
	CHECK_EQ(mem.count, 2);
	CHECK(guest_memory_ptr(&mem, GiB(4), PAGE_SIZE, false));
	CHECK(!guest_memory_ptr(&mem, GiB(4), PAGE_SIZE + 1, false));
	guest_memory_destroy(&mem);
}

TEST(bad_sizes)
{
	struct error err = {0};

	CHECK(!guest_memory_init(&mem, 0, &err));
	CHECK(strstr(err.text, "memory size 0"));
	CHECK(!guest_memory_init(&mem, 4097, &err));
	CHECK(!guest_memory_init(&mem, GiB(512), &err));
	CHECK(strstr(err.text, "at most"));
	CHECK(!guest_memory_init(&mem, ~0ull & PAGE_MASK, &err));
	guest_memory_destroy(&mem);
}

TEST(readonly)
{
	uint8_t byte = 7;

	setup(MiB(1));
	mem.range[0].readonly = true;
	CHECK(guest_memory_ptr(&mem, 0, 1, false));
	CHECK(!guest_memory_ptr(&mem, 0, 1, true));
	CHECK(!guest_memory_write(&mem, 0, &byte, 1));
	CHECK(guest_memory_read(&mem, 0, &byte, 1));
	CHECK_EQ(byte, 0);
	guest_memory_destroy(&mem);
}

static struct {
	uint64_t gpa, len;
	unsigned calls;
} told;

static void code_written(void *opaque, uint64_t gpa, uint64_t len)
{
	CHECK(opaque == &told);
	told.gpa = gpa;
	told.len = len;
	told.calls++;
}

TEST(code)
{
	uint8_t data[PAGE_SIZE * 2] = {1, 2, 3};

	setup(MiB(1));
	mem.code_written = code_written;
	mem.code_opaque = &told;
	memset(&told, 0, sizeof(told));
	mem.code[3] = 1;
	CHECK(guest_memory_write(&mem, 0x2000, data, PAGE_SIZE));
	CHECK(guest_memory_write(&mem, 0x4000, data, PAGE_SIZE));
	CHECK_EQ(told.calls, 0);
	CHECK(guest_memory_write(&mem, 0x2fff, data, 2));
	CHECK_EQ(told.calls, 1);
	CHECK_EQ(told.gpa, 0x2fff);
	CHECK_EQ(told.len, 2);
	CHECK(guest_memory_write(&mem, 0x3fff, data, 1));
	CHECK_EQ(told.calls, 2);
	CHECK(guest_memory_write(&mem, 0x2000, data, sizeof(data)));
	CHECK_EQ(told.calls, 3);
	guest_memory_wrote(&mem, 0x3000, 0);
	guest_memory_wrote(&mem, MiB(2), 8);
	guest_memory_wrote(&mem, MiB(1) - 4, 8);
	CHECK_EQ(told.calls, 3);
	guest_memory_destroy(&mem);
}

TEST(copies)
{
	char text[] = "some bytes", back[sizeof(text)] = "";

	setup(MiB(1));
	CHECK(guest_memory_write(&mem, MiB(1) - sizeof(text), text, sizeof(text)));
	CHECK(!guest_memory_write(&mem, MiB(1) - sizeof(text) + 1, text, sizeof(text)));
	CHECK(guest_memory_read(&mem, MiB(1) - sizeof(text), back, sizeof(back)));
	CHECK_STR(back, text);
	CHECK(guest_memory_read(&mem, MiB(7), back, 0));
	guest_memory_destroy(&mem);
}

/*
 * The handshake: one thread writes bytes and calls guest_memory_wrote, the other marks the page and then reads the
 * bytes. Never may the reader have the old byte and the writer have seen no mark.
 */
#define ROUNDS 20000

static _Atomic unsigned round_ready, round_done;
static _Atomic bool saw_mark;

static void mark_seen(void *opaque, uint64_t gpa, uint64_t len)
{
	saw_mark = true;
}

static void wait_for(_Atomic unsigned *at, unsigned value)
{
	while (atomic_load(at) != value)
		host_sleep_ns(0);
}

static void *writer(void *arg)
{
	_Atomic uint8_t *byte = guest_memory_ptr(&mem, 0x5000, 1, true);

	for (unsigned i = 1; i <= ROUNDS; i++) {
		wait_for(&round_ready, i);
		atomic_store_explicit(byte, 1, memory_order_relaxed);
		guest_memory_wrote(&mem, 0x5000, 1);
		round_done = i;
	}
	return NULL;
}

TEST(handshake)
{
	struct host_thread t;
	_Atomic uint8_t *byte;
	unsigned lost = 0;

	setup(MiB(1));
	mem.code_written = mark_seen;
	byte = guest_memory_ptr(&mem, 0x5000, 1, true);
	REQUIRE(host_thread_start(&t, "writer", writer, NULL));
	for (unsigned i = 1; i <= ROUNDS; i++) {
		uint8_t seen;

		saw_mark = false;
		*byte = 0;
		mem.code[5] = 0;
		round_ready = i;
		atomic_store(&mem.code[5], 1);
		seen = atomic_load(byte);
		wait_for(&round_done, i);
		lost += !seen && !saw_mark;
	}
	host_thread_join(&t);
	CHECK_EQ(lost, 0);
	guest_memory_destroy(&mem);
}

UNIT_MAIN()

/* Much at once goes another way than little, by memory of either kind (large pages or not). */
TEST(write_much)
{
	static const uint64_t sizes[] = {MiB(1), MiB(8)};
	const uint64_t at = 5000, len = 700001;
	uint8_t *data = malloc(len);

	REQUIRE(data);
	for (uint64_t i = 0; i < len; i++)
		data[i] = (uint8_t)(i * 7 + i / 256);
	for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
		uint8_t *p;

		setup(sizes[i]);
		p = guest_memory_ptr(&mem, 0, sizes[i], true);
		p[at - 1] = p[at + len] = 0xee;
		CHECK(guest_memory_write(&mem, at, data, len));
		CHECK(!memcmp(p + at, data, len));
		CHECK(p[at - 1] == 0xee && p[at + len] == 0xee && !p[at + len + 1]);
		CHECK(!guest_memory_write(&mem, sizes[i] - len + 1, data, len));
		guest_memory_destroy(&mem);
	}
	free(data);
}
