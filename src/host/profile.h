/* What it takes to see where translated code spends its time: perf's map of generated code, and a sampler. */
#ifndef DOPPEL_HOST_PROFILE_H
#define DOPPEL_HOST_PROFILE_H

#include "base/base.h"

/* /tmp/perf-PID.map, in which perf(1) finds the names of code that is in no file. Calls on one map do not overlap. */
struct host_perf_map;
struct host_perf_map *host_perf_map_open(void);
void host_perf_map_add(struct host_perf_map *map, const void *start, size_t size, const char *name);
void host_perf_map_close(struct host_perf_map *map); /* NULL is accepted; the file stays */

/*
 * From now on fn(opaque, program counter) is called on this thread, which has an alternate signal stack, every
 * `period_ns` of real time: in a signal handler, whatever the thread is about, so that it may do no more than count.
 */
typedef void (*host_sample)(void *opaque, uint64_t pc);
bool host_sampler_enter(host_sample fn, void *opaque, uint64_t period_ns);
void host_sampler_leave(void);

#endif
