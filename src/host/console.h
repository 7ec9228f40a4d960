/*
 * Where a guest's console leads on the host: "stdio" (a terminal, or whatever standard input and output are),
 * "file=PATH" (output only), "pty", "unix=PATH" (a listening socket, one client at a time) or "none". Bytes pass as
 * they are: what keys mean is decided above.
 */
#ifndef DOPPEL_HOST_CONSOLE_H
#define DOPPEL_HOST_CONSOLE_H

#include "base/base.h"

struct host_console;

/* Opens it; the terminal is not touched yet. NULL: err names the user's mistake. */
struct host_console *host_console_create(const char *spec, struct error *err);
/*
 * Makes a terminal raw and starts the threads. `input` (may be NULL) is called on the console's own thread and returns
 * how many bytes it took; the rest is kept and offered again after host_console_more. Output written before the start
 * is kept up to a bound.
 */
bool host_console_start(struct host_console *c, size_t (*input)(void *opaque, const uint8_t *data, size_t len),
			void *opaque, struct error *err);
/* `input` may take more now. Any thread, also from `input`; may come for no reason. */
void host_console_more(struct host_console *c);
/*
 * Any thread. Returns soon: bytes are buffered and written by another thread. When nobody reads at the other end it
 * waits for room, 2 s at most, and from then on drops what does not fit until there is progress.
 */
void host_console_write(struct host_console *c, const uint8_t *data, size_t len);
/* Keys come from a person's terminal, raw. */
bool host_console_is_terminal(const struct host_console *c);
/* "stdio", "/dev/pts/3", the file's or the socket's path, "none"; lives as long as the console. */
const char *host_console_where(const struct host_console *c);
/* Writes out what is buffered (1 s at most without progress), closes, puts the terminal back. NULL is accepted. */
void host_console_destroy(struct host_console *c);

#endif
