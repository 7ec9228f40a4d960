/*
 * Programs under PCIDs of their own that take turns, more of them and with more pages than a TLB need keep. Bit 63 of
 * CR3 is set wherever it may be, so what has not been flushed may be kept; what has been must not.
 */
#include "guest.h"

const char payload[] = "pcids";

#define SMALL TEST_VA               /* pages of 4 KiB */
#define LARGE (TEST_VA + (1 << 30)) /* one of 2 MiB */
#define LARGE_SIZE (1ull << 21)
#define PROGRAMS 9
#define PAGES 40 /* small ones, of each */
#define POOL 64  /* and what can be there */
#define LARGES 3

/* RDX: a page of the large one; RCX small ones from RDI on are loaded from, and RSI is stored beside. */
SNIPPET(look, 64,
	"movq (%rdx), %rax; movq %rsi, 8(%rdx)\n"
	"1: leaq (%rax, %rax, 2), %rax; addq (%rdi), %rax; movq %rsi, 8(%rdi); addq $4096, %rdi; loop 1b; ud2");
SNIPPET(store, 64, "movl %esi, (%rdi); ud2");

static struct program {
	u64 top, pcid;
	bool doubtful; /* what a TLB has of it is not to be kept */
	volatile u64 *pte[PAGES], *pde;
} program[PROGRAMS];
static u64 pool[POOL], large[LARGES];

static volatile u64 *at(u64 va)
{
	return (volatile u64 *)va;
}

static void load(struct program *p)
{
	write_cr3(p->top | p->pcid | (p->doubtful ? 0 : CR3_KEEP));
	p->doubtful = false;
}

static u64 any_page(void)
{
	return pool[random64() % POOL] | PTE_USER;
}

static u64 any_large(void)
{
	return large[random64() % LARGES] | PTE_USER | PTE_PS;
}

static void make(struct program *p, u64 pcid)
{
	extern u64 boot_pml4[];
	u64 *top = alloc_pages(1), before = read_cr3();
	memcpy(top, boot_pml4, PAGE);
	top[1] = 0;
	*p = (struct program){.top = (u64)top, .pcid = pcid, .doubtful = true};
	write_cr3(p->top);
	for (unsigned i = 0; i < PAGES; i++) {
		map(SMALL + i * PAGE, 0, 0);
		p->pte[i] = walk(SMALL + i * PAGE, 1, false);
		*p->pte[i] = any_page();
	}
	p->pde = walk(LARGE, 2, true);
	*p->pde = any_large();
	write_cr3(before);
}

/* `current` runs, and has changed what is at `va` in `p`. */
static void flush(struct program *p, u64 va, const struct program *current)
{
	u64 how = random64() % 8;
	if (how < 4 && HAS_INVPCID)
		invpcid(0, p->pcid, va);
	else if (how < 5 && HAS_INVPCID)
		invpcid(1, p->pcid, 0);
	else if (how < 6 && HAS_INVPCID)
		invpcid(random64() & 1 ? 2 : 3, 0, 0);
	else if (p == current && how < 7)
		invlpg(va);
	else
		p->doubtful = true;
}

static void change(struct program *p, const struct program *current)
{
	u64 i = random64() % (PAGES + 4);
	bool clean = random64() & 1; /* the same page, neither accessed nor dirty */
	if (i < PAGES) {
		*p->pte[i] = clean ? *p->pte[i] & ~(PTE_A | PTE_D) : any_page();
		flush(p, SMALL + i * PAGE, current);
	} else {
		*p->pde = clean ? *p->pde & ~(PTE_A | PTE_D) : any_large();
		flush(p, LARGE + random64() % LARGE_SIZE, current);
	}
}

/* Runs it over `pages` of its small pages and one of the large one: what comes of it follows from its tables as they
 * are. */
static void run(struct program *p, struct frame *f, u64 pages, u64 turn)
{
	u64 first = random64() % (PAGES - pages + 1), offset = random64() % 4 * PAGE;
	u64 in_large = (*p->pde & PTE_ADDR) + offset, sum = *at(in_large);
	for (u64 i = first; i < first + pages; i++)
		sum = sum * 3 + *at(*p->pte[i] & PTE_ADDR);
	f->rdi = SMALL + first * PAGE, f->rdx = LARGE + offset, f->rcx = pages, f->rsi = turn;
	struct trap *t = run_frame(f);
	CHECK_EQ(t->f.vector, UD);
	CHECK_EQ(t->f.rax, sum);
	CHECK_EQ(*at(in_large + 8), turn);
	CHECK_EQ(*p->pde & (PTE_A | PTE_D), PTE_A | PTE_D);
	for (u64 i = first; i < first + pages; i++) {
		CHECK_EQ(*at((*p->pte[i] & PTE_ADDR) + 8), turn);
		CHECK_EQ(*p->pte[i] & (PTE_A | PTE_D), PTE_A | PTE_D);
	}
}

static void make_memory(void)
{
	for (unsigned i = 0; i < POOL; i++) {
		pool[i] = (u64)alloc_pages(1);
		*at(pool[i]) = random64();
	}
	for (unsigned i = 0; i < LARGES; i++) {
		large[i] = (u64)alloc_aligned(LARGE_SIZE, LARGE_SIZE);
		for (u64 offset = 0; offset < LARGE_SIZE; offset += PAGE)
			*at(large[i] + offset) = random64();
	}
}

static void take_turns(unsigned programs, u64 pages)
{
	if (!HAS_PCID)
		skip("no PCIDs");
	struct frame f = user_code(look, look_end, 64);
	u64 before = read_cr3();
	make_memory();
	for (unsigned i = 0; i < programs; i++)
		make(&program[i], 1 + i * 511);
	write_cr4(CR4_DEFAULT | CR4_PCIDE);
	for (u64 turn = 1; turn <= 400; turn++) {
		struct program *p = &program[random64() % programs];
		load(p);
		for (u64 n = random64() % 3; n; n--)
			change(&program[random64() % programs], p);
		if (p->doubtful)
			load(p);
		run(p, &f, pages, turn);
	}
	write_cr3(before);
	write_cr4(CR4_DEFAULT);
}

TEST(two_with_few_pages)
{
	take_turns(2, 4);
}

TEST(few_pages)
{
	take_turns(4, 8);
}

TEST(many_pages)
{
	take_turns(PROGRAMS, PAGES);
}

/* One program may store to a page, and did; since then another has executed what was there. */
TEST(store_to_code)
{
	static const u8 code[] = {0xb8, 0, 0, 0, 0, 0x0f, 0x0b}; /* mov eax, 0; ud2 */
	if (!HAS_PCID)
		skip("no PCIDs");
	struct frame writer = user_code(store, store_end, 64), reader = writer;
	u64 before = read_cr3(), page = (u64)alloc_pages(1);
	memcpy((void *)page, code, sizeof(code));
	make_memory();
	for (unsigned i = 0; i < 2; i++) {
		make(&program[i], 1 + i);
		*program[i].pte[0] = page | PTE_USER;
	}
	write_cr4(CR4_DEFAULT | CR4_PCIDE);
	writer.rdi = SMALL + 1;
	reader.rip = SMALL;
	for (u64 i = 1; i < 40; i++) {
		load(&program[0]);
		writer.rsi = i;
		CHECK_EQ(run_frame(&writer)->f.vector, UD);
		load(&program[1]);
		CHECK_EQ(run_frame(&reader)->f.rax, i);
	}
	write_cr3(before);
	write_cr4(CR4_DEFAULT);
}
