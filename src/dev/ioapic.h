/*
 * I/O APIC, 82093AA with the EOI register of version 0x20 (Intel 82093AA data sheet; ICH9 data sheet 13.5): 24 inputs,
 * each turned into a message to the local APICs by its redirection entry.
 */
#ifndef DOPPEL_DEV_IOAPIC_H
#define DOPPEL_DEV_IOAPIC_H

#include "dev/apic_bus.h"

#define IOAPIC_PINS 24

struct ioapic;

struct ioapic_config {
	struct bus *bus;
	uint64_t base; /* of its page: 0xfec00000 */
	uint8_t id;    /* as in MADT */
	struct apic_bus *apics;
};

/* Registers itself on the bus and for EOIs of `apics`. NULL: no memory, or its addresses are taken. */
struct ioapic *ioapic_create(const struct ioapic_config *config);
struct device ioapic_device(struct ioapic *ioapic);
/* Input `pin`, 0..23; true is asserted, whatever polarity the guest programs. Any thread. */
struct irq_line ioapic_line(struct ioapic *ioapic, unsigned pin);
/* The input is not masked. Any thread. */
bool ioapic_enabled(struct ioapic *ioapic, unsigned pin);

#endif
