/*
 * Which pages of code can run directly: those without instructions that tell this processor, or its system, from the
 * guest's and do not fault.
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
static bool group_7(uint8_t modrm, unsigned faults)
{
	if (IN_MEMORY(modrm))
		return REG(modrm) < 2 || REG(modrm) == 4; /* SGDT, SIDT, SMSW; the rest is privileged */
	if (modrm == 0xf9)                                /* RDTSCP */
		return !(faults & HOST_SPACE_TSC_FAULTS);
	return modrm != 0xd5 && modrm != 0xd6; /* all but XEND and XTEST: XGETBV, VMCALL, RDPKRU, RDPRU … */
}

/* 0F AE and 0F C7: what the guest's XCR0 or CR4 decide. RDRAND and RDSEED (C7 /6, /7) do what they always do. */
static bool group_15(uint8_t modrm, bool rep)
{
	if (IN_MEMORY(modrm))
		return REG(modrm) >= 4 && REG(modrm) <= 6; /* XSAVE, XRSTOR, XSAVEOPT */
	return rep && REG(modrm) < 4;                      /* RDFSBASE, WRGSBASE … */
}

static bool group_9(uint8_t modrm, bool rep)
{
	if (IN_MEMORY(modrm))
		return REG(modrm) >= 3 && REG(modrm) <= 5; /* XSAVEC … */
	return rep && REG(modrm) == 7;                     /* RDPID */
}

/* Behind 0F. */
static bool two_bytes(const uint8_t *p, bool rep, unsigned faults)
{
	switch (p[0]) {
	case 0x00: /* SLDT, STR, VERR, VERW */
	case 0x02: /* LAR */
	case 0x03: /* LSL */
	case 0x34: /* SYSENTER: Linux does not know where it came from */
	case 0xa2: /* CPUID */
		return true;
	case 0x01:
		return group_7(p[1], faults);
	case 0x31: /* RDTSC */
		return !(faults & HOST_SPACE_TSC_FAULTS);
	case 0xae:
		return group_15(p[1], rep);
	case 0xc7:
		return group_9(p[1], rep);
	default:
		return false;
	}
}

static bool has_rep(const uint8_t *code, unsigned at)
{
	if (at && (code[at - 1] & 0xf0) == 0x40)
		at--;
	return at && code[at - 1] == 0xf3;
}

/*
 * INT 4: what Linux says of it is what a fault of the instruction behind it looks like. INT 0x80: as a system call of
 * 32 bits it loses half of RAX.
 */
static bool interrupt(uint8_t vector, unsigned faults)
{
	return vector == 4 || (vector == 0x80 && !(faults & HOST_SPACE_INT80_FAULTS));
}

/* `at` the opcode, with two bytes behind it. */
static bool is_sensitive(const uint8_t *code, unsigned at, unsigned faults)
{
	if (code[at] == 0x0f)
		return two_bytes(code + at + 1, has_rep(code, at), faults);
	return code[at] == 0xcd && interrupt(code[at + 1], faults);
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

static bool scan(const uint8_t *code, unsigned size, unsigned from, unsigned faults)
{
	for (unsigned at = behind_harmless(code, size, from); at + 2 < size; at = behind_harmless(code, size, at + 1))
		if (unlikely(is_sensitive(code, at, faults)) && begins(code, size, at))
			return false;
	return true;
}

bool direct_scan(const uint8_t *page, unsigned faults)
{
	return scan(page, PAGE_SIZE, 0, faults);
}

bool direct_scan_join(const uint8_t *page, const uint8_t *next, unsigned faults)
{
	uint8_t code[FAR + STARTS + 4];
	unsigned before = sizeof(code) - 2;
	memcpy(code, page + PAGE_SIZE - before, before);
	memcpy(code + before, next, 2);
	return scan(code, sizeof(code), before - 2, faults);
}
