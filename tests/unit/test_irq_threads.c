/* Interrupts between threads, by the real clock: nothing is lost, nothing hangs. Also what ThreadSanitizer is to look
 * at. */
#include "dev/ioapic.h"
#include "dev/lapic.h"
#include "dev/pic8259.h"
#include "dev/pit8254.h"
#include "host/host.h"
#include "unit.h"

#define CPUS 3
#define ROUNDS 20000

static struct bus bus;
static struct vm_clock *vm_clock;
static struct apic_bus *apics;
static struct ioapic *io;
static struct pic8259 *pic;
static struct host_mutex lock;
static struct host_cond wake[CPUS];
static bool woken[CPUS];

static void notify(void *opaque, unsigned cpu, enum apic_event event, uint8_t vector)
{
	host_lock(&lock);
	woken[cpu] = true;
	host_cond_signal(&wake[cpu]);
	host_unlock(&lock);
}

/* As a halted processor: until something is pending; LAPIC_NONE after 10 s. */
static int wait_interrupt(unsigned cpu)
{
	struct lapic *l = apic_bus_lapic(apics, cpu);
	uint64_t deadline = host_now_ns() + 10000000000ull;
	bool ok = true;

	while (lapic_pending(l) == LAPIC_NONE && ok) {
		host_lock(&lock);
		while (!woken[cpu] && ok)
			ok = host_cond_wait_until(&wake[cpu], &lock, deadline);
		woken[cpu] = false;
		host_unlock(&lock);
	}
	return lapic_ack(l);
}

static void wr(unsigned cpu, unsigned off, uint32_t value)
{
	lapic_mmio_write(apic_bus_lapic(apics, cpu), off, 4, value);
}

static void io_wr(unsigned reg, uint32_t value)
{
	bus_write(&bus, BUS_MMIO, 0xfec00000, 4, reg, 0);
	bus_write(&bus, BUS_MMIO, 0xfec00010, 4, value, 0);
}

static void begin(void)
{
	struct apic_bus_config config = {.cpus = CPUS, .notify = notify, .tsc_deadline = true, .x2apic = true};

	bus_init(&bus);
	host_mutex_init(&lock);
	vm_clock = clock_create();
	clock_resume(vm_clock);
	config.clock = vm_clock;
	apics = apic_bus_create(&config);
	io = ioapic_create(&(struct ioapic_config){.bus = &bus, .base = 0xfec00000, .apics = apics});
	pic = pic8259_create(&(struct pic8259_config){.bus = &bus, .intr = apic_bus_lint0(apics)});
	apic_bus_set_extint(apics, &(struct apic_extint){pic8259_pending, pic8259_ack, pic});
	for (unsigned i = 0; i < CPUS; i++) {
		host_cond_init(&wake[i]);
		woken[i] = false;
		wr(i, 0xf0, 0x1ff);
	}
}

static void end(void)
{
	struct device d[] = {pic8259_device(pic), ioapic_device(io), apic_bus_device(apics)};

	for (unsigned i = 0; i < ARRAY_LEN(d); i++)
		d[i].destroy(d[i].opaque);
	clock_destroy(vm_clock);
	for (unsigned i = 0; i < CPUS; i++)
		host_cond_destroy(&wake[i]);
	host_mutex_destroy(&lock);
	bus_destroy(&bus);
}

/* A CPU and another play ball by IPIs. */
static void *play(void *arg)
{
	unsigned me = (uintptr_t)arg;

	for (unsigned i = 0; i < ROUNDS; i++) {
		if (me == 0) {
			wr(0, 0x310, 1u << 24);
			wr(0, 0x300, 0x40);
		}
		if (wait_interrupt(me) != 0x40) {
			UNIT_FAIL("CPU %u lost the ball in round %u", me, i);
			return NULL;
		}
		wr(me, 0xb0, 0);
		if (me == 1) {
			wr(1, 0x310, 0);
			wr(1, 0x300, 0x40);
		}
	}
	return NULL;
}

/* A device: a level-triggered line, raised while there is work. */
static struct host_mutex dev_lock;
static unsigned work, done;

static void update_line(void)
{
	struct irq_line line = ioapic_line(io, 16);

	irq_set(&line, work);
}

static void *device_thread(void *arg)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		host_lock(&dev_lock);
		work++;
		update_line();
		host_unlock(&dev_lock);
		if (i % 64 == 0)
			host_sleep_ns(1000);
	}
	return NULL;
}

static void *driver_thread(void *arg)
{
	while (done < ROUNDS) {
		if (wait_interrupt(2) != 0x50) {
			UNIT_FAIL("lost a level-triggered interrupt after %u", done);
			return NULL;
		}
		host_lock(&dev_lock);
		done += work;
		work = 0;
		update_line();
		host_unlock(&dev_lock);
		wr(2, 0xb0, 0);
	}
	return NULL;
}

TEST(balls_and_levels)
{
	static void *(*const run[])(void *) = {play, play, device_thread, driver_thread};
	struct host_thread t[4];

	begin();
	host_mutex_init(&dev_lock);
	io_wr(0x10 + 33, 2u << 24);
	io_wr(0x10 + 32, 0x8050);
	for (uintptr_t i = 0; i < 4; i++)
		REQUIRE(host_thread_start(&t[i], "test", run[i], (void *)i));
	for (unsigned i = 0; i < 4; i++)
		host_thread_join(&t[i]);
	CHECK_EQ(done, ROUNDS);
	end();
}

/* The 8254 by way of the 8259 and LINT0, and the APIC's timers, at once on one CPU: rates as programmed. */
TEST(timers)
{
	struct lapic *l;
	struct pit8254 *pit;
	struct device d;
	unsigned pit_ticks = 0, apic_ticks = 0, deadlines = 0;
	uint64_t from, step;

	begin();
	l = apic_bus_lapic(apics, 0);
	pit = pit8254_create(&(struct pit8254_config){.bus = &bus, .clock = vm_clock, .irq = pic8259_line(pic, 0)});
	lapic_virtual_wire(l);
	for (unsigned i = 0; i < 4; i++)
		bus_write(&bus, BUS_PORT, i ? 0x21 : 0x20, 1, (uint8_t[]){0x11, 0x30, 4, 3}[i], 0);
	bus_write(&bus, BUS_PORT, 0x21, 1, 0xfe, 0);
	bus_write(&bus, BUS_PORT, 0x43, 1, 0x34, 0);
	bus_write(&bus, BUS_PORT, 0x40, 1, 1193 & 0xff, 0);
	bus_write(&bus, BUS_PORT, 0x40, 1, 1193 >> 8, 0);
	wr(0, 0x3e0, 0xb);
	wr(0, 0x320, 0x20041);
	wr(0, 0x380, 2000000);
	/* CPU 1's timer in TSC-deadline mode, its interrupts looked for by this thread too. */
	wr(1, 0x320, 0x40042);
	step = clock_tsc_hz(vm_clock) / 250;
	CHECK(lapic_msr_write(apic_bus_lapic(apics, 1), 0x6e0, clock_ticks(vm_clock) + step));
	from = clock_now(vm_clock);
	while (clock_now(vm_clock) - from < 500000000) {
		int v = wait_interrupt(0);

		pit_ticks += v == 0x30;
		apic_ticks += v == 0x41;
		if (v == 0x41)
			wr(0, 0xb0, 0);
		if (lapic_ack(apic_bus_lapic(apics, 1)) == 0x42) {
			deadlines++;
			wr(1, 0xb0, 0);
			lapic_msr_write(apic_bus_lapic(apics, 1), 0x6e0, clock_ticks(vm_clock) + step);
		}
	}
	/* Generous: the host may be busy. */
	CHECK(pit_ticks >= 300 && pit_ticks <= 502);
	CHECK(apic_ticks >= 150 && apic_ticks <= 251);
	CHECK(deadlines >= 60 && deadlines <= 126);
	d = pit8254_device(pit);
	d.destroy(d.opaque);
	end();
}

UNIT_MAIN()
