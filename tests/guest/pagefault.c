/* Page faults and their error codes: every combination of page, mode and access (SDM Vol. 3A 4.6, 4.7). */
#include "guest.h"

const char payload[] = "pagefault";

#define VA TEST_VA
#define STUBS (TEST_VA + 0x40000000)

/* Accesses by ring 3, then a way back. */
asm(".globl user_read, user_read_end, user_write, user_write_end\n"
    "user_read: movb (%rdi), %al; int $0x80\nuser_read_end:\n"
    "user_write: movb %al, (%rdi); int $0x80\nuser_write_end:\n");
CODE(user_read);
CODE(user_write);

enum access { READ, WRITE, EXEC };
static const char *const access_name[] = {"read", "write", "exec"};

static void kernel_access(u64 va, enum access how)
{
	if (how == READ)
		asm volatile("movb (%0), %%al" : : "r"(va) : "rax", "memory");
	else if (how == WRITE)
		asm volatile("movb $0xc3, (%0)" : : "r"(va) : "memory");
	else
		asm volatile("call *%0" : : "r"(va) : "memory");
}

static unsigned access_as(bool user, u64 va, enum access how)
{
	if (!user)
		return CATCH(kernel_access(va, how));
	struct frame f = user_frame(STUBS + (how == WRITE ? PAGE : 0), STUBS + 3 * PAGE);
	if (how == EXEC)
		f.rip = va;
	f.rdi = va;
	unsigned v = run_frame(&f)->f.vector;
	return v == 0x80 ? NO_TRAP : v;
}

/* What the manual says: NO_TRAP or the error code. */
struct situation {
	u64 pte;
	bool user, wp, smep, smap, ac;
	enum access how;
};

static unsigned expected(const struct situation *s)
{
	unsigned code = (s->how == WRITE ? PF_W : 0) | (s->user ? PF_U : 0) | (s->how == EXEC ? PF_I : 0);
	if (!(s->pte & PTE_P))
		return code;
	code |= PF_P;
	bool upage = s->pte & PTE_U;
	if (s->user && !upage)
		return code;
	if (s->how == EXEC && (s->pte & PTE_NX))
		return code;
	if (s->how == EXEC && !s->user && upage && s->smep)
		return code;
	if (s->how != EXEC && !s->user && upage && s->smap && !s->ac)
		return code;
	if (s->how == WRITE && !(s->pte & PTE_W) && (s->user || s->wp))
		return code;
	return NO_TRAP;
}

static void set_controls(const struct situation *s)
{
	write_cr0(s->wp ? CR0_DEFAULT : CR0_DEFAULT & ~CR0_WP);
	write_cr4(CR4_DEFAULT | (s->smep ? CR4_SMEP : 0) | (s->smap ? CR4_SMAP : 0));
	write_flags(2 | (s->ac ? FL_AC : 0));
}

static void check_situation(const struct situation *s, u64 page, u64 va)
{
	map(va, page, s->pte);
	*(volatile u8 *)(page + 0x123) = 0xc3;
	if (s->user)
		((volatile u8 *)page)[0x123] = 0xcd, ((volatile u8 *)page)[0x124] = 0x80;
	set_controls(s);
	unsigned v = access_as(s->user, va + 0x123, s->how);
	struct trap t = *last_trap();
	write_flags(2);
	write_cr4(CR4_DEFAULT);
	write_cr0(CR0_DEFAULT);
	unsigned want = expected(s);
#define WHERE                                                                                                    \
	"pte 0x%lx %s %s wp %d smep %d smap %d ac %d", s->pte, s->user ? "user" : "kernel", access_name[s->how], \
		s->wp, s->smep, s->smap, s->ac
	if (want == NO_TRAP) {
		CHECK_EQ_IN(v, NO_TRAP, WHERE);
		return;
	}
	CHECK_EQ_IN(v, PF, WHERE);
	if (v != PF)
		return;
	CHECK_EQ_IN(t.f.error, want, WHERE);
	CHECK_EQ_IN(t.cr2, va + 0x123, WHERE);
}

static void set_up_stubs(void)
{
	map_code(STUBS, user_read, user_read_end, PTE_USER);
	map_code(STUBS + PAGE, user_write, user_write_end, PTE_USER);
	map_fresh(STUBS + 2 * PAGE, 1, PTE_USER);
}

static void all_combinations(bool fresh_address)
{
	set_up_stubs();
	u64 page = (u64)alloc_pages(1), va = VA;
	for (unsigned n = 0; n < 16 * 2 * 3 * 16; n++) {
		struct situation s = {
			.pte = (n & 1 ? PTE_P : 0) | (n & 2 ? PTE_W : 0) | (n & 4 ? PTE_U : 0) | (n & 8 ? PTE_NX : 0),
			.user = n & 16,
			.how = n / 32 % 3,
			.wp = n / 96 & 1,
			.smep = n / 96 & 2,
			.smap = n / 96 & 4,
			.ac = n / 96 & 8,
		};
		if ((s.smep && !HAS_SMEP) || (s.smap && !HAS_SMAP) || (s.ac && s.user))
			continue;
		check_situation(&s, page, va);
		if (fresh_address)
			va += PAGE;
	}
}

TEST(error_codes)
{
	all_combinations(true);
}

/* The same on one address, so that what is cached of the last case must go. */
TEST(error_codes_one_address)
{
	all_combinations(false);
}

/* Rights are the AND over all levels: U and W taken away, or NX set, in an upper entry. */
TEST(upper_levels)
{
	set_up_stubs();
	for (unsigned level = 2; level <= 4; level++) {
		static const u64 clear[] = {PTE_W, PTE_U, 0, PTE_P};
		for (unsigned i = 0; i < 4; i++) {
			u64 va = VA + (i + 1) * 0x1000000000 / 2, page = (u64)alloc_pages(1);
			if (level == 4)
				va = (u64)(10 + i) << 39;
			map(va, page, PTE_USER);
			volatile u64 *e = walk(va, level, false), old = *e;
			*e = (old & ~clear[i]) | (i == 2 ? PTE_NX : 0);
			write_cr3(read_cr3());
			unsigned w = access_as(true, va, WRITE);
			u64 error = last_trap()->f.error;
			CHECK_EQ_IN(w, i == 2 ? NO_TRAP : PF, "level %u case %u", level, i);
			if (w == PF)
				CHECK_EQ_IN(error, i == 3 ? PF_W | PF_U : PF_P | PF_W | PF_U, "level %u case %u", level,
					    i);
			unsigned x = access_as(true, va, EXEC);
			error = last_trap()->f.error;
			if (i == 2)
				CHECK_EQ_IN(x == PF ? error : 0, PF_P | PF_U | PF_I, "level %u", level);
			*e = 0;
			write_cr3(read_cr3());
		}
	}
}

/* Reserved bits: above the physical width, PS in a PML4 entry, low address bits of a large page, NX without EFER.NXE.
 */
TEST(reserved_bits)
{
	u32 r[4];
	cpuid(0x80000008, 0, r);
	unsigned width = r[0] & 0xff;
	u64 page = (u64)alloc_pages(1), va = VA;
	map(va, page, PTE_KERNEL);
	for (unsigned bit = width; bit < 52; bit++) {
		map(va, page, PTE_KERNEL | 1ull << bit);
		CHECK_EQ_IN(access_as(false, va, READ), PF, "bit %u", bit);
		CHECK_EQ_IN(last_trap()->f.error, PF_P | PF_RSVD, "bit %u", bit);
		map(va, page, PTE_U | PTE_W | 1ull << bit); /* not present: nothing is reserved */
		CHECK_EQ_IN(access_as(false, va, WRITE), PF, "bit %u", bit);
		CHECK_EQ_IN(last_trap()->f.error, PF_W, "bit %u", bit);
	}
	map(va, page, PTE_KERNEL);
	static const u64 bad[5] = {0, 0, 1 << 13, 1 << 13, PTE_PS};
	for (unsigned level = 2; level <= 4; level++) {
		if (level == 3 && !HAS_GB_PAGES)
			continue;
		volatile u64 *e = walk(va, level, false), old = *e;
		*e = level == 4 ? old | PTE_PS : (PTE_USER | PTE_PS | bad[level]);
		write_cr3(read_cr3());
		CHECK_EQ_IN(access_as(false, va, READ), PF, "level %u", level);
		CHECK_EQ_IN(last_trap()->f.error, PF_P | PF_RSVD, "level %u", level);
		*e = old;
		write_cr3(read_cr3());
	}
}

TEST(nx_without_nxe)
{
	u64 page = (u64)alloc_pages(1);
	map(VA, page, PTE_KERNEL | PTE_NX);
	wrmsr(MSR_EFER, EFER_DEFAULT & ~0x800ull);
	write_cr3(read_cr3());
	unsigned v = access_as(false, VA, READ);
	u64 error = last_trap()->f.error;
	wrmsr(MSR_EFER, EFER_DEFAULT);
	CHECK_EQ(v, PF);
	CHECK_EQ(error, PF_P | PF_RSVD);
	CHECK_EQ(access_as(false, VA, READ), NO_TRAP);
}

/* Without NXE the I bit of the error code is set only with SMEP. */
TEST(i_bit_without_nxe)
{
	wrmsr(MSR_EFER, EFER_DEFAULT & ~0x800ull);
	unsigned v = access_as(false, VA, EXEC);
	u64 error = last_trap()->f.error;
	wrmsr(MSR_EFER, EFER_DEFAULT);
	CHECK_EQ(v, PF);
	CHECK_EQ(error, 0);
}

/* Access across a page boundary: CR2 is the first byte that faults. */
TEST(crossing)
{
	map_fresh(VA, 1, PTE_KERNEL);
	u64 va = VA + PAGE - 3;
	CHECK_EQ(CATCH(asm volatile("movq (%0), %%rax" : : "r"(va) : "rax")), PF);
	CHECK_EQ(last_trap()->cr2, VA + PAGE);
	CHECK_EQ(last_trap()->f.error, 0);
	CHECK_EQ(CATCH(asm volatile("movq %%rax, (%0)" : : "r"(va) : "memory")), PF);
	CHECK_EQ(last_trap()->cr2, VA + PAGE);
	CHECK_EQ(last_trap()->f.error, PF_W);
	CHECK_EQ(*(volatile u8 *)va, 0);
	map(VA + PAGE, *walk(VA, 1, false) & PTE_ADDR, PTE_KERNEL);
	map(VA, 0, 0);
	CHECK_EQ(CATCH(asm volatile("movq %%rax, (%0)" : : "r"(va) : "memory")), PF);
	CHECK_EQ(last_trap()->cr2, va);
	map(VA, (u64)alloc_pages(1), PTE_P);
	CHECK_EQ(CATCH(asm volatile("movq %%rax, (%0)" : : "r"(va) : "memory")), PF);
	CHECK_EQ(last_trap()->cr2, va);
	CHECK_EQ(last_trap()->f.error, PF_W | PF_P);
	map(VA, (u64)alloc_pages(1), PTE_KERNEL);
	map(VA + PAGE, (u64)alloc_pages(1), PTE_P);
	CHECK_EQ(CATCH(asm volatile("movq %1, (%0)" : : "r"(va), "r"(~0ull) : "memory")), PF);
	CHECK_EQ(last_trap()->cr2, VA + PAGE);
	CHECK_EQ(last_trap()->f.error, PF_W | PF_P);
	CHECK_EQ(*(volatile u8 *)va, 0);
	CHECK_EQ(CATCH(asm volatile("addq %1, (%0)" : : "r"(va), "r"(~0ull) : "memory")), PF);
	CHECK_EQ(last_trap()->f.error, PF_W | PF_P);
}

/* An instruction whose second page is missing: CR2 is that page's first byte, rip the instruction. */
TEST(fetch_crossing)
{
	u8 *p = map_fresh(VA, 1, PTE_KERNEL);
	static const u8 code[5] = {0xb8, 1, 2, 3, 4};
	u64 at = VA + PAGE - 2;
	memcpy((void *)at, code, 2);
	p[0] = 0;
	struct frame f = kernel_frame(at, 0);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, PF);
	CHECK_EQ(t->f.error, PF_I);
	CHECK_EQ(t->cr2, VA + PAGE);
	CHECK_EQ(t->f.rip, at);
	map_fresh(VA + PAGE, 1, PTE_KERNEL | PTE_NX);
	t = run_frame(&f);
	CHECK_EQ(t->f.vector, PF);
	CHECK_EQ(t->f.error, PF_I | PF_P);
	CHECK_EQ(t->cr2, VA + PAGE);
}

/* A canonical hole is #GP, or #SS through the stack; not a page fault. */
TEST(non_canonical)
{
	u64 bad = 0x0000800000000000;
	CHECK_EQ(CATCH(asm volatile("movb (%0), %%al" : : "r"(bad) : "rax")), GP);
	CHECK_EQ(last_trap()->f.error, 0);
	CHECK_EQ(CATCH(asm volatile("movb (%0), %%al" : : "r"(0xffff7fffffffffff) : "rax")), GP);
	CHECK_EQ(CATCH(asm volatile("movb (%0), %%al" : : "r"(0x00007fffffffffff) : "rax")), PF);
}

TEST(non_canonical_stack)
{
	u64 bad = 0x0000800000000000;
	CHECK_EQ(CATCH(asm volatile("push %%rbp; mov %0, %%rbp; movb (%%rbp), %%al; pop %%rbp"
				    :
				    : "r"(bad)
				    : "rax")),
		 SS);
	CHECK_EQ(last_trap()->f.error, 0);
	static const u8 push[] = {0x50};
	struct frame f = kernel_frame((u64)push, bad + 64);
	CHECK_EQ(run_frame(&f)->f.vector, SS);
	CHECK_EQ(last_trap()->f.error, 0);
}

TEST(non_canonical_crossing)
{
	CHECK_EQ(CATCH(asm volatile("movq (%0), %%rax" : : "r"(0x00007ffffffffffc) : "rax")), GP);
}

/* So is only the first byte's of an instruction, and that of what comes after the last one that has a place. */
TEST(non_canonical_fetch)
{
	static const u8 crossing[] = {0x48, 0xb8, 1}, last[] = {0x90};
	u64 page = 0x00007ffffffff000, end = page + PAGE;
	volatile u64 *top = walk(page, 4, true);
	u8 *code = alloc_pages(1);
	map(page, (u64)code, PTE_USER);
	memcpy(code + PAGE - sizeof(crossing), crossing, sizeof(crossing));
	struct frame f = user_frame(end - sizeof(crossing), 0);
	CHECK_EQ(run_frame(&f)->f.vector, GP);
	CHECK_EQ(last_trap()->f.error, 0);
	CHECK_EQ(last_trap()->f.rip, end - sizeof(crossing));
	memcpy(code + PAGE - sizeof(last), last, sizeof(last));
	f.rip = end - sizeof(last);
	CHECK_EQ(run_frame(&f)->f.vector, GP);
	CHECK_EQ(last_trap()->f.error, 0);
	CHECK_EQ(last_trap()->f.rip, end);
	*top = 0;
	write_cr3(read_cr3());
}

/* Accesses by the processor itself are supervisor accesses whatever the ring. */
TEST(implicit_supervisor)
{
	set_up_stubs();
	static u8 segload[] = {0x8e, 0xd8, 0xcd, 0x80}; /* mov %eax, %ds; int $0x80 */
	map_code(STUBS + 4 * PAGE, segload, segload + sizeof(segload), PTE_USER);
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) moved = {sizeof(u64) * GDT_ENTRIES - 1, VA}, old;
	u64 *copy = map_fresh(VA, 1, PTE_KERNEL);
	memcpy(copy, gdt, sizeof(u64) * GDT_ENTRIES);
	asm volatile("sgdt %0; lgdt %1" : "=m"(old) : "m"(moved));
	struct frame f = user_frame(STUBS + 4 * PAGE, 0);
	f.rax = SEL_USER_DATA;
	CHECK_EQ(run_frame(&f)->f.vector, 0x80);
	asm volatile("lgdt %0" : : "m"(old));
}

/* SMAP stops implicit accesses even with AC set. */
TEST(implicit_smap)
{
	if (!HAS_SMAP)
		skip("no SMAP");
	/* an LDT in a user page; the GDT stays where delivering the fault can read it */
	u64 *ldt = map_fresh(VA, 1, PTE_USER), *d = &gdt[SEL_TEST / 8];
	ldt[0] = gdt[SEL_DATA / 8];
	d[0] = 0xfff | (VA & 0xffffff) << 16 | 0x82ull << 40 | (VA >> 24 & 0xff) << 56;
	d[1] = VA >> 32;
	asm volatile("lldt %w0" : : "r"((u32)SEL_TEST));
	CHECK_EQ(CATCH(asm volatile("mov %0, %%fs" : : "r"(4))), NO_TRAP);
	write_cr4(CR4_DEFAULT | CR4_SMAP);
	unsigned v = CATCH(asm volatile("stac; mov %0, %%fs; clac" : : "r"(4)));
	u64 error = last_trap()->f.error;
	write_flags(2);
	write_cr4(CR4_DEFAULT);
	CHECK_EQ(v, PF);
	CHECK_EQ(error, PF_P);
}
