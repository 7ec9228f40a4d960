/*
 * CMOS clock and its RAM, MC146818 as in every PC (Motorola MC146818A data sheet; ICH9 13.6). Shows UTC of the host;
 * what the guest sets is kept as a difference.
 */
#ifndef DOPPEL_DEV_RTC_H
#define DOPPEL_DEV_RTC_H

#include "bus/bus.h"
#include "bus/clock.h"

struct rtc;

struct rtc_config {
	struct bus *bus;
	struct vm_clock *clock;
	struct irq_line irq; /* IRQ 8 */
};

#define RTC_CENTURY 0x32 /* for FADT's CENTURY field */

/* Ports 0x70, 0x71. NULL: no memory, no timer, or ports taken. */
struct rtc *rtc_create(const struct rtc_config *config);
struct device rtc_device(struct rtc *rtc);
/* Writes a byte of CMOS RAM as firmware does (memory size, boot order). Index 0x0e..0x7f; others are ignored. */
void rtc_set_nvram(struct rtc *rtc, unsigned index, uint8_t value);

#endif
