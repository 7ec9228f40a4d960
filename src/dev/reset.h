/*
 * Port 0x92, PS/2 system control port A: fast reset and A20, which is always on here (ICH9 data sheet 13.7.2). The
 * reset control register 0xcf9 lies among the PCI host bridge's ports and is its business (pci.h).
 */
#ifndef DOPPEL_DEV_RESET_H
#define DOPPEL_DEV_RESET_H

#include "bus/bus.h"

struct reset_port;

struct reset_port_config {
	struct bus *bus;
	void (*reset)(void *opaque); /* on the writer's thread, no lock held */
	void *opaque;
};

/* NULL: no memory, or the port is taken. */
struct reset_port *reset_port_create(const struct reset_port_config *config);
struct device reset_port_device(struct reset_port *port);

#endif
