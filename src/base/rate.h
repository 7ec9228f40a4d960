/*
 * A cap on how much passes a second (bytes, requests): a token bucket that fills at a steady rate up to `burst`. The
 * caller has the clock and the lock, so that a test can bring its own time:
 *
 *	uint64_t wait = rate_wait(&rate, now);
 *	if (wait)
 *		come back in `wait` ns
 *	rate_take(&rate, bytes, now);
 *
 * A thing passes when the bucket is not in debt, and is paid for afterwards: one that is larger than the burst passes
 * too, and what follows waits the longer.
 */
#ifndef DOPPEL_BASE_RATE_H
#define DOPPEL_BASE_RATE_H

#include "base/base.h"

struct rate {
	uint64_t per_second; /* 0: no cap */
	uint64_t burst_ns;   /* how much time's worth may be saved up */
	uint64_t paid;       /* what has passed is paid for at this time; later than now: in debt */
	uint64_t rest;       /* ... and so much of a ns later, in parts of per_second */
};

/* `burst` is what passes at once after a pause; 0 means as much as in a tenth of a second. Times are in ns. */
void rate_init(struct rate *rate, uint64_t per_second, uint64_t burst, uint64_t now);
/* How long until the next thing may pass; 0: now. */
uint64_t rate_wait(const struct rate *rate, uint64_t now);
void rate_take(struct rate *rate, uint64_t amount, uint64_t now);

#endif
