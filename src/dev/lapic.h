/*
 * The local APIC of one processor (SDM Vol. 3A ch. 11): xAPIC registers in memory, x2APIC registers as MSRs, the timer,
 * local vector table, priorities, IPIs. Made by apic_bus_create, one for each CPU; apic_bus_lapic names it.
 *
 * Threads: registers are the processor's own; only its thread (or one that stopped it) calls what is below, but for
 * what says "any thread". Interrupt requests come from everywhere and are atomic. The timer has a lock of its own, a
 * leaf.
 */
#ifndef DOPPEL_DEV_LAPIC_H
#define DOPPEL_DEV_LAPIC_H

#include "dev/apic_bus.h"

#define MSR_IA32_APIC_BASE 0x1b
#define MSR_IA32_TSC_DEADLINE 0x6e0
#define MSR_X2APIC_FIRST 0x800
#define MSR_X2APIC_LAST 0x8ff

#define APIC_BASE_BSP BIT(8)
#define APIC_BASE_EXTD BIT(10)
#define APIC_BASE_ENABLE BIT(11)

#define LAPIC_NONE (-1)
#define LAPIC_EXTINT 256 /* from lapic_pending: the 8259 has the vector, lapic_ack asks it */

/*
 * Power-on state, latched events are dropped; with `init` that after INIT, which leaves IA32_APIC_BASE alone, and
 * events that have been latched since INIT was taken.
 */
void lapic_reset(struct lapic *apic, bool init);
/* LINT0 = ExtINT, LINT1 = NMI, software enable: how a PC's firmware hands over the boot processor (MP spec 3.6.2.2). */
void lapic_virtual_wire(struct lapic *apic);

/*
 * What can be delivered now by priority: LAPIC_NONE, a vector, or LAPIC_EXTINT. RFLAGS.IF is the caller's business.
 * Cheap: for every turn of a processor's loop; any thread (a halted processor's waker), when it is only a hint.
 */
int lapic_pending(struct lapic *apic);
/* Takes that interrupt: request becomes service. The vector to inject, or LAPIC_NONE if there is none any more. */
int lapic_ack(struct lapic *apic);

/*
 * Nothing comes of the end of the interrupt in service but the end: it is the only one, none is requested, and it is
 * edge-triggered, so that the I/O APIC need not know.
 */
bool lapic_eoi_is_plain(const struct lapic *apic);
/* As a write of the EOI register. */
void lapic_end_interrupt(struct lapic *apic);

/* Latched events, taken and cleared: a mask of BIT(APIC_EVENT_NMI), _INIT, _SIPI. INIT comes before SIPI. */
uint32_t lapic_take_events(struct lapic *apic, uint8_t *sipi_vector);
/* The same, looked at only. Any thread. */
uint32_t lapic_events(const struct lapic *apic);

/*
 * RDMSR and WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE and 0x800..0x8ff. False: #GP(0), nothing changed. After a write
 * of IA32_APIC_BASE the caller copies lapic_base() to the processor's state.
 */
bool lapic_msr_read(struct lapic *apic, uint32_t msr, uint64_t *value);
bool lapic_msr_write(struct lapic *apic, uint32_t msr, uint64_t value);
uint64_t lapic_base(const struct lapic *apic);

/* The register page (offset 0..0xfff): what the bus region calls; a run loop may call it straight for speed. */
uint64_t lapic_mmio_read(struct lapic *apic, uint32_t off, unsigned len);
void lapic_mmio_write(struct lapic *apic, uint32_t off, unsigned len, uint64_t value);

/* CR8 is TPR bits 7:4. Set: value 0..15, the processor refuses others. */
uint64_t lapic_cr8(const struct lapic *apic);
void lapic_set_cr8(struct lapic *apic, uint64_t value);

/* Guest TSC = clock_ticks() + offset: for the TSC deadline. Arms the timer anew. Any thread. */
void lapic_set_tsc_offset(struct lapic *apic, uint64_t offset);
/* When the timer fires next (by itself), in ns of the VM's clock, or CLOCK_NEVER. */
uint64_t lapic_timer_deadline(struct lapic *apic);

void lapic_state(struct lapic *apic, struct state_stream *s);

#endif
