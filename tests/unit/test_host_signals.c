/* Faults of code whose stack pointer, flags and GS are not C's, and the signals that end the process. */
#include "host/guest_signals.h"
#include "host/host.h"
#include "host/signals.h"
#include "host/thread.h"
#include "unit/unit.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define AC_FLAG 0x40000ull
#define DF_FLAG 0x400ull

/* What the handler saw, and what it is to do: go on at `resume` unless that is 0. */
static _Thread_local struct host_fault_context seen;
static _Thread_local uint64_t resume;
static _Thread_local unsigned claimed;

static bool claim(struct host_fault_context *ctx)
{
	struct {
		char before;
		uint64_t v;
	} __attribute__((packed)) unaligned = {0, 5};
	volatile uint64_t *p = (volatile uint64_t *)(uintptr_t)((char *)&unaligned + 1);

	if (!resume)
		return false;
	/* A system that is virtualized in software may not be able to return to a stack that is not canonical, and
	 * blame the instruction there: the stack that FAULT keeps in R14 will do. */
	if (claimed && ctx->rip == resume && seen.gpr[4] >> 47 && ctx->gpr[4] == seen.gpr[4]) {
		ctx->gpr[4] = ctx->gpr[14];
		return true;
	}
	__asm__ volatile("movq %0, %%rax; movq %%rax, %0" : "+m"(*p) : : "rax"); /* faults if AC were still set */
	seen = *ctx;
	ctx->rip = resume;
	ctx->gpr[0] = 0xfeed;
	ctx->gpr[15] = 0xbeef;
	claimed++;
	return true;
}

static void setup(void)
{
	REQUIRE(host_guest_signals_init(claim));
	REQUIRE(host_guest_signals_thread_enter());
	claimed = 0;
	memset(&seen, 0, sizeof(seen));
}

static void teardown(void)
{
	resume = 0;
	host_guest_signals_thread_leave();
}

/*
 * Runs `insn` with RSP set to garbage, and with `flags` flipped; RAX is `arg`, RBX 0x11, RDI 0x77, R8 0x88, R15 0xff
 * before; RAX and R15 after it come back. The handler goes on behind the instruction. XMM5 must live through it.
 */
#define FAULT(insn, arg, flags, rsp)                                                                         \
	({                                                                                                   \
		register uint64_t rax_ __asm__("rax") = (arg);                                               \
		register uint64_t rsp_ __asm__("r12") = (rsp);                                               \
		register uint64_t flags_ __asm__("r13") = (flags);                                           \
		register uint64_t where_ __asm__("rcx") = (uint64_t)&resume;                                 \
		uint64_t r15_, xmm_ = 0x123456789abcdef;                                                     \
		__asm__ volatile("lea 2f(%%rip), %%rdx\n"                                                    \
				 "mov %%rdx, (%%rcx)\n"                                                      \
				 "movq %[x], %%xmm5\n"                                                       \
				 "mov $0x11, %%ebx\n"                                                        \
				 "mov $0x77, %%edi\n"                                                        \
				 "mov $0x88, %%r8d\n"                                                        \
				 "mov $0xff, %%r15d\n"                                                       \
				 "mov %%rsp, %%r14\n"                                                        \
				 "lea -256(%%rsp), %%rsp\n"                                                  \
				 "pushfq\n"                                                                  \
				 "xor %%r13, (%%rsp)\n"                                                      \
				 "popfq\n"                                                                   \
				 "mov %%r12, %%rsp\n"                                                        \
				 "1: " insn "\n"                                                             \
				 "2: mov %%r14, %%rsp\n"                                                     \
				 "lea -256(%%rsp), %%rsp\n"                                                  \
				 "pushfq\n"                                                                  \
				 "andq $~0x40500, (%%rsp)\n" /* AC, DF, TF */                                \
				 "popfq\n"                                                                   \
				 "mov %%r14, %%rsp\n"                                                        \
				 "movq %%xmm5, %[x]\n"                                                       \
				 "mov %%r15, %[r15]\n"                                                       \
				 : "+a"(rax_), [r15] "=&r"(r15_), [x] "+&r"(xmm_), "+r"(rsp_), "+r"(flags_), \
				   "+c"(where_)                                                              \
				 :                                                                           \
				 : "rbx", "rdx", "rdi", "r8", "r14", "r15", "xmm5", "memory", "cc");         \
		/* First of all: a call in between may change RAX. */                                        \
		uint64_t out_ = rax_;                                                                        \
		last_r15 = r15_;                                                                             \
		CHECK_EQ(xmm_, 0x123456789abcdef);                                                           \
		out_;                                                                                        \
	})

static _Thread_local uint64_t last_r15;

TEST(garbage_stack)
{
	static const uint64_t stacks[] = {0, 0x10, 0x1234567, 0x8000000000000000, ~0ull, 0xffffffff80000000};

	setup();
	for (unsigned i = 0; i < ARRAY_LEN(stacks); i++) {
		uint64_t rax = FAULT("mov (%%rax), %%rbx", 0x4000, 0, stacks[i]);

		CHECK_EQ(rax, 0xfeed);
		CHECK_EQ(last_r15, 0xbeef);
		CHECK_EQ(seen.fault, HOST_FAULT_MEMORY);
		CHECK_EQ(seen.address, 0x4000);
		CHECK_EQ(seen.gpr[0], 0x4000);
		CHECK_EQ(seen.gpr[3], 0x11);
		CHECK_EQ(seen.gpr[4], stacks[i]);
		CHECK_EQ(seen.gpr[7], 0x77);
		CHECK_EQ(seen.gpr[8], 0x88);
		CHECK_EQ(seen.gpr[15], 0xff);
		CHECK_EQ(claimed, i + 1);
	}
	teardown();
}

TEST(alien_flags_and_gs)
{
	setup();
	CHECK(host_set_gs_base(0x123456000));
	FAULT("mov (%%rax), %%rbx", 0x5000, DF_FLAG | AC_FLAG, 0x10);
	CHECK_EQ(seen.rflags & (DF_FLAG | AC_FLAG), DF_FLAG | AC_FLAG);
	FAULT("mov %%gs:(%%rax), %%rbx", 0x20, DF_FLAG, 0x10);
	CHECK_EQ(seen.address, 0x123456020);
	CHECK(host_set_gs_base(0));
	CHECK_EQ(claimed, 2);
	teardown();
}

/* A page that ends the address range of a file: SIGBUS. */
static uint64_t behind_a_file(void)
{
	FILE *f = tmpfile();
	void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fileno(f), 0);

	fclose(f);
	return (uint64_t)p;
}

TEST(kinds)
{
	uint64_t behind = behind_a_file();
	static uint32_t words[4];
	uint32_t mxcsr;

	setup();
	FAULT("mov (%%rax), %%rbx", 0x8000000000000000, 0, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_PROTECTION);
	FAULT("push %%rax", 0, 0, 0x8000000000000000);
	CHECK_EQ(seen.fault, HOST_FAULT_PROTECTION);
	FAULT("hlt", 0, 0, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_PROTECTION);
	FAULT("xor %%edx, %%edx; xor %%ecx, %%ecx; div %%ecx", 5, 0, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_DIVIDE);
	FAULT("ud2", 0, 0, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_ILLEGAL);
	FAULT("int3", 0, 0, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_TRAP);
	FAULT("mov (%%rax), %%ebx", (uint64_t)words + 1, AC_FLAG, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_BUS);
	FAULT("mov (%%rax), %%ebx", behind, 0, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_BUS);
	/* 0/0 with invalid operation unmasked, in SSE and in the x87. */
	mxcsr = 0x1f80 & ~0x80u;
	FAULT("ldmxcsr (%%rax); pxor %%xmm0, %%xmm0; divss %%xmm0, %%xmm0", (uint64_t)&mxcsr, 0, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_SIMD);
	mxcsr = 0x1f80;
	__asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
	words[0] = 0x37e;
	FAULT("fninit; fldcw (%%rax); fldz; fldz; fdivp; fwait", (uint64_t)words, 0, 0x10);
	CHECK_EQ(seen.fault, HOST_FAULT_FPU);
	__asm__ volatile("fninit");
	CHECK_EQ(claimed, 10);
	munmap((void *)behind, 4096);
	teardown();
}

static void *fault_often(void *arg)
{
	_Atomic unsigned *good = arg;

	if (!host_guest_signals_thread_enter())
		return NULL;
	for (unsigned i = 0; i < 2000; i++) {
		FAULT("mov (%%rax), %%rbx", 0x1000 + i, DF_FLAG, i);
		if (seen.address == 0x1000 + i && seen.gpr[4] == i)
			(*good)++;
	}
	resume = 0;
	host_guest_signals_thread_leave();
	return NULL;
}

TEST(threads)
{
	_Atomic unsigned good = 0;
	struct host_thread t[4];

	setup();
	for (unsigned i = 0; i < 4; i++)
		REQUIRE(host_thread_start(&t[i], "faults", fault_often, (void *)&good));
	for (unsigned i = 0; i < 4; i++)
		host_thread_join(&t[i]);
	CHECK_EQ(good, 8000);
	teardown();
}

TEST(enter_and_leave)
{
	stack_t before, after;

	sigaltstack(NULL, &before);
	setup();
	CHECK(host_guest_signals_thread_enter());
	host_guest_signals_thread_leave();
	host_guest_signals_thread_leave();
	sigaltstack(NULL, &after);
	CHECK_EQ(before.ss_sp, after.ss_sp);
	CHECK_EQ(before.ss_flags, after.ss_flags);
}

/* How a process ends that does `fn`. Core dumps and AddressSanitizer's report are of no interest. */
static int in_child(void (*fn)(void))
{
	int status = 0;
	pid_t pid = fork();

	REQUIRE(pid >= 0);
	if (!pid) {
		freopen("/dev/null", "w", stderr);
		fn();
		_exit(99);
	}
	waitpid(pid, &status, 0);
	return status;
}

static void fault_unclaimed(void)
{
	resume = 0;
	__asm__ volatile("mov 0x4000, %%rax" : : : "rax");
}

static void trap_unclaimed(void)
{
	resume = 0;
	__asm__ volatile("int3");
}

static void sent(void)
{
	resume = 0x1000; /* would be claimed if it were taken for a fault */
	raise(SIGFPE);
}

/* By the signal, or by the handler of a sanitizer, which was there before us and exits with a status of its own. */
static bool ended_by(int status, int sig)
{
	return WIFSIGNALED(status) ? WTERMSIG(status) == sig : WEXITSTATUS(status) && WEXITSTATUS(status) != 99;
}

TEST(unclaimed)
{
	setup();
	CHECK(ended_by(in_child(fault_unclaimed), SIGSEGV));
	CHECK(ended_by(in_child(trap_unclaimed), SIGTRAP));
	CHECK(ended_by(in_child(sent), SIGFPE));
	teardown();
}

static _Atomic int got[65], calls;

static void on_signal(void *opaque, int sig)
{
	CHECK(opaque == got);
	got[sig]++;
	calls++;
}

static void wait_calls(int n)
{
	for (unsigned i = 0; i < 5000 && calls < n; i++)
		host_sleep_ns(1000000);
}

TEST(watch)
{
	struct sigaction before, after;

	signal(SIGHUP, SIG_DFL); /* nohup and shells' background jobs come with these ignored */
	signal(SIGINT, SIG_DFL);
	sigaction(SIGTERM, NULL, &before);
	REQUIRE(host_signals_watch(on_signal, got));
	CHECK(!host_signals_watch(on_signal, got));
	kill(getpid(), SIGTERM);
	wait_calls(1);
	CHECK_EQ(got[SIGTERM], 1);
	kill(getpid(), SIGHUP);
	wait_calls(2);
	CHECK_EQ(got[SIGHUP], 1);
	kill(getpid(), SIGCONT);
	host_signals_unwatch();
	host_signals_unwatch();
	CHECK_EQ(calls, 2);
	sigaction(SIGTERM, NULL, &after);
	CHECK(before.sa_handler == after.sa_handler);
	REQUIRE(host_signals_watch(on_signal, got)); /* again, and counting anew */
	kill(getpid(), SIGINT);
	wait_calls(3);
	CHECK_EQ(got[SIGINT], 1);
	host_signals_unwatch();
}

static void third_ends(void)
{
	host_signals_watch(on_signal, got);
	for (unsigned i = 0; i < 3; i++) {
		kill(getpid(), SIGTERM);
		host_sleep_ns(20000000);
	}
}

static void ignored_stays(void)
{
	signal(SIGHUP, SIG_IGN);
	host_signals_watch(on_signal, got);
	kill(getpid(), SIGHUP);
	host_sleep_ns(20000000);
	_exit(got[SIGHUP] ? 1 : 0);
}

TEST(watch_ends)
{
	int status = in_child(third_ends);

	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
	memset((void *)got, 0, sizeof(got));
	status = in_child(ignored_stays);
	CHECK(WIFEXITED(status) && !WEXITSTATUS(status));
}

UNIT_MAIN()
