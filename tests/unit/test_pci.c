/* The PCI host bridge, configuration space, BARs, INTx and MSI-X, with a function of the test's own. */
#include "unit.h"
#include "virtio_guest.h"

struct toy {
	struct pci_device pci;
	uint64_t written[2]; /* by BAR: 0 memory, 2 ports */
};

static uint64_t toy_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	return 0x1000 + off;
}

static void toy_write_mem(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	((struct toy *)opaque)->written[0] = value;
}

static void toy_write_io(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	((struct toy *)opaque)->written[1] = value;
}

static const struct bus_ops toy_mem = {toy_read, toy_write_mem}, toy_io = {toy_read, toy_write_io};

#define TOY_MEM 0
#define TOY_IO 2
#define TOY_MSIX 3
#define TOY_MEM_SIZE 0x4000u

static void toy_add(struct rig *r, struct toy *t)
{
	const struct pci_id id = {0x1234, 0x5678, 0x9abc, 0xdef0, 0x123456, 7};
	struct error err;

	memset(t, 0, sizeof(*t));
	pci_device_init(&t->pci, r->pci, "toy", &id);
	pci_device_bar(&t->pci, TOY_MEM, PCI_BAR_MEM64_PREFETCH, TOY_MEM_SIZE, &toy_mem, t);
	pci_device_bar(&t->pci, TOY_IO, PCI_BAR_IO, 0x20, &toy_io, t);
	pci_device_intx(&t->pci);
	pci_device_msix(&t->pci, TOY_MSIX, 3);
	if (!pci_device_add(&t->pci, &err))
		rig_die(err.text);
}

TEST(mechanism_1_is_found)
{
	struct rig r;

	rig_init(&r);
	/* As Linux looks for it. */
	bus_write(&r.bus, BUS_PORT, 0xcfb, 1, 1, 0);
	bus_write(&r.bus, BUS_PORT, 0xcf8, 4, 0x80000000, 0);
	CHECK_EQ(bus_read(&r.bus, BUS_PORT, 0xcf8, 4, 0), 0x80000000);
	CHECK_EQ(cfg_read(&r, 0, PCI_CLASS + 1, 2), 0x0600);
	CHECK_EQ(cfg_read(&r, 0, PCI_VENDOR_ID, 4), 0x00081b36);
	/* Nobody: all ones. */
	CHECK_EQ(cfg_read(&r, 1, PCI_VENDOR_ID, 4), 0xffffffff);
	CHECK_EQ(cfg_read(&r, 1, PCI_VENDOR_ID + 1, 1), 0xff);
	bus_write(&r.bus, BUS_PORT, 0xcf8, 4, 0x80000100, 0); /* function 1 */
	CHECK_EQ(bus_read(&r.bus, BUS_PORT, 0xcfc, 4, 0), 0xffffffff);
	bus_write(&r.bus, BUS_PORT, 0xcf8, 4, 0x80010000, 0); /* bus 1 */
	CHECK_EQ(bus_read(&r.bus, BUS_PORT, 0xcfc, 4, 0), 0xffffffff);
	bus_write(&r.bus, BUS_PORT, 0xcf8, 4, 0, 0); /* not enabled */
	CHECK_EQ(bus_read(&r.bus, BUS_PORT, 0xcfc, 4, 0), 0xffffffff);
	rig_end(&r);
}

TEST(reset_control_register)
{
	struct rig r;

	rig_init(&r);
	bus_write(&r.bus, BUS_PORT, 0xcf9, 1, 2, 0);
	CHECK_EQ(r.resets, 0);
	CHECK_EQ(bus_read(&r.bus, BUS_PORT, 0xcf9, 1, 0), 2);
	bus_write(&r.bus, BUS_PORT, 0xcf9, 1, 6, 0);
	CHECK_EQ(r.resets, 1);
	rig_end(&r);
}

TEST(identity_and_widths)
{
	struct rig r;
	struct toy t;

	rig_init(&r);
	toy_add(&r, &t);
	CHECK_EQ(t.pci.slot, 1);
	CHECK_EQ(cfg_read(&r, 1, 0, 4), 0x56781234);
	CHECK_EQ(cfg_read(&r, 1, 2, 2), 0x5678);
	CHECK_EQ(cfg_read(&r, 1, 3, 1), 0x56);
	CHECK_EQ(cfg_read(&r, 1, 8, 4), 0x12345607);
	CHECK_EQ(cfg_read(&r, 1, PCI_SUBSYSTEM_VENDOR, 4), 0xdef09abc);
	CHECK_EQ(cfg_read(&r, 1, PCI_INTERRUPT_PIN, 1), 1);
	CHECK_EQ(cfg_read(&r, 1, PCI_INTERRUPT_LINE, 1), 17); /* slot 1, INTA#: the second of the four */
	CHECK_EQ(cfg_read(&r, 1, PCI_COMMAND, 2), PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
	/* What is not writable stays. */
	cfg_write(&r, 1, 0, 4, 0);
	cfg_write(&r, 1, 8, 4, 0);
	cfg_write(&r, 1, PCI_COMMAND, 2, 0xffff);
	CHECK_EQ(cfg_read(&r, 1, 0, 4), 0x56781234);
	CHECK_EQ(cfg_read(&r, 1, 8, 4), 0x12345607);
	CHECK_EQ(cfg_read(&r, 1, PCI_COMMAND, 2), 0x407);
	CHECK_EQ(cfg_read(&r, 1, PCI_ROM, 4), 0);
	pci_device_remove(&t.pci);
	CHECK_EQ(cfg_read(&r, 1, 0, 4), 0xffffffff);
	rig_end(&r);
}

TEST(ecam_is_the_same_space)
{
	struct rig r;
	struct toy t;
	uint64_t at = RIG_ECAM + (1 << 15);

	rig_init(&r);
	toy_add(&r, &t);
	for (unsigned off = 0; off < 256; off += 4)
		CHECK_EQ(mmio_read(&r, at + off, 4), cfg_read(&r, 1, off, 4));
	CHECK_EQ(mmio_read(&r, at, 8), (uint64_t)cfg_read(&r, 1, 4, 4) << 32 | 0x56781234);
	CHECK_EQ(mmio_read(&r, at + 3, 2), 0x0356); /* unaligned */
	mmio_write(&r, at + PCI_INTERRUPT_LINE, 1, 0x55);
	CHECK_EQ(cfg_read(&r, 1, PCI_INTERRUPT_LINE, 1), 0x55);
	/* No extended space, no other functions or buses. */
	CHECK_EQ(mmio_read(&r, at + 256, 4), 0xffffffff);
	CHECK_EQ(mmio_read(&r, at + 4095, 1), 0xff);
	CHECK_EQ(mmio_read(&r, at + 4096, 4), 0xffffffff);
	CHECK_EQ(mmio_read(&r, RIG_ECAM + MiB(16) - 8, 8), ~0ull);
	CHECK_EQ(mmio_read(&r, RIG_ECAM + MiB(1), 4), 0xffffffff);
	mmio_write(&r, at + 254, 4, 0); /* across the end: dropped */
	mmio_write(&r, RIG_ECAM + MiB(16) - 8, 8, 0);
	pci_device_remove(&t.pci);
	rig_end(&r);
}

static void expect_at(struct rig *r, struct toy *t, uint64_t addr, bool there)
{
	t->written[0] = 0;
	mmio_write(r, addr + 8, 4, 77);
	CHECK_EQ(t->written[0], there ? 77 : 0);
	CHECK_EQ(mmio_read(r, addr + 8, 4), there ? 0x1008 : 0xffffffff);
}

TEST(bars_are_assigned_sized_and_moved)
{
	struct rig r;
	struct toy t;

	rig_init(&r);
	toy_add(&r, &t);
	uint64_t first = bar_address(&r, 1, TOY_MEM);
	CHECK_EQ(first, 0xc0000000);
	CHECK_EQ(cfg_read(&r, 1, PCI_BAR0, 4) & 0xf, PCI_BAR_MEM64_PREFETCH);
	CHECK_EQ(cfg_read(&r, 1, PCI_BAR0 + 4 * TOY_IO, 4), 0xc001);
	CHECK_EQ(cfg_read(&r, 1, PCI_BAR0 + 4 * TOY_MSIX, 4), 0xc0004000);
	expect_at(&r, &t, first, true);
	bus_write(&r.bus, BUS_PORT, 0xc004, 4, 5, 0);
	CHECK_EQ(t.written[1], 5);

	/* Sizing, with decoding on. */
	cfg_write(&r, 1, PCI_BAR0, 4, 0xffffffff);
	cfg_write(&r, 1, PCI_BAR0 + 4, 4, 0xffffffff);
	CHECK_EQ(cfg_read(&r, 1, PCI_BAR0, 4), (uint32_t)-TOY_MEM_SIZE | PCI_BAR_MEM64_PREFETCH);
	CHECK_EQ(cfg_read(&r, 1, PCI_BAR0 + 4, 4), 0xffffffff);
	cfg_write(&r, 1, PCI_BAR0 + 4 * TOY_IO, 4, 0xffffffff);
	CHECK_EQ(cfg_read(&r, 1, PCI_BAR0 + 4 * TOY_IO, 4), (uint32_t)-0x20 | 1);
	expect_at(&r, &t, first, false);

	/* Above 4 GiB and back, and off. */
	cfg_write(&r, 1, PCI_BAR0, 4, 0x00010000);
	cfg_write(&r, 1, PCI_BAR0 + 4, 4, 0x80);
	expect_at(&r, &t, BIT(39) + 0x10000, true);
	cfg_write(&r, 1, PCI_BAR0 + 4, 4, 0);
	cfg_write(&r, 1, PCI_BAR0, 4, 0xd0000000);
	expect_at(&r, &t, BIT(39) + 0x10000, false);
	expect_at(&r, &t, 0xd0000000, true);
	cfg_write(&r, 1, PCI_COMMAND, 2, 0);
	expect_at(&r, &t, 0xd0000000, false);
	cfg_write(&r, 1, PCI_COMMAND, 2, PCI_COMMAND_MEMORY);
	expect_at(&r, &t, 0xd0000000, true);

	/* Reset: as firmware leaves it. */
	pci_device_reset(&t.pci);
	expect_at(&r, &t, 0xd0000000, false);
	expect_at(&r, &t, first, true);
	pci_device_remove(&t.pci);
	rig_end(&r);
}

TEST(bars_never_hide_what_was_there)
{
	struct rig r;
	struct toy a, b;

	rig_init(&r);
	toy_add(&r, &a);
	toy_add(&r, &b);
	/* On configuration space, on RAM, at 0, beyond the address width. */
	const uint64_t bad[] = {RIG_ECAM, 0x100000, 0, BIT(52), -(uint64_t)TOY_MEM_SIZE};
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		cfg_write(&r, 1, PCI_BAR0, 4, bad[i]);
		cfg_write(&r, 1, PCI_BAR0 + 4, 4, bad[i] >> 32);
		a.written[0] = 0;
		mmio_write(&r, (bad[i] & -(uint64_t)TOY_MEM_SIZE) + 8, 4, 77);
		CHECK_EQ(a.written[0], 0);
	}
	CHECK_EQ(mmio_read(&r, RIG_ECAM, 4), 0x00081b36);
	/* Two change places: whoever comes second gets in when the first has gone. */
	uint64_t at_b = bar_address(&r, 2, TOY_MEM);
	cfg_write(&r, 1, PCI_BAR0 + 4, 4, 0);
	cfg_write(&r, 1, PCI_BAR0, 4, at_b);
	expect_at(&r, &b, at_b, true);
	cfg_write(&r, 2, PCI_BAR0, 4, 0xd0000000);
	expect_at(&r, &a, at_b, true);
	expect_at(&r, &b, 0xd0000000, true);
	pci_device_remove(&a.pci);
	pci_device_remove(&b.pci);
	CHECK_EQ(mmio_read(&r, at_b, 4), 0xffffffff);
	rig_end(&r);
}

TEST(slots_and_windows_run_out)
{
	struct rig r;
	static struct toy t[PCI_SLOTS];
	const struct pci_id id = {.vendor = 1};
	struct error err;

	rig_init(&r);
	pci_device_init(&t[0].pci, r.pci, "huge", &id);
	pci_device_bar(&t[0].pci, 0, PCI_BAR_MEM32, GiB(1), &toy_mem, &t[0]);
	CHECK(!pci_device_add(&t[0].pci, &err));
	pci_device_remove(&t[0].pci);
	for (unsigned i = 1; i < PCI_SLOTS; i++)
		toy_add(&r, &t[i]);
	pci_device_init(&t[0].pci, r.pci, "one too many", &id);
	CHECK(!pci_device_add(&t[0].pci, &err));
	CHECK(strstr(err.text, "one too many"));
	pci_device_remove(&t[0].pci);
	for (unsigned i = 1; i < PCI_SLOTS; i++)
		pci_device_remove(&t[i].pci);
	rig_end(&r);
}

TEST(intx_status_disable_and_sharing)
{
	struct rig r;
	struct toy t[5];

	rig_init(&r);
	for (unsigned i = 0; i < 5; i++)
		toy_add(&r, &t[i]); /* slots 1 and 5 share a line */
	pci_set_intx(&t[0].pci, true);
	CHECK_EQ(r.line[1], 1);
	CHECK_EQ(cfg_read(&r, 1, PCI_STATUS, 2), PCI_STATUS_INTERRUPT | PCI_STATUS_CAPABILITIES);
	CHECK_EQ(cfg_read(&r, 5, PCI_STATUS, 2), PCI_STATUS_CAPABILITIES);
	pci_set_intx(&t[4].pci, true);
	pci_set_intx(&t[0].pci, false);
	CHECK_EQ(r.line[1], 1);
	cfg_write(&r, 5, PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
	CHECK_EQ(r.line[1], 0);
	CHECK(cfg_read(&r, 5, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT); /* still pending */
	cfg_write(&r, 5, PCI_COMMAND, 2, 0);
	CHECK_EQ(r.line[1], 1);
	pci_device_remove(&t[4].pci); /* lets go */
	CHECK_EQ(r.line[1], 0);
	for (unsigned i = 0; i < 4; i++)
		pci_device_remove(&t[i].pci);
	rig_end(&r);
}

static void entry(struct rig *r, uint64_t table, unsigned v, uint32_t control)
{
	mmio_write(r, table + 16 * v, 8, 0x123fee00000);
	mmio_write(r, table + 16 * v + 8, 4, 0x40 + v);
	mmio_write(r, table + 16 * v + 12, 4, control);
}

TEST(msix_masks_and_pending_bits)
{
	struct rig r;
	struct toy t;

	rig_init(&r);
	toy_add(&r, &t);
	unsigned cap = t.pci.msix.cap;
	uint64_t table = bar_address(&r, 1, TOY_MSIX), pba = table + PCI_MSIX_PBA;
	CHECK_EQ(cfg_read(&r, 1, cap, 1), PCI_CAP_MSIX);
	CHECK_EQ(cfg_read(&r, 1, cap + 2, 2), 2);  /* three vectors */
	CHECK_EQ(mmio_read(&r, table + 12, 4), 1); /* masked at first */
	pci_msix_send(&t.pci, 0);
	CHECK_EQ(mmio_read(&r, pba, 8), 0); /* not enabled: nothing is even pending */

	cfg_write(&r, 1, cap + 2, 2, 0xc000); /* enabled, function masked */
	for (unsigned v = 0; v < 3; v++)
		entry(&r, table, v, v == 1);
	for (unsigned v = 0; v < 4; v++)
		pci_msix_send(&t.pci, v);
	pci_msix_send(&t.pci, PCI_NO_VECTOR);
	CHECK_EQ(r.messages, 0);
	CHECK_EQ(mmio_read(&r, pba, 8), 7);
	cfg_write(&r, 1, cap + 2, 2, 0x8000);
	CHECK_EQ(r.messages, 2);
	CHECK_EQ(r.last_data, 0x42);
	CHECK_EQ(r.last_address, 0x123fee00000);
	CHECK_EQ(mmio_read(&r, pba, 4), 2);
	mmio_write(&r, table + 16 + 12, 4, 0);
	CHECK_EQ(r.messages, 3);
	CHECK_EQ(r.last_data, 0x41);
	CHECK_EQ(mmio_read(&r, pba, 4), 0);
	pci_msix_send(&t.pci, 0);
	CHECK_EQ(r.messages, 4);
	CHECK_EQ(mmio_read(&r, table + 16, 8), 0x123fee00000);
	CHECK_EQ(mmio_read(&r, table + 48, 8), 0); /* behind the last vector */
	mmio_write(&r, table + 48, 8, ~0ull);
	mmio_write(&r, table + 0xff8, 8, ~0ull);
	mmio_write(&r, table + 1, 4, ~0u);
	CHECK_EQ(mmio_read(&r, table, 4), 0xfee00000);
	pci_device_remove(&t.pci);
	rig_end(&r);
}

TEST(state_moves_to_another_bus)
{
	struct rig a, b;
	struct toy ta, tb;
	struct state_stream s = {.saving = true};

	rig_init(&a);
	rig_init(&b);
	toy_add(&a, &ta);
	toy_add(&b, &tb);
	cfg_write(&a, 1, PCI_BAR0, 4, 0xd0000000);
	entry(&a, bar_address(&a, 1, TOY_MSIX), 2, 1);
	cfg_write(&a, 1, ta.pci.msix.cap + 2, 2, 0x8000);
	pci_msix_send(&ta.pci, 2);
	pci_set_intx(&ta.pci, true);
	a.host.state(a.host.opaque, &s);
	pci_device_state(&ta.pci, &s);
	CHECK(!s.failed);

	struct state_stream l = {.data = s.data, .len = s.len};
	b.host.state(b.host.opaque, &l);
	pci_device_state(&tb.pci, &l);
	CHECK(!l.failed && l.pos == l.len);
	expect_at(&b, &tb, 0xd0000000, true);
	CHECK_EQ(b.line[1], 1);
	uint64_t table = bar_address(&b, 1, TOY_MSIX);
	CHECK_EQ(mmio_read(&b, table + PCI_MSIX_PBA, 4), 4);
	mmio_write(&b, table + 32 + 12, 4, 0);
	CHECK_EQ(b.messages, 1);
	CHECK_EQ(b.last_data, 0x42);
	/* A stream cut short. */
	for (size_t len = 0; len < s.len; len += 7) {
		l = (struct state_stream){.data = s.data, .len = len};
		b.host.state(b.host.opaque, &l);
		pci_device_state(&tb.pci, &l);
		CHECK(l.failed);
	}
	free(s.data);
	pci_device_remove(&ta.pci);
	pci_device_remove(&tb.pci);
	rig_end(&a);
	rig_end(&b);
}

UNIT_MAIN()
