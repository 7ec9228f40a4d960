/* See virtio.h. */
#include "virtio.h"

static u32 pci_address(unsigned dev, unsigned reg)
{
	return 0x80000000 | dev << 11 | (reg & 0xfc);
}
u32 pci_read(unsigned dev, unsigned reg)
{
	outl(0xcf8, pci_address(dev, reg));
	return inl(0xcfc);
}
void pci_write(unsigned dev, unsigned reg, u32 v)
{
	outl(0xcf8, pci_address(dev, reg));
	outl(0xcfc, v);
}

int virtio_find(unsigned type)
{
	for (unsigned dev = 0; dev < 32; dev++) {
		if (pci_read(dev, 0) == ((0x1040 + type) << 16 | 0x1af4))
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
/* The configuration structure of this kind (virtio 1.2 4.1.4), mapped. */
volatile u8 *virtio_structure(unsigned dev, unsigned kind, u32 *extra)
{
	for (unsigned cap = pci_read(dev, 0x34) & 0xff; cap; cap = pci_read(dev, cap) >> 8 & 0xff) {
		u32 head = pci_read(dev, cap);
		if ((head & 0xff) != 9 || head >> 24 != kind)
			continue;
		u64 pa = bar_address(dev, pci_read(dev, cap + 4) & 0xff) + pci_read(dev, cap + 8);
		if (extra)
			*extra = pci_read(dev, cap + 16);
		u64 va = BAR_VA + kind * 0x10000;
		for (unsigned i = 0; i < 4; i++)
			map(va + i * PAGE, (pa & ~(PAGE - 1)) + i * PAGE, PTE_KERNEL | PTE_PCD);
		return (volatile u8 *)va + (pa & (PAGE - 1));
	}
	return NULL;
}

int virtio_open(unsigned type, volatile u8 **structure, volatile u16 **doorbell)
{
	int dev = virtio_find(type);
	if (dev < 0)
		skip("no such device");
	volatile u8 *common = *structure = virtio_structure(dev, VIRTIO_COMMON, NULL);
	*doorbell = (volatile u16 *)virtio_structure(dev, VIRTIO_NOTIFY, NULL);
	pci_write(dev, 4, (pci_read(dev, 4) & 0xffff) | 6);
	CFG8(20) = 0;
	CHECK(WAIT_FOR(!CFG8(20), 5000000));
	CFG8(20) = 3;
	CFG32(8) = 1; /* VIRTIO_F_VERSION_1 and nothing else */
	CFG32(12) = 1;
	CFG8(20) = 11;
	return dev;
}
