/* Model-specific registers that may not exist, read and written with anything: each is taken or raises #GP(0), and a
 * refused write changes nothing. */
#include "guest.h"

const char payload[] = "msr";

#define SCRATCH_PAGES 8
#define RAM (128ull << 20)

static u64 scratch;
static unsigned taken, refused;

/* Where registers are, and are not. */
static const struct {
	u32 first, last;
} ranges[] = {
	{0, 0x7ff},
	{0x900, 0xfff},
	{0x1900, 0x19ff},
	{0x40000000, 0x400001ff}, /* Hyper-V's */
	{0x4b564cf0, 0x4b564d1f}, /* KVM's */
	{0x7ffffff0, 0x80000010},
	{0xc0000000, 0xc00001ff},
	{0xc0010000, 0xc00102ff},
	{0xc0011000, 0xc001103f},
	{0xfffffff0, 0xffffffff},
};

/* Some of KVM's are addresses that are then written to. */
static bool is_kvm(u32 n)
{
	return n == 0x11 || n == 0x12 || n >> 8 == 0x4b564d;
}
/* What moves by itself, and what would pull the floor from under the payload. */
static bool is_clock(u32 n)
{
	return n == 0x10 || n == 0x6e0 || (n >= 0x4b564d00 && n <= 0x4b564d07);
}
static bool is_floor(u32 n)
{
	return n == MSR_EFER || n == MSR_APIC_BASE;
}

static u64 some_value(u32 n)
{
	u64 r = random64(), v;
	switch (r & 7) {
	case 0:
		v = 1ull << (r >> 58);
		break;
	case 1:
		v = ~0ull << (r >> 58);
		break;
	case 2:
		v = scratch + (r >> 8) % (SCRATCH_PAGES * PAGE);
		break;
	case 3:
		v = (scratch + (r >> 8) % (SCRATCH_PAGES * PAGE)) | 1;
		break;
	case 4:
		v = r >> 48;
		break;
	default:
		v = random64();
	}
	if (is_kvm(n) && (v & PTE_ADDR) < RAM)
		v = scratch | (v & (SCRATCH_PAGES * PAGE - 1));
	return v;
}

static bool read_msr(u32 n, u64 *value)
{
	volatile u64 v = 0;
	unsigned trap = CATCH(v = rdmsr(n));
	*value = v;
	if (trap == NO_TRAP)
		return true;
	CHECK_EQ_IN(trap, GP, "msr %x", n);
	CHECK_EQ_IN(last_trap()->f.error, 0, "msr %x", n);
	return false;
}

static bool write_msr(u32 n, u64 value)
{
	unsigned trap = CATCH(wrmsr(n, value));
	if (trap == NO_TRAP)
		return true;
	CHECK_EQ_IN(trap, GP, "msr %x of %lx", n, value);
	CHECK_EQ_IN(last_trap()->f.error, 0, "msr %x of %lx", n, value);
	return false;
}

static void try(u32 n)
{
	u64 before, after, v = some_value(n);
	bool readable = read_msr(n, &before);
	if (write_msr(n, v)) {
		taken++;
		return;
	}
	refused++;
	if (!readable || is_clock(n))
		return;
	CHECK(read_msr(n, &after));
	CHECK_EQ_IN(after, before, "msr %x after %lx", n, v);
}

static void start(void)
{
	scratch = (u64)alloc_aligned(SCRATCH_PAGES * PAGE, SCRATCH_PAGES * PAGE);
	taken = refused = 0;
}

/* Registers that are left as they were found: the machine goes on with the ones it has. */
TEST(every)
{
	start();
	for (unsigned i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		for (u64 n = ranges[i].first; n <= ranges[i].last; n++) {
			u64 before;
			bool readable = read_msr(n, &before);
			for (unsigned k = 0; k < 3 && !is_floor(n); k++)
				try(n);
			if (is_kvm(n))
				write_msr(n, 0);
			else if (readable && !is_floor(n) && !is_clock(n))
				write_msr(n, before);
		}
	}
	CHECK(taken > 50);
	CHECK(refused > 5000);
}

/* Those that exist, over and over, in any order. */
TEST(known)
{
	static u32 found[512];
	unsigned count = 0;
	start();
	for (unsigned i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		for (u64 n = ranges[i].first; n <= ranges[i].last && count < 512; n++) {
			u64 v;
			if (!is_floor(n) && read_msr(n, &v))
				found[count++] = n;
		}
	}
	CHECK(count > 20);
	for (unsigned i = 0; i < 20000; i++)
		try(found[random64() % count]);
	for (unsigned i = 0; i < count; i++) {
		if (is_kvm(found[i]))
			write_msr(found[i], 0);
	}
}

/* EFER: what may not be changed in long mode is refused, and the mode stays. */
TEST(efer)
{
	start();
	for (unsigned i = 0; i < 2000; i++) {
		u64 v = some_value(MSR_EFER), got;
		write_msr(MSR_EFER, v);
		CHECK(read_msr(MSR_EFER, &got));
		CHECK_EQ_IN(got & 0x500, 0x500, "%lx", v);
		wrmsr(MSR_EFER, EFER_DEFAULT);
	}
}

/* The x2APIC's registers; only INIT, which would stop this processor, is not asked for. */
static bool on_nmi(struct frame *f)
{
	return true;
}
TEST(x2apic)
{
	if (!HAS_X2APIC)
		skip("no x2APIC");
	start();
	u64 v;
	for (u32 n = 0x800; n <= 0x8ff; n++)
		CHECK_EQ(CATCH(rdmsr(n)), GP); /* not in xAPIC mode */
	set_handler(NMI, on_nmi);
	apic_set_x2(true);
	for (unsigned i = 0; i < 20000; i++) {
		u32 n = 0x800 + random64() % 0x100;
		u64 value = some_value(n);
		if (n == 0x830 && (value & 0x700) == 0x500)
			value ^= 0x100;
		write_msr(n, value);
		read_msr(n, &v);
	}
	apic_set_x2(false);
	apic_enable();
	apic_write(APIC_TIMER_INIT, 0);
}

/* The APIC's base: any value is refused or taken, and afterwards it can be had back. */
TEST(apic_base)
{
	start();
	u64 before = rdmsr(MSR_APIC_BASE), v;
	for (unsigned i = 0; i < 2000; i++) {
		u64 value = i & 1 ? some_value(MSR_APIC_BASE) : before ^ (random64() & 0xd00);
		if (value < RAM)
			value |= 0xf0000000; /* over this payload's memory it would hide it */
		if (write_msr(MSR_APIC_BASE, value)) {
			CHECK(read_msr(MSR_APIC_BASE, &v));
			wrmsr(MSR_APIC_BASE, v & ~0xc00ull); /* only by way of disabled */
			wrmsr(MSR_APIC_BASE, before);
		}
		CHECK_EQ_IN(rdmsr(MSR_APIC_BASE), before, "%lx", value);
	}
	apic_enable();
}

/* The bases of FS and GS by instructions of their own: whole registers, flags as they were, bad values refused. */
#define WRITE_BASES(fs, gs) asm volatile("mov %1, %%r10; wrfsbase %0; wrgsbase %%r10" : : "r"(fs), "r"(gs) : "r10")
static void check_bases(u64 fs, u64 gs)
{
	u64 a, b, c, d, flags;
	WRITE_BASES(fs, gs);
	CHECK_EQ(rdmsr(MSR_FS_BASE), fs);
	CHECK_EQ(rdmsr(MSR_GS_BASE), gs);
	asm volatile("mov $-1, %%r9; mov %%r9, %%r11; mov %%r9, %2; mov %%r9, %3; cmp $0, %%r9; stc\n"
		     "rdfsbase %%r9; rdgsbase %%r11; rdfsbase %k2; rdgsbase %3\n"
		     "pushfq; pop %4; mov %%r9, %0; mov %%r11, %1"
		     : "=&r"(a), "=&r"(b), "=&r"(c), "=&r"(d), "=r"(flags)
		     :
		     : "r9", "r11", "cc");
	CHECK_EQ(a, fs);
	CHECK_EQ(b, gs);
	CHECK_EQ(c, (u32)fs);
	CHECK_EQ(d, gs);
	CHECK_EQ(flags & (FL_CF | FL_ZF | FL_SF), FL_CF | FL_SF);
}
TEST(bases)
{
	u64 value = 0x1122334455667788;
	if (!HAS_FSGSBASE)
		skip("no FSGSBASE");
	write_cr4(CR4_DEFAULT | CR4_FSGSBASE);
	for (unsigned i = 0; i < 47; i++)
		check_bases(1ull << i, ~0ull << i);
	check_bases(0x7fffffffffff, 0xffff800000000000);
	WRITE_BASES(0x1000ull, 0x2000ull);
	CHECK_EQ(CATCH(asm volatile("wrfsbase %0" : : "r"(0x800000000000))), GP);
	CHECK_EQ(CATCH(asm volatile("mov %0, %%r9; wrgsbase %%r9" : : "r"(0xffff7fffffffffff) : "r9")), GP);
	check_bases(rdmsr(MSR_FS_BASE), rdmsr(MSR_GS_BASE));
	CHECK_EQ(rdmsr(MSR_FS_BASE), 0x1000);
	asm volatile("wrfsbase %k0" : : "r"(value));
	CHECK_EQ(rdmsr(MSR_FS_BASE), (u32)value);
	write_cr4(CR4_DEFAULT);
	CHECK_EQ(CATCH(asm volatile("rdfsbase %0" : "=r"(value))), UD);
	CHECK_EQ(CATCH(asm volatile("wrgsbase %0" : : "r"(0ull))), UD);
	CHECK_EQ(rdmsr(MSR_GS_BASE), 0x2000);
	wrmsr(MSR_FS_BASE, 0);
	wrmsr(MSR_GS_BASE, 0);
}
/* run: timeout=60 */
