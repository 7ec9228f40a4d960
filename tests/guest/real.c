/* Out of long mode and back: real mode, 16-bit protected mode, 32-bit protected mode without and with paging (SDM Vol.
 * 3A 9.8.5, ch. 20). */
#include "guest.h"

const char payload[] = "real";

/*
 * Code between real_begin and real_end is copied to 0x9000. go_real() gets there from 64-bit mode by way of 32-bit and
 * 16-bit protected mode, calls the routine whose offset is in real_routine, and comes back. Results are left at RESULT.
 */
#define RESULT 0xa000
void go_real(void);
extern u8 real_begin[], real_end[];
u16 real_routine;
struct {
	u16 limit;
	u64 base;
} __attribute__((packed)) real_idt = {0x3ff, 0}, saved_idt;
u64 saved_rsp;

asm(".pushsection .text\n"
    ".globl go_real\n.code64\n"
    "go_real: pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "	movq %rsp, saved_rsp; cli; sidt saved_idt; movzwl real_routine, %ebx; ljmp *1f(%rip)\n"
    "1:	.long 2f; .word 0x08\n"
    ".code32\n"
    "2:	movl $0x18, %eax; movl %eax, %ds; movl %eax, %es; movl %eax, %ss; movl %eax, %fs; movl %eax, %gs\n"
    "	movl %cr0, %eax; andl $0x7fffffff, %eax; movl %eax, %cr0\n"
    "	movl $0xc0000080, %ecx; rdmsr; andl $~0x100, %eax; wrmsr\n"
    "	lidt real_idt\n"
    "	movl $0x48, %eax; movl %eax, %ds; movl %eax, %es; movl %eax, %ss; movl %eax, %fs; movl %eax, %gs\n"
    "	ljmp $0x50, $(pm16 - real_begin)\n"
    "back32: movl $0x18, %eax; movl %eax, %ds; movl %eax, %es; movl %eax, %ss; movl %eax, %fs; movl %eax, %gs\n"
    "	movl $0xc0000080, %ecx; rdmsr; orl $0x100, %eax; wrmsr\n"
    "	movl %cr0, %eax; orl $0x80000000, %eax; movl %eax, %cr0\n"
    "	ljmp $0x10, $3f\n"
    ".code64\n"
    "3:	movq saved_rsp, %rsp; lidt saved_idt; movl $0x2b, %eax; movl %eax, %ds; movl %eax, %es\n"
    "	popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx; ret\n"
    ".code16\n.globl real_begin, real_end\n"
    "real_begin:\n"
    "pm16:	movw %cs, %ax; movw %ax, RESULT_PM\n"
    "	movl %cr0, %eax; andb $0xfe, %al; movl %eax, %cr0\n"
    "	ljmp $0x900, $(1f - real_begin)\n"
    "1:	xorw %ax, %ax; movw %ax, %ss; movw $0x8ff0, %sp; movw %ax, %ds; movw %ax, %fs; movw %ax, %gs; movw $0xa00, "
    "%ax; movw %ax, %es\n"
    "	callw *%bx\n"
    "	cli; movl %cr0, %eax; orb $1, %al; movl %eax, %cr0\n"
    "	ljmpl $0x08, $back32\n"
    ".equ RESULT_PM, 0xaff0\n"
    /* segments: the same byte by several addresses; offsets of 16 bits; values at ES:0 up */
    ".globl r_segments\nr_segments:\n"
    "	movw $0x1000, %ax; movw %ax, %ds; movb $0x5a, 0x123; movw $0x1012, %ax; movw %ax, %ds; movb 3, %al; movb %al, "
    "%es:0\n"
    "	movw %ds, %es:2; movw $0x1000, %ax; movw %ax, %fs; movw $0x120, %bx; movw $3, %si; movb %fs:(%bx, %si), %al; "
    "movb %al, %es:4\n"
    "	movl $0x10123, %ecx; xorw %ax, %ax; movw %ax, %ds; movw $0x1000, %ax; movw %ax, %ds; movzwl %cx, %ecx; addr32 "
    "movb (%ecx), %al; movb %al, %es:5\n"
    "	movw $0xfff0, %bx; movb 0x133(%bx), %al; movb %al, %es:6\n" /* wraps at 64 KiB */
    "	retw\n"
    /* stack, calls near and far, PUSHA, ENTER, RET n */
    ".globl r_stack\nr_stack:\n"
    "	movw %sp, %es:0; pushw $0x1234; pushl $0x56789abc; popl %eax; movl %eax, %es:4; popw %ax; movw %ax, %es:8\n"
    "	lcall $0x900, $(1f - real_begin); movw %cx, %es:10; pushaw; popaw; pushal; popal; enter $8, $0; leave; pushw "
    "$7; callw 2f; movw %sp, %es:2; retw\n"
    "1:	movw %sp, %bp; movw 2(%bp), %cx; lret\n"
    "2:	ret $2\n"
    /* interrupts through the table at 0: INT n, divide error, IRET, flags */
    ".globl r_interrupts\nr_interrupts:\n"
    "	movw $(3f - real_begin), 0x40 * 4; movw $0x900, 0x40 * 4 + 2; movw $(4f - real_begin), 0; movw $0x900, 2; movw "
    "$(5f - real_begin), 6 * 4; movw $0x900, 6 * 4 + 2\n"
    "	movw $(6f - real_begin), 13 * 4; movw $0x900, 13 * 4 + 2\n"
    "	movw %sp, %es:0; stc; sti; int $0x40; movw %ax, %es:4; pushfw; popw %es:6; cli\n"
    "	xorw %dx, %dx; xorw %bx, %bx; movw $5, %ax\n"
    "7:	divw %bx; movw %ax, %es:10\n"
    "	ud2; movw $0xffff, %bx; xorw %cx, %cx; movw (%bx), %ax; movw %cx, %es:14; movw %sp, %es:2; retw\n"
    "3:	pushfw; popw %ax; iretw\n" /* IF clear here */
    "4:	pushw %bp; movw %sp, %bp; cmpw $(7b - real_begin), 2(%bp); jne 8f; movw $0xd1, %es:8; 8: addw $2, 2(%bp); movw "
    "$9, %ax; popw %bp; iretw\n"
    "5:	pushw %bp; movw %sp, %bp; movw $0x0d, %es:12; addw $2, 2(%bp); popw %bp; iretw\n"
    "6:	pushw %bp; movw %sp, %bp; movw $0x13, %cx; addw $2, 2(%bp); popw %bp; iretw\n"
    /* strings with overrides, 32-bit operands, loops, conditional jumps, BCD */
    ".globl r_work\nr_work:\n"
    "	cld; movw $0x2000, %ax; movw %ax, %ds; xorw %di, %di; pushw %es; pushw %ds; popw %es; movw $100, %cx; movb "
    "$0x11, %al; rep stosb; popw %es\n"
    "	xorw %si, %si; xorl %eax, %eax; movw $50, %cx; 1: lodsw; addl %eax, %ebx; loop 1b; movw %si, %es:0\n"
    "	xorl %ebx, %ebx; movw $1000, %cx; 1: addl $0x12345, %ebx; roll $3, %ebx; decw %cx; jnz 1b; movl %ebx, %es:4\n"
    "	movw $10, %cx; xorw %ax, %ax; 1: incw %ax; cmpw $5, %ax; je 2f; loopne 1b; 2: movw %ax, %es:8; movw %cx, "
    "%es:10\n"
    "	movb $0x38, %al; addb $0x45, %al; daa; movb %al, %es:12; movw $0x1234, %ax; mulw %ax; movw %dx, %es:14\n"
    "	movl $0x100000, %eax; imull $0x1001, %eax, %eax; movl %eax, %es:16; movl $0x12345678, %eax; bswapl %eax; movl "
    "%eax, %es:20\n"
    "	xorw %ax, %ax; movw %ax, %ds; smsw %ax; movw %ax, %es:24; retw\n"
    /* "unreal" mode: a limit of 4 GiB left in DS */
    ".globl r_unreal\nr_unreal:\n"
    "	movl %cr0, %eax; orb $1, %al; movl %eax, %cr0; movw $0x18, %bx; movw %bx, %ds; andb $0xfe, %al; movl %eax, "
    "%cr0; ljmp $0x900, $(1f - real_begin)\n"
    "1:	xorw %bx, %bx; movw %bx, %ds; movl $0x200000, %ebx; movl $0xcafe1234, (%ebx); movl (%ebx), %eax; movl %eax, "
    "%es:0; retw\n"
    "real_end:\n.code64\n.popsection");
extern u8 r_segments[], r_stack[], r_interrupts[], r_work[], r_unreal[];

static volatile u8 *const result = (volatile u8 *)RESULT;
static u16 word(unsigned off)
{
	return *(volatile u16 *)(result + off);
}
static u32 dword(unsigned off)
{
	return *(volatile u32 *)(result + off);
}

static void run(const u8 *routine)
{
	memcpy((void *)0x9000, real_begin, real_end - real_begin);
	memset((void *)RESULT, 0, PAGE);
	gdt[SEL_TEST / 8] = 0x00009b009000ffff; /* 16-bit code, base 0x9000 */
	real_routine = routine - real_begin;
	u64 tr = this_cpu();
	go_real();
	CHECK_EQ(this_cpu(), tr);
	CHECK_EQ(*(volatile u16 *)0xaff0, SEL_TEST);
	CHECK_EQ(read_cr0(), CR0_DEFAULT);
	CHECK_EQ(rdmsr(MSR_EFER), EFER_DEFAULT | 0x400);
}

TEST(segments)
{
	run(r_segments);
	CHECK_EQ(result[0], 0x5a);
	CHECK_EQ(word(2), 0x1012);
	CHECK_EQ(result[4], 0x5a);
	CHECK_EQ(result[5], 0x5a);
	CHECK_EQ(result[6], 0x5a);
	CHECK_EQ(*(volatile u8 *)0x10123, 0x5a);
}
TEST(stack)
{
	run(r_stack);
	CHECK_EQ(word(0), 0x8fee);
	CHECK_EQ(word(2), 0x8fee);
	CHECK_EQ(dword(4), 0x56789abc);
	CHECK_EQ(word(8), 0x1234);
	CHECK_EQ(word(10), 0x900);
}
TEST(interrupts)
{
	u8 saved[0x400];
	memcpy(saved, (void *)0, 0x400);
	run(r_interrupts);
	memcpy((void *)0, saved, 0x400);
	CHECK_EQ(word(0), word(2));
	CHECK_EQ(word(4) & 0x201, 1);
	CHECK_EQ(word(6) & 0x201, 0x201);
	CHECK_EQ(word(8), 0xd1);
	CHECK_EQ(word(10), 9);
	CHECK_EQ(word(12), 0x0d);
}
TEST(limit)
{
	u8 saved[0x400];
	memcpy(saved, (void *)0, 0x400);
	run(r_interrupts);
	memcpy((void *)0, saved, 0x400);
	CHECK_EQ(word(14), 0x13); /* a word at offset 0xffff: #GP */
}
TEST(work)
{
	run(r_work);
	u32 b = 0;
	for (unsigned i = 0; i < 1000; i++) {
		b += 0x12345;
		b = b << 3 | b >> 29;
	}
	CHECK_EQ(word(0), 100);
	CHECK_EQ(dword(4), b);
	CHECK_EQ(word(8), 5);
	CHECK_EQ(word(10), 6);
	CHECK_EQ(result[12], 0x83);
	CHECK_EQ(word(14), 0x1234 * 0x1234 >> 16);
	CHECK_EQ(dword(16), (u32)(0x100000u * 0x1001u));
	CHECK_EQ(dword(20), 0x78563412);
	CHECK_EQ(word(24) & 1, 0);
}
TEST(unreal)
{
	u32 old = *(volatile u32 *)0x200000;
	run(r_unreal);
	CHECK_EQ(dword(0), 0xcafe1234);
	CHECK_EQ(*(volatile u32 *)0x200000, 0xcafe1234);
	*(volatile u32 *)0x200000 = old;
}
TEST(many_times)
{
	for (unsigned i = 0; i < 50; i++) {
		run(r_work);
		CHECK_EQ(word(0), 100);
	}
}

/* 32-bit protected mode with the two-level tables of old: 4 MiB and 4 KiB pages, PSE, its own page faults. */
void go_legacy(void);
u32 legacy_cr3, legacy_value, legacy_value2, legacy_flags;
asm(".pushsection .text\n"
    ".globl go_legacy\n.code64\n"
    "go_legacy: pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
    "	movq %rsp, saved_rsp; cli; sidt saved_idt; ljmp *1f(%rip)\n"
    "1:	.long 2f; .word 0x08\n"
    ".code32\n"
    "2:	movl $0x18, %eax; movl %eax, %ds; movl %eax, %es; movl %eax, %ss\n"
    "	movl %cr0, %eax; andl $0x7fffffff, %eax; movl %eax, %cr0\n"
    "	movl $0xc0000080, %ecx; rdmsr; andl $~0x100, %eax; wrmsr\n"
    "	movl %cr3, %edi; movl %cr4, %esi; movl %esi, %eax; andl $~0x20, %eax; orl $0x10, %eax; movl %eax, %cr4\n"
    "	movl legacy_cr3, %eax; movl %eax, %cr3; movl %cr0, %eax; orl $0x80000000, %eax; movl %eax, %cr0\n"
    "	movl 0xc0000000, %eax; movl %eax, legacy_value; movl $0x55667788, 0xc0001004; movl 0xc0400008, %eax; movl "
    "%eax, legacy_value2\n"
    "	pushfl; popl legacy_flags; pushl %ebx; popl %ebx\n"
    "	movl %cr0, %eax; andl $0x7fffffff, %eax; movl %eax, %cr0; movl %esi, %cr4; movl %edi, %cr3; jmp "
    "back32\n.code64\n.popsection");
TEST(legacy_paging)
{
	volatile u32 *pd = alloc_pages(1), *pt = alloc_pages(1);
	u8 *a = alloc_pages(1), *b = alloc_pages(1), *big = alloc_aligned(0x400000, 0x400000);
	for (u32 i = 0; i < 32; i++)
		pd[i] = i << 22 | 0x83;
	pd[0x300] = (u32)(u64)pt | 3;
	pd[0x301] = (u32)(u64)big | 0x83;
	pt[0] = (u32)(u64)a | 3;
	pt[1] = (u32)(u64)b | 3;
	*(volatile u32 *)a = 0x11223344;
	*(volatile u32 *)(big + 8) = 0x99aabbcc;
	legacy_cr3 = (u32)(u64)pd;
	go_legacy();
	CHECK_EQ(legacy_value, 0x11223344);
	CHECK_EQ(legacy_value2, 0x99aabbcc);
	CHECK_EQ(*(volatile u32 *)(b + 4), 0x55667788);
	CHECK_EQ(pt[0] & 0x60, 0x20);
	CHECK_EQ(pt[1] & 0x60, 0x60);
	CHECK_EQ(pd[0x301] & 0x60, 0x20);
	CHECK_EQ(read_cr0(), CR0_DEFAULT);
}
