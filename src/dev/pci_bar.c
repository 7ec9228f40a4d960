/* Base address registers: PCI Local Bus 3.0, 6.2.5. Where they point, and regions on the bus that follow them. */
#include "dev/pci_bus.h"

#define PHYSICAL_LIMIT BIT(52) /* of any x86-64 processor */

static enum bus_space bar_space(const struct pci_bar *bar)
{
	return bar->kind == PCI_BAR_IO ? BUS_PORT : BUS_MMIO;
}

static bool hides_ram(const struct guest_memory *mem, uint64_t base, uint64_t size)
{
	for (unsigned i = 0; mem && i < mem->count; i++) {
		const struct guest_range *r = &mem->range[i];
		if (base < r->gpa + r->size && r->gpa < base + size)
			return true;
	}
	return false;
}

/* Whether BAR `index` decodes now, and from which address. */
static bool bar_wanted(const struct pci_device *dev, unsigned index, uint64_t *base)
{
	const struct pci_bar *bar = &dev->bar[index];
	uint64_t reg = pci_get(dev, PCI_BAR0 + 4 * index, 4);
	uint64_t limit = bar->kind == PCI_BAR_IO ? 0x10000 : PHYSICAL_LIMIT;
	unsigned enable = bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;

	if (!bar->size || !(dev->config[PCI_COMMAND] & enable))
		return false;
	if (bar->kind & PCI_BAR_MEM64)
		reg |= (uint64_t)pci_get(dev, PCI_BAR0 + 4 * index + 4, 4) << 32;
	*base = reg & -bar->size;
	if (*base == 0 || *base > limit - bar->size)
		return false;
	return bar->kind == PCI_BAR_IO || !hides_ram(dev->bus->c.mem, *base, bar->size);
}

static void bar_unmap(struct pci_device *dev, struct pci_bar *bar)
{
	if (bar->mapped)
		bus_remove(dev->bus->c.bus, bar_space(bar), bar->mapped_at);
	bar->mapped = false;
}

static void bar_leave(struct pci_device *dev, unsigned index)
{
	struct pci_bar *bar = &dev->bar[index];
	uint64_t base;

	if (bar->mapped && !(bar_wanted(dev, index, &base) && base == bar->mapped_at))
		bar_unmap(dev, bar);
}

static void bar_enter(struct pci_device *dev, unsigned index)
{
	struct pci_bar *bar = &dev->bar[index];
	struct bus_region region = {
		.name = dev->name,
		.size = bar->size,
		.ops = bar->ops,
		.opaque = bar->opaque,
	};

	if (bar->mapped || !bar_wanted(dev, index, &region.base))
		return;
	/* In another's place it stays off the bus, and is tried again whenever any BAR moves. */
	bar->mapped = bus_add(dev->bus->c.bus, bar_space(bar), region);
	bar->mapped_at = region.base;
}

static void for_each_bar(struct pci_bus *bus, void (*fn)(struct pci_device *dev, unsigned index))
{
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		for (unsigned i = 0; bus->slot[slot] && i < PCI_BARS; i++)
			fn(bus->slot[slot], i);
	}
}

void pci_bars_update(struct pci_bus *bus)
{
	for_each_bar(bus, bar_leave);
	for_each_bar(bus, bar_enter);
}

void pci_bars_unmap(struct pci_device *dev)
{
	for (unsigned i = 0; i < PCI_BARS; i++)
		bar_unmap(dev, &dev->bar[i]);
}

static bool window_take(const struct pci_window *w, uint64_t *next, uint64_t size, uint64_t *base)
{
	*base = align_up(*next, size);
	if (*base < w->base || *base - w->base > w->size || size > w->size - (*base - w->base))
		return false;
	*next = *base + size;
	return true;
}

static bool bar_assign(struct pci_bus *bus, struct pci_bar *bar)
{
	/* Small 64-bit BARs below 4 GiB too, where every guest can reach them. */
	bool high = (bar->kind & PCI_BAR_MEM64) && bar->size > bus->c.mem32.size / 8;

	if (bar->kind == PCI_BAR_IO)
		return window_take(&bus->c.io, &bus->io_next, bar->size, &bar->assigned);
	if (!high && window_take(&bus->c.mem32, &bus->mem32_next, bar->size, &bar->assigned))
		return true;
	return (bar->kind & PCI_BAR_MEM64) && window_take(&bus->c.mem64, &bus->mem64_next, bar->size, &bar->assigned);
}

bool pci_bars_assign(struct pci_device *dev, struct error *err)
{
	for (unsigned i = 0; i < PCI_BARS; i++) {
		if (dev->bar[i].size && !bar_assign(dev->bus, &dev->bar[i]))
			return error_set(err, "no room in the PCI address windows for BAR %u of %s", i, dev->name);
	}
	return true;
}

void pci_bars_restore(struct pci_device *dev)
{
	for (unsigned i = 0; i < PCI_BARS; i++) {
		const struct pci_bar *bar = &dev->bar[i];
		if (!bar->size)
			continue;
		pci_put(dev, PCI_BAR0 + 4 * i, 4, bar->assigned | bar->kind);
		if (bar->kind & PCI_BAR_MEM64)
			pci_put(dev, PCI_BAR0 + 4 * i + 4, 4, bar->assigned >> 32);
	}
}
