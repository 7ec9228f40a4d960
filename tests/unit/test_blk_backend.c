/* The block device over a back end of the test's own, which fails, holds back and turns round what it is told to. */
#include "blk_guest.h"
#include "host/thread.h"

#include <errno.h>

#define F_CONFIG_WCE BIT(11)
#define F_DISCARD BIT(13)
#define F_WRITE_ZEROES BIT(14)
#define WRITEBACK 32 /* in the device's configuration */
#define OPS (HOST_IO_ZERO + 1)

struct fake {
	struct blk_backend be;
	struct host_mutex lock;
	struct host_io *held[300]; /* submitted, in this order */
	unsigned count, count_of[OPS];
	int error[OPS];
	bool here; /* carries everything out on the spot */
	bool closed;
};

static struct fake *fake(struct blk_backend *be)
{
	return container_of(be, struct fake, be);
}

static void fake_run(struct blk_backend *be, struct host_io *io)
{
	fake(be)->count_of[io->op]++;
	io->error = fake(be)->error[io->op];
	for (unsigned i = 0; io->op == HOST_IO_READ && i < io->n; i++)
		memset(io->iov[i].base, 0x42, io->iov[i].len);
}

static bool fake_attempt(struct blk_backend *be, struct host_io *io)
{
	if (fake(be)->here)
		fake_run(be, io);
	return fake(be)->here;
}

static void fake_submit(struct blk_backend *be, struct host_io *list)
{
	struct fake *f = fake(be);

	host_lock(&f->lock);
	for (; list && f->count < ARRAY_LEN(f->held); list = list->next)
		f->held[f->count++] = list;
	host_unlock(&f->lock);
}

static void fake_close(struct blk_backend *be)
{
	fake(be)->closed = true;
}

static const struct blk_backend_ops fake_ops = {
	.attempt = fake_attempt, .run = fake_run, .submit = fake_submit, .close = fake_close};

static unsigned fake_held(struct fake *f)
{
	host_lock(&f->lock);
	unsigned n = f->count;
	host_unlock(&f->lock);
	return n;
}

/* Until so many requests have come, up to ~5 s. */
static bool fake_wait(struct fake *f, unsigned n)
{
	for (unsigned i = 0; fake_held(f) < n && i < 50000; i++)
		host_sleep_ns(100000);
	return fake_held(f) == n;
}

/* Answers what is held, the last first. */
static void fake_release(struct fake *f)
{
	struct host_io *list = NULL;

	host_lock(&f->lock);
	for (unsigned i = 0; i < f->count; i++) {
		f->held[i]->next = list;
		list = f->held[i];
	}
	f->count = 0;
	host_unlock(&f->lock);
	for (struct host_io *io = list; io; io = io->next)
		fake_run(&f->be, io);
	if (list)
		f->be.done(f->be.opaque, list);
}

static void fake_init(struct fake *f)
{
	memset(f, 0, sizeof(*f));
	f->be = (struct blk_backend){.ops = &fake_ops, .size = BYTES, .alignment = 1, .discards = true, .zeroes = true};
	host_mutex_init(&f->lock);
}

/*
 * As `up`, and then waits until the device's thread has looked at the queue for the first time: from then on it sleeps,
 * and what is asked for is served on this thread. It asks for notifications by a store that can be seen (2.7.10.1).
 */
static void up_and_settled(struct bench *b, uint64_t features)
{
	drv_begin(&b->d, features);
	b->q = drv_queue(&b->d, 0, 256);
	volatile uint16_t *asks = drv_used(&b->d, b->q) + (b->q->event_idx ? 2 + 4 * b->q->size : 0);
	*asks = 0xffff;
	drv_ok(&b->d);
	for (unsigned i = 0; *asks && i < 50000; i++)
		host_sleep_ns(100000);
	REQUIRE(*asks == 0);
	drv_status(&b->d); /* takes the device's lock, which the thread lets go when it sleeps */
}

static void start_on(struct bench *b, struct fake *f, const struct disk_config *c)
{
	struct error err;

	rig_init(&b->r);
	if (!virtio_blk_create_on(b->r.pci, &b->r.mem, c, &f->be, &b->r.dev, &err))
		rig_die(err.text);
	b->r.has_dev = true;
	drv_find(&b->d, &b->r, 1);
	up_and_settled(b, ALL);
}

static void start_fake(struct bench *b, struct fake *f)
{
	fake_init(f);
	start_on(b, f, &(struct disk_config){.image = {.path = "fake"}});
}

static void end_fake(struct bench *b, struct fake *f)
{
	rig_end(&b->r);
	CHECK(f->closed);
	host_mutex_destroy(&f->lock);
}

/* A request whose answer is let go at once. */
static uint8_t answered(struct bench *b, struct fake *f, uint32_t type, uint64_t sector, uint32_t len)
{
	struct guest_used used;

	request(b, 0, type, sector, len);
	CHECK_EQ(fake_held(f), 1);
	fake_release(f);
	REQUIRE(drv_take(&b->d, b->q, &used));
	return status(b, 0);
}

TEST(errors_of_the_host)
{
	static struct bench b;
	static struct fake f;
	const struct {
		enum host_io_op op;
		uint32_t type, len;
		int error;
	} each[] = {{HOST_IO_READ, IN, 512, EIO},
		    {HOST_IO_WRITE, OUT, 512, ENOSPC},
		    {HOST_IO_FLUSH, FLUSH, 0, EIO},
		    {HOST_IO_DISCARD, DISCARD, 16, EIO},
		    {HOST_IO_ZERO, ZEROES, 16, ENOSPC},
		    {HOST_IO_READ, IN, 4096, HOST_IO_ENDED},
		    {HOST_IO_WRITE, OUT, 4096, HOST_IO_LOST}};
	const uint64_t range[2] = {8, 8};

	start_fake(&b, &f);
	log_set_level(LOG_ERROR);
	for (unsigned i = 0; i < ARRAY_LEN(each); i++) {
		for (unsigned here = 0; here < 2; here++) {
			memcpy(data(&b, 0), range, sizeof(range));
			f.error[each[i].op] = each[i].error;
			f.here = here;
			CHECK_EQ(here ? transfer(&b, each[i].type, 0, each[i].len)
				      : answered(&b, &f, each[i].type, 0, each[i].len),
				 IOERR);
			f.error[each[i].op] = 0;
			memcpy(data(&b, 0), range, sizeof(range));
			CHECK_EQ(here ? transfer(&b, each[i].type, 0, each[i].len)
				      : answered(&b, &f, each[i].type, 0, each[i].len),
				 OK);
		}
	}
	CHECK(!(drv_status(&b.d) & S_NEEDS_RESET));
	log_set_level(LOG_WARN);
	end_fake(&b, &f);
}

TEST(answers_in_any_order)
{
	static struct bench b;
	static struct fake f;
	struct guest_used used, before = {~0u, 0};

	start_fake(&b, &f);
	for (unsigned i = 0; i < SLOTS; i++)
		request(&b, i, IN, i, 512);
	CHECK_EQ(fake_held(&f), SLOTS);
	CHECK(!drv_used_ready(&b.d, b.q));
	fake_release(&f);
	for (unsigned i = 0; i < SLOTS; i++) {
		REQUIRE(drv_take(&b.d, b.q, &used));
		CHECK(used.id < before.id); /* heads were given out in rising order */
		CHECK_EQ(used.len, 513);
		before = used;
	}
	for (unsigned i = 0; i < SLOTS; i++)
		CHECK(status(&b, i) == OK && is_all(data(&b, i), 0x42, 512));
	end_fake(&b, &f);
}

/* Those that are served on the spot are back when the notification's write is through, with one interrupt. */
TEST(served_on_the_spot)
{
	static struct bench b;
	static struct fake f;
	struct guest_used used;

	start_fake(&b, &f);
	drv_msix(&b.d, 2); /* each write to PCI's configuration wakes the thread */
	up_and_settled(&b, ALL & ~F_EVENT_IDX);
	common_write(&b.d, C_SELECT, 2, 0);
	common_write(&b.d, C_VECTOR, 2, 1);
	f.here = true;
	for (unsigned i = 0; i < 8; i++)
		place(&b, i, IN, i, 512);
	CHECK_EQ(b.r.messages, 0);
	drv_kick(&b.d, b.q);
	CHECK_EQ(b.r.messages, 1);
	for (unsigned i = 0; i < 8; i++)
		CHECK(drv_used_ready(&b.d, b.q) && drv_take(&b.d, b.q, &used) && status(&b, i) == OK);
	/* Answers that come together make one interrupt as well. */
	f.here = false;
	for (unsigned i = 0; i < 8; i++)
		place(&b, i, OUT, i, 512);
	drv_kick(&b.d, b.q);
	CHECK_EQ(b.r.messages, 1);
	fake_release(&f);
	CHECK_EQ(b.r.messages, 2);
	/* Nothing to do: no interrupt. */
	drv_kick(&b.d, b.q);
	CHECK_EQ(b.r.messages, 2);
	end_fake(&b, &f);
}

/* A processor does not stay in the device for a long list. */
TEST(much_at_once_is_left_to_the_threads)
{
	static struct bench b;
	static struct fake f;
	struct guest_used used;

	start_fake(&b, &f);
	f.here = true;
	for (unsigned i = 0; i < 10; i++)
		place(&b, i, IN, 0, 0x10000);
	drv_kick(&b.d, b.q);
	CHECK_EQ(fake_held(&f), 6);
	fake_release(&f);
	for (unsigned i = 0; i < 10; i++)
		CHECK(drv_take(&b.d, b.q, &used));
	end_fake(&b, &f);
}

TEST(writes_that_are_to_last_are_flushed)
{
	static struct bench b;
	static struct fake f;
	struct guest_used used;

	start_fake(&b, &f);
	log_set_level(LOG_ERROR);
	for (unsigned how = 0; how < 3; how++) {
		/* A driver that knows no flush; one that turned the cache off; one that left it on. */
		up_and_settled(&b, how == 0 ? ALL & ~(F_FLUSH | F_CONFIG_WCE) : ALL);
		if (how == 1)
			mmio_write(&b.r, b.d.device + WRITEBACK, 1, 0);
		memset(f.count_of, 0, sizeof(f.count_of));
		request(&b, 0, OUT, 0, 512);
		fake_release(&f);
		CHECK_EQ(drv_used_ready(&b.d, b.q), how == 2);
		CHECK_EQ(fake_held(&f), how == 2 ? 0 : 1);
		fake_release(&f);
		REQUIRE(drv_take(&b.d, b.q, &used));
		CHECK_EQ(status(&b, 0), OK);
		CHECK_EQ(f.count_of[HOST_IO_FLUSH], how == 2 ? 0 : 1);
		CHECK_EQ(mmio_read(&b.r, b.d.device + WRITEBACK, 1), how == 1 ? 0 : 1);
		if (how == 2)
			continue;
		f.error[HOST_IO_FLUSH] = EIO;
		request(&b, 0, OUT, 0, 512);
		fake_release(&f);
		fake_release(&f);
		REQUIRE(drv_take(&b.d, b.q, &used));
		CHECK_EQ(status(&b, 0), IOERR);
		f.error[HOST_IO_FLUSH] = 0;
	}
	log_set_level(LOG_WARN);
	end_fake(&b, &f);
}

/* A driver that makes a chain available again while it is under way: as many as the device has requests, then later. */
TEST(more_than_the_device_can_hold)
{
	static struct bench b;
	static struct fake f;
	struct guest_used used;
	uint16_t head;

	start_fake(&b, &f);
	head = place(&b, 0, IN, 0, 512);
	drv_kick(&b.d, b.q);
	for (unsigned i = 1; i < 300; i++) {
		drv_publish(&b.d, b.q, head);
		drv_kick(&b.d, b.q);
	}
	CHECK_EQ(fake_held(&f), 256);
	fake_release(&f);
	CHECK(fake_wait(&f, 44));
	fake_release(&f);
	/* The used ring went round. */
	CHECK_EQ(drv_used(&b.d, b.q)[1], 300);
	b.q->used_seen = 300;
	CHECK_EQ(answered(&b, &f, IN, 0, 512), OK);
	CHECK(!drv_take_now(&b.d, b.q, &used));
	end_fake(&b, &f);
}

struct resetter {
	struct bench *b;
	atomic_bool begun, ended;
};

static void *reset_thread(void *arg)
{
	struct resetter *r = arg;

	atomic_store(&r->begun, true);
	r->b->r.dev.reset(r->b->r.dev.opaque);
	atomic_store(&r->ended, true);
	return NULL;
}

TEST(a_reset_waits_for_what_is_under_way)
{
	static struct bench b;
	static struct fake f;
	struct resetter r = {.b = &b};
	struct host_thread t;

	start_fake(&b, &f);
	request(&b, 0, IN, 0, 512);
	REQUIRE(host_thread_start(&t, "reset", reset_thread, &r));
	while (!atomic_load(&r.begun))
		host_sleep_ns(100000);
	host_sleep_ns(20000000);
	CHECK(!atomic_load(&r.ended));
	fake_release(&f);
	host_thread_join(&t);
	CHECK_EQ(status(&b, 0), OK);
	end_fake(&b, &f);
}

TEST(caps_on_requests_and_bytes)
{
	static struct bench b;
	static struct fake f;
	struct guest_used used;

	for (unsigned bytes = 0; bytes < 2; bytes++) {
		fake_init(&f);
		/* 50 requests a second, of which the first five may come at once. */
		start_on(&b, &f,
			 &(struct disk_config){
				 .image = {.path = "fake"}, .iops = bytes ? 0 : 50, .bps = bytes ? 50 * 1024 : 0});
		f.here = true;
		uint64_t from = host_now_ns();
		for (unsigned i = 0; i < 20; i++)
			place(&b, i, OUT, i, 1024);
		drv_kick(&b.d, b.q);
		f.here = false;
		for (unsigned served = b.q->used_seen; served < 20;) {
			fake_release(&f);
			if (drv_take_now(&b.d, b.q, &used))
				served++;
			else
				host_sleep_ns(1000000);
			if (host_now_ns() - from > 20000000000ull)
				REQUIRE(!"the rest came");
		}
		CHECK(host_now_ns() - from >= 200000000);
		end_fake(&b, &f);
	}
}

TEST(block_sizes_and_features)
{
	static struct bench b;
	static struct fake f;
	struct error err = {""};

	fake_init(&f);
	f.be.size = MiB(1);
	f.be.alignment = 4096;
	f.be.discards = false;
	start_on(&b, &f, &(struct disk_config){.image = {.path = "fake"}});
	CHECK_EQ(mmio_read(&b.r, b.d.device + 20, 4), 4096);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 24, 1), 0);
	CHECK(!(drv_offered(&b.d) & F_DISCARD) && (drv_offered(&b.d) & F_WRITE_ZEROES));
	const uint64_t range[2] = {8, 8};
	memcpy(data(&b, 0), range, sizeof(range));
	CHECK_EQ(transfer(&b, DISCARD, 0, 16), UNSUPP);
	end_fake(&b, &f);

	fake_init(&f);
	f.be.alignment = 4096;
	CHECK(!blk_image_on(&f.be, &(struct blk_image_config){.block_size = 512}, "fake", &err));
	CHECK(f.closed && strstr(err.text, "blocksize=4096"));
	fake_init(&f);
	CHECK(!blk_image_on(&f.be, &(struct blk_image_config){.block_size = 4096}, "fake", &err));
	CHECK(f.closed && strstr(err.text, "multiple"));
}

UNIT_MAIN()
