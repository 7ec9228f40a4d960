#include "host/thread_timer.h"

#include "host/internal.h"
#include "host/signal_internal.h"

#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static const int signal_of[HOST_TIMER_USES] = {[HOST_TIMER_SAMPLE] = SIGPROF, [HOST_TIMER_ALARM] = SIGVTALRM};

static _Thread_local struct {
	host_timer_fn fn; /* NULL: it has none */
	void *opaque;
	timer_t timer;
} timers[HOST_TIMER_USES];

__attribute__((used)) void host_timer_signal(int sig, siginfo_t *info, void *uc)
{
	unsigned use = sig == signal_of[HOST_TIMER_ALARM] ? HOST_TIMER_ALARM : HOST_TIMER_SAMPLE;
	int error = errno;

	if (info->si_code == SI_TIMER && timers[use].fn)
		timers[use].fn(timers[use].opaque, (uint64_t)((ucontext_t *)uc)->uc_mcontext.gregs[REG_RIP]);
	errno = error;
}

SIGNAL_ENTRY(host_timer_signal_entry, host_timer_signal);

bool host_thread_timer_enter(enum host_timer_use use, host_timer_fn fn, void *opaque)
{
	struct sigaction sa = {.sa_sigaction = host_timer_signal_entry,
			       .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = signal_of[use]};

	sigfillset(&sa.sa_mask);
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	if (sigaction(signal_of[use], &sa, NULL) || timer_create(CLOCK_MONOTONIC, &event, &timers[use].timer))
		return !host_fail();
	timers[use].fn = fn;
	timers[use].opaque = opaque;
	signal_mask_one(signal_of[use], SIG_UNBLOCK);
	return true;
}

static struct timespec timespec_of(uint64_t ns)
{
	return (struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)};
}

void host_thread_timer_set(enum host_timer_use use, uint64_t first_ns, uint64_t period_ns)
{
	const struct itimerspec spec = {timespec_of(period_ns), timespec_of(first_ns)};

	timer_settime(timers[use].timer, 0, &spec, NULL);
}

void host_thread_timer_leave(enum host_timer_use use)
{
	if (!timers[use].fn)
		return;
	signal_mask_one(signal_of[use], SIG_BLOCK);
	timer_delete(timers[use].timer);
	timers[use].fn = NULL;
}
