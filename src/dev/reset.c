/* PS/2 system control port A, 0x92 (ICH9 data sheet 13.7.2): bit 0 set resets, bit 1 is A20. */
#include "dev/reset.h"

#include <stdlib.h>

#define PORT 0x92
enum { FAST_RESET = 1, A20 = 2 };

struct reset_port {
	struct reset_port_config config;
};

static uint64_t port_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	return A20;
}

static void port_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct reset_port *port = opaque;

	if (value & FAST_RESET)
		port->config.reset(port->config.opaque);
}

static const struct bus_ops ops = {port_read, port_write};

static void reset(void *opaque) {}

static void state(void *opaque, struct state_stream *s) {}

static void destroy(void *opaque)
{
	struct reset_port *port = opaque;

	bus_remove(port->config.bus, BUS_PORT, PORT);
	free(port);
}

struct reset_port *reset_port_create(const struct reset_port_config *config)
{
	struct reset_port *port = calloc(1, sizeof(*port));

	if (!port)
		return NULL;
	port->config = *config;
	if (!bus_add(config->bus, BUS_PORT, (struct bus_region){"port 0x92", PORT, 1, &ops, port})) {
		free(port);
		return NULL;
	}
	return port;
}

struct device reset_port_device(struct reset_port *port)
{
	return (struct device){.name = "port 0x92", .opaque = port, .reset = reset, .state = state, .destroy = destroy};
}
