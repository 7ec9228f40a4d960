/* Log lines on standard error, and the end of the process when an invariant of our own is broken. */
#include "base/base.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The level belongs to the process, not to a VM: there is one standard error. */
static _Atomic int log_max = LOG_INFO;

void log_set_level(enum log_level max)
{
	atomic_store_explicit(&log_max, (int)max, memory_order_relaxed);
}

void log_msg(enum log_level level, const char *fmt, ...)
{
	static const char prefix[] = "doppel: ";
	char line[1024];
	size_t len = sizeof(prefix) - 1, room;
	va_list ap;
	int n;

	if ((int)level > atomic_load_explicit(&log_max, memory_order_relaxed))
		return;
	memcpy(line, prefix, sizeof(prefix));
	room = sizeof(line) - len - 1; /* one byte for the newline */
	va_start(ap, fmt);
	n = vsnprintf(line + len, room, fmt, ap);
	va_end(ap);
	if (n > 0)
		len += MIN((size_t)n, room - 1);
	line[len++] = '\n';
	/* In one call, so that lines of several threads do not mix. */
	fwrite(line, 1, len, stderr);
}

void invariant_failed(const char *what, const char *file, int line)
{
	fprintf(stderr, "doppel: %s:%d: broken invariant: %s\n", file, line, what);
	abort();
}
