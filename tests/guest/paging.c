/* Page-table semantics: accessed and dirty bits, large pages, global pages, PCIDs, and when a translation must be gone.
 */
#include "guest.h"

const char payload[] = "paging";

#define VA TEST_VA

static u64 read64(u64 va)
{
	return *(volatile u64 *)va;
}
static void write64(u64 va, u64 v)
{
	*(volatile u64 *)va = v;
}
static u64 page_with(u64 v)
{
	u64 p = (u64)alloc_pages(1);
	write64(p, v);
	return p;
}
static void flush(void)
{
	write_cr3(read_cr3());
}

/* A is set by any access, D by a write alone, in the right entries. */
TEST(accessed_dirty)
{
	u64 page = page_with(1);
	map(VA, page, PTE_P | PTE_W);
	volatile u64 *pte = walk(VA, 1, false),
		     *upper[3] = {walk(VA, 2, false), walk(VA, 3, false), walk(VA, 4, false)};
	for (unsigned i = 0; i < 3; i++)
		*upper[i] &= ~(PTE_A | PTE_D);
	flush();
	read64(VA);
	CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A);
	for (unsigned i = 0; i < 3; i++)
		CHECK_EQ(*upper[i] & (PTE_A | PTE_D), PTE_A);
	write64(VA, 2);
	CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A | PTE_D);
	*pte &= ~(PTE_A | PTE_D);
	invlpg(VA);
	write64(VA, 3);
	CHECK_EQ(*pte & (PTE_A | PTE_D), PTE_A | PTE_D);
	*pte &= ~PTE_D;
	invlpg(VA);
	read64(VA);
	CHECK_EQ(*pte & PTE_D, 0);
	write64(VA, 4);
	CHECK_EQ(*pte & PTE_D, PTE_D);
}

/* A refused write sets no D; a refused access by protection may set A but never D. */
TEST(dirty_not_on_fault)
{
	u64 page = page_with(1);
	map(VA, page, PTE_P);
	CHECK_EQ(CATCH(write64(VA, 1)), PF);
	CHECK_EQ(*walk(VA, 1, false) & PTE_D, 0);
	CHECK_EQ(read64(page), 1);
}

/* POP RSP, in each of its two encodings: what is pushed next goes to where it leads, a page with another distance. */
TEST(stack_by_pop)
{
	u64 page[2] = {page_with(0), page_with(0)};
	u64 there = VA + 2 * 0x1000 - 64, pushed = there - 8;
	for (unsigned i = 0; i < 2; i++) /* the other way round than they lie */
		map(VA + i * 0x1000, page[1 - i], PTE_P | PTE_W);
#define POP_AND_PUSH(pop, what)                                                                     \
	asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; push %1; " pop "; push %2; mov %%rbx, %%rsp" \
		     :                                                                              \
		     : "r"(VA + 0x1000 - 256), "r"(there), "r"((u64)(what))                         \
		     : "rbx", "memory")
	POP_AND_PUSH(".byte 0x8f, 0xc4", 0x8f);
	CHECK_EQ(read64(pushed), 0x8f);
	POP_AND_PUSH("pop %%rsp", 0x5c);
	CHECK_EQ(read64(pushed), 0x5c);
}

/* An execution sets A. */
TEST(accessed_by_fetch)
{
	u8 *page = alloc_pages(1);
	page[0] = 0xc3;
	map(VA, (u64)page, PTE_P);
	asm volatile("call *%0" : : "r"(VA) : "memory");
	CHECK_EQ(*walk(VA, 1, false) & (PTE_A | PTE_D), PTE_A);
}

/* Read-modify-write: D is set when the instruction does write, and LOCK CMPXCHG that fails writes too. */
TEST(dirty_by_rmw)
{
	u64 page = page_with(5);
	map(VA, page, PTE_P | PTE_W);
	read64(VA);
	CHECK_EQ(*walk(VA, 1, false) & PTE_D, 0);
	asm volatile("lock cmpxchgq %%rdx, (%0)" : : "r"(VA), "a"(77ull), "d"(1ull) : "memory", "cc");
	CHECK_EQ(*walk(VA, 1, false) & PTE_D, PTE_D);
	CHECK_EQ(read64(page), 5);
	map(VA, page, PTE_P);
	CHECK_EQ(CATCH(asm volatile("lock cmpxchgq %%rdx, (%0)"
				    :
				    : "r"(VA), "a"(77ull), "d"(1ull)
				    : "memory", "cc")),
		 PF);
	CHECK_EQ(last_trap()->f.error, PF_P | PF_W);
	CHECK_EQ(CATCH(asm volatile("btsq $0, (%0)" : : "r"(VA) : "memory", "cc")), PF);
	CHECK_EQ(last_trap()->f.error, PF_P | PF_W);
}

/* Pages that lie in a row, in memory as well, are still looked up, accessed and changed one by one. */
TEST(in_a_row)
{
	enum { COUNT = 16, UNUSED = 5, READONLY = 6, MOVED = 7, CLEAN = 9 };
	u64 base = (u64)alloc_aligned(COUNT * PAGE, COUNT * PAGE);
	for (u64 i = 0; i < COUNT; i++) {
		write64(base + i * PAGE, i);
		map(VA + i * PAGE, base + i * PAGE,
		    PTE_P | PTE_W | PTE_G | (i == UNUSED ? 0 : PTE_A) | (i == UNUSED || i == CLEAN ? 0 : PTE_D));
	}
	CHECK_EQ(read64(VA), 0);
	CHECK_EQ(*walk(VA + UNUSED * PAGE, 1, false) & (PTE_A | PTE_D), 0);
	for (u64 i = 0; i < COUNT; i++)
		CHECK_EQ(read64(VA + i * PAGE), i);
	CHECK_EQ(*walk(VA + UNUSED * PAGE, 1, false) & (PTE_A | PTE_D), PTE_A);
	CHECK_EQ(*walk(VA + CLEAN * PAGE, 1, false) & (PTE_A | PTE_D), PTE_A);
	for (u64 i = 0; i < COUNT; i++)
		write64(VA + i * PAGE, 100 + i);
	CHECK_EQ(*walk(VA + CLEAN * PAGE, 1, false) & (PTE_A | PTE_D), PTE_A | PTE_D);
	CHECK_EQ(read64(base + CLEAN * PAGE), 100 + CLEAN);

	map(VA + MOVED * PAGE, page_with(77), PTE_P | PTE_W | PTE_G);
	*walk(VA + READONLY * PAGE, 1, false) &= ~PTE_W;
	invlpg(VA + MOVED * PAGE);
	invlpg(VA + READONLY * PAGE);
	for (u64 i = 0; i < COUNT; i++)
		CHECK_EQ(read64(VA + i * PAGE), i == MOVED ? 77 : 100 + i);
	CHECK_EQ(CATCH(write64(VA + READONLY * PAGE, 1)), PF);
	CHECK_EQ(read64(base + READONLY * PAGE), 100 + READONLY);
	*walk(VA + MOVED * PAGE, 1, false) = 0;
	invlpg(VA + MOVED * PAGE);
	CHECK_EQ(CATCH(read64(VA + MOVED * PAGE)), PF);
	CHECK_EQ(read64(VA + (MOVED + 1) * PAGE), 101 + MOVED);
}

TEST(page_2m)
{
	u64 base = (u64)alloc_aligned(0x400000, 0x200000);
	for (u64 i = 0; i < 1024; i++)
		write64(base + i * PAGE, i);
	volatile u64 *pde = walk(VA, 2, true);
	*pde = base | PTE_P | PTE_W | PTE_PS;
	for (u64 i = 0; i < 512; i++)
		CHECK_EQ(read64(VA + i * PAGE), i);
	CHECK_EQ(*pde & (PTE_A | PTE_D), PTE_A);
	write64(VA + 0x1ff000, 77);
	CHECK_EQ(*pde & (PTE_A | PTE_D), PTE_A | PTE_D);
	CHECK_EQ(read64(base + 0x1ff000), 77);
	*pde = (base + 0x200000) | PTE_P | PTE_W | PTE_PS;
	invlpg(VA + 0x123456); /* one INVLPG drops all of a large page */
	for (u64 i = 0; i < 512; i++)
		CHECK_EQ(read64(VA + i * PAGE), i + 512);
	*pde = 0;
	u64 page = page_with(4711);
	map(VA, page, PTE_KERNEL); /* the same addresses, 4 KiB now */
	CHECK_EQ(read64(VA), 4711);
}

TEST(page_1g)
{
	if (!HAS_GB_PAGES)
		skip("no 1 GiB pages");
	volatile u64 *pdpte = walk(VA + 0x40000000, 3, true);
	*pdpte = PTE_P | PTE_W | PTE_PS;
	u64 page = page_with(99);
	CHECK_EQ(read64(VA + 0x40000000 + page), 99);
	CHECK_EQ(*pdpte & (PTE_A | PTE_D), PTE_A);
	write64(VA + 0x40000000 + page, 100);
	CHECK_EQ(*pdpte & (PTE_A | PTE_D), PTE_A | PTE_D);
	CHECK_EQ(read64(page), 100);
	*pdpte = 0;
	invlpg(VA + 0x40000000 + page);
	CHECK_EQ(CATCH(read64(VA + 0x40000000 + page)), PF);
	CHECK_EQ(CATCH(read64(VA + 0x40000000)), PF);
}

/* After INVLPG, and after a CR3 write, the new entry counts. */
TEST(invlpg_exact)
{
	u64 a = page_with(1), b = page_with(2);
	for (unsigned i = 0; i < 100; i++) {
		map(VA, i & 1 ? a : b, PTE_KERNEL);
		CHECK_EQ(read64(VA), i & 1 ? 1 : 2);
	}
	for (unsigned i = 0; i < 100; i++) {
		*walk(VA, 1, false) = (i & 1 ? a : b) | PTE_KERNEL;
		flush();
		CHECK_EQ(read64(VA), i & 1 ? 1 : 2);
	}
	*walk(VA, 1, false) = 0;
	flush();
	CHECK_EQ(CATCH(read64(VA)), PF);
	/* a page that was not present may be used without a flush */
	*walk(VA, 1, false) = a | PTE_KERNEL;
	CHECK_EQ(CATCH(read64(VA)), NO_TRAP);
	CHECK_EQ(read64(VA), 1);
}

/* Taking away a right needs INVLPG; giving one does at most a spurious fault, never a lasting one. */
TEST(rights_change)
{
	u64 a = page_with(1);
	map(VA, a, PTE_KERNEL);
	write64(VA, 1);
	map(VA, a, PTE_P);
	CHECK_EQ(CATCH(write64(VA, 2)), PF);
	*walk(VA, 1, false) = a | PTE_KERNEL;
	CATCH(write64(VA, 2));
	CHECK_EQ(CATCH(write64(VA, 3)), NO_TRAP);
	CHECK_EQ(read64(a), 3);
	map(VA, a, PTE_KERNEL | PTE_NX);
	*(u8 *)a = 0xc3;
	CHECK_EQ(CATCH(asm volatile("call *%0" : : "r"(VA) : "memory")), PF);
	map(VA, a, PTE_KERNEL);
	CHECK_EQ(CATCH(asm volatile("call *%0" : : "r"(VA) : "memory")), NO_TRAP);
	map(VA, a, PTE_KERNEL | PTE_NX);
	CHECK_EQ(CATCH(asm volatile("call *%0" : : "r"(VA) : "memory")), PF);
}

/* Many pages, more than any TLB holds, remapped and read in odd orders. */
TEST(many_pages)
{
	enum { N = 3000 };
	u64 page = (u64)alloc_pages(N);
	for (unsigned i = 0; i < N; i++)
		write64(page + i * PAGE, i);
	for (unsigned i = 0; i < N; i++)
		map(VA + i * PAGE, page + i * PAGE, PTE_KERNEL);
	for (unsigned round = 0; round < 4; round++) {
		for (unsigned i = 0; i < N; i++) {
			unsigned k = random64() % N;
			CHECK_EQ(read64(VA + k * PAGE), round ? N - 1 - k : k);
		}
		for (unsigned i = 0; i < N; i++)
			*walk(VA + i * PAGE, 1, false) = (page + (N - 1 - i) * PAGE) | PTE_KERNEL;
		flush();
		for (unsigned i = 0; i < N; i++)
			CHECK_EQ(read64(VA + i * PAGE), N - 1 - i);
	}
}

/* The same slot of a direct-mapped TLB, by addresses that differ far up. */
TEST(far_apart)
{
	u64 va[40], n = 0;
	for (unsigned bit = 12; bit < 39; bit++) {
		va[n] = VA + (1ull << bit);
		map(va[n], page_with(n), PTE_KERNEL);
		n++;
	}
	map(VA, page_with(n), PTE_KERNEL);
	va[n++] = VA;
	for (unsigned i = 0; i < 2000; i++) {
		unsigned k = random64() % n;
		CHECK_EQ(read64(va[k]), k);
	}
}

/* Changes of an upper entry: CR3 write flushes whatever was cached below it. */
TEST(upper_change)
{
	map(VA, page_with(1), PTE_KERNEL);
	map(VA + 0x200000, page_with(2), PTE_KERNEL);
	CHECK_EQ(read64(VA), 1);
	CHECK_EQ(read64(VA + 0x200000), 2);
	volatile u64 *a = walk(VA, 2, false), *b = walk(VA + 0x200000, 2, false), t = *a;
	*a = *b;
	*b = t;
	flush();
	CHECK_EQ(read64(VA), 2);
	CHECK_EQ(read64(VA + 0x200000), 1);
	/* INVLPG also drops paging-structure caches (SDM Vol. 3A 4.10.4.1) */
	t = *a;
	*a = *b;
	*b = t;
	invlpg(VA);
	CHECK_EQ(read64(VA), 1);
	invlpg(VA + 0x200000);
	CHECK_EQ(read64(VA + 0x200000), 2);
}

/* Two address spaces: the same address, other pages; switching there and back. */
TEST(two_spaces)
{
	extern u64 boot_pml4[];
	u64 *other = alloc_pages(1);
	map(VA, page_with(1), PTE_KERNEL);
	memcpy(other, boot_pml4, PAGE);
	other[1] = 0;
	u64 first = read_cr3();
	write_cr3((u64)other);
	map(VA, page_with(2), PTE_KERNEL);
	for (unsigned i = 0; i < 200; i++) {
		write_cr3(i & 1 ? (u64)other : first);
		CHECK_EQ(read64(VA), i & 1 ? 2 : 1);
	}
	/* and changes made while it was not the current one */
	write_cr3(first);
	u64 third = page_with(3);
	write_cr3((u64)other);
	volatile u64 *pte = walk(VA, 1, false);
	CHECK_EQ(read64(VA), 2);
	write_cr3(first);
	CHECK_EQ(read64(VA), 1);
	*pte = third | PTE_KERNEL;
	write_cr3((u64)other);
	CHECK_EQ(read64(VA), 3);
	write_cr3(first);
}

/* Global pages live through CR3 writes (or may), and must go with INVLPG and with a change of CR4.PGE. */
TEST(global_pages)
{
	u64 a = page_with(1), b = page_with(2);
	map(VA, a, PTE_KERNEL | PTE_G);
	CHECK_EQ(read64(VA), 1);
	*walk(VA, 1, false) = b | PTE_KERNEL | PTE_G;
	invlpg(VA);
	CHECK_EQ(read64(VA), 2);
	*walk(VA, 1, false) = a | PTE_KERNEL | PTE_G;
	write_cr4(read_cr4() & ~CR4_PGE);
	write_cr4(read_cr4() | CR4_PGE);
	CHECK_EQ(read64(VA), 1);
	write_cr4(read_cr4() & ~CR4_PGE);
	*walk(VA, 1, false) = b | PTE_KERNEL | PTE_G; /* without PGE, G means nothing */
	flush();
	CHECK_EQ(read64(VA), 2);
	*walk(VA, 1, false) = a | PTE_KERNEL | PTE_G;
	flush();
	CHECK_EQ(read64(VA), 1);
	write_cr4(read_cr4() | CR4_PGE);
	CHECK_EQ(read64(VA), 1);
	/* Linux maps its kernel globally and relies on CR3 writes leaving that correct, whichever space is current. */
	extern u64 boot_pml4[];
	u64 *other = alloc_pages(1);
	memcpy(other, boot_pml4, PAGE);
	for (unsigned i = 0; i < 10; i++) {
		write_cr3(i & 1 ? (u64)boot_pml4 : (u64)other);
		CHECK_EQ(read64(VA), 1);
	}
	write_cr3((u64)boot_pml4);
}

/* Toggling NXE, WP, SMEP and SMAP takes effect on translations in use. */
TEST(control_changes)
{
	u64 a = page_with(1);
	map(VA, a, PTE_P | PTE_A);
	for (unsigned i = 0; i < 4; i++) {
		write_cr0(CR0_DEFAULT & ~CR0_WP);
		CHECK_EQ(CATCH(write64(VA, 7)), NO_TRAP);
		write_cr0(CR0_DEFAULT);
		CHECK_EQ(CATCH(write64(VA, 8)), PF);
		CHECK_EQ(read64(VA), 7);
	}
	if (!HAS_SMAP || !HAS_SMEP)
		return;
	map(VA, a, PTE_USER);
	*(u8 *)a = 0xc3;
	for (unsigned i = 0; i < 4; i++) {
		write_cr4(CR4_DEFAULT | CR4_SMAP | CR4_SMEP);
		CHECK_EQ(CATCH(read64(VA)), PF);
		CHECK_EQ(CATCH(asm volatile("stac; movq (%0), %%rax; clac" : : "r"(VA) : "rax")), NO_TRAP);
		CHECK_EQ(CATCH(read64(VA)), PF);
		CHECK_EQ(CATCH(asm volatile("call *%0" : : "r"(VA) : "memory")), PF);
		write_cr4(CR4_DEFAULT);
		CHECK_EQ(CATCH(read64(VA)), NO_TRAP);
		CHECK_EQ(CATCH(asm volatile("call *%0" : : "r"(VA) : "memory")), NO_TRAP);
	}
}

/* One page of code at two addresses, and then another page at the second. */
#define ALIAS (USER_CODE + 0x10000)
static u64 value_at(struct frame *f, u64 va)
{
	f->rip = va;
	struct trap *t = run_frame(f);
	CHECK_EQ(t->f.vector, UD);
	return t->f.rax;
}
TEST(code_elsewhere)
{
	static const u8 one[] = {0xb8, 1, 0, 0, 0, 0x0f, 0x0b}; /* mov eax, 1; ud2 */
	struct frame f = user_code(one, one + sizeof(one), 64);
	u64 first = *walk(USER_CODE, 1, false) & PTE_ADDR, second = (u64)alloc_pages(1);
	memcpy((void *)second, one, sizeof(one));
	*(volatile u8 *)(second + 1) = 2;
	for (unsigned i = 0; i < 10; i++) {
		map(ALIAS, first, PTE_USER);
		write_cr3(read_cr3());
		CHECK_EQ(value_at(&f, USER_CODE), 1);
		CHECK_EQ(value_at(&f, ALIAS), 1);
		map(ALIAS, second, PTE_USER);
		write_cr3(read_cr3());
		CHECK_EQ(value_at(&f, ALIAS), 2);
	}
}

/* PCIDs: MOV CR3 with bit 63 keeps, without it drops what belongs to the PCID it loads. */
TEST(pcid)
{
	if (!HAS_PCID)
		skip("no PCID");
	extern u64 boot_pml4[];
	u64 base = (u64)boot_pml4;
	u64 *other = alloc_pages(1);
	u64 a = page_with(1), b = page_with(2), c = page_with(3);
	map(VA, a, PTE_KERNEL);
	memcpy(other, boot_pml4, PAGE);
	other[1] = 0;
	write_cr3((u64)other);
	map(VA, b, PTE_KERNEL);
	volatile u64 *pte_b = walk(VA, 1, false);
	write_cr3(base);
	write_cr4(CR4_DEFAULT | CR4_PCIDE);
	for (unsigned i = 0; i < 20; i++) {
		write_cr3(base | 1 | (i > 2 ? 1ull << 63 : 0));
		CHECK_EQ(read64(VA), 1);
		write_cr3((u64)other | 2 | (i > 2 ? 1ull << 63 : 0));
		CHECK_EQ(read64(VA), 2);
		CHECK_EQ(read_cr3(), (u64)other | 2);
	}
	/* changed while away, without bit 63: the change must be seen */
	write_cr3(base | 1 | 1ull << 63);
	*pte_b = c | PTE_KERNEL;
	write_cr3((u64)other | 2);
	CHECK_EQ(read64(VA), 3);
	/* INVLPG acts on the current PCID */
	*pte_b = b | PTE_KERNEL;
	invlpg(VA);
	CHECK_EQ(read64(VA), 2);
	write_cr3(base);
	/* clearing PCIDE drops everything */
	write_cr4(CR4_DEFAULT);
	CHECK_EQ(read64(VA), 1);
	/* PCIDE needs CR3[11:0] = 0, else #GP */
	write_cr3(base | 8);
	CHECK_EQ(CATCH(write_cr4(CR4_DEFAULT | CR4_PCIDE)), GP);
	write_cr3(base);
}

TEST(invpcid)
{
	if (!HAS_INVPCID || !HAS_PCID)
		skip("no INVPCID");
	extern u64 boot_pml4[];
	u64 base = (u64)boot_pml4, a = page_with(1), b = page_with(2);
	write_cr4(CR4_DEFAULT | CR4_PCIDE);
	for (unsigned type = 0; type < 4; type++) {
		write_cr3(base | 1);
		map(VA, a, PTE_KERNEL);
		CHECK_EQ(read64(VA), 1);
		write_cr3(base | 2);
		*walk(VA, 1, false) = b | PTE_KERNEL;
		invpcid(type, type < 2 ? 1 : 0, VA);
		write_cr3(base | 1 | 1ull << 63);
		CHECK_EQ_IN(read64(VA), 2, "type %u", type);
	}
	CHECK_EQ(CATCH(invpcid(4, 0, VA)), GP);
	CHECK_EQ(CATCH(invpcid(0, 0x1000, VA)), GP);
	CHECK_EQ(CATCH(invpcid(0, 0, 0x800000000000)), GP);
	write_cr3(base);
	write_cr4(CR4_DEFAULT);
	CHECK_EQ(CATCH(invpcid(0, 1, VA)), GP); /* PCIDs other than 0 need PCIDE */
	map(VA, a, PTE_KERNEL | PTE_G);
	CHECK_EQ(read64(VA), 1);
	*walk(VA, 1, false) = b | PTE_KERNEL | PTE_G;
	invpcid(2, 0, VA); /* global ones too */
	CHECK_EQ(read64(VA), 2);
}

/*
 * Programs under PCIDs of their own, two tables that differ in two pages: one of user code, one of the kernel. What is
 * changed is flushed in one of the ways there are, by whoever is running, and bit 63 is set wherever it may be.
 */
SNIPPET(look, 64, "movl $8, %ecx; 1: movq (%rdi), %rax; loop 1b; movq %rsi, 8(%rdi); ud2");
#define PROGRAMS 2
static struct program {
	u64 *top;
	volatile u64 *pte[2];
	u64 page[2];
	u64 pcid;
	bool doubtful;
} programs[PROGRAMS];

static void load_program(struct program *p)
{
	write_cr3((u64)p->top | p->pcid | (p->doubtful ? 0 : 1ull << 63));
	p->doubtful = false;
}

/* Its page `i` is another, as the kernel's may be both programs' one; `current` runs. */
static void change(struct program *p, unsigned i, struct program *current)
{
	const struct program *other = &programs[p == programs];
	p->page[i] = i && random64() % 2 ? other->page[i] : page_with(read64(p->page[i]) + 1000);
	*p->pte[i] = p->page[i] | (i ? PTE_KERNEL : PTE_USER);
	u64 how = random64() % 8;
	if (how < 3 && p == current)
		invlpg(VA + i * PAGE);
	else if (how < 4)
		invpcid(0, p->pcid, VA + i * PAGE);
	else if (how < 5)
		invpcid(1, p->pcid, 0);
	else if (how < 6)
		invpcid(3, 0, 0);
	else if (p == current)
		p->doubtful = true, load_program(p);
	else
		p->doubtful = true;
}

static void make_program(struct program *p, u64 pcid)
{
	extern u64 boot_pml4[];
	*p = (struct program){.top = alloc_pages(1), .pcid = pcid, .doubtful = true};
	memcpy(p->top, boot_pml4, PAGE);
	p->top[1] = 0;
	write_cr3((u64)p->top);
	for (unsigned i = 0; i < 2; i++) {
		p->page[i] = page_with(pcid * 10 + i);
		map(VA + i * PAGE, p->page[i], i ? PTE_KERNEL : PTE_USER);
		p->pte[i] = walk(VA + i * PAGE, 1, false);
	}
}

TEST(pcid_programs)
{
	static const u64 numbers[][PROGRAMS] = {{1, 2}, {63, 64}, {0x200, 0xfff}};
	if (!HAS_INVPCID || !HAS_PCID)
		skip("no INVPCID");
	u64 before = read_cr3();
	struct frame f = user_code(look, look_end, 64);
	f.rdi = VA;
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < PROGRAMS; i++)
			make_program(&programs[i], numbers[round][i]);
		write_cr3(before);
		write_cr4(CR4_DEFAULT | CR4_PCIDE);
		for (unsigned turn = 0; turn < 300; turn++) {
			struct program *p = &programs[random64() % PROGRAMS];
			load_program(p);
			for (unsigned n = random64() % 3; n; n--)
				change(&programs[random64() % PROGRAMS], random64() % 2, p);
			f.rsi = turn;
			struct trap *t = run_frame(&f);
			CHECK_EQ(t->f.vector, UD);
			CHECK_EQ(t->f.rax, read64(p->page[0]));
			CHECK_EQ(read64(p->page[0] + 8), turn);
			CHECK_EQ(read64(VA + PAGE), read64(p->page[1]));
			write64(VA + PAGE + 8, turn);
			CHECK_EQ(read64(p->page[1] + 8), turn);
		}
		write_cr3(before);
		write_cr4(CR4_DEFAULT);
	}
}

/* The page tables are memory like any other: changed through a mapping of themselves. */
TEST(self_map)
{
	u64 a = page_with(1), b = page_with(2);
	map(VA, a, PTE_KERNEL);
	u64 table = (u64)walk(VA, 1, false) & ~(PAGE - 1);
	map(VA + PAGE, table, PTE_KERNEL);
	volatile u64 *entry = (volatile u64 *)(VA + PAGE);
	for (unsigned i = 0; i < 10; i++) {
		entry[0] = (i & 1 ? a : b) | PTE_KERNEL;
		invlpg(VA);
		CHECK_EQ(read64(VA), i & 1 ? 1 : 2);
	}
	/* accessed and dirty bits show through the mapping as well */
	entry[0] = a | PTE_P | PTE_W;
	invlpg(VA);
	write64(VA, 1);
	CHECK_EQ(entry[0], a | PTE_P | PTE_W | PTE_A | PTE_D);
}

/* CR3 and table entries with bits that are ignored. */
TEST(ignored_bits)
{
	u64 a = page_with(9);
	map(VA, a, PTE_KERNEL | 0xe00 | 1ull << 52 | 1ull << 62 | PTE_PWT | PTE_PCD);
	CHECK_EQ(read64(VA), 9);
	write_cr3(read_cr3() | PTE_PWT | PTE_PCD);
	CHECK_EQ(read64(VA), 9);
	for (unsigned level = 2; level <= 3; level++) {
		volatile u64 *e = walk(VA, level, false);
		*e |= 0xf40ull | 1ull << 58; /* D and G of a non-leaf entry are ignored; AMD's of level 4 must be 0 */
		flush();
		CHECK_EQ_IN(read64(VA), 9, "level %u", level);
	}
}
