/*
 * One guest instruction at a time on the real processor: it is rewritten so that its memory operand is a bounce buffer,
 * run with the guest's registers, flags and vector state loaded, and its result is written back to guest memory piece
 * by piece. The slow, general and exact way: for operands that cross a page, lie in device memory or in translated
 * code, and the reference that the translator is checked against.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_THUNK_H
#define DOPPEL_ENGINE_TRANSLATE_THUNK_H

#include "arch/x86/emulate.h"
#include "host/host.h"

struct thunk; /* one per thread that steps: a small code buffer and a bounce buffer */

struct thunk *thunk_create(void);
void thunk_destroy(struct thunk *t);

/*
 * Carries out one CLS_PLAIN instruction, or a CLS_SPECIAL one that needs vector state (masked moves, gathers, the
 * FXSAVE, FSAVE and XSAVE families). State changes fully or not at all; cpu->rip moves past it on V_DONE and on V_EXIT
 * for an MMIO write. Raises what the real processor would: #DE, #MF, #XM, #GP for misaligned operands, #NM and #UD by
 * CR0, CR4 and XCR0, #PF for the operand. A locked instruction on RAM within one page is carried out in place, on guest
 * memory itself, so that it is atomic.
 */
enum verdict thunk_step(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn);

/* Where the memory operand begins in its segment: a register's bit offset may have moved it (SDM Vol. 2, BT). */
uint64_t thunk_operand_offset(const struct x86_cpu *cpu, const struct x86_insn *insn);

/* Part of the process-wide fault handler (host/guest_signals.h): claims a fault of a thunk running on this thread. */
struct host_fault_context;
bool thunk_claim_fault(struct host_fault_context *ctx);

/* #NM or #UD (V_INJECT) if CR0, CR4 or XCR0 forbid this x87, MMX, SSE or AVX instruction now; else V_DONE. In
 * arch/x86/fpu_gate.c. */
enum verdict x86_fpu_gate(struct x86_cpu *cpu, const struct x86_insn *insn);

#endif
