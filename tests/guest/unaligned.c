/* Accesses that cross cache lines and pages, of every size and kind, into pages that follow each other in memory, and
 * such as do not. */
#include "guest.h"

const char payload[] = "unaligned";

#define VA TEST_VA
static u8 *first, *second, *third;

static bool neighbours;

/* Each test: with the pages apart, and side by side in memory as well. */
#define BOTH_WAYS(n)                                     \
	static void both_##n(void);                      \
	TEST(n)                                          \
	{                                                \
		for (unsigned way = 0; way < 2; way++) { \
			neighbours = way;                \
			both_##n();                      \
		}                                        \
	}                                                \
	static void both_##n(void)

/* Two pages side by side in the address space; else in the wrong order. */
static void set_up(void)
{
	second = alloc_pages(1);
	third = alloc_pages(1);
	first = alloc_pages(1);
	if (neighbours) {
		first = alloc_pages(2);
		second = first + PAGE;
	}
	map(VA, (u64)first, PTE_KERNEL);
	map(VA + PAGE, (u64)second, PTE_KERNEL);
	for (unsigned i = 0; i < PAGE; i++) {
		first[i] = i * 7 + 1;
		second[i] = i * 13 + 5;
	}
}

static u8 byte_at(u64 va)
{
	u64 off = va - VA;
	return off < PAGE ? first[off] : second[off - PAGE];
}
static u64 expect(u64 va, unsigned size)
{
	u64 v = 0;
	for (unsigned i = 0; i < size && i < 8; i++)
		v |= (u64)byte_at(va + i) << (8 * i);
	return v;
}

#define AT(n) (VA + PAGE - (n))

BOTH_WAYS(loads)
{
	set_up();
	for (unsigned n = 0; n <= 9; n++) {
		u64 v;
		asm volatile("movq (%1), %0" : "=r"(v) : "r"(AT(n)));
		CHECK_EQ_IN(v, expect(AT(n), 8), "offset %u", n);
		asm volatile("movl (%1), %k0" : "=r"(v) : "r"(AT(n)));
		CHECK_EQ_IN(v, expect(AT(n), 4), "offset %u", n);
		asm volatile("movzwl (%1), %k0" : "=r"(v) : "r"(AT(n)));
		CHECK_EQ_IN(v, expect(AT(n), 2), "offset %u", n);
		asm volatile("movslq (%1), %0" : "=r"(v) : "r"(AT(n)));
		CHECK_EQ_IN(v, (u64)(int64_t)(int32_t)expect(AT(n), 4), "offset %u", n);
		v = 5;
		asm volatile("addq (%1), %0" : "+r"(v) : "r"(AT(n)) : "cc");
		CHECK_EQ_IN(v, expect(AT(n), 8) + 5, "offset %u", n);
		asm volatile("pushq (%1); popq %0" : "=r"(v) : "r"(AT(n)) : "memory");
		CHECK_EQ_IN(v, expect(AT(n), 8), "offset %u", n);
		bool equal;
		asm volatile("cmpq %2, (%1)" : "=@cce"(equal) : "r"(AT(n)), "r"(expect(AT(n), 8)));
		CHECK(equal);
	}
}

BOTH_WAYS(stores)
{
	set_up();
	for (unsigned n = 0; n <= 9; n++) {
		u64 v = random64();
		asm volatile("movq %1, (%0)" : : "r"(AT(n)), "r"(v) : "memory");
		CHECK_EQ_IN(expect(AT(n), 8), v, "offset %u", n);
		u64 around = expect(AT(n) - 8, 8);
		asm volatile("movl %k1, (%0)" : : "r"(AT(n)), "r"(~v) : "memory");
		CHECK_EQ_IN(expect(AT(n), 4), (u32)~v, "offset %u", n);
		asm volatile("movw $0x1234, (%0)" : : "r"(AT(n)) : "memory");
		CHECK_EQ_IN(expect(AT(n), 2), 0x1234, "offset %u", n);
		CHECK_EQ_IN(expect(AT(n) - 8, 8), around, "offset %u", n);
		asm volatile("movq $-5, (%0)" : : "r"(AT(n)) : "memory");
		CHECK_EQ_IN(expect(AT(n), 8), (u64)-5, "offset %u", n);
		asm volatile("pushq $0x77; popq (%0)" : : "r"(AT(n)) : "memory");
		CHECK_EQ_IN(expect(AT(n), 8), 0x77, "offset %u", n);
		asm volatile("movnti %1, (%0)" : : "r"(AT(n)), "r"(v) : "memory");
		CHECK_EQ_IN(expect(AT(n), 8), v, "offset %u", n);
	}
}

BOTH_WAYS(read_modify_write)
{
	set_up();
	for (unsigned n = 0; n <= 9; n++) {
		u64 old = expect(AT(n), 8), r = 3;
		asm volatile("addq $5, (%0)" : : "r"(AT(n)) : "memory", "cc");
		CHECK_EQ_IN(expect(AT(n), 8), old + 5, "offset %u", n);
		asm volatile("lock xaddq %0, (%1)" : "+r"(r) : "r"(AT(n)) : "memory", "cc");
		CHECK_EQ_IN(r, old + 5, "offset %u", n);
		CHECK_EQ_IN(expect(AT(n), 8), old + 8, "offset %u", n);
		asm volatile("xchgq %0, (%1)" : "+r"(r) : "r"(AT(n)) : "memory");
		CHECK_EQ_IN(r, old + 8, "offset %u", n);
		u64 a = old + 5;
		bool ok;
		asm volatile("lock cmpxchgq %3, (%2)" : "=@cce"(ok), "+a"(a) : "r"(AT(n)), "r"(old) : "memory");
		CHECK(ok);
		CHECK_EQ_IN(expect(AT(n), 8), old, "offset %u", n);
		asm volatile("notl (%0); negw (%0); rolq $8, (%0); incl (%0); lock orw $0x101, (%0)"
			     :
			     : "r"(AT(n))
			     : "memory", "cc");
		u64 w = old ^ 0xffffffff;
		w = (w & ~0xffffull) | (u16) - (u16)w;
		w = w << 8 | w >> 56;
		w = (w & ~0xffffffffull) | (u32)(w + 1);
		w |= 0x101;
		CHECK_EQ_IN(expect(AT(n), 8), w, "offset %u", n);
		asm volatile("btsq %1, (%0)" : : "r"(AT(n) - 64), "r"(64ull * 8 + 9) : "memory", "cc");
		CHECK_EQ_IN(expect(AT(n), 8), w | 0x200, "offset %u", n);
		asm volatile("shldq $12, %1, (%0)" : : "r"(AT(n)), "r"(0xabcull << 52) : "memory", "cc");
		CHECK_EQ_IN(expect(AT(n), 8), (w | 0x200) << 12 | 0xabc, "offset %u", n);
	}
}

BOTH_WAYS(vectors)
{
	static u8 buf[32] __attribute__((aligned(32)));
	set_up();
	for (unsigned n = 0; n <= 17; n++) {
		asm volatile("movups (%1), %%xmm0; movups %%xmm0, %0" : "=m"(buf) : "r"(AT(n)) : "memory");
		for (unsigned i = 0; i < 16; i++)
			CHECK_EQ_IN(buf[i], byte_at(AT(n) + i), "offset %u", n);
		for (unsigned i = 0; i < 16; i++)
			buf[i] = random64();
		asm volatile("movups %1, %%xmm0; movups %%xmm0, (%0)" : : "r"(AT(n)), "m"(buf) : "memory");
		for (unsigned i = 0; i < 16; i++)
			CHECK_EQ_IN(buf[i], byte_at(AT(n) + i), "offset %u", n);
		u64 v = 0;
		asm volatile("movq (%1), %%xmm0; movq %%xmm0, %0" : "=r"(v) : "r"(AT(n)));
		CHECK_EQ_IN(v, expect(AT(n), 8), "offset %u", n);
		asm volatile("movhps (%1), %%xmm0; pextrq $1, %%xmm0, %0" : "=r"(v) : "r"(AT(n)));
		CHECK_EQ_IN(v, expect(AT(n), 8), "offset %u", n);
		asm volatile("fldt (%1); fstpt %0" : "=m"(buf) : "r"(AT(n)) : "memory");
		asm volatile("fildq (%1); fistpq %0" : "=m"(v) : "r"(AT(n)) : "memory");
		CHECK_EQ_IN(v, expect(AT(n), 8), "offset %u", n);
		asm volatile("fildq %1; fistpq (%0)" : : "r"(AT(n)), "m"(v) : "memory");
		CHECK_EQ_IN(v, expect(AT(n), 8), "offset %u", n);
	}
}

BOTH_WAYS(avx)
{
	static u8 buf[32] __attribute__((aligned(32)));
	if (!HAS_AVX)
		skip("no AVX");
	write_cr4(CR4_DEFAULT | CR4_OSXSAVE);
	asm volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
	set_up();
	for (unsigned n = 0; n <= 33; n++) {
		asm volatile("vmovups (%1), %%ymm1; vmovups %%ymm1, %0" : "=m"(buf) : "r"(AT(n)) : "memory");
		for (unsigned i = 0; i < 32; i++)
			CHECK_EQ_IN(buf[i], byte_at(AT(n) + i), "offset %u", n);
		for (unsigned i = 0; i < 32; i++)
			buf[i] = random64();
		asm volatile("vmovups %1, %%ymm1; vmovups %%ymm1, (%0)" : : "r"(AT(n)), "m"(buf) : "memory");
		for (unsigned i = 0; i < 32; i++)
			CHECK_EQ_IN(buf[i], byte_at(AT(n) + i), "offset %u", n);
		asm volatile("vxorps %%ymm0, %%ymm0, %%ymm0; vorps (%1), %%ymm0, %%ymm1; vmovups %%ymm1, %0"
			     : "=m"(buf)
			     : "r"(AT(n))
			     : "memory");
		for (unsigned i = 0; i < 32; i++)
			CHECK_EQ_IN(buf[i], byte_at(AT(n) + i), "offset %u", n);
	}
}

/* Masked moves fault for the elements they touch only; gathers one by one. */
BOTH_WAYS(masked)
{
	if (!has_feature(7, 1, 5))
		skip("no AVX2");
	write_cr4(CR4_DEFAULT | CR4_OSXSAVE);
	asm volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
	set_up();
	map(VA + PAGE, 0, 0);
	static u32 mask[8] __attribute__((aligned(32))), out[8] __attribute__((aligned(32)));
	u64 at = VA + PAGE - 16;
	for (unsigned i = 0; i < 8; i++)
		mask[i] = i < 4 ? 0x80000000 : 0;
	CHECK_EQ(CATCH(asm volatile("vmovups %1, %%ymm1; vmaskmovps (%2), %%ymm1, %%ymm0; vmovups %%ymm0, %0"
				    : "=m"(out)
				    : "m"(mask), "r"(at)
				    : "memory")),
		 NO_TRAP);
	for (unsigned i = 0; i < 8; i++)
		CHECK_EQ(out[i], i < 4 ? *(u32 *)(first + PAGE - 16 + 4 * i) : 0);
	mask[5] = 0x80000000;
	CHECK_EQ(CATCH(asm volatile("vmovups %0, %%ymm1; vmaskmovps (%1), %%ymm1, %%ymm0"
				    :
				    : "m"(mask), "r"(at)
				    : "memory")),
		 PF);
	CHECK_EQ(CATCH(asm volatile("vmovups %0, %%ymm1; vpmaskmovd %%ymm0, %%ymm1, (%1)"
				    :
				    : "m"(mask), "r"(at)
				    : "memory")),
		 PF);
	CHECK_EQ(last_trap()->f.error, PF_W);
	map(VA + PAGE, (u64)second, PTE_KERNEL);
	static int32_t index[8] __attribute__((aligned(32))) = {0, 1, 2, 3, 1024, 1025, -1, 7};
	for (unsigned i = 0; i < 8; i++)
		mask[i] = i == 2 ? 0 : 0x80000000;
	asm volatile("vmovups %1, %%ymm2; vmovups %2, %%ymm1; vpcmpeqd %%ymm0, %%ymm0, %%ymm0; vpgatherdd %%ymm2, (%3, "
		     "%%ymm1, 4), %%ymm0; vmovups %%ymm0, %0"
		     : "=m"(out)
		     : "m"(mask), "m"(index), "r"(VA + 16)
		     : "memory");
	for (unsigned i = 0; i < 8; i++)
		CHECK_EQ(out[i], i == 2 ? 0xffffffff : (u32)expect(VA + 16 + 4ll * index[i], 4));
}

/* Crossing into a page that is missing: nothing is written on the first. */
BOTH_WAYS(nothing_half_done)
{
	set_up();
	map(VA + PAGE, (u64)second, PTE_P);
	for (unsigned n = 1; n < 8; n++) {
		u64 before = expect(AT(8), 8);
		CHECK_EQ(CATCH(asm volatile("movq %1, (%0)" : : "r"(AT(n)), "r"(~0ull) : "memory")), PF);
		CHECK_EQ(CATCH(asm volatile("movups %%xmm0, (%0)" : : "r"(AT(n)) : "memory")), PF);
		CHECK_EQ(CATCH(asm volatile("notq (%0)" : : "r"(AT(n)) : "memory")), PF);
		CHECK_EQ(CATCH(asm volatile("xchgq %%rax, (%0)" : : "r"(AT(n)) : "memory", "rax")), PF);
		CHECK_EQ(CATCH(asm volatile("fstpt (%0)" : : "r"(AT(n)) : "memory")), PF);
		asm volatile("fninit");
		CHECK_EQ(expect(AT(8), 8), before);
		CHECK_EQ(last_trap()->cr2, VA + PAGE);
	}
}

/* The stack across pages: PUSH, POP, CALL, RET, interrupts. */
SNIPPET(crossing_stack, 64, "pushq $0x1234; call 1f; popq %rax; ud2; 1: pushfq; popq %rbx; movq 8(%rsp), %rcx; ret");
BOTH_WAYS(stack)
{
	set_up();
	for (unsigned n = 0; n < 24; n++) {
		struct frame f = kernel_frame((u64)crossing_stack, VA + PAGE + n);
		struct trap *t = run_frame(&f);
		CHECK_EQ(t->f.vector, UD);
		CHECK_EQ_IN(t->f.rax, 0x1234, "offset %u", n);
		CHECK_EQ_IN(t->f.rcx, 0x1234, "offset %u", n);
		CHECK_EQ(t->f.rsp, f.rsp);
	}
}

/* The same within a page, at every offset in a line: the fast way. */
BOTH_WAYS(within_page)
{
	set_up();
	for (unsigned off = 0; off < 128; off++) {
		u64 v, w = random64();
		asm volatile("movq (%1), %0" : "=r"(v) : "r"(VA + off));
		CHECK_EQ(v, expect(VA + off, 8));
		asm volatile("movq %1, (%0)" : : "r"(VA + off), "r"(w) : "memory");
		CHECK_EQ(expect(VA + off, 8), w);
	}
}
