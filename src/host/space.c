/*
 * Running code in a space and changing what is shown there, by ptrace(2). How the processes come to be: space_start.c,
 * space_new.c.
 */
#include "host/space_internal.h"

#include "host/confine.h"
#include "host/host.h"
#include "host/internal.h"
#include "host/signal_internal.h"
#include "host/space_program.h"

#include <elf.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

_Static_assert(HOST_SPACE_OURS == SPACE_OURS && HOST_SPACE_TOP == SPACE_TOP, "as the program has it");
_Static_assert(sizeof(struct host_space_change) == CHANGE_SIZE && offsetof(struct host_space_change, at) == CHANGE_AT &&
		       offsetof(struct host_space_change, len) == CHANGE_LEN &&
		       offsetof(struct host_space_change, rights) == CHANGE_RIGHTS &&
		       offsetof(struct host_space_change, copy) == CHANGE_COPY &&
		       offsetof(struct host_space_change, offset) == CHANGE_OFFSET,
	       "as the program reads it");
_Static_assert((HOST_SPACE_CHANGES + 1) * CHANGE_SIZE <= CONTROL_END && CONTROL_REGS + 16 * 8 <= PAGE_SIZE,
	       "they fit into a control page");
_Static_assert(HOST_SPACE_READ == PROT_READ && HOST_SPACE_WRITE == PROT_WRITE && HOST_SPACE_EXEC == PROT_EXEC,
	       "rights are Linux'");

#define KICK SIGURG /* to the thread that waits for a space */

/* --- kicks */

/* The process that this thread lets run. */
static _Thread_local volatile pid_t running;
static struct sigaction before_us;

/* A process that is stopped already stops once more when it has been let run: no kick is lost (ptrace(2)). */
static void on_kick(int sig, siginfo_t *info, void *context)
{
	int error = errno;

	if (running)
		syscall(SYS_ptrace, PTRACE_INTERRUPT, running, NULL, NULL);
	else if (before_us.sa_flags & SA_SIGINFO)
		before_us.sa_sigaction(sig, info, context);
	else if (before_us.sa_handler != SIG_DFL && before_us.sa_handler != SIG_IGN)
		before_us.sa_handler(sig);
	errno = error;
}

/*
 * Who waits for a stop is in wait4(2). The signal that tells of it as well, which these threads block, would wake
 * another thread, on another processor, for nothing, each time: 10 us.
 */
static void hear_of_no_stops(void)
{
	struct sigaction sa;

	if (sigaction(SIGCHLD, NULL, &sa) || sa.sa_flags & SA_SIGINFO || sa.sa_handler != SIG_DFL)
		return;
	sa.sa_flags |= SA_NOCLDSTOP;
	sigaction(SIGCHLD, &sa, NULL);
}

void spaces_catch_kicks(void)
{
	struct sigaction sa = {.sa_sigaction = on_kick, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
	static bool done;

	if (!done) {
		sigaction(KICK, &sa, &before_us);
		hear_of_no_stops();
	}
	done = true;
}

static void let_kicks(bool through)
{
	signal_mask_one(KICK, through ? SIG_UNBLOCK : SIG_BLOCK);
}

/* --- stops */

#define USAGE_STOPS 8 /* how often it is asked what the process has used: that takes longer than to wait for it */

bool space_wait_stop(struct host_space *s, int *status)
{
	struct rusage usage, *wanted = s->stops % USAGE_STOPS ? NULL : &usage;

	if (RETRY_EINTR(wait4(s->pid, status, __WALL, wanted)) != s->pid || !WIFSTOPPED(*status))
		return false;
	if (wanted)
		s->page_faults = (uint64_t)usage.ru_minflt;
	return true;
}

static bool resume(struct host_space *s, bool calls)
{
	space_stay_near(s);
	return !ptrace(calls ? PTRACE_CONT : PTRACE_SYSEMU, s->pid, NULL, NULL);
}

/* Lets a routine go on. The signal that ended it: SIGTRAP where all went well; 0: the process is no more. */
static int signal_of_routine(struct host_space *s)
{
	int status;

	for (;;) {
		siginfo_t info;

		if (!resume(s, true) || !space_wait_stop(s, &status))
			return 0;
		if (status >> 16 || ptrace(PTRACE_GETSIGINFO, s->pid, NULL, &info) || info.si_code <= 0)
			continue; /* somebody has sent it */
		return WSTOPSIG(status);
	}
}

int space_signal_of_routine(struct host_space *s, struct user_regs_struct *regs)
{
	s->seen_regs = false;
	return ptrace(PTRACE_SETREGS, s->pid, NULL, regs) ? 0 : signal_of_routine(s);
}

/* Linux's clock of a process: its number, negated, and 2 for the time that it has been scheduled (CPUCLOCK_SCHED). */
uint64_t space_time_ns(pid_t process, uint64_t otherwise)
{
	struct timespec ts;
	clockid_t clock = (clockid_t)(~(unsigned)process << 3 | 2);

	if (clock_gettime(clock, &ts))
		return otherwise;
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint64_t host_space_time_ns(struct host_space *s)
{
	uint64_t before = s->time_seen;

	s->time_seen = space_time_ns(s->pid, before);
	return s->time_seen - before;
}

/* Half of what a stop takes is the thread's that waits for it. */
uint64_t host_space_system_ns(struct host_space *s)
{
	uint64_t faults = s->page_faults - s->page_faults_seen, stops = s->stops - s->stops_seen;

	s->page_faults_seen = s->page_faults;
	s->stops_seen = s->stops;
	return faults * s->from->costs.page_fault + stops * s->from->costs.stop / 2;
}

/* --- what is shown */

static void control_set(struct host_space *s, size_t at, uint64_t value)
{
	memcpy(s->control + at, &value, sizeof(value));
}

bool space_make_changes(struct host_space *s)
{
	struct user_regs_struct regs = space_regs_at(s, host_space_changes);

	s->changes = 0;
	control_set(s, CONTROL_STOP, 1);
	return space_signal_of_routine(s, &regs) == SIGTRAP;
}

bool host_space_change(struct host_space *s, const struct host_space_change *list, unsigned n)
{
	static const struct host_space_change last = {0};

	ENSURE(n <= HOST_SPACE_CHANGES);
	if (!n)
		return true;
	bool made = !s->changes || space_make_changes(s);
	memcpy(s->control, list, n * sizeof(*list));
	memcpy(s->control + n * sizeof(*list), &last, sizeof(last));
	control_set(s, CONTROL_END, n * sizeof(*list));
	s->changes = n;
	return made;
}

/* --- breakpoints */

static bool put_debug(const struct host_space *s, unsigned number, uint64_t value)
{
	return !ptrace(PTRACE_POKEUSER, s->pid, offsetof(struct user, u_debugreg) + number * sizeof(uint64_t), value);
}

#define DR7 7
#define DR7_LOCAL(i) BIT(2 * (i)) /* for execution, as the other bits are 0 */

bool host_space_break(struct host_space *s, const uint64_t at[HOST_SPACE_BREAKS])
{
	uint64_t on = 0;
	bool made = true;

	if (!memcmp(s->breaks, at, sizeof(s->breaks)))
		return true;
	for (unsigned i = 0; i < HOST_SPACE_BREAKS; i++) {
		on |= at[i] ? DR7_LOCAL(i) : 0;
		if (at[i] && at[i] != s->breaks[i])
			made &= put_debug(s, i, at[i]);
		s->breaks[i] = at[i];
	}
	return put_debug(s, DR7, on) && made;
}

/* --- the state of who runs there */

#define XSTATE_HEADER 512
#define XSTATE_OURS 7 /* x87, SSE, AVX */
#define XSTATE_PKRU BIT(9)

bool host_space_set_xstate(struct host_space *s, const uint8_t *image)
{
	struct iovec io = {s->image, s->xstate};
	uint64_t header[8] = {0};

	if (s->xstate_seen && !memcmp(s->seen_xstate, image, HOST_SPACE_XSTATE))
		return true;
	memcpy(s->image, image, HOST_SPACE_XSTATE);
	memcpy(&header[0], image + XSTATE_HEADER, sizeof(header[0]));
	header[0] = (header[0] & XSTATE_OURS) | (s->pkru_at ? XSTATE_PKRU : 0);
	memcpy(s->image + XSTATE_HEADER, header, sizeof(header));
	memset(s->image + HOST_SPACE_XSTATE, 0, s->xstate - HOST_SPACE_XSTATE);
	if (s->pkru_at)
		memcpy(s->image + s->pkru_at, &s->pkru, sizeof(s->pkru));
	return !ptrace(PTRACE_SETREGSET, s->pid, NT_X86_XSTATE, &io);
}

/* Linux writes into bytes 464 to 511 what it likes. */
bool host_space_get_xstate(struct host_space *s, uint8_t *image)
{
	struct iovec io = {image, HOST_SPACE_XSTATE};
	uint8_t kept[48];
	uint64_t bits;

	memcpy(kept, image + 464, sizeof(kept));
	if (ptrace(PTRACE_GETREGSET, s->pid, NT_X86_XSTATE, &io))
		return false;
	memcpy(image + 464, kept, sizeof(kept));
	memcpy(&bits, image + XSTATE_HEADER, sizeof(bits));
	bits &= XSTATE_OURS;
	memcpy(image + XSTATE_HEADER, &bits, sizeof(bits));
	memcpy(s->seen_xstate, image, HOST_SPACE_XSTATE);
	s->xstate_seen = true;
	return true;
}

/* Where Linux keeps the registers, in x86 encoding order. */
#define REG(name) offsetof(struct user_regs_struct, name)
static const uint8_t gpr_place[16] = {REG(rax), REG(rcx), REG(rdx), REG(rbx), REG(rsp), REG(rbp), REG(rsi), REG(rdi),
				      REG(r8),  REG(r9),  REG(r10), REG(r11), REG(r12), REG(r13), REG(r14), REG(r15)};
static const uint8_t sel_place[6] = {REG(es), REG(cs), REG(ss), REG(ds), REG(fs), REG(gs)};

static void *reg(struct user_regs_struct *regs, uint8_t place)
{
	return (uint8_t *)regs + place;
}

static void regs_set(struct user_regs_struct *regs, const struct host_space_state *state)
{
	*regs = (struct user_regs_struct){
		.rip = state->rip,
		.eflags = state->rflags,
		.fs_base = state->fs_base,
		.gs_base = state->gs_base,
		.orig_rax = (uint64_t)-1, /* no system call that Linux would make again */
	};
	for (unsigned i = 0; i < 16; i++)
		memcpy(reg(regs, gpr_place[i]), &state->gpr[i], sizeof(uint64_t));
	for (unsigned i = 0; i < 6; i++)
		memcpy(reg(regs, sel_place[i]), &state->sel[i], sizeof(uint16_t));
}

static bool in_program(const struct host_space *s, uint64_t rip)
{
	return rip - s->from->place < PAGE_SIZE;
}

/* Where the program can go on: it would fault itself, or go on in itself for ever. */
static bool can_go_on_at(const struct host_space *s, uint64_t rip)
{
	return rip < HOST_SPACE_TOP && !in_program(s, rip);
}

#define TF BIT(8)

/* The process differs from `state` in nothing but what the program loads from its control page. */
static bool program_can_load(const struct host_space *s, const struct host_space_state *state)
{
	return s->seen_regs && !((s->seen.rflags | state->rflags) & TF) && s->seen.fs_base == state->fs_base &&
	       s->seen.gs_base == state->gs_base && !memcmp(s->seen.sel, state->sel, sizeof(state->sel));
}

static void control_set_state(struct host_space *s, const struct host_space_state *state)
{
	control_set(s, CONTROL_STOP, 0);
	control_set(s, CONTROL_RIP, state->rip);
	control_set(s, CONTROL_RFLAGS, state->rflags);
	memcpy(s->control + CONTROL_REGS, state->gpr, sizeof(state->gpr));
}

static bool put_rip(struct host_space *s, uint64_t rip)
{
	return !ptrace(PTRACE_POKEUSER, s->pid, offsetof(struct user, regs.rip), rip);
}

/* All of them, for whoever runs there first, or comes with selectors and bases of its own. */
static bool put_regs(struct host_space *s, const struct host_space_state *state, bool changes)
{
	struct user_regs_struct regs;

	regs_set(&regs, state);
	if (changes) {
		regs.rip = space_routine(s, host_space_changes);
		regs.eflags = 2;
	}
	return !ptrace(PTRACE_SETREGS, s->pid, NULL, &regs);
}

/*
 * The process is to make changes, if there are some, and to run on from `state`. It loads that itself if it can, which
 * is quicker than to have Linux do it. *program: it begins in our program.
 */
static bool put_state(struct host_space *s, const struct host_space_state *state, bool changes, bool *program)
{
	bool load = can_go_on_at(s, state->rip) && program_can_load(s, state);

	*program = changes || load;
	if (*program)
		control_set_state(s, state);
	if (load)
		return put_rip(s, space_routine(s, changes ? host_space_changes : host_space_made));
	return put_regs(s, state, changes);
}

/*
 * At a system call whose number looks like an error: Linux would take it for one after which the call is to be made
 * again, unless all registers are set.
 */
static bool may_call_again(const struct user_regs_struct *regs)
{
	return regs->orig_rax != (uint64_t)-1 && regs->rax != (uint64_t)-ENOSYS;
}

static bool get_regs(struct host_space *s, struct host_space_state *state, uint64_t *orig_rax)
{
	struct user_regs_struct regs;

	if (ptrace(PTRACE_GETREGS, s->pid, NULL, &regs))
		return false;
	for (unsigned i = 0; i < 16; i++)
		memcpy(&state->gpr[i], reg(&regs, gpr_place[i]), sizeof(uint64_t));
	for (unsigned i = 0; i < 6; i++)
		memcpy(&state->sel[i], reg(&regs, sel_place[i]), sizeof(uint16_t));
	state->rip = regs.rip;
	state->rflags = regs.eflags;
	state->fs_base = regs.fs_base;
	state->gs_base = regs.gs_base;
	*orig_rax = regs.orig_rax;
	s->seen = *state;
	s->seen_regs = !may_call_again(&regs);
	return true;
}

/* Linux has carried out none of it, but has put -ENOSYS into RAX; RCX and R11 are as SYSCALL leaves them. */
static enum host_space_stop at_call(struct host_space_state *state, uint64_t orig_rax)
{
	state->rip -= 2;
	state->gpr[0] = orig_rax;
	return HOST_SPACE_CALL;
}

#define RSP_NUMBER 4

#define VSYSCALL_PAGE 0xffffffffff600000ull

/* A system call that a filter stopped; in Linux's vsyscall page, from which it has returned already. */
static enum host_space_stop at_filtered(struct host_space_state *state, uint64_t from)
{
	if ((from & PAGE_MASK) != VSYSCALL_PAGE)
		return at_call(state, state->gpr[0]);
	state->rip = from;
	state->gpr[RSP_NUMBER] -= 8;
	return HOST_SPACE_EXCEPTION;
}

static bool is_access(int code)
{
	return code == SEGV_MAPERR || code == SEGV_ACCERR || code == SEGV_PKUERR;
}

static enum host_space_stop at_signal(const siginfo_t *info, struct host_space_state *state, uint64_t *address)
{
	switch (info->si_signo) {
	case SIGSEGV:
		*address = (uint64_t)(uintptr_t)info->si_addr;
		return is_access(info->si_code) ? HOST_SPACE_FAULT : HOST_SPACE_EXCEPTION;
	case SIGBUS:
	case SIGFPE:
	case SIGILL:
		return HOST_SPACE_EXCEPTION;
	case SIGSYS:
		return at_filtered(state, (uint64_t)(uintptr_t)info->si_call_addr);
	case SIGTRAP:
		if (info->si_code == TRAP_TRACE)
			return HOST_SPACE_STEPPED;
		if (info->si_code == TRAP_HWBKPT)
			return HOST_SPACE_EXCEPTION;
		return info->si_code == TRAP_BRKPT ? HOST_SPACE_INT1 : HOST_SPACE_INT3;
	default:
		return HOST_SPACE_KICKED;
	}
}

static bool has_signals(const struct host_space *s)
{
	struct __ptrace_peeksiginfo_args first = {.nr = 1};
	siginfo_t info;

	return ptrace(PTRACE_PEEKSIGINFO, s->pid, &first, &info) > 0;
}

/*
 * Until it stops, by itself or kicked. If it has met a fault as well when it is kicked, it stops for that once more,
 * before it runs on: later it would be taken for one of what runs then.
 */
static bool let_run(struct host_space *s, bool changes, int *status)
{
	running = s->pid;
	let_kicks(true);
	bool stopped = resume(s, changes) && space_wait_stop(s, status);
	let_kicks(false);
	running = 0;
	while (stopped && *status >> 16 && has_signals(s))
		stopped = resume(s, changes) && space_wait_stop(s, status);
	return stopped;
}

/* False: the processor, or Linux, has stopped it. */
static bool somebody_stopped(const siginfo_t *info, int status)
{
	return status >> 16 || info->si_code <= 0;
}

static bool get_info(const struct host_space *s, int status, siginfo_t *info)
{
	memset(info, 0, sizeof(*info));
	return WSTOPSIG(status) == (SIGTRAP | 0x80) || status >> 16 || !ptrace(PTRACE_GETSIGINFO, s->pid, NULL, info);
}

/*
 * It stopped in our program: on its way through the changes, which are all made then. Or it was not sent there by us:
 * what it wanted to do there (space_program.S) does not stay.
 */
static enum host_space_stop at_program(struct host_space *s, uint64_t rip, bool kicked)
{
	if (!kicked)
		return HOST_SPACE_UNSHOWN;
	if (rip >= space_routine(s, host_space_made))
		return HOST_SPACE_KICKED;
	control_set(s, CONTROL_STOP, 1);
	int sig = signal_of_routine(s);
	if (!sig)
		return HOST_SPACE_LOST;
	return sig == SIGTRAP ? HOST_SPACE_KICKED : HOST_SPACE_UNSHOWN;
}

enum host_space_stop host_space_run(struct host_space *s, struct host_space_state *state, uint64_t *address)
{
	struct host_space_state now;
	uint64_t orig_rax;
	siginfo_t info;
	int status;

	*address = 0;
	s->xstate_seen = false;
	s->stops++;
	if (s->changes && !can_go_on_at(s, state->rip) && !space_make_changes(s))
		return HOST_SPACE_UNSHOWN;
	bool changes = s->changes, program;
	s->changes = 0;
	if (!put_state(s, state, changes, &program) || !let_run(s, changes, &status) || !get_regs(s, &now, &orig_rax) ||
	    !get_info(s, status, &info))
		return HOST_SPACE_LOST;
	if (program && in_program(s, now.rip))
		return at_program(s, now.rip, somebody_stopped(&info, status));
	*state = now;
	if (WSTOPSIG(status) == (SIGTRAP | 0x80))
		return at_call(state, orig_rax);
	return somebody_stopped(&info, status) ? HOST_SPACE_KICKED : at_signal(&info, state, address);
}

void host_space_kick(struct host_space *s)
{
	syscall(SYS_tgkill, getpid(), s->tracer, KICK);
}
