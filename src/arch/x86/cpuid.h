/* The CPU model offered to the guest: a table, at least x86-64-v2, never more than an engine carries out. */
#ifndef DOPPEL_ARCH_X86_CPUID_H
#define DOPPEL_ARCH_X86_CPUID_H

#include "arch/x86/state.h"

struct x86_cpuid_leaf {
	uint32_t leaf, subleaf, eax, ebx, ecx, edx;
};

/* Features the rest of the code asks about by name; bit numbers in x86_cpuid_model.features. */
enum x86_feature {
	FEAT_SSE3,
	FEAT_PCLMUL,
	FEAT_SSSE3,
	FEAT_FMA,
	FEAT_CX16,
	FEAT_SSE41,
	FEAT_SSE42,
	FEAT_MOVBE,
	FEAT_POPCNT,
	FEAT_AES,
	FEAT_XSAVE,
	FEAT_AVX,
	FEAT_F16C,
	FEAT_RDRAND,
	FEAT_LAHF64,
	FEAT_LZCNT,
	FEAT_PREFETCHW,
	FEAT_RDTSCP,
	FEAT_PAGE1G,
	FEAT_FSGSBASE,
	FEAT_BMI1,
	FEAT_AVX2,
	FEAT_SMEP,
	FEAT_BMI2,
	FEAT_ERMS,
	FEAT_INVPCID,
	FEAT_RDSEED,
	FEAT_ADX,
	FEAT_SMAP,
	FEAT_CLFLUSHOPT,
	FEAT_CLWB,
	FEAT_SHA,
	FEAT_UMIP,
	FEAT_RDPID,
	FEAT_XSAVEOPT,
	FEAT_XSAVEC,
	FEAT_XGETBV1,
	FEAT_XSAVES,
	FEAT_PCID,
	FEAT_X2APIC,
	FEAT_TSC_DEADLINE,
	FEAT_CLZERO,
	FEAT_VAES,
	FEAT_VPCLMUL,
	FEAT_GFNI,
	FEAT_FSRM,
	X86_FEATURES
};

/* Parts of KVM's paravirtual interface; bit numbers in x86_cpuid_model.pv. The monitor carries them out. */
enum x86_pv {
	PV_CLOCK, /* kvmclock, the same on all processors */
	PV_DELAY, /* port accesses need no delays */
	PV_STEAL, /* steal time, and which processors sleep */
	PV_EOI,   /* the end of an interrupt by a flag in memory */
	PV_IPI,   /* interrupts to many processors by one hypercall */
	PV_TLB,   /* remote TLB flushes that let sleeping processors sleep; needs PV_STEAL */
	PV_LOCK,  /* who waits for a spin lock halts, and is kicked */
	X86_PVS
};

#define X86_CPUID_MAX 64

struct x86_cpuid_model {
	uint64_t features; /* BIT(FEAT_*): claimed to the guest */
	unsigned count;
	struct x86_cpuid_leaf leaf[X86_CPUID_MAX];
	unsigned cpus; /* logical processors, one per core, one package */
	uint64_t tsc_hz;
	uint8_t phys_bits;
	uint32_t pv; /* BIT(PV_*): offered to the guest; 0: it finds no hypervisor */
	bool amd;    /* the vendor's ways: SYSCALL, SYSRET and SYSENTER outside 64-bit mode, reserved bits, MSRs */
	bool evex;   /* the processor takes 62 for a prefix, of instructions that the guest does not have */
};

/* Builds the model from what the host has and we carry out. `cpus` 1..255; tsc_hz from the host's clock, or 0 ... */
void x86_cpuid_init(struct x86_cpuid_model *model, unsigned cpus, uint64_t tsc_hz);
/* ... until it is known, which it must be when a guest runs. */
void x86_cpuid_tell_tsc(struct x86_cpuid_model *model, uint64_t tsc_hz);
/*
 * The first feature that this host's processor, or its system, lacks of what every engine and the guest's programs need
 * (x86-64-v2 and XSAVE), by name; NULL: none. `cpuid` is asked, for tests; NULL: the processor.
 */
typedef void x86_cpuid_fn(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);
const char *x86_host_lacks(x86_cpuid_fn *cpuid);
bool x86_host_is_amd(void);   /* or Hygon's */
uint32_t x86_host_xcr0(void); /* what its system has set in XCR0; 0 without XSAVE */
bool x86_host_has_evex(void);
/* The same, and then says that we are a hypervisor that offers these. 0: says nothing. */
void x86_cpuid_offer(struct x86_cpuid_model *model, uint32_t pv);
/* CPUID for leaf/subleaf as `cpu` sees it (APIC ID, OSXSAVE, XCR0-dependent sizes). out: eax, ebx, ecx, edx. */
void x86_cpuid(const struct x86_cpu *cpu, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

static inline bool x86_has(const struct x86_cpuid_model *m, enum x86_feature f)
{
	return m->features & BIT(f);
}

/* Where processors differ and no manual chooses, the guest's is as AMD's; else as Intel's. Seen on Zen 3, Zen 5 and
 * Emerald Rapids. */
static inline bool x86_is_amd(const struct x86_cpu *cpu)
{
	return cpu->model && cpu->model->amd;
}

#endif
