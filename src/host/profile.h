/* perf's map of generated code. */
#ifndef DOPPEL_HOST_PROFILE_H
#define DOPPEL_HOST_PROFILE_H

#include "base/base.h"

/* /tmp/perf-PID.map, in which perf(1) finds the names of code that is in no file. Calls on one map do not overlap. */
struct host_perf_map;
struct host_perf_map *host_perf_map_open(void);
void host_perf_map_add(struct host_perf_map *map, const void *start, size_t size, const char *name);
void host_perf_map_close(struct host_perf_map *map); /* NULL is accepted; the file stays */

#endif
