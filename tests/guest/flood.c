/*
 * Guests that ask for more than they should get: as many requests as the devices take, a console without end, all of
 * the memory all of the time, translations dropped and code rewritten without a pause. Each goes on for a fraction of a
 * second, or "ms=N", or until something comes on the console, and must have come to something; "report" has it say how
 * far it came, for tests of what the host allows it (tests/system/caps.py).
 */
#include "virtio.h"

const char payload[] = "flood";

#define SLOTS 32
#define PIECES 3 /* descriptors to a request */
#define RX 16

static u64 begun, done;

static void begin(void)
{
	done = 0;
	outb(0x3fc, 3); /* RTS: ready for what comes on the console */
	begun = now_us();
}
static bool goes_on(void)
{
	return now_us() - begun < option_number("ms=", 200) * 1000 && !(inb(0x3fd) & 1);
}
static void end(const char *what)
{
	u64 took = now_us() - begun;

	CHECK(done);
	if (have_option("report"))
		print("did %s %lu in %lu us\n", what, done, took);
}

/* ---- Devices: queues that are always full ---- */

static struct queue {
	struct desc desc[SLOTS * 4];
	struct {
		u16 flags, index, ring[SLOTS * 4], event;
	} avail __attribute__((aligned(4096)));
	volatile struct {
		u16 flags, index;
		struct {
			u32 id, len;
		} ring[SLOTS * 4];
		u16 event;
	} used __attribute__((aligned(4096)));
	u16 seen;
} queue[2] __attribute__((aligned(4096)));
static volatile u8 *common;
static volatile u16 *doorbell;
static u8 *buffers;
#define BUFFER 32768u
#define BUFFER_OF(slot) (buffers + (slot)*BUFFER)

static void set_queue(unsigned n, struct queue *q)
{
	memset(q, 0, sizeof(*q));
	CFG16(22) = n;
	CFG16(24) = SLOTS * 4;
	CFG64(32, (u64)q->desc);
	CFG64(40, (u64)&q->avail);
	CFG64(48, (u64)&q->used);
	CFG16(28) = 1;
}

/* The device, up to where its queues `first` and, if there are two, `second` are set up. */
static int open_device(unsigned type, unsigned first, int second)
{
	int dev = virtio_open(type, &common, &doorbell);
	set_queue(first, &queue[0]);
	if (second >= 0)
		set_queue(second, &queue[1]);
	CFG8(20) = 15;
	buffers = alloc_pages(SLOTS * BUFFER / PAGE);
	return dev;
}

static void offer(struct queue *q, unsigned head)
{
	q->avail.ring[q->avail.index % (SLOTS * 4)] = head;
	barrier();
	q->avail.index++;
}

/* Gives back what has been used, and says how much that was. */
static unsigned recycle(struct queue *q, unsigned n)
{
	unsigned count = 0;

	while (q->used.index != q->seen) {
		barrier();
		offer(q, q->used.ring[q->seen++ % (SLOTS * 4)].id);
		count++;
	}
	barrier();
	if (count)
		doorbell[0] = n;
	return count;
}

/* Every slot's request again and again, on queue `n`; what comes on queue `in` is thrown away. */
static void pump(const char *what, unsigned n, int in, u64 each)
{
	for (unsigned slot = 0; slot < SLOTS; slot++)
		offer(&queue[0], slot * PIECES);
	begin();
	doorbell[0] = n;
	while (goes_on()) {
		done += recycle(&queue[0], n) * each;
		if (in >= 0)
			recycle(&queue[1], in);
	}
	CHECK_EQ(CFG8(20), 15);
	CFG8(20) = 0; /* in the middle of it */
	end(what);
}

TEST(disk)
{
	open_device(2, 0, -1);
	for (unsigned slot = 0; slot < SLOTS; slot++) {
		struct desc *d = &queue[0].desc[slot * PIECES];
		u8 *at = BUFFER_OF(slot);
		bool write = slot & 1;
		*(u32 *)at = write;
		*(u64 *)(at + 8) = slot * 8; /* sector */
		d[0] = (struct desc){(u64)at, 16, NEXT, slot * PIECES + 1};
		d[1] = (struct desc){(u64)at + 512, 4096, NEXT | (write ? 0 : WRITE), slot * PIECES + 2};
		d[2] = (struct desc){(u64)at + 16, 1, WRITE, 0};
	}
	pump("requests", 0, -1, 1);
}

/* UDP to the gateway, as large as Ethernet's frames are. */
TEST(net)
{
	static const u8 head[] =
		"\x52\x55\x0a\0\x02\x02\x52\x54\0\0\0\x01\x08\0"
		"\x45\0\x05\xdc\0\0\0\0\x40\x11\x5d\0\x0a\0\x02\x0f\x0a\0\x02\x02\x04\0\0\x09\x05\xc8\0\0";
	open_device(1, 1, 0);
	for (unsigned slot = 0; slot < SLOTS; slot++) {
		u8 *at = BUFFER_OF(slot), *ip = at + 12 + 14;
		u32 sum = 0;
		memcpy(at + 12, head, sizeof(head) - 1);
		ip[10] = ip[11] = 0;
		for (unsigned i = 0; i < 20; i += 2)
			sum += *(u16 *)(ip + i);
		*(u16 *)(ip + 10) = ~((sum & 0xffff) + (sum >> 16));
		queue[0].desc[slot * PIECES] = (struct desc){(u64)at, 12 + 14 + 1500, 0, 0};
	}
	for (unsigned i = 0; i < RX; i++) {
		queue[1].desc[i] = (struct desc){(u64)BUFFER_OF(i) + 4096, 2048, WRITE, 0};
		offer(&queue[1], i);
	}
	pump("bytes", 1, 0, 1514);
}

TEST(hvc)
{
	open_device(3, 1, -1);
	for (unsigned slot = 0; slot < SLOTS; slot++) {
		memset(BUFFER_OF(slot), 'x', BUFFER);
		queue[0].desc[slot * PIECES] = (struct desc){(u64)BUFFER_OF(slot), 4096, 0, 0};
	}
	pump("bytes", 1, -1, 4096);
}

/* Half of the slots ask for connections, the others send on them more than was ever allowed. */
TEST(vsock)
{
	int dev = open_device(19, 1, 0);
	u32 cid = *(volatile u32 *)virtio_structure(dev, VIRTIO_CONFIG, NULL);

	for (unsigned slot = 0; slot < SLOTS; slot++) {
		struct packet *p = (struct packet *)BUFFER_OF(slot);
		*p = (struct packet){cid,     2, 1000 + slot / 2, 1024, slot & 1 ? 16384 : 0, 1, slot & 1 ? 5 : 1, 0,
				     1 << 20, 0};
		queue[0].desc[slot * PIECES] = (struct desc){(u64)p, sizeof(*p) + p->len, 0, 0};
	}
	for (unsigned i = 0; i < RX; i++) {
		queue[1].desc[i] = (struct desc){(u64)BUFFER_OF(i) + 20480, 8192, WRITE, 0};
		offer(&queue[1], i);
	}
	pump("packets", 1, 0, 1);
}

/* A console that nobody waits for. */
TEST(serial)
{
	begin();
	for (; goes_on(); done++)
		for (unsigned i = 0; i < 64; i++)
			outb(0x3f8, i == 63 ? '\n' : ' ');
	end("lines");
}

/* ---- Memory, translations, code ---- */

TEST(memory)
{
	u64 ram = option_number("ram=", 64) << 20;

	begin();
	while (goes_on())
		for (u64 at = 16 << 20; at < ram && goes_on(); at += 64 * PAGE, done += 64)
			for (unsigned i = 0; i < 64; i++)
				*(volatile u64 *)(at + i * PAGE) = done;
	end("pages");
}

TEST(translations)
{
	volatile u64 *page = map_fresh(TEST_VA, 64, PTE_KERNEL);

	begin();
	for (; goes_on(); done++) {
		for (unsigned i = 0; i < 64; i++)
			page[i * (PAGE / 8)]++;
		if (done & 1)
			write_cr3(read_cr3());
		else
			write_cr4(read_cr4() ^ CR4_PGE);
		invlpg(TEST_VA + done % 64 * PAGE);
	}
	if (!(read_cr4() & CR4_PGE))
		write_cr4(read_cr4() | CR4_PGE);
	CHECK_EQ(page[63 * (PAGE / 8)], done);
	end("rounds");
}

/* Functions of a page each, `add $n, %eax` all through, that are written, run, changed while they are hot, and run
 * again. */
#define FUNCTIONS 256u
#define ADDS 800u
TEST(code)
{
	u8 *code = alloc_pages(FUNCTIONS);

	begin();
	for (unsigned n = 0; goes_on(); n++, done++) {
		u8 *at = code + n % FUNCTIONS * PAGE;
		u32 sum = 0, got = 0;
		for (unsigned i = 0; i < ADDS; i++) {
			at[i * 5] = 0x05;
			*(u32 *)(at + i * 5 + 1) = n + i;
			sum += n + i;
		}
		at[ADDS * 5] = 0xc3;
		for (unsigned i = 0; i < 20; i++) {
			at[1] = (u8)i;
			got = 0;
			asm volatile("call *%1" : "+a"(got) : "r"(at) : "memory", "cc");
		}
		CHECK_EQ(got, sum - (u8)n + 19);
		if (got != sum - (u8)n + 19)
			break;
	}
	end("functions");
}
/* run: timeout=60 doppel=--disk:{disk},snapshot=on:--virtio-console:file=/dev/null:--net:user,restrict=on:--vsock:unix={vsock} */
