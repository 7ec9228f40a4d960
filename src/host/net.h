/*
 * Where a guest's network device leads on the host. A back end has a thread of its own, with a loop: it asks the client
 * (the device) for frames of the guest's, waits, and hands over frames for the guest. Everything but `wake` and what
 *the comments say happens on that thread.
 *
 *	user     a network of its own behind libslirp: what the guest sends leaves through this process's sockets
 *	tap      a network interface of the host's
 */
#ifndef DOPPEL_HOST_NET_H
#define DOPPEL_HOST_NET_H

#include "host/host.h"

#define HOST_NET_FRAME_MAX 65550u /* 65536 bytes and an Ethernet header */
#define HOST_FORWARDS 32
#define HOST_NET_NEVER UINT64_MAX

/* What goes with a frame: struct virtio_net_hdr without num_buffers (virtio 1.2, 5.1.6), as tun(4) has it too. */
struct host_net_header {
	uint8_t flags, gso_type;
	uint16_t hdr_len, gso_size, csum_start, csum_offset;
};
enum { HOST_NET_NEEDS_CSUM = 1, HOST_NET_DATA_VALID = 2 };
enum { HOST_NET_GSO_NONE = 0, HOST_NET_GSO_TCPV4 = 1, HOST_NET_GSO_TCPV6 = 4, HOST_NET_GSO_ECN = 0x80 };

/* What a side takes from the other besides plain frames. */
struct host_net_offloads {
	bool csum;       /* frames whose checksum is not computed yet */
	bool tso4, tso6; /* TCP segments of up to 64 KiB */
	bool ecn;        /* ... with congestion bits */
};

/* What the client says at each turn of the loop. */
struct host_net_turn {
	bool still;    /* the machine is paused: wait for `wake`, do nothing else */
	bool receive;  /* frames for the guest are wanted */
	bool again;    /* there is more to send: do not wait */
	uint64_t when; /* come again then, by host_now_ns(), at the latest */
};

struct host_net_client {
	/* Sends what the guest has (the back end's `send`), not for too long at a time. */
	struct host_net_turn (*turn)(void *opaque);
	/* A frame for the guest. False: there is no room now; it is to be offered again after the next turn. */
	bool (*receive)(void *opaque, const struct host_net_header *header, const uint8_t *frame, size_t len);
};

struct host_net;

struct host_net_ops {
	/* Starts the thread. Not on it, of course; once. */
	bool (*start)(struct host_net *net, const struct host_net_client *client, void *opaque, struct error *err);
	/* Makes the loop turn. Any thread; holds no lock and takes none. */
	void (*wake)(struct host_net *net);
	/* A frame of the guest's, in pieces that the guest may change meanwhile; `len` bytes. Only from `turn`. */
	void (*send)(struct host_net *net, const struct host_net_header *header, const struct host_iovec *iov,
		     unsigned n, size_t len);
	/* What the guest takes from now on. Any thread. */
	void (*guest_takes)(struct host_net *net, const struct host_net_offloads *offloads);
	/* Ends the thread and frees everything. */
	void (*close)(struct host_net *net);
};

/* The beginning of each back end. */
struct host_net {
	const struct host_net_ops *ops;
	struct host_net_offloads takes; /* what it takes from the guest */
	struct host_net_offloads gives; /* what it can hand to the guest, if that takes it */
};

/* An address of IPv4 (the first 4 bytes) or IPv6, in network order, and a port. */
struct host_address {
	bool v6;
	uint8_t byte[16];
	uint16_t port;
};

struct host_forward {
	bool udp;
	struct host_address host, guest;
	char text[128]; /* as it was asked for */
};

/* "tcp:127.0.0.1:2222-:22"; what is left out is 127.0.0.1 on the host and 10.0.2.15 in the guest. */
bool host_forward_parse(struct host_forward *forward, const char *text, struct error *err);

struct host_net_user {
	unsigned mtu;
	bool restricted; /* the guest reaches nothing but what is forwarded to it */
	const struct host_forward *forward;
	unsigned forwards;
};

/* One of a user's will be opened soon: a thread loads meanwhile what that needs. */
void host_net_expect_user(void);
/* NULL: err names the user's mistake. */
struct host_net *host_net_open_user(const struct host_net_user *config, struct error *err);
struct host_net *host_net_open_tap(const char *interface, struct error *err);

#endif
