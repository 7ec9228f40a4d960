/*
 * User code as programs have it: in a state in which an engine may leave it to the processor itself (interrupts on,
 * Linux' selectors), until something stops it. What stops it, what it must not see, and what others do to its pages
 * meanwhile.
 */
/* run: cpus=2 */
#include "program.h"

const char payload[] = "direct";

/* Long enough for whoever wants to see it run before he decides. */
SNIPPET(sum_up, 64, "movq $10000000, %rcx; 1: addq %rcx, %rax; xorq %rax, %rdx; rolq $7, %rdx; decq %rcx; jnz 1b; ud2");
TEST(computes)
{
	struct frame f = PROGRAM(sum_up);
	u64 sum = f.rax = 3, mix = f.rdx = 5;
	f.rbx = 0x1111, f.r8 = 0x8888, f.r9 = 0x9999, f.r15 = 0xffff, f.rbp = 0x5555;
	for (u64 i = 10000000; i; i--) {
		sum += i;
		mix ^= sum;
		mix = mix << 7 | mix >> 57;
	}
	struct trap *t = run_to_end(&f);
	CHECK_EQ(t->f.rax, sum);
	CHECK_EQ(t->f.rdx, mix);
	CHECK_EQ(t->f.rcx, 0);
	CHECK(t->f.rbx == 0x1111 && t->f.r8 == 0x8888 && t->f.r9 == 0x9999 && t->f.r15 == 0xffff && t->f.rbp == 0x5555);
	CHECK_EQ(t->f.rip, USER_CODE + (sum_up_end - sum_up) - 2);
	CHECK_EQ(t->f.rsp, USER_STACK);
	CHECK_EQ(t->f.rflags & ~(FL_RF | FL_CF), 2 | FL_IF | FL_ZF | FL_PF);
	CHECK_EQ(t->f.cs, SEL_USER_CODE64);
	CHECK_EQ(t->f.ss, SEL_USER_DATA);
}

/* Accessed and dirty bits: as the accesses are, none before. */
SNIPPET(load_only, 64, "movq (%rdi), %rax; movq $1000, %rcx; 1: loop 1b; ud2");
SNIPPET(store_late, 64, "movq (%rdi), %rax; movq $1000, %rcx; 1: loop 1b; ud2; movq %rax, 8(%rdi); ud2");
TEST(accessed_and_dirty)
{
	struct frame f = PROGRAM(load_only);
	f.rdi = USER_DATA;
	volatile u64 *pte = walk(USER_DATA, 1, false);
	*pte &= ~(PTE_A | PTE_D);
	write_cr3(read_cr3());
	run_to_end(&f);
	CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A);

	f = PROGRAM(store_late);
	f.rdi = USER_DATA;
	pte = walk(USER_DATA, 1, false);
	*pte &= ~(PTE_A | PTE_D);
	write_cr3(read_cr3());
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, UD);
	CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A);
	f = t->f;
	f.rip += 2;
	run_to_end(&f);
	CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A | PTE_D);
}

/* What the kernel does to a page between two runs. */
SNIPPET(swap, 64, "movq $100, %rcx; 1: xchgq %rax, (%rdi); loop 1b; ud2");
static void check_fault(const struct frame *f, u64 cr2, u64 error)
{
	struct trap *t = run_frame(f);
	CHECK_EQ(t->f.vector, PF);
	CHECK_EQ(t->cr2, cr2);
	CHECK_EQ(t->f.error, error);
}
TEST(page_changes)
{
	struct frame f = PROGRAM(swap);
	volatile u64 *pte = walk(USER_DATA, 1, false);
	u64 *one = (u64 *)(*pte & PTE_ADDR), *two = alloc_pages(1);
	f.rdi = USER_DATA + 16;
	for (u64 i = 1; i < 20; i++) {
		one[2] = i;
		two[2] = 1000 + i;
		f.rax = 7;
		*pte = (u64)one | PTE_USER;
		invlpg(USER_DATA);
		CHECK_EQ(run_to_end(&f)->f.rax, 7);
		CHECK_EQ(one[2], i);
		*pte = (u64)two | PTE_USER;
		invlpg(USER_DATA);
		f.rcx = 1;
		CHECK_EQ(run_to_end(&f)->f.rax, 7);
		CHECK_EQ(two[2], 1000 + i);
		*pte &= ~PTE_W;
		if (i & 1)
			invlpg(USER_DATA);
		else
			write_cr3(read_cr3());
		check_fault(&f, USER_DATA + 16, PF_P | PF_W | PF_U);
		*pte = 0;
		invlpg(USER_DATA);
		check_fault(&f, USER_DATA + 16, PF_W | PF_U);
		*pte = (u64)one | PTE_KERNEL;
		check_fault(&f, USER_DATA + 16, PF_P | PF_W | PF_U);
	}
}

/* A program's table becomes another's: everything is elsewhere at once, and nothing of the first is seen. */
#define PLACES 8 /* pages of data */
SNIPPET(sum_and_mark, 64,
	"movl $8, %ecx; 1: addq (%rdi), %rax; movq %rdx, 8(%rdi); movq %rdx, -8(%rsp); addq $4096, %rdi; loop 1b; ud2");
TEST(becomes_another)
{
	u64 data[2], stack[2], code[2];
	struct frame f;
	for (unsigned i = 0; i < 2; i++) {
		f = PROGRAM(sum_and_mark);
		code[i] = (u64)page_at(USER_CODE);
		stack[i] = (u64)alloc_pages(1);
		data[i] = (u64)alloc_pages(PLACES);
		for (unsigned n = 0; n < PLACES; n++)
			*(volatile u64 *)(data[i] + n * PAGE) = (n + 1) << (i * 8);
	}
	f.rdi = USER_DATA;
	f.rax = 0;
	for (u64 turn = 1; turn < 100; turn++) {
		unsigned i = turn / 3 & 1;
		map(USER_CODE, code[i], PTE_USER);
		map(USER_STACK - PAGE, stack[i], PTE_USER);
		for (unsigned n = 0; n < PLACES; n++)
			map(USER_DATA + n * PAGE, data[i] + n * PAGE, PTE_USER);
		write_cr3(read_cr3());
		f.rdx = turn;
		CHECK_EQ(run_to_end(&f)->f.rax, (u64)PLACES * (PLACES + 1) / 2 << (i * 8));
		for (unsigned n = 0; n < PLACES; n++)
			CHECK_EQ(*(volatile u64 *)(data[i] + n * PAGE + 8), turn);
		CHECK_EQ(*(volatile u64 *)(stack[i] + PAGE - 8), turn);
		CHECK(turn < 4 || *(volatile u64 *)(data[!i] + 8) == turn - turn % 3 - 1);
	}
}

/* Data that is executed, and code behind which there is nothing. */
SNIPPET(go_to_data, 64, "movq $1000, %rcx; 1: loop 1b; movb $0xc3, (%rdi); call *%rdi; ud2");
TEST(not_executable)
{
	struct frame f = PROGRAM(go_to_data);
	f.rdi = USER_DATA + 0x30;
	run_to_end(&f);
	*walk(USER_DATA, 1, false) |= PTE_NX;
	invlpg(USER_DATA);
	check_fault(&f, USER_DATA + 0x30, PF_P | PF_I | PF_U);
	CHECK_EQ(last_trap()->f.rip, USER_DATA + 0x30);
	*walk(USER_DATA, 1, false) = 0;
	invlpg(USER_DATA);
	check_fault(&f, USER_DATA + 0x30, PF_W | PF_U);
}

/* Code that is not to be executed any more, and is as it was but for that; and is again. */
SNIPPET(only_loop, 64, "movq $1000, %rcx; 1: loop 1b; ud2");
TEST(executable_no_more)
{
	struct frame f = PROGRAM(only_loop);
	volatile u64 *pte = walk(USER_CODE, 1, false);
	for (unsigned i = 0; i < 8; i++) {
		run_to_end(&f);
		*pte |= PTE_NX;
		if (i & 1)
			invlpg(USER_CODE);
		else
			write_cr3(read_cr3());
		check_fault(&f, USER_CODE, PF_P | PF_I | PF_U);
		*pte &= ~PTE_NX;
	}
}

/* It changes itself: the instruction to come, and again and again. */
SNIPPET(patch_itself, 64,
	"xorl %eax, %eax; leaq 2f(%rip), %rsi; movl $200, %ecx\n"
	"1: movl %ecx, 1(%rsi); 2: movl $0, %edx; addl %edx, %eax; decl %ecx; jnz 1b; ud2");
TEST(changes_itself)
{
	struct frame f = PROGRAM(patch_itself);
	CHECK_EQ(run_to_end(&f)->f.rax, 200 * 201 / 2);
}

SNIPPET(constant, 64, "movq $10000, %rcx; 1: loop 1b; movl $0x11111111, %eax; ud2");
TEST(changed_between)
{
	struct frame f = PROGRAM(constant);
	u8 *code = page_at(USER_CODE);
	u32 *imm = (u32 *)(code + (constant_end - constant) - 6);
	for (u32 i = 0; i < 50; i++) {
		*(volatile u32 *)imm = i;
		CHECK_EQ(run_to_end(&f)->f.rax, i);
	}
}

/* Another processor's data and code: it waits for a word, and for an instruction to become another. */
SNIPPET(spin_on_word, 64, "movl $1, (%rdi); 1: cmpl $2, (%rdi); jne 1b; movl $3, (%rdi); ud2");
SNIPPET(spin_on_code, 64, "movl $1, (%rdi); 1: jmp 1b; movl $3, (%rdi); ud2");
static void check_spin(const u8 *begin, const u8 *end, void (*change)(void))
{
	if (cpus < 2)
		skip("one processor");
	smp_start();
	static struct frame f;
	f = program(begin, end);
	f.rdi = USER_DATA;
	volatile u32 *word = page_at(USER_DATA);
	smp_post(1, run_there, &f);
	CHECK(WAIT_FOR(*word == 1, 2000000));
	delay_us(20000);
	change();
	CHECK(WAIT_FOR(*word == 3, 2000000));
	smp_wait(1);
}
static void change_word(void)
{
	*(volatile u32 *)page_at(USER_DATA) = 2;
}
static void change_code(void)
{
	*(volatile u16 *)((u64)page_at(USER_CODE) + 6) = 0x9090;
}
TEST(word_of_another)
{
	check_spin(spin_on_word, spin_on_word_end, change_word);
}
TEST(code_of_another)
{
	check_spin(spin_on_code, spin_on_code_end, change_code);
}

/* What tells one processor from another, or from what a system makes of it. */
#define WARM_UP "movq $1000, %r15; 1: decq %r15; jnz 1b; "
SNIPPET(ask_cpuid, 64, WARM_UP "cpuid; ud2");
TEST(cpuid_is_the_guests)
{
	static const u32 leaves[] = {0, 1, 7, 0xb, 0xd, 0x40000000, 0x80000001, 0x80000002};
	for (unsigned i = 0; i < sizeof(leaves) / sizeof(leaves[0]); i++) {
		struct frame f = PROGRAM(ask_cpuid);
		u32 want[4];
		cpuid(leaves[i], 0, want);
		f.rax = leaves[i];
		f.rcx = 0;
		struct trap *t = run_to_end(&f);
		CHECK_EQ_IN(t->f.rax, want[0], "leaf %x", leaves[i]);
		CHECK_EQ_IN(t->f.rbx, want[1], "leaf %x", leaves[i]);
		CHECK_EQ_IN(t->f.rcx, want[2], "leaf %x", leaves[i]);
		CHECK_EQ_IN(t->f.rdx, want[3], "leaf %x", leaves[i]);
	}
}

SNIPPET(ask_tsc, 64, WARM_UP "rdtsc; shlq $32, %rdx; orq %rdx, %rax; ud2");
SNIPPET(ask_tscp, 64, WARM_UP "rdtscp; shlq $32, %rdx; orq %rdx, %rax; ud2");
TEST(time_is_the_guests)
{
	for (unsigned p = 0; p < (HAS_RDTSCP ? 2 : 1); p++) {
		struct frame f = p ? PROGRAM(ask_tscp) : PROGRAM(ask_tsc);
		if (p)
			wrmsr(MSR_TSC_AUX, 0x1234);
		u64 before = rdtsc();
		struct trap *t = run_to_end(&f);
		u64 after = rdtsc(), between = t->f.rax;
		CHECK(before < between && between < after);
		if (p)
			CHECK_EQ(t->f.rcx, 0x1234);
		write_cr4(read_cr4() | CR4_TSD);
		t = run_frame(&f);
		CHECK_EQ(t->f.vector, GP);
		CHECK_EQ(t->f.rip, USER_CODE + 12);
		write_cr4(read_cr4() & ~CR4_TSD);
	}
}

SNIPPET(ask_gdt, 64, WARM_UP "sgdt (%rdi); ud2");
SNIPPET(ask_idt, 64, WARM_UP "sidt (%rdi); ud2");
SNIPPET(ask_tr, 64, WARM_UP "xorl %eax, %eax; str %ax; ud2");
SNIPPET(ask_ldt, 64, WARM_UP "xorl %eax, %eax; sldt %ax; ud2");
SNIPPET(ask_msw, 64, WARM_UP "smsw %rax; ud2");
SNIPPET(ask_limit, 64, WARM_UP "lsl %ecx, %eax; ud2");
SNIPPET(ask_rights, 64, WARM_UP "lar %ecx, %eax; ud2");
TEST(tables_are_the_guests)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) want;
	struct frame f = PROGRAM(ask_gdt);
	f.rdi = USER_DATA;
	asm volatile("sgdt %0" : "=m"(want));
	run_to_end(&f);
	CHECK(!memcmp(page_at(USER_DATA), &want, 10));
	f = PROGRAM(ask_idt);
	f.rdi = USER_DATA;
	asm volatile("sidt %0" : "=m"(want));
	run_to_end(&f);
	CHECK(!memcmp(page_at(USER_DATA), &want, 10));
	f = PROGRAM(ask_tr);
	CHECK_EQ(run_to_end(&f)->f.rax, SEL_TSS);
	f = PROGRAM(ask_ldt);
	CHECK_EQ(run_to_end(&f)->f.rax, 0);
	f = PROGRAM(ask_msw);
	CHECK_EQ(run_to_end(&f)->f.rax, read_cr0());
	gdt[SEL_TEST / 8] = 0x0000f30012345678; /* user data, limit 0x5678 */
	f = PROGRAM(ask_limit);
	f.rcx = SEL_TEST | 3;
	CHECK_EQ(run_to_end(&f)->f.rax, 0x5678);
	f = PROGRAM(ask_rights);
	f.rcx = SEL_TEST | 3;
	CHECK_EQ(run_to_end(&f)->f.rax & 0xffff, 0xf300);
}
TEST(umip)
{
	if (!HAS_UMIP)
		skip("no UMIP");
	write_cr4(read_cr4() | CR4_UMIP);
	struct frame f = PROGRAM(ask_tr);
	CHECK_EQ(run_frame(&f)->f.vector, GP);
	f = PROGRAM(ask_gdt);
	f.rdi = USER_DATA;
	CHECK_EQ(run_frame(&f)->f.vector, GP);
	CHECK_EQ(last_trap()->f.rip, USER_CODE + 12);
}

/* One of them whose bytes lie in two pages. */
TEST(cpuid_across_pages)
{
	struct frame f = PROGRAM(ask_cpuid);
	u8 *here = page_at(USER_CODE), *there = page_at(USER_CODE + PAGE);
	u32 want[4];
	cpuid(0, 0, want);
	memset(here, 0x90, PAGE);
	here[PAGE - 1] = 0x0f;
	memcpy(there, "\xa2\x0f\x0b", 3);
	f.rax = f.rcx = 0;
	struct trap *t = run_to_end(&f);
	CHECK_EQ(t->f.rax, want[0]);
	CHECK_EQ(t->f.rbx, want[1]);
	f.rip = USER_CODE + PAGE - 1;
	CHECK_EQ(run_to_end(&f)->f.rdx, want[3]);
}

/* Traps and faults, with what they leave. */
SNIPPET(do_int3, 64, WARM_UP "int3; ud2");
SNIPPET(do_int_3, 64, WARM_UP ".byte 0xcd, 3; ud2");
SNIPPET(do_int4, 64, WARM_UP "int $4; ud2");
SNIPPET(do_int1, 64, WARM_UP ".byte 0xf1; ud2");
SNIPPET(do_int33, 64, WARM_UP "int $33; ud2");
SNIPPET(do_ud, 64, WARM_UP "ud2; ud2");
SNIPPET(do_de, 64, WARM_UP "xorl %edx, %edx; xorl %ecx, %ecx; divl %ecx; ud2");
SNIPPET(do_hlt, 64, WARM_UP "hlt; ud2");
SNIPPET(do_cli, 64, WARM_UP "cli; ud2");
SNIPPET(do_in, 64, WARM_UP "inb $0x80, %al; ud2");
SNIPPET(do_cr, 64, WARM_UP "movq %cr0, %rax; ud2");
SNIPPET(do_far, 64, WARM_UP "movq $0x800000000000, %rbx; movq (%rbx), %rax; ud2");
SNIPPET(do_kernel, 64, WARM_UP "movq $-4096, %rbx; movq (%rbx), %rax; ud2");
SNIPPET(do_low, 64, WARM_UP "xorl %ebx, %ebx; movq %rax, 0x40(%rbx); ud2");
SNIPPET(do_top, 64, WARM_UP "movq $0x7fffffffd010, %rbx; movq (%rbx), %rax; ud2");
TEST(exceptions)
{
	static const struct {
		const u8 *begin, *end;
		unsigned vector, error, off;
	} rows[] = {
		{do_int3, do_int3_end, BP, 0, 13},
		{do_int_3, do_int_3_end, BP, 0, 14},
		{do_int4, do_int4_end, OF, 0, 14},
		{do_int1, do_int1_end, DB, 0, 13},
		{do_int33, do_int33_end, GP, 0x10a, 12},
		{do_ud, do_ud_end, UD, 0, 12},
		{do_de, do_de_end, DE, 0, 16},
		{do_hlt, do_hlt_end, GP, 0, 12},
		{do_cli, do_cli_end, GP, 0, 12},
		{do_in, do_in_end, GP, 0, 12},
		{do_cr, do_cr_end, GP, 0, 12},
		{do_far, do_far_end, GP, 0, 22},
		{do_kernel, do_kernel_end, PF, PF_U, 19},
		{do_low, do_low_end, PF, PF_P | PF_W | PF_U, 14},
		{do_top, do_top_end, PF, PF_U, 22},
	};
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct frame f = program(rows[i].begin, rows[i].end);
		struct trap *t = run_frame(&f);
		CHECK_EQ_IN(t->f.vector, rows[i].vector, "row %u", i);
		CHECK_EQ_IN(t->f.error, rows[i].error, "row %u", i);
		CHECK_EQ_IN(t->f.rip, USER_CODE + rows[i].off, "row %u", i);
		CHECK_EQ_IN(t->f.rflags & FL_IF, FL_IF, "row %u", i);
	}
}

/* The trap flag, set by the program itself. */
SNIPPET(step_itself, 64, WARM_UP "pushfq; orl $0x100, (%rsp); popfq; nop; nop; ud2");
TEST(single_step)
{
	struct frame f = PROGRAM(step_itself);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, DB);
	CHECK_EQ(t->f.rip, USER_CODE + 22);
	CHECK_EQ(t->dr6 & 0x4000, 0x4000);
	CHECK_EQ(t->f.rflags & FL_TF, FL_TF);
	f = t->f;
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, DB);
	CHECK_EQ(t->f.rip, USER_CODE + 23);
}

/* Flags that programs change, seen by themselves and by the kernel. */
SNIPPET(set_flags, 64, WARM_UP "pushq %rax; popfq; movq $3, %rcx; pushfq; popq %rbx; cld; ud2");
TEST(flags)
{
	static const u64 rows[] = {0, FL_DF, FL_NT, FL_AC, FL_ID, FL_ARITH, FL_DF | FL_NT | FL_ID | FL_CF, FL_IOPL};
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct frame f = PROGRAM(set_flags);
		f.rax = rows[i] | 2;
		struct trap *t = run_to_end(&f);
		u64 want = (rows[i] & ~FL_IOPL) | 2 | FL_IF;
		CHECK_EQ_IN(t->f.rbx, want, "flags %lx", rows[i]);
		CHECK_EQ_IN(t->f.rflags & ~FL_RF, want & ~FL_DF, "flags %lx", rows[i]);
	}
}

/* Vector and x87 state, over interruptions by the kernel, who uses it too. */
SNIPPET(use_vectors, 64,
	"movq %rax, %xmm0; movq %rax, %xmm15; fninit; fldpi; movq $1000, %rcx; 1: loop 1b; ud2; "
	"paddq %xmm15, %xmm0; movq %xmm0, %rax; fldl2e; fstpl (%rdi); fstpl 8(%rdi); ud2");
TEST(vectors)
{
	struct frame f = PROGRAM(use_vectors);
	f.rax = 0x1122334455667788;
	f.rdi = USER_DATA;
	f = run_to_end(&f)->f;
	f.rip += 2;
	double x = 1, *data = page_at(USER_DATA);
	asm volatile("movsd %0, %%xmm1" : : "m"(x));
	f = run_to_end(&f)->f;
	CHECK_EQ(f.rax, 2 * 0x1122334455667788);
	CHECK_EQ(*(u64 *)&data[0], 0x3ff71547652b82fe); /* log2(e) */
	CHECK_EQ(*(u64 *)&data[1], 0x400921fb54442d18); /* pi */
}

SNIPPET(use_fs, 64, WARM_UP "movq %fs:8, %rax; movq %gs:16, %rbx; movw %fs, %cx; movw %ds, %dx; ud2");
TEST(segments)
{
	struct frame f = PROGRAM(use_fs);
	u64 *data = page_at(USER_DATA);
	data[1] = 0x1234;
	data[6] = 0x5678;
	f.rcx = f.rdx = 0;
	wrmsr(MSR_FS_BASE, USER_DATA);
	wrmsr(MSR_GS_BASE, USER_DATA + 32);
	struct trap *t = run_to_end(&f);
	CHECK_EQ(t->f.rax, 0x1234);
	CHECK_EQ(t->f.rbx, 0x5678);
	CHECK_EQ(t->f.rcx, 0);
	CHECK_EQ(t->f.rdx, SEL_USER_DATA);
	wrmsr(MSR_FS_BASE, 0);
	wrmsr(MSR_GS_BASE, 0);
}

SNIPPET(load_segments, 64, WARM_UP "movl %ecx, %ds; movl %ds, %ebx; movl %eax, %es; ud2");
TEST(segment_loads)
{
	struct frame f = PROGRAM(load_segments);
	f.rax = 0;
	f.rcx = SEL_USER_DATA;
	struct trap *t = run_to_end(&f);
	CHECK_EQ(t->f.rbx, SEL_USER_DATA);
	u16 ds;
	asm volatile("mov %%ds, %0" : "=r"(ds));
	CHECK_EQ(ds, SEL_USER_DATA);
	f.rcx = SEL_TEST | 3;
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, GP);
	CHECK_EQ(t->f.error, SEL_TEST);
	gdt[SEL_TEST / 8] = 0x00cff3000000ffff;
	t = run_to_end(&f);
	CHECK_EQ(t->f.rbx, SEL_TEST | 3);
	u64 user_data = SEL_USER_DATA;
	asm volatile("mov %0, %%ds; mov %0, %%es" : : "r"(user_data));
}

/* Interrupts in the middle of it, each of which the kernel goes on from. */
static volatile unsigned ticks;
static bool on_tick(struct frame *f)
{
	ticks++;
	apic_write(APIC_EOI, 0);
	return true;
}
SNIPPET(count_long, 64, "movq $1000000000, %rcx; 1: incq %rax; incq (%rdi); decq %rcx; jnz 1b; ud2");
TEST(interrupted)
{
	apic_enable();
	ticks = 0;
	set_handler(0x50, on_tick);
	apic_timer(0x20050, 1000000); /* periodic */
	struct frame f = PROGRAM(count_long);
	f.rax = 0;
	f.rdi = USER_DATA;
	struct trap *t = run_to_end(&f);
	apic_write(APIC_TIMER_INIT, 0);
	apic_write(APIC_LVT_TIMER, 0x10000);
	asm volatile("sti; nop; nop; cli" : : : "memory"); /* the last one */
	CHECK_EQ(t->f.rax, 1000000000);
	CHECK_EQ(*(volatile u64 *)page_at(USER_DATA), 1000000000);
	CHECK(ticks > 3);
}

/* SYSCALL, many times. */
asm(".pushsection .text\n.globl direct_entry\ndirect_entry: incq direct_calls(%rip); sysretq\n.popsection");
u64 direct_calls;
SNIPPET(call_system, 64, "movq $1000, %rbx; 1: movl $7, %eax; syscall; cmpq %rcx, %rdx; decq %rbx; jnz 1b; ud2");
TEST(system_calls)
{
	extern u8 direct_entry[];
	wrmsr(MSR_STAR, (u64)(SEL_USER_CODE32) << 48 | (u64)SEL_CODE64 << 32);
	wrmsr(MSR_LSTAR, (u64)direct_entry);
	wrmsr(MSR_SFMASK, FL_IF);
	direct_calls = 0;
	struct frame f = PROGRAM(call_system);
	struct trap *t = run_to_end(&f);
	CHECK_EQ(direct_calls, 1000);
	CHECK_EQ(t->f.rax, 7);
	CHECK_EQ(t->f.rcx, USER_CODE + 14);
	CHECK_EQ(t->f.r11 & FL_IF, FL_IF);
}
