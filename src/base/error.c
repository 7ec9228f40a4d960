/* The user's mistakes, on their way up to whoever tells him. */
#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CUT " ... "

/*
 * What is too long loses its middle, which is some name's: what is wrong, and what helps, stand around it. Without
 * memory for all of it, its end is lost.
 */
static void set_long(struct error *err, size_t len, const char *fmt, va_list ap)
{
	const size_t cut = strlen(CUT), head = (sizeof(err->text) - cut) / 2, tail = sizeof(err->text) - cut - head;
	char *all = malloc(len + 1);

	if (!all)
		return;
	vsnprintf(all, len + 1, fmt, ap);
	memcpy(err->text + head, CUT, cut);
	memcpy(err->text + head + cut, all + len + 1 - tail, tail);
	free(all);
}

bool error_set(struct error *err, const char *fmt, ...)
{
	va_list ap, again;
	int len;

	if (!err)
		return false;
	va_start(ap, fmt);
	va_copy(again, ap);
	len = vsnprintf(err->text, sizeof(err->text), fmt, ap);
	if (len >= (int)sizeof(err->text))
		set_long(err, (size_t)len, fmt, again);
	va_end(again);
	va_end(ap);
	/* One line, whatever a name has in it. */
	for (char *p = err->text; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 127)
			*p = '?';
	return false;
}
