/* The user's terminal on standard input, for the process's life. There is one, so its saved state belongs to the
 * process. */
#ifndef DOPPEL_HOST_TERMINAL_H
#define DOPPEL_HOST_TERMINAL_H

#include "base/base.h"

/* Whether standard input is a terminal. */
bool host_terminal_is_one(void);
/*
 * Raw: every key reaches the guest, none makes a signal, nothing is echoed; output still turns \n into \r\n, so that
 * our own lines look right. The terminal is put back at exit, abort() and an unclaimed fault too.
 */
bool host_terminal_raw(void);
/* Puts it back as it was; async-signal-safe, any number of times. */
void host_terminal_restore(void);
/* After the process was stopped and continued: the shell has put its own modes in between. */
void host_terminal_again(void);

#endif
