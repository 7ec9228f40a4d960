/* What the parts of the thunk share. Private to thunk*.c and thunk_entry.S, which sees the offsets only. */
#ifndef DOPPEL_ENGINE_TRANSLATE_THUNK_INTERNAL_H
#define DOPPEL_ENGINE_TRANSLATE_THUNK_INTERNAL_H

/* Offsets in struct thunk_run, for thunk_entry.S. */
#define RUN_GPR 0
#define RUN_FLAGS 128
#define RUN_CODE 136
#define RUN_XSAVE 144
#define RUN_MXCSR 152
#define RUN_FCW 156
#define RUN_AVX 160

#ifndef __ASSEMBLER__

#include "arch/x86/cpuid.h"
#include "engine/translate/thunk.h"

#define THUNK_SLOTS 512
#define THUNK_SLOT_SIZE 64
#define THUNK_BOUNCE 1024

/* One run on the host: registers go in and come out here. */
struct thunk_run {
	uint64_t gpr[X86_GPRS]; /* host registers; RSP's is not loaded */
	uint64_t flags;
	const uint8_t *code;
	uint8_t *xsave; /* vector state to load and store, or NULL: the instruction has none */
	uint32_t mxcsr; /* the host's own, while xsave's is loaded */
	uint16_t fcw;
	uint64_t avx; /* the host has the upper halves: clear them afterwards */
};

_Static_assert(offsetof(struct thunk_run, flags) == RUN_FLAGS, "thunk_entry.S");
_Static_assert(offsetof(struct thunk_run, code) == RUN_CODE, "thunk_entry.S");
_Static_assert(offsetof(struct thunk_run, xsave) == RUN_XSAVE, "thunk_entry.S");
_Static_assert(offsetof(struct thunk_run, mxcsr) == RUN_MXCSR, "thunk_entry.S");
_Static_assert(offsetof(struct thunk_run, fcw) == RUN_FCW, "thunk_entry.S");
_Static_assert(offsetof(struct thunk_run, avx) == RUN_AVX, "thunk_entry.S");

/* Code made for one instruction: found again by its bytes. */
struct thunk_slot {
	uint8_t bytes[15];
	uint8_t len, mode;
	uint8_t rsp, mem; /* host registers that hold the guest's RSP and the memory operand's address */
};

struct thunk {
	_Alignas(64) uint8_t bounce[THUNK_BOUNCE];
	_Alignas(64) uint8_t xsave[X86_XSAVE_SIZE]; /* for runs whose effect may have to be undone */
	struct thunk_run run;
	int fault;             /* enum host_fault of the run, or -1 */
	uint32_t mxcsr_mask;   /* bits of MXCSR that the host has */
	struct host_code code; /* THUNK_SLOTS slots */
	struct thunk_slot slot[THUNK_SLOTS];
};

/* A memory operand that has been looked up: a pointer into guest memory, or the bounce buffer. */
struct thunk_operand {
	uint64_t linear;
	uint8_t *host; /* what the instruction works on */
	uint64_t gpa;  /* when it is guest memory itself */
	unsigned size;
	bool read, write;
	bool in_place;
};

/* In thunk_entry.S. */
void thunk_run_code(struct thunk_run *run);
extern const char thunk_run_done[];

/* --- thunk_mem.c --- */

/* Guest memory of any length up to 4096 bytes, checked whole before anything is changed; else as mem_read and
 * mem_write. */
enum verdict thunk_read(struct x86_cpu *cpu, uint64_t linear, void *dst, unsigned len);
enum verdict thunk_write(struct x86_cpu *cpu, uint64_t linear, const void *src, unsigned len);
enum verdict thunk_probe(struct x86_cpu *cpu, uint64_t linear, unsigned len, bool write);
/* Segment and canonical checks. */
enum verdict thunk_linear(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, unsigned len, bool write,
			  uint64_t *linear);
/* Finds the operand at linear address op->linear, and reads it if it must be bounced. */
enum verdict thunk_operand_open(struct thunk *t, struct x86_cpu *cpu, struct thunk_operand *op);
/* Afterwards: writes it back. V_EXIT: the write is pending and the instruction retires. */
enum verdict thunk_operand_close(struct thunk *t, struct x86_cpu *cpu, const struct thunk_operand *op);

/* --- thunk_slot.c --- */

/* Finds or makes the code of an instruction and points run.code at it. NULL when it cannot be written for the host. */
const struct thunk_slot *thunk_find_slot(struct thunk *t, const struct x86_insn *insn);

/* --- thunk.c --- */

/* Misaligned operands raise #AC (SDM Vol. 3A 6.15). */
static inline bool thunk_checks_alignment(const struct x86_cpu *cpu)
{
	return cpu->cpl == 3 && (cpu->cr0 & CR0_AM) && (cpu->rflags & FL_AC);
}

static inline enum verdict thunk_retire(struct x86_cpu *cpu, const struct x86_insn *insn, enum verdict v)
{
	uint64_t next = cpu->rip + insn->len;

	cpu->rip = insn->mode == MODE_64 ? next : (uint32_t)next;
	return v;
}

/* Loads the guest's vector state into the host and stores it again, as the processor would have it. */
void thunk_canonicalize(struct thunk *t, struct x86_cpu *cpu);
/* Runs MMX's change of the x87 state: all registers valid, TOP 0. V_INJECT: an x87 exception was pending. */
enum verdict thunk_enter_mmx(struct thunk *t, struct x86_cpu *cpu);

/* --- thunk_masked.c, thunk_xsave.c: CLS_SPECIAL --- */

enum verdict thunk_masked(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn);
enum verdict thunk_gather(struct x86_cpu *cpu, const struct x86_insn *insn);
enum verdict thunk_fxsave(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn);
enum verdict thunk_xsave(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn);

/* The parts of an XSAVE area in standard format (SDM Vol. 1 13.4). */
#define XS_FCW 0
#define XS_FSW 2
#define XS_FOP 6
#define XS_FIP 8
#define XS_FDP 16
#define XS_MXCSR 24
#define XS_MXCSR_MASK 28
#define XS_ST(n) (32 + 16 * (n))
#define XS_XMM(n) (160 + 16 * (n))
#define XS_LEGACY_END 416
#define XS_BV 512
#define XS_COMP_BV 520
#define XS_HEADER_END 576
#define XS_YMMH(n) (576 + 16 * (n))

/* Makes the bytes of components that XSTATE_BV says are in their initial state say so too. */
void thunk_xsave_fill(uint8_t *xsave);

#endif
#endif
