/*
 * User code in pages that have CPUID somewhere else, or its like, and run by the processor itself all the same: what
 * they compute, what they read of themselves, and what becomes of them.
 */
/* run: cpus=2 */
#include "program.h"

const char payload[] = "sensitive";

/* CPUID, then what it has answered to leaf 0 stays in memory. */
#define KEEP "movl %eax, (%rdi); movl %ebx, 4(%rdi); movl %ecx, 8(%rdi); movl %edx, 12(%rdi); "
#define ASK "xorl %eax, %eax; xorl %ecx, %ecx; cpuid; " KEEP

static void check_answer(void)
{
	u32 want[4];
	cpuid(0, 0, want);
	CHECK(!memcmp(page_at(USER_DATA), want, sizeof(want)));
}

/* Where a byte is for the first time from `at` on. */
static unsigned find(const volatile u8 *code, unsigned at, u8 byte)
{
	while (code[at] != byte)
		at++;
	return at;
}

/* In turns with what is not sensitive, before it, behind it, and straight through. */
SNIPPET(in_turns, 64,
	"movl $300, %r15d; xorl %r14d, %r14d; 1: movl $100, %r13d; 2: addq %r13, %r14; decl %r13d; jnz 2b\n" ASK
	"movl $50, %r13d; 3: rolq $3, %r14; decl %r13d; jnz 3b; decl %r15d; jnz 1b; ud2");
TEST(in_turns)
{
	struct frame f = PROGRAM(in_turns);
	f.rdi = USER_DATA;
	struct trap *t = run_to_end(&f);
	u64 want = 0;
	for (unsigned i = 0; i < 300; i++) {
		want += 5050;
		want = want << (150 % 64) | want >> (64 - 150 % 64);
	}
	CHECK_EQ(t->f.r14, want);
	CHECK_EQ(t->f.r15, 0);
	check_answer();
}

/* Each instruction that the system, and not the processor, makes different: XGETBV, LSL, SMSW and STR between others.
 */
SNIPPET(others, 64,
	"movl $100, %r15d; 1: decl %r15d; jnz 1b; xorl %ecx, %ecx; xgetbv; movl %eax, (%rdi); smsw %rax; movq %rax, "
	"8(%rdi)\n"
	"xorl %eax, %eax; str %ax; movq %rax, 16(%rdi); movl $100, %r15d; 1: decl %r15d; jnz 1b; movl %esi, %ecx\n"
	"lsl %ecx, %eax; movq %rax, 24(%rdi); ud2");
TEST(others)
{
	if (!HAS_XSAVE)
		skip("no XSAVE");
	write_cr4(read_cr4() | CR4_OSXSAVE);
	gdt[SEL_TEST / 8] = 0x0000f30012345678; /* user data, limit 0x5678 */
	struct frame f = PROGRAM(others);
	f.rdi = USER_DATA;
	f.rsi = SEL_TEST | 3;
	run_to_end(&f);
	u64 *data = page_at(USER_DATA);
	u32 xcr0, high;
	asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
	CHECK_EQ((u32)data[0], xcr0);
	CHECK_EQ(data[1], read_cr0());
	CHECK_EQ(data[2], SEL_TSS);
	CHECK_EQ(data[3], 0x5678);
}

/* Its own bytes, those of CPUID too, one by one and in a row, which is no store; and it goes on. */
SNIPPET(read_itself, 64,
	"leaq 1f(%rip), %rsi; movl $64, %r15d; xorl %r14d, %r14d\n"
	"2: movzbl (%rsi), %eax; imulq $31, %r14; addq %rax, %r14; incq %rsi; decl %r15d; jnz 2b\n"
	"subq $64, %rsi; movq 1f(%rip), %r13; addq $32, %rdi; movl $64, %ecx; rep movsb; subq $96, %rdi\n"
	"1: nop; " ASK ".skip 64, 0x90; ud2");
TEST(reads_itself)
{
	struct frame f = PROGRAM(read_itself);
	f.rdi = USER_DATA;
	volatile u64 *pte = walk(USER_CODE, 1, false);
	*pte &= ~PTE_D;
	invlpg(USER_CODE);
	struct trap *t = run_to_end(&f);
	const u8 *code = page_at(USER_CODE), *data = page_at(USER_DATA);
	unsigned at = find(code, 0, 0x90);
	u64 want = 0;
	for (unsigned i = 0; i < 64; i++)
		want = want * 31 + code[at + i];
	CHECK_EQ(t->f.r14, want);
	CHECK_EQ(t->f.r13, *(u64 *)(code + at));
	CHECK(!memcmp(data + 32, code + at, 64));
	CHECK(!(*pte & PTE_D));
	check_answer();
}

/*
 * MOV's operand ends with the opcode of another one, whose operand is CPUID and what comes behind it: who jumps there
 * has that number.
 */
SNIPPET(overlapping, 64,
	"movl $100, %r15d; 1: decl %r15d; jnz 1b; xorl %eax, %eax; xorl %ecx, %ecx; testl %esi, %esi; jnz 3f; jmp 2f\n"
	"3: jmp 2f + 4; .skip 32, 0x90; 2: .byte 0xbb, 1, 2, 3, 0xb8; cpuid; movl %eax, (%rdi); movl %ebx, 4(%rdi)\n"
	"movl %ecx, 8(%rdi); movl %edx, 12(%rdi); ud2");
TEST(overlapping)
{
	for (unsigned i = 0; i < 4; i++) {
		struct frame f = PROGRAM(overlapping);
		f.rdi = USER_DATA;
		f.rsi = i & 1;
		struct trap *t = run_to_end(&f);
		if (i & 1)
			CHECK_EQ(t->f.rax, 0x0789a20f);
		else
			check_answer();
	}
}

/* What is written there by the kernel counts: another constant, and no CPUID, and CPUID again. */
SNIPPET(changing, 64, "movl $1000, %r15d; 1: decl %r15d; jnz 1b; movl $0x11111111, %r14d; " ASK "nop; ud2");
TEST(changed_between)
{
	struct frame f = PROGRAM(changing);
	volatile u8 *code = page_at(USER_CODE);
	unsigned imm = find(code, 0, 0x11), ask = 0;
	while (code[ask] != 0x0f || code[ask + 1] != 0xa2)
		ask++;
	f.rdi = USER_DATA;
	for (u32 i = 0; i < 30; i++) {
		*(volatile u32 *)(code + imm) = i;
		if (i % 5 == 4)
			*(volatile u16 *)(code + ask) = i % 10 == 9 ? 0xa20f : 0x9090;
		memset(page_at(USER_DATA), 0, 16);
		CHECK_EQ(run_to_end(&f)->f.r14, i);
		if (i % 10 < 4 || i % 10 == 9)
			check_answer();
		else
			CHECK_EQ(*(volatile u32 *)page_at(USER_DATA), 0);
	}
}

/* It changes itself, right beside CPUID. */
SNIPPET(patch_itself, 64,
	"xorl %r14d, %r14d; leaq 2f(%rip), %rsi; movl $200, %r15d\n"
	"1: movl %r15d, 1(%rsi); 2: movl $0, %edx; addl %edx, %r14d; decl %r15d; jnz 1b; nop; nop; nop; " ASK "ud2");
TEST(changes_itself)
{
	struct frame f = PROGRAM(patch_itself);
	f.rdi = USER_DATA;
	CHECK_EQ(run_to_end(&f)->f.r14, 200 * 201 / 2);
	check_answer();
}

/* Another processor's code, in a page with CPUID: it waits for an instruction to become another. */
SNIPPET(spin, 64, "movl $1, 64(%rdi); 1: jmp 1b; movl $3, 64(%rdi); nop; nop; " ASK "ud2");
TEST(code_of_another)
{
	if (cpus < 2)
		skip("one processor");
	smp_start();
	static struct frame f;
	f = PROGRAM(spin);
	f.rdi = USER_DATA;
	volatile u32 *word = (u32 *)page_at(USER_DATA) + 16;
	smp_post(1, run_there, &f);
	CHECK(WAIT_FOR(*word == 1, 2000000));
	delay_us(20000);
	*(volatile u16 *)((u64)page_at(USER_CODE) + 7) = 0x9090;
	CHECK(WAIT_FOR(*word == 3, 2000000));
	smp_wait(1);
	check_answer();
}

/* More such pages than anybody keeps copies of, in turns, and another's contents at the same addresses. */
#define PAGES 300
#define CODE_VA TEST_VA
SNIPPET(one_of_many, 64, "movl $20, %r15d; 1: decl %r15d; jnz 1b; addq $0x11111111, %r14; " ASK "jmp *%rbp");
SNIPPET(through_many, 64,
	"movl $3, %r12d; 2: movl $300, %r11d; movq %r8, %rbx; 1: leaq 3f(%rip), %rbp; movq %rbx, %r9; jmp *%rbx\n"
	"3: movq %r9, %rbx; addq $4096, %rbx; decl %r11d; jnz 1b; decl %r12d; jnz 2b; ud2");
TEST(many_pages)
{
	u8 *page = alloc_pages(PAGES);
	for (unsigned turn = 0; turn < 2; turn++) {
		struct frame f = PROGRAM(through_many);
		u64 want = 0;
		for (unsigned i = 0; i < PAGES; i++) {
			u8 *code = page + i * PAGE;
			memset(code, 0x90, 64);
			memcpy(code + 16, one_of_many, one_of_many_end - one_of_many);
			unsigned imm = find(code, 16, 0x11);
			u32 constant = i * 77 + turn;
			memcpy(code + imm, &constant, 4);
			want += 3 * constant;
			map(CODE_VA + (turn ? PAGES - 1 - i : i) * PAGE, (u64)code, PTE_USER);
		}
		f.r8 = CODE_VA;
		f.r14 = 0;
		f.rdi = USER_DATA;
		CHECK_EQ(run_to_end(&f)->f.r14, want);
		check_answer();
	}
}

/* With a prefix, and jumped to behind that. */
SNIPPET(prefixed, 64,
	"movl $100, %r15d; 1: decl %r15d; jnz 1b; xorl %eax, %eax; xorl %ecx, %ecx; leaq 2f(%rip), %rdx; addq %rsi, "
	"%rdx\n"
	"jmp *%rdx; .skip 32, 0x90; 2: .byte 0x48; cpuid; " KEEP "ud2");
TEST(prefixed)
{
	for (unsigned i = 0; i < 4; i++) {
		struct frame f = PROGRAM(prefixed);
		f.rdi = USER_DATA;
		f.rsi = i & 1;
		memset(page_at(USER_DATA), 0, 16);
		run_to_end(&f);
		check_answer();
	}
}

/* Behind a load of SS, where debug registers say nothing. */
SNIPPET(behind_ss, 64,
	"movl $100, %r15d; 1: decl %r15d; jnz 1b; xorl %eax, %eax; xorl %ecx, %ecx; movl %ss, %edx; movl %edx, %ss; "
	"cpuid; " KEEP "ud2");
TEST(behind_load_of_ss)
{
	struct frame f = PROGRAM(behind_ss);
	f.rdi = USER_DATA;
	run_to_end(&f);
	check_answer();
}

/* Two pages with three of them each, in turns, and then an instruction that begins in one and ends in the other. */
#define ASK_AND_ADD "xorl %eax, %eax; xorl %ecx, %ecx; cpuid; addq %rbx, %r14;"
SNIPPET(in_two_pages, 64,
	"movl $50, %r15d; 1: decl %r15d; jnz 1b;" ASK_AND_ADD ASK_AND_ADD ASK_AND_ADD
	"xorq $4096, %r12; decl %r13d; jz 2f; jmp *%r12; 2: ud2");
TEST(two_pages_in_turns)
{
	static const u8 mov[] = {0x41, 0xbb, 1, 2, 3, 4, 0x0f, 0x0b}; /* movl $0x04030201, %r11d; ud2 */
	u8 *page = alloc_pages(2);
	struct frame f = PROGRAM(in_two_pages);
	u32 want[4];
	cpuid(0, 0, want);
	memset(page, 0x90, 2 * PAGE);
	for (unsigned i = 0; i < 2; i++) {
		memcpy(page + i * PAGE + 64, in_two_pages, in_two_pages_end - in_two_pages);
		map(CODE_VA + i * PAGE, (u64)page + i * PAGE, PTE_USER);
	}
	memcpy(page + PAGE - 3, mov, sizeof(mov));
	f.rip = f.r12 = CODE_VA + 64;
	f.r13 = 40;
	f.r14 = 0;
	CHECK_EQ(run_to_end(&f)->f.r14, 120ull * want[1]);
	f.rip = CODE_VA + PAGE - 3;
	CHECK_EQ(run_to_end(&f)->f.r11, 0x04030201);
	CHECK_EQ(last_trap()->f.rip, CODE_VA + PAGE + 3);
}
