/* 32-bit code in ring 3 under a 64-bit kernel: addressing, stack, short forms, segments (SDM Vol. 3A 5.4, Vol. 1 3.3).
 */
#include "guest.h"

const char payload[] = "compat";

/* Runs 32-bit code that ends in INT 0x80; EDI points to data. */
static struct trap *run32(const u8 *begin, const u8 *end, struct frame *in)
{
	struct frame f = user_code(begin, end, 32);
	if (in) {
		u64 rip = f.rip, cs = f.cs, rsp = f.rsp, ss = f.ss;
		f = *in;
		f.rip = rip;
		f.cs = cs;
		f.rsp = in->rsp ? in->rsp : rsp;
		f.ss = in->ss ? in->ss : ss;
		f.rflags = in->rflags | 2;
	}
	if (!f.rdi)
		f.rdi = USER_DATA;
	return run_frame(&f);
}
#define RUN(name) run32(name, name##_end, NULL)
#define RUN_WITH(name, ...)                       \
	({                                        \
		struct frame in_ = {__VA_ARGS__}; \
		run32(name, name##_end, &in_);    \
	})
#define CHECK32(expression, v, want)            \
	do {                                    \
		struct trap *t_ = (expression); \
		CHECK_EQ(t_->f.vector, v);      \
		CHECK_EQ(t_->f.rax, want);      \
	} while (0)

SNIPPET(c_inc, 32,
	"movl $0xffffffff, %eax; .byte 0x40; .byte 0x48; .byte 0x48; int $0x80"); /* inc, dec, dec: short forms */
SNIPPET(c_incall, 32,
	"incl %eax; incl %ecx; incl %edx; incl %ebx; incl %ebp; incl %esi; decl %edi; incw %ax; decw %bx; int $0x80");
TEST(short_forms)
{
	CHECK32(RUN(c_inc), 0x80, 0xfffffffe);
	struct trap *t = RUN_WITH(c_incall, .rax = 1, .rcx = 2, .rdx = 3, .rbx = 4, .rbp = 5, .rsi = 6, .rdi = 7);
	CHECK_EQ(t->f.rax, 3);
	CHECK_EQ(t->f.rcx, 3);
	CHECK_EQ(t->f.rdx, 4);
	CHECK_EQ(t->f.rbx, 4);
	CHECK_EQ(t->f.rbp, 6);
	CHECK_EQ(t->f.rsi, 7);
	CHECK_EQ(t->f.rdi, 6);
}

/* Every form of ModRM and SIB, 32-bit. Data words hold their own index. */
#define FORMS(X)                         \
	X(0, "(%edi)", 0)                \
	X(1, "4(%edi)", 1)               \
	X(2, "0x100(%edi)", 64)          \
	X(3, "(%edi, %ecx, 4)", 3)       \
	X(4, "(%edi, %ecx, 8)", 6)       \
	X(5, "8(%edi, %ecx, 2)", 0)      \
	X(6, "0xa2000010", 4)            \
	X(7, "0xa2000000(, %ecx, 4)", 3) \
	X(8, "0x5e000000(%ebx)", 1)      \
	X(9, "-4(%edx, %ecx, 4)", 2)     \
	X(10, "(%esp)", 2)               \
	X(11, "4(%esp)", 3)              \
	X(12, "(%esp, %ecx, 4)", 5)      \
	X(13, "4(%ebp)", 3)              \
	X(14, "(%ebp, %ecx, 4)", 5)      \
	X(15, "-0x10(%esi)", 4)          \
	X(16, "0x7fffffff(%eax)", 5)
#define FORM_CODE(n, text, want) SNIPPET(form_##n, 32, "movl " text ", %eax; int $0x80");
FORMS(FORM_CODE)
#define FORM_ENTRY(n, text, want) {form_##n, form_##n##_end, want},
TEST(addressing)
{
	static const struct {
		const u8 *begin, *end;
		u32 want;
	} forms[] = {FORMS(FORM_ENTRY)};
	for (unsigned i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
		struct frame f = user_code(forms[i].begin, forms[i].end, 32);
		for (u32 k = 0; k < 1024; k++)
			((volatile u32 *)USER_DATA)[k] = k;
		f.rax = (u32)(USER_DATA + 20 - 0x7fffffff);
		f.rbx = 0x44000004; /* + 0x5e000000 = USER_DATA + 4 */
		f.rcx = 3;
		f.rdx = USER_DATA;
		f.rdi = USER_DATA;
		f.rsi = USER_DATA + 32;
		f.rsp = f.rbp = USER_DATA + 8;
		if (i == 5)
			f.rcx = (u32)-4; /* wraps */
		struct trap *t = run_frame(&f);
		CHECK_EQ_IN(t->f.vector, 0x80, "form %u", i);
		CHECK_EQ_IN(t->f.rax, forms[i].want, "form %u", i);
	}
}

SNIPPET(c_addr16, 32, "movl %gs:(%bx, %si), %eax; addl %gs:4(%bp, %di), %eax; addl %gs:0x10, %eax; int $0x80");
SNIPPET(c_lea, 32,
	"leal 0x7fffffff(%eax, %ecx, 8), %edx; leaw 5(%eax), %bx; .byte 0x67; leal (%bx, %si), %eax; int $0x80");
SNIPPET(c_moffs, 32, "movl 0xa2000008, %eax; movl %eax, 0xa2000100; movb 0xa200000c, %al; int $0x80");
TEST(address_forms)
{
	struct frame f = user_code(c_lea, c_lea_end, 32);
	f.rax = 0xfffffff0;
	f.rcx = 3;
	f.rsi = 0x12340000 + 7;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.rdx, (u32)(0x7fffffff + 0xfffffff0 + 24));
	CHECK_EQ((u16)t->f.rbx, (u16)(0xfff5));
	CHECK_EQ(t->f.rax, (u16)(0xfff5 + 7));
	f = user_code(c_moffs, c_moffs_end, 32);
	((volatile u32 *)USER_DATA)[2] = 0x11223344;
	((volatile u32 *)USER_DATA)[3] = 0x99;
	t = run_frame(&f);
	CHECK_EQ(t->f.rax, 0x11223399);
	CHECK_EQ(((volatile u32 *)USER_DATA)[64], 0x11223344);
}

SNIPPET(c_stack, 32,
	"pushl $0x11223344; pushl %esp; popl %eax; subl %esp, %eax; pushw $5; popw %cx; pushl (%esp); popl %ebx;"
	"pushl %ebx; popl (%esp); pushal; popal; pushfl; popfl; movl (%esp), %edx; addl $4, %esp; int $0x80");
SNIPPET(c_call, 32,
	"movl $5, %eax; call 1f; addl $1, %eax; int $0x80; 1: pushl %ebp; movl %esp, %ebp; movl 4(%ebp), %edx; addl "
	"$10, %eax; leave; ret");
SNIPPET(c_call_ind, 32,
	"call 1f; 1: popl %eax; addl $(2f-1b), %eax; pushl $7; call *%eax; int $0x80; 2: movl 4(%esp), %eax; ret $4");
SNIPPET(c_enter, 32,
	"movl %esp, %ecx; enter $32, $3; movl %ecx, %eax; subl %esp, %eax; leave; subl %esp, %ecx; int $0x80");
SNIPPET(c_pusha, 32,
	"movl $1, %eax; movl $2, %ecx; movl $3, %edx; movl $4, %ebx; movl $6, %ebp; movl $7, %esi; movl $8, %edi; "
	"pushal;"
	"movl 28(%esp), %eax; shll $8, %eax; addl 16(%esp), %eax; addl (%esp), %eax; int $0x80");
SNIPPET(c_pop_esp, 32,
	"pushl %eax; pushl %edi; popl -4(%esp); movl -4(%esp), %ecx; pushl %edi; popl %esp; movl %esp, %eax; int "
	"$0x80");
SNIPPET(c_callw, 32, "movl $1, %eax; jmp 1f; 1: loop 2f; 2: jecxz 3f; incl %eax; 3: incl %eax; int $0x80");
TEST(stack)
{
	struct trap *t = RUN(c_stack);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rax, 0);
	CHECK_EQ((u16)t->f.rcx, 5);
	CHECK_EQ(t->f.rbx, 0x11223344);
	CHECK_EQ(t->f.rdx, 0x11223344);
	CHECK_EQ(t->f.rsp, USER_STACK);
	t = RUN(c_call);
	CHECK_EQ(t->f.rax, 16);
	CHECK_EQ(t->f.rdx, USER_CODE + 10);
	CHECK32(RUN(c_call_ind), 0x80, 7);
	t = RUN_WITH(c_enter, .rbp = USER_STACK - 64);
	CHECK_EQ(t->f.rax, 4 + 3 * 4 + 32);
	CHECK_EQ(t->f.rcx, 0);
	CHECK32(RUN(c_pusha), 0x80, 0x100 + 4 + 8);
	t = RUN(c_pop_esp);
	CHECK_EQ(t->f.rax, USER_DATA);
	CHECK_EQ(t->f.rcx, USER_DATA);
	CHECK32(RUN_WITH(c_callw, .rcx = 1), 0x80, 2);
	CHECK32(RUN_WITH(c_callw, .rcx = 2), 0x80, 3);
}

/* Registers are 32 bits wide: the upper halves come out clear where written. */
SNIPPET(c_upper, 32, "movl %eax, %eax; addl %ecx, %ecx; int $0x80");
TEST(upper_halves)
{
	struct trap *t = RUN_WITH(c_upper, .rax = 0x1234567800000001, .rcx = 0xffffffff80000001);
	CHECK_EQ(t->f.rax, 1);
	CHECK_EQ(t->f.rcx, 2);
}

/* Segment overrides with bases, limits and rights. */
static void descriptor(unsigned n, u32 base, u32 limit, u64 access, bool big)
{
	gdt[SEL_TEST / 8 + n] = (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | access << 40 |
				(u64)(limit >> 16 & 15) << 48 | (u64)(big ? 0x4 : 0) << 52 | (u64)(base >> 24) << 56;
}
SNIPPET(c_seg, 32, "movl %ebx, %fs; movl %fs:8, %eax; addl %fs:(%ecx), %eax; int $0x80");
SNIPPET(c_seg_gs, 32, "movl %ebx, %gs; movl $77, %gs:4; movl %gs:4, %eax; int $0x80");
SNIPPET(c_seg_ds, 32, "movl %ebx, %ds; movl (%ecx), %eax; movl %edx, %ds; int $0x80");
SNIPPET(c_seg_es, 32,
	"movl %ebx, %es; movl $4, %ecx; xorl %edi, %edi; movl $0x41, %eax; rep stosb; movl %edx, %es; int $0x80");
SNIPPET(c_read_fs, 32, "movl %ebx, %fs; movl %fs:(%ecx), %eax; int $0x80");
SNIPPET(c_write_fs, 32, "movl %ebx, %fs; movl %eax, %fs:(%ecx); int $0x80");
SNIPPET(c_read_cs, 32, "movl %cs:(%ecx), %eax; int $0x80");
SNIPPET(c_write_cs, 32, "movl %eax, %cs:(%ecx); int $0x80");
TEST(segments)
{
	const u64 sel = SEL_TEST | 3;
	struct trap *t;
	user_code(c_seg, c_seg_end, 32);
	descriptor(0, USER_DATA + 0x100, 0xfff, 0xf3, true);
	struct frame f = user_code(c_seg, c_seg_end, 32);
	((volatile u32 *)(USER_DATA + 0x100))[2] = 100;
	((volatile u32 *)(USER_DATA + 0x100))[5] = 11;
	f.rbx = sel;
	f.rcx = 20;
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rax, 111);
	t = RUN_WITH(c_seg_gs, .rbx = sel);
	CHECK_EQ(t->f.rax, 77);
	CHECK_EQ(*(volatile u32 *)(USER_DATA + 0x104), 77);
	t = RUN_WITH(c_seg_ds, .rbx = sel, .rcx = 4, .rdx = SEL_USER_DATA);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rax, 0); /* fresh page: what was written above is another one's */
	t = RUN_WITH(c_seg_es, .rbx = sel, .rdx = SEL_USER_DATA);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(*(volatile u32 *)(USER_DATA + 0x100), 0x41414141);
	CHECK_EQ(*(volatile u32 *)(USER_DATA + 0x104), 0);
}
TEST(segment_limits)
{
	const u64 sel = SEL_TEST | 3;
	descriptor(0, USER_DATA, 0x7f, 0xf3, true);
	CHECK_EQ(RUN_WITH(c_read_fs, .rbx = sel, .rcx = 0x7c)->f.vector, 0x80);
	CHECK_EQ(RUN_WITH(c_read_fs, .rbx = sel, .rcx = 0x7d)->f.vector, GP);
	CHECK_EQ(last_trap()->f.error, 0);
	CHECK_EQ(RUN_WITH(c_read_fs, .rbx = sel, .rcx = 0xfffffffe)->f.vector, GP);
	descriptor(0, USER_DATA, 0x7f, 0xf1, true); /* read-only */
	CHECK_EQ(RUN_WITH(c_read_fs, .rbx = sel, .rcx = 0x7c)->f.vector, 0x80);
	CHECK_EQ(RUN_WITH(c_write_fs, .rbx = sel, .rcx = 0x7c)->f.vector, GP);
	descriptor(0, USER_DATA - 0x1000, 0xfff, 0xf7, true); /* expand down: above the limit only */
	CHECK_EQ(RUN_WITH(c_read_fs, .rbx = sel, .rcx = 0x1000)->f.vector, 0x80);
	CHECK_EQ(RUN_WITH(c_read_fs, .rbx = sel, .rcx = 0xfff)->f.vector, GP);
	CHECK_EQ(RUN_WITH(c_write_fs, .rbx = sel, .rcx = 0x1ffc)->f.vector, 0x80);
	CHECK_EQ(RUN_WITH(c_read_fs, .rbx = 0, .rcx = 0)->f.vector, GP); /* null */
	CHECK_EQ(RUN_WITH(c_read_cs, .rcx = USER_CODE)->f.vector, 0x80);
	CHECK_EQ(RUN_WITH(c_write_cs, .rcx = USER_CODE)->f.vector, GP);
}

/* A stack segment with a base and a limit; 16-bit stack pointer. */
SNIPPET(c_push, 32, "pushl $0x1234; popl %eax; pushl %eax; int $0x80");
TEST(stack_segment)
{
	const u64 sel = SEL_TEST | 3;
	struct trap *t;
	descriptor(0, USER_DATA, 0xfff, 0xf3, true);
	t = RUN_WITH(c_push, .rsp = 0x100, .ss = sel);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rsp, 0xfc);
	CHECK_EQ(*(volatile u32 *)(USER_DATA + 0xfc), 0x1234);
	t = RUN_WITH(c_push, .rsp = 0x1008, .ss = sel);
	CHECK_EQ(t->f.vector, SS);
	CHECK_EQ(t->f.error, 0);
	CHECK_EQ(t->f.rsp, 0x1008);
	descriptor(0, USER_DATA, 0xffff, 0xf3, false); /* SS.B clear: SP */
	t = RUN_WITH(c_push, .rsp = 0x12340100, .ss = sel);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ((u16)t->f.rsp, 0xfc); /* IRET leaves the upper half as it was */
	CHECK_EQ(*(volatile u32 *)(USER_DATA + 0xfc), 0x1234);
}

/* The code segment: a base, a limit. */
SNIPPET(c_code, 32, "call 1f; 1: popl %eax; int $0x80");
SNIPPET(c_far_back, 32, "nop; jmp 1f; .fill 100, 1, 0x90; 1: int $0x80");
TEST(code_segment)
{
	struct frame f = user_code(c_code, c_code_end, 32);
	descriptor(0, USER_CODE - 0x500, 0xfff, 0xfb, true);
	f.cs = SEL_TEST | 3;
	f.rip = 0x500;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rax, 0x505);
	CHECK_EQ(t->f.rip, 0x508);
	/* a jump beyond the limit faults where it is */
	f = user_code(c_far_back, c_far_back_end, 32);
	descriptor(0, USER_CODE, 0x20, 0xfb, true);
	f.cs = SEL_TEST | 3;
	f.rip = 0;
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, GP);
	CHECK_EQ(t->f.error, 0);
	CHECK_EQ(t->f.rip, 1);
}

/* 16-bit code in ring 3, flat but for its size attributes. */
SNIPPET(c_16, 16,
	"movw $0x1234, %ax; pushw %ax; popw %bx; addl $0x10000, %ebx; movw %bx, (%di); movb 1(%di), %cl; callw 1f; int "
	"$0x80; 1: incw %ax; retw");
TEST(code16)
{
	struct frame f = user_code(c_16, c_16_end, 32);
	descriptor(0, USER_CODE, 0xffff, 0xfb, false);
	descriptor(1, USER_STACK - PAGE, 0xffff, 0xf3, false);
	f.cs = SEL_TEST | 3;
	f.ss = (SEL_TEST + 8) | 3;
	f.rip = 0;
	f.rsp = PAGE;
	f.rdi = 0x40;
	descriptor(2, USER_DATA, 0xffff, 0xf3, false);
	asm volatile("mov %0, %%ds" : : "r"((SEL_TEST + 16) | 3));
	/* DS is kept by IRET; run_frame's way back loads the flat one */
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ((u16)t->f.rax, 0x1235);
	CHECK_EQ((u32)t->f.rbx, 0x11234);
	CHECK_EQ(t->f.rcx & 0xff, 0x12);
	CHECK_EQ(*(volatile u16 *)(USER_DATA + 0x40), 0x1234);
	CHECK_EQ((u16)t->f.rsp, PAGE);
}

/* Decimal arithmetic and what else only 32-bit code has. */
SNIPPET(c_bcd, 32,
	"movb $0x27, %al; addb $0x35, %al; daa; movb %al, %cl; subb $0x18, %al; das; movb %al, %ch; movw $0x0107, %ax;"
	"addb $5, %al; aaa; movw %ax, %dx; aad; movb %al, %bl; aam; int $0x80");
SNIPPET(c_les, 32, "lesl (%edi), %eax; movl %es, %ebx; pushl %ds; popl %es; int $0x80");
SNIPPET(c_salc, 32, "stc; .byte 0xd6; movzbl %al, %ecx; clc; .byte 0xd6; movzbl %al, %eax; int $0x80");
SNIPPET(c_82, 32, "movb $5, %al; .byte 0x82, 0xc0, 0x07; movzbl %al, %eax; int $0x80");
SNIPPET(c_arpl, 32, "movl $0x10, %eax; movl $3, %ecx; arpl %cx, %ax; setz %dl; int $0x80");
SNIPPET(c_xlat, 32, "movl %edi, %ebx; movb $9, 5(%edi); movl $5, %eax; xlatb; int $0x80");
SNIPPET(c_push_seg, 32, "pushl %cs; popl %eax; pushl %ss; popl %ecx; pushl %ds; popl %es; int $0x80");
TEST(only_32)
{
	struct trap *t = RUN(c_bcd);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rcx & 0xffff, 0x4462);
	CHECK_EQ(t->f.rdx & 0xffff, 0x0202);
	CHECK_EQ(t->f.rbx & 0xff, 22);
	CHECK_EQ(t->f.rax & 0xffff, 0x0202);
	t = RUN(c_salc);
	CHECK_EQ(t->f.rcx, 0xff);
	CHECK_EQ(t->f.rax, 0);
	CHECK32(RUN(c_82), 0x80, 12);
	t = RUN(c_arpl);
	CHECK_EQ(t->f.rax, 0x13);
	CHECK_EQ(t->f.rdx & 0xff, 1);
	CHECK32(RUN(c_xlat), 0x80, 9);
	t = RUN(c_push_seg);
	CHECK_EQ(t->f.rax, SEL_USER_CODE32);
	CHECK_EQ(t->f.rcx, SEL_USER_DATA);
	struct frame f = user_code(c_les, c_les_end, 32);
	f.rdi = USER_DATA;
	*(volatile u32 *)USER_DATA = 0x11223344;
	*(volatile u16 *)(USER_DATA + 4) = SEL_USER_DATA;
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rax, 0x11223344);
	CHECK_EQ(t->f.rbx & 0xffff, SEL_USER_DATA);
}

/* Far jumps between 32-bit and 64-bit user code, as some programs do. */
SNIPPET(c_to64, 32,
	"ljmp $0x33, $0xa0000020; .org c_to64 + 0x20; .code64; movq $-1, %rax; shrq $4, %rax; pushq $0x23; leaq "
	"1f(%rip), %rcx; pushq %rcx; lretq;"
	".code32; 1: movl %esp, %edx; int $0x80");
TEST(mode_switches)
{
	struct trap *t = RUN(c_to64);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rax, 0x0fffffffffffffff);
	CHECK_EQ(t->f.cs, SEL_USER_CODE32);
	CHECK_EQ(t->f.rdx, USER_STACK);
}

/* Calculations and vector code in 32-bit mode. */
SNIPPET(c_work, 32,
	"xorl %eax, %eax; movl $1000, %ecx; movl $1, %edx; 1: addl %edx, %eax; adcl $0, %ebx; imull $1103515245, %edx, "
	"%edx; addl $12345, %edx;"
	"roll $3, %eax; decl %ecx; jnz 1b; int $0x80");
SNIPPET(c_sse, 32,
	"movd %eax, %xmm0; pshufd $0, %xmm0, %xmm1; paddd %xmm1, %xmm1; movdqu %xmm1, (%edi); movl 12(%edi), %eax;"
	"fildl (%edi); fistpl 16(%edi); addl 16(%edi), %eax; int $0x80");
TEST(work)
{
	u32 a = 0, d = 1;
	for (unsigned i = 0; i < 1000; i++) {
		a += d;
		d = d * 1103515245 + 12345;
		a = a << 3 | a >> 29;
	}
	CHECK32(RUN(c_work), 0x80, a);
	CHECK32(RUN_WITH(c_sse, .rax = 21), 0x80, 84);
}

/* Page faults from 32-bit code: addresses wrap at 4 GiB, CR2 is 32 bits. */
SNIPPET(c_wrap, 32, "movl 0x10(%edi), %eax; int $0x80");
TEST(faults)
{
	struct trap *t = RUN_WITH(c_wrap, .rdi = 0xbff00000);
	CHECK_EQ(t->f.vector, PF);
	CHECK_EQ(t->cr2, 0xbff00010);
	CHECK_EQ(t->f.rip, USER_CODE);
	/* 0xfffffff8 + 0x10 wraps to 8: the kernel's page */
	t = RUN_WITH(c_wrap, .rdi = 0xfffffff8);
	CHECK_EQ(t->f.vector, PF);
	CHECK_EQ(t->cr2, 8);
	CHECK_EQ(t->f.error, PF_P | PF_U);
}
