/*
 * Shared memory in large pages. A memfd has them only where the administrator has changed a default of Linux; a file
 * on a tmpfs has them by a mount option. So a tmpfs is made that is mounted nowhere and holds one file, which has no
 * name any more. Only who is privileged may make one, but in a user namespace of one's own everybody is: a child of
 * this process that shares its memory and descriptors (as by vfork) enters one, opens the file here and is gone.
 */
#include "host/internal.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

/* perf(1) takes a mapping for anonymous memory, and looks for names of what is in it, by this name. */
#define FILE_NAME "anon_hugepage"
#define CHILD_STACK KiB(64)

static int open_file(int mount)
{
	int fd = openat(mount, FILE_NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd >= 0)
		unlinkat(mount, FILE_NAME, 0);
	return fd;
}

/* The file keeps the file system. */
static int make_file(void)
{
	int fs = fsopen("tmpfs", FSOPEN_CLOEXEC), mount = -1, fd = -1;

	if (fs < 0)
		return -1;
	if (!fsconfig(fs, FSCONFIG_SET_STRING, "huge", "advise", 0) &&
	    !fsconfig(fs, FSCONFIG_SET_STRING, "size", "0", 0) && !fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		mount = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	if (mount >= 0) {
		fd = open_file(mount);
		close(mount);
	}
	close(fs);
	return fd;
}

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return good;
}

struct child {
	char uid[32], gid[32]; /* for the namespace's maps: root there is who we are here */
	int fd;
};

static int child_main(void *opaque)
{
	struct child *c = opaque;

	if (put("/proc/self/setgroups", "deny") && put("/proc/self/gid_map", c->gid) &&
	    put("/proc/self/uid_map", c->uid))
		c->fd = make_file();
	_exit(0);
}

static int make_file_apart(void)
{
	const int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWUSER | CLONE_NEWNS;
	_Alignas(16) char stack[CHILD_STACK];
	struct child c = {.fd = -1};
	sigset_t all, before;
	pid_t pid;

	snprintf(c.uid, sizeof(c.uid), "0 %u 1", geteuid());
	snprintf(c.gid, sizeof(c.gid), "0 %u 1", getegid());
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	pid = clone(child_main, stack + sizeof(stack), flags, &c);
	if (pid > 0)
		RETRY_EINTR(waitpid(pid, NULL, __WCLONE));
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return c.fd;
}

int host_huge_file(void)
{
	int fd = make_file();

	return fd >= 0 ? fd : make_file_apart();
}
