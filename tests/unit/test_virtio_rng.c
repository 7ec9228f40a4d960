/* The transport, seen through the simplest device: finding it, negotiation, interrupts, failure, reset, state. */
#include "unit.h"
#include "virtio_guest.h"

#include "dev/virtio_rng.h"

#define ALL (F_VERSION_1 | F_EVENT_IDX | F_INDIRECT)

static void start(struct rig *r, struct drv *d)
{
	struct error err;

	rig_init(r);
	if (!virtio_rng_create(r->pci, &r->mem, &r->dev, &err))
		rig_die(err.text);
	r->has_dev = true;
	drv_find(d, r, 1);
}

static struct drv_queue *up(struct drv *d, uint64_t features)
{
	CHECK_EQ(drv_begin(d, features), S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	struct drv_queue *q = drv_queue(d, 0, 16);
	drv_ok(d);
	return q;
}

static void expect_random(struct drv *d, struct drv_queue *q)
{
	struct guest_used used = {0};
	uint8_t *buf = rig_at(d->r, RIG_BUFFERS, 64), sum = 0;

	memset(buf, 0, 64);
	uint16_t head = drv_send(d, q, &(struct guest_desc){RIG_BUFFERS, 64, D_WRITE, 0}, 1);
	REQUIRE(drv_take(d, q, &used));
	CHECK_EQ(used.id, head);
	CHECK_EQ(used.len, 64);
	for (unsigned i = 0; i < 64; i++)
		sum |= buf[i];
	CHECK(sum != 0);
}

TEST(the_function_is_as_the_specification_says)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	CHECK_EQ(cfg_read(&r, 1, PCI_VENDOR_ID, 4), 0x10441af4);
	CHECK(cfg_read(&r, 1, PCI_REVISION, 1) >= 1);
	CHECK(cfg_read(&r, 1, PCI_SUBSYSTEM_ID, 2) >= 0x40);
	CHECK(d.common && d.notify && d.isr && !d.device && d.window_cap && d.msix_cap);
	CHECK_EQ(common_read(&d, C_QUEUES, 2), 1);
	CHECK_EQ(drv_offered(&d) & ALL, ALL);
	CHECK_EQ(drv_status(&d), 0);
	common_write(&d, C_DEVICE_SELECT, 4, 2);
	CHECK_EQ(common_read(&d, C_DEVICE_FEATURES, 4), 0);
	common_write(&d, C_SELECT, 2, 1); /* no such queue */
	CHECK_EQ(common_read(&d, C_SIZE, 2), 0);
	common_write(&d, C_SIZE, 2, 8);
	common_write(&d, C_ENABLE, 2, 1);
	CHECK_EQ(common_read(&d, C_ENABLE, 2), 0);
	common_write(&d, C_SELECT, 2, 0);
	CHECK_EQ(common_read(&d, C_SIZE, 2), 64);
	common_write(&d, C_SIZE, 2, 63);
	common_write(&d, C_SIZE, 2, 128);
	common_write(&d, C_SIZE, 2, 0);
	CHECK_EQ(common_read(&d, C_SIZE, 2), 64);
	common_write(&d, C_SIZE, 2, 32);
	CHECK_EQ(common_read(&d, C_SIZE, 2), 32);
	common_write(&d, C_DESC, 8, 0x123456789abcdef0);
	CHECK_EQ(common_read(&d, C_DESC, 8), 0x123456789abcdef0);
	CHECK_EQ(common_read(&d, C_DESC + 4, 4), 0x12345678);
	common_write(&d, C_USED + 4, 4, 5);
	CHECK_EQ(common_read(&d, C_USED, 8), 5ull << 32);
	common_write(&d, C_DESC + 2, 4, 0); /* not a field */
	CHECK_EQ(common_read(&d, C_DESC, 8), 0x123456789abcdef0);
	CHECK_EQ(common_read(&d, 0xff8, 8), 0);
	rig_end(&r);
}

TEST(negotiation)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	/* Without VERSION_1, or with more than was offered, FEATURES_OK does not stay. */
	CHECK_EQ(drv_begin(&d, F_EVENT_IDX), S_ACKNOWLEDGE | S_DRIVER);
	common_write(&d, C_STATUS, 1, 0);
	drv_features(&d, F_VERSION_1 | BIT(34));
	common_write(&d, C_STATUS, 1, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	CHECK_EQ(drv_status(&d), S_ACKNOWLEDGE | S_DRIVER);
	/* DRIVER_OK neither. */
	common_write(&d, C_STATUS, 1, S_ACKNOWLEDGE | S_DRIVER | S_DRIVER_OK);
	CHECK_EQ(drv_status(&d), S_ACKNOWLEDGE | S_DRIVER);
	CHECK_EQ(drv_begin(&d, F_VERSION_1), S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	drv_features(&d, ALL); /* too late */
	common_write(&d, C_DRIVER_SELECT, 4, 0);
	CHECK_EQ(common_read(&d, C_DRIVER_FEATURES, 4), 0);
	common_write(&d, C_STATUS, 1, 0);
	CHECK_EQ(drv_status(&d), 0);
	rig_end(&r);
}

TEST(random_bytes_come)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	const uint64_t features[] = {F_VERSION_1, F_VERSION_1 | F_EVENT_IDX, ALL};
	for (unsigned f = 0; f < ARRAY_LEN(features); f++) {
		struct drv_queue *q = up(&d, features[f]);
		for (unsigned i = 0; i < 40; i++)
			expect_random(&d, q);
	}
	/* No more than 64 KiB at once. */
	struct drv_queue *q = up(&d, ALL);
	struct guest_used used = {0};
	drv_send(&d, q, &(struct guest_desc){RIG_BUFFERS, MiB(1), D_WRITE, 0}, 1);
	CHECK(drv_take(&d, q, &used));
	CHECK_EQ(used.len, KiB(64));
	rig_end(&r);
}

static bool wait_messages(struct rig *r, unsigned n)
{
	for (unsigned i = 0; r->messages < n && i < 50000; i++)
		host_sleep_ns(100000);
	return r->messages >= n;
}

static bool wait_line(struct rig *r, unsigned level)
{
	for (unsigned i = 0; r->line[1] != level && i < 50000; i++)
		host_sleep_ns(100000);
	return r->line[1] == level;
}

TEST(interrupts_by_line)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	struct drv_queue *q = up(&d, F_VERSION_1);
	expect_random(&d, q);
	CHECK(wait_line(&r, 1));
	CHECK_EQ(mmio_read(&r, d.isr, 1), 1);
	CHECK_EQ(r.line[1], 0);
	CHECK_EQ(mmio_read(&r, d.isr, 1), 0);
	__atomic_store_n(&drv_avail(&d, q)[0], 1, __ATOMIC_RELAXED); /* none, please */
	expect_random(&d, q);
	host_sleep_ns(2000000);
	CHECK_EQ(r.line[1], 0);
	__atomic_store_n(&drv_avail(&d, q)[0], 0, __ATOMIC_RELAXED);
	expect_random(&d, q);
	CHECK(wait_line(&r, 1));
	common_write(&d, C_STATUS, 1, 0); /* a reset takes it back */
	CHECK_EQ(r.line[1], 0);
	rig_end(&r);
}

TEST(interrupts_by_message)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	drv_msix(&d, 2);
	drv_begin(&d, F_VERSION_1);
	struct drv_queue *q = drv_queue(&d, 0, 16);
	common_write(&d, C_VECTOR, 2, 2); /* there are only two */
	CHECK_EQ(common_read(&d, C_VECTOR, 2), PCI_NO_VECTOR);
	drv_ok(&d);
	expect_random(&d, q); /* no vector: no interrupt */
	host_sleep_ns(1000000);
	CHECK_EQ(r.messages, 0);
	common_write(&d, C_VECTOR, 2, 1);
	CHECK_EQ(common_read(&d, C_VECTOR, 2), 1);
	expect_random(&d, q);
	CHECK(wait_messages(&r, 1));
	CHECK_EQ(r.last_data, 0x4001);
	CHECK_EQ(r.line[1], 0);
	CHECK_EQ(mmio_read(&r, d.isr, 1), 0);
	rig_end(&r);
}

TEST(abuse_needs_a_reset_and_ends_nothing)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	log_set_level(LOG_ERROR);
	drv_msix(&d, 2);
	for (unsigned round = 0; round < 3; round++) {
		drv_begin(&d, ALL);
		struct drv_queue *q = drv_queue(&d, 0, 16);
		common_write(&d, C_CONFIG_VECTOR, 2, 0);
		drv_ok(&d);
		*drv_desc(&d, q, 0) = (struct guest_desc){RIG_BUFFERS, 16, D_WRITE | D_NEXT, 0};
		drv_publish(&d, q, 0);
		drv_kick(&d, q);
		CHECK(drv_wait_status(&d, S_NEEDS_RESET));
		CHECK(wait_messages(&r, round + 1));
		CHECK_EQ(r.last_data, 0x4000);
		/* It stays so, and does nothing, until it is reset. */
		common_write(&d, C_STATUS, 1, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK | S_DRIVER_OK);
		CHECK(drv_status(&d) & S_NEEDS_RESET);
		drv_send(&d, q, &(struct guest_desc){RIG_BUFFERS, 16, D_WRITE, 0}, 1);
		host_sleep_ns(1000000);
		CHECK(!drv_used_ready(&d, q));
	}
	/* A buffer to read, from a device that only writes. */
	struct drv_queue *q = up(&d, ALL);
	drv_send(&d, q, &(struct guest_desc){RIG_BUFFERS, 16, 0, 0}, 1);
	CHECK(drv_wait_status(&d, S_NEEDS_RESET));
	/* A queue that is not memory. */
	drv_begin(&d, ALL);
	drv_queue_write(&d, C_DESC, BIT(40));
	common_write(&d, C_ENABLE, 2, 1);
	CHECK(drv_status(&d) & S_NEEDS_RESET);
	expect_random(&d, up(&d, ALL));
	rig_end(&r);
	log_set_level(LOG_WARN);
}

TEST(no_memory_access_without_bus_master)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	struct drv_queue *q = up(&d, ALL);
	cfg_write(&r, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	drv_send(&d, q, &(struct guest_desc){RIG_BUFFERS, 16, D_WRITE, 0}, 1);
	host_sleep_ns(2000000);
	CHECK(!drv_used_ready(&d, q));
	cfg_write(&r, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	struct guest_used used;
	CHECK(drv_take(&d, q, &used)); /* what waited is served */
	rig_end(&r);
}

TEST(window_in_configuration_space)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	unsigned cap = d.window_cap;
	cfg_write(&r, 1, cap + 4, 1, 0);
	cfg_write(&r, 1, cap + 8, 4, C_STATUS);
	cfg_write(&r, 1, cap + 12, 4, 1);
	cfg_write(&r, 1, cap + 16, 1, S_ACKNOWLEDGE);
	CHECK_EQ(drv_status(&d), S_ACKNOWLEDGE);
	CHECK_EQ(cfg_read(&r, 1, cap + 16, 1), S_ACKNOWLEDGE);
	cfg_write(&r, 1, cap + 8, 4, C_QUEUES);
	cfg_write(&r, 1, cap + 12, 4, 2);
	CHECK_EQ(cfg_read(&r, 1, cap + 16, 4) & 0xffff, 1);
	/* Nonsense is dropped: lengths, places, BARs. */
	const uint32_t bad[][3] = {{0, C_STATUS, 3}, {0, C_STATUS, 0}, {0, 1, 4},        {0, 0x4000, 1},
				   {0, ~0u, 1},      {1, 0, 4},        {5, C_STATUS, 1}, {0, C_STATUS, ~0u}};
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		cfg_write(&r, 1, cap + 4, 1, bad[i][0]);
		cfg_write(&r, 1, cap + 8, 4, bad[i][1]);
		cfg_write(&r, 1, cap + 12, 4, bad[i][2]);
		cfg_write(&r, 1, cap + 16, 4, 0);
		cfg_read(&r, 1, cap + 16, 4);
		CHECK_EQ(drv_status(&d), S_ACKNOWLEDGE);
	}
	rig_end(&r);
}

TEST(reset_of_the_machine)
{
	struct rig r;
	struct drv d;

	start(&r, &d);
	drv_msix(&d, 2);
	up(&d, ALL);
	r.dev.reset(r.dev.opaque);
	CHECK_EQ(drv_status(&d), 0);
	CHECK_EQ(cfg_read(&r, 1, PCI_COMMAND, 2), PCI_COMMAND_MEMORY);
	CHECK_EQ(cfg_read(&r, 1, d.msix_cap + 2, 2), 1);
	drv_find(&d, &r, 1);
	expect_random(&d, up(&d, ALL));
	rig_end(&r);
}

TEST(state_moves_to_another_machine)
{
	struct rig a, b;
	struct drv d, e;
	struct state_stream s = {.saving = true};

	start(&a, &d);
	start(&b, &e);
	struct drv_queue *q = up(&d, ALL);
	for (unsigned i = 0; i < 20; i++)
		expect_random(&d, q);
	a.dev.pause(a.dev.opaque);
	drv_send(&d, q, &(struct guest_desc){RIG_BUFFERS, 16, D_WRITE, 0}, 1); /* still to be served */
	a.dev.state(a.dev.opaque, &s);
	a.dev.state(a.dev.opaque, &s);
	CHECK(!s.failed);
	b.dev.pause(b.dev.opaque);
	memcpy(rig_at(&b, 0, RIG_MEMORY), rig_at(&a, 0, RIG_MEMORY), RIG_MEMORY);
	struct state_stream l = {.data = s.data, .len = s.len / 2};
	b.dev.state(b.dev.opaque, &l);
	CHECK(!l.failed && l.pos == l.len);
	b.dev.resume(b.dev.opaque);
	/* The driver goes on in the other machine. */
	d.r = &b;
	struct guest_used used;
	CHECK(drv_take(&d, q, &used));
	for (unsigned i = 0; i < 20; i++)
		expect_random(&d, q);
	/* Streams cut short or spoiled harm nobody. */
	log_set_level(LOG_ERROR);
	for (unsigned i = 0; i < 2000; i++) {
		size_t len = s.len / 2;
		uint8_t *copy = malloc(len);
		memcpy(copy, s.data, len);
		copy[i * 7 % len] ^= 1 + i % 255;
		l = (struct state_stream){.data = copy, .len = i % 3 ? len : i % len};
		b.dev.state(b.dev.opaque, &l);
		free(copy);
	}
	log_set_level(LOG_WARN);
	free(s.data);
	rig_end(&a);
	rig_end(&b);
}

UNIT_MAIN()
