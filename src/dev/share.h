/*
 * A file server for one folder of the host's, spoken to by FUSE requests. What a request says is believed in nothing:
 * lengths, names, node ids and handles are checked, and whatever it asks for stays inside the folder (host/folder.h).
 *
 * Bounds: SHARE_NODES things that the guest knows of, of which only some hold a descriptor of the host's at a time; as
 * many open files as the process's limit lets each share have; SHARE_TRANSFER bytes of data in a request.
 */
#ifndef DOPPEL_DEV_SHARE_H
#define DOPPEL_DEV_SHARE_H

#include "bus/bus.h"
#include "host/host.h"

#define SHARE_NODES (512u * 1024)
#define SHARE_TRANSFER MiB(1)
/* Bytes of a request or an answer, file data aside. */
#define SHARE_MESSAGE KiB(72)

struct share;

struct share_config {
	const char *path, *tag;
	bool readonly;
	unsigned shares; /* how many have to do with the process's limit on open files */
};

struct share_request {
	const struct host_iovec *in, *out; /* the guest's: to be read once */
	unsigned ins, outs;
	uint64_t in_len, out_len;
};

/* NULL: err names the user's mistake. */
struct share *share_create(const struct share_config *config, struct error *err);
void share_destroy(struct share *share);
/*
 * Carries out a request and writes the answer, data too, to the beginning of `out`; returns its length, 0 when there
 * is to be none. -1: it is no request. Several at once, from any thread.
 */
int64_t share_serve(struct share *share, const struct share_request *request);
/* Forgets everything that the guest knows, and closes its files. No request is under way, here and below. */
void share_reset(struct share *share);
/*
 * What the guest knows and has open, as paths. Saving fails, with a line that names it, when it has a file open that
 * has been deleted; loading, when something is not there.
 */
void share_state(struct share *share, struct state_stream *s);

#endif
