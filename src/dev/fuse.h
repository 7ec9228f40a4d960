/*
 * The FUSE protocol as Linux speaks it over virtio (virtio 1.2, 5.11; Linux's Documentation/filesystems/fuse.rst),
 * version 7.38: what goes over the wire, little-endian, each structure a multiple of 8 bytes.
 */
#ifndef DOPPEL_DEV_FUSE_H
#define DOPPEL_DEV_FUSE_H

#include "base/base.h"

#define FUSE_MAJOR 7
#define FUSE_MINOR 38
#define FUSE_MINOR_LEAST 27 /* Linux 4.19; the older have other structures */
#define FUSE_ROOT 1         /* node id of the folder itself */

enum fuse_op {
	FUSE_LOOKUP = 1,
	FUSE_FORGET = 2,
	FUSE_GETATTR = 3,
	FUSE_SETATTR = 4,
	FUSE_READLINK = 5,
	FUSE_SYMLINK = 6,
	FUSE_MKNOD = 8,
	FUSE_MKDIR = 9,
	FUSE_UNLINK = 10,
	FUSE_RMDIR = 11,
	FUSE_RENAME = 12,
	FUSE_LINK = 13,
	FUSE_OPEN = 14,
	FUSE_READ = 15,
	FUSE_WRITE = 16,
	FUSE_STATFS = 17,
	FUSE_RELEASE = 18,
	FUSE_FSYNC = 20,
	FUSE_SETXATTR = 21,
	FUSE_GETXATTR = 22,
	FUSE_LISTXATTR = 23,
	FUSE_REMOVEXATTR = 24,
	FUSE_INIT = 26,
	FUSE_OPENDIR = 27,
	FUSE_READDIR = 28,
	FUSE_RELEASEDIR = 29,
	FUSE_FSYNCDIR = 30,
	FUSE_CREATE = 35,
	FUSE_INTERRUPT = 36,
	FUSE_DESTROY = 38,
	FUSE_BATCH_FORGET = 42,
	FUSE_FALLOCATE = 43,
	FUSE_READDIRPLUS = 44,
	FUSE_RENAME2 = 45,
	FUSE_LSEEK = 46,
	FUSE_COPY_FILE_RANGE = 47,
	FUSE_SYNCFS = 50,
	FUSE_OPS = 64, /* all are below */
};

struct fuse_in {
	uint32_t len, opcode;
	uint64_t unique, nodeid;
	uint32_t uid, gid, pid, padding;
};

struct fuse_out {
	uint32_t len;
	int32_t error; /* 0 or -errno */
	uint64_t unique;
};

/* INIT. Flags in bits 32 and up go by flags2. */
#define FUSE_ASYNC_READ BIT(0)
#define FUSE_ATOMIC_O_TRUNC BIT(3)
#define FUSE_BIG_WRITES BIT(5)
#define FUSE_AUTO_INVAL_DATA BIT(12)
#define FUSE_DO_READDIRPLUS BIT(13)
#define FUSE_READDIRPLUS_AUTO BIT(14)
#define FUSE_ASYNC_DIO BIT(15)
#define FUSE_PARALLEL_DIROPS BIT(18)
#define FUSE_MAX_PAGES BIT(22)
#define FUSE_HANDLE_KILLPRIV_V2 BIT(28)

struct fuse_init_in {
	uint32_t major, minor, max_readahead, flags;
};

struct fuse_init_out {
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, unused[7];
};

struct fuse_attr {
	uint64_t ino, size, blocks, atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags;
};

struct fuse_entry_out {
	uint64_t nodeid, generation, entry_valid, attr_valid; /* how long to believe them, in seconds */
	uint32_t entry_valid_nsec, attr_valid_nsec;
	struct fuse_attr attr;
};

struct fuse_attr_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, dummy;
	struct fuse_attr attr;
};

struct fuse_forget_in {
	uint64_t nlookup;
};

struct fuse_batch_forget_in {
	uint32_t count, dummy;
};

struct fuse_forget_one {
	uint64_t nodeid, nlookup;
};

#define FUSE_GETATTR_FH BIT(0)
struct fuse_getattr_in {
	uint32_t flags, dummy;
	uint64_t fh;
};

enum {
	FATTR_MODE = 1 << 0,
	FATTR_UID = 1 << 1,
	FATTR_GID = 1 << 2,
	FATTR_SIZE = 1 << 3,
	FATTR_ATIME = 1 << 4,
	FATTR_MTIME = 1 << 5,
	FATTR_FH = 1 << 6,
	FATTR_ATIME_NOW = 1 << 7,
	FATTR_MTIME_NOW = 1 << 8,
	FATTR_KILL_SUIDGID = 1 << 11,
};
struct fuse_setattr_in {
	uint32_t valid, padding;
	uint64_t fh, size, lock_owner, atime, mtime, ctime;
	uint32_t atimensec, mtimensec, ctimensec, mode, unused4, uid, gid, unused5;
};

struct fuse_mknod_in {
	uint32_t mode, rdev, umask, padding;
};

struct fuse_mkdir_in {
	uint32_t mode, umask;
};

struct fuse_rename_in {
	uint64_t newdir;
};

struct fuse_rename2_in {
	uint64_t newdir;
	uint32_t flags, padding;
};

struct fuse_link_in {
	uint64_t oldnodeid;
};

#define FUSE_OPEN_KILL_SUIDGID BIT(0)
struct fuse_open_in {
	uint32_t flags, open_flags;
};

struct fuse_create_in {
	uint32_t flags, mode, umask, open_flags;
};

#define FOPEN_KEEP_CACHE BIT(1)
struct fuse_open_out {
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};

struct fuse_release_in {
	uint64_t fh;
	uint32_t flags, release_flags;
	uint64_t lock_owner;
};

#define FUSE_WRITE_KILL_SUIDGID BIT(2)
struct fuse_rw_in { /* READ, WRITE, READDIR, READDIRPLUS */
	uint64_t fh, offset;
	uint32_t size, rw_flags;
	uint64_t lock_owner;
	uint32_t flags, padding;
};

struct fuse_write_out {
	uint32_t size, padding;
};

struct fuse_statfs_out {
	uint64_t blocks, bfree, bavail, files, ffree;
	uint32_t bsize, namelen, frsize, padding, spare[6];
};

#define FUSE_FSYNC_FDATASYNC BIT(0)
struct fuse_fsync_in {
	uint64_t fh;
	uint32_t fsync_flags, padding;
};

struct fuse_setxattr_in {
	uint32_t size, flags;
};

struct fuse_getxattr_in {
	uint32_t size, padding;
};

struct fuse_getxattr_out {
	uint32_t size, padding;
};

struct fuse_fallocate_in {
	uint64_t fh, offset, length;
	uint32_t mode, padding;
};

struct fuse_lseek_in {
	uint64_t fh, offset;
	uint32_t whence, padding;
};

struct fuse_lseek_out {
	uint64_t offset;
};

struct fuse_copy_in {
	uint64_t fh_in, off_in, nodeid_out, fh_out, off_out, len, flags;
};

struct fuse_dirent { /* then the name, and zeroes up to a multiple of 8 bytes */
	uint64_t ino, off;
	uint32_t namelen, type;
};

#endif
