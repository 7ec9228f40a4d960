/* A network interface of the host's: tun(4), with the virtio header before each frame, so that the host's kernel does
 * checksums and segmentation. */
#include "host/net.h"

#include "host/confine.h"
#include "host/internal.h"
#include "host/net_loop.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define BURST 64 /* frames read at a turn */
#define PIECES 300

struct net_tap {
	struct host_net net;
	struct net_loop loop;
	int fd;
	uint8_t *frame; /* what was read: `len` bytes after the header; 0: none waits */
	size_t len;
	struct host_net_header header;
};

static void tap_send(struct host_net *net, const struct host_net_header *header, const struct host_iovec *iov,
		     unsigned n, size_t len)
{
	struct net_tap *t = container_of(net, struct net_tap, net);
	struct host_net_header copy = *header;
	struct iovec v[PIECES];

	if (n + 1 > PIECES)
		return;
	v[0] = (struct iovec){&copy, sizeof(copy)};
	for (unsigned i = 0; i < n; i++)
		v[1 + i] = (struct iovec){iov[i].base, iov[i].len};
	/* What the kernel refuses (an interface that is down, a header without sense) is lost, as on a wire. */
	(void)!RETRY_EINTR(writev(t->fd, v, (int)n + 1));
}

static bool read_frame(struct net_tap *t)
{
	struct iovec v[] = {{&t->header, sizeof(t->header)}, {t->frame, HOST_NET_FRAME_MAX}};
	ssize_t n = RETRY_EINTR(readv(t->fd, v, 2));

	t->len = n > (ssize_t)sizeof(t->header) ? (size_t)n - sizeof(t->header) : 0;
	return n > 0;
}

/* Hands over what has come; false: the guest has no room. */
static bool receive(struct net_tap *t)
{
	for (unsigned i = 0; i < BURST; i++) {
		if (!t->len && !read_frame(t))
			return true;
		if (t->len && !t->loop.client->receive(t->loop.opaque, &t->header, t->frame, t->len))
			return false;
		t->len = 0;
	}
	return true;
}

static void *tap_thread(void *arg)
{
	struct net_tap *t = arg;
	struct host_net_turn turn;

	while (net_loop_turn(&t->loop, &turn)) {
		bool want = turn.receive && !turn.still && receive(t);
		struct pollfd p[2] = {{0}, {.fd = t->fd, .events = POLLIN}};

		net_loop_wait(&t->loop, p, want ? 2 : 1, turn.again ? 0 : turn.when);
		/* An interface that was deleted stays readable for ever, and has nothing to read. */
		if (want && (p[1].revents & (POLLERR | POLLNVAL)))
			host_sleep_ns(10000000);
	}
	return NULL;
}

static bool tap_start(struct host_net *net, const struct host_net_client *client, void *opaque, struct error *err)
{
	struct net_tap *t = container_of(net, struct net_tap, net);

	return net_loop_start(&t->loop, tap_thread, t, client, opaque, err);
}

static void tap_wake(struct host_net *net)
{
	net_loop_wake(&container_of(net, struct net_tap, net)->loop);
}

static void tap_guest_takes(struct host_net *net, const struct host_net_offloads *o)
{
	struct net_tap *t = container_of(net, struct net_tap, net);
	unsigned long flags = 0;

	if (o->csum)
		flags = TUN_F_CSUM | (o->tso4 ? TUN_F_TSO4 : 0) | (o->tso6 ? TUN_F_TSO6 : 0) |
			(o->ecn && (o->tso4 || o->tso6) ? TUN_F_TSO_ECN : 0);
	(void)ioctl(t->fd, TUNSETOFFLOAD, flags);
}

static void tap_close(struct host_net *net)
{
	struct net_tap *t = container_of(net, struct net_tap, net);

	net_loop_end(&t->loop);
	if (t->fd >= 0)
		close(t->fd);
	free(t->frame);
	free(t);
}

static const struct host_net_ops tap_ops = {
	.start = tap_start, .wake = tap_wake, .send = tap_send, .guest_takes = tap_guest_takes, .close = tap_close};

static const char *advice(int error)
{
	switch (error) {
	case EPERM:
	case EACCES:
		return ": the interface must be yours (as root: ip tuntap add mode tap user NAME ...)";
	case EBUSY:
		return ": something else uses the interface; choose another";
	case ENOENT:
	case ENODEV:
		return ": load the host's module tun (as root: modprobe tun)";
	case EINVAL:
		return ": the interface is not a tap";
	default:
		return "";
	}
}

static bool attach(struct net_tap *t, const char *interface, struct error *err)
{
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int size = sizeof(struct host_net_header);

	if (!interface[0] || strlen(interface) >= sizeof(request.ifr_name))
		return error_set(err, "--net tap=%s: an interface's name has 1 to %zu characters", interface,
				 sizeof(request.ifr_name) - 1);
	/* Who may would make a new one by a mistyped name. */
	if (!if_nametoindex(interface))
		return error_set(err,
				 "--net tap=%s: there is no such interface: make it (as root: ip tuntap add mode tap "
				 "user NAME name %s)",
				 interface, interface);
	memcpy(request.ifr_name, interface, strlen(interface));
	t->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
	if (t->fd < 0 || ioctl(t->fd, TUNSETIFF, &request) || ioctl(t->fd, TUNSETVNETHDRSZ, &size)) {
		host_fail();
		return error_set(err, "--net tap=%s: %s%s", interface, host_error_text(), advice(errno));
	}
	return true;
}

struct host_net *host_net_open_tap(const char *interface, struct error *err)
{
	struct net_tap *t = calloc(1, sizeof(*t));

	if (!t) {
		error_set(err, "out of memory");
		return NULL;
	}
	t->net.ops = &tap_ops;
	t->net.takes = (struct host_net_offloads){.csum = true, .tso4 = true, .tso6 = true, .ecn = true};
	t->net.gives = t->net.takes;
	t->fd = t->loop.event = -1;
	t->frame = malloc(HOST_NET_FRAME_MAX);
	if (!t->frame)
		error_set(err, "out of memory");
	else if (attach(t, interface, err) && net_loop_init(&t->loop, err)) {
		tap_guest_takes(&t->net, &(struct host_net_offloads){0});
		host_need(HOST_NEED_TAP);
		return &t->net;
	}
	tap_close(&t->net);
	return NULL;
}
