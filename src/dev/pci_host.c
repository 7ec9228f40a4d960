/*
 * The host bridge: configuration mechanism #1 (PCI Local Bus 3.0, 3.2.2.3.2) and ECAM (PCI Express 4.0, 7.2.2), and
 * function 00:00.0 that stands for it. All functions are on bus 0, each the only one in its slot.
 */
#include "dev/pci_bus.h"

#include <stdlib.h>
#include <string.h>

#define PORT_BASE 0xcf8
#define PORT_COUNT 8
#define PORT_RESET 1 /* 0xCF9, the reset control register of Intel's south bridges */
#define PORT_DATA 4
#define ADDRESS_ENABLE BIT(31)
#define ADDRESS_BITS 0x80fffffcu
#define RESET_SYSTEM 4
#define FUNCTION_SIZE 4096 /* of ECAM */

/* `bdf`: bus in bits 15:8, device in 7:3, function in 2:0. NULL: nobody there. */
static struct pci_device *find(struct pci_bus *bus, unsigned bdf)
{
	return bdf >> 8 == 0 && (bdf & 7) == 0 ? bus->slot[bdf >> 3 & 31] : NULL;
}

static uint32_t config_read(struct pci_bus *bus, unsigned bdf, unsigned off, unsigned len)
{
	uint32_t value = zext(~0ull, len);

	host_lock(&bus->lock);
	struct pci_device *dev = find(bus, bdf);
	if (dev && off + len <= PCI_CONFIG_SIZE)
		value = pci_config_read(dev, off, len);
	host_unlock(&bus->lock);
	return value;
}

static void config_write(struct pci_bus *bus, unsigned bdf, unsigned off, unsigned len, uint32_t value)
{
	host_lock(&bus->lock);
	struct pci_device *dev = find(bus, bdf);
	if (dev && off + len <= PCI_CONFIG_SIZE)
		pci_config_write(dev, off, len, value);
	host_unlock(&bus->lock);
}

static uint32_t get_address(struct pci_bus *bus)
{
	host_lock(&bus->lock);
	uint32_t address = bus->address;
	host_unlock(&bus->lock);
	return address;
}

static uint64_t port_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct pci_bus *bus = opaque;
	uint32_t address = get_address(bus);

	if (off == 0 && len == 4)
		return address;
	if (off == PORT_RESET && len == 1)
		return bus->reset_control;
	if (off < PORT_DATA || !(address & ADDRESS_ENABLE))
		return zext(~0ull, len);
	return config_read(bus, address >> 8 & 0xffff, (address & 0xfc) + (off - PORT_DATA), len);
}

static void reset_write(struct pci_bus *bus, uint8_t value)
{
	bus->reset_control = value & ~RESET_SYSTEM;
	if ((value & RESET_SYSTEM) && bus->c.reset_request)
		bus->c.reset_request(bus->c.opaque);
}

static void port_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct pci_bus *bus = opaque;
	uint32_t address = get_address(bus);

	if (off == 0 && len == 4) {
		host_lock(&bus->lock);
		bus->address = value & ADDRESS_BITS;
		host_unlock(&bus->lock);
	} else if (off == PORT_RESET && len == 1) {
		reset_write(bus, value);
	} else if (off >= PORT_DATA && (address & ADDRESS_ENABLE)) {
		config_write(bus, address >> 8 & 0xffff, (address & 0xfc) + (off - PORT_DATA), len, value);
	}
}

static const struct bus_ops port_ops = {port_read, port_write};

static uint64_t ecam_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	uint64_t low = config_read(opaque, off / FUNCTION_SIZE, off % FUNCTION_SIZE, MIN(len, 4u));

	if (len > 4)
		low |= ecam_read(opaque, off + 4, len - 4, cpu) << 32;
	return low;
}

static void ecam_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	config_write(opaque, off / FUNCTION_SIZE, off % FUNCTION_SIZE, MIN(len, 4u), value);
	if (len > 4)
		ecam_write(opaque, off + 4, len - 4, value >> 32, cpu);
}

static const struct bus_ops ecam_ops = {ecam_read, ecam_write};

static void host_reset(void *opaque)
{
	struct pci_bus *bus = opaque;

	bus->address = 0;
	bus->reset_control = 0;
	pci_device_reset(&bus->bridge);
}

static void host_state(void *opaque, struct state_stream *s)
{
	struct pci_bus *bus = opaque;

	state_field(s, bus->address);
	state_field(s, bus->reset_control);
	bus->address &= ADDRESS_BITS;
	pci_device_state(&bus->bridge, s);
}

static void host_destroy(void *opaque)
{
	struct pci_bus *bus = opaque;

	bus_remove(bus->c.bus, BUS_PORT, PORT_BASE);
	if (bus->c.ecam_buses)
		bus_remove(bus->c.bus, BUS_MMIO, bus->c.ecam_base);
	pci_device_remove(&bus->bridge);
	host_mutex_destroy(&bus->intx_lock);
	host_mutex_destroy(&bus->lock);
	free(bus);
}

static bool host_map(struct pci_bus *bus, struct error *err)
{
	struct bus_region ports = {"pci", PORT_BASE, PORT_COUNT, &port_ops, bus};
	struct bus_region ecam = {"pci-ecam", bus->c.ecam_base, MiB(bus->c.ecam_buses), &ecam_ops, bus};

	if (!bus_add(bus->c.bus, BUS_PORT, ports))
		return error_set(err, "ports 0xcf8-0xcff are taken: PCI cannot be made");
	if (ecam.size && !bus_add(bus->c.bus, BUS_MMIO, ecam)) {
		bus_remove(bus->c.bus, BUS_PORT, PORT_BASE);
		return error_set(err, "the address of PCI's configuration space is taken");
	}
	return true;
}

struct pci_bus *pci_bus_create(const struct pci_bus_config *config, struct device *out, struct error *err)
{
	/* A bridge that systems know and have no workarounds for: QEMU's generic PCIe host bridge. */
	const struct pci_id id = {
		.vendor = 0x1b36, .device = 8, .subsystem_vendor = 0x1af4, .subsystem = 0x1100, .class = 0x060000};
	struct pci_bus *bus = calloc(1, sizeof(*bus));

	if (!bus) {
		error_set(err, "out of memory");
		return NULL;
	}
	bus->c = *config;
	bus->io_next = config->io.base;
	bus->mem32_next = config->mem32.base;
	bus->mem64_next = config->mem64.base;
	if (!host_map(bus, err)) {
		free(bus);
		return NULL;
	}
	host_mutex_init(&bus->lock);
	host_mutex_init(&bus->intx_lock);
	pci_device_init(&bus->bridge, bus, "pci-host", &id);
	ENSURE(pci_device_add(&bus->bridge, err)); /* an empty bus has a free slot, and the bridge no BARs */
	*out = (struct device){"pci-host", bus, host_reset, host_state, host_destroy, NULL, NULL};
	return bus;
}
