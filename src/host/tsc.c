/* How fast the TSC runs. */
#include "host/host.h"

#include <cpuid.h>
#include <pthread.h>
#include <time.h>
#include <x86intrin.h>

#define MEASURE_NS 10000000
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

/* Both clocks at one moment: of several readings the one that took least, so was not interrupted. */
static struct instant read_both(void)
{
	struct instant best = {0};
	uint64_t least = UINT64_MAX;

	for (unsigned i = 0; i < TRIES; i++) {
		unsigned aux;
		uint64_t before = __rdtscp(&aux), ns = raw_ns(), after = __rdtscp(&aux);

		if (after - before >= least)
			continue;
		least = after - before;
		best = (struct instant){.tsc = before + least / 2, .ns = ns};
	}
	return best;
}

static uint64_t measure(void)
{
	struct instant a = read_both(), b;

	host_sleep_ns(MEASURE_NS);
	b = read_both();
	ENSURE(b.ns > a.ns);
	return (uint64_t)((unsigned __int128)(b.tsc - a.tsc) * 1000000000 / (b.ns - a.ns));
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
static uint64_t find_hz(void)
{
	uint64_t measured = measure(), hz = told(), slack = measured / 2000;

	return hz >= measured - slack && hz <= measured + slack ? hz : measured;
}

/* The host's, not a VM's: measured once per process. */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static uint64_t tsc_hz;

static void init_once(void)
{
	tsc_hz = find_hz();
}

uint64_t host_tsc_hz(void)
{
	pthread_once(&once, init_once);
	return tsc_hz;
}
