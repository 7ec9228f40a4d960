/* Threads, time, memory, code and files of the host. */
#include "host/host.h"
#include "host/thread.h"
#include "unit/unit.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#define MS 1000000ull

TEST(time)
{
	uint64_t a = host_now_ns(), sec;
	uint32_t nsec;

	host_sleep_ns(3 * MS);
	CHECK(host_now_ns() - a >= 3 * MS);
	host_wall_time(&sec, &nsec);
	CHECK(sec + 1 >= (uint64_t)time(NULL) && nsec < 1000000000);
}

/* Against a longer measurement of our own: 100 parts in a million, on a machine that may be busy. */
TEST(tsc_hz)
{
	uint64_t hz = host_tsc_hz(), t0, t1, n0, n1, measured;
	double off = 1;

	for (unsigned try = 0; try < 5 && off > 1e-4; try++) {
		n0 = host_now_ns();
		t0 = __rdtsc();
		host_sleep_ns(200 * MS);
		n1 = host_now_ns();
		t1 = __rdtsc();
		measured = (uint64_t)((double)(t1 - t0) * 1e9 / (double)(n1 - n0));
		off = measured > hz ? (double)(measured - hz) / (double)hz : (double)(hz - measured) / (double)hz;
	}
	CHECK(off <= 1e-4);
	CHECK_EQ(hz, host_tsc_hz());
}

TEST(machine)
{
	uint64_t random[2][4];

	CHECK(host_cpu_count() >= 1);
	CHECK(host_memory_total() > MiB(64));
	CHECK(host_random(random[0], sizeof(random[0])));
	CHECK(host_random(random[1], sizeof(random[1])));
	CHECK(memcmp(random[0], random[1], sizeof(random[0])));
}

static uint64_t read_gs0(void)
{
	uint64_t v;

	__asm__ volatile("mov %%gs:0, %0" : "=r"(v));
	return v;
}

TEST(gs_base)
{
	uint64_t there[2] = {0x1234, 0x5678};

	CHECK(host_set_gs_base((uint64_t)&there[0]));
	CHECK_EQ(read_gs0(), 0x1234);
	CHECK(host_set_gs_base((uint64_t)&there[1]));
	CHECK_EQ(read_gs0(), 0x5678);
	CHECK(!host_set_gs_base(1ull << 63));
	CHECK(strlen(host_error_text()) > 0);
	CHECK(host_set_gs_base(0));
}

TEST(memory)
{
	uint8_t *p = host_memory_alloc(MiB(8) + 1);

	REQUIRE(p);
	CHECK_EQ((uint64_t)p % MiB(2), 0);
	CHECK_EQ(p[0], 0);
	CHECK_EQ(p[MiB(8)], 0);
	p[MiB(8)] = 1;
	host_memory_free(p, MiB(8) + 1);
	p = host_memory_alloc(1);
	REQUIRE(p);
	p[4095] = 1;
	host_memory_free(p, 1);
	host_memory_free(NULL, 5);
	CHECK(!host_memory_alloc(0));
	CHECK(!host_memory_alloc(~0ull));
	CHECK(!host_memory_alloc(1ull << 50));
	CHECK_STR(host_error_text(), "Cannot allocate memory");
}

TEST(code)
{
	static const uint8_t ret42[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
	struct host_code code;
	int (*fn)(void);

	REQUIRE(host_code_alloc(&code, 5000));
	CHECK_EQ(code.size, 8192);
	CHECK(code.rw != code.rx);
	memcpy(code.rw + 4096, ret42, sizeof(ret42));
	CHECK_MEM(code.rx + 4096, ret42, sizeof(ret42));
	fn = (int (*)(void))(uintptr_t)(code.rx + 4096);
	CHECK_EQ(fn(), 42);
	code.rw[4097] = 43;
	CHECK_EQ(fn(), 43);
	host_code_free(&code);
	CHECK(!code.rw && !code.rx);
	host_code_free(&code);
	CHECK(!host_code_alloc(&code, 0));
}

static struct {
	struct host_mutex lock;
	struct host_cond cond;
	struct host_rwlock rw;
	uint64_t count;
	bool ready;
} shared;

static void *count_up(void *arg)
{
	for (unsigned i = 0; i < 10000; i++) {
		host_lock(&shared.lock);
		shared.count++;
		host_unlock(&shared.lock);
	}
	return arg;
}

static void *make_ready(void *arg)
{
	host_sleep_ns(5 * MS);
	host_lock(&shared.lock);
	shared.ready = true;
	host_cond_broadcast(&shared.cond);
	host_unlock(&shared.lock);
	return NULL;
}

TEST(locks)
{
	struct host_thread t[4];

	memset(&shared, 0, sizeof(shared));
	host_mutex_init(&shared.lock);
	host_rwlock_init(&shared.rw);
	for (unsigned i = 0; i < 4; i++)
		REQUIRE(host_thread_start(&t[i], "a name that is far too long", count_up, NULL));
	for (unsigned i = 0; i < 4; i++)
		host_thread_join(&t[i]);
	CHECK_EQ(shared.count, 40000);
	host_rdlock(&shared.rw);
	host_rdlock(&shared.rw);
	host_rwunlock(&shared.rw);
	host_rwunlock(&shared.rw);
	host_wrlock(&shared.rw);
	host_rwunlock(&shared.rw);
	host_rwlock_destroy(&shared.rw);
	host_mutex_destroy(&shared.lock);
}

TEST(conditions)
{
	struct host_thread t;
	uint64_t start = host_now_ns();

	memset(&shared, 0, sizeof(shared));
	host_mutex_init(&shared.lock);
	host_cond_init(&shared.cond);
	host_lock(&shared.lock);
	while (host_cond_wait_until(&shared.cond, &shared.lock, start + 10 * MS))
		;
	CHECK(host_now_ns() >= start + 10 * MS);
	CHECK(!host_cond_wait_until(&shared.cond, &shared.lock, 0));
	REQUIRE(host_thread_start(&t, "ready", make_ready, NULL));
	while (!shared.ready)
		CHECK(host_cond_wait_until(&shared.cond, &shared.lock, UINT64_MAX));
	host_unlock(&shared.lock);
	host_thread_join(&t);
	host_cond_destroy(&shared.cond);
	host_mutex_destroy(&shared.lock);
}

static void *look_at_mask(void *arg)
{
	sigset_t *set = arg;

	pthread_sigmask(SIG_SETMASK, NULL, set);
	return NULL;
}

TEST(thread_signals)
{
	struct host_thread t;
	sigset_t theirs, before, after;

	pthread_sigmask(SIG_SETMASK, NULL, &before);
	REQUIRE(host_thread_start(&t, "mask", look_at_mask, &theirs));
	CHECK(!host_thread_is_current(&t));
	host_thread_join(&t);
	pthread_sigmask(SIG_SETMASK, NULL, &after);
	CHECK_EQ(sigismember(&before, SIGTERM), sigismember(&after, SIGTERM));
	CHECK(sigismember(&theirs, SIGTERM) && sigismember(&theirs, SIGINT) && sigismember(&theirs, SIGPIPE));
	CHECK(!sigismember(&theirs, SIGSEGV) && !sigismember(&theirs, SIGFPE) && !sigismember(&theirs, SIGTRAP));
}

/* There are no addresses for a stack of 128 TiB. */
TEST(no_thread)
{
	struct host_thread t;
	pthread_attr_t attr, before;

	REQUIRE(!pthread_getattr_default_np(&before) && !pthread_attr_init(&attr));
	REQUIRE(!pthread_attr_setstacksize(&attr, 1ull << 47) && !pthread_setattr_default_np(&attr));
	CHECK(!host_file_open("/nonexistent", HOST_FILE_READ));
	CHECK(!host_thread_start(&t, "none", make_ready, NULL));
	CHECK(strcmp(host_error_text(), "No such file or directory") != 0);
	CHECK(strcmp(host_error_text(), "Success") != 0);
	REQUIRE(!pthread_setattr_default_np(&before));
	pthread_attr_destroy(&attr);
	pthread_attr_destroy(&before);
}

static char path[64];

static struct host_file *fresh(void)
{
	struct host_file *f;
	int fd;

	strcpy(path, "/tmp/doppel-test-XXXXXX");
	fd = mkstemp(path);
	REQUIRE(fd >= 0);
	close(fd);
	f = host_file_open(path, HOST_FILE_READ | HOST_FILE_WRITE);
	REQUIRE(f);
	return f;
}

TEST(file)
{
	struct host_file *f = fresh();
	uint8_t back[16] = {0};

	CHECK_EQ(host_file_size(f), 0);
	CHECK(host_file_is_regular(f));
	CHECK_EQ(host_file_pread(f, back, 4, 0), 0);
	CHECK_EQ(host_file_pwrite(f, "hello", 5, 100), 5);
	CHECK_EQ(host_file_size(f), 105);
	CHECK_EQ(host_file_pread(f, back, 16, 102), 3);
	CHECK_MEM(back, "llo", 3);
	CHECK_EQ(host_file_pread(f, back, 0, 0), 0);
	CHECK_EQ(host_file_pread(f, back, 4, ~0ull), -1);
	CHECK_EQ(host_file_pwrite(f, back, 4, ~0ull), -1);
	CHECK_EQ(host_file_sync(f), 0);
	host_file_close(f);
	f = host_file_open(path, HOST_FILE_READ);
	REQUIRE(f);
	CHECK_EQ(host_file_pwrite(f, "x", 1, 0), -1);
	CHECK_STR(host_error_text(), "Bad file descriptor");
	host_file_close(f);
	unlink(path);
	CHECK(!host_file_open(path, HOST_FILE_READ));
	CHECK_STR(host_error_text(), "No such file or directory");
	f = host_file_open(path, HOST_FILE_WRITE | HOST_FILE_CREATE);
	CHECK(f);
	host_file_close(f);
	unlink(path);
	CHECK(!host_file_open("/tmp", HOST_FILE_READ));
	CHECK_STR(host_error_text(), "Is a directory");
	CHECK(!host_file_open("/dev/null", HOST_FILE_READ | HOST_FILE_WRITE));
	CHECK_STR(host_error_text(), "it is neither a file nor a block device");
	REQUIRE(!mkfifo(path, 0600));
	CHECK(!host_file_open(path, HOST_FILE_READ)); /* without waiting for who writes */
	CHECK_STR(host_error_text(), "it is neither a file nor a block device");
	unlink(path);
	host_file_close(NULL);
}

/* More pieces than one system call takes, some empty, and the end of the file in the middle of one. */
#define PIECES 3000u

TEST(vectors)
{
	static uint8_t data[PIECES * 7], back[PIECES * 7];
	static struct host_iovec iov[PIECES * 2];
	struct host_file *f = fresh();

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 31 >> 3);
	for (unsigned i = 0; i < PIECES; i++)
		iov[i * 2] = (struct host_iovec){data + i * 7, 7};
	CHECK_EQ(host_file_pwritev(f, iov, PIECES * 2, 3), sizeof(data));
	for (unsigned i = 0; i < PIECES; i++)
		iov[i * 2].base = back + i * 7;
	CHECK_EQ(host_file_preadv(f, iov, PIECES * 2, 3), sizeof(data));
	CHECK_MEM(back, data, sizeof(data));
	memset(back, 0xee, sizeof(back));
	CHECK_EQ(host_file_preadv(f, iov, PIECES * 2, 13), sizeof(data) - 10);
	CHECK_MEM(back, data + 10, sizeof(data) - 10);
	CHECK_EQ(back[sizeof(data) - 10], 0xee);
	CHECK_EQ(host_file_preadv(f, iov, 0, 0), 0);
	host_file_close(f);
	unlink(path);
}

TEST(short_write)
{
	struct rlimit limit, old;
	struct host_file *f = fresh();
	static uint8_t data[8192];

	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &old);
	limit = old;
	limit.rlim_cur = 5000;
	setrlimit(RLIMIT_FSIZE, &limit);
	/* The system writes 5000 bytes and then fails: so does the whole. */
	CHECK_EQ(host_file_pwrite(f, data, sizeof(data), 0), -1);
	CHECK_STR(host_error_text(), "File too large");
	setrlimit(RLIMIT_FSIZE, &old);
	CHECK_EQ(host_file_pwrite(f, data, sizeof(data), 0), sizeof(data));
	host_file_close(f);
	unlink(path);
}

TEST(punch)
{
	static uint8_t data[65536 * 3], zeroes[65536 * 3];
	struct host_file *f = fresh();

	memset(data, 0xaa, sizeof(data));
	CHECK_EQ(host_file_pwrite(f, data, sizeof(data), 0), sizeof(data));
	CHECK_EQ(host_file_punch(f, 1000, 100000), 0);
	CHECK_EQ(host_file_size(f), sizeof(data));
	CHECK_EQ(host_file_pread(f, data, sizeof(data), 0), sizeof(data));
	CHECK_EQ(data[999], 0xaa);
	CHECK_MEM(data + 1000, zeroes, 100000);
	CHECK_EQ(data[101000], 0xaa);
	CHECK_EQ(host_file_punch(f, sizeof(data) - 10, 100), 0);
	CHECK_EQ(host_file_size(f), sizeof(data));
	CHECK_EQ(host_file_punch(f, 0, 0), 0);
	CHECK_EQ(host_file_punch(f, ~0ull, 5), -1);
	host_file_close(f);
	unlink(path);
}

TEST(temporary)
{
	struct host_file *f = host_file_temp();
	char back[4];

	REQUIRE(f);
	CHECK(host_file_is_regular(f));
	CHECK_EQ(host_file_pwrite(f, "abc", 4, GiB(8)), 4); /* sparse */
	CHECK_EQ(host_file_pread(f, back, 4, GiB(8)), 4);
	CHECK_STR(back, "abc");
	host_file_close(f);
}

static void *feed(void *arg)
{
	static const char data[] = "0123456789";
	int fd = open(path, O_WRONLY);

	for (unsigned i = 0; i < 20000; i++)
		if (write(fd, data, 10) != 10)
			break;
	close(fd);
	return arg;
}

static size_t looked;

static bool look(void *opaque, const uint8_t *data, size_t len)
{
	looked = len;
	return opaque;
}

static void read_within_limits(void)
{
	struct host_file *f = fresh();
	size_t len;

	CHECK_EQ(host_file_pwrite(f, "x", 1, 299999), 1);
	free(host_file_read_whole(path, 300000, look, f, &len));
	CHECK_EQ(len, 300000);
	CHECK_EQ(looked, 65536);
	looked = 0;
	CHECK(!host_file_read_whole(path, 299999, look, f, &len));
	CHECK(host_failed_too_long());
	CHECK_EQ(looked, 0);
	CHECK(!host_file_read_whole(path, 300000, look, NULL, &len));
	CHECK_EQ(looked, 65536);
	CHECK(!host_failed_too_long());
	/* Of an endless one no more is read than is allowed. */
	CHECK(!host_file_read_whole("/dev/zero", 1000, NULL, NULL, &len));
	CHECK(host_failed_too_long());
	CHECK(!host_file_read_whole("/dev/zero", 3000000, NULL, NULL, &len));
	CHECK(host_failed_too_long());
	host_file_close(f);
	unlink(path);
}

/* A file that takes large pages, and the same again when another has its name. */
TEST(read_again)
{
	struct host_file *f = fresh(), *kept;
	char *data;
	size_t len;

	CHECK_EQ(host_file_pwrite(f, "end", 3, 3000000), 3);
	CHECK_EQ(host_file_pwrite(f, "begin", 5, 0), 5);
	data = host_file_read_whole(path, MiB(3), NULL, NULL, &len);
	REQUIRE(data);
	CHECK_EQ(len, 3000003);
	CHECK_MEM(data, "begin", 5);
	CHECK_MEM(data + 3000000, "end", 3);
	CHECK(!data[70000] && !data[2999999]);
	free(data);
	kept = host_file_keep(path);
	REQUIRE(kept);
	unlink(path);
	data = host_file_read_head(kept, 1000, MiB(3), &len);
	REQUIRE(data);
	CHECK_EQ(len, 3000003);
	CHECK_MEM(data, "begin", 5);
	free(data);
	data = host_file_read_head(kept, MiB(4), MiB(3), &len);
	REQUIRE(data);
	CHECK_EQ(len, 3000003);
	CHECK_MEM(data + 3000000, "end", 3);
	free(data);
	CHECK(!host_file_read_head(kept, 1000, 3000002, &len));
	CHECK(host_failed_too_long());
	host_file_close(kept);
	host_file_close(f);
	CHECK(!host_file_keep(path));
	REQUIRE(!mkfifo(path, 0600));
	CHECK(!host_file_keep(path));
	unlink(path);
}

TEST(slurp)
{
	struct host_file *f = fresh();
	struct host_thread t;
	char *data;
	size_t len;

	data = host_file_slurp(path, &len);
	CHECK(data && !len);
	free(data);
	CHECK_EQ(host_file_pwrite(f, "x", 1, 65535), 1);
	data = host_file_slurp(path, &len);
	REQUIRE(data);
	CHECK_EQ(len, 65536);
	CHECK_EQ(data[65535], 'x');
	free(data);
	host_file_close(f);
	unlink(path);
	CHECK(!host_file_slurp(path, &len));
	CHECK(!host_file_slurp("/tmp", &len));
	CHECK_STR(host_error_text(), "Is a directory");
	CHECK(!host_failed_too_long());
	read_within_limits();
	/* A pipe, in pieces. */
	REQUIRE(!mkfifo(path, 0600));
	REQUIRE(host_thread_start(&t, "feed", feed, NULL));
	data = host_file_slurp(path, &len);
	host_thread_join(&t);
	REQUIRE(data);
	CHECK_EQ(len, 200000);
	CHECK_MEM(data + 199990, "0123456789", 10);
	free(data);
	/* Nobody comes. */
	CHECK(!host_file_slurp(path, &len));
	CHECK_STR(host_error_text(), "it is a pipe that nobody writes to");
	unlink(path);
}

UNIT_MAIN()
