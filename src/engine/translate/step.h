/* The slow path: one instruction, fetched, decoded and carried out in C. Exact for all of them; what translated code is
 * checked against. */
#ifndef DOPPEL_ENGINE_TRANSLATE_STEP_H
#define DOPPEL_ENGINE_TRANSLATE_STEP_H

#include "engine/translate/vcpu.h"

/* Runs the instruction at cpu->rip; rflags is whole. V_INJECT: cpu->exc is to be delivered. */
enum verdict step(struct tr_vcpu *v);

/* The debug trap of an instruction that ended in an exit, once the monitor has seen to that. */
enum verdict step_trap_due(struct tr_vcpu *v);

/* Fetches and decodes the instruction at rip. V_INJECT: it, or its fetch, faults. */
enum verdict step_fetch(struct tr_vcpu *v, struct x86_insn *insn);

/* As x86_decode, for instructions that `v` runs: most are known already. */
void step_decode(struct tr_vcpu *v, struct x86_insn *insn, const uint8_t *p, size_t len, enum x86_mode mode);

/* A CLS_SPECIAL instruction that needs no vector state: x86_emulate_general carries it out. */
bool step_is_general(const struct x86_insn *insn);

#endif
