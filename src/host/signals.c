/* Signals that ask the process to end, handed from the handler to a thread through a pipe-like counter per signal. */
#include "host/signals.h"

#include "host/internal.h"
#include "host/terminal.h"
#include "host/thread.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PATIENCE 3 /* this many signals end the process at once */

static const int watched[] = {SIGTERM, SIGINT, SIGHUP, SIGCONT};

/* Signals belong to the process; `event` is -1 when there is no watch. */
static struct {
	_Atomic int event;
	_Atomic unsigned pending, seen;
	_Atomic bool quit;
	void (*fn)(void *opaque, int signal);
	void *opaque;
	struct host_thread thread;
	struct sigaction before[ARRAY_LEN(watched)];
} watch = {.event = -1};

static void ring(void)
{
	uint64_t one = 1;

	(void)!write(watch.event, &one, sizeof(one)); /* cannot fail but when it is rung already */
}

static void on_signal(int sig)
{
	int error = errno;

	if (sig != SIGCONT && atomic_fetch_add(&watch.seen, 1) + 1 >= PATIENCE) {
		host_terminal_restore();
		signal(sig, SIG_DFL);
		raise(sig);
	}
	atomic_fetch_or(&watch.pending, 1u << sig);
	ring();
	errno = error;
}

static void dispatch(unsigned pending)
{
	for (unsigned i = 0; i < ARRAY_LEN(watched); i++) {
		if (!(pending & 1u << watched[i]))
			continue;
		if (watched[i] == SIGCONT)
			host_terminal_again();
		else
			watch.fn(watch.opaque, watched[i]);
	}
}

static void *watch_thread(void *arg)
{
	uint64_t count;

	while (RETRY_EINTR(read(watch.event, &count, sizeof(count))) == sizeof(count)) {
		dispatch(atomic_exchange(&watch.pending, 0));
		if (watch.quit)
			break;
	}
	return NULL;
}

static void install(void)
{
	struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};

	for (unsigned i = 0; i < ARRAY_LEN(watched); i++) {
		sigaction(watched[i], NULL, &watch.before[i]);
		if (watch.before[i].sa_handler != SIG_IGN)
			sigaction(watched[i], &sa, NULL);
	}
}

bool host_signals_watch(void (*fn)(void *opaque, int signal), void *opaque)
{
	int none = -1, event = eventfd(0, EFD_CLOEXEC);

	if (event < 0)
		return !host_fail();
	if (!atomic_compare_exchange_strong(&watch.event, &none, event)) {
		close(event);
		return !host_fail_with(EBUSY);
	}
	watch.fn = fn;
	watch.opaque = opaque;
	watch.pending = watch.seen = 0;
	watch.quit = false;
	if (!host_thread_start(&watch.thread, "signals", watch_thread, NULL)) {
		host_fail();
		watch.event = -1;
		close(event);
		return false;
	}
	install();
	return true;
}

void host_signals_unwatch(void)
{
	int event = watch.event;

	if (event < 0)
		return;
	for (unsigned i = 0; i < ARRAY_LEN(watched); i++)
		sigaction(watched[i], &watch.before[i], NULL);
	watch.quit = true;
	ring();
	host_thread_join(&watch.thread);
	watch.event = -1;
	close(event);
}
