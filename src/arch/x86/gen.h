/* What the parts of x86_emulate_general share. Private to gen_*.c. */
#ifndef DOPPEL_ARCH_X86_GEN_H
#define DOPPEL_ARCH_X86_GEN_H

#include "arch/x86/emulate.h"

/* One part each; what they do not know is #UD. cpu->rip still names the instruction. */
enum verdict gen_branch(struct x86_cpu *cpu, const struct x86_insn *insn);
enum verdict gen_stack(struct x86_cpu *cpu, const struct x86_insn *insn);
enum verdict gen_string(struct x86_cpu *cpu, const struct x86_insn *insn);
enum verdict gen_special(struct x86_cpu *cpu, const struct x86_insn *insn);
enum verdict gen_bcd(struct x86_cpu *cpu, const struct x86_insn *insn);

/*
 * A string instruction over host memory: as many elements as lie, for each operand, within one page of RAM. `count` is
 * how many may be done at most (at least 1). Returns how many were done; 0 when there is no fast way, with nothing
 * changed. Advances RSI and RDI, not RCX.
 */
struct gen_string_op {
	uint8_t opcode; /* with bit 0 set: A5 MOVS, A7 CMPS, AB STOS, AD LODS, AF SCAS */
	uint8_t size;   /* bytes of an element */
	uint8_t addrsize;
	uint8_t src_seg; /* enum x86_seg */
	bool src, dst;   /* uses RSI, uses RDI */
	bool compare;    /* CMPS, SCAS */
	bool stop_zf;    /* the ZF that ends a repeated comparison */
};
uint64_t gen_string_bulk(struct x86_cpu *cpu, const struct gen_string_op *op, uint64_t count);

/* Sets FL_ARITH as `a` - `b` of `size` bytes does. */
void gen_flags_compare(struct x86_cpu *cpu, uint64_t a, uint64_t b, unsigned size);

/* Bits that an address or count of `size` bytes can have. */
static inline uint64_t gen_mask(unsigned size)
{
	return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

/* Writes the low `size` bytes of a register as instructions do: 4 bytes clear the upper half, 1 and 2 leave the rest.
 */
static inline void gen_set_reg(struct x86_cpu *cpu, unsigned reg, uint64_t value, unsigned size)
{
	if (size >= 4)
		cpu->gpr[reg] = zext(value, size);
	else
		cpu->gpr[reg] = (cpu->gpr[reg] & ~gen_mask(size)) | (value & gen_mask(size));
}

/* Retires: moves rip past the instruction. */
static inline enum verdict gen_retire(struct x86_cpu *cpu, const struct x86_insn *insn, enum verdict v)
{
	uint64_t next = cpu->rip + insn->len;
	cpu->rip = insn->mode == MODE_64 ? next : (uint32_t)next;
	return v;
}

/* Width of the stack pointer in bytes: 64-bit mode, else SS.B (SDM Vol. 1 6.2.3). */
static inline unsigned gen_stack_size(const struct x86_cpu *cpu)
{
	if (x86_code64(cpu))
		return 8;
	return cpu->seg[SEG_SS].attr & SEG_ATTR_DB ? 4 : 2;
}

static inline bool gen_alignment_checked(const struct x86_cpu *cpu)
{
	return cpu->cpl == 3 && (cpu->rflags & FL_AC) && (cpu->cr0 & CR0_AM);
}

/* Access through a segment. `len` up to 8. A write that gives V_EXIT has been noted: retire, then return V_EXIT. */
enum verdict gen_read(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, uint64_t *value, unsigned len);
enum verdict gen_write(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, uint64_t value, unsigned len);
/* Would a write go through? */
enum verdict gen_probe_write(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, unsigned len);

/* The r/m operand's value, register or memory, zero-extended. */
enum verdict gen_read_rm(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t *value, unsigned len);

/* The default data segment or its override, from the prefixes: for the implicit operands of string instructions and
 * XLAT. */
enum x86_seg gen_data_segment(const struct x86_insn *insn);

#endif
