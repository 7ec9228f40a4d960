/* The parts of x86_decode. Nothing but decode*.c includes this, and the differential tests. */
#ifndef DOPPEL_ARCH_X86_DECODE_CLASS_H
#define DOPPEL_ARCH_X86_DECODE_CLASS_H

#include "arch/x86/insn.h"

#include <Zydis/DecoderTypes.h>

/* The class of a decoded instruction on a processor with these features (BIT(FEAT_*)), of AMD's ways or Intel's. */
enum x86_class decode_class(const ZydisDecodedInstruction *zi, uint64_t features, bool amd);

/* INSN_REP or INSN_REPNE by the last of F2 and F3, which counts; string instructions without a condition take both for
 * REP. */
uint32_t decode_repeat_prefix(const ZydisDecodedInstruction *zi);

/* Fills in flags, INSN_FPU, SSE, AVX, ALIGN and BITOFF, and corrects what Zydis says; the operands are in `insn`
 * already. */
void decode_effects(struct x86_insn *insn, const ZydisDecodedInstruction *zi, bool amd);

struct decode_ways {
	bool amd, evex; /* as in the model */
};

/*
 * Bytes that the processor takes before it finds out that this is no instruction, with prefixes; more than `len`: not
 * all of them are there.
 */
unsigned decode_invalid_length(const uint8_t *p, size_t len, enum x86_mode mode, struct decode_ways ways);
/* Whether it is shorter than Zydis says: UD0 and UD1 of AMD's, 62 where that is no prefix. */
bool decode_is_shorter(const uint8_t *p, size_t len, enum x86_mode mode, struct decode_ways ways);

#endif
