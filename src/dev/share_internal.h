/* Between the files of the file server only. */
#ifndef DOPPEL_DEV_SHARE_INTERNAL_H
#define DOPPEL_DEV_SHARE_INTERNAL_H

#include "dev/fuse.h"
#include "dev/share.h"
#include "host/folder.h"
#include "host/thread.h"

/* Linux's kinds of files, as in its mode. */
#define MODE_KIND 0170000u
#define MODE_FOLDER 0040000u
#define MODE_FILE 0100000u
#define MODE_SETID 06000u

#define NO_NODE UINT32_MAX

/*
 * Something that the guest knows (has looked up and not forgotten). Its place is open, or `path` says where it was when
 * its descriptor was taken away; it is the same thing there if the file system's numbers for it are the same.
 */
struct share_node {
	uint64_t dev, ino, lookups; /* lookups 0: the slot is free */
	struct host_time btime;
	uint32_t mode, generation;
	int place; /* -1: none now */
	char *path;
	uint32_t next;         /* of the same hash value, or of the free ones */
	uint32_t newer, older; /* among those with a place; the root is not */
	uint32_t used;         /* by which call, last */
	unsigned handles;      /* open, of it; its place stays */
	struct host_time seen; /* mtime and size when last opened: the guest's cache is as good as that */
	uint64_t seen_size;
};

struct share_handle {
	int file;      /* -1: the slot is free */
	uint32_t node; /* NO_NODE: forgotten meanwhile */
	uint32_t generation;
	unsigned flags;    /* of open(2) */
	unsigned users;    /* requests under way */
	bool folder, gone; /* gone: released, and closed by the last user */
};

struct share {
	struct host_folder *host;
	char tag[64];
	bool readonly, chowns; /* chowns: the process may give files away, and does */

	struct host_mutex lock; /* all below; not held while data is moved */
	struct share_node *node;
	uint32_t nodes, node_room, free_node, *hash, hash_size;
	uint32_t newest, oldest, call; /* call: the number of the one at hand */
	unsigned live, places, places_max;
	struct share_handle *handle;
	unsigned handles, handles_max;
};

/* ---- share_node.c ---- */
bool share_tables_create(struct share *share, unsigned descriptors);
void share_tables_destroy(struct share *share);
/* Takes over a place that was just found: its node id, counted as looked up. -errno (the place is closed). */
int share_node_add(struct share *share, int place, const struct host_stat *st, uint64_t *id);
/* The place of a node; it stays open until some other are asked for. -errno. */
int share_node_place(struct share *share, uint64_t id);
struct share_node *share_node_get(struct share *share, uint64_t id);
void share_node_forget(struct share *share, uint64_t id, uint64_t lookups);
void share_nodes_drop(struct share *share);
/* The guest has renamed something: paths that are kept follow. */
void share_nodes_moved(struct share *share, const char *from, const char *to);
/* Some place must go: the process has no descriptors left. False: there is none. */
bool share_node_evict(struct share *share);

/* Takes over an open file. -errno (it is closed). */
int share_handle_add(struct share *share, int file, uint64_t node, unsigned flags, bool folder, uint64_t *fh);
/* NULL: no such handle, or of the other kind. */
struct share_handle *share_handle_get(struct share *share, uint64_t fh, bool folder);
void share_handle_release(struct share *share, uint64_t fh, bool folder);
void share_handle_use(struct share_handle *h);
void share_handle_done(struct share *share, uint64_t fh);
void share_handles_drop(struct share *share);
uint64_t share_handle_id(const struct share *share, const struct share_handle *h);

/* For loading, into empty tables: false when the slot is not free. Then share_loaded. The file is taken over. */
bool share_node_load(struct share *share, uint64_t id, uint64_t lookups, const char *path, const struct host_stat *st);
bool share_handle_load(struct share *share, uint64_t fh, int file, uint64_t node, unsigned flags, bool folder);
void share_loaded(struct share *share);
uint64_t share_node_id(const struct share *share, uint32_t slot);

/* ---- share.c, share_ops.c, share_data.c: requests ---- */

/* A request as an operation sees it: the fixed part and what follows it, copied and complete. */
struct share_call {
	struct share *share;
	const struct share_request *request;
	struct fuse_in head;
	const uint8_t *arg; /* of at least the operation's size, aligned; then `rest` bytes */
	const uint8_t *more;
	size_t more_len;
	uint8_t *out; /* room for the answer, without its header */
	size_t room;
	size_t done; /* bytes of the answer */
};

typedef int share_op(struct share_call *c);

/* The string that comes first in `more`, which it leaves; NULL: it does not end. */
const char *share_string(struct share_call *c);
/* The same as the name of something in a folder; NULL: *error says what is wrong. */
const char *share_name(struct share_call *c, int *error);
/* Puts an answer of fixed size. */
int share_answer(struct share_call *c, const void *answer, size_t len);
/* The guest gets a thing to know; the place is taken over. */
int share_found(struct share *share, int place, const struct host_stat *st, struct fuse_entry_out *entry);
/* The thing `name` in a folder, as a new place. */
int share_find(struct share *share, int dir, const char *name, struct host_stat *st);
/* A new thing becomes whoever's made it, where that can be. */
void share_give(struct share *share, const struct fuse_in *head, int dir, int place, struct host_stat *st);
/* Takes set-user-id and set-group-id away, as a write by somebody else does. */
int share_drop_setid(struct share *share, int at);
/* The times that an answer is believed, in seconds. */
#define SHARE_VALID 1

share_op share_lookup, share_getattr, share_setattr, share_readlink, share_symlink, share_mknod, share_mkdir,
	share_unlink, share_rmdir, share_rename, share_rename2, share_link, share_statfs, share_setxattr,
	share_getxattr, share_listxattr, share_removexattr, share_syncfs;
share_op share_open, share_create_file, share_release, share_fsync, share_opendir, share_readdir, share_readdirplus,
	share_releasedir, share_fsyncdir, share_fallocate, share_lseek, share_copy;
/* These move data from or to the guest's memory, the lock not held; a count, or -errno. */
int64_t share_read(struct share *share, const struct share_request *request, const struct fuse_rw_in *in);
int64_t share_write(struct share *share, const struct share_request *request, const struct fuse_rw_in *in,
		    uint64_t len);

/* Bytes from `off` on of some pieces, copied; returns how many. And as pieces, at most `n` of them; returns how many.
 */
size_t share_gather(const struct host_iovec *iov, unsigned n, uint64_t off, void *dst, size_t len);
unsigned share_slice(const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len, struct host_iovec *out);

#endif
