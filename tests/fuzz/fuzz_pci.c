/*
 * PCI configuration space, BARs of every kind, INTx and MSI-X, with functions of the test's own: what cannot be written
 * stays, a BAR answers where its register says, and nowhere when decoding is off.
 */
#include "fuzz.h"

#include "../unit/virtio_guest.h"
#include "dev/pci_bus.h"

#define TOYS 3
#define OPERATIONS_MAX 500

static const uint64_t bar_size[TOYS][PCI_BARS] = {
	{0x4000, 0, 0x20, 0, 0, 0}, /* and MSI-X in BAR 3 */
	{0x10, 0x1000, 0x100000, 0x100, 0x8000000, 0},
	{0x1000, 0, 0x1000, 0, 0x40, 0x8000},
};
static const enum pci_bar_kind bar_kind[TOYS][PCI_BARS] = {
	{PCI_BAR_MEM64_PREFETCH, 0, PCI_BAR_IO, 0, 0, 0},
	{PCI_BAR_IO, PCI_BAR_MEM32, PCI_BAR_MEM32, PCI_BAR_IO, PCI_BAR_MEM64, 0},
	{PCI_BAR_MEM64, 0, PCI_BAR_MEM64_PREFETCH, 0, PCI_BAR_IO, PCI_BAR_MEM32},
};

static struct rig rig;
static struct pci_device toy[TOYS];
static uint64_t touched; /* by the last access: the BAR's number and the offset in it */

#define TOUCH(n, bar, off) (BIT(63) | (uint64_t)(n) << 56 | (uint64_t)(bar) << 48 | (off))

static void touch(const struct pci_bar *bar, uint64_t off, unsigned len)
{
	for (unsigned n = 0; n < TOYS; n++)
		if (bar >= toy[n].bar && bar < toy[n].bar + PCI_BARS)
			touched = TOUCH(n, bar - toy[n].bar, off);
	EXPECT(off + len <= bar->size);
}

static uint64_t toy_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	touch(opaque, off, len);
	return off;
}

static void toy_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	touch(opaque, off, len);
}

static const struct bus_ops toy_ops = {toy_read, toy_write};

static void start(void)
{
	const struct pci_id id = {0x1234, 0x5678, 0x9abc, 0xdef0, 0x123456, 7};
	struct error err;

	rig_init(&rig);
	for (unsigned n = 0; n < TOYS; n++) {
		pci_device_init(&toy[n], rig.pci, "toy", &id);
		for (unsigned i = 0; i < PCI_BARS; i++)
			if (bar_size[n][i])
				pci_device_bar(&toy[n], i, bar_kind[n][i], bar_size[n][i], &toy_ops, &toy[n].bar[i]);
		pci_device_intx(&toy[n]);
		if (n == 0)
			pci_device_msix(&toy[n], 3, 3);
		if (!pci_device_add(&toy[n], &err))
			found(err.text);
	}
}

/* Where the registers say that the BAR is, whatever else is there. */
static uint64_t register_says(unsigned n, unsigned i)
{
	uint64_t at = pci_get(&toy[n], PCI_BAR0 + 4 * i, 4);

	if (bar_kind[n][i] == PCI_BAR_IO)
		return at & ~3ull;
	if (bar_kind[n][i] != PCI_BAR_MEM32)
		at |= (uint64_t)pci_get(&toy[n], PCI_BAR0 + 4 * i + 4, 4) << 32;
	return at & ~15ull;
}

static void check_bar(unsigned n, unsigned i, uint64_t off)
{
	const struct pci_bar *bar = &toy[n].bar[i];
	bool io = bar_kind[n][i] == PCI_BAR_IO;
	unsigned command = pci_get(&toy[n], PCI_COMMAND, 2);

	if (!(command & (io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY)))
		EXPECT(!bar->mapped);
	if (!bar->mapped)
		return;
	EXPECT(bar->mapped_at == register_says(n, i) && bar->mapped_at % bar_size[n][i] == 0);
	off &= (bar_size[n][i] - 1) & ~3ull;
	touched = 0;
	bus_read(&rig.bus, io ? BUS_PORT : BUS_MMIO, bar->mapped_at + off, 4, 0);
	EXPECT(touched == TOUCH(n, i, off));
}

static void check(unsigned n, uint64_t off)
{
	EXPECT(cfg_read(&rig, toy[n].slot, 0, 4) == 0x56781234);
	EXPECT(cfg_read(&rig, toy[n].slot, 8, 4) == 0x12345607);
	EXPECT(cfg_read(&rig, toy[n].slot, PCI_SUBSYSTEM_VENDOR, 4) == 0xdef09abc);
	EXPECT(cfg_read(&rig, toy[n].slot, PCI_INTERRUPT_PIN, 1) == 1);
	for (unsigned i = 0; i < PCI_BARS; i++) {
		EXPECT(bar_size[n][i] == 0 || toy[n].bar[i].size == bar_size[n][i]);
		if (bar_size[n][i])
			check_bar(n, i, off);
	}
}

static void save_and_load(unsigned n, struct input *in)
{
	struct state_stream s = {.saving = true};
	size_t at = take(in, 2), change = take(in, 1);

	pci_device_state(&toy[n], &s);
	EXPECT(!s.failed);
	at %= s.len;
	struct state_stream l = {.data = s.data, .len = change & 2 ? at : s.len};
	if (change & 1)
		s.data[at] ^= change;
	pci_device_state(&toy[n], &l);
	EXPECT(change || (!l.failed && l.pos == l.len));
	state_end(&s);
	if (change) /* whatever it is then, a reset mends it */
		pci_device_reset(&toy[n]);
}

static void operation(struct input *in)
{
	unsigned op = (unsigned)take(in, 1), n = (op >> 4 & 3) % TOYS, len = 1u << (op >> 6), slot = toy[n].slot;
	uint64_t off = take(in, 1);

	switch (op & 15) {
	case 0:
	case 1:
		off &= ~(uint64_t)(MIN(len, 4u) - 1);
		cfg_write(&rig, slot, off, MIN(len, 4u), take(in, MIN(len, 4u)));
		break;
	case 2:
		off |= (take(in, 1) & 15) << 8;
		mmio_write(&rig, RIG_ECAM + (slot << 15) + off, len, take(in, len));
		mmio_read(&rig, RIG_ECAM + (slot << 15) + off, len);
		break;
	case 3:
	case 4: /* a BAR, at once */
		off %= PCI_BARS;
		cfg_write(&rig, slot, PCI_BAR0 + 4 * off, 4, take(in, 1) << take(in, 1) % 32);
		break;
	case 5:
		cfg_write(&rig, slot, PCI_COMMAND, 2, off | (op >> 6) << 8);
		break;
	case 6: /* the MSI-X table and its pending bits */
		off = (off * 16 + take(in, 1)) & 0xfff;
		if (toy[0].bar[3].mapped)
			mmio_write(&rig, toy[0].bar[3].mapped_at + off, MIN(len, 0x1000 - off) == len ? len : 1,
				   take(in, len));
		break;
	case 7:
		pci_msix_send(&toy[0], off < 3 ? (unsigned)off : PCI_NO_VECTOR);
		break;
	case 8:
		pci_set_intx(&toy[n], off & 1);
		break;
	case 9:
		bus_write(&rig.bus, BUS_PORT, 0xcf8 + (off & 7), MIN(len, 4u), take(in, MIN(len, 4u)), 0);
		break;
	case 10:
		bus_read(&rig.bus, BUS_PORT, 0xcf8 + (off & 7), MIN(len, 4u), 0);
		break;
	case 11:
		save_and_load(n, in);
		break;
	case 12:
		pci_device_reset(&toy[n]);
		break;
	default:
		cfg_read(&rig, slot, off, 1);
		break;
	}
	check(n, off);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};

	if (!rig.pci)
		start();
	rig.host.reset(rig.host.opaque);
	for (unsigned n = 0; n < TOYS; n++) {
		pci_set_intx(&toy[n], false);
		pci_device_reset(&toy[n]);
	}
	for (unsigned n = 0; n < TOYS; n++)
		check(n, 0);
	for (unsigned n = 0; in.left && n < OPERATIONS_MAX; n++)
		operation(&in);
	return 0;
}
