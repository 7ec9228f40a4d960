/*
 * The ports that reset a PC: the reset control register 0xcf9 (ICH9 13.7.5), which FADT names too, and port 0x92 (PS/2 system
 * control port A), with A20 that is always on.
 */
#ifndef DOPPEL_DEV_RESET_H
#define DOPPEL_DEV_RESET_H

#include "bus/bus.h"

struct reset_ports;

struct reset_ports_config {
	struct bus *bus;
	/*
	 * 0xcf9 lies within the PCI host bridge's 0xcf8..0xcff. True: this device takes 0xcf9 itself. False: who owns those
	 * ports hands byte accesses to 0xcf9 to reset_control_read and reset_control_write.
	 */
	bool own_cf9;
	void (*reset)(void *opaque); /* on the writer's thread, no lock held */
	void *opaque;
};

struct reset_ports *reset_ports_create(const struct reset_ports_config *config);
struct device reset_ports_device(struct reset_ports *ports);
/* `opaque` is the struct reset_ports. */
uint8_t reset_control_read(void *opaque);
void reset_control_write(void *opaque, uint8_t value);

#endif
