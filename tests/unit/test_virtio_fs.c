/* The virtio file system device: the server behind queues, a driver that breaks the rules, reset and state. */
#include "share_client.h"
#include "unit.h"
#include "virtio_guest.h"

#include "dev/virtio_fs.h"

#define ALL (F_VERSION_1 | F_EVENT_IDX | F_INDIRECT)
#define ANSWER (RIG_BUFFERS + MiB(1))
#define ANSWER_SIZE 8192u
enum { HIPRIO, REQUESTS };

static struct client c; /* for its folders only */

static void up(struct drv *d)
{
	drv_begin(d, ALL);
	drv_queue(d, HIPRIO, 16);
	drv_queue(d, REQUESTS, 16);
	drv_ok(d);
}

static void start(struct rig *r, struct drv *d)
{
	struct share_config config = {c.in, "name", false, 1};
	struct error err;

	rig_init(r);
	if (!virtio_fs_create(r->pci, &r->mem, &config, &r->dev, &err))
		rig_die(err.text);
	r->has_dev = true;
	drv_find(d, r, 1);
	up(d);
}

/* A request of a header and some bytes; the answer's error. */
static int ask(struct drv *d, uint32_t op, uint64_t node, const void *arg, uint32_t len)
{
	struct fuse_in h = {.len = sizeof(h) + len, .opcode = op, .unique = 9, .nodeid = node};
	struct drv_queue *q = &d->q[REQUESTS];
	struct fuse_out out = {0};
	struct guest_used used;

	guest_memory_write(&d->r->mem, RIG_BUFFERS, &h, sizeof(h));
	guest_memory_write(&d->r->mem, RIG_BUFFERS + sizeof(h), arg, len);
	drv_send(d, q,
		 (struct guest_desc[]){{RIG_BUFFERS, sizeof(h), 0, 0},
				       {RIG_BUFFERS + sizeof(h), len, 0, 0},
				       {ANSWER, 16, D_WRITE, 0},
				       {ANSWER + 16, ANSWER_SIZE, D_WRITE, 0}},
		 4);
	REQUIRE(drv_take(d, q, &used));
	guest_memory_read(&d->r->mem, ANSWER, &out, sizeof(out));
	CHECK_EQ(used.len, out.len);
	CHECK_EQ(out.unique, 9);
	return out.error;
}

static uint64_t answer64(struct drv *d)
{
	uint64_t value = 0;

	guest_memory_read(&d->r->mem, ANSWER + 16, &value, sizeof(value));
	return value;
}

/* Looks the file up, opens and reads it; the handle. */
static uint64_t read_file(struct drv *d)
{
	struct fuse_init_in init = {FUSE_MAJOR, FUSE_MINOR, 0, ~0u};
	char text[5] = "";

	CHECK_EQ(ask(d, FUSE_INIT, 0, &init, sizeof(init)), 0);
	CHECK_EQ(ask(d, FUSE_LOOKUP, FUSE_ROOT, "file", 5), 0);
	uint64_t node = answer64(d);
	CHECK_EQ(ask(d, FUSE_OPEN, node, &(struct fuse_open_in){0, 0}, sizeof(struct fuse_open_in)), 0);
	uint64_t fh = answer64(d);
	struct fuse_rw_in in = {.fh = fh, .size = 100};
	CHECK_EQ(ask(d, FUSE_READ, node, &in, sizeof(in)), 0);
	guest_memory_read(&d->r->mem, ANSWER + 16, text, 4);
	CHECK_STR(text, "text");
	return fh;
}

TEST(requests_by_queues)
{
	struct rig r;
	struct drv d;
	char tag[37] = "";

	client_folders(&c);
	client_put_file(c.in, "file", "text");
	start(&r, &d);
	CHECK_EQ(cfg_read(&r, 1, PCI_VENDOR_ID, 4), 0x105a1af4);
	for (unsigned i = 0; i < 36; i++)
		tag[i] = (char)mmio_read(&r, d.device + i, 1);
	CHECK_STR(tag, "name");
	CHECK_EQ(mmio_read(&r, d.device + 36, 4), 1);
	read_file(&d);
	/* A request without an answer. */
	struct fuse_in h = {.len = 48, .opcode = FUSE_FORGET, .nodeid = 2};
	struct guest_used used;
	guest_memory_write(&r.mem, RIG_BUFFERS, &h, sizeof(h));
	drv_send(&d, &d.q[HIPRIO], &(struct guest_desc){RIG_BUFFERS, 48, 0, 0}, 1);
	REQUIRE(drv_take(&d, &d.q[HIPRIO], &used));
	CHECK_EQ(used.len, 0);
	rig_end(&r);
	client_remove_folders(&c);
}

TEST(abuse_and_reset)
{
	struct rig r;
	struct drv d;

	client_folders(&c);
	client_put_file(c.in, "file", "text");
	start(&r, &d);
	log_set_level(LOG_ERROR);
	drv_send(&d, &d.q[REQUESTS], &(struct guest_desc){RIG_BUFFERS, 39, 0, 0}, 1);
	CHECK(drv_wait_status(&d, S_NEEDS_RESET));
	up(&d);
	struct fuse_in h = {.len = 40, .opcode = FUSE_STATFS, .nodeid = 1};
	guest_memory_write(&r.mem, RIG_BUFFERS, &h, sizeof(h));
	drv_send(&d, &d.q[REQUESTS], (struct guest_desc[]){{RIG_BUFFERS, 40, 0, 0}, {ANSWER, 15, D_WRITE, 0}}, 2);
	CHECK(drv_wait_status(&d, S_NEEDS_RESET));
	up(&d);
	uint64_t fh = read_file(&d);
	r.dev.reset(r.dev.opaque);
	drv_find(&d, &r, 1);
	up(&d);
	struct fuse_rw_in in = {.fh = fh, .size = 100};
	CHECK_EQ(ask(&d, FUSE_READ, 2, &in, sizeof(in)), -EBADF);
	read_file(&d);
	log_set_level(LOG_WARN);
	rig_end(&r);
	client_remove_folders(&c);
}

TEST(state)
{
	struct rig a, b;
	struct drv d, e;
	struct state_stream s = {.saving = true};

	client_folders(&c);
	client_put_file(c.in, "file", "text");
	start(&a, &d);
	start(&b, &e);
	uint64_t fh = read_file(&d);
	a.dev.pause(a.dev.opaque);
	a.dev.state(a.dev.opaque, &s);
	CHECK(!s.failed);
	b.dev.pause(b.dev.opaque);
	memcpy(rig_at(&b, 0, RIG_MEMORY), rig_at(&a, 0, RIG_MEMORY), RIG_MEMORY);
	struct state_stream l = {.data = s.data, .len = s.len};
	b.dev.state(b.dev.opaque, &l);
	CHECK(!l.failed && l.pos == l.len);
	b.dev.resume(b.dev.opaque);
	d.r = &b;
	struct fuse_rw_in in = {.fh = fh, .size = 100, .offset = 2};
	CHECK_EQ(ask(&d, FUSE_READ, 2, &in, sizeof(in)), 0);
	CHECK_EQ(answer64(&d) & 0xffff, 't' << 8 | 'x');
	state_end(&s);
	rig_end(&a);
	rig_end(&b);
	client_remove_folders(&c);
}

UNIT_MAIN()
