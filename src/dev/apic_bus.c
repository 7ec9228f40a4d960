/* Between the local APICs: destinations (SDM Vol. 3A 11.6.2, 11.12.10), MSIs (11.11), the processors' pins. */
#include "dev/lapic_internal.h"

#include <stdlib.h>

static uint64_t mmio_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct apic_bus *apics = opaque;

	return cpu < apics->config.cpus ? lapic_mmio_read(&apics->lapic[cpu], off, len) : ~0ull;
}

static void mmio_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct apic_bus *apics = opaque;

	if (cpu < apics->config.cpus)
		lapic_mmio_write(&apics->lapic[cpu], off, len, value);
}

static const struct bus_ops mmio_ops = {mmio_read, mmio_write};

static void destroy(void *opaque)
{
	struct apic_bus *apics = opaque;

	if (apics->attached)
		bus_remove(apics->attached, BUS_MMIO, APIC_MMIO_BASE);
	for (unsigned i = 0; i < apics->config.cpus; i++)
		lapic_timer_destroy(&apics->lapic[i]);
	free(apics);
}

static void reset(void *opaque)
{
	struct apic_bus *apics = opaque;

	for (unsigned i = 0; i < apics->config.cpus; i++)
		lapic_reset(&apics->lapic[i], false);
	atomic_store(&apics->lint1, false);
}

static void state(void *opaque, struct state_stream *s)
{
	struct apic_bus *apics = opaque;
	uint32_t cpus = apics->config.cpus;

	state_field(s, cpus);
	if (cpus != apics->config.cpus)
		state_refuse(s, "another number of processors");
	for (unsigned i = 0; i < apics->config.cpus && !s->failed; i++)
		lapic_state(&apics->lapic[i], s);
}

struct apic_bus *apic_bus_create(const struct apic_bus_config *config)
{
	struct apic_bus *apics;
	bool ok = true;

	ENSURE(config->cpus >= 1 && config->cpus <= APIC_BUS_CPUS);
	apics = calloc(1, sizeof(*apics) + config->cpus * sizeof(apics->lapic[0]));
	if (!apics)
		return NULL;
	apics->config = *config;
	for (unsigned i = 0; i < config->cpus; i++) {
		apics->lapic[i].bus = apics;
		apics->lapic[i].id = i;
		ok &= lapic_timer_init(&apics->lapic[i]);
	}
	if (!ok) {
		destroy(apics);
		return NULL;
	}
	reset(apics);
	return apics;
}

bool apic_bus_attach(struct apic_bus *apics, struct bus *bus)
{
	struct bus_region region = {"local APIC", APIC_MMIO_BASE, PAGE_SIZE, &mmio_ops, apics};

	if (!bus_add(bus, BUS_MMIO, region))
		return false;
	apics->attached = bus;
	return true;
}

struct device apic_bus_device(struct apic_bus *apics)
{
	return (struct device){
		.name = "local APICs", .opaque = apics, .reset = reset, .state = state, .destroy = destroy};
}

struct lapic *apic_bus_lapic(struct apic_bus *apics, unsigned cpu)
{
	ENSURE(cpu < apics->config.cpus);
	return &apics->lapic[cpu];
}

void apic_bus_set_extint(struct apic_bus *apics, const struct apic_extint *extint)
{
	apics->extint = *extint;
}

void apic_bus_set_eoi(struct apic_bus *apics, void (*eoi)(void *opaque, uint8_t vector), void *opaque)
{
	apics->eoi = eoi;
	apics->eoi_opaque = opaque;
}

/* xAPIC logical destination: flat is a mask; cluster is a number and a mask (11.6.2.2). */
static bool match_logical_xapic(const struct lapic *apic, uint32_t dest)
{
	uint32_t ldr = lapic_get(&apic->ldr) >> 24;

	if (dest > 0xff)
		return false;
	if (lapic_get(&apic->dfr) >> 28 == 0xf)
		return ldr & dest;
	return (dest >> 4 == 0xf || dest >> 4 == ldr >> 4) && (dest & ldr & 0xf);
}

static bool match_logical(const struct lapic *apic, uint32_t dest)
{
	uint32_t ldr = lapic_get(&apic->ldr);

	if (!lapic_x2apic(apic))
		return match_logical_xapic(apic, dest);
	return dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff);
}

static bool match(const struct lapic *apic, const struct apic_message *msg)
{
	if (!lapic_enabled(apic))
		return false;
	if (msg->dest == (msg->wide ? 0xffffffff : 0xff))
		return true;
	return msg->logical ? match_logical(apic, msg->dest) : msg->dest == apic->id;
}

/* Of those that match, the one at the lowest priority; equals in turn (11.6.2.4). */
static bool send_lowest(struct apic_bus *apics, const struct apic_message *msg)
{
	unsigned cpus = apics->config.cpus, first = atomic_fetch_add(&apics->next_lowest, 1) % cpus;
	struct lapic *best = NULL;
	uint32_t best_ppr = 0;

	for (unsigned n = 0; n < cpus; n++) {
		struct lapic *apic = &apics->lapic[(first + n) % cpus];
		uint32_t ppr = lapic_ppr(apic);

		if (!match(apic, msg) || !lapic_software_enabled(apic) || (best && ppr >= best_ppr))
			continue;
		best = apic;
		best_ppr = ppr;
	}
	return best && lapic_accept(best, msg);
}

static bool send_matching(struct apic_bus *apics, const struct apic_message *msg, const struct lapic *but)
{
	bool taken = false;

	for (unsigned i = 0; i < apics->config.cpus; i++) {
		struct lapic *apic = &apics->lapic[i];

		if (apic != but && match(apic, msg))
			taken |= lapic_accept(apic, msg);
	}
	return taken;
}

bool apic_bus_send(struct apic_bus *apics, const struct apic_message *msg)
{
	if (msg->mode == APIC_LOWEST)
		return send_lowest(apics, msg);
	if (!msg->logical && msg->dest < apics->config.cpus)
		return match(&apics->lapic[msg->dest], msg) && lapic_accept(&apics->lapic[msg->dest], msg);
	return send_matching(apics, msg, NULL);
}

bool apic_bus_waits(struct apic_bus *apics, const struct apic_message *msg)
{
	for (unsigned i = 0; i < apics->config.cpus; i++)
		if (match(&apics->lapic[i], msg) && lapic_requested(&apics->lapic[i], msg->vector))
			return true;
	return false;
}

void apic_bus_ipi(struct lapic *from, const struct apic_message *msg, enum apic_shorthand shorthand)
{
	struct apic_message all = *msg;

	all.wide = true;
	all.dest = 0xffffffff;
	switch (shorthand) {
	case SHORTHAND_SELF:
		lapic_accept(from, msg);
		break;
	case SHORTHAND_ALL:
		send_matching(from->bus, &all, NULL);
		break;
	case SHORTHAND_OTHERS:
		send_matching(from->bus, &all, from);
		break;
	default:
		apic_bus_send(from->bus, msg);
	}
}

/* SDM Vol. 3A figures 11-24 and 11-25. A redirection hint asks for the lowest priority of a logical destination. */
static void msi_send(void *opaque, uint64_t addr, uint32_t data)
{
	struct apic_message msg = {
		.dest = bits(addr, 19, 12),
		.logical = addr & BIT(2),
		.level = data & BIT(15),
		.mode = bits(data, 10, 8),
		.vector = data & 0xff,
	};

	if (addr >> 20 != APIC_MMIO_BASE >> 20 || msg.mode == APIC_SIPI)
		return;
	if ((addr & BIT(3)) && msg.logical && msg.mode == APIC_FIXED)
		msg.mode = APIC_LOWEST;
	apic_bus_send(opaque, &msg);
}

struct msi_sink apic_bus_msi(struct apic_bus *apics)
{
	return (struct msi_sink){msi_send, apics};
}

static void set_lint0(void *opaque, unsigned pin, bool level)
{
	struct apic_bus *apics = opaque;

	if (level)
		lapic_local(&apics->lapic[0], LVT_LINT0);
}

struct irq_line apic_bus_lint0(struct apic_bus *apics)
{
	return (struct irq_line){.set = set_lint0, .opaque = apics};
}

static void set_lint1(void *opaque, unsigned pin, bool level)
{
	struct apic_bus *apics = opaque;

	if (atomic_exchange(&apics->lint1, level) || !level)
		return;
	for (unsigned i = 0; i < apics->config.cpus; i++)
		lapic_local(&apics->lapic[i], LVT_LINT1);
}

struct irq_line apic_bus_lint1(struct apic_bus *apics)
{
	return (struct irq_line){.set = set_lint1, .opaque = apics};
}
