/* Short loops, which end or meet a fault in any of their turns: registers, flags and memory are as after that one. */
#include "guest.h"

const char payload[] = "loop";

#define TURNS 12

SNIPPET(sums, 64,
	"1: adcq (%rsi), %rax; 2: adcq 8(%rdi), %r9; leaq 8(%rsi), %rsi; leaq 16(%rdi), %rdi; leaq 1(%r10), %r10; "
	"decq %rcx; jnz 1b; movq $0, %r11; int $0x80");
#define SECOND 3 /* the offset of what is at 2 */
SNIPPET(fills, 64, "1: movq %rcx, (%rsi); addq $8, %rsi; subq $1, %rcx; jnz 1b; int $0x80");
SNIPPET(finds, 64, "1: cmpq $0, (%rsi); je 2f; addq $8, %rsi; cmpq %rdx, %rsi; jb 1b; int $0x80; 2: ud2");
SNIPPET(pushes, 64, "1: pushq %rcx; incq %r11; decq %rcx; jnz 1b; int $0x80");

/* Two pages of data with none behind them. */
static u64 *data(void)
{
	u64 *p = map_fresh(TEST_VA, 2, PTE_USER);
	for (unsigned i = 0; i < 2 * PAGE / 8; i++)
		p[i] = ~0ull / (i % 7 + 1) * 3;
	return p;
}

static u64 *end_of(u64 *p)
{
	return p + 2 * PAGE / 8;
}

struct sum {
	u64 rax, r9;
	bool carry;
};

static u64 add(u64 a, u64 b, bool *carry)
{
	unsigned __int128 sum = (unsigned __int128)a + b + *carry;
	*carry = sum >> 64;
	return (u64)sum;
}

/* `turns`, and of the next one what is before the second access. */
static struct sum model(const u64 *rsi, const u64 *rdi, unsigned turns, bool half)
{
	struct sum s = {0};
	for (unsigned i = 0; i < turns; i++) {
		s.rax = add(s.rax, rsi[i], &s.carry);
		s.r9 = add(s.r9, rdi[2 * i + 1], &s.carry);
	}
	if (half)
		s.rax = add(s.rax, rsi[turns], &s.carry);
	return s;
}

static struct frame start(struct frame f, const u64 *rsi, const u64 *rdi, u64 rcx)
{
	f.rsi = (u64)rsi;
	f.rdi = (u64)rdi;
	f.rcx = rcx;
	f.rax = f.r9 = 0;
	f.r10 = 100;
	f.r11 = 7;
	return f;
}

/* Ends after `turns` of `most`: by itself, or at the access that `half` says. */
static void sum_one(struct frame f, const u64 *rsi, const u64 *rdi, unsigned turns, unsigned most, bool half)
{
	f = start(f, rsi, rdi, most);
	u64 begin = f.rip;
	struct trap *t = run_frame(&f);
	struct sum s = model(rsi, rdi, turns, half);
	bool faults = turns < most;
#define WHERE "%u of %u turns, half %d", turns, most, half
	CHECK_EQ_IN(t->f.vector, faults ? PF : 0x80, WHERE);
	CHECK_EQ_IN(t->f.rax, s.rax, WHERE);
	CHECK_EQ_IN(t->f.r9, s.r9, WHERE);
	CHECK_EQ_IN(t->f.r10, 100 + turns, WHERE);
	CHECK_EQ_IN(t->f.r11, faults ? 7 : 0, WHERE);
	CHECK_EQ_IN(t->f.rcx, most - turns, WHERE);
	CHECK_EQ_IN(t->f.rsi, rsi + turns, WHERE);
	CHECK_EQ_IN(t->f.rdi, rdi + 2 * turns, WHERE);
	if (!faults)
		return;
	CHECK_EQ_IN(t->f.rip, begin + half * SECOND, WHERE);
	CHECK_EQ_IN(t->cr2, half ? rdi + 2 * turns + 1 : rsi + turns, WHERE);
	if (half || turns)
		CHECK_EQ_IN(!!(t->f.rflags & FL_CF), s.carry, WHERE);
}

static void sum_all(struct frame f)
{
	u64 *p = data(), *end = end_of(p);
	for (unsigned most = 1; most <= TURNS; most++)
		sum_one(f, p, p + 100, most, most, false);
	for (unsigned most = 1; most <= TURNS; most++)
		for (unsigned turns = 0; turns < most; turns++) {
			sum_one(f, end - turns, p, turns, most, false);
			sum_one(f, p, end - 2 * turns, turns, most, true);
		}
}

TEST(sums_in_user_code)
{
	sum_all(user_code(sums, sums_end, 64));
}

TEST(sums_in_the_kernel)
{
	u64 code = (u64)map_code(TEST_VA + 0x40000000, sums, sums_end, PTE_KERNEL);
	sum_all(kernel_frame(code, (u64)alloc_pages(1) + PAGE));
}

/* The page behind is there, but for reading. */
TEST(stores)
{
	struct frame f = user_code(fills, fills_end, 64);
	u64 *p = data(), *end = p + PAGE / 8;
	map(TEST_VA + PAGE, (u64)alloc_pages(1), PTE_USER & ~PTE_W);
	for (unsigned turns = 0; turns < TURNS; turns++) {
		memset(p, 0, PAGE);
		struct frame from = start(f, end - turns, p, TURNS);
		struct trap *t = run_frame(&from);
		CHECK_EQ_IN(t->f.vector, PF, "turn %u", turns);
		CHECK_EQ_IN(t->f.error, PF_P | PF_W | PF_U, "turn %u", turns);
		CHECK_EQ_IN(t->cr2, end, "turn %u", turns);
		CHECK_EQ_IN(t->f.rip, f.rip, "turn %u", turns);
		CHECK_EQ_IN(t->f.rcx, TURNS - turns, "turn %u", turns);
		CHECK_EQ_IN(*end, 0, "turn %u", turns);
		for (unsigned i = 0; i < TURNS; i++)
			CHECK_EQ_IN(end[-(int)i - 1], i < turns ? TURNS - (turns - 1 - i) : 0, "turn %u", turns);
	}
}

/* A loop with a way out in its middle. */
TEST(ways_out)
{
	struct frame f = user_code(finds, finds_end, 64);
	u64 *p = data();
	for (unsigned zero = 0; zero <= TURNS; zero++) {
		p[zero] = 0;
		struct frame from = start(f, p, p, 0);
		from.rdx = (u64)(p + TURNS);
		struct trap *t = run_frame(&from);
		CHECK_EQ_IN(t->f.vector, zero < TURNS ? UD : 0x80, "zero %u", zero);
		CHECK_EQ_IN(t->f.rsi, p + zero, "zero %u", zero);
		p[zero] = 1;
	}
}

/* Down to the page below the stack, which is not there. */
TEST(stack)
{
	struct frame f = user_code(pushes, pushes_end, 64);
	u64 *low = (u64 *)(USER_STACK - PAGE);
	for (unsigned turns = 0; turns < TURNS; turns++) {
		struct frame from = start(f, low, low, TURNS);
		from.rsp = (u64)(low + turns);
		struct trap *t = run_frame(&from);
		CHECK_EQ_IN(t->f.vector, PF, "turn %u", turns);
		CHECK_EQ_IN(t->cr2, low - 1, "turn %u", turns);
		CHECK_EQ_IN(t->f.rsp, low, "turn %u", turns);
		CHECK_EQ_IN(t->f.rcx, TURNS - turns, "turn %u", turns);
		CHECK_EQ_IN(t->f.r11, 7 + turns, "turn %u", turns);
		for (unsigned i = 0; i < turns; i++)
			CHECK_EQ_IN(low[i], TURNS - (turns - 1 - i), "turn %u", turns);
	}
}
