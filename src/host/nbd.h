/* Disks that a server of blocks has, by libnbd: a server somewhere, or a program of this host that is started for it.
 */
#ifndef DOPPEL_HOST_NBD_H
#define DOPPEL_HOST_NBD_H

#include "host/io.h"

struct host_nbd_config {
	const char *uri;     /* nbd://, nbds://, nbd+unix://, ...; or NULL */
	char *const *server; /* else the command, NULL at its end; it is given a socket as systemd gives one */
	bool readonly;
	void (*done)(void *opaque, struct host_io *list); /* as host/io.h's */
	void *opaque;
};

struct host_nbd_info {
	uint64_t size;
	unsigned block_min; /* what offsets and lengths must be multiples of */
	bool readonly, trims, zeroes;
};

struct host_nbd;

/* NULL: `why`, of `room` bytes, says why. All that it needs of the system beyond its socket happens here. */
struct host_nbd *host_nbd_open(const struct host_nbd_config *config, struct host_nbd_info *info, char *why,
			       size_t room);
void host_nbd_submit(struct host_nbd *nbd, struct host_io *list);
/* Carries out one request and waits for it. */
void host_nbd_run(struct host_nbd *nbd, struct host_io *io);
/* Waits for what is under way; a server that does not answer is given up after some seconds. */
void host_nbd_close(struct host_nbd *nbd);

bool host_is_nbd_uri(const char *path);
/* Whether there is such a program in PATH. */
bool host_program_exists(const char *name);

#endif
