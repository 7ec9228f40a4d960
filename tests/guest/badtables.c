/*
 * Page tables that make no sense: entries of any bits at every level, tables that are their own, tables and pages in
 * device memory, past the end of RAM and where nothing is. Each access ends in data, #PF or nothing, and what the
 * walker marks as accessed is what it walked.
 */
#include "guest.h"

const char payload[] = "badtables";

#define TABLES 32 /* the first is walked from PML4 entry 1 */
#define RAM (128ull << 20)
#define ROUNDS 30
#define ACCESSES 1000

static volatile u64 *pool; /* alone in its 2 MiB */
static unsigned faults, reserved, good;

static const u64 devices[] = {
	0xfee00000, 0xfec00000, 0xe0000000, 0xe0008000, 0xb0000000,
	0xc0000000, 0xd0000000, 0xfed00000, 0xfffff000, 0xa0000,
};

static u64 flags(u64 r)
{
	u64 f = PTE_P | (r & (PTE_U | PTE_PWT | PTE_PCD | PTE_A | PTE_D | PTE_G));
	if (!(r >> 20 & 15))
		f &= ~PTE_P;
	if (!(r >> 24 & 7))
		f |= PTE_NX;
	if (!(r >> 28 & 15))
		f |= 0xe00 | 0x7ffull << 52;
	return f;
}

/*
 * Writes reach only the tables, and what is not RAM: the payload itself must live on. So large pages (which could lie
 * over it) and devices are read-only.
 */
static u64 entry(u64 self)
{
	u64 r = random64(), f = flags(random64()), w = r >> 60 ? PTE_W : 0;
	switch (r % 16) {
	case 0:
		return self | f | w;
	case 1:
		return devices[(r >> 8) % (sizeof(devices) / sizeof(devices[0]))] | f | (r >> 40 & PTE_PS);
	case 2:
		return (RAM + ((r >> 8) & 3) * PAGE) | f | w; /* just past the end */
	case 3:
		return (r & PTE_ADDR & ~(RAM * 64 - 1)) | f; /* far above, often more bits than there are */
	case 4:
		return ((u64)pool & ~(PTE_ADDR & 0x1fffff)) | f | PTE_PS;
	case 5:
		return (random64() & ~(PTE_W | PTE_PS)) | 1ull << 40; /* anything, but not in RAM */
	case 6:
		return (RAM - PAGE) | f | PTE_PS; /* a large page with low address bits */
	case 7:
		return 0;
	default:
		return ((u64)pool + (r >> 8) % TABLES * PAGE) | f | w;
	}
}

static void fill(void)
{
	for (unsigned i = 0; i < TABLES * PAGE / 8; i++)
		pool[i] = entry((u64)pool + i * 8 / PAGE * PAGE);
}

static u64 some_va(void)
{
	return TEST_VA + (random64() & ((1ull << 39) - 1));
}

static void count(unsigned vector)
{
	if (vector == NO_TRAP) {
		good++;
		return;
	}
	CHECK_EQ(vector, PF);
	faults++;
	reserved += (last_trap()->f.error & PF_RSVD) != 0;
	CHECK((last_trap()->f.error & ~31ull) == 0);
}

static void read_somewhere(void)
{
	u64 va = some_va();
	count(CATCH(*(volatile u64 *)va));
}
static void read_across(void)
{
	u64 va = (some_va() | (PAGE - 1)) - random64() % 7;
	if (va < TEST_VA + (1ull << 39) - 8)
		count(CATCH(*(volatile u64 *)va));
}
static void write_somewhere(void)
{
	u64 va = some_va() & ~7ull, v = entry((u64)pool);
	count(CATCH(*(volatile u64 *)va = v));
}
static void add_somewhere(void)
{
	u64 va = some_va() & ~7ull;
	count(CATCH(asm volatile("lock orq %1, (%0)" : : "r"(va), "r"(PTE_P) : "memory", "cc")));
}
static void change_one(void)
{
	unsigned i = random64() % (TABLES * PAGE / 8);
	pool[i] = entry((u64)pool + i * 8 / PAGE * PAGE);
	if (random64() & 1)
		invlpg(some_va());
	else
		write_cr3(read_cr3());
}
/* One instruction in ring 3 of whatever is there, as code. */
static void fetch_somewhere(void)
{
	struct frame f = user_frame(some_va(), some_va());
	f.rflags |= FL_TF;
	struct trap *t = run_frame(&f);
	CHECK(t->f.vector < 32);
}
static void stack_somewhere(void)
{
	u64 va = some_va() & ~7ull, sp;
	unsigned v = CATCH(asm volatile("mov %%rsp, %0; mov %1, %%rsp; pop %%rcx; mov %0, %%rsp"
					: "=&r"(sp)
					: "r"(va)
					: "rcx", "memory"));
	count(v);
}

static void (*const doings[])(void) = {
	read_somewhere, read_somewhere, read_across,     write_somewhere,
	add_somewhere,  change_one,     fetch_somewhere, stack_somewhere,
};

static void start(void)
{
	pool = alloc_aligned(2 << 20, 2 << 20);
	wrmsr(MSR_EFER, EFER_DEFAULT & ~1ull); /* no SYSCALL: ring 3's only way out is a trap */
	*walk(TEST_VA, 4, false) = (u64)pool | PTE_USER;
	faults = reserved = good = 0;
}

static void storm(void)
{
	start();
	for (unsigned round = 0; round < ROUNDS; round++) {
		fill();
		write_cr3(read_cr3());
		for (unsigned i = 0; i < ACCESSES; i++)
			doings[random64() % (sizeof(doings) / sizeof(doings[0]))]();
	}
	*walk(TEST_VA, 4, false) = 0;
	write_cr3(read_cr3());
	CHECK(faults > 1000);
	CHECK(good > 1000);
	CHECK(reserved > 50);
}

TEST(storm)
{
	storm();
}

TEST(storm_pcid)
{
	if (!HAS_PCID)
		skip("no PCIDs");
	write_cr4(CR4_DEFAULT | CR4_PCIDE);
	write_cr3(read_cr3() | 5);
	storm();
	write_cr3(read_cr3() & ~0xfffull);
}

/* One table for all levels: the last level's page is the table itself. */
TEST(own_table)
{
	start();
	for (unsigned i = 0; i < 512; i++)
		pool[i] = (u64)pool | PTE_USER;
	for (unsigned i = 0; i < 2000; i++) {
		u64 va = some_va() & ~7ull;
		CHECK_EQ_IN(*(volatile u64 *)va & PTE_ADDR, (u64)pool, "%lx", va);
	}
	/* and through it, the next reads are changed */
	*(volatile u64 *)(TEST_VA + 8 * 511) = 0;
	write_cr3(read_cr3());
	CHECK_EQ(CATCH(*(volatile u64 *)(TEST_VA + 511ull * PAGE)), PF);
	CHECK_EQ(last_trap()->f.error, 0);
}

/* The PML4 as everything below it, as kernels map their tables into themselves. */
TEST(root_as_table)
{
	u64 root = read_cr3() & PTE_ADDR;
	*walk(TEST_VA, 4, false) = root | PTE_KERNEL;
	u64 index = TEST_VA >> 39 & 511, va = index << 39 | index << 30 | index << 21 | index << 12;
	CHECK_EQ(*(volatile u64 *)(va + 8 * index) & PTE_ADDR, root);
	*walk(TEST_VA, 4, false) = 0;
	write_cr3(read_cr3());
	CHECK_EQ(CATCH(*(volatile u64 *)va), PF);
}

/* Each table in turn where no RAM is; at level 1 the page. */
static void look_around(unsigned level, u64 at)
{
	*walk(TEST_VA, level, true) = at | PTE_USER;
	write_cr3(read_cr3());
	for (unsigned k = 0; k < 64; k++) {
		u64 va = TEST_VA + (random64() & ((1ull << (3 + 9 * level)) - 1) & ~7ull);
		unsigned v = CATCH(*(volatile u64 *)va);
		CHECK(v == NO_TRAP || v == PF);
	}
}
TEST(tables_elsewhere)
{
	for (unsigned level = 1; level <= 4; level++) {
		for (unsigned i = 0; i < sizeof(devices) / sizeof(devices[0]); i++)
			look_around(level, devices[i]);
		look_around(level, RAM);
		look_around(level, 1ull << 38);
		look_around(level, (1ull << 46) - PAGE);
		*walk(TEST_VA, 4, false) = 0;
	}
}
/* run: timeout=60 */
