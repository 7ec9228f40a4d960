/*
 * One connection of the socket device: between a port of the guest's and a Unix socket. The device's lock is held, and
 * nothing here waits.
 *
 * Flow control is by credit (virtio 1.2, 5.10.6.3): each side says how much room it has and how much it has passed on.
 * What the guest sends lies in a ring of VSOCK_RING bytes until the socket takes it; a guest that sends more than there
 * is room for is cut off. What the socket has is read only when the guest has room.
 */
#ifndef DOPPEL_DEV_VSOCK_CONN_H
#define DOPPEL_DEV_VSOCK_CONN_H

#include "host/stream.h"

#define VSOCK_RING KiB(128)
#define VSOCK_HELLO 32 /* bytes of a line that a host's program may say first */
#define VSOCK_HOST 2u

enum vsock_op {
	VSOCK_REQUEST = 1,
	VSOCK_RESPONSE = 2,
	VSOCK_RST = 3,
	VSOCK_SHUTDOWN = 4,
	VSOCK_RW = 5,
	VSOCK_CREDIT_UPDATE = 6,
	VSOCK_CREDIT_REQUEST = 7,
};
enum { VSOCK_STREAM = 1 };
enum { VSOCK_NO_RECEIVE = 1, VSOCK_NO_SEND = 2 }; /* flags of SHUTDOWN: what its sender will do no more */

/* What a packet begins with (5.10.6). */
struct vsock_header {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));

enum vsock_state {
	VSOCK_FREE,
	VSOCK_GREETED, /* a host's program is to say which port it wants */
	VSOCK_ASKED,   /* the guest has been asked, or is to be */
	VSOCK_OPEN,
	VSOCK_DRAINS, /* the guest is done; what it has sent still goes to the socket */
	VSOCK_DEAD,   /* the guest is to be told so */
};

/* Packets that are to go to the guest. */
enum {
	VSOCK_SEND_REQUEST = 1 << 0,
	VSOCK_SEND_RESPONSE = 1 << 1,
	VSOCK_SEND_SHUTDOWN = 1 << 2,
	VSOCK_SEND_CREDIT = 1 << 3,
	VSOCK_SEND_RST = 1 << 4,
};

struct vsock_conn {
	enum vsock_state state;
	uint32_t generation;
	int stream;
	uint32_t host_port, guest_port;
	unsigned send;
	bool can_read, can_write; /* as far as is known */
	bool host_done;           /* the socket has ended: no more comes from it */
	bool guest_done;          /* the guest sends no more */
	bool guest_deaf;          /* the guest receives no more */
	bool reset_after;         /* of VSOCK_DRAINS: tell the guest at the end */

	uint32_t guest_room, guest_passed, sent; /* what the guest says, and bytes sent to it */
	uint32_t received, passed, told;         /* from the guest; to the socket; as the guest knows */

	uint8_t *ring;
	uint32_t first, used;
	char hello[VSOCK_HELLO];
	unsigned hello_len;
};

/* A free one is taken for a stream, which it owns from now on. False: no memory (the stream is closed). */
bool vsock_conn_init(struct vsock_conn *c, enum vsock_state state, int stream);
/* Closes and frees it at once. */
void vsock_conn_free(struct vsock_conn *c);
/* Cuts it off, and has the guest told. */
void vsock_conn_kill(struct vsock_conn *c);

/* A packet of the guest's, with h->len bytes of data in `iov` (RW only). */
void vsock_conn_packet(struct vsock_conn *c, const struct vsock_header *h, const struct host_iovec *iov, unsigned n);
/* Moves what it can from the ring to the socket; false: nothing. */
bool vsock_conn_flush(struct vsock_conn *c);
/* Reads what a host's program says first. False: nothing new. */
bool vsock_conn_greet(struct vsock_conn *c);
/* Whether there is something for the guest. */
bool vsock_conn_has_packet(const struct vsock_conn *c);
/*
 * The next packet for the guest; data goes to `iov`, the room for it. False: there is none after all. The addresses are
 * the caller's to fill in.
 */
bool vsock_conn_next(struct vsock_conn *c, struct vsock_header *h, const struct host_iovec *iov, unsigned n);
/* What is to be waited for. */
static inline bool vsock_conn_waits_read(const struct vsock_conn *c)
{
	return !c->can_read && !c->host_done && (c->state == VSOCK_GREETED || c->state == VSOCK_OPEN);
}
static inline bool vsock_conn_waits_write(const struct vsock_conn *c)
{
	return !c->can_write && c->used;
}

#endif
