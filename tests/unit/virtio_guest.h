/*
 * A machine with nothing but memory and a PCI bus, and a guest's driver for virtio over PCI: everything goes through
 * ports, memory-mapped registers and rings in guest memory, as a guest would do it.
 */
#ifndef DOPPEL_TESTS_VIRTIO_GUEST_H
#define DOPPEL_TESTS_VIRTIO_GUEST_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"
#include "host/host.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RIG_MEMORY MiB(8)
#define RIG_ECAM 0xe0000000ull
#define RIG_QUEUES 0x10000ull /* virtqueue n lies at n * RIG_QUEUE_SIZE from here */
#define RIG_QUEUE_SIZE 0x10000ull
#define RIG_BUFFERS 0x100000ull /* free for a test's buffers */

struct rig {
	struct bus bus;
	struct guest_memory mem;
	struct pci_bus *pci;
	struct device host, dev;
	bool has_dev;
	atomic_uint messages; /* MSI messages sent */
	_Atomic uint32_t last_data;
	_Atomic uint64_t last_address;
	atomic_uint line[4]; /* levels of the INTx lines */
	unsigned resets;
};

static inline void rig_message(void *opaque, uint64_t addr, uint32_t data)
{
	struct rig *r = opaque;

	r->last_address = addr;
	r->last_data = data;
	r->messages++;
}

static inline void rig_line(void *opaque, unsigned pin, bool level)
{
	struct rig *r = opaque;
	r->line[pin] = level;
}

static inline void rig_reset_request(void *opaque)
{
	struct rig *r = opaque;
	r->resets++;
}

static inline void rig_die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	abort();
}

static inline void rig_init(struct rig *r)
{
	struct error err;
	struct pci_bus_config c = {
		.bus = &r->bus,
		.mem = &r->mem,
		.msi = {rig_message, r},
		.intx_gsi = {16, 17, 18, 19},
		.ecam_base = RIG_ECAM,
		.ecam_buses = 16,
		.io = {0xc000, 0x4000},
		.mem32 = {0xc0000000, 0x20000000},
		.mem64 = {BIT(39), BIT(38)},
		.reset_request = rig_reset_request,
		.opaque = r,
	};

	memset(r, 0, sizeof(*r));
	bus_init(&r->bus);
	if (!guest_memory_init(&r->mem, RIG_MEMORY, &err))
		rig_die(err.text);
	for (unsigned i = 0; i < 4; i++)
		c.intx[i] = (struct irq_line){.set = rig_line, .opaque = r, .pin = i};
	r->pci = pci_bus_create(&c, &r->host, &err);
	if (!r->pci)
		rig_die(err.text);
}

static inline void rig_end(struct rig *r)
{
	if (r->has_dev)
		r->dev.destroy(r->dev.opaque);
	r->host.destroy(r->host.opaque);
	guest_memory_destroy(&r->mem);
	bus_destroy(&r->bus);
}

static inline void *rig_at(struct rig *r, uint64_t gpa, uint64_t len)
{
	void *p = guest_memory_ptr(&r->mem, gpa, len, true);
	if (!p)
		rig_die("not guest memory");
	return p;
}

/* ---- PCI ---- */

static inline uint32_t cfg_read(struct rig *r, unsigned slot, unsigned off, unsigned len)
{
	bus_write(&r->bus, BUS_PORT, 0xcf8, 4, 0x80000000u | slot << 11 | (off & 0xfc), 0);
	return bus_read(&r->bus, BUS_PORT, 0xcfc + (off & 3), len, 0);
}

static inline void cfg_write(struct rig *r, unsigned slot, unsigned off, unsigned len, uint32_t value)
{
	bus_write(&r->bus, BUS_PORT, 0xcf8, 4, 0x80000000u | slot << 11 | (off & 0xfc), 0);
	bus_write(&r->bus, BUS_PORT, 0xcfc + (off & 3), len, value, 0);
}

static inline uint64_t mmio_read(struct rig *r, uint64_t addr, unsigned len)
{
	return bus_read(&r->bus, BUS_MMIO, addr, len, 0);
}

static inline void mmio_write(struct rig *r, uint64_t addr, unsigned len, uint64_t value)
{
	bus_write(&r->bus, BUS_MMIO, addr, len, value, 0);
}

static inline uint64_t bar_address(struct rig *r, unsigned slot, unsigned bar)
{
	uint64_t low = cfg_read(r, slot, PCI_BAR0 + 4 * bar, 4);

	if ((low & 6) == 4)
		low |= (uint64_t)cfg_read(r, slot, PCI_BAR0 + 4 * bar + 4, 4) << 32;
	return low & ~0xfull;
}

/* ---- virtio ---- */

#define DRV_QUEUES 5

struct drv_queue {
	unsigned index, size;
	uint64_t desc, avail, used, notify;
	uint16_t avail_idx, used_seen, next_desc;
	bool event_idx;
};

struct drv {
	struct rig *r;
	unsigned slot, msix_cap;
	uint64_t common, notify, isr, device, msix_table;
	uint32_t multiplier;
	unsigned window_cap;
	uint64_t features;
	struct drv_queue q[DRV_QUEUES];
};

#define S_ACKNOWLEDGE 1
#define S_DRIVER 2
#define S_DRIVER_OK 4
#define S_FEATURES_OK 8
#define S_NEEDS_RESET 0x40
#define F_VERSION_1 BIT(32)
#define F_EVENT_IDX BIT(29)
#define F_INDIRECT BIT(28)

enum {
	C_DEVICE_SELECT = 0,
	C_DEVICE_FEATURES = 4,
	C_DRIVER_SELECT = 8,
	C_DRIVER_FEATURES = 12,
	C_CONFIG_VECTOR = 16,
	C_QUEUES = 18,
	C_STATUS = 20,
	C_GENERATION = 21,
	C_SELECT = 22,
	C_SIZE = 24,
	C_VECTOR = 26,
	C_ENABLE = 28,
	C_NOTIFY = 30,
	C_DESC = 32,
	C_AVAIL = 40,
	C_USED = 48
};

static inline uint64_t common_read(struct drv *d, unsigned off, unsigned len)
{
	return mmio_read(d->r, d->common + off, len);
}

static inline void common_write(struct drv *d, unsigned off, unsigned len, uint64_t value)
{
	mmio_write(d->r, d->common + off, len, value);
}

static inline uint8_t drv_status(struct drv *d)
{
	return common_read(d, C_STATUS, 1);
}

static inline void drv_vendor_cap(struct drv *d, unsigned cap)
{
	unsigned type = cfg_read(d->r, d->slot, cap + 3, 1);
	uint64_t at =
		bar_address(d->r, d->slot, cfg_read(d->r, d->slot, cap + 4, 1)) + cfg_read(d->r, d->slot, cap + 8, 4);

	switch (type) {
	case 1:
		d->common = at;
		break;
	case 2:
		d->notify = at;
		d->multiplier = cfg_read(d->r, d->slot, cap + 16, 4);
		break;
	case 3:
		d->isr = at;
		break;
	case 4:
		d->device = at;
		break;
	case 5:
		d->window_cap = cap;
		break;
	}
}

/* Finds the structures of the device in `slot`, and lets it at memory. */
static inline void drv_find(struct drv *d, struct rig *r, unsigned slot)
{
	memset(d, 0, sizeof(*d));
	d->r = r;
	d->slot = slot;
	for (unsigned cap = cfg_read(r, slot, PCI_CAPABILITIES, 1); cap; cap = cfg_read(r, slot, cap + 1, 1)) {
		unsigned id = cfg_read(r, slot, cap, 1);
		if (id == PCI_CAP_VENDOR)
			drv_vendor_cap(d, cap);
		if (id == PCI_CAP_MSIX) {
			d->msix_cap = cap;
			d->msix_table = bar_address(r, slot, cfg_read(r, slot, cap + 4, 4) & 7);
		}
	}
	cfg_write(r, slot, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
}

static inline uint64_t drv_offered(struct drv *d)
{
	uint64_t f;

	common_write(d, C_DEVICE_SELECT, 4, 0);
	f = common_read(d, C_DEVICE_FEATURES, 4);
	common_write(d, C_DEVICE_SELECT, 4, 1);
	return f | common_read(d, C_DEVICE_FEATURES, 4) << 32;
}

static inline void drv_features(struct drv *d, uint64_t features)
{
	common_write(d, C_DRIVER_SELECT, 4, 0);
	common_write(d, C_DRIVER_FEATURES, 4, features);
	common_write(d, C_DRIVER_SELECT, 4, 1);
	common_write(d, C_DRIVER_FEATURES, 4, features >> 32);
	d->features = features;
}

/* Reset to FEATURES_OK; what of `features` is offered is accepted. Returns the status then. */
static inline uint8_t drv_begin(struct drv *d, uint64_t features)
{
	common_write(d, C_STATUS, 1, 0);
	common_write(d, C_STATUS, 1, S_ACKNOWLEDGE);
	common_write(d, C_STATUS, 1, S_ACKNOWLEDGE | S_DRIVER);
	drv_features(d, drv_offered(d) & features);
	common_write(d, C_STATUS, 1, S_ACKNOWLEDGE | S_DRIVER | S_FEATURES_OK);
	return drv_status(d);
}

static inline void drv_queue_write(struct drv *d, unsigned off, uint64_t gpa)
{
	common_write(d, off, 4, gpa);
	common_write(d, off + 4, 4, gpa >> 32);
}

static inline struct drv_queue *drv_queue(struct drv *d, unsigned index, unsigned size)
{
	struct drv_queue *q = &d->q[index];
	uint64_t base = RIG_QUEUES + index * RIG_QUEUE_SIZE;

	*q = (struct drv_queue){
		.index = index, .size = size, .desc = base, .avail = base + 0x4000, .used = base + 0x8000};
	q->event_idx = d->features & F_EVENT_IDX;
	memset(rig_at(d->r, base, RIG_QUEUE_SIZE), 0, RIG_QUEUE_SIZE);
	common_write(d, C_SELECT, 2, index);
	common_write(d, C_SIZE, 2, size);
	drv_queue_write(d, C_DESC, q->desc);
	drv_queue_write(d, C_AVAIL, q->avail);
	drv_queue_write(d, C_USED, q->used);
	q->notify = d->notify + common_read(d, C_NOTIFY, 2) * d->multiplier;
	common_write(d, C_ENABLE, 2, 1);
	return q;
}

static inline void drv_ok(struct drv *d)
{
	common_write(d, C_STATUS, 1, drv_status(d) | S_DRIVER_OK);
}

struct guest_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

enum { D_NEXT = 1, D_WRITE = 2, D_INDIRECT = 4 };

static inline struct guest_desc *drv_desc(struct drv *d, struct drv_queue *q, unsigned i)
{
	return (struct guest_desc *)rig_at(d->r, q->desc, 16 * q->size) + i;
}

static inline uint16_t *drv_avail(struct drv *d, struct drv_queue *q)
{
	return rig_at(d->r, q->avail, 6 + 2 * q->size); /* flags, index, ring, used_event */
}

static inline uint16_t *drv_used(struct drv *d, struct drv_queue *q)
{
	return rig_at(d->r, q->used, 6 + 8 * q->size); /* flags, index, ring of 4 words each, avail_event */
}

/* Makes descriptor `head` available. */
static inline void drv_publish(struct drv *d, struct drv_queue *q, uint16_t head)
{
	uint16_t *avail = drv_avail(d, q);

	avail[2 + q->avail_idx % q->size] = head;
	__atomic_store_n(&avail[1], ++q->avail_idx, __ATOMIC_RELEASE);
}

static inline void drv_kick(struct drv *d, struct drv_queue *q)
{
	mmio_write(d->r, q->notify, 2, q->index);
}

/* A chain of `n` pieces in the queue's own table; links are filled in. Returns its head. */
static inline uint16_t drv_chain(struct drv *d, struct drv_queue *q, const struct guest_desc *piece, unsigned n)
{
	uint16_t head = q->next_desc, at = head;

	for (unsigned i = 0; i < n; i++, at = (at + 1) % q->size) {
		*drv_desc(d, q, at) = piece[i];
		if (i + 1 < n) {
			drv_desc(d, q, at)->flags |= D_NEXT;
			drv_desc(d, q, at)->next = (at + 1) % q->size;
		}
	}
	q->next_desc = at;
	return head;
}

static inline uint16_t drv_send(struct drv *d, struct drv_queue *q, const struct guest_desc *piece, unsigned n)
{
	uint16_t head = drv_chain(d, q, piece, n);

	drv_publish(d, q, head);
	drv_kick(d, q);
	return head;
}

struct guest_used {
	uint32_t id, len;
};

static inline bool drv_used_ready(struct drv *d, struct drv_queue *q)
{
	return __atomic_load_n(&drv_used(d, q)[1], __ATOMIC_ACQUIRE) != q->used_seen;
}

static inline bool drv_take_now(struct drv *d, struct drv_queue *q, struct guest_used *used)
{
	uint16_t *ring = drv_used(d, q);

	if (!drv_used_ready(d, q))
		return false;
	memcpy(used, &ring[2 + 4 * (q->used_seen % q->size)], sizeof(*used));
	q->used_seen++;
	return true;
}

/* Waits up to ~5 s for a used chain. */
static inline bool drv_take(struct drv *d, struct drv_queue *q, struct guest_used *used)
{
	for (unsigned i = 0; !drv_take_now(d, q, used); i++) {
		if (i == 50000)
			return false;
		host_sleep_ns(100000);
	}
	return true;
}

/* Waits up to ~5 s for bits of the device's status. */
static inline bool drv_wait_status(struct drv *d, uint8_t status)
{
	for (unsigned i = 0; !(drv_status(d) & status); i++) {
		if (i == 50000)
			return false;
		host_sleep_ns(100000);
	}
	return true;
}

/* Enables MSI-X: message `v` for vector v, data 0x4000 + v. */
static inline void drv_msix(struct drv *d, unsigned vectors)
{
	for (unsigned v = 0; v < vectors; v++) {
		mmio_write(d->r, d->msix_table + 16 * v, 4, 0xfee00000);
		mmio_write(d->r, d->msix_table + 16 * v + 4, 4, 0);
		mmio_write(d->r, d->msix_table + 16 * v + 8, 4, 0x4000 + v);
		mmio_write(d->r, d->msix_table + 16 * v + 12, 4, 0);
	}
	cfg_write(d->r, d->slot, d->msix_cap + 2, 2, 0x8000);
}

#endif
