/* How fast the TSC runs. */
#include "host/host.h"

#include <cpuid.h>
#include <pthread.h>
#include <time.h>
#include <x86intrin.h>

#define MEASURE_NS 5000000 /* at least: the two readings are good to some tens of ns */
#define TRIES 32

struct instant {
	uint64_t tsc, ns;
};

/* CLOCK_MONOTONIC_RAW: the other one is being slewed while NTP steers it. */
static uint64_t raw_ns(void)
{
	struct timespec ts;

	ENSURE(!clock_gettime(CLOCK_MONOTONIC_RAW, &ts));
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/*
 * When what is above has been done, and before what is below begins (SDM Vol. 2B, RDTSC). RDTSCP is not of the level
 * x86-64-v2, and there are virtual hosts whose processor, of a later level, has none.
 */
static uint64_t read_tsc(void)
{
	_mm_lfence();
	uint64_t tsc = __rdtsc();
	_mm_lfence();
	return tsc;
}

/* Both clocks at one moment: of several readings the one that took least, so was not interrupted. */
static struct instant read_both(void)
{
	struct instant best = {0};
	uint64_t least = UINT64_MAX;

	for (unsigned i = 0; i < TRIES; i++) {
		uint64_t before = read_tsc(), ns = raw_ns(), after = read_tsc();

		if (after - before >= least)
			continue;
		least = after - before;
		best = (struct instant){.tsc = before + least / 2, .ns = ns};
	}
	return best;
}

static uint64_t measure(struct instant since)
{
	uint64_t passed = raw_ns() - since.ns;
	struct instant now;

	if (passed < MEASURE_NS)
		host_sleep_ns(MEASURE_NS - passed);
	now = read_both();
	ENSURE(now.ns > since.ns);
	return (uint64_t)((unsigned __int128)(now.tsc - since.tsc) * 1000000000 / (now.ns - since.ns));
}

/* What CPUID says: a hypervisor's timing leaf (in kHz), else crystal and ratio (SDM Vol. 3B 18.7.3); 0 when silent. */
static uint64_t told(void)
{
	unsigned a, b, c, d;

	__cpuid(1, a, b, c, d);
	if (c & BIT(31)) {
		__cpuid(0x40000000, a, b, c, d);
		if (a >= 0x40000010 && a < 0x40010000) {
			__cpuid(0x40000010, a, b, c, d);
			if (a)
				return (uint64_t)a * 1000;
		}
	}
	if (__get_cpuid_max(0, NULL) < 0x15)
		return 0;
	__cpuid_count(0x15, 0, a, b, c, d);
	return a && b && c ? (uint64_t)c * b / a : 0;
}

/*
 * CPUID is exact where it is right, and wrong under hypervisors that scale the TSC or pass the leaf of another machine
 * on: it is believed within 0.05% of what we measure.
 */
static uint64_t find_hz(struct instant since)
{
	uint64_t measured = measure(since), hz = told(), slack = measured / 2000;

	return hz >= measured - slack && hz <= measured + slack ? hz : measured;
}

/* The host's, not a VM's: measured once per process. */
static pthread_once_t begun = PTHREAD_ONCE_INIT, once = PTHREAD_ONCE_INIT;
static struct instant start;
static uint64_t tsc_hz;

static void begin_once(void)
{
	start = read_both();
}

static void init_once(void)
{
	tsc_hz = find_hz(start);
}

void host_tsc_begin(void)
{
	pthread_once(&begun, begin_once);
}

uint64_t host_tsc_hz(void)
{
	host_tsc_begin();
	pthread_once(&once, init_once);
	return tsc_hz;
}
