/* A new space: what its process is made to be, and what that can do on this host and takes there. */
#include "host/host.h"
#include "host/space_internal.h"
#include "host/space_program.h"

#include <cpuid.h>
#include <elf.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* A system call of the process, while it may make some. */
static bool remote_call(struct host_space *s, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
			uint64_t f, uint64_t want)
{
	struct user_regs_struct regs = space_regs_at(s, host_space_call);

	regs.rax = (uint64_t)number;
	regs.rdi = a;
	regs.rsi = b;
	regs.rdx = c;
	regs.r10 = d;
	regs.r8 = e;
	regs.r9 = f;
	return space_signal_of_routine(s, &regs) == SIGTRAP && !ptrace(PTRACE_GETREGS, s->pid, NULL, &regs) &&
	       regs.rax == want;
}

static bool seize(struct host_space *s)
{
	int status;

	return !ptrace(PTRACE_SEIZE, s->pid, NULL, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD) &&
	       !ptrace(PTRACE_INTERRUPT, s->pid, NULL, NULL) && space_wait_stop(s, &status);
}

static bool learn_xstate(struct host_space *s)
{
	struct iovec io = {s->image, sizeof(s->image)};

	if (ptrace(PTRACE_GETREGSET, s->pid, NT_X86_XSTATE, &io) || io.iov_len < HOST_SPACE_XSTATE)
		return false;
	s->xstate = io.iov_len;
	return true;
}

static bool faults(struct host_space *s, const uint8_t *label)
{
	struct user_regs_struct regs = space_regs_at(s, label);

	return space_signal_of_routine(s, &regs) == SIGSEGV;
}

/* Linux gives what can only be executed a protection key of its own, whose rights are in the thread's PKRU (pkeys(7)).
 */
static bool code_faults(struct host_space *s)
{
	const uint64_t at = HOST_SPACE_LOWEST, flags = MAP_SHARED | MAP_FIXED;
	struct user_regs_struct regs = space_regs_at(s, host_space_read);
	uint32_t a, b = 0, c, d;

	__cpuid_count(0xd, 9, a, b, c, d); /* PKRU's place in XSAVE's standard format */
	if (b < HOST_SPACE_XSTATE || b + sizeof(s->pkru) > s->xstate ||
	    !remote_call(s, SYS_mmap, at, PAGE_SIZE, PROT_EXEC, flags, SPACE_FD_COPIES, 0, at))
		return false;
	regs.rdi = at;
	bool fault = space_signal_of_routine(s, &regs) == SIGSEGV && learn_xstate(s);
	memcpy(&s->pkru, s->image + b, sizeof(s->pkru));
	s->pkru_at = fault ? b : 0;
	return remote_call(s, SYS_munmap, at, PAGE_SIZE, 0, 0, 0, 0, 0) && fault;
}

/* Whether it stops before an INT3, instead of behind it. */
static bool break_faults(struct host_space *s)
{
	static const uint64_t none[HOST_SPACE_BREAKS];
	const uint64_t at = space_routine(s, host_space_stop), all[HOST_SPACE_BREAKS] = {at, at, at, at};
	struct user_regs_struct regs = space_regs_at(s, host_space_stop);
	bool stops = host_space_break(s, all) && space_signal_of_routine(s, &regs) == SIGTRAP &&
		     !ptrace(PTRACE_GETREGS, s->pid, NULL, &regs) && regs.rip == at;

	return host_space_break(s, none) && stops;
}

bool host_space_can_break(struct host_space *s)
{
	struct host_spaces *from = s->from;

	if (atomic_load(&from->breaks) == BREAKS_UNKNOWN)
		atomic_store(&from->breaks, break_faults(s) ? BREAKS_WORK : BREAKS_FAIL);
	return atomic_load(&from->breaks) == BREAKS_WORK;
}

static bool stops(struct host_space *s)
{
	struct host_space_state state = {.rip = space_routine(s, host_space_stop),
					 .rflags = 2,
					 .sel = {0, HOST_SPACE_CS, HOST_SPACE_SS, 0, 0, 0}};
	uint64_t address;

	return host_space_run(s, &state, &address) == HOST_SPACE_INT3;
}

#define SHOWN_TIMED 32

/* Pages by themselves, and all gone. */
static bool show_and_hide(struct host_space *s)
{
	struct host_space_change list[SHOWN_TIMED + 1];

	for (unsigned i = 0; i < SHOWN_TIMED; i++)
		list[i] = (struct host_space_change){
			.at = HOST_SPACE_LOWEST + i * PAGE_SIZE,
			.len = PAGE_SIZE,
			.rights = HOST_SPACE_READ,
			.offset = (SHOWN_TIMED - 1 - i) * PAGE_SIZE,
		};
	list[SHOWN_TIMED] = (struct host_space_change){.at = HOST_SPACE_LOWEST, .len = SHOWN_TIMED * PAGE_SIZE};
	return host_space_change(s, list, ARRAY_LEN(list)) && space_make_changes(s);
}

/* The quickest of `n`, in ns, for others may want the processor. */
static uint64_t least_time(struct host_space *s, bool (*what)(struct host_space *s), unsigned n)
{
	uint64_t least = UINT64_MAX;

	for (unsigned i = 0; i < n; i++) {
		uint64_t from = host_now_ns();
		what(s);
		uint64_t took = host_now_ns() - from;
		least = MIN(least, took);
	}
	return least;
}

#define FAULTS_TIMED 16

/* What it takes Linux to put a page where there is none yet. */
static uint64_t time_page_faults(void)
{
	const size_t size = FAULTS_TIMED * PAGE_SIZE;
	volatile uint8_t *p = host_memory_alloc(size);
	uint64_t from = host_thread_time_ns();

	for (size_t i = 0; p && i < size; i += PAGE_SIZE)
		p[i] = 1;
	uint64_t took = (host_thread_time_ns() - from) / FAULTS_TIMED;
	if (p)
		host_memory_free((void *)p, size);
	return took;
}

/* All signals were blocked so far. */
static bool set_up(struct host_space *s, unsigned index)
{
	const uint64_t flags = MAP_SHARED | MAP_FIXED, offset = (uint64_t)index * PAGE_SIZE;

	if (!seize(s) || !learn_xstate(s) ||
	    !remote_call(s, SYS_rt_sigprocmask, SIG_SETMASK, space_routine(s, host_space_zeros), 0, 8, 0, 0, 0) ||
	    !remote_call(s, SYS_mmap, space_control_page(s), PAGE_SIZE, PROT_READ, flags, SPACE_FD_CONTROL, offset,
			 space_control_page(s)) ||
	    !stops(s))
		return false;
	s->faults = (faults(s, host_space_tsc) ? HOST_SPACE_TSC_FAULTS : 0) |
		    (faults(s, host_space_int80) ? HOST_SPACE_INT80_FAULTS : 0) |
		    (code_faults(s) ? HOST_SPACE_CODE_FAULTS : 0);
	return remote_call(s, SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, space_filter_second(s->from->place), 0, 0, 0, 0);
}

/* The lock is held. */
static struct host_space *make(struct host_spaces *from)
{
	if (from->failed || from->made == from->most)
		return NULL;
	struct host_space *s = aligned_alloc(64, sizeof(*s));
	if (!s)
		return NULL;
	unsigned index = from->made + 1;
	*s = (struct host_space){.cpu = -1,
				 .pid = spaces_fork(from),
				 .tracer = (pid_t)syscall(SYS_gettid),
				 .from = from,
				 .control = from->control + index * PAGE_SIZE};
	if (s->pid > 0 && set_up(s, index)) {
		if (!from->made)
			from->costs = (struct host_space_costs){.stop = least_time(s, stops, 8),
								.show = least_time(s, show_and_hide, 3) / SHOWN_TIMED,
								.page_fault = time_page_faults()};
		from->space[from->made++] = s;
		return s;
	}
	from->failed |= s->pid > 0; /* this host's rules are against it */
	free(s);
	return NULL;
}

struct host_space *host_space_create(struct host_spaces *from)
{
	spaces_start_late(from);
	host_lock(&from->lock);
	struct host_space *s = make(from);
	host_unlock(&from->lock);
	return s;
}

unsigned host_space_faults(const struct host_space *s)
{
	return s->faults;
}

const struct host_space_costs *host_space_costs(const struct host_space *s)
{
	return &s->from->costs;
}
