/*
 * The board's wiring. ISA interrupts go to the 8259s and to the I/O APIC alike (IRQ 0 to its pin 2), PCI's four to pins
 * 16 to 19 and, for systems without I/O APIC, to the 8259 inputs that the Interrupt Line registers name.
 */
#include "machine/board.h"

#include "dev/acpi_pm.h"
#include "dev/debug_exit.h"
#include "dev/i8042.h"
#include "dev/ioapic.h"
#include "dev/pic8259.h"
#include "dev/pit8254.h"
#include "dev/pvpanic.h"
#include "dev/reset.h"
#include "dev/rtc.h"
#include "dev/uart16550.h"
#include "dev/virtio_balloon.h"
#include "dev/virtio_blk.h"
#include "dev/virtio_console.h"
#include "dev/virtio_fs.h"
#include "dev/virtio_net.h"
#include "dev/virtio_rng.h"
#include "dev/virtio_vsock.h"

#include <stdio.h>
#include <string.h>

static const uint8_t pci_isa_irq[4] = PC_PCI_ISA_IRQS;

static void set_line(struct irq_line line, bool level)
{
	irq_set(&line, level);
}

static void isa_set(void *opaque, unsigned irq, bool level)
{
	struct pc *pc = opaque;

	set_line(pic8259_line(pc->pic, irq), level);
	set_line(ioapic_line(pc->ioapic, irq ? irq : PC_TIMER_GSI), level);
}

/* Whichever of the two has the input enabled is the one that the guest listens to; the 8259 if neither. */
static bool isa_waits(void *opaque, unsigned irq)
{
	struct pc *pc = opaque;
	struct irq_line pic = pic8259_line(pc->pic, irq), apic = ioapic_line(pc->ioapic, irq ? irq : PC_TIMER_GSI);

	return ioapic_enabled(pc->ioapic, apic.pin) ? irq_waits(&apic) : irq_waits(&pic);
}

static void pci_set(void *opaque, unsigned input, bool level)
{
	struct pc *pc = opaque;

	set_line(pic8259_line(pc->pic, pci_isa_irq[input]), level);
	set_line(ioapic_line(pc->ioapic, PC_PCI_GSI + input), level);
}

/* An ISA interrupt: its pins on the 8259s and on the I/O APIC. */
static struct irq_line isa_irq(struct pc *pc, unsigned irq)
{
	return (struct irq_line){.set = isa_set, .opaque = pc, .pin = irq, .waits = isa_waits};
}

static void apic_notify(void *opaque, unsigned cpu, enum apic_event event, uint8_t vector)
{
	struct pc *pc = opaque;

	pc->c.kick(pc->c.opaque, cpu);
}

static bool failed(struct error *err, const char *what)
{
	return error_set(err, "cannot make the %s: the host is out of memory or threads", what);
}

/* Takes a device made by its ..._create into the list; `made` is false when that failed. */
static bool keep(struct pc *pc, bool made, struct device device, const char *what, struct error *err)
{
	if (!made)
		return failed(err, what);
	ENSURE(pc->devices < PC_DEVICES);
	pc->device[pc->devices++] = device;
	return true;
}

#define KEEP(pc, ptr, desc, what, err) keep(pc, (ptr) != NULL, (ptr) ? (desc) : (struct device){0}, what, err)

static bool make_apics(struct pc *pc, struct error *err)
{
	struct apic_bus_config config = {
		.clock = pc->c.clock,
		.cpus = pc->c.cpus,
		.phys_bits = pc->c.model->phys_bits,
		.x2apic = x86_has(pc->c.model, FEAT_X2APIC),
		.tsc_deadline = x86_has(pc->c.model, FEAT_TSC_DEADLINE),
		.notify = apic_notify,
		.opaque = pc,
	};
	struct ioapic_config io = {.bus = pc->c.bus, .base = PC_IOAPIC, .id = PC_IOAPIC_ID};

	pc->apics = apic_bus_create(&config);
	if (!KEEP(pc, pc->apics, apic_bus_device(pc->apics), "local APICs", err))
		return false;
	if (!apic_bus_attach(pc->apics, pc->c.bus))
		return failed(err, "local APICs");
	io.apics = pc->apics;
	pc->ioapic = ioapic_create(&io);
	return KEEP(pc, pc->ioapic, ioapic_device(pc->ioapic), "I/O APIC", err);
}

static bool make_pic(struct pc *pc, struct error *err)
{
	struct pic8259_config config = {.bus = pc->c.bus, .intr = apic_bus_lint0(pc->apics)};
	struct apic_extint extint = {.pending = pic8259_pending, .ack = pic8259_ack};

	pc->pic = pic8259_create(&config);
	if (!KEEP(pc, pc->pic, pic8259_device(pc->pic), "8259 interrupt controllers", err))
		return false;
	extint.opaque = pc->pic;
	apic_bus_set_extint(pc->apics, &extint);
	return true;
}

static bool make_timers(struct pc *pc, struct error *err)
{
	struct pit8254_config pit = {
		.bus = pc->c.bus,
		.clock = pc->c.clock,
		.irq = isa_irq(pc, 0),
		.polled = pc->c.polled_timer,
		.opaque = pc->c.opaque,
	};
	struct rtc_config rtc = {.bus = pc->c.bus, .clock = pc->c.clock, .irq = isa_irq(pc, PC_RTC_IRQ)};
	struct rtc *rtc_dev;

	pc->pit = pit8254_create(&pit);
	if (!KEEP(pc, pc->pit, pit8254_device(pc->pit), "8254 timer", err))
		return false;
	rtc_dev = rtc_create(&rtc);
	return KEEP(pc, rtc_dev, rtc_device(rtc_dev), "CMOS clock", err);
}

static bool make_power(struct pc *pc, struct error *err)
{
	struct acpi_pm_config pm = {
		.bus = pc->c.bus,
		.clock = pc->c.clock,
		.port = PC_PM_BASE,
		.sci = isa_irq(pc, PC_SCI_IRQ),
		.power_off = pc->c.power_off,
		.opaque = pc->c.opaque,
	};
	struct reset_port_config reset = {.bus = pc->c.bus, .reset = pc->c.reset, .opaque = pc->c.opaque};
	struct i8042_config kbc = {
		.bus = pc->c.bus,
		.irq = isa_irq(pc, PC_KEYBOARD_IRQ),
		.keyboard = pc->keyboard,
		.reset = pc->c.reset,
		.opaque = pc->c.opaque,
	};
	struct acpi_pm *pm_dev = acpi_pm_create(&pm);
	struct reset_port *reset_dev;
	struct i8042 *kbc_dev;

	if (!KEEP(pc, pm_dev, acpi_pm_device(pm_dev), "ACPI hardware", err))
		return false;
	reset_dev = reset_port_create(&reset);
	if (!KEEP(pc, reset_dev, reset_port_device(reset_dev), "reset port", err))
		return false;
	kbc_dev = i8042_create(&kbc);
	return KEEP(pc, kbc_dev, i8042_device(kbc_dev), "keyboard controller", err);
}

static bool make_serial(struct pc *pc, struct error *err)
{
	struct uart16550_config config = {
		.bus = pc->c.bus,
		.port = PC_COM1,
		.irq = isa_irq(pc, PC_COM1_IRQ),
		.write = pc->c.serial.write,
		.input_ready = pc->c.serial.input_ready,
		.opaque = pc->c.serial.opaque,
	};

	pc->uart = uart16550_create(&config);
	return KEEP(pc, pc->uart, uart16550_device(pc->uart), "serial port", err);
}

static bool make_debug_exit(struct pc *pc, struct error *err)
{
	struct debug_exit_config config = {
		.bus = pc->c.bus,
		.port = PC_DEBUG_EXIT,
		.exited = pc->c.debug_exited,
		.opaque = pc->c.opaque,
	};
	struct debug_exit *dev;

	if (!pc->c.debug_exit)
		return true;
	dev = debug_exit_create(&config);
	return KEEP(pc, dev, debug_exit_device(dev), "debug-exit port", err);
}

static bool make_pci(struct pc *pc, struct error *err)
{
	struct pci_bus_config config = {
		.bus = pc->c.bus,
		.mem = pc->c.mem,
		.msi = apic_bus_msi(pc->apics),
		.ecam_base = PC_ECAM,
		.ecam_buses = PC_ECAM_BUSES,
		.io = {PC_PCI_IO, PC_PCI_IO_END - PC_PCI_IO},
		.mem32 = {PC_PCI_WINDOW, PC_PCI_WINDOW_END - PC_PCI_WINDOW},
		.reset_request = pc->c.reset,
		.opaque = pc->c.opaque,
	};

	for (unsigned i = 0; i < 4; i++) {
		config.intx[i] = (struct irq_line){.set = pci_set, .opaque = pc, .pin = i};
		config.intx_gsi[i] = pci_isa_irq[i];
	}
	if (pc->window64)
		config.mem64 = (struct pci_window){PC_PCI_WINDOW64, PC_PCI_WINDOW64_SIZE};
	pc->pci = pci_bus_create(&config, &pc->device[pc->devices], err);
	if (!pc->pci)
		return false;
	pc->devices++;
	return true;
}

static bool make_disks(struct pc *pc, struct error *err)
{
	for (unsigned i = 0; i < pc->c.disks; i++) {
		const struct pc_disk *d = &pc->c.disk[i];
		char id[24];
		struct disk_config config = {
			.image = {d->path, BLK_FORMAT_AUTO, d->readonly, d->snapshot, d->direct, d->block_size},
			.id = id,
			.iops = d->iops,
			.bps = d->bps,
		};

		if (!blk_format_find(d->format, &config.image.format))
			return error_set(err, "disk image '%s': no format '%s': there are raw and qcow2", d->path,
					 d->format);
		if (d->block_size && d->block_size != BLK_SECTOR && d->block_size != PAGE_SIZE)
			return error_set(err, "disk image '%s': blocks of %u bytes are not possible: give 512 or 4096",
					 d->path, d->block_size);
		snprintf(id, sizeof(id), "doppel-disk%u", i);
		if (!virtio_blk_create(pc->pci, pc->c.mem, &config, &pc->device[pc->devices], err))
			return false;
		pc->devices++;
	}
	return true;
}

static bool make_nets(struct pc *pc, struct error *err)
{
	for (unsigned i = 0; i < pc->c.nets; i++) {
		const struct pc_net *n = &pc->c.net[i];
		struct virtio_net_config config = {
			.mtu = n->tap ? 0 : (uint16_t)n->user.mtu,
			.bps = n->bps,
			.net = n->tap ? host_net_open_tap(n->tap, err) : host_net_open_user(&n->user, err),
		};

		memcpy(config.mac, n->mac, sizeof(config.mac));
		if (!config.net || !virtio_net_create(pc->pci, pc->c.mem, &config, &pc->device[pc->devices], err))
			return false;
		pc->devices++;
	}
	return true;
}

static bool make_shares(struct pc *pc, struct error *err)
{
	for (unsigned i = 0; i < pc->c.shares; i++) {
		const struct pc_share *s = &pc->c.share[i];
		struct share_config config = {s->path, s->tag, s->readonly, pc->c.shares};

		for (unsigned j = 0; j < i; j++)
			if (!strcmp(s->tag, pc->c.share[j].tag))
				return error_set(err,
						 "two shares have the tag '%s': give each its own, as --share %s:TAG",
						 s->tag, s->path);
		if (!virtio_fs_create(pc->pci, pc->c.mem, &config, &pc->device[pc->devices], err))
			return false;
		pc->devices++;
	}
	return true;
}

static bool make_virtio(struct pc *pc, struct error *err)
{
	struct virtio_console_config console = {
		.write = pc->c.virtio.write,
		.input_ready = pc->c.virtio.input_ready,
		.opaque = pc->c.virtio.opaque,
	};

	if (!make_disks(pc, err) || !make_shares(pc, err) ||
	    !virtio_rng_create(pc->pci, pc->c.mem, &pc->device[pc->devices], err))
		return false;
	pc->devices++;
	if (!console.write)
		return make_nets(pc, err);
	pc->console = virtio_console_create(pc->pci, pc->c.mem, &console, &pc->device[pc->devices], err);
	if (!pc->console)
		return false;
	pc->devices++;
	return make_nets(pc, err);
}

static bool make_vsock(struct pc *pc, struct error *err)
{
	struct vsock_config config = {pc->c.vsock, pc->c.vsock_cid};

	if (!pc->c.vsock)
		return true;
	if (!virtio_vsock_create(pc->pci, pc->c.mem, &config, &pc->device[pc->devices], err))
		return false;
	pc->devices++;
	return true;
}

static bool make_balloon(struct pc *pc, struct error *err)
{
	if (pc->c.no_balloon)
		return true;
	pc->balloon = virtio_balloon_create(pc->pci, pc->c.mem, pc->c.balloon, &pc->device[pc->devices], err);
	pc->devices += pc->balloon != NULL;
	return pc->balloon;
}

static bool make_pvpanic(struct pc *pc, struct error *err)
{
	struct pvpanic_config config = {.pci = pc->pci, .panicked = pc->c.panicked, .opaque = pc->c.opaque};

	if (!config.panicked)
		return true;
	if (!pvpanic_create(&config, &pc->device[pc->devices], err))
		return false;
	pc->devices++;
	return true;
}

bool board_create(struct pc *pc, struct error *err)
{
	return make_apics(pc, err) && make_pic(pc, err) && make_timers(pc, err) && make_power(pc, err) &&
	       make_serial(pc, err) && make_debug_exit(pc, err) && make_pci(pc, err) && make_virtio(pc, err) &&
	       make_balloon(pc, err) && make_pvpanic(pc, err) && make_vsock(pc, err);
}
