/* The fuzzer's side of native.h: a back-end that asks the child. */
#include "native_parent.h"

#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_MS 10000

static struct native_shared *shared;
static int shared_fd, ask[2], told[2];
static pid_t child;

static void start_child(void)
{
	static char program[4096];
	char *argv[] = {program, NULL}, *envp[] = {NULL}, *slash;
	posix_spawn_file_actions_t actions;
	ssize_t n;

	if (!program[0]) {
		n = readlink("/proc/self/exe", program, sizeof(program) - 32);
		EXPECT(n > 0);
		slash = strrchr(program, '/');
		EXPECT(slash);
		strcpy(slash + 1, "native_child");
	}
	EXPECT(!pipe2(ask, O_CLOEXEC) && !pipe2(told, O_CLOEXEC));
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, ask[0], STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&actions, told[1], STDOUT_FILENO);
	posix_spawn_file_actions_adddup2(&actions, shared_fd, NATIVE_FD);
	if (posix_spawn(&child, program, &actions, NULL, argv, envp))
		found("cannot start native_child");
	posix_spawn_file_actions_destroy(&actions);
	close(ask[0]);
	close(told[1]);
}

static void end_child(void)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	close(ask[1]);
	close(told[0]);
	child = 0;
}

void native_start(void)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	signal(SIGPIPE, SIG_IGN);
	/* Out of the way of NATIVE_FD, so that the duplicate there is not this one, closed when the child begins. */
	shared_fd = fcntl(fd, F_DUPFD_CLOEXEC, 10);
	EXPECT(fd >= 0 && shared_fd >= 0 && !ftruncate(shared_fd, sizeof(*shared)));
	close(fd);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0);
	EXPECT(shared != MAP_FAILED);
	start_child();
}

bool native_ask(const struct diff_case *c, struct diff_result *r)
{
	struct pollfd p = {.events = POLLIN};
	char byte = 0;

	if (!child)
		start_child();
	p.fd = told[0];
	shared->c = *c;
	if (write(ask[1], &byte, 1) != 1 || poll(&p, 1, PATIENCE_MS) != 1 || read(told[0], &byte, 1) != 1) {
		end_child();
		return false;
	}
	*r = shared->r;
	r->memory = shared->memory;
	return true;
}
