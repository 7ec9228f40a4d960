/* pvpanic: one byte in BAR 0. A read tells which events are known here, a write is an event (QEMU, docs/specs/pvpanic).
 */
#include "dev/pvpanic.h"

#include <stdlib.h>

#define BAR_SIZE 16u

enum { EVENT_PANICKED = 1, EVENT_CRASH_LOADED = 2, EVENTS = EVENT_PANICKED | EVENT_CRASH_LOADED };

struct pvpanic {
	struct pci_device pci;
	struct pvpanic_config config;
};

static uint64_t bar_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	return off ? 0 : EVENTS;
}

static void bar_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct pvpanic *dev = opaque;

	if (!off && value & EVENTS)
		dev->config.panicked(dev->config.opaque, !(value & EVENT_PANICKED));
}

static const struct bus_ops ops = {bar_read, bar_write};

static void reset(void *opaque)
{
	pci_device_reset(&((struct pvpanic *)opaque)->pci);
}

static void state(void *opaque, struct state_stream *s)
{
	pci_device_state(&((struct pvpanic *)opaque)->pci, s);
}

static void destroy(void *opaque)
{
	struct pvpanic *dev = opaque;

	pci_device_remove(&dev->pci);
	free(dev);
}

bool pvpanic_create(const struct pvpanic_config *config, struct device *out, struct error *err)
{
	static const struct pci_id id = {.vendor = 0x1b36,
					 .device = 0x0011,
					 .subsystem_vendor = 0x1af4,
					 .subsystem = 0x1100,
					 .class = 0x088000,
					 .revision = 1};
	struct pvpanic *dev = calloc(1, sizeof(*dev));

	if (!dev)
		return error_set(err, "cannot make the panic device: the host is out of memory");
	dev->config = *config;
	pci_device_init(&dev->pci, config->pci, "pvpanic", &id);
	pci_device_bar(&dev->pci, 0, PCI_BAR_MEM32, BAR_SIZE, &ops, dev);
	if (!pci_device_add(&dev->pci, err)) {
		free(dev);
		return false;
	}
	*out = (struct device){.name = "pvpanic", .opaque = dev, .reset = reset, .state = state, .destroy = destroy};
	return true;
}
