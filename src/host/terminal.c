/* The user's terminal: raw while a guest has it, and put back however the process ends. */
#include "host/terminal.h"

#include "host/internal.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

static struct termios before;
static atomic_bool is_raw;
static atomic_bool hooked;

bool host_terminal_is_one(void)
{
	return isatty(STDIN_FILENO);
}

/* A process in the background is stopped by SIGTTOU when it sets the terminal, unless it blocks the signal. */
static bool set_modes(const struct termios *modes)
{
	sigset_t block, old;
	int result, error;

	sigemptyset(&block);
	sigaddset(&block, SIGTTOU);
	pthread_sigmask(SIG_BLOCK, &block, &old);
	result = RETRY_EINTR(tcsetattr(STDIN_FILENO, TCSADRAIN, modes));
	error = errno;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	errno = error;
	return !result;
}

static bool set_raw(void)
{
	struct termios raw = before;

	cfmakeraw(&raw);
	raw.c_oflag |= OPOST | ONLCR;
	return set_modes(&raw) || !host_fail();
}

void host_terminal_restore(void)
{
	int error = errno;

	if (atomic_exchange(&is_raw, false))
		set_modes(&before);
	errno = error;
}

static void on_abort(int sig)
{
	host_terminal_restore();
	signal(sig, SIG_DFL);
	raise(sig);
}

bool host_terminal_raw(void)
{
	if (atomic_load(&is_raw))
		return true;
	if (tcgetattr(STDIN_FILENO, &before) || !set_raw())
		return !host_fail();
	atomic_store(&is_raw, true);
	if (!atomic_exchange(&hooked, true)) {
		struct sigaction sa = {.sa_handler = on_abort, .sa_flags = SA_ONSTACK};

		atexit(host_terminal_restore);
		sigaction(SIGABRT, &sa, NULL);
	}
	return true;
}

void host_terminal_again(void)
{
	if (atomic_load(&is_raw))
		set_raw();
}
