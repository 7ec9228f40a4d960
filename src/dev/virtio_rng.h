/* virtio entropy device over PCI (virtio 1.2, 5.4): the host's random numbers. */
#ifndef DOPPEL_DEV_VIRTIO_RNG_H
#define DOPPEL_DEV_VIRTIO_RNG_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"

/* Adds it to the PCI bus and fills *out for the board's list of devices. False: err says why. */
bool virtio_rng_create(struct pci_bus *pci, struct guest_memory *mem, struct device *out, struct error *err);

#endif
