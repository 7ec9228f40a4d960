/*
 * The first process of space.h, from which the others come. It begins as a child that shares this one's memory, with a
 * stack of its own, and is a program of its own after a few system calls: nothing of this process is copied, nor left.
 */
#include "host/internal.h"
#include "host/space_internal.h"
#include "host/space_program.h"
#include "host/system_call.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x10u
#endif

#define STACK_SIZE KiB(16)
#define ABOVE 64 /* where the descriptors are out of the way of those that they become */

/* In the child: errno and all else of the C library are the parent's. */
static int become_program(void *opaque)
{
	const struct host_spaces *from = opaque;
	const int fd[] = {
		[SPACE_FD_ASKED] = from->reading,
		[SPACE_FD_MEMORY] = from->mem->fd,
		[SPACE_FD_CONTROL] = from->control_fd,
		[SPACE_FD_PROGRAM] = from->program,
	};
	static char name[] = "doppel-user";
	char *argv[] = {name, NULL}, *envp[] = {NULL};
	long above[ARRAY_LEN(fd)];

	for (unsigned i = 0; i < ARRAY_LEN(fd); i++)
		above[i] = system_call(SYS_fcntl, (uint64_t)fd[i], F_DUPFD_CLOEXEC, ABOVE, 0, 0, 0);
	for (unsigned i = 0; i < ARRAY_LEN(fd); i++)
		if (above[i] < 0 || system_call(SYS_dup3, (uint64_t)above[i], i, 0, 0, 0, 0) < 0)
			system_call(SYS_exit, 1, 0, 0, 0, 0, 0);
	system_call(SYS_close_range, ARRAY_LEN(fd), ~0u, 0, 0, 0, 0); /* the rest closes itself, but for what others
									 opened */
	system_call(SYS_execveat, SPACE_FD_PROGRAM, (uint64_t)(uintptr_t) "", (uint64_t)(uintptr_t)argv,
		    (uint64_t)(uintptr_t)envp, AT_EMPTY_PATH, 0);
	system_call(SYS_exit, 1, 0, 0, 0, 0, 0);
	return 1;
}

static int memfd(unsigned flags)
{
	int fd = memfd_create("doppel-user", MFD_CLOEXEC | flags);

	return fd < 0 && errno == EINVAL ? memfd_create("doppel-user", MFD_CLOEXEC) : fd;
}

static void add(uint8_t *image, const uint8_t *label, uint64_t value, size_t size)
{
	uint64_t was = 0;

	memcpy(&was, image + (label - host_space_program), size);
	was += value;
	memcpy(image + (label - host_space_program), &was, size);
}

static bool write_program(const struct host_spaces *from)
{
	uint8_t image[PAGE_SIZE];
	size_t size = (size_t)(host_space_program_end - host_space_program);

	ENSURE(size <= sizeof(image));
	memcpy(image, host_space_program, size);
	add(image, host_space_place, from->place, 8);
	add(image, host_space_filter, from->place, 8);
	add(image, host_space_place_high, from->place >> 32, 4);
	add(image, host_space_place_low, (uint32_t)from->place, 4);
	return write(from->program, image, size) == (ssize_t)size;
}

static bool make_files(struct host_spaces *from)
{
	size_t room = (from->most + 1) * PAGE_SIZE;
	int ends[2];

	from->program = memfd(MFD_EXEC);
	from->control_fd = memfd(0);
	if (pipe2(ends, O_CLOEXEC))
		return false;
	from->reading = ends[0];
	from->asked = ends[1];
	if (from->program < 0 || !write_program(from) || from->control_fd < 0 ||
	    ftruncate(from->control_fd, (off_t)room))
		return false;
	void *p = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED, from->control_fd, 0);
	from->control = p == MAP_FAILED ? NULL : p;
	p = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	from->stack = p == MAP_FAILED ? NULL : p;
	return from->control && from->stack;
}

bool spaces_start(struct host_spaces *from)
{
	sigset_t all, before;

	from->tried = true;
	if (!make_files(from))
		return false;
	/* A handler of ours must not run there; and all are kept from it for good. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	int pid = clone(become_program, from->stack + STACK_SIZE, CLONE_VM, from);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	from->pid = pid > 0 ? pid : 0;
	return from->pid;
}

static void close_one(int fd)
{
	if (fd >= 0)
		close(fd);
}

void spaces_end(struct host_spaces *from)
{
	close_one(from->asked); /* it ends */
	if (from->pid)
		RETRY_EINTR(waitpid(from->pid, NULL, __WALL));
	close_one(from->reading);
	close_one(from->program);
	close_one(from->control_fd);
	if (from->control)
		munmap(from->control, (from->most + 1) * PAGE_SIZE);
	if (from->stack)
		munmap(from->stack, STACK_SIZE);
}

#define PATIENCE_S 1

pid_t spaces_fork(struct host_spaces *from)
{
	_Atomic int *pid = (_Atomic int *)(from->control + CONTROL_PID);
	const struct timespec patience = {.tv_sec = PATIENCE_S};
	int answer;

	if (!atomic_load((_Atomic int *)(from->control + CONTROL_READY)))
		return -1;
	atomic_store(pid, 0);
	if (write(from->asked, "", 1) != 1)
		return -1;
	while (!(answer = atomic_load(pid)))
		if (syscall(SYS_futex, pid, FUTEX_WAIT, 0, &patience, NULL, 0) && errno == ETIMEDOUT) {
			from->failed = true; /* its answer may still come: nobody asks again */
			return -1;
		}
	return answer > 0 ? answer : -1;
}
