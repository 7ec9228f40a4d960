/* virtio file system over PCI (virtio 1.2, 5.11): a folder of the host's, as Linux's file system type virtiofs. */
#ifndef DOPPEL_DEV_VIRTIO_FS_H
#define DOPPEL_DEV_VIRTIO_FS_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"
#include "dev/share.h"

#define VIRTIO_FS_TAG 36 /* bytes of a tag, at most */

/*
 * Opens the folder and adds the device to the PCI bus; fills *out for the board's list of devices. The strings are
 * borrowed for the call only. False: err says why.
 */
bool virtio_fs_create(struct pci_bus *pci, struct guest_memory *mem, const struct share_config *config,
		      struct device *out, struct error *err);

#endif
