/*
 * Decoded instructions, kept: most of a program's are the same few hundred, but for their displacements and immediates.
 * An entry is found by the bytes that decide what an instruction is, and how long; the values behind them are read
 * anew.
 */
#ifndef DOPPEL_ARCH_X86_DECODE_CACHE_H
#define DOPPEL_ARCH_X86_DECODE_CACHE_H

#include "arch/x86/insn.h"

/* The first `head` bytes decide; then come a displacement and an immediate. */
struct decode_shape {
	uint8_t head;
	uint8_t disp_len;
	bool imm_signed;
};

struct decode_entry {
	struct x86_insn insn; /* len 0: nothing is here */
	struct decode_shape shape;
};

#define DECODE_TWO_BITS 8
#define DECODE_MORE_BITS 11

/* By the length of `head`: its byte; its first two, three, hashed. */
#define DECODE_ONE 0
#define DECODE_TWO (DECODE_ONE + 256)
#define DECODE_MORE (DECODE_TWO + (1 << DECODE_TWO_BITS))
#define DECODE_ENTRIES (DECODE_MORE + (1 << DECODE_MORE_BITS))

/* All zeroes: empty. By one model. */
struct x86_decode_cache {
	uint32_t tag[DECODE_ENTRIES]; /* of an entry: those bytes and the mode. So few lines of memory that they stay
					 near, where the entries do not */
	struct decode_entry entry[DECODE_ENTRIES];
};

/* As x86_decode, and keeps the answer. Whoever asks with one cache does so with one model. */
void x86_decode_cached(struct x86_decode_cache *c, struct x86_insn *insn, const uint8_t *p, size_t len,
		       enum x86_mode mode, const struct x86_cpuid_model *model);

/* As x86_decode. `shape` is said of what has a class other than CLS_INVALID, CLS_TOOLONG and CLS_PARTIAL. */
void decode_shaped(struct x86_insn *insn, const uint8_t *p, size_t len, enum x86_mode mode,
		   const struct x86_cpuid_model *model, struct decode_shape *shape);

#endif
