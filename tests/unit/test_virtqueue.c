/* Split virtqueues: chains, indices that wrap, events, and drivers that break the rules. */
#include "unit.h"

#include "dev/virtio.h"

#include <stdlib.h>
#include <string.h>

#define DESC 0x1000
#define AVAIL 0x2000
#define USED 0x3000
#define TABLE 0x4000
#define DATA 0x10000
#define SIZE 8
#define MEMORY MiB(1)

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct bench {
	struct guest_memory mem;
	struct virtqueue q;
	struct virtq_chain chain;
	struct desc *desc, *table;
	uint16_t *avail, *used;
	const char *why;
};

static void start(struct bench *b)
{
	struct error err;

	memset(b, 0, sizeof(*b));
	if (!guest_memory_init(&b->mem, MEMORY, &err))
		abort();
	b->desc = guest_memory_ptr(&b->mem, DESC, 4096, true);
	b->table = guest_memory_ptr(&b->mem, TABLE, 4096 * 2, true);
	b->avail = guest_memory_ptr(&b->mem, AVAIL, 4096, true);
	b->used = guest_memory_ptr(&b->mem, USED, 4096, true);
	b->q = (struct virtqueue){.size = SIZE, .size_max = SIZE, .desc = DESC, .avail = AVAIL, .used = USED};
	b->q.indirect = true;
	CHECK(virtq_map(&b->q, &b->mem));
}

static void end(struct bench *b)
{
	guest_memory_destroy(&b->mem);
}

static void publish(struct bench *b, uint16_t head)
{
	b->avail[2 + b->avail[1] % SIZE] = head;
	b->avail[1]++;
}

static enum virtq_result pop(struct bench *b)
{
	return virtq_pop(&b->q, &b->chain, MiB(1), &b->why);
}

TEST(a_chain_is_taken_and_given_back)
{
	struct bench b;

	start(&b);
	CHECK_EQ(pop(&b), VIRTQ_EMPTY);
	b.desc[3] = (struct desc){DATA, 16, NEXT, 5};
	b.desc[5] = (struct desc){DATA + 0x100, 32, NEXT, 1};
	b.desc[1] = (struct desc){DATA + 0x200, 8, WRITE | NEXT, 0};
	b.desc[0] = (struct desc){DATA + 0x300, 4, WRITE, 99};
	publish(&b, 3);
	CHECK(virtq_has_more(&b.q));
	CHECK_EQ(pop(&b), VIRTQ_CHAIN);
	CHECK_EQ(b.chain.head, 3);
	CHECK_EQ(b.chain.readable, 2);
	CHECK_EQ(b.chain.writable, 2);
	CHECK_EQ(b.chain.read_len, 48);
	CHECK_EQ(b.chain.write_len, 12);
	CHECK_EQ(b.chain.seg[1].gpa, DATA + 0x100);
	CHECK(!virtq_has_more(&b.q));
	virtq_push(&b.q, b.chain.head, 7);
	CHECK_EQ(b.used[1], 1);
	CHECK_EQ(b.used[2], 3);
	CHECK_EQ(b.used[4], 7);
	CHECK_EQ(pop(&b), VIRTQ_EMPTY);
	end(&b);
}

TEST(chains_are_read_and_written_across_pieces)
{
	struct bench b;
	char in[8] = "abcdefgh", out[8] = {0};

	start(&b);
	b.desc[0] = (struct desc){DATA, 3, NEXT, 1};
	b.desc[1] = (struct desc){DATA + 100, 4, NEXT, 2};
	b.desc[2] = (struct desc){DATA + 200, 2, WRITE | NEXT, 3};
	b.desc[3] = (struct desc){DATA + 300, 5, WRITE, 0};
	publish(&b, 0);
	CHECK_EQ(pop(&b), VIRTQ_CHAIN);
	guest_memory_write(&b.mem, DATA, "123", 3);
	guest_memory_write(&b.mem, DATA + 100, "4567", 4);
	CHECK_EQ(virtq_chain_read(&b.chain, 0, out, 8), 7);
	CHECK(!memcmp(out, "1234567", 7));
	CHECK_EQ(virtq_chain_read(&b.chain, 2, out, 2), 2);
	CHECK(!memcmp(out, "34", 2));
	CHECK_EQ(virtq_chain_read(&b.chain, 7, out, 2), 0);
	CHECK_EQ(virtq_chain_write(&b.mem, &b.chain, 1, in, 8), 6);
	guest_memory_read(&b.mem, DATA + 201, out, 1);
	CHECK_EQ(out[0], 'a');
	guest_memory_read(&b.mem, DATA + 300, out, 5);
	CHECK(!memcmp(out, "bcdef", 5));
	end(&b);
}

TEST(indirect_tables)
{
	struct bench b;

	start(&b);
	for (unsigned i = 0; i < 100; i++)
		b.table[i] = (struct desc){DATA + 16 * i, 16, i < 99 ? NEXT : WRITE, i + 1};
	b.desc[2] = (struct desc){TABLE, 1600, INDIRECT | WRITE, 0}; /* WRITE is to be ignored */
	publish(&b, 2);
	CHECK_EQ(pop(&b), VIRTQ_CHAIN);
	CHECK_EQ(b.chain.readable, 99);
	CHECK_EQ(b.chain.writable, 1);
	/* After direct ones (2.7.5.3.2). */
	b.desc[4] = (struct desc){DATA, 4, NEXT, 2};
	publish(&b, 4);
	CHECK_EQ(pop(&b), VIRTQ_CHAIN);
	CHECK_EQ(b.chain.readable, 100);
	end(&b);
}

TEST(indices_wrap)
{
	struct bench b;

	start(&b);
	for (unsigned i = 0; i < 70000; i++) {
		b.desc[i % SIZE] = (struct desc){DATA, i % 1000 + 1, 0, 0};
		publish(&b, i % SIZE);
		REQUIRE(pop(&b) == VIRTQ_CHAIN);
		REQUIRE(b.chain.head == i % SIZE && b.chain.read_len == i % 1000 + 1);
		virtq_push(&b.q, b.chain.head, i);
		REQUIRE(b.used[1] == (uint16_t)(i + 1));
		REQUIRE(b.used[2 + 4 * (i % SIZE)] == i % SIZE);
	}
	end(&b);
}

TEST(areas_that_are_not_there)
{
	struct bench b;
	const struct {
		uint64_t desc, avail, used;
	} bad[] = {
		{DESC + 8, AVAIL, USED}, {DESC, AVAIL + 1, USED},   {DESC, AVAIL, USED + 2},
		{MEMORY, AVAIL, USED},   {DESC, MEMORY - 16, USED}, {DESC, AVAIL, MEMORY - 64},
		{-16ull, AVAIL, USED},   {DESC, -2ull, USED},       {DESC, AVAIL, 1ull << 63},
	};

	start(&b);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		b.q.desc = bad[i].desc;
		b.q.avail = bad[i].avail;
		b.q.used = bad[i].used;
		CHECK(!virtq_map(&b.q, &b.mem));
		CHECK_EQ(pop(&b), VIRTQ_BROKEN);
		CHECK(!virtq_has_more(&b.q) && !virtq_arm(&b.q) && !virtq_wants_interrupt(&b.q));
		virtq_push(&b.q, 0, 0);
		virtq_silence(&b.q);
	}
	end(&b);
}

static void expect_broken(struct bench *b, const char *what)
{
	enum virtq_result result = pop(b);

	if (result != VIRTQ_BROKEN)
		UNIT_FAIL("%s: result %d", what, result);
	CHECK(b->why != NULL);
	/* Start over. */
	b->q.next_avail = b->avail[1];
	memset(b->desc, 0, SIZE * 16);
	memset(b->table, 0, 4096);
}

TEST(drivers_that_break_the_rules)
{
	struct bench b;

	start(&b);
	b.desc[0] = (struct desc){DATA, 4, NEXT, 0};
	publish(&b, 0);
	expect_broken(&b, "a loop of one");
	for (unsigned i = 0; i < SIZE; i++)
		b.desc[i] = (struct desc){DATA, 4, NEXT, (i + 1) % SIZE};
	publish(&b, 3);
	expect_broken(&b, "a loop of all");
	publish(&b, SIZE);
	expect_broken(&b, "a head out of range");
	publish(&b, 0xffff);
	expect_broken(&b, "a head far out of range");
	b.desc[0] = (struct desc){DATA, 4, NEXT, SIZE};
	publish(&b, 0);
	expect_broken(&b, "a link out of range");
	b.desc[0] = (struct desc){DATA, 0, 0, 0};
	publish(&b, 0);
	expect_broken(&b, "an empty piece");
	b.desc[0] = (struct desc){MEMORY - 4, 8, 0, 0};
	publish(&b, 0);
	expect_broken(&b, "a piece over the end of memory");
	b.desc[0] = (struct desc){-8ull, 16, WRITE, 0};
	publish(&b, 0);
	expect_broken(&b, "a piece that wraps");
	b.desc[0] = (struct desc){0, 0xffffffff, WRITE, 0};
	publish(&b, 0);
	expect_broken(&b, "a huge piece");
	b.desc[0] = (struct desc){DATA, 4, WRITE | NEXT, 1};
	b.desc[1] = (struct desc){DATA, 4, 0, 1};
	publish(&b, 0);
	expect_broken(&b, "readable after writable");
	b.desc[0] = (struct desc){0, MiB(1) / 2 + 1, NEXT, 1};
	b.desc[1] = (struct desc){0, MiB(1) / 2, 0, 1};
	publish(&b, 0);
	expect_broken(&b, "too many bytes");
	b.avail[1] += SIZE + 1;
	expect_broken(&b, "an index that jumps");
	b.avail[1]--;
	expect_broken(&b, "an index that goes back");
	end(&b);
}

TEST(indirect_tables_that_break_the_rules)
{
	struct bench b;
	const struct {
		const char *what;
		struct desc d;
	} bad[] = {
		{"no length", {TABLE, 0, INDIRECT, 0}},
		{"an odd length", {TABLE, 17, INDIRECT, 0}},
		{"a length beyond memory", {TABLE, 0x7ffffff0, INDIRECT, 0}},
		{"a length beyond 16 bits", {0, 16 * 0x10000, INDIRECT, 0}},
		{"a table that is not memory", {MEMORY, 16, INDIRECT, 0}},
		{"a table and a next one", {TABLE, 16, INDIRECT | NEXT, 1}},
	};

	start(&b);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		b.table[0] = (struct desc){DATA, 4, 0, 0};
		b.desc[0] = bad[i].d;
		publish(&b, 0);
		expect_broken(&b, bad[i].what);
	}
	b.table[0] = (struct desc){TABLE, 16, INDIRECT, 0};
	b.desc[0] = (struct desc){TABLE, 16, INDIRECT, 0};
	publish(&b, 0);
	expect_broken(&b, "a table in a table");
	b.table[0] = (struct desc){DATA, 4, NEXT, 0};
	b.desc[0] = (struct desc){TABLE, 16 * 4, INDIRECT, 0};
	publish(&b, 0);
	expect_broken(&b, "a loop in a table");
	b.table[0] = (struct desc){DATA, 4, NEXT, 4};
	b.desc[0] = (struct desc){TABLE, 16 * 4, INDIRECT, 0};
	publish(&b, 0);
	expect_broken(&b, "a link out of the table");
	for (unsigned i = 0; i <= VIRTQ_SEGMENTS; i++)
		b.table[i] = (struct desc){DATA, 4, NEXT, i + 1};
	b.desc[0] = (struct desc){TABLE, 16 * 300, INDIRECT, 0};
	publish(&b, 0);
	expect_broken(&b, "too many pieces");
	b.q.indirect = false;
	b.table[0] = (struct desc){DATA, 4, 0, 0};
	b.desc[0] = (struct desc){TABLE, 16, INDIRECT, 0};
	publish(&b, 0);
	expect_broken(&b, "a table without the feature");
	end(&b);
}

TEST(flags_without_event_index)
{
	struct bench b;

	start(&b);
	CHECK(virtq_wants_interrupt(&b.q));
	b.avail[0] = 1;
	CHECK(!virtq_wants_interrupt(&b.q));
	virtq_silence(&b.q);
	CHECK_EQ(b.used[0], 1);
	CHECK(!virtq_arm(&b.q));
	CHECK_EQ(b.used[0], 0);
	publish(&b, 0);
	CHECK(virtq_arm(&b.q));
	end(&b);
}

TEST(event_index)
{
	struct bench b;
	uint16_t *used_event = NULL, *avail_event = NULL;

	start(&b);
	used_event = &b.avail[2 + SIZE];
	avail_event = &b.used[2 + 4 * SIZE];
	b.q.event_idx = true;
	b.avail[0] = 1; /* has no meaning now */
	virtq_push(&b.q, 0, 0);
	CHECK(virtq_wants_interrupt(&b.q)); /* the first */
	*used_event = 3;
	virtq_push(&b.q, 0, 0);
	CHECK(!virtq_wants_interrupt(&b.q));
	virtq_push(&b.q, 0, 0);
	CHECK(!virtq_wants_interrupt(&b.q));
	virtq_push(&b.q, 0, 0);
	CHECK(virtq_wants_interrupt(&b.q)); /* index 3 was just passed */
	virtq_push(&b.q, 0, 0);
	CHECK(!virtq_wants_interrupt(&b.q));
	/* Several at once, over the wrap. */
	b.q.next_used = b.q.signalled = 0xfffe;
	*used_event = 0xffff;
	for (unsigned i = 0; i < 5; i++)
		virtq_push(&b.q, 0, 0);
	CHECK(virtq_wants_interrupt(&b.q));
	CHECK(!virtq_wants_interrupt(&b.q));

	publish(&b, 0);
	b.desc[0] = (struct desc){DATA, 4, 0, 0};
	CHECK_EQ(pop(&b), VIRTQ_CHAIN);
	virtq_silence(&b.q);
	CHECK_EQ(b.used[0], 0);
	CHECK_EQ(*avail_event, 0);
	CHECK(!virtq_arm(&b.q));
	CHECK_EQ(*avail_event, 1);
	end(&b);
}

/* Whatever is in the rings: an answer, and nothing outside memory. */
TEST(random_rings)
{
	struct bench b;
	unsigned seed = 12345, results[3] = {0};

	start(&b);
	for (unsigned round = 0; round < 20000; round++) {
		for (unsigned i = 0; i < SIZE + 8; i++) {
			struct desc *d = i < SIZE ? &b.desc[i] : &b.table[i - SIZE];
			*d = (struct desc){rand_r(&seed) % (MEMORY + 4096), rand_r(&seed) % 0x4000,
					   rand_r(&seed) & rand_r(&seed) & 7, rand_r(&seed) % (SIZE + 1)};
			if (d->flags & INDIRECT)
				*d = (struct desc){TABLE, 16 * (rand_r(&seed) % 9), d->flags, d->next};
		}
		publish(&b, rand_r(&seed) % (SIZE + (round % 50 == 0)));
		enum virtq_result result = pop(&b);
		results[result]++;
		if (result == VIRTQ_CHAIN) {
			for (unsigned i = 0; i < b.chain.readable + b.chain.writable; i++)
				REQUIRE(guest_memory_ptr(&b.mem, b.chain.seg[i].gpa, b.chain.seg[i].len, true) ==
					b.chain.seg[i].host);
		} else {
			b.q.next_avail = b.avail[1];
		}
	}
	CHECK(results[VIRTQ_CHAIN] > 500 && results[VIRTQ_BROKEN] > 500);
	end(&b);
}

UNIT_MAIN()
