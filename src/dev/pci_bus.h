/* What the files of the PCI bus share; functions on the bus use pci.h. */
#ifndef DOPPEL_DEV_PCI_BUS_H
#define DOPPEL_DEV_PCI_BUS_H

#include "dev/pci.h"

struct pci_bus {
	struct pci_bus_config c;
	struct host_mutex lock;
	struct pci_device *slot[PCI_SLOTS];
	uint64_t io_next, mem32_next, mem64_next; /* first free address in each window */
	uint32_t address;                         /* mechanism #1's CONFIG_ADDRESS */
	uint8_t reset_control;                    /* port 0xCF9 */

	struct host_mutex intx_lock;
	unsigned intx_raised[4]; /* how many functions pull each line */

	struct pci_device bridge;
};

/* Access to configuration space with its side effects, as a guest makes it. `off` + `len` within PCI_CONFIG_SIZE. */
uint32_t pci_config_read(struct pci_device *dev, unsigned off, unsigned len);
void pci_config_write(struct pci_device *dev, unsigned off, unsigned len, uint32_t value);

/* With pci_bus.lock held: puts each BAR of each function where its registers say, as far as there is room. */
void pci_bars_update(struct pci_bus *bus);
bool pci_bars_assign(struct pci_device *dev, struct error *err);
/* Writes the assigned addresses into the registers. */
void pci_bars_restore(struct pci_device *dev);
void pci_bars_unmap(struct pci_device *dev);

/* With pci_bus.lock held: after message control may have changed. */
void pci_msix_control(struct pci_device *dev);
void pci_msix_reset(struct pci_device *dev);
void pci_msix_state(struct pci_device *dev, struct state_stream *s);

/* INTx# follows command bit 10. */
void pci_intx_control(struct pci_device *dev);

#endif
