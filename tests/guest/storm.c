/*
 * Accesses of every width and alignment to all ports and all device memory, with random values: configuration space,
 * BARs wherever they were, APICs, and where nothing is. The machine goes on, and its devices answer afterwards.
 */
#include "guest.h"

const char payload[] = "storm";

#define ECAM 0xe0000000ull
#define LAPIC 0xfee00000ull
#define IOAPIC 0xfec00000ull
#define PANIC 0x00111b36u /* pvpanic: to write there is to end the machine */
#define ROUNDS 20000

static struct range {
	u64 base, size;
} ranges[64];
static unsigned range_count;
static unsigned panic_dev; /* 32: there is none */

static u32 config_read(unsigned dev, unsigned reg)
{
	return *(volatile u32 *)(ECAM + dev * 0x8000 + reg);
}
static void config_write(unsigned dev, unsigned reg, u32 v)
{
	*(volatile u32 *)(ECAM + dev * 0x8000 + reg) = v;
}

static void add_range(u64 base, u64 size)
{
	if (range_count < sizeof(ranges) / sizeof(ranges[0]))
		ranges[range_count++] = (struct range){base, size};
}

static u32 bars[32][6]; /* as they were at the start */

static void add_bars(unsigned dev)
{
	for (unsigned i = 0; i < 6; i++)
		bars[dev][i] = config_read(dev, 0x10 + 4 * i);
	for (unsigned reg = 0x10; reg < 0x28; reg += 4) {
		u32 low = config_read(dev, reg);
		bool wide = (low & 7) == 4;
		u64 at = (low & ~15u) | (wide ? (u64)config_read(dev, reg + 4) << 32 : 0);
		if (wide)
			reg += 4;
		if (at && at < 1ull << 32 && !(low & 1))
			add_range(at, 0x10000);
		else if (at && !(low & 1) && range_count < 40) { /* above what is mapped: a window of its own */
			u64 va = TEST_VA + (u64)dev * 0x100000 + (reg << 14);
			for (unsigned i = 0; i <= 16; i++)
				map(va + i * PAGE, at + i * PAGE, PTE_KERNEL | PTE_PCD);
			add_range(va, 0x10000);
		}
	}
}

/* Devices that answer again: what is written to configuration space soon turns them off. */
static void restore(void)
{
	for (unsigned dev = 0; dev < 32; dev++) {
		if (config_read(dev, 0) == 0xffffffff || dev == panic_dev)
			continue;
		config_write(dev, 4, 0);
		for (unsigned i = 0; i < 6; i++) {
			config_write(dev, 0x10 + 4 * i, bars[dev][i]);
			CHECK_EQ(config_read(dev, 0x10 + 4 * i), bars[dev][i]);
		}
		config_write(dev, 4, 6);
	}
}

static bool on_nmi(struct frame *f)
{
	return true;
}

static void start(void)
{
	set_handler(NMI, on_nmi);
	range_count = 0;
	panic_dev = 32;
	for (unsigned dev = 0; dev < 32; dev++) {
		u32 id = config_read(dev, 0);
		if (id == PANIC) {
			panic_dev = dev;
			config_write(dev, 4, 0);
		} else if (id != 0xffffffff) {
			add_bars(dev);
			add_range(ECAM + dev * 0x8000, PAGE);
			add_range(ECAM + dev * 0x8000, 0x40);
		}
	}
	CHECK(range_count > 6); /* some BARs among them */
	add_range(ECAM, 0x100000);
	add_range(ECAM + 0xf00000, 0x100000);
	add_range(LAPIC, PAGE);
	add_range(LAPIC, PAGE);
	add_range(IOAPIC, 0x20);
	add_range(IOAPIC, PAGE);
	add_range(0xfed00000, PAGE); /* where an HPET would be */
	add_range(0xfed40000, PAGE); /* and a TPM */
	add_range(0xb0000000, PAGE);
	add_range(0xfffff000, PAGE - 1024);
}

/*
 * Random bytes, but for two things that would end the payload and nothing else: INIT as an interrupt's delivery mode,
 * and addresses of RAM where a device takes one.
 */
static u64 some_value(void)
{
	u64 v = random64();
	if (v >> 62 == 0)
		v = 1ull << (v & 63);
	u8 *b = (u8 *)&v;
	for (unsigned i = 0; i < 8; i++) {
		if ((b[i] & 7) == 5)
			b[i] ^= 1;
	}
	return v | 0x8000000080000000;
}

static u64 some_address(unsigned len)
{
	for (;;) {
		const struct range *r = &ranges[random64() % range_count];
		u64 x = random64(), off = x >> 8;
		off = x & 1 ? off % r->size : off % r->size & ~3ull;
		if ((x & 0xe) == 0)
			off = r->size - off % 16; /* across the end */
		u64 at = r->base + off;
		u64 panic = ECAM + panic_dev * 0x8000;
		if (at + len <= panic || at >= panic + 0x8000)
			return at;
	}
}

static u64 buf[8] __attribute__((aligned(64)));

static void load(u64 at)
{
	u64 v, si = at, di = (u64)buf, n = 4;
	switch (random64() % 10) {
	case 0:
		asm volatile("movb (%1), %b0" : "=q"(v) : "r"(at));
		break;
	case 1:
		asm volatile("movw (%1), %w0" : "=r"(v) : "r"(at));
		break;
	case 2:
		asm volatile("movl (%1), %k0" : "=r"(v) : "r"(at));
		break;
	case 3:
		asm volatile("movq (%1), %0" : "=r"(v) : "r"(at));
		break;
	case 4:
		asm volatile("movups (%0), %%xmm0" : : "r"(at));
		break;
	case 5:
		asm volatile("rep movsb" : "+S"(si), "+D"(di), "+c"(n) : : "memory");
		break;
	case 6:
		asm volatile("rep movsq" : "+S"(si), "+D"(di), "+c"(n) : : "memory");
		break;
	case 7:
		asm volatile("fldt (%0); fstp %%st(0); fnclex" : : "r"(at));
		break;
	case 8:
		asm volatile("bsfl (%1), %k0; popcntq (%1), %0; movsbl (%1), %k0" : "=r"(v) : "r"(at) : "cc");
		break;
	default:
		asm volatile("cmpsl" : "+S"(si), "+D"(di) : : "memory", "cc");
	}
}

static void store(u64 at)
{
	u64 v = some_value(), w = some_value(), si = (u64)buf, di = at, n = 4;
	switch (random64() % 12) {
	case 0:
		asm volatile("movb %b1, (%0)" : : "r"(at), "q"(v) : "memory");
		break;
	case 1:
		asm volatile("movw %w1, (%0)" : : "r"(at), "r"(v) : "memory");
		break;
	case 2:
	case 3:
	case 4:
		asm volatile("movl %k1, (%0)" : : "r"(at), "r"(v) : "memory");
		break;
	case 5:
		asm volatile("movq %1, (%0)" : : "r"(at), "r"(v) : "memory");
		break;
	case 6:
		asm volatile("movq %1, %%xmm0; movq %2, %%xmm1; punpcklqdq %%xmm1, %%xmm0; movups %%xmm0, (%0)"
			     :
			     : "r"(at), "r"(v), "r"(w)
			     : "memory");
		break;
	case 7:
		for (unsigned i = 0; i < 8; i++)
			buf[i] = some_value();
		asm volatile("rep movsq" : "+S"(si), "+D"(di), "+c"(n) : : "memory");
		break;
	case 8:
		asm volatile("rep stosw" : "+D"(di), "+c"(n) : "a"(v) : "memory");
		break;
	case 9:
		asm volatile("xchgl %k0, (%1)" : "+r"(v) : "r"(at) : "memory");
		break;
	case 10:
		asm volatile("lock btsl $31, (%0)" : : "r"(at) : "memory", "cc");
		break;
	default:
		asm volatile("cmpxchg8b (%0)" : : "r"(at), "a"(0), "d"(0), "b"(v), "c"(w) : "memory", "cc");
	}
}

/* Afterwards: the devices can be had where they were, the clocks run, and the console is as the runtime wants it. */
static void still_there(void)
{
	restore();
	outb(0x3fb, 3);
	outb(0x3f9, 0);
	outb(0x3fa, 7);
	outb(0x3fc, 3);
	apic_enable();
	apic_write(APIC_TIMER_INIT, 0);
	u64 before = now_us();
	delay_us(100);
	CHECK(now_us() >= before + 100);
	outb(0x3ff, 0xa5);
	CHECK_EQ(inb(0x3ff), 0xa5);
}

TEST(mmio)
{
	start();
	for (unsigned i = 0; i < ROUNDS; i++) {
		if (i % 64 == 0)
			restore();
		u64 at = some_address(64);
		unsigned v = CATCH(random64() & 1 ? load(at) : store(at));
		CHECK_EQ_IN(v, NO_TRAP, "%lx", at);
	}
	still_there();
}

/* Wide state to and from devices: 512 bytes at once. */
TEST(mmio_wide)
{
	static u8 keep[512] __attribute__((aligned(16)));
	start();
	asm volatile("fxsave %0" : "=m"(keep));
	for (unsigned i = 0; i < 500; i++) {
		if (i % 8 == 0)
			restore();
		u64 at = some_address(512) & ~15ull;
		if (at >> 12 == LAPIC >> 12 || at >> 12 == IOAPIC >> 12)
			at = 0xb0000000;
		unsigned v = CATCH(asm volatile("fxsave (%0)" : : "r"(at) : "memory"));
		CHECK_EQ_IN(v, NO_TRAP, "%lx", at);
		v = CATCH(asm volatile("fxrstor (%0)" : : "r"(at) : "memory"));
		CHECK(v == NO_TRAP || v == GP); /* reserved bits of MXCSR */
		v = CATCH(asm volatile("lock cmpxchg16b (%0)"
				       :
				       : "r"(at), "a"(0), "d"(0), "b"(0), "c"(0)
				       : "memory", "cc"));
		CHECK_EQ_IN(v, NO_TRAP, "%lx", at);
		asm volatile("fxrstor %0" : : "m"(keep));
	}
	still_there();
}

/* ---- ports ---- */

/* What would end the machine, as it should, is left out byte by byte. */
static u8 tame(u16 port, u8 b)
{
	switch (port) {
	case 0x64: /* the keyboard controller's reset line */
		return b >= 0xf0 || b == 0xd1 ? 0xaa : b;
	case 0x92:
		return b & ~1;
	case 0x605: /* SLP_EN */
		return b & ~0x20;
	case 0x3fc: /* the UART talks to itself meanwhile */
		return b | 0x10;
	case 0xcf9:
		return b & ~4;
	default:
		return b;
	}
}
static u32 tame_all(u16 port, u32 v, unsigned len)
{
	u8 *b = (u8 *)&v;
	if (port == 0xcf8 && len == 4)
		return (v & 0xff) | 0x80000000 | (v >> 8 & 0xf8) << 8 | (v & 0x700);
	for (unsigned i = 0; i < len; i++)
		b[i] = tame(port + i, b[i]);
	return v;
}
static bool forbidden(u16 port, unsigned len)
{
	return port + len > 0xf4 && port < 0xf8; /* debug exit */
}

static const u16 busy[] = {0x20,  0xa0,  0x40,  0x43,  0x60,  0x64,  0x61,  0x70,  0x71,  0x80,   0x92,   0x3f8,
			   0x3fb, 0x3fc, 0x4d0, 0x600, 0x604, 0x608, 0xcf8, 0xcfc, 0xcfe, 0xc000, 0xfffc, 0xffff};

static u16 some_port(void)
{
	u64 r = random64();
	switch (r & 3) {
	case 0:
		return r >> 16;
	case 1:
		return (r >> 16) % 0x1000;
	default:
		return busy[(r >> 16) % (sizeof(busy) / sizeof(busy[0]))] + (r >> 40) % 4;
	}
}

static void out(u16 port, unsigned len, u32 v)
{
	v = tame_all(port, v, len);
	if (len == 1)
		asm volatile("outb %b0, %1" : : "a"(v), "d"(port));
	else if (len == 2)
		asm volatile("outw %w0, %1" : : "a"(v), "d"(port));
	else
		asm volatile("outl %0, %1" : : "a"(v), "d"(port));
}

static void in(u16 port, unsigned len)
{
	u64 a = 0, di = (u64)buf, n = 3;
	switch (len | (random64() & 8)) {
	case 1:
		asm volatile("inb %1, %b0" : "+a"(a) : "d"(port));
		break;
	case 2:
		asm volatile("inw %1, %w0" : "+a"(a) : "d"(port));
		break;
	case 4:
		asm volatile("inl %1, %k0" : "+a"(a) : "d"(port));
		break;
	case 9:
		asm volatile("rep insb" : "+D"(di), "+c"(n) : "d"(port) : "memory");
		break;
	case 10:
		asm volatile("rep insw" : "+D"(di), "+c"(n) : "d"(port) : "memory");
		break;
	default:
		asm volatile("rep insl" : "+D"(di), "+c"(n) : "d"(port) : "memory");
	}
}

TEST(ports)
{
	if (have_option("engine=qemu"))
		skip("QEMU aborts when its UART is accessed in words");
	start();
	outb(0x3fc, 0x13);
	for (unsigned i = 0; i < ROUNDS; i++) {
		u16 port = some_port();
		unsigned len = 1u << random64() % 3;
		if (forbidden(port, len))
			continue;
		if (random64() & 1)
			in(port, len);
		else if (port < 0xcf8 || port > 0xcff || (inl(0xcf8) >> 11 & 31) != panic_dev)
			out(port, len, some_value());
	}
	still_there();
}

/* Every port once, in each width. */
TEST(every_port)
{
	if (have_option("engine=qemu"))
		skip("QEMU aborts when its UART is accessed in words");
	start();
	outb(0x3fc, 0x13);
	outl(0xcf8, 0);
	for (u32 port = 0; port < 0x10000; port++) {
		unsigned len = 1u << port % 3;
		if (port >= 0x1000 && port < 0xc000 && port % 16)
			continue;
		in(port, len);
		if (!forbidden(port, len) && (port < 0xcf0 || port > 0xcff))
			out(port, len, some_value());
	}
	still_there();
}
/* run: timeout=60 doppel=--disk:{disk},snapshot=on:--virtio-console:file={console}:--net:user */
