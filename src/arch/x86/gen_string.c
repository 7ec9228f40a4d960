/*
 * MOVS, CMPS, STOS, LODS, SCAS (SDM Vol. 1 7.3.9, Vol. 2 REP). Registers are written back after every element, so that
 * a fault in the middle leaves the instruction where it can go on from.
 */
#include "arch/x86/gen.h"

#include "arch/x86/cpuid.h"
#include "arch/x86/debug.h"

#define STRING_MAX 4096 /* elements a call */

static bool describe(const struct x86_insn *insn, struct gen_string_op *op)
{
	op->opcode = insn->opcode | 1;
	op->size = insn->opcode & 1 ? insn->opsize : 1;
	op->addrsize = insn->addrsize;
	op->src_seg = gen_data_segment(insn);
	op->src = op->opcode == 0xa5 || op->opcode == 0xa7 || op->opcode == 0xad;
	op->dst = op->opcode != 0xad;
	op->compare = op->opcode == 0xa7 || op->opcode == 0xaf;
	op->stop_zf = insn->flags & INSN_REPNE;
	return !insn->map && (op->src || op->opcode == 0xab || op->opcode == 0xaf);
}

static void advance(struct x86_cpu *cpu, const struct gen_string_op *op)
{
	int64_t step = cpu->rflags & FL_DF ? -(int64_t)op->size : op->size;
	if (op->src)
		gen_set_reg(cpu, RSI, cpu->gpr[RSI] + step, op->addrsize);
	if (op->dst)
		gen_set_reg(cpu, RDI, cpu->gpr[RDI] + step, op->addrsize);
}

/* One element by the general way: any page, any memory. */
static enum verdict one(struct x86_cpu *cpu, const struct gen_string_op *op)
{
	uint64_t rsi = zext(cpu->gpr[RSI], op->addrsize), rdi = zext(cpu->gpr[RDI], op->addrsize);
	uint64_t a = zext(cpu->gpr[RAX], op->size), b;
	enum verdict v = V_DONE;
	if (op->src)
		v = gen_read(cpu, op->src_seg, rsi, &a, op->size);
	if (v == V_DONE && op->compare)
		v = gen_read(cpu, SEG_ES, rdi, &b, op->size);
	else if (v == V_DONE && op->dst)
		v = gen_write(cpu, SEG_ES, rdi, a, op->size);
	if (v != V_DONE && v != V_EXIT)
		return v;
	if (v == V_EXIT && (op->compare || !op->dst || !cpu->exit.write))
		return v;
	if (op->compare)
		gen_flags_compare(cpu, a, b, op->size);
	if (op->opcode == 0xad)
		gen_set_reg(cpu, RAX, a, op->size);
	advance(cpu, op);
	/* each element is an instruction of its own to the replay of device reads */
	cpu->mmio.count = cpu->mmio.next = 0;
	return v;
}

/* Elements that may be done in one go: TF and breakpoints want every one of them seen. */
static uint64_t quantum(const struct x86_cpu *cpu, uint64_t count)
{
	return x86_debug_active(cpu) ? 1 : MIN(count, STRING_MAX);
}

/* Some elements. *more: the instruction is not through. */
static enum verdict some(struct x86_cpu *cpu, const struct gen_string_op *op, bool *more)
{
	enum verdict v = V_DONE;
	bool each = x86_data_breakpoints_armed(cpu) || gen_alignment_checked(cpu);
	uint64_t count = zext(cpu->gpr[RCX], op->addrsize);
	uint64_t n = each ? 0 : gen_string_bulk(cpu, op, quantum(cpu, count));
	if (!n) {
		v = one(cpu, op);
		if (v != V_DONE && !(v == V_EXIT && cpu->exit.write))
			return v;
		n = 1;
	}
	count -= n;
	gen_set_reg(cpu, RCX, count, op->addrsize);
	*more = count && !(op->compare && !(cpu->rflags & FL_ZF) == !op->stop_zf);
	return v;
}

/*
 * A fault in the middle of CMPS or SCAS leaves Intel's processors with the flags from before the instruction (SDM Vol.
 * 2 REP): so whether one comes next is found out at once.
 */
static enum verdict repeat_comparing(struct x86_cpu *cpu, const struct gen_string_op *op, bool *more)
{
	uint64_t before = cpu->rflags;
	uint64_t count = cpu->gpr[RCX];
	enum verdict v = some(cpu, op, more);
	if (x86_is_amd(cpu) || x86_debug_active(cpu))
		return v;
	while (v == V_DONE && *more && count - cpu->gpr[RCX] < STRING_MAX)
		v = some(cpu, op, more);
	if (v == V_INJECT)
		cpu->rflags = before;
	return v;
}

/* On Intel's processors registers are as wide as the address says from the beginning, even if nothing more comes of it.
 */
static void narrow(struct x86_cpu *cpu, const struct gen_string_op *op)
{
	cpu->gpr[RCX] = (uint32_t)cpu->gpr[RCX];
	if (op->opcode == 0xa5)
		cpu->gpr[RSI] = (uint32_t)cpu->gpr[RSI];
	if (op->opcode == 0xa5 || (op->dst && cpu->gpr[RCX]))
		cpu->gpr[RDI] = (uint32_t)cpu->gpr[RDI];
}

static enum verdict repeat(struct x86_cpu *cpu, const struct x86_insn *insn, const struct gen_string_op *op)
{
	bool more = true;
	if (op->addrsize == 4 && insn->mode == MODE_64 && !x86_is_amd(cpu))
		narrow(cpu, op);
	if (!zext(cpu->gpr[RCX], op->addrsize))
		return gen_retire(cpu, insn, V_DONE);
	enum verdict v = op->compare ? repeat_comparing(cpu, op, &more) : some(cpu, op, &more);
	if (v != V_DONE && !(v == V_EXIT && cpu->exit.write))
		return v;
	return more ? v : gen_retire(cpu, insn, v);
}

enum verdict gen_string(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct gen_string_op op;
	if (!describe(insn, &op))
		return x86_raise(cpu, X86_UD);
	if (insn->flags & (INSN_REP | INSN_REPNE))
		return repeat(cpu, insn, &op);
	enum verdict v = one(cpu, &op);
	if (v != V_DONE && !(v == V_EXIT && cpu->exit.write))
		return v;
	return gen_retire(cpu, insn, v);
}
