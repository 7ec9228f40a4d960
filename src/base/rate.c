/* A token bucket, kept as the time until which all that passed is paid for (the "virtual scheduling" form of ITU-T
 * I.371's generic cell rate algorithm): nothing has to be filled up as time goes by. */
#include "base/rate.h"

#define SECOND 1000000000ull

/* No debt lasts longer, whatever was taken: keeps sums far from the end of the range. */
#define DEBT_MAX (3600 * SECOND)

static uint64_t cost(const struct rate *rate, uint64_t amount, uint64_t *rest)
{
	unsigned __int128 ns = (unsigned __int128)amount * (unsigned __int128)SECOND + *rest;
	unsigned __int128 whole = ns / rate->per_second;

	*rest = (uint64_t)(ns % rate->per_second);
	return (uint64_t)(whole > (unsigned __int128)DEBT_MAX ? (unsigned __int128)DEBT_MAX : whole);
}

void rate_init(struct rate *rate, uint64_t per_second, uint64_t burst, uint64_t now)
{
	uint64_t rest = 0;

	*rate = (struct rate){.per_second = per_second, .paid = now};
	if (per_second) {
		rate->burst_ns = burst ? cost(rate, burst, &rest) : SECOND / 10;
		rate->paid = now > rate->burst_ns ? now - rate->burst_ns : 0;
	}
}

uint64_t rate_wait(const struct rate *rate, uint64_t now)
{
	return rate->per_second && rate->paid > now ? rate->paid - now : 0;
}

void rate_take(struct rate *rate, uint64_t amount, uint64_t now)
{
	uint64_t oldest = now > rate->burst_ns ? now - rate->burst_ns : 0;

	if (!rate->per_second)
		return;
	if (rate->paid < oldest) {
		rate->paid = oldest;
		rate->rest = 0;
	}
	rate->paid = MIN(rate->paid + cost(rate, amount, &rate->rest), now + DEBT_MAX);
}
