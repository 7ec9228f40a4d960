/* What exercises the guest's kernel: system calls, processes, threads, page faults. */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "work.h"

/* n times fork, exec of a dynamically linked program, and wait. */
void work_fork_exec(unsigned long n)
{
	while (n--) {
		int status;
		pid_t child = fork();

		if (!child) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(127);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			die("/bin/true");
	}
}

/* n reads of one byte and n writes of one byte. */
void work_bytes(unsigned long n)
{
	int in = open("/dev/zero", O_RDONLY), out = open("/dev/null", O_WRONLY);
	char byte;

	if (in < 0 || out < 0)
		die("/dev/zero, /dev/null");
	while (n--)
		if (read(in, &byte, 1) != 1 || write(out, &byte, 1) != 1)
			die("one byte");
}

void work_getpid(unsigned long n)
{
	while (n--)
		syscall(SYS_getpid);
}

/* n bytes to another process and back, by two pipes. */
void work_pipe(unsigned long n)
{
	int there[2], back[2];
	char byte = 0;
	pid_t child;

	if (pipe(there) || pipe(back))
		die("pipe");
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		close(there[1]);
		while (read(there[0], &byte, 1) == 1)
			if (write(back[1], &byte, 1) != 1)
				break;
		_exit(0);
	}
	while (n--)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			die("pipe");
	close(there[1]);
	waitpid(child, NULL, 0);
}

/* Whose turn it is: the first thread's (0) or the second's (1). */
static atomic_uint turn;
static unsigned long turns;

static void take_turns(unsigned mine)
{
	for (unsigned long i = 0; i < turns; i++) {
		while (atomic_load(&turn) != mine)
			syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, !mine, NULL, NULL, 0);
		atomic_store(&turn, !mine);
		syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	}
}

static void *second_thread(void *unused)
{
	(void)unused;
	take_turns(1);
	return NULL;
}

/* n times the turn goes to another thread and back. */
void work_futex(unsigned long n)
{
	pthread_t thread;

	turns = n;
	errno = pthread_create(&thread, NULL, second_thread, NULL);
	if (errno)
		die("pthread_create");
	take_turns(0);
	pthread_join(thread, NULL);
}

#define MAPPING (16UL << 20)

/* n times 16 MiB are mapped, each of their 4,096 pages written to, and unmapped. */
void work_mmap(unsigned long n)
{
	while (n--) {
		volatile char *p = mmap(NULL, MAPPING, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (p == MAP_FAILED)
			die("mmap");
		madvise((void *)p, MAPPING, MADV_NOHUGEPAGE);
		for (unsigned long at = 0; at < MAPPING; at += 4096)
			p[at] = 1;
		munmap((void *)p, MAPPING);
	}
}
