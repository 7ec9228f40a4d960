/* virtio balloon: pages given and reported, figures, targets, and a guest that gives what it has not. */
#include "unit.h"
#include "virtio_guest.h"

#include "dev/virtio_balloon.h"

#define ALL (F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | BIT(1) | BIT(2) | BIT(5))
#define PAGE_AT(n) (RIG_BUFFERS + MiB(1) + (n)*PAGE_SIZE)
enum { INFLATE, DEFLATE, STATS, REPORT = 3 };

struct bench {
	struct rig r;
	struct drv d;
	struct virtio_balloon *balloon;
	uint64_t told, told_len; /* what the engine heard of last */
};

static void code_written(void *opaque, uint64_t gpa, uint64_t len)
{
	struct bench *b = opaque;

	b->told = gpa;
	b->told_len = len;
}

static void up(struct bench *b, uint64_t features, unsigned queues)
{
	drv_begin(&b->d, features);
	for (unsigned i = 0; i < queues; i++)
		drv_queue(&b->d, i, 16);
	drv_ok(&b->d);
}

static void start(struct bench *b, uint64_t target)
{
	struct error err;

	memset(b, 0, sizeof(*b));
	rig_init(&b->r);
	b->r.mem.code_written = code_written;
	b->r.mem.code_opaque = b;
	b->balloon = virtio_balloon_create(b->r.pci, &b->r.mem, target, &b->r.dev, &err);
	if (!b->balloon)
		rig_die(err.text);
	b->r.has_dev = true;
	drv_find(&b->d, &b->r, 1);
	up(b, ALL, 4);
	for (unsigned i = 0; i < 16; i++)
		memset(rig_at(&b->r, PAGE_AT(i), PAGE_SIZE), 0x55, PAGE_SIZE);
}

static bool is_zero(struct bench *b, unsigned page)
{
	const uint8_t *p = rig_at(&b->r, PAGE_AT(page), PAGE_SIZE);

	for (unsigned i = 0; i < PAGE_SIZE; i++)
		if (p[i])
			return false;
	return true;
}

static void give(struct bench *b, const uint32_t *page, unsigned count)
{
	struct guest_used used;

	guest_memory_write(&b->r.mem, RIG_BUFFERS, page, count * sizeof(*page));
	drv_send(&b->d, &b->d.q[INFLATE], &(struct guest_desc){RIG_BUFFERS, count * 4, 0, 0}, 1);
	REQUIRE(drv_take(&b->d, &b->d.q[INFLATE], &used));
}

static uint32_t number(unsigned page)
{
	return (uint32_t)(PAGE_AT(page) >> PAGE_SHIFT);
}

TEST(ballooned_pages_are_given_back)
{
	static struct bench b;
	struct guest_used used;
	struct balloon_info info;

	start(&b, MiB(1));
	CHECK_EQ(cfg_read(&b.r, 1, PCI_VENDOR_ID, 4), 0x10451af4);
	CHECK_EQ(mmio_read(&b.r, b.d.device, 4), 256);
	b.r.mem.code[guest_memory_page_index(&b.r.mem, PAGE_AT(3))] = 1;
	/* Upwards, downwards, alone, twice, and what is no memory of the guest's. */
	const uint32_t pages[] = {number(3),  number(4),  number(9),  number(8), number(7),
				  number(12), number(12), 0xffffffff, 0xfee00,   RIG_MEMORY >> PAGE_SHIFT,
				  0x80000000};
	give(&b, pages, ARRAY_LEN(pages));
	for (unsigned i = 0; i < 16; i++)
		CHECK_EQ(is_zero(&b, i), i == 3 || i == 4 || (i >= 7 && i <= 9) || i == 12);
	CHECK(b.told == PAGE_AT(3) && b.told_len >= PAGE_SIZE);
	/* It is memory as before. */
	memset(rig_at(&b.r, PAGE_AT(3), PAGE_SIZE), 7, PAGE_SIZE);
	CHECK(!is_zero(&b, 3));
	drv_send(&b.d, &b.d.q[DEFLATE], &(struct guest_desc){RIG_BUFFERS, 4, 0, 0}, 1);
	CHECK(drv_take(&b.d, &b.d.q[DEFLATE], &used));
	mmio_write(&b.r, b.d.device + 4, 4, 6);
	mmio_write(&b.r, b.d.device, 4, 99); /* not the driver's to say */
	virtio_balloon_info(b.balloon, &info);
	CHECK_EQ(info.target, MiB(1));
	CHECK_EQ(info.taken, 6 * PAGE_SIZE);
	CHECK_EQ(info.returned, 7 * PAGE_SIZE);
	rig_end(&b.r);
}

TEST(reported_pages_are_given_back)
{
	static struct bench b;
	struct guest_used used;

	start(&b, 0);
	for (unsigned queue = REPORT; queue <= REPORT + 1; queue++) {
		/* Linux counts the queues that there are; the specification has a gap. */
		up(&b, ALL, queue + 1);
		memset(rig_at(&b.r, PAGE_AT(0), 16 * PAGE_SIZE), 0x55, 16 * PAGE_SIZE);
		struct guest_desc piece[] = {{PAGE_AT(1), 2 * PAGE_SIZE, D_WRITE, 0},
					     {PAGE_AT(5) + 1, 2 * PAGE_SIZE, D_WRITE, 0},
					     {PAGE_AT(9) + 1, 10, D_WRITE, 0}};
		drv_send(&b.d, &b.d.q[queue], piece, 3);
		REQUIRE(drv_take(&b.d, &b.d.q[queue], &used));
		for (unsigned i = 0; i < 16; i++)
			CHECK_EQ(is_zero(&b, i), i == 1 || i == 2 || i == 6);
	}
	rig_end(&b.r);
}

/* A guest that gives away what it uses has lost it, and nobody else has lost anything. */
TEST(the_rings_themselves)
{
	static struct bench b;

	start(&b, 0);
	log_set_level(LOG_ERROR);
	drv_send(&b.d, &b.d.q[REPORT], &(struct guest_desc){RIG_QUEUES, 5 * RIG_QUEUE_SIZE, D_WRITE, 0}, 1);
	drv_kick(&b.d, &b.d.q[REPORT]);
	host_sleep_ns(2000000);
	up(&b, ALL, 4);
	give(&b, &(uint32_t){number(0)}, 1);
	CHECK(is_zero(&b, 0));
	log_set_level(LOG_WARN);
	rig_end(&b.r);
}

static void tell(struct drv *d, uint64_t free, uint64_t total)
{
	struct {
		uint16_t tag;
		uint64_t value;
	} __attribute__((packed)) figure[] = {{4, free}, {5, total}, {6, free / 2}, {77, 1}, {0xffff, 2}};

	guest_memory_write(&d->r->mem, RIG_BUFFERS, figure, sizeof(figure));
	drv_send(d, &d->q[STATS], &(struct guest_desc){RIG_BUFFERS, sizeof(figure) - 3, 0, 0}, 1);
}

static bool wait_free(struct bench *b, uint64_t free)
{
	struct balloon_info info = {0};

	for (unsigned i = 0; i < 50000 && info.guest_free != free; i++) {
		virtio_balloon_info(b->balloon, &info);
		host_sleep_ns(100000);
	}
	return info.guest_free == free && info.guest_available == free / 2;
}

TEST(figures)
{
	static struct bench a, b;
	struct guest_used used;
	struct state_stream s = {.saving = true};

	start(&a, 0);
	tell(&a.d, 1000, 8000);
	CHECK(wait_free(&a, 1000));
	REQUIRE(drv_take(&a.d, &a.d.q[STATS], &used)); /* more are wanted */
	tell(&a.d, 500, 8000);
	CHECK(wait_free(&a, 500));
	REQUIRE(drv_take(&a.d, &a.d.q[STATS], &used));
	tell(&a.d, 400, 8000);
	tell(&a.d, 300, 8000); /* one too many: the first comes back at once */
	REQUIRE(drv_take(&a.d, &a.d.q[STATS], &used));
	/* What is held moves with the machine. */
	start(&b, 0);
	a.r.dev.pause(a.r.dev.opaque);
	b.r.dev.pause(b.r.dev.opaque);
	a.r.dev.state(a.r.dev.opaque, &s);
	memcpy(rig_at(&b.r, 0, RIG_MEMORY), rig_at(&a.r, 0, RIG_MEMORY), RIG_MEMORY);
	struct state_stream l = {.data = s.data, .len = s.len};
	b.r.dev.state(b.r.dev.opaque, &l);
	CHECK(!l.failed && l.pos == l.len);
	b.r.dev.resume(b.r.dev.opaque);
	a.d.r = &b.r;
	struct balloon_info info;
	virtio_balloon_info(b.balloon, &info);
	REQUIRE(drv_take(&a.d, &a.d.q[STATS], &used));
	tell(&a.d, 200, 8000);
	CHECK(wait_free(&b, 200));
	free(s.data);
	b.r.dev.reset(b.r.dev.opaque);
	virtio_balloon_info(b.balloon, &info);
	CHECK_EQ(info.guest_free, 0);
	rig_end(&a.r);
	rig_end(&b.r);
}

TEST(targets)
{
	static struct bench b;
	struct error err;
	struct device other;

	start(&b, 0);
	unsigned generation = common_read(&b.d, C_GENERATION, 1);
	CHECK(virtio_balloon_set(b.balloon, MiB(2)));
	CHECK_EQ(mmio_read(&b.r, b.d.device, 4), 512);
	CHECK(common_read(&b.d, C_GENERATION, 1) != generation);
	CHECK_EQ(mmio_read(&b.r, b.d.isr, 1), 2);
	CHECK(!virtio_balloon_set(b.balloon, RIG_MEMORY + PAGE_SIZE));
	b.r.dev.reset(b.r.dev.opaque); /* the next driver is to do the same */
	CHECK_EQ(mmio_read(&b.r, b.d.device, 4), 512);
	CHECK(!virtio_balloon_create(b.r.pci, &b.r.mem, GiB(1), &other, &err));
	CHECK(strstr(err.text, "1024 MiB"));
	rig_end(&b.r);
}

TEST(abuse)
{
	static struct bench b;

	start(&b, 0);
	log_set_level(LOG_ERROR);
	/* Too many pages, pages to write to where they are to be read, and too much reported. */
	drv_send(&b.d, &b.d.q[INFLATE], &(struct guest_desc){0, MiB(1), 0, 0}, 1);
	CHECK(drv_wait_status(&b.d, S_NEEDS_RESET));
	up(&b, ALL, 4);
	drv_send(&b.d, &b.d.q[INFLATE], &(struct guest_desc){RIG_BUFFERS, 4, D_WRITE, 0}, 1);
	CHECK(drv_wait_status(&b.d, S_NEEDS_RESET));
	up(&b, ALL, 4);
	drv_send(&b.d, &b.d.q[REPORT],
		 (struct guest_desc[]){{RIG_BUFFERS, 4, 0, 0}, {PAGE_AT(0), PAGE_SIZE, D_WRITE, 0}}, 2);
	CHECK(drv_wait_status(&b.d, S_NEEDS_RESET));
	up(&b, ALL, 4);
	CHECK(!is_zero(&b, 0));
	give(&b, (uint32_t[]){0, 0, 0}, 3);
	log_set_level(LOG_WARN);
	rig_end(&b.r);
}

UNIT_MAIN()
