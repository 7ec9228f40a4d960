/* The sandbox, in child processes: what is forbidden ends one, what is kept works. */
#include "host/confine.h"
#include "host/host.h"
#include "host/thread.h"
#include "unit/child.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define VIOLATION (128 + SIGSYS)
#define FINE 77

static bool has_landlock(void)
{
	return syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) > 0;
}

static void confine_or_exit(void)
{
	struct error err;

	if (host_confine(&err))
		return;
	fprintf(stderr, "%s", err.text);
	_exit(99);
}

static void (*confined_does)(void);

static void confined_main(void)
{
	confine_or_exit();
	confined_does();
}

/* How a confined child ends that does fn(); what it says on standard error goes to `said`. */
static int confined(void (*fn)(void), char *said, size_t size)
{
	confined_does = fn;
	return in_child(confined_main, FINE, said, size);
}

static volatile int unused;

static void do_open(void)
{
	unused = open("/etc/passwd", O_RDONLY);
}
static void do_open_write(void)
{
	unused = open("/tmp/doppel-confine", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}
static void do_openat2(void)
{
	unused = (int)syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", NULL, 0);
}
static void do_execve(void)
{
	execl("/bin/true", "true", NULL);
}
static void do_fork(void)
{
	unused = fork();
}
static void do_socket(void)
{
	unused = socket(AF_INET, SOCK_STREAM, 0);
}
static void do_ptrace(void)
{
	ptrace(PTRACE_TRACEME, 0, NULL, NULL);
}
static void do_kill(void)
{
	kill(1, 0);
}
static void do_exec_mapping(void)
{
	unused = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
}
static void do_wx_mapping(void)
{
	unused = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
}
static void do_exec_protection(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	mprotect(p, 4096, PROT_READ | PROT_EXEC);
}
static void do_memfd(void)
{
	unused = memfd_create("x", 0);
}
static void do_unlink(void)
{
	unlink("/nonexistent");
}
static void do_type_ahead(void)
{
	ioctl(STDIN_FILENO, TIOCSTI, "x");
}
static void do_uring(void)
{
	syscall(SYS_io_uring_setup, 1, NULL);
}
static void do_other_process(void)
{
	syscall(SYS_process_vm_readv, 1, NULL, 0, NULL, 0, 0);
}
static void do_namespace(void)
{
	unshare(CLONE_NEWUSER);
}

static const struct {
	const char *name; /* of the call */
	void (*fn)(void);
} forbidden[] = {
	{"openat", do_open},
	{"openat", do_open_write},
	{"openat2", do_openat2},
	{"execve", do_execve},
	{"clone", do_fork},
	{"socket", do_socket},
	{"ptrace", do_ptrace},
	{"kill", do_kill},
	{"mmap", do_exec_mapping},
	{"mmap", do_wx_mapping},
	{"mprotect", do_exec_protection},
	{"memfd_create", do_memfd},
	{"unlink", do_unlink},
	{"ioctl", do_type_ahead},
	{"io_uring_setup", do_uring},
	{"process_vm_readv", do_other_process},
	{"unshare", do_namespace},
};

TEST(forbidden)
{
	char said[512], want[64];

	for (unsigned i = 0; i < ARRAY_LEN(forbidden); i++) {
		int status = confined(forbidden[i].fn, said, sizeof(said));

		snprintf(want, sizeof(want), "system call %s (", forbidden[i].name);
		if (!WIFEXITED(status) || WEXITSTATUS(status) != VIOLATION || !strstr(said, want))
			UNIT_FAIL("%u, %s: status 0x%x, said \"%s\"", i, forbidden[i].name, status, said);
		CHECK(!strncmp(said, "doppel: ", 8) && strchr(said, '\n') == said + strlen(said) - 1);
	}
}

static void do_foreign_call(void)
{
	int r;

	__asm__ volatile("int $0x80" : "=a"(r) : "a"(20)); /* getpid() of a 32-bit program */
	unused = r;
}

TEST(other_architecture)
{
	char said[512];
	int status = confined(do_foreign_call, said, sizeof(said));

	/* A kernel that knows no 32-bit programs raises SIGSEGV. */
	CHECK(WIFSIGNALED(status) && (WTERMSIG(status) == SIGSYS || WTERMSIG(status) == SIGSEGV));
}

static void *allocate(void *arg)
{
	for (size_t size = 100; size < MiB(8); size *= 3) {
		char *p = malloc(size);

		if (!p)
			return NULL;
		memset(p, 1, size);
		free(p);
	}
	return arg;
}

static void *wait_and_allocate(void *arg)
{
	host_sleep_ns(1000000);
	return allocate(arg);
}

/* At the same time; each returns its argument when all went well. */
static void run_threads(const char *name, void *(*fn)(void *), unsigned n)
{
	struct host_thread t[24];
	void *result;

	for (unsigned i = 0; i < n; i++)
		if (!host_thread_start(&t[i], name, fn, t))
			_exit(1);
	for (unsigned i = 0; i < n; i++)
		if (pthread_join(t[i].t, &result) || result != t)
			_exit(2);
}

static void do_work(void)
{
	struct timespec ts;
	struct stat st;
	char random[16];

	run_threads("worker", wait_and_allocate, 8);
	errno = 0;
	if (open("/etc/passwd", O_RDONLY | O_CLOEXEC) >= 0 || errno != EACCES) /* as the C library's */
		_exit(3);
	if (!host_random(random, sizeof(random)) || !host_now_ns() || clock_gettime(CLOCK_REALTIME, &ts))
		_exit(4);
	if (!allocate(random))
		_exit(5);
	/* fstat(), of older and newer C libraries */
	if (syscall(SYS_newfstatat, STDERR_FILENO, "", &st, AT_EMPTY_PATH) || syscall(SYS_fstat, STDERR_FILENO, &st))
		_exit(6);
}

TEST(kept)
{
	char said[512];
	int status = confined(do_work, said, sizeof(said));

	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == FINE);
	CHECK_STR(said, "");
	status = confined(abort, said, sizeof(said));
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void *guest_thread(void *arg)
{
	char byte;

	host_confine_guest_thread();
	allocate(NULL);
	unused = (int)read(*(int *)arg, &byte, 1);
	return NULL;
}

/* A thread of the guest's may not do what all others may. */
static void do_guest_thread(void)
{
	struct host_thread t;
	int fd = STDIN_FILENO;

	if (host_thread_start(&t, "cpu0", guest_thread, &fd))
		host_thread_join(&t);
}

TEST(guest_thread)
{
	char said[512];
	int status = confined(do_guest_thread, said, sizeof(said));

	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == VIOLATION);
	CHECK(strstr(said, "system call read (") && strstr(said, "thread 'cpu0'"));
}

static void *guest_thread_allocates(void *arg)
{
	cpu_set_t set;

	host_confine_guest_thread();
	if (sched_getaffinity(0, sizeof(set), &set))
		return NULL;
	return wait_and_allocate(arg);
}

/* When so many threads have memory of their own, newer C libraries ask how many processors they may use. */
static void do_many_guest_threads(void)
{
	run_threads("cpu", guest_thread_allocates, 24);
}

TEST(many_guest_threads_allocate)
{
	char said[512];
	int status = confined(do_many_guest_threads, said, sizeof(said));

	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == FINE);
	CHECK_STR(said, "");
}

/* A folder with two folders, and a thread that there was before: it may remove what is in the one and not in the other.
 */
static char folder[64];
static _Atomic int go;

static void touch(const char *name)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	close(fd);
}

static int remove_one(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return unlink(path) ? errno : 0;
}

static void *earlier_thread(void *arg)
{
	while (!go)
		host_sleep_ns(100000);
	*(int *)arg = remove_one("other/b") == EACCES && !remove_one("ours/b");
	return NULL;
}

static void keep_ours(void)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/ours", folder);
	fd = open(path, O_PATH | O_DIRECTORY);
	host_need(HOST_NEED_CLIENTS);
	host_need_path(fd, HOST_PATH_REMOVE);
	close(fd);
}

static int confine_paths(void)
{
	struct host_thread t;
	int good = 0;

	keep_ours();
	if (!host_thread_start(&t, "earlier", earlier_thread, &good))
		return 1;
	confine_or_exit();
	if (remove_one("other/a") != EACCES || remove_one("ours/a"))
		return 2;
	go = 1;
	host_thread_join(&t);
	return good ? FINE : 3;
}

static void make_folder(const char *name, bool make)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	if (make)
		CHECK(!mkdir(path, 0700));
	else
		rmdir(path);
}

TEST(paths)
{
	static const char *const files[] = {"ours/a", "ours/b", "other/a", "other/b"};
	int status = 0;
	pid_t pid;

	if (!has_landlock()) {
		printf("skip paths: this kernel has no Landlock\n");
		return;
	}
	strcpy(folder, "/tmp/doppel-confine-XXXXXX");
	REQUIRE(mkdtemp(folder));
	make_folder("ours", true);
	make_folder("other", true);
	for (unsigned i = 0; i < ARRAY_LEN(files); i++)
		touch(files[i]);
	pid = fork();
	if (!pid)
		_exit(confine_paths());
	waitpid(pid, &status, 0);
	CHECK_EQ(WEXITSTATUS(status), FINE);
	for (unsigned i = 0; i < ARRAY_LEN(files); i++)
		CHECK_EQ(remove_one(files[i]), i < 2 ? ENOENT : 0);
	make_folder("ours", false);
	make_folder("other", false);
	rmdir(folder);
}

/* A child that waits, confined, for its end; what /proc says of it is looked at from outside. */
static int ready[2];

static void *sleeping_thread(void *arg)
{
	for (;;)
		host_sleep_ns(1000000000);
	return NULL;
}

static void wait_confined(void)
{
	struct host_thread t;

	open("/dev/null", O_RDONLY);
	dup2(STDIN_FILENO, 200);
	close(STDIN_FILENO);
	host_inherited();
	open("/dev/zero", O_RDONLY | O_CLOEXEC); /* ours */
	host_thread_start(&t, "earlier", sleeping_thread, NULL);
	confine_or_exit();
	host_thread_start(&t, "later", sleeping_thread, NULL);
	(void)!write(STDOUT_FILENO, "x", 1);
	sleeping_thread(NULL);
}

/* The number after "NAME:" in a file of /proc, in base 16. */
static uint64_t proc_field(pid_t pid, const char *thread, const char *name)
{
	uint64_t value = UINT64_MAX;
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)pid, thread);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
			value = strtoull(line + strlen(name) + 1, NULL, 16);
	if (f)
		fclose(f);
	return value;
}

static unsigned check_threads(pid_t pid)
{
	char path[64];
	struct dirent *e;
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		n++;
		CHECK_EQ(proc_field(pid, e->d_name, "CapEff"), 0);
		CHECK_EQ(proc_field(pid, e->d_name, "CapPrm"), 0);
		CHECK_EQ(proc_field(pid, e->d_name, "CapInh"), 0);
		CHECK_EQ(proc_field(pid, e->d_name, "NoNewPrivs"), 1);
		CHECK_EQ(proc_field(pid, e->d_name, "Seccomp"), 2);
	}
	if (dir)
		closedir(dir);
	return n;
}

static bool leads_to(pid_t pid, int fd, const char *where)
{
	char path[64], target[64] = "";

	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
	return readlink(path, target, sizeof(target) - 1) > 0 && !strcmp(target, where);
}

TEST(given_up)
{
	char byte;
	bool zero = false;
	pid_t pid;

	REQUIRE(!pipe2(ready, O_CLOEXEC));
	pid = fork();
	if (!pid) {
		dup2(ready[1], STDOUT_FILENO);
		wait_confined();
		_exit(1);
	}
	close(ready[1]);
	CHECK_EQ(read(ready[0], &byte, 1), 1);
	CHECK_EQ(check_threads(pid), 3);
	CHECK(leads_to(pid, STDIN_FILENO, "/dev/null"));
	CHECK(!leads_to(pid, 200, "/dev/null"));
	for (int fd = 3; fd < 20; fd++)
		zero |= leads_to(pid, fd, "/dev/zero");
	CHECK(zero);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	close(ready[0]);
}

int main(int argc, char **argv)
{
	if (strcmp(host_confinement(), "sandbox off in this build") != 0)
		return unit_main(argc, argv);
	puts("skip confine: this build has no sandbox");
	return 0;
}
