/*
 * A device that writes into memory which is also code: virtio-rng, which puts random bytes wherever it is told
 * (virtio 1.2 5.4), here into an instruction's immediate.
 */
#include "guest.h"

const char payload[] = "dma";

static u32 pci_address(unsigned dev, unsigned reg)
{
	return 0x80000000 | dev << 11 | (reg & 0xfc);
}
static u32 pci_read(unsigned dev, unsigned reg)
{
	outl(0xcf8, pci_address(dev, reg));
	return inl(0xcfc);
}
static void pci_write(unsigned dev, unsigned reg, u32 v)
{
	outl(0xcf8, pci_address(dev, reg));
	outl(0xcfc, v);
}

static int find_rng(void)
{
	for (unsigned dev = 0; dev < 32; dev++) {
		if (pci_read(dev, 0) == 0x10441af4)
			return dev;
	}
	return -1;
}

/* Where a BAR is; one that nobody has placed gets a place in the 32-bit window. */
static u64 bar_address(unsigned dev, unsigned bar)
{
	unsigned reg = 0x10 + 4 * bar;
	u32 low = pci_read(dev, reg);
	bool wide = (low & 6) == 4;
	u64 at = (low & ~15u) | (wide ? (u64)pci_read(dev, reg + 4) << 32 : 0);
	if (at)
		return at;
	at = 0xcf000000 + 0x100000 * bar;
	pci_write(dev, reg, at);
	if (wide)
		pci_write(dev, reg + 4, 0);
	return at;
}

#define BAR_VA (TEST_VA + 0x40000000)
/* The configuration structure of this type (virtio 1.2 4.1.4), mapped. */
static volatile u8 *structure(unsigned dev, unsigned type, u32 *extra)
{
	for (unsigned cap = pci_read(dev, 0x34) & 0xff; cap; cap = pci_read(dev, cap) >> 8 & 0xff) {
		u32 head = pci_read(dev, cap);
		if ((head & 0xff) != 9 || head >> 24 != type)
			continue;
		u64 pa = bar_address(dev, pci_read(dev, cap + 4) & 0xff) + pci_read(dev, cap + 8);
		if (extra)
			*extra = pci_read(dev, cap + 16);
		u64 va = BAR_VA + type * 0x10000;
		for (unsigned i = 0; i < 4; i++)
			map(va + i * PAGE, (pa & ~(PAGE - 1)) + i * PAGE, PTE_KERNEL | PTE_PCD);
		return (volatile u8 *)va + (pa & (PAGE - 1));
	}
	return NULL;
}

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

#define CFG8(off) (*(common + (off)))
#define CFG16(off) (*(volatile u16 *)(common + (off)))
#define CFG32(off) (*(volatile u32 *)(common + (off)))
#define CFG64(off, v) (CFG32(off) = (u32)(u64)(v), CFG32((off) + 4) = (u32)((u64)(v) >> 32))

static void start_device(void)
{
	int dev = find_rng();
	u32 multiplier = 0;
	if (dev < 0)
		skip("no virtio-rng");
	memset(&queue, 0, sizeof(queue));
	volatile u8 *common = structure(dev, 1, NULL), *notify = structure(dev, 2, &multiplier);
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

static u64 call(u64 at)
{
	u64 rax;
	asm volatile("call *%1" : "=a"(rax) : "r"(at) : "rcx", "rdx", "memory", "cc");
	return rax;
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
