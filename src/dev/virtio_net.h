/* virtio network device over PCI (virtio 1.2, 5.1): eth0 in Linux. */
#ifndef DOPPEL_DEV_VIRTIO_NET_H
#define DOPPEL_DEV_VIRTIO_NET_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"
#include "host/net.h"

struct virtio_net_config {
	uint8_t mac[6];
	uint16_t mtu;         /* 0: the guest's choice */
	uint64_t bps;         /* most bytes a second, each way; 0: no cap */
	struct host_net *net; /* taken over, also on failure: closed with the device */
};

/* Adds it to the PCI bus and fills *out for the board's list of devices. False: err says why. */
bool virtio_net_create(struct pci_bus *pci, struct guest_memory *mem, const struct virtio_net_config *config,
		       struct device *out, struct error *err);

#endif
