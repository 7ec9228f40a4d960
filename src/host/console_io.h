/* Between console.c and console_open.c: the open ends of a console. */
#ifndef DOPPEL_HOST_CONSOLE_IO_H
#define DOPPEL_HOST_CONSOLE_IO_H

#include "base/base.h"

struct console_io {
	int in, out; /* -1: none (now). Equal for a pty and a socket's client */
	int listen;  /* socket waiting for clients, or -1 */
	bool terminal, pty;
	bool close_in, close_out; /* ours to close */
	bool file, created;       /* out is a file that is emptied at the start; it was not there before */
	char where[256];
};

bool console_open(struct console_io *io, const char *spec, struct error *err);
/* The machine starts: a file loses what was in it. */
void console_begin(struct console_io *io);
void console_close(struct console_io *io);

#endif
