/* MSI-X: PCI Local Bus 3.0, 6.8.2. */
#include "dev/pci_bus.h"

#include <string.h>

enum { ENTRY_ADDRESS, ENTRY_ADDRESS_HIGH, ENTRY_DATA, ENTRY_CONTROL };
#define ENTRY_MASKED 1u
#define CONTROL_ENABLE 0x8000
#define CONTROL_MASK 0x4000

/* Sends what may be sent of `vectors`, a bit for each; the rest stays pending. lock is held. */
static void msix_send(struct pci_device *dev, uint64_t vectors)
{
	struct pci_msix *m = &dev->msix;
	const struct msi_sink *sink = &dev->bus->c.msi;

	m->pending |= vectors;
	if (!m->enabled || m->masked)
		return;
	for (unsigned v = 0; v < m->vectors; v++) {
		const uint32_t *entry = m->table[v];
		if (!(m->pending & BIT(v)) || (entry[ENTRY_CONTROL] & ENTRY_MASKED))
			continue;
		m->pending &= ~BIT(v);
		if (sink->send)
			sink->send(sink->opaque, entry[ENTRY_ADDRESS] | (uint64_t)entry[ENTRY_ADDRESS_HIGH] << 32,
				   entry[ENTRY_DATA]);
	}
}

void pci_msix_send(struct pci_device *dev, unsigned vector)
{
	host_lock(&dev->msix.lock);
	if (dev->msix.enabled && vector < dev->msix.vectors)
		msix_send(dev, BIT(vector));
	host_unlock(&dev->msix.lock);
}

bool pci_msix_enabled(struct pci_device *dev)
{
	host_lock(&dev->msix.lock);
	bool enabled = dev->msix.enabled;
	host_unlock(&dev->msix.lock);
	return enabled;
}

/* An aligned 32-bit word of the table's BAR; lock is held. */
static uint32_t msix_get(const struct pci_msix *m, uint64_t off)
{
	if (off >= PCI_MSIX_PBA)
		return off < PCI_MSIX_PBA + 8 ? m->pending >> (8 * (off - PCI_MSIX_PBA)) : 0;
	return off / PCI_MSIX_ENTRY < m->vectors ? m->table[off / PCI_MSIX_ENTRY][off / 4 % 4] : 0;
}

static void msix_put(struct pci_msix *m, uint64_t off, uint32_t value)
{
	if (off / PCI_MSIX_ENTRY >= m->vectors)
		return;
	if (off / 4 % 4 == ENTRY_CONTROL)
		value &= ENTRY_MASKED;
	if (off / 4 % 4 == ENTRY_ADDRESS)
		value &= ~3u;
	m->table[off / PCI_MSIX_ENTRY][off / 4 % 4] = value;
}

static uint64_t msix_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct pci_device *dev = opaque;
	uint64_t at = off & ~3ull;

	host_lock(&dev->msix.lock);
	uint64_t value = msix_get(&dev->msix, at);
	if (off % 4 + len > 4)
		value |= (uint64_t)msix_get(&dev->msix, at + 4) << 32;
	host_unlock(&dev->msix.lock);
	return zext(value >> (8 * (off % 4)), len);
}

/* Only aligned accesses of 4 and 8 bytes are defined; others are dropped. */
static void msix_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct pci_device *dev = opaque;

	if (len < 4 || off % 4)
		return;
	host_lock(&dev->msix.lock);
	msix_put(&dev->msix, off, value);
	if (len == 8)
		msix_put(&dev->msix, off + 4, value >> 32);
	msix_send(dev, 0);
	host_unlock(&dev->msix.lock);
}

static const struct bus_ops msix_ops = {msix_read, msix_write};

void pci_device_msix(struct pci_device *dev, unsigned bar, unsigned vectors)
{
	ENSURE(vectors >= 1 && vectors <= PCI_MSIX_VECTORS);
	unsigned cap = pci_device_capability(dev, PCI_CAP_MSIX, 12);

	pci_put(dev, cap + 2, 2, vectors - 1);
	dev->writable[cap + 3] = (CONTROL_ENABLE | CONTROL_MASK) >> 8;
	pci_put(dev, cap + 4, 4, bar);
	pci_put(dev, cap + 8, 4, PCI_MSIX_PBA | bar);
	pci_device_bar(dev, bar, PCI_BAR_MEM32, PCI_MSIX_BAR_SIZE, &msix_ops, dev);
	dev->msix.cap = cap;
	dev->msix.vectors = vectors;
	pci_msix_reset(dev);
}

void pci_msix_control(struct pci_device *dev)
{
	struct pci_msix *m = &dev->msix;

	if (!m->vectors)
		return;
	unsigned control = pci_get(dev, m->cap + 2, 2);
	host_lock(&m->lock);
	m->enabled = control & CONTROL_ENABLE;
	m->masked = control & CONTROL_MASK;
	if (!m->enabled)
		m->pending = 0;
	msix_send(dev, 0);
	host_unlock(&m->lock);
}

void pci_msix_reset(struct pci_device *dev)
{
	struct pci_msix *m = &dev->msix;

	host_lock(&m->lock);
	memset(m->table, 0, sizeof(m->table));
	for (unsigned v = 0; v < m->vectors; v++)
		m->table[v][ENTRY_CONTROL] = ENTRY_MASKED;
	m->pending = 0;
	m->enabled = m->masked = false;
	host_unlock(&m->lock);
}

void pci_msix_state(struct pci_device *dev, struct state_stream *s)
{
	struct pci_msix *m = &dev->msix;

	host_lock(&m->lock);
	if (!s->saving)
		m->enabled = false; /* until message control has been loaded too */
	for (unsigned v = 0; v < m->vectors; v++)
		state_field(s, m->table[v]);
	state_field(s, m->pending);
	m->pending &= m->vectors < 64 ? BIT(m->vectors) - 1 : ~0ull;
	host_unlock(&m->lock);
}
