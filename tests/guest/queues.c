/*
 * Drivers that build nonsense: chains that loop, buffers that are huge, overlap, lie in device memory or nowhere, rings
 * anywhere, indices that jump. A device does what it can with it or asks for a reset, writes only where a buffer was,
 * and works again after the reset.
 */
#include "virtio.h"

const char payload[] = "queues";

#define QUEUE 16
#define RAM (128ull << 20)
#define ROUNDS 300
#define NEEDS_RESET 64

struct desc {
	u64 address;
	u32 len;
	u16 flags, next;
};
static struct rings {
	struct desc desc[QUEUE];
	struct {
		u16 flags, index, ring[QUEUE], event;
	} avail;
	u8 pad[4096 - 16 * QUEUE - 6 - 2 * QUEUE];
	volatile struct {
		u16 flags, index;
		struct {
			u32 id, len;
		} ring[QUEUE];
		u16 event;
	} used;
	u8 more[4096 - 6 - 8 * QUEUE];
	struct desc table[256]; /* for indirect descriptors */
} rings __attribute__((aligned(4096)));

#define AREA (4ull << 20)
static u8 *area; /* where buffers lie; all that a device may write */
static volatile u8 *common;
static volatile u16 *doorbell;
static unsigned device, refused;

static const u64 elsewhere[] = {
	0xfee00000, 0xfec00000, 0xe0000000, 0xb0000000, RAM, 1ull << 38, ~0ull << 12, ~0ull, (1ull << 63) + 4096,
};

static void find_device(unsigned type)
{
	u32 multiplier = 0;
	int dev = virtio_find(type);
	if (dev < 0)
		skip("no such device");
	device = dev;
	common = virtio_structure(dev, VIRTIO_COMMON, NULL);
	volatile u8 *notify = virtio_structure(dev, VIRTIO_NOTIFY, &multiplier);
	pci_write(dev, 4, (pci_read(dev, 4) & 0xffff) | 6); /* memory, bus master */
	doorbell = (volatile u16 *)notify;
	area = alloc_pages(AREA / PAGE);
	refused = 0;
}

/* Reset, the features that are on offer, and up to where queues are set up. */
static void begin(void)
{
	CFG8(20) = 0;
	CHECK(WAIT_FOR(!CFG8(20), 5000000));
	CFG8(20) = 3;
	CFG32(0) = 0;
	u32 low = CFG32(4) & (random64() & 1 ? ~0u : 0);
	CFG32(8) = 0;
	CFG32(12) = low;
	CFG32(8) = 1; /* VIRTIO_F_VERSION_1 */
	CFG32(12) = 1;
	CFG8(20) = 11;
	CHECK_EQ(CFG8(20) & 8, 8);
}
static void set_queue(unsigned n, u64 desc, u64 avail, u64 used)
{
	CFG16(22) = n;
	CFG16(24) = QUEUE;
	CFG64(32, desc);
	CFG64(40, avail);
	CFG64(48, used);
	CFG16(28) = 1;
}

static u64 some_place(u64 r)
{
	switch (r & 15) {
	case 0:
		return elsewhere[(r >> 8) % (sizeof(elsewhere) / sizeof(elsewhere[0]))];
	case 1:
		return RAM - (r >> 8) % 64;
	case 2:
		return random64() | 1ull << 40;
	default:
		return (u64)area + (r >> 8) % (AREA / 2);
	}
}
static u32 some_length(u64 r)
{
	switch (r & 15) {
	case 0:
		return 0;
	case 1:
		return ~0u - (r >> 8) % 3;
	case 2:
		return r >> 32;
	case 3:
		return 1u << (r >> 8) % 32;
	case 4:
	case 5:
		return 16;
	case 6:
		return 1;
	default:
		return (r >> 8) % 8192;
	}
}

/* Buffers in RAM stay in the area: to overwrite this payload would be its own doing, not the device's. */
static struct desc some_desc(unsigned entries)
{
	u64 r = random64();
	struct desc d = {some_place(random64()), some_length(random64()), 0, r >> 32};
	if (r & 15)
		d.next %= entries;
	d.flags = r >> 8 & ((r >> 16 & 15) ? 3 : 7);
	if (!(r >> 20 & 63))
		d.flags = r >> 48;
	if (d.address < RAM && d.address + d.len > (u64)area + AREA && d.address + d.len <= RAM)
		d.len %= AREA / 2;
	if (d.flags & 4) {
		d.address = (u64)rings.table;
		d.len = r >> 24 & 1 ? sizeof(rings.table) : (r >> 25 & 7) * 16;
	}
	return d;
}

/* A disk's header now and then, so that requests get as far as their data. */
static void some_header(struct desc *d)
{
	u64 r = random64();
	u32 *h = (u32 *)(area + AREA / 2 + r % 64 * 16);
	static const u8 types[] = {0, 1, 4, 8, 11, 13, 14, 255};
	h[0] = types[(r >> 8) & 7];
	h[1] = 0;
	*(u64 *)(h + 2) = r >> 16 & 3 ? (r >> 20) % 2100 : random64();
	*d = (struct desc){(u64)h, 16, 1, d->next % QUEUE};
}

static void fill(void)
{
	for (unsigned i = 0; i < QUEUE; i++) {
		rings.desc[i] = some_desc(QUEUE);
		if (random64() & 1)
			some_header(&rings.desc[i]);
		rings.avail.ring[i] = random64() & 31 ? i : random64();
	}
	for (unsigned i = 0; i < 256; i++)
		rings.table[i] = some_desc(256);
}

static void offer(void)
{
	u64 r = random64();
	barrier();
	rings.avail.index += r & 15 ? r >> 8 & 3 : r >> 16;
	barrier();
	doorbell[0] = r >> 40;
}

/* A request that any device of this kind answers: the used index moves. */
static void works(unsigned type)
{
	begin();
	memset(&rings, 0, sizeof(rings));
	unsigned queue = type == 3; /* a console's output */
	set_queue(queue, (u64)rings.desc, (u64)&rings.avail, (u64)&rings.used);
	CFG8(20) = 15;
	memset(area, 0, 4096);
	if (type == 2) {
		rings.desc[0] = (struct desc){(u64)area, 16, 1, 1}; /* a read of sector 0 */
		rings.desc[1] = (struct desc){(u64)area + 512, 512, 3, 2};
		rings.desc[2] = (struct desc){(u64)area + 16, 1, 2, 0};
		area[16] = 0xff;
	} else {
		rings.desc[0] = (struct desc){(u64)area, 16, type == 4 ? 2 : 0, 0};
	}
	barrier();
	rings.avail.index = 1;
	barrier();
	doorbell[0] = queue;
	CHECK(WAIT_FOR(rings.used.index == 1, 5000000));
	CHECK_EQ(CFG8(20), 15);
	if (type == 2)
		CHECK_EQ(area[16], 0);
	CFG8(20) = 0;
}

/* The memory around the area and the rings keeps what it has. */
static u64 *guard;
static void guard_set(void)
{
	guard = alloc_pages(16);
	for (unsigned i = 0; i < 16 * PAGE / 8; i++)
		guard[i] = i * 0x0101010101010101ull;
}
static void guard_check(void)
{
	unsigned bad = 0;
	for (unsigned i = 0; i < 16 * PAGE / 8; i++)
		bad += guard[i] != i * 0x0101010101010101ull;
	CHECK_EQ(bad, 0);
}

/* Bad chains in good rings. */
static void bad_chains(unsigned type)
{
	find_device(type);
	guard_set();
	works(type);
	for (unsigned i = 0; i < ROUNDS; i++) {
		begin();
		memset(&rings, 0, sizeof(rings));
		for (unsigned q = 0; q < 2; q++)
			set_queue(q, (u64)rings.desc, (u64)&rings.avail, (u64)&rings.used); /* of two queues: shared */
		fill();
		CFG8(20) = 15;
		for (unsigned k = 0; k < 8; k++) {
			offer();
			if (random64() & 1)
				delay_us(random64() % 64);
			else
				rings.desc[random64() % QUEUE] = some_desc(QUEUE); /* while it looks */
		}
		refused += WAIT_FOR(CFG8(20) & NEEDS_RESET, 200);
		CFG8(20) = 0;
		CHECK(WAIT_FOR(!CFG8(20), 5000000));
	}
	CHECK(refused);
	guard_check();
	works(type);
}

/* Rings where no rings can be, or one on the other. */
static void bad_rings(unsigned type)
{
	find_device(type);
	guard_set();
	for (unsigned i = 0; i < ROUNDS; i++) {
		u64 r = random64(), good = (u64)area + (r & 0xff0);
		begin();
		set_queue(r >> 60 & 1, r >> 16 & 3 ? good : some_place(random64()), r >> 18 & 3 ? good : some_place(random64()),
			  r >> 20 & 3 ? good : some_place(random64()));
		for (unsigned k = 0; k < 1024; k += 2) {
			((u64 *)area)[k] = some_place(random64());
			((u64 *)area)[k + 1] = random64() & 0x000f000300000fff;
		}
		CFG8(20) = 15;
		for (unsigned k = 0; k < 4; k++) {
			*(volatile u16 *)(area + random64() % 512 * 16 + 12 + random64() % 2 * 2) = random64() & 15;
			doorbell[0] = random64();
		}
		refused += WAIT_FOR(CFG8(20) & NEEDS_RESET, 200);
	}
	CHECK(refused);
	guard_check();
	works(type);
}

TEST(disk_chains)
{
	bad_chains(2);
}
TEST(disk_rings)
{
	bad_rings(2);
}
TEST(console_chains)
{
	bad_chains(3);
}
TEST(console_rings)
{
	bad_rings(3);
}
TEST(entropy_chains)
{
	bad_chains(4);
}
TEST(entropy_rings)
{
	bad_rings(4);
}
/* run: timeout=60 doppel=--disk:{disk},snapshot=on:--virtio-console:file=/dev/null */
