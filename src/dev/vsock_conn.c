/* Connections of the socket device: virtio 1.2, 5.10.6. */
#include "dev/vsock_conn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool vsock_conn_init(struct vsock_conn *c, enum vsock_state state, int stream)
{
	*c = (struct vsock_conn){
		.state = state,
		.generation = c->generation,
		.stream = stream,
		.can_read = true,
		.can_write = true,
		.ring = malloc(VSOCK_RING),
	};
	if (c->ring)
		return true;
	vsock_conn_free(c);
	return false;
}

void vsock_conn_free(struct vsock_conn *c)
{
	host_stream_close(c->stream);
	free(c->ring);
	*c = (struct vsock_conn){.generation = c->generation + 1, .stream = -1};
}

void vsock_conn_kill(struct vsock_conn *c)
{
	host_stream_close(c->stream);
	c->stream = -1;
	c->used = 0;
	c->state = VSOCK_DEAD;
	c->send = VSOCK_SEND_RST;
}

/* ---- To the socket ---- */

/* The parts of the ring from `at` on; 1 or 2 of them. */
static unsigned ring_parts(struct vsock_conn *c, uint32_t at, uint32_t len, struct host_iovec *part)
{
	uint32_t before_end = MIN(len, (uint32_t)VSOCK_RING - at);

	part[0] = (struct host_iovec){c->ring + at, before_end};
	part[1] = (struct host_iovec){c->ring, len - before_end};
	return 1 + (len > before_end);
}

static void ring_put(struct vsock_conn *c, const void *data, uint32_t len)
{
	struct host_iovec part[2];

	ring_parts(c, (uint32_t)((c->first + c->used) % VSOCK_RING), len, part);
	memcpy(part[0].base, data, part[0].len);
	memcpy(part[1].base, (const char *)data + part[0].len, part[1].len);
	c->used += len;
}

/* The guest is to know of the room that there is before it thinks that there is little. */
static void tell_credit(struct vsock_conn *c)
{
	if (c->passed != c->told && c->received - c->told > VSOCK_RING / 2)
		c->send |= VSOCK_SEND_CREDIT;
}

/* The guest has sent all, and the socket has it. */
static void drained(struct vsock_conn *c)
{
	if (c->state != VSOCK_DRAINS) {
		host_stream_shutdown(c->stream, true);
	} else if (c->reset_after) {
		vsock_conn_kill(c);
	} else {
		vsock_conn_free(c);
	}
}

bool vsock_conn_flush(struct vsock_conn *c)
{
	struct host_iovec part[2];

	if (!c->used || !c->can_write || c->stream < 0)
		return false;
	int64_t n = host_stream_write(c->stream, part, ring_parts(c, c->first, c->used, part));
	if (n == HOST_STREAM_LATER) {
		c->can_write = false;
		return false;
	}
	if (n < 0) {
		vsock_conn_kill(c);
		return true;
	}
	c->first = (uint32_t)((c->first + n) % VSOCK_RING);
	c->used -= (uint32_t)n;
	c->passed += (uint32_t)n;
	tell_credit(c);
	if (!c->used && c->guest_done)
		drained(c);
	return true;
}

/* ---- What a host's program says first ---- */

static bool parse_hello(struct vsock_conn *c)
{
	unsigned port;
	int end = 0;

	c->hello[c->hello_len - 1] = 0;
	if (sscanf(c->hello, "CONNECT %u%n", &port, &end) != 1 || c->hello[end] || end > 18)
		return false;
	c->guest_port = port;
	c->state = VSOCK_ASKED;
	c->send |= VSOCK_SEND_REQUEST;
	return true;
}

bool vsock_conn_greet(struct vsock_conn *c)
{
	if (c->state != VSOCK_GREETED || !c->can_read)
		return false;
	/* Byte by byte: what comes after the line is the guest's. */
	while (c->hello_len < VSOCK_HELLO) {
		struct host_iovec iov = {c->hello + c->hello_len, 1};
		int64_t n = host_stream_read(c->stream, &iov, 1);
		if (n == HOST_STREAM_LATER) {
			c->can_read = false;
			return false;
		}
		if (n <= 0)
			break;
		if (c->hello[c->hello_len++] == '\n') {
			if (parse_hello(c))
				return true;
			break;
		}
	}
	vsock_conn_free(c);
	return true;
}

/* ---- From the guest ---- */

static void take_data(struct vsock_conn *c, const struct vsock_header *h, const struct host_iovec *iov, unsigned n)
{
	/* More than it was told that there is room for, or after it said that there would be no more. */
	if (c->state != VSOCK_OPEN || c->guest_done || h->len > VSOCK_RING - c->used) {
		vsock_conn_kill(c);
		return;
	}
	uint32_t left = h->len;
	for (unsigned i = 0; i < n && left; i++) {
		uint32_t part = MIN(left, (uint32_t)iov[i].len);
		ring_put(c, iov[i].base, part);
		left -= part;
	}
	c->received += h->len;
}

static void answered(struct vsock_conn *c)
{
	char line[24];

	if (c->state != VSOCK_ASKED || c->send & VSOCK_SEND_REQUEST) {
		vsock_conn_kill(c);
		return;
	}
	c->state = VSOCK_OPEN;
	int len = snprintf(line, sizeof(line), "OK %u\n", c->host_port);
	ring_put(c, line, (uint32_t)len);
	/* Not the guest's bytes: they are no part of its count. */
	c->passed -= (uint32_t)len;
	c->told = c->passed;
}

static void shut_down(struct vsock_conn *c, uint32_t flags)
{
	if (c->state != VSOCK_OPEN) {
		vsock_conn_kill(c);
		return;
	}
	if (flags & VSOCK_NO_RECEIVE && !c->guest_deaf) {
		c->guest_deaf = true;
		host_stream_shutdown(c->stream, false);
	}
	c->guest_done |= flags & VSOCK_NO_SEND;
	if (c->guest_done && c->guest_deaf) {
		c->state = VSOCK_DRAINS;
		c->reset_after = true;
		c->send = 0;
	}
	if (c->guest_done && !c->used)
		drained(c);
}

static void was_reset(struct vsock_conn *c)
{
	if (c->state != VSOCK_OPEN && c->state != VSOCK_DRAINS) {
		vsock_conn_free(c);
		return;
	}
	c->state = VSOCK_DRAINS;
	c->guest_done = true;
	c->reset_after = false;
	c->send = 0;
	if (!c->used)
		drained(c);
}

void vsock_conn_packet(struct vsock_conn *c, const struct vsock_header *h, const struct host_iovec *iov, unsigned n)
{
	c->guest_room = h->buf_alloc;
	c->guest_passed = h->fwd_cnt;
	if (h->op == VSOCK_RST)
		was_reset(c);
	else if (c->state == VSOCK_DEAD)
		return; /* it will be told */
	else if (h->op == VSOCK_RESPONSE)
		answered(c);
	else if (h->op == VSOCK_SHUTDOWN)
		shut_down(c, h->flags);
	else if (h->op == VSOCK_RW)
		take_data(c, h, iov, n);
	else if (h->op == VSOCK_CREDIT_REQUEST && c->state == VSOCK_OPEN)
		c->send |= VSOCK_SEND_CREDIT;
	else if (h->op != VSOCK_CREDIT_UPDATE)
		vsock_conn_kill(c);
}

/* ---- To the guest ---- */

/* Bytes that the guest has room for: none when it says what cannot be. */
static uint32_t credit(const struct vsock_conn *c)
{
	uint32_t under_way = c->sent - c->guest_passed;

	return under_way < c->guest_room ? c->guest_room - under_way : 0;
}

static bool may_read(const struct vsock_conn *c)
{
	return c->state == VSOCK_OPEN && c->can_read && !c->host_done && !c->guest_deaf && credit(c);
}

bool vsock_conn_has_packet(const struct vsock_conn *c)
{
	return c->send || may_read(c);
}

/* Reads from the socket as much as the guest has room for. False: there is nothing, or only the end of it. */
static bool read_data(struct vsock_conn *c, struct vsock_header *h, const struct host_iovec *iov, unsigned n)
{
	struct host_iovec part[64];
	uint32_t room = credit(c);
	unsigned parts = 0;

	for (unsigned i = 0; i < n && room && parts < ARRAY_LEN(part); i++) {
		part[parts] = (struct host_iovec){iov[i].base, MIN(iov[i].len, room)};
		room -= (uint32_t)part[parts++].len;
	}
	if (!parts)
		return false;
	int64_t got = host_stream_read(c->stream, part, parts);
	if (got == HOST_STREAM_LATER) {
		c->can_read = false;
		return false;
	}
	if (got <= 0) {
		c->host_done = true;
		c->send |= VSOCK_SEND_SHUTDOWN;
		return false;
	}
	h->op = VSOCK_RW;
	h->len = (uint32_t)got;
	c->sent += h->len;
	return true;
}

/* A packet without data that is to be sent, if there is one of the kind. */
static bool take(struct vsock_conn *c, unsigned kind, struct vsock_header *h, enum vsock_op op)
{
	if (!(c->send & kind))
		return false;
	c->send &= ~kind;
	h->op = op;
	return true;
}

static bool choose(struct vsock_conn *c, struct vsock_header *h, const struct host_iovec *iov, unsigned n)
{
	if (take(c, VSOCK_SEND_RST, h, VSOCK_RST) || take(c, VSOCK_SEND_REQUEST, h, VSOCK_REQUEST) ||
	    take(c, VSOCK_SEND_RESPONSE, h, VSOCK_RESPONSE))
		return true;
	if (may_read(c) && read_data(c, h, iov, n))
		return true;
	if (take(c, VSOCK_SEND_SHUTDOWN, h, VSOCK_SHUTDOWN)) {
		h->flags = VSOCK_NO_SEND;
		return true;
	}
	return take(c, VSOCK_SEND_CREDIT, h, VSOCK_CREDIT_UPDATE);
}

bool vsock_conn_next(struct vsock_conn *c, struct vsock_header *h, const struct host_iovec *iov, unsigned n)
{
	*h = (struct vsock_header){.src_port = c->host_port, .dst_port = c->guest_port, .type = VSOCK_STREAM};
	if (!choose(c, h, iov, n))
		return false;
	h->buf_alloc = VSOCK_RING;
	h->fwd_cnt = c->told = c->passed;
	if (h->op == VSOCK_CREDIT_UPDATE || h->op == VSOCK_RW)
		c->send &= ~(unsigned)VSOCK_SEND_CREDIT;
	if (h->op == VSOCK_RST)
		vsock_conn_free(c);
	return true;
}
