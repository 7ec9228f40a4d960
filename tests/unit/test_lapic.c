/* Local APICs and the bus between them, against SDM Vol. 3A ch. 11. */
#include "dev/lapic.h"
#include "device_test.h"

#define CPUS 4

static struct apic_bus *apics;
static struct lapic *l[CPUS];
static unsigned notified[CPUS][8];
static unsigned eois, last_eoi;
static bool pic_pending;
static uint8_t pic_vector;

static void notify(void *opaque, unsigned cpu, enum apic_event event, uint8_t vector)
{
	notified[cpu][event]++;
}

static void eoi_seen(void *opaque, uint8_t vector)
{
	eois++;
	last_eoi = vector;
}

static bool extint_pending(void *opaque)
{
	return pic_pending;
}

static int extint_ack(void *opaque)
{
	pic_pending = false;
	return pic_vector;
}

static void begin(void)
{
	struct apic_bus_config config = {.clock = &test_clock,
					 .cpus = CPUS,
					 .phys_bits = 40,
					 .x2apic = true,
					 .tsc_deadline = true,
					 .notify = notify};
	struct apic_extint extint = {extint_pending, extint_ack, NULL};

	setup();
	memset(notified, 0, sizeof(notified));
	eois = last_eoi = 0;
	pic_pending = false;
	apics = apic_bus_create(&config);
	REQUIRE(apics);
	REQUIRE(apic_bus_attach(apics, &test_bus));
	apic_bus_set_extint(apics, &extint);
	apic_bus_set_eoi(apics, eoi_seen, NULL);
	for (unsigned i = 0; i < CPUS; i++)
		l[i] = apic_bus_lapic(apics, i);
}

static void end(void)
{
	struct device d = apic_bus_device(apics);

	d.destroy(d.opaque);
	teardown();
}

static uint32_t rd(unsigned cpu, unsigned off)
{
	return bus_read(&test_bus, BUS_MMIO, APIC_MMIO_BASE + off, 4, cpu);
}

static void wr(unsigned cpu, unsigned off, uint32_t value)
{
	bus_write(&test_bus, BUS_MMIO, APIC_MMIO_BASE + off, 4, value, cpu);
}

static uint64_t rdmsr(unsigned cpu, uint32_t msr)
{
	uint64_t v = 0xdead;

	CHECK(lapic_msr_read(l[cpu], msr, &v));
	return v;
}

static bool wrmsr(unsigned cpu, uint32_t msr, uint64_t v)
{
	return lapic_msr_write(l[cpu], msr, v);
}

static void enable_all(void)
{
	for (unsigned i = 0; i < CPUS; i++)
		wr(i, 0xf0, 0x1ff);
}

static void to_x2apic(unsigned cpu)
{
	CHECK(wrmsr(cpu, 0x1b, rdmsr(cpu, 0x1b) | APIC_BASE_EXTD));
}

static void send_fixed(unsigned cpu, uint8_t vector, bool level)
{
	struct apic_message m = {.dest = cpu, .vector = vector, .level = level};

	apic_bus_send(apics, &m);
}

TEST(reset_values)
{
	begin();
	CHECK_EQ(rd(0, 0x20), 0);
	CHECK_EQ(rd(2, 0x20), 2u << 24);
	CHECK_EQ(rd(0, 0x30), 0x00050014);
	CHECK_EQ(rd(0, 0xf0), 0xff);
	CHECK_EQ(rd(0, 0xe0), 0xffffffff);
	for (unsigned off = 0x320; off <= 0x370; off += 0x10)
		CHECK_EQ(rd(0, off), 0x10000);
	CHECK_EQ(lapic_base(l[0]), 0xfee00900);
	CHECK_EQ(lapic_base(l[1]), 0xfee00800);
	wr(1, 0x20, 7u << 24); /* the ID stays */
	CHECK_EQ(rd(1, 0x20), 1u << 24);
	end();
}

TEST(priorities)
{
	begin();
	send_fixed(0, 0x41, false);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE); /* software disabled: not taken */
	CHECK_EQ(notified[0][APIC_EVENT_INTERRUPT], 0);
	enable_all();
	send_fixed(0, 0x41, false);
	send_fixed(0, 0x41, false);
	CHECK_EQ(notified[0][APIC_EVENT_INTERRUPT], 1); /* one request */
	send_fixed(0, 0x52, false);
	CHECK_EQ(rd(0, 0x220), 0x40002);
	CHECK_EQ(lapic_pending(l[0]), 0x52);
	CHECK_EQ(lapic_ack(l[0]), 0x52);
	CHECK_EQ(rd(0, 0x120), 1u << 18);
	CHECK_EQ(rd(0, 0xa0), 0x50);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	send_fixed(0, 0x5f, false); /* the same class waits */
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	send_fixed(0, 0x60, false);
	CHECK_EQ(lapic_ack(l[0]), 0x60);
	wr(0, 0xb0, 0);
	wr(0, 0xb0, 0);
	CHECK_EQ(rd(0, 0xa0), 0);
	CHECK_EQ(lapic_ack(l[0]), 0x5f);
	wr(0, 0xb0, 0);
	lapic_set_cr8(l[0], 4);
	CHECK_EQ(rd(0, 0x80), 0x40);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	wr(0, 0x80, 0x3f);
	CHECK_EQ(lapic_cr8(l[0]), 3);
	CHECK_EQ(lapic_ack(l[0]), 0x41);
	CHECK_EQ(lapic_ack(l[0]), LAPIC_NONE);
	wr(0, 0xb0, 0);
	wr(0, 0xb0, 0); /* one EOI too many */
	end();
}

TEST(eoi_of_levels)
{
	begin();
	enable_all();
	send_fixed(1, 0x71, true);
	CHECK_EQ(rd(1, 0x1b0), 1u << 17);
	CHECK_EQ(lapic_ack(l[1]), 0x71);
	wr(1, 0xb0, 0);
	CHECK_EQ(eois, 1);
	CHECK_EQ(last_eoi, 0x71);
	send_fixed(1, 0x71, false);
	CHECK_EQ(rd(1, 0x1b0), 0);
	lapic_ack(l[1]);
	wr(1, 0xb0, 0);
	CHECK_EQ(eois, 1);
	end();
}

static bool irr_has(unsigned cpu, uint8_t vector)
{
	uint64_t base = lapic_base(l[cpu]);
	unsigned reg = 0x200 + vector / 32 * 0x10;
	uint64_t v = base & APIC_BASE_EXTD ? rdmsr(cpu, 0x800 + reg / 16) : rd(cpu, reg);

	return v >> (vector & 31) & 1;
}

/* Which CPUs a message reached; takes it back out. */
static unsigned reached(uint8_t vector)
{
	unsigned mask = 0;

	for (unsigned i = 0; i < CPUS; i++) {
		if (!irr_has(i, vector))
			continue;
		mask |= 1u << i;
		CHECK_EQ(lapic_ack(l[i]), vector);
		if (lapic_base(l[i]) & APIC_BASE_EXTD)
			CHECK(wrmsr(i, 0x80b, 0));
		else
			wr(i, 0xb0, 0);
	}
	return mask;
}

static void icr(unsigned cpu, uint8_t dest, uint32_t low)
{
	wr(cpu, 0x310, (uint32_t)dest << 24);
	wr(cpu, 0x300, low);
}

TEST(ipi_destinations)
{
	begin();
	enable_all();
	icr(0, 2, 0x31);
	CHECK_EQ(reached(0x31), 4);
	CHECK_EQ(rd(0, 0x300), 0x31);
	icr(0, 0xff, 0x31);
	CHECK_EQ(reached(0x31), 0xf);
	icr(0, 9, 0x31);
	CHECK_EQ(reached(0x31), 0);
	icr(1, 0, 0x40031);
	CHECK_EQ(reached(0x31), 2);
	icr(1, 0, 0x80031);
	CHECK_EQ(reached(0x31), 0xf);
	icr(1, 0, 0xc0031);
	CHECK_EQ(reached(0x31), 0xd);
	/* flat */
	for (unsigned i = 0; i < CPUS; i++)
		wr(i, 0xd0, 1u << (24 + i));
	icr(0, 0x0a, 0x831);
	CHECK_EQ(reached(0x31), 0xa);
	/* clusters of two */
	for (unsigned i = 0; i < CPUS; i++) {
		wr(i, 0xe0, 0x0fffffff);
		wr(i, 0xd0, (i / 2) << 28 | 1u << (24 + i % 2));
	}
	CHECK_EQ(rd(0, 0xe0), 0x0fffffff);
	icr(0, 0x13, 0x831);
	CHECK_EQ(reached(0x31), 0xc);
	icr(0, 0x02, 0x831);
	CHECK_EQ(reached(0x31), 2);
	icr(0, 0xf1, 0x831);
	CHECK_EQ(reached(0x31), 5);
	end();
}

TEST(lowest_priority)
{
	unsigned all = 0;

	begin();
	enable_all();
	for (unsigned i = 0; i < CPUS; i++)
		wr(i, 0xd0, 1u << (24 + i));
	wr(0, 0x80, 0x10);
	wr(1, 0x80, 0x10);
	wr(2, 0x80, 0x10);
	icr(0, 0x0f, 0x931);
	CHECK_EQ(reached(0x31), 8);
	icr(0, 0x07, 0x931);
	for (unsigned i = 0; i < CPUS; i++)
		wr(i, 0x80, 0);
	CHECK_EQ(__builtin_popcount(reached(0x31)), 1);
	for (unsigned i = 0; i < 16; i++) { /* equals take turns */
		icr(0, 0x0f, 0x931);
		all |= reached(0x31);
	}
	CHECK_EQ(all, 0xf);
	wr(3, 0xf0, 0xff);
	icr(0, 0x08, 0x931); /* disabled: nobody */
	CHECK_EQ(reached(0x31), 0);
	end();
}

TEST(init_sipi_nmi)
{
	uint8_t vector = 0;

	begin();
	icr(0, 1, 0x4500); /* INIT, assert */
	icr(0, 1, 0x8500); /* INIT, level de-assert: nothing */
	CHECK_EQ(notified[1][APIC_EVENT_INIT], 1);
	icr(0, 1, 0x4608);
	CHECK_EQ(notified[1][APIC_EVENT_SIPI], 1);
	CHECK_EQ(lapic_events(l[1]), BIT(APIC_EVENT_INIT) | BIT(APIC_EVENT_SIPI));
	CHECK_EQ(lapic_take_events(l[1], &vector), BIT(APIC_EVENT_INIT) | BIT(APIC_EVENT_SIPI));
	CHECK_EQ(vector, 8);
	CHECK_EQ(lapic_take_events(l[1], &vector), 0);
	icr(0, 2, 0x4608); /* a SIPI before INIT is forgotten */
	icr(0, 2, 0x4500);
	CHECK_EQ(lapic_take_events(l[2], &vector), BIT(APIC_EVENT_INIT));
	icr(0, 3, 0x400);
	CHECK_EQ(lapic_take_events(l[3], &vector), BIT(APIC_EVENT_NMI));
	icr(0, 0, 0xc0400); /* NMI to all others */
	CHECK_EQ(lapic_events(l[0]), 0);
	CHECK_EQ(lapic_events(l[1]), BIT(APIC_EVENT_NMI));
	end();
}

/* The processor takes INIT, and what is sent meanwhile comes after it: the start-up IPI is not forgotten. */
TEST(sipi_while_init_is_taken)
{
	uint8_t vector = 0;

	begin();
	icr(0, 1, 0x4500);
	CHECK_EQ(lapic_take_events(l[1], &vector), BIT(APIC_EVENT_INIT));
	icr(0, 1, 0x4609);
	lapic_reset(l[1], true);
	CHECK_EQ(lapic_take_events(l[1], &vector), BIT(APIC_EVENT_SIPI));
	CHECK_EQ(vector, 9);
	icr(0, 1, 0x4500); /* power is another matter */
	lapic_reset(l[1], false);
	CHECK_EQ(lapic_events(l[1]), 0);
	end();
}

TEST(init_keeps_mode)
{
	begin();
	to_x2apic(1);
	CHECK(wrmsr(1, 0x80f, 0x1ff));
	CHECK(wrmsr(1, 0x808, 0x20));
	lapic_reset(l[1], true);
	CHECK_EQ(rdmsr(1, 0x1b), 0xfee00c00);
	CHECK_EQ(rdmsr(1, 0x80f), 0xff);
	CHECK_EQ(rdmsr(1, 0x808), 0);
	CHECK_EQ(rdmsr(1, 0x80d), 2);
	CHECK_EQ(rdmsr(1, 0x802), 1);
	lapic_reset(l[1], false);
	CHECK_EQ(lapic_base(l[1]), 0xfee00800);
	end();
}

TEST(base_transitions)
{
	uint64_t v;

	begin();
	CHECK(!wrmsr(1, 0x1b, 0xfee00400)); /* EXTD without EN */
	CHECK(!wrmsr(1, 0x1b, 0xfee00a00)); /* reserved bit 9 */
	CHECK(!wrmsr(1, 0x1b, BIT(40) | 0xfee00800));
	wr(1, 0xf0, 0x1ff);
	CHECK(wrmsr(1, 0x1b, 0xfee00000)); /* xAPIC → disabled */
	CHECK_EQ(rd(1, 0xf0), 0xffffffff);
	CHECK(!lapic_msr_read(l[1], 0x80f, &v));
	CHECK(!wrmsr(1, 0x1b, 0xfee00c00)); /* disabled → x2APIC */
	CHECK(wrmsr(1, 0x1b, 0xfee00800));
	CHECK_EQ(rd(1, 0xf0), 0xff); /* it was reset */
	CHECK(wrmsr(1, 0x1b, 0xfee00c00));
	CHECK_EQ(rd(1, 0xf0), 0xffffffff);  /* no page in x2APIC mode */
	CHECK(!wrmsr(1, 0x1b, 0xfee00800)); /* x2APIC → xAPIC */
	CHECK(wrmsr(1, 0x1b, 0xfee00000));
	CHECK(wrmsr(0, 0x1b, 0xfee00800)); /* BSP is not ours to clear */
	CHECK_EQ(lapic_base(l[0]), 0xfee00900);
	end();
}

TEST(x2apic_registers)
{
	uint64_t v;

	begin();
	CHECK(!lapic_msr_read(l[2], 0x802, &v)); /* not in x2APIC mode */
	CHECK(!wrmsr(2, 0x80f, 0x1ff));
	to_x2apic(2);
	CHECK_EQ(rdmsr(2, 0x802), 2);
	CHECK(!wrmsr(2, 0x802, 2));
	CHECK_EQ(rdmsr(2, 0x803), 0x50014);
	CHECK_EQ(rdmsr(2, 0x80d), 4);
	CHECK(!wrmsr(2, 0x80d, 4));
	CHECK(!lapic_msr_read(l[2], 0x80e, &v)); /* DFR */
	CHECK(!lapic_msr_read(l[2], 0x809, &v)); /* APR */
	CHECK(!lapic_msr_read(l[2], 0x80b, &v)); /* EOI is write-only */
	CHECK(!lapic_msr_read(l[2], 0x83f, &v));
	CHECK(!lapic_msr_read(l[2], 0x831, &v));
	CHECK(!lapic_msr_read(l[2], 0x840, &v));
	CHECK(!lapic_msr_read(l[2], 0x8ff, &v));
	CHECK(!lapic_msr_read(l[2], 0x800, &v));
	CHECK(!wrmsr(2, 0x80b, 1)); /* EOI takes 0 only */
	CHECK(wrmsr(2, 0x80b, 0));
	CHECK(!wrmsr(2, 0x828, 1));
	CHECK(wrmsr(2, 0x828, 0));
	CHECK(!wrmsr(2, 0x808, 0x100));
	CHECK(!wrmsr(2, 0x80f, 0x10000));
	CHECK(!wrmsr(2, 0x832, 0x80000));
	CHECK(!wrmsr(2, 0x83e, 4));
	CHECK(!wrmsr(2, 0x839, 0));
	CHECK(!wrmsr(2, 0x838, BIT(32)));
	CHECK(!wrmsr(2, 0x830, 0x2031)); /* reserved bit 13 */
	CHECK(!wrmsr(2, 0x83f, 0x100));
	CHECK(wrmsr(2, 0x80f, 0x1ff));
	CHECK(wrmsr(2, 0x83f, 0x44)); /* self IPI */
	CHECK_EQ(reached(0x44), 4);
	end();
}

TEST(x2apic_ipis)
{
	begin();
	for (unsigned i = 0; i < CPUS; i++) {
		to_x2apic(i);
		CHECK(wrmsr(i, 0x80f, 0x1ff));
	}
	CHECK(wrmsr(0, 0x830, 3ull << 32 | 0x31));
	CHECK_EQ(reached(0x31), 8);
	CHECK_EQ(rdmsr(0, 0x830), 3ull << 32 | 0x31);
	CHECK(wrmsr(0, 0x830, 0xffffffffull << 32 | 0x31));
	CHECK_EQ(reached(0x31), 0xf);
	CHECK(wrmsr(0, 0x830, 0xffull << 32 | 0x31)); /* an ID like any other */
	CHECK_EQ(reached(0x31), 0);
	CHECK(wrmsr(0, 0x830, 0x00006ull << 32 | 0x831)); /* logical, cluster 0 */
	CHECK_EQ(reached(0x31), 6);
	CHECK(wrmsr(0, 0x830, 0x10006ull << 32 | 0x831)); /* cluster 1: CPUs 16 and up */
	CHECK_EQ(reached(0x31), 0);
	end();
}

TEST(illegal_vectors)
{
	begin();
	enable_all();
	wr(0, 0x370, 0x55); /* error interrupt */
	icr(0, 1, 0x0f);
	CHECK_EQ(lapic_ack(l[0]), 0x55);
	CHECK_EQ(rd(0, 0x280), 0);
	wr(0, 0x280, 0);
	CHECK_EQ(rd(0, 0x280), 0x20);
	wr(0, 0x280, 0);
	CHECK_EQ(rd(0, 0x280), 0);
	wr(0, 0xb0, 0);
	send_fixed(0, 3, false);
	wr(0, 0x280, 0);
	CHECK_EQ(rd(0, 0x280), 0x40);
	rd(0, 0x00); /* no such register */
	rd(0, 0xff0);
	wr(0, 0x280, 0);
	CHECK_EQ(rd(0, 0x280), 0x80);
	wr(0, 0x370, 0x5); /* a bad vector for errors: no loop */
	send_fixed(0, 3, false);
	end();
}

TEST(msi)
{
	begin();
	struct msi_sink msi = apic_bus_msi(apics);

	enable_all();
	for (unsigned i = 0; i < CPUS; i++)
		wr(i, 0xd0, 1u << (24 + i));
	msi.send(msi.opaque, 0xfee02000, 0x61);
	CHECK_EQ(reached(0x61), 4);
	msi.send(msi.opaque, 0xfee0a004, 0x61);
	CHECK_EQ(reached(0x61), 0xa);
	msi.send(msi.opaque, 0xfee0f00c, 0x161);
	CHECK_EQ(__builtin_popcount(reached(0x61)), 1);
	msi.send(msi.opaque, 0xfed02000, 0x61); /* not for us */
	msi.send(msi.opaque, 0x1fee02000, 0x61);
	CHECK_EQ(reached(0x61), 0);
	msi.send(msi.opaque, 0xfee02000, 0x400);
	CHECK_EQ(lapic_events(l[2]), BIT(APIC_EVENT_NMI));
	msi.send(msi.opaque, 0xfee03000, 0x608); /* no SIPI from devices */
	CHECK_EQ(lapic_events(l[3]), 0);
	end();
}

TEST(software_disable_masks)
{
	begin();
	wr(0, 0xf0, 0x1ff);
	wr(0, 0x350, 0x700);
	CHECK_EQ(rd(0, 0x350), 0x700);
	wr(0, 0xf0, 0xff);
	CHECK_EQ(rd(0, 0x350), 0x10700);
	wr(0, 0x350, 0x700); /* can't be unmasked while disabled */
	CHECK_EQ(rd(0, 0x350), 0x10700);
	end();
}

TEST(virtual_wire)
{
	begin();
	struct irq_line lint0 = apic_bus_lint0(apics), lint1 = apic_bus_lint1(apics);
	uint8_t vector;

	pic_pending = true;
	pic_vector = 0x30;
	irq_set(&lint0, true);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE); /* masked after reset */
	lapic_virtual_wire(l[0]);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_EXTINT);
	CHECK_EQ(lapic_pending(l[1]), LAPIC_NONE);
	irq_set(&lint0, true);
	CHECK_EQ(notified[0][APIC_EVENT_EXTINT], 1);
	wr(0, 0x80, 0xff); /* task priority doesn't hold it back */
	CHECK_EQ(lapic_ack(l[0]), 0x30);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	CHECK_EQ(rd(0, 0x110), 0);
	irq_set(&lint1, true);
	irq_set(&lint1, true);
	CHECK_EQ(notified[0][APIC_EVENT_NMI], 1);
	CHECK_EQ(notified[1][APIC_EVENT_NMI], 0); /* theirs is masked */
	lapic_take_events(l[0], &vector);
	pic_pending = true;
	wr(0, 0x350, 0x10700);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	wr(0, 0x350, 0x00031);                     /* fixed: unmasked while asserted */
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE); /* by TPR */
	wr(0, 0x80, 0);
	CHECK_EQ(lapic_ack(l[0]), 0x31);
	CHECK(wrmsr(0, 0x1b, 0xfee00000)); /* no APIC at all: straight from the 8259 */
	CHECK_EQ(lapic_ack(l[0]), 0x30);
	end();
}

TEST(timer_one_shot)
{
	begin();
	enable_all();
	wr(0, 0x3e0, 0xb); /* by 1 */
	wr(0, 0x320, 0x40);
	wr(0, 0x380, 1000);
	pass(400);
	CHECK_EQ(rd(0, 0x390), 600);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	pass(599);
	CHECK_EQ(rd(0, 0x390), 1);
	pass(1);
	CHECK_EQ(rd(0, 0x390), 0);
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	wr(0, 0xb0, 0);
	pass(100000);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	CHECK_EQ(lapic_timer_deadline(l[0]), CLOCK_NEVER);
	/* divided by 16, masked: counts, and says nothing */
	wr(0, 0x3e0, 3);
	wr(0, 0x320, 0x10040);
	wr(0, 0x380, 100);
	pass(160);
	CHECK_EQ(rd(0, 0x390), 90);
	wr(0, 0x3e0, 0xb); /* the count goes on, faster */
	CHECK_EQ(rd(0, 0x390), 90);
	pass(89);
	CHECK_EQ(rd(0, 0x390), 1);
	pass(1000);
	CHECK_EQ(rd(0, 0x390), 0);
	wr(0, 0x320, 0x40); /* too late */
	pass(1000);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	/* unmasked in time */
	wr(0, 0x320, 0x10040);
	wr(0, 0x380, 100);
	pass(50);
	wr(0, 0x320, 0x41);
	pass(50);
	CHECK_EQ(lapic_ack(l[0]), 0x41);
	wr(0, 0x380, 100);
	wr(0, 0x380, 0); /* stopped */
	pass(1000);
	wr(0, 0xb0, 0);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	end();
}

TEST(timer_late)
{
	begin();
	enable_all();
	wr(0, 0x3e0, 0xb);
	wr(0, 0x320, 0x40);
	wr(0, 0x380, 1000);
	test_clock.now += 1500; /* the clock's thread is late */
	wr(0, 0x320, 0x10041);  /* what had expired was not masked then, and had the old vector */
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	wr(0, 0xb0, 0);
	pass(0);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	end();
}

TEST(timer_periodic)
{
	unsigned n = 0;

	begin();
	enable_all();
	wr(0, 0x3e0, 0); /* by 2 */
	wr(0, 0x320, 0x20040);
	wr(0, 0x380, 500000); /* 1 ms */
	for (unsigned i = 0; i < 1000; i++) {
		pass(999999);
		CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
		pass(1);
		if (lapic_ack(l[0]) == 0x40)
			n++;
		wr(0, 0xb0, 0);
	}
	CHECK_EQ(n, 1000);
	CHECK_EQ(rd(0, 0x390), 500000);
	pass_late(3500000); /* three periods are one interrupt; the phase stays */
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	wr(0, 0xb0, 0);
	CHECK_EQ(rd(0, 0x390), 250000);
	CHECK_EQ(lapic_timer_deadline(l[0]), test_clock.now + 500000);
	/* one-shot from here: one more, then the end */
	wr(0, 0x320, 0x40);
	CHECK_EQ(rd(0, 0x390), 250000);
	pass(500000);
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	wr(0, 0xb0, 0);
	CHECK_EQ(rd(0, 0x390), 0);
	pass(5000000);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	end();
}

TEST(timer_too_fast)
{
	begin();
	enable_all();
	wr(0, 0x3e0, 0xb);
	wr(0, 0x320, 0x20040);
	wr(0, 0x380, 1); /* 1 ns */
	test_clock.fired = 0;
	pass(1000000);
	CHECK(test_clock.fired <= 51);
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	end();
}

/* While its interrupt waits, a periodic timer has nothing to say: a guest that takes none costs the host nothing. */
TEST(timer_not_taken)
{
	begin();
	enable_all();
	wr(0, 0x3e0, 0xb);
	wr(0, 0x320, 0x20040);
	wr(0, 0x380, 30000);
	test_clock.fired = 0;
	pass(10000000 + 10000);
	CHECK(test_clock.fired <= 2);
	CHECK_EQ(rd(0, 0x390), 10000);
	CHECK_EQ(lapic_ack(l[0]), 0x40); /* all that passed are one */
	wr(0, 0xb0, 0);
	pass(9999);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	pass(1);
	CHECK_EQ(lapic_pending(l[0]), 0x40);
	test_clock.fired = 0;
	pass(1000000);
	CHECK(test_clock.fired <= 1);
	wr(0, 0x320, 0x20041); /* another vector does not wait */
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	wr(0, 0xb0, 0);
	pass(30000);
	CHECK_EQ(lapic_ack(l[0]), 0x41);
	wr(0, 0xb0, 0);
	send_fixed(0, 0x41, false); /* an IPI of the same vector is the same request */
	pass(100000);
	CHECK_EQ(lapic_ack(l[0]), 0x41);
	wr(0, 0xb0, 0);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	pass(30000);
	CHECK_EQ(lapic_ack(l[0]), 0x41);
	end();
}

TEST(timer_tsc_deadline)
{
	uint64_t far;

	begin();
	enable_all();
	pass(NS_PER_S);
	CHECK(wrmsr(0, 0x6e0, 5)); /* not in this mode: ignored */
	CHECK_EQ(rdmsr(0, 0x6e0), 0);
	wr(0, 0x320, 0x40040);
	CHECK(wrmsr(0, 0x6e0, 1)); /* long past: at once */
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	wr(0, 0xb0, 0);
	CHECK_EQ(rdmsr(0, 0x6e0), 0);
	far = BIT(50) + 1;
	CHECK(wrmsr(0, 0x6e0, far));
	CHECK_EQ(rdmsr(0, 0x6e0), far);
	CHECK_EQ(lapic_timer_deadline(l[0]), far / 2 + 1); /* 2 GHz */
	CHECK_EQ(rd(0, 0x390), 0);
	wr(0, 0x380, 100); /* the count register is dead in this mode */
	CHECK_EQ(rd(0, 0x380), 0);
	pass(far / 2 - NS_PER_S);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	CHECK_EQ(rdmsr(0, 0x6e0), far);
	pass(1);
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	wr(0, 0xb0, 0);
	CHECK(wrmsr(0, 0x6e0, 2 * far));
	lapic_set_tsc_offset(l[0], (uint64_t)-1000); /* the guest moves its TSC back, and the deadline away */
	CHECK_EQ(lapic_timer_deadline(l[0]), far + 500);
	lapic_set_tsc_offset(l[0], far); /* beyond it */
	CHECK_EQ(lapic_ack(l[0]), 0x40);
	wr(0, 0xb0, 0);
	lapic_set_tsc_offset(l[0], 0);
	CHECK(wrmsr(0, 0x6e0, 2 * far));
	CHECK(wrmsr(0, 0x6e0, 0)); /* disarmed */
	CHECK_EQ(lapic_timer_deadline(l[0]), CLOCK_NEVER);
	CHECK(wrmsr(0, 0x6e0, ~0ull)); /* never, in effect */
	pass(NS_PER_S);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	wr(0, 0x320, 0x40); /* another mode disarms */
	CHECK_EQ(rdmsr(0, 0x6e0), 0);
	CHECK_EQ(lapic_timer_deadline(l[0]), CLOCK_NEVER);
	/* masked when it passes: nothing, then or later */
	wr(0, 0x320, 0x50040);
	CHECK(wrmsr(0, 0x6e0, 1));
	wr(0, 0x320, 0x40040);
	CHECK_EQ(lapic_pending(l[0]), LAPIC_NONE);
	end();
}

TEST(state)
{
	begin();
	struct bus other_bus;
	struct apic_bus *other;
	struct apic_bus_config config = {
		.clock = &test_clock, .cpus = CPUS, .x2apic = true, .tsc_deadline = true, .notify = notify};
	struct device e;
	struct lapic *m;

	bus_init(&other_bus);
	other = apic_bus_create(&config);
	e = apic_bus_device(other);
	enable_all();
	send_fixed(1, 0x71, true);
	send_fixed(1, 0x82, false);
	lapic_ack(l[1]);
	wr(1, 0x80, 0x20);
	wr(1, 0x3e0, 0xb);
	wr(1, 0x320, 0x20040);
	wr(1, 0x380, 1000000);
	to_x2apic(2);
	pass(400000);
	move_state(apic_bus_device(apics), e);
	m = apic_bus_lapic(other, 1);
	CHECK_EQ(lapic_mmio_read(m, 0x390, 4), 600000);
	CHECK_EQ(lapic_mmio_read(m, 0x80, 4), 0x20);
	lapic_mmio_write(m, 0xb0, 4, 0);
	CHECK_EQ(lapic_ack(m), 0x71);
	lapic_mmio_write(m, 0xb0, 4, 0);
	CHECK_EQ(lapic_pending(m), LAPIC_NONE);
	pass(600000);
	CHECK_EQ(lapic_ack(m), 0x40);
	CHECK_EQ(lapic_base(apic_bus_lapic(other, 2)), 0xfee00c00);
	for (unsigned i = 0; i < 200; i++) {
		load_noise(e, i);
		pass(1000000);
		for (unsigned off = 0; off < 0x400; off += 0x10) {
			lapic_mmio_read(m, off, 4);
			lapic_mmio_write(m, off, 4, off * 77);
		}
	}
	e.destroy(e.opaque);
	bus_destroy(&other_bus);
	end();
}

/* IA32_APIC_BASE of a stream: modes and bits that there are not do not come of it. */
TEST(loaded_base)
{
	static const struct {
		uint64_t stream, loaded;
	} row[] = {
		{0xfee00d00, 0xfee00d00},
		{0xfee00800, 0xfee00900},
		{0xfee00500, 0xfee00100}, /* x2APIC, and off */
		{~0ull, 0xfffffffd00},
	};
	struct state_stream save = {.saving = true};
	struct device d;

	begin();
	d = apic_bus_device(apics);
	d.state(d.opaque, &save);
	for (unsigned i = 0; i < ARRAY_LEN(row); i++) {
		struct state_stream load = {.data = save.data, .len = save.len};

		memcpy(save.data + sizeof(uint32_t), &row[i].stream, sizeof(row[i].stream));
		d.state(d.opaque, &load);
		CHECK(!load.failed);
		CHECK_EQ(lapic_base(l[0]), row[i].loaded);
		CHECK_EQ(lapic_base(l[1]), 0xfee00800);
	}
	state_end(&save);
	end();
}

TEST(hostile)
{
	uint32_t x = 12345;
	uint64_t v;

	begin();
	for (unsigned i = 0; i < 300000; i++) {
		unsigned cpu = i % CPUS;

		x = x * 1664525 + 1013904223;
		if (x >> 30 == 0)
			bus_write(&test_bus, BUS_MMIO, APIC_MMIO_BASE + (x >> 4 & 0xff8), 1u << (i & 3),
				  x * 2654435761u, cpu);
		else if (x >> 30 == 1)
			bus_read(&test_bus, BUS_MMIO, APIC_MMIO_BASE + (x >> 4 & 0xff8), 1u << (i & 3), cpu);
		else if (x >> 30 == 2)
			wrmsr(cpu, 0x800 + (x >> 4 & 0x3f), x * 40503u & (x & 8 ? 0xff : 0xffffffff));
		else if (x & 0x100)
			wrmsr(cpu, 0x1b, 0xfee00000 | (x & 0xc00));
		else
			lapic_msr_read(l[cpu], 0x800 + (x & 0xff), &v);
		if (x & 2)
			lapic_ack(l[cpu]);
		pass(x & 0xffff);
	}
	end();
}

UNIT_MAIN()
