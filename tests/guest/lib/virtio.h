/* virtio devices on PCI, found and reached: configuration by ports 0xcf8 and 0xcfc, structures by their BARs. */
#ifndef GUEST_VIRTIO_H
#define GUEST_VIRTIO_H

#include "guest.h"

u32 pci_read(unsigned dev, unsigned reg);
void pci_write(unsigned dev, unsigned reg, u32 v);
/* The device's number on bus 0; -1: there is none. Types are virtio's (virtio 1.2, 5). */
int virtio_find(unsigned type);

enum { VIRTIO_COMMON = 1, VIRTIO_NOTIFY = 2, VIRTIO_ISR = 3, VIRTIO_CONFIG = 4 };
/* The configuration structure of this kind (virtio 1.2 4.1.4), mapped; `extra` gets what follows the capability. */
volatile u8 *virtio_structure(unsigned dev, unsigned kind, u32 *extra);

/*
 * The device up to where its queues are to be set up, which CFG8(20) = 15 ends; the test is skipped when there is none.
 * The doorbell is the first queue's.
 */
int virtio_open(unsigned type, volatile u8 **structure, volatile u16 **doorbell);

/* Fields of the common structure at `common`. */
#define CFG8(off) (*(common + (off)))
#define CFG16(off) (*(volatile u16 *)(common + (off)))
#define CFG32(off) (*(volatile u32 *)(common + (off)))
#define CFG64(off, v) (CFG32(off) = (u32)(u64)(v), CFG32((off) + 4) = (u32)((u64)(v) >> 32))

/* A descriptor of a split queue (virtio 1.2 2.7.5). */
struct desc {
	u64 address;
	u32 len;
	u16 flags, next;
};
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

/* What begins a packet of the socket device (virtio 1.2 5.10.6). */
struct packet {
	u64 from_cid, to_cid;
	u32 from, to, len;
	u16 type, op;
	u32 flags, room, passed;
} __attribute__((packed));

#endif
