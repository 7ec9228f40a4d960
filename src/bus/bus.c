/* Which device answers which address. */
#include "bus/bus.h"

#include <string.h>

void bus_init(struct bus *bus)
{
	memset(bus, 0, sizeof(*bus));
	host_rwlock_init(&bus->lock);
}

void bus_destroy(struct bus *bus)
{
	host_rwlock_destroy(&bus->lock);
}

/* The number of regions that start at or below `addr`. The caller holds the lock. */
static unsigned upper_bound(const struct bus *bus, enum bus_space space, uint64_t addr)
{
	const struct bus_region *regions = bus->region[space];
	unsigned lo = 0, hi = bus->count[space];

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (regions[mid].base <= addr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool fits(const struct bus *bus, enum bus_space space, const struct bus_region *r, unsigned at)
{
	const struct bus_region *regions = bus->region[space];

	if (bus->count[space] == BUS_REGIONS)
		return false;
	if (at && r->base - regions[at - 1].base < regions[at - 1].size)
		return false;
	return at == bus->count[space] || regions[at].base - r->base >= r->size;
}

bool bus_add(struct bus *bus, enum bus_space space, struct bus_region region)
{
	unsigned at;
	bool ok;

	if (!region.size || region.base + region.size - 1 < region.base)
		return false;
	host_wrlock(&bus->lock);
	at = upper_bound(bus, space, region.base);
	ok = fits(bus, space, &region, at);
	if (ok) {
		struct bus_region *p = &bus->region[space][at];

		memmove(p + 1, p, (bus->count[space]++ - at) * sizeof(*p));
		*p = region;
	}
	host_rwunlock(&bus->lock);
	return ok;
}

void bus_remove(struct bus *bus, enum bus_space space, uint64_t base)
{
	unsigned at;

	host_wrlock(&bus->lock);
	at = upper_bound(bus, space, base);
	if (at && bus->region[space][at - 1].base == base) {
		struct bus_region *p = &bus->region[space][at - 1];

		memmove(p, p + 1, (bus->count[space]-- - at) * sizeof(*p));
	}
	host_rwunlock(&bus->lock);
}

enum hit { HIT_NONE, HIT_PART, HIT_WHOLE };

/*
 * Looks up [addr, addr+len) and copies the region out: its handler runs without the lock, because a handler may move
 * regions (a PCI BAR). HIT_PART: some of the bytes belong to a region, but not all to one.
 */
static enum hit find(struct bus *bus, enum bus_space space, uint64_t addr, unsigned len, struct bus_region *out)
{
	const struct bus_region *r = bus->region[space];
	enum hit hit = HIT_NONE;
	unsigned n;

	host_rdlock(&bus->lock);
	n = upper_bound(bus, space, addr);
	if (n && addr - r[n - 1].base < r[n - 1].size) {
		*out = r[n - 1];
		hit = len <= out->size - (addr - out->base) ? HIT_WHOLE : HIT_PART;
	} else if (n < bus->count[space] && r[n].base - addr < len) {
		hit = HIT_PART;
	}
	host_rwunlock(&bus->lock);
	return hit;
}

/* An access that straddles regions is two accesses of half the size, as on a PC's narrower buses. */
uint64_t bus_read(struct bus *bus, enum bus_space space, uint64_t addr, unsigned len, unsigned cpu)
{
	struct bus_region r;
	unsigned half = len / 2;
	uint64_t low;

	switch (find(bus, space, addr, len, &r)) {
	case HIT_WHOLE:
		return r.ops->read ? zext(r.ops->read(r.opaque, addr - r.base, len, cpu), len) : zext(~0ull, len);
	case HIT_PART:
		low = bus_read(bus, space, addr, half, cpu);
		return low | bus_read(bus, space, addr + half, len - half, cpu) << (half * 8);
	default:
		return zext(~0ull, len);
	}
}

void bus_write(struct bus *bus, enum bus_space space, uint64_t addr, unsigned len, uint64_t value, unsigned cpu)
{
	struct bus_region r;
	unsigned half = len / 2;

	switch (find(bus, space, addr, len, &r)) {
	case HIT_WHOLE:
		if (r.ops->write)
			r.ops->write(r.opaque, addr - r.base, len, zext(value, len), cpu);
		break;
	case HIT_PART:
		bus_write(bus, space, addr, half, zext(value, half), cpu);
		bus_write(bus, space, addr + half, len - half, value >> (half * 8), cpu);
		break;
	default:
		break;
	}
}
