/* The 8259A pair of a PC, with the edge/level registers (Intel 8259A data sheet; ICH9 13.4). */
#ifndef DOPPEL_DEV_PIC8259_H
#define DOPPEL_DEV_PIC8259_H

#include "bus/bus.h"

struct pic8259;

struct pic8259_config {
	struct bus *bus;
	struct irq_line intr; /* told after INTR changed; what counts is pic8259_pending. No lock held */
};

/* Ports 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1. NULL: no memory, or ports taken. */
struct pic8259 *pic8259_create(const struct pic8259_config *config);
struct device pic8259_device(struct pic8259 *pic);
/* Input `irq`, 0..15 (2 is the cascade: nothing comes of it). Any thread. */
struct irq_line pic8259_line(struct pic8259 *pic, unsigned irq);

/* INTR is asserted. Any thread, one atomic load. The signatures are those of struct apic_extint, opaque is the pic. */
bool pic8259_pending(void *pic);
/* Interrupt acknowledge: the vector. IRQ 7 of the chip asked (spurious) if its request went away. */
int pic8259_ack(void *pic);

#endif
