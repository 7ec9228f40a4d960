/*
 * 8254 interval timer and port 0x61 (Intel 8254 data sheet; ICH9 13.3, 13.7.1). Channel 0 drives IRQ 0, channel 2 the
 * speaker, by which systems calibrate the TSC; channel 1 (DRAM refresh) counts and is wired to nothing.
 */
#ifndef DOPPEL_DEV_PIT8254_H
#define DOPPEL_DEV_PIT8254_H

#include "bus/bus.h"
#include "bus/clock.h"

#define PIT_HZ 1193182ull

struct pit8254;

struct pit8254_config {
	struct bus *bus;
	struct vm_clock *clock;
	struct irq_line irq; /* IRQ 0: channel 0's output */
	/*
	 * May be NULL. Processor `cpu` is about to look at a count, or at port 0x61, or to `set` a counter: it may be
	 * measuring its TSC. On its thread, no lock held.
	 */
	void (*polled)(void *opaque, unsigned cpu, bool set);
	void *opaque;
};

/* Ports 0x40..0x43 and 0x61. NULL: no memory, no timer, or ports taken. */
struct pit8254 *pit8254_create(const struct pit8254_config *config);
/* A processor has taken an interrupt: if a tick is overdue, this is its moment. Cheap; any thread, no lock held. */
void pit8254_interrupt_taken(struct pit8254 *pit);
struct device pit8254_device(struct pit8254 *pit);

#endif
