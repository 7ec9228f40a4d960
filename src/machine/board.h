/* What the files of the board share; the VM uses pc.h. */
#ifndef DOPPEL_MACHINE_BOARD_H
#define DOPPEL_MACHINE_BOARD_H

#include "boot/boot.h"
#include "dev/apic_bus.h"
#include "dev/pci.h"
#include "machine/pc.h"

#define PC_DEVICES (PC_DISKS + PC_NETS + PC_SHARES + 16)

struct ioapic;
struct pic8259;
struct pit8254;
struct uart16550;
struct virtio_balloon;
struct virtio_console;

struct pc {
	struct pc_config c; /* strings and arrays are our own copies, or gone */
	struct apic_bus *apics;
	struct ioapic *ioapic;
	struct pic8259 *pic;
	struct pit8254 *pit;
	struct uart16550 *uart;
	struct pci_bus *pci;
	struct virtio_console *console;
	struct virtio_balloon *balloon;
	bool keyboard, window64;

	unsigned devices;
	struct device device[PC_DEVICES]; /* in the order of creation; destroyed the other way round */

	char *kernel_path, *initrd_path, *cmdline;
	struct host_file *kernel_file, *initrd_file; /* when they can be read as often as they are needed */
	uint8_t *kernel, *initrd; /* the files' bytes, kept for a reset when they cannot; else only their first */
	size_t kernel_len, initrd_len;
};

/* board.c: makes the devices and wires them. What was made before a failure is in pc->device. */
bool board_create(struct pc *pc, struct error *err);

#endif
