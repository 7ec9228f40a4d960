/*
 * virtio memory balloon over PCI (virtio 1.2, 5.5): takes memory away from the guest by its own driver, and gives the
 * host back what the guest reports as free.
 */
#ifndef DOPPEL_DEV_VIRTIO_BALLOON_H
#define DOPPEL_DEV_VIRTIO_BALLOON_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"

struct virtio_balloon;

/* In bytes. What the guest says of itself is 0 until it has said it. */
struct balloon_info {
	uint64_t target, taken; /* what is to be in the balloon, and what the guest says is */
	uint64_t returned;      /* given back to the host so far, ballooned or reported as free; grows only */
	uint64_t guest_free, guest_available, guest_total;
};

/* Adds it to the PCI bus and fills *out for the board's list of devices. NULL: err says why. */
struct virtio_balloon *virtio_balloon_create(struct pci_bus *pci, struct guest_memory *mem, uint64_t target,
					     struct device *out, struct error *err);
/* Any thread. False: that is more than the guest's memory. */
bool virtio_balloon_set(struct virtio_balloon *balloon, uint64_t target);
/* Any thread. Asks the guest for its figures anew, which the next call has. */
void virtio_balloon_info(struct virtio_balloon *balloon, struct balloon_info *info);

#endif
