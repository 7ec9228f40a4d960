/* Serial port, 16550A (National Semiconductor PC16550D data sheet). */
#ifndef DOPPEL_DEV_UART16550_H
#define DOPPEL_DEV_UART16550_H

#include "bus/bus.h"

struct uart16550;

struct uart16550_config {
	struct bus *bus;
	uint16_t port; /* 0x3f8 */
	struct irq_line irq;
	/* Bytes sent, in order, one call at a time, on the thread of the processor that sent them. NULL: dropped. */
	void (*write)(void *opaque, const uint8_t *data, size_t len);
	/* Room for uart16550_receive after it took less than asked. Any thread, no lock held, may come for no reason.
	 * NULL: none */
	void (*input_ready)(void *opaque);
	void *opaque;
};

/* Eight ports. NULL: no memory, or ports taken. */
struct uart16550 *uart16550_create(const struct uart16550_config *config);
struct device uart16550_device(struct uart16550 *uart);
/* Bytes arrive. How many were taken: there is a backlog behind the FIFO of 16, and it is bounded. Any thread. */
size_t uart16550_receive(struct uart16550 *uart, const uint8_t *data, size_t len);

#endif
