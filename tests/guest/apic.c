/* The local APIC: timer modes, IPIs, xAPIC and x2APIC (SDM Vol. 3A ch. 10). */
#include "guest.h"

const char payload[] = "apic";

static volatile unsigned count[CPUS_MAX];
static volatile u64 when;

static bool on_irq(struct frame *f)
{
	(void)f;
	when = rdtsc();
	__atomic_add_fetch(&count[this_cpu()], 1, __ATOMIC_SEQ_CST);
	apic_write(APIC_EOI, 0);
	return true;
}

static void set_up(void)
{
	apic_enable();
	for (unsigned v = 0x30; v < 0xf0; v++) {
		if (v != 0x80)
			set_handler(v, on_irq);
	}
	asm volatile("sti; nop; nop; cli" : : : "memory"); /* a last tick that the test before left pending */
	memset((void *)count, 0, sizeof(count));
}

static void open_window(void)
{
	asm volatile("sti; nop; nop; cli" : : : "memory");
}

#define WAIT_COUNT(n, us)                                \
	({                                               \
		sti();                                   \
		bool r_ = WAIT_FOR(count[0] >= (n), us); \
		cli();                                   \
		r_;                                      \
	})

TEST(identity)
{
	set_up();
	CHECK_EQ(apic_read(APIC_ID) >> 24, 0);
	CHECK((apic_read(0x30) & 0xff) >= 0x10);
	CHECK(rdmsr(MSR_APIC_BASE) & 0x100); /* the boot processor */
	CHECK_EQ(rdmsr(MSR_APIC_BASE) & 0xfffff000, 0xfee00000);
}

TEST(timer_one_shot)
{
	set_up();
	apic_timer(0x50, 1000000);
	u32 a = apic_read(APIC_TIMER_NOW);
	CHECK(a <= 1000000);
	CHECK(WAIT_COUNT(1, 3000000));
	CHECK_EQ(apic_read(APIC_TIMER_NOW), 0);
	delay_us(3000);
	open_window();
	CHECK_EQ(count[0], 1);
}

TEST(timer_counts_down)
{
	set_up();
	static const u8 divide[8] = {0xb, 0, 1, 2, 3, 8, 9, 0xa};
	u64 rate0 = 0;
	apic_write(APIC_LVT_TIMER, 0x10050);
	for (unsigned i = 0; i < 8; i++) {
		apic_write(APIC_TIMER_DIVIDE, divide[i]);
		apic_write(APIC_TIMER_INIT, 0xffffffff);
		u64 t0 = rdtsc();
		u32 c0 = apic_read(APIC_TIMER_NOW);
		delay_us(5000);
		u32 c1 = apic_read(APIC_TIMER_NOW);
		u64 t1 = rdtsc();
		CHECK(c1 < c0);
		u64 rate = (u64)(c0 - c1) * 1000000000 / (t1 - t0) << i;
		if (!i)
			rate0 = rate;
		/* the same rate but for the divisor: within a quarter, for what a busy host does to a short wait */
		CHECK(rate > rate0 * 3 / 4 && rate < rate0 * 5 / 4);
	}
	CHECK_EQ(count[0], 0); /* masked */
	apic_write(APIC_TIMER_INIT, 0);
	CHECK_EQ(apic_read(APIC_TIMER_NOW), 0);
}

TEST(timer_periodic)
{
	set_up();
	apic_timer(0x20050, 1000000);
	CHECK(WAIT_COUNT(10, 5000000));
	apic_write(APIC_TIMER_INIT, 0); /* stops it */
	open_window();
	unsigned n = count[0];
	delay_us(5000);
	open_window();
	CHECK_EQ(count[0], n);
}

TEST(timer_masked)
{
	set_up();
	apic_timer(0x10050, 10000);
	delay_us(2000);
	open_window();
	CHECK_EQ(count[0], 0);
}

TEST(timer_deadline)
{
	if (!HAS_DEADLINE)
		skip("no TSC deadline");
	set_up();
	apic_write(APIC_LVT_TIMER, 0x40050);
	asm volatile("mfence" : : : "memory");
	u64 far = rdtsc() + (1ull << 40);
	wrmsr(MSR_TSC_DEADLINE, far);
	CHECK_EQ(rdmsr(MSR_TSC_DEADLINE), far);
	for (unsigned i = 1; i <= 10; i++) {
		u64 at = rdtsc() + 3000000;
		wrmsr(MSR_TSC_DEADLINE, at);
		CHECK(WAIT_COUNT(i, 3000000));
		CHECK(when >= at);
		CHECK_EQ(rdmsr(MSR_TSC_DEADLINE), 0);
	}
	wrmsr(MSR_TSC_DEADLINE, 1); /* past: at once */
	CHECK(WAIT_COUNT(11, 1000000));
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + 300000000);
	wrmsr(MSR_TSC_DEADLINE, 0); /* taken back */
	delay_us(200000);
	open_window();
	CHECK_EQ(count[0], 11);
	apic_write(APIC_TIMER_INIT, 1000); /* means nothing in this mode */
	CHECK_EQ(apic_read(APIC_TIMER_NOW), 0);
}

static void self_ipi_test(void)
{
	apic_icr(0, ICR_SELF | ICR_ASSERT | 0x45);
	CHECK(WAIT_COUNT(1, 100000));
	apic_icr(0, ICR_ASSERT | 0x46); /* by its ID */
	CHECK(WAIT_COUNT(2, 100000));
	apic_icr(0, ICR_ALL | ICR_ASSERT | 0x47);
	CHECK(WAIT_COUNT(3, 100000));
	CHECK_EQ(apic_read(APIC_IRR + 0x20), 0);
	CHECK_EQ(apic_read(APIC_ISR + 0x20), 0);
}

TEST(self_ipi)
{
	set_up();
	self_ipi_test();
}

TEST(x2apic)
{
	if (!HAS_X2APIC)
		skip("no x2APIC");
	set_up();
	apic_set_x2(true);
	CHECK_EQ(rdmsr(0x802), 0);
	self_ipi_test();
	wrmsr(0x83f, 0x48); /* SELF IPI */
	CHECK(WAIT_COUNT(4, 100000));
	CHECK_EQ(CATCH(rdmsr(0x831)), GP);        /* the xAPIC's ICR high half is not there */
	CHECK_EQ(CATCH(wrmsr(0x802, 1)), GP);     /* read only */
	CHECK_EQ(CATCH(wrmsr(0x80b, 1)), GP);     /* EOI takes only 0 */
	CHECK_EQ(CATCH(rdmsr(0x80b)), GP);        /* and is write only */
	CHECK_EQ(CATCH(wrmsr(0x808, 0x100)), GP); /* reserved */
	apic_set_x2(false);
	CHECK_EQ(apic_x2(), false);
	apic_enable();
	apic_icr(0, ICR_SELF | ICR_ASSERT | 0x45);
	CHECK(WAIT_COUNT(5, 100000));
}

TEST(x2apic_transitions)
{
	if (!HAS_X2APIC)
		skip("no x2APIC");
	set_up();
	u64 base = rdmsr(MSR_APIC_BASE);
	CHECK_EQ(CATCH(wrmsr(MSR_APIC_BASE, (base & ~0x800ull) | 0x400)), GP); /* EXTD without EN */
	CHECK_EQ(CATCH(rdmsr(0x802)), GP);                                     /* not in xAPIC mode */
	apic_set_x2(true);
	CHECK_EQ(CATCH(wrmsr(MSR_APIC_BASE, base)), GP); /* back only by way of disabled */
	apic_set_x2(false);
	apic_enable();
}

TEST(spurious_and_disabled)
{
	set_up();
	apic_write(APIC_SVR, 0xff); /* software-disabled: LVTs are masked, and stay so */
	apic_write(APIC_LVT_TIMER, 0x50);
	CHECK(apic_read(APIC_LVT_TIMER) & 0x10000);
	apic_write(APIC_SVR, 0x1ff);
	apic_enable();
}

TEST(eoi_order)
{
	set_up();
	/* level of the processor priority follows ISR and TPR */
	CHECK_EQ(apic_read(0xa0), 0);
	apic_write(APIC_TPR, 0x35);
	CHECK_EQ(apic_read(0xa0), 0x35);
	apic_write(APIC_TPR, 0);
}

/*
 * An interrupt that waits for the end of another, or for a lower priority of the task's, comes with the write that lets
 * it: before what is a few instructions behind, with IF set.
 */
static volatile unsigned seen_at[2];
static bool uncovers(struct frame *f)
{
	(void)f;
	apic_icr(0, ICR_SELF | ICR_ASSERT | 0x50);
	sti();
	asm volatile("nop; nop; nop" : : : "memory");
	seen_at[0] = count[0];
	apic_write(APIC_EOI, 0);
	asm volatile("nop; nop; nop" : : : "memory");
	seen_at[1] = count[0];
	cli();
	return true;
}
static void lower_priority(unsigned way)
{
	if (way)
		write_cr8(0);
	else
		apic_write(APIC_TPR, 0);
	asm volatile("nop; nop; nop" : : : "memory");
}
TEST(writes_uncover)
{
	for (unsigned i = 0; i < 40; i++) {
		set_up();
		set_handler(0x90, uncovers);
		apic_set_x2(i % 2 && HAS_X2APIC);
		apic_icr(0, ICR_SELF | ICR_ASSERT | 0x90);
		open_window();
		CHECK_EQ(seen_at[0], 0);
		CHECK_EQ(seen_at[1], 1);
		apic_write(APIC_TPR, 0x60);
		sti();
		apic_icr(0, ICR_SELF | ICR_ASSERT | 0x50);
		asm volatile("nop; nop; nop" : : : "memory");
		CHECK_EQ(count[0], 1);
		lower_priority(i / 2 % 2);
		CHECK_EQ(count[0], 2);
		cli();
		CHECK_EQ(apic_read(APIC_ISR + 0x20) | apic_read(APIC_IRR + 0x20), 0);
	}
	apic_set_x2(false);
	apic_enable();
}

/* ---- other processors ---- */
static void wait_with_interrupts(void *arg)
{
	unsigned me = this_cpu();
	apic_enable();
	sti();
	*(volatile bool *)arg = true;
	WAIT_FOR(count[me] >= 1, 5000000);
	cli();
}
static void halt_with_interrupts(void *arg)
{
	apic_enable();
	*(volatile bool *)arg = true;
	asm volatile("sti; hlt; cli" : : : "memory");
}

static void ipi_all(void (*fn)(void *), u32 low)
{
	static volatile bool ready[CPUS_MAX];
	memset((void *)count, 0, sizeof(count));
	for (unsigned i = 1; i < cpus; i++) {
		ready[i] = false;
		smp_post(i, fn, (void *)&ready[i]);
	}
	for (unsigned i = 1; i < cpus; i++)
		CHECK(WAIT_FOR(ready[i], 2000000));
	if (low)
		apic_icr(0, low | ICR_ASSERT | 0x60);
	for (unsigned i = 1; !low && i < cpus; i++)
		apic_icr(i, ICR_ASSERT | 0x60);
	for (unsigned i = 1; i < cpus; i++) {
		smp_wait(i);
		CHECK_EQ_IN(count[i], 1, "cpu %u", i);
	}
	if (low == ICR_ALL)
		CHECK(WAIT_COUNT(1, 100000));
	else
		CHECK_EQ(count[0], 0);
}

TEST(ipi)
{
	set_up();
	smp_start();
	for (unsigned i = 0; i < 20; i++) {
		ipi_all(wait_with_interrupts, 0);
		ipi_all(wait_with_interrupts, ICR_OTHERS);
		ipi_all(halt_with_interrupts, 0);
		ipi_all(halt_with_interrupts, ICR_ALL);
	}
}

TEST(ipi_logical)
{
	set_up();
	smp_start();
	/* flat model: the broadcast mask in xAPIC mode */
	apic_write(0xe0, 0xffffffff);
	apic_write(0xd0, 1 << 24);
	memset((void *)count, 0, sizeof(count));
	apic_icr(1, 0x800 | ICR_ASSERT | 0x61);
	CHECK(WAIT_COUNT(1, 100000));
}

/* A round trip many times over: nothing is lost between a halting processor and an IPI. */
static volatile unsigned ball;
static void player(void *arg)
{
	u64 rounds = (u64)arg;
	apic_enable();
	for (unsigned i = 0; i < rounds; i++) {
		cli();
		while (count[1] <= i)
			asm volatile("sti; hlt; cli" : : : "memory");
		apic_icr(0, ICR_ASSERT | 0x62);
	}
}
TEST(ping_pong)
{
	enum { ROUNDS = 2000 };
	if (cpus < 2)
		skip("one processor");
	set_up();
	smp_start();
	smp_post(1, player, (void *)ROUNDS);
	for (unsigned i = 0; i < ROUNDS; i++) {
		apic_icr(1, ICR_ASSERT | 0x62);
		cli();
		while (count[0] <= i)
			asm volatile("sti; hlt; cli" : : : "memory");
	}
	smp_wait(1);
	CHECK_EQ(count[0], ROUNDS);
	CHECK_EQ(count[1], ROUNDS);
}

/* INIT stops a processor whatever it does; a SIPI starts it anew. */
static void spin_forever(void *arg)
{
	*(volatile bool *)arg = true;
	for (;;)
		pause();
}
TEST(init_again)
{
	if (cpus < 2)
		skip("one processor");
	set_up();
	smp_start();
	static volatile bool spinning;
	spinning = false;
	smp_post(1, spin_forever, (void *)&spinning);
	CHECK(WAIT_FOR(spinning, 2000000));
	ap_forget(1);
	smp_start();
	ipi_all(wait_with_interrupts, 0);
}
/* run: cpus=4 */
