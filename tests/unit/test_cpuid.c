/* The CPU model agrees with itself, and claims nothing that the host or we don't carry out. */
#include "x86_test.h"

#include <cpuid.h>

enum { A, B, C, D };

static void ask(struct x86_test *t, uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
	x86_cpuid(&t->cpu, leaf, subleaf, r);
}

static struct x86_test *with_cpus(unsigned cpus)
{
	struct x86_test *t = t_long();

	x86_cpuid_init(&t->model, cpus, 2596000000);
	return t;
}

static unsigned host(uint32_t leaf, uint32_t subleaf, unsigned reg)
{
	uint32_t r[4] = {0};

	__get_cpuid_count(leaf, subleaf, &r[A], &r[B], &r[C], &r[D]);
	return r[reg];
}

/* A host of the least that will do, but for one bit. */
static struct {
	uint32_t leaf, max_extended;
	unsigned reg, bit;
} spoilt;

static void spoilt_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t r[4])
{
	memset(r, 0, 16);
	if (leaf == 0 || leaf == 0x80000000)
		r[A] = leaf ? spoilt.max_extended : 0xd;
	else if (leaf == 1)
		r[C] = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 26 | 1 << 27;
	else if (leaf == 0x80000001)
		r[C] = 1;
	if (leaf == spoilt.leaf)
		r[spoilt.reg] &= ~(1u << spoilt.bit);
}

TEST(a_host_that_lacks_something_is_named)
{
	static const struct {
		uint32_t leaf;
		unsigned bit;
		const char *name;
	} lacking[] = {
		{1, 0, "SSE3"},
		{1, 9, "SSSE3"},
		{1, 13, "CMPXCHG16B"},
		{1, 19, "SSE4.1"},
		{1, 20, "SSE4.2"},
		{1, 23, "POPCNT"},
		{1, 26, "XSAVE"},
		{1, 27, "XSAVE turned on by the system"},
		{0x80000001, 0, "LAHF in 64-bit mode"},
	};

	CHECK(!x86_host_lacks(NULL)); /* or nothing here would run */
	spoilt.leaf = UINT32_MAX;
	spoilt.max_extended = 0x80000008;
	CHECK(!x86_host_lacks(spoilt_cpuid));
	for (unsigned i = 0; i < ARRAY_LEN(lacking); i++) {
		spoilt.leaf = lacking[i].leaf;
		spoilt.reg = C;
		spoilt.bit = lacking[i].bit;
		CHECK_STR(x86_host_lacks(spoilt_cpuid), lacking[i].name);
	}
	spoilt.leaf = UINT32_MAX;
	spoilt.max_extended = 0; /* an ancient one */
	CHECK_STR(x86_host_lacks(spoilt_cpuid), "LAHF in 64-bit mode");
}

TEST(vendor_and_family_are_the_hosts)
{
	struct x86_test *t = with_cpus(1);
	uint32_t r[4];

	ask(t, 0, 0, r);
	CHECK_EQ(r[B], host(0, 0, B));
	CHECK_EQ(r[C], host(0, 0, C));
	CHECK_EQ(r[D], host(0, 0, D));
	CHECK_EQ(t->model.amd, r[B] == 0x68747541 || r[B] == 0x6f677948);
	ask(t, 1, 0, r);
	CHECK_EQ(r[A], host(1, 0, A));
	if (t->model.amd) { /* which say it twice (APM Vol. 3 E.4.2) */
		ask(t, 0x80000001, 0, r);
		CHECK_EQ(r[A], host(1, 0, A));
	}
	t_free(t);
}

/* x86-64-v2 at least (the psABI's list); v3 where the host has it. */
TEST(levels)
{
	struct x86_test *t = with_cpus(1);
	const uint32_t v2 = BIT(0) | BIT(9) | BIT(13) | BIT(19) | BIT(20) | BIT(23);
	const uint32_t v3 = BIT(12) | BIT(22) | BIT(26) | BIT(28) | BIT(29), v3_7 = BIT(3) | BIT(5) | BIT(8);
	bool host_v3 = (host(1, 0, C) & v3) == v3 && (host(7, 0, B) & v3_7) == v3_7;
	uint32_t r[4];

	ask(t, 1, 0, r);
	CHECK_EQ(r[C] & v2, v2 & host(1, 0, C));
	CHECK_EQ(r[D] & (BIT(0) | BIT(8) | BIT(15) | BIT(23) | BIT(24) | BIT(25) | BIT(26)),
		 BIT(0) | BIT(8) | BIT(15) | BIT(23) | BIT(24) | BIT(25) | BIT(26));
	if (host_v3)
		CHECK_EQ(r[C] & v3, v3);
	ask(t, 7, 0, r);
	if (host_v3)
		CHECK_EQ(r[B] & v3_7, v3_7);
	ask(t, 0x80000001, 0, r);
	CHECK_EQ(r[C] & BIT(0), host(0x80000001, 0, C) & BIT(0));
	CHECK(r[D] & BIT(29));
	t_free(t);
}

/* What Linux asks for instead of a loop at each system call, on Intel's processors. */
TEST(branch_history)
{
	struct x86_test *t = with_cpus(1);
	uint32_t r[4];

	ask(t, 7, 0, r);
	CHECK_EQ(r[A], t->model.amd ? 0 : 2);
	ask(t, 7, 2, r);
	CHECK_EQ(r[D], t->model.amd ? 0 : BIT(4));
	CHECK_EQ(r[A] | r[B] | r[C], 0);
	t_free(t);
}

/* What must never be claimed: VMX, SVM, MONITOR, TSX, AVX-512, PKU, CET, SMX, MPX, LA57, AMX, performance counters,
 * SGX. */
TEST(never_claimed)
{
	struct x86_test *t = with_cpus(2);
	uint32_t r[4];

	ask(t, 1, 0, r);
	CHECK_EQ(r[C] & (BIT(3) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(15) | BIT(18)), 0);
	ask(t, 7, 0, r);
	CHECK_EQ(r[B] & (BIT(2) | BIT(4) | BIT(11) | BIT(12) | BIT(14) | BIT(16) | BIT(17) | BIT(21) | BIT(25) |
			 BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)),
		 0);
	CHECK_EQ(r[C] & (BIT(1) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(11) | BIT(12) | BIT(14) | BIT(16) |
			 BIT(25)),
		 0);
	CHECK_EQ(r[D] & (BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)), 0);
	ask(t, 7, 1, r);
	CHECK_EQ(r[A] | r[B] | r[C] | r[D], 0);
	ask(t, 0x80000001, 0, r);
	CHECK_EQ(r[C] & (BIT(2) | BIT(6) | BIT(10) | BIT(11) | BIT(15) | BIT(16) | BIT(21) | BIT(23) | BIT(29)), 0);
	ask(t, 5, 0, r);
	CHECK_EQ(r[A] | r[B] | r[C] | r[D], 0);
	ask(t, 0xa, 0, r);
	CHECK_EQ(r[A], 0);
	t_free(t);
}

/* Each feature that is claimed by name is seen by the guest, and conversely. */
TEST(features_and_leaves_agree)
{
	static const struct {
		enum x86_feature f;
		uint32_t leaf, subleaf, reg, bit;
	} where[] = {
		{FEAT_AVX, 1, 0, C, 28},
		{FEAT_XSAVE, 1, 0, C, 26},
		{FEAT_PCID, 1, 0, C, 17},
		{FEAT_X2APIC, 1, 0, C, 21},
		{FEAT_TSC_DEADLINE, 1, 0, C, 24},
		{FEAT_AVX2, 7, 0, B, 5},
		{FEAT_SMAP, 7, 0, B, 20},
		{FEAT_SMEP, 7, 0, B, 7},
		{FEAT_FSGSBASE, 7, 0, B, 0},
		{FEAT_INVPCID, 7, 0, B, 10},
		{FEAT_UMIP, 7, 0, C, 2},
		{FEAT_RDPID, 7, 0, C, 22},
		{FEAT_GFNI, 7, 0, C, 8},
		{FEAT_FSRM, 7, 0, D, 4},
		{FEAT_XSAVES, 0xd, 1, A, 3},
		{FEAT_XSAVEC, 0xd, 1, A, 1},
		{FEAT_LZCNT, 0x80000001, 0, C, 5},
		{FEAT_PAGE1G, 0x80000001, 0, D, 26},
		{FEAT_RDTSCP, 0x80000001, 0, D, 27},
		{FEAT_CLZERO, 0x80000008, 0, B, 0},
	};
	struct x86_test *t = with_cpus(1);

	for (unsigned i = 0; i < ARRAY_LEN(where); i++) {
		uint32_t r[4];

		ask(t, where[i].leaf, where[i].subleaf, r);
		CHECK_EQ(r[where[i].reg] >> where[i].bit & 1, x86_has(&t->model, where[i].f));
	}
	t_free(t);
}

TEST(state_of_the_processor_shows)
{
	struct x86_test *t = with_cpus(1);
	uint32_t r[4];

	t->cpu.id = 5;
	ask(t, 1, 0, r);
	CHECK_EQ(r[B] >> 24, 5);
	CHECK(!(r[C] & BIT(27)));
	CHECK(r[D] & BIT(9));
	t->cpu.cr4 |= CR4_OSXSAVE;
	t->cpu.apic_base &= ~BIT(11);
	ask(t, 1, 0, r);
	CHECK(r[C] & BIT(27));
	CHECK(!(r[D] & BIT(9)));
	t_free(t);
}

/* The area's sizes, and that they add up (SDM Vol. 1 13.2). */
TEST(xsave_area)
{
	struct x86_test *t = with_cpus(1);
	uint32_t r[4], avx[4];

	if (!x86_has(&t->model, FEAT_AVX)) {
		t_free(t);
		return;
	}
	t->cpu.xcr0 = XCR0_X87;
	ask(t, 0xd, 0, r);
	CHECK_EQ(r[A], 7);
	CHECK_EQ(r[D], 0);
	CHECK_EQ(r[B], 576);
	CHECK_EQ(r[C], X86_XSAVE_SIZE);
	t->cpu.xcr0 = 7;
	ask(t, 0xd, 0, r);
	CHECK_EQ(r[B], X86_XSAVE_SIZE);
	ask(t, 0xd, 2, avx);
	CHECK_EQ(avx[A] + avx[B], X86_XSAVE_SIZE);
	CHECK_EQ(avx[C], 0);
	ask(t, 0xd, 1, r);
	CHECK_EQ(r[B], X86_XSAVE_SIZE);
	CHECK_EQ(r[C] | r[D], 0); /* XSS: nothing */
	for (unsigned i = 3; i < 64; i++) {
		ask(t, 0xd, i, r);
		CHECK_EQ(r[A] | r[B] | r[C] | r[D], 0);
	}
	t_free(t);
}

static unsigned shift_for(unsigned cpus)
{
	unsigned s = 0;

	while ((1u << s) < cpus)
		s++;
	return s;
}

/* One thread a core, all cores in one package: as every leaf that says so tells it. */
TEST(topology)
{
	for (unsigned cpus = 1; cpus <= 255; cpus += cpus < 9 ? 1 : 41) {
		struct x86_test *t = with_cpus(cpus);
		uint32_t r[4];

		t->cpu.id = cpus - 1;
		ask(t, 1, 0, r);
		CHECK_EQ(r[D] >> 28 & 1, cpus > 1);
		if (cpus > 1)
			CHECK((r[B] >> 16 & 0xff) >= cpus);
		ask(t, 0xb, 0, r);
		CHECK_EQ(r[A], 0);
		CHECK_EQ(r[B], 1);
		CHECK_EQ(r[C], 0x100);
		CHECK_EQ(r[D], cpus - 1);
		ask(t, 0xb, 1, r);
		CHECK_EQ(r[A], shift_for(cpus));
		CHECK_EQ(r[B], cpus);
		CHECK_EQ(r[C], 0x201);
		CHECK_EQ(r[D], cpus - 1);
		ask(t, 0xb, 2, r);
		CHECK_EQ(r[A] | r[B], 0);
		CHECK_EQ(r[C], 2);
		CHECK_EQ(r[D], cpus - 1);
		ask(t, 0x80000008, 0, r);
		if (t->model.amd) {
			CHECK_EQ(r[C] & 0xff, cpus - 1);
			CHECK_EQ(r[C] >> 12 & 0xf, shift_for(cpus));
			ask(t, 0x8000001e, 0, r);
			CHECK_EQ(r[A], cpus - 1);
			CHECK_EQ(r[B], (cpus - 1) & 0xff);
		}
		t_free(t);
	}
}

TEST(caches)
{
	struct x86_test *t = with_cpus(4);
	uint32_t leaf = t->model.amd ? 0x8000001d : 4, r[4];

	for (unsigned i = 0; i < 4; i++) {
		unsigned level;

		ask(t, leaf, i, r);
		level = r[A] >> 5 & 7;
		if (!(r[A] & 0x1f))
			break;
		CHECK_EQ(r[A] >> 14 & 0xfff, level >= 3 ? 3 : 0);
		CHECK_EQ(r[B], host(leaf, i, B));
	}
	t_free(t);
}

TEST(addresses_and_time)
{
	struct x86_test *t = with_cpus(1);
	uint32_t r[4];

	ask(t, 0x80000008, 0, r);
	CHECK_EQ(r[A] & 0xff, t->model.phys_bits);
	CHECK_EQ(r[A] >> 8 & 0xff, 48);
	CHECK(t->model.phys_bits >= 40 && t->model.phys_bits <= 52);
	ask(t, 0x80000007, 0, r);
	CHECK_EQ(r[D], BIT(8));
	ask(t, 6, 0, r);
	CHECK_EQ(r[A], BIT(2));
	t_free(t);
}

TEST(hypervisor)
{
	struct x86_test *t = with_cpus(1);
	char name[13] = "";
	uint32_t r[4];

	ask(t, 1, 0, r);
	CHECK(!(r[C] & BIT(31)));
	x86_cpuid_offer(&t->model, 0);
	ask(t, 1, 0, r);
	CHECK(!(r[C] & BIT(31)));
	ask(t, 0x40000000, 0, r);
	memcpy(name, &r[B], 12);
	CHECK(strcmp(name, "KVMKVMKVM") != 0);
	x86_cpuid_offer(&t->model, BIT(PV_CLOCK) | BIT(PV_EOI));
	ask(t, 1, 0, r);
	CHECK(r[C] & BIT(31));
	ask(t, 0x40000000, 0, r);
	memcpy(name, &r[B], 12);
	CHECK_STR(name, "KVMKVMKVM");
	CHECK_EQ(r[A], 0x40000010);
	ask(t, 0x40000001, 0, r);
	CHECK_EQ(r[A], 1 | 1 << 3 | 1 << 6 | 1 << 24);
	CHECK_EQ(r[D], 0);
	ask(t, 0x40000010, 0, r);
	CHECK_EQ(r[A], 2596000);
	x86_cpuid_tell_tsc(&t->model, 3000000000);
	ask(t, 0x40000010, 0, r);
	CHECK_EQ(r[A], 3000000);
	CHECK_EQ(r[B], 1000000);
	t_free(t);
}

/* Beyond the last leaf: zeroes on AMD, the last basic leaf on Intel. */
TEST(beyond_the_end)
{
	struct x86_test *t = with_cpus(1);
	static const uint32_t beyond[] = {0x7f, 0x80000100, 0x40000100, 0xffffffff, 0x12345678};
	uint32_t r[4], last[4];

	t->model.amd = true;
	for (unsigned i = 0; i < ARRAY_LEN(beyond); i++) {
		ask(t, beyond[i], 0, r);
		CHECK_EQ(r[A] | r[B] | r[C] | r[D], 0);
	}
	t->model.amd = false;
	ask(t, 0, 0, r);
	ask(t, r[A], 0, last);
	for (unsigned i = 0; i < ARRAY_LEN(beyond); i++) {
		ask(t, beyond[i], 0, r);
		CHECK_MEM(r, last, sizeof(r));
	}
	t_free(t);
}

TEST(the_instruction)
{
	struct x86_test *t = with_cpus(1);

	t->cpu.gpr[RAX] = 0xffffffff00000000;
	t->cpu.gpr[RCX] = ~0ull;
	t->cpu.gpr[RBX] = ~0ull;
	CHECK_EQ(RUN(t, "\x0f\xa2"), V_DONE);
	CHECK_EQ(t->cpu.gpr[RBX], host(0, 0, B));
	CHECK_EQ(t->cpu.gpr[RAX], t->model.leaf[0].eax);
	t_free(t);
}

UNIT_MAIN()
