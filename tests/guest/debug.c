/* Single step and debug registers (SDM Vol. 3B 17.2, 17.3). */
#include "guest.h"

const char payload[] = "debug";

#define DR6_BS 0x4000ull
#define DR6_CLEAR 0xffff0ff0ull
#define READ_DR(n)                                             \
	({                                                     \
		u64 v_;                                        \
		asm volatile("mov %%dr" #n ", %0" : "=r"(v_)); \
		v_;                                            \
	})
#define WRITE_DR(n, v) asm volatile("mov %0, %%dr" #n : : "r"((u64)(v)) : "memory")

/* Every #DB: where, and why. */
static struct {
	u64 rip, dr6, rflags;
} log[64];
static volatile unsigned hits;
static bool stay_armed;

static bool on_db(struct frame *f)
{
	if (hits < 64)
		log[hits] = (typeof(log[0])){f->rip, READ_DR(6), f->rflags};
	hits++;
	WRITE_DR(6, DR6_CLEAR);
	if (!(READ_DR(7) & 0xff) && !stay_armed)
		return true;
	f->rflags |= FL_RF; /* so that a code breakpoint is passed */
	return true;
}

static void set_up(void)
{
	set_handler(DB, on_db);
	hits = 0;
	WRITE_DR(6, DR6_CLEAR);
	memset(log, 0, sizeof(log));
}

static void arm(unsigned n, u64 address, unsigned kind, unsigned len)
{
	static const u8 len_code[9] = {0, 0, 1, 0, 3, 0, 0, 0, 2};
	u64 dr7 = READ_DR(7) & ~(0xfull << (16 + 4 * n));
	switch (n) {
	case 0:
		WRITE_DR(0, address);
		break;
	case 1:
		WRITE_DR(1, address);
		break;
	case 2:
		WRITE_DR(2, address);
		break;
	default:
		WRITE_DR(3, address);
		break;
	}
	WRITE_DR(7, dr7 | 2ull << (2 * n) | (u64)(kind | len_code[len] << 2) << (16 + 4 * n));
}
enum { EXECUTE = 0, WRITES = 1, IO = 2, ACCESS = 3 };

static u8 stack[4096] __attribute__((aligned(16)));

/* Runs code that ends in UD2 with TF set; offsets[] are those of the traps expected, ended by -1. */
static void step_through(const u8 *code, const u8 *end, bool user, const int *offsets)
{
	set_up();
	struct frame f = user ? user_code(code, end, 64) : kernel_frame((u64)code, (u64)stack + 4096);
	u64 base = user ? USER_CODE : (u64)code;
	f.rflags |= FL_TF;
	f.rdi = user ? USER_DATA : (u64)stack;
	f.rsi = f.rdi + 64;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, UD);
	unsigned n = 0;
	for (; offsets[n] >= 0; n++) {
		CHECK_EQ_IN(log[n].rip - base, offsets[n], "trap %u", n);
		CHECK_EQ_IN(log[n].dr6 & (DR6_BS | 15), DR6_BS, "trap %u", n);
	}
	CHECK_EQ(hits, n);
}
#define STEP(name, ...)                                   \
	do {                                              \
		static const int o[] = {__VA_ARGS__, -1}; \
		step_through(name, name##_end, false, o); \
		step_through(name, name##_end, true, o);  \
	} while (0)
#define STEP_KERNEL(name, ...)                            \
	do {                                              \
		static const int o[] = {__VA_ARGS__, -1}; \
		step_through(name, name##_end, false, o); \
	} while (0)

SNIPPET(s_plain, 64, "nop; movl $1, %eax; addl %eax, %ecx; movl %eax, (%rdi); xchgl %eax, (%rdi); ud2");
SNIPPET(s_branch, 64, "jmp 1f; nop; 1: xorl %eax, %eax; jz 2f; nop; 2: jnz 3f; 3: call 4f; ud2; 4: ret");
SNIPPET(s_loop, 64, "movl $3, %ecx; 1: loop 1b; ud2");
SNIPPET(s_rep, 64, "movl $3, %ecx; rep stosb; ud2");
SNIPPET(s_rep0, 64, "xorl %ecx, %ecx; rep movsb; ud2");
SNIPPET(s_repe, 64, "movl $5, %ecx; movq %rdi, %rsi; repe cmpsb; ud2");
SNIPPET(s_pushf, 64, "pushfq; popq %rax; pushq %rax; popfq; nop; ud2");
SNIPPET(s_sse, 64, "pxor %xmm0, %xmm0; movdqu %xmm0, (%rdi); fld1; fstpl (%rdi); ud2");
SNIPPET(s_stack, 64, "pushq $5; pushq (%rsp); popq (%rdi); enter $16, $0; leave; popq %rax; ud2");
SNIPPET(s_cpuid, 64, "xorl %eax, %eax; cpuid; rdtsc; pause; ud2");
SNIPPET(s_indirect, 64, "leaq 1f(%rip), %rax; jmp *%rax; nop; 1: pushq %rax; addq $8, (%rsp); ret; nop; nop; nop; ud2");
SNIPPET(s_mov_ss, 64, "movl %ss, %eax; movl %eax, %ss; nop; nop; ud2");
SNIPPET(s_sti, 64, "cli; sti; nop; cli; ud2");
SNIPPET(s_cr, 64, "movq %cr0, %rax; movq %rax, %cr0; movq %cr3, %rax; movq %rax, %cr3; invlpg (%rdi); ud2");
SNIPPET(s_in, 64, "inb $0x80, %al; outb %al, $0x80; ud2");
SNIPPET(s_iretq, 64,
	"movq %rsp, %rax; movl %ss, %ecx; pushq %rcx; pushq %rax; pushfq; movl %cs, %ecx; pushq %rcx; leaq 1f(%rip), "
	"%rcx; pushq %rcx; iretq; nop; 1: nop; ud2");

TEST(step_plain)
{
	STEP(s_plain, 1, 6, 8, 10, 12);
}
TEST(step_branches)
{
	STEP(s_branch, 3, 5, 8, 10, 17, 15);
	STEP(s_loop, 5, 5, 5, 7);
	STEP(s_indirect, 7, 10, 11, 16, 18, 19, 20);
}
TEST(step_strings)
{
	STEP(s_rep, 5, 5, 5, 7);
	STEP(s_rep0, 2, 4);
	STEP(s_repe, 5, 8, 8, 8, 8, 8, 10);
}
TEST(step_stack)
{
	STEP(s_stack, 2, 5, 7, 11, 12, 13);
	STEP(s_pushf, 1, 2, 3, 4, 5);
}
TEST(step_vector)
{
	STEP(s_sse, 4, 8, 10, 12);
}
TEST(step_special)
{
	STEP(s_cpuid, 2, 4, 6, 8);
}
TEST(step_mov_ss)
{
	STEP(s_mov_ss, 2, 5, 6); /* no trap after MOV SS itself */
}
TEST(step_system)
{
	STEP_KERNEL(s_sti, 1, 2, 3, 4);
	STEP_KERNEL(s_cr, 3, 6, 9, 12, 15);
	STEP_KERNEL(s_in, 2, 4);
}
TEST(step_iret)
{
	STEP(s_iretq, 3, 5, 6, 7, 8, 10, 11, 18, 19, 22, 23);
}

/* PUSHF pushes TF; POPF that clears it ends the stepping after itself. */
SNIPPET(s_off, 64, "pushfq; andl $~0x100, (%rsp); popfq; nop; nop; ud2");
SNIPPET(s_on, 64, "pushfq; orl $0x100, (%rsp); popfq; nop; nop; ud2");
TEST(step_on_off)
{
	STEP(s_off, 1, 8, 9);
	set_up();
	struct frame f = kernel_frame((u64)s_on, (u64)stack + 4096);
	run_frame(&f);
	CHECK_EQ(hits, 2);
	CHECK_EQ(log[0].rip, (u64)s_on + 10); /* POPF itself does not trap: TF was clear when it began */
	CHECK_EQ(log[1].rip, (u64)s_on + 11);
}

/* HLT is over when its own trap comes (Vol. 2, HLT): it does not wait for an interrupt. */
SNIPPET(s_hlt, 64, "cli; hlt; nop; ud2");
TEST(step_hlt)
{
	if (have_option("engine=qemu"))
		skip("QEMU sleeps for ever");
	STEP_KERNEL(s_hlt, 1, 2, 3);
}

/* The trap after an instruction comes before an interrupt that it has caused (Vol. 3A table 7-2). */
static struct {
	unsigned hits;
	u64 rip, rflags;
} interrupt;
static bool on_interrupt(struct frame *f)
{
	interrupt = (typeof(interrupt)){hits, f->rip, f->rflags};
	apic_write(APIC_EOI, 0);
	return true;
}
SNIPPET(s_ipi, 64, "movl %eax, (%rdi); nop; ud2");
SNIPPET(s_ipi_msr, 64, "wrmsr; nop; ud2");
static void check_step_ipi(const u8 *code)
{
	set_up();
	set_handler(0x60, on_interrupt);
	interrupt = (typeof(interrupt)){0};
	struct frame f = kernel_frame((u64)code, (u64)stack + 4096);
	f.rflags |= FL_TF | FL_IF;
	f.rax = ICR_SELF | ICR_ASSERT | 0x60;
	f.rcx = 0x830; /* the x2APIC's ICR */
	f.rdi = 0xfee00000 + APIC_ICR;
	CHECK_EQ(run_frame(&f)->f.vector, UD);
	CHECK_EQ(hits, 2);
	CHECK_EQ(log[0].rip, (u64)code + 2);
	CHECK_EQ(log[0].dr6 & DR6_BS, DR6_BS);
	CHECK_EQ(log[1].rip, (u64)code + 3);
	CHECK_EQ(interrupt.hits, 1);
	CHECK_EQ(interrupt.rip, (u64)code + 2);
	CHECK_EQ(interrupt.rflags & FL_TF, FL_TF);
}
TEST(step_and_interrupt)
{
	check_step_ipi(s_ipi);
	if (!HAS_X2APIC)
		return;
	apic_set_x2(true);
	check_step_ipi(s_ipi_msr);
	apic_set_x2(false);
}

/* A WRMSR that is refused has not retired: its fault, and no trap. */
SNIPPET(s_wrmsr, 64, "wrmsr; ud2");
TEST(step_and_bad_wrmsr)
{
	if (have_option("engine=qemu"))
		skip("QEMU takes any value");
	set_up();
	struct frame f = kernel_frame((u64)s_wrmsr, (u64)stack + 4096);
	f.rflags |= FL_TF;
	f.rcx = MSR_APIC_BASE;
	f.rax = f.rdx = ~0u;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, GP);
	CHECK_EQ(t->f.rip, (u64)s_wrmsr);
	CHECK_EQ(t->f.rflags & FL_TF, FL_TF);
	CHECK_EQ(hits, 0);
}

/* An exception clears TF in its handler; the fault comes before the trap. */
TEST(step_and_fault)
{
	set_up();
	static const u8 code[] = {0x90, 0x0f, 0x0b};
	struct frame f = kernel_frame((u64)code, (u64)stack + 4096);
	f.rflags |= FL_TF;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, UD);
	CHECK_EQ(hits, 1);
	CHECK_EQ(t->f.rflags & FL_TF, FL_TF);
	CHECK_EQ(read_flags() & FL_TF, 0);
	/* INT n pushes TF and does not trap */
	static const u8 soft[] = {0xcd, 0x80};
	hits = 0;
	f.rip = (u64)soft;
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(hits, 0);
	CHECK_EQ(t->f.rflags & FL_TF, FL_TF);
}

/* A whole function under TF gives the result that it gives without. */
static u64 work(u64 n)
{
	u64 a = 1, b = 0;
	for (u64 i = 0; i < n; i++) {
		b += a ^ i;
		a = a * 6364136223846793005 + 1442695040888963407;
		b ^= b >> 7;
	}
	return b;
}
TEST(step_function)
{
	u64 want = work(50), got;
	set_up();
	asm volatile("pushfq; orl $0x100, (%%rsp); popfq" : : : "memory", "cc");
	got = work(50);
	asm volatile("pushfq; andl $~0x100, (%%rsp); popfq" : : : "memory", "cc");
	CHECK_EQ(got, want);
	CHECK(hits > 300);
}

SNIPPET(b_code, 64, "nop; nop; movl $1, %eax; nop; ud2");
TEST(code_breakpoint)
{
	set_up();
	arm(0, (u64)b_code + 1, EXECUTE, 1);
	arm(2, (u64)b_code + 7, EXECUTE, 1);
	struct frame f = kernel_frame((u64)b_code, (u64)stack + 4096);
	for (unsigned i = 0; i < 3; i++) {
		hits = 0;
		struct trap *t = run_frame(&f);
		CHECK_EQ(t->f.vector, UD);
		CHECK_EQ(hits, 2);
		CHECK_EQ(log[0].rip, (u64)b_code + 1); /* a fault: before the instruction */
		CHECK_EQ(log[0].dr6 & 0x400f, 1);
		CHECK_EQ(log[1].rip, (u64)b_code + 7);
		CHECK_EQ(log[1].dr6 & 0x400f, 4);
		CHECK_EQ(log[0].rflags & FL_RF, 0); /* alone among faults (17.3.1.1): the handler is to set it */
	}
	WRITE_DR(7, 0x400);
	hits = 0;
	run_frame(&f);
	CHECK_EQ(hits, 0);
	/* in the middle of an instruction it never matches */
	arm(0, (u64)b_code + 3, EXECUTE, 1);
	run_frame(&f);
	CHECK_EQ(hits, 0);
	/* RF in the frame passes the first */
	arm(0, (u64)b_code, EXECUTE, 1);
	run_frame(&f);
	CHECK_EQ(hits, 1);
	hits = 0;
	f.rflags |= FL_RF;
	run_frame(&f);
	CHECK_EQ(hits, 0);
	WRITE_DR(7, 0x400);
}

/* It is passed when the whole of a repeated instruction is: RF stays until then, in frames of traps too (17.3.1.1). */
TEST(code_breakpoint_rep)
{
	set_up();
	arm(0, (u64)s_rep + 5, EXECUTE, 1);
	struct frame f = kernel_frame((u64)s_rep, (u64)stack + 4096);
	f.rdi = (u64)stack;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, UD);
	CHECK_EQ(t->f.rcx, 0);
	CHECK_EQ(hits, 1);
	CHECK_EQ(log[0].rip, (u64)s_rep + 5);
	CHECK_EQ(log[0].dr6 & 0x400f, 1);
	hits = 0;
	f.rip = (u64)s_rep + 5;
	f.rcx = 3;
	f.rflags |= FL_TF | FL_RF;
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, UD);
	CHECK_EQ(hits, 3);
	for (unsigned i = 0; i < 3; i++) {
		CHECK_EQ_IN(log[i].dr6 & 0x400f, DR6_BS, "trap %u", i);
		CHECK_EQ_IN(log[i].rflags & FL_RF, i < 2 ? FL_RF : 0, "trap %u", i);
	}
	WRITE_DR(7, 0x400);
}

/* IRET loads RF, whatever it was when it began. */
SNIPPET(b_iret, 64,
	"movq %rsp, %rax; movl %ss, %ecx; pushq %rcx; pushq %rax; pushfq; orl $0x10000, (%rsp); movl %cs, %ecx;"
	"pushq %rcx; leaq 1f(%rip), %rcx; pushq %rcx; iretq; nop; 1: nop; ud2");
TEST(code_breakpoint_iret)
{
	set_up();
	u64 iretq = (u64)b_iret_end - 6, to = (u64)b_iret_end - 3;
	arm(0, iretq, EXECUTE, 1);
	arm(1, to, EXECUTE, 1);
	struct frame f = kernel_frame((u64)b_iret, (u64)stack + 4096);
	CHECK_EQ(run_frame(&f)->f.vector, UD);
	CHECK_EQ(hits, 1);
	CHECK_EQ(log[0].rip, iretq);
	WRITE_DR(7, 0x400);
}

TEST(code_breakpoint_user)
{
	set_up();
	struct frame f = user_code(b_code, b_code_end, 64);
	arm(1, USER_CODE + 2, EXECUTE, 1);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, UD);
	CHECK_EQ(hits, 1);
	CHECK_EQ(log[0].rip, USER_CODE + 2);
	CHECK_EQ(log[0].dr6 & 0x400f, 2);
	WRITE_DR(7, 0x400);
}

/* A breakpoint in a loop that has run before it was set. */
static __attribute__((noinline, noclone)) void loop_10(void)
{
	asm volatile(".globl loop_at\nmovl $10, %%ecx; loop_at: nop; decl %%ecx; jnz loop_at" : : : "ecx", "cc");
}
extern u8 loop_at[];
TEST(code_breakpoint_hot)
{
	set_up();
	for (unsigned i = 0; i < 100; i++)
		loop_10();
	arm(3, (u64)loop_at, EXECUTE, 1);
	loop_10();
	CHECK_EQ(hits, 10);
	WRITE_DR(7, 0x400);
	loop_10();
	CHECK_EQ(hits, 10);
}

static u64 words[16] __attribute__((aligned(64)));
#define HITS(n, code)                                                                                  \
	do {                                                                                           \
		hits = 0;                                                                              \
		asm volatile(code : : "r"(words) : "rax", "rcx", "rdx", "rsi", "rdi", "memory", "cc"); \
		CHECK_EQ_IN(hits, n, "%s", code);                                                      \
	} while (0)

TEST(data_write)
{
	set_up();
	arm(0, (u64)&words[2], WRITES, 8);
	HITS(1, "movq %%rax, 16(%0)");
	CHECK_EQ(log[0].dr6 & 0x400f, 1);
	HITS(0, "movq 16(%0), %%rax");
	HITS(1, "movb %%al, 23(%0)");
	HITS(0, "movb %%al, 24(%0)");
	HITS(0, "movb %%al, 15(%0)");
	HITS(1, "movl %%eax, 13(%0)"); /* overlaps */
	HITS(1, "incq 16(%0)");
	HITS(1, "lock addl $1, 20(%0)");
	HITS(1, "movups %%xmm0, 8(%0)");
	HITS(1, "pushq %%rax; popq 16(%0)");
	HITS(0, "cmpq %%rax, 16(%0)");
	HITS(1, "xchgq %%rax, 16(%0)");
	HITS(1, "leaq 16(%0), %%rdi; stosq");
	WRITE_DR(7, 0x400);
	HITS(0, "movq %%rax, 16(%0)");
}
TEST(data_access)
{
	set_up();
	arm(1, (u64)&words[2], ACCESS, 4);
	HITS(1, "movq 16(%0), %%rax");
	CHECK_EQ(log[0].dr6 & 0x400f, 2);
	HITS(0, "movl 20(%0), %%eax");
	HITS(1, "movb %%al, 19(%0)");
	HITS(1, "cmpl %%eax, 16(%0)");
	HITS(0, "leaq 16(%0), %%rax");
	HITS(1, "movups 8(%0), %%xmm0");
	HITS(0, "prefetcht0 16(%0)");
	HITS(0, "nopl 16(%0)");
	HITS(1, "pushq 16(%0); popq %%rax");
	HITS(1, "leaq 16(%0), %%rsi; lodsb");
	WRITE_DR(7, 0x400);
}
/* The trap comes after the instruction: the address of the next one is saved. */
CODE(dw_at);
TEST(data_trap_rip)
{
	set_up();
	arm(0, (u64)&words[0], WRITES, 4);
	asm volatile(".globl dw_at\nmovl %%eax, (%0); dw_at: nop" : : "r"(words) : "memory");
	CHECK_EQ(hits, 1);
	CHECK_EQ(log[0].rip, (u64)dw_at);
	CHECK_EQ(log[0].rflags & FL_RF, 0);
	WRITE_DR(7, 0x400);
}
/* REP: after the element that meets it. */
TEST(data_rep)
{
	set_up();
	arm(0, (u64)words + 8, WRITES, 1);
	u64 di = (u64)words, cx = 32;
	asm volatile("rep stosb" : "+D"(di), "+c"(cx) : "a"(0) : "memory");
	CHECK_EQ(hits, 1);
	CHECK_EQ(cx, 0);
	WRITE_DR(7, 0x400);
}
TEST(data_page)
{
	/* other words of the page stay usable, and pages already in a TLB are watched */
	set_up();
	volatile u64 *p = alloc_pages(1);
	p[100] = 1;
	u64 sum = p[100];
	arm(2, (u64)&p[10], ACCESS, 8);
	for (unsigned i = 0; i < 512; i++)
		sum += p[i];
	CHECK_EQ(hits, 1);
	CHECK_EQ(sum, 2);
	WRITE_DR(7, 0x400);
}
/* TF and a data breakpoint at once: one trap, both bits. */
TEST(both)
{
	if (have_option("engine=qemu"))
		skip("QEMU traps for ever");
	set_up();
	arm(0, (u64)stack, WRITES, 4);
	static const u8 code[] = {0x89, 0x07, 0x0f, 0x0b}; /* mov %eax, (%rdi); ud2 */
	struct frame f = kernel_frame((u64)code, (u64)stack + 4096);
	f.rdi = (u64)stack;
	f.rflags |= FL_TF;
	run_frame(&f);
	CHECK_EQ(hits, 1);
	CHECK_EQ(log[0].dr6 & 0x400f, 0x4001);
	WRITE_DR(7, 0x400);
}
/* MOV SS holds a data breakpoint's trap until after the next instruction. */
CODE(mov_ss_at);
TEST(mov_ss_data)
{
	set_up();
	static u16 sel = SEL_DATA;
	arm(0, (u64)&sel, ACCESS, 2);
	asm volatile(".globl mov_ss_at\nmovw %0, %%ss; nop; mov_ss_at: nop" : : "m"(sel));
	CHECK_EQ(hits, 1);
	CHECK_EQ(log[0].rip, (u64)mov_ss_at);
	WRITE_DR(7, 0x400);
}
/* One that the next instruction is #DB by itself takes with it: they are one. */
CODE(mov_ss_icebp_at);
TEST(mov_ss_icebp)
{
	set_up();
	static u16 sel = SEL_DATA;
	arm(0, (u64)&sel, ACCESS, 2);
	asm volatile(".globl mov_ss_icebp_at\nmovw %0, %%ss; .byte 0xf1; mov_ss_icebp_at: nop" : : "m"(sel));
	CHECK_EQ(hits, 1);
	CHECK_EQ(log[0].rip, (u64)mov_ss_icebp_at);
	CHECK_EQ(log[0].dr6 & 0x400f, 1);
	WRITE_DR(7, 0x400);
}
/* A breakpoint on the instruction behind it: Intel's processors pass it, AMD's do not. */
CODE(mov_ss_code_at);
TEST(mov_ss_code)
{
	set_up();
	arm(0, (u64)mov_ss_code_at, EXECUTE, 1);
	asm volatile(".globl mov_ss_code_at\nmovw %w0, %%ss; mov_ss_code_at: nop" : : "r"(SEL_DATA));
	CHECK_EQ(hits, is_amd());
	if (hits)
		CHECK_EQ(log[0].rip, (u64)mov_ss_code_at);
	WRITE_DR(7, 0x400);
}
TEST(io_breakpoint)
{
	set_up();
	write_cr4(CR4_DEFAULT | CR4_DE);
	arm(0, 0x80, IO, 2);
	outb(0x80, 0);
	CHECK_EQ(hits, 1);
	(void)inb(0x81);
	CHECK_EQ(hits, 2);
	outb(0x82, 0);
	CHECK_EQ(hits, 2);
	WRITE_DR(7, 0x400);
	write_cr4(CR4_DEFAULT);
}

/* MOV DR: GD, DR4/5 aliases, reserved values. */
SNIPPET(use_dr, 64, "movq %dr3, %rax; ud2");
TEST(general_detect)
{
	set_up();
	WRITE_DR(7, 0x2400);
	struct frame f = kernel_frame((u64)use_dr, (u64)stack + 4096);
	stay_armed = false;
	set_handler(DB, NULL);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, DB);
	CHECK_EQ(t->f.rip, (u64)use_dr);
	CHECK_EQ(t->dr6 & 0x2000, 0x2000);
	CHECK_EQ(t->f.rflags & FL_RF, FL_RF); /* unlike a breakpoint's fault */
	CHECK_EQ(READ_DR(7) & 0x2000, 0);     /* cleared on entry */
	WRITE_DR(6, DR6_CLEAR);
	WRITE_DR(7, 0x400);
}
TEST(registers)
{
	WRITE_DR(0, 0x123456789abc);
	WRITE_DR(3, ~0ull);
	CHECK_EQ(READ_DR(0), 0x123456789abc);
	CHECK_EQ(READ_DR(3), ~0ull);
	WRITE_DR(6, 0);
	CHECK_EQ(READ_DR(6) & 0xffff0ff0, 0xffff0ff0);
	WRITE_DR(7, 0);
	CHECK_EQ(READ_DR(7), 0x400);
	WRITE_DR(4, DR6_CLEAR | 1); /* DR6's other name while CR4.DE is clear */
	CHECK_EQ(READ_DR(6) & 15, 1);
	write_cr4(CR4_DEFAULT | CR4_DE);
	CHECK_EQ(CATCH(READ_DR(4)), UD);
	CHECK_EQ(CATCH(READ_DR(5)), UD);
	write_cr4(CR4_DEFAULT);
	WRITE_DR(6, DR6_CLEAR);
	WRITE_DR(0, 0);
	WRITE_DR(3, 0);
}
