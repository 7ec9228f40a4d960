/* Which program an address space has, and what is learned of it. */
#include "bus/memory.h"
#include "engine/translate/direct.h"
#include "unit/unit.h"

#include <string.h>

static struct guest_memory mem;

static void entry_set(uint64_t table, unsigned i, uint64_t entry)
{
	memcpy(guest_memory_ptr(&mem, table + 8 * i, 8, true), &entry, 8);
}

/* CR3 0x1000: tables at 0x2000, 0x3000 and 0x4000, whose entry 5 is the first in use. */
static void setup(void)
{
	struct error err;

	REQUIRE(guest_memory_init(&mem, MiB(2), &err));
	entry_set(0x1000, 256, 0x9003); /* the kernel's */
	entry_set(0x1000, 170, 0x2007);
	entry_set(0x2000, 511, 0x3007);
	entry_set(0x3000, 2, 0x4007);
	entry_set(0x4000, 4, 0x8000000000008006); /* not present */
	entry_set(0x4000, 5, 0x8000000000007025);
	entry_set(0x4000, 6, 0x8000000000006025);
}

TEST(first_page)
{
	setup();
	CHECK_EQ(direct_program(&mem, 0x1000), 0x7000);
	CHECK_EQ(direct_program(&mem, 0x1fff | BIT(63)), 0x7000); /* CR3's other bits */
	entry_set(0x3000, 1, 0x2000e7);                           /* 2 MiB */
	CHECK_EQ(direct_program(&mem, 0x1000), 0x200000);
	guest_memory_destroy(&mem);
}

TEST(no_page)
{
	setup();
	entry_set(0x3000, 2, 0xffffffff0007); /* a table where there is no memory */
	CHECK_EQ(direct_program(&mem, 0x1000), 0);
	entry_set(0x3000, 2, 0x5007); /* nothing in it */
	CHECK_EQ(direct_program(&mem, 0x1000), 0);
	entry_set(0x1000, 170, 0);
	CHECK_EQ(direct_program(&mem, 0x1000), 0);
	CHECK_EQ(direct_program(&mem, MiB(16)), 0);
	guest_memory_destroy(&mem);
}

static struct direct_programs programs;

static void judge(uint64_t program, uint64_t gain, uint64_t cost)
{
	const struct direct_account a = {.gain = gain, .cost = cost, .credit = 100, .program = program};

	direct_program_judge(&programs, &a);
}

TEST(learns)
{
	memset(&programs, 0, sizeof(programs));
	CHECK_EQ(direct_program_failures(&programs, 0x7000), 0);
	judge(0x7000, 150, 40);
	CHECK_EQ(direct_program_failures(&programs, 0x7000), 0);
	judge(0x7000, 150, 60); /* without the credit it would have cost more */
	CHECK_EQ(direct_program_failures(&programs, 0x7000), 1);
	CHECK_EQ(direct_program_failures(&programs, 0x8000), 0);
	for (unsigned i = 0; i < 2 * DIRECT_FAILURES; i++)
		judge(0x7000, 0, 60);
	CHECK_EQ(direct_program_failures(&programs, 0x7000), DIRECT_FAILURES);
	judge(0x7000, 150, 40);
	CHECK_EQ(direct_program_failures(&programs, 0x7000), 0);
}

/* Expected as often as short ones may come in between; and not of a program that takes its place. */
TEST(lasts)
{
	memset(&programs, 0, sizeof(programs));
	CHECK(!direct_program_will_last(&programs, 0x7000));
	for (unsigned again = 0; again < 2; again++) {
		direct_program_lasts(&programs, 0x7000);
		for (unsigned i = 0; i < DIRECT_TRUST; i++)
			CHECK(direct_program_will_last(&programs, 0x7000));
		CHECK(!direct_program_will_last(&programs, 0x7000));
	}
	direct_program_lasts(&programs, 0x7000);
	judge(0x7000, 0, 60); /* it has nothing to do with what it costs to run directly */
	CHECK(direct_program_will_last(&programs, 0x7000));
	judge(0x7000 + DIRECT_PROGRAMS * PAGE_SIZE, 0, 60);
	CHECK(!direct_program_will_last(&programs, 0x7000));
	direct_program_lasts(&programs, 0); /* nobody's */
	CHECK(!direct_program_will_last(&programs, 0));
}

TEST(one_place)
{
	uint64_t other = 0x7000 + DIRECT_PROGRAMS * PAGE_SIZE;

	memset(&programs, 0, sizeof(programs));
	judge(0x7000, 0, 1);
	judge(other, 0, 1);
	CHECK_EQ(direct_program_failures(&programs, other), 1);
	CHECK_EQ(direct_program_failures(&programs, 0x7000), 0);
}

TEST(unknown)
{
	memset(&programs, 0, sizeof(programs));
	judge(0, 0, 1);
	CHECK_EQ(direct_program_failures(&programs, 0), 0);
}

UNIT_MAIN()
