/* virtio block device over PCI (virtio 1.2, 5.2), on a raw image file or a block device of the host. */
#ifndef DOPPEL_DEV_VIRTIO_BLK_H
#define DOPPEL_DEV_VIRTIO_BLK_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"

struct disk_config {
	const char *path;
	bool readonly;
	bool snapshot;  /* writes go to a temporary file that vanishes with the VM; the image is only read */
	const char *id; /* serial number, up to 20 characters are kept; NULL: none */
};

/*
 * Opens the image and adds the disk to the PCI bus; fills *out for the board's list of devices. The strings are
 * borrowed for the call only. False: err says why (no such file, not readable, size no multiple of 512 bytes, no free
 * slot, ...).
 */
bool virtio_blk_create(struct pci_bus *pci, struct guest_memory *mem, const struct disk_config *config,
		       struct device *out, struct error *err);

#endif
