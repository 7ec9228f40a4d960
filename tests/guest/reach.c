/*
 * No access reaches what the page tables do not show, however a register came to its value: stack pointers that walk
 * far in steps that no page fault interrupts, and come back.
 */
/* run: timeout=120 */
#include "guest.h"

const char payload[] = "reach";

#define GIB (1ull << 30)
#define REGION (1024 * GIB)

/* RCX steps, then what is there in RAX. */
SNIPPET(up, 64, "1: addq $0x40000000, %rsp; decq %rcx; jnz 1b; movq (%rsp), %rax; int $0x80");
SNIPPET(down, 64, "1: subq $0x40000000, %rsp; decq %rcx; jnz 1b; movq (%rsp), %rax; int $0x80");
SNIPPET(up_slowly, 64, "1: leaq 0x100000(%rsp), %rsp; decq %rcx; jnz 1b; popq %rax; int $0x80");
SNIPPET(down_slowly, 64, "1: addq $-0x100000, %rsp; decq %rcx; jnz 1b; popq %rax; int $0x80");
SNIPPET(up_at_once, 64,
	"1: addq $0x7fffffff, %rsp; incq %rsp; addq $0x7fffffff, %rsp; incq %rsp; "
	"addq $0x7fffffff, %rsp; incq %rsp; decq %rcx; jnz 1b; popq %rax; int $0x80");
/* On from where the other way was taken, in the middle of a block; the access behind it is not reached. */
SNIPPET(up_past_exits, 64, "1: addq $0x100000, %rsp; decq %rcx; jnz 2f; popq %rax; int $0x80; 2: jmp 1b");
/* The accesses are not where RSP ends. */
SNIPPET(up_with_accesses, 64,
	"1: movq %rsp, %rbx; movq %rdi, %rsp; movq (%rsp), %rax; movq %rbx, %rsp; "
	"addq $0x40000000, %rsp; decq %rcx; jnz 1b; popq %rax; int $0x80");

#define CODE_OF(name) name, name##_end

/*
 * From a place that ring 0 uses, RCX steps of `step` bytes: there is nothing for ring 3. A monitor that goes on from
 * what it knows of the place where RSP was may have shown something at that distance, if only to ring 0.
 */
struct walker {
	struct frame f;
	u64 from;
};

static struct walker walker(const void *begin, const void *end)
{
	struct walker w = {user_code(begin, end, 64), (u64)__builtin_frame_address(0) & ~7ull};
	w.f.rdi = USER_STACK - 8;
	return w;
}

static void walk_there(const struct walker *w, u64 steps, u64 step)
{
	struct frame f = w->f;
	u64 to = w->from + steps * step;
	f.rsp = w->from;
	f.rcx = steps;
	struct trap *t = run_frame(&f);
	CHECK_EQ_IN(t->f.vector, PF, "%lx at %lx", t->f.rax, to);
	CHECK_EQ_IN(t->f.rsp, to, "vector %u", (unsigned)t->f.vector);
	CHECK_EQ(t->cr2, to);
}

/* Distances of 4 GiB to 1 TiB and a little more. */
static void walk_far(const void *begin, const void *end, u64 step, unsigned gib_a_step)
{
	struct walker w = walker(begin, end);
	for (unsigned gib = gib_a_step * 4; gib <= 1100; gib += gib_a_step)
		walk_there(&w, gib / gib_a_step, step);
}

TEST(stack_walks_up)
{
	walk_far(CODE_OF(up), GIB, 1);
}

TEST(stack_walks_down)
{
	walk_far(CODE_OF(down), -GIB, 1);
}

TEST(stack_walks_up_at_once)
{
	walk_far(CODE_OF(up_at_once), 6 * GIB, 6);
}

TEST(stack_walks_up_with_accesses)
{
	walk_far(CODE_OF(up_with_accesses), GIB, 1);
}

/* More than once: an interrupt of the monitor's own on the way makes it look again. */
static void walk_slowly(const void *begin, const void *end, u64 step)
{
	struct walker w = walker(begin, end);
	for (unsigned times = 0; times < 3; times++)
		walk_there(&w, 1032 * 1024, step);
}

TEST(stack_walks_up_slowly)
{
	walk_slowly(CODE_OF(up_slowly), 0x100000);
}

TEST(stack_walks_down_slowly)
{
	walk_slowly(CODE_OF(down_slowly), -0x100000ull);
}

TEST(stack_walks_up_past_exits)
{
	walk_slowly(CODE_OF(up_past_exits), 0x100000);
}
