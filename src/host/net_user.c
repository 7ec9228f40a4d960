/*
 * A user-mode network: libslirp plays gateway, DHCP and DNS server, and turns the guest's connections into sockets of
 * this process. Addresses are the usual ones: 10.0.2.0/24 with the gateway at 2 (also the host's loopback), DNS at 3
 * and the guest at 15; fec0::/64 likewise where the host has IPv6.
 *
 * Flow control: TCP's windows bound what is under way to the guest. A frame for which the guest has no room waits in
 * `pending`; as long as something does, no socket is read. When pending is full, frames are dropped.
 */
#include "host/net.h"

#include "host/confine.h"
#include "host/internal.h"
#include "host/net_frame.h"
#include "host/net_loop.h"
#include "host/slirp_library.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define PENDING_SIZE KiB(512)
#define MS 1000000u

#define SOCKETS_MAX 1024u /* of a guest's, and half of the descriptors stay free for the rest of the process */

struct user_timer {
	bool made;
	void *opaque;
	int64_t at; /* ms; -1: not set */
};

/*
 * libslirp knows no window scaling, so a guest's window is never more than 64 KiB, and a segment that does not fit
 * waits in vain if the guest sees no reason to say that its window has grown again: with segments of half a window that
 * happens (the window is a few bytes less than one, and Linux tells of a window only when it has doubled), and each is
 * sent five seconds later, when libslirp tries. Three to a window are well away from that, and let one side work on a
 * segment while the other does on the next. What the guest sends is not cut: it comes in pieces of 64 KiB.
 */
#define SEGMENT_MTU (UINT16_MAX / 3)

#define RESOLV_CONF "/etc/resolv.conf" /* libslirp looks whether it has changed */

struct net_user {
	struct host_net net;
	struct net_loop loop;
	Slirp *slirp;
	struct user_timer timer[SLIRP_TIMER_NUM];

	struct pollfd *poll;
	unsigned polls, poll_room;

	unsigned sockets, sockets_max; /* how many libslirp has */
	bool warned;

	size_t pending_from, pending_to;
	uint8_t *pending; /* frames, each after its length in 4 bytes */
	uint8_t *frame;   /* one of the guest's, in a piece */
	struct net_fragments *fragments;
	bool resolves; /* RESOLV_CONF is needed */
};

static int64_t now_ms(void)
{
	return (int64_t)(host_now_ns() / MS);
}

/* ---- To the guest ---- */

static bool offer(struct net_user *u, const uint8_t *frame, size_t len)
{
	/* libslirp has computed every checksum, or checked it. */
	const struct host_net_header header = {.flags = HOST_NET_DATA_VALID};

	return u->loop.client->receive(u->loop.opaque, &header, frame, len);
}

static void pend(struct net_user *u, const uint8_t *frame, size_t len)
{
	uint32_t size = (uint32_t)len;

	if (u->pending_to + sizeof(size) + len > PENDING_SIZE) {
		memmove(u->pending, u->pending + u->pending_from, u->pending_to - u->pending_from);
		u->pending_to -= u->pending_from;
		u->pending_from = 0;
		if (u->pending_to + sizeof(size) + len > PENDING_SIZE)
			return;
	}
	memcpy(u->pending + u->pending_to, &size, sizeof(size));
	memcpy(u->pending + u->pending_to + sizeof(size), frame, len);
	u->pending_to += sizeof(size) + len;
}

/* Returns whether nothing is pending any more. */
static bool flush_pending(struct net_user *u)
{
	uint32_t size;

	while (u->pending_from < u->pending_to) {
		memcpy(&size, u->pending + u->pending_from, sizeof(size));
		if (!offer(u, u->pending + u->pending_from + sizeof(size), size))
			return false;
		u->pending_from += sizeof(size) + size;
	}
	u->pending_from = u->pending_to = 0;
	return true;
}

static ssize_t send_packet(const void *frame, size_t len, void *opaque)
{
	struct net_user *u = opaque;

	/* Not started yet: nobody is there. */
	if (len > HOST_NET_FRAME_MAX || !u->loop.client)
		return (ssize_t)len;
	if (u->pending_from < u->pending_to || !offer(u, frame, len))
		pend(u, frame, len);
	return (ssize_t)len;
}

/* ---- From the guest ---- */

/* Whether a packet of this protocol could need one more socket. TCP: only the first of a connection does. */
static bool may_open(const uint8_t *payload, size_t len, unsigned protocol)
{
	if (protocol != PROTOCOL_TCP)
		return true;
	return len > TCP_FLAGS && (payload[TCP_FLAGS] & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static bool full(struct net_user *u)
{
	if (u->sockets < u->sockets_max)
		return false;
	log_msg(u->warned ? LOG_DEBUG : LOG_WARN,
		"network: the guest has %u connections; it gets no new ones until some end (the limit is half of "
		"'ulimit -n')",
		u->sockets);
	u->warned = true;
	return true;
}

static bool admit_ipv4(struct net_user *u, const uint8_t *ip, size_t len)
{
	if (len < IPV4_HEADER)
		return false;
	size_t header = (size_t)(ip[0] & 15) * 4;
	const uint8_t *payload = ip + MIN(header, len);
	return !may_open(payload, len - MIN(header, len), ip[IPV4_PROTOCOL]) || !full(u);
}

static bool admit_ipv6(struct net_user *u, const uint8_t *ip, size_t len)
{
	if (len < IPV6_HEADER)
		return false;
	return !may_open(ip + IPV6_HEADER, len - IPV6_HEADER, ip[IPV6_NEXT]) || !full(u);
}

/* Whether libslirp is to see a frame of the guest's. */
static bool admit(struct net_user *u, const uint8_t *frame, size_t len)
{
	switch (net_get16(frame + ETH_TYPE)) {
	case TYPE_ARP:
		return len >= ARP_FRAME;
	case TYPE_IPV4:
		return admit_ipv4(u, frame + ETH_HEADER, len - ETH_HEADER);
	case TYPE_IPV6:
		return admit_ipv6(u, frame + ETH_HEADER, len - ETH_HEADER);
	default:
		return false;
	}
}

static void user_send(struct host_net *net, const struct host_net_header *header, const struct host_iovec *iov,
		      unsigned n, size_t len)
{
	struct net_user *u = container_of(net, struct net_user, net);
	const uint8_t *frame = u->frame;
	size_t at = 0;

	if (len < ETH_HEADER || len > HOST_NET_FRAME_MAX)
		return;
	for (unsigned i = 0; i < n; i++) {
		memcpy(u->frame + at, iov[i].base, iov[i].len);
		at += iov[i].len;
	}
	/* A segment larger than the network's frames needs no cutting: libslirp takes what IP can express. */
	if ((header->flags & HOST_NET_NEEDS_CSUM) && !net_finish_checksum(u->frame, len, header))
		return;
	/*
	 * libslirp is never to see a fragment: in Debian's 4.7.0 the compiler takes ip_reass's two kinds of list
	 * entries for things that cannot be the same (strict aliasing), and a datagram's first fragment corrupts its
	 * memory.
	 */
	if (net_is_fragment(frame, len))
		frame = net_fragments_add(u->fragments, frame, &len, host_now_ns());
	if (frame && admit(u, frame, len))
		libslirp.input(u->slirp, frame, (int)len);
}

/* ---- What libslirp asks for ---- */

static void guest_error(const char *message, void *opaque)
{
	log_debug("network: %s", message);
}

static int64_t clock_get_ns(void *opaque)
{
	return (int64_t)host_now_ns();
}

static void *timer_new(SlirpTimerId id, void *timer_opaque, void *opaque)
{
	struct net_user *u = opaque;

	ENSURE(id < SLIRP_TIMER_NUM);
	u->timer[id] = (struct user_timer){.made = true, .opaque = timer_opaque, .at = -1};
	return &u->timer[id];
}

static void timer_free(void *timer, void *opaque)
{
	((struct user_timer *)timer)->made = false;
}

static void timer_mod(void *timer, int64_t at, void *opaque)
{
	((struct user_timer *)timer)->at = at;
}

static void fire_timers(struct net_user *u)
{
	int64_t now = now_ms();

	for (unsigned i = 0; i < SLIRP_TIMER_NUM; i++) {
		struct user_timer *t = &u->timer[i];
		if (!t->made || t->at < 0 || t->at > now)
			continue;
		t->at = -1;
		libslirp.handle_timer(u->slirp, (SlirpTimerId)i, t->opaque);
	}
}

static void register_fd(int fd, void *opaque)
{
	((struct net_user *)opaque)->sockets++;
}

static void unregister_fd(int fd, void *opaque)
{
	struct net_user *u = opaque;

	u->sockets -= u->sockets > 0;
}

/* There is a wake-up at each turn already. */
static void notify(void *opaque) {}

static const SlirpCb callbacks = {
	.send_packet = send_packet,
	.guest_error = guest_error,
	.clock_get_ns = clock_get_ns,
	.timer_free = timer_free,
	.timer_mod = timer_mod,
	.register_poll_fd = register_fd,
	.unregister_poll_fd = unregister_fd,
	.notify = notify,
	.timer_new_opaque = timer_new,
};

/* ---- The loop ---- */

static const struct {
	short poll;
	int slirp;
} events[] = {
	{POLLIN, SLIRP_POLL_IN},   {POLLOUT, SLIRP_POLL_OUT}, {POLLPRI, SLIRP_POLL_PRI},
	{POLLERR, SLIRP_POLL_ERR}, {POLLHUP, SLIRP_POLL_HUP},
};

static bool more_polls(struct net_user *u)
{
	unsigned room = u->poll_room ? 2 * u->poll_room : 64;
	struct pollfd *poll = realloc(u->poll, room * sizeof(*poll));

	if (!poll)
		return false;
	u->poll = poll;
	u->poll_room = room;
	return true;
}

static int add_poll(int fd, int wanted, void *opaque)
{
	struct net_user *u = opaque;
	short poll = 0;

	if (u->polls == u->poll_room && !more_polls(u))
		return -1; /* not looked at this time */
	for (unsigned i = 0; i < ARRAY_LEN(events); i++)
		if (wanted & events[i].slirp)
			poll |= events[i].poll;
	u->poll[u->polls] = (struct pollfd){.fd = fd, .events = poll};
	return (int)u->polls++;
}

static int get_events(int index, void *opaque)
{
	struct net_user *u = opaque;
	int found = 0;

	for (unsigned i = 0; i < ARRAY_LEN(events); i++)
		if (index >= 0 && (u->poll[index].revents & events[i].poll))
			found |= events[i].slirp;
	return found;
}

static uint64_t deadline(const struct net_user *u, const struct host_net_turn *turn, uint32_t ms)
{
	uint64_t when = MIN(turn->when, host_now_ns() + (uint64_t)ms * MS);

	for (unsigned i = 0; i < SLIRP_TIMER_NUM; i++)
		if (u->timer[i].made && u->timer[i].at >= 0)
			when = MIN(when, (uint64_t)u->timer[i].at * MS);
	return turn->again ? 0 : when;
}

static void *user_thread(void *arg)
{
	struct net_user *u = arg;
	struct host_net_turn turn;

	while (net_loop_turn(&u->loop, &turn)) {
		uint32_t ms = UINT32_MAX;

		if (turn.still) {
			net_loop_wait(&u->loop, u->poll, 1, HOST_NET_NEVER);
			continue;
		}
		bool sockets = flush_pending(u) && turn.receive;
		u->polls = 1;
		libslirp.pollfds_fill(u->slirp, &ms, add_poll, u);
		net_loop_wait(&u->loop, u->poll, sockets ? u->polls : 1, deadline(u, &turn, ms));
		fire_timers(u);
		libslirp.pollfds_poll(u->slirp, !sockets, get_events, u);
	}
	return NULL;
}

static bool user_start(struct host_net *net, const struct host_net_client *client, void *opaque, struct error *err)
{
	struct net_user *u = container_of(net, struct net_user, net);

	return net_loop_start(&u->loop, user_thread, u, client, opaque, err);
}

static void user_wake(struct host_net *net)
{
	net_loop_wake(&container_of(net, struct net_user, net)->loop);
}

static void user_close(struct host_net *net)
{
	struct net_user *u = container_of(net, struct net_user, net);

	net_loop_end(&u->loop);
	u->loop.client = NULL;
	if (u->resolves)
		host_unneed_file(RESOLV_CONF);
	if (u->slirp)
		libslirp.cleanup(u->slirp);
	free(u->poll);
	free(u->pending);
	free(u->frame);
	free(u->fragments);
	free(u);
}

static const struct host_net_ops user_ops = {
	.start = user_start, .wake = user_wake, .send = user_send, .close = user_close};

/* ---- Opening ---- */

static bool host_has_ipv6(void)
{
	struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool ok = fd >= 0 && !bind(fd, (struct sockaddr *)&here, sizeof(here));

	if (fd >= 0)
		close(fd);
	return ok;
}

static unsigned socket_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == RLIM_INFINITY)
		return SOCKETS_MAX;
	return (unsigned)MIN(limit.rlim_cur / 2, SOCKETS_MAX);
}

static struct in_addr ipv4(const char *text)
{
	struct in_addr a;

	ENSURE(inet_pton(AF_INET, text, &a) == 1);
	return a;
}

static struct in6_addr ipv6(const char *text)
{
	struct in6_addr a;

	ENSURE(inet_pton(AF_INET6, text, &a) == 1);
	return a;
}

static Slirp *make_slirp(struct net_user *u, const struct host_net_user *config)
{
	const SlirpConfig c = {
		.version = 4,
		.restricted = config->restricted,
		.in_enabled = true,
		.vnetwork = ipv4("10.0.2.0"),
		.vnetmask = ipv4("255.255.255.0"),
		.vhost = ipv4("10.0.2.2"),
		.vdhcp_start = ipv4("10.0.2.15"),
		.vnameserver = ipv4("10.0.2.3"),
		.in6_enabled = host_has_ipv6(),
		.vprefix_addr6 = ipv6("fec0::"),
		.vprefix_len = 64,
		.vhost6 = ipv6("fec0::2"),
		.vnameserver6 = ipv6("fec0::3"),
		.if_mtu = MIN(config->mtu, SEGMENT_MTU),
		.if_mru = MIN(config->mtu, SEGMENT_MTU),
	};

	return libslirp.new(&c, &callbacks, u);
}

static socklen_t socket_address(struct sockaddr_storage *out, const struct host_address *a)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(a->port)};
	struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(a->port)};

	memset(out, 0, sizeof(*out));
	if (a->v6) {
		memcpy(&in6.sin6_addr, a->byte, sizeof(in6.sin6_addr));
		memcpy(out, &in6, sizeof(in6));
		return sizeof(in6);
	}
	memcpy(&in.sin_addr, a->byte, sizeof(in.sin_addr));
	memcpy(out, &in, sizeof(in));
	return sizeof(in);
}

static bool forward(struct net_user *u, const struct host_forward *f, struct error *err)
{
	struct sockaddr_storage host, guest;
	socklen_t host_len = socket_address(&host, &f->host), guest_len = socket_address(&guest, &f->guest);
	int flags = (f->udp ? SLIRP_HOSTFWD_UDP : 0) | (f->host.v6 ? SLIRP_HOSTFWD_V6ONLY : 0);

	errno = 0;
	if (!libslirp.add_hostxfwd(u->slirp, (struct sockaddr *)&host, host_len, (struct sockaddr *)&guest, guest_len,
				   flags))
		return true;
	host_fail();
	if (errno == EADDRINUSE)
		return error_set(err,
				 "--net hostfwd=%s: port %u of the host is in use: choose another, or end what uses it",
				 f->text, f->host.port);
	return error_set(err, "--net hostfwd=%s: cannot listen on the host: %s: choose another address or port",
			 f->text, host_error_text());
}

struct host_net *host_net_open_user(const struct host_net_user *config, struct error *err)
{
	struct net_user *u = calloc(1, sizeof(*u));
	bool ok;

	const char *why = libslirp_load();
	if (!u || why) {
		error_set(err, "%s", why ? why : "out of memory");
		free(u);
		return NULL;
	}
	u->net.ops = &user_ops;
	u->net.takes = (struct host_net_offloads){.csum = true, .tso4 = true, .tso6 = true, .ecn = true};
	u->net.gives.csum = true;
	u->loop.event = -1;
	u->sockets_max = socket_limit();
	u->pending = malloc(PENDING_SIZE);
	u->frame = malloc(HOST_NET_FRAME_MAX);
	u->fragments = net_fragments_create();
	ok = u->pending && u->frame && u->fragments && more_polls(u);
	if (ok)
		u->slirp = make_slirp(u, config);
	if (!u->slirp)
		ok = error_set(err, "out of memory for the network");
	ok = ok && net_loop_init(&u->loop, err);
	for (unsigned i = 0; ok && i < config->forwards; i++)
		ok = forward(u, &config->forward[i], err);
	if (ok) {
		host_need(HOST_NEED_INTERNET);
		host_need_file(RESOLV_CONF);
		u->resolves = true;
		return &u->net;
	}
	user_close(&u->net);
	return NULL;
}
