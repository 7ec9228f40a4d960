/*
 * Code and where it is: one page of code at several addresses, whose neighbours differ; what is said relative to RIP;
 * jumps to other pages, which are then exchanged.
 */
/* run: memory=288M timeout=60 */
#include "guest.h"

const char payload[] = "places";

#define HERE TEST_VA
#define THERE (TEST_VA + 0x40000000)
#define REGION (1ull << 40)

struct answer {
	u64 rax, rdx;
};

static struct answer ask(u64 at, u64 rdi)
{
	struct answer a;
	asm volatile("call *%[at]"
		     : "=a"(a.rax), "=d"(a.rdx), "+D"(rdi)
		     : [at] "r"(at)
		     : "rcx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
	return a;
}

static u8 *page_with(const void *begin, const void *end)
{
	u8 *p = alloc_pages(1);
	memcpy(p, begin, (const u8 *)end - (const u8 *)begin);
	return p;
}

/* mov $imm, %eax; ret */
static u8 *page_that_returns(u32 imm)
{
	u8 *p = alloc_pages(1);
	p[0] = 0xb8;
	memcpy(p + 1, &imm, sizeof(imm));
	p[5] = 0xc3;
	return p;
}

/* The same page twice; what it jumps to, calls, and finds beside it is its neighbour's there. */
SNIPPET(to_neighbour, 64, "1: jmp 1b+4096");
SNIPPET(ask_neighbour, 64, "1: call 1b+4096; leaq 0f(%rip), %rdx; 0: ret");
SNIPPET(read_neighbour, 64, "1: movl 1b+4097(%rip), %eax; ret");
TEST(neighbours)
{
	u8 *p = page_with(to_neighbour, to_neighbour_end);
	memcpy(p + 1024, ask_neighbour, ask_neighbour_end - ask_neighbour);
	memcpy(p + 2048, read_neighbour, read_neighbour_end - read_neighbour);
	*(u32 *)(p + 1025) -= 1024; /* the neighbour's first byte */
	*(u32 *)(p + 2050) -= 2048;
	map(HERE, (u64)p, PTE_KERNEL);
	map(HERE + PAGE, (u64)page_that_returns(1), PTE_KERNEL);
	map(THERE, (u64)p, PTE_KERNEL);
	map(THERE + PAGE, (u64)page_that_returns(2), PTE_KERNEL);
	for (unsigned i = 0; i < 300; i++) {
		u64 r = random64(), at = r & 1 ? HERE : THERE, want = r & 1 ? 1 : 2;
		CHECK_EQ(ask(at, 0).rax, want);
		struct answer a = ask(at + 1024, 0);
		CHECK_EQ(a.rax, want);
		CHECK_EQ(a.rdx, at + 1024 + 12);
		CHECK_EQ(ask(at + 2048, 0).rax, want);
		CHECK_EQ(ask((r & 2 ? at : HERE + THERE - at) + 2048, 0).rax, r & 2 ? want : 3 - want);
	}
}

/* From a page to itself at another address, and back. */
SNIPPET(call_there, 64, "call *%rdi; leaq 0f(%rip), %rdx; 0: ret");
SNIPPET(tell_place, 64, "leaq 0f(%rip), %rax; 0: ret");
TEST(call_itself_elsewhere)
{
	u8 *p = page_with(call_there, call_there_end);
	memcpy(p + 64, tell_place, tell_place_end - tell_place);
	map(HERE, (u64)p, PTE_KERNEL);
	map(THERE, (u64)p, PTE_KERNEL);
	for (unsigned i = 0; i < 100; i++) {
		u64 from = random64() & 1 ? HERE : THERE, to = random64() & 1 ? HERE : THERE;
		struct answer a = ask(from, to + 64);
		CHECK_EQ(a.rax, to + 64 + 7);
		CHECK_EQ(a.rdx, from + 2 + 7);
	}
}

/* INVLPG in the middle of code whose page stays, and goes on with what is relative to it. */
SNIPPET(flush_and_tell, 64,
	"invlpg (%rdi); leaq 0f(%rip), %rax; 0: movq %cr3, %rdx; movq %rdx, %cr3; leaq 0f(%rip), %rdx; 0: ret");
TEST(flush_in_between)
{
	u8 *p = page_with(flush_and_tell, flush_and_tell_end);
	map(HERE, (u64)p, PTE_KERNEL);
	map(THERE, (u64)p, PTE_KERNEL);
	for (unsigned i = 0; i < 100; i++) {
		u64 at = random64() & 1 ? HERE : THERE, which = random64() & 1 ? HERE : THERE;
		struct answer a = ask(at, which);
		CHECK_EQ(a.rax, at + 3 + 7);
		CHECK_EQ(a.rdx, at + 3 + 7 + 6 + 7);
	}
}

/* User code calls the page behind its own, which the kernel exchanges: by INVLPG, by CR3, together with its own. */
SNIPPET(user_call, 64, "1: call 1b+4096; movl 1b+4097(%rip), %edx; leaq 0f(%rip), %rcx; 0: int $0x80");
TEST(exchanged_under_user_code)
{
	struct frame f = user_code(user_call, user_call_end, 64);
	u64 own[2] = {*walk(USER_CODE, 1, false), 0}, next[3];
	own[1] = (u64)page_with((void *)USER_CODE, (u8 *)USER_CODE + 64) | PTE_USER;
	for (unsigned i = 0; i < 3; i++)
		next[i] = (u64)page_that_returns(i + 10) | PTE_USER;
	for (unsigned i = 0; i < 300; i++) {
		unsigned k = random64() % 3;
		if (i % 5 == 0)
			*walk(USER_CODE, 1, false) = own[random64() & 1];
		*walk(USER_CODE + PAGE, 1, false) = next[k];
		if (i % 5 == 0 || i & 1)
			write_cr3(read_cr3());
		else
			invlpg(USER_CODE + PAGE);
		for (unsigned again = 0; again < 3; again++) {
			struct trap *t = run_frame(&f);
			CHECK_EQ(t->f.vector, 0x80);
			CHECK_EQ(t->f.rax, k + 10);
			CHECK_EQ(t->f.rdx, k + 10);
			CHECK_EQ(t->f.rcx, USER_CODE + 5 + 6 + 7);
			write_cr3(read_cr3()); /* and nothing has changed */
		}
	}
	*walk(USER_CODE + PAGE, 1, false) |= PTE_NX;
	write_cr3(read_cr3());
	CHECK_EQ(run_frame(&f)->f.vector, PF);
	CHECK_EQ(last_trap()->cr2, USER_CODE + PAGE);
}

/*
 * The same, in address spaces that take turns: while one runs, another's page is exchanged, its bytes are changed, or
 * it is not to be executed any more. What was known of a space when it ran last is true only as far as its tables still
 * say so.
 */
#define SPACES 6
struct turn {
	u64 cr3;
	volatile u64 *own, *next;
	u8 *bytes; /* of the page called */
	u32 returns;
};
/* A copy of the address space at hand, with the tables by which USER_CODE is found for itself. */
static u64 space_of_its_own(void)
{
	u64 first = read_cr3(), top = (u64)alloc_pages(1);
	memcpy((void *)top, (void *)first, PAGE);
	write_cr3(top);
	for (unsigned level = 4; level > 1; level--) {
		volatile u64 *entry = walk(USER_CODE, level, false);
		u64 table = (u64)alloc_pages(1);
		memcpy((void *)table, (void *)(*entry & PTE_ADDR), PAGE);
		*entry = table | (*entry & ~PTE_ADDR);
	}
	write_cr3(first);
	return top;
}
static void turn_begin(struct turn *t, u32 returns)
{
	u64 first = read_cr3();
	t->cr3 = space_of_its_own();
	t->returns = returns;
	t->bytes = page_that_returns(returns);
	write_cr3(t->cr3);
	t->own = walk(USER_CODE, 1, false);
	t->next = walk(USER_CODE + PAGE, 1, true);
	*t->next = (u64)t->bytes | PTE_USER;
	write_cr3(first);
}
static void turn_change(struct turn *t, const u64 own[2], unsigned how)
{
	switch (how) {
	case 0:
		t->bytes = page_that_returns(++t->returns);
		*t->next = (u64)t->bytes | PTE_USER;
		break;
	case 1:
		t->returns += 100;
		memcpy(t->bytes + 1, &t->returns, sizeof(t->returns));
		break;
	case 2:
		*t->own = own[random64() & 1];
		break;
	case 3:
		*t->next ^= PTE_NX;
		break;
	default:
		break;
	}
}
TEST(spaces_take_turns)
{
	struct frame f = user_code(user_call, user_call_end, 64);
	u64 first = read_cr3(), own[2] = {*walk(USER_CODE, 1, true), 0};
	own[1] = (u64)page_with((void *)USER_CODE, (u8 *)USER_CODE + 64) | PTE_USER;
	static struct turn turns[SPACES];
	walk(USER_CODE + PAGE, 1, true);
	for (unsigned i = 0; i < SPACES; i++)
		turn_begin(&turns[i], 1000 * (i + 1));
	for (unsigned i = 0; i < 1500; i++) {
		unsigned few = i < 500 ? 2 : i < 1000 ? 3 : SPACES;
		turn_change(&turns[random64() % few], own, random64() % 16);
		const struct turn *t = &turns[random64() % few];
		write_cr3(t->cr3);
		for (unsigned again = 0; again < 3; again++) {
			const struct trap *trap = run_frame(&f);
			CHECK_EQ(trap->f.vector, *t->next & PTE_NX ? PF : 0x80);
			if (*t->next & PTE_NX)
				continue;
			CHECK_EQ(trap->f.rax, t->returns);
			CHECK_EQ(trap->f.rdx, t->returns);
		}
		write_cr3(first);
	}
}

/* Operands as far away as can be said, and beyond a boundary that a translator may treat as one. */
SNIPPET(count_behind, 64, "1: incq 1b+4104(%rip); movq 1b+4104(%rip), %rax; ret");
SNIPPET(count_above, 64, "1: incq 1b+0x7ffff000(%rip); movq 1b+0x7ffff000(%rip), %rax; ret");
SNIPPET(count_below, 64, "1: incq 1b-0x7ffff000(%rip); movq 1b-0x7ffff000(%rip), %rax; ret");
TEST(far_operands)
{
	static const struct {
		const void *code, *end;
		u64 at, data;
	} rows[] = {
		{count_behind, count_behind_end, REGION - PAGE, REGION + 8},
		{count_behind, count_behind_end, HERE, HERE + PAGE + 8},
		{count_above, count_above_end, HERE + PAGE * 16, HERE + PAGE * 16 + 0x7ffff000},
		{count_below, count_below_end, HERE + 0x100000000, HERE + 0x100000000 - 0x7ffff000},
		{count_above, count_above_end, REGION - 0x7fffe000, REGION + 0x1000},
		{count_below, count_below_end, REGION + 0x10000000, REGION - 0x6ffff000},
	};
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		map(rows[i].at, (u64)page_with(rows[i].code, rows[i].end), PTE_KERNEL);
		map(rows[i].data & ~(u64)(PAGE - 1), (u64)alloc_pages(1), PTE_KERNEL);
		for (u64 n = 1; n <= 50; n++)
			CHECK_EQ(ask(rows[i].at, 0).rax, n);
		CHECK_EQ(*(volatile u64 *)rows[i].data, 50);
	}
}

/*
 * Beyond the last page of the lower half there is nowhere to go on: who runs or counts into it has done so when the
 * next instruction faults, who jumps there has done nothing.
 */
TEST(end_of_the_lower_half)
{
	enum { AT = 0xff0 };
	static const struct {
		const char *code; /* the last bytes of the page */
		unsigned len;
		u64 rcx, rip, rcx_after; /* where it faults: an offset in the page */
	} rows[] = {
		{"\x90", 1, 5, PAGE, 5},                     /* nop */
		{"\x48\xff\xc1", 3, 5, PAGE, 6},             /* incq %rcx */
		{"\x84\xc9\x74\x80", 4, 5, PAGE, 5},         /* testb %cl, %cl; jz, not taken */
		{"\x84\xc9\x75\x7f", 4, 5, PAGE - 2, 5},     /* jnz, taken */
		{"\xe3\x80", 2, 5, PAGE, 5},                 /* jrcxz, not taken */
		{"\xe3\x7f", 2, 0, PAGE - 2, 0},             /* jrcxz, taken */
		{"\xe2\x80", 2, 1, PAGE, 0},                 /* loop, not taken */
		{"\xe2\x7f", 2, 2, PAGE - 2, 2},             /* loop, taken */
		{"\xe2\x7f\x90\x90", 4, 3, PAGE - 4, 3},     /* loop, taken */
		{"\xe2\x7f\x90\x90", 4, 1, PAGE, 0},         /* loop, not taken */
		{"\xeb\x7f", 2, 5, PAGE - 2, 5},             /* jmp */
		{"\xe8\x00\x00\x00\x00", 5, 5, PAGE - 5, 5}, /* call */
	};
	const u64 last = 0x00007ffffffff000;
	extern u64 boot_pml4[];
	u64 was = boot_pml4[255];
	u8 *p = alloc_pages(1);
	map(last, (u64)p, PTE_USER);
	struct frame f[2] = {kernel_frame(0, 0), user_code(to_neighbour, to_neighbour_end, 64)};
	f[0].rsp = (u64)alloc_pages(1) + PAGE;
	for (unsigned i = 0; i < 2 * sizeof(rows) / sizeof(rows[0]); i++) {
		struct frame *in = &f[i & 1];
		unsigned row = i / 2;
		memset(p, 0x90, PAGE);
		memcpy(p, "\x0f\x0b", 2); /* ud2 */
		memcpy(p + PAGE - rows[row].len, rows[row].code, rows[row].len);
		in->rip = last + AT;
		in->rcx = rows[row].rcx;
		struct trap *t = run_frame(in);
		CHECK_EQ_IN(t->f.vector, GP, "row %u", row);
		CHECK_EQ_IN(t->f.rip, last + rows[row].rip, "row %u", row);
		CHECK_EQ_IN(t->f.rcx, rows[row].rcx_after, "row %u", row);
		CHECK_EQ_IN(t->f.rsp, in->rsp, "row %u", row);
	}
	boot_pml4[255] = was;
	write_cr3(read_cr3());
}

/* A page table entry that is another while a TLB may still have the old one: the code goes on in either page. */
SNIPPET(move_away, 64, "movq %rdi, (%r8); jmp 1f; .fill 64, 1, 0xcc; 1: movl $7, %eax; ret");
TEST(moved_without_a_flush)
{
	u8 *p[2] = {page_with(move_away, move_away_end), page_with(move_away, move_away_end)};
	map(HERE, (u64)p[0], PTE_KERNEL);
	register volatile u64 *pte asm("r8") = walk(HERE, 1, false);
	u64 rax;
	asm volatile("call *%[at]"
		     : "=a"(rax)
		     : [at] "r"(HERE), "r"(pte), "D"((u64)p[1] | PTE_KERNEL)
		     : "memory", "cc");
	CHECK_EQ(rax, 7);
	invlpg(HERE);
}

/* More pages of code than a translator may care to tell apart. */
TEST(many_pages)
{
	enum { PAGES = 34000 };
	u8 *p = (u8 *)0x8000000; /* behind what alloc_pages has */
	for (u64 i = 0; i < PAGES; i++)
		memcpy(p + i * PAGE, "\x48\x8d\x05\x01\x00\x00\x00\xc3\xc3", 9); /* leaq 1(%rip), %rax; ret */
	for (u64 i = 0; i < PAGES; i++) {
		u64 at = (u64)p + i * PAGE;
		if (ask(at, 0).rax != at + 8)
			CHECK_EQ(ask(at, 0).rax, at + 8);
	}
	CHECK_EQ(ask((u64)p, 0).rax, (u64)p + 8);
}
