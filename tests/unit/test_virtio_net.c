/* The network device with a back end of the test's own: frames both ways, merged buffers, offloads, caps, abuse. */
#include "unit.h"
#include "virtio_guest.h"

#include "dev/virtio_net.h"

#define F_CSUM BIT(0)
#define F_GUEST_CSUM BIT(1)
#define F_CTRL_OFFLOADS BIT(2)
#define F_MTU BIT(3)
#define F_MAC BIT(5)
#define F_GUEST_TSO4 BIT(7)
#define F_HOST_TSO4 BIT(11)
#define F_MRG BIT(15)
#define F_STATUS BIT(16)
#define F_CTRL BIT(17)
#define PLAIN (F_VERSION_1 | F_EVENT_IDX | F_INDIRECT)
#define ALL                                                                                                     \
	(PLAIN | F_CSUM | F_GUEST_CSUM | F_CTRL_OFFLOADS | F_MTU | F_MAC | F_GUEST_TSO4 | F_HOST_TSO4 | F_MRG | \
	 F_STATUS | F_CTRL)
#define RX 0
#define TX 1
#define CTRL 2
#define HEADER 12
#define QUEUE 64

struct bench {
	struct host_net net; /* the back end */
	const struct host_net_client *client;
	void *opaque;
	atomic_uint wakes;
	unsigned closed, sent;
	struct host_net_header header; /* of the last frame sent */
	uint8_t frame[HOST_NET_FRAME_MAX];
	size_t len, answer; /* of the frame that `send` brings at once for the guest */
	struct host_net_offloads takes;

	struct rig r;
	struct drv d;
};

static bool give(struct bench *b, const uint8_t *frame, size_t len)
{
	const struct host_net_header h = {.flags = HOST_NET_DATA_VALID};

	return b->client->receive(b->opaque, &h, frame, len);
}

static bool fake_start(struct host_net *net, const struct host_net_client *client, void *opaque, struct error *err)
{
	struct bench *b = container_of(net, struct bench, net);

	b->client = client;
	b->opaque = opaque;
	return true;
}

static void fake_wake(struct host_net *net)
{
	container_of(net, struct bench, net)->wakes++;
}

static void fake_send(struct host_net *net, const struct host_net_header *header, const struct host_iovec *iov,
		      unsigned n, size_t len)
{
	struct bench *b = container_of(net, struct bench, net);
	size_t at = 0;

	for (unsigned i = 0; i < n; at += iov[i++].len) {
		REQUIRE(at + iov[i].len <= sizeof(b->frame));
		memcpy(b->frame + at, iov[i].base, iov[i].len);
	}
	CHECK_EQ(at, len);
	b->header = *header;
	b->len = len;
	b->sent++;
	if (b->answer)
		CHECK(give(b, b->frame, b->answer));
}

static void fake_takes(struct host_net *net, const struct host_net_offloads *offloads)
{
	container_of(net, struct bench, net)->takes = *offloads;
}

static void fake_close(struct host_net *net)
{
	container_of(net, struct bench, net)->closed++;
}

static const struct host_net_ops fake_ops = {fake_start, fake_wake, fake_send, fake_takes, fake_close};

static void negotiate(struct bench *b, uint64_t features)
{
	CHECK(drv_begin(&b->d, features) & S_FEATURES_OK);
	drv_queue(&b->d, RX, QUEUE);
	drv_queue(&b->d, TX, QUEUE);
	if (b->d.features & F_CTRL)
		drv_queue(&b->d, CTRL, QUEUE);
	drv_ok(&b->d);
}

static void start(struct bench *b, uint64_t features, uint64_t bps)
{
	const struct host_net_offloads all = {true, true, true, true};
	struct virtio_net_config c = {{2, 3, 4, 5, 6, 7}, 9000, bps, &b->net};
	struct error err;

	memset(b, 0, sizeof(*b));
	b->net = (struct host_net){&fake_ops, all, all};
	rig_init(&b->r);
	if (!virtio_net_create(b->r.pci, &b->r.mem, &c, &b->r.dev, &err))
		rig_die(err.text);
	b->r.has_dev = true;
	drv_find(&b->d, &b->r, 1);
	negotiate(b, features);
}

static void end(struct bench *b)
{
	rig_end(&b->r);
	CHECK_EQ(b->closed, 1);
}

static struct host_net_turn turn(struct bench *b)
{
	return b->client->turn(b->opaque);
}

/* Room for `n` frames of `len` bytes, header included, from RIG_BUFFERS on. */
static void room(struct bench *b, unsigned n, uint32_t len)
{
	for (unsigned i = 0; i < n; i++)
		drv_send(&b->d, &b->d.q[RX], &(struct guest_desc){RIG_BUFFERS + i * len, len, D_WRITE, 0}, 1);
}

static const uint8_t *at(struct bench *b, uint64_t gpa)
{
	return rig_at(&b->r, gpa, 1);
}

static unsigned buffers(struct bench *b, uint64_t gpa)
{
	return at(b, gpa)[10] | at(b, gpa)[11] << 8;
}

static uint8_t pattern[HOST_NET_FRAME_MAX];

__attribute__((constructor)) static void make_pattern(void)
{
	for (unsigned i = 0; i < sizeof(pattern); i++)
		pattern[i] = (uint8_t)(i * 7 + i / 251);
}

TEST(identity)
{
	static struct bench b;

	start(&b, ALL, 0);
	CHECK_EQ(cfg_read(&b.r, 1, PCI_VENDOR_ID, 4), 0x10411af4);
	CHECK_EQ(cfg_read(&b.r, 1, PCI_CLASS, 2), 0x0000);
	CHECK_EQ(cfg_read(&b.r, 1, PCI_CLASS + 2, 1), 2);
	CHECK_EQ(b.d.features, ALL);
	CHECK_EQ(common_read(&b.d, C_QUEUES, 2), 3);
	for (unsigned i = 0; i < 6; i++)
		CHECK_EQ(mmio_read(&b.r, b.d.device + i, 1), 2 + i);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 6, 2), 1);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 8, 2), 1);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 10, 2), 9000);
	CHECK(b.takes.csum && b.takes.tso4 && !b.takes.tso6);
	end(&b);
}

TEST(sends_from_pieces)
{
	static struct bench b;
	struct guest_used used;
	uint8_t header[HEADER] = {1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0};

	start(&b, ALL, 0);
	guest_memory_write(&b.r.mem, RIG_BUFFERS, header, HEADER);
	guest_memory_write(&b.r.mem, RIG_BUFFERS + HEADER, pattern, 5000);
	/* Header and data in one; split within the header; header alone. */
	const struct guest_desc one[] = {{RIG_BUFFERS, HEADER + 5000, 0, 0}};
	const struct guest_desc two[] = {{RIG_BUFFERS, 5, 0, 0}, {RIG_BUFFERS + 5, 7 + 5000, 0, 0}};
	const struct guest_desc three[] = {
		{RIG_BUFFERS, HEADER, 0, 0}, {RIG_BUFFERS + HEADER, 1, 0, 0}, {RIG_BUFFERS + HEADER + 1, 4999, 0, 0}};
	const struct guest_desc *const form[] = {one, two, three};
	for (unsigned i = 0; i < 3; i++) {
		unsigned wakes = b.wakes;
		drv_send(&b.d, &b.d.q[TX], form[i], i + 1);
		CHECK(b.wakes > wakes);
		struct host_net_turn t = turn(&b);
		CHECK(!t.again && !t.still && t.receive);
		REQUIRE(drv_take(&b.d, &b.d.q[TX], &used));
		CHECK_EQ(used.len, 0);
		CHECK_EQ(b.sent, i + 1);
		CHECK_EQ(b.len, 5000);
		CHECK_MEM(b.frame, pattern, 5000);
		CHECK_MEM(&b.header, header, 10);
	}
	end(&b);
}

/* The driver hears of sent frames late, and of several at once; not while paused. */
TEST(tells_late_what_was_sent)
{
	static struct bench b;
	struct guest_desc piece = {RIG_BUFFERS, HEADER + 60, 0, 0};

	start(&b, ALL, 0);
	for (unsigned i = 0; i < 3; i++) {
		unsigned line = b.r.line[1];
		CHECK(!line);
		drv_send(&b.d, &b.d.q[TX], &piece, 1);
		drv_send(&b.d, &b.d.q[TX], &piece, 1);
		uint64_t before = host_now_ns();
		struct host_net_turn t = turn(&b);
		CHECK(drv_used_ready(&b.d, &b.d.q[TX]));
		CHECK(b.r.line[1] == 0 || host_now_ns() >= before + 1000000);
		b.r.dev.pause(b.r.dev.opaque);
		host_sleep_ns(1200000);
		turn(&b);
		CHECK(b.r.line[1] == 0 || t.when == HOST_NET_NEVER);
		b.r.dev.resume(b.r.dev.opaque);
		t = turn(&b);
		CHECK_EQ(b.r.line[1], 1);
		CHECK(t.when == HOST_NET_NEVER);
		mmio_read(&b.r, b.d.isr, 1);
		*(uint16_t *)((uint8_t *)drv_avail(&b.d, &b.d.q[TX]) + 4 + 2 * QUEUE) = b.d.q[TX].avail_idx;
	}
	end(&b);
}

/* A guest that sends without end does not keep the back end from the other direction. */
TEST(sends_a_bounded_burst_at_a_turn)
{
	static struct bench b;
	struct guest_desc piece = {RIG_BUFFERS, HEADER + 60, 0, 0};

	start(&b, ALL, 0);
	drv_begin(&b.d, ALL);
	drv_queue(&b.d, TX, 256);
	drv_ok(&b.d);
	for (unsigned i = 0; i < 100; i++)
		drv_send(&b.d, &b.d.q[TX], &piece, 1);
	CHECK(turn(&b).again);
	CHECK_EQ(b.sent, 64);
	CHECK(!turn(&b).again);
	CHECK_EQ(b.sent, 100);
	end(&b);
}

TEST(receives_into_one_buffer)
{
	static struct bench b;
	struct guest_used used;

	start(&b, PLAIN | F_MTU, 0);
	CHECK(!give(&b, pattern, 60));
	unsigned wakes = b.wakes;
	room(&b, 2, 2048);
	CHECK(b.wakes > wakes);
	CHECK(give(&b, pattern, 60));
	REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
	CHECK_EQ(used.len, HEADER + 60);
	CHECK_EQ(buffers(&b, RIG_BUFFERS), 1);
	CHECK_EQ(at(&b, RIG_BUFFERS)[0], 0); /* no word on checksums without the feature */
	CHECK_MEM(at(&b, RIG_BUFFERS + HEADER), pattern, 60);
	/* Longer than the buffer, which must still be there for the next one. */
	CHECK(give(&b, pattern, 4000));
	CHECK(give(&b, pattern + 1, 100));
	REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
	CHECK_EQ(used.len, HEADER + 100);
	CHECK_MEM(at(&b, RIG_BUFFERS + 2048 + HEADER), pattern + 1, 100);
	CHECK(!drv_used_ready(&b.d, &b.d.q[RX]));
	CHECK(!give(&b, pattern, 60));
	end(&b);
}

TEST(merges_buffers)
{
	static struct bench b;
	struct guest_used used;

	start(&b, ALL, 0);
	room(&b, 2, 1500);
	/* Not enough of them yet: nothing may be seen of it. */
	CHECK(!give(&b, pattern, 4000));
	CHECK(!drv_used_ready(&b.d, &b.d.q[RX]));
	unsigned wakes = b.wakes;
	for (unsigned i = 2; i < 5; i++)
		drv_send(&b.d, &b.d.q[RX], &(struct guest_desc){RIG_BUFFERS + i * 1500, 1500, D_WRITE, 0}, 1);
	CHECK(b.wakes > wakes);
	CHECK(give(&b, pattern, 4000));
	size_t left = HEADER + 4000;
	for (unsigned i = 0; i < 3; i++) {
		REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
		CHECK_EQ(used.len, MIN(left, 1500u));
		left -= used.len;
	}
	CHECK_EQ(left, 0);
	CHECK_EQ(buffers(&b, RIG_BUFFERS), 3);
	CHECK_EQ(at(&b, RIG_BUFFERS)[0], HOST_NET_DATA_VALID);
	CHECK_MEM(at(&b, RIG_BUFFERS + HEADER), pattern, 4000);
	/* The other two are as they were. */
	CHECK(give(&b, pattern, 2988));
	CHECK_EQ(buffers(&b, RIG_BUFFERS + 4500), 2);
	CHECK(!give(&b, pattern, 60));
	end(&b);
}

/* More than the driver's ring will ever hold: dropped, not waited for. */
TEST(larger_than_the_ring)
{
	static struct bench b;

	start(&b, ALL, 0);
	drv_begin(&b.d, ALL);
	drv_queue(&b.d, RX, 8);
	drv_ok(&b.d);
	room(&b, 8, 1500);
	CHECK(give(&b, pattern, 60000));
	CHECK(give(&b, pattern, 8 * 1500 - HEADER - 3000));
	CHECK_EQ(buffers(&b, RIG_BUFFERS), 6);
	end(&b);
}

/* What is sent may bring an answer at once, as from a gateway in this process. */
TEST(answers_while_sending)
{
	static struct bench b;
	struct guest_used used;
	struct guest_desc piece = {RIG_BUFFERS + 0x40000, HEADER + 5000, 0, 0};

	start(&b, ALL, 0);
	room(&b, 20, 1500);
	b.answer = 5000;
	for (unsigned i = 0; i < 3; i++) {
		unsigned head = drv_send(&b.d, &b.d.q[TX], &piece, 1);
		turn(&b);
		REQUIRE(drv_take(&b.d, &b.d.q[TX], &used));
		CHECK_EQ(used.id, head);
		for (unsigned k = 0; k < 4; k++) {
			REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
			CHECK_EQ(used.id, 4 * i + k);
		}
	}
	end(&b);
}

TEST(only_what_was_agreed_on)
{
	static struct bench b;
	struct host_net_header h = {.gso_type = HOST_NET_GSO_TCPV4, .gso_size = 1460, .flags = HOST_NET_NEEDS_CSUM};

	start(&b, PLAIN | F_MRG | F_GUEST_CSUM | F_GUEST_TSO4, 0);
	room(&b, 40, 2048);
	CHECK(b.client->receive(b.opaque, &h, pattern, 30000));
	CHECK(drv_used_ready(&b.d, &b.d.q[RX]));
	negotiate(&b, PLAIN | F_MRG);
	room(&b, 40, 2048);
	CHECK(!b.takes.csum && !b.takes.tso4);
	CHECK(b.client->receive(b.opaque, &h, pattern, 30000));
	h.gso_type = 0;
	CHECK(b.client->receive(b.opaque, &h, pattern, 1000));
	/* A driver that did not read the MTU. */
	CHECK(give(&b, pattern, 1519));
	CHECK(!drv_used_ready(&b.d, &b.d.q[RX]));
	CHECK(give(&b, pattern, 1518));
	CHECK(drv_used_ready(&b.d, &b.d.q[RX]));
	end(&b);
}

static uint8_t command(struct bench *b, const void *cmd, uint32_t len)
{
	struct guest_used used = {0};
	const struct guest_desc piece[] = {{RIG_BUFFERS, len, 0, 0}, {RIG_BUFFERS + 100, 1, D_WRITE, 0}};
	uint8_t ack = 0xee;

	guest_memory_write(&b->r.mem, RIG_BUFFERS, cmd, len);
	guest_memory_write(&b->r.mem, RIG_BUFFERS + 100, &ack, 1);
	drv_send(&b->d, &b->d.q[CTRL], piece, 2);
	turn(b);
	CHECK(drv_take(&b->d, &b->d.q[CTRL], &used));
	CHECK_EQ(used.len, 1);
	return *at(b, RIG_BUFFERS + 100);
}

TEST(control)
{
	static struct bench b;
	uint8_t off[10] = {5, 0}, csum[10] = {5, 0, F_GUEST_CSUM}, much[10] = {5, 0, 0xff, 0xff}, other[10] = {0, 0, 1};

	start(&b, ALL, 0);
	CHECK_EQ(command(&b, off, sizeof(off)), 0);
	CHECK(!b.takes.csum && !b.takes.tso4);
	CHECK_EQ(command(&b, csum, sizeof(csum)), 0);
	CHECK(b.takes.csum && !b.takes.tso4);
	CHECK_EQ(command(&b, much, sizeof(much)), 1);
	CHECK_EQ(command(&b, other, sizeof(other)), 1);
	CHECK_EQ(command(&b, csum, 9), 1);
	CHECK_EQ(command(&b, csum, 1), 1);
	CHECK(b.takes.csum && !b.takes.tso4);
	end(&b);
}

/* 100000 bytes a second: a tenth of that at once, then one frame of 1000 bytes in 10 ms. */
TEST(cap)
{
	static struct bench b;
	struct guest_desc piece = {RIG_BUFFERS, HEADER + 1000, 0, 0};

	start(&b, ALL, 100000);
	uint64_t before = host_now_ns();
	for (unsigned i = 0; i < 30; i++)
		drv_send(&b.d, &b.d.q[TX], &piece, 1);
	struct host_net_turn t = turn(&b);
	uint64_t after = host_now_ns();
	CHECK(b.sent >= 11 && b.sent <= 12 + (after - before) / 10000000);
	CHECK(!t.again && t.receive && t.when > before && t.when <= after + 20000000);
	for (unsigned i = 0; i < 300 && b.sent < 30; i++) {
		host_sleep_ns(10000000);
		turn(&b);
	}
	CHECK_EQ(b.sent, 30);
	CHECK(host_now_ns() - before >= 190000000 - 10000000);
	/* The other way, of its own account: it pays for what it takes, and then wants no more for a while. */
	room(&b, QUEUE, 2048);
	CHECK(turn(&b).receive);
	for (unsigned i = 0; i < 20; i++)
		CHECK(give(&b, pattern, 1400));
	t = turn(&b);
	CHECK(!t.receive && t.when != HOST_NET_NEVER);
	end(&b);
}

TEST(nothing_moves_while_paused)
{
	static struct bench b;
	struct guest_desc piece = {RIG_BUFFERS, HEADER + 60, 0, 0};

	start(&b, ALL, 0);
	room(&b, 4, 2048);
	drv_send(&b.d, &b.d.q[TX], &piece, 1);
	b.r.dev.pause(b.r.dev.opaque);
	CHECK(turn(&b).still);
	CHECK(!give(&b, pattern, 60));
	CHECK_EQ(b.sent, 0);
	unsigned wakes = b.wakes;
	b.r.dev.resume(b.r.dev.opaque);
	CHECK(b.wakes > wakes);
	CHECK(!turn(&b).still);
	CHECK(give(&b, pattern, 60));
	CHECK_EQ(b.sent, 1);
	end(&b);
}

TEST(without_driver)
{
	static struct bench b;

	start(&b, ALL, 0);
	room(&b, 4, 2048);
	common_write(&b.d, C_STATUS, 1, 0);
	CHECK(!b.takes.csum);
	/* Nobody listens: lost, as on a wire without a peer. */
	CHECK(give(&b, pattern, 60));
	CHECK(turn(&b).receive);
	CHECK(!drv_used_ready(&b.d, &b.d.q[RX]));
	b.r.dev.reset(b.r.dev.opaque);
	CHECK(give(&b, pattern, 60));
	end(&b);
}

TEST(state)
{
	static struct bench a, b;
	struct state_stream s = {.saving = true};
	struct guest_used used;

	start(&a, ALL & ~F_GUEST_TSO4, 0);
	room(&a, 2, 2048);
	CHECK(give(&a, pattern, 60));
	start(&b, PLAIN, 0);
	a.r.dev.state(a.r.dev.opaque, &s);
	struct state_stream l = {.data = s.data, .len = s.len};
	memcpy(rig_at(&b.r, 0, RIG_MEMORY), rig_at(&a.r, 0, RIG_MEMORY), RIG_MEMORY);
	b.r.dev.state(b.r.dev.opaque, &l);
	CHECK(!l.failed && l.pos == l.len);
	CHECK(b.takes.csum && !b.takes.tso4);
	struct drv_queue q = a.d.q[RX];
	REQUIRE(drv_take(&b.d, &q, &used));
	CHECK(give(&b, pattern + 5, 70));
	REQUIRE(drv_take(&b.d, &q, &used));
	CHECK_EQ(used.len, HEADER + 70);
	CHECK_MEM(at(&b, RIG_BUFFERS + 2048 + HEADER), pattern + 5, 70);
	CHECK(!give(&b, pattern, 60));
	free(s.data);
	end(&a);
	end(&b);
}

static void expect_failure(struct bench *b, const char *what)
{
	if (!(drv_status(&b->d) & S_NEEDS_RESET))
		UNIT_FAIL("%s is not met by NEEDS_RESET", what);
	/* It is left alone until it is reset, and then works again. */
	unsigned sent = b->sent;
	turn(b);
	CHECK(give(b, pattern, 60));
	CHECK_EQ(b->sent, sent);
	struct guest_desc piece = {RIG_BUFFERS, HEADER + 60, 0, 0};
	negotiate(b, ALL);
	drv_send(&b->d, &b->d.q[TX], &piece, 1);
	turn(b);
	CHECK_EQ(b->sent, sent + 1);
}

TEST(abuse)
{
	static struct bench b;

	log_set_level(LOG_ERROR);
	start(&b, ALL, 0);
	struct drv_queue *rx = &b.d.q[RX], *tx = &b.d.q[TX], *ctrl = &b.d.q[CTRL];

	drv_send(&b.d, tx, &(struct guest_desc){RIG_BUFFERS, HEADER - 1, 0, 0}, 1);
	turn(&b);
	expect_failure(&b, "half a header");
	drv_send(&b.d, tx, &(struct guest_desc){RIG_BUFFERS, HEADER + 13, 0, 0}, 1);
	turn(&b);
	expect_failure(&b, "half an Ethernet header");
	drv_send(&b.d, tx, &(struct guest_desc){RIG_BUFFERS, 100, D_WRITE, 0}, 1);
	turn(&b);
	expect_failure(&b, "a frame to be written");
	drv_send(&b.d, tx, &(struct guest_desc){RIG_MEMORY - 50, 100, 0, 0}, 1);
	turn(&b);
	expect_failure(&b, "a frame past the end of memory");
	drv_send(&b.d, tx, &(struct guest_desc){RIG_BUFFERS, MiB(1), 0, 0}, 1);
	turn(&b);
	expect_failure(&b, "a frame of 1 MiB");
	*drv_desc(&b.d, tx, 0) = (struct guest_desc){RIG_BUFFERS, 100, D_NEXT, 0};
	drv_publish(&b.d, tx, 0);
	turn(&b);
	expect_failure(&b, "a loop");

	drv_send(&b.d, rx, &(struct guest_desc){RIG_BUFFERS, 2048, 0, 0}, 1);
	CHECK(give(&b, pattern, 60));
	expect_failure(&b, "a buffer for frames that may only be read");
	drv_send(&b.d, rx, &(struct guest_desc){RIG_BUFFERS, HEADER, D_WRITE, 0}, 1);
	CHECK(give(&b, pattern, 60));
	expect_failure(&b, "a buffer for the header alone");
	room(&b, 1, 1500);
	*drv_desc(&b.d, rx, 1) = (struct guest_desc){RIG_BUFFERS, 1500, D_NEXT | D_WRITE, 1};
	drv_publish(&b.d, rx, 1);
	CHECK(give(&b, pattern, 4000));
	expect_failure(&b, "a loop in the second of two merged buffers");
	drv_avail(&b.d, rx)[1] = 1000;
	CHECK(give(&b, pattern, 60));
	expect_failure(&b, "an index that jumps");
	drv_send(&b.d, ctrl, &(struct guest_desc){RIG_BUFFERS, 10, 0, 0}, 1);
	turn(&b);
	expect_failure(&b, "a command without an answer");
	log_set_level(LOG_WARN);
	end(&b);
}

/* One buffer offered many times, which is also the ring's own memory: nonsense in memory, but no harm. */
TEST(overlapping_buffers)
{
	static struct bench b;

	log_set_level(LOG_ERROR);
	start(&b, ALL, 0);
	for (unsigned i = 0; i < QUEUE; i++)
		drv_send(&b.d, &b.d.q[RX], &(struct guest_desc){RIG_BUFFERS, 600, D_WRITE, 0}, 1);
	CHECK(give(&b, pattern, 30000));
	/* The header is written last, over what the later buffers put there. */
	CHECK_EQ(buffers(&b, RIG_BUFFERS), 51);
	for (unsigned i = 0; i < QUEUE; i++)
		*drv_desc(&b.d, &b.d.q[RX], i) = (struct guest_desc){b.d.q[RX].desc, 0x8000, D_WRITE, 0};
	drv_publish(&b.d, &b.d.q[RX], 0);
	for (unsigned i = 0; i < 100; i++)
		give(&b, pattern, 9000);
	negotiate(&b, ALL);
	room(&b, 1, 2048);
	CHECK(give(&b, pattern, 60));
	log_set_level(LOG_WARN);
	end(&b);
}

UNIT_MAIN()
