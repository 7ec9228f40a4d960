/* Returns that go where nobody would think: by what is on the stack, whatever was called from there before. */
#include "guest.h"

const char payload[] = "return";

#define CODE_VA TEST_VA
#define STACK_VA (TEST_VA + 0x40000000)
#define STACK_PAGES 2

/*
 * Called with RDI, the function to call. It counts in EAX, and says at which of its two returns it went on: 1, or 16
 * more. The function at `aside` makes it the other one.
 */
#define TWICE(by)                                                                                                  \
	"xorl %eax, %eax; call *%rdi; addl $" #by ", %eax; call *%rdi; addl $" #by ", %eax; jmp 2f; 1: addl $16, " \
	"%eax; 2: ret"
SNIPPET(twice, 64, TWICE(1));
SNIPPET(other_twice, 64, TWICE(3));
SNIPPET(plain, 64, "ret");
SNIPPET(aside, 64, "addq $10, (%rsp); ret");
SNIPPET(by_jump, 64, "popq %rdx; jmp *%rdx");
SNIPPET(by_push, 64, "popq %rdx; pushq %rdx; ret");
SNIPPET(nowhere, 64, "movq %rsi, (%rsp); ret");
SNIPPET(driver, 64, "call *%r8; ud2");
SNIPPET(switch_page, 64, "int $0x80; ret");
SNIPPET(switch_code, 64, "movb %sil, (%rdx); ret");
/* Goes round without a jump backwards: each return finds what the call has left. */
SNIPPET(around, 64, "call 2f; 1: incq %rax; pushq %rdx; ret; 2: popq %rdx; pushq %rdx; ret");

static u64 code(unsigned page, const void *begin, const void *end)
{
	return (u64)map_code(CODE_VA + page * PAGE, begin, end, PTE_USER);
}

static u64 stack(void)
{
	return (u64)map_fresh(STACK_VA, STACK_PAGES, PTE_USER) + STACK_PAGES * PAGE;
}

/* f(rdi, rsi, rdx) in user code. */
static struct trap *call_user(u64 sp, u64 f, u64 rdi, u64 rsi, u64 rdx)
{
	struct frame frame = user_frame(CODE_VA + 8 * PAGE, sp);
	frame.r8 = f;
	frame.rdi = rdi;
	frame.rsi = rsi;
	frame.rdx = rdx;
	return run_frame(&frame);
}

static u64 set_up(void)
{
	code(8, driver, driver_end);
	return stack();
}

static void check_call(u64 sp, u64 f, u64 rdi, u64 want)
{
	struct trap *t = call_user(sp, f, rdi, 0, 0);
	CHECK_EQ_IN(t->f.vector, UD, "stack at 0x%lx", sp);
	CHECK_EQ_IN(t->f.rax, want, "stack at 0x%lx", sp);
	CHECK_EQ_IN(t->f.rsp, sp, "stack at 0x%lx", sp);
}

TEST(where_the_stack_says)
{
	u64 sp = set_up(), f = code(0, twice, twice_end);
	u64 a = code(1, plain, plain_end), b = code(2, aside, aside_end);
	u64 c = code(3, by_jump, by_jump_end), d = code(4, by_push, by_push_end);
	for (unsigned i = 0; i < 200; i++) {
		check_call(sp, f, a, 2);
		check_call(sp, f, i % 3 ? c : d, 2);
		check_call(sp, f, b, 16);
	}
}

static volatile u64 *switched;
static u64 switch_to;

static bool on_switch(struct frame *f)
{
	(void)f;
	*switched = switch_to;
	invlpg(CODE_VA);
	return true;
}

/* What is returned to is another page meanwhile. */
TEST(another_page)
{
	u64 sp = set_up(), f = code(0, twice, twice_end), to = code(2, switch_page, switch_page_end);
	u64 second = code(1, other_twice, other_twice_end), first;
	switched = walk(f, 1, false);
	first = *switched;
	second = *walk(second, 1, false);
	set_handler(0x80, on_switch);
	for (unsigned i = 0; i < 100; i++) {
		switch_to = second;
		check_call(sp, f, to, 6);
		check_call(sp, f, to, 6);
		switch_to = first;
		check_call(sp, f, to, 2);
	}
}

/* Or has other code. */
TEST(other_code)
{
	u64 sp = set_up(), f = code(0, twice, twice_end), to = code(2, switch_code, switch_code_end);
	u8 *added = (u8 *)f + 6;
	CHECK_EQ(*added, 1);
	for (unsigned i = 1; i < 100; i++) {
		struct trap *t = call_user(sp, f, to, i, (u64)added);
		CHECK_EQ(t->f.vector, UD);
		CHECK_EQ(t->f.rax, i + 1);
	}
}

/* Each place of the stack that there may be an account of, and one page of it after the other. */
TEST(everywhere_on_the_stack)
{
	u64 sp = set_up(), f = code(0, twice, twice_end), a = code(1, plain, plain_end);
	for (unsigned below = 0; below < STACK_PAGES * PAGE - 64; below += 4)
		check_call(sp - below, f, a, 2);
}

/* A return to an address that is not canonical faults before it pops; one to a page that is not there behind it. */
TEST(nowhere_to_go)
{
	static const u64 places[] = {~0ull, ~0ull - 15, 0x5555555555555555, 1ull << 47, TEST_VA + 0x80000000};
	u64 sp = set_up(), f = code(0, twice, twice_end), b = code(1, nowhere, nowhere_end);
	u64 a = code(2, plain, plain_end);
	for (unsigned i = 0; i < 5 * 300; i++) {
		u64 place = places[i % 5], below = sp - 8 * (i / 5);
		bool canonical = (u64)((int64_t)(place << 16) >> 16) == place;
		check_call(below, f, a, 2);
		struct trap *t = call_user(below, f, b, place, 0);
		CHECK_EQ_IN(t->f.vector, canonical ? PF : GP, "return to 0x%lx", place);
		CHECK_EQ_IN(t->f.rsp, below - (canonical ? 8 : 16), "return to 0x%lx", place);
		if (canonical)
			CHECK_EQ_IN(t->f.rip, place, "return to 0x%lx", place);
		else
			CHECK_EQ_IN(t->f.rip, b + 4, "return to 0x%lx", place);
	}
}

TEST(around_and_around)
{
	u64 sp = set_up(), f = code(0, around, around_end), turns = 0;
	apic_enable();
	set_handler(0x50, apic_end);
	for (unsigned i = 0; i < 300; i++) {
		struct frame frame = user_frame(f, sp - 8 * i);
		frame.rflags |= FL_IF;
		frame.rax = 0;
		apic_timer(0x50, 300000);
		struct trap *t = run_frame(&frame);
		CHECK_EQ_IN(t->f.vector, 0x50, "stack %u", i);
		CHECK_EQ_IN(t->f.rsp == frame.rsp || t->f.rsp == frame.rsp - 8, 1, "stack %u", i);
		turns += t->f.rax;
	}
	CHECK(turns);
}
