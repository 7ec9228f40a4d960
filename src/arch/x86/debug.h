/*
 * Debug registers and single step (SDM Vol. 3B ch. 17). Compiled for general registers only, no C library, as mmu.h.
 *
 * Who runs instructions asks x86_debug_active() first; while it says no, none of this need be called. Otherwise, for
 * every instruction: x86_before_instruction, the instruction itself, x86_after_instruction (emulate.h). The memory
 * access functions report through x86_data_breakpoint while x86_data_breakpoints_armed.
 */
#ifndef DOPPEL_ARCH_X86_DEBUG_H
#define DOPPEL_ARCH_X86_DEBUG_H

#include "arch/x86/state.h"

#define DR6_BD BIT(13)
#define DR6_BS BIT(14)
#define DR7_GD BIT(13)
#define DR7_ENABLED 0xffull /* L0, G0 … L3, G3 */

/* A data or I/O breakpoint may be armed: mem_read and mem_write then call x86_data_breakpoint for each access. */
static inline bool x86_data_breakpoints_armed(const struct x86_cpu *cpu)
{
	return unlikely(cpu->dr7 & DR7_ENABLED);
}

/* Instructions must be run one by one, with the functions below around each. */
static inline bool x86_debug_active(const struct x86_cpu *cpu)
{
	return unlikely((cpu->rflags & (FL_TF | FL_RF)) || (cpu->dr7 & DR7_ENABLED) || cpu->db_pending);
}

/*
 * Code breakpoints at cpu->rip: V_INJECT with a #DB fault in cpu->exc, or V_DONE. `cpu->shadow` is as the previous
 * instruction left it (2 holds off traps), so call it before clearing that. RFLAGS.RF holds off code breakpoints too.
 */
enum verdict x86_before_instruction(struct x86_cpu *cpu);

/*
 * Notes a data access to [linear, linear+len), to be reported by x86_after_instruction. Call it once an access is known
 * not to fault. A read-modify-write calls it for both.
 */
void x86_data_breakpoint(struct x86_cpu *cpu, uint64_t linear, unsigned len, bool write);
/* The same for IN, OUT, INS and OUTS, active with CR4.DE only. */
void x86_io_breakpoint(struct x86_cpu *cpu, uint16_t port, unsigned len);

#endif
