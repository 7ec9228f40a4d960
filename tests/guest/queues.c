/*
 * Drivers that build nonsense: chains that loop, buffers that are huge, overlap, lie in device memory or nowhere, rings
 * anywhere, indices that jump, resets in the middle of requests, storms of notifications. A device does what it can
 * with it or asks for a reset, writes only where a buffer was, and works again after the reset.
 */
#include "virtio.h"

const char payload[] = "queues";

#define QUEUE 16
#define QUEUES 5 /* set up, where the device has as many */
#define RAM (128ull << 20)
#define ROUNDS 300
#define NEEDS_RESET 64
#define REQUEST 128 /* bytes, the most that a request begins with */

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
	u8 more[4096 - 8 - 8 * QUEUE];
} rings[QUEUES] __attribute__((aligned(4096)));
_Static_assert(sizeof(struct rings) == 8192, "two pages");
static struct desc table[256] __attribute__((aligned(4096))); /* for indirect descriptors */

#define AREA (4ull << 20)
static u8 *area; /* where buffers lie; all that a device may write */
static volatile u8 *common, *config, *isr, *doorbells;
static volatile u16 *doorbell;
static unsigned device, queues, refused;

/* A kind of device. */
struct kind {
	unsigned type;
	unsigned asks;                /* the queue for what `good` makes */
	unsigned (*request)(u8 *at);  /* the beginning of a request that may get far; returns its length */
	void (*good)(struct desc *d); /* a chain that the device answers at once */
	bool (*answered)(void);       /* and its answer, if there is one; NULL: the used index is enough */
	bool to_and_fro;              /* a request has a part to be read and a part to be written, no more */
};

static const u64 elsewhere[] = {
	0xfee00000, 0xfec00000, 0xe0000000, 0xb0000000, RAM, 1ull << 38, ~0ull << 12, ~0ull, (1ull << 63) + 4096,
};

/*
 * What lies in buffers may come to be page numbers for a balloon, from any byte on: without small bytes they are beyond
 * the memory, but for those of its requests.
 */
static void fill_area(void)
{
	for (unsigned i = 0; i < AREA / 8; i++)
		((u64 *)area)[i] = random64() | 0x8080808080808080;
}

static void find_device(const struct kind *k)
{
	int dev = virtio_find(k->type);
	if (dev < 0)
		skip("no such device");
	device = dev;
	common = virtio_structure(dev, VIRTIO_COMMON, NULL);
	doorbells = virtio_structure(dev, VIRTIO_NOTIFY, NULL);
	isr = virtio_structure(dev, VIRTIO_ISR, NULL);
	config = virtio_structure(dev, VIRTIO_CONFIG, NULL);
	pci_write(dev, 4, (pci_read(dev, 4) & 0xffff) | 6); /* memory, bus master */
	doorbell = (volatile u16 *)doorbells;
	queues = CFG16(18) < QUEUES ? CFG16(18) : QUEUES;
	area = alloc_pages(AREA / PAGE);
	fill_area();
	refused = 0;
}

static void reset(void)
{
	CFG8(20) = 0;
	CHECK(WAIT_FOR(!CFG8(20), 5000000));
}

/* Reset, the features that are on offer, and up to where queues are set up. */
static void begin(void)
{
	reset();
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
static void set_rings(unsigned n, struct rings *r)
{
	set_queue(n, (u64)r->desc, (u64)&r->avail, (u64)&r->used);
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

/* An indirect table, of good size, of none, or of more than memory has. */
static void some_table(struct desc *d, u64 r)
{
	d->address = (u64)table;
	switch (r & 7) {
	case 0:
		d->len = r >> 32;
		break;
	case 1:
		d->len = ~0u & ~15u;
		break;
	case 2:
		d->len = 0xffff * 16 + (r >> 8 & 1) * 16;
		break;
	case 3:
		d->address = some_place(random64());
		d->len = (r >> 8 & 31) * 16;
		break;
	default:
		d->len = r >> 24 & 1 ? sizeof(table) : (r >> 25 & 7) * 16;
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
	if (d.flags & INDIRECT)
		some_table(&d, random64());
	return d;
}

/* A request now and then that the device knows, so that some get further than their first bytes. */
static void some_request(const struct kind *k, struct desc *desc, unsigned i)
{
	u8 *at = area + AREA / 2 + random64() % 64 * REQUEST;
	struct desc *d = &desc[i], *then = &desc[d->next % QUEUE];

	*d = (struct desc){(u64)at, k->request(at), NEXT, d->next % QUEUE};
	if (!k->to_and_fro || !(random64() & 3))
		return;
	if (random64() & 1)
		*then = (struct desc){(u64)area + random64() % (AREA / 2), random64() % 8192, WRITE, 0};
	else
		d->flags = 0;
}

static void fill(const struct kind *k)
{
	memset(rings, 0, sizeof(rings));
	for (unsigned q = 0; q < queues; q++) {
		struct rings *to = &rings[q];
		for (unsigned i = 0; i < QUEUE; i++)
			to->desc[i] = some_desc(QUEUE);
		for (unsigned i = 0; i < QUEUE; i++) {
			if (k->request && random64() & 1)
				some_request(k, to->desc, i);
			to->avail.ring[i] = random64() & 31 ? i : random64();
		}
	}
	for (unsigned i = 0; i < 256; i++)
		table[i] = some_desc(256);
}

static void offer(unsigned q, unsigned most)
{
	u64 r = random64();
	barrier();
	rings[q].avail.index += r & 15 ? r >> 8 & most : r >> 16;
	barrier();
	doorbell[0] = r >> 32 & 7 ? q : r >> 40;
}

/* A request that any device of this kind answers: the used index moves. */
static void works(const struct kind *k)
{
	struct rings *r = &rings[k->asks];

	begin();
	memset(rings, 0, sizeof(rings));
	set_rings(k->asks, r);
	CFG8(20) = 15;
	memset(area, 0, 4096);
	k->good(r->desc);
	barrier();
	r->avail.index = 1;
	barrier();
	doorbell[0] = k->asks;
	CHECK(WAIT_FOR(r->used.index == 1, 5000000));
	CHECK_EQ(CFG8(20), 15);
	CHECK(!k->answered || k->answered());
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
static void bad_chains(const struct kind *k)
{
	find_device(k);
	guard_set();
	works(k);
	for (unsigned i = 0; i < ROUNDS; i++) {
		bool shared = !(random64() & 7); /* by all queues */
		begin();
		fill(k);
		for (unsigned q = 0; q < queues; q++)
			set_rings(q, &rings[shared ? 0 : q]);
		CFG8(20) = 15;
		for (unsigned n = 0; n < 8; n++) {
			unsigned q = random64() % queues;
			offer(q, 3);
			if (random64() & 1)
				delay_us(random64() % 64);
			else
				rings[q].desc[random64() % QUEUE] = some_desc(QUEUE); /* while it looks */
		}
		refused += WAIT_FOR(CFG8(20) & NEEDS_RESET, 200);
		reset();
	}
	CHECK(refused);
	guard_check();
	works(k);
}

/* Rings where no rings can be, or one on the other. */
static void bad_rings(const struct kind *k)
{
	find_device(k);
	guard_set();
	for (unsigned i = 0; i < ROUNDS; i++) {
		u64 r = random64(), good = (u64)area + (r & 0xff0);
		begin();
		set_queue((r >> 60) % queues, r >> 16 & 3 ? good : some_place(random64()),
			  r >> 18 & 3 ? good : some_place(random64()), r >> 20 & 3 ? good : some_place(random64()));
		for (unsigned n = 0; n < 1024; n += 2) {
			((u64 *)area)[n] = some_place(random64());
			((u64 *)area)[n + 1] = random64() & 0x000f000300000fff;
		}
		CFG8(20) = 15;
		for (unsigned n = 0; n < 4; n++) {
			*(volatile u16 *)(area + random64() % 512 * 16 + 12 + random64() % 2 * 2) = random64() & 15;
			doorbell[0] = random64();
		}
		refused += WAIT_FOR(CFG8(20) & NEEDS_RESET, 200);
	}
	CHECK(refused);
	guard_check();
	works(k);
}

/* Requests that the device is taken away from. */
static void interrupt_it(void)
{
	u64 r = random64();

	if (r & 1)
		delay_us(r >> 8 & 31);
	switch (r >> 16 & 7) {
	case 0:
		CFG8(20) = 128; /* given up */
		break;
	case 1:
		pci_write(device, 4, pci_read(device, 4) & 0xfffb); /* no bus master */
		delay_us(r >> 24 & 31);
		pci_write(device, 4, (pci_read(device, 4) & 0xffff) | 4);
		break;
	case 2:
		pci_write(device, 4, pci_read(device, 4) & 0xfffd); /* no memory */
		pci_write(device, 4, (pci_read(device, 4) & 0xffff) | 2);
		break;
	case 3:
		CFG16(22) = r >> 24; /* another place and another size for what is in use */
		CFG16(24) = r >> 32;
		CFG64(32, some_place(random64()));
		CFG16(28) = r >> 40;
		break;
	}
	reset();
}
static void resets(const struct kind *k)
{
	find_device(k);
	guard_set();
	for (unsigned i = 0; i < ROUNDS; i++) {
		begin();
		memset(rings, 0, sizeof(rings));
		for (unsigned q = 0; q < queues; q++)
			set_rings(q, &rings[q]);
		CFG8(20) = 15;
		k->good(rings[k->asks].desc);
		for (unsigned n = 4; k->request && n + 1 < QUEUE; n += 2) {
			rings[k->asks].desc[n].next = n + 1;
			some_request(k, rings[k->asks].desc, n);
			rings[k->asks].avail.ring[n / 2 - 1] = n;
		}
		rings[k->asks].avail.index = k->request ? 1 + random64() % 6 : 1;
		barrier();
		doorbell[0] = k->asks;
		interrupt_it();
	}
	guard_check();
	works(k);
}

/* Doorbells of every width, registers read and written, and chains, all at a time. */
static void storm(const struct kind *k)
{
	find_device(k);
	begin();
	fill(k);
	for (unsigned q = 0; q < queues; q++)
		set_rings(q, &rings[q]);
	CFG8(20) = 15;
	for (unsigned i = 0; i < 10000; i++) {
		u64 r = random64();
		volatile u8 *bell = doorbells + (r >> 8 & 0xffc);
		switch (r & 7) {
		case 0:
			*bell = r >> 32;
			break;
		case 1:
			*(volatile u32 *)bell = r >> 32;
			break;
		case 2:
			*(volatile u64 *)bell = r >> 20 & 7;
			break;
		case 3:
			(void)*isr;
			(void)CFG8(20);
			break;
		case 4:
			if (config)
				config[r >> 32 & 63] = r >> 40;
			break;
		case 5:
			if (r >> 32 & 1)
				rings[r % queues].avail.index++;
			break;
		default:
			doorbell[0] = r >> 20 & 7;
		}
		if (CFG8(20) & NEEDS_RESET) {
			begin();
			fill(k);
			for (unsigned q = 0; q < queues; q++)
				set_rings(q, &rings[q]);
			CFG8(20) = 15;
		}
	}
	works(k);
}

/* ---- The kinds ---- */

static u16 *put16(u16 *p, u16 v)
{
	*p = v;
	return p + 1;
}

static unsigned disk_request(u8 *at)
{
	static const u8 types[] = {0, 1, 4, 8, 11, 13, 14, 255};
	u64 r = random64();
	u32 *h = (u32 *)at;

	h[0] = types[(r >> 8) & 7];
	h[1] = 0;
	*(u64 *)(h + 2) = r >> 16 & 3 ? (r >> 20) % 2100 : random64();
	return 16;
}
static void disk_good(struct desc *d)
{
	d[0] = (struct desc){(u64)area, 16, NEXT, 1}; /* a read of sector 0 */
	d[1] = (struct desc){(u64)area + 512, 512, NEXT | WRITE, 2};
	d[2] = (struct desc){(u64)area + 16, 1, WRITE, 0};
	memset(area, 0, 16);
	area[16] = 0xff;
}
static bool disk_answered(void)
{
	return area[16] == 0;
}
static const struct kind disk = {2, 0, disk_request, disk_good, disk_answered, false};

static void to_read(struct desc *d)
{
	d[0] = (struct desc){(u64)area, 16, 0, 0};
}
static void to_write(struct desc *d)
{
	d[0] = (struct desc){(u64)area, 16, WRITE, 0};
}
static const struct kind console = {3, 1, NULL, to_read, NULL, false}, entropy = {4, 0, NULL, to_write, NULL, false};

/*
 * Frames in the ranges that the host's side looks at: a header with offloads that may be wrong (virtio 1.2 5.1.6), ARP,
 * IP with fragments, UDP to the network's own services, TCP, ICMP. The checksum of the IP header is right.
 */
static unsigned ip_packet(u8 *ip)
{
	static const u8 protocols[] = {17, 17, 6, 1, 2, 255};
	static const u16 ports[] = {67, 69, 53, 80, 0};
	u64 r = random64();
	u32 sum = 0;

	ip[0] = 0x45 + (r & 7 ? 0 : r >> 3 & 15);
	*put16((u16 *)(ip + 2), __builtin_bswap16(r >> 8 & 3 ? 60 : r >> 16)) = r >> 32;
	*put16((u16 *)(ip + 6), r >> 10 & 3 ? 0 : __builtin_bswap16(r >> 40 & 0x3fff)) = 64;
	ip[9] = protocols[(r >> 12) % sizeof(protocols)];
	ip[10] = ip[11] = 0;
	*(u32 *)(ip + 12) = 0x0f02000a; /* 10.0.2.15 */
	*(u32 *)(ip + 16) = r >> 14 & 7 ? 0x0002000a | (2 + (r >> 17 & 3)) << 24 : ~0u;
	for (unsigned i = 0; i < 20; i += 2)
		sum += *(u16 *)(ip + i);
	sum = (sum & 0xffff) + (sum >> 16);
	*(u16 *)(ip + 10) = ~(sum + (sum >> 16));
	*put16((u16 *)(ip + 20), __builtin_bswap16(68)) = __builtin_bswap16(ports[(r >> 20) % 5]);
	*put16((u16 *)(ip + 24), __builtin_bswap16(r >> 24 & 3 ? 40 : r >> 48)) = 0;
	return 60;
}
static unsigned net_request(u8 *at)
{
	static const u16 types[] = {0x0008, 0x0608, 0xdd86, 0x0081};
	u64 r = random64();
	u8 *frame = at + 12;

	for (unsigned i = 0; i < REQUEST / 8; i++)
		((u64 *)at)[i] = random64();
	if (r & 3)
		memset(at, 0, 12);
	else
		at[0] &= 3, at[1] &= 0x87;
	memcpy(frame, r >> 2 & 1 ? "\x52\x55\x0a\0\x02\x02" : "\xff\xff\xff\xff\xff\xff", 6);
	*(u16 *)(frame + 12) = r >> 3 & 7 ? 0x0008 : types[(r >> 6) % 4];
	if (*(u16 *)(frame + 12) == 0x0008)
		return 26 + ip_packet(frame + 14);
	memcpy(frame + 14, "\0\x01\x08\0\x06\x04\0\x01", 8); /* ARP, for Ethernet and IP */
	return 12 + 14 + (r >> 8) % 64;
}
static void net_good(struct desc *d)
{
	d[0] = (struct desc){(u64)area, 12 + 60, 0, 0};
}
static const struct kind net = {1, 1, net_request, net_good, NULL, true};

/* FUSE requests (struct fuse_in_header): to the root or one of the first nodes, with little or nothing after the
 * header. */
static unsigned fs_request(u8 *at)
{
	u64 r = random64();
	unsigned len = r & 7 ? 40 + (r >> 3 & 7) * 8 : 40 + (r >> 3) % (REQUEST - 40);

	memset(at, 0, REQUEST);
	*(u32 *)at = r >> 16 & 15 ? len : r >> 32;
	*(u32 *)(at + 4) = (r >> 20) % 52;
	*(u64 *)(at + 8) = random64();
	*(u64 *)(at + 16) = r >> 26 & 3 ? 1 : random64() >> (r >> 28 & 63);
	for (unsigned i = 40; i < len; i++)
		at[i] = r >> 34 & 1 ? random64() & 1 : 'a' + (i & 1) - (random64() & 3 ? 0 : 'a');
	return len;
}
static void fs_good(struct desc *d)
{
	u32 *h = (u32 *)area;

	memset(area, 0, 64);
	h[0] = 56;
	h[1] = 26; /* INIT */
	h[4] = 1;
	h[10] = 7;
	h[11] = 38;
	d[0] = (struct desc){(u64)area, 56, NEXT, 1};
	d[1] = (struct desc){(u64)area + 256, 256, WRITE, 0};
}
static bool fs_answered(void)
{
	return *(u32 *)(area + 260) == 0;
}
static const struct kind fs = {26, 1, fs_request, fs_good, fs_answered, true};

/* Packets (virtio 1.2 5.10.6) of few connections; somebody listens on port 1024. */
static unsigned vsock_request(u8 *at)
{
	struct packet *p = (struct packet *)at;
	u64 r = random64();

	*p = (struct packet){
		*(volatile u32 *)config,
		r & 15 ? 2 : random64(),
		1000 + (r >> 4 & 1),
		1024 + (r >> 5 & 7 ? 0 : r >> 8 & 3),
		.type = r >> 10 & 15 ? 1 : r >> 16,
		.op = r >> 14 & 1 ? 5 : (r >> 32) % 10,
		.flags = r >> 36 & 3,
		.room = r >> 38 & 3 ? 65536 : random64(),
		.passed = r >> 40 & 3 ? 0 : random64(),
	};
	if (!(r >> 42 & 7))
		p->op = 1; /* a request for a connection, first of all */
	p->len = r >> 44 & 3 ? (p->op == 5 ? REQUEST - sizeof(*p) : 0) : (r >> 48) % 100;
	return r >> 46 & 3 ? REQUEST : sizeof(*p);
}
static void vsock_good(struct desc *d)
{
	struct packet *p = (struct packet *)area;

	*p = (struct packet){*(volatile u32 *)config, 2, 999, 999, 0, 1, 3, 0, 0, 0}; /* an end to what is not there */
	d[0] = (struct desc){(u64)area, sizeof(*p), 0, 0};
}
static const struct kind vsock = {19, 1, vsock_request, vsock_good, NULL, true};

/* Numbers of pages. */
static unsigned balloon_request(u8 *at)
{
	u64 r = random64();

	for (unsigned i = 0; i < REQUEST / 4; i++, r = random64())
		((u32 *)at)[i] = r & 15 ? ((u64)area + r % (AREA / 2)) / PAGE : r >> 32 | RAM / PAGE;
	return r & 1 ? REQUEST : r % REQUEST;
}
static void balloon_good(struct desc *d)
{
	*(u32 *)area = (u64)area / PAGE;
	d[0] = (struct desc){(u64)area, 4, 0, 0};
}
static const struct kind balloon = {5, 0, balloon_request, balloon_good, NULL, false};

#define TESTS(kind)                \
	TEST(kind##_chains)        \
	{                          \
		bad_chains(&kind); \
	}                          \
	TEST(kind##_rings)         \
	{                          \
		bad_rings(&kind);  \
	}                          \
	TEST(kind##_resets)        \
	{                          \
		resets(&kind);     \
	}                          \
	TEST(kind##_storm)         \
	{                          \
		storm(&kind);      \
	}
TESTS(disk)
TESTS(console)
TESTS(entropy)
TESTS(net)
TESTS(fs)
TESTS(vsock)
TESTS(balloon)
/* run: timeout=60 doppel=--disk:{disk},snapshot=on:--virtio-console:file=/dev/null:--net:user,restrict=on:--share:{share}:--vsock:unix={vsock} */
