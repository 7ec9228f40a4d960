/*
 * Random bytes through the decoder and the rewriter: whatever a guest's code page holds, fields stay in their ranges
 * and nothing is written beyond what is promised. `fuzz_decode [ROUNDS [SEED]]`.
 */
#include "arch/x86/insn.h"
#include "engine/translate/rewrite.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static uint64_t state;

static uint64_t rnd(void)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return state >> 16;
}

static size_t random_code(uint8_t *b)
{
	static const uint8_t often[] = {0x66, 0xf2, 0xf3, 0xf0, 0x0f, 0xc4, 0xc5, 0x48, 0x38, 0x3a, 0x67, 0x65};
	unsigned prefixes = (unsigned)(rnd() % 6);

	for (unsigned i = 0; i < 16; i++)
		b[i] = i < prefixes ? often[rnd() % sizeof(often)] : (uint8_t)rnd();
	return rnd() % 17;
}

static const char *check(const struct x86_insn *i, size_t len)
{
	if (i->len > 15 || i->len > len)
		return "length";
	if (i->cls > CLS_PARTIAL || (i->cls == CLS_PARTIAL) != (i->len == 0))
		return "class";
	if (i->cls == CLS_INVALID || i->cls == CLS_PARTIAL || i->cls == CLS_TOOLONG)
		return NULL;
	if (i->imm_off + i->imm_len > i->len || i->modrm_off >= i->len || i->opcode_off >= i->len)
		return "offsets";
	if (i->reg > 15 || i->rm > 15 || i->vvvv > 15 || i->opreg > 15 || i->base > 16 || i->index > 15 ||
	    i->base < -1 || i->index < -1)
		return "registers";
	if (i->seg >= X86_SEGS || (i->scale & (i->scale - 1)) || !i->scale || i->map > 3)
		return "operand";
	if (i->cls == CLS_PLAIN && (i->flags & INSN_MEM) && (i->mem_size == 0 || i->mem_size > 64))
		return "operand size";
	return NULL;
}

static const char *rewrite(const struct x86_insn *insn)
{
	uint8_t out[64];
	struct emit e = {out, out + sizeof(out)};
	struct rewrite_map map = {
		.mem_gs = rnd() & 1, .mem_base = (int8_t)(rnd() & 15), .mem_index = -1, .mem_disp = (int32_t)rnd()};

	for (unsigned i = 0; i < X86_GPRS; i++)
		map.gpr[i] = rnd() & 3 ? (uint8_t)i : rnd() & 15;
	if (!rewrite_plain(&e, insn, &map) && e.p != out)
		return "bytes of an instruction that cannot be rewritten";
	return e.p - out > REWRITE_MAX ? "too long" : NULL;
}

int main(int argc, char **argv)
{
	uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 0) : 3000000;
	uint8_t code[16];
	struct x86_insn insn;

	state = argc > 2 ? strtoull(argv[2], NULL, 0) : (uint64_t)time(NULL);
	printf("  seed %#" PRIx64 "\n", state);
	for (uint64_t n = 0; n < rounds; n++) {
		size_t len = random_code(code);
		const char *why;

		x86_decode(&insn, code, len, (enum x86_mode)(n % 3), NULL);
		why = check(&insn, len);
		if (!why && (insn.cls == CLS_PLAIN || insn.cls == CLS_SPECIAL))
			why = rewrite(&insn);
		if (why) {
			printf("FAIL fuzz_decode: %s; mode %u, round %" PRIu64 ":", why, (unsigned)(n % 3), n);
			for (size_t i = 0; i < len; i++)
				printf(" %02x", code[i]);
			printf("\n");
			return 1;
		}
	}
	printf("ok fuzz_decode\n");
	return 0;
}
