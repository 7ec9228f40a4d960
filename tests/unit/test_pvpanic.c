/* pvpanic: found by its ID, told apart by its bits, and as silent after a reset as before. */
#include "unit.h"
#include "virtio_guest.h"

#include "dev/pvpanic.h"

static unsigned panics, handled_panics;

static void panicked(void *opaque, bool handled)
{
	panics++;
	handled_panics += handled;
}

static uint64_t start(struct rig *r)
{
	struct pvpanic_config config = {.panicked = panicked};
	struct error err;

	panics = handled_panics = 0;
	rig_init(r);
	config.pci = r->pci;
	if (!pvpanic_create(&config, &r->dev, &err))
		rig_die(err.text);
	r->has_dev = true;
	CHECK_EQ(cfg_read(r, 1, PCI_VENDOR_ID, 4), 0x00111b36);
	return cfg_read(r, 1, PCI_BAR0, 4) & ~0xfu;
}

static uint64_t peek(struct rig *r, uint64_t gpa, unsigned len)
{
	return bus_read(&r->bus, BUS_MMIO, gpa, len, 0);
}

static void poke(struct rig *r, uint64_t gpa, uint64_t value, unsigned len)
{
	bus_write(&r->bus, BUS_MMIO, gpa, len, value, 0);
}

TEST(events)
{
	struct rig r;
	uint64_t bar = start(&r);

	CHECK_EQ(peek(&r, bar, 1), 3);
	CHECK_EQ(peek(&r, bar, 4), 3);
	CHECK_EQ(peek(&r, bar + 1, 1), 0);
	poke(&r, bar, 0, 1);
	poke(&r, bar, 0xfc, 1); /* unknown ones */
	poke(&r, bar + 1, 1, 1);
	CHECK_EQ(panics, 0);
	poke(&r, bar, 1, 1);
	CHECK_EQ(panics, 1);
	CHECK_EQ(handled_panics, 0);
	poke(&r, bar, 2, 1);
	CHECK_EQ(panics, 2);
	CHECK_EQ(handled_panics, 1);
	rig_end(&r);
}

TEST(reset_and_state)
{
	struct rig r, to;
	uint64_t bar = start(&r);
	struct state_stream save = {.saving = true}, load = {0};

	start(&to);
	cfg_write(&r, 1, PCI_BAR0, 4, 0xd0000000);
	CHECK_EQ(peek(&r, 0xd0000000, 1), 3);
	r.dev.state(r.dev.opaque, &save);
	load.data = save.data;
	load.len = save.len;
	to.dev.state(to.dev.opaque, &load);
	CHECK(!save.failed && !load.failed);
	CHECK_EQ(load.pos, load.len);
	CHECK_EQ(peek(&to, 0xd0000000, 1), 3);
	state_end(&save);
	r.dev.reset(r.dev.opaque);
	CHECK_EQ(peek(&r, bar, 1), 3);
	CHECK_EQ(panics, 0);
	rig_end(&r);
	rig_end(&to);
}

UNIT_MAIN()
