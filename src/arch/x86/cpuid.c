/*
 * The CPU model: the host's vendor, family and caches, and of its features those that are carried out here. Features
 * that are carried out in software (paging, segmentation, the APIC) are claimed on every host.
 */
#include "arch/x86/internal.h"

#include <stdatomic.h>

enum { EAX, EBX, ECX, EDX };

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	__asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
}

/* Where CPUID shows a feature, and what claiming it takes. */
struct feature {
	uint32_t leaf, subleaf;
	uint8_t feature;
	bool soft; /* carried out in software: the host need not have it */
	uint8_t reg, bit;
};

/* clang-format off */
#define HARD(f, leaf, sub, reg, bit) {leaf, sub, FEAT_##f, false, reg, bit}
#define SOFT(f, leaf, sub, reg, bit) {leaf, sub, FEAT_##f, true, reg, bit}
/* clang-format on */

static const struct feature features[] = {
	HARD(SSE3, 1, 0, ECX, 0),
	HARD(PCLMUL, 1, 0, ECX, 1),
	HARD(SSSE3, 1, 0, ECX, 9),
	HARD(FMA, 1, 0, ECX, 12),
	HARD(CX16, 1, 0, ECX, 13),
	SOFT(PCID, 1, 0, ECX, 17),
	HARD(SSE41, 1, 0, ECX, 19),
	HARD(SSE42, 1, 0, ECX, 20),
	SOFT(X2APIC, 1, 0, ECX, 21),
	HARD(MOVBE, 1, 0, ECX, 22),
	HARD(POPCNT, 1, 0, ECX, 23),
	SOFT(TSC_DEADLINE, 1, 0, ECX, 24),
	HARD(AES, 1, 0, ECX, 25),
	HARD(XSAVE, 1, 0, ECX, 26),
	HARD(AVX, 1, 0, ECX, 28),
	HARD(F16C, 1, 0, ECX, 29),
	HARD(RDRAND, 1, 0, ECX, 30),
	SOFT(FSGSBASE, 7, 0, EBX, 0),
	HARD(BMI1, 7, 0, EBX, 3),
	HARD(AVX2, 7, 0, EBX, 5),
	SOFT(SMEP, 7, 0, EBX, 7),
	HARD(BMI2, 7, 0, EBX, 8),
	HARD(ERMS, 7, 0, EBX, 9),
	SOFT(INVPCID, 7, 0, EBX, 10),
	HARD(RDSEED, 7, 0, EBX, 18),
	HARD(ADX, 7, 0, EBX, 19),
	SOFT(SMAP, 7, 0, EBX, 20),
	HARD(CLFLUSHOPT, 7, 0, EBX, 23),
	HARD(CLWB, 7, 0, EBX, 24),
	HARD(SHA, 7, 0, EBX, 29),
	SOFT(UMIP, 7, 0, ECX, 2),
	HARD(GFNI, 7, 0, ECX, 8),
	HARD(VAES, 7, 0, ECX, 9),
	HARD(VPCLMUL, 7, 0, ECX, 10),
	SOFT(RDPID, 7, 0, ECX, 22),
	HARD(FSRM, 7, 0, EDX, 4),
	HARD(XSAVEOPT, 0xd, 1, EAX, 0),
	HARD(XSAVEC, 0xd, 1, EAX, 1),
	HARD(XGETBV1, 0xd, 1, EAX, 2),
	HARD(XSAVES, 0xd, 1, EAX, 3),
	HARD(LAHF64, 0x80000001, 0, ECX, 0),
	HARD(LZCNT, 0x80000001, 0, ECX, 5),
	HARD(PREFETCHW, 0x80000001, 0, ECX, 8),
	SOFT(PAGE1G, 0x80000001, 0, EDX, 26),
	SOFT(RDTSCP, 0x80000001, 0, EDX, 27),
	HARD(CLZERO, 0x80000008, 0, EBX, 0),
};

/* What vector features stand or fall with. */
#define NEEDS_XSAVE (BIT(FEAT_AVX) | BIT(FEAT_XSAVEOPT) | BIT(FEAT_XSAVEC) | BIT(FEAT_XGETBV1) | BIT(FEAT_XSAVES))
#define NEEDS_AVX (BIT(FEAT_AVX2) | BIT(FEAT_FMA) | BIT(FEAT_F16C) | BIT(FEAT_VAES) | BIT(FEAT_VPCLMUL))

/* What a leaf has in `reg`, which is not 0, asked for once: CPUID takes 6 us on a host that is virtual itself. */
static uint32_t ask_once(_Atomic uint32_t *known, uint32_t leaf, unsigned reg)
{
	uint32_t value = atomic_load_explicit(known, memory_order_relaxed), r[4];

	if (value)
		return value;
	host_cpuid(leaf, 0, r);
	atomic_store_explicit(known, r[reg], memory_order_relaxed);
	return r[reg];
}

/* There is such a leaf: the first of each of the two ranges names the last. */
static bool host_max_leaf(uint32_t leaf)
{
	static _Atomic uint32_t known[2];
	uint32_t last = ask_once(&known[leaf >> 31], leaf & 0x80000000, EAX);

	return last >= leaf && (last ^ leaf) < 0x80000000;
}

static bool host_bit(uint32_t leaf, uint32_t subleaf, unsigned reg, unsigned bit)
{
	uint32_t r[4];

	if (!host_max_leaf(leaf))
		return false;
	host_cpuid(leaf, subleaf, r);
	return r[reg] >> bit & 1;
}

uint32_t x86_host_xcr0(void)
{
	uint32_t lo, hi;

	if (!host_bit(1, 0, ECX, 27)) /* OSXSAVE */
		return 0;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return lo;
}

/* The system has turned AVX on for us. */
static bool host_avx_enabled(void)
{
	return (x86_host_xcr0() & 7) == 7;
}

bool x86_host_is_amd(void)
{
	static _Atomic uint32_t known;
	uint32_t vendor = ask_once(&known, 0, EBX);

	return vendor == 0x68747541 || vendor == 0x6f677948; /* "Auth"enticAMD, "Hygo"nGenuine */
}

bool x86_host_has_evex(void)
{
	static _Atomic uint32_t known;

	return host_max_leaf(7) && ask_once(&known, 7, EBX) >> 16 & 1; /* AVX512F */
}

/* AMD's family 1Ah: RDSEED of 16 and 32 bits takes zeroes for random, but for new microcode (AMD-SB-7055). */
static bool host_rdseed_broken(void)
{
	uint32_t r[4];

	host_cpuid(1, 0, r);
	return x86_host_is_amd() && bits(r[EAX], 11, 8) + bits(r[EAX], 27, 20) == 0x1a;
}

/* Those of the table that the host has. Each leaf is asked for once: a host that is virtual itself takes long. */
static uint64_t host_features(void)
{
	uint32_t leaf = UINT32_MAX, subleaf = 0, r[4] = {0};
	uint64_t set = 0;

	for (unsigned i = 0; i < ARRAY_LEN(features); i++) {
		const struct feature *f = &features[i];

		if (!f->soft && (f->leaf != leaf || f->subleaf != subleaf)) {
			leaf = f->leaf;
			subleaf = f->subleaf;
			r[EAX] = r[EBX] = r[ECX] = r[EDX] = 0;
			if (host_max_leaf(leaf))
				host_cpuid(leaf, subleaf, r);
		}
		if (f->soft || r[f->reg] >> f->bit & 1)
			set |= BIT(f->feature);
	}
	return set;
}

static uint64_t choose_features(void)
{
	uint64_t set = host_features();

	if (host_rdseed_broken())
		set &= ~BIT(FEAT_RDSEED);
	if (!host_avx_enabled())
		set &= ~(BIT(FEAT_AVX) | BIT(FEAT_XSAVE));
	if (!(set & BIT(FEAT_XSAVE)))
		set &= ~NEEDS_XSAVE;
	if (!(set & BIT(FEAT_AVX)))
		set &= ~NEEDS_AVX;
	return set;
}

static uint32_t *add_leaf(struct x86_cpuid_model *m, uint32_t leaf, uint32_t subleaf)
{
	struct x86_cpuid_leaf *l = &m->leaf[m->count];

	ENSURE(m->count < X86_CPUID_MAX);
	m->count++;
	*l = (struct x86_cpuid_leaf){.leaf = leaf, .subleaf = subleaf};
	return &l->eax;
}

static bool has_subleaves(uint32_t leaf)
{
	return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0x8000001d;
}

static const struct x86_cpuid_leaf *find(const struct x86_cpuid_model *m, uint32_t leaf, uint32_t subleaf)
{
	if (!has_subleaves(leaf))
		subleaf = 0;
	for (unsigned i = 0; i < m->count; i++)
		if (m->leaf[i].leaf == leaf && m->leaf[i].subleaf == subleaf)
			return &m->leaf[i];
	return NULL;
}

/* The same, with the host's values. */
static uint32_t *copy_leaf(struct x86_cpuid_model *m, uint32_t leaf, uint32_t subleaf)
{
	uint32_t *r = add_leaf(m, leaf, subleaf);

	if (host_max_leaf(leaf))
		host_cpuid(leaf, subleaf, r);
	return r;
}

static void set_features(const struct x86_cpuid_model *m, uint32_t *r, uint32_t leaf, uint32_t subleaf)
{
	for (unsigned i = 0; i < ARRAY_LEN(features); i++) {
		const struct feature *f = &features[i];

		if (f->leaf == leaf && f->subleaf == subleaf && m->features & BIT(f->feature))
			r[f->reg] |= 1u << f->bit;
	}
}

static unsigned log2_up(unsigned n)
{
	unsigned shift = 0;

	while (1u << shift < n)
		shift++;
	return shift;
}

/*
 * FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, MTRR, PGE, MCA (of no banks: without MCA kernels complain), CMOV, PAT, PSE36,
 * CLFSH, MMX, FXSR, SSE, SSE2. No VME.
 */
#define LEAF1_EDX 0x078bf1fd
#define LEAF1_SEP BIT(11)
#define LEAF1_HTT BIT(28)
#define LEAF1_HYPERVISOR BIT(31)

static void basic_leaves(struct x86_cpuid_model *m)
{
	uint32_t host[4], *r;

	r = copy_leaf(m, 0, 0);
	r[EAX] = m->amd ? 0xd : 0x16;
	host_cpuid(1, 0, host);
	r = add_leaf(m, 1, 0);
	r[EAX] = host[EAX];
	r[EBX] = 8 << 8; /* CLFLUSH: 64 bytes */
	r[EDX] = LEAF1_EDX | LEAF1_SEP;
	if (m->cpus > 1) {
		r[EBX] |= MIN(1u << log2_up(m->cpus), 255u) << 16;
		r[EDX] |= LEAF1_HTT;
	}
	set_features(m, r, 1, 0);
	if (!m->amd)
		copy_leaf(m, 2, 0);
	add_leaf(m, 6, 0)[EAX] = BIT(2); /* the APIC's timer always runs */
	r = add_leaf(m, 0xb, 0);         /* threads: one for each core */
	r[EBX] = 1;
	r[ECX] = 0x100;
	r = add_leaf(m, 0xb, 1); /* cores */
	r[EAX] = log2_up(m->cpus);
	r[EBX] = m->cpus;
	r[ECX] = 0x201;
}

#define LEAF7_TSC_ADJUST BIT(1)
#define LEAF7_HOST_EBX (BIT(6) | BIT(13)) /* how x87 keeps its last instruction: the host does it */
#define LEAF7_EDX_INTEL (BIT(26) | BIT(27) | BIT(29) | BIT(31)) /* SPEC_CTRL, STIBP, ARCH_CAPABILITIES, SSBD */

/*
 * BHI_DIS_S in SPEC_CTRL keeps branches of CPL 3 from predicting those of CPL 0. Here they do not anyway, as
 * X86_ARCH_CAPABILITIES says, but Linux takes no processor's word for that: without it, each system call runs a loop of
 * branches.
 */
#define LEAF7_2_BHI_CTRL BIT(4)

static void leaf_7(struct x86_cpuid_model *m)
{
	uint32_t host[4] = {0}, *r = add_leaf(m, 7, 0);

	if (host_max_leaf(7))
		host_cpuid(7, 0, host);
	r[EBX] = LEAF7_TSC_ADJUST | (host[EBX] & LEAF7_HOST_EBX);
	if (!m->amd) {
		r[EAX] = 2; /* subleaves */
		r[EDX] = LEAF7_EDX_INTEL;
		add_leaf(m, 7, 2)[EDX] = LEAF7_2_BHI_CTRL;
	}
	set_features(m, r, 7, 0);
}

/* State components: x87, SSE, AVX. EBX of subleaves 0 and 1 depends on XCR0: x86_cpuid fills it in. */
static void leaf_d(struct x86_cpuid_model *m)
{
	bool avx = m->features & BIT(FEAT_AVX);
	uint32_t *r;

	if (!(m->features & BIT(FEAT_XSAVE)))
		return;
	r = add_leaf(m, 0xd, 0);
	r[EAX] = XCR0_X87 | XCR0_SSE | (avx ? XCR0_AVX : 0);
	r[ECX] = avx ? X86_XSAVE_SIZE : 576;
	set_features(m, add_leaf(m, 0xd, 1), 0xd, 1);
	if (avx) {
		r = add_leaf(m, 0xd, 2);
		r[EAX] = 256;
		r[EBX] = 576;
	}
}

static void intel_frequency(struct x86_cpuid_model *m)
{
	add_leaf(m, 0x16, 0)[ECX] = 100;
}

/* The host's caches, shared as they would be by our cores: the first two levels by one, the last by all. */
static void cache_leaves(struct x86_cpuid_model *m, uint32_t leaf)
{
	for (unsigned i = 0; i < 4 && host_max_leaf(leaf); i++) {
		uint32_t *r = copy_leaf(m, leaf, i);
		unsigned sharing = bits(r[EAX], 7, 5) >= 3 ? m->cpus - 1 : 0;

		if (!(r[EAX] & 0x1f)) {
			m->count--;
			return;
		}
		r[EAX] &= 0x3fff;
		r[EAX] |= sharing << 14;
		if (!m->amd)
			r[EAX] |= MIN((1u << log2_up(m->cpus)) - 1, 63u) << 26;
	}
}

#define EXT1_SYSCALL BIT(11)
#define EXT1_EDX (EXT1_SYSCALL | BIT(20) | BIT(29)) /* SYSCALL, NX, long mode */
#define EXT1_EDX_AMD 0x0183f3ff                     /* AMD repeats these of leaf 1 */
#define EXT1_MMXEXT BIT(22)
#define EXT1_CMP_LEGACY BIT(1)
#define EXT1_TOPOEXT BIT(22)

static void extended_leaves(struct x86_cpuid_model *m)
{
	uint32_t *r = copy_leaf(m, 0x80000000, 0);

	r[EAX] = m->amd ? 0x80000021 : 0x80000008;
	r = add_leaf(m, 0x80000001, 0);
	r[EDX] = EXT1_EDX;
	if (m->amd) {
		r[EAX] = find(m, 1, 0)->eax; /* family, model and stepping once more */
		r[EDX] |= (LEAF1_EDX & EXT1_EDX_AMD) | (host_bit(0x80000001, 0, EDX, 22) ? EXT1_MMXEXT : 0);
		r[ECX] = EXT1_TOPOEXT | (m->cpus > 1 ? EXT1_CMP_LEGACY : 0);
	}
	set_features(m, r, 0x80000001, 0);
	for (uint32_t leaf = 0x80000002; leaf <= 0x80000006; leaf++)
		copy_leaf(m, leaf, 0);
	add_leaf(m, 0x80000007, 0)[EDX] = BIT(8); /* the TSC is invariant */
	r = add_leaf(m, 0x80000008, 0);
	r[EAX] = m->phys_bits | 48 << 8;
	set_features(m, r, 0x80000008, 0);
}

#define EXT8_XSAVEERPTR BIT(2)
#define EXT8_BTC_NO BIT(29)
#define EXT21_LFENCE BIT(2)
#define EXT21_NULL_SEL BIT(6) /* loading a null selector clears the base */
#define EXT21_AUTOIBRS BIT(8)
#define EXT21_SRSO_NO BIT(29)
#define EXT21_TSA_NO (BIT(1) | BIT(2)) /* ECX */

/* As X86_ARCH_CAPABILITIES says for Intel: flaws between privilege levels do not meet the guest's. */
static void amd_leaves(struct x86_cpuid_model *m)
{
	uint32_t *r = &m->leaf[m->count - 1].eax; /* 0x80000008 */

	r[EBX] |= EXT8_BTC_NO | (host_bit(0x80000008, 0, EBX, 2) ? EXT8_XSAVEERPTR : 0);
	r[ECX] = (m->cpus - 1) | log2_up(m->cpus) << 12;
	copy_leaf(m, 0x80000019, 0);
	copy_leaf(m, 0x8000001a, 0);
	cache_leaves(m, 0x8000001d);
	add_leaf(m, 0x8000001e, 0); /* x86_cpuid fills in the IDs */
	r = add_leaf(m, 0x80000021, 0);
	r[EAX] = EXT21_LFENCE | EXT21_NULL_SEL | EXT21_AUTOIBRS | EXT21_SRSO_NO;
	r[ECX] = EXT21_TSA_NO;
}

/* Linux, Documentation/virt/kvm/x86/cpuid.rst: a bit, or several, for each part. */
static const uint32_t pv_features[X86_PVS] = {
	[PV_CLOCK] = BIT(0) | BIT(3) | BIT(24),
	[PV_DELAY] = BIT(1),
	[PV_STEAL] = BIT(5),
	[PV_EOI] = BIT(6),
	[PV_IPI] = BIT(11),
	[PV_TLB] = BIT(9),
	[PV_LOCK] = BIT(7),
};

/* "KVMKVMKVM", and the timing leaf that several hypervisors share: kHz of the TSC and of the APIC's timer. */
static void hypervisor_leaves(struct x86_cpuid_model *m)
{
	uint32_t *r = add_leaf(m, 0x40000000, 0);

	r[EAX] = 0x40000010;
	r[EBX] = 0x4b4d564b; /* "KVMK" */
	r[ECX] = 0x564b4d56; /* "VMKV" */
	r[EDX] = 0x4d;       /* "M" */
	r = add_leaf(m, 0x40000001, 0);
	for (unsigned i = 0; i < X86_PVS; i++)
		r[EAX] |= m->pv & BIT(i) ? pv_features[i] : 0;
	r = add_leaf(m, 0x40000010, 0);
	r[EBX] = 1000000;
}

void x86_cpuid_tell_tsc(struct x86_cpuid_model *model, uint64_t tsc_hz)
{
	model->tsc_hz = tsc_hz;
	for (unsigned i = 0; i < model->count; i++) {
		struct x86_cpuid_leaf *l = &model->leaf[i];

		if (l->leaf == 0x16)
			l->eax = l->ebx = (uint32_t)(tsc_hz / 1000000);
		else if (l->leaf == 0x40000010)
			l->eax = (uint32_t)(tsc_hz / 1000);
	}
}

/* The 64-bit PCI window ends at 768 GiB. */
#define PHYS_BITS_MIN 40

static uint8_t choose_phys_bits(void)
{
	uint32_t r[4];

	if (!host_max_leaf(0x80000008))
		return PHYS_BITS_MIN;
	host_cpuid(0x80000008, 0, r);
	return (uint8_t)MIN(MAX(r[EAX] & 0xff, PHYS_BITS_MIN), 52u);
}

void x86_cpuid_init(struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz)
{
	model->amd = x86_host_is_amd();
	model->evex = x86_host_has_evex();
	model->pv = 0;
	model->features = choose_features();
	for (unsigned i = 0; i < X86_CPUID_MAX; i++)
		model->leaf[i] = (struct x86_cpuid_leaf){0};
	model->count = 0;
	model->cpus = cpus;
	model->tsc_hz = tsc_hz;
	model->phys_bits = choose_phys_bits();
	basic_leaves(model);
	leaf_7(model);
	leaf_d(model);
	if (!model->amd) {
		cache_leaves(model, 4);
		intel_frequency(model);
	}
	extended_leaves(model);
	if (model->amd)
		amd_leaves(model);
	x86_cpuid_tell_tsc(model, tsc_hz);
}

void x86_cpuid_offer(struct x86_cpuid_model *model, uint32_t pv)
{
	model->pv = pv;
	if (!pv)
		return;
	for (unsigned i = 0; i < model->count; i++)
		if (model->leaf[i].leaf == 1)
			model->leaf[i].ecx |= LEAF1_HYPERVISOR;
	hypervisor_leaves(model);
	x86_cpuid_tell_tsc(model, model->tsc_hz);
}

static uint32_t xsave_area(uint64_t xcr0)
{
	return xcr0 & XCR0_AVX ? X86_XSAVE_SIZE : 576;
}

/* What depends on the processor asked, or on its state. */
static void adjust(const struct x86_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	switch (leaf) {
	case 1:
		out[EBX] |= cpu->id << 24;
		if (cpu->cr4 & CR4_OSXSAVE)
			out[ECX] |= BIT(27);
		if (cpu->apic_base & BIT(11))
			out[EDX] |= BIT(9);
		break;
	case 0xb:
		out[ECX] = (out[ECX] & ~0xffu) | (subleaf & 0xff);
		out[EDX] = cpu->id;
		break;
	case 0xd:
		if (subleaf <= 1 && out[EAX])
			out[EBX] = xsave_area(cpu->xcr0);
		break;
	case 0x80000001:
		if (!cpu->model->amd && !x86_code64(cpu))
			out[EDX] &= ~(uint32_t)EXT1_SYSCALL; /* SDM Vol. 2: "in 64-bit mode" */
		else if (cpu->model->amd && cpu->apic_base & BIT(11))
			out[EDX] |= BIT(9);
		break;
	case 0x8000001e:
		if (cpu->model->amd) {
			out[EAX] = cpu->id;
			out[EBX] = cpu->id & 0xff;
		}
		break;
	}
}

/* Intel answers beyond the last leaf with the last basic one (SDM Vol. 2, CPUID); AMD with zeroes. */
static uint32_t clamp_leaf(const struct x86_cpuid_model *m, uint32_t leaf)
{
	uint32_t base = leaf & 0xf0000000;
	const struct x86_cpuid_leaf *first = find(m, base, 0);

	if (m->amd || (first && leaf <= first->eax))
		return leaf;
	return find(m, 0, 0)->eax;
}

void x86_cpuid(const struct x86_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	const struct x86_cpuid_leaf *l;

	leaf = clamp_leaf(cpu->model, leaf);
	l = find(cpu->model, leaf, subleaf);
	out[EAX] = l ? l->eax : 0;
	out[EBX] = l ? l->ebx : 0;
	out[ECX] = l ? l->ecx : 0;
	out[EDX] = l ? l->edx : 0;
	adjust(cpu, leaf, subleaf, out);
}
