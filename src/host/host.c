/* Time, randomness, the host's size, and the text of the last failure. */
#include "host/host.h"
#include "host/internal.h"
#include "host/io.h"

#include <asm/prctl.h>
#include <sched.h>
#include <string.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static _Thread_local int last_error;
static _Thread_local char error_text[128];

int host_fail_with(int error)
{
	last_error = error;
	errno = error;
	return -1;
}

int host_fail(void)
{
	return host_fail_with(errno);
}

bool host_failed_too_long(void)
{
	return last_error == EFBIG;
}

int host_error_number(void)
{
	return last_error;
}

const char *host_error_text(void)
{
	if (last_error == FAIL_NO_WRITER)
		return "it is a pipe that nobody writes to";
	if (last_error == FAIL_NO_STORAGE)
		return "it is neither a file nor a block device";
	if (last_error == EMFILE)
		return "too many open files (see ulimit -n)";
	/* GNU's strerror_r: may return a constant string instead of filling the buffer. */
	return strerror_r(last_error, error_text, sizeof(error_text));
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	ENSURE(!clock_gettime(id, &ts));
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint64_t host_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t host_thread_time_ns(void)
{
	return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

void host_wall_time(uint64_t *sec, uint32_t *nsec)
{
	uint64_t now = clock_ns(CLOCK_REALTIME);

	*sec = now / 1000000000;
	*nsec = (uint32_t)(now % 1000000000);
}

void host_sleep_ns(uint64_t ns)
{
	struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};

	while (clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, &ts) == EINTR)
		;
}

unsigned host_cpu_count(void)
{
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;

	if (!sched_getaffinity(0, sizeof(set), &set))
		return (unsigned)CPU_COUNT(&set);
	return online > 0 ? (unsigned)online : 1;
}

uint64_t host_memory_total(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);

	return pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : 0;
}

bool host_random(void *buf, size_t len)
{
	uint8_t *p = buf;

	while (len) {
		ssize_t n = RETRY_EINTR(getrandom(p, len, 0));

		if (n < 0)
			return !host_fail();
		p += n;
		len -= (size_t)n;
	}
	return true;
}

bool host_set_gs_base(uint64_t base)
{
	return !syscall(SYS_arch_prctl, ARCH_SET_GS, base) || !host_fail();
}
