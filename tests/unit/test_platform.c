/* ACPI hardware, keyboard controller, the ports for reset and debug exit. */
#include "dev/acpi_pm.h"
#include "dev/debug_exit.h"
#include "dev/i8042.h"
#include "dev/reset.h"
#include "device_test.h"

#define PM 0x600

static struct wire wire;
static unsigned called;
static uint32_t called_with;

static void call(void *opaque)
{
	called++;
}

static void call_value(void *opaque, uint32_t value)
{
	called++;
	called_with = value;
}

static void end(struct device d)
{
	d.destroy(d.opaque);
	teardown();
}

static void begin(void)
{
	setup();
	wire = (struct wire){0};
	called = 0;
}

static struct acpi_pm *begin_pm(void)
{
	struct acpi_pm_config config = {
		.bus = &test_bus, .clock = &test_clock, .port = PM, .sci = WIRE(wire), .power_off = call};

	begin();
	return acpi_pm_create(&config);
}

TEST(pm_timer)
{
	struct acpi_pm *pm = begin_pm();

	CHECK_EQ(in(PM + 8, 4), 0);
	pass(NS_PER_S);
	CHECK_EQ(in(PM + 8, 4), 3579545);
	CHECK_EQ(inb(PM + 9), 3579545 >> 8 & 0xff);
	pass(999 * NS_PER_S);
	CHECK_EQ(in(PM + 8, 4), 3579545000u);
	out(PM + 8, 0, 4); /* read-only */
	CHECK_EQ(in(PM + 8, 4), 3579545000u);
	end(acpi_pm_device(pm));
}

TEST(pm_timer_carry)
{
	struct acpi_pm *pm = begin_pm();

	pass(599 * NS_PER_S); /* bit 31 changes after 599.93 s */
	CHECK_EQ(in(PM, 2), 0);
	pass(NS_PER_S);
	CHECK_EQ(in(PM, 2), 1);
	CHECK(!wire.level);
	out(PM + 2, 1, 2);
	CHECK(wire.level);
	out(PM, 1, 2);
	CHECK(!wire.level);
	pass(599 * NS_PER_S);
	CHECK(!wire.level);
	pass(NS_PER_S);
	CHECK(wire.level); /* by the timer, with nobody looking */
	end(acpi_pm_device(pm));
}

TEST(power_button)
{
	struct acpi_pm *pm = begin_pm();

	CHECK_EQ(in(PM + 4, 2), 1); /* SCI_EN */
	acpi_pm_power_button(pm);
	CHECK(!wire.level);
	outb(PM + 3, 1); /* bytes do as well */
	CHECK(wire.level);
	CHECK_EQ(in(PM, 4), 0x01000100);
	outb(PM, 0xff);
	CHECK(wire.level);
	outb(PM + 1, 1);
	CHECK(!wire.level);
	CHECK_EQ(in(PM, 2), 0);
	end(acpi_pm_device(pm));
}

TEST(soft_off)
{
	struct acpi_pm *pm = begin_pm();

	out(PM + 4, 5 << 10, 2); /* the type alone */
	CHECK_EQ(called, 0);
	out(PM + 4, 1 << 10 | 1 << 13, 2); /* another state: not offered */
	CHECK_EQ(called, 0);
	out(PM + 4, 5 << 10 | 1 << 13, 2);
	CHECK_EQ(called, 1);
	CHECK_EQ(in(PM + 4, 2), 5 << 10 | 1);
	end(acpi_pm_device(pm));
}

TEST(pm_state)
{
	struct acpi_pm *pm = begin_pm(), *other;
	struct wire other_wire = {0};
	struct bus other_bus;
	struct device e;
	struct acpi_pm_config config = {
		.bus = &other_bus, .clock = &test_clock, .port = PM, .sci = WIRE(other_wire), .power_off = call};

	pass(700 * NS_PER_S);
	out(PM + 2, 0x101, 2);
	bus_init(&other_bus);
	other = acpi_pm_create(&config);
	e = acpi_pm_device(other);
	CHECK(wire.level);
	move_state(acpi_pm_device(pm), e);
	CHECK(other_wire.level);
	CHECK_EQ(bus_read(&other_bus, BUS_PORT, PM + 8, 4, 0), in(PM + 8, 4));
	out(PM + 2, 0, 2);
	other_wire = (struct wire){0}; /* so the interrupt controllers were loaded, who come first */
	move_state(acpi_pm_device(pm), e);
	CHECK_EQ(other_wire.rises, 0);
	for (unsigned i = 0; i < 100; i++) {
		load_noise(e, i);
		pass(NS_PER_S);
	}
	e.destroy(e.opaque);
	bus_destroy(&other_bus);
	for (unsigned i = 0; i < 500; i++)
		fuzz_ports(PM, 16, i, 50);
	end(acpi_pm_device(pm));
}

static struct i8042 *begin_kbc(bool keyboard)
{
	struct i8042_config config = {.bus = &test_bus, .irq = WIRE(wire), .keyboard = keyboard, .reset = call};

	begin();
	return i8042_create(&config);
}

static uint8_t command(uint8_t c)
{
	outb(0x64, c);
	CHECK_EQ(inb(0x64) & 1, 1);
	return inb(0x60);
}

TEST(controller)
{
	struct i8042 *kbc = begin_kbc(true);

	CHECK_EQ(inb(0x64) & 1, 0);
	CHECK_EQ(command(0xaa), 0x55);
	CHECK_EQ(command(0xab), 0);
	outb(0x64, 0x60);
	outb(0x60, 0x45);
	CHECK_EQ(command(0x20), 0x45);
	outb(0x64, 0xad);
	CHECK_EQ(command(0x20), 0x55);
	outb(0x64, 0xae);
	CHECK_EQ(command(0x20), 0x45);
	CHECK_EQ(command(0xd0) & 3, 3);
	outb(0x64, 0x65); /* controller RAM */
	outb(0x60, 0x99);
	CHECK_EQ(command(0x25), 0x99);
	outb(0x64, 0xa9); /* no auxiliary port: no answer */
	CHECK_EQ(inb(0x64) & 1, 0);
	outb(0x64, 0xd4);
	outb(0x60, 0xff);
	CHECK_EQ(inb(0x64) & 1, 0);
	outb(0x64, 0xd2);
	outb(0x60, 0x1e);
	CHECK(wire.level); /* IRQ 1 */
	CHECK_EQ(inb(0x60), 0x1e);
	CHECK(!wire.level);
	end(i8042_device(kbc));
}

TEST(resets)
{
	struct i8042 *kbc = begin_kbc(false);

	outb(0x64, 0xfe);
	CHECK_EQ(called, 1);
	outb(0x64, 0xff);
	CHECK_EQ(called, 1);
	outb(0x64, 0xd1);
	outb(0x60, 0xdf);
	CHECK_EQ(called, 1);
	outb(0x64, 0xd1);
	outb(0x60, 0xde);
	CHECK_EQ(called, 2);
	end(i8042_device(kbc));
}

TEST(keyboard)
{
	struct i8042 *kbc = begin_kbc(true);

	outb(0x60, 0xff);
	CHECK_EQ(inb(0x60), 0xfa);
	CHECK_EQ(inb(0x60), 0xaa);
	outb(0x60, 0xf2);
	CHECK_EQ(inb(0x60), 0xfa);
	CHECK_EQ(inb(0x60), 0xab);
	CHECK_EQ(inb(0x60), 0x41); /* translated */
	outb(0x60, 0xed);
	CHECK_EQ(inb(0x60), 0xfa);
	outb(0x60, 7);
	CHECK_EQ(inb(0x60), 0xfa);
	outb(0x60, 0xee);
	CHECK_EQ(inb(0x60), 0xee);
	outb(0x60, 0x01);
	CHECK_EQ(inb(0x60), 0xfe);
	outb(0x64, 0x60);
	outb(0x60, 0x01);
	outb(0x60, 0xf2);
	wire.rises = 0;
	inb(0x60);
	inb(0x60);
	CHECK_EQ(wire.rises, 2); /* an edge for each byte */
	CHECK_EQ(inb(0x60), 0x83);
	for (unsigned i = 0; i < 100; i++) /* never read: what finds no room is lost */
		outb(0x60, 0xf2);
	for (unsigned i = 0; i < 16; i++)
		inb(0x60);
	CHECK_EQ(inb(0x64) & 1, 0);
	end(i8042_device(kbc));
}

TEST(no_keyboard)
{
	struct i8042 *kbc = begin_kbc(false);

	CHECK_EQ(command(0xaa), 0x55);
	outb(0x60, 0xff);
	CHECK_EQ(inb(0x64) & 0x41, 0x41); /* time-out */
	CHECK_EQ(inb(0x60), 0xfe);
	CHECK_EQ(inb(0x64) & 0x41, 0);
	for (unsigned i = 0; i < 1000; i++) {
		fuzz_ports(0x60, 1, i, 20);
		fuzz_ports(0x64, 1, i + 7, 20);
	}
	for (unsigned i = 0; i < 100; i++) {
		struct device d = i8042_device(kbc);

		load_noise(d, i);
		fuzz_ports(0x60, 1, i, 20);
		d.reset(d.opaque);
	}
	end(i8042_device(kbc));
}

TEST(port_92)
{
	begin();
	struct reset_port *port = reset_port_create(&(struct reset_port_config){.bus = &test_bus, .reset = call});

	CHECK_EQ(inb(0x92), 2);
	outb(0x92, 2);
	CHECK_EQ(called, 0);
	outb(0x92, 3);
	CHECK_EQ(called, 1);
	end(reset_port_device(port));
}

TEST(debug_exit)
{
	begin();
	struct debug_exit *dev =
		debug_exit_create(&(struct debug_exit_config){.bus = &test_bus, .port = 0xf4, .exited = call_value});

	CHECK_EQ(inb(0xf4), 0);
	out(0xf4, 0x12345678, 4);
	CHECK_EQ(called, 1);
	CHECK_EQ(called_with, 0x12345678);
	end(debug_exit_device(dev));
}

/* Ports that are taken: nothing is made, nothing left behind. */
TEST(collisions)
{
	static const struct bus_ops none;
	static const uint16_t taken[] = {0x60, 0x64, 0x92, 0xf4, PM + 15};

	begin();
	for (unsigned i = 0; i < ARRAY_LEN(taken); i++)
		CHECK(bus_add(&test_bus, BUS_PORT, (struct bus_region){"other", taken[i], 1, &none, NULL}));
	CHECK(!i8042_create(&(struct i8042_config){.bus = &test_bus}));
	bus_remove(&test_bus, BUS_PORT, 0x60);
	CHECK(!i8042_create(&(struct i8042_config){.bus = &test_bus}));
	CHECK(!reset_port_create(&(struct reset_port_config){.bus = &test_bus}));
	CHECK(!debug_exit_create(&(struct debug_exit_config){.bus = &test_bus, .port = 0xf4}));
	CHECK(!acpi_pm_create(&(struct acpi_pm_config){.bus = &test_bus, .clock = &test_clock, .port = PM}));
	for (unsigned i = 1; i < ARRAY_LEN(taken); i++)
		bus_remove(&test_bus, BUS_PORT, taken[i]);
	teardown();
}

UNIT_MAIN()
