/*
 * virtio socket device over PCI (virtio 1.2, 5.10): streams between programs of the guest (AF_VSOCK) and Unix sockets
 * of the host.
 *
 * A guest's program that connects to port P of the host (CID 2) gets the Unix socket PATH_P. A host's program connects
 * to PATH, says "CONNECT P\n", and reads "OK N\n" when a program in the guest that listens on port P has taken it.
 */
#ifndef DOPPEL_DEV_VIRTIO_VSOCK_H
#define DOPPEL_DEV_VIRTIO_VSOCK_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"

#define VSOCK_CID_FIRST 3u /* 0 to 2 are spoken for, as is the last */

struct vsock_config {
	const char *path; /* borrowed for the call only */
	uint32_t cid;     /* the guest's address */
};

/*
 * Listens on the socket and adds the device to the PCI bus; fills *out for the board's list of devices. False: err says
 * why.
 */
bool virtio_vsock_create(struct pci_bus *pci, struct guest_memory *mem, const struct vsock_config *config,
			 struct device *out, struct error *err);

#endif
