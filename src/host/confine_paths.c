/* What may be opened after the start, by Landlock (Documentation/userspace-api/landlock.rst of Linux): nothing but what
 * was asked for. */
#include "host/confine_internal.h"
#include "host/internal.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than the headers of Debian 12. */
#define FS_TRUNCATE BIT(14)  /* version 3 */
#define FS_IOCTL_DEV BIT(15) /* version 5 */
#define NET_BIND_TCP BIT(0)  /* version 4 */
#define NET_CONNECT_TCP BIT(1)
#define SCOPE_ABSTRACT_UNIX BIT(0) /* version 6 */
#define SCOPE_SIGNAL BIT(1)

#define VERSIONS_KNOWN 6

struct ruleset_attr {
	uint64_t fs, net, scoped;
};

/* What each version of the interface can restrict, and how much of the structure it knows. */
static const struct {
	uint64_t fs, net, scoped;
	size_t size;
} versions[VERSIONS_KNOWN] = {
	{.fs = BIT(13) - 1, .size = 8},
	{.fs = BIT(14) - 1, .size = 8},
	{.fs = BIT(15) - 1, .size = 8},
	{.fs = BIT(15) - 1, .net = NET_BIND_TCP | NET_CONNECT_TCP, .size = 16},
	{.fs = BIT(16) - 1, .net = NET_BIND_TCP | NET_CONNECT_TCP, .size = 16},
	{.fs = BIT(16) - 1,
	 .net = NET_BIND_TCP | NET_CONNECT_TCP,
	 .scoped = SCOPE_ABSTRACT_UNIX | SCOPE_SIGNAL,
	 .size = 24},
};

#define ON_FILES (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | FS_TRUNCATE)
#define READING (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
/* No devices: a guest that can make one has the host's. */
#define WRITING                                                                                           \
	(LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE | \
	 LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK |       \
	 LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_SYM | LANDLOCK_ACCESS_FS_REFER | FS_TRUNCATE)

/* The process's, as the rules will be: each file once, for all who need it. */
#define PATHS_MAX 64
static struct path {
	int fd;
	unsigned access, users;
	dev_t device;
	ino_t inode;
} paths[PATHS_MAX];
static unsigned path_count;

static struct path *path_find(const struct stat *st, unsigned access)
{
	for (unsigned i = 0; i < path_count; i++)
		if (paths[i].device == st->st_dev && paths[i].inode == st->st_ino && paths[i].access == access)
			return &paths[i];
	return NULL;
}

bool host_need_path(int fd, unsigned access)
{
	struct stat st;

	if (fstat(fd, &st))
		return !host_fail();
	struct path *p = path_find(&st, access);
	if (p) {
		p->users++;
		return true;
	}
	if (path_count == PATHS_MAX)
		return !host_fail_with(E2BIG);
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return !host_fail();
	paths[path_count++] =
		(struct path){.fd = own, .access = access, .users = 1, .device = st.st_dev, .inode = st.st_ino};
	return true;
}

void host_unneed_path(int fd, unsigned access)
{
	struct stat st;
	struct path *p = fstat(fd, &st) ? NULL : path_find(&st, access);

	if (!p || --p->users)
		return;
	close(p->fd);
	*p = paths[--path_count];
}

void host_need_file(const char *path)
{
	int fd = open(path, O_PATH | O_CLOEXEC);

	if (fd < 0)
		return;
	host_need_path(fd, HOST_PATH_READ);
	close(fd);
}

void host_unneed_file(const char *path)
{
	int fd = open(path, O_PATH | O_CLOEXEC);

	if (fd < 0)
		return;
	host_unneed_path(fd, HOST_PATH_READ);
	close(fd);
}

static uint64_t rights(int fd, unsigned access, uint64_t known)
{
	uint64_t all = 0;
	struct stat st;

	if (access & HOST_PATH_READ)
		all |= READING;
	if (access & HOST_PATH_WRITE)
		all |= WRITING;
	if (access & HOST_PATH_REMOVE)
		all |= LANDLOCK_ACCESS_FS_REMOVE_FILE;
	if (fstat(fd, &st) || !S_ISDIR(st.st_mode))
		all &= ON_FILES;
	return all & known;
}

static bool add_rules(int ruleset, uint64_t known)
{
	for (unsigned i = 0; i < path_count; i++) {
		struct landlock_path_beneath_attr rule = {.parent_fd = paths[i].fd};

		rule.allowed_access = rights(paths[i].fd, paths[i].access, known);
		if (rule.allowed_access &&
		    syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0))
			return !host_fail();
	}
	return true;
}

static void forget_paths(void)
{
	while (path_count)
		close(paths[--path_count].fd);
}

/* 0: none. */
static unsigned version(void)
{
	long n = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	return n < 0 ? 0 : (unsigned)MIN(n, VERSIONS_KNOWN);
}

bool confine_paths_prepare(unsigned needs, int *ruleset, struct error *err)
{
	unsigned v = version();
	bool ok = true;

	*ruleset = -1;
	if (v) {
		struct ruleset_attr attr = {versions[v - 1].fs, versions[v - 1].net, versions[v - 1].scoped};

		if (needs & (HOST_NEED_INTERNET | HOST_NEED_SERVER))
			attr.net = 0; /* to anywhere, as the guest likes; a server's name may lead elsewhere by then */
		if (needs & HOST_NEED_SERVER)
			attr.scoped &= ~SCOPE_SIGNAL; /* it may be our child, from before */
		*ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, versions[v - 1].size, 0);
		ok = *ruleset >= 0 ? add_rules(*ruleset, attr.fs) : !host_fail();
	}
	forget_paths();
	if (ok)
		return true;
	error_set(err, "cannot restrict what may be opened (Landlock): %s; --sandbox off runs without",
		  strerror(errno));
	if (*ruleset >= 0)
		close(*ruleset);
	return false;
}

bool confine_paths_enter(int ruleset)
{
	return ruleset < 0 || !syscall(SYS_landlock_restrict_self, ruleset, 0);
}
