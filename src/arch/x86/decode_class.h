/* Which class an instruction belongs to, and which CPU features it needs: the tables behind x86_decode. */
#ifndef DOPPEL_ARCH_X86_DECODE_CLASS_H
#define DOPPEL_ARCH_X86_DECODE_CLASS_H

#include "arch/x86/insn.h"

#include <Zydis/DecoderTypes.h>

/* The class of a decoded instruction on a processor with these features (BIT(FEAT_*)), of AMD's ways or Intel's. */
enum x86_class decode_class(const ZydisDecodedInstruction *zi, uint64_t features, bool amd);

#endif
