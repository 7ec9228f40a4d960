/* virtio block device: requests of each kind, bad ones, many at once, snapshot=on, and images that cannot be opened. */
#include "blk_guest.h"

#define F_RO BIT(5)

static uint8_t pattern(uint64_t at)
{
	return at * 31 + (at >> 9) * 7;
}

static void make_image(struct bench *b, uint64_t bytes)
{
	static unsigned count;
	const char *dir = getenv("TMPDIR");
	struct host_file *f;
	uint8_t *data = malloc(bytes ? bytes : 1);

	snprintf(b->path, sizeof(b->path), "%.30s/doppel-test-%llu-%u", dir ? dir : "/tmp",
		 (unsigned long long)host_now_ns(), count++);
	f = host_file_open(b->path, HOST_FILE_READ | HOST_FILE_WRITE | HOST_FILE_CREATE);
	for (uint64_t i = 0; i < bytes; i++)
		data[i] = pattern(i);
	if (!f || host_file_pwrite(f, data, bytes, 0) != (int64_t)bytes)
		rig_die("cannot make a test image");
	host_file_close(f);
	free(data);
}

static void attach(struct bench *b, const struct disk_config *c)
{
	struct error err;

	rig_init(&b->r);
	if (!virtio_blk_create(b->r.pci, &b->r.mem, c, &b->r.dev, &err))
		rig_die(err.text);
	b->r.has_dev = true;
	drv_find(&b->d, &b->r, 1);
	up(b, ALL);
}

static void start(struct bench *b, bool readonly, bool snapshot)
{
	make_image(b, BYTES);
	attach(b, &(struct disk_config){.image = {.path = b->path, .readonly = readonly, .snapshot = snapshot},
					.id = "serial-1"});
}

static void end(struct bench *b)
{
	rig_end(&b->r);
	remove(b->path);
}

static bool is_pattern(const uint8_t *p, uint64_t from, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (p[i] != pattern(from + i))
			return false;
	return true;
}

static uint8_t zero(struct bench *b, uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags)
{
	const uint64_t range[2] = {sector, (uint64_t)flags << 32 | sectors};

	memcpy(data(b, 0), range, 16);
	return transfer(b, type, 0, 16);
}

TEST(configuration)
{
	static struct bench b;

	start(&b, false, false);
	CHECK_EQ(cfg_read(&b.r, 1, PCI_VENDOR_ID, 4), 0x10421af4);
	CHECK_EQ(mmio_read(&b.r, b.d.device, 8), SECTORS);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 12, 4), 254);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 20, 4), 512);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 34, 2), 1);
	CHECK_EQ(mmio_read(&b.r, b.d.device + 56, 1), 1);
	CHECK(!(drv_offered(&b.d) & F_RO));
	end(&b);
}

TEST(reading_and_writing)
{
	static struct bench b;

	start(&b, false, false);
	CHECK_EQ(transfer(&b, IN, 5, 4096), OK);
	CHECK(is_pattern(data(&b, 0), 5 * 512, 4096));
	memset(data(&b, 0), 0xab, 1024);
	CHECK_EQ(transfer(&b, OUT, SECTORS - 2, 1024), OK);
	CHECK_EQ(transfer(&b, IN, SECTORS - 3, 1536), OK);
	CHECK(is_pattern(data(&b, 0), (SECTORS - 3) * 512, 512));
	CHECK(is_all(data(&b, 0) + 512, 0xab, 1024));
	CHECK_EQ(transfer(&b, FLUSH, 0, 0), OK);
	memset(data(&b, 0), 0, 21);
	CHECK_EQ(transfer(&b, GET_ID, 0, 20), OK);
	CHECK(!strcmp((char *)data(&b, 0), "serial-1"));
	/* It is in the file. */
	size_t len;
	uint8_t *file = host_file_slurp(b.path, &len);
	CHECK(file && len == BYTES && is_all(file + (SECTORS - 2) * 512, 0xab, 1024));
	free(file);
	end(&b);
}

TEST(requests_in_any_framing)
{
	static struct bench b;
	struct guest_used used;
	struct header h = {IN, 0, 1};

	start(&b, false, false);
	/* Header in two pieces; data in odd pieces, the last with the status behind it. */
	guest_memory_write(&b.r.mem, HEADER(0), &h, sizeof(h));
	struct guest_desc in[4] = {{HEADER(0), 3, 0, 0},
				   {HEADER(0) + 3, 13, 0, 0},
				   {BUFFER(0), 100, D_WRITE, 0},
				   {BUFFER(0) + 100, 413, D_WRITE, 0}};
	drv_send(&b.d, b.q, in, 4);
	REQUIRE(drv_take(&b.d, b.q, &used));
	CHECK_EQ(used.len, 513);
	CHECK(is_pattern(data(&b, 0), 512, 512));
	CHECK_EQ(data(&b, 0)[512], OK);
	/* Header and data in one piece, through an indirect table. */
	h.type = OUT;
	memset(data(&b, 0), 0x5a, 600);
	memcpy(data(&b, 0), &h, sizeof(h));
	struct guest_desc table[2] = {{BUFFER(0), 16 + 512, D_NEXT, 1}, {STATUS(0), 1, D_WRITE, 0}};
	guest_memory_write(&b.r.mem, BUFFER(1), table, sizeof(table));
	drv_send(&b.d, b.q, &(struct guest_desc){BUFFER(1), sizeof(table), D_INDIRECT, 0}, 1);
	REQUIRE(drv_take(&b.d, b.q, &used));
	CHECK_EQ(status(&b, 0), OK);
	CHECK_EQ(transfer(&b, IN, 1, 512), OK);
	CHECK(is_all(data(&b, 0), 0x5a, 512));
	end(&b);
}

TEST(bad_requests_get_an_error)
{
	static struct bench b;

	start(&b, false, false);
	const struct {
		uint32_t type;
		uint64_t sector;
		uint32_t len;
		uint8_t status;
	} bad[] = {
		{IN, SECTORS, 512, IOERR},     {IN, SECTORS - 1, 1024, IOERR}, {IN, ~0ull, 512, IOERR},
		{IN, BIT(55), 512, IOERR},     {OUT, SECTORS, 512, IOERR},     {OUT, ~0ull - 1, 4096, IOERR},
		{IN, 0, 511, IOERR},           {OUT, 0, 513, IOERR},           {7, 0, 0, UNSUPP},
		{0xffffffff, 0, 512, UNSUPP},  {DISCARD, 0, 0, UNSUPP},        {ZEROES, 0, 15, UNSUPP},
		{DISCARD, 0, 17 * 16, UNSUPP},
	};
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++)
		CHECK_EQ(transfer(&b, bad[i].type, bad[i].sector, bad[i].len), bad[i].status);
	CHECK_EQ(zero(&b, ZEROES, SECTORS, 1, 0), IOERR);
	CHECK_EQ(zero(&b, DISCARD, ~0ull, 2, 0), IOERR);
	CHECK_EQ(zero(&b, ZEROES, 0, ~0u, 0), IOERR);
	CHECK_EQ(zero(&b, DISCARD, 0, 1, 1), UNSUPP);
	CHECK_EQ(zero(&b, ZEROES, 0, 1, 2), UNSUPP);
	CHECK(!(drv_status(&b.d) & S_NEEDS_RESET));
	CHECK_EQ(transfer(&b, IN, 0, 512), OK);
	CHECK(is_pattern(data(&b, 0), 0, 512));
	end(&b);
}

TEST(malformed_requests_need_a_reset)
{
	static struct bench b;
	const struct guest_desc bad[] = {
		{HEADER(0), 16, 0, 0},       /* no status */
		{HEADER(0), 16, D_WRITE, 0}, /* no header */
		{HEADER(0), 15, 0, 0},       /* half of one */
		{0, RIG_MEMORY, D_WRITE, 0}, {RIG_MEMORY, 16, 0, 0},
	};

	start(&b, false, false);
	log_set_level(LOG_ERROR);
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		drv_send(&b.d, b.q, &bad[i], 1);
		CHECK(drv_wait_status(&b.d, S_NEEDS_RESET));
		up(&b, ALL);
	}
	CHECK_EQ(transfer(&b, IN, 0, 512), OK);
	log_set_level(LOG_WARN);
	end(&b);
}

TEST(discard_and_write_zeroes)
{
	static struct bench b;

	for (unsigned snapshot = 0; snapshot < 2; snapshot++) {
		start(&b, false, snapshot);
		CHECK_EQ(zero(&b, ZEROES, 3, 30, 0), OK);
		CHECK_EQ(zero(&b, ZEROES, 50, 1, 1), OK);
		CHECK_EQ(zero(&b, DISCARD, SECTORS - 9, 9, 0), OK);
		CHECK_EQ(transfer(&b, IN, 0, 60 * 512), OK);
		CHECK(is_pattern(data(&b, 0), 0, 3 * 512));
		CHECK(is_all(data(&b, 0) + 3 * 512, 0, 30 * 512));
		CHECK(is_pattern(data(&b, 0) + 33 * 512, 33 * 512, 17 * 512));
		CHECK(is_all(data(&b, 0) + 50 * 512, 0, 512));
		CHECK(is_pattern(data(&b, 0) + 51 * 512, 51 * 512, 9 * 512));
		CHECK_EQ(transfer(&b, IN, SECTORS - 10, 5120), OK);
		CHECK(is_pattern(data(&b, 0), (SECTORS - 10) * 512, 512));
		CHECK(is_all(data(&b, 0) + 512, 0, 9 * 512));
		end(&b);
	}
}

TEST(readonly_disks)
{
	static struct bench b;

	start(&b, true, false);
	CHECK(drv_offered(&b.d) & F_RO);
	CHECK_EQ(transfer(&b, IN, 0, 512), OK);
	CHECK_EQ(transfer(&b, OUT, 0, 512), IOERR);
	CHECK_EQ(zero(&b, ZEROES, 0, 1, 0), IOERR);
	CHECK_EQ(zero(&b, DISCARD, 0, 1, 0), IOERR);
	CHECK_EQ(transfer(&b, FLUSH, 0, 0), OK);
	end(&b);
}

TEST(writes_last_without_the_flush_feature)
{
	static struct bench b;

	start(&b, false, false);
	up(&b, ALL & ~F_FLUSH);
	memset(data(&b, 0), 1, 512);
	CHECK_EQ(transfer(&b, OUT, 0, 512), OK);
	end(&b);
}

TEST(many_requests_at_once)
{
	static struct bench b;
	struct guest_used used;

	start(&b, false, false);
	for (unsigned round = 0; round < 40; round++) {
		for (unsigned i = 0; i < SLOTS; i++) {
			memset(data(&b, i), round + i, 1024);
			request(&b, i, round % 2 ? IN : OUT, i * 32, 1024);
		}
		for (unsigned i = 0; i < SLOTS; i++)
			REQUIRE(drv_take(&b.d, b.q, &used));
		for (unsigned i = 0; i < SLOTS; i++) {
			CHECK_EQ(status(&b, i), OK);
			CHECK(is_all(data(&b, i), round % 2 ? round - 1 + i : round + i, 1024));
		}
	}
	end(&b);
}

TEST(resets_while_requests_are_under_way)
{
	static struct bench b;

	start(&b, false, false);
	for (unsigned round = 0; round < 50; round++) {
		for (unsigned i = 0; i < SLOTS; i++)
			request(&b, i, round % 2 ? IN : OUT, i * 32, 0x2000);
		if (round % 3 == 0)
			b.r.dev.reset(b.r.dev.opaque);
		else
			common_write(&b.d, C_STATUS, 1, 0);
		/* Afterwards the device does nothing any more. */
		for (unsigned i = 0; i < SLOTS; i++)
			memset(data(&b, i), 0x77, 0x2000);
		memset(rig_at(&b.r, RIG_QUEUES, RIG_QUEUE_SIZE), 0, RIG_QUEUE_SIZE);
		host_sleep_ns(200000);
		for (unsigned i = 0; i < SLOTS; i++)
			CHECK(is_all(data(&b, i), 0x77, 0x2000));
		CHECK(is_all(rig_at(&b.r, RIG_QUEUES, RIG_QUEUE_SIZE), 0, RIG_QUEUE_SIZE));
		drv_find(&b.d, &b.r, 1);
		up(&b, ALL);
	}
	CHECK_EQ(transfer(&b, IN, 0, 512), OK);
	end(&b);
}

/* Random reads, writes and zeroes against a model, with the image untouched below. */
TEST(snapshot_keeps_writes_aside)
{
	static struct bench b;
	static uint8_t model[BYTES];
	unsigned seed = 99;

	start(&b, false, true);
	for (unsigned i = 0; i < BYTES; i++)
		model[i] = pattern(i);
	for (unsigned round = 0; round < 3000; round++) {
		uint32_t sectors = 1 + rand_r(&seed) % (round % 8 ? 20 : 127);
		uint64_t sector = rand_r(&seed) % (SECTORS - sectors + 1);
		uint64_t at = sector * 512, len = sectors * 512;
		switch (rand_r(&seed) % 4) {
		case 0:
			for (unsigned i = 0; i < len; i++)
				model[at + i] = data(&b, 0)[i] = rand_r(&seed);
			REQUIRE(transfer(&b, OUT, sector, len) == OK);
			break;
		case 1:
			if (round % 5)
				break;
			memset(model + at, 0, len);
			REQUIRE(zero(&b, round % 2 ? ZEROES : DISCARD, sector, sectors, 0) == OK);
			break;
		default:
			REQUIRE(transfer(&b, IN, sector, len) == OK);
			REQUIRE(!memcmp(data(&b, 0), model + at, len));
		}
	}
	CHECK_EQ(transfer(&b, FLUSH, 0, 0), OK);
	size_t len;
	uint8_t *file = host_file_slurp(b.path, &len);
	CHECK(file && len == BYTES && is_pattern(file, 0, BYTES));
	free(file);
	end(&b);
}

TEST(state_in_the_middle)
{
	static struct bench a, b;
	static uint8_t memory[RIG_MEMORY];
	struct guest_used used;

	for (unsigned snapshot = 0; snapshot < 2; snapshot++) {
		struct state_stream s = {.saving = true};
		start(&a, false, snapshot);
		memset(data(&a, 0), 0xcd, 0x3000);
		CHECK_EQ(transfer(&a, OUT, 7, 0x3000), OK);
		for (unsigned i = 0; i < SLOTS; i++)
			request(&a, i, IN, 7, 0x3000);
		a.r.dev.pause(a.r.dev.opaque);
		a.r.dev.state(a.r.dev.opaque, &s);
		CHECK(!s.failed);
		memcpy(memory, rig_at(&a.r, 0, RIG_MEMORY), RIG_MEMORY);
		memcpy(b.path, a.path, sizeof(b.path));
		/* The image is locked: one machine ends before the other begins. */
		rig_end(&a.r);
		attach(&b, &(struct disk_config){.image = {.path = a.path, .snapshot = snapshot}});
		b.r.dev.pause(b.r.dev.opaque);
		memcpy(rig_at(&b.r, 0, RIG_MEMORY), memory, RIG_MEMORY);
		struct state_stream l = {.data = s.data, .len = s.len};
		b.r.dev.state(b.r.dev.opaque, &l);
		CHECK(!l.failed && l.pos == l.len);
		b.r.dev.resume(b.r.dev.opaque);
		/* The driver goes on with b: some requests were served by a, the others are by b. */
		b.d = a.d;
		b.d.r = &b.r;
		b.q = &b.d.q[0];
		for (unsigned i = 0; i < SLOTS; i++)
			REQUIRE(drv_take(&b.d, b.q, &used));
		for (unsigned i = 0; i < SLOTS; i++) {
			CHECK_EQ(status(&b, i), OK);
			CHECK(is_all(data(&b, i), 0xcd, 0x3000));
		}
		for (unsigned i = 0; i < 200; i++) {
			l = (struct state_stream){.data = s.data, .len = s.len * i / 200};
			b.r.dev.state(b.r.dev.opaque, &l);
			CHECK(l.failed);
		}
		free(s.data);
		end(&b);
	}
}

static void expect_refused(const struct disk_config *c, const char *word)
{
	struct rig r;
	struct error err = {""};

	rig_init(&r);
	CHECK(!virtio_blk_create(r.pci, &r.mem, c, &r.dev, &err));
	if (!strstr(err.text, word) || !strstr(err.text, c->image.path))
		UNIT_FAIL("'%s' does not say '%s'", err.text, word);
	CHECK_EQ(cfg_read(&r, 1, 0, 4), 0xffffffff);
	rig_end(&r);
}

TEST(images_that_cannot_be_opened)
{
	static struct bench b;

	expect_refused(&(struct disk_config){.image = {.path = "/nonexistent/disk.img"}}, "No such file");
	expect_refused(&(struct disk_config){.image = {.path = "/"}}, "directory");
	expect_refused(&(struct disk_config){.image = {.path = "/", .readonly = true}}, "directory");
	make_image(&b, 513);
	expect_refused(&(struct disk_config){.image = {.path = b.path}}, "512");
	remove(b.path);
	make_image(&b, 0);
	expect_refused(&(struct disk_config){.image = {.path = b.path, .snapshot = true}}, "empty");
	remove(b.path);
}

UNIT_MAIN()
