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

static bool set_modes(const struct termios *modes)
{
	/* TCSANOW: a terminal that was stopped with Ctrl-S would never be drained. */
	return !RETRY_EINTR(tcsetattr(STDIN_FILENO, TCSANOW, modes));
}

static bool set_raw(void)
{
	struct termios raw = before;

	cfmakeraw(&raw);
	raw.c_oflag |= OPOST | ONLCR;
	/* A read that finds nothing returns: the reader polls, and must not hang when another process takes the bytes.
	 */
	raw.c_cc[VMIN] = 0;
	raw.c_cc[VTIME] = 0;
	return set_modes(&raw);
}

void host_terminal_restore(void)
{
	int error = errno;
	sigset_t block, old;

	if (atomic_exchange(&is_raw, false)) {
		/* Who sets the terminal from the background is stopped by SIGTTOU, unless he blocks it. */
		sigemptyset(&block);
		sigaddset(&block, SIGTTOU);
		pthread_sigmask(SIG_BLOCK, &block, &old);
		set_modes(&before);
		pthread_sigmask(SIG_SETMASK, &old, NULL);
	}
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
	if (atomic_load(&is_raw) && tcgetpgrp(STDIN_FILENO) == getpgrp())
		set_raw();
}
