/* Between the files of arch/x86 that carry out instructions: operands, segments and stacks. Nothing outside includes
 * this. */
#ifndef DOPPEL_ARCH_X86_INTERNAL_H
#define DOPPEL_ARCH_X86_INTERNAL_H

#include "arch/x86/cpuid.h"
#include "arch/x86/debug.h"
#include "arch/x86/emulate.h"

/* Hands on everything but V_DONE. */
#define TRY(expr)                                     \
	do {                                          \
		enum verdict try_verdict_ = (expr);   \
		if (unlikely(try_verdict_ != V_DONE)) \
			return try_verdict_;          \
	} while (0)

/* A write that went to MMIO has been carried out: the instruction retires, then the monitor acts. */
static inline bool x86_retires(const struct x86_cpu *cpu, enum verdict v)
{
	return v == V_DONE || (v == V_EXIT && (cpu->exit.write || cpu->exit.kind == EXIT_HLT));
}

static inline enum verdict raise_gp(struct x86_cpu *cpu, uint32_t error)
{
	return x86_raise_error(cpu, X86_GP, error);
}

static inline enum verdict raise_ud(struct x86_cpu *cpu)
{
	return x86_raise(cpu, X86_UD);
}

static inline bool real_mode(const struct x86_cpu *cpu)
{
	return !(cpu->cr0 & CR0_PE);
}

static inline bool vm86_mode(const struct x86_cpu *cpu)
{
	return cpu->rflags & FL_VM;
}

/* Segments are a base and a limit, with no descriptors: real mode and virtual-8086 mode. */
static inline bool flat_selectors(const struct x86_cpu *cpu)
{
	return real_mode(cpu) || vm86_mode(cpu);
}

static inline unsigned iopl(const struct x86_cpu *cpu)
{
	return (cpu->rflags & FL_IOPL) >> 12;
}

static inline bool cpu_has(const struct x86_cpu *cpu, enum x86_feature f)
{
	return cpu->model && x86_has(cpu->model, f);
}

/* Bits of physical addresses from phys_bits up to 51, which are reserved. */
static inline uint64_t phys_reserved(const struct x86_cpu *cpu)
{
	unsigned bits_used = cpu->model ? cpu->model->phys_bits : 52;

	return (BIT(52) - 1) & ~(BIT(bits_used) - 1);
}

/*
 * #AC(0) for an operand of `len` bytes (a power of two) of user code with CR0.AM and RFLAGS.AC (SDM Vol. 3A 7.15). A
 * far pointer is aligned as its offset (table 7-7).
 */
static inline enum verdict check_alignment(struct x86_cpu *cpu, uint64_t linear, unsigned len)
{
	if (likely(!(cpu->rflags & FL_AC)) || cpu->cpl != 3 || !(cpu->cr0 & CR0_AM) || !(linear & (len - 1)))
		return V_DONE;
	return x86_raise_error(cpu, X86_AC, 0);
}

/* Tells the engine; state.h says when. */
static inline void mode_changed(struct x86_cpu *cpu)
{
	if (cpu->ops && cpu->ops->mode_changed)
		cpu->ops->mode_changed(cpu);
}

static inline void flush_all(struct x86_cpu *cpu, bool global, int pcid)
{
	if (cpu->ops && cpu->ops->flush_all)
		cpu->ops->flush_all(cpu, global, pcid);
}

static inline void flush_page(struct x86_cpu *cpu, uint64_t va, int pcid)
{
	if (cpu->ops && cpu->ops->flush_page)
		cpu->ops->flush_page(cpu, va, pcid);
}

/* --- operand.c: registers and operands --- */

uint64_t gpr_get(const struct x86_cpu *cpu, unsigned n, unsigned size);
/* 4 bytes zero-extend, 1 and 2 leave the rest as it was. Size 1 is the low byte. */
void gpr_set(struct x86_cpu *cpu, unsigned n, uint64_t value, unsigned size);

static inline bool modrm_is_reg(const struct x86_insn *insn)
{
	return insn->modrm >= 0xc0;
}

/* The operand size that prefixes give an instruction whose size in 64-bit mode is 4 without REX.W. */
unsigned plain_opsize(const struct x86_insn *insn);
/* The same for those whose size in 64-bit mode is 8 unless 66 makes it 2: PUSHF, PUSH FS, LEAVE. */
unsigned stack_opsize(const struct x86_insn *insn);

/* The memory operand's linear address, checked for `len` bytes. */
enum verdict operand_linear(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned off, unsigned len,
			    unsigned access, uint64_t *linear);
/* Reads `size` bytes (1..8) of the r/m operand, register or memory, zero-extended. */
enum verdict rm_read(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size, uint64_t *value);
/* Writes the r/m operand: `reg_size` to a register, `mem_size` to memory. */
enum verdict rm_write(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t value, unsigned reg_size,
		      unsigned mem_size);

/* The address after the instruction. */
static inline uint64_t next_rip(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t rip = cpu->rip + insn->len;

	return insn->mode == MODE_64 ? rip : (uint32_t)rip;
}

/* --- stack.c --- */

/* What a stack is made of before it becomes SS:RSP: an interrupt's or a call gate's new stack. */
struct stack {
	struct x86_segment ss;
	uint64_t sp, mask; /* mask: of the stack pointer, by SS.B or 64-bit mode */
	unsigned access;   /* ACC_USER or ACC_IMPLICIT or 0, for mem_read and mem_write */
	bool wide;         /* 64-bit: no segment */
	uint32_t ext;      /* error code of #SS, less the selector: EXT while an event is delivered */
	uint16_t sel;      /* selector in #SS's error code: not 0 while the stack is being switched to */
};

void stack_current(const struct x86_cpu *cpu, struct stack *s);
/* Pushes items[0] first. All or nothing: V_EXIT is a pending MMIO write. s->sp moves when it succeeds. */
enum verdict stack_push(struct x86_cpu *cpu, struct stack *s, const uint64_t *items, unsigned n, unsigned size);
/* items[0] is the top. s->sp moves. */
enum verdict stack_pop(struct x86_cpu *cpu, struct stack *s, uint64_t *items, unsigned n, unsigned size);
/* Writes s->sp back to RSP: only the low part for a 16-bit stack. */
void stack_commit(struct x86_cpu *cpu, const struct stack *s);

/* --- segment.c: descriptors --- */

struct descriptor {
	struct x86_segment seg; /* as it would be loaded */
	uint64_t linear;        /* where it lies */
	uint32_t raw[4];        /* 2 words, 4 for a 16-byte one */
};

enum { /* types of system descriptors (SDM Vol. 3A table 3-2) */
       DESC_TSS16 = 1,
       DESC_LDT = 2,
       DESC_TSS16_BUSY = 3,
       DESC_CALL16 = 4,
       DESC_TASK = 5,
       DESC_INT16 = 6,
       DESC_TRAP16 = 7,
       DESC_TSS32 = 9,
       DESC_TSS32_BUSY = 11,
       DESC_CALL32 = 12,
       DESC_INT32 = 14,
       DESC_TRAP32 = 15,
       DESC_BUSY = 2, /* the bit between available and busy */
};

static inline bool sel_null(uint16_t sel)
{
	return !(sel & ~3u);
}

static inline bool desc_code(uint16_t attr)
{
	return (attr & (SEG_ATTR_S | 8)) == (SEG_ATTR_S | 8);
}

static inline bool desc_conforming(uint16_t attr)
{
	return (attr & (SEG_ATTR_S | 0xc)) == (SEG_ATTR_S | 0xc);
}

static inline bool desc_writable_data(uint16_t attr)
{
	return (attr & (SEG_ATTR_S | 0xa)) == (SEG_ATTR_S | 2);
}

/* Reads from a system table; `vector` with `error` where its address is not canonical. */
enum verdict table_read(struct x86_cpu *cpu, uint64_t va, void *dst, unsigned len, enum x86_vector vector,
			uint32_t error);
/*
 * Reads the descriptor that `sel` names from the GDT or the LDT. Outside the table: `vector` with the selector (and
 * `ext`) as error code. Not for null selectors.
 */
enum verdict desc_read(struct x86_cpu *cpu, uint16_t sel, enum x86_vector vector, uint32_t ext, struct descriptor *d);
/* Completes a system descriptor in long mode, where it has 16 bytes. */
enum verdict desc_read_high(struct x86_cpu *cpu, uint16_t sel, struct descriptor *d);
/* Sets the accessed bit (or a TSS's busy bit: `bit` of the attr) in the table and in d. */
enum verdict desc_set_bit(struct x86_cpu *cpu, struct descriptor *d, unsigned bit);
enum verdict desc_clear_bit(struct x86_cpu *cpu, struct descriptor *d, unsigned bit);
/* The checks of SS for `cpl`, for far transfers: raises `vector` (#TS or #GP) or #SS for not present. */
enum verdict desc_check_stack(struct x86_cpu *cpu, const struct descriptor *d, uint16_t sel, unsigned cpl,
			      enum x86_vector vector, uint32_t ext);
/* A segment register in real or virtual-8086 mode. */
void seg_load_flat(struct x86_cpu *cpu, enum x86_seg seg, uint16_t sel);
/* CS from a checked descriptor, at privilege `cpl`; tells nobody. */
void seg_load_cs(struct x86_cpu *cpu, const struct descriptor *d, uint16_t sel, unsigned cpl);
/* SS as a null selector with RPL `cpl`, which 64-bit mode allows. */
void seg_load_null_ss(struct x86_cpu *cpu, unsigned cpl);
/*
 * After a return to outer privilege: data segments that it may not see become null (SDM Vol. 2, IRET, RET). They cannot
 * be used, but 64-bit mode has the bases of FS and GS still.
 */
void seg_drop_inner(struct x86_cpu *cpu);
/* x86_linear for a segment that is in no register yet. `ss`: faults are #SS(error), else #GP(error). */
enum verdict seg_linear(struct x86_cpu *cpu, const struct x86_segment *s, bool ss, uint32_t error, uint64_t off,
			unsigned len, unsigned access, uint64_t *linear);
/* Stack `level` (0..2) from the TSS; long mode: rsp only. */
enum verdict tss_stack(struct x86_cpu *cpu, unsigned level, uint32_t ext, uint16_t *ss, uint64_t *sp);
/* Entry `ist` (1..7) of a 64-bit TSS's interrupt stack table. */
enum verdict tss_ist(struct x86_cpu *cpu, unsigned ist, uint32_t ext, uint64_t *sp);

/* --- exception.c, task.c --- */

enum { EVENT_SOFT = 1 /* INT n, INT3, INTO: gate's DPL is checked, EXT is not set */, EVENT_ERROR = 2, EVENT_RF = 4 };

/*
 * Takes one event through the IDT (or IVT); `next` is the return address that the handler gets. Changes state fully or
 * not at all (but for what task_switch says).
 */
enum verdict deliver_event(struct x86_cpu *cpu, unsigned vector, unsigned flags, uint32_t error, uint64_t next);

enum task_source { TASK_JMP, TASK_CALL, TASK_IRET, TASK_EVENT };
/*
 * Switches to the task of TSS `sel` (SDM Vol. 3A 8.3); the old task goes on at `next`. V_INJECT either before anything
 * has changed, or with the new task entered: then the exception is the new task's, and rip is there.
 */
enum verdict task_switch(struct x86_cpu *cpu, uint16_t sel, enum task_source source, uint64_t next, uint32_t ext);

/* --- control.c --- */

/* MOV to a control register, with all its checks. */
enum verdict write_cr0(struct x86_cpu *cpu, uint64_t value);
enum verdict write_cr3(struct x86_cpu *cpu, uint64_t value);
enum verdict write_cr4(struct x86_cpu *cpu, uint64_t value);
enum verdict write_efer(struct x86_cpu *cpu, uint64_t value);
#define CR0_DEFINED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
/* Bits that may be set, on this model. */
uint64_t cr4_allowed(const struct x86_cpu *cpu);
uint64_t efer_allowed(const struct x86_cpu *cpu);
bool xcr0_good(const struct x86_cpu *cpu, uint64_t value);

#define DR7_FIXED1 0x400ull
#define DR7_RESERVED 0xd800ull

/* --- msr.c --- */

/*
 * IA32_ARCH_CAPABILITIES (SDM Vol. 4 table 2-2): RDCL, IBRS_ALL, SKIP_L1DFL, MDS, PSCHANGE_MC, TAA, SBDR/SSDP, FBSDP,
 * PSDP, BHI, PBRSB, GDS, RFDS, ITS: not affected. The guest's privilege levels do not exist on the host's processor, so
 * nothing leaks between them that these flaws would let through, and no mitigation inside the guest could add to that.
 */
#define X86_ARCH_CAPABILITIES                                                                                    \
	(BIT(0) | BIT(1) | BIT(3) | BIT(5) | BIT(6) | BIT(8) | BIT(13) | BIT(14) | BIT(15) | BIT(20) | BIT(24) | \
	 BIT(26) | BIT(27) | BIT(62))

/* Whether those that are kept in the processor have values that could have been written. */
bool msrs_good(const struct x86_cpu *cpu);

/* The guest's TSC. */
uint64_t guest_tsc(const struct x86_cpu *cpu);

/* --- system.c and sys_*.c: one function for each instruction or group --- */

typedef enum verdict sys_fn(struct x86_cpu *cpu, const struct x86_insn *insn);

sys_fn sys_mov, sys_push, sys_pop, sys_far_jmp, sys_far_call, sys_far_ret, sys_iret;
sys_fn sys_int, sys_int1, sys_int3, sys_into, sys_syscall, sys_sysret, sys_sysenter, sys_sysexit;
sys_fn sys_load_far, sys_sgdt, sys_sidt, sys_lgdt, sys_lidt, sys_sldt, sys_str, sys_lldt, sys_ltr;
sys_fn sys_lmsw, sys_smsw, sys_clts, sys_mov_cr, sys_mov_dr, sys_rdmsr, sys_wrmsr, sys_cpuid, sys_hypercall, sys_rdtsc,
	sys_rdtscp, sys_rdpmc, sys_rdpid, sys_xgetbv, sys_xsetbv, sys_invlpg, sys_invpcid, sys_invd, sys_hlt,
	sys_swapgs, sys_cli, sys_sti, sys_pushf, sys_popf, sys_in, sys_out, sys_ins, sys_outs, sys_verr, sys_verw,
	sys_lar, sys_lsl, sys_arpl, sys_fsgsbase, sys_clac, sys_stac;

#endif
