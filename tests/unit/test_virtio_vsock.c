/* virtio sockets: connections both ways, credit exact to the byte, ends, bounds, and a guest that breaks the rules. */
#include "unit.h"
#include "virtio_guest.h"

#include "dev/virtio_vsock.h"
#include "dev/vsock_conn.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ALL (F_VERSION_1 | F_EVENT_IDX | F_INDIRECT)
#define CID 5
#define GUEST_ROOM 4096u
#define RX_BUFFERS 8
#define RX_SIZE 2048u
enum { RX, TX, EVENT };

struct bench {
	struct rig r;
	struct drv d;
	char path[64];
	unsigned rx_next; /* the buffer whose turn it is */
	struct vsock_header h;
	uint8_t data[RX_SIZE];
};

static uint64_t rx_at(unsigned i)
{
	return RIG_BUFFERS + i * RX_SIZE;
}

static void offer(struct bench *b, unsigned i)
{
	drv_send(&b->d, &b->d.q[RX],
		 (struct guest_desc[]){{rx_at(i), 30, D_WRITE, 0}, {rx_at(i) + 30, RX_SIZE - 30, D_WRITE, 0}}, 2);
}

static void up(struct bench *b)
{
	drv_begin(&b->d, ALL);
	for (unsigned i = 0; i < 3; i++)
		drv_queue(&b->d, i, 64);
	drv_ok(&b->d);
	b->rx_next = 0;
	for (unsigned i = 0; i < RX_BUFFERS; i++)
		offer(b, i);
}

static void start(struct bench *b)
{
	static unsigned number;
	struct error err;

	memset(b, 0, sizeof(*b));
	snprintf(b->path, sizeof(b->path), "/tmp/doppel-test-vsock-%u-%u", (unsigned)getpid(), number++);
	rig_init(&b->r);
	if (!virtio_vsock_create(b->r.pci, &b->r.mem, &(struct vsock_config){b->path, CID}, &b->r.dev, &err))
		rig_die(err.text);
	b->r.has_dev = true;
	drv_find(&b->d, &b->r, 1);
	up(b);
}

/* ---- The guest's side ---- */

static void send_from(struct bench *b, uint64_t cid, uint32_t host_port, uint32_t port, unsigned op, uint32_t flags,
		      uint32_t passed, const void *data, uint32_t len)
{
	struct vsock_header h = {.src_cid = cid,
				 .dst_cid = VSOCK_HOST,
				 .src_port = port,
				 .dst_port = host_port,
				 .len = len,
				 .type = VSOCK_STREAM,
				 .op = (uint16_t)op,
				 .flags = flags,
				 .buf_alloc = GUEST_ROOM,
				 .fwd_cnt = passed};
	uint64_t at = RIG_BUFFERS + MiB(1);
	struct guest_used used;

	guest_memory_write(&b->r.mem, at, &h, sizeof(h));
	guest_memory_write(&b->r.mem, at + sizeof(h), data, len);
	drv_send(&b->d, &b->d.q[TX], (struct guest_desc[]){{at, 20, 0, 0}, {at + 20, sizeof(h) - 20 + len, 0, 0}}, 2);
	REQUIRE(drv_take(&b->d, &b->d.q[TX], &used));
}

static void say(struct bench *b, uint32_t host_port, uint32_t port, unsigned op, uint32_t flags)
{
	send_from(b, CID, host_port, port, op, flags, 0, "", 0);
}

/* The next packet to the guest; false: none for a while. */
static bool hear(struct bench *b)
{
	struct guest_used used;
	uint64_t at = rx_at(b->rx_next);

	if (!drv_take(&b->d, &b->d.q[RX], &used))
		return false;
	guest_memory_read(&b->r.mem, at, &b->h, sizeof(b->h));
	REQUIRE(used.len == sizeof(b->h) + b->h.len && used.len <= RX_SIZE);
	guest_memory_read(&b->r.mem, at + sizeof(b->h), b->data, b->h.len);
	CHECK(b->h.dst_cid == CID && b->h.type == VSOCK_STREAM && b->h.buf_alloc <= VSOCK_RING);
	offer(b, b->rx_next);
	b->rx_next = (b->rx_next + 1) % RX_BUFFERS;
	return true;
}

static bool quiet(struct bench *b)
{
	host_sleep_ns(3000000);
	return !drv_used_ready(&b->d, &b->d.q[RX]);
}

static void expect(struct bench *b, unsigned op, uint32_t host_port, uint32_t port)
{
	REQUIRE(hear(b));
	CHECK_EQ(b->h.op, op);
	CHECK_EQ(b->h.src_port, host_port);
	CHECK_EQ(b->h.dst_port, port);
}

/* ---- The host's side ---- */

static int host_socket(const char *path, bool server)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	struct timeval patience = {.tv_sec = 5};

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (server ? bind(fd, (void *)&a, sizeof(a)) || listen(fd, 8) : connect(fd, (void *)&a, sizeof(a)))
		rig_die(strerror(errno));
	return fd;
}

static int client(struct bench *b, const char *line)
{
	int fd = host_socket(b->path, false);

	REQUIRE(write(fd, line, strlen(line)) == (ssize_t)strlen(line));
	return fd;
}

static void expect_line(int fd, const char *text)
{
	char got[64] = "";

	REQUIRE(recv(fd, got, strlen(text), MSG_WAITALL) == (ssize_t)strlen(text));
	CHECK(!strcmp(got, text));
}

static bool ended(int fd)
{
	char byte;

	return recv(fd, &byte, 1, 0) == 0;
}

/* A connection from the host to port 77 of the guest; *host_port is what it is called. */
static int connected(struct bench *b, uint32_t *host_port)
{
	char line[32];
	int fd = client(b, "CONNECT 77\n");

	REQUIRE(hear(b));
	CHECK_EQ(b->h.op, VSOCK_REQUEST);
	CHECK_EQ(b->h.dst_port, 77);
	CHECK_EQ(b->h.src_cid, VSOCK_HOST);
	*host_port = b->h.src_port;
	say(b, *host_port, 77, VSOCK_RESPONSE, 0);
	snprintf(line, sizeof(line), "OK %u\n", *host_port);
	expect_line(fd, line);
	return fd;
}

TEST(from_host_to_guest)
{
	static struct bench b;
	uint32_t port;

	start(&b);
	CHECK_EQ(cfg_read(&b.r, 1, PCI_VENDOR_ID, 4), 0x10531af4);
	CHECK_EQ(mmio_read(&b.r, b.d.device, 8), CID);
	int fd = connected(&b, &port);
	REQUIRE(write(fd, "hello", 5) == 5);
	expect(&b, VSOCK_RW, port, 77);
	CHECK_EQ(b.h.len, 5);
	CHECK_MEM(b.data, "hello", 5);
	send_from(&b, CID, port, 77, VSOCK_RW, 0, 5, "hi there", 8);
	expect_line(fd, "hi there");
	/* The host is done with sending, and still reads. */
	shutdown(fd, SHUT_WR);
	expect(&b, VSOCK_SHUTDOWN, port, 77);
	CHECK_EQ(b.h.flags, VSOCK_NO_SEND);
	CHECK_EQ(b.h.fwd_cnt, 8);
	send_from(&b, CID, port, 77, VSOCK_RW, 0, 5, "bye", 3);
	expect_line(fd, "bye");
	say(&b, port, 77, VSOCK_SHUTDOWN, VSOCK_NO_SEND | VSOCK_NO_RECEIVE);
	expect(&b, VSOCK_RST, port, 77);
	CHECK(ended(fd));
	close(fd);
	say(&b, port, 77, VSOCK_CREDIT_UPDATE, 0); /* no such connection any more */
	expect(&b, VSOCK_RST, port, 77);
	CHECK(quiet(&b));
	rig_end(&b.r);
	CHECK(access(b.path, F_OK)); /* the socket is gone */
}

TEST(from_guest_to_host)
{
	static struct bench b;
	char path[96];

	start(&b);
	snprintf(path, sizeof(path), "%s_1234", b.path);
	say(&b, 1234, 9, VSOCK_REQUEST, 0); /* nobody there */
	expect(&b, VSOCK_RST, 1234, 9);
	int server = host_socket(path, true);
	say(&b, 1234, 9, VSOCK_REQUEST, 0);
	expect(&b, VSOCK_RESPONSE, 1234, 9);
	CHECK_EQ(b.h.buf_alloc, VSOCK_RING);
	int fd = accept(server, NULL, NULL);
	send_from(&b, CID, 1234, 9, VSOCK_RW, 0, 0, "question", 8);
	expect_line(fd, "question");
	REQUIRE(write(fd, "answer", 6) == 6);
	close(fd); /* what was written before arrives, and then the end */
	expect(&b, VSOCK_RW, 1234, 9);
	CHECK_MEM(b.data, "answer", 6);
	expect(&b, VSOCK_SHUTDOWN, 1234, 9);
	send_from(&b, CID, 1234, 9, VSOCK_RW, 0, 6, "more", 4); /* to nobody */
	expect(&b, VSOCK_RST, 1234, 9);
	/* What the guest says before it resets arrives. */
	say(&b, 1234, 10, VSOCK_REQUEST, 0);
	expect(&b, VSOCK_RESPONSE, 1234, 10);
	fd = accept(server, NULL, NULL);
	send_from(&b, CID, 1234, 10, VSOCK_RW, 0, 0, "last", 4);
	say(&b, 1234, 10, VSOCK_RST, 0);
	expect_line(fd, "last");
	CHECK(ended(fd));
	CHECK(quiet(&b));
	close(fd);
	close(server);
	unlink(path);
	rig_end(&b.r);
}

/* The host's data never exceeds what the guest has room for, to the byte. */
TEST(credit_of_the_guest)
{
	static struct bench b;
	static uint8_t sent[3 * GUEST_ROOM], got[3 * GUEST_ROOM];
	uint32_t port, have = 0, passed = 0;

	start(&b);
	int fd = connected(&b, &port);
	for (unsigned i = 0; i < sizeof(sent); i++)
		sent[i] = (uint8_t)(i * 7 + i / 251);
	REQUIRE(write(fd, sent, sizeof(sent)) == sizeof(sent));
	while (have < sizeof(sent)) {
		while (have - passed < GUEST_ROOM && have < sizeof(sent)) {
			expect(&b, VSOCK_RW, port, 77);
			REQUIRE(have + b.h.len <= sizeof(got) && have + b.h.len - passed <= GUEST_ROOM);
			memcpy(got + have, b.data, b.h.len);
			have += b.h.len;
		}
		CHECK(quiet(&b));
		passed = MIN(have, passed + 1000);
		send_from(&b, CID, port, 77, VSOCK_CREDIT_UPDATE, 0, passed, "", 0);
	}
	CHECK_MEM(sent, got, sizeof(sent));
	/* A count that cannot be is no room. */
	send_from(&b, CID, port, 77, VSOCK_CREDIT_UPDATE, 0, have + 5, "", 0);
	REQUIRE(write(fd, "x", 1) == 1);
	CHECK(quiet(&b));
	send_from(&b, CID, port, 77, VSOCK_CREDIT_UPDATE, 0, have, "", 0);
	expect(&b, VSOCK_RW, port, 77);
	close(fd);
	rig_end(&b.r);
}

/* A host's program that does not read: the guest's data is held up to what was promised, and not a byte more. */
TEST(credit_of_the_host)
{
	static struct bench b;
	static uint8_t chunk[1000];
	uint32_t port, passed = 0, sent = 0, said;
	uint64_t got = 0;

	start(&b);
	int fd = connected(&b, &port);
	/* As long as there is room. */
	for (;;) {
		uint32_t room = VSOCK_RING - (sent - passed), n = MIN(room, (uint32_t)sizeof(chunk));
		if (!n)
			break;
		send_from(&b, CID, port, 77, VSOCK_RW, 0, 0, chunk, n);
		sent += n;
		while (drv_used_ready(&b.d, &b.d.q[RX])) {
			expect(&b, VSOCK_CREDIT_UPDATE, port, 77);
			passed = b.h.fwd_cnt;
		}
		if (sent - passed == VSOCK_RING) {
			say(&b, port, 77, VSOCK_CREDIT_REQUEST, 0);
			expect(&b, VSOCK_CREDIT_UPDATE, port, 77);
			passed = b.h.fwd_cnt;
		}
	}
	CHECK_EQ(sent - passed, VSOCK_RING);
	/* The host reads: all of it comes, and the guest hears of room. */
	while (got < sent) {
		static uint8_t buf[65536];
		ssize_t n = recv(fd, buf, sizeof(buf), 0);
		REQUIRE(n > 0);
		got += (uint64_t)n;
	}
	CHECK_EQ(got, sent);
	say(&b, port, 77, VSOCK_CREDIT_REQUEST, 0);
	do {
		expect(&b, VSOCK_CREDIT_UPDATE, port, 77);
		said = b.h.fwd_cnt;
	} while (said != sent && !quiet(&b));
	CHECK_EQ(said, sent);
	CHECK_EQ(b.h.buf_alloc, VSOCK_RING);
	while (!quiet(&b))
		expect(&b, VSOCK_CREDIT_UPDATE, port, 77);
	/* More than there is room for at once: cut off. */
	static uint8_t much[VSOCK_RING + 1];
	send_from(&b, CID, port, 77, VSOCK_RW, 0, 0, much, sizeof(much));
	expect(&b, VSOCK_RST, port, 77);
	CHECK(ended(fd));
	close(fd);
	rig_end(&b.r);
}

TEST(greetings)
{
	static struct bench b;
	static const char *const bad[] = {"CONNECT\n",
					  "GET / HTTP/1.0\n",
					  "CONNECT x\n",
					  "CONNECT 77 \n",
					  "\n",
					  "CONNECT 99999999999999\n",
					  "0123456789012345678901234567890123456789"};
	uint32_t port;

	start(&b);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		int fd = client(&b, bad[i]);
		char byte;
		CHECK(recv(fd, &byte, 1, 0) <= 0);
		close(fd);
	}
	CHECK(quiet(&b));
	/* Bit by bit, and data along with it. */
	int fd = client(&b, "CONN");
	host_sleep_ns(2000000);
	REQUIRE(write(fd, "ECT 77\nabc", 10) == 10);
	REQUIRE(hear(&b));
	CHECK_EQ(b.h.op, VSOCK_REQUEST);
	port = b.h.src_port;
	CHECK(quiet(&b)); /* no data before the guest has agreed */
	say(&b, port, 77, VSOCK_RESPONSE, 0);
	expect(&b, VSOCK_RW, port, 77);
	CHECK_MEM(b.data, "abc", 3);
	close(fd);
	/* The guest refuses. */
	expect(&b, VSOCK_SHUTDOWN, port, 77);
	fd = client(&b, "CONNECT 78\n");
	REQUIRE(hear(&b));
	CHECK_EQ(b.h.op, VSOCK_REQUEST);
	say(&b, b.h.src_port, 78, VSOCK_RST, 0);
	CHECK(ended(fd));
	close(fd);
	rig_end(&b.r);
}

TEST(many_connections)
{
	static struct bench b;
	static int fd[300];
	static uint32_t port[256];
	unsigned n = 0;

	start(&b);
	for (; n < 256; n++)
		fd[n] = connected(&b, &port[n]);
	/* The table is full: others wait, until one ends. */
	fd[256] = client(&b, "CONNECT 77\n");
	CHECK(quiet(&b));
	say(&b, 1, 500, VSOCK_REQUEST, 0);
	expect(&b, VSOCK_RST, 1, 500);
	say(&b, port[7], 77, VSOCK_SHUTDOWN, 3);
	expect(&b, VSOCK_RST, port[7], 77);
	REQUIRE(hear(&b));
	CHECK_EQ(b.h.op, VSOCK_REQUEST);
	CHECK(ended(fd[7]));
	for (unsigned i = 0; i < 257; i++)
		close(fd[i]);
	rig_end(&b.r);
}

TEST(abuse)
{
	static struct bench b;
	uint32_t port;

	start(&b);
	log_set_level(LOG_ERROR);
	/* Things out of place end the connection and nothing else. */
	static const struct {
		unsigned op;
		uint32_t flags;
	} bad[] = {{VSOCK_REQUEST, 0}, {VSOCK_RESPONSE, 0}, {0, 0}, {99, 0}};
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		int fd = connected(&b, &port);
		say(&b, port, 77, bad[i].op, bad[i].flags);
		expect(&b, VSOCK_RST, port, 77);
		CHECK(ended(fd));
		close(fd);
	}
	int fd = connected(&b, &port);
	say(&b, port, 77, VSOCK_SHUTDOWN, VSOCK_NO_SEND);
	CHECK(ended(fd));
	send_from(&b, CID, port, 77, VSOCK_RW, 0, 0, "after all", 9);
	expect(&b, VSOCK_RST, port, 77);
	close(fd);
	/* Data before the answer. */
	fd = client(&b, "CONNECT 77\n");
	REQUIRE(hear(&b));
	port = b.h.src_port;
	send_from(&b, CID, port, 77, VSOCK_RW, 0, 0, "early", 5);
	expect(&b, VSOCK_RST, port, 77);
	close(fd);
	/* Somebody else's address, and another kind of socket. */
	send_from(&b, CID + 1, 5, 6, VSOCK_REQUEST, 0, 0, "", 0);
	CHECK(quiet(&b));
	/* Many refusals and nowhere to put them: packets wait, nothing is lost. */
	for (unsigned i = 0; i < RX_BUFFERS + 40; i++)
		say(&b, 5, 600 + i, VSOCK_RW, 0);
	for (unsigned i = 0; i < RX_BUFFERS + 40; i++) {
		REQUIRE(hear(&b));
		CHECK_EQ(b.h.op, VSOCK_RST);
	}
	/* Packets that are none. */
	drv_send(&b.d, &b.d.q[TX], &(struct guest_desc){RIG_BUFFERS, 43, 0, 0}, 1);
	CHECK(drv_wait_status(&b.d, S_NEEDS_RESET));
	up(&b);
	struct vsock_header h = {.src_cid = CID, .len = 100};
	guest_memory_write(&b.r.mem, RIG_BUFFERS + MiB(1), &h, sizeof(h));
	drv_send(&b.d, &b.d.q[TX], &(struct guest_desc){RIG_BUFFERS + MiB(1), sizeof(h) + 99, 0, 0}, 1);
	CHECK(drv_wait_status(&b.d, S_NEEDS_RESET));
	up(&b);
	close(connected(&b, &port));
	/* A reset ends all connections. */
	expect(&b, VSOCK_SHUTDOWN, port, 77);
	fd = connected(&b, &port);
	b.r.dev.reset(b.r.dev.opaque);
	CHECK(ended(fd));
	close(fd);
	drv_find(&b.d, &b.r, 1);
	up(&b);
	close(connected(&b, &port));
	log_set_level(LOG_WARN);
	rig_end(&b.r);
}

TEST(loading_ends_connections_and_tells_the_guest)
{
	static struct bench a, b;
	struct state_stream s = {.saving = true};
	struct guest_used used;
	uint32_t port, event = 99;

	start(&a);
	start(&b);
	int fd = connected(&a, &port);
	a.r.dev.pause(a.r.dev.opaque);
	a.r.dev.state(a.r.dev.opaque, &s);
	CHECK(!s.failed);
	b.r.dev.pause(b.r.dev.opaque);
	memcpy(rig_at(&b.r, 0, RIG_MEMORY), rig_at(&a.r, 0, RIG_MEMORY), RIG_MEMORY);
	struct state_stream l = {.data = s.data, .len = s.len};
	b.r.dev.state(b.r.dev.opaque, &l);
	CHECK(!l.failed && l.pos == l.len);
	b.r.dev.resume(b.r.dev.opaque);
	a.r.dev.resume(a.r.dev.opaque);
	struct drv d = a.d; /* the same driver, in both machines from now on */
	d.r = &b.r;
	uint64_t at = RIG_BUFFERS + MiB(2);
	guest_memory_write(&b.r.mem, at, &event, 4);
	drv_send(&d, &d.q[EVENT], &(struct guest_desc){at, 4, D_WRITE, 0}, 1);
	REQUIRE(drv_take(&d, &d.q[EVENT], &used));
	guest_memory_read(&b.r.mem, at, &event, 4);
	CHECK_EQ(event, 0);
	/* Where it was saved it goes on. */
	REQUIRE(write(fd, "x", 1) == 1);
	expect(&a, VSOCK_RW, port, 77);
	log_set_level(LOG_ERROR);
	for (unsigned i = 0; i < 1000; i++) {
		uint8_t *copy = malloc(s.len);
		memcpy(copy, s.data, s.len);
		copy[i % s.len] ^= 1 + i % 255;
		l = (struct state_stream){.data = copy, .len = i & 1 ? s.len : i % s.len};
		b.r.dev.state(b.r.dev.opaque, &l);
		free(copy);
	}
	close(fd);
	free(s.data);
	rig_end(&a.r);
	rig_end(&b.r);
	log_set_level(LOG_WARN);
}

TEST(mistakes)
{
	static struct bench b;
	struct error err;
	struct device other;
	char longest[200];

	start(&b);
	CHECK(!virtio_vsock_create(b.r.pci, &b.r.mem, &(struct vsock_config){b.path, CID}, &other, &err));
	CHECK(strstr(err.text, b.path));
	CHECK(!virtio_vsock_create(b.r.pci, &b.r.mem, &(struct vsock_config){"/nonexistent/x", CID}, &other, &err));
	CHECK(strstr(err.text, "/nonexistent/x"));
	CHECK(!virtio_vsock_create(b.r.pci, &b.r.mem, &(struct vsock_config){"/tmp/x", 2}, &other, &err));
	CHECK(strstr(err.text, "cid 2"));
	memset(longest, 'x', sizeof(longest));
	longest[199] = 0;
	CHECK(!virtio_vsock_create(b.r.pci, &b.r.mem, &(struct vsock_config){longest, CID}, &other, &err));
	CHECK(strstr(err.text, "96 bytes"));
	rig_end(&b.r);
}

UNIT_MAIN()
