/*
 * The state of one x86-64 processor, as software sees it (SDM Vol. 1 ch. 3, Vol. 3A ch. 2). It is plain data: no
 * pointers to what runs it, so every engine shares it, and a snapshot is a copy of it.
 *
 * Where an engine keeps parts of it elsewhere while guest code runs (general registers and flags in the host's
 * registers, vector state in the host's vector registers), they are here again whenever C code above the engine looks.
 */
#ifndef DOPPEL_ARCH_X86_STATE_H
#define DOPPEL_ARCH_X86_STATE_H

#include "base/base.h"

enum x86_gpr { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, X86_GPRS };
enum x86_seg { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, X86_SEGS, SEG_LDTR = X86_SEGS, SEG_TR, X86_SEGS_ALL };

/* RFLAGS (SDM Vol. 1 3.4.3). */
enum {
	FL_CF = 1 << 0,
	FL_FIXED1 = 1 << 1,
	FL_PF = 1 << 2,
	FL_AF = 1 << 4,
	FL_ZF = 1 << 6,
	FL_SF = 1 << 7,
	FL_TF = 1 << 8,
	FL_IF = 1 << 9,
	FL_DF = 1 << 10,
	FL_OF = 1 << 11,
	FL_IOPL = 3 << 12,
	FL_NT = 1 << 14,
	FL_RF = 1 << 16,
	FL_VM = 1 << 17,
	FL_AC = 1 << 18,
	FL_VIF = 1 << 19,
	FL_VIP = 1 << 20,
	FL_ID = 1 << 21,
	FL_ARITH = FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF,
};

/* Control registers (SDM Vol. 3A 2.5). */
#define CR0_PE BIT(0)
#define CR0_MP BIT(1)
#define CR0_EM BIT(2)
#define CR0_TS BIT(3)
#define CR0_ET BIT(4)
#define CR0_NE BIT(5)
#define CR0_WP BIT(16)
#define CR0_AM BIT(18)
#define CR0_NW BIT(29)
#define CR0_CD BIT(30)
#define CR0_PG BIT(31)

#define CR4_VME BIT(0)
#define CR4_PVI BIT(1)
#define CR4_TSD BIT(2)
#define CR4_DE BIT(3)
#define CR4_PSE BIT(4)
#define CR4_PAE BIT(5)
#define CR4_MCE BIT(6)
#define CR4_PGE BIT(7)
#define CR4_PCE BIT(8)
#define CR4_OSFXSR BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP BIT(11)
#define CR4_FSGSBASE BIT(16)
#define CR4_PCIDE BIT(17)
#define CR4_OSXSAVE BIT(18)
#define CR4_SMEP BIT(20)
#define CR4_SMAP BIT(21)

#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NXE BIT(11)

/* Exception vectors (SDM Vol. 3A 6.15). */
enum x86_vector {
	X86_DE = 0,
	X86_DB = 1,
	X86_NMI = 2,
	X86_BP = 3,
	X86_OF = 4,
	X86_BR = 5,
	X86_UD = 6,
	X86_NM = 7,
	X86_DF = 8,
	X86_TS = 10,
	X86_NP = 11,
	X86_SS = 12,
	X86_GP = 13,
	X86_PF = 14,
	X86_MF = 16,
	X86_AC = 17,
	X86_MC = 18,
	X86_XM = 19,
};

/* Page-fault error code (SDM Vol. 3A 4.7). */
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16 };

/*
 * A segment register with its hidden part. `attr` is the second descriptor word's bits 8..23 shifted down by 8:
 * type 0..3, S 4, DPL 5..6, P 7, AVL 12, L 13, D/B 14, G 15. `limit` is in bytes, already scaled by G.
 * A null selector loaded in 64-bit mode or a null data segment has P clear ("unusable").
 */
struct x86_segment {
	uint64_t base;
	uint32_t limit;
	uint16_t sel;
	uint16_t attr;
};

#define SEG_ATTR_TYPE 0x000f
#define SEG_ATTR_S 0x0010
#define SEG_ATTR_DPL(attr) (((attr) >> 5) & 3)
#define SEG_ATTR_P 0x0080
#define SEG_ATTR_L 0x2000
#define SEG_ATTR_DB 0x4000
#define SEG_ATTR_G 0x8000

struct x86_table {
	uint64_t base;
	uint16_t limit;
};

/* An exception to be delivered, as the instruction that raised it saw it. */
struct x86_exception {
	uint8_t vector;
	bool has_error;
	bool soft; /* INT n, INT3, INTO: rip is already past the instruction, and DPL is checked. The emulator
		      delivers these itself; nothing else raises them */
	bool trap; /* a trap (#DB single step): rip is already past the instruction */
	uint32_t error;
	uint64_t cr2; /* for #PF: the linear address */
	uint64_t dr6; /* for #DB: bits to set in DR6 */
};

/* What an instruction or a memory access came to. */
enum verdict {
	V_DONE,   /* carried out; state changed whole */
	V_RETRY,  /* nothing changed; run the same instruction again (a mapping changed meanwhile) */
	V_INJECT, /* nothing changed; deliver cpu->exc */
	V_EXIT,   /* nothing changed (unless said) ; the monitor must act on cpu->exit first, then run it again or go on
		   */
};

/* Why an engine came back. */
enum x86_exit_kind {
	EXIT_NONE,
	EXIT_INTERRUPTED, /* kicked, or an interrupt can be taken now; may come for no reason */
	EXIT_IO,          /* port I/O */
	EXIT_MMIO,        /* access to a guest-physical address that is not RAM */
	EXIT_MSR,  /* RDMSR/WRMSR of a register that lives outside the processor core (local APIC), or WRMSR of the TSC,
		      done by the core, which moves the local APIC's deadline; `len` is the instruction's length,
		      by which x86_resume goes back when the monitor sets `fault` */
	EXIT_CR8,  /* MOV from/to CR8: the local APIC's task priority */
	EXIT_TIME, /* RDTSC, RDTSCP, and the host's TSC, in `addr`, is past tsc_due. The monitor sees to what is due,
		      and then has the guest read its TSC as it puts it in `data`, or anew */
	EXIT_HYPERCALL, /* VMCALL, VMMCALL, retired; what it returns the monitor puts in the registers */
	EXIT_HLT,       /* halted; rip is past the HLT */
	EXIT_SHUTDOWN,  /* triple fault */
	EXIT_KINDS
};

/*
 * An exit, and the way back. For a read (`write` false) the monitor puts the result in `data` and sets `completed`
 * before it runs the processor again: the same instruction then runs anew, finds its answer here and retires. For a
 * write the instruction has retired already, and `completed` is not looked at.
 * `valid_msr`: for EXIT_MSR, the monitor sets `fault` if the access must raise #GP(0) (a faulting write is then
 * delivered as if the instruction had not run).
 */
struct x86_exit {
	enum x86_exit_kind kind;
	bool write;
	bool completed;
	bool fault;
	uint8_t len;   /* bytes: 1, 2, 4, 8 for I/O and MMIO (MMIO up to 8: wider accesses come in pieces) */
	uint64_t addr; /* port, guest-physical address or MSR number */
	uint64_t data;
};

enum { X86_MMIO_PENDING = 24 }; /* pieces one instruction can need: two 64-byte operands, each crossing a page */

struct x86_mmio_piece {
	uint64_t addr, data;
	uint8_t len;
};

/* Pieces of MMIO reads already answered for the instruction at hand; emptied when it retires or faults. */
struct x86_mmio_replay {
	unsigned count;
	unsigned next; /* next piece to hand out while the instruction is run again */
	struct x86_mmio_piece piece[X86_MMIO_PENDING];
};

/*
 * Pieces of an MMIO write after the first, when one exit can't say it all: `cpu->exit` is the first, x86_resume hands
 * out the others, in order, before the next instruction runs.
 */
struct x86_mmio_queue {
	unsigned count, next;
	struct x86_mmio_piece piece[X86_MMIO_PENDING];
};

/* XSAVE area, standard format (SDM Vol. 1 13.4): legacy region, header, AVX state. */
#define X86_XSAVE_SIZE 832
#define XCR0_X87 BIT(0)
#define XCR0_SSE BIT(1)
#define XCR0_AVX BIT(2)

#define X86_NO_STEP \
	0x80 /* in db_pending: the instruction cleared TF on its way into a handler, no single-step trap after it */
#define X86_TRAP_DUE \
	0x40 /* in db_pending: a debug trap, in exc, is due once the monitor has done what it is asked for */

struct guest_memory;

struct x86_cpu {
	uint64_t gpr[X86_GPRS];
	uint64_t rip;
	uint64_t rflags; /* whole and true whenever C code above an engine looks */
	struct x86_segment seg[X86_SEGS_ALL];
	struct x86_table gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4;
	uint64_t efer;
	uint64_t xcr0;
	uint64_t dr[4], dr6, dr7;
	uint8_t cpl;
	uint8_t shadow; /* interrupts are held off until the next instruction retires: 1 after STI, 2 after MOV SS/POP
			   SS */
	uint8_t db_pending; /* data and I/O breakpoints met (DR6.B0-B3), to be reported: debug.h */
	bool nmi_blocked;
	bool halted;

	/* MSRs that live in the core. */
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, mtrr_def_type, mtrr_fixed[11], mtrr_var[16];
	uint64_t misc_enable, tsc_offset, tsc_adjust; /* guest TSC = host TSC + tsc_offset */
	uint64_t tsc_due;   /* the host's TSC from which on reading it is an exit; UINT64_MAX: never. The monitor's */
	uint64_t apic_base; /* IA32_APIC_BASE; the local APIC's mode is its bits 10 and 11 */
	uint64_t spec_ctrl, mcg_status, mcg_cap;

	struct x86_exception exc;
	struct x86_exit exit;
	struct x86_mmio_replay mmio;
	struct x86_mmio_queue mmio_out;

	uint32_t id; /* APIC ID */
	struct guest_memory *mem;
	const struct x86_cpuid_model *model;

	/*
	 * Called by arch code after it changed what an engine may have cached; the engine fills these in, NULL
	 * otherwise. flush_page: INVLPG of one linear address. flush_all: global entries too, or non-global ones only.
	 * pcid >= 0 limits it to that PCID (INVPCID, MOV CR3), -1 means all.
	 */
	const struct x86_cpu_ops *ops;

	_Alignas(64) uint8_t xsave[X86_XSAVE_SIZE];
};

struct x86_cpu_ops {
	void (*flush_page)(struct x86_cpu *cpu, uint64_t va, int pcid);
	void (*flush_all)(struct x86_cpu *cpu, bool global, int pcid);
	void (*space_changed)(struct x86_cpu *cpu); /* CR3 names another PCID's tables, and nothing is to be flushed */
	void (*mode_changed)(struct x86_cpu *cpu);  /* CR0, CR4, EFER, XCR0, CS, SS, CPL, DR7 or RFLAGS.AC/TF changed */
	/*
	 * Where [va, va + len) is in host memory, for an access (ACC_*) that is allowed and needs nothing else done,
	 * by the engine's TLB; NULL: to be found out.
	 */
	uint8_t *(*pointer)(struct x86_cpu *cpu, uint64_t va, unsigned len, unsigned access);
};

/* Power-on state (SDM Vol. 3A table 9-1), or that after INIT when `init`. Keeps id, mem, model, ops, tsc_offset. */
void x86_cpu_reset(struct x86_cpu *cpu, bool init);

struct state_stream;
/* Saves or loads all but who it is and its TSC's offset. What cannot be is refused, and the processor is as it was. */
void x86_cpu_state(struct x86_cpu *cpu, struct state_stream *s);
/* What of its state no processor of this model can have; NULL: it can be. */
const char *x86_cpu_flaw(const struct x86_cpu *cpu);

/* The PCID in use; -1 without CR4.PCIDE. */
static inline int x86_pcid(const struct x86_cpu *cpu)
{
	return cpu->cr4 & CR4_PCIDE ? (int)(cpu->cr3 & 0xfff) : -1;
}

static inline bool x86_long_mode(const struct x86_cpu *cpu)
{
	return cpu->efer & EFER_LMA;
}

/* True when the code segment is a 64-bit one. */
static inline bool x86_code64(const struct x86_cpu *cpu)
{
	return (cpu->efer & EFER_LMA) && (cpu->seg[SEG_CS].attr & SEG_ATTR_L);
}

static inline bool x86_canonical(uint64_t va)
{
	return (uint64_t)((int64_t)(va << 16) >> 16) == va;
}

/* Sets cpu->exc and returns V_INJECT. */
static inline enum verdict x86_raise(struct x86_cpu *cpu, enum x86_vector vector) /* no error code */
{
	cpu->exc = (struct x86_exception){.vector = (uint8_t)vector};
	return V_INJECT;
}

static inline enum verdict x86_raise_error(struct x86_cpu *cpu, enum x86_vector vector, uint32_t error)
{
	cpu->exc = (struct x86_exception){.vector = (uint8_t)vector, .has_error = true, .error = error};
	return V_INJECT;
}

#endif
