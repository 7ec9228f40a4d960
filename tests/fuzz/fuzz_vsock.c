/*
 * Streams between a guest and programs of the host: the driver's packets, good and bad, against programs that connect,
 * say anything, read slowly, end and are gone. The sockets are the test's (this file stands in for host/stream.c), and
 * so is the time at which the device hears of them: an input always does the same. When the guest resets the device no
 * socket may be left open.
 */
#include "fuzz.h"

#include "../unit/virtio_guest.h"

#include "dev/virtio.h"
#include "dev/virtio_vsock.h"
#include "dev/vsock_conn.h"
#include "host/stream.h"
#include "host/thread.h"

#define SOCKETS 300
#define READY 32
#define WORK_MAX 2000 /* turns after one operation */
#define GUEST_CID 3
#define ROOM 4096 /* of a packet's data, and of a buffer */
enum { RX, TX, EVENT };

/* ---- Sockets ---- */

static struct socket {
	bool open, ended, gone; /* says no more; is there no more */
	unsigned has, takes;    /* bytes that it has to say, and room for what it is told */
	bool read, write;       /* is watched for */
	uint64_t token;
} sockets[SOCKETS];
static struct socket listener;
#define LISTENER SOCKETS
static unsigned clients;  /* that wait to be accepted */
static uint8_t hello[16]; /* what a client says first */
static unsigned hello_len;
static unsigned said[SOCKETS]; /* bytes that a client has said */
static bool nobody;            /* listens where the guest wants to connect */

static int new_socket(void)
{
	for (int i = 0; i < SOCKETS; i++) {
		if (!sockets[i].open) {
			sockets[i] = (struct socket){.open = true};
			said[i] = 0;
			return i;
		}
	}
	return -1;
}

int host_stream_listen(const char *path, int backlog)
{
	return LISTENER;
}

void host_stream_unlisten(int stream) {}

int host_stream_connect(const char *path)
{
	int s = nobody ? -1 : new_socket();

	if (s >= 0)
		said[s] = sizeof(hello); /* no greeting */
	return s;
}

int host_stream_accept(int stream)
{
	if (!clients)
		return HOST_STREAM_LATER;
	int s = new_socket();
	clients -= s >= 0;
	return s;
}

void host_stream_close(int stream)
{
	if (stream < 0)
		return;
	EXPECT(stream < SOCKETS && sockets[stream].open);
	sockets[stream].open = false;
}

void host_stream_shutdown(int stream, bool write)
{
	EXPECT(stream >= 0 && stream < SOCKETS && sockets[stream].open);
}

int64_t host_stream_read(int stream, const struct host_iovec *iov, unsigned n)
{
	struct socket *s = &sockets[stream];
	int64_t got = 0;

	EXPECT(stream >= 0 && stream < SOCKETS && s->open);
	if (s->gone)
		return -1;
	for (unsigned i = 0; i < n; i++) {
		uint8_t *to = iov[i].base;
		for (size_t k = 0; k < iov[i].len && s->has; k++, s->has--, got++) {
			unsigned at = said[stream]++;
			to[k] = at < hello_len ? hello[at] : (uint8_t)at;
		}
	}
	return got ? got : s->ended ? 0 : HOST_STREAM_LATER;
}

int64_t host_stream_write(int stream, const struct host_iovec *iov, unsigned n)
{
	struct socket *s = &sockets[stream];
	int64_t put = 0;

	EXPECT(stream >= 0 && stream < SOCKETS && s->open);
	if (s->gone)
		return -1;
	for (unsigned i = 0; i < n && s->takes; i++) {
		size_t here = MIN(iov[i].len, s->takes);
		look_at(iov[i].base, here);
		s->takes -= (unsigned)here;
		put += (int64_t)here;
	}
	return put ? put : HOST_STREAM_LATER;
}

/* ---- The watch: its thread is told of what is ready, and done with it, before this one goes on ---- */

static struct host_watch {
	struct host_mutex lock;
	struct host_cond cond;
	struct host_ready ready[READY];
	unsigned count;
	bool waits;
} the_watch;

struct host_watch *host_watch_create(void)
{
	host_mutex_init(&the_watch.lock);
	host_cond_init(&the_watch.cond);
	return &the_watch;
}

void host_watch_destroy(struct host_watch *watch) {}

void host_watch_wake(struct host_watch *watch) {}

bool host_watch_once(struct host_watch *watch, int stream, uint64_t token, bool read, bool write)
{
	struct socket *s = stream == LISTENER ? &listener : &sockets[stream];

	EXPECT(stream >= 0 && stream <= SOCKETS && (stream == LISTENER || s->open));
	s->token = token;
	s->read = read;
	s->write = write;
	return true;
}

unsigned host_watch_wait(struct host_watch *watch, struct host_ready *ready, unsigned room)
{
	unsigned n;

	host_lock(&watch->lock);
	watch->waits = true;
	host_cond_broadcast(&watch->cond);
	while (!watch->count)
		host_cond_wait(&watch->cond, &watch->lock);
	n = MIN(watch->count, room);
	memcpy(ready, watch->ready, n * sizeof(*ready));
	watch->count = 0;
	watch->waits = false;
	host_unlock(&watch->lock);
	return n;
}

/* What is waited for and has come; false: nothing. */
static bool find_ready(struct socket *s, bool read, bool write)
{
	struct host_ready *r = &the_watch.ready[the_watch.count];

	*r = (struct host_ready){s->token, s->read && read, s->write && write};
	if (!r->read && !r->write)
		return false;
	s->read = s->write = false;
	the_watch.count++;
	return true;
}

static void tell_ready(void)
{
	bool found = false;

	host_lock(&the_watch.lock);
	while (!the_watch.waits)
		host_cond_wait(&the_watch.cond, &the_watch.lock);
	found |= find_ready(&listener, clients, false);
	for (unsigned i = 0; i < SOCKETS && the_watch.count < READY; i++) {
		struct socket *s = &sockets[i];
		if (s->open)
			found |= find_ready(s, s->has || s->ended || s->gone, s->takes || s->gone);
	}
	if (found) {
		the_watch.waits = false;
		host_cond_broadcast(&the_watch.cond);
		while (!the_watch.waits)
			host_cond_wait(&the_watch.cond, &the_watch.lock);
	}
	host_unlock(&the_watch.lock);
}

/* ---- The machine ---- */

static struct rig rig;
static struct device device;
static struct drv drv;
static uint32_t asked_from; /* the port from which the guest has been asked last */

static void start(void)
{
	const struct vsock_config config = {"/nowhere", GUEST_CID};
	struct error err;

	log_set_level(-1);
	rig_init(&rig);
	if (!virtio_vsock_create(rig.pci, &rig.mem, &config, &device, &err))
		rig_die(err.text);
	device.pause(device.opaque);
}

/* What the guest has been sent, as far as its answers need it. */
static void look_at_packets(void)
{
	struct drv_queue *q = &drv.q[RX];
	struct guest_used used;

	for (unsigned n = 0; q->size && n < q->size && drv_take_now(&drv, q, &used); n++) {
		struct vsock_header h;
		if (used.id < q->size && guest_memory_read(&rig.mem, drv_desc(&drv, q, used.id)->addr, &h, sizeof(h)) &&
		    h.op == VSOCK_REQUEST)
			asked_from = h.src_port;
	}
}

/* The device is held but for these moments, in which this thread does what its own would do. */
static void work(void)
{
	struct virtio_device *dev = device.opaque;

	tell_ready();
	host_lock(&dev->lock);
	unsigned held = dev->held;
	dev->held = 0;
	for (unsigned i = 0; i < WORK_MAX && virtio_may_work(dev) && dev->spec->ops->work(dev); i++)
		;
	dev->held = held;
	host_unlock(&dev->lock);
	look_at_packets();
}

static void bring_up(struct input *in)
{
	unsigned sizes = (unsigned)take(in, 1);

	cfg_write(&rig, 1, PCI_BAR0, 4, 0xc8000000);
	cfg_write(&rig, 1, PCI_BAR0 + 4, 4, 0);
	cfg_write(&rig, 1, PCI_BAR0 + 8, 4, 0xc8010000);
	drv_find(&drv, &rig, 1);
	drv_begin(&drv, sizes & 0x80 ? ~0ull : F_VERSION_1);
	for (unsigned i = 0; i <= EVENT; i++)
		drv_queue(&drv, i, 16u << (sizes >> 2 * i & 3));
	drv_ok(&drv);
}

static void packet(struct input *in)
{
	struct drv_queue *q = &drv.q[TX];
	unsigned op = (unsigned)take(in, 1), ports = (unsigned)take(in, 1), odd = (unsigned)take(in, 1);
	struct vsock_header h = {
		.src_cid = GUEST_CID,
		.dst_cid = VSOCK_HOST,
		.src_port = 1000 + (ports & 3),
		.dst_port = ports & 0x80 ? asked_from - (ports >> 2 & 3) : 2000 + (ports >> 2 & 3),
		.type = VSOCK_STREAM,
		.op = op & 15,
		.flags = op >> 4 & 3,
		.buf_alloc = 65536,
		.len = op >> 6 == 1   ? (unsigned)take(in, 1)
		       : op >> 6 == 2 ? (unsigned)take(in, 2) % ROOM
				      : 0,
	};
	uint32_t len = sizeof(h) + h.len;

	if (!q->size)
		return;
	if (odd & 1)
		h.buf_alloc = (uint32_t)take(in, 4);
	if (odd & 2)
		h.fwd_cnt = (uint32_t)take(in, 4);
	if (odd & 4)
		h.len = (uint32_t)take(in, 4);
	if (odd & 8)
		h.type = (uint16_t)take(in, 1);
	if (odd & 16)
		h.src_cid = take(in, 1);
	if (odd & 32)
		h.dst_cid = take(in, 1);
	if (odd & 64)
		h.op = (uint16_t)take(in, 2);
	uint64_t at = RIG_BUFFERS + q->next_desc * 8192ull;
	guest_memory_write(&rig.mem, at, &h, sizeof(h));
	/* The header in one piece with the data or apart, or cut. */
	uint32_t first = odd & 128 ? (uint32_t)take(in, 1) % 64 + 1 : (uint32_t)sizeof(h);
	struct guest_desc piece[] = {{at, MIN(first, len), 0, 0}, {at + first, len > first ? len - first : 0, 0, 0}};
	drv_send(&drv, q, piece, len > first ? 2 : 1);
}

/* Room for packets, and for events. */
static void room(struct input *in)
{
	unsigned what = (unsigned)take(in, 1), index = what & 0x80 ? EVENT : RX;
	struct drv_queue *q = &drv.q[index];
	uint32_t len = what & 0x40 ? (uint32_t)take(in, 1) : ROOM;

	if (!q->size)
		return;
	for (unsigned i = 0; i < (what & 15); i++) {
		uint64_t at = RIG_BUFFERS + 0x200000 + q->next_desc * 8192ull;
		struct guest_desc piece[] = {{at, MAX(len / 2, 1u), D_WRITE, 0}, {at + ROOM, MAX(len, 1u), D_WRITE, 0}};
		drv_send(&drv, q, piece, what & 0x20 ? 1 : 2);
	}
}

/* A program of the host's does something. */
static void program(struct input *in)
{
	unsigned what = (unsigned)take(in, 1);
	struct socket *s = &sockets[take(in, 1) % 16];

	switch (what & 7) {
	case 0:
	case 1:
		s->has = MIN(s->has + (unsigned)take(in, 2), 1u << 20);
		break;
	case 2:
	case 3:
		s->takes = MIN(s->takes + (unsigned)take(in, 2), 1u << 20);
		break;
	case 4:
		s->ended = true;
		break;
	case 5:
		s->gone = true;
		break;
	case 6:
		clients = MIN(clients + (what >> 3), 400u);
		break;
	default:
		nobody = what & 8;
		hello_len = (unsigned)snprintf((char *)hello, sizeof(hello), "CONNECT %u\n", 1000 + (what >> 4));
		if (what & 8)
			hello[take(in, 1) % hello_len] = (uint8_t)take(in, 1);
	}
}

static void save_and_load(struct input *in)
{
	struct state_stream s = {.saving = true};

	device.state(device.opaque, &s);
	EXPECT(!s.failed);
	size_t at = take(in, 2), change = take(in, 1);
	struct state_stream l = {.data = s.data, .len = s.len};
	s.data[at % s.len] ^= change;
	device.state(device.opaque, &l);
	EXPECT(change || !l.failed);
	free(s.data);
}

static void poke(struct input *in)
{
	uint64_t at = take(in, 1) & 1 ? RIG_BUFFERS : RIG_QUEUES;
	uint64_t off = take(in, 3);
	uint64_t value = take(in, 8);

	guest_memory_write(&rig.mem, at + off % MiB(4), &value, 1 + (off & 7));
}

static void operation(struct input *in)
{
	unsigned op = (unsigned)take(in, 1);

	switch (op & 15) {
	case 0:
		bring_up(in);
		break;
	case 1:
	case 2:
		room(in);
		break;
	case 3:
		save_and_load(in);
		break;
	case 4:
		poke(in);
		break;
	case 5:
		common_write(&drv, (unsigned)take(in, 1) % 56, 1u << (op >> 4 & 3), take(in, 4));
		break;
	case 6:
	case 7:
	case 8:
	case 9:
		program(in);
		break;
	default:
		packet(in);
	}
	work();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};

	if (!rig.pci)
		start();
	rig.host.reset(rig.host.opaque);
	device.reset(device.opaque);
	clients = hello_len = asked_from = 0;
	nobody = false;
	memset(sockets, 0, sizeof(sockets));
	drv = (struct drv){0};
	drv_find(&drv, &rig, 1);
	bring_up(&in);
	while (in.left)
		operation(&in);
	device.reset(device.opaque);
	for (unsigned i = 0; i < SOCKETS; i++)
		EXPECT(!sockets[i].open);
	return 0;
}
