/* Folders shared with a guest: the system calls. folder.h says what is promised. */
#include "host/folder.h"

#include "host/confine.h"
#include "host/internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#define LIMIT_MAX 65536u /* descriptors: more are not asked for */
#define IOV_CHUNK 64u

struct host_folder {
	int root;                 /* place */
	unsigned reach;           /* what root is needed for: HOST_PATH_* */
	int open;                 /* the same, open: for syncfs */
	int proc;                 /* /proc/self/fd: the only way from a place to its content, and to its path */
	char path[HOST_PATH_MAX]; /* room for host_folder_path */
};

static int result(long r)
{
	return r < 0 ? -errno : (int)r;
}

unsigned host_file_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return 256;
	rlim_t wanted = MIN(limit.rlim_max, (rlim_t)LIMIT_MAX);
	if (limit.rlim_cur < wanted) {
		limit.rlim_cur = wanted;
		if (setrlimit(RLIMIT_NOFILE, &limit))
			getrlimit(RLIMIT_NOFILE, &limit);
	}
	return (unsigned)MIN(limit.rlim_cur, (rlim_t)LIMIT_MAX);
}

bool host_folder_may_chown(void)
{
	return geteuid() == 0;
}

static bool keep_reach(struct host_folder *f, bool readonly)
{
	host_need(HOST_NEED_FOLDER | (readonly ? 0 : HOST_NEED_FOLDER_RW));
	f->reach = HOST_PATH_READ | (readonly ? 0 : HOST_PATH_WRITE);
	return host_need_path(f->root, f->reach);
}

struct host_folder *host_folder_open(const char *path, bool readonly, struct error *err)
{
	struct host_folder *f = calloc(1, sizeof(*f));

	if (!f) {
		error_set(err, "out of memory");
		return NULL;
	}
	f->proc = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	f->root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	int problem = errno;
	f->open = f->root < 0 ? -1 : openat(f->root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f->root >= 0)
		problem = errno;
	if (f->open >= 0 && f->proc >= 0 && keep_reach(f, readonly))
		return f;
	if (f->root < 0 || f->open < 0)
		error_set(err, "cannot share the folder %s: %s", path, strerror(problem));
	else if (f->proc < 0)
		error_set(err, "cannot share a folder: /proc is not mounted");
	else
		error_set(err, "cannot share the folder %s: %s", path, host_error_text());
	host_folder_close(f);
	return NULL;
}

void host_folder_close(struct host_folder *f)
{
	if (!f)
		return;
	host_unneed_path(f->root, f->reach);
	host_folder_drop(f->root);
	host_folder_drop(f->open);
	host_folder_drop(f->proc);
	free(f);
}

int host_folder_root(const struct host_folder *f)
{
	return f->root;
}

void host_folder_drop(int descriptor)
{
	if (descriptor >= 0)
		close(descriptor);
}

static struct host_time stat_time(struct statx_timestamp t)
{
	return (struct host_time){t.tv_sec, t.tv_nsec};
}

int host_folder_stat(int at, struct host_stat *st)
{
	struct statx x;

	if (statx(at, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_BASIC_STATS | STATX_BTIME, &x))
		return -errno;
	*st = (struct host_stat){
		.dev = makedev(x.stx_dev_major, x.stx_dev_minor),
		.ino = x.stx_ino,
		.size = x.stx_size,
		.blocks = x.stx_blocks,
		.atime = stat_time(x.stx_atime),
		.mtime = stat_time(x.stx_mtime),
		.ctime = stat_time(x.stx_ctime),
		.mode = x.stx_mode,
		.nlink = x.stx_nlink,
		.uid = x.stx_uid,
		.gid = x.stx_gid,
		.rdev = (uint32_t)makedev(x.stx_rdev_major, x.stx_rdev_minor),
		.blksize = x.stx_blksize,
	};
	if (x.stx_mask & STATX_BTIME)
		st->btime = stat_time(x.stx_btime);
	return 0;
}

static int find(int dir, const char *path, struct host_stat *st)
{
	struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV,
	};
	int fd = (int)syscall(SYS_openat2, dir, path, &how, sizeof(how));
	int r = fd < 0 ? -errno : host_folder_stat(fd, st);

	if (!r)
		return fd;
	host_folder_drop(fd);
	return r;
}

int host_folder_find(int dir, const char *name, struct host_stat *st)
{
	return find(dir, name, st);
}

int host_folder_walk(struct host_folder *f, const char *path, struct host_stat *st)
{
	return find(f->root, *path ? path : ".", st);
}

/* "N" below /proc/self/fd, which leads to what descriptor N stands for. */
struct proc_name {
	char text[16];
};

static struct proc_name proc_name(int fd)
{
	struct proc_name n;

	snprintf(n.text, sizeof(n.text), "%d", fd);
	return n;
}

/* The whole path under which a descriptor is found now; its length. */
static int whole_path(const struct host_folder *f, int fd, char *path)
{
	struct proc_name name = proc_name(fd);
	ssize_t n = readlinkat(f->proc, name.text, path, HOST_PATH_MAX);

	if (n < 0)
		return -errno;
	if (n == HOST_PATH_MAX)
		return -ENAMETOOLONG;
	path[n] = 0;
	return (int)n;
}

int host_folder_path(struct host_folder *f, int at, char *path)
{
	int root = whole_path(f, f->root, f->path), n = root < 0 ? root : whole_path(f, at, path);

	if (n < 0)
		return n;
	if (root == 1)
		root = 0; /* "/": its own slash is the one that is looked for next */
	if (n < root || memcmp(path, f->path, (size_t)root) != 0 || (path[root] && path[root] != '/'))
		return -ESTALE;
	char *rest = path + root;
	rest += *rest == '/';
	memmove(path, rest, strlen(rest) + 1);
	return 0;
}

/* Where a place is found, for calls that take no descriptor without rights. */
struct proc_path {
	char text[32];
};

static struct proc_path proc_path(int fd)
{
	struct proc_path p;

	snprintf(p.text, sizeof(p.text), "/proc/self/fd/%d", fd);
	return p;
}

static int how_to_open(unsigned flags)
{
	return (int)(flags & (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC)) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
}

int host_folder_reopen(struct host_folder *f, int place, unsigned flags)
{
	struct proc_name name = proc_name(place);
	struct stat st;

	/* What a place stands for never changes its kind: there is no moment in which this could be a device. */
	if (fstat(place, &st))
		return -errno;
	if (S_ISDIR(st.st_mode))
		return result(openat(f->proc, name.text, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	if (!S_ISREG(st.st_mode))
		return -ENXIO;
	return result(RETRY_EINTR(openat(f->proc, name.text, how_to_open(flags))));
}

/* The process's umask is not the guest's, who has applied its own already. */
static int give_mode(int fd, uint32_t mode)
{
	struct stat st;

	if (!fstat(fd, &st) && (st.st_mode & mode & 0777) != (mode & 0777))
		fchmod(fd, mode & 07777);
	return fd;
}

int host_folder_create(int dir, const char *name, unsigned flags, uint32_t mode)
{
	int how = how_to_open(flags & ~(unsigned)O_TRUNC) | O_CREAT | O_EXCL | O_NOFOLLOW;
	int fd = RETRY_EINTR(openat(dir, name, how, (mode_t)(mode & 0777)));

	return fd < 0 ? -errno : give_mode(fd, mode & 0777);
}

int host_folder_mkdir(int dir, const char *name, uint32_t mode)
{
	if (mkdirat(dir, name, (mode_t)(mode & 01777)))
		return -errno;
	int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0)
		close(give_mode(fd, mode & 01777));
	return 0;
}

int host_folder_mknod(int dir, const char *name, uint32_t mode)
{
	if (!S_ISREG(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode))
		return -EPERM;
	return result(mknodat(dir, name, (mode_t)(mode & (S_IFMT | 0777)), 0));
}

int host_folder_symlink(int dir, const char *name, const char *target)
{
	return result(symlinkat(target, dir, name));
}

int host_folder_link(struct host_folder *f, int place, int dir, const char *name)
{
	struct proc_name from = proc_name(place);
	struct stat st;

	if (fstat(place, &st))
		return -errno;
	if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode))
		return -EPERM;
	/* Follows the name in /proc, and that alone: the place itself may be a link. */
	return result(linkat(f->proc, from.text, dir, name, AT_SYMLINK_FOLLOW));
}

int host_folder_remove(int dir, const char *name, bool folder)
{
	return result(unlinkat(dir, name, folder ? AT_REMOVEDIR : 0));
}

int host_folder_rename(int dir, const char *name, int to_dir, const char *to_name, unsigned flags)
{
	return result(renameat2(dir, name, to_dir, to_name, flags));
}

int host_folder_readlink(int place, char *buf, size_t size)
{
	return result(readlinkat(place, "", buf, size));
}

int host_folder_chmod(struct host_folder *f, int at, uint32_t mode)
{
	struct proc_name name = proc_name(at);
	struct stat st;

	if (fstat(at, &st))
		return -errno;
	if (S_ISLNK(st.st_mode))
		return -EOPNOTSUPP;
	return result(fchmodat(f->proc, name.text, (mode_t)(mode & 07777), 0));
}

int host_folder_chown(int at, uint32_t uid, uint32_t gid)
{
	return result(fchownat(at, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
}

int host_folder_truncate(struct host_folder *f, int at, uint64_t size)
{
	if (size > INT64_MAX)
		return -EFBIG;
	int how = fcntl(at, F_GETFL);
	if (how >= 0 && !(how & O_PATH))
		return result(RETRY_EINTR(ftruncate(at, (off_t)size)));
	int fd = host_folder_reopen(f, at, O_WRONLY);
	if (fd < 0)
		return fd;
	int r = result(RETRY_EINTR(ftruncate(fd, (off_t)size)));
	close(fd);
	return r;
}

static struct timespec to_timespec(const struct host_time *t)
{
	if (t->sec == HOST_TIME_KEEP && t->nsec == UINT32_MAX)
		return (struct timespec){.tv_nsec = UTIME_OMIT};
	if (t->sec == HOST_TIME_NOW && t->nsec == UINT32_MAX)
		return (struct timespec){.tv_nsec = UTIME_NOW};
	return (struct timespec){.tv_sec = t->sec, .tv_nsec = (long)MIN(t->nsec, 999999999u)};
}

int host_folder_utimes(struct host_folder *f, int at, const struct host_time *atime, const struct host_time *mtime)
{
	struct proc_name name = proc_name(at);
	struct timespec ts[2] = {to_timespec(atime), to_timespec(mtime)};

	return result(utimensat(f->proc, name.text, ts, 0));
}

int host_folder_getxattr(struct host_folder *f, int at, const char *name, void *value, size_t size)
{
	return result(getxattr(proc_path(at).text, name, value, size));
}

int host_folder_setxattr(struct host_folder *f, int at, const char *name, const void *value, size_t size, int flags)
{
	return result(setxattr(proc_path(at).text, name, value, size, flags));
}

int host_folder_listxattr(struct host_folder *f, int at, char *names, size_t size)
{
	return result(listxattr(proc_path(at).text, names, size));
}

int host_folder_removexattr(struct host_folder *f, int at, const char *name)
{
	return result(removexattr(proc_path(at).text, name));
}

int host_folder_statfs(struct host_folder *f, struct host_statfs *st)
{
	struct statvfs v;

	if (fstatvfs(f->root, &v))
		return -errno;
	*st = (struct host_statfs){
		.blocks = v.f_blocks,
		.bfree = v.f_bfree,
		.bavail = v.f_bavail,
		.files = v.f_files,
		.ffree = v.f_ffree,
		.bsize = (uint32_t)v.f_bsize,
		.namelen = (uint32_t)v.f_namemax,
		.frsize = (uint32_t)v.f_frsize,
	};
	return 0;
}

int host_folder_sync(struct host_folder *f)
{
	return result(syncfs(f->open));
}

/* The next pieces from byte `done` on, at most IOV_CHUNK of them. */
static unsigned rest_of(const struct host_iovec *iov, unsigned n, uint64_t done, struct iovec *out)
{
	unsigned count = 0;

	for (unsigned i = 0; i < n && count < IOV_CHUNK; i++) {
		if (done >= iov[i].len) {
			done -= iov[i].len;
			continue;
		}
		out[count++] = (struct iovec){(char *)iov[i].base + done, iov[i].len - done};
		done = 0;
	}
	return count;
}

static int64_t transfer(int file, const struct host_iovec *iov, unsigned n, uint64_t off, bool write)
{
	struct iovec part[IOV_CHUNK];
	int64_t done = 0;

	for (;;) {
		unsigned count = rest_of(iov, n, (uint64_t)done, part);
		if (!count)
			return done;
		if (off + (uint64_t)done > INT64_MAX)
			return done ? done : -EFBIG;
		off_t at = (off_t)(off + (uint64_t)done);
		ssize_t r =
			RETRY_EINTR(write ? pwritev(file, part, (int)count, at) : preadv(file, part, (int)count, at));
		if (r < 0)
			return done ? done : -errno;
		if (!r)
			return done;
		done += r;
	}
}

int64_t host_folder_read(int file, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	return transfer(file, iov, n, off, false);
}

int64_t host_folder_write(int file, const struct host_iovec *iov, unsigned n, uint64_t off)
{
	return transfer(file, iov, n, off, true);
}

int host_folder_fsync(int file, bool data_only)
{
	return result(data_only ? fdatasync(file) : fsync(file));
}

int host_folder_fallocate(int file, unsigned mode, uint64_t off, uint64_t len)
{
	if (off > INT64_MAX || len > INT64_MAX)
		return -EFBIG;
	return result(RETRY_EINTR(fallocate(file, (int)mode, (off_t)off, (off_t)len)));
}

int64_t host_folder_seek(int file, int64_t off, unsigned whence)
{
	off_t r = lseek(file, off, (int)whence);

	return r < 0 ? -errno : r;
}

int64_t host_folder_copy(int from, uint64_t from_off, int to, uint64_t to_off, uint64_t len)
{
	if (from_off > INT64_MAX || to_off > INT64_MAX)
		return -EFBIG;
	off_t in = (off_t)from_off, out = (off_t)to_off;
	ssize_t r = RETRY_EINTR(copy_file_range(from, &in, to, &out, len, 0));
	return r < 0 ? -errno : r;
}

int host_folder_read_entries(int file, uint64_t off, void *buf, size_t size)
{
	if (off > INT64_MAX || lseek(file, (off_t)off, SEEK_SET) < 0)
		return -EINVAL;
	return result(getdents64(file, buf, size));
}

bool host_folder_entry(const void *buf, size_t len, size_t *at, struct host_entry *entry)
{
	const struct dirent64 *d = (const void *)((const char *)buf + *at);

	if (*at >= len)
		return false;
	*entry = (struct host_entry){d->d_ino, (uint64_t)d->d_off, d->d_type, (unsigned)strlen(d->d_name), d->d_name};
	*at += d->d_reclen;
	return true;
}
