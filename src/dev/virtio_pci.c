/* virtio over PCI: virtio 1.2, 4.1; devices of version 1 only, no transitional interface. */
#include "dev/virtio.h"

#include <stdlib.h>
#include <string.h>

#define VENDOR 0x1af4
#define DEVICE_BASE 0x1040 /* plus the virtio device type */

/* BAR 0 and what lies in it; BAR 2 is for MSI-X. */
#define STRUCTURES_BAR 0
#define MSIX_BAR 2
#define PART_SIZE 0x1000ull
enum { PART_COMMON, PART_ISR, PART_DEVICE, PART_NOTIFY, PARTS };
#define NOTIFY_MULTIPLIER 4

/* Capabilities (4.1.4): virtio_pci_cap, and what two kinds have after it. */
enum { CAP_COMMON = 1, CAP_NOTIFY = 2, CAP_ISR = 3, CAP_DEVICE = 4, CAP_PCI = 5 };
enum { CAP_LEN = 2, CAP_TYPE = 3, CAP_BAR = 4, CAP_OFFSET = 8, CAP_LENGTH = 12, CAP_SIZE = 16, CAP_EXTRA = 16 };

enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };

struct virtio_pci {
	struct pci_device pci;
	struct virtio_device *dev;
	uint8_t access_cap; /* where the PCI configuration access capability is */

	/* Under the device's lock. */
	uint32_t device_select, driver_select; /* feature words */
	uint16_t queue_select, config_vector;
	uint8_t isr;
};

/* The common configuration (4.1.4.3). */
struct common {
	uint32_t device_feature_select, device_feature;
	uint32_t driver_feature_select, driver_feature;
	uint16_t config_msix_vector, num_queues;
	uint8_t device_status, config_generation;
	uint16_t queue_select, queue_size, queue_msix_vector, queue_enable, queue_notify_off;
	uint64_t queue_desc, queue_driver, queue_device;
	uint16_t queue_notify_data, queue_reset;
};
#define COMMON(field) offsetof(struct common, field)

static struct virtqueue *selected(struct virtio_pci *vp)
{
	return vp->queue_select < vp->dev->spec->queues ? &vp->dev->queue[vp->queue_select] : NULL;
}

static uint32_t feature_word(uint64_t features, uint32_t select)
{
	return select < 2 ? features >> (32 * select) : 0;
}

static struct common common_image(struct virtio_pci *vp)
{
	const struct virtio_device *dev = vp->dev;
	const struct virtqueue *q = selected(vp);
	struct common c = {
		.device_feature_select = vp->device_select,
		.device_feature = feature_word(dev->offered, vp->device_select),
		.driver_feature_select = vp->driver_select,
		.driver_feature = feature_word(dev->accepted, vp->driver_select),
		.config_msix_vector = vp->config_vector,
		.num_queues = dev->spec->queues,
		.device_status = dev->status,
		.config_generation = dev->generation,
		.queue_select = vp->queue_select,
		.queue_msix_vector = PCI_NO_VECTOR,
	};

	if (q) {
		c.queue_size = q->size;
		c.queue_msix_vector = q->vector;
		c.queue_enable = q->enabled;
		c.queue_notify_off = vp->queue_select;
		c.queue_desc = q->desc;
		c.queue_driver = q->avail;
		c.queue_device = q->used;
	}
	return c;
}

static uint64_t read_part(const void *part, size_t size, uint64_t off, unsigned len)
{
	uint64_t value = 0;

	if (off < size)
		memcpy(&value, (const char *)part + off, MIN(len, size - off));
	return value;
}

static uint16_t valid_vector(const struct virtio_pci *vp, uint16_t vector)
{
	return vector < vp->pci.msix.vectors ? vector : PCI_NO_VECTOR;
}

static void set_half(uint64_t *field, bool high, uint32_t value)
{
	*field = high ? (*field & 0xffffffff) | (uint64_t)value << 32 : (*field & ~0xffffffffull) | value;
}

/* 32 bits of one of the three addresses; `off` counts from queue_desc. */
static void write_address(struct virtqueue *q, unsigned off, uint32_t value)
{
	uint64_t *const field[] = {&q->desc, &q->avail, &q->used};

	set_half(field[off / 8], off % 8, value);
}

static void write_queue(struct virtio_pci *vp, unsigned off, unsigned len, uint64_t value)
{
	struct virtqueue *q = selected(vp);

	if (!q)
		return;
	if (off == COMMON(queue_msix_vector))
		q->vector = valid_vector(vp, value);
	else if (off == COMMON(queue_enable) && value == 1)
		virtio_enable_queue(vp->dev, vp->queue_select);
	else if (q->enabled)
		return; /* its place and size are settled */
	else if (off == COMMON(queue_size) && value && value <= q->size_max && (value & (value - 1)) == 0)
		q->size = value;
	else if (off >= COMMON(queue_desc) && off < COMMON(queue_notify_data) && off % 4 == 0 && len >= 4)
		write_address(q, off - COMMON(queue_desc), value);
}

/* Fields are written whole (4.1.3.1), a 64-bit one as two halves or at once. */
static void write_common(struct virtio_pci *vp, uint64_t off, unsigned len, uint64_t value)
{
	switch (off) {
	case COMMON(device_feature_select):
		vp->device_select = value;
		break;
	case COMMON(driver_feature_select):
		vp->driver_select = value;
		break;
	case COMMON(driver_feature):
		virtio_accept(vp->dev, vp->driver_select, value);
		break;
	case COMMON(config_msix_vector):
		vp->config_vector = valid_vector(vp, value);
		break;
	case COMMON(device_status):
		virtio_set_status(vp->dev, value);
		break;
	case COMMON(queue_select):
		vp->queue_select = value;
		break;
	default:
		write_queue(vp, off, len, value);
		if (len == 8 && off >= COMMON(queue_desc))
			write_queue(vp, off + 4, 4, value >> 32);
	}
}

static uint8_t read_isr(struct virtio_pci *vp)
{
	uint8_t isr = vp->isr;

	vp->isr = 0;
	pci_set_intx(&vp->pci, false);
	return isr;
}

static uint64_t bar_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct virtio_pci *vp = opaque;
	uint64_t at = off % PART_SIZE, value = 0;
	struct common common;

	host_lock(&vp->dev->lock);
	switch (off / PART_SIZE) {
	case PART_COMMON:
		common = common_image(vp);
		value = read_part(&common, COMMON(queue_reset) + 2, at, len);
		break;
	case PART_ISR:
		value = at == 0 ? read_isr(vp) : 0;
		break;
	case PART_DEVICE:
		value = read_part(vp->dev->config, vp->dev->spec->config_len, at, len);
		break;
	}
	host_unlock(&vp->dev->lock);
	return value;
}

static void bar_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct virtio_pci *vp = opaque;

	/* A notification is frequent: it waits for nobody. */
	if (off / PART_SIZE == PART_NOTIFY && vp->dev->spec->ops->wake) {
		vp->dev->spec->ops->wake(vp->dev);
		return;
	}
	host_lock(&vp->dev->lock);
	if (off / PART_SIZE == PART_COMMON)
		write_common(vp, off % PART_SIZE, len, value);
	else if (off / PART_SIZE == PART_NOTIFY)
		virtio_notify(vp->dev); /* it looks at all its queues */
	else if (off / PART_SIZE == PART_DEVICE && vp->dev->spec->ops->config_write)
		vp->dev->spec->ops->config_write(vp->dev, off % PART_SIZE, len, value);
	host_unlock(&vp->dev->lock);
}

static const struct bus_ops bar_ops = {bar_read, bar_write};

/*
 * PCI configuration access capability (4.1.4.9): pci_cfg_data is a window on the structures for those who cannot reach
 * the BAR. Returns the length of the access, 0 if the window is not set to something sensible.
 */
static unsigned window(struct virtio_pci *vp, uint32_t *off)
{
	unsigned cap = vp->access_cap;
	unsigned len = pci_get(&vp->pci, cap + CAP_LENGTH, 4);

	*off = pci_get(&vp->pci, cap + CAP_OFFSET, 4);
	if (vp->pci.config[cap + CAP_BAR] != STRUCTURES_BAR || (len != 1 && len != 2 && len != 4))
		return 0;
	return *off % len == 0 && *off < PARTS * PART_SIZE ? len : 0;
}

static bool touches_window(const struct virtio_pci *vp, unsigned off, unsigned len)
{
	unsigned data = vp->access_cap + CAP_EXTRA;

	return off < data + 4 && data < off + len;
}

static void config_read(struct pci_device *pci, unsigned off, unsigned len)
{
	struct virtio_pci *vp = container_of(pci, struct virtio_pci, pci);
	uint32_t at;
	unsigned n = touches_window(vp, off, len) ? window(vp, &at) : 0;

	if (n)
		pci_put(pci, vp->access_cap + CAP_EXTRA, n, bar_read(vp, at, n, 0));
}

static void config_written(struct pci_device *pci, unsigned off, unsigned len)
{
	struct virtio_pci *vp = container_of(pci, struct virtio_pci, pci);
	unsigned data = vp->access_cap + CAP_EXTRA;
	uint32_t at;
	unsigned n = touches_window(vp, off, len) ? window(vp, &at) : 0;

	if (n)
		bar_write(vp, at, n, pci_get(pci, data, n), 0);

	host_lock(&vp->dev->lock);
	vp->dev->master = pci_is_master(pci);
	virtio_wake(vp->dev);
	if (vp->isr && pci_msix_enabled(pci))
		read_isr(vp); /* MSI-X takes over from INTx# */
	host_unlock(&vp->dev->lock);
}

static void raise(struct virtio_pci *vp, uint8_t cause, uint16_t vector)
{
	if (pci_msix_enabled(&vp->pci)) {
		pci_msix_send(&vp->pci, vector);
		return;
	}
	vp->isr |= cause;
	pci_set_intx(&vp->pci, true);
}

void virtio_pci_interrupt_queue(struct virtio_pci *vp, uint16_t vector)
{
	raise(vp, ISR_QUEUE, vector);
}

void virtio_pci_interrupt_config(struct virtio_pci *vp)
{
	raise(vp, ISR_CONFIG, vp->config_vector);
}

void virtio_pci_restart(struct virtio_pci *vp)
{
	vp->device_select = vp->driver_select = 0;
	vp->queue_select = 0;
	vp->config_vector = PCI_NO_VECTOR;
	read_isr(vp);
}

void virtio_pci_reset(struct virtio_pci *vp)
{
	pci_device_reset(&vp->pci);
}

void virtio_pci_state(struct virtio_pci *vp, struct state_stream *s)
{
	struct virtio_device *dev = vp->dev;

	pci_device_state(&vp->pci, s);
	host_lock(&dev->lock);
	state_field(s, vp->device_select);
	state_field(s, vp->driver_select);
	state_field(s, vp->queue_select);
	state_field(s, vp->config_vector);
	state_field(s, vp->isr);
	vp->config_vector = valid_vector(vp, vp->config_vector);
	dev->master = pci_is_master(&vp->pci);
	host_unlock(&dev->lock);
}

static unsigned add_capability(struct virtio_pci *vp, unsigned type, unsigned part, unsigned extra)
{
	unsigned len = CAP_SIZE + extra;
	unsigned cap = pci_device_capability(&vp->pci, PCI_CAP_VENDOR, len);

	vp->pci.config[cap + CAP_LEN] = len;
	vp->pci.config[cap + CAP_TYPE] = type;
	vp->pci.config[cap + CAP_BAR] = STRUCTURES_BAR;
	pci_put(&vp->pci, cap + CAP_OFFSET, 4, part * PART_SIZE);
	pci_put(&vp->pci, cap + CAP_LENGTH, 4, PART_SIZE);
	return cap;
}

static void add_capabilities(struct virtio_pci *vp)
{
	struct pci_device *pci = &vp->pci;
	unsigned cap;

	add_capability(vp, CAP_COMMON, PART_COMMON, 0);
	add_capability(vp, CAP_ISR, PART_ISR, 0);
	if (vp->dev->spec->config_len)
		add_capability(vp, CAP_DEVICE, PART_DEVICE, 0);
	cap = add_capability(vp, CAP_NOTIFY, PART_NOTIFY, 4);
	pci_put(pci, cap + CAP_EXTRA, 4, NOTIFY_MULTIPLIER);
	cap = add_capability(vp, CAP_PCI, 0, 4);
	pci_put(pci, cap + CAP_LENGTH, 4, 0);
	memset(&pci->writable[cap + CAP_BAR], 0xff, 1);
	memset(&pci->writable[cap + CAP_OFFSET], 0xff, CAP_EXTRA + 4 - CAP_OFFSET);
	vp->access_cap = cap;
}

struct virtio_pci *virtio_pci_create(struct virtio_device *dev, struct pci_bus *bus, struct error *err)
{
	const struct virtio_spec *spec = dev->spec;
	const uint16_t device = DEVICE_BASE + spec->type;
	const struct pci_id id = {VENDOR, device, VENDOR, device, spec->pci_class, 1};
	struct virtio_pci *vp = calloc(1, sizeof(*vp));

	if (!vp) {
		error_set(err, "out of memory");
		return NULL;
	}
	vp->dev = dev;
	vp->config_vector = PCI_NO_VECTOR;
	pci_device_init(&vp->pci, bus, spec->name, &id);
	pci_device_intx(&vp->pci);
	pci_device_bar(&vp->pci, STRUCTURES_BAR, PCI_BAR_MEM64_PREFETCH, PARTS * PART_SIZE, &bar_ops, vp);
	pci_device_msix(&vp->pci, MSIX_BAR, spec->queues + 1);
	add_capabilities(vp);
	vp->pci.config_read = config_read;
	vp->pci.config_written = config_written;
	if (!pci_device_add(&vp->pci, err)) {
		virtio_pci_destroy(vp);
		return NULL;
	}
	return vp;
}

void virtio_pci_destroy(struct virtio_pci *vp)
{
	if (!vp)
		return;
	pci_device_remove(&vp->pci);
	free(vp);
}
