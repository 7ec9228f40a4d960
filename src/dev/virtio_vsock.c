/*
 * virtio socket device: virtio 1.2, 5.10. Connections are a table of fixed size, and what is still to be told of others
 * is too: when there is no room to tell more, no more packets are taken from the guest.
 *
 * A thread of its own waits for the sockets, and only takes note; the device's thread does the work.
 */
#include "dev/virtio_vsock.h"

#include "dev/virtio.h"
#include "dev/vsock_conn.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { QUEUE_RX, QUEUE_TX, QUEUE_EVENT, QUEUES };
enum { EVENT_TRANSPORT_RESET = 0 };

#define CONNECTIONS 256u
#define REFUSALS 64u
#define PACKET_MOST KiB(256)      /* bytes of a packet with its header; Linux's have 64 KiB */
#define FIRST_PORT 0x40000000u    /* of those that stand for the host's programs */
#define LISTENER (UINT64_MAX - 1) /* token; a connection's is its slot and generation */
#define RETRY_NS 100000000ull

/* A RST for a connection that there is not. */
struct refusal {
	uint64_t cid;
	uint32_t port, guest_port;
};

struct virtio_vsock {
	struct virtio_device dev;
	uint64_t guest_cid; /* the device configuration (5.10.4) */
	char path[HOST_STREAM_PATH + 1];
	int listener;
	struct host_watch *watch;
	struct host_thread thread;
	bool has_thread;
	atomic_bool quit;
	void (*destroy)(void *opaque); /* the device's own */

	struct vsock_conn conn[CONNECTIONS];
	unsigned turn; /* whose turn it is to send to the guest */
	uint32_t last_port;
	struct refusal refusal[REFUSALS];
	unsigned refusals;
	bool clients;     /* some wait to be accepted */
	bool event_reset; /* the guest is to be told that its connections are gone */
};

/* ---- The table ---- */

static struct vsock_conn *find(struct virtio_vsock *v, uint32_t host_port, uint32_t guest_port)
{
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		struct vsock_conn *c = &v->conn[i];
		if (c->state != VSOCK_FREE && c->state != VSOCK_GREETED && c->host_port == host_port &&
		    c->guest_port == guest_port)
			return c;
	}
	return NULL;
}

static struct vsock_conn *find_free(struct virtio_vsock *v)
{
	for (unsigned i = 0; i < CONNECTIONS; i++)
		if (v->conn[i].state == VSOCK_FREE)
			return &v->conn[i];
	return NULL;
}

static uint64_t token(const struct virtio_vsock *v, const struct vsock_conn *c)
{
	return (uint64_t)c->generation << 32 | (uint64_t)(c - v->conn);
}

/* Has the thread told when what the connection waits for is there. */
static void watch(struct virtio_vsock *v, struct vsock_conn *c)
{
	bool read = vsock_conn_waits_read(c), write = vsock_conn_waits_write(c);

	if (c->stream >= 0 && (read || write) && !host_watch_once(v->watch, c->stream, token(v, c), read, write))
		vsock_conn_kill(c);
}

static void drop_all(struct virtio_vsock *v)
{
	for (unsigned i = 0; i < CONNECTIONS; i++)
		if (v->conn[i].state != VSOCK_FREE)
			vsock_conn_free(&v->conn[i]);
	v->refusals = 0;
}

/* ---- From the host ---- */

static void note(struct virtio_vsock *v, const struct host_ready *r)
{
	unsigned slot = (uint32_t)r->token;

	if (r->token == LISTENER) {
		v->clients = true;
		return;
	}
	if (slot >= CONNECTIONS || v->conn[slot].generation != r->token >> 32)
		return; /* it has gone meanwhile */
	struct vsock_conn *c = &v->conn[slot];
	c->can_read |= r->read;
	c->can_write |= r->write;
	watch(v, c);
}

static void *watcher(void *arg)
{
	struct virtio_vsock *v = arg;
	struct host_ready ready[32];

	while (!v->quit) {
		unsigned n = host_watch_wait(v->watch, ready, ARRAY_LEN(ready));
		host_lock(&v->dev.lock);
		for (unsigned i = 0; i < n; i++)
			note(v, &ready[i]);
		if (n)
			virtio_wake(&v->dev);
		host_unlock(&v->dev.lock);
	}
	return NULL;
}

/* A port that no connection stands for now. */
static uint32_t new_port(struct virtio_vsock *v)
{
	for (;;) {
		v->last_port = v->last_port < FIRST_PORT || v->last_port >= 0x7fffffff ? FIRST_PORT : v->last_port + 1;
		bool taken = false;
		for (unsigned i = 0; i < CONNECTIONS && !taken; i++)
			taken = v->conn[i].state != VSOCK_FREE && v->conn[i].host_port == v->last_port;
		if (!taken)
			return v->last_port;
	}
}

static bool accept_client(struct virtio_vsock *v)
{
	struct vsock_conn *c = v->clients ? find_free(v) : NULL;

	if (!c)
		return false; /* a connection that ends makes room */
	int stream = host_stream_accept(v->listener);
	if (stream == HOST_STREAM_LATER) {
		v->clients = false;
		host_watch_once(v->watch, v->listener, LISTENER, true, false);
		return false;
	}
	v->dev.wake_at = UINT64_MAX;
	if (stream < 0) {
		v->dev.wake_at = host_now_ns() + RETRY_NS; /* no descriptors left, say */
		return false;
	}
	if (vsock_conn_init(c, VSOCK_GREETED, stream))
		c->host_port = new_port(v);
	return true;
}

/* What the sockets have or take. */
static bool serve_sockets(struct virtio_vsock *v)
{
	bool moved = accept_client(v);

	for (unsigned i = 0; i < CONNECTIONS; i++) {
		struct vsock_conn *c = &v->conn[i];
		bool waits = c->state == VSOCK_GREETED && c->can_read;
		if (waits || (c->used && c->can_write)) {
			moved |= vsock_conn_greet(c);
			moved |= vsock_conn_flush(c);
			watch(v, c);
		}
	}
	return moved;
}

/* ---- From the guest ---- */

static void refuse(struct virtio_vsock *v, const struct vsock_header *h)
{
	if (h->op != VSOCK_RST)
		v->refusal[v->refusals++] = (struct refusal){h->dst_cid, h->dst_port, h->src_port};
}

/* The guest wants to talk to a port of the host's: to whoever listens on the socket for it. */
static void connect_host(struct virtio_vsock *v, const struct vsock_header *h)
{
	char path[sizeof(v->path) + 12];
	struct vsock_conn *c = find_free(v);

	snprintf(path, sizeof(path), "%s_%u", v->path, h->dst_port);
	int stream = c ? host_stream_connect(path) : -1;
	if (stream < 0 || !vsock_conn_init(c, VSOCK_OPEN, stream)) {
		refuse(v, h);
		return;
	}
	c->host_port = h->dst_port;
	c->guest_port = h->src_port;
	c->guest_room = h->buf_alloc;
	c->guest_passed = h->fwd_cnt;
	c->send = VSOCK_SEND_RESPONSE;
}

static void take_packet(struct virtio_vsock *v, const struct vsock_header *h, const struct host_iovec *iov, unsigned n)
{
	if (h->src_cid != v->guest_cid)
		return;
	struct vsock_conn *c =
		h->dst_cid == VSOCK_HOST && h->type == VSOCK_STREAM ? find(v, h->dst_port, h->src_port) : NULL;
	if (c) {
		vsock_conn_packet(c, h, iov, n);
		vsock_conn_flush(c);
		watch(v, c);
	} else if (h->op == VSOCK_REQUEST && h->dst_cid == VSOCK_HOST && h->type == VSOCK_STREAM) {
		connect_host(v, h);
	} else {
		refuse(v, h);
	}
}

/* The pieces of a chain from byte `skip` on. */
static unsigned pieces(const struct virtq_segment *seg, unsigned count, uint64_t skip, struct host_iovec *iov)
{
	unsigned n = 0;

	for (unsigned i = 0; i < count; i++) {
		if (skip >= seg[i].len) {
			skip -= seg[i].len;
			continue;
		}
		iov[n++] = (struct host_iovec){seg[i].host + skip, seg[i].len - skip};
		skip = 0;
	}
	return n;
}

static bool serve_guest(struct virtio_vsock *v)
{
	struct virtio_device *dev = &v->dev;
	struct host_iovec iov[VIRTQ_SEGMENTS];
	struct virtq_chain chain;
	struct vsock_header h;

	if (v->refusals == REFUSALS || !virtio_pop(dev, QUEUE_TX, &chain))
		return false;
	if (virtq_chain_read(&chain, 0, &h, sizeof(h)) < sizeof(h) || h.len > chain.read_len - sizeof(h)) {
		virtio_fail(dev, "a packet without header, or shorter than that says");
		return false;
	}
	take_packet(v, &h, iov, pieces(chain.seg, chain.readable, sizeof(h), iov));
	virtio_push(dev, QUEUE_TX, &chain, 0);
	return true;
}

/* ---- To the guest ---- */

static void refusal_packet(struct virtio_vsock *v, struct vsock_header *h)
{
	const struct refusal *r = &v->refusal[--v->refusals];

	*h = (struct vsock_header){
		.src_cid = r->cid,
		.src_port = r->port,
		.dst_port = r->guest_port,
		.type = VSOCK_STREAM,
		.op = VSOCK_RST,
	};
}

/* The connection whose turn it is to send, or NULL. */
static struct vsock_conn *next_sender(struct virtio_vsock *v)
{
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		struct vsock_conn *c = &v->conn[(v->turn + i) % CONNECTIONS];
		if (c->state != VSOCK_FREE && vsock_conn_has_packet(c)) {
			v->turn = (unsigned)(c - v->conn) + 1;
			return c;
		}
	}
	return NULL;
}

/* Makes the next packet in a buffer of the guest's; false: there was none after all. */
static bool make_packet(struct virtio_vsock *v, struct vsock_conn *c, const struct virtq_chain *chain,
			struct vsock_header *h)
{
	struct host_iovec iov[VIRTQ_SEGMENTS];

	if (!c) {
		refusal_packet(v, h);
	} else {
		unsigned n = pieces(chain->seg + chain->readable, chain->writable, sizeof(*h), iov);
		if (!vsock_conn_next(c, h, iov, n)) {
			watch(v, c);
			return false;
		}
		h->src_cid = VSOCK_HOST;
		watch(v, c);
	}
	h->dst_cid = v->guest_cid;
	virtq_chain_write(v->dev.mem, chain, 0, h, sizeof(*h));
	return true;
}

/* Whatever was written of a buffer, it may have held code. */
static void wrote(struct virtio_vsock *v, const struct virtq_chain *chain, uint64_t len)
{
	for (unsigned i = chain->readable; i < chain->readable + chain->writable && len; i++) {
		uint64_t n = MIN(len, (uint64_t)chain->seg[i].len);
		guest_memory_wrote(v->dev.mem, chain->seg[i].gpa, n);
		len -= n;
	}
}

static bool send_to_guest(struct virtio_vsock *v)
{
	struct virtio_device *dev = &v->dev;
	struct vsock_conn *c = v->refusals ? NULL : next_sender(v);
	struct virtq_chain chain;
	struct vsock_header h;

	if ((!c && !v->refusals) || !virtio_pop(dev, QUEUE_RX, &chain))
		return false;
	if (chain.write_len <= sizeof(h)) {
		virtio_fail(dev, "a buffer for packets with no room");
		return false;
	}
	if (make_packet(v, c, &chain, &h)) {
		wrote(v, &chain, sizeof(h) + h.len);
		virtio_push(dev, QUEUE_RX, &chain, (uint32_t)sizeof(h) + h.len);
	} else {
		virtio_unpop(dev, QUEUE_RX);
	}
	return true;
}

static bool send_event(struct virtio_vsock *v)
{
	const uint32_t id = EVENT_TRANSPORT_RESET;
	struct virtq_chain chain;

	if (!v->event_reset || !virtio_pop(&v->dev, QUEUE_EVENT, &chain))
		return false;
	v->event_reset = false;
	uint32_t len = (uint32_t)virtq_chain_write(v->dev.mem, &chain, 0, &id, sizeof(id));
	virtio_push(&v->dev, QUEUE_EVENT, &chain, len);
	return true;
}

static bool vsock_work(struct virtio_device *dev)
{
	struct virtio_vsock *v = container_of(dev, struct virtio_vsock, dev);
	bool more = send_event(v);

	more |= serve_sockets(v);
	more |= send_to_guest(v);
	more |= serve_guest(v);
	return more;
}

/* ---- Life ---- */

static void vsock_reset(struct virtio_device *dev)
{
	struct virtio_vsock *v = container_of(dev, struct virtio_vsock, dev);

	drop_all(v);
	v->event_reset = false;
}

/* Connections end where the state is loaded, and the guest is told: the host's programs are not part of it. */
static void vsock_state(struct virtio_device *dev, struct state_stream *s)
{
	struct virtio_vsock *v = container_of(dev, struct virtio_vsock, dev);
	uint64_t cid = v->guest_cid;

	state_field(s, cid);
	if (cid != v->guest_cid)
		state_refuse(s, "another vsock address (cid), which the guest knows");
	if (s->saving)
		return;
	drop_all(v);
	v->event_reset = true;
}

static void vsock_free(struct virtio_device *dev)
{
	struct virtio_vsock *v = container_of(dev, struct virtio_vsock, dev);

	drop_all(v);
	host_stream_unlisten(v->listener);
	host_watch_destroy(v->watch);
	free(v);
}

static void stop_watcher(struct virtio_vsock *v)
{
	if (!v->has_thread)
		return;
	v->quit = true;
	host_watch_wake(v->watch);
	host_thread_join(&v->thread);
}

static void vsock_destroy(void *opaque)
{
	struct virtio_device *dev = opaque;
	struct virtio_vsock *v = container_of(dev, struct virtio_vsock, dev);

	stop_watcher(v); /* it uses the device's lock */
	v->destroy(opaque);
}

static const struct virtio_ops vsock_ops = {
	.work = vsock_work, .reset = vsock_reset, .state = vsock_state, .free = vsock_free};

static const struct virtio_spec vsock_spec = {
	.name = "virtio-vsock",
	.type = VIRTIO_TYPE_VSOCK,
	.pci_class = 0x078000,
	.queues = QUEUES,
	.threads = 1,
	.queue_size = 128,
	.max_bytes = PACKET_MOST,
	.config_len = sizeof(uint64_t),
	.ops = &vsock_ops,
};

static bool listen_on(struct virtio_vsock *v, const struct vsock_config *config, struct error *err)
{
	/* Its names for ports are longer: "_" and 10 digits. */
	if (!*config->path || strlen(config->path) > HOST_STREAM_PATH - 11)
		return error_set(err, "the path of the vsock socket '%s' is not 1 to %d bytes long: give another",
				 config->path, HOST_STREAM_PATH - 11);
	memcpy(v->path, config->path, strlen(config->path) + 1);
	v->watch = host_watch_create();
	if (v->watch)
		v->listener = host_stream_listen(v->path, (int)CONNECTIONS);
	return v->listener >= 0 || error_set(err,
					     "cannot listen on the vsock socket '%s': %s; see that its folder is there "
					     "and nothing else has its name",
					     v->path, host_error_text());
}

bool virtio_vsock_create(struct pci_bus *pci, struct guest_memory *mem, const struct vsock_config *config,
			 struct device *out, struct error *err)
{
	if (config->cid < VSOCK_CID_FIRST || config->cid == UINT32_MAX)
		return error_set(err, "vsock's cid %u cannot be a guest's: give 3 or more", config->cid);
	struct virtio_vsock *v = calloc(1, sizeof(*v));
	if (!v)
		return error_set(err, "out of memory");
	v->listener = -1;
	for (unsigned i = 0; i < CONNECTIONS; i++)
		v->conn[i].stream = -1;
	v->guest_cid = config->cid;
	v->dev.spec = &vsock_spec;
	v->dev.config = &v->guest_cid;
	if (!listen_on(v, config, err) || !virtio_device_create(&v->dev, pci, mem, out, err)) {
		vsock_free(&v->dev);
		return false;
	}
	v->destroy = out->destroy;
	out->destroy = vsock_destroy;
	v->has_thread = host_thread_start(&v->thread, "vsock", watcher, v);
	if (v->has_thread && host_watch_once(v->watch, v->listener, LISTENER, true, false))
		return true;
	error_set(err, "cannot start a thread for virtio-vsock; see the limit on processes (ulimit -u)");
	out->destroy(out->opaque);
	return false;
}
