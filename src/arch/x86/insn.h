/*
 * One decoded instruction, in the form that the emulator and the translator share: the fields of its encoding, so that
 * it can be written out again with other registers and another memory operand, and what it reads and writes.
 * Decoding is Zydis's; decode.c turns its answer into this.
 */
#ifndef DOPPEL_ARCH_X86_INSN_H
#define DOPPEL_ARCH_X86_INSN_H

#include "arch/x86/state.h"

enum x86_mode { MODE_16, MODE_32, MODE_64 }; /* default operand and address size: CS.D, CS.L */

/*
 * How an instruction is to be carried out. PLAIN ones can be executed by the host as they are, once their memory
 * operand (at most one, described by base/index/disp/seg) has been replaced; all others need code of ours.
 */
enum x86_class {
	CLS_PLAIN,   /* registers and at most one ordinary memory operand of fixed size, touched whole */
	CLS_BRANCH,  /* near JMP, Jcc, CALL, RET, LOOPcc, JrCXZ */
	CLS_STACK,   /* PUSH, POP, PUSHA, POPA, ENTER, LEAVE of general registers, memory and immediates */
	CLS_STRING,  /* MOVS, STOS, LODS, CMPS, SCAS, with or without REP (not INS, OUTS) */
	CLS_SPECIAL, /* unprivileged, but not to be copied: XLAT, MASKMOV*, VMASKMOV*, VPMASKMOV*, gathers, FXSAVE and
			the XSAVE family, FNSAVE/FRSTOR/FLDENV/FNSTENV, BCD and BOUND outside 64-bit mode, CMPXCHG8B/16B
			are PLAIN, CLD, STD, RDRAND/RDSEED are PLAIN, CLFLUSH*, PREFETCH* (no memory access is made) */
	CLS_SYSTEM,  /* everything that emulate.h carries out: privileged, sensitive, segment or far-control-transfer */
	CLS_INVALID, /* #UD on this CPU model: undefined encodings and those of features that are not claimed */
	CLS_TOOLONG, /* over 15 bytes: #GP(0) */
	CLS_PARTIAL, /* bytes ran out: fetch more (the next page) and decode again */
};

/* x86_insn.flags */
enum {
	INSN_LOCK = 1 << 0,
	INSN_REP = 1 << 1 /* F3 */,
	INSN_REPNE = 1 << 2 /* F2 */,
	INSN_OPSIZE = 1 << 3 /* 66 present */,
	INSN_ADDRSIZE = 1 << 4 /* 67 present */,
	INSN_REX = 1 << 5,
	INSN_REXW = 1 << 6 /* or VEX.W */,
	INSN_VEX = 1 << 7,
	INSN_MODRM = 1 << 8,
	INSN_MEM = 1 << 9 /* has an explicit memory operand that is accessed (not LEA, not NOP Ev) */,
	INSN_VSIB = 1 << 10,
	INSN_HIGH8 = 1 << 11 /* names AH, CH, DH or BH */,
	INSN_REG_GPR = 1 << 12 /* ModRM.reg is a GPR */,
	INSN_RM_GPR = 1 << 13 /* ModRM.rm is a GPR, mod = 3 */,
	INSN_VVVV_GPR = 1 << 14,
	INSN_OPREG_GPR = 1 << 15 /* low 3 opcode bits */,
	INSN_FPU = 1 << 16 /* x87 or MMX: #NM on CR0.TS/EM, #MF pending */,
	INSN_SSE = 1 << 17 /* #NM, #UD by CR0/CR4 */,
	INSN_AVX = 1 << 18 /* needs CR4.OSXSAVE and XCR0 */,
	INSN_ADDR_ONLY = 1 << 19 /* LEA, NOP Ev: address formed, not used */,
	INSN_ALIGN = 1 << 20 /* memory operand must be aligned to its size, else #GP(0) */,
	INSN_BITOFF = 1 << 21 /* BT, BTS, BTR, BTC m, r: ModRM.reg holds a signed bit offset that moves the memory
				 operand; SPECIAL */
	,
	INSN_MAND66 = 1 << 22 /* the 66 prefix selects the opcode and is not an operand size */,
};

struct x86_insn {
	uint8_t bytes[15];
	uint8_t len;
	uint16_t mnemonic; /* ZydisMnemonic */
	uint8_t cls;       /* enum x86_class */
	uint8_t mode;      /* enum x86_mode */
	uint8_t opsize;    /* effective operand size in bytes: 1, 2, 4, 8 */
	uint8_t addrsize;  /* effective address size in bytes: 2, 4, 8 */
	uint32_t flags;    /* INSN_* */
	uint8_t map;       /* opcode map: 0 one-byte, 1 0F, 2 0F38, 3 0F3A */
	uint8_t opcode;
	uint8_t opcode_off; /* where the opcode byte is in bytes[] */
	uint8_t modrm_off, imm_off,
		imm_len;     /* immediates: all that follows ModRM/SIB/displacement; imm_len counts them together */
	uint8_t modrm;       /* raw byte */
	uint8_t reg, rm;     /* register numbers 0..15 from ModRM with REX/VEX bits; rm is valid when mod = 3 */
	uint8_t vvvv;        /* VEX.vvvv, 0..15, not inverted; 0 when absent */
	uint8_t opreg;       /* register in the opcode's low 3 bits with REX.B, for PUSH r, MOV r,imm, XCHG, BSWAP */
	uint8_t vexl, vexpp; /* VEX.L, VEX.pp */
	/* memory operand: seg base + base + index * scale + disp, truncated to addrsize */
	int8_t base, index; /* GPR number; -1 none; base 16 is RIP (disp is then relative to the next instruction);
			       index is a vector register with INSN_VSIB */
	uint8_t scale;      /* 1, 2, 4, 8 */
	uint8_t seg; /* effective segment, enum x86_seg, overrides applied (and ignored where 64-bit mode ignores them)
		      */
	uint16_t mem_size; /* bytes accessed */
	bool mem_read, mem_write;
	int64_t disp;
	uint64_t imm, imm2; /* sign-extended to 64 bits where the instruction does that; for near branches: the
			       displacement */
	uint16_t gpr_read,
		gpr_write;     /* bit n: register n is read or written (any part; a partial write counts as both) */
	uint16_t gpr_implicit; /* those of them that the opcode names, so that no other can take their place */
	uint16_t fl_read;      /* RFLAGS bits read */
	uint16_t fl_write;     /* RFLAGS bits written or left undefined */
	bool fl_cond;          /* flags may be left as they were (a shift by CL): then they count as read too */
};

/*
 * Decodes up to `len` bytes at `p` in `mode` for the features of `model` (NULL: all that the host has and we know).
 * Never fails: what can't be decoded has a class that says so, with len 0 for CLS_PARTIAL.
 */
struct x86_cpuid_model;
void x86_decode(struct x86_insn *insn, const uint8_t *p, size_t len, enum x86_mode mode,
		const struct x86_cpuid_model *model);

#define X86_INSN_MAX 15 /* bytes; what has more is CLS_TOOLONG */

/*
 * How many bytes an instruction in 64-bit mode has by its encoding alone, whether there is such a one or not; more than
 * `len`: not all of them are there. Quicker than x86_decode by far.
 */
unsigned x86_length(const uint8_t *p, size_t len);

/* The general register that PUSH or POP names, if it does: in the opcode or in ModRM. */
static inline unsigned x86_stack_register(const struct x86_insn *insn)
{
	return insn->flags & INSN_OPREG_GPR ? insn->opreg : insn->rm;
}

static inline enum x86_mode x86_mode(const struct x86_cpu *cpu)
{
	uint16_t attr = cpu->seg[SEG_CS].attr;
	if (x86_code64(cpu))
		return MODE_64;
	return attr & SEG_ATTR_DB ? MODE_32 : MODE_16;
}

/* The memory operand's offset within its segment, truncated to the address size; x86_linear adds the segment base. */
uint64_t x86_effective_address(const struct x86_cpu *cpu, const struct x86_insn *insn);
/* That base: 64-bit mode knows no others than those of FS and GS (SDM Vol. 1 3.4.4). */
static inline uint64_t x86_operand_base(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return insn->mode != MODE_64 || insn->seg >= SEG_FS ? cpu->seg[insn->seg].base : 0;
}

/* For who reaches guest memory by a pointer: notes the data breakpoints that the access matches, as mem_read and
 * mem_write do. */
void x86_note_access(struct x86_cpu *cpu, uint64_t linear, unsigned len, bool write);

#endif
