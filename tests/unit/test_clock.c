/* The VM's clock and timers. Times are generous: the machine may be busy. */
#include "bus/clock.h"
#include "host/host.h"
#include "unit/unit.h"

#define MS 1000000ull

static struct vm_clock *clk;

static void setup(void)
{
	clk = clock_create();
	REQUIRE(clk);
	clock_resume(clk);
}

struct hits {
	_Atomic unsigned count;
	_Atomic uint64_t when;
};

static void hit(void *opaque)
{
	struct hits *h = opaque;

	h->when = clock_now(clk);
	h->count++;
}

static void wait_count(struct hits *h, unsigned count)
{
	for (unsigned i = 0; i < 5000 && h->count < count; i++)
		host_sleep_ns(MS);
	CHECK(h->count >= count);
}

TEST(time)
{
	uint64_t a, b, sec;
	uint32_t nsec;

	setup();
	a = clock_now(clk);
	CHECK(a < 5000 * MS);
	host_sleep_ns(5 * MS);
	b = clock_now(clk);
	CHECK(b - a >= 5 * MS);
	clock_wall(&sec, &nsec);
	CHECK(sec > 1700000000 && nsec < 1000000000);
	CHECK(clock_tsc_hz(clk) > 100000000 && clock_tsc_hz(clk) == host_tsc_hz());
	clock_destroy(clk);
}

/* How fast the TSC runs is asked for as late as that. */
TEST(begins_paused)
{
	clk = clock_create();
	REQUIRE(clk);
	host_sleep_ns(MS);
	CHECK(clock_now(clk) == 0 && clock_ticks(clk) == 0);
	clock_set(clk, 1000 * MS);
	CHECK(clock_now(clk) >= 1000 * MS && clock_now(clk) < 1001 * MS);
	clock_resume(clk);
	host_sleep_ns(MS);
	CHECK(clock_now(clk) >= 1001 * MS);
	clock_destroy(clk);
}

TEST(fires_once)
{
	struct hits h = {0};
	struct clock_timer *t;
	uint64_t due;

	setup();
	t = clock_timer_create(clk, hit, &h);
	due = clock_now(clk) + 20 * MS;
	clock_timer_set(t, due);
	wait_count(&h, 1);
	CHECK(h.when >= due);
	host_sleep_ns(30 * MS);
	CHECK_EQ(h.count, 1);
	clock_timer_set(t, 0); /* past: at once */
	wait_count(&h, 2);
	clock_timer_destroy(t);
	clock_destroy(clk);
}

TEST(rearm_and_disarm)
{
	struct hits h = {0};
	struct clock_timer *t;

	setup();
	t = clock_timer_create(clk, hit, &h);
	clock_timer_set(t, clock_now(clk) + 150 * MS);
	clock_timer_set(t, CLOCK_NEVER);
	host_sleep_ns(200 * MS);
	CHECK_EQ(h.count, 0);
	clock_timer_set(t, clock_now(clk) + 100000 * MS);
	clock_timer_set(t, clock_now(clk) + 10 * MS); /* earlier: the thread must wake */
	wait_count(&h, 1);
	clock_timer_set(t, clock_now(clk) + 150 * MS);
	clock_timer_set(t, clock_now(clk) + 100000 * MS); /* later */
	host_sleep_ns(200 * MS);
	CHECK_EQ(h.count, 1);
	clock_timer_set(t, CLOCK_NEVER - 1); /* beyond the host's time, and no overflow */
	host_sleep_ns(5 * MS);
	CHECK_EQ(h.count, 1);
	clock_timer_destroy(t);
	clock_destroy(clk);
}

static struct {
	struct clock_timer *timer;
	uint64_t next;
	_Atomic unsigned fired;
	_Atomic bool early;
} ticks;

static void tick(void *opaque)
{
	(void)opaque;
	ticks.early |= clock_now(clk) < ticks.next;
	if (++ticks.fired < 20)
		clock_timer_set(ticks.timer, ticks.next += 4 * MS);
}

/* A tick, for which the thread wakes by itself; then one that comes sooner, and none. */
TEST(in_step)
{
	struct hits h = {0};
	uint64_t due;

	setup();
	ticks.timer = clock_timer_create(clk, tick, NULL);
	struct clock_timer *t = clock_timer_create(clk, hit, &h);
	ticks.next = clock_now(clk) + 4 * MS;
	clock_timer_set(ticks.timer, ticks.next);
	for (unsigned i = 0; i < 5000 && ticks.fired < 10; i++)
		host_sleep_ns(MS);
	clock_timer_set(t, due = clock_now(clk) + MS / 2);
	wait_count(&h, 1);
	CHECK(h.when >= due);
	for (unsigned i = 0; i < 5000 && ticks.fired < 20; i++)
		host_sleep_ns(MS);
	host_sleep_ns(10 * MS);
	CHECK_EQ(ticks.fired, 20);
	CHECK(!ticks.early);
	clock_timer_set(t, due = clock_now(clk) + 100000 * MS);
	clock_timer_set(t, due = clock_now(clk) + MS);
	wait_count(&h, 2);
	CHECK(h.when >= due);
	clock_timer_destroy(t);
	clock_timer_destroy(ticks.timer);
	clock_destroy(clk);
}

#define MANY 200

static struct {
	struct clock_timer *timer[MANY];
	uint64_t due[MANY];
	_Atomic unsigned fired;
	_Atomic uint64_t last_due;
	_Atomic bool disorder;
} many;

static void in_order(void *opaque)
{
	size_t i = (size_t)opaque;

	if (many.due[i] < many.last_due || clock_now(clk) < many.due[i])
		many.disorder = true;
	many.last_due = many.due[i];
	many.fired++;
}

TEST(order)
{
	uint64_t start;
	unsigned expect = 0;

	setup();
	for (size_t i = 0; i < MANY; i++)
		REQUIRE((many.timer[i] = clock_timer_create(clk, in_order, (void *)i)));
	clock_pause(clk); /* so that all are armed before the first fires */
	start = clock_now(clk);
	for (size_t i = 0; i < MANY; i++) {
		many.due[i] = start + (i * 7919 % MANY) * MS / 4;
		clock_timer_set(many.timer[i], many.due[i]);
	}
	for (size_t i = 0; i < MANY; i++) /* take some out of the middle of the heap */
		if (i % 3 == 1)
			clock_timer_set(many.timer[i], CLOCK_NEVER);
		else
			expect++;
	clock_resume(clk);
	for (unsigned i = 0; i < 5000 && many.fired < expect; i++)
		host_sleep_ns(MS);
	host_sleep_ns(5 * MS);
	CHECK_EQ(many.fired, expect);
	CHECK(!many.disorder);
	for (size_t i = 0; i < MANY; i++)
		clock_timer_destroy(many.timer[i]);
	clock_destroy(clk);
}

static struct clock_timer *periodic;

static void again(void *opaque)
{
	hit(opaque);
	clock_timer_set(periodic, clock_now(clk) + MS / 10);
}

TEST(arms_itself)
{
	struct hits h = {0};

	setup();
	periodic = clock_timer_create(clk, again, &h);
	clock_timer_set(periodic, 0);
	wait_count(&h, 20);
	clock_timer_destroy(periodic); /* while it is at it */
	clock_destroy(clk);
}

static void at_once_again(void *opaque)
{
	hit(opaque);
	clock_timer_set(periodic, 0);
}

TEST(destroys_what_never_stops)
{
	struct hits h = {0};

	setup();
	periodic = clock_timer_create(clk, at_once_again, &h);
	clock_timer_set(periodic, 0);
	wait_count(&h, 1000);
	clock_timer_destroy(periodic);
	clock_destroy(clk);
}

static void slow(void *opaque)
{
	_Atomic unsigned *phase = opaque;

	*phase = 1;
	host_sleep_ns(30 * MS);
	*phase = 2;
}

TEST(destroy_and_pause_wait)
{
	_Atomic unsigned phase = 0;
	struct clock_timer *t;

	setup();
	for (unsigned i = 0; i < 2; i++) {
		phase = 0;
		t = clock_timer_create(clk, slow, (void *)&phase);
		clock_timer_set(t, 0);
		while (phase != 1)
			host_sleep_ns(MS);
		if (i)
			clock_pause(clk);
		else
			clock_timer_destroy(t);
		CHECK_EQ(phase, 2);
	}
	clock_timer_destroy(t);
	clock_destroy(clk); /* paused */
}

TEST(pause)
{
	struct hits h = {0};
	struct clock_timer *t;
	uint64_t at, due, before;

	setup();
	t = clock_timer_create(clk, hit, &h);
	due = clock_now(clk) + 150 * MS;
	clock_timer_set(t, due);
	clock_pause(clk);
	clock_pause(clk);
	at = clock_now(clk);
	host_sleep_ns(200 * MS);
	CHECK_EQ(clock_now(clk), at);
	CHECK_EQ(h.count, 0);
	before = host_now_ns();
	clock_resume(clk);
	clock_resume(clk);
	at = clock_now(clk) - at;
	CHECK(at <= host_now_ns() - before);
	wait_count(&h, 1);
	CHECK(h.when >= due);
	clock_timer_destroy(t);
	clock_destroy(clk);
}

TEST(lose)
{
	uint64_t a, b;

	setup();
	host_sleep_ns(20 * MS);
	CHECK_EQ(clock_lose(clk, 1000), 0); /* not paused */
	clock_pause(clk);
	a = clock_ticks(clk);
	CHECK_EQ(clock_lose(clk, 1000), 1000);
	CHECK_EQ(clock_ticks(clk), a - 1000);
	b = clock_base(clk);
	b += clock_resume(clk);
	CHECK_EQ(clock_base(clk), b);
	CHECK(clock_ticks(clk) >= a - 1000);
	clock_pause(clk);
	a = clock_ticks(clk);
	CHECK_EQ(clock_lose(clk, UINT64_MAX), a); /* not before the VM's start */
	CHECK_EQ(clock_now(clk), 0);
	clock_destroy(clk);
}

TEST(set)
{
	struct hits h = {0};
	struct clock_timer *t;

	setup();
	clock_pause(clk);
	t = clock_timer_create(clk, hit, &h);
	clock_timer_set(t, 100000 * MS);
	clock_set(clk, 99990 * MS);
	CHECK_EQ(clock_now(clk), 99990 * MS);
	clock_resume(clk);
	wait_count(&h, 1);
	clock_timer_set(t, 200000 * MS);
	clock_set(clk, 200000 * MS); /* running */
	wait_count(&h, 2);
	clock_timer_destroy(t);
	clock_destroy(clk);
}

/* Never backwards, for anyone, whatever is paused and resumed meanwhile. */
static _Atomic bool stop;

static void *watch_time(void *arg)
{
	uint64_t before = 0;

	while (!stop) {
		uint64_t now = clock_now(clk);

		if (now < before || now > 60000 * MS)
			return arg;
		before = now;
	}
	return NULL;
}

static void *arm_at_random(void *arg)
{
	struct clock_timer **timers = arg;
	unsigned seed = (unsigned)(uintptr_t)arg;

	for (unsigned i = 0; i < 20000; i++) {
		seed = seed * 1103515245 + 12345;
		clock_timer_set(timers[seed >> 16 & 7], seed & 1 ? CLOCK_NEVER : clock_now(clk) + (seed >> 8 & 0xffff));
	}
	return NULL;
}

static void nothing(void *opaque) {}

TEST(threads)
{
	struct host_thread watcher[2], armer[2];
	struct clock_timer *timers[8];

	setup();
	stop = false;
	for (unsigned i = 0; i < ARRAY_LEN(timers); i++)
		REQUIRE((timers[i] = clock_timer_create(clk, nothing, NULL)));
	for (unsigned i = 0; i < 2; i++) {
		REQUIRE(host_thread_start(&watcher[i], "watcher", watch_time, &stop));
		REQUIRE(host_thread_start(&armer[i], "armer", arm_at_random, timers));
	}
	for (unsigned i = 0; i < 300; i++) {
		struct clock_timer *t = clock_timer_create(clk, nothing, NULL);

		clock_timer_set(t, clock_now(clk));
		clock_pause(clk);
		clock_resume(clk);
		clock_timer_destroy(t);
	}
	for (unsigned i = 0; i < 2; i++)
		host_thread_join(&armer[i]);
	stop = true;
	for (unsigned i = 0; i < 2; i++) {
		void *bad;

		pthread_join(watcher[i].t, &bad);
		CHECK(!bad);
	}
	for (unsigned i = 0; i < ARRAY_LEN(timers); i++)
		clock_timer_destroy(timers[i]);
	clock_destroy(clk);
}

UNIT_MAIN()
