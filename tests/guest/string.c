/* String instructions across pages, with faults in the middle, both directions, all sizes, overlapping (SDM Vol. 2
 * REP). */
#include "guest.h"

const char payload[] = "string";

#define SRC TEST_VA
#define DST (TEST_VA + 0x400000)
#define PAGES 4

/* What one run did: registers after it, and the vector that ended it. */
struct result {
	u64 rcx, rsi, rdi, rax, rflags, vector, error, cr2, rip;
};

#define INSNS(X) \
	X(movsb) \
	X(movsw) \
	X(movsl) \
	X(movsq) \
	X(stosb) \
	X(stosw) \
	X(stosl) \
	X(stosq) \
	X(lodsb) X(lodsw) X(lodsl) X(lodsq) X(cmpsb) X(cmpsw) X(cmpsl) X(cmpsq) X(scasb) X(scasw) X(scasl) X(scasq)
#define SNIPPETS(n)                              \
	SNIPPET(one_##n, 64, #n "; ud2");        \
	SNIPPET(rep_##n, 64, "rep " #n "; ud2"); \
	SNIPPET(repne_##n, 64, "repne " #n "; ud2");
INSNS(SNIPPETS)
#define ENTRY(n) {#n, {one_##n, rep_##n, repne_##n}},
static const struct insn {
	const char *name;
	const u8 *code[3];
} insns[] = {INSNS(ENTRY)};
enum { ONE, REP, REPNE };

static struct result run(const u8 *code, u64 rax, u64 rcx, u64 rsi, u64 rdi, u64 flags)
{
	struct frame f = kernel_frame((u64)code, 0);
	f.rax = rax;
	f.rcx = rcx;
	f.rsi = rsi;
	f.rdi = rdi;
	f.rflags = 2 | flags;
	struct trap *t = run_frame(&f);
	return (struct result){t->f.rcx,    t->f.rsi,   t->f.rdi, t->f.rax, t->f.rflags,
			       t->f.vector, t->f.error, t->cr2,   t->f.rip};
}

static unsigned size_of(const struct insn *i)
{
	switch (i->name[4]) {
	case 'b':
		return 1;
	case 'w':
		return 2;
	case 'l':
		return 4;
	default:
		return 8;
	}
}

static u64 load(u64 at, unsigned size)
{
	u64 v = 0;
	for (unsigned i = 0; i < size; i++)
		v |= (u64) * (volatile u8 *)(at + i) << (8 * i);
	return v;
}

/* The model: element by element, byte by byte; stops where `limit_src` or `limit_dst` begin (pages that are missing).
 */
static struct result model(const struct insn *in, unsigned rep, u64 rax, u64 rcx, u64 rsi, u64 rdi, u64 flags, u64 hole)
{
	unsigned size = size_of(in);
	int64_t step = flags & FL_DF ? -(int64_t)size : size;
	char kind = in->name[0], second = in->name[1];
	bool src = kind == 'm' || kind == 'l' || kind == 'c', dst = kind != 'l',
	     cmp = kind == 'c' || (kind == 's' && second == 'c');
	struct result r = {rcx, rsi, rdi, rax, flags, UD, 0, 0, 0};
	u64 mask = size == 8 ? ~0ull : (1ull << (size * 8)) - 1;
#define MISSING(a) ((a) + size > hole && (a) < hole + PAGE)
	while (rep == ONE || r.rcx) {
		if (src && MISSING(r.rsi)) {
			r.vector = PF;
			r.cr2 = r.rsi < hole ? hole : r.rsi;
			return r;
		}
		if (dst && MISSING(r.rdi)) {
			r.vector = PF;
			r.error = cmp ? 0 : PF_W;
			r.cr2 = r.rdi < hole ? hole : r.rdi;
			return r;
		}
		u64 a = src ? load(r.rsi, size) : r.rax & mask;
		if (cmp) {
			u64 b = load(r.rdi, size);
			r.rflags = (r.rflags & ~(FL_ZF | FL_CF)) | (a == b ? FL_ZF : 0) | (a < b ? FL_CF : 0);
		} else if (dst) {
			for (unsigned i = 0; i < size; i++)
				*(volatile u8 *)(r.rdi + i) = a >> (8 * i);
		} else {
			r.rax = size == 4 ? a : (r.rax & ~mask) | a;
		}
		r.rsi += src ? step : 0;
		r.rdi += dst ? step : 0;
		if (rep == ONE)
			break;
		r.rcx--;
		if (cmp && !!(r.rflags & FL_ZF) != (rep == REP))
			break;
	}
	return r;
}

static u8 *src_pages, *dst_pages, *copy;

static void set_up(void)
{
	src_pages = alloc_pages(PAGES);
	dst_pages = alloc_pages(PAGES);
	copy = alloc_pages(2 * PAGES);
	for (unsigned i = 0; i < PAGES; i++) {
		map(SRC + i * PAGE, (u64)src_pages + i * PAGE, PTE_KERNEL);
		map(DST + i * PAGE, (u64)dst_pages + i * PAGE, PTE_KERNEL);
	}
}

/* Few different values, so that comparisons go on for a while. */
static void fill(unsigned variety)
{
	for (unsigned i = 0; i < PAGES * PAGE; i++) {
		src_pages[i] = random64() % 4096 < variety ? random64() : 0x55;
		dst_pages[i] = random64() % 4096 < variety ? random64() : 0x55;
	}
}

static void compare(const struct insn *in, unsigned rep, u64 rcx, u64 rsi, u64 rdi, u64 flags, u64 hole)
{
	u64 rax = 0x5555555555555555, *pte = NULL, old = 0;
	memcpy(copy, src_pages, PAGES * PAGE);
	memcpy(copy + PAGES * PAGE, dst_pages, PAGES * PAGE);
	struct result want = model(in, rep, rax, rcx, rsi, rdi, flags, hole);
	u64 sum_want = 0, sum = 0;
	for (unsigned i = 0; i < PAGES * PAGE; i++)
		sum_want = sum_want * 31 + dst_pages[i] + (u64)src_pages[i] * 7;
	memcpy(src_pages, copy, PAGES * PAGE);
	memcpy(dst_pages, copy + PAGES * PAGE, PAGES * PAGE);
	if (hole) {
		pte = (u64 *)walk(hole, 1, false);
		old = *pte;
		*pte = 0;
		invlpg(hole);
	}
	struct result got = run(in->code[rep], rax, rcx, rsi, rdi, flags);
	if (hole) {
		*pte = old;
		invlpg(hole);
	}
	for (unsigned i = 0; i < PAGES * PAGE; i++)
		sum = sum * 31 + dst_pages[i] + (u64)src_pages[i] * 7;
#define WHERE "%s rep %u rcx %lx rsi %lx rdi %lx flags %lx hole %lx", in->name, rep, rcx, rsi, rdi, flags, hole
	CHECK_EQ_IN(got.vector, want.vector, WHERE);
	CHECK_EQ_IN(got.rcx, want.rcx, WHERE);
	CHECK_EQ_IN(got.rsi, want.rsi, WHERE);
	CHECK_EQ_IN(got.rdi, want.rdi, WHERE);
	CHECK_EQ_IN(got.rax, want.rax, WHERE);
	CHECK_EQ_IN(sum, sum_want, WHERE);
	if (want.vector == PF) {
		CHECK_EQ_IN(got.error, want.error, WHERE);
		CHECK_EQ_IN(got.cr2, want.cr2, WHERE);
		CHECK_EQ_IN(got.rip, (u64)in->code[rep], WHERE);
	} else if (in->name[1] == 'm' || in->name[1] == 'c') {
		CHECK_EQ_IN(got.rflags & (FL_ZF | FL_CF), want.rflags & (FL_ZF | FL_CF), WHERE);
	}
}

static void random_runs(bool holes, unsigned rounds, unsigned variety)
{
	set_up();
	for (unsigned n = 0; n < rounds; n++) {
		const struct insn *in = &insns[n % (sizeof(insns) / sizeof(insns[0]))];
		unsigned rep = random64() % 3, size = size_of(in);
		u64 flags = random64() & FL_DF, room = PAGES * PAGE;
		u64 count = random64() % (random64() % 2 ? 40 : 6000 / size), bytes = count * size;
		if (!count && rep == ONE)
			count = 1;
		if (n % 20 == 0)
			fill(variety);
		u64 low = random64() % (room - bytes - 8), low2 = random64() % (room - bytes - 8);
		u64 up = flags ? bytes - (bytes ? size : 0) : 0;
		bool same = random64() % 4 == 0; /* both in the same region: they may overlap */
		u64 rsi = SRC + low + up, rdi = (same ? SRC : DST) + low2 + up;
		u64 hole = !holes ? 0 : (random64() % 2 ? SRC : DST) + random64() % PAGES * PAGE;
		compare(in, rep, count, rsi, rdi, flags, hole);
	}
}

TEST(plain)
{
	random_runs(false, 400, 3);
}
TEST(long_comparisons)
{
	random_runs(false, 200, 0);
}
TEST(faults)
{
	random_runs(true, 400, 1);
}

/* Overlap by less than an element, and by one element: what was written is read again. */
TEST(overlap)
{
	set_up();
	fill(4096);
	for (unsigned i = 0; i < 4; i++) {
		for (unsigned d = 1; d < 20; d++) {
			compare(&insns[i], REP, 1000, SRC + 100, SRC + 100 + d, 0, 0);
			compare(&insns[i], REP, 500, SRC + 100 + d, SRC + 100, 0, 0);
			compare(&insns[i], REP, 500, SRC + 8000 + d, SRC + 8000, FL_DF, 0);
			compare(&insns[i], REP, 500, SRC + 8000, SRC + 8000 + d, FL_DF, 0);
		}
	}
}

/*
 * Overlap through two mappings of the same page. A processor tells overlap by linear addresses, so that its fast string
 * operations may have read a byte before the store that reaches it by the other mapping, or after. Intel's, which store
 * some bytes of a line twice, may bring one from up to a line and one byte further back; never anything else.
 */
#define LINE 64
static bool stores_twice(void)
{
	u32 r[4];
	cpuid(0, 0, r);
	return r[1] == 0x756e6547; /* "Genu" */
}
static bool may_be_there(const u8 *before, unsigned i)
{
	u8 is = src_pages[100 + i];
	unsigned most = stores_twice() ? LINE + 1 : 0;
	for (unsigned back = 0; back <= most && back < i; back++)
		if (is == before[i - 1 - back])
			return true;
	return is == src_pages[99 + i];
}
TEST(overlap_aliased)
{
	static u8 before[5001];
	set_up();
	for (unsigned i = 0; i < PAGES; i++)
		map(DST + i * PAGE, (u64)src_pages + i * PAGE, PTE_KERNEL);
	fill(4096);
	memcpy(before, src_pages + 100, sizeof(before));
	memcpy((void *)(DST + 101), (void *)(SRC + 100), 5000);
	CHECK_EQ(src_pages[100], before[0]);
	CHECK_EQ(src_pages[101], before[0]);
	for (unsigned i = 1; i <= 5000; i++)
		CHECK(may_be_there(before, i));
}

/* A fault is mended by the handler and the instruction goes on; every page is asked for once. */
static volatile unsigned faults;
static bool map_in(struct frame *f)
{
	u64 va = read_cr2() & ~(PAGE - 1);
	faults++;
	(void)f;
	map(va, (u64)alloc_pages(1), PTE_KERNEL);
	return true;
}
TEST(restart)
{
	set_handler(PF, map_in);
	for (unsigned down = 0; down < 2; down++) {
		u64 base = TEST_VA + 0x10000000 * (down + 1), n = 16 * PAGE;
		u64 at = base + (down ? n - 8 : 0);
		faults = 0;
		u64 count = n / 8, di = at;
		if (down)
			asm volatile("std; rep stosq; cld"
				     : "+c"(count), "+D"(di)
				     : "a"(0x1234567890abcdef)
				     : "memory");
		else
			asm volatile("rep stosq" : "+c"(count), "+D"(di) : "a"(0x1234567890abcdef) : "memory");
		CHECK_EQ(faults, 16);
		CHECK_EQ(count, 0);
		CHECK_EQ(di, down ? base - 8 : base + n);
		for (unsigned i = 0; i < n / 8; i++)
			CHECK_EQ(((volatile u64 *)base)[i], 0x1234567890abcdef);
		/* copy to fresh pages, misaligned on both sides */
		faults = 0;
		u64 to = base + 0x1000000 + 3, len = 10 * PAGE;
		memcpy((void *)to, (void *)(base + 5), len);
		CHECK_EQ(faults, 11);
		CHECK_EQ(memcmp((void *)to, (void *)(base + 5), len), 0);
	}
}

/* Address size 32 in 64-bit mode: registers are cut and zero-extended; an override of the segment. */
SNIPPET(rep32, 64, ".byte 0x67; rep movsb; ud2");
SNIPPET(lods_gs, 64, "lodsq %gs:(%rsi), %rax; ud2");
SNIPPET(rep_gs, 64, "rep movsb %gs:(%rsi), (%rdi); ud2");
TEST(address_size)
{
	u8 *p = alloc_pages(2);
	for (unsigned i = 0; i < 256; i++)
		p[i] = i;
	struct result r = run(rep32, 0, 0x100000010, 0x500000000 | (u64)p, 0x700000000 | (u64)(p + PAGE), 0);
	CHECK_EQ(r.vector, UD);
	CHECK_EQ(r.rcx, 0);
	CHECK_EQ(r.rsi, (u64)p + 16);
	CHECK_EQ(r.rdi, (u64)p + PAGE + 16);
	CHECK_EQ(memcmp(p, p + PAGE, 16), 0);
	CHECK_EQ(p[PAGE + 16], 0);
	r = run(rep32, 0, 0x300000000, 0x500000123, 0x700000456, 0); /* no count: nothing changes */
	CHECK_EQ(r.rcx & 0xffffffff, 0);
	CHECK_EQ(r.rsi & 0xffffffff, 0x123);
	wrmsr(MSR_GS_BASE, (u64)p);
	r = run(lods_gs, 0, 0, 8, 0, 0);
	CHECK_EQ(r.rax, 0x0f0e0d0c0b0a0908);
	r = run(rep_gs, 0, 16, 64, (u64)p + PAGE, 0);
	CHECK_EQ(r.vector, UD);
	CHECK_EQ(memcmp(p + 64, p + PAGE, 16), 0);
	CHECK_EQ(r.rsi, 80);
}

/* Into read-only pages, and from ring 3. */
TEST(protection)
{
	set_up();
	map(DST + PAGE, (u64)dst_pages + PAGE, PTE_P);
	struct result r = run(rep_stosb, 7, PAGE + 10, 0, DST, 0);
	CHECK_EQ(r.vector, PF);
	CHECK_EQ(r.error, PF_P | PF_W);
	CHECK_EQ(r.rcx, 10);
	CHECK_EQ(r.rdi, DST + PAGE);
	CHECK_EQ(dst_pages[PAGE - 1], 7);
	r = run(rep_stosq, 7, 600, 0, DST + 4, 0); /* the element that crosses does not start */
	CHECK_EQ(r.rcx, 600 - 511);
	CHECK_EQ(r.rdi, DST + 4 + 511 * 8);
	CHECK_EQ(r.cr2, DST + PAGE);
	CHECK_EQ(dst_pages[PAGE - 1], 7);
	CHECK_EQ(dst_pages[PAGE - 4], 7);
}
/* run: timeout=120 */
