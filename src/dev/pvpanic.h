/* pvpanic: a guest's kernel tells that it has panicked (QEMU, docs/specs/pvpanic), as a PCI function. */
#ifndef DOPPEL_DEV_PVPANIC_H
#define DOPPEL_DEV_PVPANIC_H

#include "dev/pci.h"

struct pvpanic_config {
	struct pci_bus *pci;
	/*
	 * On the processor's thread that wrote it. `handled`: a crash kernel of the guest's own takes over. A hostile
	 * guest calls it as often as it likes.
	 */
	void (*panicked)(void *opaque, bool handled);
	void *opaque;
};

/* Fills *out for the board's list of devices. False: err says why. */
bool pvpanic_create(const struct pvpanic_config *config, struct device *out, struct error *err);

#endif
