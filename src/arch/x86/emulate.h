/*
 * What no host can be asked to do for a guest: the privileged and sensitive instructions, and the delivery of
 * exceptions and interrupts (SDM Vol. 2, Vol. 3A ch. 5-6). Compiled for general registers only, no C library, as mmu.h.
 *
 * Contract: a function changes state fully or not at all. x86_emulate_system moves cpu->rip itself, to the next
 * instruction or the transfer's target, when it returns V_DONE, and when it returns V_EXIT for a write or EXIT_HLT; on
 * V_INJECT, V_RETRY and V_EXIT for a read, rip still names the instruction.
 */
#ifndef DOPPEL_ARCH_X86_EMULATE_H
#define DOPPEL_ARCH_X86_EMULATE_H

#include "arch/x86/insn.h"
#include "arch/x86/mmu.h"

/* Carries out one CLS_SYSTEM instruction. cpu->rip is its own address; rflags is whole. */
enum verdict x86_emulate_system(struct x86_cpu *cpu, const struct x86_insn *insn);

/*
 * Carries out a CLS_BRANCH, CLS_STACK or CLS_STRING instruction, or a CLS_SPECIAL one that needs only general registers
 * (XLAT, BCD, BOUND, CLD, STD, CLFLUSH, PREFETCH). A REP string instruction does at most a page's worth or 4096
 * iterations a call, leaves rip on itself while more are to do, and is interruptible between calls.
 */
enum verdict x86_emulate_general(struct x86_cpu *cpu, const struct x86_insn *insn);

/*
 * Delivers cpu->exc through the IDT: vector, error code, IST, privilege change; double fault by the table of SDM Vol.
 * 3A 6-5; V_EXIT with EXIT_SHUTDOWN on a triple fault. #PF sets CR2 only when delivered. Sets RF as faults do.
 */
enum verdict x86_deliver_exception(struct x86_cpu *cpu);

/* Delivers an external interrupt or NMI. The caller has seen that it can be taken: x86_can_interrupt, x86_can_nmi. */
enum verdict x86_deliver_interrupt(struct x86_cpu *cpu, uint8_t vector);
enum verdict x86_deliver_nmi(struct x86_cpu *cpu);

/* Neither may come in between: a shadow, or a debug trap that is due first (SDM Vol. 3A table 7-2). */
static inline bool x86_holds_off(const struct x86_cpu *cpu)
{
	return cpu->shadow || cpu->db_pending & X86_TRAP_DUE;
}

static inline bool x86_can_interrupt(const struct x86_cpu *cpu)
{
	return (cpu->rflags & FL_IF) && !x86_holds_off(cpu);
}

static inline bool x86_can_nmi(const struct x86_cpu *cpu)
{
	return !cpu->nmi_blocked && !x86_holds_off(cpu);
}

/*
 * To be called by an engine before it runs on after an exit. V_DONE: nothing is left over. V_EXIT: cpu->exit holds the
 * next piece of a wide MMIO write. V_INJECT: the monitor refused a WRMSR (exit.fault); rip is back on it and cpu->exc
 * is #GP(0).
 */
enum verdict x86_resume(struct x86_cpu *cpu);

/*
 * SYSCALL, whose next instruction is at `next`, and SYSRET with REX.W, both in 64-bit code, as kernels use them all the
 * time: for engines that know themselves what the change of privilege means to them, for mode_changed is not told.
 * False: it is not that case (a trap or fault may be due), and nothing has happened.
 */
bool x86_syscall_quickly(struct x86_cpu *cpu, uint64_t next);
bool x86_sysret_quickly(struct x86_cpu *cpu);

/* SIPI: starts the processor in real mode at vector << 12. */
void x86_start_ap(struct x86_cpu *cpu, uint8_t vector);

/*
 * After an instruction retired: single step (TF), and code, data and I/O breakpoints by DR7. Sets cpu->exc and returns
 * V_INJECT when #DB is due. `was` is RFLAGS before the instruction.
 */
enum verdict x86_after_instruction(struct x86_cpu *cpu, uint64_t was);

/* Loads `seg` from a selector, as MOV does; `cpl` checks apply. Used by far transfers and by boot code. */
enum verdict x86_load_segment(struct x86_cpu *cpu, enum x86_seg seg, uint16_t sel);

/*
 * User code in 64-bit mode was run by a processor whose descriptor tables are others, and has left these selectors
 * (by enum x86_seg): those that are new are loaded from the guest's tables. Bases of FS and GS stay. V_INJECT: from one
 * that they do not let it have.
 */
enum verdict x86_adopt_selectors(struct x86_cpu *cpu, const uint16_t sel[X86_SEGS]);

#endif
