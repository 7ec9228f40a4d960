#include "host/profile.h"

#include "host/internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* tools/perf/Documentation/jit-interface.txt in Linux: "START SIZE symbolname", numbers in hexadecimal. */
struct host_perf_map *host_perf_map_open(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
	unlink(path); /* of an earlier process with this number */
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
	if (!f) {
		host_fail();
		if (fd >= 0)
			close(fd);
	}
	return (struct host_perf_map *)f;
}

void host_perf_map_add(struct host_perf_map *map, const void *start, size_t size, const char *name)
{
	fprintf((FILE *)map, "%" PRIxPTR " %zx %s\n", (uintptr_t)start, size, name);
}

void host_perf_map_close(struct host_perf_map *map)
{
	if (map)
		fclose((FILE *)map);
}
