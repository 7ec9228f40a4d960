/*
 * A folder of the host's, for somebody who must not get out of it. Things in it are reached by descriptors:
 *
 *   a place (O_PATH) names a file, folder, link or anything else, and lets nobody at its content;
 *   a file is open for its content, and is made of a place that is a regular file or a folder, of nothing else.
 *
 * A name is one component without a slash, never "." or ".."; links are never followed, and other file systems mounted
 * in the folder are not entered. What the host has moved out of the folder meanwhile is no longer reached.
 *
 * Functions return 0, a descriptor or a count, or -errno with Linux's numbers, which virtio's file system speaks too.
 * Modes, open flags, rename flags and the like are Linux's as well.
 */
#ifndef DOPPEL_HOST_FOLDER_H
#define DOPPEL_HOST_FOLDER_H

#include "base/base.h"
#include "host/host.h"

#define HOST_NAME_MAX 255
#define HOST_PATH_MAX 4096

struct host_time {
	int64_t sec;
	uint32_t nsec;
};

struct host_stat {
	uint64_t dev, ino, size, blocks;
	struct host_time atime, mtime, ctime, btime; /* btime: 0 where the file system has none */
	uint32_t mode, nlink, uid, gid, rdev, blksize;
};

struct host_folder;

/* Raises the process's limit on open files to what it may be, and returns it. */
unsigned host_file_limit(void);

/* Whether this process may give files to other users (it is root's). */
bool host_folder_may_chown(void);

/* NULL: err names the user's mistake. readonly: nothing in it will be changed; the caller sees to that. */
struct host_folder *host_folder_open(const char *path, bool readonly, struct error *err);
void host_folder_close(struct host_folder *f);
/* The place of the folder itself; the folder's own, not to be closed. */
int host_folder_root(const struct host_folder *f);

/* The thing `name` in the folder at place `dir`, as a new place. */
int host_folder_find(int dir, const char *name, struct host_stat *st);
/* The same by a path from the root, "" for the root itself. */
int host_folder_walk(struct host_folder *f, const char *path, struct host_stat *st);
/* The path from the root of a place or file, into HOST_PATH_MAX bytes; -ESTALE: it is not in the folder any more. */
int host_folder_path(struct host_folder *f, int at, char *path);
void host_folder_drop(int descriptor);

/* Opens a place. Only the access mode and O_TRUNC, O_SYNC, O_DSYNC of the flags count. */
int host_folder_reopen(struct host_folder *f, int place, unsigned flags);
/* Makes a new regular file and opens it; -EEXIST. */
int host_folder_create(int dir, const char *name, unsigned flags, uint32_t mode);
int host_folder_mkdir(int dir, const char *name, uint32_t mode);
/* Regular files, fifos and sockets; -EPERM for anything else. */
int host_folder_mknod(int dir, const char *name, uint32_t mode);
int host_folder_symlink(int dir, const char *name, const char *target);
/* Regular files and links only. */
int host_folder_link(struct host_folder *f, int place, int dir, const char *name);
int host_folder_remove(int dir, const char *name, bool folder);
int host_folder_rename(int dir, const char *name, int to_dir, const char *to_name, unsigned flags);
int host_folder_readlink(int place, char *buf, size_t size);

/* Of a place or a file. */
int host_folder_stat(int at, struct host_stat *st);
int host_folder_chmod(struct host_folder *f, int at, uint32_t mode);
int host_folder_chown(int at, uint32_t uid, uint32_t gid); /* UINT32_MAX: as it is */
int host_folder_truncate(struct host_folder *f, int at, uint64_t size);
enum { HOST_TIME_KEEP = -1, HOST_TIME_NOW = -2 }; /* for `sec`, with UINT32_MAX for `nsec` */
int host_folder_utimes(struct host_folder *f, int at, const struct host_time *atime, const struct host_time *mtime);
/* Extended attributes. size 0 asks for the length; -ERANGE: `size` is too small. */
int host_folder_getxattr(struct host_folder *f, int at, const char *name, void *value, size_t size);
int host_folder_setxattr(struct host_folder *f, int at, const char *name, const void *value, size_t size, int flags);
int host_folder_listxattr(struct host_folder *f, int at, char *names, size_t size);
int host_folder_removexattr(struct host_folder *f, int at, const char *name);

struct host_statfs {
	uint64_t blocks, bfree, bavail, files, ffree;
	uint32_t bsize, namelen, frsize;
};
int host_folder_statfs(struct host_folder *f, struct host_statfs *st);
int host_folder_sync(struct host_folder *f); /* the whole file system */

/* Of an open file. Whole transfers: fewer bytes only at the end of the file, or when the host's disk is full. */
int64_t host_folder_read(int file, const struct host_iovec *iov, unsigned n, uint64_t off);
int64_t host_folder_write(int file, const struct host_iovec *iov, unsigned n, uint64_t off);
int host_folder_fsync(int file, bool data_only);
int host_folder_fallocate(int file, unsigned mode, uint64_t off, uint64_t len);
int64_t host_folder_seek(int file, int64_t off, unsigned whence);
int64_t host_folder_copy(int from, uint64_t from_off, int to, uint64_t to_off, uint64_t len);

/* An entry of a folder; `next` is where the one after it is found. */
struct host_entry {
	uint64_t ino, next;
	unsigned type; /* DT_... */
	unsigned len;
	const char *name; /* ends in 0; into the buffer */
};
/*
 * Fills `buf` (aligned for uint64_t) with entries from position `off` on; host_folder_entry takes them out one by one,
 * with *at from 0 to what read_entries returned.
 */
int host_folder_read_entries(int file, uint64_t off, void *buf, size_t size);
bool host_folder_entry(const void *buf, size_t len, size_t *at, struct host_entry *entry);

#endif
