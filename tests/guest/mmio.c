/* Device memory by every kind of instruction, ports in all sizes, and where there is nothing at all. */
#include "guest.h"

const char payload[] = "mmio";

/* The local APIC: the spurious vector register at 0xf0 keeps bits 0-9, the divide register at 0x3e0 bits 0, 1 and 3. */
#define SVR 0xfee000f0ull
#define TIMER_INIT 0xfee00380ull
#define ID 0xfee00020ull
#define VERSION 0xfee00030ull
#define TPR 0xfee00080ull

static u32 version(void)
{
	return *(volatile u32 *)VERSION;
}

TEST(loads)
{
	apic_enable();
	u64 v = 0, want = version();
	CHECK(want);
	asm volatile("movl (%1), %k0" : "=r"(v) : "r"(VERSION));
	CHECK_EQ(v, want);
	v = 1;
	asm volatile("addl (%1), %k0" : "+r"(v) : "r"(VERSION) : "cc");
	CHECK_EQ(v, want + 1);
	asm volatile("movslq (%1), %0" : "=r"(v) : "r"(VERSION));
	CHECK_EQ(v, want);
	asm volatile("pushq $0; popq %%rcx; movl (%1), %%ecx; mov %%rcx, %0" : "=r"(v) : "r"(VERSION) : "rcx");
	CHECK_EQ(v, want);
	bool e;
	asm volatile("cmpl %2, (%1)" : "=@cce"(e) : "r"(VERSION), "r"((u32)want));
	CHECK(e);
	asm volatile("testl $0xff, (%1)" : "=@ccne"(e) : "r"(VERSION));
	CHECK(e);
	asm volatile("btl $4, (%1)" : "=@ccc"(e) : "r"(VERSION));
	CHECK_EQ(e, want >> 4 & 1);
	asm volatile("cmpl %%eax, %%eax; cmovzl (%1), %k0" : "=r"(v) : "r"(VERSION) : "cc");
	CHECK_EQ(v, want);
	asm volatile("movd (%1), %%xmm0; movd %%xmm0, %k0" : "=r"(v) : "r"(VERSION));
	CHECK_EQ(v, want);
	asm volatile("imull $3, (%1), %k0" : "=r"(v) : "r"(VERSION) : "cc");
	CHECK_EQ((u32)v, (u32)(want * 3));
	u32 copy;
	u64 si = VERSION, di = (u64)&copy;
	asm volatile("movsl" : "+S"(si), "+D"(di) : : "memory");
	CHECK_EQ(si, VERSION + 4);
	CHECK_EQ(di, (u64)&copy + 4);
	CHECK_EQ(copy, want);
	si = VERSION;
	asm volatile("lodsl" : "=a"(v), "+S"(si));
	CHECK_EQ((u32)v, want);
	asm volatile("bswapl %k0" : "+r"(v));
}

TEST(loads_more)
{
	u64 v, want = version();
	asm volatile("pushq %1; popq %%rcx; movq $0, %0; xorl (%%rcx), %k0" : "=&r"(v) : "r"(VERSION) : "rcx", "cc");
	CHECK_EQ(v, want);
	asm volatile("movl (%1), %%eax; movl (%1), %%ecx; subl %%eax, %%ecx; movl %%ecx, %k0"
		     : "=r"(v)
		     : "r"(VERSION)
		     : "rax", "rcx", "cc");
	CHECK_EQ((u32)v, 0);
	asm volatile("fildl (%1); fistpq %0" : "=m"(v) : "r"(VERSION));
	CHECK_EQ(v, want);
	u32 two[2] = {0, (u32)want};
	bool e;
	u64 si = VERSION, di = (u64)&two[1];
	asm volatile("cmpsl" : "=@cce"(e), "+S"(si), "+D"(di) : : "memory");
	CHECK(e);
	di = VERSION;
	asm volatile("scasl" : "=@cce"(e), "+D"(di) : "a"((u32)want) : "memory");
	CHECK(e);
}

TEST(stores)
{
	apic_enable();
	volatile u32 *tpr = (volatile u32 *)TPR;
	asm volatile("movl %1, (%0)" : : "r"(TPR), "r"(0x20) : "memory");
	CHECK_EQ(*tpr, 0x20);
	asm volatile("movl $0x30, (%0)" : : "r"(TPR) : "memory");
	CHECK_EQ(*tpr, 0x30);
	asm volatile("orl $0x40, (%0)" : : "r"(TPR) : "memory", "cc");
	CHECK_EQ(*tpr, 0x70);
	asm volatile("subl $0x10, (%0)" : : "r"(TPR) : "memory", "cc");
	CHECK_EQ(*tpr, 0x60);
	asm volatile("incl (%0)" : : "r"(TPR) : "memory", "cc");
	CHECK_EQ(*tpr, 0x61);
	u32 x = 0x50;
	asm volatile("xchgl %0, (%1)" : "+r"(x) : "r"(TPR) : "memory");
	CHECK_EQ(x, 0x61);
	CHECK_EQ(*tpr, 0x50);
	x = 3;
	asm volatile("lock xaddl %0, (%1)" : "+r"(x) : "r"(TPR) : "memory", "cc");
	CHECK_EQ(x, 0x50);
	CHECK_EQ(*tpr, 0x53);
	u32 a = 0x53;
	asm volatile("lock cmpxchgl %2, (%1)" : "+a"(a) : "r"(TPR), "r"(0x40) : "memory", "cc");
	CHECK_EQ(*tpr, 0x40);
	u64 di = TPR, si = (u64)&x;
	asm volatile("stosl" : "+D"(di) : "a"(0x10) : "memory");
	CHECK_EQ(*tpr, 0x10);
	x = 0x20;
	di = TPR;
	asm volatile("movsl" : "+D"(di), "+S"(si) : : "memory");
	CHECK_EQ(*tpr, 0x20);
	asm volatile("movd %1, %%xmm0; movd %%xmm0, (%0)" : : "r"(TPR), "r"(0x30) : "memory");
	CHECK_EQ(*tpr, 0x30);
	asm volatile("movnti %1, (%0)" : : "r"(TPR), "r"(0x10) : "memory");
	CHECK_EQ(*tpr, 0x10);
	asm volatile("shll $1, (%0); andl $0xf0, (%0); notl (%0); negl (%0)" : : "r"(TPR) : "memory", "cc");
	CHECK_EQ(*tpr, 0x21);
	asm volatile("btsl $1, (%0)" : : "r"(TPR) : "memory", "cc");
	CHECK_EQ(*tpr, 0x23);
	*tpr = 0;
}

/* Device to device; the stack in RAM beside it. */
TEST(both_sides)
{
	apic_enable();
	*(volatile u32 *)TPR = 0x44;
	u64 si = TPR, di = TPR;
	asm volatile("movsl" : "+S"(si), "+D"(di) : : "memory");
	CHECK_EQ(*(volatile u32 *)TPR, 0x44);
	u64 v;
	asm volatile("pushq $0; movl (%1), %%eax; movl %%eax, (%%rsp); popq %0" : "=r"(v) : "r"(TPR) : "rax", "memory");
	CHECK_EQ(v, 0x44);
	*(volatile u32 *)TPR = 0;
}

/* Where neither RAM nor a device is: all ones, and writes go nowhere. */
TEST(nothing_there)
{
	static const u64 holes[] = {0xb0000000, 0xc8000000, 0xfd000000};
	for (unsigned i = 0; i < 3; i++) {
		volatile u8 *p = (volatile u8 *)holes[i];
		CHECK_EQ_IN(*p, 0xff, "at %lx", holes[i]);
		CHECK_EQ_IN(*(volatile u16 *)(p + 2), 0xffff, "at %lx", holes[i]);
		CHECK_EQ_IN(*(volatile u32 *)(p + 4), 0xffffffff, "at %lx", holes[i]);
		CHECK_EQ_IN(*(volatile u64 *)(p + 8), ~0ull, "at %lx", holes[i]);
		*(volatile u64 *)(p + 8) = 0;
		CHECK_EQ_IN(*(volatile u64 *)(p + 8), ~0ull, "at %lx", holes[i]);
		CHECK_EQ_IN(*(volatile u64 *)(p + 0xffc), ~0ull, "at %lx", holes[i]); /* across pages */
		u64 v[2] = {0, 0};
		asm volatile("movups (%1), %%xmm0; movups %%xmm0, %0" : "=m"(v) : "r"(p + 1) : "memory");
		CHECK_EQ_IN(v[0] & v[1], ~0ull, "at %lx", holes[i]);
		u32 n = 5;
		asm volatile("lock xaddl %0, (%1)" : "+r"(n) : "r"(p) : "memory", "cc");
		CHECK_EQ_IN(n, 0xffffffff, "at %lx", holes[i]);
		u8 buf[64];
		memcpy(buf, (void *)(p + 100), 64);
		for (unsigned k = 0; k < 64; k++)
			CHECK_EQ_IN(buf[k], 0xff, "at %lx", holes[i]);
	}
}

/* Far above RAM, through 4 KiB pages; a RAM page and a hole side by side. */
TEST(above_ram)
{
	map(TEST_VA, 0x4000000000ull, PTE_KERNEL);
	map(TEST_VA + PAGE, (u64)alloc_pages(1), PTE_KERNEL);
	map(TEST_VA + 2 * PAGE, 0x4000001000ull, PTE_KERNEL);
	CHECK_EQ(*(volatile u64 *)TEST_VA, ~0ull);
	CHECK_EQ(*(volatile u64 *)(TEST_VA + PAGE - 4), 0xffffffff);
	CHECK_EQ(*(volatile u64 *)(TEST_VA + 2 * PAGE - 4), 0xffffffffull << 32);
	*(volatile u64 *)(TEST_VA + PAGE - 4) = 0x1122334455667788;
	CHECK_EQ(*(volatile u32 *)(TEST_VA + PAGE), 0x11223344);
	*(volatile u64 *)(TEST_VA + 2 * PAGE - 4) = 0x1122334455667788;
	CHECK_EQ(*(volatile u32 *)(TEST_VA + 2 * PAGE - 4), 0x55667788);
}

/* Code cannot come from there: all ones is no instruction. */
TEST(fetch)
{
	if (have_option("engine=qemu"))
		skip("QEMU fetches zeroes there");
	struct frame f = kernel_frame(0xb0000000, 0);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, UD);
	CHECK_EQ(t->f.rip, 0xb0000000);
}

/* A port that nobody answers: all ones. */
TEST(no_port)
{
	u64 rax = 0x1122334455667788;
	asm volatile("inl %%dx, %%eax" : "+a"(rax) : "d"(0x4567));
	CHECK_EQ(rax, 0xffffffff);
	rax = 0x1122334455667788;
	asm volatile("inw %%dx, %%ax" : "+a"(rax) : "d"(0x4567));
	CHECK_EQ(rax, 0x112233445566ffff);
}

/* Ports: a UART's scratch register, in all sizes and by strings. */
TEST(ports)
{
	outb(0x3ff, 0x5a);
	CHECK_EQ(inb(0x3ff), 0x5a);
	u64 rax = 0x1122334455667788;
	asm volatile("inb %%dx, %%al" : "+a"(rax) : "d"(0x3ff));
	CHECK_EQ(rax, 0x112233445566775a);
	static u8 buf[8] = {1, 2, 3, 4, 5, 6, 7, 8};
	u64 si = (u64)buf, cx = 8;
	asm volatile("rep outsb" : "+S"(si), "+c"(cx) : "d"(0x3ff) : "memory");
	CHECK_EQ(cx, 0);
	CHECK_EQ(si, (u64)buf + 8);
	CHECK_EQ(inb(0x3ff), 8);
	u64 di = (u64)buf;
	cx = 4;
	asm volatile("rep insb" : "+D"(di), "+c"(cx) : "d"(0x3ff) : "memory");
	CHECK_EQ(*(u64 *)buf, 0x0807060508080808);
	CHECK_EQ(di, (u64)buf + 4);
	/* INS into a missing page: nothing is taken, the count stays */
	di = TEST_VA;
	cx = 4;
	struct frame f;
	static const u8 code[] = {0xf3, 0x6c, 0x0f, 0x0b};
	f = kernel_frame((u64)code, 0);
	f.rdi = TEST_VA - 0 + PAGE - 2;
	f.rcx = 4;
	f.rdx = 0x3ff;
	map_fresh(TEST_VA, 1, PTE_KERNEL);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, PF);
	CHECK_EQ(t->f.rcx, 2);
	CHECK_EQ(t->f.rdi, TEST_VA + PAGE);
	CHECK_EQ(t->cr2, TEST_VA + PAGE);
	CHECK_EQ(t->f.error, PF_W);
}

/* MMIO under a user page, from ring 3. */
SNIPPET(user_mmio, 64, "movl (%rdi), %eax; movl %eax, %ecx; int $0x80");
TEST(user)
{
	struct frame f = user_code(user_mmio, user_mmio_end, 64);
	map(TEST_VA, 0xfee00000, PTE_USER | PTE_PCD);
	f.rdi = TEST_VA + 0x30;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, 0x80);
	CHECK_EQ(t->f.rax, version());
	CHECK_EQ(t->f.rcx, version());
}
