/* What the host's processor must have (SDM Vol. 2A, CPUID; the levels of the x86-64 psABI, 3.1.1). */
#include "arch/x86/cpuid.h"

enum { EAX, EBX, ECX, EDX };

static const struct need {
	const char *name;
	uint32_t leaf;
	uint8_t reg, bit;
} needs[] = {
	{"SSE3", 1, ECX, 0},
	{"SSSE3", 1, ECX, 9},
	{"CMPXCHG16B", 1, ECX, 13},
	{"SSE4.1", 1, ECX, 19},
	{"SSE4.2", 1, ECX, 20},
	{"POPCNT", 1, ECX, 23},
	{"XSAVE", 1, ECX, 26},
	{"XSAVE turned on by the system", 1, ECX, 27},
	{"LAHF in 64-bit mode", 0x80000001, ECX, 0},
};

static void ask(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	__asm__ volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
}

/* Each leaf is asked for once: a host that is virtual itself takes long. */
const char *x86_host_lacks(x86_cpuid_fn *cpuid)
{
	uint32_t leaf = UINT32_MAX, r[4] = {0};

	if (!cpuid)
		cpuid = ask;
	for (unsigned i = 0; i < ARRAY_LEN(needs); i++) {
		if (needs[i].leaf != leaf) {
			leaf = needs[i].leaf;
			cpuid(leaf & 0x80000000, 0, r);
			if (r[EAX] < leaf)
				return needs[i].name;
			cpuid(leaf, 0, r);
		}
		if (!(r[needs[i].reg] >> needs[i].bit & 1))
			return needs[i].name;
	}
	return NULL;
}
