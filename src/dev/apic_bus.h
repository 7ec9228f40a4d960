/*
 * All local APICs of a VM and the bus between them: who is meant by an IPI, an MSI or an I/O APIC's message, and its
 * delivery there (SDM Vol. 3A 11.6, 11.11; 11.12 for x2APIC). APIC IDs are the CPU's index, so at most 255 processors.
 *
 * Locks: delivery takes none (request registers are atomic), but calls `notify`; a device may hold its own lock
 * meanwhile. Order: device → I/O APIC or 8259 → nothing. The I/O APIC and the 8259 call here with their own lock
 * released.
 */
#ifndef DOPPEL_DEV_APIC_BUS_H
#define DOPPEL_DEV_APIC_BUS_H

#include "bus/bus.h"
#include "bus/clock.h"

struct apic_bus;
struct lapic;

#define APIC_BUS_CPUS 255
#define APIC_MMIO_BASE 0xfee00000ull

/* What happened to a processor. All are also latched in its local APIC: lapic_pending, lapic_take_events. */
enum apic_event {
	APIC_EVENT_INTERRUPT, /* a fixed or lowest-priority interrupt was requested: look at lapic_pending */
	APIC_EVENT_NMI,
	APIC_EVENT_INIT,
	APIC_EVENT_SIPI,   /* vector: the start page */
	APIC_EVENT_EXTINT, /* the 8259 asks: look at lapic_pending */
};

/* Delivery modes (SDM Vol. 3A figure 11-12), the same numbers in ICR, LVT, MSI data and I/O APIC entries. */
enum apic_delivery {
	APIC_FIXED = 0,
	APIC_LOWEST = 1,
	APIC_SMI = 2,
	APIC_NMI = 4,
	APIC_INIT = 5,
	APIC_SIPI = 6,
	APIC_EXTINT = 7,
};

struct apic_message {
	uint32_t dest; /* APIC ID or logical destination; 0xff (or all ones when `wide`) is everyone */
	bool logical;
	bool wide;    /* a 32-bit destination, from an x2APIC's ICR; else 8 bits */
	bool level;   /* trigger mode: remembered in TMR, so that EOI goes back to the I/O APIC */
	uint8_t mode; /* enum apic_delivery */
	uint8_t vector;
};

struct apic_bus_config {
	struct vm_clock *clock;
	unsigned cpus;     /* 1..255; CPU 0 is the boot processor */
	uint8_t phys_bits; /* of physical addresses: IA32_APIC_BASE's reserved bits; 0 means 52 */
	bool x2apic;       /* what CPUID claims: without it IA32_APIC_BASE.EXTD is reserved */
	bool tsc_deadline;
	/*
	 * Any thread, no lock of APICs, I/O APIC or 8259 held, but perhaps a device's: it must only wake the processor,
	 * and call no device. May come for no reason. Also called for what a processor does to itself.
	 */
	void (*notify)(void *opaque, unsigned cpu, enum apic_event event, uint8_t vector);
	void *opaque;
};

/* Who answers an interrupt acknowledge cycle: the 8259 pair, wired to the boot processor's LINT0. */
struct apic_extint {
	bool (*pending)(void *opaque); /* INTR asserted? Cheap, any thread */
	int (*ack)(void *opaque);      /* INTA: the vector, 0..255 */
	void *opaque;
};

/* NULL: out of memory, or no timer. */
struct apic_bus *apic_bus_create(const struct apic_bus_config *config);
/* Puts the registers of each processor's local APIC at APIC_MMIO_BASE. */
bool apic_bus_attach(struct apic_bus *apics, struct bus *bus);
struct device apic_bus_device(struct apic_bus *apics);

struct lapic *apic_bus_lapic(struct apic_bus *apics, unsigned cpu);

/* Before the machine runs. */
void apic_bus_set_extint(struct apic_bus *apics, const struct apic_extint *extint);
/* `eoi` runs at the EOI of a level-triggered interrupt, on the thread of its processor, no lock held. */
void apic_bus_set_eoi(struct apic_bus *apics, void (*eoi)(void *opaque, uint8_t vector), void *opaque);

/* Delivers a message to all it is meant for; false when nobody took it. Any thread. */
bool apic_bus_send(struct apic_bus *apics, const struct apic_message *msg);
/* A fixed or lowest-priority interrupt like this one is requested somewhere and not yet in service. Any thread. */
bool apic_bus_waits(struct apic_bus *apics, const struct apic_message *msg);
/* Where PCI devices send their MSIs. */
struct msi_sink apic_bus_msi(struct apic_bus *apics);
/* LINT0 of the boot processor: the 8259's INTR goes here. */
struct irq_line apic_bus_lint0(struct apic_bus *apics);
/* LINT1 of every processor: the board's NMI. Takes effect when the level rises. */
struct irq_line apic_bus_lint1(struct apic_bus *apics);

#endif
