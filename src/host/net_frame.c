/* See net_frame.h. */
#include "host/net_frame.h"

#include <stdlib.h>
#include <string.h>

unsigned net_get16(const uint8_t *p)
{
	return (unsigned)p[0] << 8 | p[1];
}

static void put16(uint8_t *p, size_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

/* The Internet checksum (RFC 1071) of `len` bytes, not inverted, in the host's byte order. */
static uint16_t checksum(const uint8_t *p, size_t len)
{
	uint64_t sum[4] = {0}, all;
	uint32_t word[4];

	for (; len >= sizeof(word); p += sizeof(word), len -= sizeof(word)) {
		memcpy(word, p, sizeof(word));
		for (unsigned i = 0; i < 4; i++)
			sum[i] += word[i];
	}
	all = sum[0] + sum[1] + sum[2] + sum[3];
	for (; len >= 2; p += 2, len -= 2) {
		uint16_t half;
		memcpy(&half, p, sizeof(half));
		all += half;
	}
	if (len)
		all += *p;
	while (all >> 16)
		all = (all & 0xffff) + (all >> 16);
	return (uint16_t)all;
}

bool net_finish_checksum(uint8_t *frame, size_t len, const struct host_net_header *h)
{
	size_t at = (size_t)h->csum_start + h->csum_offset;
	uint16_t sum;

	if (h->csum_start >= len || at + sizeof(sum) > len)
		return false;
	sum = (uint16_t)~checksum(frame + h->csum_start, len - h->csum_start);
	if (!sum)
		sum = 0xffff; /* 0 says "none" in UDP, and the two are equal in TCP */
	memcpy(frame + at, &sum, sizeof(sum));
	return true;
}

/* ---- Fragments ---- */

#define DATAGRAMS 8
#define LIFETIME_NS 30000000000ull /* as Linux's */
#define BLOCK 8u                   /* bytes: offsets are in these */
#define HEADERS (ETH_HEADER + IPV4_HEADER_MAX)
enum { OFFSET_MASK = 0x1fff, MORE = 0x2000 };

struct datagram {
	uint64_t since; /* 0: free */
	uint8_t source_and_target[8], protocol;
	uint16_t id;
	size_t header; /* bytes of the first fragment's IP header; 0: it is not here yet */
	size_t got, reach;
	size_t size; /* of the payload; 0: the last fragment is not here yet */
	uint8_t here[(UINT16_MAX + 1) / BLOCK];
	uint8_t frame[HEADERS + UINT16_MAX + 1]; /* the headers, as long as they are, end where the payload begins */
};

struct net_fragments {
	struct datagram datagram[DATAGRAMS];
};

struct fragment {
	const uint8_t *ip;
	size_t header, offset, size;
	bool more;
};

struct net_fragments *net_fragments_create(void)
{
	return calloc(1, sizeof(struct net_fragments));
}

bool net_is_fragment(const uint8_t *frame, size_t len)
{
	return len >= ETH_HEADER + IPV4_HEADER && net_get16(frame + ETH_TYPE) == TYPE_IPV4 &&
	       (net_get16(frame + ETH_HEADER + IPV4_FRAGMENT) & (OFFSET_MASK | MORE));
}

static bool parse(const uint8_t *frame, size_t len, struct fragment *f)
{
	const uint8_t *ip = frame + ETH_HEADER;
	size_t header = (size_t)(ip[0] & 15) * 4, total = net_get16(ip + IPV4_LENGTH);
	unsigned field = net_get16(ip + IPV4_FRAGMENT);

	if (ip[0] >> 4 != 4 || header < IPV4_HEADER || total <= header || total > len - ETH_HEADER ||
	    checksum(ip, header) != UINT16_MAX)
		return false;
	*f = (struct fragment){ip, header, (size_t)(field & OFFSET_MASK) * BLOCK, total - header, field & MORE};
	return f->header + f->offset + f->size <= UINT16_MAX && (!f->more || f->size % BLOCK == 0);
}

static bool belongs(const struct datagram *d, const struct fragment *f)
{
	return d->since && d->id == net_get16(f->ip + 4) && d->protocol == f->ip[IPV4_PROTOCOL] &&
	       !memcmp(d->source_and_target, f->ip + 12, sizeof(d->source_and_target));
}

static struct datagram *find(struct net_fragments *all, const struct fragment *f, uint64_t now)
{
	struct datagram *oldest = all->datagram;

	for (unsigned i = 0; i < DATAGRAMS; i++) {
		struct datagram *d = &all->datagram[i];
		if (d->since && now - d->since > LIFETIME_NS)
			d->since = 0;
		if (belongs(d, f))
			return d;
		if (d->since < oldest->since)
			oldest = d;
	}
	oldest->since = now | 1;
	oldest->id = (uint16_t)net_get16(f->ip + 4);
	oldest->protocol = f->ip[IPV4_PROTOCOL];
	memcpy(oldest->source_and_target, f->ip + 12, sizeof(oldest->source_and_target));
	oldest->header = oldest->got = oldest->reach = oldest->size = 0;
	memset(oldest->here, 0, sizeof(oldest->here));
	return oldest;
}

static bool fits(const struct datagram *d, const struct fragment *f)
{
	size_t end = f->offset + f->size;

	if (d->size && (f->more ? end > d->size : end != d->size))
		return false;
	if (!f->more && end < d->reach)
		return false;
	return !memchr(d->here + f->offset / BLOCK, true, (f->size + BLOCK - 1) / BLOCK);
}

static void put(struct datagram *d, const struct fragment *f)
{
	size_t end = f->offset + f->size;

	memcpy(d->frame + HEADERS + f->offset, f->ip + f->header, f->size);
	memset(d->here + f->offset / BLOCK, true, (f->size + BLOCK - 1) / BLOCK);
	d->got += f->size;
	d->reach = MAX(d->reach, end);
	if (!f->more)
		d->size = end;
	if (!f->offset) {
		d->header = f->header;
		memcpy(d->frame + HEADERS - f->header - ETH_HEADER, f->ip - ETH_HEADER, ETH_HEADER + f->header);
	}
}

static const uint8_t *whole(struct datagram *d, size_t *len)
{
	uint8_t *ip = d->frame + HEADERS - d->header;
	uint16_t sum = 0;

	d->since = 0;
	if (d->header + d->size > UINT16_MAX)
		return NULL;
	put16(ip + IPV4_LENGTH, d->header + d->size);
	put16(ip + IPV4_FRAGMENT, 0);
	memcpy(ip + IPV4_CHECKSUM, &sum, sizeof(sum));
	sum = (uint16_t)~checksum(ip, d->header);
	memcpy(ip + IPV4_CHECKSUM, &sum, sizeof(sum));
	*len = ETH_HEADER + d->header + d->size;
	return ip - ETH_HEADER;
}

const uint8_t *net_fragments_add(struct net_fragments *all, const uint8_t *frame, size_t *len, uint64_t now)
{
	struct fragment f;

	if (!parse(frame, *len, &f))
		return NULL;
	struct datagram *d = find(all, &f, now);
	if (!fits(d, &f))
		return NULL;
	put(d, &f);
	return d->header && d->got == d->size ? whole(d, len) : NULL;
}
