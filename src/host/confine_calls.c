/*
 * The system calls that are kept, each with its reason, and what happens to all others: the kernel raises SIGSYS, and
 * the handler says which call it was and ends the process.
 */
#include "host/confine_internal.h"
#include "host/internal.h"
#include "host/terminal.h"
#include "host/thread.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

/* Which threads keep a call, and which machines: all, or those with such a need. */
#define GUEST BIT(30) /* threads that run guest code */
#define OTHERS BIT(31)
#define EVERYONE (GUEST | OTHERS)
#define NEED(n) HOST_NEED_##n

/* A condition on one argument. */
enum condition { ANY, IS, BITS_ON, BITS_OFF };

static const struct kept {
	int call;
	uint64_t who;
	enum condition condition;
	unsigned argument;
	uint64_t value; /* or mask */
} kept[] = {
	/* Locks, and the end of a thread and of the process. */
	{SCMP_SYS(futex), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(exit), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(exit_group), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(sched_yield), EVERYONE, ANY, 0, 0},
	/* Faults of translated code come as signals; abort() and a fault that is nobody's end the process by them. */
	{SCMP_SYS(rt_sigreturn), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(rt_sigprocmask), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(rt_sigaction), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(sigaltstack), EVERYONE, ANY, 0, 0},     /* for them, by thread */
	{SCMP_SYS(restart_syscall), EVERYONE, ANY, 0, 0}, /* the kernel's own, for waits that a stop interrupted */
	{SCMP_SYS(getpid), EVERYONE, ANY, 0, 0},          /* for tgkill, below */
	{SCMP_SYS(gettid), EVERYONE, ANY, 0, 0},
	/* malloc and stacks of threads. Nothing that can be executed: code memory was mapped before. */
	{SCMP_SYS(mmap), EVERYONE, BITS_OFF, 2, PROT_EXEC},
	{SCMP_SYS(mprotect), EVERYONE, BITS_OFF, 2, PROT_EXEC},
	{SCMP_SYS(munmap), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(mremap), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(madvise), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(brk), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(mincore), OTHERS, ANY, 0, 0},   /* how much memory the guest has */
	{SCMP_SYS(sysinfo), EVERYONE, ANY, 0, 0}, /* qsort: how much memory it may take */
	/* Time: by thread, and all of it where the host's clock is not read without a system call. */
	{SCMP_SYS(clock_gettime), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(gettimeofday), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(clock_nanosleep), EVERYONE, ANY, 0, 0},
	/* GS base of a thread that runs translated code is put back at its end. */
	{SCMP_SYS(arch_prctl), EVERYONE, IS, 0, ARCH_SET_GS},
	{SCMP_SYS(prctl), EVERYONE, IS, 0, PR_GET_NAME}, /* for the line about a call that is not kept */
	/* Wakes another thread through an eventfd; messages on standard error. */
	{SCMP_SYS(write), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(getrandom), EVERYONE, ANY, 0, 0}, /* the random number generator */

	/* Threads that are started later; not processes. */
	{SCMP_SYS(clone), OTHERS, BITS_ON, 0, CLONE_VM | CLONE_THREAD},
	{SCMP_SYS(set_robust_list), OTHERS, ANY, 0, 0},
	{SCMP_SYS(rseq), OTHERS, ANY, 0, 0},
	{SCMP_SYS(prctl), OTHERS, IS, 0, PR_SET_NAME},
	{SCMP_SYS(prctl), OTHERS, IS, 0, PR_SET_TIMERSLACK},
	{SCMP_SYS(sched_getaffinity), OTHERS, ANY, 0, 0}, /* malloc: how many arenas there should be */
	/* A thread that is going to run guest code gives up more. */
	{SCMP_SYS(prctl), OTHERS, IS, 0, PR_SET_NO_NEW_PRIVS},
	{SCMP_SYS(seccomp), OTHERS, ANY, 0, 0},
	/* Files that are open: consoles, disks, events. */
	{SCMP_SYS(read), OTHERS, ANY, 0, 0},
	{SCMP_SYS(readv), OTHERS, ANY, 0, 0},
	{SCMP_SYS(writev), OTHERS, ANY, 0, 0},
	{SCMP_SYS(pread64), OTHERS, ANY, 0, 0},
	{SCMP_SYS(pwrite64), OTHERS, ANY, 0, 0},
	{SCMP_SYS(preadv), OTHERS, ANY, 0, 0},
	{SCMP_SYS(pwritev), OTHERS, ANY, 0, 0},
	{SCMP_SYS(preadv2), EVERYONE, ANY, 0, 0}, /* disks: what needs no waiting is read at once */
	{SCMP_SYS(pwritev2), EVERYONE, ANY, 0, 0},
	{SCMP_SYS(io_uring_enter), OTHERS, ANY, 0, 0}, /* rings that were made before, and restricted */
	{SCMP_SYS(fcntl), OTHERS, IS, 1, F_OFD_SETLK}, /* lets an image go */
	{SCMP_SYS(lseek), OTHERS, ANY, 0, 0},
	{SCMP_SYS(fallocate), OTHERS, ANY, 0, 0},
	{SCMP_SYS(ftruncate), OTHERS, ANY, 0, 0}, /* a console's file begins empty when the machine does */
	{SCMP_SYS(fdatasync), OTHERS, ANY, 0, 0},
	{SCMP_SYS(newfstatat), OTHERS, BITS_ON, 3, AT_EMPTY_PATH}, /* fstat() */
	{SCMP_SYS(close), OTHERS, ANY, 0, 0},
	{SCMP_SYS(poll), OTHERS, ANY, 0, 0},
	{SCMP_SYS(ppoll), OTHERS, ANY, 0, 0},
	{SCMP_SYS(sendto), OTHERS, ANY, 0, 0}, /* a console writes to what may be a socket */
	/* The terminal's modes. Not TIOCSTI: it types what the user's shell then reads. */
	{SCMP_SYS(ioctl), EVERYONE, IS, 1, TCGETS},
	{SCMP_SYS(ioctl), EVERYONE, IS, 1, TCSETS},
	{SCMP_SYS(ioctl), OTHERS, IS, 1, TIOCGPGRP},
	{SCMP_SYS(getpgrp), OTHERS, ANY, 0, 0},

	/* A console's listening socket. */
	{SCMP_SYS(accept4), OTHERS | NEED(CLIENTS), ANY, 0, 0},
	{SCMP_SYS(getsockname), OTHERS | NEED(CLIENTS), ANY, 0, 0}, /* the socket's name, to remove it */
	{SCMP_SYS(unlink), OTHERS | NEED(CLIENTS), ANY, 0, 0},

	/* Profiles. */
	{SCMP_SYS(timer_create), EVERYONE | NEED(PROFILE), ANY, 0, 0},
	{SCMP_SYS(timer_settime), EVERYONE | NEED(PROFILE), ANY, 0, 0},
	{SCMP_SYS(timer_delete), EVERYONE | NEED(PROFILE), ANY, 0, 0},
	{SCMP_SYS(newfstatat), EVERYONE | NEED(PROFILE), BITS_ON, 3, AT_EMPTY_PATH}, /* perf's map, buffered */

	/* A user-mode network: the guest's connections are sockets of ours. No unix sockets, none that see every
	   packet. */
	{SCMP_SYS(socket), OTHERS | NEED(INTERNET), IS, 0, AF_INET},
	{SCMP_SYS(socket), OTHERS | NEED(INTERNET), IS, 0, AF_INET6},
	{SCMP_SYS(connect), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(bind), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(listen), OTHERS | NEED(INTERNET), ANY, 0, 0}, /* what the guest's FTP announces */
	{SCMP_SYS(accept), OTHERS | NEED(INTERNET), ANY, 0, 0}, /* forwarded ports */
	{SCMP_SYS(shutdown), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(getsockopt), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(setsockopt), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(getsockname), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(getpeername), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(recvfrom), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(recvmsg), OTHERS | NEED(INTERNET), ANY, 0, 0},
	{SCMP_SYS(ioctl), OTHERS | NEED(INTERNET), IS, 1, FIONREAD},
	{SCMP_SYS(fcntl), OTHERS | NEED(INTERNET), IS, 1, F_GETFL},
	{SCMP_SYS(fcntl), OTHERS | NEED(INTERNET), IS, 1, F_SETFL},
	{SCMP_SYS(fcntl), OTHERS | NEED(INTERNET), IS, 1, F_GETFD},
	{SCMP_SYS(fcntl), OTHERS | NEED(INTERNET), IS, 1, F_SETFD},
	{SCMP_SYS(newfstatat), OTHERS | NEED(INTERNET), ANY, 0, 0}, /* whether /etc/resolv.conf has changed */
	{SCMP_SYS(openat), OTHERS | NEED(INTERNET), ANY, 0, 0},     /* if so; Landlock keeps the rest away */

	/* A disk on a server, by libnbd: resolving its name (getaddrinfo) and connecting anew, and the end of qemu-nbd.
	 */
	{SCMP_SYS(socket), OTHERS | NEED(SERVER), IS, 0, AF_UNIX},
	{SCMP_SYS(socket), OTHERS | NEED(SERVER), IS, 0, AF_INET},
	{SCMP_SYS(socket), OTHERS | NEED(SERVER), IS, 0, AF_INET6},
	{SCMP_SYS(socket), OTHERS | NEED(SERVER), IS, 0, AF_NETLINK}, /* which addresses the host has */
	{SCMP_SYS(bind), OTHERS | NEED(SERVER), ANY, 0, 0},           /* of that */
	{SCMP_SYS(connect), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(shutdown), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(getsockopt), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(setsockopt), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(getsockname), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(getpeername), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(recvfrom), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(recvmsg), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(sendmsg), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(sendmmsg), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(ioctl), OTHERS | NEED(SERVER), IS, 1, FIONREAD},
	{SCMP_SYS(fcntl), OTHERS | NEED(SERVER), IS, 1, F_GETFL},
	{SCMP_SYS(fcntl), OTHERS | NEED(SERVER), IS, 1, F_SETFL},
	{SCMP_SYS(fcntl), OTHERS | NEED(SERVER), IS, 1, F_GETFD},
	{SCMP_SYS(fcntl), OTHERS | NEED(SERVER), IS, 1, F_SETFD},
	{SCMP_SYS(newfstatat), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(openat), OTHERS | NEED(SERVER), ANY, 0, 0}, /* /etc/hosts and the like */
	{SCMP_SYS(uname), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(getuid), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(kill), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(wait4), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(unlink), OTHERS | NEED(SERVER), ANY, 0, 0}, /* libnbd's socket; it has gone before */
	{SCMP_SYS(rmdir), OTHERS | NEED(SERVER), ANY, 0, 0},
	{SCMP_SYS(ioctl), EVERYONE | NEED(TAP), IS, 1, TUNSETOFFLOAD},

	/* Unix sockets for a guest's: stream.c. */
	{SCMP_SYS(socket), OTHERS | NEED(STREAMS), IS, 0, AF_UNIX},
	{SCMP_SYS(connect), OTHERS | NEED(STREAMS), ANY, 0, 0},
	{SCMP_SYS(shutdown), OTHERS | NEED(STREAMS), ANY, 0, 0},
	{SCMP_SYS(recvmsg), OTHERS | NEED(STREAMS), ANY, 0, 0},
	{SCMP_SYS(sendmsg), OTHERS | NEED(STREAMS), ANY, 0, 0},
	{SCMP_SYS(epoll_ctl), OTHERS | NEED(STREAMS), ANY, 0, 0},
	{SCMP_SYS(epoll_wait), OTHERS | NEED(STREAMS), ANY, 0, 0},
	{SCMP_SYS(close), EVERYONE | NEED(STREAMS), ANY, 0, 0}, /* a driver's reset of the device ends them */

	/* A shared folder: folder.c. Landlock keeps paths within it. */
	{SCMP_SYS(close), EVERYONE | NEED(FOLDER), ANY, 0, 0}, /* a driver's reset of the device closes what it had open */
	{SCMP_SYS(openat2), OTHERS | NEED(FOLDER), ANY, 0, 0},
	{SCMP_SYS(openat), OTHERS | NEED(FOLDER), ANY, 0, 0},
	{SCMP_SYS(statx), OTHERS | NEED(FOLDER), BITS_ON, 2, AT_EMPTY_PATH},
	{SCMP_SYS(readlinkat), OTHERS | NEED(FOLDER), ANY, 0, 0},
	{SCMP_SYS(getdents64), OTHERS | NEED(FOLDER), ANY, 0, 0},
	{SCMP_SYS(fstatfs), OTHERS | NEED(FOLDER), ANY, 0, 0},
	{SCMP_SYS(fcntl), OTHERS | NEED(FOLDER), IS, 1, F_GETFL},
	{SCMP_SYS(getxattr), OTHERS | NEED(FOLDER), ANY, 0, 0},
	{SCMP_SYS(listxattr), OTHERS | NEED(FOLDER), ANY, 0, 0},
	{SCMP_SYS(mkdirat), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(mknodat), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(symlinkat), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(linkat), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(unlinkat), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(renameat), OTHERS | NEED(FOLDER_RW), ANY, 0, 0}, /* the C library, where there are no flags */
	{SCMP_SYS(renameat2), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(fchmod), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(fchmodat), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(fchownat), OTHERS | NEED(FOLDER_RW), BITS_ON, 4, AT_EMPTY_PATH},
	{SCMP_SYS(utimensat), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(fsync), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(syncfs), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(copy_file_range), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(setxattr), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
	{SCMP_SYS(removexattr), OTHERS | NEED(FOLDER_RW), ANY, 0, 0},
};

/* Refused with an error instead, as an old kernel or a missing file would do; who asks goes on without. */
static const struct refused {
	int call, error;
	unsigned unless; /* such a need keeps the call */
	enum condition condition;
	unsigned argument;
	uint64_t value;
} refused[] = {
	/* Its flags are in memory, where a filter cannot look; the C library then takes clone. */
	{SCMP_SYS(clone3), ENOSYS, 0, ANY, 0, 0},
	/* malloc looks at /proc/sys/vm/overcommit_memory before it gives back a heap. We open with O_NOCTTY. */
	{SCMP_SYS(openat), EACCES, NEED(INTERNET) | NEED(FOLDER) | NEED(SERVER), IS, 2, O_RDONLY | O_CLOEXEC},
};

/* The names of all calls: the handler must not ask for memory. */
#define CALLS_MAX 512
static struct {
	const char *name[CALLS_MAX];
	scmp_filter_ctx guest; /* for threads that run guest code; under the lock */
	struct host_mutex lock;
	_Atomic bool ready;
} calls = {.lock = {PTHREAD_MUTEX_INITIALIZER}};

static void name_calls(void)
{
	for (int i = 0; i < CALLS_MAX; i++)
		calls.name[i] = seccomp_syscall_resolve_num_arch(SCMP_ARCH_X86_64, i);
}

/* A line, put together without what a signal handler may not call. */
struct line {
	char text[256];
	size_t len;
};

static void say(struct line *line, const char *text)
{
	size_t len = MIN(strlen(text), sizeof(line->text) - line->len);

	memcpy(line->text + line->len, text, len);
	line->len += len;
}

static void say_number(struct line *line, unsigned n)
{
	char digits[12], *p = digits + sizeof(digits) - 1;

	*p = 0;
	do
		*--p = (char)('0' + n % 10);
	while (n /= 10);
	say(line, p);
}

static void on_violation(int sig, siginfo_t *info, void *context)
{
	unsigned nr = (unsigned)info->si_syscall;
	const char *name = nr < CALLS_MAX ? calls.name[nr] : NULL;
	char thread[16] = "";
	struct line line = {.len = 0};

	prctl(PR_GET_NAME, thread, 0, 0, 0);
	say(&line, "doppel: the sandbox stopped system call ");
	say(&line, name ? name : "?");
	say(&line, " (");
	say_number(&line, nr);
	say(&line, ") on thread '");
	say(&line, thread);
	say(&line, "': a defect of doppel, please report it; --sandbox off runs without\n");
	host_terminal_restore();
	(void)!write(STDERR_FILENO, line.text, line.len);
	_exit(128 + SIGSYS);
}

static bool catch_violations(void)
{
	struct sigaction sa = {.sa_sigaction = on_violation, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	return !sigaction(SIGSYS, &sa, NULL) || !host_fail();
}

static int add_rule(scmp_filter_ctx filter, uint32_t action, int call, enum condition c, unsigned argument,
		    uint64_t value)
{
	struct scmp_arg_cmp cmp = {argument, c == IS ? SCMP_CMP_EQ : SCMP_CMP_MASKED_EQ, value,
				   c == BITS_ON ? value : 0};

	return seccomp_rule_add_array(filter, action, call, c != ANY, &cmp);
}

static int add_rules(scmp_filter_ctx filter, uint64_t threads, unsigned needs)
{
	/* abort() and raise(): signals to this process. */
	int error = add_rule(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), IS, 0, (uint64_t)getpid());

	for (unsigned i = 0; i < ARRAY_LEN(kept) && !error; i++) {
		const struct kept *k = &kept[i];
		uint64_t need = k->who & ~EVERYONE;

		if (k->who & threads && (!need || need & needs))
			error = add_rule(filter, SCMP_ACT_ALLOW, k->call, k->condition, k->argument, k->value);
	}
	for (unsigned i = 0; i < ARRAY_LEN(refused) && !error; i++) {
		const struct refused *r = &refused[i];

		if (r->unless & needs && threads & OTHERS)
			continue;
		error = add_rule(filter, SCMP_ACT_ERRNO((uint32_t)r->error), r->call, r->condition, r->argument,
				 r->value);
	}
	return error;
}

/*
 * A call in the way of another architecture (int 0x80, x32) ends the process: the numbers differ. The processor's guard
 * against speculative store bypass stays as it is, where older kernels would switch it on: the guest's code can read
 * the monitor's memory by speculation anyway, and would be slowed down.
 */
static int set_attributes(scmp_filter_ctx filter, bool all_threads)
{
	int error = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);

	if (!error)
		error = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a binary tree */
	if (!error)
		error = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, all_threads);
	if (!error && seccomp_api_get() >= 4)
		error = seccomp_attr_set(filter, SCMP_FLTATR_CTL_SSB, 1);
	return error;
}

/* NULL: *error says why. */
static scmp_filter_ctx make_filter(uint64_t threads, unsigned needs, int *error)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_TRAP);

	*error = filter ? set_attributes(filter, threads & OTHERS) : -ENOMEM;
	if (!*error)
		*error = add_rules(filter, threads, needs);
	if (*error && filter) {
		seccomp_release(filter);
		filter = NULL;
	}
	return filter;
}

bool confine_calls(unsigned needs, struct error *err)
{
	scmp_filter_ctx filter = NULL;
	int error;

	name_calls();
	calls.guest = make_filter(GUEST, needs, &error);
	if (!error)
		filter = make_filter(EVERYONE, needs, &error);
	if (!error && !catch_violations())
		error = -errno;
	if (!error)
		error = seccomp_load(filter);
	if (filter)
		seccomp_release(filter);
	atomic_store(&calls.ready, !error);
	return !error || error_set(err, "cannot restrict system calls (seccomp): %s; --sandbox off runs without",
				   strerror(-error));
}

void host_confine_guest_thread(void)
{
	if (!atomic_load(&calls.ready))
		return;
	host_lock(&calls.lock);
	ENSURE(!seccomp_load(calls.guest));
	host_unlock(&calls.lock);
}
