/* Faults of translated code: from the kernel's signal frame to the engine's handler and back. */
#include "host/guest_signals.h"

#include "host/internal.h"
#include "host/signal_internal.h"
#include "host/terminal.h"

#include <sys/auxv.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1u << 31)
#endif
#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

#define HANDLER_STACK KiB(128) /* for the handlers; the kernel's frame, 11 KiB with AMX, comes on top */

/* Vectors of exceptions, which Linux hands on in the frame (SDM Vol. 3A, table 6-1). */
enum { DE = 0, DB = 1, BP = 3, UD = 6, SS = 12, GP = 13, PF = 14, MF = 16, AC = 17, XM = 19, ANY = -1 };

static const struct {
	int sig, vector;
	enum host_fault fault;
} faults[] = {
	{SIGSEGV, PF, HOST_FAULT_MEMORY},    {SIGSEGV, ANY, HOST_FAULT_PROTECTION},
	{SIGBUS, SS, HOST_FAULT_PROTECTION}, /* a non-canonical address through RSP or RBP */
	{SIGBUS, ANY, HOST_FAULT_BUS},       {SIGFPE, DE, HOST_FAULT_DIVIDE},
	{SIGFPE, MF, HOST_FAULT_FPU},        {SIGFPE, XM, HOST_FAULT_SIMD},
	{SIGILL, ANY, HOST_FAULT_ILLEGAL},   {SIGTRAP, ANY, HOST_FAULT_TRAP},
};

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};

/* Where Linux keeps the registers, in x86 encoding order. */
static const uint8_t gpr_place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
				      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

/* Signal handlers belong to the process. */
static host_fault_handler claim;
static struct sigaction previous[ARRAY_LEN(signals)];

static bool classify(int sig, const siginfo_t *info, const ucontext_t *uc, enum host_fault *fault)
{
	if (info->si_code <= 0) /* sent by a process */
		return false;
	for (unsigned i = 0; i < ARRAY_LEN(faults); i++) {
		if (faults[i].sig != sig)
			continue;
		if (faults[i].vector == ANY || faults[i].vector == uc->uc_mcontext.gregs[REG_TRAPNO]) {
			*fault = faults[i].fault;
			return true;
		}
	}
	return false;
}

static bool offer(int sig, const siginfo_t *info, ucontext_t *uc)
{
	struct host_fault_context ctx;
	greg_t *regs = uc->uc_mcontext.gregs;

	if (!classify(sig, info, uc, &ctx.fault))
		return false;
	ctx.address = ctx.fault == HOST_FAULT_MEMORY ? (uint64_t)info->si_addr : 0;
	ctx.write = regs[REG_ERR] & 2; /* SDM Vol. 3A 4.7 */
	ctx.rip = (uint64_t)regs[REG_RIP];
	ctx.rflags = (uint64_t)regs[REG_EFL];
	for (unsigned i = 0; i < 16; i++)
		ctx.gpr[i] = (uint64_t)regs[gpr_place[i]];
	if (!claim(&ctx))
		return false;
	regs[REG_RIP] = (greg_t)ctx.rip;
	regs[REG_EFL] = (greg_t)ctx.rflags;
	for (unsigned i = 0; i < 16; i++)
		regs[gpr_place[i]] = (greg_t)ctx.gpr[i];
	return true;
}

/* The guest's memory is a file; its pages are found, and counted, when they are used first. */
static const char no_page[] = "doppel: the host has no memory for a page that it has promised (vm.overcommit_memory "
			      "is 2, or the memory is broken): give the guest less --memory\n";

/* Nobody's fault but ours: what would have happened without us. */
static void pass_on(int sig, siginfo_t *info, void *uc)
{
	struct sigaction *old = NULL, dfl = {.sa_handler = SIG_DFL};

	for (unsigned i = 0; i < ARRAY_LEN(signals); i++)
		if (signals[i] == sig)
			old = &previous[i];
	host_terminal_restore();
	if (sig == SIGBUS && info->si_code == BUS_ADRERR)
		(void)!write(STDERR_FILENO, no_page, sizeof(no_page) - 1);
	if (old && old->sa_flags & SA_SIGINFO && old->sa_sigaction) {
		old->sa_sigaction(sig, info, uc);
		return;
	}
	if (old && old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN) {
		old->sa_handler(sig);
		return;
	}
	/* The instruction faults again when we return; a trap is past it, and a signal that was sent must be sent
	 * again. */
	sigaction(sig, &dfl, NULL);
	if (info->si_code <= 0 || sig == SIGTRAP)
		raise(sig);
}

__attribute__((used)) void host_guest_signal(int sig, siginfo_t *info, void *uc)
{
	int error = errno;

	if (!offer(sig, info, uc))
		pass_on(sig, info, uc);
	errno = error;
}

SIGNAL_ENTRY(host_guest_signal_entry, host_guest_signal);

bool host_guest_signals_init(host_fault_handler handler)
{
	struct sigaction sa = {.sa_sigaction = host_guest_signal_entry, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	bool first = !claim;

	claim = handler;
	sigfillset(&sa.sa_mask);
	for (unsigned i = 0; i < ARRAY_LEN(signals); i++)
		sigdelset(&sa.sa_mask, signals[i]);
	sigdelset(&sa.sa_mask, SIGSYS); /* a system call that confine_calls.c does not keep */
	for (unsigned i = 0; i < ARRAY_LEN(signals) && first; i++)
		if (sigaction(signals[i], &sa, &previous[i])) {
			claim = NULL;
			return !host_fail();
		}
	return true;
}

/* This thread's alternate stack, with a page below it that faults, and what was there before (AddressSanitizer's). */
static _Thread_local struct {
	uint8_t *map;
	size_t size;
	stack_t before;
} alternate;

bool host_guest_signals_thread_enter(void)
{
	size_t size = align_up(HANDLER_STACK + getauxval(AT_MINSIGSTKSZ), PAGE_SIZE) + PAGE_SIZE;
	stack_t ss = {.ss_size = size - PAGE_SIZE, .ss_flags = (int)SS_AUTODISARM};
	uint8_t *map;

	if (alternate.map)
		return true;
	map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	if (map == MAP_FAILED)
		return !host_fail();
	ss.ss_sp = map + PAGE_SIZE;
	if (mprotect(map, PAGE_SIZE, PROT_NONE) || sigaltstack(&ss, &alternate.before)) {
		host_fail();
		munmap(map, size);
		return false;
	}
	alternate.map = map;
	alternate.size = size;
	return true;
}

void host_guest_signals_thread_leave(void)
{
	if (!alternate.map)
		return;
	sigaltstack(&alternate.before, NULL);
	munmap(alternate.map, alternate.size);
	alternate.map = NULL;
}
