/* ACPI fixed hardware (ACPI 6.4, 4.8.3.1 to 4.8.3.3). */
#include "dev/acpi_pm.h"

#include "host/thread.h"

#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1000000000ull

/* PM1 status and enable (tables 4.12, 4.13), control (4.14). */
enum {
	PM1_TIMER = 1 << 0,
	PM1_GLOBAL = 1 << 5,
	PM1_POWER_BUTTON = 1 << 8,
	PM1_SLEEP_BUTTON = 1 << 9,
	PM1_RTC = 1 << 10
};
#define PM1_STATUS_BITS 0x8731
#define PM1_ENABLE_BITS (PM1_TIMER | PM1_GLOBAL | PM1_POWER_BUTTON | PM1_SLEEP_BUTTON | PM1_RTC)
enum { PM1_SCI_EN = 1 << 0, PM1_BM_RLD = 1 << 1, PM1_SLP_TYP = 7 << 10, PM1_SLP_EN = 1 << 13 };
enum { REG_STATUS, REG_ENABLE, REG_CONTROL, REGS };

struct acpi_pm {
	struct acpi_pm_config config;
	struct host_mutex lock; /* held while the SCI is set: order device → I/O APIC */
	struct clock_timer *timer;
	uint16_t reg[REGS];
	uint64_t ticks_offset; /* PM timer: added to the ticks since the VM's clock began */
	uint64_t next_carry;   /* tick at which bit 31 changes next: TMR_STS */
};

static uint64_t now_ticks(const struct acpi_pm *pm)
{
	uint64_t now = clock_now(pm->config.clock);

	return (uint64_t)((unsigned __int128)now * ACPI_PM_TIMER_HZ / NS_PER_S) + pm->ticks_offset;
}

/* First ns of the VM's clock at which now_ticks() is `tick`, which is not past. */
static uint64_t tick_ns(const struct acpi_pm *pm, uint64_t tick)
{
	return ((unsigned __int128)(tick - pm->ticks_offset) * NS_PER_S + ACPI_PM_TIMER_HZ - 1) / ACPI_PM_TIMER_HZ;
}

static uint64_t carry_after(uint64_t tick)
{
	return (tick | 0x7fffffff) + 1;
}

/* Notes a carry, and brings the SCI and the timer up to what status and enable say. The lock is held. */
static void update(struct acpi_pm *pm)
{
	uint64_t now = now_ticks(pm);
	bool want_carry;

	if (now >= pm->next_carry) {
		pm->reg[REG_STATUS] |= PM1_TIMER;
		pm->next_carry = carry_after(now);
	}
	want_carry = (pm->reg[REG_ENABLE] & PM1_TIMER) && !(pm->reg[REG_STATUS] & PM1_TIMER);
	clock_timer_set(pm->timer, want_carry ? tick_ns(pm, pm->next_carry) : CLOCK_NEVER);
	irq_set(&pm->config.sci, pm->reg[REG_STATUS] & pm->reg[REG_ENABLE] & PM1_ENABLE_BITS);
}

static void fire(void *opaque)
{
	struct acpi_pm *pm = opaque;

	host_lock(&pm->lock);
	update(pm);
	host_unlock(&pm->lock);
}

void acpi_pm_power_button(struct acpi_pm *pm)
{
	host_lock(&pm->lock);
	pm->reg[REG_STATUS] |= PM1_POWER_BUTTON;
	update(pm);
	host_unlock(&pm->lock);
}

/* Bits of `value` that `mask` names are written to a 16-bit register. True: the guest wants soft-off. */
static bool write_reg(struct acpi_pm *pm, unsigned reg, uint16_t value, uint16_t mask)
{
	uint16_t keep = pm->reg[reg] & ~mask;

	switch (reg) {
	case REG_STATUS: /* written ones clear */
		pm->reg[reg] &= ~(value & mask);
		return false;
	case REG_ENABLE:
		pm->reg[reg] = (keep | (value & mask)) & PM1_ENABLE_BITS;
		return false;
	default: /* SCI_EN is ours to say; SLP_EN reads as 0 */
		pm->reg[reg] = ((keep | (value & mask)) & (PM1_BM_RLD | PM1_SLP_TYP)) | PM1_SCI_EN;
		return (value & mask & PM1_SLP_EN) && (pm->reg[reg] & PM1_SLP_TYP) == ACPI_S5_TYPE << 10;
	}
}

/* The ports as 16 bytes in a row; those beyond the timer are reserved. */
static void image(struct acpi_pm *pm, uint8_t bytes[ACPI_PM_SIZE])
{
	uint32_t timer = now_ticks(pm);

	memset(bytes, 0, ACPI_PM_SIZE);
	memcpy(bytes + ACPI_PM_EVENT, &pm->reg[REG_STATUS], 2);
	memcpy(bytes + ACPI_PM_EVENT + 2, &pm->reg[REG_ENABLE], 2);
	memcpy(bytes + ACPI_PM_CONTROL, &pm->reg[REG_CONTROL], 2);
	memcpy(bytes + ACPI_PM_TIMER, &timer, 4);
}

static uint64_t port_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct acpi_pm *pm = opaque;
	uint8_t bytes[ACPI_PM_SIZE];
	uint64_t value = 0;

	host_lock(&pm->lock);
	if (off < ACPI_PM_TIMER) /* the timer is read often, and needs nothing of this */
		update(pm);
	image(pm, bytes);
	host_unlock(&pm->lock);
	memcpy(&value, bytes + off, MIN(len, ACPI_PM_SIZE - off));
	return value;
}

static void port_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct acpi_pm *pm = opaque;
	bool off_now = false;

	host_lock(&pm->lock);
	for (unsigned i = 0; i < len && off + i < REGS * 2ull; i++) {
		unsigned shift = ((off + i) & 1) * 8, byte = value >> (i * 8) & 0xff;

		off_now |= write_reg(pm, (off + i) / 2, byte << shift, 0xff << shift);
	}
	update(pm);
	host_unlock(&pm->lock);
	if (off_now)
		pm->config.power_off(pm->config.opaque);
}

static const struct bus_ops ops = {port_read, port_write};

/* The timer's value after reset is not defined (4.8.3.3); it runs on. */
static void reset(void *opaque)
{
	struct acpi_pm *pm = opaque;

	host_lock(&pm->lock);
	memset(pm->reg, 0, sizeof(pm->reg));
	pm->reg[REG_CONTROL] = PM1_SCI_EN;
	pm->next_carry = carry_after(now_ticks(pm));
	update(pm);
	host_unlock(&pm->lock);
}

static void state(void *opaque, struct state_stream *s)
{
	struct acpi_pm *pm = opaque;
	uint64_t ticks;

	host_lock(&pm->lock);
	if (s->saving) /* else the SCI is not ours: who it leads to has been loaded already */
		update(pm);
	ticks = now_ticks(pm);
	state_field(s, ticks);
	state_field(s, pm->reg);
	if (!s->saving) {
		pm->ticks_offset += ticks - now_ticks(pm);
		pm->next_carry = carry_after(ticks);
		pm->reg[REG_STATUS] &= PM1_STATUS_BITS;
		pm->reg[REG_ENABLE] &= PM1_ENABLE_BITS;
		pm->reg[REG_CONTROL] = (pm->reg[REG_CONTROL] & (PM1_BM_RLD | PM1_SLP_TYP)) | PM1_SCI_EN;
		update(pm);
	}
	host_unlock(&pm->lock);
}

static void release(struct acpi_pm *pm)
{
	if (pm->timer)
		clock_timer_destroy(pm->timer);
	host_mutex_destroy(&pm->lock);
	free(pm);
}

static void destroy(void *opaque)
{
	struct acpi_pm *pm = opaque;

	bus_remove(pm->config.bus, BUS_PORT, pm->config.port);
	release(pm);
}

struct acpi_pm *acpi_pm_create(const struct acpi_pm_config *config)
{
	struct acpi_pm *pm = calloc(1, sizeof(*pm));

	if (!pm)
		return NULL;
	pm->config = *config;
	host_mutex_init(&pm->lock);
	pm->timer = clock_timer_create(config->clock, fire, pm);
	if (!pm->timer ||
	    !bus_add(config->bus, BUS_PORT, (struct bus_region){"ACPI PM", config->port, ACPI_PM_SIZE, &ops, pm})) {
		release(pm);
		return NULL;
	}
	reset(pm);
	return pm;
}

struct device acpi_pm_device(struct acpi_pm *pm)
{
	return (struct device){.name = "ACPI PM", .opaque = pm, .reset = reset, .state = state, .destroy = destroy};
}
