/*
 * Code that changes: the same block, the next instruction, through other mappings, other code at the same address,
 * instructions that lie across pages. SDM Vol. 3A 8.1.3 wants a branch or a serializing instruction between a store and
 * what it made; x86 processors do without, and so do these tests within one processor.
 */
#include "guest.h"

const char payload[] = "smc";

#define CODE_VA TEST_VA
#define ALIAS_VA (TEST_VA + 0x800000)

/* mov $imm, %eax; ret */
static void put_return(u8 *at, u32 imm)
{
	volatile u8 *p = at;
	p[0] = 0xb8;
	*(volatile u32 *)(p + 1) = imm;
	p[5] = 0xc3;
}

TEST(rewrite)
{
	u8 *p = map_fresh(CODE_VA, 1, PTE_KERNEL);
	for (u32 i = 0; i < 2000; i++) {
		put_return(p, i);
		CHECK_EQ(call(CODE_VA), i);
	}
}

/* Only the immediate changes, by stores of every size. */
TEST(rewrite_immediate)
{
	u8 *p = map_fresh(CODE_VA, 1, PTE_KERNEL);
	put_return(p, 0);
	for (u32 i = 1; i < 300; i++) {
		*(volatile u8 *)(p + 1) = i;
		CHECK_EQ((u8)call(CODE_VA), (u8)i);
		*(volatile u16 *)(p + 2) = i;
		CHECK_EQ(call(CODE_VA) >> 8 & 0xffff, i);
		asm volatile("lock addl $1, (%0)" : : "r"(p + 1) : "memory", "cc");
		u32 now = *(volatile u32 *)(p + 1);
		CHECK_EQ(call(CODE_VA), now);
		asm volatile("movl %1, %%ecx; movnti %%ecx, (%0)" : : "r"(p + 1), "r"(i * 77) : "memory", "ecx");
		CHECK_EQ(call(CODE_VA), i * 77);
		asm volatile("movd %1, %%xmm0; movss %%xmm0, (%0)" : : "r"(p + 1), "r"(i * 99) : "memory");
		CHECK_EQ(call(CODE_VA), i * 99);
		u32 value = i * 123;
		u64 di = (u64)p + 1, si = (u64)&value;
		asm volatile("movsl" : "+D"(di), "+S"(si) : : "memory");
		CHECK_EQ(call(CODE_VA), i * 123);
		memset(p + 1, i, 4);
		CHECK_EQ(call(CODE_VA), (u8)i * 0x01010101u);
		asm volatile("push %1; pop (%0)" : : "r"(p + 1), "r"(0x9090c30000000000ull | i << 8) : "memory");
		put_return(p, i);
		CHECK_EQ(call(CODE_VA), i);
	}
}

/* A store at the end of one page of code into the beginning of the next. */
TEST(store_across)
{
	u8 *p = map_fresh(CODE_VA, 2, PTE_KERNEL);
	for (u32 i = 0; i < 100; i++) {
		put_return(p + PAGE - 16, i);
		put_return(p + PAGE, i + 1);
		CHECK_EQ(call(CODE_VA + PAGE - 16), i);
		CHECK_EQ(call(CODE_VA + PAGE), i + 1);
		/* eight bytes, four on each side: the first page's are padding, the second page's its opcode and
		 * immediate */
		*(volatile u64 *)(p + PAGE - 4) = 0x0001b8ull << 32 | i;
		CHECK_EQ(call(CODE_VA + PAGE) & 0xffff, ((i + 1) & 0xff00) ? call(CODE_VA + PAGE) & 0xffff : 1);
		CHECK_EQ(call(CODE_VA + PAGE - 16), i);
	}
}

/* The very next instruction, in the same block. */
SNIPPET(next_insn, 64, "movl %edi, 1f+1(%rip); 1: movl $0, %eax; ret");
SNIPPET(next_opcode, 64, "movb %dil, 1f+1(%rip); xorl %eax, %eax; 1: addl $5, %eax; ret");
SNIPPET(own_insn, 64, "movl %edi, %eax; 1: movb $0xc3, 1b(%rip); movl $1, %eax; movl $2, %eax; ret");
SNIPPET(own_loop, 64, "xorl %eax, %eax; movl $50, %ecx; 1: addl $1, %eax; incb 1b+2(%rip); decl %ecx; jnz 1b; ret");
SNIPPET(later_block, 64, "movl %edi, 2f+1(%rip); jmp 1f; nop; nop; 1: nop; jmp 2f; nop; 2: movl $0, %eax; ret");
SNIPPET(earlier_block, 64,
	"movl $3, %ecx; xorl %eax, %eax; 1: addl $1, %eax; jmp 2f; 2: movb $10, 1b+2(%rip); decl %ecx; jnz 1b; ret");
SNIPPET(push_next, 64,
	"movq %rsp, %rdx; leaq 1f+8(%rip), %rsp; pushq %rdi; 1: movl $0, %eax; nop; nop; nop; movq %rdx, %rsp; ret");
SNIPPET(call_next, 64,
	"movq %rsp, %rdx; leaq 2f(%rip), %rsp; call 3f; nop; nop; 2: nop; 3: movl $7, %eax; movq %rdx, %rsp; ret");
SNIPPET(string_next, 64, "leaq 1f+1(%rip), %rdi; movl $4, %ecx; movb $0x11, %al; rep stosb; 1: movl $0, %eax; ret");
SNIPPET(xchg_next, 64, "xchgl %edi, 1f+1(%rip); 1: movl $0, %eax; ret");
SNIPPET(cmpxchg_next, 64, "xorl %eax, %eax; lock cmpxchgl %edi, 1f+1(%rip); 1: movl $0, %eax; ret");
SNIPPET(sse_next, 64, "movd %edi, %xmm0; movss %xmm0, 1f+1(%rip); 1: movl $0, %eax; ret");
SNIPPET(fpu_next, 64, "pushq %rdi; fildl (%rsp); fistpl 1f+1(%rip); popq %rdi; 1: movl $0, %eax; ret");

static u64 call_with(u64 at, u64 rdi)
{
	u64 rax;
	asm volatile("call *%2"
		     : "=a"(rax), "+D"(rdi)
		     : "r"(at)
		     : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
	return rax;
}
static u64 fresh(const u8 *begin, const u8 *end)
{
	return (u64)map_code(CODE_VA, begin, end, PTE_KERNEL);
}

TEST(next_instruction)
{
	static const u8 *const codes[][2] = {
		{next_insn, next_insn_end},       {later_block, later_block_end}, {xchg_next, xchg_next_end},
		{cmpxchg_next, cmpxchg_next_end}, {sse_next, sse_next_end},       {fpu_next, fpu_next_end},
	};
	for (unsigned i = 0; i < 6; i++) {
		u64 at = fresh(codes[i][0], codes[i][1]);
		for (u32 n = 1; n < 40; n++) {
			u32 old = n - 1; /* CMPXCHG compares with 0: only its first run stores */
			u64 got = call_with(at, n);
			CHECK_EQ_IN(got, i == 3 && old ? 1 : n, "code %u", i);
		}
	}
}
TEST(next_instruction_more)
{
	u64 at = fresh(next_opcode, next_opcode_end);
	CHECK_EQ(call_with(at, 0xc0), 5);       /* add $5, %eax */
	CHECK_EQ(call_with(at, 0xc8), 5);       /* or */
	CHECK_EQ(call_with(at, 0xe8), (u32)-5); /* sub */
	CHECK_EQ(call_with(at, 0xe0), 0);       /* and */
	CHECK_EQ(call_with(at, 0xf0), 5);       /* xor */
	at = fresh(own_loop, own_loop_end);
	u64 want = 0;
	for (unsigned i = 0, k = 1; i < 50; i++, k++)
		want += k;
	CHECK_EQ(call_with(at, 0), want);
	at = fresh(earlier_block, earlier_block_end);
	CHECK_EQ(call_with(at, 0), 21);
	CHECK_EQ(call_with(at, 0), 30);
	at = fresh(string_next, string_next_end);
	CHECK_EQ(call_with(at, 0), 0x11111111);
	at = fresh(call_next, call_next_end);
	call_with(at, 0);
	at = fresh(own_insn, own_insn_end);
	CHECK_EQ(call_with(at, 9), 2);
	CHECK_EQ(call_with(at, 9), 9); /* now it begins with RET */
}

/* PUSH over the instruction that follows. */
TEST(push_over)
{
	u64 at = fresh(push_next, push_next_end);
	for (u64 n = 1; n < 20; n++)
		CHECK_EQ(call_with(at, 0x90909000000000b8ull | n << 8), n);
}

/* The same physical page by two addresses: written by one, run by the other. */
TEST(aliases)
{
	u8 *p = alloc_pages(1);
	map(CODE_VA, (u64)p, PTE_KERNEL);
	map(ALIAS_VA, (u64)p, PTE_KERNEL);
	for (u32 i = 0; i < 200; i++) {
		put_return(i & 1 ? p : (u8 *)ALIAS_VA, i);
		CHECK_EQ(call(CODE_VA), i);
		CHECK_EQ(call(ALIAS_VA), i);
		put_return((u8 *)CODE_VA, i + 7);
		CHECK_EQ(call(ALIAS_VA), i + 7);
		CHECK_EQ(call((u64)p), i + 7);
	}
}

/* Written as data through several mappings, in this order or that, before anything runs there: each still tells. */
TEST(aliases_written_before)
{
	for (u32 i = 0; i < 60; i++) {
		u8 *at[] = {alloc_pages(1), (u8 *)CODE_VA, (u8 *)ALIAS_VA};
		map(CODE_VA, (u64)at[0], PTE_KERNEL);
		map(ALIAS_VA, (u64)at[0], PTE_KERNEL);
		for (unsigned k = 0; k < 3; k++)
			put_return(at[(i + k) % 3], i);
		CHECK_EQ(call(CODE_VA), i);
		for (unsigned k = 0; k < 6; k++) {
			put_return(at[(i / 3 + k) % 3], i + k);
			CHECK_EQ(call(CODE_VA), i + k);
		}
	}
}

/* Code that tells its own address gives another by each mapping. */
SNIPPET(where, 64, "leaq 0f(%rip), %rax; 0: ret");
SNIPPET(where_call, 64, "call 1f; 1: popq %rax; ret");
TEST(position)
{
	u8 *p = alloc_pages(1);
	memcpy(p, where, where_end - where);
	memcpy(p + 64, where_call, where_call_end - where_call);
	map(CODE_VA, (u64)p, PTE_KERNEL);
	map(ALIAS_VA, (u64)p, PTE_KERNEL);
	for (unsigned i = 0; i < 20; i++) {
		CHECK_EQ(call(CODE_VA), CODE_VA + 7);
		CHECK_EQ(call(ALIAS_VA), ALIAS_VA + 7);
		CHECK_EQ(call(CODE_VA + 64), CODE_VA + 64 + 5);
		CHECK_EQ(call(ALIAS_VA + 64), ALIAS_VA + 64 + 5);
	}
}

/* Another page at the same address, after INVLPG; and by a change of CR3. */
TEST(remap)
{
	u8 *p[4];
	for (unsigned i = 0; i < 4; i++) {
		p[i] = alloc_pages(1);
		put_return(p[i], i * 11);
	}
	for (unsigned i = 0; i < 200; i++) {
		unsigned k = random64() % 4;
		map(CODE_VA, (u64)p[k], PTE_KERNEL);
		CHECK_EQ(call(CODE_VA), k * 11);
	}
	for (unsigned i = 0; i < 50; i++) {
		unsigned k = random64() % 4;
		*walk(CODE_VA, 1, false) = (u64)p[k] | PTE_KERNEL;
		write_cr3(read_cr3());
		CHECK_EQ(call(CODE_VA), k * 11);
	}
}
TEST(two_spaces)
{
	extern u64 boot_pml4[];
	u64 *other = alloc_pages(1);
	u64 first = read_cr3();
	memcpy(other, boot_pml4, PAGE);
	other[1] = 0;
	put_return(map_fresh(CODE_VA, 1, PTE_KERNEL), 1);
	write_cr3((u64)other);
	put_return(map_fresh(CODE_VA, 1, PTE_KERNEL), 2);
	for (unsigned i = 0; i < 100; i++) {
		write_cr3(i & 1 ? first : (u64)other);
		CHECK_EQ(call(CODE_VA), i & 1 ? 1 : 2);
	}
	write_cr3(first);
}

/* Large pages hold code, too. */
TEST(large_page)
{
	u8 *base = alloc_aligned(0x400000, 0x200000);
	volatile u64 *pde = walk(CODE_VA, 2, true);
	put_return(base + 0x12345, 1);
	put_return(base + 0x212345, 2);
	for (unsigned i = 0; i < 20; i++) {
		*pde = ((u64)base + (i & 1 ? 0x200000 : 0)) | PTE_KERNEL | PTE_PS;
		invlpg(CODE_VA);
		CHECK_EQ(call(CODE_VA + 0x12345), i & 1 ? 2 : 1);
		put_return((u8 *)CODE_VA + 0x54321, i);
		CHECK_EQ(call(CODE_VA + 0x54321), i);
		CHECK_EQ(call((u64)base + (i & 1 ? 0x200000 : 0) + 0x54321), i);
	}
}

/* An instruction across a page boundary: its second part changes, is remapped, is taken away. */
TEST(crossing)
{
	u8 *a = alloc_pages(1), *b = alloc_pages(1), *c = alloc_pages(1);
	map(CODE_VA, (u64)a, PTE_KERNEL);
	for (unsigned split = 1; split < 5; split++) {
		u64 at = CODE_VA + PAGE - split;
		u8 code[6] = {0xb8, 0x11, 0x22, 0x33, 0x44, 0xc3};
		memcpy(a + PAGE - split, code, split);
		memcpy(b, code + split, 6 - split);
		code[4] = 0x55;
		memcpy(c, code + split, 6 - split);
		for (unsigned i = 0; i < 10; i++) {
			map(CODE_VA + PAGE, (u64)(i & 1 ? b : c), PTE_KERNEL);
			CHECK_EQ(call(at), i & 1 ? 0x44332211 : 0x55332211);
		}
		/* the bytes of the second page are written, by its own address and by another */
		map(CODE_VA + PAGE, (u64)b, PTE_KERNEL);
		for (unsigned i = 0; i < 10; i++) {
			*(volatile u8 *)(i & 1 ? b + 4 - split : (u8 *)CODE_VA + PAGE + 4 - split) = i;
			CHECK_EQ(call(at), 0x00332211 | i << 24);
		}
		/* and of the first */
		if (split > 1) {
			*(volatile u8 *)(a + PAGE - split + 1) = 0x99;
			CHECK_EQ(call(at) & 0xff, 0x99);
		}
		map(CODE_VA + PAGE, 0, 0);
		CHECK_EQ(CATCH(call(at)), PF);
		CHECK_EQ(last_trap()->cr2, CODE_VA + PAGE);
		CHECK_EQ(last_trap()->f.rip, at);
		map(CODE_VA + PAGE, (u64)c, PTE_KERNEL);
		CHECK_EQ(call(at) >> 24, 0x55);
	}
}

/* A jump within a page, then from page to page, the target replaced under it. */
TEST(linked_jumps)
{
	u8 *p = map_fresh(CODE_VA, 3, PTE_KERNEL);
	for (u32 i = 0; i < 100; i++) {
		/* page 0: jmp to page 1; page 1: jmp to page 2 */
		p[0] = 0xe9;
		*(volatile u32 *)(p + 1) = PAGE - 5;
		p[PAGE] = 0xe9;
		*(volatile u32 *)(p + PAGE + 1) = PAGE - 5 + (i & 1 ? 32 : 0);
		put_return(p + 2 * PAGE, 1000 + i);
		put_return(p + 2 * PAGE + 32, 2000 + i);
		CHECK_EQ(call(CODE_VA), i & 1 ? 2000 + i : 1000 + i);
		CHECK_EQ(call(CODE_VA), i & 1 ? 2000 + i : 1000 + i);
	}
}

/* The page after is not there, and nothing of it is needed. */
TEST(end_of_page)
{
	u8 *p = map_fresh(CODE_VA, 1, PTE_KERNEL);
	put_return(p + PAGE - 6, 42);
	CHECK_EQ(call(CODE_VA + PAGE - 6), 42);
	p[PAGE - 1] = 0x90; /* NOP instead of RET: now the next page is fetched */
	CHECK_EQ(CATCH(call(CODE_VA + PAGE - 6)), PF);
	CHECK_EQ(last_trap()->f.rip, CODE_VA + PAGE);
	CHECK_EQ(last_trap()->f.rax, 42);
	CHECK_EQ(last_trap()->f.error, PF_I);
}

/* Execute, then make it data, write, execute again: rights change with it. */
TEST(w_xor_x)
{
	u8 *p = map_fresh(CODE_VA, 1, PTE_KERNEL);
	u64 pa = *walk(CODE_VA, 1, false) & PTE_ADDR;
	for (u32 i = 0; i < 30; i++) {
		map(CODE_VA, pa, PTE_KERNEL | PTE_NX);
		put_return(p, i);
		CHECK_EQ(CATCH(call(CODE_VA)), PF);
		map(CODE_VA, pa, PTE_P);
		CHECK_EQ(call(CODE_VA), i);
		CHECK_EQ(CATCH(put_return(p, 1)), PF);
		CHECK_EQ(call(CODE_VA), i);
	}
}

/* User code written by the kernel, and by itself. */
SNIPPET(user_self, 64, "1: movl $0, %eax; incl %eax; movl %eax, 1b+1(%rip); cmpl $100, %eax; jb 1b; int $0x80");
TEST(user)
{
	struct frame f = user_code(user_self, user_self_end, 64);
	CHECK_EQ(run_frame(&f)->f.rax, 100);
	*(volatile u32 *)(USER_CODE + 1) = 50;
	CHECK_EQ(run_frame(&f)->f.rax, 51 > 100 ? 51 : 100);
	*(volatile u32 *)(USER_CODE + 1) = 500;
	CHECK_EQ(run_frame(&f)->f.rax, 501);
}

/* Data and code in one page, written all the time: slow, but right. */
SNIPPET(mixed, 64,
	"movl $10000, %ecx; 1: incq 2f(%rip); decl %ecx; jnz 1b; movq 2f(%rip), %rax; ret; .balign 8; 2: .quad 0");
TEST(data_beside_code)
{
	u64 at = fresh(mixed, mixed_end);
	CHECK_EQ(call(at), 10000);
	CHECK_EQ(call(at), 20000);
}

/* Pages of code, of data, and of what was the one and becomes the other, side by side in a large page of the kernel's.
 */
TEST(code_among_data)
{
	enum { PAGES = 40 };
	u8 *base = alloc_aligned(PAGES * PAGE, 0x10000);
	u32 code[PAGES] = {0}, data[PAGES] = {0};
	for (u32 i = 1; i < 3000; i++) {
		unsigned n = random64() % PAGES;
		u8 *page = base + n * PAGE;
		switch (random64() % (i < 100 ? 2 : 5)) {
		case 0:
			put_return(page + 64, code[n] = i);
			break;
		case 1:
			if (code[n])
				CHECK_EQ(call((u64)page + 64), code[n]);
			break;
		default:
			CHECK_EQ(*(volatile u32 *)(page + 2048), data[n]);
			*(volatile u32 *)(page + 2048) = data[n] = i;
			break;
		}
	}
	for (unsigned n = 0; n < PAGES; n++)
		CHECK_EQ(*(volatile u32 *)(base + n * PAGE + 2048), data[n]);
}

/* A generator and an interpreter of many small functions, as a just-in-time compiler does it. */
TEST(many_functions)
{
	enum { N = 4000 };
	u8 *p = map_fresh(CODE_VA, N * 16 / PAGE + 1, PTE_KERNEL);
	for (unsigned round = 0; round < 3; round++) {
		for (u32 i = 0; i < N; i++)
			put_return(p + i * 16, i ^ round);
		for (u32 i = 0; i < N; i++) {
			u32 k = random64() % N;
			CHECK_EQ(call(CODE_VA + k * 16), k ^ round);
		}
	}
}

/* The page of code is zeroed and used for something else, then code again. */
TEST(page_reuse)
{
	u8 *p = map_fresh(CODE_VA, 1, PTE_KERNEL);
	for (u32 i = 0; i < 100; i++) {
		for (u32 k = 0; k < 50; k++)
			put_return(p + k * 64, i + k);
		for (u32 k = 0; k < 50; k++)
			CHECK_EQ(call(CODE_VA + k * 64), i + k);
		memset(p, 0, PAGE);
		CHECK_EQ(p[64], 0);
		memset(p, 0xcc, PAGE);
		CHECK_EQ(CATCH(call(CODE_VA)), BP);
	}
}
