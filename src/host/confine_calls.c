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
#include <sys/ptrace.h>
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

#define CALL(name, who)                        \
	{                                      \
		SCMP_SYS(name), who, ANY, 0, 0 \
	}
#define CALL_IF(name, who, condition, argument, value)          \
	{                                                       \
		SCMP_SYS(name), who, condition, argument, value \
	}
static const struct kept {
	int call;
	uint64_t who;
	enum condition condition;
	unsigned argument;
	uint64_t value; /* or mask */
} kept[] = {
	/* Locks, and the end of a thread and of the process. */
	CALL(futex, EVERYONE),
	CALL(exit, EVERYONE),
	CALL(exit_group, EVERYONE),
	CALL(sched_yield, EVERYONE),
	/* Faults of translated code come as signals; abort() and a fault that is nobody's end the process by them. */
	CALL(rt_sigreturn, EVERYONE),
	CALL(rt_sigprocmask, EVERYONE),
	CALL(rt_sigaction, EVERYONE),
	CALL(sigaltstack, EVERYONE),     /* for them, by thread */
	CALL(restart_syscall, EVERYONE), /* the kernel's own, for waits that a stop interrupted */
	CALL(getpid, EVERYONE),          /* for tgkill, below */
	CALL(gettid, EVERYONE),
	/* malloc and stacks of threads. Nothing that can be executed: code memory was mapped before. */
	CALL_IF(mmap, EVERYONE, BITS_OFF, 2, PROT_EXEC),
	CALL_IF(mprotect, EVERYONE, BITS_OFF, 2, PROT_EXEC),
	CALL(munmap, EVERYONE),
	CALL(mremap, EVERYONE),
	CALL(madvise, EVERYONE),
	CALL(brk, EVERYONE),
	CALL(sched_getaffinity, EVERYONE), /* malloc, on a thread that is new to it: how many arenas there should be */
	CALL(mincore, OTHERS),             /* how much memory the guest has */
	CALL(sysinfo, EVERYONE),           /* qsort: how much memory it may take */
	/* Time: by thread, and all of it where the host's clock is not read without a system call. */
	CALL(clock_gettime, EVERYONE),
	CALL(gettimeofday, EVERYONE),
	CALL(clock_nanosleep, EVERYONE),
	/* GS base of a thread that runs translated code is put back at its end. */
	CALL_IF(arch_prctl, EVERYONE, IS, 0, ARCH_SET_GS),
	CALL_IF(prctl, EVERYONE, IS, 0, PR_GET_NAME), /* for the line about a call that is not kept */
	/* Wakes another thread through an eventfd; messages on standard error. */
	CALL(write, EVERYONE),
	CALL(getrandom, EVERYONE), /* the random number generator */

	/* Threads that are started later; not processes. */
	CALL_IF(clone, OTHERS, BITS_ON, 0, CLONE_VM | CLONE_THREAD),
	CALL(set_robust_list, OTHERS),
	CALL(rseq, OTHERS),
	CALL_IF(prctl, OTHERS, IS, 0, PR_SET_NAME),
	CALL_IF(prctl, OTHERS, IS, 0, PR_SET_TIMERSLACK),
	/* A thread that is going to run guest code gives up more. */
	CALL_IF(prctl, OTHERS, IS, 0, PR_SET_NO_NEW_PRIVS),
	CALL(seccomp, OTHERS),
	/* Files that are open: consoles, disks, events. */
	CALL(read, OTHERS),
	CALL(readv, OTHERS),
	CALL(writev, OTHERS),
	CALL(pread64, OTHERS),
	CALL(pwrite64, OTHERS),
	CALL(preadv, OTHERS),
	CALL(pwritev, OTHERS),
	CALL(preadv2, EVERYONE), /* disks: what needs no waiting is read at once */
	CALL(pwritev2, EVERYONE),
	CALL(io_uring_enter, OTHERS),               /* rings that were made before, and restricted */
	CALL_IF(fcntl, OTHERS, IS, 1, F_OFD_SETLK), /* lets an image go */
	CALL(lseek, OTHERS),
	CALL(fallocate, OTHERS),
	CALL(ftruncate, OTHERS), /* a console's file begins empty when the machine does */
	CALL(fdatasync, OTHERS),
	CALL_IF(newfstatat, OTHERS, BITS_ON, 3, AT_EMPTY_PATH), /* fstat() */
	CALL(fstat, OTHERS),                                    /* the same, of glibc 2.39 and later */
	CALL(close, OTHERS),
	CALL(poll, OTHERS),
	CALL(ppoll, OTHERS),
	CALL(sendto, OTHERS), /* a console writes to what may be a socket */
	/* The terminal's modes. Not TIOCSTI: it types what the user's shell then reads. */
	CALL_IF(ioctl, EVERYONE, IS, 1, TCGETS),
	CALL_IF(ioctl, EVERYONE, IS, 1, TCSETS),
	CALL_IF(ioctl, OTHERS, IS, 1, TIOCGPGRP),
	CALL(getpgrp, OTHERS),

	/* A console's listening socket. */
	CALL(accept4, OTHERS | NEED(CLIENTS)),
	CALL(getsockname, OTHERS | NEED(CLIENTS)), /* the socket's name, to remove it */
	CALL(unlink, OTHERS | NEED(CLIENTS)),

	/* Profiles; threads' own timers (thread_timer.h) also without them. */
	CALL(timer_create, EVERYONE | NEED(PROFILE) | NEED(SPACES)),
	CALL(timer_settime, EVERYONE | NEED(PROFILE) | NEED(SPACES)),
	CALL(timer_delete, EVERYONE | NEED(PROFILE) | NEED(SPACES)),
	CALL_IF(newfstatat, EVERYONE | NEED(PROFILE), BITS_ON, 3, AT_EMPTY_PATH), /* perf's map, buffered */
	CALL(fstat, EVERYONE | NEED(PROFILE)),

	/* A user-mode network: the guest's connections are sockets of ours. No unix sockets, none that see every
	   packet. */
	CALL_IF(socket, OTHERS | NEED(INTERNET), IS, 0, AF_INET),
	CALL_IF(socket, OTHERS | NEED(INTERNET), IS, 0, AF_INET6),
	CALL(connect, OTHERS | NEED(INTERNET)),
	CALL(bind, OTHERS | NEED(INTERNET)),
	CALL(listen, OTHERS | NEED(INTERNET)), /* what the guest's FTP announces */
	CALL(accept, OTHERS | NEED(INTERNET)), /* forwarded ports */
	CALL(shutdown, OTHERS | NEED(INTERNET)),
	CALL(getsockopt, OTHERS | NEED(INTERNET)),
	CALL(setsockopt, OTHERS | NEED(INTERNET)),
	CALL(getsockname, OTHERS | NEED(INTERNET)),
	CALL(getpeername, OTHERS | NEED(INTERNET)),
	CALL(recvfrom, OTHERS | NEED(INTERNET)),
	CALL(recvmsg, OTHERS | NEED(INTERNET)),
	CALL_IF(ioctl, OTHERS | NEED(INTERNET), IS, 1, FIONREAD),
	CALL_IF(fcntl, OTHERS | NEED(INTERNET), IS, 1, F_GETFL),
	CALL_IF(fcntl, OTHERS | NEED(INTERNET), IS, 1, F_SETFL),
	CALL_IF(fcntl, OTHERS | NEED(INTERNET), IS, 1, F_GETFD),
	CALL_IF(fcntl, OTHERS | NEED(INTERNET), IS, 1, F_SETFD),
	CALL(newfstatat, OTHERS | NEED(INTERNET)), /* whether /etc/resolv.conf has changed */
	CALL(openat, OTHERS | NEED(INTERNET)),     /* if so; Landlock keeps the rest away */

	/* A disk on a server, by libnbd: resolving its name (getaddrinfo) and connecting anew, and the end of qemu-nbd.
	 */
	CALL_IF(socket, OTHERS | NEED(SERVER), IS, 0, AF_UNIX),
	CALL_IF(socket, OTHERS | NEED(SERVER), IS, 0, AF_INET),
	CALL_IF(socket, OTHERS | NEED(SERVER), IS, 0, AF_INET6),
	CALL_IF(socket, OTHERS | NEED(SERVER), IS, 0, AF_NETLINK), /* which addresses the host has */
	CALL(bind, OTHERS | NEED(SERVER)),                         /* of that */
	CALL(connect, OTHERS | NEED(SERVER)),
	CALL(shutdown, OTHERS | NEED(SERVER)),
	CALL(getsockopt, OTHERS | NEED(SERVER)),
	CALL(setsockopt, OTHERS | NEED(SERVER)),
	CALL(getsockname, OTHERS | NEED(SERVER)),
	CALL(getpeername, OTHERS | NEED(SERVER)),
	CALL(recvfrom, OTHERS | NEED(SERVER)),
	CALL(recvmsg, OTHERS | NEED(SERVER)),
	CALL(sendmsg, OTHERS | NEED(SERVER)),
	CALL(sendmmsg, OTHERS | NEED(SERVER)),
	CALL_IF(ioctl, OTHERS | NEED(SERVER), IS, 1, FIONREAD),
	CALL_IF(fcntl, OTHERS | NEED(SERVER), IS, 1, F_GETFL),
	CALL_IF(fcntl, OTHERS | NEED(SERVER), IS, 1, F_SETFL),
	CALL_IF(fcntl, OTHERS | NEED(SERVER), IS, 1, F_GETFD),
	CALL_IF(fcntl, OTHERS | NEED(SERVER), IS, 1, F_SETFD),
	CALL(newfstatat, OTHERS | NEED(SERVER)),
	CALL(openat, OTHERS | NEED(SERVER)), /* /etc/hosts and the like */
	CALL(uname, OTHERS | NEED(SERVER)),
	CALL(getuid, OTHERS | NEED(SERVER)),
	CALL(kill, OTHERS | NEED(SERVER)),
	CALL(wait4, OTHERS | NEED(SERVER)),
	CALL(unlink, OTHERS | NEED(SERVER)), /* libnbd's socket; it has gone before */
	CALL(rmdir, OTHERS | NEED(SERVER)),
	CALL_IF(ioctl, EVERYONE | NEED(TAP), IS, 1, TUNSETOFFLOAD),

	/* Address spaces apart: space.c. Landlock lets nobody be traced but those that this process has started. */
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_SEIZE),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_INTERRUPT),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_CONT),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_SYSEMU),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_GETREGS),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_SETREGS),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_POKEUSER),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_GETREGSET),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_SETREGSET),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_GETSIGINFO),
	CALL_IF(ptrace, GUEST | NEED(SPACES), IS, 0, PTRACE_PEEKSIGINFO),
	CALL(sched_setaffinity, GUEST | NEED(SPACES)), /* it stays near the thread that waits for it */
	CALL(getcpu, GUEST | NEED(SPACES)),            /* the same, where there is no vDSO */
	CALL(wait4, EVERYONE | NEED(SPACES)),

	/* Unix sockets for a guest's: stream.c. */
	CALL_IF(socket, OTHERS | NEED(STREAMS), IS, 0, AF_UNIX),
	CALL(connect, OTHERS | NEED(STREAMS)),
	CALL(shutdown, OTHERS | NEED(STREAMS)),
	CALL(recvmsg, OTHERS | NEED(STREAMS)),
	CALL(sendmsg, OTHERS | NEED(STREAMS)),
	CALL(epoll_ctl, OTHERS | NEED(STREAMS)),
	CALL(epoll_wait, OTHERS | NEED(STREAMS)),
	CALL(close, EVERYONE | NEED(STREAMS)), /* a driver's reset of the device ends them */

	/* A shared folder: folder.c. Landlock keeps paths within it. */
	CALL(close, EVERYONE | NEED(FOLDER)), /* a driver's reset of the device closes what it had open */
	CALL(openat2, OTHERS | NEED(FOLDER)),
	CALL(openat, OTHERS | NEED(FOLDER)),
	CALL_IF(statx, OTHERS | NEED(FOLDER), BITS_ON, 2, AT_EMPTY_PATH),
	CALL(readlinkat, OTHERS | NEED(FOLDER)),
	CALL(getdents64, OTHERS | NEED(FOLDER)),
	CALL(fstatfs, OTHERS | NEED(FOLDER)),
	CALL_IF(fcntl, OTHERS | NEED(FOLDER), IS, 1, F_GETFL),
	CALL(getxattr, OTHERS | NEED(FOLDER)),
	CALL(listxattr, OTHERS | NEED(FOLDER)),
	CALL(mkdirat, OTHERS | NEED(FOLDER_RW)),
	CALL(mknodat, OTHERS | NEED(FOLDER_RW)),
	CALL(symlinkat, OTHERS | NEED(FOLDER_RW)),
	CALL(linkat, OTHERS | NEED(FOLDER_RW)),
	CALL(unlinkat, OTHERS | NEED(FOLDER_RW)),
	CALL(renameat, OTHERS | NEED(FOLDER_RW)), /* the C library, where there are no flags */
	CALL(renameat2, OTHERS | NEED(FOLDER_RW)),
	CALL(fchmod, OTHERS | NEED(FOLDER_RW)),
	CALL(fchmodat, OTHERS | NEED(FOLDER_RW)),
	CALL_IF(fchownat, OTHERS | NEED(FOLDER_RW), BITS_ON, 4, AT_EMPTY_PATH),
	CALL(utimensat, OTHERS | NEED(FOLDER_RW)),
	CALL(fsync, OTHERS | NEED(FOLDER_RW)),
	CALL(syncfs, OTHERS | NEED(FOLDER_RW)),
	CALL(copy_file_range, OTHERS | NEED(FOLDER_RW)),
	CALL(setxattr, OTHERS | NEED(FOLDER_RW)),
	CALL(removexattr, OTHERS | NEED(FOLDER_RW)),
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
