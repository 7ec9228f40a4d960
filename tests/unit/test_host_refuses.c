/* Hosts that refuse what most allow: limits of the user's, what an administrator has switched off, no /proc. In child
 * processes to which that happens. */
#include "host/confine.h"
#include "host/guest_signals.h"
#include "host/host.h"
#include "host/shared.h"
#include "unit/child.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>

#define FINE 77
#define SKIPPED 78

static void check_child(void (*fn)(void))
{
	char said[256];
	int status = in_child(fn, FINE, said, sizeof(said));

	if (!WIFEXITED(status) || (WEXITSTATUS(status) != FINE && WEXITSTATUS(status) != SKIPPED))
		UNIT_FAIL("status 0x%x, said \"%s\"", status, said);
	CHECK_STR(said, "");
}

/* Namespaces of the child's own, where the system lets it. */
static void own_namespaces(int flags)
{
	if (unshare(flags | (geteuid() ? CLONE_NEWUSER : 0)))
		_exit(SKIPPED);
}

static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool good = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return good;
}

/* Memory is a file to Linux, whose limit on the size of files counts: the user hears of it. */
static void limit_files(void)
{
	const struct rlimit limit = {MiB(1), MiB(1)};
	struct host_shared mem;
	struct host_code code;
	sigset_t pending;

	host_file_mind_limit();
	if (setrlimit(RLIMIT_FSIZE, &limit))
		_exit(1);
	for (uint64_t size = MiB(2) - 4096; size <= MiB(8); size *= 2) {
		if (host_shared_alloc(&mem, size))
			_exit(2);
		if (strcmp(host_error_text(), "File too large") != 0)
			_exit(3);
	}
	if (!host_shared_alloc(&mem, MiB(1)))
		_exit(4);
	if (!host_code_alloc(&code, MiB(4))) /* not a file if need be */
		_exit(5);
	if (sigpending(&pending) || sigismember(&pending, SIGXFSZ))
		_exit(6);
}

TEST(file_size_limit)
{
	check_child(limit_files);
}

static void memory_without_programs(void)
{
	struct host_shared mem;

	if (!put("/proc/sys/vm/memfd_noexec", "2")) /* of this namespace's processes; since Linux 6.3 */
		_exit(SKIPPED);
	if (!host_shared_alloc(&mem, KiB(64))) {
		fprintf(stderr, "%s", host_error_text());
		_exit(1);
	}
	memset(mem.at, 1, KiB(64));
}

static void in_own_processes(void)
{
	char said[256];

	own_namespaces(CLONE_NEWPID);
	int status = in_child(memory_without_programs, FINE, said, sizeof(said));
	fputs(said, stderr);
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

/* Linux can be told to make no memory that a program could be started from. */
TEST(memfd_noexec)
{
	check_child(in_own_processes);
}

static void confine_without_proc(void)
{
	struct error err;
	char byte = 0;

	own_namespaces(CLONE_NEWNS);
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("none", "/proc", "tmpfs", 0, NULL))
		_exit(SKIPPED);
	if (dup2(open("/dev/zero", O_RDONLY), 300) != 300)
		_exit(1);
	host_inherited();
	if (!host_confine(&err)) {
		fprintf(stderr, "%s", err.text);
		_exit(2);
	}
	if (read(300, &byte, 1) >= 0 || errno != EBADF)
		_exit(3);
}

TEST(inherited_without_proc)
{
	check_child(confine_without_proc);
}

static bool not_mine(struct host_fault_context *ctx)
{
	return false;
}

/* As when the host has promised memory and has none: vm.overcommit_memory 2, memory that is broken. */
static void lose_memory(void)
{
	struct host_shared mem;

	if (!host_guest_signals_init(not_mine) || !host_shared_alloc(&mem, KiB(64)) || ftruncate(mem.fd, 0))
		_exit(1);
	signal(SIGABRT, SIG_DFL);
	mem.at[0] = 1;
}

TEST(page_lost)
{
	char said[256];
	int status = in_child(lose_memory, FINE, said, sizeof(said));

	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	CHECK(strstr(said, "doppel: the host has no memory") == said && strchr(said, '\n') == said + strlen(said) - 1);
}

UNIT_MAIN()
