/* Rewriting: known encodings, and random instructions of all modes decoded again. */
#include "arch/x86/insn.h"
#include "engine/translate/rewrite.h"
#include "unit.h"

static struct rewrite_map identity(void)
{
	struct rewrite_map map = {.mem_base = RBX, .mem_index = -1};

	for (unsigned i = 0; i < X86_GPRS; i++)
		map.gpr[i] = (uint8_t)i;
	return map;
}

/* The rewritten bytes in hexadecimal; "-" when it cannot be done. */
static const char *rewritten(enum x86_mode mode, const char *bytes, size_t len, const struct rewrite_map *map)
{
	static char text[3 * REWRITE_MAX + 1];
	uint8_t out[64];
	struct emit e = {out, out + sizeof(out)};
	struct x86_insn insn;
	char *p = text;

	x86_decode(&insn, (const uint8_t *)bytes, len, mode, NULL);
	if (!rewrite_plain(&e, &insn, map))
		return "-";
	*p = 0;
	for (const uint8_t *b = out; b < e.p; b++)
		p += sprintf(p, "%02x", *b);
	return text;
}

#define R(mode, bytes, map) rewritten(mode, bytes, sizeof(bytes) - 1, map)
#define CHECK_TEXT(a, b) CHECK(strcmp(a, b) == 0)

TEST(memory_forms)
{
	struct rewrite_map map = identity();

	CHECK_TEXT(R(MODE_64, "\x48\x8b\x05\x01\x02\x03\x04", &map), "488b03");
	map.mem_base = R10;
	map.mem_index = R11;
	CHECK_TEXT(R(MODE_64, "\x8b\x06", &map), "438b041a");
	map.mem_disp = 0x1000;
	CHECK_TEXT(R(MODE_64, "\x8b\x06", &map), "438b841a00100000");
	map.mem_gs = true;
	CHECK_TEXT(R(MODE_64, "\x8b\x06", &map), "658b042500100000");
	map = identity();
	map.mem_base = RBP;
	CHECK_TEXT(R(MODE_64, "\x8b\x06", &map), "8b4500");
	map.mem_base = R12;
	CHECK_TEXT(R(MODE_64, "\xc5\xf9\x6f\x00", &map), "c4c1796f0424");
}

TEST(registers_move)
{
	struct rewrite_map map = identity();

	map.gpr[R9] = R10;
	CHECK_TEXT(R(MODE_64, "\x4d\x01\xc9", &map), "4d01d2"); /* add r9, r9 */
	CHECK_TEXT(R(MODE_64, "\x41\xb9\x01\x00\x00\x00", &map), "41ba01000000");
	map.gpr[R8] = RSI;
	CHECK_TEXT(R(MODE_64, "\x44\x88\xc0", &map), "4088f0");             /* mov al, r8b → sil */
	CHECK_TEXT(R(MODE_64, "\xc4\xc2\x38\xf2\xc1", &map), "c4c248f2c2"); /* andn eax, r8d, r9d */
}

TEST(high_bytes)
{
	struct rewrite_map map = identity();

	CHECK_TEXT(R(MODE_64, "\x8a\x23", &map), "8a23"); /* mov ah, [rbx] */
	map.mem_base = R10;
	CHECK_TEXT(R(MODE_64, "\x8a\x23", &map), "-");
	map.gpr[RAX] = RSI;
	CHECK_TEXT(R(MODE_64, "\x8a\xe3", &map), "-");
}

TEST(implicit_registers_stay)
{
	struct rewrite_map map = identity();

	map.gpr[RDX] = R10;
	CHECK_TEXT(R(MODE_64, "\xf7\xe1", &map), "-"); /* mul ecx */
	map = identity();
	map.gpr[RCX] = R10;
	CHECK_TEXT(R(MODE_64, "\xf7\xe1", &map), "41f7e2");
}

TEST(other_modes)
{
	struct rewrite_map map = identity();

	CHECK_TEXT(R(MODE_32, "\x41", &map), "ffc1"); /* inc ecx */
	CHECK_TEXT(R(MODE_32, "\x4f", &map), "ffcf"); /* dec edi */
	CHECK_TEXT(R(MODE_16, "\x41", &map), "66ffc1");
	CHECK_TEXT(R(MODE_16, "\x66\x41", &map), "ffc1");
	CHECK_TEXT(R(MODE_32, "\x82\xc1\x05", &map), "80c105");
	CHECK_TEXT(R(MODE_32, "\xa1\x00\x10\x00\x00", &map), "8b03"); /* mov eax, moffs */
	CHECK_TEXT(R(MODE_16, "\x0f\x28\x07", &map), "0f2803");       /* movaps: 66 would be movapd */
	CHECK_TEXT(R(MODE_16, "\x66\x0f\xfe\xc1", &map), "660ffec1");
	CHECK_TEXT(R(MODE_32, "\xc4\xe3\xf9\x60\xc1\x00", &map),
		   "c4e37960c100"); /* vpcmpestrm: W means nothing there */
}

TEST(nops_vanish)
{
	struct rewrite_map map = identity();

	CHECK_TEXT(R(MODE_64, "\xf3\x0f\x1e\xfa", &map), "");
	CHECK_TEXT(R(MODE_64, "\x0f\x1f\x44\x00\x00", &map), "");
	CHECK_TEXT(R(MODE_64, "\x48\x8d\x44\x00\x00", &map), "-"); /* lea is the caller's */
}

/* --- Random instructions --- */

static uint64_t seed = 0x1234567;

static uint32_t rnd(void)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(seed >> 32);
}

static void random_bytes(uint8_t *b, enum x86_mode mode)
{
	static const uint8_t prefix[8] = {0, 0x66, 0xf3, 0xf2, 0xf0};
	unsigned p = 0, map = rnd() % 5;
	uint8_t first = prefix[rnd() % 8];

	for (unsigned i = 0; i < 15; i++)
		b[i] = (uint8_t)rnd();
	if (first)
		b[p++] = first;
	if (mode == MODE_64 && (rnd() & 1))
		b[p++] = 0x40 | (rnd() & 15);
	if (map == 4) {
		b[p++] = 0xc4;
		b[p] = (uint8_t)((b[p] & 0xe0) | (1 + rnd() % 3) | (mode == MODE_64 ? 0 : 0xc0));
		return;
	}
	if (map)
		b[p++] = 0x0f;
	if (map >= 2)
		b[p] = map == 2 ? 0x38 : 0x3a;
}

static void random_map(struct rewrite_map *map)
{
	*map = identity();
	if (rnd() & 1) {
		for (unsigned i = RSP; i < X86_GPRS; i++)
			map->gpr[i] = rnd() & 15;
	}
	map->mem_gs = rnd() % 4 == 0;
	map->mem_base = rnd() & 15;
	map->mem_index = rnd() & 15;
	if (map->mem_index == RSP)
		map->mem_index = -1;
	map->mem_disp = rnd() & 1 ? (int8_t)rnd() : (int32_t)rnd();
}

static uint16_t mapped(uint16_t regs, const struct rewrite_map *map)
{
	uint16_t out = 0;

	for (unsigned i = 0; i < X86_GPRS; i++) {
		if (regs & 1u << i)
			out |= (uint16_t)(1u << map->gpr[i]);
	}
	return out;
}

static bool same(const struct x86_insn *in, const struct x86_insn *out, const struct rewrite_map *map)
{
	uint32_t kept = INSN_LOCK | INSN_MEM | INSN_HIGH8 | INSN_FPU | INSN_SSE | INSN_AVX | INSN_ALIGN;

	if (out->cls != CLS_PLAIN || in->mnemonic != out->mnemonic || in->mem_size != out->mem_size ||
	    in->imm_len != out->imm_len)
		return false;
	if (((in->flags ^ out->flags) & kept) || in->fl_read != out->fl_read || in->fl_write != out->fl_write)
		return false;
	if (in->flags & INSN_MEM) {
		if (out->base != (map->mem_gs ? -1 : map->mem_base) ||
		    out->index != (map->mem_gs ? -1 : map->mem_index) || out->disp != map->mem_disp ||
		    (out->seg == SEG_GS) != map->mem_gs)
			return false;
	}
	return mapped(in->gpr_write, map) == out->gpr_write;
}

TEST(random_instructions)
{
	unsigned done = 0;

	for (unsigned n = 0; n < 2000000; n++) {
		enum x86_mode mode = n % 3;
		uint8_t bytes[15], out[64];
		struct emit e = {out, out + sizeof(out)};
		struct x86_insn in, back;
		struct rewrite_map map;

		random_bytes(bytes, mode);
		x86_decode(&in, bytes, sizeof(bytes), mode, NULL);
		random_map(&map);
		if (in.cls != CLS_PLAIN || !rewrite_plain(&e, &in, &map) || e.p == out)
			continue;
		x86_decode(&back, out, (size_t)(e.p - out), MODE_64, NULL);
		if (e.p - out > REWRITE_MAX || back.len != e.p - out || !same(&in, &back, &map)) {
			CHECK_EQ(n, 0); /* which one */
			return;
		}
		done++;
	}
	CHECK(done > 100000);
}

UNIT_MAIN()
