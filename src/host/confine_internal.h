/* Between confine.c, confine_calls.c and confine_paths.c. */
#ifndef DOPPEL_HOST_CONFINE_INTERNAL_H
#define DOPPEL_HOST_CONFINE_INTERNAL_H

#include "host/confine.h"

/* confine_calls.c: the filters of system calls. */
bool confine_calls(unsigned needs, struct error *err);

/*
 * confine_paths.c: Landlock. _prepare makes the rules from what host_need_path was told: *ruleset is a descriptor, or
 * -1 where the kernel has no Landlock. _enter puts them on this thread; async-signal-safe.
 */
bool confine_paths_prepare(unsigned needs, int *ruleset, struct error *err);
bool confine_paths_enter(int ruleset);

#endif
