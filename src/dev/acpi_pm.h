/*
 * ACPI fixed hardware: PM1a event and control blocks with the SCI, the PM timer, power button and soft-off
 * (ACPI 6.4, 4.8.3).
 */
#ifndef DOPPEL_DEV_ACPI_PM_H
#define DOPPEL_DEV_ACPI_PM_H

#include "bus/bus.h"
#include "bus/clock.h"

/* Offsets within the ports, and what the firmware's tables say of them. */
#define ACPI_PM_EVENT 0   /* 4 bytes: status, enable */
#define ACPI_PM_CONTROL 4 /* 2 bytes */
#define ACPI_PM_TIMER 8   /* 4 bytes, 32 bits wide: FADT.TMR_VAL_EXT is set */
#define ACPI_PM_SIZE 16
#define ACPI_PM_TIMER_HZ 3579545ull
#define ACPI_S5_TYPE 5 /* _S5 is {5, 5, 0, 0} */

struct acpi_pm;

struct acpi_pm_config {
	struct bus *bus;
	struct vm_clock *clock;
	uint16_t port;                   /* 0x600 */
	struct irq_line sci;             /* level, active high */
	void (*power_off)(void *opaque); /* the guest entered S5; on its processor's thread, no lock held */
	void *opaque;
};

/* Starts in ACPI mode (SCI_EN set): there is no SMI command port. NULL: no memory, no timer, or ports taken. */
struct acpi_pm *acpi_pm_create(const struct acpi_pm_config *config);
struct device acpi_pm_device(struct acpi_pm *pm);
/* The user pressed the power button: asks the guest to shut down. Any thread. */
void acpi_pm_power_button(struct acpi_pm *pm);

#endif
