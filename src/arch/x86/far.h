/* What far returns and IRET share (SDM Vol. 2, RET and IRET). */
#ifndef DOPPEL_ARCH_X86_FAR_H
#define DOPPEL_ARCH_X86_FAR_H

#include "arch/x86/internal.h"

/* The checks of a code segment that is returned to, at the privilege that the selector's RPL says. */
enum verdict far_check_return_cs(struct x86_cpu *cpu, uint16_t sel, uint64_t off, struct descriptor *cs);
/* The checks of the stack segment that goes with it; its accessed bit is set. */
enum verdict far_check_return_ss(struct x86_cpu *cpu, uint16_t sel, const struct descriptor *cs, unsigned rpl,
				 struct descriptor *ss);
/* Loads SS:RSP for return to `cs`: a 16-bit stack takes SP only. */
void far_load_stack(struct x86_cpu *cpu, const struct descriptor *cs, const struct descriptor *ss, uint64_t rsp);

#endif
