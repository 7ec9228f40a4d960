/*
 * Which pages of code can run directly: those without instructions that tell this processor, or its system, from the
 * guest's and do not fault; of the others, copies in which these do, and where these begin, for breakpoints.
 *
 * Their bytes are everywhere: 0F 00 is in half of all pages, in front of the number 15. So they count where
 * instructions begin. The processor gets in step within a few instructions wherever it begins, and so does who decodes
 * from several places before: nearly all of them come to such an instruction, or nearly none. Code that hides one
 * inside another instruction and jumps there is not seen: it learns what processor this is, and no more. (What it can
 * do it can do to itself; its own kernel is as safe from it as we are.)
 */
#include "arch/x86/insn.h"
#include "engine/translate/direct.h"

#include <string.h>

#define REG(modrm) ((modrm) >> 3 & 7)
#define IN_MEMORY(modrm) ((modrm) < 0xc0)

/* 0F 01: by ModRM (SDM Vol. 2 table A-6, AMD APM Vol. 3 table A-8). */
static bool group_7(uint8_t modrm, const struct direct_host *host)
{
	if (IN_MEMORY(modrm))
		return REG(modrm) < 2 || REG(modrm) == 4; /* SGDT, SIDT, SMSW; the rest is privileged */
	if (modrm == 0xf9)                                /* RDTSCP */
		return !(host->faults & HOST_SPACE_TSC_FAULTS);
	return modrm != 0xd5 && modrm != 0xd6; /* all but XEND and XTEST: XGETBV, VMCALL, RDPKRU, RDPRU … */
}

/* Bytes of MOV RDX, disp(RSP) that end before code[at]; 0: something else does. */
static unsigned store_of_rdx(const uint8_t *code, unsigned at)
{
	if (at >= 8 && !memcmp(code + at - 8, "\x48\x89\x94\x24", 4))
		return 8;
	return at >= 5 && !memcmp(code + at - 5, "\x48\x89\x54\x24", 4) ? 5 : 0;
}

/*
 * Where it is seen which states are saved or restored, and they are the same here and in the guest: behind MOV EAX,
 * imm32; XOR EDX, EDX, and perhaps stores of zeroes into the header. So do the dynamic linkers of the GNU C library,
 * for each function that a program calls for the first time.
 */
static bool same_states(const uint8_t *code, unsigned at, const struct direct_host *host)
{
	uint32_t states;
	for (unsigned n; (n = store_of_rdx(code, at));)
		at -= n;
	if (at < 7 || code[at - 7] != 0xb8 || memcmp(code + at - 2, "\x31\xd2", 2) != 0)
		return false;
	memcpy(&states, code + at - 6, sizeof(states));
	return !(states & host->other_states);
}

static bool has_rep(const uint8_t *code, unsigned at)
{
	if (at && (code[at - 1] & 0xf0) == 0x40)
		at--;
	return at && code[at - 1] == 0xf3;
}

/* 0F AE and 0F C7: what the guest's XCR0 or CR4 decide. RDRAND and RDSEED (C7 /6, /7) do what they always do. */
static bool group_15(const uint8_t *code, unsigned at, const struct direct_host *host)
{
	uint8_t modrm = code[at + 2];
	if (!IN_MEMORY(modrm))
		return has_rep(code, at) && REG(modrm) < 4;                        /* RDFSBASE, WRGSBASE … */
	return REG(modrm) >= 4 && REG(modrm) <= 6 && !same_states(code, at, host); /* XSAVE, XRSTOR, XSAVEOPT */
}

static bool group_9(const uint8_t *code, unsigned at, const struct direct_host *host)
{
	uint8_t modrm = code[at + 2];
	if (!IN_MEMORY(modrm))
		return has_rep(code, at) && REG(modrm) == 7;                       /* RDPID */
	return REG(modrm) >= 3 && REG(modrm) <= 5 && !same_states(code, at, host); /* XSAVEC … */
}

/* 0F at `at`. */
static bool two_bytes(const uint8_t *code, unsigned at, const struct direct_host *host)
{
	const uint8_t *p = code + at + 1;
	switch (p[0]) {
	case 0x00: /* SLDT, STR, VERR, VERW */
	case 0x02: /* LAR */
	case 0x03: /* LSL */
	case 0x34: /* SYSENTER: Linux does not know where it came from */
	case 0xa2: /* CPUID */
		return true;
	case 0x01:
		return group_7(p[1], host);
	case 0x31: /* RDTSC */
		return !(host->faults & HOST_SPACE_TSC_FAULTS);
	case 0xae:
		return group_15(code, at, host);
	case 0xc7:
		return group_9(code, at, host);
	default:
		return false;
	}
}

/*
 * INT 4: what Linux says of it is what a fault of the instruction behind it looks like. INT 0x80: as a system call of
 * 32 bits it loses half of RAX.
 */
static bool interrupt(uint8_t vector, const struct direct_host *host)
{
	return vector == 4 || (vector == 0x80 && !(host->faults & HOST_SPACE_INT80_FAULTS));
}

/* `at` the opcode, with two bytes behind it. */
static bool is_sensitive(const uint8_t *code, unsigned at, const struct direct_host *host)
{
	if (code[at] == 0x0f)
		return two_bytes(code, at, host);
	return code[at] == 0xcd && interrupt(code[at + 1], host);
}

static bool is_prefix(uint8_t byte)
{
	return (byte & 0xf0) == 0x40 || byte == 0x66 || byte == 0x67 || (byte & 0xfe) == 0x64 ||
	       (byte & 0xe7) == 0x26 || byte == 0xf0 || (byte & 0xfe) == 0xf2;
}

#define FAR 64    /* from so far before */
#define STARTS 24 /* and the next places: nearly all are in step by then */

static bool only_prefixes(const uint8_t *code, unsigned from, unsigned to)
{
	while (from < to && is_prefix(code[from]))
		from++;
	return from == to;
}

/* Whether an instruction's byte at `at` is the first but for prefixes, as who decodes from before comes to think. */
static bool begins(const uint8_t *code, unsigned size, unsigned at)
{
	bool comes[FAR]; /* there, who decodes from `first` + i */
	unsigned first = at > FAR ? at - FAR : 0, all = MIN(at - first, STARTS), come = 0;
	for (unsigned p = at; p-- > first;) {
		unsigned next = p + x86_length(code + p, size - p);
		comes[p - first] = next < at ? comes[next - first] : next == at || only_prefixes(code, p, at);
	}
	for (unsigned i = 0; i < all; i++)
		come += comes[i];
	return come * 2 >= all;
}

/* The same, near the beginning of a page too: `before` is the one before, NULL if it is not known. */
static bool begins_behind(const uint8_t *before, const uint8_t *page, unsigned at)
{
	uint8_t code[2 * FAR + X86_INSN_MAX];
	if (!before || at >= FAR)
		return begins(page, PAGE_SIZE, at);
	memcpy(code, before + PAGE_SIZE - FAR, FAR);
	memcpy(code + FAR, page, sizeof(code) - FAR);
	return begins(code, sizeof(code), FAR + at);
}

#define EACH(byte) (0x0101010101010101ull * (byte))

static bool has_zero(uint64_t bytes)
{
	return (bytes - EACH(1)) & ~bytes & EACH(0x80);
}

/* None of the eight bytes is what a sensitive instruction begins with. */
static bool eight_harmless(const uint8_t *code)
{
	uint64_t bytes;
	memcpy(&bytes, code, sizeof(bytes));
	return !has_zero(bytes ^ EACH(0x0f)) && !has_zero(bytes ^ EACH(0xcd));
}

static unsigned behind_harmless(const uint8_t *code, unsigned size, unsigned at)
{
	while (at + 8 <= size && eight_harmless(code + at))
		at += 8;
	return at;
}

/* Where the next sensitive one has its opcode, from `at` on; PAGE_SIZE: nowhere. */
static unsigned next_sensitive(const uint8_t *page, const uint8_t *before, const struct direct_host *host, unsigned at)
{
	for (at = behind_harmless(page, PAGE_SIZE, at); at + 2 < PAGE_SIZE;
	     at = behind_harmless(page, PAGE_SIZE, at + 1))
		if (unlikely(is_sensitive(page, at, host)) && begins_behind(before, page, at))
			return at;
	return PAGE_SIZE;
}

bool direct_scan(const uint8_t *page, const uint8_t *before, const struct direct_host *host)
{
	return next_sensitive(page, before, host, 0) == PAGE_SIZE;
}

#define TRAP 0xf4 /* HLT: a fault where it is, in user code */

/* From the end on: whether an instruction that begins here has a trap in it depends on what is behind. */
bool direct_trap(uint8_t *copy, const uint8_t *page, const uint8_t *before, const struct direct_host *host)
{
	unsigned lowest = PAGE_SIZE + X86_INSN_MAX; /* of the traps so far */
	memcpy(copy, page, PAGE_SIZE);
	for (unsigned at = PAGE_SIZE; at--;) {
		bool sensitive = at + 2 < PAGE_SIZE && is_sensitive(page, at, host) && begins_behind(before, page, at);
		if (!sensitive && (lowest - at >= X86_INSN_MAX || at + x86_length(page + at, PAGE_SIZE - at) <= lowest))
			continue;
		copy[at] = TRAP;
		lowest = at;
	}
	return lowest >= X86_INSN_MAX;
}

#define MOV_SS_MOST 8 /* bytes of one, with SIB and a displacement, that matter */

/* MOV SS (8E /2), after which the processor ignores a breakpoint at the next instruction (SDM Vol. 3A 6.8.3). */
static bool behind_mov_ss(const uint8_t *page, unsigned at)
{
	for (unsigned i = at - MIN(at, MOV_SS_MOST); i + 1 < at; i++)
		if (page[i] == 0x8e && REG(page[i + 1]) == SEG_SS)
			return true;
	return false;
}

/* The byte before `at`, where an instruction may begin, is a prefix of it, and not LOCK, with which it is undefined. */
static bool has_prefix(const uint8_t *page, const uint8_t *before, unsigned at)
{
	return is_prefix(page[at - 1]) && page[at - 1] != 0xf0 && begins_behind(before, page, at - 1);
}

/* With its prefixes: whoever jumps behind some of them begins there. */
static bool add_breaks(uint16_t at[HOST_SPACE_BREAKS], unsigned *n, const uint8_t *page, const uint8_t *before,
		       unsigned opcode)
{
	for (unsigned begin = opcode;; begin--) {
		if (!begin || *n == HOST_SPACE_BREAKS || behind_mov_ss(page, begin))
			return false;
		at[(*n)++] = (uint16_t)begin;
		if (!has_prefix(page, before, begin))
			return true;
	}
}

bool direct_breaks(uint16_t at[HOST_SPACE_BREAKS], const uint8_t *page, const uint8_t *before,
		   const struct direct_host *host)
{
	unsigned n = 0;
	memset(at, 0, HOST_SPACE_BREAKS * sizeof(*at));
	for (unsigned i = 0; (i = next_sensitive(page, before, host, i)) < PAGE_SIZE; i++)
		if (!add_breaks(at, &n, page, before, i))
			return false;
	return true;
}

bool direct_scan_join(const uint8_t *page, const uint8_t *next, const struct direct_host *host)
{
	uint8_t code[FAR + STARTS + 4];
	unsigned before = sizeof(code) - 2;
	memcpy(code, page + PAGE_SIZE - before, before);
	memcpy(code + before, next, 2);
	for (unsigned at = before - 2; at < before; at++)
		if (is_sensitive(code, at, host) && begins(code, sizeof(code), at))
			return false;
	return true;
}
