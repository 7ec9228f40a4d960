/* Several processors: atomics, memory order, cross-modifying code, TLB shootdown, split locks. */
#include "guest.h"

const char payload[] = "smp";

#define ROUNDS 20000

static volatile u32 gate;
static volatile unsigned wrong;
struct shared {
	volatile u64 add, xadd, cmpxchg, inc, bts[4], pair[2], mix, spin;
	volatile u32 lock;
	u64 tickets[4 * ROUNDS / 64 + 64];
};
static struct shared shared __attribute__((aligned(64)));

static void adders(void *arg)
{
	(void)arg;
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < ROUNDS; i++) {
		asm volatile("lock addq $3, %0" : "+m"(shared.add) : : "cc");
		asm volatile("lock incq %0" : "+m"(shared.inc) : : "cc");
		u64 ticket = 1;
		asm volatile("lock xaddq %0, %1" : "+r"(ticket), "+m"(shared.xadd) : : "cc");
		asm volatile("lock btsq %1, %0" : "+m"(shared.tickets[ticket / 64]) : "r"(ticket % 64) : "cc");
		u64 old, new;
		do {
			old = shared.cmpxchg;
			new = old * 5 + 1;
		} while (!__sync_bool_compare_and_swap(&shared.cmpxchg, old, new));
	}
}
TEST(atomics)
{
	shared = (struct shared){};
	smp_all(adders, NULL);
	u64 n = (u64)cpus * ROUNDS, x = 0;
	CHECK_EQ(shared.add, 3 * n);
	CHECK_EQ(shared.inc, n);
	CHECK_EQ(shared.xadd, n);
	for (u64 i = 0; i < n; i++) {
		x = x * 5 + 1;
		if (!(shared.tickets[i / 64] >> (i % 64) & 1)) {
			CHECK_EQ(i, ~0ull);
			break;
		}
	}
	CHECK_EQ(shared.cmpxchg, x);
}

static void pairs(void *arg)
{
	(void)arg;
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < ROUNDS / 2; i++) {
		bool ok;
		do {
			u64 lo = shared.pair[0], hi = shared.pair[1];
			asm volatile("lock cmpxchg16b %1"
				     : "=@ccz"(ok), "+m"(shared.pair), "+a"(lo), "+d"(hi)
				     : "b"(lo + 1), "c"(hi - 1)
				     : "memory");
		} while (!ok);
	}
}
TEST(cmpxchg16b)
{
	shared.pair[0] = 0;
	shared.pair[1] = 0;
	smp_all(pairs, NULL);
	CHECK_EQ(shared.pair[0], (u64)cpus * (ROUNDS / 2));
	CHECK_EQ(shared.pair[0] + shared.pair[1], 0);
}

/* XCHG locks without a prefix: a spin lock around plain increments. */
static void spinners(void *arg)
{
	(void)arg;
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < ROUNDS / 4; i++) {
		u32 v = 1;
		for (;;) {
			asm volatile("xchgl %0, %1" : "+r"(v), "+m"(shared.lock) : : "memory");
			if (!v)
				break;
			pause();
		}
		shared.spin++;
		asm volatile("movl $0, %0" : "=m"(shared.lock) : : "memory");
	}
}
TEST(spin_lock)
{
	shared.lock = 0;
	shared.spin = 0;
	smp_all(spinners, NULL);
	CHECK_EQ(shared.spin, (u64)cpus * (ROUNDS / 4));
}

/* Locked operations of every size and kind on one line. */
static void mixers(void *arg)
{
	u64 me = this_cpu();
	(void)arg;
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < ROUNDS; i++) {
		volatile u8 *b = (volatile u8 *)&shared.mix + me;
		asm volatile("lock addb $1, %0" : "+m"(*b) : : "cc");
		asm volatile("lock xorb $0x80, %0" : "+m"(((volatile u8 *)&shared.mix)[me + 4]) : : "cc");
	}
}
TEST(neighbours)
{
	shared.mix = 0;
	smp_all(mixers, NULL);
	for (unsigned i = 0; i < cpus; i++) {
		CHECK_EQ(((volatile u8 *)&shared.mix)[i], (u8)ROUNDS);
		CHECK_EQ(((volatile u8 *)&shared.mix)[i + 4], 0);
	}
}

/* A locked operand across a cache line, and across two pages that do not follow each other in memory. */
static unsigned splitters_ds = SEL_DATA;
static void splitters(void *arg)
{
	volatile u64 *p = arg;
	asm volatile("movl %0, %%ds" : : "r"(splitters_ds));
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < 2000; i++)
		asm volatile("lock addq %1, %0" : "+m"(*p) : "r"(0x100000001ull) : "cc");
	asm volatile("movl %0, %%ds" : : "r"(SEL_DATA));
}
static void split(u64 at)
{
	*(volatile u64 *)at = 0;
	smp_all(splitters, (void *)at);
	CHECK_EQ(*(volatile u64 *)at, 0x100000001ull * 2000 * cpus);
}
TEST(split_lock)
{
	static u8 line[256] __attribute__((aligned(64)));
	split((u64)line + 60);
	split((u64)line + 61);
	u64 a = (u64)alloc_pages(1);
	alloc_pages(3);
	map(TEST_VA, a, PTE_KERNEL);
	map(TEST_VA + PAGE, (u64)alloc_pages(1), PTE_KERNEL);
	split(TEST_VA + PAGE - 4);
	split(TEST_VA + PAGE - 1);
	gdt[SEL_TEST / 8] = 0x00cf93000800ffff; /* a base of 2 KiB, which is nothing to 64-bit mode */
	splitters_ds = SEL_TEST;
	split(TEST_VA + PAGE - 4);
	splitters_ds = SEL_DATA;
}

/* Two pages that do not follow each other in memory. */
static void map_apart(void)
{
	u64 a = (u64)alloc_pages(1);
	alloc_pages(3);
	map(TEST_VA, a, PTE_KERNEL);
	map(TEST_VA + PAGE, (u64)alloc_pages(1), PTE_KERNEL);
}

/* The operand is not where the instruction's address says: the register moves it. A bit for each processor. */
static void bit_splitters(void *arg)
{
	u64 at = (u64)arg - 0x300, bit = 0x300 * 8 + 15 * this_cpu() + 1;
	unsigned lost = 0;
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < 10000; i++) {
		bool was, is;
		asm volatile("lock btsq %2, (%1)" : "=@ccc"(was) : "r"(at), "r"(bit) : "memory");
		asm volatile("lock btrq %2, (%1)" : "=@ccc"(is) : "r"(at), "r"(bit) : "memory");
		lost += was || !is;
	}
	__atomic_add_fetch(&wrong, lost, __ATOMIC_RELAXED);
}
TEST(split_bit_string)
{
	map_apart();
	wrong = 0;
	smp_all(bit_splitters, (void *)(TEST_VA + PAGE - 4));
	CHECK_EQ(wrong, 0);
}

/* One half of the operand is counted up by itself, by a processor with a breakpoint elsewhere. */
static void half_splitters(void *arg)
{
	u64 half = (u64)arg + 4;
	bool whole = this_cpu() % 2;
	if (!whole) {
		asm volatile("movq %0, %%dr0" : : "r"(TEST_VA));
		asm volatile("movq %0, %%dr7" : : "r"(0x30403ull));
	}
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < 100000; i++) {
		if (whole)
			asm volatile("lock addq $1, (%0)" : : "r"(arg) : "memory", "cc");
		else
			asm volatile("lock addl $1, (%0)" : : "r"(half) : "memory", "cc");
	}
	if (!whole)
		asm volatile("movq %0, %%dr7" : : "r"(0x400ull));
}
TEST(split_lock_and_half)
{
	u64 at = TEST_VA + PAGE - 4;
	map_apart();
	*(volatile u64 *)at = 0;
	smp_all(half_splitters, (void *)at);
	CHECK_EQ(*(volatile u64 *)at, (u64)((cpus + 1) / 2) * 100000 << 32 | cpus / 2 * 100000);
}

/* Message passing: stores are seen in their order, loads made in theirs (SDM Vol. 3A 8.2.2). */
static volatile u64 data, flag;
static void message(void *arg)
{
	(void)arg;
	unsigned me = this_cpu();
	barrier_wait(&gate, cpus);
	if (me > 1)
		return;
	for (u64 i = 1; i <= ROUNDS * 5; i++) {
		if (me == 0) {
			data = i;
			barrier();
			flag = i;
		} else {
			u64 f = flag;
			barrier();
			if (data < f)
				wrong++;
		}
	}
}
TEST(message_passing)
{
	data = flag = wrong = 0;
	smp_all(message, NULL);
	CHECK_EQ(wrong, 0);
}

/* Store, MFENCE (or a locked instruction), load: not both may see the old values (Dekker). */
static volatile u64 x, y, r[2];
static volatile u32 rounds_gate;
static bool locked;
static void dekker(void *arg)
{
	(void)arg;
	unsigned me = this_cpu();
	if (me > 1)
		return;
	for (unsigned i = 0; i < 3000; i++) {
		if (me == 0)
			x = y = 0;
		barrier_wait(&rounds_gate, 2);
		u64 v;
		if (me == 0 && !locked)
			asm volatile("movq $1, %1; mfence; movq %2, %0" : "=&r"(v), "=m"(x) : "m"(y) : "memory");
		else if (me == 0)
			asm volatile("movq $1, %1; lock orq $0, (%%rsp); movq %2, %0"
				     : "=&r"(v), "=m"(x)
				     : "m"(y)
				     : "memory", "cc");
		else if (!locked)
			asm volatile("movq $1, %1; mfence; movq %2, %0" : "=&r"(v), "=m"(y) : "m"(x) : "memory");
		else
			asm volatile("movq $1, %0; xchgq %0, %1; movq %2, %0" : "=&r"(v), "=m"(y) : "m"(x) : "memory");
		r[me] = v;
		barrier_wait(&rounds_gate, 2);
		if (me == 0 && !r[0] && !r[1])
			wrong++;
		barrier_wait(&rounds_gate, 2);
	}
}
TEST(store_load_order)
{
	if (cpus < 2)
		skip("one processor");
	wrong = 0;
	for (unsigned i = 0; i < 2; i++) {
		rounds_gate = 0;
		locked = i;
		smp_all(dekker, NULL);
	}
	CHECK_EQ(wrong, 0);
}

/* ---- code ---- */
#define CODE_VA (TEST_VA + 0x10000000)
static volatile u32 version, seen[CPUS_MAX];
static volatile bool stop;

/* The others run a function over and over; each must see a change soon after it is told of it. */
static void runner(void *arg)
{
	unsigned me = this_cpu();
	(void)arg;
	while (!stop) {
		u32 v = version;
		u32 b[4];
		cpuid(0, 0, b); /* serializes, as cross-modifying code must (8.1.3) */
		u64 got = call(CODE_VA);
		if ((u32)got < v)
			wrong++;
		seen[me] = v;
	}
}
TEST(cross_modifying)
{
	smp_start();
	u8 *p = map_fresh(CODE_VA, 1, PTE_KERNEL);
	static const u8 code[] = {0xb8, 0, 0, 0, 0, 0xc3};
	memcpy(p + 3, code, 6); /* the immediate is aligned: one store changes all of it */
	memcpy(p, "\x90\x90\x90", 3);
	stop = false;
	version = wrong = 0;
	memset((void *)seen, 0, sizeof(seen));
	for (unsigned i = 1; i < cpus; i++)
		smp_post(i, runner, NULL);
	for (u32 n = 1; n <= 300; n++) {
		*(volatile u32 *)(p + 4) = n;
		barrier();
		version = n;
		for (unsigned i = 1; i < cpus; i++) {
			if (!WAIT_FOR(seen[i] >= n, 5000000)) {
				CHECK_EQ_IN(seen[i], n, "cpu %u", i);
				n = 1000;
				break;
			}
		}
	}
	stop = true;
	for (unsigned i = 1; i < cpus; i++)
		smp_wait(i);
	CHECK_EQ(wrong, 0);
}

/* The same without any serialization or call out of the loop: the change must be seen in the end. */
CODE(tight_loop);
asm(".pushsection .text\n.globl tight_loop, tight_loop_end\ntight_loop: 1: movl $0, %eax; testl %eax, %eax; jz 1b; "
    "ret\ntight_loop_end: .popsection");
static void tight(void *arg)
{
	call((u64)arg);
}
TEST(patched_loop)
{
	smp_start();
	u8 *p = map_code(CODE_VA, tight_loop, tight_loop_end, PTE_KERNEL);
	for (unsigned n = 0; n < 20; n++) {
		*(volatile u32 *)(p + 1) = 0;
		for (unsigned i = 1; i < cpus; i++)
			smp_post(i, tight, p);
		delay_us(500);
		*(volatile u32 *)(p + 1) = 1;
		for (unsigned i = 1; i < cpus; i++)
			smp_wait(i);
	}
}

/* As Linux patches text: INT3, IPI to all, the tail, IPI, the first byte, IPI; runners see the old or the new, or trap.
 */
static volatile unsigned traps;
static bool on_int3(struct frame *f)
{
	f->rip += 4; /* as if it had been a NOP of five bytes */
	f->rax = 3;
	__atomic_add_fetch(&traps, 1, __ATOMIC_RELAXED);
	return true;
}
static bool on_sync(struct frame *f)
{
	(void)f;
	u32 b[4];
	cpuid(0, 0, b);
	__atomic_add_fetch(&version, 1, __ATOMIC_SEQ_CST);
	apic_write(APIC_EOI, 0);
	return true;
}
static void poke_runner(void *arg)
{
	(void)arg;
	apic_enable();
	sti();
	barrier_wait(&gate, cpus);
	while (!stop) {
		u64 got = call(CODE_VA + 0x100);
		if (got != 1 && got != 2 && got != 3)
			wrong++;
	}
	cli();
}
static void sync_all(void)
{
	version = 0;
	if (cpus > 1)
		apic_icr(0, ICR_OTHERS | ICR_ASSERT | 0x70);
	if (!WAIT_FOR(version == cpus - 1, 5000000))
		CHECK_EQ(version, cpus - 1);
}
TEST(text_poke)
{
	static const u8 variants[2][5] = {{0xb8, 1, 0, 0, 0}, {0xb8, 2, 0, 0, 0}};
	smp_start();
	set_handler(0x70, on_sync);
	set_handler(BP, on_int3);
	set_gate(BP, trap_stubs[BP], 0, 0xee);
	volatile u8 *p = (volatile u8 *)map_fresh(CODE_VA, 1, PTE_KERNEL) + 0x100;
	memcpy((void *)p, variants[0], 5);
	p[5] = 0xc3;
	stop = false;
	gate = wrong = traps = 0;
	for (unsigned i = 1; i < cpus; i++)
		smp_post(i, poke_runner, NULL);
	barrier_wait(&gate, cpus);
	for (unsigned n = 1; n < 60; n++) {
		p[0] = 0xcc;
		sync_all();
		for (unsigned i = 1; i < 5; i++)
			p[i] = variants[n & 1][i];
		sync_all();
		p[0] = 0xb8;
		sync_all();
		CHECK_EQ(call(CODE_VA + 0x100), n & 1 ? 2 : 1);
	}
	stop = true;
	for (unsigned i = 1; i < cpus; i++)
		smp_wait(i);
	CHECK_EQ(wrong, 0);
}

/* TLB shootdown: after the IPI's answer nobody uses the old page. */
#define SHOT_VA (TEST_VA + 0x20000000)
static bool on_shoot(struct frame *f)
{
	(void)f;
	invlpg(SHOT_VA);
	__atomic_add_fetch(&version, 1, __ATOMIC_SEQ_CST);
	apic_write(APIC_EOI, 0);
	return true;
}
static volatile u64 current_value;
static void shot_reader(void *arg)
{
	(void)arg;
	apic_enable();
	sti();
	barrier_wait(&gate, cpus);
	while (!stop) {
		u64 floor = current_value; /* set before any processor may read less */
		if (*(volatile u64 *)SHOT_VA < floor)
			wrong++;
	}
	cli();
}
TEST(shootdown)
{
	smp_start();
	set_handler(0x70, on_shoot);
	u64 *pages[2] = {alloc_pages(1), alloc_pages(1)};
	stop = false;
	gate = wrong = 0;
	current_value = 0;
	map(SHOT_VA, (u64)pages[0], PTE_KERNEL);
	for (unsigned i = 1; i < cpus; i++)
		smp_post(i, shot_reader, NULL);
	barrier_wait(&gate, cpus);
	for (u64 n = 1; n < 100; n++) {
		*(volatile u64 *)pages[n & 1] = n;
		map(SHOT_VA, (u64)pages[n & 1], PTE_KERNEL);
		sync_all();
		current_value = n;
		CHECK_EQ(*(volatile u64 *)SHOT_VA, n);
	}
	stop = true;
	for (unsigned i = 1; i < cpus; i++)
		smp_wait(i);
	CHECK_EQ(wrong, 0);
}

/* Accessed and dirty bits are set by locked operations: concurrent changes of an entry by software are not lost. */
static void touch(void *arg)
{
	(void)arg;
	while (!stop) {
		invlpg(SHOT_VA);
		*(volatile u64 *)(SHOT_VA + 8 * this_cpu()) = 1;
	}
}
TEST(dirty_bit_race)
{
	smp_start();
	map_fresh(SHOT_VA, 1, PTE_KERNEL);
	volatile u64 *pte = walk(SHOT_VA, 1, false);
	stop = false;
	for (unsigned i = 1; i < cpus; i++)
		smp_post(i, touch, NULL);
	unsigned lost = 0;
	for (unsigned n = 0; n < 20000; n++) {
		asm volatile("lock btsq $9, %0" : "+m"(*pte) : : "cc"); /* a bit of software's own */
		asm volatile("lock andq %1, %0" : "+m"(*pte) : "r"(~(PTE_A | PTE_D)) : "cc");
		if (!(*pte & 0x200))
			lost++;
		asm volatile("lock btrq $9, %0" : "+m"(*pte) : : "cc");
		if (*pte & 0x200)
			lost++;
	}
	stop = true;
	for (unsigned i = 1; i < cpus; i++)
		smp_wait(i);
	CHECK_EQ(lost, 0);
}

/*
 * Where the last x87 instruction was, in an image, to one who looks at it all the time: the guest's address, or none.
 * With an exception pending, for else AMD's processors do not say.
 */
static struct {
	u64 fcw_fop, fip, fdp, rest[61];
} image __attribute__((aligned(64)));
static void save_images(void *arg)
{
	static const u16 unmasked = 0x340;
	static const u64 one = 0x3ff0000000000000;
	(void)arg;
	for (unsigned i = 0; i < 100000; i++)
		asm volatile("fninit; fldcw %2; fldz; fdivrl %1; fxsave64 %0" : "=m"(image) : "m"(one), "m"(unmasked));
	asm volatile("fninit");
	stop = true;
}
TEST(image_pointers)
{
	const u64 beyond = 1ull << 32; /* nothing of ours is there */
	u64 fip = 0, fdp = 0;
	stop = false;
	smp_start();
	smp_post(1, save_images, NULL);
	while (!stop && fip < beyond && fdp < beyond) {
		fip = *(volatile u64 *)&image.fip;
		fdp = *(volatile u64 *)&image.fdp;
	}
	smp_wait(1);
	CHECK_EQ(fip / beyond, 0);
	CHECK_EQ(fdp / beyond, 0);
}

/* The TSC goes the same way for all: a time read after another processor's is not before it. */
static volatile u64 last_tsc;
static void clocks(void *arg)
{
	(void)arg;
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < 5000; i++) {
		while (__atomic_exchange_n(&shared.lock, 1, __ATOMIC_ACQUIRE))
			pause();
		asm volatile("lfence");
		u64 t = rdtsc();
		if (t < last_tsc)
			wrong++;
		last_tsc = t;
		asm volatile("lfence");
		__atomic_store_n(&shared.lock, 0, __ATOMIC_RELEASE);
	}
}
TEST(tsc_monotonic)
{
	shared.lock = 0;
	wrong = 0;
	last_tsc = 0;
	smp_all(clocks, NULL);
	CHECK_EQ(wrong, 0);
}

TEST(tsc_aux)
{
	if (!HAS_RDTSCP)
		skip("no RDTSCP");
	u64 before, lo, hi, aux, flags;
	wrmsr(MSR_TSC_AUX, 0x1234);
	for (unsigned i = 0; i < 100; i++) {
		before = rdtsc();
		lo = hi = aux = ~0ull;
		asm volatile("cmp %0, %0; stc; rdtscp; pushfq; pop %3" : "+a"(lo), "+d"(hi), "+c"(aux), "=r"(flags));
		CHECK_EQ(aux, 0x1234);
		CHECK(lo >> 32 == 0 && hi >> 32 == 0 && (hi << 32 | lo) >= before);
		CHECK_EQ(flags & (FL_CF | FL_ZF), FL_CF | FL_ZF);
	}
	wrmsr(MSR_TSC_AUX, 0);
}

/* The TSC's rate: steady against the PM timer, from one processor. */
TEST(tsc_rate)
{
	u64 rate[3];
	for (unsigned i = 0; i < 3; i++) {
		u64 t0 = now_us(), c0 = rdtsc();
		while (now_us() < t0 + 100000)
			pause();
		u64 c1 = rdtsc(), t1 = now_us();
		rate[i] = (c1 - c0) / (t1 - t0);
	}
	CHECK(rate[0] > 100);
	CHECK(rate[1] > rate[0] * 9 / 10 && rate[1] < rate[0] * 11 / 10);
	CHECK(rate[2] > rate[0] * 9 / 10 && rate[2] < rate[0] * 11 / 10);
}
/* run: cpus=4 timeout=120 */
