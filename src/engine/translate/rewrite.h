/*
 * Writing a guest instruction out again for the host, in 64-bit mode, with other registers and another memory operand.
 * This is what "copy, don't compile" comes down to: opcode, prefixes that matter and immediates stay; ModRM, SIB, REX
 * or VEX are made anew.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_REWRITE_H
#define DOPPEL_ENGINE_TRANSLATE_REWRITE_H

#include "engine/translate/emit.h"

struct rewrite_map {
	uint8_t gpr[X86_GPRS]; /* host register that stands for each guest register; identity for most */
	/* The memory operand: gs:[disp] when mem_gs, else [mem_base + mem_index + mem_disp]; mem_index -1: none. */
	bool mem_gs;
	int8_t mem_base, mem_index;
	int32_t mem_disp;
};

#define REWRITE_MAX 20 /* bytes one rewritten instruction can take */

/*
 * Emits `insn` (CLS_PLAIN, of any x86_mode) for 64-bit mode. False, and nothing emitted, when the encoding cannot say
 * it: AH, CH, DH or BH together with a register that needs REX, or an implicit register that is not mapped to itself.
 * Instructions of 16- and 32-bit modes come out with the operand size they had (40+r INC becomes FF /0 and so on).
 */
bool rewrite_plain(struct emit *e, const struct x86_insn *insn, const struct rewrite_map *map);

#endif
