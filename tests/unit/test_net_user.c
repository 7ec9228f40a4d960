/* The user-mode network without a device: what a guest's frames bring about, floods and a guest that takes nothing. */
#include "unit.h"

#include "host/net.h"
#include "host/thread.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAMES 4096

/* A guest: frames to send, and those that came. */
struct guest {
	struct host_net *net;
	struct host_mutex lock;
	struct {
		size_t len;
		struct host_net_header header;
		uint8_t byte[1600];
	} out[FRAMES];
	unsigned next, count; /* of those to send */
	unsigned got;
	uint8_t last[2048]; /* the last frame that came */
	size_t last_len, longest;
	bool closed; /* takes no frame */
	unsigned refused;
};

static struct host_net_turn guest_turn(void *opaque)
{
	struct guest *g = opaque;
	struct host_net_turn turn = {.receive = true, .when = HOST_NET_NEVER};

	host_lock(&g->lock);
	for (unsigned burst = 0; g->next < g->count && burst < 64; burst++) {
		unsigned i = g->next++;
		struct host_iovec iov = {g->out[i].byte, g->out[i].len};
		host_unlock(&g->lock);
		g->net->ops->send(g->net, &g->out[i].header, &iov, 1, g->out[i].len);
		host_lock(&g->lock);
	}
	turn.again = g->next < g->count;
	host_unlock(&g->lock);
	return turn;
}

static bool guest_receive(void *opaque, const struct host_net_header *header, const uint8_t *frame, size_t len)
{
	struct guest *g = opaque;
	bool taken;

	host_lock(&g->lock);
	taken = !g->closed;
	if (taken) {
		g->got++;
		g->last_len = MIN(len, sizeof(g->last));
		g->longest = MAX(g->longest, len);
		memcpy(g->last, frame, g->last_len);
	} else {
		g->refused++;
	}
	host_unlock(&g->lock);
	return taken;
}

static const struct host_net_client client = {guest_turn, guest_receive};

static void start_with(struct guest *g, unsigned mtu)
{
	struct host_net_user c = {.mtu = mtu};
	struct error err = {""};

	memset(g, 0, sizeof(*g));
	host_mutex_init(&g->lock);
	g->net = host_net_open_user(&c, &err);
	if (!g->net || !g->net->ops->start(g->net, &client, g, &err)) {
		fprintf(stderr, "%s\n", err.text);
		abort();
	}
}

static void start(struct guest *g)
{
	start_with(g, 1500);
}

static void end(struct guest *g)
{
	g->net->ops->close(g->net);
	host_mutex_destroy(&g->lock);
}

static void put16(uint8_t *p, unsigned v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static unsigned add16(const uint8_t *p, size_t len)
{
	unsigned sum = 0;

	for (size_t i = 0; i < len; i += 2)
		sum += (unsigned)p[i] << 8 | (i + 1 < len ? p[i + 1] : 0);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* An IPv4 packet from 10.0.2.15 to `to`, with room for `payload` bytes; returns where they go. The lock is held. */
static uint8_t *packet(struct guest *g, const char *to, unsigned protocol, size_t payload, unsigned fragment)
{
	uint8_t *f = g->out[g->count].byte, *ip = f + 14;
	static const uint8_t ethernet[14] = {0x52, 0x55, 10, 0, 2, 2, 2, 0, 0, 0, 0, 1, 8, 0};
	static const uint8_t from[4] = {10, 0, 2, 15};

	REQUIRE(g->count < FRAMES && payload <= 1500);
	memset(f, 0, sizeof(g->out[0].byte));
	memcpy(f, ethernet, sizeof(ethernet));
	ip[0] = 0x45;
	put16(ip + 2, 20 + (unsigned)payload);
	put16(ip + 4, g->count);
	put16(ip + 6, fragment);
	ip[8] = 64;
	ip[9] = (uint8_t)protocol;
	memcpy(ip + 12, from, 4);
	inet_pton(AF_INET, to, ip + 16);
	put16(ip + 10, ~add16(ip, 20) & 0xffff);
	g->out[g->count].len = 34 + payload;
	g->out[g->count].header = (struct host_net_header){0};
	g->count++;
	return ip + 20;
}

/* A UDP datagram whose checksum is left to the other side, as a driver with checksum offload does. */
static void datagram(struct guest *g, const char *to, unsigned from_port, unsigned port, const char *text)
{
	size_t len = 8 + strlen(text);
	uint8_t *udp = packet(g, to, 17, len, 0), pseudo[12] = {0};

	memcpy(pseudo, udp - 8, 8);
	pseudo[9] = 17;
	put16(pseudo + 10, (unsigned)len);
	put16(udp, from_port);
	put16(udp + 2, port);
	put16(udp + 4, (unsigned)len);
	put16(udp + 6, add16(pseudo, 12));
	memcpy(udp + 8, text, strlen(text));
	g->out[g->count - 1].header =
		(struct host_net_header){.flags = HOST_NET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 6};
}

static void arp(struct guest *g)
{
	static const uint8_t frame[42] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0,  1, 8, 6,
					  0,    1,    8,    0,    6,    4,    0, 1, 2, 0, 0,  0, 0, 1,
					  10,   0,    2,    15,   0,    0,    0, 0, 0, 0, 10, 0, 2, 2};

	memcpy(g->out[g->count].byte, frame, sizeof(frame));
	g->out[g->count++].len = sizeof(frame);
}

static unsigned got(struct guest *g)
{
	host_lock(&g->lock);
	unsigned n = g->got;
	host_unlock(&g->lock);
	return n;
}

static bool wait_for(struct guest *g, unsigned frames)
{
	for (unsigned i = 0; i < 5000 && got(g) < frames; i++)
		host_sleep_ns(1000000);
	return got(g) >= frames;
}

static void go(struct guest *g)
{
	host_unlock(&g->lock);
	g->net->ops->wake(g->net);
}

static bool wait_sent(struct guest *g)
{
	bool sent = false;

	for (unsigned i = 0; i < 10000 && !sent; i++) {
		host_sleep_ns(1000000);
		host_lock(&g->lock);
		sent = g->next == g->count;
		host_unlock(&g->lock);
	}
	return sent;
}

TEST(gateway_answers_arp_and_ping)
{
	static struct guest g;

	start(&g);
	host_lock(&g.lock);
	arp(&g);
	go(&g);
	REQUIRE(wait_for(&g, 1));
	host_lock(&g.lock);
	CHECK_EQ(g.last[13], 6);
	CHECK_EQ(g.last[21], 2); /* a reply */
	uint8_t *icmp = packet(&g, "10.0.2.2", 1, 64, 0);
	icmp[0] = 8;
	put16(icmp + 2, ~add16(icmp, 64) & 0xffff);
	go(&g);
	REQUIRE(wait_for(&g, 2));
	CHECK_EQ(g.last_len, 34 + 64);
	CHECK_EQ(g.last[34], 0); /* echo reply */
	end(&g);
}

static int echo_socket(uint16_t *port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(a);
	struct timeval patience = {.tv_sec = 5};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	REQUIRE(fd >= 0 && !bind(fd, (struct sockaddr *)&a, sizeof(a)) &&
		!getsockname(fd, (struct sockaddr *)&a, &size));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	*port = ntohs(a.sin_port);
	return fd;
}

TEST(udp_with_checksums_left_to_us)
{
	static struct guest g;
	struct sockaddr_in peer;
	socklen_t size = sizeof(peer);
	char text[64] = "";
	uint16_t port;
	int fd = echo_socket(&port);

	start(&g);
	host_lock(&g.lock);
	arp(&g);
	/* Odd lengths too; checksums that point nowhere are dropped. */
	datagram(&g, "10.0.2.2", 1000, port, "lost");
	g.out[g.count - 1].header.csum_start = 2000;
	datagram(&g, "10.0.2.2", 1000, port, "lost");
	g.out[g.count - 1].header.csum_offset = 0xffff;
	datagram(&g, "10.0.2.2", 1000, port, "hello");
	go(&g);
	ssize_t n = recvfrom(fd, text, sizeof(text) - 1, 0, (struct sockaddr *)&peer, &size);
	CHECK_EQ(n, 5);
	CHECK_STR(text, "hello");
	REQUIRE(wait_for(&g, 1));
	CHECK_EQ(sendto(fd, "world", 5, 0, (struct sockaddr *)&peer, size), 5);
	REQUIRE(wait_for(&g, 2));
	host_lock(&g.lock);
	CHECK_MEM(g.last + 42, "world", 5);
	host_unlock(&g.lock);
	close(fd);
	end(&g);
}

enum { SYN = 2, ACK = 16 };

/* A TCP segment without data; the lock is held. */
static void segment(struct guest *g, unsigned port, uint32_t seq, uint32_t ack, unsigned flags)
{
	static const uint8_t mss[4] = {2, 4, 0xff, 0xc8};
	size_t len = flags & SYN ? 24 : 20;
	uint8_t *tcp = packet(g, "10.0.2.2", 6, len, 0), pseudo[12] = {0};

	memcpy(pseudo, tcp - 8, 8);
	pseudo[9] = 6;
	put16(pseudo + 10, (unsigned)len);
	put16(tcp, 1000);
	put16(tcp + 2, port);
	put16(tcp + 4, seq >> 16);
	put16(tcp + 6, seq & 0xffff);
	put16(tcp + 8, ack >> 16);
	put16(tcp + 10, ack & 0xffff);
	tcp[12] = (uint8_t)(len << 2);
	tcp[13] = (uint8_t)flags;
	put16(tcp + 14, 65480);
	put16(tcp + 16, add16(pseudo, 12));
	memcpy(tcp + 20, mss, len - 20);
	g->out[g->count - 1].header =
		(struct host_net_header){.flags = HOST_NET_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16};
}

static int listener(uint16_t *port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	REQUIRE(fd >= 0 && !bind(fd, (struct sockaddr *)&a, sizeof(a)) && !listen(fd, 1) &&
		!getsockname(fd, (struct sockaddr *)&a, &size));
	*port = ntohs(a.sin_port);
	return fd;
}

/* A guest that takes packets of 64 KiB has no window for two of them: several segments must fit in it. */
TEST(tcp_segments_are_a_part_of_the_window)
{
	static uint8_t data[KiB(64)];
	static struct guest g;
	uint16_t port;
	int s = listener(&port);

	start_with(&g, 65520);
	host_lock(&g.lock);
	arp(&g);
	segment(&g, port, 1, 0, SYN);
	go(&g);
	int fd = accept(s, NULL, NULL);
	REQUIRE(fd >= 0);
	REQUIRE(wait_for(&g, 2));
	host_lock(&g.lock);
	const uint8_t *tcp = g.last + 34;
	CHECK_EQ(tcp[13], SYN | ACK);
	uint32_t ack = (uint32_t)tcp[4] << 24 | (uint32_t)tcp[5] << 16 | (uint32_t)tcp[6] << 8 | tcp[7];
	segment(&g, port, 2, ack + 1, ACK);
	go(&g);
	CHECK_EQ(write(fd, data, sizeof(data)), (long)sizeof(data));
	REQUIRE(wait_for(&g, 3));
	host_lock(&g.lock);
	CHECK(g.longest > 10000 && g.longest - 54 <= 65535 / 3);
	host_unlock(&g.lock);
	end(&g);
	close(fd);
	close(s);
}

/* Frames of every length and of no sense. */
TEST(nonsense)
{
	static struct guest g;
	uint64_t seed = 1;

	log_set_level(LOG_ERROR);
	start(&g);
	host_lock(&g.lock);
	arp(&g);
	for (unsigned i = 0; i < 3000; i++) {
		static const uint8_t type[][2] = {{8, 0}, {8, 6}, {0x86, 0xdd}, {0x88, 0xf8}, {0, 0}};
		uint8_t *f = g.out[g.count].byte;
		packet(&g, "10.0.2.2", i % 3 ? 6 : 17, i % 200, 0);
		for (unsigned k = 0; k < i % 8; k++) {
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			f[14 + (seed >> 33) % 60] = (uint8_t)(seed >> 56);
		}
		memcpy(f + 12, type[i % 5], 2);
		g.out[g.count - 1].len = i % 3 ? g.out[g.count - 1].len : i % 70;
	}
	arp(&g);
	go(&g);
	CHECK(wait_sent(&g));
	unsigned before = got(&g);
	host_lock(&g.lock);
	g.count = g.next = 0;
	arp(&g);
	go(&g);
	CHECK(wait_for(&g, before + 1));
	end(&g);
	log_set_level(LOG_WARN);
}

static unsigned open_files(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 4096; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* Each datagram from another port would be a socket of ours; half of the descriptors stay free. */
TEST(sockets_are_bounded)
{
	static struct guest g;
	struct rlimit old, limit;
	uint16_t port;
	int fd = echo_socket(&port);
	unsigned before;

	REQUIRE(!getrlimit(RLIMIT_NOFILE, &old));
	limit = (struct rlimit){256, old.rlim_max};
	REQUIRE(!setrlimit(RLIMIT_NOFILE, &limit));
	log_set_level(LOG_ERROR);
	before = open_files();
	start(&g);
	host_lock(&g.lock);
	arp(&g);
	for (unsigned i = 0; i < 1000; i++)
		datagram(&g, "10.0.2.2", 2000 + i, port, "x");
	go(&g);
	CHECK(wait_sent(&g));
	CHECK(wait_for(&g, 1));
	host_lock(&g.lock);
	unsigned now = open_files();
	host_unlock(&g.lock);
	CHECK(now > before + 100 && now <= before + 140);
	end(&g);
	CHECK_EQ(open_files(), before);
	CHECK(!setrlimit(RLIMIT_NOFILE, &old));
	close(fd);
	log_set_level(LOG_WARN);
}

/* A datagram of `size` bytes, each piece of which is one of "order", which names blocks of 1000 bytes. */
static void in_fragments(struct guest *g, const char *order, unsigned port, size_t size, unsigned id)
{
	static uint8_t udp[8 + 65535];

	for (size_t i = 0; i < size; i++)
		udp[8 + i] = (uint8_t)(i * 7 + i / 256);
	put16(udp, 1000);
	put16(udp + 2, port);
	put16(udp + 4, 8 + (unsigned)size);
	put16(udp + 6, 0);
	for (; *order; order++) {
		size_t at = (size_t)(*order - '0') * 1000, n = MIN(1000, 8 + size - at);
		uint8_t *p = packet(g, "10.0.2.2", 17, n, (unsigned)at / 8 | (at + n < 8 + size ? 0x2000 : 0));
		memcpy(p, udp + at, n);
		put16(p - 16, id);
		put16(p - 10, 0);
		put16(p - 10, ~add16(p - 20, 20) & 0xffff);
	}
}

/* Fragments come in any order, twice, and never; what is whole arrives. */
TEST(fragments)
{
	static struct guest g;
	struct sockaddr_in peer;
	socklen_t len = sizeof(peer);
	uint16_t port;
	int fd = echo_socket(&port);
	static uint8_t got[65536];
	static const size_t sizes[] = {3500, 3992, 2500, 10};

	start(&g);
	host_lock(&g.lock);
	arp(&g);
	in_fragments(&g, "1", port, 1500, 90); /* the rest of these does not come */
	in_fragments(&g, "0", port, 1500, 91);
	in_fragments(&g, "0123", port, 3500, 92);
	in_fragments(&g, "3210", port, 3992, 93);
	in_fragments(&g, "20011", port, 2500, 94);
	in_fragments(&g, "0", port, 10, 95); /* no fragment */
	go(&g);
	CHECK(wait_sent(&g));
	for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
		CHECK_EQ(recvfrom(fd, got, sizeof(got), 0, (struct sockaddr *)&peer, &len), sizes[i]);
		for (size_t k = 0; k < sizes[i]; k++)
			CHECK(got[k] == (uint8_t)(k * 7 + k / 256));
	}
	close(fd);
	end(&g);
}

/* Fragments whose rest never comes take no more memory than a few datagrams; those that lie make none. */
TEST(fragments_are_bounded)
{
	static struct guest g;
	unsigned seed = 1;

	start(&g);
	for (unsigned round = 0; round < 20; round++) {
		host_lock(&g.lock);
		g.count = g.next = 0;
		for (unsigned i = 0; i < 4000; i++) {
			seed = seed * 1103515245 + 12345;
			packet(&g, "10.0.2.2", 17, round & 1 ? 1400 : seed >> 8 & 1023,
			       round < 10 ? 0x2000 : seed >> 16);
		}
		go(&g);
		CHECK(wait_sent(&g));
	}
#ifndef __SANITIZE_ADDRESS__ /* which keeps what is freed */
	/* 80000 buffers would be more than 100 MB. */
	struct rusage usage;
	CHECK(!getrusage(RUSAGE_SELF, &usage));
	CHECK(usage.ru_maxrss < 60 * 1024);
#endif
	end(&g);
}

/* A guest that takes nothing: what comes for it is refused, then waits in the host's sockets; and it can go on later.
 */
TEST(back_pressure)
{
	static struct guest g;
	struct sockaddr_in peer;
	socklen_t size = sizeof(peer);
	char text[1400] = "";
	uint16_t port;
	int fd = echo_socket(&port);

	start(&g);
	host_lock(&g.lock);
	arp(&g);
	datagram(&g, "10.0.2.2", 1000, port, "hello");
	go(&g);
	CHECK(recvfrom(fd, text, sizeof(text), 0, (struct sockaddr *)&peer, &size) == 5);
	REQUIRE(wait_for(&g, 1));
	host_lock(&g.lock);
	g.closed = true;
	host_unlock(&g.lock);
	for (unsigned i = 0; i < 40; i++)
		CHECK_EQ(sendto(fd, text, sizeof(text), 0, (struct sockaddr *)&peer, size), sizeof(text));
	host_sleep_ns(50000000);
	host_lock(&g.lock);
	CHECK(g.refused > 0 && g.refused < 20);
	CHECK_EQ(g.got, 1);
	g.closed = false;
	go(&g);
	CHECK(wait_for(&g, 41));
	close(fd);
	end(&g);
}

TEST(forwards)
{
	struct host_forward f;
	struct error err;
	static const uint8_t loopback[4] = {127, 0, 0, 1}, guest[4] = {10, 0, 2, 15}, other[4] = {10, 0, 2, 99};

	CHECK(host_forward_parse(&f, "tcp::2222-:22", &err));
	CHECK(!f.udp && !f.host.v6 && !f.guest.v6);
	CHECK_EQ(f.host.port, 2222);
	CHECK_EQ(f.guest.port, 22);
	CHECK_MEM(f.host.byte, loopback, 4);
	CHECK_MEM(f.guest.byte, guest, 4);
	CHECK(host_forward_parse(&f, "udp:0.0.0.0:65535-10.0.2.99:1", &err));
	CHECK(f.udp);
	CHECK_EQ(f.host.byte[0], 0);
	CHECK_MEM(f.guest.byte, other, 4);
	CHECK(host_forward_parse(&f, "tcp:[::1]:80-:80", &err));
	CHECK(f.host.v6 && f.guest.v6);
	CHECK_EQ(f.host.byte[15], 1);
	CHECK_EQ(f.guest.byte[0], 0xfe);
	CHECK(host_forward_parse(&f, "tcp:[::1]:80-[fec0::7]:80", &err));
	CHECK_EQ(f.guest.byte[15], 7);
	static const char *const bad[] = {
		"",
		"tcp",
		"tcp:",
		"tcp::-:",
		"tcp::80",
		"tcp::80-",
		"tcp::80-80x",
		"tcp::80-:80x",
		"tcp::+80-:80",
		"TCP::80-:80",
		"tcp:1.2.3:80-:80",
		"tcp:::1:80-:80",
		"tcp:[::1:80-:80",
		"tcp:[::1]:80-1.2.3.4:80",
		"tcp:1.2.3.4:80-[::1]:80",
		"tcp::0-:80",
		"tcp::65536-:80",
		"tcp::99999999999999999999-:80",
		"tcp::80-:80-:80",
		"udp 80 80",
		"tcp:[1111111111111111111111111111111111111111111111111111111111111111111111111111]:80-:80"};
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++)
		if (host_forward_parse(&f, bad[i], &err))
			UNIT_FAIL("'%s' is taken", bad[i]);
}

UNIT_MAIN()
