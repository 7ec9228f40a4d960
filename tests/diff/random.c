/* Random numbers and random processor states: values at the edges come up often. */
#include "diff.h"

#include <string.h>

/* splitmix64 */
uint64_t rng_next(struct rng *r)
{
	uint64_t z = r->s += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static const uint64_t edges[] = {
	0,
	1,
	2,
	~0ull,
	0x7f,
	0x80,
	0xff,
	0x7fff,
	0x8000,
	0xffff,
	0x7fffffff,
	0x80000000,
	0xffffffff,
	0x7fffffffffffffffull,
	0x8000000000000000ull,
	0x0000000100000000ull,
	0xffffffff80000000ull,
	0x3ff0000000000000ull, /* 1.0 */
	0x7ff0000000000000ull, /* infinity */
	0x7ff8000000000000ull, /* quiet NaN */
	0x7ff0000000000001ull, /* signalling NaN */
	0x0000000000000001ull, /* least denormal */
	0x000fffffffffffffull,
	0x0010000000000000ull,
	0x43e0000000000000ull, /* 2^63 */
	0x41dfffffffc00000ull, /* 2^31 - 1 */
	0x3f8000007f800000ull, /* 1.0f, infinity */
	0x7fc000007f800001ull, /* NaNs */
	0x0000000180000000ull, /* denormal, -0 */
	0x4f0000005f000000ull, /* 2^31, 2^63 */
	0x0102030405060708ull,
	0x3c007c007e000001ull, /* half precision */
};

uint64_t random_value(struct rng *r)
{
	uint64_t v = rng_next(r);

	switch (rng_below(r, 6)) {
	case 0:
		return edges[rng_below(r, ARRAY_LEN(edges))];
	case 1:
		return v & 0xff;
	case 2:
		return (uint64_t)((int64_t)v >> (1 + rng_below(r, 63)));
	case 3:
		return v >> rng_below(r, 64);
	default:
		return v;
	}
}

/* An address in the window: often at a page's end, sometimes in a page that is not there. */
uint64_t random_window(struct rng *r, unsigned align)
{
	static const uint8_t good[] = {0, 1, 4, 5, 7};
	uint64_t page = rng_chance(r, 80) ? good[rng_below(r, sizeof(good))] : rng_below(r, WINDOW_PAGES);
	uint64_t off;

	switch (rng_below(r, 4)) {
	case 0:
		off = PAGE_SIZE - 1 - rng_below(r, 64);
		break;
	case 1:
		off = rng_below(r, PAGE_SIZE);
		break;
	default:
		off = rng_below(r, PAGE_SIZE / 64) * 64;
		break;
	}
	return WINDOW + page * PAGE_SIZE + (rng_chance(r, 70) ? align_down(off, align) : off);
}

static void put(uint8_t *p, uint64_t v, unsigned n)
{
	memcpy(p, &v, n);
}

static void random_st(struct rng *r, uint8_t *st)
{
	static const uint16_t exponent[] = {0,      1,      0x3fff, 0x7fff, 0x7ffe, 0x403e,
					    0x401e, 0xbfff, 0x8000, 0xffff, 0x4000};
	uint64_t mantissa = random_value(r);
	uint16_t e = rng_chance(r, 50)   ? exponent[rng_below(r, ARRAY_LEN(exponent))]
		     : rng_chance(r, 70) ? (uint16_t)(0x3fff - 40 + rng_below(r, 80) + (rng_chance(r, 50) ? 0x8000 : 0))
					 : (uint16_t)rng_next(r);

	if (rng_chance(r, 85))
		mantissa |= BIT(63);
	put(st, mantissa, 8);
	put(st + 8, e, 2);
}

/* Mostly as programs have it: all exceptions masked, nothing pending. */
static void random_x87(struct rng *r, uint8_t *xs)
{
	uint16_t fcw = 0x37f, fsw;

	if (rng_chance(r, 30))
		fcw = (uint16_t)(0x7f | rng_below(r, 16) << 8);
	if (rng_chance(r, 10))
		fcw &= (uint16_t)(~0x3f | rng_next(r));
	fsw = (uint16_t)(rng_next(r) & 0x4700) | (uint16_t)(rng_chance(r, 50) ? 0 : rng_below(r, 8) << 11);
	if (rng_chance(r, 20))
		fsw |= rng_next(r) & 0x7f & (rng_chance(r, 80) ? fcw | 0x40 : 0x7f);
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080;
	put(xs + 0, fcw, 2);
	put(xs + 2, fsw, 2);
	put(xs + 4, rng_chance(r, 60) ? 0xff : rng_next(r) & 0xff, 1);
	for (unsigned i = 0; i < 8; i++)
		random_st(r, xs + 32 + i * 16);
}

static void random_vectors(struct rng *r, uint8_t *xs)
{
	uint32_t mxcsr = 0x1f80;

	if (rng_chance(r, 30))
		mxcsr = 0x1f80 | (rng_next(r) & 0xe07f);
	if (rng_chance(r, 8))
		mxcsr = rng_next(r) & 0xffff;
	put(xs + 24, mxcsr, 4);
	for (unsigned i = 0; i < 16; i++) {
		for (unsigned k = 0; k < 16; k += 8) {
			put(xs + 160 + i * 16 + k, random_value(r), 8);
			put(xs + 576 + i * 16 + k, random_value(r), 8);
		}
	}
}

void random_state(struct rng *r, struct diff_case *c)
{
	memset(&c->in, 0, sizeof(c->in));
	for (unsigned i = 0; i < X86_GPRS; i++)
		c->in.gpr[i] = rng_chance(r, 25) ? random_window(r, 8) : random_value(r);
	c->in.gpr[RSP] = WINDOW + (rng_chance(r, 95) ? 4 : rng_below(r, WINDOW_PAGES)) * PAGE_SIZE +
			 (rng_chance(r, 90) ? rng_below(r, 512) * 8 : rng_below(r, PAGE_SIZE));
	c->in.rflags = rng_next(r) & FL_ARITH;
	if (rng_chance(r, 10))
		c->in.rflags |= FL_DF;
	if (rng_chance(r, 3))
		c->in.rflags |= FL_AC;
	random_x87(r, c->in.xsave);
	random_vectors(r, c->in.xsave);
	c->in.xsave[512] = 7;
	c->in.fs = WINDOW + rng_below(r, 64) * 8;
	c->in.gs = WINDOW + PAGE_SIZE + rng_below(r, 64) * 8;
	if (c->mode != MODE_64) {
		for (unsigned i = 0; i < X86_GPRS; i++)
			c->in.gpr[i] = i < 8 ? (uint32_t)c->in.gpr[i] : 0;
		c->in.fs = c->in.gs = 0;
	}
	for (unsigned i = 0; i < WINDOW_SIZE; i += 8)
		put(c->memory + i, i % 64 ? c->in.rflags * i ^ rng_next(r) : random_value(r), 8);
}
