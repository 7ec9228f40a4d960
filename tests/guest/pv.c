/* KVM's paravirtual interface (Linux, Documentation/virt/kvm/x86). run: cpus=2 */
#include "guest.h"

const char payload[] = "pv";

enum { WALL_CLOCK = 0x4b564d00, SYSTEM_TIME, ASYNC_PF, STEAL_TIME, EOI_EN };
enum { F_CLOCK = 3, F_STEAL = 5, F_EOI = 6, F_LOCK = 7, F_TLB = 9, F_IPI = 11, F_STABLE = 24 };
enum { HC_KICK = 5, HC_IPI = 10 };
#define NO_SUCH_CALL ((u64)-1000)

static void need(unsigned feature)
{
	u32 r[4];

	cpuid(0x40000000, 0, r);
	if (r[1] != 0x4b4d564b || r[2] != 0x564b4d56 || r[3] != 0x4d || r[0] < 0x40000001)
		skip("no such interface");
	cpuid(0x40000001, 0, r);
	if (!(r[0] >> feature & 1))
		skip("not offered");
}

static u64 hypercall(u64 number, u64 b, u64 c, u64 d, u64 si)
{
	u64 result;

	if (is_amd())
		asm volatile("vmmcall" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(d), "S"(si) : "memory");
	else
		asm volatile("vmcall" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(d), "S"(si) : "memory");
	return result;
}

/* ---- Clock ---- */

struct system_time {
	volatile u32 version, pad;
	volatile u64 tsc, ns;
	volatile u32 mul;
	volatile signed char shift;
	volatile u8 flags, pad2[2];
};
static struct system_time times[2] __attribute__((aligned(64)));

static u64 time_ns(const struct system_time *t)
{
	asm volatile("lfence" ::: "memory"); /* RDTSC may be carried out before what precedes it (SDM Vol. 2) */
	u64 now = rdtsc() - t->tsc;

	now = t->shift < 0 ? now >> -t->shift : now << t->shift;
	return t->ns + (u64)((unsigned __int128)now * t->mul >> 32);
}

static void start_clock(void *arg)
{
	struct system_time *t = arg;

	wrmsr(SYSTEM_TIME, (u64)t | 1);
}

TEST(clock)
{
	volatile u32 wall[3] __attribute__((aligned(4))) = {0, 0, 0};

	need(F_CLOCK);
	start_clock(&times[0]);
	CHECK_EQ(rdmsr(SYSTEM_TIME), (u64)&times[0] | 1);
	CHECK(times[0].version && !(times[0].version & 1));
	CHECK_EQ(times[0].flags, 1); /* stable */
	u64 us = now_us(), ns = time_ns(&times[0]);
	delay_us(20000);
	u64 gone = (time_ns(&times[0]) - ns) / 1000, true_us = now_us() - us;
	CHECK(gone + 2 >= 20000 && gone <= true_us + 2); /* now_us has whole ticks of 0.28 us, and whole us */
	wrmsr(WALL_CLOCK, (u64)wall);
	CHECK(wall[0] && !(wall[0] & 1));
	CHECK(wall[1] > 1700000000 && wall[2] < 1000000000);
	CHECK(CATCH(wrmsr(WALL_CLOCK + 0x80, 0)) == GP);
	CHECK(CATCH(rdmsr(ASYNC_PF)) == GP); /* not offered */
}

/* What one processor sees of the time is never behind what the other has seen. */
static volatile u64 last_seen;
static volatile u32 lock, backwards;

static void watch(void *arg)
{
	start_clock(arg);
	for (unsigned i = 0; i < 20000; i++) {
		while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
			pause();
		u64 now = time_ns(arg);
		backwards += now < last_seen;
		last_seen = now;
		__atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
	}
}

TEST(clock_is_one)
{
	need(F_STABLE);
	last_seen = backwards = 0;
	smp_start();
	smp_post(1, watch, &times[1]);
	watch(&times[0]);
	smp_wait(1);
	CHECK_EQ(backwards, 0);
}

TEST(clock_stays_when_tsc_moves)
{
	need(F_CLOCK);
	start_clock(&times[0]);
	u64 before = time_ns(&times[0]), version = times[0].version;
	wrmsr(0x10, rdtsc() + (1ull << 45));
	u64 after = time_ns(&times[0]);
	wrmsr(0x3b, 0);
	u64 back = time_ns(&times[0]);
	CHECK(times[0].version >= version + 4);
	CHECK(after >= before && after - before < 5000000000ull);
	CHECK(back >= after && back - after < 5000000000ull);
	wrmsr(SYSTEM_TIME, 0);
	wrmsr(0x10, rdtsc());
	CHECK(times[0].version < version + 8); /* not written any more */
	wrmsr(0x3b, 0);
}

/* ---- End of interrupt ---- */

static volatile u32 eoi_flag __attribute__((aligned(4)));
static volatile unsigned taken, by_flag, nested;
static volatile bool chain, leave;

static bool on_irq(struct frame *f)
{
	(void)f;
	taken++;
	unsigned was = taken;
	if (chain) { /* one more, of the same vector: it comes after the end */
		chain = false;
		apic_icr(0, ICR_SELF | 0x40);
		sti();
		for (unsigned i = 0; i < 100; i++)
			pause();
		cli();
		nested += taken != was;
	}
	if (leave)
		apic_read(APIC_ID);
	u8 had;
	asm volatile("btrl $0, %1; setc %0" : "=q"(had), "+m"(eoi_flag) : : "cc");
	if (had)
		by_flag++;
	else
		apic_write(APIC_EOI, 0);
	return true;
}

static u32 in_service(void)
{
	u32 all = 0;

	for (unsigned i = 0; i < 8; i++)
		all |= apic_read(APIC_ISR + i * 0x10);
	return all;
}

static void take_one(void)
{
	apic_icr(0, ICR_SELF | 0x40);
	asm volatile("sti; nop; nop; cli" : : : "memory");
}

TEST(eoi)
{
	need(F_EOI);
	apic_enable();
	set_handler(0x40, on_irq);
	eoi_flag = taken = by_flag = 0;
	chain = leave = false;
	CHECK(CATCH(wrmsr(EOI_EN, (u64)&eoi_flag | 3)) == GP);
	CHECK(CATCH(wrmsr(EOI_EN, 0xfee00001)) == GP);
	wrmsr(EOI_EN, (u64)&eoi_flag | 1);
	CHECK_EQ(rdmsr(EOI_EN), (u64)&eoi_flag | 1);
	for (unsigned i = 1; i <= 100; i++) {
		take_one();
		CHECK_EQ(taken, i);
		CHECK_EQ(in_service(), 0); /* either way it has ended */
		CHECK_EQ(eoi_flag, 0);
	}
	CHECK(by_flag); /* but for those that were disturbed by something else */
	/* A processor that left its code in the handler has to tell the APIC. */
	by_flag = 0;
	leave = true;
	for (unsigned i = 0; i < 10; i++)
		take_one();
	leave = false;
	CHECK_EQ(by_flag, 0);
	CHECK_EQ(in_service(), 0);
	/* So has one for which another interrupt waits. */
	chain = true;
	take_one();
	take_one();
	CHECK_EQ(taken, 113);
	CHECK_EQ(nested, 0);
	CHECK_EQ(in_service(), 0);
	by_flag = 0;
	wrmsr(EOI_EN, 0);
	take_one();
	CHECK_EQ(by_flag, 0);
	CHECK_EQ(taken, 114);
}

/* Requests from another processor while the flag is the end of an interrupt: each comes, one after the other. */
static volatile bool stop;

static void send_many(void *arg)
{
	(void)arg;
	while (!stop) {
		apic_icr(0, 0x41);
		for (unsigned i = 0; i < 50; i++)
			pause();
	}
}

static volatile unsigned depth, too_deep;

static bool on_either(struct frame *f)
{
	too_deep += depth++ != 0; /* 0x40 and 0x41 are of one priority: none interrupts the other */
	sti();
	for (unsigned i = 0; i < 20; i++)
		pause();
	cli();
	depth--;
	return on_irq(f);
}

TEST(eoi_keeps_order)
{
	need(F_EOI);
	apic_enable();
	set_handler(0x40, on_either);
	set_handler(0x41, on_either);
	eoi_flag = taken = by_flag = depth = too_deep = 0;
	wrmsr(EOI_EN, (u64)&eoi_flag | 1);
	smp_start();
	stop = false;
	smp_post(1, send_many, NULL);
	for (unsigned i = 0; i < 2000; i++)
		take_one();
	stop = true;
	smp_wait(1);
	take_one();
	take_one();
	CHECK_EQ(too_deep, 0);
	CHECK(taken >= 2000);
	CHECK_EQ(in_service(), 0);
	wrmsr(EOI_EN, 0);
}

/* ---- Hypercalls ---- */

static volatile unsigned got[2];

static bool count_irq(struct frame *f)
{
	(void)f;
	__atomic_add_fetch(&got[this_cpu()], 1, __ATOMIC_SEQ_CST);
	apic_write(APIC_EOI, 0);
	return true;
}

static volatile u32 phase;

static void open_window(void *arg)
{
	(void)arg;
	apic_enable();
	phase = 1;
	sti();
	while (!stop)
		pause();
	cli();
}

TEST(ipi)
{
	need(F_IPI);
	apic_enable();
	set_handler(0x50, count_irq);
	smp_start();
	got[0] = got[1] = 0;
	stop = false;
	phase = 0;
	smp_post(1, open_window, NULL);
	CHECK(WAIT_FOR(phase == 1, 3000000));
	CHECK_EQ(hypercall(HC_IPI, 3, 0, 0, 0x50), 2);
	CHECK_EQ(hypercall(HC_IPI, 1, 0, 1, 0x50), 1);
	CHECK_EQ(hypercall(HC_IPI, 0, 1, 0, 0x50), 0); /* APIC ID 64: nobody */
	CHECK_EQ(hypercall(HC_IPI, ~0ull, ~0ull, ~0ull, 0x50), (u64)-22);
	CHECK((long)hypercall(HC_IPI, 2, 0, 0, 5) < 0); /* no such vector */
	CHECK(WAIT_FOR(got[1], 3000000));
	stop = true;
	smp_wait(1);
	sti();
	CHECK(WAIT_FOR(got[0], 3000000));
	cli();
	CHECK_EQ(got[0], 1);
	CHECK(got[1] == 1 || got[1] == 2); /* two requests of one vector may be one interrupt */
	CHECK_EQ(hypercall(77, 0, 0, 0, 0), NO_SUCH_CALL);
}

SNIPPET(user_vmcall, 64, "movl $10, %eax; vmcall; movq %rax, %rbx; movl $10, %eax; vmmcall; ud2");

TEST(user)
{
	need(F_IPI);
	struct frame f = user_code(user_vmcall, user_vmcall_end, 64);
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, UD);
	CHECK_EQ(t->f.rbx, (u64)-1); /* not permitted */
	CHECK_EQ(t->f.rax, (u64)-1);
}

static void halt_deaf(void *arg)
{
	(void)arg;
	cli();
	phase = 1;
	asm volatile("hlt" : : : "memory"); /* with interrupts off nothing but a kick ends it */
	phase = 2;
	while (phase != 3)
		pause();
	asm volatile("hlt" : : : "memory"); /* kicked before */
	phase = 4;
}

TEST(kick)
{
	need(F_LOCK);
	phase = 0;
	smp_start();
	smp_post(1, halt_deaf, NULL);
	CHECK(WAIT_FOR(phase == 1, 3000000));
	delay_us(2000);
	CHECK_EQ(phase, 1);
	CHECK_EQ(hypercall(HC_KICK, 0, 1, 0, 0), 0);
	CHECK(WAIT_FOR(phase == 2, 3000000));
	hypercall(HC_KICK, 0, 1, 0, 0);
	phase = 3;
	CHECK(WAIT_FOR(phase == 4, 3000000));
	smp_wait(1);
	CHECK((long)hypercall(HC_KICK, 0, 99, 0, 0) < 0);
}

/* ---- Steal time, and TLBs of those that sleep ---- */

struct steal {
	volatile u64 steal;
	volatile u32 version, flags;
	volatile u8 preempted, pad[47];
};
static struct steal steal[2] __attribute__((aligned(64)));
static volatile u32 before, after;

static void sleep_with_tlb(void *arg)
{
	apic_enable();
	wrmsr(STEAL_TIME, (u64)arg | 1);
	before = *(volatile u32 *)TEST_VA;
	phase = 1;
	asm volatile("sti; hlt; cli" : : : "memory");
	after = *(volatile u32 *)TEST_VA;
	wrmsr(STEAL_TIME, 0);
}

TEST(tlb_of_sleeper)
{
	need(F_TLB);
	u32 *pages = alloc_pages(2);
	volatile u64 *pte;

	apic_enable();
	set_handler(0x50, count_irq);
	pages[0] = 1;
	pages[PAGE / 4] = 2;
	map(TEST_VA, (u64)pages, PTE_KERNEL | PTE_G);
	memset(steal, 0, sizeof(steal));
	CHECK(CATCH(wrmsr(STEAL_TIME, (u64)&steal[0] | 3)) == GP);
	phase = 0;
	smp_start();
	smp_post(1, sleep_with_tlb, &steal[1]);
	CHECK(WAIT_FOR(phase == 1 && steal[1].preempted == 1, 3000000));
	pte = walk(TEST_VA, 1, false);
	*pte = (u64)(pages + PAGE / 4) | PTE_KERNEL | PTE_G;
	CHECK_EQ(__sync_val_compare_and_swap(&steal[1].preempted, 1, 3), 1);
	apic_icr(1, 0x50);
	smp_wait(1);
	CHECK_EQ(before, 1);
	CHECK_EQ(after, 2);
	CHECK_EQ(steal[1].preempted, 0);
	CHECK(!(steal[1].version & 1));
}
