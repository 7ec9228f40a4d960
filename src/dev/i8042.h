/*
 * Keyboard controller, 8042 as in a PC/AT (IBM PC/AT Technical Reference, 1-38 ff.): self test, A20 and reset by its
 * output port. The keyboard behind it answers its commands, and nobody types on it.
 */
#ifndef DOPPEL_DEV_I8042_H
#define DOPPEL_DEV_I8042_H

#include "bus/bus.h"

struct i8042;

struct i8042_config {
	struct bus *bus;
	struct irq_line irq;         /* IRQ 1 */
	bool keyboard;               /* false: the controller alone; FADT's IAPC_BOOT_ARCH bit 1 should say the same */
	void (*reset)(void *opaque); /* command 0xfe, or output port bit 0 cleared; no lock held */
	void *opaque;
};

/* Ports 0x60 and 0x64. NULL: no memory, or ports taken. */
struct i8042 *i8042_create(const struct i8042_config *config);
struct device i8042_device(struct i8042 *kbc);

#endif
