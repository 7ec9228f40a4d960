/* Requests on files: by ring and by threads, past the cache, over the end; locks. */
#include "unit.h"

#include "host/io.h"
#include "host/thread.h"

#define COUNT 200u
#define BLOCK 4096u

static char path[80];

static struct host_file *make(uint64_t bytes, unsigned flags)
{
	static unsigned count;
	const char *dir = getenv("TMPDIR");
	struct host_file *f;

	snprintf(path, sizeof(path), "%.30s/doppel-io-%llu-%u", dir ? dir : "/tmp", (unsigned long long)host_now_ns(),
		 count++);
	f = host_file_open(path, HOST_FILE_READ | HOST_FILE_WRITE | HOST_FILE_CREATE);
	if (!f || (bytes && host_file_pwrite(f, "", 1, bytes - 1) != 1)) {
		fprintf(stderr, "cannot make %s\n", path);
		abort();
	}
	if (flags) {
		host_file_close(f);
		f = host_file_open(path, HOST_FILE_READ | HOST_FILE_WRITE | flags);
	}
	return f;
}

static void end(struct host_file *f)
{
	host_file_close(f);
	remove(path);
}

/* What came back. */
struct back {
	struct host_mutex lock;
	struct host_cond changed;
	unsigned count;
};

static void came_back(void *opaque, struct host_io *list)
{
	struct back *b = opaque;

	host_lock(&b->lock);
	for (; list; list = list->next)
		b->count++;
	host_cond_broadcast(&b->changed);
	host_unlock(&b->lock);
}

static void wait_for(struct back *b, unsigned count)
{
	uint64_t deadline = host_now_ns() + 20000000000ull;

	host_lock(&b->lock);
	while (b->count < count && host_now_ns() < deadline)
		host_cond_wait_until(&b->changed, &b->lock, deadline);
	host_unlock(&b->lock);
}

static struct host_aio *begin(struct back *b, struct host_file *f, bool no_ring)
{
	struct host_aio_config c = {.name = "test", .file = f, .no_ring = no_ring, .done = came_back, .opaque = b};

	memset(b, 0, sizeof(*b));
	host_mutex_init(&b->lock);
	host_cond_init(&b->changed);
	return host_aio_create(&c);
}

static void finish(struct back *b, struct host_aio *aio)
{
	host_aio_destroy(aio);
	host_cond_destroy(&b->changed);
	host_mutex_destroy(&b->lock);
}

/* One request, waited for; its error. */
static int one(struct host_aio *aio, struct back *b, struct host_io io, struct host_iovec *iov, unsigned n)
{
	unsigned before = b->count;

	io.iov = iov;
	io.n = n;
	for (unsigned i = 0; i < n; i++)
		io.len += iov[i].len;
	host_aio_submit(aio, &io);
	wait_for(b, before + 1);
	return io.error;
}

static bool all(const uint8_t *p, uint8_t value, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (p[i] != value)
			return false;
	return true;
}

static void many(bool no_ring, unsigned flags)
{
	static struct host_io io[COUNT];
	static struct host_iovec iov[COUNT][2];
	static uint8_t data[COUNT][2 * BLOCK] __attribute__((aligned(4096)));
	struct host_file *f = make(COUNT * 2 * BLOCK, flags);
	struct back b;
	struct host_aio *aio = begin(&b, f, no_ring);

	REQUIRE(aio);
	CHECK(!no_ring || !host_aio_has_ring(aio));
	for (unsigned pass = 0; pass < 2; pass++) {
		for (unsigned i = 0; i < COUNT; i++) {
			memset(data[i], pass ? 0 : i + 1, sizeof(data[i]));
			iov[i][0] = (struct host_iovec){data[i], BLOCK};
			iov[i][1] = (struct host_iovec){data[i] + BLOCK, BLOCK};
			io[i] = (struct host_io){.op = pass ? HOST_IO_READ : HOST_IO_WRITE,
						 .off = i * 2ull * BLOCK,
						 .len = 2 * BLOCK,
						 .iov = iov[i],
						 .n = 2,
						 .next = i + 1 < COUNT && i % 7 ? &io[i + 1] : NULL};
		}
		/* In lists of one and of seven. */
		for (unsigned i = 0; i < COUNT; i++)
			if (i == 0 || (i - 1) % 7 == 0)
				host_aio_submit(aio, &io[i]);
		wait_for(&b, COUNT * (pass + 1));
		CHECK_EQ(b.count, COUNT * (pass + 1));
		for (unsigned i = 0; i < COUNT; i++) {
			CHECK_EQ(io[i].error, 0);
			CHECK(!pass || all(data[i], i + 1, sizeof(data[i])));
		}
	}
	finish(&b, aio);
	end(f);
}

TEST(many_requests)
{
	many(false, 0);
	many(true, 0);
}

/* For file systems that know O_DIRECT; others are told so by the open. */
static bool has_direct(void)
{
	struct host_file *f = make(BLOCK, HOST_FILE_DIRECT);
	bool has = f != NULL;

	if (f)
		end(f);
	else
		remove(path);
	return has;
}

TEST(many_requests_past_the_cache)
{
	if (!has_direct())
		return;
	many(false, HOST_FILE_DIRECT);
	many(true, HOST_FILE_DIRECT);
}

TEST(pieces_that_lie_wrong_are_copied)
{
	static uint8_t out[3 * BLOCK + 1], in[3 * BLOCK + 7];

	if (!has_direct())
		return;
	for (unsigned no_ring = 0; no_ring < 2; no_ring++) {
		struct host_file *f = make(64 * BLOCK, HOST_FILE_DIRECT);
		struct back b;
		struct host_aio *aio = begin(&b, f, no_ring);
		struct host_iovec w[2] = {{out + 1, 100}, {out + 101, 3 * BLOCK - 100}},
				  r[2] = {{in + 7, BLOCK + 3}, {in + 10 + BLOCK, 2 * BLOCK - 3}};

		for (unsigned i = 0; i < sizeof(out); i++)
			out[i] = i * 7 + i / 256;
		memset(in, 0, sizeof(in));
		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_WRITE, .off = BLOCK}, w, 2), 0);
		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_READ, .off = BLOCK}, r, 2), 0);
		CHECK(!memcmp(in + 7, out + 1, 3 * BLOCK));
		/* An offset that is wrong cannot be helped. */
		r[0] = (struct host_iovec){in, 100};
		CHECK(one(aio, &b, (struct host_io){.op = HOST_IO_READ, .off = 3}, r, 1) > 0);
		finish(&b, aio);
		end(f);
	}
}

TEST(other_requests)
{
	static uint8_t data[16 * BLOCK];

	for (unsigned no_ring = 0; no_ring < 2; no_ring++) {
		struct host_file *f = make(16 * BLOCK, 0);
		struct back b;
		struct host_aio *aio = begin(&b, f, no_ring);
		struct host_iovec v = {data, sizeof(data)};

		memset(data, 0x5a, sizeof(data));
		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_WRITE}, &v, 1), 0);
		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_FLUSH}, NULL, 0), 0);
		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_ZERO, .off = 100, .len = 3 * BLOCK}, NULL, 0), 0);
		CHECK_EQ(one(aio, &b,
			     (struct host_io){.op = HOST_IO_ZERO, .unmap = true, .off = 8 * BLOCK, .len = BLOCK}, NULL,
			     0),
			 0);
		CHECK_EQ(
			one(aio, &b, (struct host_io){.op = HOST_IO_DISCARD, .off = 12 * BLOCK, .len = BLOCK}, NULL, 0),
			0);
		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_ZERO}, NULL, 0), 0);
		v = (struct host_iovec){data, sizeof(data)};
		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_READ}, &v, 1), 0);
		CHECK(all(data, 0x5a, 100));
		CHECK(all(data + 100, 0, 3 * BLOCK));
		CHECK(all(data + 100 + 3 * BLOCK, 0x5a, 5 * BLOCK - 100));
		CHECK(all(data + 8 * BLOCK, 0, BLOCK));
		CHECK(all(data + 9 * BLOCK, 0x5a, 3 * BLOCK));
		CHECK(all(data + 13 * BLOCK, 0x5a, 3 * BLOCK));
		finish(&b, aio);
		end(f);
	}
}

TEST(the_end_of_a_file)
{
	static uint8_t data[4 * BLOCK];

	for (unsigned no_ring = 0; no_ring < 2; no_ring++) {
		struct host_file *f = make(2 * BLOCK, 0);
		struct back b;
		struct host_aio *aio = begin(&b, f, no_ring);
		struct host_iovec v = {data, sizeof(data)};

		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_READ}, &v, 1), HOST_IO_ENDED);
		v = (struct host_iovec){data, BLOCK};
		CHECK_EQ(one(aio, &b, (struct host_io){.op = HOST_IO_READ, .off = 8 * BLOCK}, &v, 1), HOST_IO_ENDED);
		CHECK(strstr(host_io_error_text(HOST_IO_ENDED), "end"));
		finish(&b, aio);
		end(f);
	}
}

/* As after a short transfer on the ring: the rest goes where it belongs. */
TEST(what_has_been_begun)
{
	static uint8_t data[2 * BLOCK], back[2 * BLOCK];
	struct host_file *f = make(2 * BLOCK, 0);
	struct host_iovec v = {data + BLOCK, BLOCK};
	struct host_io io = {.op = HOST_IO_WRITE, .len = 2 * BLOCK, .iov = &v, .n = 1, .moved = BLOCK};

	memset(data, 0x11, BLOCK);
	memset(data + BLOCK, 0x22, BLOCK);
	CHECK_EQ(host_file_pwrite(f, data, BLOCK, 0), BLOCK);
	host_io_run(f, &io);
	CHECK_EQ(io.error, 0);
	CHECK_EQ(host_file_pread(f, back, sizeof(back), 0), 2 * BLOCK);
	CHECK_MEM(back, data, sizeof(data));
	end(f);
}

TEST(what_needs_no_waiting)
{
	static uint8_t data[2 * BLOCK];
	struct host_file *f = make(2 * BLOCK, 0);
	struct host_iovec v = {data, sizeof(data)};
	struct host_io io = {.op = HOST_IO_READ, .len = sizeof(data), .iov = &v, .n = 1};

	memset(data, 3, sizeof(data));
	REQUIRE(host_file_pwrite(f, data, sizeof(data), 0) == sizeof(data));
	memset(data, 0, sizeof(data));
	/* The bytes have just been written; a file system that cannot tell says that it would wait. */
	if (host_io_try(f, &io))
		CHECK(all(data, 3, sizeof(data)));
	io.off = BLOCK;
	CHECK(!host_io_try(f, &io)); /* half of it is past the end: an error, which is for the others to find */
	end(f);
}

TEST(locks)
{
	struct host_file *f = make(BLOCK, 0), *g = host_file_open(path, HOST_FILE_READ | HOST_FILE_WRITE),
			 *h = host_file_open(path, HOST_FILE_READ);

	CHECK_EQ(host_file_lock(f, true), 0);
	CHECK_EQ(host_file_lock(g, true), 1);
	CHECK_EQ(host_file_lock(h, false), 1);
	host_file_close(f);
	CHECK_EQ(host_file_lock(h, false), 0);
	CHECK_EQ(host_file_lock(g, true), 1);
	f = host_file_open(path, HOST_FILE_READ);
	CHECK_EQ(host_file_lock(f, false), 0);
	host_file_close(h);
	CHECK_EQ(host_file_lock(g, true), 1);
	host_file_close(f);
	CHECK_EQ(host_file_lock(g, true), 0);
	end(g);
}

UNIT_MAIN()
