/*
 * PCI: one host bridge with its bus 0, reached by configuration mechanism #1 (ports 0xCF8-0xCFF) and by ECAM (PCI Local
 * Bus 3.0; PCI Express 4.0, 7.2.2). In place of firmware, BARs get addresses when a function is added, and again at
 * each reset.
 *
 * Locks, outermost first: pci_bus.lock (configuration space, BARs), the lock of a device, pci_device.msix.lock and
 * pci_bus.intx_lock. A thread of a device raises interrupts holding its own lock; it never touches configuration space.
 */
#ifndef DOPPEL_DEV_PCI_H
#define DOPPEL_DEV_PCI_H

#include "bus/bus.h"
#include "bus/memory.h"
#include "host/thread.h"

#define PCI_SLOTS 32
#define PCI_BARS 6
#define PCI_CONFIG_SIZE 256
#define PCI_MSIX_VECTORS 64
#define PCI_NO_VECTOR 0xffff

/* Offsets in the configuration header (PCI Local Bus 3.0, 6.1). */
enum {
	PCI_VENDOR_ID = 0x00,
	PCI_DEVICE_ID = 0x02,
	PCI_COMMAND = 0x04,
	PCI_STATUS = 0x06,
	PCI_REVISION = 0x08,
	PCI_CLASS = 0x09, /* 3 bytes: programming interface, sub-class, class */
	PCI_CACHE_LINE = 0x0c,
	PCI_LATENCY = 0x0d,
	PCI_HEADER_TYPE = 0x0e,
	PCI_BAR0 = 0x10,
	PCI_SUBSYSTEM_VENDOR = 0x2c,
	PCI_SUBSYSTEM_ID = 0x2e,
	PCI_ROM = 0x30,
	PCI_CAPABILITIES = 0x34,
	PCI_INTERRUPT_LINE = 0x3c,
	PCI_INTERRUPT_PIN = 0x3d,
	PCI_FIRST_CAPABILITY = 0x40,
};

enum { PCI_COMMAND_IO = 1, PCI_COMMAND_MEMORY = 2, PCI_COMMAND_MASTER = 4, PCI_COMMAND_INTX_DISABLE = 0x400 };
enum { PCI_STATUS_INTERRUPT = 8, PCI_STATUS_CAPABILITIES = 0x10 };
enum { PCI_CAP_MSIX = 0x11, PCI_CAP_VENDOR = 0x09 };

/* Kinds of BAR; the values are the low bits of the register. */
enum pci_bar_kind {
	PCI_BAR_MEM32 = 0x0,
	PCI_BAR_IO = 0x1,
	PCI_BAR_MEM64 = 0x4,
	PCI_BAR_MEM64_PREFETCH = 0xc,
};

/* An address window that the board gives to PCI; the DSDT's _CRS names the same. */
struct pci_window {
	uint64_t base, size;
};

struct pci_bus_config {
	struct bus *bus;                /* borrowed, as is mem */
	const struct guest_memory *mem; /* BARs never hide RAM */
	struct msi_sink msi;
	/* The four interrupt inputs: INTA# of slot s is intx[pci_intx(s, 0)], as the DSDT's _PRT must say. */
	struct irq_line intx[4];
	uint8_t intx_gsi[4]; /* what the Interrupt Line registers show */
	uint64_t ecam_base;
	unsigned ecam_buses; /* of 1 MiB each; 0: no ECAM */
	struct pci_window io, mem32, mem64;
	/* The reset control register, port 0xCF9 in the midst of mechanism #1's, asked for a reset. NULL: not there. */
	void (*reset_request)(void *opaque);
	void *opaque;
};

/* Which of the four inputs interrupt pin `pin` (INTA# 0 … INTD# 3) of the function in `slot` drives. */
static inline unsigned pci_intx(unsigned slot, unsigned pin)
{
	return (slot + pin) % 4;
}

struct pci_bus;
struct pci_device;

/* Makes the host bridge (00:00.0) and fills *out for the board's list of devices. NULL: err says why. */
struct pci_bus *pci_bus_create(const struct pci_bus_config *config, struct device *out, struct error *err);

/* ---- For those who make PCI functions ---- */

struct pci_bar {
	enum pci_bar_kind kind;
	uint64_t size; /* a power of two; 0: no such BAR */
	const struct bus_ops *ops;
	void *opaque;
	uint64_t assigned; /* by us, in place of firmware */
	bool mapped;       /* on the bus, at mapped_at */
	uint64_t mapped_at;
};

/* MSI-X (PCI Local Bus 3.0, 6.8.2): table at 0 and pending bits at PCI_MSIX_PBA of a BAR of its own. */
#define PCI_MSIX_PBA 0x800
#define PCI_MSIX_BAR_SIZE 0x1000
#define PCI_MSIX_ENTRY 16

struct pci_msix {
	struct host_mutex lock;
	unsigned vectors; /* 0: no MSI-X */
	uint8_t cap;
	bool enabled, masked;                /* message control's bits 15 and 14 */
	uint32_t table[PCI_MSIX_VECTORS][4]; /* address, address high, data, vector control */
	uint64_t pending;
};

struct pci_device {
	const char *name;
	struct pci_bus *bus;
	unsigned slot;
	uint8_t config[PCI_CONFIG_SIZE];
	uint8_t writable[PCI_CONFIG_SIZE]; /* bits that the guest may write */
	uint8_t initial[PCI_CONFIG_SIZE];  /* config as it was when the function was added, for reset */
	uint8_t last_cap, next_cap;
	struct pci_bar bar[PCI_BARS];
	struct pci_msix msix;
	bool intx_level, intx_disabled; /* under pci_bus.intx_lock */

	/* Hooks of the function, both may be NULL; called with pci_bus.lock held. */
	void (*config_read)(struct pci_device *dev, unsigned off, unsigned len);    /* before config[] is read */
	void (*config_written)(struct pci_device *dev, unsigned off, unsigned len); /* after config[] changed */
};

struct pci_id {
	uint16_t vendor, device, subsystem_vendor, subsystem;
	uint32_t class; /* 24 bits */
	uint8_t revision;
};

/* Fills *dev: identity, and what is writable in every header. `name` is borrowed. Nothing is on the bus yet. */
void pci_device_init(struct pci_device *dev, struct pci_bus *bus, const char *name, const struct pci_id *id);
/* Memory and I/O BARs; a 64-bit one takes index and index + 1. Before pci_device_add. */
void pci_device_bar(struct pci_device *dev, unsigned index, enum pci_bar_kind kind, uint64_t size,
		    const struct bus_ops *ops, void *opaque);
/* Room for a capability of `len` bytes with id and link filled in; returns its offset. Before pci_device_add. */
unsigned pci_device_capability(struct pci_device *dev, uint8_t id, unsigned len);
/* MSI-X with `vectors` (up to PCI_MSIX_VECTORS), its table in BAR `bar`. Before pci_device_add. */
void pci_device_msix(struct pci_device *dev, unsigned bar, unsigned vectors);
/* Interrupt pin INTA#. Before pci_device_add. */
void pci_device_intx(struct pci_device *dev);
/* Puts the function into the first free slot, gives its BARs addresses and enables decoding. The caller owns *dev. */
bool pci_device_add(struct pci_device *dev, struct error *err);
/* Takes it off the bus; *dev may be freed then. No processor runs. */
void pci_device_remove(struct pci_device *dev);
void pci_device_reset(struct pci_device *dev);
void pci_device_state(struct pci_device *dev, struct state_stream *s);

/* Level of the INTx# pin. Any thread. */
void pci_set_intx(struct pci_device *dev, bool level);
/* True when MSI-X is on: INTx# must not be used then. Any thread. */
bool pci_msix_enabled(struct pci_device *dev);
/* Sends the message of `vector`; while it is masked, sets its pending bit. PCI_NO_VECTOR: nothing. Any thread. */
void pci_msix_send(struct pci_device *dev, unsigned vector);
/* Whether the function may read and write memory (bus master enable). Under pci_bus.lock only. */
bool pci_is_master(const struct pci_device *dev);

/* Little-endian fields of configuration space, without masks or hooks: for those who build it. */
uint32_t pci_get(const struct pci_device *dev, unsigned off, unsigned len);
void pci_put(struct pci_device *dev, unsigned off, unsigned len, uint32_t value);

#endif
