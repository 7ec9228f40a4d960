/* Files and block devices: opening, locking, size; file_io.c moves their bytes. */
#include "host/file.h"
#include "host/internal.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SECTOR 512u
#define DIRECT_MAX 4096u /* no file system wants more */

/*
 * What O_DIRECT demands. Kernels before 6.1 do not tell (statx(2)): a disk has its sectors, and for a file the largest
 * that there are will do.
 */
static void find_alignment(struct host_file *f)
{
	struct statx x;
	int sector;

	f->align = f->memory_align = DIRECT_MAX;
	if (!statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) && (x.stx_mask & STATX_DIOALIGN) &&
	    x.stx_dio_offset_align && x.stx_dio_mem_align) {
		f->align = MAX(x.stx_dio_offset_align, SECTOR);
		f->memory_align = x.stx_dio_mem_align;
	} else if (S_ISBLK(f->mode) && !ioctl(f->fd, BLKSSZGET, &sector) && sector >= (int)SECTOR) {
		f->align = f->memory_align = (unsigned)sector;
	}
}

/* Bytes at offsets: a pipe or a device of characters has none. */
static bool is_storage(mode_t mode)
{
	return S_ISREG(mode) || S_ISBLK(mode) || !host_fail_with(S_ISDIR(mode) ? EISDIR : FAIL_NO_STORAGE);
}

static struct host_file *wrap(int fd)
{
	struct host_file *f = calloc(1, sizeof(*f));
	struct stat st;

	if (!f || fstat(fd, &st)) {
		host_fail();
		goto fail;
	}
	if (!is_storage(st.st_mode))
		goto fail;
	f->fd = fd;
	f->mode = st.st_mode;
	f->align = f->memory_align = 1;
	return f;
fail:
	free(f);
	close(fd);
	return NULL;
}

static int open_retry(const char *path, int flags)
{
	return RETRY_EINTR(open(path, flags | O_CLOEXEC | O_NOCTTY, 0666));
}

struct host_file *host_file_open(const char *path, unsigned flags)
{
	int how = flags & HOST_FILE_WRITE ? (flags & HOST_FILE_READ ? O_RDWR : O_WRONLY) : O_RDONLY;
	struct host_file *f;
	struct stat st;
	int fd;

	if (flags & HOST_FILE_CREATE)
		how |= O_CREAT;
	if (flags & HOST_FILE_DIRECT)
		how |= O_DIRECT;
	if (!stat(path, &st)) {
		/* Before it is opened: to open a pipe waits for its other end, and a device may do something. */
		if (!is_storage(st.st_mode))
			return NULL;
		/*
		 * On a block device O_EXCL is a claim: not mounted, no part of another, and no one else's who claims
		 * it.
		 */
		if ((flags & HOST_FILE_WRITE) && S_ISBLK(st.st_mode))
			how |= O_EXCL;
	}
	fd = open_retry(path, how);
	if (fd < 0) {
		host_fail();
		return NULL;
	}
	f = wrap(fd);
	if (f && (flags & HOST_FILE_DIRECT))
		find_alignment(f);
	return f;
}

void host_file_mind_limit(void)
{
	struct sigaction now;

	if (!sigaction(SIGXFSZ, NULL, &now) && now.sa_handler == SIG_DFL)
		signal(SIGXFSZ, SIG_IGN);
}

struct host_file *host_file_temp(void)
{
	const char *set = getenv("TMPDIR"), *dirs[] = {set && *set ? set : "/var/tmp", "/tmp"};
	char path[PATH_MAX];

	for (unsigned i = 0; i < ARRAY_LEN(dirs); i++) {
		int fd = RETRY_EINTR(open(dirs[i], O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));

		if (fd < 0 && snprintf(path, sizeof(path), "%s/doppel-XXXXXX", dirs[i]) < (int)sizeof(path)) {
			/* A file system without O_TMPFILE. */
			fd = mkostemp(path, O_CLOEXEC);
			if (fd >= 0)
				unlink(path);
		}
		if (fd >= 0)
			return wrap(fd);
	}
	host_fail();
	return NULL;
}

/*
 * Where QEMU locks an image (its block/file-posix.c): from 100 on a byte for each thing that someone does with it, from
 * 200 on one for each that others must not do. Reading is 0, writing 1, resizing 3. A reader here reads and does not
 * want others to write; a writer wants the image for itself and takes all bytes.
 */
#define LOCK_DOES 100
#define LOCK_FORBIDS 200
#define LOCK_BYTES 200
enum { LOCK_READS = 0, LOCK_WRITES = 1, LOCK_RESIZES = 3 };

/* 1: someone else's lock stands against it. */
static int lock_bytes(struct host_file *f, int command, short type, off_t at, off_t len)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = len};

	if (fcntl(f->fd, command, &lock)) {
		if (errno == EAGAIN || errno == EACCES)
			return 1;
		return host_fail();
	}
	return command == F_OFD_GETLK && lock.l_type != F_UNLCK;
}

void host_file_close(struct host_file *f)
{
	if (!f)
		return;
	/* A ring may keep the file open for a while longer. */
	if (f->locked)
		lock_bytes(f, F_OFD_SETLK, F_UNLCK, LOCK_DOES, LOCK_BYTES);
	close(f->fd);
	free(f);
}

int64_t host_file_size(struct host_file *f)
{
	off_t end = lseek(f->fd, 0, SEEK_END);

	return end < 0 ? host_fail() : end;
}

static int lock_to_read(struct host_file *f)
{
	static const struct {
		int command;
		short type;
		off_t at;
	} steps[] = {
		{F_OFD_SETLK, F_RDLCK, LOCK_DOES + LOCK_READS},      {F_OFD_SETLK, F_RDLCK, LOCK_FORBIDS + LOCK_WRITES},
		{F_OFD_SETLK, F_RDLCK, LOCK_FORBIDS + LOCK_RESIZES}, {F_OFD_GETLK, F_WRLCK, LOCK_DOES + LOCK_WRITES},
		{F_OFD_GETLK, F_WRLCK, LOCK_DOES + LOCK_RESIZES},
	};
	int result = 0;

	for (unsigned i = 0; i < ARRAY_LEN(steps) && !result; i++)
		result = lock_bytes(f, steps[i].command, steps[i].type, steps[i].at, 1);
	return result;
}

/* The kernel takes a ring apart after its process has been killed, and lets the files in it go then. */
#define LOCK_TRIES 20
#define LOCK_WAIT_NS 20000000u

int host_file_lock(struct host_file *f, bool write)
{
	int result = 1;

	f->locked = true;
	for (unsigned i = 0; i < LOCK_TRIES && result == 1; i++) {
		if (i)
			host_sleep_ns(LOCK_WAIT_NS);
		result = write ? lock_bytes(f, F_OFD_SETLK, F_WRLCK, LOCK_DOES, LOCK_BYTES) : lock_to_read(f);
	}
	return result;
}

unsigned host_file_alignment(struct host_file *f)
{
	return f->align;
}

bool host_file_is_regular(struct host_file *f)
{
	return S_ISREG(f->mode);
}
