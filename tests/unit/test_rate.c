/* The token bucket, by a clock of the test's own. */
#include "unit.h"

#include "base/rate.h"

#define S 1000000000ull

/* Takes `amount` whenever it may for `time` ns, from *now on; returns how much passed. */
static uint64_t run(struct rate *r, uint64_t *now, uint64_t time, uint64_t amount)
{
	uint64_t end = *now + time, passed = 0;

	for (;;) {
		uint64_t wait = rate_wait(r, *now);
		if (*now + wait >= end)
			break;
		*now += wait;
		rate_take(r, amount, *now);
		passed += amount;
	}
	*now = end;
	return passed;
}

TEST(no_cap)
{
	struct rate r;

	rate_init(&r, 0, 0, 5);
	rate_take(&r, UINT64_MAX, 5);
	CHECK_EQ(rate_wait(&r, 5), 0);
}

TEST(burst_then_steady)
{
	struct rate r;
	uint64_t now = 77 * S;

	rate_init(&r, 1000, 100, now);
	/* What was saved up, and one more that is owed. */
	for (unsigned i = 0; i < 11; i++) {
		CHECK_EQ(rate_wait(&r, now), 0);
		rate_take(&r, 10, now);
	}
	CHECK_EQ(rate_wait(&r, now), 10 * S / 1000);
	CHECK_EQ(rate_wait(&r, now + 4000000), 6000000);
	CHECK_EQ(run(&r, &now, 10 * S, 10), 10000 - 10);
}

TEST(a_pause_saves_no_more_than_the_burst)
{
	struct rate r;
	uint64_t now = 0;

	rate_init(&r, 1000000, 5000, now);
	run(&r, &now, S, 1000);
	now += 3600 * S;
	CHECK_EQ(run(&r, &now, 1, 1000), 6000);
}

TEST(larger_than_the_burst)
{
	struct rate r;
	uint64_t now = S;

	rate_init(&r, 1000, 1, now);
	CHECK_EQ(rate_wait(&r, now), 0);
	rate_take(&r, 3000, now);
	CHECK_EQ(rate_wait(&r, now), 3 * S - S / 1000);
	now += 3 * S;
	CHECK_EQ(rate_wait(&r, now), 0);
}

/* A rate that does not divide a second: nothing is lost by rounding. */
TEST(exact_over_a_long_time)
{
	struct rate r;
	uint64_t now = 0;

	rate_init(&r, 3000000007, 1, now);
	for (unsigned i = 0; i < 1000000; i++)
		rate_take(&r, 1, 0);
	/* A million of them, less the burst of one, paid at 1e15/3000000007 ns. */
	CHECK_EQ(rate_wait(&r, 0), 1000000ull * S / 3000000007);
	now = S;
	rate_init(&r, 7, 1, now);
	CHECK_EQ(run(&r, &now, 1000 * S, 1) - 1, 7000);
}

TEST(default_burst)
{
	struct rate r;
	uint64_t now = 9 * S;

	rate_init(&r, 1000, 0, now);
	CHECK_EQ(run(&r, &now, 1, 1), 101);
}

TEST(huge)
{
	struct rate r;

	rate_init(&r, 1, 1, 0);
	rate_take(&r, UINT64_MAX, 0);
	rate_take(&r, UINT64_MAX, 0);
	CHECK_EQ(rate_wait(&r, 0), 3600 * S);
	rate_init(&r, UINT64_MAX, UINT64_MAX, 0);
	rate_take(&r, UINT64_MAX, S);
	CHECK_EQ(rate_wait(&r, S), 0);
}

UNIT_MAIN()
