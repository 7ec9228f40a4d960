/* virtio console over PCI (virtio 1.2, 5.3): one port, with its size. hvc0 in Linux. */
#ifndef DOPPEL_DEV_VIRTIO_CONSOLE_H
#define DOPPEL_DEV_VIRTIO_CONSOLE_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"

struct virtio_console;

struct virtio_console_config {
	/* The guest's output; called on the console's thread, one call at a time, no lock held. NULL: dropped. */
	void (*write)(void *opaque, const uint8_t *data, size_t len);
	/* Input that was refused may be offered again; called on the console's thread, no lock held. May be NULL. */
	void (*input_ready)(void *opaque);
	void *opaque;
	uint16_t cols, rows; /* 0: not known */
};

/* Adds it to the PCI bus and fills *out for the board's list of devices. NULL: err says why. */
struct virtio_console *virtio_console_create(struct pci_bus *pci, struct guest_memory *mem,
					     const struct virtio_console_config *config, struct device *out,
					     struct error *err);
/* Hands over typed bytes; returns how many were taken, 0 to len. Any thread. */
size_t virtio_console_input(struct virtio_console *console, const uint8_t *data, size_t len);
/* The terminal's new size. Any thread. */
void virtio_console_resize(struct virtio_console *console, uint16_t cols, uint16_t rows);

#endif
