/* Processors that write into what the others run, and that start, stop and interrupt each other at any time. */
#include "guest.h"

const char payload[] = "smpstorm";

#define TIMER 0x60
#define CODE_PAGES 2
#define ROUNDS 1500

static volatile u32 gate;
static u8 *code; /* by its physical address */
static struct frame base;
static volatile unsigned wrong, runs;

/* Each processor draws from a sequence of its own. */
static u64 draw(u64 *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x * 0x2545f4914f6cdd1d;
}

/* Bytes that are worth running beside random ones: jumps in the same place, stores, INC, RET, INT3. */
static const u8 good[][8] = {
	{0xeb, 0xf0, 0x90, 0x90, 0xeb, 0xf8, 0x90, 0xcc}, {0x89, 0x07, 0xff, 0xc0, 0x48, 0xff, 0xc7, 0x90},
	{0xe8, 0x08, 0, 0, 0, 0x90, 0x90, 0xeb},          {0xc3, 0xcc, 0xc3, 0x90, 0x90, 0x90, 0x90, 0xc3},
	{0xf0, 0x48, 0x01, 0x07, 0x90, 0x74, 0x10, 0x90}, {0xaa, 0xaa, 0xab, 0x66, 0x90, 0xff, 0xc1, 0x90},
};

static void scribble(u64 *x)
{
	for (unsigned n = draw(x) % 8; n; n--) {
		u64 r = draw(x), at = r % (CODE_PAGES * PAGE - 8);
		switch (r >> 60 & 3) {
		case 0:
			code[at] = r >> 20;
			break;
		case 1:
			*(volatile u32 *)(code + at) = r >> 20;
			break;
		default:
			*(volatile u64 *)(code + (at & ~7ull)) = *(u64 *)good[(r >> 20) % 6];
		}
	}
}

static void set_timer(void)
{
	apic_enable();
	apic_timer(0x20000 | TIMER, 200000);
}

static void run_and_write(void *arg)
{
	u64 x = (*(u64 *)arg + this_cpu()) | 1;
	set_timer();
	wrmsr(MSR_EFER, EFER_DEFAULT & ~EFER_SCE); /* SYSCALL would go on in ring 0, rightly */
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < ROUNDS; i++) {
		scribble(&x);
		struct frame f = base;
		u64 *r = &f.r15;
		for (unsigned k = 0; k < 15; k++)
			r[k] = draw(&x) & 1 ? draw(&x) >> 58 : USER_CODE + draw(&x) % (CODE_PAGES * PAGE);
		f.rip = USER_CODE + draw(&x) % (CODE_PAGES * PAGE);
		f.rflags = 0x202;
		struct trap *t = run_frame(&f);
		if (t->f.vector == TIMER)
			apic_write(APIC_EOI, 0);
		if ((t->f.cs & 3) != 3 || !(t->f.rflags & 0x200))
			__atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
		__atomic_add_fetch(&runs, 1, __ATOMIC_RELAXED);
	}
	wrmsr(MSR_EFER, EFER_DEFAULT);
	apic_write(APIC_TIMER_INIT, 0);
}

static void cross_writing(unsigned mode)
{
	static const u8 nop[] = {0x90}, *const nop_end = nop + 1;
	u64 seed = random64();
	smp_start();
	base = user_code(nop, nop_end, mode);
	code = alloc_pages(CODE_PAGES);
	for (unsigned i = 0; i < CODE_PAGES; i++)
		map(USER_CODE + i * PAGE, (u64)code + i * PAGE, PTE_USER);
	for (unsigned i = 0; i < CODE_PAGES * PAGE / 8; i++)
		((u64 *)code)[i] = random64();
	wrong = runs = 0;
	smp_all(run_and_write, &seed);
	CHECK_EQ(wrong, 0);
	CHECK_EQ(runs, ROUNDS * cpus);
}
TEST(write_others_code)
{
	cross_writing(64);
}
TEST(write_others_code_32)
{
	cross_writing(32);
}

/* ---- starts and stops ---- */
#define LOOP_PAGE 0x9000
#define HALT_AT 0x9800
static volatile u32 counters[CPUS_MAX];

static void count_forever(void *arg)
{
	(void)arg;
	for (;;)
		counters[this_cpu()]++;
}

/* Real-mode places to start at: one that counts and one that halts, where every real-mode exception ends as well. */
static void lay_out(void)
{
	static const u8 loop[] = {0x2e, 0xff, 0x06, 0x00, 0x01, 0xeb, 0xf9}; /* incw %cs:0x100; jmp */
	static const u8 halt[] = {0xfa, 0xf4, 0xeb, 0xfc};                   /* cli; hlt; jmp */
	memcpy((void *)LOOP_PAGE, loop, sizeof(loop));
	memcpy((void *)HALT_AT, halt, sizeof(halt));
	volatile u32 *ivt = (volatile u32 *)0;
	asm volatile("" : "+r"(ivt));
	for (unsigned i = 0; i < 256; i++)
		ivt[i] = (LOOP_PAGE >> 4) << 16 | (HALT_AT - LOOP_PAGE);
}

static u32 some_order(u64 r)
{
	static const u8 pages[] = {TRAMPOLINE >> 12, TRAMPOLINE >> 12, LOOP_PAGE >> 12, 0xa0, 0xc8, 0xff};
	switch (r & 7) {
	case 0:
	case 1:
	case 2:
		return ICR_INIT | ICR_ASSERT;
	case 3:
		return ICR_INIT | 0x8000; /* level, deassert: nothing */
	case 4:
		return 0x200 | ICR_ASSERT; /* SMI */
	case 5:
		return ICR_ASSERT | (32 + (r >> 8) % 224); /* an interrupt, for which none of them is ready */
	default:
		return ICR_SIPI | ICR_ASSERT | pages[(r >> 8) % sizeof(pages)];
	}
}

static void all_answer(void)
{
	u64 seed = 1;
	for (unsigned i = 1; i < cpus; i++)
		ap_forget(i);
	smp_start();
	static const u8 nop[] = {0x90}, *const nop_end = nop + 1;
	base = user_code(nop, nop_end, 64);
	code = alloc_pages(CODE_PAGES);
	for (unsigned i = 0; i < CODE_PAGES; i++)
		map(USER_CODE + i * PAGE, (u64)code + i * PAGE, PTE_USER);
	wrong = runs = 0;
	smp_all(run_and_write, &seed);
	CHECK_EQ(wrong, 0);
	CHECK_EQ(runs, ROUNDS * cpus);
}

TEST(init_sipi)
{
	if (cpus < 2)
		skip("one processor");
	lay_out();
	smp_start();
	for (unsigned i = 1; i < cpus; i++)
		smp_post(i, count_forever, NULL);
	for (unsigned i = 0; i < 4000; i++) {
		u64 r = random64();
		apic_icr(1 + (r >> 32) % (cpus - 1), some_order(r));
		if (!(r >> 48 & 63))
			delay_us(200); /* long enough to get somewhere */
	}
	apic_icr(0, ICR_INIT | ICR_ASSERT | ICR_OTHERS);
	all_answer();
}

/* NMIs without end, to all, while they run what all write. */
static bool on_nmi(struct frame *f)
{
	return true;
}
static void nmi_others(void *arg)
{
	(void)arg;
	apic_enable();
	barrier_wait(&gate, cpus);
	for (unsigned i = 0; i < 1000; i++) {
		apic_icr(0, ICR_NMI | ICR_ASSERT | ICR_OTHERS);
		counters[this_cpu()]++;
	}
	barrier_wait(&gate, cpus);
}
TEST(nmi_storm)
{
	if (cpus < 2)
		skip("one processor");
	smp_start();
	set_handler(NMI, on_nmi);
	smp_all(nmi_others, NULL);
	delay_us(1000); /* the last ones arrive */
}

/* run: cpus=3 timeout=60 */
