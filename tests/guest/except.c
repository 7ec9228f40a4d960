/* Every exception with its vector, error code and saved rip (SDM Vol. 3A 6.15). */
#include "guest.h"

const char payload[] = "except";

/* Runs code in place in ring 0, or a copy in ring 3; gives where it stopped, relative to its begin. */
static struct trap *run_kernel(const u8 *code, u64 *off)
{
	static u8 stack[4096] __attribute__((aligned(16)));
	struct frame f = kernel_frame((u64)code, (u64)(stack + sizeof(stack)));
	struct trap *t = run_frame(&f);
	*off = t->f.rip - (u64)code;
	return t;
}

static struct trap *run_user(const u8 *begin, const u8 *end, unsigned mode, u64 *off)
{
	struct frame f = user_code(begin, end, mode);
	f.rdi = USER_DATA;
	struct trap *t = run_frame(&f);
	*off = t->f.rip - USER_CODE;
	return t;
}

#define EXPECT(t, v, e, o)                 \
	do {                               \
		struct trap *t_ = (t);     \
		CHECK_EQ(t_->f.vector, v); \
		CHECK_EQ(t_->f.error, e);  \
		CHECK_EQ(off, o);          \
	} while (0)
#define IN_BOTH(name, v, e, o)                                         \
	do {                                                           \
		u64 off;                                               \
		EXPECT(run_kernel(name, &off), v, e, o);               \
		EXPECT(run_user(name, name##_end, 64, &off), v, e, o); \
	} while (0)
#define IN_USER(name, mode, v, e, o)                                     \
	do {                                                             \
		u64 off;                                                 \
		EXPECT(run_user(name, name##_end, mode, &off), v, e, o); \
	} while (0)

SNIPPET(div_zero, 64, "movl $5, %eax; xorl %edx, %edx; xorl %ecx, %ecx; divl %ecx"); /* 5+2+2 */
SNIPPET(div_overflow, 64, "movl $5, %eax; movl $7, %edx; movl $7, %ecx; divl %ecx"); /* 15 */
SNIPPET(idiv_min, 64, "movl $0x80000000, %eax; cltd; movl $-1, %ecx; idivl %ecx");   /* 5+1+5 */
SNIPPET(div_byte, 64, "movl $0x1000, %eax; movl $1, %ecx; divb %cl");                /* 10 */
SNIPPET(div_q, 64, "movl $1, %edx; movl $1, %ecx; xorl %eax, %eax; divq %rcx");      /* 12 */
SNIPPET(div_mem, 64, "pushq $0; xorl %edx, %edx; divq (%rsp)");                      /* 4 */

TEST(divide_error)
{
	IN_BOTH(div_zero, DE, 0, 9);
	IN_BOTH(div_overflow, DE, 0, 15);
	IN_BOTH(idiv_min, DE, 0, 11);
	IN_BOTH(div_byte, DE, 0, 10);
	IN_BOTH(div_q, DE, 0, 12);
	IN_BOTH(div_mem, DE, 0, 4);
	u64 off;
	struct trap *t = run_kernel(div_overflow, &off);
	CHECK_EQ(t->f.rax, 5); /* nothing changed */
	CHECK_EQ(t->f.rdx, 7);
}

/* The stack pointer is only a number to user code: whatever it holds, its exceptions come as ever. */
TEST(divide_error_without_a_stack)
{
	static const u64 stacks[] = {0x8000000000000000, 0x900000000000, 0, ~0ull};

	for (unsigned i = 0; i < sizeof(stacks) / sizeof(stacks[0]); i++) {
		struct frame f = user_code(div_zero, div_zero_end, 64);
		f.rsp = stacks[i];
		struct trap *t = run_frame(&f);
		CHECK_EQ_IN(t->f.vector, DE, "stack 0x%lx", stacks[i]);
		CHECK_EQ(t->f.rip, USER_CODE + 9);
		CHECK_EQ(t->f.rsp, stacks[i]);
	}
}

SNIPPET(do_int3, 64, "nop; int3");
SNIPPET(do_cd03, 64, "nop; .byte 0xcd, 3");
SNIPPET(do_int80, 64, "nop; int $0x80");
SNIPPET(do_int90, 64, "nop; int $0x90");
SNIPPET(do_int13, 64, "nop; int $13");
SNIPPET(do_icebp, 64, "nop; .byte 0xf1");

TEST(software_interrupts)
{
	IN_BOTH(do_int3, BP, 0, 2);
	IN_BOTH(do_cd03, BP, 0, 3);
	IN_BOTH(do_int80, 0x80, 0, 3);
	u64 off;
	EXPECT(run_kernel(do_int90, &off), 0x90, 0, 3);
	IN_USER(do_int90, 64, GP, 0x90 * 8 + 2, 1);
	IN_USER(do_int13, 64, GP, 13 * 8 + 2, 1);
	set_gate(3, trap_stubs[3], 1, 0x8e);
	IN_USER(do_int3, 64, GP, 3 * 8 + 2, 1);
	set_gate(0x80, trap_stubs[0x80], 0, 0x6e);
	EXPECT(run_kernel(do_int80, &off), NP, 0x80 * 8 + 2, 1);
	set_gate(0x80, trap_stubs[0x80], 0, 0x8c); /* a call gate's type: not an interrupt gate */
	EXPECT(run_kernel(do_int80, &off), GP, 0x80 * 8 + 2, 1);
}

TEST(icebp)
{
	u64 off;
	EXPECT(run_kernel(do_icebp, &off), DB, 0, 2);
}

SNIPPET(do_into, 32, "movb $0x7f, %al; incb %al; into; nop"); /* 2+2+1 */
SNIPPET(no_into, 32, "xorb %al, %al; into; int $0x80");
SNIPPET(do_bound, 32,
	"movl $3, (%edi); movl $9, 4(%edi); movl $9, %eax; bound %eax, (%edi); movl $10, %eax; bound %eax, (%edi)");
SNIPPET(do_aam0, 32, "movb $5, %al; aam $0");

TEST(compat_only)
{
	IN_USER(do_into, 32, OF, 0, 5);
	IN_USER(no_into, 32, 0x80, 0, 5);
	IN_USER(do_bound, 32, BR, 0, 6 + 7 + 5 + 2 + 5);
	IN_USER(do_aam0, 32, DE, 0, 2);
}

static void check_ud(const char *bytes, unsigned len, unsigned mode)
{
	u64 off;
	struct trap *t = run_user((const u8 *)bytes, (const u8 *)bytes + len, mode, &off);
	CHECK_EQ_IN(t->f.vector, UD, "%x %x %x mode %u", (u8)bytes[0], (u8)bytes[1], (u8)bytes[2], mode);
	CHECK_EQ_IN(off, 0, "%x %x %x mode %u", (u8)bytes[0], (u8)bytes[1], (u8)bytes[2], mode);
}

TEST(invalid_opcode)
{
	static const char codes[][4] = {
		"\x0f\x0b",     /* UD2 */
		"\x0f\xb9\xc0", /* UD1 */
		"\x06",         "\x07",     "\x0e",     "\x16",     "\x17",     "\x1e",     "\x1f",
		"\x27",         "\x2f",     "\x37",     "\x3f",     "\x60",     "\x61",     "\x82\xc0\x01",
		"\x9a",         "\xce",     "\xd4\x0a", "\xd5\x0a", "\xea",     "\xf0\x90", /* LOCK on what cannot be
											       locked */
		"\xf0\x01\xc0",                                                             /* LOCK ADD to a register */
		"\xf0\x03\x07",                                                             /* LOCK ADD r, m */
		"\x8c\xff", /* MOV from segment register 7 */
		"\x8e\xc8", /* MOV to CS */
		"\x0f\x0a",     "\x0f\x04", "\x0f\x24", "\x0f\x26", "\x0f\x36", "\xfe\xd0", /* FE /2 */
		"\xff\xf8",                                                                 /* FF /7 */
		"\xff\xd8",     /* far CALL through a register */
		"\x8d\xc0",     /* LEA of a register */
		"\x0f\xc7\xc8", /* CMPXCHG8B of a register */
		"\x0f\xba\xc0", /* BT group /0 */
	};
	for (unsigned i = 0; i < sizeof(codes) / 4; i++)
		check_ud(codes[i], 4, 64);
	check_ud("\x0f\x0b\x00\x00", 4, 32);
	check_ud("\x8e\xc8\x00\x00", 4, 32);
}

TEST(invalid_opcode_more)
{
	check_ud("\xf0\x8b\x07\x00", 4, 64); /* LOCK MOV */
	check_ud("\xc6\xc8\x00\x00", 4, 64); /* C6 /1 */
}

TEST(syscall_without_sce)
{
	wrmsr(MSR_EFER, EFER_DEFAULT & ~1ull);
	check_ud("\x0f\x05\x00\x00", 4, 64);
	wrmsr(MSR_EFER, EFER_DEFAULT);
}

SNIPPET(long_15, 64, ".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90; int $0x80");
SNIPPET(long_16, 64,
	".byte 0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x66,0x90; int $0x80");

TEST(instruction_length)
{
	IN_BOTH(long_15, 0x80, 0, 17);
	IN_BOTH(long_16, GP, 0, 0);
}

SNIPPET(do_fld1, 64, "fld1; int $0x80");
SNIPPET(do_sse, 64, "pxor %xmm0, %xmm0; int $0x80");
SNIPPET(do_mmx, 64, "pxor %mm0, %mm0; int $0x80");
SNIPPET(do_fwait, 64, "fwait; int $0x80");
SNIPPET(do_fxsave, 64, "andq $~15, %rsp; subq $512, %rsp; fxsave (%rsp); int $0x80");

TEST(device_not_available)
{
	write_cr0(CR0_DEFAULT | CR0_TS);
	IN_BOTH(do_fld1, NM, 0, 0);
	IN_BOTH(do_sse, NM, 0, 0);
	IN_BOTH(do_mmx, NM, 0, 0);
	IN_BOTH(do_fwait, NM, 0, 0);
	IN_BOTH(do_fxsave, NM, 0, 11);
	asm volatile("clts");
	IN_BOTH(do_fld1, 0x80, 0, 4);
	IN_BOTH(do_sse, 0x80, 0, 6);
	write_cr0((CR0_DEFAULT | CR0_TS) & ~CR0_MP);
	IN_BOTH(do_fwait, 0x80, 0, 3);
	write_cr0((CR0_DEFAULT | CR0_EM) & ~CR0_MP);
	IN_BOTH(do_fld1, NM, 0, 0);
	IN_BOTH(do_sse, UD, 0, 0);
	IN_BOTH(do_mmx, UD, 0, 0);
	write_cr0(CR0_DEFAULT);
	write_cr4(CR4_DEFAULT & ~0x200ull); /* OSFXSR */
	IN_BOTH(do_sse, UD, 0, 0);
	write_cr4(CR4_DEFAULT);
}

SNIPPET(do_avx, 64, "vpxor %xmm0, %xmm0, %xmm0; int $0x80");
TEST(avx_gates)
{
	if (!HAS_AVX)
		skip("no AVX");
	write_cr4(CR4_DEFAULT);
	IN_BOTH(do_avx, UD, 0, 0); /* OSXSAVE is clear */
	write_cr4(CR4_DEFAULT | CR4_OSXSAVE);
	asm volatile("xsetbv" : : "c"(0), "a"(3), "d"(0));
	IN_BOTH(do_avx, UD, 0, 0);
	asm volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
	IN_BOTH(do_avx, 0x80, 0, 6);
	write_cr0(CR0_DEFAULT | CR0_TS);
	IN_BOTH(do_avx, NM, 0, 0);
	write_cr0(CR0_DEFAULT);
	CHECK_EQ(CATCH(asm volatile("xsetbv" : : "c"(0), "a"(2), "d"(0))), GP);
	CHECK_EQ(CATCH(asm volatile("xsetbv" : : "c"(0), "a"(5), "d"(0))), GP);
	CHECK_EQ(CATCH(asm volatile("xsetbv" : : "c"(1), "a"(7), "d"(0))), GP);
}

/* An exception while delivering one: the table of SDM Vol. 3A 6-5. */
SNIPPET(do_gp, 64, "nop; movq $0x1000000000000, %rax; movb (%rax), %al"); /* 1 + 10 */
SNIPPET(do_pf, 64, "nop; movq $0x7000000000, %rax; movb (%rax), %al");
SNIPPET(do_de, 64, "nop; xorl %ecx, %ecx; divl %ecx");

TEST(double_fault)
{
	u64 off;
	set_gate(GP, trap_stubs[GP], 1, 0x0e); /* not present */
	EXPECT(run_kernel(do_gp, &off), DF, 0, 11);
	EXPECT(run_user(do_gp, do_gp_end, 64, &off), DF, 0, 11);
	EXPECT(run_kernel(do_pf, &off), PF, 0, 11);
	set_gate(PF, trap_stubs[PF], 1, 0x0e);
	EXPECT(run_kernel(do_pf, &off), DF, 0, 11);
	set_gate(DE, trap_stubs[DE], 1, 0x0e);
	EXPECT(run_kernel(do_de, &off), DF, 0, 3);
}

/* The exception stack itself is missing: page fault on the push, then #DF on its own stack. */
TEST(double_fault_stack)
{
	u64 off;
	u64 old = tss[0].ist[0];
	tss[0].ist[0] = TEST_VA + 0x5000;
	EXPECT(run_kernel(do_gp, &off), DF, 0, 11);
	struct trap *t = run_kernel(do_pf, &off);
	CHECK_EQ(t->f.vector, DF);
	CHECK_EQ(off, 11);
	tss[0].ist[0] = old;
}

/* A benign one and then a contributory one: the second alone, its own error code with EXT set. */
TEST(fault_in_delivery)
{
	u64 off;
	set_gate(UD, trap_stubs[UD], 1, 0x0e);
	struct trap *t = run_kernel((const u8 *)"\x0f\x0b", &off);
	CHECK_EQ(t->f.vector, NP);
	CHECK_EQ(off, 0);
	CHECK_EQ(t->f.error, UD * 8 + 2 + 1);
}

static u64 descriptor(u64 type_s_dpl_p)
{
	return 0x00cf00000000ffff | type_s_dpl_p << 40;
}

static unsigned load_ds(u16 sel)
{
	return CATCH(asm volatile("mov %0, %%ds" : : "r"(sel)));
}
static unsigned load_ss(u16 sel)
{
	return CATCH(asm volatile("mov %0, %%ss" : : "r"(sel)));
}

/* With other bits of the register behind: they are clear, or with 16 bits as they were. */
TEST(selectors_read)
{
	u64 a = ~0ull, b = ~0ull, c = ~0ull, d = ~0ull;
	load_ds(SEL_USER_DATA | 3);
	asm volatile("mov %%cs, %0; mov %%ss, %k1; mov %%ds, %w2; mov %%ds, %3" : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
	CHECK_EQ(a, SEL_CODE64);
	CHECK_EQ(b, SEL_DATA);
	CHECK_EQ(c, ~0xffffull | SEL_USER_DATA | 3);
	CHECK_EQ(d, SEL_USER_DATA | 3);
	asm volatile("mov $-1, %%r10; mov %%r10, %%r11; mov %%r10, %%r9; mov %%ds, %%r10; mov %%cs, %%r11d; "
		     "lea (%%r10, %%r11), %0; mov %%ss, %%r9w; mov %%r9, %1"
		     : "=r"(a), "=r"(b)
		     :
		     : "r9", "r10", "r11");
	CHECK_EQ(a, (SEL_USER_DATA | 3) + SEL_CODE64);
	CHECK_EQ(b, ~0xffffull | SEL_DATA);
}

TEST(segment_loads)
{
	const u16 s = SEL_TEST;
	u64 *d = &gdt[s / 8];
	CHECK_EQ(load_ds(0), NO_TRAP);
	CHECK_EQ(load_ds(3), NO_TRAP);
	*d = descriptor(0x93);
	CHECK_EQ(load_ds(s), NO_TRAP);
	CHECK_EQ(load_ds(s | 3), GP); /* RPL above DPL */
	CHECK_EQ(last_trap()->f.error, s);
	CHECK_EQ(load_ss(s), NO_TRAP);
	CHECK_EQ(load_ss(s | 3), GP);
	CHECK_EQ(last_trap()->f.error, s);
	*d = descriptor(0x13); /* not present */
	CHECK_EQ(load_ds(s), NP);
	CHECK_EQ(last_trap()->f.error, s);
	CHECK_EQ(load_ss(s), SS);
	CHECK_EQ(last_trap()->f.error, s);
	*d = descriptor(0x91); /* read-only data */
	CHECK_EQ(load_ds(s), NO_TRAP);
	CHECK_EQ(load_ss(s), GP);
	CHECK_EQ(last_trap()->f.error, s);
	*d = descriptor(0x99); /* execute-only */
	CHECK_EQ(load_ds(s), GP);
	CHECK_EQ(last_trap()->f.error, s);
	*d = descriptor(0x9b);
	CHECK_EQ(load_ds(s), NO_TRAP);
	*d = descriptor(0x9f); /* conforming and readable: any RPL */
	CHECK_EQ(load_ds(s | 3), NO_TRAP);
	*d = descriptor(0x89); /* a TSS */
	CHECK_EQ(load_ds(s), GP);
	CHECK_EQ(last_trap()->f.error, s);
	CHECK_EQ(load_ds(GDT_ENTRIES * 8), GP); /* beyond the limit */
	CHECK_EQ(last_trap()->f.error, GDT_ENTRIES * 8);
	CHECK_EQ(load_ds(s | 4), GP); /* no LDT */
	CHECK_EQ(last_trap()->f.error, s | 4);
	*d = descriptor(0x92); /* the accessed bit is set by the load */
	CHECK_EQ(load_ds(s), NO_TRAP);
	CHECK_EQ(*(volatile u64 *)d >> 40 & 0xff, 0x93);
	CHECK_EQ(load_ds(SEL_DATA), NO_TRAP);
	CHECK_EQ(load_ss(0), NO_TRAP); /* ring 0 in 64-bit mode may */
	CHECK_EQ(load_ss(SEL_DATA), NO_TRAP);
}

TEST(system_segments)
{
	const u16 s = SEL_TEST;
	u64 *d = &gdt[s / 8];
	CHECK_EQ(CATCH(asm volatile("ltr %w0" : : "r"(SEL_TSS))), GP); /* busy */
	CHECK_EQ(last_trap()->f.error, SEL_TSS);
	d[0] = descriptor(0x09);
	d[1] = 0;
	CHECK_EQ(CATCH(asm volatile("ltr %w0" : : "r"((u32)s))), NP);
	CHECK_EQ(last_trap()->f.error, s);
	d[0] = descriptor(0x82); /* LDT */
	d[1] = 0;
	CHECK_EQ(CATCH(asm volatile("lldt %w0" : : "r"((u32)s))), NO_TRAP);
	u16 sel;
	asm volatile("sldt %0" : "=r"(sel));
	CHECK_EQ(sel, s);
	CHECK_EQ(CATCH(asm volatile("lldt %w0" : : "r"((u32)SEL_DATA))), GP);
	CHECK_EQ(last_trap()->f.error, SEL_DATA);
	d[0] = descriptor(0x02);
	CHECK_EQ(CATCH(asm volatile("lldt %w0" : : "r"((u32)s))), NP);
	CHECK_EQ(last_trap()->f.error, s);
}

TEST(ltr_null)
{
	if (have_option("engine=qemu"))
		skip("QEMU takes it, and ends");
	CHECK_EQ(CATCH(asm volatile("ltr %w0" : : "r"(0))), GP);
	CHECK_EQ(last_trap()->f.error, 0);
}

SNIPPET(do_ud, 64, "ud2");
TEST(far_transfers)
{
	struct {
		u32 off;
		u16 sel;
	} __attribute__((packed)) p;
	static const u16 bad[][3] = {
		{0, GP, 0},
		{3, GP, 0},
		{SEL_DATA, GP, SEL_DATA},
		{SEL_USER_CODE64, GP, SEL_USER_CODE64 & ~3},
		{GDT_ENTRIES * 8, GP, GDT_ENTRIES * 8},
		{SEL_TEST, NP, SEL_TEST},
	};
	gdt[SEL_TEST / 8] = 0x00af1b000000ffff;
	for (unsigned i = 0; i < 6; i++) {
		p = (typeof(p)){(u32)(u64)do_ud, bad[i][0]};
		CHECK_EQ_IN(CATCH(asm volatile("ljmp *%0" : : "m"(p))), bad[i][1], "selector 0x%x", bad[i][0]);
		CHECK_EQ_IN(last_trap()->f.error, bad[i][2], "selector 0x%x", bad[i][0]);
	}
}

TEST(far_transfer_long_and_default)
{
	struct {
		u32 off;
		u16 sel;
	} __attribute__((packed)) p = {(u32)(u64)do_ud, SEL_TEST};
	gdt[SEL_TEST / 8] = 0x00ef9b000000ffff; /* L and D both set */
	CHECK_EQ(CATCH(asm volatile("ljmp *%0" : : "m"(p))), GP);
	CHECK_EQ(last_trap()->f.error, SEL_TEST);
}

/* #TS: the interrupt stack pointer lies beyond the TSS's limit. */
TEST(invalid_tss)
{
	const u16 s = SEL_TEST;
	u64 *d = &gdt[s / 8], *old = &gdt[SEL_TSS / 8];
	d[0] = (old[0] & ~0xffffull & ~(0xfull << 40)) | 9ull << 40 | 0x3b;
	d[1] = old[1];
	set_gate(0x80, trap_stubs[0x80], 7, 0xee);
	/* this_cpu() reads TR: the selector must map to processor 0 */
	u64 keep0 = old[0];
	old[0] = d[0];
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
	u64 off;
	struct trap *t = run_kernel(do_int80, &off);
	CHECK_EQ(t->f.vector, TS);
	CHECK_EQ(t->f.error, SEL_TSS);
	CHECK_EQ(off, 1);
	old[0] = (keep0 & ~(0xfull << 40)) | 9ull << 40;
	asm volatile("ltr %w0" : : "r"(SEL_TSS));
}

TEST(general_protection)
{
	static const char privileged[][4] = {
		"\xfa",         "\xfb",
		"\xf4",         "\xe4\x60",
		"\xe6\x60",     "\xec",
		"\xee",         "\x6c",
		"\x6e",         "\x0f\x20\xc0",
		"\x0f\x22\xc0", "\x0f\x20\xd0",
		"\x0f\x21\xc0", "\x0f\x23\xc0",
		"\x0f\x06",     "\x0f\x32",
		"\x0f\x30",     "\x0f\x09",
		"\x0f\x01\x17", "\x0f\x01\x1f",
		"\x0f\x00\xd0", "\x0f\x00\xd8",
		"\x0f\x01\xf0", "\x0f\x01\x3f",
		"\x0f\x01\xf8", "\x44\x0f\x20\xc0",
	};
	for (unsigned i = 0; i < sizeof(privileged) / 4; i++) {
		u64 off;
		const u8 *code = (const u8 *)privileged[i];
		struct trap *t = run_user(code, code + 4, 64, &off);
		CHECK_EQ_IN(t->f.vector, GP, "%x %x %x", code[0], code[1], code[2]);
		CHECK_EQ_IN(t->f.error, 0, "%x %x %x", code[0], code[1], code[2]);
		CHECK_EQ_IN(off, 0, "%x %x %x", code[0], code[1], code[2]);
	}
}

/* Control register and MSR bits that are reserved, or that must go together. */
TEST(reserved_controls)
{
	if (have_option("engine=qemu"))
		skip("QEMU takes what is reserved, and is lost");
	CHECK_EQ(CATCH(write_cr4(CR4_DEFAULT | 1ull << 31)), GP);
	CHECK_EQ(CATCH(write_cr4(CR4_DEFAULT & ~0x20ull)), GP);   /* PAE, in long mode */
	CHECK_EQ(CATCH(write_cr0(CR0_DEFAULT & ~1ull)), GP);      /* PG without PE */
	CHECK_EQ(CATCH(write_cr0(CR0_DEFAULT | 1ull << 29)), GP); /* NW without CD */
	CHECK_EQ(CATCH(write_cr0(CR0_DEFAULT | 1ull << 32)), GP);
	CHECK_EQ(CATCH(write_cr8(16)), GP);
	CHECK_EQ(CATCH(wrmsr(MSR_EFER, EFER_DEFAULT | 1ull << 40)), GP);
	CHECK_EQ(CATCH(wrmsr(MSR_EFER, EFER_DEFAULT & ~0x100ull)), GP); /* LME while paging is on */
	CHECK_EQ(CATCH(wrmsr(MSR_LSTAR, 0x1000000000000)), GP);
	CHECK_EQ(CATCH(wrmsr(MSR_GS_BASE, 0x1000000000000)), GP);
	CHECK_EQ(CATCH(wrmsr(0xdeadbeef, 0)), GP);
	CHECK_EQ(CATCH(rdmsr(0xdeadbeef)), GP);
	CHECK_EQ(CATCH(write_cr3(1ull << 60)), GP);
	CHECK_EQ(CATCH(asm volatile("mov %0, %%dr7" : : "r"(1ull << 32))), GP);
	CHECK_EQ(CATCH(asm volatile("mov %0, %%dr6" : : "r"(1ull << 32))), GP);
}

/* IN and OUT from ring 3 by the TSS's bit map and by IOPL. */
SNIPPET(do_in, 64, "inb %dx, %al; int $0x80");
SNIPPET(do_inl, 64, "inl %dx, %eax; int $0x80");
TEST(io_permission)
{
	struct frame f;
	struct tss *t = &tss[0];
	t->iomap = offsetof(struct tss, bitmap);
	memset(t->bitmap, 0xff, sizeof(t->bitmap));
	t->bitmap[0x80 / 8] = 0xfe;
	f = user_code(do_in, do_in_end, 64);
	f.rdx = 0x80;
	CHECK_EQ(run_frame(&f)->f.vector, 0x80);
	f.rdx = 0x81;
	CHECK_EQ(run_frame(&f)->f.vector, GP);
	f.rdx = 0x4000; /* beyond the limit */
	CHECK_EQ(run_frame(&f)->f.vector, GP);
	f.rflags |= FL_IOPL;
	CHECK_EQ(run_frame(&f)->f.vector, 0x80);
	f = user_code(do_inl, do_inl_end, 64);
	f.rdx = 0x80;
	CHECK_EQ(run_frame(&f)->f.vector, GP); /* all four ports count */
	t->bitmap[0x80 / 8] = 0xf0;
	CHECK_EQ(run_frame(&f)->f.vector, 0x80);
	t->iomap = sizeof(struct tss);
}

SNIPPET(do_cli, 64, "cli; sti; pushfq; popq %rax; int $0x80");
SNIPPET(do_popf, 64, "pushq %rbx; popfq; pushfq; popq %rax; int $0x80");
TEST(iopl)
{
	struct frame f = user_code(do_cli, do_cli_end, 64);
	f.rflags |= FL_IOPL | FL_IF;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rax & FL_IF, FL_IF);
	/* POPF in ring 3: IF changes by IOPL, IOPL never */
	f = user_code(do_popf, do_popf_end, 64);
	f.rflags = 2;
	f.rbx = FL_IF | FL_IOPL | FL_CF;
	t = run_frame(&f);
	CHECK_EQ(t->f.rax, 2 | FL_CF);
	f.rflags = 2 | FL_IOPL;
	f.rbx = FL_IF;
	t = run_frame(&f);
	CHECK_EQ(t->f.rax, 2 | FL_IOPL | FL_IF);
}

SNIPPET(do_movaps, 64, "movaps 8(%rdi), %xmm0; int $0x80");
SNIPPET(do_movups, 64, "movups 8(%rdi), %xmm0; int $0x80");
SNIPPET(do_movntq, 64, "movntdq %xmm0, 4(%rdi); int $0x80");
SNIPPET(do_cx16, 64, "cmpxchg16b 8(%rdi); int $0x80");
TEST(sse_alignment)
{
	IN_USER(do_movaps, 64, GP, 0, 0);
	IN_USER(do_movups, 64, 0x80, 0, 6);
	IN_USER(do_movntq, 64, GP, 0, 0);
	IN_USER(do_cx16, 64, GP, 0, 0);
}

SNIPPET(do_mf, 64, "fninit; pushq $0x37b; fldcw (%rsp); fldz; fld1; fdivp; nop; fwait; int $0x80"); /* fwait at 17 */
SNIPPET(do_mf2, 64, "fninit; pushq $0x37b; fldcw (%rsp); fldz; fld1; fdivp; nop; fld1; int $0x80");
SNIPPET(do_mf3, 64, "fninit; pushq $0x37b; fldcw (%rsp); fldz; fld1; fdivp; fnstsw %ax; fnclex; fld1; int $0x80");
TEST(x87_error)
{
	/* unmasked zero divide: reported by the next waiting instruction */
	IN_BOTH(do_mf, MF, 0, do_mf_end - do_mf - 3);
	IN_BOTH(do_mf2, MF, 0, do_mf2_end - do_mf2 - 4);
	asm volatile("fnclex");
	IN_BOTH(do_mf3, 0x80, 0, do_mf3_end - do_mf3);
}

SNIPPET(do_xm, 64,
	"pushq $0x1d80; ldmxcsr (%rsp); pxor %xmm1, %xmm1; pcmpeqd %xmm0, %xmm0; psrld $25, %xmm0; pslld $23, %xmm0;"
	"divps %xmm1, %xmm0; int $0x80");
TEST(simd_error)
{
	IN_BOTH(do_xm, XM, 0, do_xm_end - do_xm - 5);
	write_cr4(CR4_DEFAULT & ~CR4_OSXMMEXCPT);
	IN_BOTH(do_xm, UD, 0, do_xm_end - do_xm - 5);
	write_cr4(CR4_DEFAULT);
}

SNIPPET(do_ac4, 64, "movl 1(%rdi), %eax; int $0x80");
SNIPPET(do_ac2, 64, "movw %ax, 1(%rdi); int $0x80");
SNIPPET(do_ac8, 64, "addq %rax, 4(%rdi); int $0x80");
SNIPPET(do_ac1, 64,
	"movb 1(%rdi), %al; movl 4(%rdi), %eax; movq 8(%rdi), %rcx; movw 2(%rdi), %cx; movups (%rdi), %xmm0; int "
	"$0x80");
SNIPPET(do_acp, 64, "leaq -4(%rsp), %rsp; pushq %rax; int $0x80");
SNIPPET(do_acs, 64, "leaq 2(%rdi), %rsi; movl $9, %ecx; rep movsl; int $0x80");
static struct trap *run_ac(const u8 *begin, const u8 *end)
{
	struct frame f = user_code(begin, end, 64);
	f.rdi = USER_DATA;
	f.rflags |= FL_AC;
	return run_frame(&f);
}
TEST(alignment_check)
{
	CHECK_EQ(run_ac(do_ac4, do_ac4_end)->f.vector, AC);
	CHECK_EQ(last_trap()->f.error, 0);
	CHECK_EQ(last_trap()->f.rip, USER_CODE);
	CHECK_EQ(run_ac(do_ac2, do_ac2_end)->f.vector, AC);
	CHECK_EQ(run_ac(do_ac8, do_ac8_end)->f.vector, AC);
	CHECK_EQ(run_ac(do_acp, do_acp_end)->f.vector, AC);
	CHECK_EQ(last_trap()->f.rip, USER_CODE + 5);
	CHECK_EQ(run_ac(do_acs, do_acs_end)->f.vector, AC);
	write_cr0(CR0_DEFAULT & ~CR0_AM);
	CHECK_EQ(run_ac(do_ac4, do_ac4_end)->f.vector, 0x80);
	write_cr0(CR0_DEFAULT);
	/* never in ring 0 */
	write_flags(2 | FL_AC);
	CHECK_EQ(CATCH(asm volatile("movl 1(%0), %%eax" : : "r"(USER_DATA) : "rax")), NO_TRAP);
	write_flags(2);
}
TEST(alignment_fine)
{
	CHECK_EQ(run_ac(do_ac1, do_ac1_end)->f.vector, 0x80);
	CHECK_EQ(last_trap()->f.rip, USER_CODE + (do_ac1_end - do_ac1));
}

/* Faults push RF set, traps and software interrupts as it is (SDM Vol. 3B 17.3.1.1). */
TEST(resume_flag)
{
	u64 off;
	CHECK_EQ(run_kernel(do_de, &off)->f.rflags & FL_RF, FL_RF);
	CHECK_EQ(run_kernel(do_gp, &off)->f.rflags & FL_RF, FL_RF);
	CHECK_EQ(run_kernel(do_pf, &off)->f.rflags & FL_RF, FL_RF);
	CHECK_EQ(run_user(do_pf, do_pf_end, 64, &off)->f.rflags & FL_RF, FL_RF);
	CHECK_EQ(run_kernel(do_int3, &off)->f.rflags & FL_RF, 0);
	CHECK_EQ(run_kernel(do_int80, &off)->f.rflags & FL_RF, 0);
}

/* UMIP: SGDT and its kin are #GP in ring 3. */
TEST(umip)
{
	static const char *const codes[] = {"\x0f\x01\x07", "\x0f\x01\x0f", "\x0f\x00\xc0", "\x0f\x00\xc8",
					    "\x0f\x01\xe0"};
	if (!HAS_UMIP)
		skip("no UMIP");
	for (unsigned i = 0; i < 10; i++) {
		u64 off;
		u8 code[8];
		memcpy(code, codes[i / 2], 3);
		memcpy(code + 3, "\xcd\x80", 2);
		write_cr4(CR4_DEFAULT | (i & 1 ? CR4_UMIP : 0));
		struct trap *t = run_user(code, code + 5, 64, &off);
		CHECK_EQ_IN(t->f.vector, i & 1 ? GP : 0x80, "case %u", i);
	}
	write_cr4(CR4_DEFAULT);
}

/* Addresses: the stack segment gives #SS(0), and an instruction fetch from the hole is #GP. */
TEST(bad_targets)
{
	u64 bad = 0x900000000000;
	struct frame f = kernel_frame(0, 0);
	static const u8 jmp_rax[] = {0x90, 0xff, 0xe0}, ret[] = {0xc3};
	f.rip = (u64)jmp_rax;
	f.rax = bad;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, GP);
	CHECK_EQ(t->f.error, 0);
	CHECK_EQ(t->f.rip, (u64)jmp_rax + 1); /* the branch faults */
	static u64 stack[2];
	stack[0] = bad;
	f.rip = (u64)ret;
	f.rsp = (u64)stack;
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, GP);
	CHECK_EQ(t->f.rip, (u64)ret);
	CHECK_EQ(t->f.rsp, (u64)stack);
}
