/* Timers of a thread's own. */
#include "host/thread_timer.h"

#include "host/guest_signals.h"
#include "host/host.h"
#include "unit/unit.h"

static void count(void *opaque, uint64_t pc)
{
	if (pc)
		++*(volatile unsigned *)opaque;
}

static void *opaque(volatile unsigned *n)
{
	return (void *)(uintptr_t)n;
}

TEST(rings_each_period)
{
	volatile unsigned n = 0;

	REQUIRE(host_guest_signals_thread_enter());
	REQUIRE(host_thread_timer_enter(HOST_TIMER_SAMPLE, count, opaque(&n)));
	host_thread_timer_set(HOST_TIMER_SAMPLE, 1000000, 1000000);
	while (n < 10)
		;
	host_thread_timer_leave(HOST_TIMER_SAMPLE);
	unsigned before = n;
	host_sleep_ns(5000000);
	CHECK_EQ(n, before);
	host_thread_timer_leave(HOST_TIMER_SAMPLE);
	host_guest_signals_thread_leave();
}

TEST(rings_once_beside_another)
{
	volatile unsigned n = 0, samples = 0;

	REQUIRE(host_guest_signals_thread_enter());
	REQUIRE(host_thread_timer_enter(HOST_TIMER_SAMPLE, count, opaque(&samples)));
	REQUIRE(host_thread_timer_enter(HOST_TIMER_ALARM, count, opaque(&n)));
	host_thread_timer_set(HOST_TIMER_SAMPLE, 1000000, 1000000);
	for (unsigned i = 1; i <= 3; i++) {
		host_thread_timer_set(HOST_TIMER_ALARM, 100000, 0);
		while (n < i)
			;
		unsigned before = samples;
		while (samples < before + 2)
			;
		CHECK_EQ(n, i);
	}
	host_thread_timer_set(HOST_TIMER_ALARM, 50000000, 0);
	host_thread_timer_set(HOST_TIMER_ALARM, 0, 0);
	host_thread_timer_leave(HOST_TIMER_ALARM);
	CHECK_EQ(n, 3);
	host_thread_timer_leave(HOST_TIMER_SAMPLE);
	host_guest_signals_thread_leave();
}

UNIT_MAIN()
