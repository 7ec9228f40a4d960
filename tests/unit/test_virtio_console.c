/* virtio console: both ways, full buffers, its size. */
#include "unit.h"
#include "virtio_guest.h"

#include "dev/virtio_console.h"

#define ALL (F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | BIT(0))
#define RX 0
#define TX 1

struct bench {
	struct rig r;
	struct drv d;
	struct virtio_console *con;
	struct host_mutex lock;
	char out[8192];
	size_t len;
	atomic_uint ready;
};

static void take_output(void *opaque, const uint8_t *data, size_t len)
{
	struct bench *b = opaque;

	host_lock(&b->lock);
	if (len <= sizeof(b->out) - b->len)
		memcpy(b->out + b->len, data, len);
	b->len += len;
	host_unlock(&b->lock);
}

static void input_ready(void *opaque)
{
	((struct bench *)opaque)->ready++;
}

static void start(struct bench *b)
{
	struct virtio_console_config c = {take_output, input_ready, b, 80, 25};
	struct error err;

	memset(b, 0, sizeof(*b));
	host_mutex_init(&b->lock);
	rig_init(&b->r);
	b->con = virtio_console_create(b->r.pci, &b->r.mem, &c, &b->r.dev, &err);
	if (!b->con)
		rig_die(err.text);
	b->r.has_dev = true;
	drv_find(&b->d, &b->r, 1);
	drv_begin(&b->d, ALL);
	drv_queue(&b->d, RX, 8);
	drv_queue(&b->d, TX, 8);
	drv_ok(&b->d);
}

static void end(struct bench *b)
{
	rig_end(&b->r);
	host_mutex_destroy(&b->lock);
}

static void say(struct bench *b, const char *text)
{
	struct guest_used used;

	guest_memory_write(&b->r.mem, RIG_BUFFERS, text, strlen(text));
	drv_send(&b->d, &b->d.q[TX], &(struct guest_desc){RIG_BUFFERS, strlen(text), 0, 0}, 1);
	REQUIRE(drv_take(&b->d, &b->d.q[TX], &used));
	CHECK_EQ(used.len, 0);
}

static unsigned offer(struct bench *b, uint64_t gpa, uint32_t len)
{
	return drv_send(&b->d, &b->d.q[RX], &(struct guest_desc){gpa, len, D_WRITE, 0}, 1);
}

TEST(output)
{
	static struct bench b;

	start(&b);
	CHECK_EQ(cfg_read(&b.r, 1, PCI_VENDOR_ID, 4), 0x10431af4);
	for (unsigned i = 0; i < 100; i++)
		say(&b, i % 2 ? "world\n" : "hello ");
	CHECK_EQ(b.len, 600);
	CHECK(!memcmp(b.out, "hello world\nhello ", 18));
	/* In pieces. */
	struct guest_desc piece[3] = {{RIG_BUFFERS, 1, 0, 0}, {RIG_BUFFERS + 1, 2, 0, 0}, {RIG_BUFFERS + 3, 3, 0, 0}};
	struct guest_used used;
	drv_send(&b.d, &b.d.q[TX], piece, 3);
	CHECK(drv_take(&b.d, &b.d.q[TX], &used));
	CHECK_EQ(b.len, 606);
	CHECK(!memcmp(b.out + 600, "world\n", 6));
	end(&b);
}

TEST(input_before_and_after_buffers)
{
	static struct bench b;
	struct guest_used used = {0};
	char got[8] = {0};

	start(&b);
	CHECK_EQ(virtio_console_input(b.con, (const uint8_t *)"abc", 3), 3);
	offer(&b, RIG_BUFFERS, 2);
	REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
	CHECK_EQ(used.len, 2);
	offer(&b, RIG_BUFFERS + 2, 2);
	REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
	CHECK_EQ(used.len, 1);
	offer(&b, RIG_BUFFERS + 3, 100);
	host_sleep_ns(1000000);
	CHECK(!drv_used_ready(&b.d, &b.d.q[RX]));
	CHECK_EQ(virtio_console_input(b.con, (const uint8_t *)"defg", 4), 4);
	REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
	CHECK_EQ(used.len, 4);
	guest_memory_read(&b.r.mem, RIG_BUFFERS, got, 7);
	CHECK(!memcmp(got, "abcdefg", 7));
	end(&b);
}

/* A stream in odd pieces, more than is held, arrives whole and in order. */
TEST(input_is_bounded_and_wraps)
{
	static struct bench b;
	static uint8_t sent[100000], got[100000];
	size_t in = 0, out = 0;
	struct guest_used used;

	start(&b);
	for (unsigned i = 0; i < sizeof(sent); i++)
		sent[i] = i * 7 + i / 256;
	bool refused = false;
	while (out < sizeof(sent)) {
		size_t n = MIN(sizeof(sent) - in, (size_t)3000);
		size_t taken = virtio_console_input(b.con, sent + in, n);
		refused |= taken < n;
		in += taken;
		offer(&b, RIG_BUFFERS, 1777);
		REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
		REQUIRE(used.len && out + used.len <= sizeof(got));
		guest_memory_read(&b.r.mem, RIG_BUFFERS, got + out, used.len);
		out += used.len;
	}
	CHECK(refused && b.ready);
	CHECK(!memcmp(sent, got, sizeof(sent)));
	end(&b);
}

TEST(size_and_its_changes)
{
	static struct bench b;

	start(&b);
	CHECK_EQ(mmio_read(&b.r, b.d.device, 4), 25 << 16 | 80);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 4, 4), 0);
	mmio_write(&b.r, b.d.device, 4, 0);
	unsigned generation = common_read(&b.d, C_GENERATION, 1);
	virtio_console_resize(b.con, 132, 50);
	CHECK_EQ(mmio_read(&b.r, b.d.device, 4), 50 << 16 | 132);
	CHECK(common_read(&b.d, C_GENERATION, 1) != generation);
	CHECK_EQ(b.r.line[1], 1);
	CHECK_EQ(mmio_read(&b.r, b.d.isr, 1), 2);
	virtio_console_resize(b.con, 132, 50);
	CHECK_EQ(b.r.line[1], 0);
	end(&b);
}

TEST(state_keeps_what_was_typed)
{
	static struct bench a, b;
	struct state_stream s = {.saving = true};
	struct guest_used used = {0};
	char got[4] = {0};

	start(&a);
	start(&b);
	virtio_console_input(a.con, (const uint8_t *)"ls\n", 3);
	a.r.dev.state(a.r.dev.opaque, &s);
	struct state_stream l = {.data = s.data, .len = s.len};
	b.r.dev.state(b.r.dev.opaque, &l);
	CHECK(!l.failed && l.pos == l.len);
	offer(&b, RIG_BUFFERS, 100);
	REQUIRE(drv_take(&b.d, &b.d.q[RX], &used));
	CHECK_EQ(used.len, 3);
	guest_memory_read(&b.r.mem, RIG_BUFFERS, got, 3);
	CHECK(!memcmp(got, "ls\n", 3));
	free(s.data);
	end(&a);
	end(&b);
}

TEST(abuse)
{
	static struct bench b;

	start(&b);
	log_set_level(LOG_ERROR);
	/* Room for input that is none. */
	drv_send(&b.d, &b.d.q[RX], &(struct guest_desc){RIG_BUFFERS, 4, 0, 0}, 1);
	virtio_console_input(b.con, (const uint8_t *)"x", 1);
	CHECK(drv_wait_status(&b.d, S_NEEDS_RESET));
	drv_begin(&b.d, ALL);
	drv_queue(&b.d, TX, 8);
	drv_ok(&b.d);
	drv_send(&b.d, &b.d.q[TX], &(struct guest_desc){0, MiB(17), 0, 0}, 1);
	CHECK(drv_wait_status(&b.d, S_NEEDS_RESET));
	log_set_level(LOG_WARN);
	end(&b);
}

UNIT_MAIN()
