/*
 * virtio network device: virtio 1.2, 5.1, with one pair of queues.
 *
 * The back end's thread serves the queues: it asks for the guest's frames by net_turn and brings the guest's own by
 * net_receive. Frames are copied once on this side, between guest memory and the back end. There is no filter: what the
 * back end has is for this guest.
 */
#include "dev/virtio_net.h"

#include "base/rate.h"
#include "dev/virtio.h"
#include "host/host.h"

#include <stdlib.h>
#include <string.h>

#define F_CSUM BIT(0)
#define F_GUEST_CSUM BIT(1)
#define F_CTRL_GUEST_OFFLOADS BIT(2)
#define F_MTU BIT(3)
#define F_MAC BIT(5)
#define F_GUEST_TSO4 BIT(7)
#define F_GUEST_TSO6 BIT(8)
#define F_GUEST_ECN BIT(9)
#define F_HOST_TSO4 BIT(11)
#define F_HOST_TSO6 BIT(12)
#define F_HOST_ECN BIT(13)
#define F_MRG_RXBUF BIT(15)
#define F_STATUS BIT(16)
#define F_CTRL_VQ BIT(17)
#define GUEST_OFFLOADS (F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN)

enum { QUEUE_RECEIVE, QUEUE_TRANSMIT, QUEUE_CONTROL, QUEUES };
enum { STATUS_LINK_UP = 1 };
enum { CONTROL_GUEST_OFFLOADS = 5, CONTROL_OFFLOADS_SET = 0, CONTROL_OK = 0, CONTROL_ERR = 1 };

#define QUEUE_SIZE 256
#define BURST 64           /* frames sent at a turn */
#define TELL_NS 1000000    /* how late the driver hears that frames were sent, */
#define TELL_FRAMES 32     /* unless they are that many */
#define CHAIN_MAX KiB(128) /* a driver's buffers may be larger than the largest frame */
#define FRAME_MIN 14       /* an Ethernet header */
#define FRAME_MAX 1518     /* and 1500 bytes, and a VLAN tag */

/* Device configuration (5.1.4). */
struct net_config {
	uint8_t mac[6];
	uint16_t status, max_virtqueue_pairs, mtu;
};

/* Before each frame in the queues (5.1.6). */
struct net_header {
	struct host_net_header h;
	uint16_t num_buffers;
};

struct virtio_net {
	struct virtio_device dev;
	struct net_config config;
	struct host_net *net;
	uint64_t offloads; /* of GUEST_OFFLOADS, those that are on */
	struct rate sent, received;
	unsigned untold;  /* frames sent that the driver has not been told of */
	uint64_t tell_at; /* when the driver is to hear of what was sent; 0: there is nothing to tell */

	/* The back end's thread only. */
	struct virtq_chain out;          /* being sent, which may bring frames for the guest meanwhile */
	struct virtq_chain first, chain; /* the first and another of those that a frame for the guest goes to */
	struct {
		uint16_t head;
		uint32_t len;
	} filled[VIRTQ_SIZE_MAX];
};

/* ---- From the guest ---- */

/* What a chain has from byte `skip` on, for the back end. */
static unsigned pieces(const struct virtq_chain *c, uint64_t skip, struct host_iovec *iov)
{
	unsigned n = 0;

	for (unsigned i = 0; i < c->readable; i++) {
		const struct virtq_segment *s = &c->seg[i];
		uint64_t off = MIN(skip, s->len);

		skip -= off;
		if (off < s->len)
			iov[n++] = (struct host_iovec){s->host + off, s->len - off};
	}
	return n;
}

/* Sends one frame; lock held, and let go of for the transfer. False: there is none. */
static bool send_one(struct virtio_net *n)
{
	struct virtio_device *dev = &n->dev;
	struct host_iovec iov[VIRTQ_SEGMENTS];
	struct net_header header;

	if (!virtio_pop(dev, QUEUE_TRANSMIT, &n->out))
		return false;
	if (n->out.read_len < sizeof(header) + FRAME_MIN) {
		virtio_fail(dev, "a frame without a header");
		return false;
	}
	uint64_t len = n->out.read_len - sizeof(header);
	virtq_chain_read(&n->out, 0, &header, sizeof(header));
	if (len <= HOST_NET_FRAME_MAX) {
		unsigned count = pieces(&n->out, sizeof(header), iov);
		virtio_busy_begin(dev);
		n->net->ops->send(n->net, &header.h, iov, count, len);
		virtio_busy_end(dev);
	}
	if (n->sent.per_second)
		rate_take(&n->sent, len, host_now_ns());
	virtio_push_quiet(dev, QUEUE_TRANSMIT, &n->out, 0);
	return true;
}

/*
 * That frames are sent is told late: nobody waits for it, and most often something comes for the guest before, at whose
 * interrupt a driver looks at what was sent as well, and then wants no second one.
 */
static void tell_sent(struct virtio_net *n, unsigned sent, struct host_net_turn *turn)
{
	uint64_t now;

	if (n->dev.held || (!sent && !n->tell_at))
		return;
	now = host_now_ns();
	if (!n->tell_at)
		n->tell_at = now + TELL_NS;
	n->untold += sent;
	if (now < n->tell_at && n->untold < TELL_FRAMES) {
		turn->when = MIN(turn->when, n->tell_at);
		return;
	}
	n->tell_at = n->untold = 0;
	virtio_signal(&n->dev, QUEUE_TRANSMIT);
}

/* How long the cap makes a direction wait; the time to come again goes into turn->when. */
static bool capped(const struct rate *rate, struct host_net_turn *turn)
{
	uint64_t now = rate->per_second ? host_now_ns() : 0, wait = rate_wait(rate, now);

	if (wait)
		turn->when = MIN(turn->when, now + wait);
	return wait != 0;
}

static bool control(struct virtio_net *n);

static struct host_net_turn net_turn(void *opaque)
{
	struct virtio_net *n = opaque;
	struct host_net_turn turn = {.when = HOST_NET_NEVER};

	host_lock(&n->dev.lock);
	while (virtio_may_work(&n->dev) && control(n))
		;
	unsigned left = BURST;
	while (left && virtio_may_work(&n->dev) && !capped(&n->sent, &turn) && send_one(n))
		left--;
	turn.again = !left;
	tell_sent(n, BURST - left, &turn);
	turn.still = n->dev.held;
	turn.receive = !capped(&n->received, &turn);
	host_unlock(&n->dev.lock);
	return turn;
}

/* ---- To the guest ---- */

/* Whether the guest has agreed to take such a frame. */
static bool understood(const struct virtio_net *n, const struct host_net_header *h, size_t len)
{
	/* Who does not know the MTU expects Ethernet's. */
	if (h->gso_type == HOST_NET_GSO_NONE && len > FRAME_MAX && !(n->dev.accepted & F_MTU))
		return false;
	switch (h->gso_type & ~HOST_NET_GSO_ECN) {
	case HOST_NET_GSO_NONE:
		return !(h->flags & HOST_NET_NEEDS_CSUM) || (n->offloads & F_GUEST_CSUM);
	case HOST_NET_GSO_TCPV4:
		return n->offloads & F_GUEST_TSO4;
	case HOST_NET_GSO_TCPV6:
		return n->offloads & F_GUEST_TSO6;
	default:
		return false;
	}
}

enum { LOST = -1, NO_ROOM = 0 };

/* Takes back what a frame got that cannot be delivered, now or ever. */
static int give_up(struct virtio_net *n, unsigned chains, int why)
{
	struct virtqueue *q = &n->dev.queue[QUEUE_RECEIVE];

	virtq_unpop(q, chains);
	return chains == q->size || (n->dev.status & VIRTIO_NEEDS_RESET) ? LOST : why;
}

/*
 * Puts a frame after an empty header into as many chains as it takes. Returns how many, or why not; n->first is the
 * first.
 */
static int fill(struct virtio_net *n, const uint8_t *frame, size_t len)
{
	struct virtio_device *dev = &n->dev;
	bool merge = dev->accepted & F_MRG_RXBUF;
	size_t done = 0;
	unsigned chains = 0;

	while (done < len || !chains) {
		struct virtq_chain *c = chains ? &n->chain : &n->first;
		uint64_t off = chains ? 0 : sizeof(struct net_header);

		if (chains == ARRAY_LEN(n->filled) || !virtio_pop(dev, QUEUE_RECEIVE, c))
			return give_up(n, chains, NO_ROOM);
		chains++;
		if (c->write_len <= off) {
			virtio_fail(dev, "a buffer for frames with no room");
			return give_up(n, chains, LOST);
		}
		size_t here = MIN(len - done, c->write_len - off);
		/* Too long for a driver that takes each frame in one buffer. */
		if (!merge && here < len)
			return give_up(n, chains, LOST);
		virtq_chain_write(dev->mem, c, off, frame + done, here);
		n->filled[chains - 1].head = c->head;
		n->filled[chains - 1].len = (uint32_t)(off + here);
		done += here;
	}
	return (int)chains;
}

/* Lock held, and the driver is ready. False: no room. */
static bool deliver(struct virtio_net *n, const struct host_net_header *h, const uint8_t *frame, size_t len)
{
	struct virtqueue *q = &n->dev.queue[QUEUE_RECEIVE];
	struct net_header header = {.h = *h};
	int chains;

	if (!understood(n, h, len))
		return true;
	if (!(n->offloads & F_GUEST_CSUM))
		header.h.flags = 0;
	chains = fill(n, frame, len);
	if (chains <= 0)
		return chains == LOST;
	header.num_buffers = (uint16_t)chains;
	virtq_chain_write(n->dev.mem, &n->first, 0, &header, sizeof(header));
	for (int i = 0; i < chains; i++)
		virtq_fill(q, i, n->filled[i].head, n->filled[i].len);
	virtq_show(q, chains);
	virtio_signal(&n->dev, QUEUE_RECEIVE);
	if (n->received.per_second)
		rate_take(&n->received, len, host_now_ns());
	return true;
}

static bool net_receive(void *opaque, const struct host_net_header *h, const uint8_t *frame, size_t len)
{
	struct virtio_net *n = opaque;
	bool taken;

	host_lock(&n->dev.lock);
	if (n->dev.held)
		taken = false;
	else
		taken = !virtio_may_work(&n->dev) || deliver(n, h, frame, len);
	host_unlock(&n->dev.lock);
	return taken;
}

static const struct host_net_client net_client = {net_turn, net_receive};

/* ---- Offloads, and the control queue, by which a driver changes them (5.1.6.5.6) ---- */

static void use_offloads(struct virtio_net *n, uint64_t offloads)
{
	const struct host_net_offloads o = {
		.csum = offloads & F_GUEST_CSUM,
		.tso4 = offloads & F_GUEST_TSO4,
		.tso6 = offloads & F_GUEST_TSO6,
		.ecn = offloads & F_GUEST_ECN,
	};

	n->offloads = offloads;
	if (n->net->ops->guest_takes)
		n->net->ops->guest_takes(n->net, &o);
}

static uint8_t command(struct virtio_net *n, const struct virtq_chain *c)
{
	struct {
		uint8_t class, command;
	} what;
	uint64_t offloads;

	if (c->read_len != sizeof(what) + sizeof(offloads))
		return CONTROL_ERR;
	virtq_chain_read(c, 0, &what, sizeof(what));
	virtq_chain_read(c, sizeof(what), &offloads, sizeof(offloads));
	if (what.class != CONTROL_GUEST_OFFLOADS || what.command != CONTROL_OFFLOADS_SET ||
	    (offloads & ~(n->dev.accepted & GUEST_OFFLOADS)))
		return CONTROL_ERR;
	use_offloads(n, offloads);
	return CONTROL_OK;
}

/* Does one command; false: there is none. */
static bool control(struct virtio_net *n)
{
	struct virtio_device *dev = &n->dev;
	uint8_t ack;

	if (dev->spec->queues < QUEUES || !virtio_pop(dev, QUEUE_CONTROL, &n->out))
		return false;
	if (!n->out.write_len) {
		virtio_fail(dev, "a command without room for its answer");
		return false;
	}
	ack = command(n, &n->out);
	virtq_chain_write(dev->mem, &n->out, n->out.write_len - 1, &ack, 1);
	virtio_push(dev, QUEUE_CONTROL, &n->out, 1);
	return true;
}

/* ---- The device ---- */

static void net_wake(struct virtio_device *dev)
{
	struct virtio_net *n = container_of(dev, struct virtio_net, dev);

	n->net->ops->wake(n->net);
}

static void net_ready(struct virtio_device *dev)
{
	struct virtio_net *n = container_of(dev, struct virtio_net, dev);

	use_offloads(n, dev->accepted & GUEST_OFFLOADS);
}

static void net_reset(struct virtio_device *dev)
{
	struct virtio_net *n = container_of(dev, struct virtio_net, dev);

	n->tell_at = n->untold = 0;
	use_offloads(n, 0);
}

static void net_state(struct virtio_device *dev, struct state_stream *s)
{
	struct virtio_net *n = container_of(dev, struct virtio_net, dev);
	uint64_t offloads = n->offloads;

	state_field(s, n->config.mac);
	state_field(s, n->config.mtu);
	state_field(s, offloads);
	if (s->saving)
		return;
	n->tell_at = 1; /* it may have been owed; a driver that does not want it gets none */
	use_offloads(n, offloads & dev->accepted & GUEST_OFFLOADS);
}

static void net_stop(struct virtio_device *dev)
{
	struct virtio_net *n = container_of(dev, struct virtio_net, dev);

	n->net->ops->close(n->net);
}

static void net_free(struct virtio_device *dev)
{
	free(container_of(dev, struct virtio_net, dev));
}

static const struct virtio_ops net_ops = {
	.wake = net_wake,
	.ready = net_ready,
	.reset = net_reset,
	.state = net_state,
	.stop = net_stop,
	.free = net_free,
};

#define NET_SPEC(queue_count)                                                                                  \
	{                                                                                                      \
		.name = "virtio-net", .type = VIRTIO_TYPE_NET, .pci_class = 0x020000, .queues = (queue_count), \
		.queue_size = QUEUE_SIZE, .max_bytes = CHAIN_MAX, .config_len = sizeof(struct net_config),     \
		.ops = &net_ops                                                                                \
	}

/* The control queue is of use only where there is something to control. */
static const struct virtio_spec plain_spec = NET_SPEC(QUEUE_CONTROL), control_spec = NET_SPEC(QUEUES);

static uint64_t features(const struct host_net *net, const struct virtio_net_config *config)
{
	uint64_t f = F_MAC | F_STATUS | F_MRG_RXBUF | (config->mtu ? F_MTU : 0);

	if (net->takes.csum)
		f |= F_CSUM | (net->takes.tso4 ? F_HOST_TSO4 : 0) | (net->takes.tso6 ? F_HOST_TSO6 : 0) |
		     (net->takes.ecn ? F_HOST_ECN : 0);
	if (net->gives.csum)
		f |= F_GUEST_CSUM | (net->gives.tso4 ? F_GUEST_TSO4 : 0) | (net->gives.tso6 ? F_GUEST_TSO6 : 0) |
		     (net->gives.ecn ? F_GUEST_ECN : 0);
	if (net->gives.tso4 || net->gives.tso6)
		f |= F_CTRL_VQ | F_CTRL_GUEST_OFFLOADS;
	return f;
}

bool virtio_net_create(struct pci_bus *pci, struct guest_memory *mem, const struct virtio_net_config *config,
		       struct device *out, struct error *err)
{
	struct virtio_net *n = calloc(1, sizeof(*n));
	struct host_net *net = config->net;

	if (!n) {
		net->ops->close(net);
		return error_set(err, "out of memory");
	}
	n->net = net;
	n->config = (struct net_config){.status = STATUS_LINK_UP, .max_virtqueue_pairs = 1, .mtu = config->mtu};
	memcpy(n->config.mac, config->mac, sizeof(n->config.mac));
	rate_init(&n->sent, config->bps, 0, host_now_ns());
	n->received = n->sent;
	n->dev.config = &n->config;
	n->dev.offered = features(net, config);
	n->dev.spec = n->dev.offered & F_CTRL_VQ ? &control_spec : &plain_spec;
	if (!virtio_device_create(&n->dev, pci, mem, out, err)) {
		free(n);
		return false;
	}
	if (!net->ops->start(net, &net_client, n, err)) {
		out->destroy(out->opaque);
		return false;
	}
	return true;
}
