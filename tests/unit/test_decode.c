/* The decoder: classes, fields, and what can't be decoded. */
#include "arch/x86/cpuid.h"
#include "arch/x86/decode_cache.h"
#include "unit.h"

static struct x86_insn decode_mode(enum x86_mode mode, const struct x86_cpuid_model *model, const char *bytes,
				   size_t len)
{
	struct x86_insn insn;

	x86_decode(&insn, (const uint8_t *)bytes, len, mode, model);
	return insn;
}

#define D64(bytes) decode_mode(MODE_64, NULL, bytes, sizeof(bytes) - 1)
#define D32(bytes) decode_mode(MODE_32, NULL, bytes, sizeof(bytes) - 1)
#define D16(bytes) decode_mode(MODE_16, NULL, bytes, sizeof(bytes) - 1)

/*
 * What is not there has a length too, by its opcode's place: more than 15 bytes are #GP, bytes beyond what is there are
 * to be fetched first, and only then is it #UD. As seen on AMD's processors.
 */
TEST(invalid_lengths)
{
#define BYTES(s) s, sizeof(s) - 1
	static struct x86_cpuid_model amd;
	static const struct {
		const char *bytes;
		size_t size;
		unsigned prefixes; /* of 66 before them */
		unsigned needs;
	} rows[] = {
		{BYTES("\x06"), 0, 1},
		{BYTES("\x0f\x04\xc0"), 0, 2},
		{BYTES("\x0f\xff\xab"), 0, 2}, /* UD0 */
		{BYTES("\x0f\x04"), 13, 15},
		{BYTES("\x0f\x04"), 14, 16},
		{BYTES("\x82\xc0\x01"), 0, 3},
		{BYTES("\xff\xf8"), 0, 2},
		{BYTES("\x9a\1\2\3\4\5\6"), 0, 7},
		{BYTES("\x9a\1\2\3\4"), 1, 6},
		{BYTES("\x0f\x38\xe0\x05\1\2\3\4"), 0, 8},
		{BYTES("\x0f\x38\xe0\x44\x24\1"), 0, 6},
		{BYTES("\x0f\x3a\x50\xc0\1"), 0, 5},
		{BYTES("\x0f\x3a\x50\xc0\1"), 11, 16},
		{BYTES("\xc5\xf8\xd0\x05\1\2\3\4"), 0, 8},
		{BYTES("\xc5\xf8\x04"), 0, 3},
		{BYTES("\xc4\xe2\x79\xff\xc0"), 0, 5},
		{BYTES("\x62\x25\x89\x09\x78\x08"), 0, 6}, /* EVEX, which has no EXTRQ */
		{BYTES("\x0f\xa6\xc0"), 0, 2},             /* others' XSTORE */
		{BYTES("\x0f\xa7\x05\1\2\3\4"), 13, 15},
		{BYTES("\x8f\xe8\x78\xc0\xc0\1"), 0, 5}, /* others' VPROTB */
		{BYTES("\xf0\x90"), 0, 2},               /* LOCK where it cannot be */
		{BYTES("\xf0\x81\xc0\1\2\3\4"), 0, 7},   /* ... of a register */
		{BYTES("\x3a\x89\1\2\3\4"), 11, 17},     /* it would be one, but for its length */
	};
	uint8_t bytes[32];

	x86_cpuid_init(&amd, 1, 1000000000);
	amd.amd = true;
	amd.evex = true;
	for (unsigned i = 0; i < ARRAY_LEN(rows); i++) {
		memset(bytes, 0x66, sizeof(bytes));
		memcpy(bytes + rows[i].prefixes, rows[i].bytes, rows[i].size);
		for (unsigned len = 1; len <= 15; len++) {
			struct x86_insn insn;
			x86_decode(&insn, bytes, len, MODE_64, &amd);
			unsigned want = rows[i].needs > 15 && len == 15 ? CLS_TOOLONG
					: len < rows[i].needs           ? CLS_PARTIAL
									: CLS_INVALID;
			if (insn.cls != want)
				UNIT_FAIL("row %u with %u bytes: class %u, not %u", i, len, insn.cls, want);
		}
	}
}

/* Where there is no AVX-512, 62 is BOUND, which has a ModRM, and is none of a register or of 64-bit mode. As seen
 * there. */
TEST(without_evex)
{
	static const struct {
		const char *bytes;
		unsigned needs;
	} rows[] = {{"\x62\xf1\x7c\x48\x58\xc0\1\2", 2},
		    {"\x62\x05\1\2\3\4\5\6", 6},
		    {"\x62\x04\x25\2\3\4\5\6", 7},
		    {"\x62\x44\x25\2\3\4\5\6", 4}};
	static struct x86_cpuid_model model;

	x86_cpuid_init(&model, 1, 1000000000);
	model.evex = false;
	for (unsigned i = 0; i < ARRAY_LEN(rows); i++)
		for (size_t len = 1; len <= 8; len++) {
			struct x86_insn insn;
			x86_decode(&insn, (const uint8_t *)rows[i].bytes, len, MODE_64, &model);
			CHECK_EQ(insn.cls, len < rows[i].needs ? CLS_PARTIAL : CLS_INVALID);
		}
}

TEST(memory_operand)
{
	struct x86_insn i = D64("\x4c\x01\x44\x8d\x10"); /* add [rbp + rcx*4 + 16], r8 */

	CHECK_EQ(i.cls, CLS_PLAIN);
	CHECK_EQ(i.len, 5);
	CHECK_EQ(i.base, RBP);
	CHECK_EQ(i.index, RCX);
	CHECK_EQ(i.scale, 4);
	CHECK_EQ((uint64_t)i.disp, 16);
	CHECK_EQ(i.seg, SEG_SS);
	CHECK_EQ(i.mem_size, 8);
	CHECK(i.mem_read && i.mem_write);
	CHECK_EQ(i.reg, R8);
	CHECK_EQ(i.gpr_read, BIT(RBP) | BIT(RCX) | BIT(R8));
	CHECK_EQ(i.gpr_write, 0);
	CHECK_EQ(i.fl_write, FL_ARITH);
}

TEST(rip_relative)
{
	struct x86_insn i = D64("\x48\x8b\x05\xf0\xff\xff\xff");
	static struct x86_cpu cpu;

	CHECK_EQ(i.base, 16);
	CHECK_EQ(i.gpr_read, 0);
	cpu.rip = 0x1000;
	CHECK_EQ(x86_effective_address(&cpu, &i), 0x1000 + 7 - 16);
}

TEST(address_wraps_at_its_size)
{
	struct x86_insn i = D64("\x67\x8b\x44\x8b\xff"); /* mov eax, [ebx + ecx*4 - 1] */
	static struct x86_cpu cpu;

	cpu.gpr[RBX] = 0xffffffff;
	cpu.gpr[RCX] = 0x1234567800000001;
	CHECK_EQ(x86_effective_address(&cpu, &i), 2);
	i = D16("\x8b\x42\x05"); /* mov ax, [bp + si + 5] */
	cpu.gpr[RBP] = 0xffff;
	cpu.gpr[RSI] = 3;
	CHECK_EQ(i.seg, SEG_SS);
	CHECK_EQ(x86_effective_address(&cpu, &i), 7);
}

TEST(partial_writes_are_reads)
{
	CHECK_EQ(D64("\xb0\x01").gpr_read, BIT(RAX));                /* mov al, 1 */
	CHECK_EQ(D64("\x66\xb8\x01\x00").gpr_read, BIT(RAX));        /* mov ax, 1 */
	CHECK_EQ(D64("\xb8\x01\x00\x00\x00").gpr_read, 0);           /* mov eax, 1 */
	CHECK_EQ(D64("\x0f\x44\xc1").gpr_read, BIT(RAX) | BIT(RCX)); /* cmovz eax, ecx */
}

TEST(high_bytes)
{
	struct x86_insn i = D64("\x8a\xe7"); /* mov ah, bh */

	CHECK(i.flags & INSN_HIGH8);
	CHECK_EQ(i.gpr_read, BIT(RBX) | BIT(RAX));
	CHECK_EQ(i.gpr_write, BIT(RAX));
	CHECK(!(D64("\x40\x8a\xe7").flags & INSN_HIGH8)); /* mov spl, dil */
}

TEST(implicit_registers)
{
	CHECK_EQ(D64("\x48\xf7\xe1").gpr_implicit, BIT(RAX) | BIT(RDX));                           /* mul rcx */
	CHECK_EQ(D64("\xd3\xe0").gpr_implicit, BIT(RCX));                                          /* shl eax, cl */
	CHECK_EQ(D64("\x48\x0f\xc7\x0e").gpr_implicit, BIT(RAX) | BIT(RBX) | BIT(RCX) | BIT(RDX)); /* cmpxchg16b */
}

TEST(shift_counts)
{
	CHECK(D64("\xd3\xe0").fl_cond);          /* by CL */
	CHECK(D64("\xc1\xe0\x20").fl_cond);      /* by 32: masked to none */
	CHECK(!D64("\xc1\xe0\x1f").fl_cond);     /* by 31 */
	CHECK(!D64("\x48\xc1\xe0\x20").fl_cond); /* by 32, of 64 */
	CHECK(!D64("\xd1\xe0").fl_cond);         /* by 1 */
}

TEST(classes)
{
	CHECK_EQ(D64("\xeb\xfe").cls, CLS_BRANCH);
	CHECK_EQ(D64("\xff\x28").cls, CLS_SYSTEM); /* jmp far */
	CHECK_EQ(D64("\x50").cls, CLS_STACK);
	CHECK_EQ(D64("\x0f\xa0").cls, CLS_SYSTEM); /* push fs */
	CHECK_EQ(D64("\x8e\xd8").cls, CLS_SYSTEM); /* mov ds, eax */
	CHECK_EQ(D64("\x0f\x22\xd8").cls, CLS_SYSTEM);
	CHECK_EQ(D64("\x9c").cls, CLS_SYSTEM);
	CHECK_EQ(D64("\xf3\xa4").cls, CLS_STRING);
	CHECK_EQ(D64("\x6c").cls, CLS_SYSTEM);            /* insb */
	CHECK_EQ(D64("\xf2\x0f\x10\x00").cls, CLS_PLAIN); /* movsd xmm0, [rax] is no string */
	CHECK_EQ(D64("\x0f\xae\x00").cls, CLS_SPECIAL);
	CHECK_EQ(D64("\x0f\x0b").cls, CLS_INVALID);
	CHECK_EQ(D64("\x62\xf1\x7c\x48\x58\xc1").cls, CLS_INVALID); /* EVEX */
	CHECK_EQ(D32("\x37").cls, CLS_SPECIAL);
	CHECK_EQ(D64("\x37").cls, CLS_INVALID);
}

TEST(bit_offset_in_register)
{
	CHECK_EQ(D64("\x0f\xab\x07").cls, CLS_SPECIAL); /* bts [rdi], eax */
	CHECK(D64("\x0f\xab\x07").flags & INSN_BITOFF);
	CHECK_EQ(D64("\x0f\xba\x2f\x05").cls, CLS_PLAIN); /* bts [rdi], 5 */
	CHECK_EQ(D64("\x0f\xab\xc7").cls, CLS_PLAIN);     /* bts edi, eax */
}

TEST(segment_overrides)
{
	CHECK_EQ(D64("\x65\x48\x8b\x00").seg, SEG_GS);
	CHECK_EQ(D64("\x2e\x48\x8b\x00").seg, SEG_DS); /* 64-bit mode ignores CS */
	CHECK_EQ(D32("\x2e\x8b\x00").seg, SEG_CS);
	CHECK_EQ(D32("\x3e\x8b\x45\x00").seg, SEG_DS);
}

TEST(nops)
{
	CHECK_EQ(D64("\xf3\x0f\x1e\xfa").cls, CLS_PLAIN); /* endbr64 */
	CHECK(D64("\x0f\x1f\x44\x00\x00").flags & INSN_ADDR_ONLY);
	CHECK(!(D64("\x0f\x1f\x44\x00\x00").flags & INSN_MEM));
}

/* With REX.B it is XCHG R8, RAX on AMD's processors all the same. */
TEST(pause_is_not_xchg)
{
	struct x86_cpuid_model amd = {.amd = true}, intel = {.amd = false};

	CHECK_EQ(decode_mode(MODE_64, &amd, "\xf3\x90", 2).gpr_write, 0);
	CHECK_EQ(decode_mode(MODE_64, &intel, "\xf3\x90", 2).gpr_write, 0);
	CHECK_EQ(decode_mode(MODE_64, &amd, "\xf3\x41\x90", 3).gpr_write, BIT(RAX) | BIT(R8));
	CHECK_EQ(decode_mode(MODE_64, &intel, "\xf3\x41\x90", 3).gpr_write, 0);
	CHECK_EQ(decode_mode(MODE_64, &intel, "\x41\x90", 2).gpr_write, BIT(RAX) | BIT(R8));
}

/* MOVSXD R8W, [RAX]: what it reads. */
TEST(movsxd_of_words)
{
	struct x86_cpuid_model amd = {.amd = true}, intel = {.amd = false};

	CHECK_EQ(decode_mode(MODE_64, &amd, "\x66\x44\x63\x00", 4).mem_size, 4);
	CHECK_EQ(decode_mode(MODE_64, &intel, "\x66\x44\x63\x00", 4).mem_size, 2);
	CHECK_EQ(decode_mode(MODE_64, &intel, "\x44\x63\x00", 3).mem_size, 4);
}

TEST(alignment)
{
	CHECK(D64("\x0f\x28\x00").flags & INSN_ALIGN);        /* movaps */
	CHECK(!(D64("\x0f\x10\x00").flags & INSN_ALIGN));     /* movups */
	CHECK(D64("\x66\x0f\xfe\x00").flags & INSN_ALIGN);    /* paddd */
	CHECK(!(D64("\xc5\xf9\xfe\x00").flags & INSN_ALIGN)); /* vpaddd */
	CHECK(D64("\xc5\xf9\x6f\x00").flags & INSN_ALIGN);    /* vmovdqa */
	CHECK(D64("\x48\x0f\xc7\x0e").flags & INSN_ALIGN);    /* cmpxchg16b */
	CHECK(!(D64("\xf3\x0f\x58\x00").flags & INSN_ALIGN)); /* addss */
}

TEST(units)
{
	CHECK(D64("\xd8\xc1").flags & INSN_FPU);
	CHECK(D64("\x0f\xfe\xc1").flags & INSN_FPU);            /* paddd mm */
	CHECK(D64("\xf2\x0f\x2c\x00").flags & INSN_SSE);        /* cvttsd2si eax, [rax] */
	CHECK(D64("\xc5\xf8\x77").flags & INSN_AVX);            /* vzeroupper */
	CHECK(!(D64("\xc4\xe2\x70\xf2\xc2").flags & INSN_AVX)); /* andn */
	CHECK(!(D64("\xf2\x0f\x38\xf1\xc1").flags & INSN_SSE)); /* crc32 */
}

TEST(lengths)
{
	static const char prefixes[16] = "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90";

	CHECK_EQ(decode_mode(MODE_64, NULL, prefixes, 16).cls, CLS_TOOLONG);
	CHECK_EQ(decode_mode(MODE_64, NULL, prefixes + 1, 15).cls, CLS_PLAIN);
	CHECK_EQ(decode_mode(MODE_64, NULL, prefixes, 10).cls, CLS_PARTIAL);
	CHECK_EQ(decode_mode(MODE_64, NULL, prefixes, 10).len, 0);
	CHECK_EQ(decode_mode(MODE_64, NULL, prefixes, 0).cls, CLS_PARTIAL);
	CHECK_EQ(D64("\x48\xb8\x01\x02\x03").cls, CLS_PARTIAL);
}

TEST(features_not_claimed)
{
	struct x86_cpuid_model model = {.features = BIT(FEAT_AVX)};

	CHECK_EQ(decode_mode(MODE_64, &model, "\xc5\xf9\xfe\xc1", 4).cls, CLS_PLAIN);   /* vpaddd xmm */
	CHECK_EQ(decode_mode(MODE_64, &model, "\xc5\xfd\xfe\xc1", 4).cls, CLS_INVALID); /* vpaddd ymm: AVX2 */
	CHECK_EQ(decode_mode(MODE_64, &model, "\x0f\x38\xf0\x00", 4).cls, CLS_INVALID); /* movbe */
	CHECK_EQ(decode_mode(MODE_64, &model, "\xf3\x0f\xbd\xc1", 4).cls, CLS_PLAIN); /* lzcnt: or bsr, but no fault */
}

TEST(branch_with_operand_size)
{
	struct x86_cpuid_model intel = {.amd = false}, amd = {.amd = true};

	CHECK_EQ(decode_mode(MODE_64, &intel, "\x66\xe9\x01\x02\x03\x04", 6).len, 6);
	CHECK_EQ(decode_mode(MODE_64, &amd, "\x66\xe9\x01\x02\x03\x04", 6).len, 4);
	CHECK_EQ(decode_mode(MODE_64, &amd, "\x66\x75\x10", 3).opsize, 2);
	CHECK_EQ(decode_mode(MODE_64, &intel, "\x66\x75\x10", 3).opsize, 8);
}

static uint32_t next(uint32_t *seed)
{
	*seed = *seed * 1664525 + 1013904223;
	return *seed >> 16;
}

/* Few prefixes and opcodes of all maps, so that the same come again, with other values behind them. */
static size_t some_bytes(uint32_t *seed, uint8_t *p)
{
	static const uint8_t prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0x48, 0x41, 0x4c, 0x64, 0x2e, 0xf0};
	size_t n = 0, len = next(seed) % 8 ? 16 : 1 + next(seed) % 15;
	while (next(seed) % 3 == 0 && n < 3)
		p[n++] = prefixes[next(seed) % sizeof(prefixes)];
	switch (next(seed) % 8) {
	case 0:
		p[n++] = 0xc5;
		break;
	case 1:
		p[n++] = 0xc4;
		p[n++] = (uint8_t)(next(seed) & 0xe3);
		break;
	case 2:
	case 3:
		p[n++] = 0x0f;
		break;
	}
	while (n < 16)
		p[n++] = (uint8_t)next(seed);
	return len;
}

TEST(kept_instructions_are_the_same)
{
	static struct x86_decode_cache cache;
	static const enum x86_mode modes[] = {MODE_64, MODE_64, MODE_64, MODE_32, MODE_16};
	uint32_t seed = 1;
	uint8_t bytes[16];
	for (unsigned n = 0; n < 400000; n++) {
		struct x86_insn plain, kept;
		enum x86_mode mode = modes[next(&seed) % ARRAY_LEN(modes)];
		size_t len = some_bytes(&seed, bytes);
		x86_decode(&plain, bytes, len, mode, NULL);
		x86_decode_cached(&cache, &kept, bytes, len, mode, NULL);
		if (!memcmp(&plain, &kept, sizeof(plain)))
			continue;
		UNIT_FAIL("mode %u, %02x %02x %02x %02x %02x %02x %02x", mode, bytes[0], bytes[1], bytes[2], bytes[3],
			  bytes[4], bytes[5], bytes[6]);
		return;
	}
}

UNIT_MAIN()
