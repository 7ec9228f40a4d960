/* virtio block device over PCI (virtio 1.2, 5.2). */
#ifndef DOPPEL_DEV_VIRTIO_BLK_H
#define DOPPEL_DEV_VIRTIO_BLK_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/blk_image.h"
#include "dev/pci.h"

struct disk_config {
	struct blk_image_config image;
	const char *id;     /* serial number, up to 20 characters are kept; NULL: none */
	uint64_t iops, bps; /* caps on requests and bytes a second; 0: none */
};

/*
 * Opens the image and adds the disk to the PCI bus; fills *out for the board's list of devices. The strings are
 * borrowed for the call only. False: err says why (no such file, not readable, size no multiple of 512 bytes, no free
 * slot, ...).
 */
bool virtio_blk_create(struct pci_bus *pci, struct guest_memory *mem, const struct disk_config *config,
		       struct device *out, struct error *err);
/* On a back end of one's own, which is taken over, also on failure; of config->image, path is its name. */
bool virtio_blk_create_on(struct pci_bus *pci, struct guest_memory *mem, const struct disk_config *config,
			  struct blk_backend *be, struct device *out, struct error *err);

#endif
