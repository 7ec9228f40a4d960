/*
 * Fragments of a guest's IP datagrams, good and bad, in any order: what comes of them is one frame that says how long
 * it is, has no trace of fragments and the right checksum, and each byte of it is where a fragment had it. Frames of
 * any bytes besides.
 */
#include "fuzz.h"

#include "host/net_frame.h"

static uint8_t frame[ETH_HEADER + 65536];

static void put16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static unsigned add16(const uint8_t *p, size_t len)
{
	unsigned sum = 0;

	for (size_t i = 0; i + 1 < len; i += 2)
		sum += net_get16(p + i);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* What the byte of a datagram is. */
static uint8_t byte_at(unsigned id, size_t at)
{
	return (uint8_t)(id * 31 + at * 7 + at / 251);
}

static size_t make_fragment(struct input *in)
{
	unsigned what = (unsigned)take(in, 1), id = what & 15, header = IPV4_HEADER + (what >> 4 & 3) * 4;
	unsigned field = (unsigned)take(in, 2), size = (unsigned)take(in, 1) * 8;
	uint8_t *ip = frame + ETH_HEADER;

	if (what & 0x40) { /* mostly small datagrams: they come to something */
		field = (field & 0x2000) | (field & 7) * 4;
		size = 32;
	}
	if (what & 0x80)
		size = (unsigned)take(in, 2);
	size = MIN(size, 65535u - header);
	memset(frame, 0, ETH_HEADER + header);
	put16(frame + ETH_TYPE, TYPE_IPV4);
	ip[0] = (uint8_t)(0x40 | header / 4);
	put16(ip + IPV4_LENGTH, header + size);
	put16(ip + 4, id);
	put16(ip + IPV4_FRAGMENT, field);
	ip[IPV4_PROTOCOL] = (uint8_t)(id & 1);
	put16(ip + IPV4_CHECKSUM, ~add16(ip, header) & 0xffff);
	for (size_t i = 0; i < size; i++)
		ip[header + i] = byte_at(id, (size_t)(field & 0x1fff) * 8 + i);
	return ETH_HEADER + header + size;
}

static void check(const uint8_t *whole, size_t len)
{
	const uint8_t *ip = whole + ETH_HEADER;
	size_t header = (size_t)(ip[0] & 15) * 4;

	EXPECT(len > ETH_HEADER + IPV4_HEADER && header >= IPV4_HEADER &&
	       net_get16(ip + IPV4_LENGTH) == len - ETH_HEADER);
	EXPECT(!net_is_fragment(whole, len) && add16(ip, header) == 0xffff);
	for (size_t i = 0; header + i < len - ETH_HEADER; i++)
		EXPECT(ip[header + i] == byte_at(net_get16(ip + 4), i));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct net_fragments *all = net_fragments_create();
	uint64_t now = 1;

	EXPECT(all);
	while (in.left) {
		unsigned op = (unsigned)take(&in, 1);
		now += (uint64_t)(op >> 4) << 30;
		size_t len = make_fragment(&in);
		if (!(op & 15))
			frame[take(&in, 1) % ETH_HEADER + (op >> 4)] ^= (uint8_t)take(&in, 1);
		if ((op & 15) == 1)
			len -= MIN(len, take(&in, 1));
		if (!net_is_fragment(frame, len))
			continue;
		const uint8_t *whole = net_fragments_add(all, frame, &len, now);
		if (whole)
			check(whole, len);
	}
	free(all);
	return 0;
}
