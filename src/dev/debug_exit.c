/* isa-debug-exit (QEMU, docs/specs): four ports, a write of any width ends the VM, reads give nothing. */
#include "dev/debug_exit.h"

#include <stdlib.h>

struct debug_exit {
	struct debug_exit_config config;
};

static uint64_t port_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	return 0;
}

static void port_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct debug_exit *dev = opaque;

	dev->config.exited(dev->config.opaque, value);
}

static const struct bus_ops ops = {port_read, port_write};

static void reset(void *opaque) {}

static void state(void *opaque, struct state_stream *s) {}

static void destroy(void *opaque)
{
	struct debug_exit *dev = opaque;

	bus_remove(dev->config.bus, BUS_PORT, dev->config.port);
	free(dev);
}

struct debug_exit *debug_exit_create(const struct debug_exit_config *config)
{
	struct debug_exit *dev = calloc(1, sizeof(*dev));

	if (!dev)
		return NULL;
	dev->config = *config;
	if (!bus_add(config->bus, BUS_PORT, (struct bus_region){"debug exit", config->port, 4, &ops, dev})) {
		free(dev);
		return NULL;
	}
	return dev;
}

struct device debug_exit_device(struct debug_exit *dev)
{
	return (struct device){.name = "debug exit", .opaque = dev, .reset = reset, .state = state, .destroy = destroy};
}
