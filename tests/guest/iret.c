/* IRET, SYSCALL, SYSRET, SYSENTER and their corners (SDM Vol. 2; APM Vol. 3). */
#include "guest.h"

const char payload[] = "iret";

SNIPPET(to_int80, 64, "int $0x80");
SNIPPET(kernel_int80, 64, "int $0x80");

/* Registers come through to ring 3 and back. */
SNIPPET(user_regs, 64,
	"incq %rax; incq %rbx; incq %rcx; incq %rdx; incq %rsi; incq %rdi; incq %rbp; incq %r8; incq %r9;"
	"incq %r10; incq %r11; incq %r12; incq %r13; incq %r14; incq %r15; int $0x80");
TEST(registers)
{
	struct frame f = user_code(user_regs, user_regs_end, 64);
	u64 *r = (u64 *)&f;
	for (unsigned i = 0; i < 15; i++)
		r[i] = 0x1111111111111111ull * (i + 1);
	struct trap *t = run_frame(&f);
	u64 *g = (u64 *)&t->f;
	CHECK_EQ(t->f.vector, 0x80);
	for (unsigned i = 0; i < 15; i++)
		CHECK_EQ(g[i], 0x1111111111111111ull * (i + 1) + 1);
	CHECK_EQ(t->f.rsp, USER_STACK);
	CHECK_EQ(t->f.cs, SEL_USER_CODE64);
	CHECK_EQ(t->f.ss, SEL_USER_DATA);
}

/* IRETQ to ring 0 pops SS:RSP too. */
TEST(same_ring)
{
	static u8 stack[256];
	struct frame f = kernel_frame((u64)kernel_int80, (u64)stack + 200);
	f.rflags = 2 | FL_CF | FL_ZF | FL_DF | FL_NT | FL_AC | FL_ID | FL_IOPL;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rsp, f.rsp);
	CHECK_EQ(t->f.rflags, f.rflags);
}

/* RFLAGS: reserved bits and VM come out clear, bit 1 set. */
TEST(flags)
{
	struct frame f = user_code(to_int80, to_int80_end, 64);
	f.rflags = 0xffffffffffffffff & ~(FL_TF | FL_NT | FL_IF | FL_RF | 1ull << 17 | FL_AC);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rflags & ~(3ull << 19), 2 | FL_ARITH | FL_DF | FL_IOPL | FL_ID);
}

extern u8 frame_iretq[];
/* IRETQ with a frame it must refuse. */
static void bad_iret(u64 cs, u64 ss, u64 rip, unsigned vector, u64 error)
{
	struct frame f = user_frame(rip, USER_STACK);
	f.cs = cs;
	f.ss = ss;
	struct trap *t = run_frame(&f);
	CHECK_EQ_IN(t->f.vector, vector, "cs %lx ss %lx", cs, ss);
	CHECK_EQ_IN(t->f.error, error, "cs %lx ss %lx", cs, ss);
	CHECK_EQ_IN(t->f.rip, (u64)frame_iretq, "cs %lx ss %lx", cs, ss);
	CHECK_EQ_IN(t->f.cs, SEL_CODE64, "cs %lx ss %lx", cs, ss);
}
TEST(bad_frames)
{
	u64 ok = (u64)to_int80;
	bad_iret(0, SEL_USER_DATA, ok, GP, 0);
	bad_iret(3, SEL_USER_DATA, ok, GP, 0);
	bad_iret(SEL_DATA, SEL_USER_DATA, ok, GP, SEL_DATA);
	bad_iret(SEL_CODE64 | 3, SEL_USER_DATA, ok, GP, SEL_CODE64);
	bad_iret(GDT_ENTRIES * 8 | 3, SEL_USER_DATA, ok, GP, GDT_ENTRIES * 8);
	bad_iret(SEL_USER_CODE64, 0, ok, GP, 0);
	bad_iret(SEL_USER_CODE64, SEL_DATA, ok, GP, SEL_DATA);
	bad_iret(SEL_USER_CODE64, SEL_DATA | 3, ok, GP, SEL_DATA);
	bad_iret(SEL_USER_CODE64, SEL_USER_CODE64, ok, GP, SEL_USER_CODE64 & ~3);
	gdt[SEL_TEST / 8] = 0x00af7b000000ffff; /* not present user code */
	bad_iret(SEL_TEST | 3, SEL_USER_DATA, ok, NP, SEL_TEST);
	gdt[SEL_TEST / 8] = 0x00cf73000000ffff; /* not present user data */
	bad_iret(SEL_USER_CODE64, SEL_TEST | 3, ok, SS, SEL_TEST);
}

TEST(non_canonical_rip)
{
	bad_iret(SEL_USER_CODE64, SEL_USER_DATA, 0x800000000000, GP, 0);
}

/* NT in 64-bit mode: #GP. */
static void iret_with_nt(void)
{
	asm volatile("pushq $0x4002; popfq; iretq" : : : "memory", "cc");
}
TEST(nested_task)
{
	CHECK_EQ(CATCH(iret_with_nt()), GP);
	CHECK_EQ(last_trap()->f.error, 0);
	write_flags(2);
}

/* A null SS is good for ring 0 only. */
TEST(null_ss)
{
	static u8 stack[256];
	struct frame f = kernel_frame((u64)kernel_int80, (u64)stack + 200);
	f.ss = 0;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.ss, 0);
}

/* ---- SYSCALL ---- */
static struct frame at_syscall;
CODE(syscall_entry);
asm(".pushsection .text\n.globl syscall_entry, syscall_entry_end\nsyscall_entry: int $0x81\nsyscall_entry_end: "
    ".popsection");
CODE(cstar_entry);
asm(".pushsection .text\n.globl cstar_entry, cstar_entry_end\ncstar_entry: int $0x82\ncstar_entry_end: .popsection");

SNIPPET(do_syscall, 64, "syscall; nop");
static void syscall_msrs(void)
{
	wrmsr(MSR_STAR, (u64)SEL_USER_CODE32 << 48 | (u64)SEL_CODE64 << 32);
	wrmsr(MSR_LSTAR, (u64)syscall_entry);
	wrmsr(MSR_CSTAR, (u64)cstar_entry);
	wrmsr(MSR_SFMASK, FL_IF | FL_TF | FL_DF | FL_CF);
	wrmsr(MSR_EFER, EFER_DEFAULT);
}
/* The stack is the user's when the handler's INT comes: give that gate a stack of its own. */
static void own_stacks(void)
{
	set_gate(0x81, trap_stubs[0x81], 1, 0x8e);
	set_gate(0x82, trap_stubs[0x82], 1, 0x8e);
}

TEST(syscall)
{
	syscall_msrs();
	own_stacks();
	struct frame f = user_code(do_syscall, do_syscall_end, 64);
	f.rflags = 2 | FL_CF | FL_ZF | FL_DF | FL_IF | FL_AC;
	f.rcx = 1;
	f.r11 = 2;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x81);
	CHECK_EQ(t->f.rip, (u64)syscall_entry_end);
	CHECK_EQ(t->f.cs, SEL_CODE64);
	CHECK_EQ(t->f.ss, SEL_DATA);
	CHECK_EQ(t->f.rcx, USER_CODE + 2);
	CHECK_EQ(t->f.r11, f.rflags);
	CHECK_EQ(t->f.rsp, USER_STACK);
	CHECK_EQ(t->f.rflags, 2 | FL_ZF | FL_AC);
	(void)at_syscall;
}

/*
 * Many there and back, with flags that concern how code runs: what the kernel sees (R8, and R9 as far as LODSB moves
 * RSI down), and what user code has afterwards.
 */
asm(".pushsection .text\n.globl flags_entry\nflags_entry: movq %rsp, flags_rsp(%rip); leaq flags_stack+64(%rip), %rsp;"
    "pushfq; popq %r8; leaq flags_stack+32(%rip), %rsi; movq %rsi, %r9; lodsb; subq %rsi, %r9;"
    "movq flags_rsp(%rip), %rsp; sysretq\n.popsection");
u64 flags_rsp, flags_stack[8];
SNIPPET(do_flags, 64,
	"1: pushq %r12; popfq; syscall; pushfq; popq %r13; cmpq %r13, %r12; jne 2f; cmpq %r11, %r12; jne 2f;"
	"cmpq %r8, %r14; jne 2f; cmpq %r9, %r15; jne 2f; decq %rbx; jnz 1b; 2: ud2");
TEST(syscall_flags)
{
	static const u64 flags[] = {0,       FL_DF, FL_AC, FL_DF | FL_AC, FL_CF | FL_ZF, FL_SF | FL_PF | FL_DF,
				    0x200000 /* ID */};
	static const u64 masks[] = {FL_IF, FL_IF | FL_DF, FL_IF | FL_AC, FL_IF | FL_DF | FL_AC | FL_CF | FL_ZF};
	extern u8 flags_entry[];
	syscall_msrs();
	wrmsr(MSR_LSTAR, (u64)flags_entry);
	for (unsigned i = 0; i < 28; i++) {
		u64 mask = masks[i % 4];
		wrmsr(MSR_SFMASK, mask);
		struct frame f = user_code(do_flags, do_flags_end, 64);
		f.rflags = 2 | FL_IF;
		f.rbx = 300;
		f.r12 = flags[i / 4] | 2 | FL_IF;
		f.r14 = (f.r12 & ~mask) | 2;
		f.r15 = f.r14 & FL_DF ? 1 : -1ull;
		struct trap *t = run_frame(&f);
		CHECK_EQ(t->f.vector, UD);
		CHECK_EQ_IN(t->f.rbx, 0, "flags %lx, mask %lx", f.r12, mask);
		CHECK_EQ(t->f.r13, f.r12);
		CHECK_EQ(t->f.r8, f.r14);
	}
}

SNIPPET(do_syscall32, 32, "syscall; nop");
TEST(syscall_compat)
{
	syscall_msrs();
	own_stacks();
	struct frame f = user_code(do_syscall32, do_syscall32_end, 32);
	struct trap *t = run_frame(&f);
	if (!is_amd()) {
		CHECK_EQ(t->f.vector, UD);
		return;
	}
	CHECK_EQ(t->f.vector, 0x82);
	CHECK_EQ(t->f.rcx, USER_CODE + 2);
	CHECK_EQ(t->f.cs, SEL_CODE64);
}

/* ---- SYSRET ---- */
SNIPPET(do_sysretq, 64, "sysretq");
SNIPPET(do_sysretl, 64, "sysretl");
static struct trap *sysret(const u8 *code, u64 rcx, u64 r11)
{
	struct frame f = kernel_frame((u64)code, USER_STACK - 64);
	f.rcx = rcx;
	f.r11 = r11;
	return run_frame(&f);
}
SNIPPET(sysret_target, 64, "nop; int $0x80");
TEST(sysret)
{
	syscall_msrs();
	user_code(sysret_target, sysret_target_end, 64);
	struct trap *t = sysret(do_sysretq, USER_CODE, 0x202 | FL_CF);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rip, USER_CODE + 3);
	CHECK_EQ(t->f.cs, SEL_USER_CODE64);
	CHECK_EQ(t->f.ss, SEL_USER_DATA);
	CHECK_EQ(t->f.rsp, USER_STACK - 64);
	CHECK_EQ(t->f.rflags, 0x202 | FL_CF);
	/* to 32-bit code: 90 CD 80 means the same there */
	t = sysret(do_sysretl, 0x100000000 | USER_CODE, 0x202);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.cs, SEL_USER_CODE32);
	CHECK_EQ(t->f.rip, USER_CODE + 3);
	/* bits that R11 cannot set */
	t = sysret(do_sysretq, USER_CODE, ~0ull & ~(FL_TF | FL_NT | FL_AC));
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rflags & (FL_RF | 1 << 17 | 1 << 15 | 1 << 5 | 1 << 3), 0);
	/* SYSRET in ring 3: #GP */
	struct frame f = user_code(do_sysretq, do_sysretq_end, 64);
	CHECK_EQ(run_frame(&f)->f.vector, GP);
}

TEST(sysret_non_canonical)
{
	syscall_msrs();
	user_code(sysret_target, sysret_target_end, 64);
	struct trap *t = sysret(do_sysretq, 0x800000000000, 0x202);
	/* Intel's processors fault in ring 0, at the SYSRET; AMD's go to ring 3 and fault there */
	CHECK_EQ(t->f.vector, GP);
	CHECK_EQ(t->f.error, 0);
	CHECK_EQ(t->f.cs, is_amd() ? SEL_USER_CODE64 : SEL_CODE64);
	CHECK_EQ(t->f.rip, is_amd() ? 0x800000000000 : (u64)do_sysretq);
}

/* TF in R11: the trap comes right after SYSRET. */
TEST(sysret_tf)
{
	syscall_msrs();
	user_code(sysret_target, sysret_target_end, 64);
	struct trap *t = sysret(do_sysretq, USER_CODE, 0x202 | FL_TF);
	CHECK_EQ(t->f.vector, DB);
	CHECK_EQ(t->f.rip, USER_CODE);
	CHECK_EQ(t->f.cs, SEL_USER_CODE64);
	CHECK_EQ(t->dr6 & 0x4000, 0x4000);
	asm volatile("mov %0, %%dr6" : : "r"(0xffff0ff0ull));
}

/* TF and SYSCALL: SFMASK clears it, so no trap in ring 0. */
TEST(syscall_tf)
{
	syscall_msrs();
	own_stacks();
	struct frame f = user_code(do_syscall, do_syscall_end, 64);
	f.rflags = 2 | FL_TF;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x81);
	CHECK_EQ(t->f.r11, 2 | FL_TF);
}

/* IRET sets TF: one instruction runs, then the trap. */
TEST(iret_tf)
{
	struct frame f = user_code(user_regs, user_regs_end, 64);
	f.rflags = 2 | FL_TF;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, DB);
	CHECK_EQ(t->f.rip, USER_CODE + 3);
	CHECK_EQ(t->f.rax, 1);
	CHECK_EQ(t->f.rflags & FL_TF, FL_TF);
	asm volatile("mov %0, %%dr6" : : "r"(0xffff0ff0ull));
}

/* SYSCALL and SYSRET many times, as a kernel does it. */
CODE(fast_entry);
asm(".pushsection .text\n.globl fast_entry, fast_entry_end\n"
    "fast_entry: swapgs; movq %rsp, %gs:8; movq %gs:0, %rsp; pushq %rcx; pushq %r11; incq %gs:16; addq %rdi, %rax;"
    "popq %r11; popq %rcx; movq %gs:8, %rsp; swapgs; sysretq\nfast_entry_end: .popsection");
SNIPPET(many_syscalls, 64,
	"1: movq %rbx, %rdi; movq %rbx, %rax; syscall; addq %rax, %r12; decq %rbx; jnz 1b; int $0x80");
TEST(round_trips)
{
	static u64 area[4];
	static u8 stack[1024];
	syscall_msrs();
	wrmsr(MSR_LSTAR, (u64)fast_entry);
	area[0] = (u64)stack + 1024;
	area[2] = 0;
	wrmsr(MSR_KERNEL_GS_BASE, (u64)area);
	struct frame f = user_code(many_syscalls, many_syscalls_end, 64);
	f.rbx = 20000;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(area[2], 20000);
	CHECK_EQ(t->f.r12, 20000ull * 20001);
	CHECK_EQ(rdmsr(MSR_KERNEL_GS_BASE), (u64)area);
}

TEST(swapgs)
{
	wrmsr(MSR_GS_BASE, 0x1234);
	wrmsr(MSR_KERNEL_GS_BASE, 0xffff800000005678);
	asm volatile("swapgs");
	CHECK_EQ(rdmsr(MSR_GS_BASE), 0xffff800000005678);
	CHECK_EQ(rdmsr(MSR_KERNEL_GS_BASE), 0x1234);
	static u64 word = 77;
	u64 v;
	wrmsr(MSR_GS_BASE, (u64)&word - 16);
	asm volatile("movq %%gs:16, %0" : "=r"(v));
	CHECK_EQ(v, 77);
	asm volatile("swapgs; swapgs; movq %%gs:16, %0" : "=r"(v));
	CHECK_EQ(v, 77);
}

/* ---- SYSENTER ---- */
SNIPPET(do_sysenter, 64, "sysenter; nop");
SNIPPET(do_sysenter32, 32, "sysenter; nop");

SNIPPET(do_sysexitq, 64, "sysexitq");
static u8 enter_stack[512];
static void sysenter_msrs(void)
{
	wrmsr(MSR_SYSENTER_CS, SEL_CODE64);
	wrmsr(MSR_SYSENTER_ESP, (u64)enter_stack + 512);
	wrmsr(MSR_SYSENTER_EIP, (u64)syscall_entry);
	own_stacks();
}
static void check_sysenter(const u8 *code, const u8 *end, unsigned mode)
{
	struct frame f = user_code(code, end, mode);
	f.rflags = 2 | FL_IF | FL_CF;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x81);
	CHECK_EQ(t->f.rip, (u64)syscall_entry_end);
	CHECK_EQ(t->f.rsp, (u64)enter_stack + 512);
	CHECK_EQ(t->f.cs, SEL_CODE64);
	CHECK_EQ(t->f.ss, SEL_DATA);
	CHECK_EQ(t->f.rflags & (FL_IF | FL_CF), FL_CF);
}
/* In long mode AMD's processors have neither; where they are said to be invalid there, so must they be here. */
TEST(sysenter)
{
	sysenter_msrs();
	if (is_amd()) {
		struct frame f = user_code(do_sysenter, do_sysenter_end, 64);
		CHECK_EQ(run_frame(&f)->f.vector, UD);
		f = user_code(do_sysenter32, do_sysenter32_end, 32);
		CHECK_EQ(run_frame(&f)->f.vector, UD);
		return;
	}
	check_sysenter(do_sysenter, do_sysenter_end, 64);
	check_sysenter(do_sysenter32, do_sysenter32_end, 32);
	wrmsr(MSR_SYSENTER_CS, 0);
	struct frame f = user_code(do_sysenter, do_sysenter_end, 64);
	CHECK_EQ(run_frame(&f)->f.vector, GP);
}
TEST(sysexit)
{
	if (is_amd())
		skip("not in long mode on AMD");
	sysenter_msrs();
	user_code(sysret_target, sysret_target_end, 64);
	struct frame f = kernel_frame((u64)do_sysexitq, 0);
	f.rdx = USER_CODE;
	f.rcx = USER_STACK;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.cs, SEL_CODE64 + 32 + 3);
	CHECK_EQ(t->f.rsp, USER_STACK);
}

/* 32-bit code in ring 0, reached by a far jump, and back. */
asm(".pushsection .text\n.globl go32\n.code64\ngo32:\n"
    "pushq %rbx; movq %rsp, %rdx; movl $0xabcdef01, %ebx; ljmp *go32_to(%rip)\n"
    ".code32\n1: movl %cs, %eax; addl $0x11111111, %ebx; decl %ebx; pushl %ebx; popl %ecx; ljmp $0x10, $2f\n"
    ".code64\n2: movq %rdx, %rsp; popq %rbx; movq %rcx, %rax; ret\n"
    "go32_to: .long 1b; .word 0x08\n.popsection");
u64 go32(void);
TEST(compat_ring0)
{
	CHECK_EQ(go32(), 0xabcdef01 + 0x11111111 - 1);
}

/* Far CALL and RETF with all operand sizes, same ring; and to an outer ring. */
asm(".pushsection .text\n.globl far_calls\nfar_calls:\n"
    "lcall *1f(%rip); lea 3f(%rip), %rcx; pushq $16; pushq %rcx; lretq\n"
    "1: .long 2f; .word 16\n2: incl %eax; lretl\n3: incl %eax; pushq $0x77; pushq $16; leaq 4f(%rip), %rcx; pushq "
    "%rcx; "
    "lretq $8\n4: ret\n.popsection");
TEST(far_call)
{
	u64 n = 0;
	asm volatile("xorl %%eax, %%eax; call far_calls" : "=a"(n) : : "rcx", "memory", "cc");
	CHECK_EQ(n, 2);
}
SNIPPET(retf_out, 64, "pushq %rbx; pushq %rcx; pushq %rdx; pushq %rsi; lretq");
TEST(far_return_outer)
{
	static u8 stack[256];
	user_code(to_int80, to_int80_end, 64);
	struct frame f = kernel_frame((u64)retf_out, (u64)stack + 256);
	f.rbx = SEL_USER_DATA;
	f.rcx = USER_STACK;
	f.rdx = SEL_USER_CODE64;
	f.rsi = USER_CODE;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.cs, SEL_USER_CODE64);
	CHECK_EQ(t->f.ss, SEL_USER_DATA);
	CHECK_EQ(t->f.rsp, USER_STACK);
}

/*
 * Segments of inner rings become null on the way out, but the bases of FS and GS stay, as they do on real processors:
 * kernels count on the base that they have given GS being there when they are entered again.
 */
SNIPPET(user_bases, 64,
	"movl %gs, %eax; movl %fs, %ebx; movl %ds, %ecx; movq %gs:8, %rsi; movq %fs:-8, %rdi; int $0x80");
static void load_bases(void)
{
	asm volatile("mov %0, %%fs; mov %0, %%gs; mov %0, %%ds" : : "r"(SEL_DATA));
	wrmsr(MSR_GS_BASE, USER_DATA);
	wrmsr(MSR_FS_BASE, USER_DATA + 32);
}
static void check_bases(const struct trap *t)
{
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.cs, SEL_USER_CODE64);
	CHECK_EQ(t->f.rax, 0);
	CHECK_EQ(t->f.rbx, 0);
	CHECK_EQ(t->f.rcx, 0);
	CHECK_EQ(t->f.rsi, 77);
	CHECK_EQ(t->f.rdi, 88);
	CHECK_EQ(rdmsr(MSR_GS_BASE), USER_DATA);
	CHECK_EQ(rdmsr(MSR_FS_BASE), USER_DATA + 32);
}
TEST(outer_ring_keeps_bases)
{
	static u8 stack[256];
	struct frame f = user_code(user_bases, user_bases_end, 64), k = kernel_frame((u64)retf_out, (u64)stack + 256);
	((u64 *)USER_DATA)[1] = 77;
	((u64 *)USER_DATA)[3] = 88;
	load_bases();
	check_bases(run_frame(&f));
	load_bases();
	k.rbx = f.ss;
	k.rcx = f.rsp;
	k.rdx = f.cs;
	k.rsi = f.rip;
	check_bases(run_frame(&k));
	asm volatile("mov %0, %%fs; mov %0, %%gs; mov %1, %%ds" : : "r"(0), "r"(SEL_DATA));
}

/* A call gate in 64-bit mode (16 bytes): from ring 3 to ring 0 on the TSS's stack. */
SNIPPET(call_gate_user, 64, "lcall *(%rdi); nop");
TEST(call_gate)
{
	u64 *d = &gdt[SEL_TEST / 8], to = (u64)kernel_int80;
	d[0] = (to & 0xffff) | (u64)SEL_CODE64 << 16 | 0xecull << 40 | (to >> 16 & 0xffff) << 48;
	d[1] = to >> 32;
	struct frame f = user_code(call_gate_user, call_gate_user_end, 64);
	f.rdi = USER_DATA;
	struct {
		u32 off;
		u16 sel;
	} __attribute__((packed)) p = {0, SEL_TEST | 3};
	memcpy((void *)USER_DATA, &p, sizeof(p));
	set_gate(0x80, trap_stubs[0x80], 1, 0xee);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.cs, SEL_CODE64);
	CHECK_EQ(t->f.ss, 0);
	CHECK_EQ(t->f.rsp, tss[0].rsp[0] - 32);
	u64 *s = (u64 *)t->f.rsp;
	CHECK_EQ(s[0], USER_CODE + 2);
	CHECK_EQ(s[1], SEL_USER_CODE64);
	CHECK_EQ(s[2], USER_STACK);
	CHECK_EQ(s[3], SEL_USER_DATA);
}

/* IST: each of the seven, whatever the ring. */
TEST(ist)
{
	static u8 stacks[8][512] __attribute__((aligned(16)));
	static u64 old[7];
	memcpy(old, tss[0].ist, sizeof(old));
	for (unsigned i = 1; i <= 7; i++) {
		tss[0].ist[i - 1] = (u64)stacks[i] + 512;
		set_gate(0x80, trap_stubs[0x80], i, 0xee);
		for (unsigned user = 0; user < 2; user++) {
			memset(stacks, 0, sizeof(stacks));
			struct frame f = user ? user_code(to_int80, to_int80_end, 64) : kernel_frame((u64)to_int80, 0);
			CHECK_EQ(run_frame(&f)->f.vector, 0x80);
			CHECK_EQ(((u64 *)(stacks[i] + 512))[-5], last_trap()->f.rip);
		}
	}
	memcpy(tss[0].ist, old, sizeof(old));
}
