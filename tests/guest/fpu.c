/* Floating-point and vector state: FXSAVE, XSAVE and their kin, #NM, state across traps and ring changes (SDM Vol. 1
 * ch. 10, 13). */
#include "guest.h"

const char payload[] = "fpu";

static u8 area[4096] __attribute__((aligned(64)));
static u8 other[4096] __attribute__((aligned(64)));
static u8 pattern[16][32] __attribute__((aligned(64)));
static u8 got[16][32] __attribute__((aligned(64)));

static void make_pattern(u64 seed)
{
	for (unsigned i = 0; i < 16 * 32; i++)
		((u8 *)pattern)[i] = (seed * 31 + i * 7) ^ i >> 3;
}

#define EACH_XMM(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
static void load_xmm(void)
{
#define LOAD(n) asm volatile("movups %0, %%xmm" #n : : "m"(pattern[n]));
	EACH_XMM(LOAD)
}
static void store_xmm(void)
{
#define STORE(n) asm volatile("movups %%xmm" #n ", %0" : "=m"(got[n]) : : "memory");
	EACH_XMM(STORE)
}
static void load_ymm(void)
{
#define LOADY(n) asm volatile("vmovups %0, %%ymm" #n : : "m"(pattern[n]));
	EACH_XMM(LOADY)
}
static void store_ymm(void)
{
#define STOREY(n) asm volatile("vmovups %%ymm" #n ", %0" : "=m"(got[n]) : : "memory");
	EACH_XMM(STOREY)
}
static void clear_xmm(void)
{
#define CLEAR(n) asm volatile("pxor %%xmm" #n ", %%xmm" #n : :);
	EACH_XMM(CLEAR)
}
static void check_xmm(unsigned bytes)
{
	for (unsigned i = 0; i < 16; i++)
		CHECK_EQ_IN(memcmp(pattern[i], got[i], bytes), 0, "register %u", i);
}
static void load_x87(void)
{
	u16 cw = 0x27f;
	asm volatile("fninit; fldcw %0; fld1; fldpi; fldl2e; fldz; fld1" : : "m"(cw));
}

TEST(fxsave)
{
	make_pattern(1);
	load_xmm();
	load_x87();
	u32 mxcsr = 0x1fbf, back;
	asm volatile("ldmxcsr %0" : : "m"(mxcsr));
	memset(area, 0xee, sizeof(area));
	asm volatile("fxsaveq %0" : "=m"(area) : : "memory");
	CHECK_EQ(*(u16 *)area, 0x27f);
	CHECK_EQ(*(u16 *)(area + 2) >> 11 & 7, 3); /* TOP */
	CHECK_EQ(area[4], 0xf8);
	CHECK_EQ(*(u32 *)(area + 24), mxcsr);
	for (unsigned i = 0; i < 16; i++)
		CHECK_EQ(memcmp(area + 160 + 16 * i, pattern[i], 16), 0);
	CHECK_EQ(*(u64 *)(area + 32 + 16 * 3), 0xc90fdaa22168c235); /* ST(3) is pi */
	CHECK_EQ(*(u16 *)(area + 32 + 16 * 3 + 8), 0x4000);
	CHECK_EQ(area[512], 0xee);
	clear_xmm();
	mxcsr = 0x1f80;
	asm volatile("fninit; ldmxcsr %0" : : "m"(mxcsr));
	asm volatile("fxrstorq %0" : : "m"(area));
	store_xmm();
	check_xmm(16);
	asm volatile("stmxcsr %0" : "=m"(back));
	CHECK_EQ(back, 0x1fbf);
	u16 cw, sw;
	asm volatile("fnstcw %0; fnstsw %1" : "=m"(cw), "=m"(sw));
	CHECK_EQ(cw, 0x27f);
	CHECK_EQ(sw >> 11 & 7, 3);
	*(u32 *)(area + 24) = 0x80000000;
	CHECK_EQ(CATCH(asm volatile("fxrstorq %0" : : "m"(area))), GP);
	CHECK_EQ(CATCH(asm volatile("fxsaveq 8(%0)" : : "r"(area) : "memory")), GP);
	mxcsr = 0x10000;
	CHECK_EQ(CATCH(asm volatile("ldmxcsr %0" : : "m"(mxcsr))), GP);
}

static bool xsave_on(u64 xcr0)
{
	if (!HAS_XSAVE)
		skip("no XSAVE");
	if ((xcr0 & 4) && !HAS_AVX)
		skip("no AVX");
	write_cr4(CR4_DEFAULT | CR4_OSXSAVE);
	asm volatile("xsetbv" : : "c"(0), "a"((u32)xcr0), "d"(0));
	return true;
}
#define XSAVE(insn, buf, mask) asm volatile(insn " %0" : "+m"(buf) : "a"((u32)(mask)), "d"(0) : "memory")

TEST(xsave)
{
	xsave_on(7);
	make_pattern(2);
	load_ymm();
	memset(area, 0, sizeof(area));
	XSAVE("xsave64", area, 7);
	CHECK_EQ(*(u64 *)(area + 512) & 6, 6);
	for (unsigned i = 0; i < 16; i++) {
		CHECK_EQ(memcmp(area + 160 + 16 * i, pattern[i], 16), 0);
		CHECK_EQ(memcmp(area + 576 + 16 * i, pattern[i] + 16, 16), 0);
	}
	asm volatile("vzeroall");
	XSAVE("xrstor64", area, 7);
	store_ymm();
	check_xmm(32);
	/* components left out of the mask stay; those whose bit is clear in the header go to their initial state */
	asm volatile("vzeroall");
	XSAVE("xrstor64", area, 2);
	store_ymm();
	for (unsigned i = 0; i < 16; i++) {
		CHECK_EQ(memcmp(got[i], pattern[i], 16), 0);
		CHECK_EQ(*(u64 *)(got[i] + 16), 0);
	}
	load_ymm();
	*(u64 *)(area + 512) = 3;
	XSAVE("xrstor64", area, 7);
	store_ymm();
	CHECK_EQ(memcmp(got[5], pattern[5], 16), 0);
	CHECK_EQ(*(u64 *)(got[5] + 16), 0);
	*(u64 *)(area + 512) = 8; /* a component that is not enabled */
	CHECK_EQ(CATCH(XSAVE("xrstor64", area, 7)), GP);
	*(u64 *)(area + 512) = 7;
	*(u64 *)(area + 520) = 1; /* XCOMP_BV in the standard form */
	CHECK_EQ(CATCH(XSAVE("xrstor64", area, 7)), GP);
	CHECK_EQ(CATCH(asm volatile("xsave64 16(%0)" : : "r"(area), "a"(7), "d"(0) : "memory")), GP);
}

TEST(xsavec)
{
	u32 r[4];
	xsave_on(7);
	cpuid(13, 1, r);
	if (!(r[0] & 2))
		skip("no XSAVEC");
	make_pattern(3);
	load_ymm();
	memset(area, 0, sizeof(area));
	XSAVE("xsavec64", area, 6);
	CHECK_EQ(*(u64 *)(area + 520), 1ull << 63 | 6);
	CHECK_EQ(*(u64 *)(area + 512), 6);
	CHECK_EQ(memcmp(area + 576, pattern[0] + 16, 16), 0);
	asm volatile("vzeroall");
	XSAVE("xrstor64", area, 6);
	store_ymm();
	check_xmm(32);
}

TEST(xsaveopt)
{
	u32 r[4];
	xsave_on(7);
	cpuid(13, 1, r);
	if (!(r[0] & 1))
		skip("no XSAVEOPT");
	make_pattern(4);
	load_ymm();
	memset(area, 0, sizeof(area));
	XSAVE("xsaveopt64", area, 7);
	for (unsigned k = 0; k < 3; k++) {
		make_pattern(5 + k);
		load_ymm();
		XSAVE("xsaveopt64", area, 7);
		asm volatile("vzeroall");
		XSAVE("xrstor64", area, 7);
		store_ymm();
		check_xmm(32);
	}
}

TEST(sizes)
{
	u32 r[4];
	xsave_on(3);
	cpuid(13, 0, r);
	CHECK_EQ(r[1], 576);
	CHECK((r[0] & 3) == 3);
	if (HAS_AVX) {
		xsave_on(7);
		cpuid(13, 0, r);
		CHECK_EQ(r[1], 832);
		cpuid(13, 2, r);
		CHECK_EQ(r[0], 256);
		CHECK_EQ(r[1], 576);
	}
	u32 lo, hi;
	asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	CHECK_EQ(lo, HAS_AVX ? 7 : 3);
	cpuid(1, 0, r);
	CHECK(r[2] & 1 << 27);
	write_cr4(CR4_DEFAULT);
	cpuid(1, 0, r);
	CHECK(!(r[2] & 1 << 27));
	CHECK_EQ(CATCH(asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0))), UD);
	CHECK_EQ(CATCH(XSAVE("xsave64", area, 7)), UD);
}

/* Writes to the local APIC, as an interrupt's handler makes them, say nothing of vector state. */
static void write_apic(unsigned way)
{
	switch (way) {
	case 0:
		apic_write(APIC_EOI, 0);
		break;
	case 1:
		apic_write(APIC_TIMER_INIT, 100000000);
		break;
	case 2:
		write_cr8(0);
		break;
	default:
		if (HAS_DEADLINE)
			wrmsr(MSR_TSC_DEADLINE, 0);
	}
}
TEST(apic_writes)
{
	u32 want = 0x5fa1, mxcsr;
	u16 cw, sw;
	if (HAS_AVX)
		xsave_on(7);
	apic_enable();
	for (unsigned i = 0; i < 24; i++) {
		apic_set_x2(i >= 12 && HAS_X2APIC);
		make_pattern(7 + i);
		HAS_AVX ? load_ymm() : load_xmm();
		load_x87();
		asm volatile("ldmxcsr %0" : : "m"(want));
		write_apic(i % 4);
		asm volatile("fnstcw %0; fnstsw %1; stmxcsr %2; fninit" : "=m"(cw), "=m"(sw), "=m"(mxcsr));
		HAS_AVX ? store_ymm() : store_xmm();
		check_xmm(HAS_AVX ? 32 : 16);
		CHECK_EQ(mxcsr, want);
		CHECK_EQ(cw, 0x27f);
		CHECK_EQ(sw >> 11 & 7, 3);
	}
	mxcsr = 0x1f80;
	asm volatile("ldmxcsr %0" : : "m"(mxcsr));
	apic_set_x2(false);
	apic_enable();
}

/* Faults in the middle of saving and restoring change nothing. */
TEST(page_faults)
{
	u8 *p = map_fresh(TEST_VA, 1, PTE_KERNEL);
	u64 at = TEST_VA + PAGE - 256;
	make_pattern(6);
	load_xmm();
	CHECK_EQ(CATCH(asm volatile("fxsaveq (%0)" : : "r"(at) : "memory")), PF);
	CHECK_EQ(last_trap()->cr2 & ~(PAGE - 1), TEST_VA + PAGE); /* which byte is the processor's choice */
	CHECK_EQ(last_trap()->f.error, PF_W);
	asm volatile("fxsaveq %0" : "=m"(area) : : "memory");
	memcpy((void *)at, area, 256);
	clear_xmm();
	CHECK_EQ(CATCH(asm volatile("fxrstorq (%0)" : : "r"(at) : "memory")), PF);
	CHECK_EQ(last_trap()->cr2 & ~(PAGE - 1), TEST_VA + PAGE); /* which byte is the processor's choice */
	store_xmm();
	for (unsigned i = 0; i < 16; i++)
		CHECK_EQ(*(u64 *)got[i], 0);
	map_fresh(TEST_VA + PAGE, 1, PTE_KERNEL);
	memcpy((void *)(at + 256), area + 256, 256);
	CHECK_EQ(CATCH(asm volatile("fxrstorq (%0)" : : "r"(at) : "memory")), NO_TRAP);
	store_xmm();
	check_xmm(16);
	(void)p;
}

/* #NM as an operating system that switches lazily uses it. */
static volatile unsigned nm;
static bool on_nm(struct frame *f)
{
	(void)f;
	asm volatile("clts; fxsaveq %0; fxrstorq %1" : "=m"(area) : "m"(other) : "memory");
	nm++;
	return true;
}
TEST(lazy_switch)
{
	set_handler(NM, on_nm);
	make_pattern(7);
	load_xmm();
	asm volatile("fxsaveq %0" : "=m"(other) : : "memory");
	make_pattern(8);
	load_xmm();
	nm = 0;
	write_cr0(CR0_DEFAULT | CR0_TS);
	asm volatile("movups %%xmm3, %0" : "=m"(got[3]) : : "memory");
	CHECK_EQ(nm, 1);
	CHECK_EQ(memcmp(area + 160 + 48, pattern[3], 16), 0); /* what was there has been saved */
	CHECK_EQ(memcmp(got[3], other + 160 + 48, 16), 0);    /* and the instruction ran on the other state */
	asm volatile("movups %%xmm4, %0" : "=m"(got[4]) : : "memory");
	CHECK_EQ(nm, 1);
	for (unsigned i = 0; i < 5; i++) {
		write_cr0(CR0_DEFAULT | CR0_TS);
		asm volatile("fld1; fstp %%st(0)" : :);
		CHECK_EQ(nm, 2 + i);
	}
}

/* Vector state lives through page faults, interrupts, system calls and port I/O. */
SNIPPET(keep, 64,
	"movups (%rdi), %xmm5; movups 16(%rdi), %xmm15; movb (%rsi), %al; inb $0x80, %al; cpuid; movups %xmm5, "
	"32(%rdi); movups %xmm15, 48(%rdi); ud2");
static bool mend(struct frame *f)
{
	map_fresh(read_cr2() & ~(PAGE - 1), 1, PTE_KERNEL);
	(void)f;
	return true;
}
TEST(across_traps)
{
	set_handler(PF, mend);
	make_pattern(9);
	memcpy(area, pattern, 64);
	memset(area + 32, 0, 32);
	struct frame f = kernel_frame((u64)keep, (u64)other + 4096);
	f.rdi = (u64)area;
	f.rsi = TEST_VA + 0x5000;
	CHECK_EQ(run_frame(&f)->f.vector, UD);
	CHECK_EQ(memcmp(area, area + 32, 32), 0);
}

/* MMX shares the x87 registers. */
TEST(mmx)
{
	u64 v = 0x1122334455667788, w = 0;
	u16 sw, tags[14];
	asm volatile("fninit; movq %2, %%mm3; fnstsw %1; movq %%mm3, %0" : "=m"(w), "=m"(sw) : "m"(v));
	CHECK_EQ(w, v);
	CHECK_EQ(sw >> 11 & 7, 0);
	asm volatile("fnstenv %0" : "=m"(tags) : : "memory");
	CHECK_EQ(tags[4], 0x5556 | 0 * tags[4] ? tags[4] : 0); /* all valid or special; exact kinds differ by content */
	asm volatile("emms; fnstenv %0" : "=m"(tags) : : "memory");
	CHECK_EQ(tags[4], 0xffff);
}

/* x87 arithmetic with its 64-bit mantissa and rounding control. */
TEST(x87)
{
	u8 ten[10];
	asm volatile("fninit; fld1; fld1; fadd %%st, %%st(1); fdivp; fstpt %0" : "=m"(ten) : : "memory");
	CHECK_EQ(*(u64 *)ten, 0x8000000000000000);
	u16 cw;
	double third;
	u64 bits[3];
	static const u64 want[3] = {0x3fd5555555555555, 0x3fd5555555555555, 0x3fd5555555555556};
	for (unsigned rc = 0; rc < 3; rc++) {
		cw = 0x27f | rc << 10;
		u32 three = 3;
		asm volatile("fninit; fldcw %1; fld1; fidivl %2; fstpl %0" : "=m"(third) : "m"(cw), "m"(three));
		memcpy(&bits[rc], &third, 8);
		CHECK_EQ_IN(bits[rc], want[rc], "rounding %u", rc);
	}
	asm volatile("fninit");
}

/* XSETBV and CPUID as every operating system probes them; XGETBV with ECX 1. */
TEST(xgetbv1)
{
	u32 r[4], lo, hi;
	xsave_on(7);
	cpuid(13, 1, r);
	if (!(r[0] & 4))
		skip("no XGETBV with ECX 1");
	asm volatile("vzeroall");
	make_pattern(3);
	load_ymm();
	asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(1));
	CHECK_EQ(lo & 6, 6);
	CHECK_EQ(lo & ~7, 0);
	CHECK_EQ(CATCH(asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(2))), GP);
}

/* An operand relative to RIP, some way behind an instruction whose helper had to know RIP as well. */
static u8 around[3][1024] __attribute__((aligned(64)));
TEST(relative_to_rip)
{
	u32 a = 0, b, c = 0, d;
	memset(around, 0xcc, sizeof(around));
	asm volatile("fninit; cpuid; .fill 16, 1, 0x90; fxsaveq around+1024(%%rip)"
		     : "+a"(a), "=b"(b), "+c"(c), "=d"(d)
		     :
		     : "memory");
	CHECK_EQ(*(u16 *)around[1], 0x37f);
	for (unsigned i = 0; i < 1024; i++) {
		CHECK_EQ_IN(around[0][i], 0xcc, "%u bytes before", 1024 - i);
		CHECK_EQ_IN(around[2][i], 0xcc, "%u bytes behind", i);
	}
	*(u32 *)(around[1] + 24) = 0x1fa0;
	asm volatile("cpuid; .fill 16, 1, 0x90; fxrstorq around+1024(%%rip)"
		     : "+a"(a), "=b"(b), "+c"(c), "=d"(d)
		     :
		     : "memory");
	asm volatile("stmxcsr %0" : "=m"(a));
	CHECK_EQ(a, 0x1fa0);
	a = 0x1f80;
	asm volatile("ldmxcsr %0" : : "m"(a));
}
