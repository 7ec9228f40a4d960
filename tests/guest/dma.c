/*
 * A device that writes into memory which is also code: virtio-rng, which puts random bytes wherever it is told
 * (virtio 1.2 5.4), here into an instruction's immediate.
 */
#include "virtio.h"

const char payload[] = "dma";

#define QUEUE 8
static struct {
	struct {
		u64 address;
		u32 len;
		u16 flags, next;
	} desc[QUEUE];
	struct {
		u16 flags, index, ring[QUEUE];
	} avail;
	u8 pad[4096 - 16 * QUEUE - 4 - 2 * QUEUE];
	volatile struct {
		u16 flags, index;
		struct {
			u32 id, len;
		} ring[QUEUE];
	} used;
} queue __attribute__((aligned(4096)));

static volatile u16 *doorbell;

static void start_device(void)
{
	int dev = virtio_find(4);
	u32 multiplier = 0;
	if (dev < 0)
		skip("no virtio-rng");
	memset(&queue, 0, sizeof(queue));
	volatile u8 *common = virtio_structure(dev, VIRTIO_COMMON, NULL),
		    *notify = virtio_structure(dev, VIRTIO_NOTIFY, &multiplier);
	pci_write(dev, 4, (pci_read(dev, 4) & 0xffff) | 6); /* memory, bus master */
	CFG8(20) = 0;
	while (CFG8(20))
		pause();
	CFG8(20) = 1;
	CFG8(20) = 3;
	CFG32(8) = 1; /* VIRTIO_F_VERSION_1 */
	CFG32(12) = 1;
	CFG8(20) = 11;
	CHECK_EQ(CFG8(20) & 8, 8);
	CFG16(22) = 0;
	CFG16(24) = QUEUE;
	CFG64(32, &queue.desc);
	CFG64(40, &queue.avail);
	CFG64(48, &queue.used);
	CFG16(28) = 1;
	doorbell = (volatile u16 *)(notify + CFG16(30) * multiplier);
	CFG8(20) = 15;
}

/* Asks for `len` random bytes at physical address `pa`. */
static void ask(u64 pa, u32 len)
{
	unsigned slot = queue.avail.index % QUEUE;
	queue.desc[slot] = (typeof(queue.desc[0])){pa, len, 2, 0};
	queue.avail.ring[slot] = slot;
	barrier();
	queue.avail.index++;
	barrier();
	*doorbell = 0;
}
static void wait_for_it(void)
{
	CHECK(WAIT_FOR(queue.used.index == queue.avail.index, 5000000));
}

SNIPPET(give, 64, "movl $0, %eax; ret");
TEST(into_code)
{
	start_device();
	u8 *p = map_code(TEST_VA, give, give_end, PTE_KERNEL);
	u64 pa = *walk(TEST_VA, 1, false) & PTE_ADDR;
	unsigned same = 0;
	u32 last = 0;
	for (unsigned i = 0; i < 100; i++) {
		CHECK_EQ(call(TEST_VA), last);
		ask(pa + 1, 4);
		wait_for_it();
		u32 now = *(volatile u32 *)(p + 1);
		CHECK_EQ(call(TEST_VA), now);
		same += now == last;
		last = now;
	}
	CHECK(same < 3);
}

/* The same while the code runs: a loop that only the device ends. */
SNIPPET(until, 64, "1: movl $0, %eax; testl %eax, %eax; jz 1b; ret");
TEST(into_running_code)
{
	start_device();
	u8 *p = map_code(TEST_VA, until, until_end, PTE_KERNEL);
	u64 pa = *walk(TEST_VA, 1, false) & PTE_ADDR;
	for (unsigned i = 0; i < 20; i++) {
		*(volatile u32 *)(p + 1) = 0;
		ask(pa + 1, 4);
		CHECK(call(TEST_VA));
		wait_for_it();
	}
}

/* Into data beside code, in a page that holds both. */
TEST(beside_code)
{
	start_device();
	u8 *p = map_code(TEST_VA, give, give_end, PTE_KERNEL);
	u64 pa = *walk(TEST_VA, 1, false) & PTE_ADDR;
	u64 sum = 0;
	for (unsigned i = 0; i < 20; i++) {
		ask(pa + 256, 64);
		wait_for_it();
		CHECK_EQ(call(TEST_VA), 0);
		sum |= ((volatile u64 *)(p + 256))[7];
	}
	CHECK(sum);
}
/* run: cpus=1 qemu=-device:virtio-rng-pci,disable-legacy=on */
