/* Configuration space of a PCI function: PCI Local Bus 3.0, chapter 6. */
#include "dev/pci_bus.h"

#include <string.h>

uint32_t pci_get(const struct pci_device *dev, unsigned off, unsigned len)
{
	uint32_t value = 0;
	for (unsigned i = 0; i < len; i++)
		value |= (uint32_t)dev->config[off + i] << (8 * i);
	return value;
}

void pci_put(struct pci_device *dev, unsigned off, unsigned len, uint32_t value)
{
	for (unsigned i = 0; i < len; i++)
		dev->config[off + i] = value >> (8 * i);
}

static void pci_allow(struct pci_device *dev, unsigned off, unsigned len, uint32_t mask)
{
	for (unsigned i = 0; i < len; i++)
		dev->writable[off + i] = mask >> (8 * i);
}

void pci_device_init(struct pci_device *dev, struct pci_bus *bus, const char *name, const struct pci_id *id)
{
	memset(dev, 0, sizeof(*dev));
	dev->name = name;
	dev->bus = bus;
	dev->next_cap = PCI_FIRST_CAPABILITY;
	pci_put(dev, PCI_VENDOR_ID, 2, id->vendor);
	pci_put(dev, PCI_DEVICE_ID, 2, id->device);
	pci_put(dev, PCI_REVISION, 1, id->revision);
	pci_put(dev, PCI_CLASS, 3, id->class);
	pci_put(dev, PCI_SUBSYSTEM_VENDOR, 2, id->subsystem_vendor);
	pci_put(dev, PCI_SUBSYSTEM_ID, 2, id->subsystem);
	pci_allow(dev, PCI_COMMAND, 2, PCI_COMMAND_MASTER);
	pci_allow(dev, PCI_CACHE_LINE, 1, 0xff);
	pci_allow(dev, PCI_INTERRUPT_LINE, 1, 0xff);
	host_mutex_init(&dev->msix.lock);
}

void pci_device_bar(struct pci_device *dev, unsigned index, enum pci_bar_kind kind, uint64_t size,
		    const struct bus_ops *ops, void *opaque)
{
	bool wide = kind & PCI_BAR_MEM64;
	unsigned low = kind == PCI_BAR_IO ? 4 : 16; /* the register's low bits tell the kind, so no BAR is smaller */

	ENSURE(index + wide < PCI_BARS && size >= low && (size & (size - 1)) == 0);
	dev->bar[index] = (struct pci_bar){.kind = kind, .size = size, .ops = ops, .opaque = opaque};
	pci_put(dev, PCI_BAR0 + 4 * index, 4, kind);
	pci_allow(dev, PCI_BAR0 + 4 * index, 4, -size);
	if (wide)
		pci_allow(dev, PCI_BAR0 + 4 * index + 4, 4, -size >> 32);
	dev->writable[PCI_COMMAND] |= kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
}

unsigned pci_device_capability(struct pci_device *dev, uint8_t id, unsigned len)
{
	unsigned off = dev->next_cap;

	ENSURE(len >= 2 && off + len <= PCI_CONFIG_SIZE);
	dev->config[off] = id;
	dev->config[dev->last_cap ? dev->last_cap + 1 : PCI_CAPABILITIES] = off;
	dev->config[PCI_STATUS] |= PCI_STATUS_CAPABILITIES;
	dev->last_cap = off;
	dev->next_cap = MIN(align_up(off + len, 4), (uint64_t)PCI_CONFIG_SIZE - 1);
	return off;
}

void pci_device_intx(struct pci_device *dev)
{
	dev->config[PCI_INTERRUPT_PIN] = 1;
	dev->writable[PCI_COMMAND + 1] |= PCI_COMMAND_INTX_DISABLE >> 8;
}

bool pci_device_add(struct pci_device *dev, struct error *err)
{
	struct pci_bus *bus = dev->bus;
	bool ok = false;

	host_lock(&bus->lock);
	for (dev->slot = 0; dev->slot < PCI_SLOTS && bus->slot[dev->slot]; dev->slot++)
		;
	if (dev->slot == PCI_SLOTS) {
		error_set(err, "too many PCI devices: no slot is left for %s (at most %d fit)", dev->name,
			  PCI_SLOTS - 1);
		goto out;
	}
	if (!pci_bars_assign(dev, err))
		goto out;
	/* In place of firmware: addresses, decoding on, and where INTA# goes. */
	pci_bars_restore(dev);
	dev->config[PCI_COMMAND] |= dev->writable[PCI_COMMAND] & (PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
	if (dev->config[PCI_INTERRUPT_PIN])
		dev->config[PCI_INTERRUPT_LINE] = bus->c.intx_gsi[pci_intx(dev->slot, 0)];
	memcpy(dev->initial, dev->config, sizeof(dev->initial));
	bus->slot[dev->slot] = dev;
	pci_bars_update(bus);
	ok = true;
out:
	host_unlock(&bus->lock);
	return ok;
}

void pci_device_remove(struct pci_device *dev)
{
	struct pci_bus *bus = dev->bus;

	host_lock(&bus->lock);
	if (dev->slot < PCI_SLOTS && bus->slot[dev->slot] == dev) {
		pci_set_intx(dev, false);
		pci_bars_unmap(dev);
		bus->slot[dev->slot] = NULL;
	}
	host_unlock(&bus->lock);
	host_mutex_destroy(&dev->msix.lock);
}

/* All that follows from the registers' contents. */
static void pci_config_apply(struct pci_device *dev)
{
	pci_bars_update(dev->bus);
	pci_intx_control(dev);
	pci_msix_control(dev);
}

void pci_device_reset(struct pci_device *dev)
{
	host_lock(&dev->bus->lock);
	memcpy(dev->config, dev->initial, sizeof(dev->config));
	pci_msix_reset(dev);
	pci_config_apply(dev);
	host_unlock(&dev->bus->lock);
	pci_set_intx(dev, false);
}

void pci_device_state(struct pci_device *dev, struct state_stream *s)
{
	uint8_t config[PCI_CONFIG_SIZE];
	bool intx = dev->intx_level;

	host_lock(&dev->bus->lock);
	memcpy(config, dev->config, sizeof(config));
	state_field(s, config);
	state_flag(s, &intx);
	pci_msix_state(dev, s);
	if (!s->saving && !s->failed) {
		for (unsigned i = 0; i < sizeof(config); i++)
			dev->config[i] = (dev->initial[i] & ~dev->writable[i]) | (config[i] & dev->writable[i]);
		pci_config_apply(dev);
		pci_set_intx(dev, intx);
	}
	host_unlock(&dev->bus->lock);
}

static bool touches(unsigned off, unsigned len, unsigned field, unsigned field_len)
{
	return off < field + field_len && field < off + len;
}

uint32_t pci_config_read(struct pci_device *dev, unsigned off, unsigned len)
{
	if (dev->config_read)
		dev->config_read(dev, off, len);
	if (touches(off, len, PCI_STATUS, 1)) {
		host_lock(&dev->bus->intx_lock);
		dev->config[PCI_STATUS] &= ~PCI_STATUS_INTERRUPT;
		if (dev->intx_level)
			dev->config[PCI_STATUS] |= PCI_STATUS_INTERRUPT;
		host_unlock(&dev->bus->intx_lock);
	}
	return pci_get(dev, off, len);
}

void pci_config_write(struct pci_device *dev, unsigned off, unsigned len, uint32_t value)
{
	for (unsigned i = 0; i < len; i++) {
		uint8_t mask = dev->writable[off + i];
		dev->config[off + i] = (dev->config[off + i] & ~mask) | (value >> (8 * i) & mask);
	}
	if (touches(off, len, PCI_COMMAND, 2) || touches(off, len, PCI_BAR0, 4 * PCI_BARS))
		pci_bars_update(dev->bus);
	if (touches(off, len, PCI_COMMAND, 2))
		pci_intx_control(dev);
	if (dev->msix.vectors && touches(off, len, dev->msix.cap + 2, 2))
		pci_msix_control(dev);
	if (dev->config_written)
		dev->config_written(dev, off, len);
}

bool pci_is_master(const struct pci_device *dev)
{
	return dev->config[PCI_COMMAND] & PCI_COMMAND_MASTER;
}

/* Drives the line with what all functions on it pull; intx_lock is held. */
static void intx_pull(struct pci_device *dev, bool was, bool now)
{
	struct pci_bus *bus = dev->bus;
	unsigned line = pci_intx(dev->slot, 0);

	if (was == now)
		return;
	bus->intx_raised[line] += now ? 1 : -1;
	if (bus->intx_raised[line] == now) /* the first to pull, or the last to let go */
		irq_set(&bus->c.intx[line], now);
}

void pci_set_intx(struct pci_device *dev, bool level)
{
	host_lock(&dev->bus->intx_lock);
	intx_pull(dev, dev->intx_level && !dev->intx_disabled, level && !dev->intx_disabled);
	dev->intx_level = level;
	host_unlock(&dev->bus->intx_lock);
}

void pci_intx_control(struct pci_device *dev)
{
	bool disabled = dev->config[PCI_COMMAND + 1] & (PCI_COMMAND_INTX_DISABLE >> 8);

	host_lock(&dev->bus->intx_lock);
	intx_pull(dev, dev->intx_level && !dev->intx_disabled, dev->intx_level && !disabled);
	dev->intx_disabled = disabled;
	host_unlock(&dev->bus->intx_lock);
}
