/* What of the software TLB is kept while CR3 names another PCID. */
#include "engine/translate/light.h"
#include "host/host.h"
#include "unit/unit.h"

static struct tr_engine *engine;
static struct tr_vcpu *v;
static struct guest_memory memory;

#define LOCAL(page) ((uint64_t)(page) << PAGE_SHIFT) /* its linear address, and where it is in guest memory */

static void setup(void)
{
	struct error err;

	REQUIRE(guest_memory_init(&memory, MiB(2), &err));
	engine = host_memory_alloc(sizeof(*engine));
	v = host_memory_alloc(sizeof(*v));
	REQUIRE(engine && v);
	engine->mem = &memory;
	v->engine = engine;
	v->cpu.cr4 = CR4_PCIDE;
	v->cpu.cr3 = 1;
	tlb_init(v);
}

static void teardown(void)
{
	host_memory_free(v, sizeof(*v));
	host_memory_free(engine, sizeof(*engine));
	guest_memory_destroy(&memory);
}

static struct tlb_entry *entry_of(unsigned page)
{
	return &v->tlb[MMU_USER][page];
}

static void fill(unsigned page, uint64_t meta)
{
	tlb_entry_fill(v, entry_of(page), LOCAL(page), 0x1000, LOCAL(page) | meta, true);
}

static bool has(unsigned page)
{
	return entry_of(page)->tag_read == LOCAL(page);
}

static bool has_write(unsigned page)
{
	return entry_of(page)->tag_write == LOCAL(page);
}

/* MOV CR3, with bit 63 set or clear. */
static void switch_to(unsigned pcid, bool keep)
{
	v->cpu.cr3 = pcid;
	if (keep)
		tlb_space_changed(&v->cpu);
	else
		tlb_flush_all(&v->cpu, false, (int)pcid);
}

/* Away and back again. */
static void turn(void)
{
	switch_to(2, true);
	switch_to(1, true);
}

TEST(kept)
{
	setup();
	fill(7, 0);
	switch_to(2, true);
	CHECK(!has(7));
	fill(8, 0);
	fill(9, TLB_META_GLOBAL);
	switch_to(1, true);
	CHECK(has(7) && has_write(7) && !has(8) && has(9));
	CHECK_EQ(entry_of(7)->delta, 0x1000);
	CHECK_EQ(entry_of(7)->meta, LOCAL(7));
	switch_to(2, false);
	CHECK(!has(7) && !has(8) && has(9));
	switch_to(1, true);
	CHECK(has(7));
	switch_to(1, true); /* other tables, the same PCID */
	CHECK(has(7));
	switch_to(1, false);
	CHECK(!has(7));
	teardown();
}

TEST(dropped)
{
	static const struct {
		bool one;
		uint64_t va;
		int pcid; /* of a flush while PCID 2 runs */
		bool kept;
	} flush[] = {
		{true, LOCAL(7), 1, false}, {true, LOCAL(7), 2, true},
		{true, LOCAL(6), 1, true},  {false, 0, 1, false},
		{false, 0, 2, true},        {false, 0, -1, false},
		{false, 0, 3, true},        {true, LOCAL(7) | 5, 1, false},
	};
	setup();
	for (unsigned i = 0; i < ARRAY_LEN(flush); i++) {
		fill(7, 0);
		switch_to(2, true);
		fill(8, 0);
		if (flush[i].one)
			tlb_flush_page(&v->cpu, flush[i].va, flush[i].pcid);
		else
			tlb_flush_all(&v->cpu, false, flush[i].pcid);
		CHECK_EQ(has(8), flush[i].one || (flush[i].pcid != 2 && flush[i].pcid != -1));
		switch_to(1, true);
		CHECK_EQ(has(7), flush[i].kept);
	}
	fill(7, 0);
	switch_to(2, true);
	tlb_flush_all(&v->cpu, true, -1);
	switch_to(1, true);
	CHECK(!has(7));
	teardown();
}

TEST(large_page)
{
	setup();
	fill(7, TLB_META_LARGE);
	fill(8, 0);
	switch_to(2, true);
	tlb_flush_page(&v->cpu, LOCAL(9), 1); /* another piece of it */
	switch_to(1, true);
	CHECK(!has(7) && has(8));
	teardown();
}

/* Its page has been translated meanwhile; another entry has come into its place. */
TEST(come_back)
{
	setup();
	fill(7, 0);
	switch_to(2, true);
	atomic_store(&memory.code[7], 1);
	switch_to(1, true);
	CHECK(has(7) && !has_write(7));
	switch_to(2, true);
	tlb_entry_fill(v, entry_of(7), LOCAL(7 + TLB_ENTRIES), 0, TLB_META_GLOBAL, false);
	switch_to(1, true);
	CHECK_EQ(entry_of(7)->tag_read, LOCAL(7 + TLB_ENTRIES));
	teardown();
}

/* Of many, the last; of many PCIDs, those that ran last. */
TEST(bounds)
{
	setup();
	for (unsigned i = 0; i < 2 * TLB_SAVED; i++)
		fill(100 + i, 0);
	turn();
	for (unsigned i = 0; i < 2 * TLB_SAVED; i++)
		CHECK_EQ(has(100 + i), i >= TLB_SAVED);
	fill(50, 0);
	turn();
	CHECK(has(50) && !has(100 + TLB_SAVED) && has(100 + TLB_SAVED + 1));
	for (unsigned pcid = 2; pcid <= TLB_SPACES + 1; pcid++) {
		switch_to(pcid, true);
		fill(pcid, 0);
	}
	switch_to(1, true); /* has been put by first, and made way */
	CHECK(!has(50));
	switch_to(TLB_SPACES + 1, true);
	CHECK(has(TLB_SPACES + 1));
	teardown();
}

/* Whether it is used nobody knows, so from time to time it is to be asked for anew. */
TEST(found_anew)
{
	unsigned kept = 0;
	setup();
	for (unsigned i = 0; i < 100; i++) {
		fill(7, 0);
		while (turn(), has(7))
			kept++;
	}
	CHECK(kept >= 400 && kept <= 2000);
	teardown();
}

TEST(without_pcids)
{
	setup();
	v->cpu.cr4 = 0;
	tlb_flush_all(&v->cpu, true, -1);
	fill(7, 0);
	tlb_flush_all(&v->cpu, false, -1);
	CHECK(!has(7));
	v->cpu.cr4 = CR4_PCIDE;
	tlb_flush_all(&v->cpu, true, -1);
	turn();
	CHECK(!has(7));
	teardown();
}

UNIT_MAIN()
