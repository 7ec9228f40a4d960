/*
 * A program's pages changed at random between its runs: others in their place, their rights, their accessed and dirty
 * bits, what is in them. Each run loads, stores and calls; what comes of it follows from the tables as they are.
 */
#include "program.h"

const char payload[] = "changes";

#define SPACES 4 /* address spaces at most that take turns, all with the same places */
#define PLACES 6 /* pages that the program sees, at random places, with holes between some */
#define PAGES 10 /* and what can be there */
#define DATA 128 /* where in a page its data is; code that returns its number is at its beginning */
#define CALL 1   /* what a run does, in this order */
#define LOAD 2
#define STORE 4
#define GLOBAL_PLACES (TEST_VA + 0x40000000) /* every other place, by a page directory of its own */

SNIPPET(run_once, 64,
	"testl $1, %r8d; jz 1f; call *%rbx; 1: testl $2, %r8d; jz 1f; movq (%rdi), %rdx; 1: testl $4, %r8d; jz 1f\n"
	"movq %r10, (%rsi); 1: ud2");

static struct {
	u8 *bytes;
	u32 number;
	u64 data;
} page[PAGES];
static u64 place[PLACES];
static struct {
	u64 cr3;
	volatile u64 *entry[PLACES], *global;
	volatile u64 *upper[2]; /* of the page directory: for even places, for odd ones */
	bool stale;             /* its PCID has translations that may not be true any more */
} space[SPACES];
static unsigned spaces, now;
static bool pcids;
static bool kernel; /* it runs as the kernel does, and every other place is global: the same in all spaces */

static volatile u64 *entry(unsigned p)
{
	return space[now].entry[p];
}

/* With what is known of it, if all of that is true. */
static void switch_to(unsigned n)
{
	write_cr3(space[n].cr3 | (pcids && !space[n].stale ? CR3_KEEP : 0));
	space[n].stale = false;
	now = n;
}

/* MOV EAX, number; RET */
static void write_code(unsigned n)
{
	page[n].number = (u32)random64();
	page[n].bytes[0] = 0xb8;
	memcpy(page[n].bytes + 1, &page[n].number, 4);
	page[n].bytes[5] = 0xc3;
}

static void write_data(unsigned n)
{
	page[n].data = random64();
	*(volatile u64 *)(page[n].bytes + DATA) = page[n].data;
}

static unsigned page_of(unsigned p)
{
	unsigned n = 0;
	while ((u64)page[n].bytes != (*entry(p) & PTE_ADDR))
		n++;
	return n;
}

static bool is_global(unsigned p)
{
	return kernel && p & 1;
}

static void flush(unsigned in, unsigned p)
{
	if (is_global(p))
		invlpg(place[p]);
	else if (in != now)
		space[in].stale = true;
	else if (random64() & 1)
		invlpg(place[p]);
	else
		write_cr3(space[now].cr3);
}

/* Its entry in a page directory has changed: it goes for each place below. */
static void flush_upper(unsigned in, unsigned odd)
{
	for (unsigned p = odd; p < PLACES; p += 2)
		flush(in, p);
	for (unsigned n = 0; n < spaces && is_global(odd); n++)
		space[n].stale |= n != now;
}

#define RIGHTS (PTE_P | PTE_U | PTE_W | PTE_NX)
#define ALL_RIGHTS (PTE_P | PTE_U | PTE_W)

/* Some right for many places, which they soon have again. */
static void change_upper(unsigned in, unsigned how)
{
	static const u64 bits[] = {PTE_P, PTE_U, PTE_W, PTE_NX};
	unsigned odd = random64() & 1;
	volatile u64 *e = space[in].upper[odd];
	if (how == 0)
		*e &= ~PTE_A;
	else if ((*e & RIGHTS) != ALL_RIGHTS)
		*e = (*e & ~RIGHTS) | ALL_RIGHTS;
	else if (how <= 4)
		*e ^= bits[how - 1];
	else
		return;
	flush_upper(in, odd);
}

static void change(void)
{
	static const u64 bits[] = {PTE_P, PTE_U, PTE_W, PTE_W, PTE_NX, PTE_NX};
	unsigned p = random64() % PLACES, n = random64() % PAGES, how = random64() % 64, in = random64() % spaces;
	volatile u64 *e = space[in].entry[p];
	if (how == 0) {
		write_code(n);
	} else if (how < 8) {
		write_data(n);
	} else if (how < 40) {
		*e = how < 20 ? (u64)page[n].bytes | (*e & ~PTE_ADDR) : *e ^ bits[how % 6];
		flush(in, p);
	} else if (how < 48) {
		*e &= how & 1 ? ~PTE_A : ~(PTE_A | PTE_D);
		flush(in, p);
	} else {
		change_upper(in, how - 48);
	}
}

/* What both levels let it do there. */
static u64 rights(unsigned p)
{
	u64 e = *entry(p), upper = *space[now].upper[p & 1];
	return (e & upper & ALL_RIGHTS) | ((e | upper) & PTE_NX);
}

#define NO_FAULT ~0ull
/* What an access to a place with such rights comes to: the error code of a page fault, or that. */
static u64 error_of(u64 e, u64 kind)
{
	bool refused = !(kernel || e & PTE_U) || (kind == STORE && !(e & PTE_W)) || (kind == CALL && (e & PTE_NX));
	if ((e & PTE_P) && !refused)
		return NO_FAULT;
	return (kernel ? 0 : PF_U) | (e & PTE_P ? PF_P : 0) | (kind == STORE ? PF_W : 0) | (kind == CALL ? PF_I : 0);
}

/* False: it ended in a fault. */
static bool check_access(const struct trap *t, unsigned p, u64 can, u64 kind)
{
	u64 error = error_of(can, kind), address = place[p] + (kind == CALL ? 0 : DATA);
	if (error != NO_FAULT) {
		CHECK_EQ(t->f.vector, PF);
		CHECK_EQ(t->f.error, error);
		CHECK_EQ(t->cr2, address);
		return false;
	}
	CHECK(*entry(p) & PTE_A);
	CHECK(*space[now].upper[p & 1] & PTE_A);
	CHECK(kind != STORE || *entry(p) & PTE_D);
	return true;
}

static void check_dirty(const u64 *before, unsigned stored)
{
	for (unsigned p = 0; p < PLACES; p++)
		if (p != stored)
			CHECK_EQ(*entry(p) & PTE_D, before[p] & PTE_D);
}

static void run_and_check(struct frame f)
{
	unsigned call = random64() % PLACES, load = random64() % PLACES, store = random64() % PLACES;
	u64 before[PLACES], can[PLACES], value = random64();
	for (unsigned p = 0; p < PLACES; p++) {
		before[p] = *entry(p);
		can[p] = rights(p);
	}
	f.r8 = random64() & 7;
	f.rbx = place[call];
	f.rdi = place[load] + DATA;
	f.rsi = place[store] + DATA;
	f.r10 = value;
	const struct trap *t = run_frame(&f);
	bool on = true, stored = false;
	if (f.r8 & CALL && (on = check_access(t, call, can[call], CALL)))
		CHECK_EQ((u32)t->f.rax, page[page_of(call)].number);
	if (on && f.r8 & LOAD && (on = check_access(t, load, can[load], LOAD)))
		CHECK_EQ(t->f.rdx, page[page_of(load)].data);
	if (on && f.r8 & STORE && (on = stored = check_access(t, store, can[store], STORE))) {
		CHECK_EQ(*(volatile u64 *)(page[page_of(store)].bytes + DATA), value);
		page[page_of(store)].data = value;
	}
	if (on)
		CHECK_EQ(t->f.vector, UD);
	check_dirty(before, stored ? store : PLACES);
}

/* The tables at hand, with others for the places. */
static void space_begin(unsigned n)
{
	u64 top = (u64)alloc_pages(1);
	memcpy((void *)top, (void *)(read_cr3() & PTE_ADDR), PAGE);
	((u64 *)top)[TEST_VA >> 39 & 511] = 0;
	space[n].cr3 = top | (pcids ? n + 1 : 0);
	space[n].stale = true;
	switch_to(n);
	if (n && kernel)
		*walk(GLOBAL_PLACES, 3, true) = *space[0].global;
	space[n].global = walk(GLOBAL_PLACES, 3, true);
	space[n].upper[0] = walk(TEST_VA, 2, true);
	space[n].upper[1] = walk(GLOBAL_PLACES, 2, true);
	for (unsigned p = 0; p < PLACES; p++) {
		space[n].entry[p] = walk(place[p], 1, true);
		if (!n || !is_global(p))
			*entry(p) = (u64)page[random64() % PAGES].bytes | PTE_USER | (is_global(p) ? PTE_G : 0);
	}
}

static void set_up(void)
{
	for (unsigned n = 0; n < PAGES; n++) {
		page[n].bytes = alloc_pages(1);
		memcpy(page[n].bytes + 64, "\x0f\xa2", n % 2 ? 2 : 0); /* CPUID, which nobody comes to */
		write_code(n);
		write_data(n);
	}
	for (unsigned p = 0; p < PLACES; p++)
		place[p] = (p & 1 ? GLOBAL_PLACES : TEST_VA) + (p * 2 + random64() % 2) * PAGE;
	for (unsigned n = 0; n < spaces; n++)
		space_begin(n);
}

#define ROUNDS 4 /* with other pages each */
static void turns(unsigned n, unsigned changes)
{
	u64 first = read_cr3();
	for (unsigned round = 0; round < ROUNDS; round++) {
		struct frame f = PROGRAM(run_once);
		if (kernel)
			f = kernel_frame(f.rip, f.rsp);
		set_up();
		for (unsigned i = 0; i < n / ROUNDS; i++) {
			for (unsigned k = random64() % (changes + 1); k; k--)
				change();
			if (spaces > 1 && random64() % 3 == 0)
				switch_to(random64() % spaces);
			run_and_check(f);
		}
		write_cr3(first);
		write_cr4(read_cr4() & ~CR4_PGE); /* nothing global stays */
		write_cr4(read_cr4() | CR4_PGE);
	}
}

static void test(unsigned in_turns, bool with_pcids, bool as_kernel, unsigned changes)
{
	if (with_pcids && !HAS_PCID)
		skip("no PCIDs");
	if (with_pcids)
		write_cr4(CR4_DEFAULT | CR4_PCIDE);
	spaces = in_turns, pcids = with_pcids, kernel = as_kernel;
	turns(4000, changes);
}

/* Long between changes, so that an engine comes to know the program; and nothing ever as it was. */
TEST(seldom)
{
	test(1, false, false, 1);
}
TEST(often)
{
	test(1, false, false, 6);
}
TEST(spaces_take_turns)
{
	test(SPACES, false, false, 2);
}
TEST(spaces_with_pcids)
{
	test(SPACES, true, false, 2);
}
TEST(kernel_seldom)
{
	test(1, false, true, 1);
}
TEST(kernel_often)
{
	test(1, false, true, 6);
}
TEST(kernel_in_spaces)
{
	test(SPACES, false, true, 2);
}
TEST(kernel_with_pcids)
{
	test(SPACES, true, true, 2);
}

/*
 * A page at two places, the second of which is another one's every other time, in spaces that take turns: more than an
 * engine may know at a time, some of which it knows again.
 */
SNIPPET(call_two, 64, "call *%rbx; movl %eax, %edx; call *%rdi; ud2");
TEST(aliases)
{
	u64 first = read_cr3();
	struct frame f = PROGRAM(call_two);
	unsigned visits[SPACES] = {0};
	spaces = SPACES, pcids = kernel = false;
	set_up();
	for (unsigned turn = 0; turn < 500; turn++) {
		unsigned in = random64() % SPACES, n = visits[in]++ % 2;
		*space[in].entry[0] = (u64)page[0].bytes | PTE_USER;
		*space[in].entry[1] = (u64)page[n].bytes | PTE_USER;
		switch_to(in);
		f.rbx = place[0];
		f.rdi = place[1];
		const struct trap *t = run_frame(&f);
		CHECK_EQ(t->f.vector, UD);
		CHECK_EQ(t->f.rdx, page[0].number);
		CHECK_EQ(t->f.rax, page[n].number);
	}
	write_cr3(first);
}
