/*
 * virtio 1.2, the part that all devices share: split virtqueues (2.7), status and features (2.1, 2.2, 3.1), and the
 * threads that serve the queues. The transport (virtio_pci.c) lies below it and the kinds of device above.
 *
 * The guest writes the rings at any time. Each field is read once, checked, and only the copy used. What breaks the
 * rules marks the device DEVICE_NEEDS_RESET (2.1.2); a chain has at most VIRTQ_SEGMENTS pieces and as many bytes as the
 * device allows.
 *
 * virtio_device.lock protects everything but what is constant after creation. A virtual CPU's notification wakes the
 * device's threads, or is served at once by the kind (virtio_ops.notify) as far as that needs no waiting. Whoever
 * serves holds the lock but for the transfer itself (virtio_busy_begin, virtio_busy_end).
 */
#ifndef DOPPEL_DEV_VIRTIO_H
#define DOPPEL_DEV_VIRTIO_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "dev/pci.h"
#include "host/thread.h"

#define VIRTQ_SIZE_MAX 256
#define VIRTQ_SEGMENTS 256
#define VIRTIO_QUEUES 5
#define VIRTIO_THREADS 4

/* Device status (2.1). */
enum {
	VIRTIO_ACKNOWLEDGE = 1,
	VIRTIO_DRIVER = 2,
	VIRTIO_DRIVER_OK = 4,
	VIRTIO_FEATURES_OK = 8,
	VIRTIO_NEEDS_RESET = 0x40,
	VIRTIO_FAILED = 0x80,
};

/* Features of all devices (6). */
#define VIRTIO_F_INDIRECT_DESC BIT(28)
#define VIRTIO_F_EVENT_IDX BIT(29)
#define VIRTIO_F_VERSION_1 BIT(32)

enum virtio_type {
	VIRTIO_TYPE_NET = 1,
	VIRTIO_TYPE_BLOCK = 2,
	VIRTIO_TYPE_CONSOLE = 3,
	VIRTIO_TYPE_ENTROPY = 4,
	VIRTIO_TYPE_BALLOON = 5,
	VIRTIO_TYPE_VSOCK = 19,
	VIRTIO_TYPE_FS = 26,
};

/* ---- Virtqueues ---- */

struct virtqueue {
	uint16_t size, size_max;
	bool enabled;
	uint16_t vector;            /* the transport's */
	uint64_t desc, avail, used; /* guest-physical addresses, as the driver told them */

	/* Made by virtq_map: the three areas, each checked for its whole length. NULL: not there. */
	struct guest_memory *mem;
	const uint8_t *desc_at;
	uint8_t *avail_at, *used_at;

	bool event_idx, indirect; /* features agreed on */
	bool silenced;            /* the driver was told that it need not notify */
	uint16_t next_avail;      /* next entry of the available ring to take */
	uint16_t next_used;       /* next entry of the used ring to fill */
	uint16_t signalled;       /* next_used when the driver was last interrupted */
	bool signalled_valid;
};

struct virtq_segment {
	uint64_t gpa;
	uint8_t *host; /* to `len` bytes; writable for those that the device writes */
	uint32_t len;
};

/* A buffer of the driver: pieces for the device to read, then pieces for it to write. */
struct virtq_chain {
	uint16_t head;
	unsigned readable, writable;
	uint64_t read_len, write_len;
	struct virtq_segment seg[VIRTQ_SEGMENTS];
};

enum virtq_result { VIRTQ_EMPTY, VIRTQ_CHAIN, VIRTQ_BROKEN };

void virtq_reset(struct virtqueue *q);
/* Finds the three areas in guest memory. False: not aligned, or not RAM. */
bool virtq_map(struct virtqueue *q, struct guest_memory *mem);
/* Takes the next chain of at most `max_bytes`. VIRTQ_BROKEN: *why says how the driver broke the rules. */
enum virtq_result virtq_pop(struct virtqueue *q, struct virtq_chain *chain, uint64_t max_bytes, const char **why);
/* Puts back the last `n` chains taken: they are the next ones again. */
void virtq_unpop(struct virtqueue *q, unsigned n);
/* Gives a chain back, with `len` bytes written to it. */
void virtq_push(struct virtqueue *q, uint16_t head, uint32_t len);
/* The same for several that must come to light at once: fills the i-th free entry; then shows the first `n`. */
void virtq_fill(struct virtqueue *q, unsigned i, uint16_t head, uint32_t len);
void virtq_show(struct virtqueue *q, unsigned n);
/* Whether the driver wants an interrupt for what was pushed since it was last asked (2.7.7). */
bool virtq_wants_interrupt(struct virtqueue *q);
/* Asks to be notified of new chains; true: there are some already. */
bool virtq_arm(struct virtqueue *q);
/* Tells the driver that it need not notify. */
void virtq_silence(struct virtqueue *q);
bool virtq_has_more(const struct virtqueue *q);

/* Copies out of the readable part, or into the writable part, from byte `off`; returns how many bytes, up to `len`. */
size_t virtq_chain_read(const struct virtq_chain *chain, uint64_t off, void *dst, size_t len);
size_t virtq_chain_write(struct guest_memory *mem, const struct virtq_chain *chain, uint64_t off, const void *src,
			 size_t len);

/* ---- Devices ---- */

struct virtio_device;

struct virtio_ops {
	/*
	 * On a thread of the device, with the lock held: serves one chain; false when there is nothing to do. It may
	 * let go of the lock between virtio_busy_begin and virtio_busy_end, and then returns true.
	 */
	bool (*work)(struct virtio_device *dev);
	/*
	 * On the thread of a virtual CPU that notified the device, with the lock held: serves what needs no waiting,
	 * and wakes the threads (virtio_wake) for the rest. As `work`, it may let go of the lock. NULL: wakes the
	 * threads.
	 */
	void (*notify)(struct virtio_device *dev);
	/* The driver wrote to the device configuration (2.5); lock held. NULL: such writes are dropped. */
	void (*config_write)(struct virtio_device *dev, uint64_t off, unsigned len, uint64_t value);
	/*
	 * For a kind that has a thread of its own instead of the device's (spec->threads 0): there is something to look
	 * at, perhaps. Any thread, the lock held or not; must not take it.
	 */
	void (*wake)(struct virtio_device *dev);
	/* Ends such a thread, before everything else goes. */
	void (*stop)(struct virtio_device *dev);
	/* The driver is ready (DRIVER_OK); lock held. */
	void (*ready)(struct virtio_device *dev);
	/* The kind's own state, beyond queues and negotiation; lock held, no work going on. Each may be NULL. */
	void (*reset)(struct virtio_device *dev);
	void (*state)(struct virtio_device *dev, struct state_stream *s);
	/* Frees what surrounds *dev, after the last use. */
	void (*free)(struct virtio_device *dev);
};

struct virtio_spec {
	const char *name; /* for people: error texts, thread names */
	enum virtio_type type;
	uint32_t pci_class;
	unsigned queues, threads;
	uint16_t queue_size;
	uint64_t max_bytes;  /* of one chain */
	unsigned config_len; /* of the device configuration (2.5) */
	const struct virtio_ops *ops;
};

struct virtio_device {
	/* Set by the kind before virtio_device_create. */
	const struct virtio_spec *spec;
	const void *config;
	uint64_t offered; /* features of the kind; those of all devices are added */

	struct guest_memory *mem;
	struct virtio_pci *pci;

	struct host_mutex lock;
	struct host_cond work, idle;
	struct host_thread thread[VIRTIO_THREADS];
	unsigned threads;
	unsigned busy;    /* transfers under way: threads between busy_begin and busy_end, and virtio_async_begin's */
	unsigned held;    /* while not 0, no thread starts work */
	uint64_t wake_at; /* host_now_ns() when the threads are to look again by themselves; UINT64_MAX: never */
	bool stop;
	bool master; /* the transport lets the device at memory */
	bool warned;

	uint8_t status, generation;
	uint64_t accepted;
	struct virtqueue queue[VIRTIO_QUEUES];
};

/*
 * Puts *dev, part of a zeroed struct of the kind's, on the PCI bus and starts its threads. Fills *out, whose `destroy`
 * ends with spec->ops->free. False: err says why, and free was not called.
 */
bool virtio_device_create(struct virtio_device *dev, struct pci_bus *pci, struct guest_memory *mem, struct device *out,
			  struct error *err);

/*
 * With the lock held. pop: false when there is no chain. push: interrupts the driver if it wants that; push_quiet
 * leaves that to one virtio_signal after several.
 */
bool virtio_pop(struct virtio_device *dev, unsigned queue, struct virtq_chain *chain);
/* Takes back the last pop of that queue, under the same hold of the lock. */
void virtio_unpop(struct virtio_device *dev, unsigned queue);
void virtio_push(struct virtio_device *dev, unsigned queue, const struct virtq_chain *chain, uint32_t len);
void virtio_push_quiet(struct virtio_device *dev, unsigned queue, const struct virtq_chain *chain, uint32_t len);
void virtio_signal(struct virtio_device *dev, unsigned queue);
void virtio_busy_begin(struct virtio_device *dev); /* lets go of the lock; a reset waits for busy_end */
void virtio_busy_end(struct virtio_device *dev);
/* The same for a transfer that goes on after its thread has gone; both with the lock held, and without letting go. */
void virtio_async_begin(struct virtio_device *dev);
void virtio_async_end(struct virtio_device *dev);
/* Whether chains may be taken now. */
bool virtio_may_work(const struct virtio_device *dev);
/* The driver broke the rules, or the device cannot go on: DEVICE_NEEDS_RESET. */
void virtio_fail(struct virtio_device *dev, const char *why);
void virtio_wake(struct virtio_device *dev);
/* The device configuration changed: tells the driver. */
void virtio_config_changed(struct virtio_device *dev);

/* For the transport, with the lock held. */
void virtio_set_status(struct virtio_device *dev, uint8_t status);
void virtio_accept(struct virtio_device *dev, unsigned select, uint32_t features);
void virtio_enable_queue(struct virtio_device *dev, unsigned queue);
void virtio_notify(struct virtio_device *dev);
void virtio_reset(struct virtio_device *dev);

/* virtio_worker.c: threads. hold: waits until none works, and lets none start. */
bool virtio_threads_start(struct virtio_device *dev, unsigned count);
void virtio_threads_stop(struct virtio_device *dev);
void virtio_hold(struct virtio_device *dev);
void virtio_release(struct virtio_device *dev);

/* virtio_pci.c: the transport. interrupt: lock held. */
struct virtio_pci *virtio_pci_create(struct virtio_device *dev, struct pci_bus *bus, struct error *err);
void virtio_pci_destroy(struct virtio_pci *vp);
void virtio_pci_reset(struct virtio_pci *vp);
void virtio_pci_state(struct virtio_pci *vp, struct state_stream *s);
void virtio_pci_interrupt_queue(struct virtio_pci *vp, uint16_t vector);
void virtio_pci_interrupt_config(struct virtio_pci *vp);
/* Negotiation starts over (status 0 was written). */
void virtio_pci_restart(struct virtio_pci *vp);

#endif
