/* Signals that ask the process to end. */
#ifndef DOPPEL_HOST_SIGNALS_H
#define DOPPEL_HOST_SIGNALS_H

#include "base/base.h"

/*
 * SIGTERM, SIGINT and SIGHUP from now on call fn(opaque, signal) on a thread of its own, where anything is allowed,
 * instead of ending the process; one that was ignored (nohup) stays so. The third signal ends the process at once,
 * terminal put back. One watch per process: false if there is one or on failure.
 */
bool host_signals_watch(void (*fn)(void *opaque, int signal), void *opaque);
/* The signals act as before; `fn` is not running any more. Not from `fn`. */
void host_signals_unwatch(void);

#endif
