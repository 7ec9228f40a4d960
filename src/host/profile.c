/* perf's map of generated code, and a sampler of a thread's program counter by a timer of its own. */
#include "host/profile.h"

#include "host/internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

/* tools/perf/Documentation/jit-interface.txt in Linux: "START SIZE symbolname", numbers in hexadecimal. */
struct host_perf_map *host_perf_map_open(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
	unlink(path); /* of an earlier process with this number */
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
	if (!f) {
		host_fail();
		if (fd >= 0)
			close(fd);
	}
	return (struct host_perf_map *)f;
}

void host_perf_map_add(struct host_perf_map *map, const void *start, size_t size, const char *name)
{
	fprintf((FILE *)map, "%" PRIxPTR " %zx %s\n", (uintptr_t)start, size, name);
}

void host_perf_map_close(struct host_perf_map *map)
{
	if (map)
		fclose((FILE *)map);
}

static _Thread_local struct {
	host_sample fn;
	void *opaque;
	timer_t timer;
} sampler;

__attribute__((used)) void host_sample_signal(int sig, siginfo_t *info, void *uc)
{
	int error = errno;

	if (info->si_code == SI_TIMER && sampler.fn)
		sampler.fn(sampler.opaque, (uint64_t)((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP]);
	errno = error;
}

/* AC may be the guest's: see host_guest_signal_entry. */
void host_sample_signal_entry(int sig, siginfo_t *info, void *uc);
__asm__(".pushsection .text\n"
	".hidden host_sample_signal_entry\n"
	".globl host_sample_signal_entry\n"
	".type host_sample_signal_entry, @function\n"
	"host_sample_signal_entry:\n"
	"	endbr64\n"
	"	pushfq\n"
	"	andl $~0x40000, (%rsp)\n"
	"	popfq\n"
	"	jmp host_sample_signal\n"
	".size host_sample_signal_entry, . - host_sample_signal_entry\n"
	".popsection\n");

static void own_signal(int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGPROF);
	pthread_sigmask(how, &set, NULL);
}

bool host_sampler_enter(host_sample fn, void *opaque, uint64_t period_ns)
{
	struct sigaction sa = {.sa_sigaction = host_sample_signal_entry,
			       .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};
	struct timespec period = {(time_t)(period_ns / 1000000000), (long)(period_ns % 1000000000)};

	sigfillset(&sa.sa_mask);
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	if (sigaction(SIGPROF, &sa, NULL) || timer_create(CLOCK_MONOTONIC, &event, &sampler.timer))
		return !host_fail();
	sampler.fn = fn;
	sampler.opaque = opaque;
	own_signal(SIG_UNBLOCK);
	timer_settime(sampler.timer, 0, &(struct itimerspec){period, period}, NULL);
	return true;
}

void host_sampler_leave(void)
{
	if (!sampler.fn)
		return;
	own_signal(SIG_BLOCK);
	timer_delete(sampler.timer);
	sampler.fn = NULL;
}
