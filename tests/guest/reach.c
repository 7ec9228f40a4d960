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

/*
 * Code of CPL 1 in a page that is gone from the page tables, but not yet from a TLB: it may go on or fault. Its two
 * accesses lie in two pages, which some monitors try again in another way, for which the code is then looked for.
 */
SNIPPET(vanishing, 64, "movq $0, (%rsi); movq (%rdi), %rax; movq 8(%rdi), %rbx; int $0x80");
/* What the #PF handler finds at RSP. */
SNIPPET(error_code, 64, "movq (%rsp), %rax; int $0x80");

#define SEL_CODE1 (SEL_TEST | 1)
#define SEL_DATA1 ((SEL_TEST + 8) | 1)
#define FAR_AWAY (100 * REGION)

static struct frame vanishing_code(u64 *pte)
{
	u64 data = (u64)map_fresh(TEST_VA + 16 * PAGE, 2, PTE_KERNEL);
	struct frame f = kernel_frame((u64)map_code(TEST_VA, vanishing, vanishing_end, PTE_KERNEL), data);
	f.cs = SEL_CODE1;
	f.ss = SEL_DATA1;
	f.rsi = (u64)pte;
	f.rdi = data + PAGE - 8;
	return f;
}

static void handle_at(u64 stack, u64 physical, const struct frame *f, u64 pte)
{
	map(stack, physical, PTE_KERNEL);
	tss[0].rsp[0] = stack + PAGE;
	struct trap *t = run_frame(f);
	if (t->f.cs == SEL_CODE64) /* the handler */
		CHECK_EQ_IN(t->f.rax, PF_I, "the stack at %lx", stack);
	*(u64 *)f->rsi = pte;
	invlpg(f->rip);
}

TEST(stack_of_a_handler)
{
	extern u64 boot_pml4[];
	u64 was[512], rsp0 = tss[0].rsp[0], physical = (u64)alloc_pages(1), *pte = (u64 *)walk(TEST_VA, 1, true);
	struct frame f = vanishing_code(pte);
	struct idt_gate gate = idt[PF];
	memcpy(was, boot_pml4, PAGE);
	gdt[SEL_TEST / 8] = 0x00afbb000000ffff;
	gdt[SEL_TEST / 8 + 1] = 0x00cfb3000000ffff;
	memset(map_fresh(FAR_AWAY, 1, PTE_KERNEL), 0x55, PAGE);
	set_gate(PF, error_code, 0, 0x8e);
	for (int n = -8; n <= 8; n++)
		if (n)
			handle_at((u64)(n * 1032ll * (long long)GIB), physical, &f, *pte);
	idt[PF] = gate;
	tss[0].rsp[0] = rsp0;
	memcpy(boot_pml4, was, PAGE);
	write_cr3(read_cr3());
}
