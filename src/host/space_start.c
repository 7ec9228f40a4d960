/*
 * The first process of space.h, from which the others come. It begins as a child that shares this one's memory, with a
 * stack of its own, and is a program of its own after a few system calls: nothing of this process is copied, nor left.
 */
#include "host/confine.h"
#include "host/host.h"
#include "host/internal.h"
#include "host/space_internal.h"
#include "host/space_program.h"
#include "host/system_call.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define STACK_SIZE KiB(16)
#define ABOVE 64 /* where the descriptors are out of the way of those that they become */

/* In the child: errno and all else of the C library are the parent's. */
static int become_program(void *opaque)
{
	const struct host_spaces *from = opaque;
	const int fd[] = {
		[SPACE_FD_ASKED] = from->reading,     [SPACE_FD_MEMORY] = from->mem->fd,
		[SPACE_FD_COPIES] = from->copies->fd, [SPACE_FD_CONTROL] = from->control_fd,
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

static bool write_program(const struct host_spaces *from)
{
	uint8_t image[PAGE_SIZE];
	size_t size = (size_t)(host_space_program_end - host_space_program);

	ENSURE(size <= sizeof(image));
	memcpy(image, host_space_program, size);
	memcpy(image + (host_space_place - host_space_program), &from->place, sizeof(from->place));
	space_filters_write(image, from->place);
	return write(from->program, image, size) == (ssize_t)size;
}

static bool make_files(struct host_spaces *from)
{
	size_t room = (from->most + 1) * PAGE_SIZE;
	int ends[2];

	from->program = host_memfd("doppel-user", HOST_MEMFD_PROGRAM);
	from->control_fd = host_memfd("doppel-user", HOST_MEMFD_DATA);
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

static bool start(struct host_spaces *from)
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

static void end(struct host_spaces *from)
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

/* --- all that there are */

/* All that there are, for host_confine. */
static struct {
	struct host_mutex lock;
	struct host_spaces *first;
	bool no_more; /* the process is confined */
} all = {.lock = {PTHREAD_MUTEX_INITIALIZER}};

/* Far from where programs have their code, data, libraries and stacks, and debugging tools their shadow memory. */
#define PLACES_FROM 0x200000000000ull
#define PLACES_TO 0x500000000000ull

static uint64_t random_place(void)
{
	uint64_t r = 0;

	if (!host_random(&r, sizeof(r)))
		r = __builtin_ia32_rdtsc() * 0x9e3779b97f4a7c15ull;
	/* Not at the end of 4 GiB, so that its upper half is that of all of it. */
	return align_down(PLACES_FROM + r % (PLACES_TO - PLACES_FROM), PAGE_SIZE) & ~(uint64_t)MiB(1);
}

uint64_t host_spaces_place(const struct host_spaces *from)
{
	return from->place;
}

struct host_spaces *host_spaces_create(const struct host_shared *mem, const struct host_shared *copies, unsigned most)
{
	struct host_spaces *from = calloc(1, sizeof(*from) + most * sizeof(struct host_space *));

	if (!from) {
		host_fail();
		return NULL;
	}
	from->mem = mem;
	from->copies = copies;
	from->place = random_place();
	from->most = most;
	from->asked = from->control_fd = from->program = from->reading = -1;
	host_mutex_init(&from->lock);
	host_need(HOST_NEED_SPACES);
	host_lock(&all.lock);
	spaces_catch_kicks();
	from->next = all.first;
	all.first = from;
	host_unlock(&all.lock);
	return from;
}

void host_spaces_destroy(struct host_spaces *from)
{
	if (!from)
		return;
	host_lock(&all.lock);
	struct host_spaces **p = &all.first;
	while (*p != from)
		p = &(*p)->next;
	*p = from->next;
	host_unlock(&all.lock);
	end(from);
	for (unsigned i = 0; i < from->made; i++)
		free(from->space[i]);
	host_mutex_destroy(&from->lock);
	free(from);
}

void spaces_start_all(bool may)
{
	host_lock(&all.lock);
	for (struct host_spaces *from = all.first; from; from = from->next)
		if (!from->tried && !(may && start(from)))
			from->failed = true;
	all.no_more = true;
	host_unlock(&all.lock);
}

void spaces_start_late(struct host_spaces *from)
{
	host_lock(&all.lock);
	if (!from->tried && (all.no_more || !start(from)))
		from->failed = true;
	host_unlock(&all.lock);
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
