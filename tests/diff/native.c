/*
 * The real processor. A case's registers are loaded and its code is jumped to; whatever signal ends it, the handler
 * takes the state out of the kernel's frame. Linux hands on vector, error code and address in the frame, so the
 * comparison is with the processor's own exceptions.
 */
#include "diff.h"

#include <asm/prctl.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* Layout known to native_entry.S. */
struct native {
	uint64_t gpr[X86_GPRS], flags;
	uint8_t *xsave;
	uint64_t rsp, fs, gs, host_fs, host_gs;
	uint32_t bases, compat;
};

_Static_assert(offsetof(struct native, flags) == 128 && offsetof(struct native, rsp) == 144 &&
		       offsetof(struct native, bases) == 184,
	       "native_entry.S");

__attribute__((visibility("hidden"))) struct native native_state;
__attribute__((visibility("hidden"))) uint32_t native_active;
__attribute__((visibility("hidden"))) struct {
	uint32_t offset;
	uint16_t selector;
} __attribute__((packed)) native_target;

void native_run(struct native *n);
extern const char native_leave[];
void native_signal(int sig, siginfo_t *info, void *uc);

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
static struct sigaction chained[ARRAY_LEN(signals)];
static struct diff_result *result;
static uint8_t *window_alias, *code_alias;

/* Vectors of Linux's frame; its registers in x86 encoding order. */
static const uint8_t gpr_place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
				      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

#define FRAME_MAGIC 0x46505853u /* FP_XSTATE_MAGIC1 */

/* The frame's vector state is an XSAVE area in standard format. */
static void take_vectors(const uint8_t *fp, struct diff_state *out)
{
	uint32_t magic;

	memcpy(&magic, fp + 464, 4);
	memset(out->xsave, 0, sizeof(out->xsave));
	memcpy(out->xsave, fp, magic == FRAME_MAGIC ? X86_XSAVE_SIZE : 512);
	memset(out->xsave + 416, 0, 96);
	if (magic != FRAME_MAGIC)
		out->xsave[512] = 3;
	memset(out->xsave + 513, 0, 63);
	out->xsave[512] &= 7;
}

static void take_state(const ucontext_t *uc, struct diff_state *out)
{
	const greg_t *regs = uc->uc_mcontext.gregs;

	for (unsigned i = 0; i < X86_GPRS; i++)
		out->gpr[i] = (uint64_t)regs[gpr_place[i]];
	out->rip = (uint64_t)regs[REG_RIP];
	out->rflags = (uint64_t)regs[REG_EFL];
	take_vectors((const uint8_t *)uc->uc_mcontext.fpregs, out);
}

/* A fetch that faults and the INT3 after the case are no faults of the case: it has ended there. */
static void take_fault(const ucontext_t *uc, struct diff_result *r)
{
	const greg_t *regs = uc->uc_mcontext.gregs;

	r->vector = (int)regs[REG_TRAPNO];
	r->error = (uint32_t)regs[REG_ERR];
	r->cr2 = r->vector == X86_PF ? (uint64_t)regs[REG_CR2] : 0;
	if (r->vector == X86_BP) {
		r->vector = -1;
		r->out.rip--;
	} else if (r->vector == X86_PF && (r->error & PF_I)) {
		r->vector = -1;
	}
	if (r->vector == -1)
		r->error = 0, r->cr2 = 0;
}

__attribute__((visibility("hidden"), used)) void native_signal_c(int sig, siginfo_t *info, void *ctx)
{
	ucontext_t *uc = ctx;

	if (!native_active) {
		for (unsigned i = 0; i < ARRAY_LEN(signals); i++) {
			if (signals[i] == sig && (chained[i].sa_flags & SA_SIGINFO) && chained[i].sa_sigaction) {
				chained[i].sa_sigaction(sig, info, ctx);
				return;
			}
		}
		signal(sig, SIG_DFL);
		return;
	}
	native_active = 0;
	take_state(uc, &result->out);
	take_fault(uc, result);
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)native_leave;
	uc->uc_mcontext.gregs[REG_RSP] = (greg_t)native_state.rsp;
	uc->uc_mcontext.gregs[REG_EFL] = 0x202;
	uc->uc_mcontext.gregs[REG_CSGSFS] = (uc->uc_mcontext.gregs[REG_CSGSFS] & ~0xffffll) | 0x33;
}

/* Memory seen twice: where the case has it, and writable for the rig. */
static uint8_t *map_twice(uint64_t at, size_t size, int prot)
{
	int fd = memfd_create("diff", 0);
	uint8_t *alias;

	if (fd < 0 || ftruncate(fd, (off_t)size))
		return NULL;
	if (mmap((void *)at, size, prot, MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, 0) != (void *)at)
		return NULL;
	alias = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
	close(fd);
	return alias == MAP_FAILED ? NULL : alias;
}

/* Pages are touched as they may be, so that the kernel's own faults on first touch are over. */
static bool protect_window(void)
{
	for (unsigned i = 0; i < WINDOW_PAGES; i++) {
		volatile uint8_t *page = (uint8_t *)WINDOW + i * PAGE_SIZE;
		static const int prot[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};

		*page = 0;
		if (mprotect((void *)page, PAGE_SIZE, prot[window_kind[i]]))
			return false;
	}
	return true;
}

static bool native_start(const struct x86_cpuid_model *model)
{
	struct sigaction sa = {.sa_sigaction = native_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	window_alias = map_twice(WINDOW, WINDOW_SIZE, PROT_READ | PROT_WRITE);
	code_alias = map_twice(CODE, PAGE_SIZE, PROT_READ | PROT_EXEC);
	if (!window_alias || !code_alias || !protect_window())
		return false;
	memset(code_alias, 0xcc, PAGE_SIZE);
	native_state.bases = getauxval(AT_HWCAP2) >> 1 & 1; /* HWCAP2_FSGSBASE */
	if (syscall(SYS_arch_prctl, ARCH_GET_FS, &native_state.host_fs) ||
	    syscall(SYS_arch_prctl, ARCH_GET_GS, &native_state.host_gs))
		return false;
	sigfillset(&sa.sa_mask);
	for (unsigned i = 0; i < ARRAY_LEN(signals); i++) {
		if (sigaction(signals[i], &sa, &chained[i]))
			return false;
	}
	return true;
}

static void run_native(const struct diff_case *c, struct diff_result *r)
{
	static _Alignas(64) uint8_t xsave[X86_XSAVE_SIZE];
	uint8_t *code = code_alias + (c->in.rip - CODE);

	memcpy(window_alias, c->memory, WINDOW_SIZE);
	memcpy(code, c->code, c->len);
	memcpy(xsave, c->in.xsave, sizeof(xsave));
	memcpy(native_state.gpr, c->in.gpr, sizeof(native_state.gpr));
	native_state.flags = c->in.rflags | FL_IF | FL_FIXED1;
	native_state.xsave = xsave;
	native_state.fs = c->in.fs;
	native_state.gs = c->in.gs;
	native_target.offset = (uint32_t)c->in.rip;
	native_target.selector = c->mode == MODE_64 ? 0x33 : 0x23;
	result = r;
	native_run(&native_state);
	memset(code, 0xcc, c->len);
	r->memory = window_alias;
}

const struct backend backend_native = {"native", false, native_start, run_native};
