/* Ethernet, IPv4 and IPv6 as far as a guest's frames are looked at, and IPv4's fragments put together. */
#ifndef DOPPEL_HOST_NET_FRAME_H
#define DOPPEL_HOST_NET_FRAME_H

#include "host/net.h"

enum { ETH_TYPE = 12, ETH_HEADER = 14, ARP_FRAME = 42 };
enum { TYPE_IPV4 = 0x0800, TYPE_ARP = 0x0806, TYPE_IPV6 = 0x86dd };
enum {
	IPV4_LENGTH = 2,
	IPV4_FRAGMENT = 6,
	IPV4_PROTOCOL = 9,
	IPV4_CHECKSUM = 10,
	IPV4_HEADER = 20,
	IPV4_HEADER_MAX = 60
};
enum { IPV6_NEXT = 6, IPV6_HEADER = 40 };
enum { PROTOCOL_TCP = 6 };
enum { TCP_FLAGS = 13, TCP_SYN = 2, TCP_ACK = 16 };

unsigned net_get16(const uint8_t *p);
/* The guest has left the checksum to us (virtio 1.2, 5.1.6.2). False: it makes no sense. */
bool net_finish_checksum(uint8_t *frame, size_t len, const struct host_net_header *h);

/*
 * Datagrams of which fragments are there (RFC 791, 3.2). Their number is fixed: one more takes the place of the oldest.
 * A fragment that is malformed, contradicts what is there or overlaps it is dropped.
 */
struct net_fragments;
struct net_fragments *net_fragments_create(void); /* NULL: no memory; free() ends it */
bool net_is_fragment(const uint8_t *frame, size_t len);
/*
 * Takes a fragment at time `now` (ns). Returns the frame with the whole datagram, and its length in *len, when this was
 * the last that was missing; else NULL. It stays as it is until the next call.
 */
const uint8_t *net_fragments_add(struct net_fragments *all, const uint8_t *frame, size_t *len, uint64_t now);

#endif
