/* PUSH, POP, PUSHA, POPA, ENTER, LEAVE (SDM Vol. 1 6.2, 6.5, Vol. 2). */
#include "arch/x86/gen.h"

static enum verdict push(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t value)
{
	unsigned stack = gen_stack_size(cpu);
	uint64_t sp = zext(cpu->gpr[RSP] - insn->opsize, stack);
	enum verdict v = gen_write(cpu, SEG_SS, sp, value, insn->opsize);
	if (v != V_DONE && v != V_EXIT)
		return v;
	gen_set_reg(cpu, RSP, sp, stack);
	return gen_retire(cpu, insn, v);
}

static enum verdict push_rm(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;
	enum verdict v = gen_read_rm(cpu, insn, &value, insn->opsize);
	return v != V_DONE ? v : push(cpu, insn, value);
}

/* POP into a register: the value wins over the increment when that is RSP. */
static enum verdict pop_reg(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned reg)
{
	unsigned stack = gen_stack_size(cpu);
	uint64_t value, sp = zext(cpu->gpr[RSP], stack);
	enum verdict v = gen_read(cpu, SEG_SS, sp, &value, insn->opsize);
	if (v != V_DONE)
		return v;
	gen_set_reg(cpu, RSP, sp + insn->opsize, stack);
	gen_set_reg(cpu, reg, value, insn->opsize);
	return gen_retire(cpu, insn, V_DONE);
}

/* POP into memory: an address that names RSP is formed after the increment (Vol. 2, POP). */
static enum verdict pop_rm(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->modrm >> 6 == 3)
		return pop_reg(cpu, insn, insn->rm);
	unsigned stack = gen_stack_size(cpu);
	uint64_t value, old = cpu->gpr[RSP], sp = zext(old, stack);
	enum verdict v = gen_read(cpu, SEG_SS, sp, &value, insn->opsize);
	if (v != V_DONE)
		return v;
	gen_set_reg(cpu, RSP, sp + insn->opsize, stack);
	v = gen_write(cpu, insn->seg, x86_effective_address(cpu, insn), value, insn->opsize);
	if (v == V_DONE || v == V_EXIT)
		return gen_retire(cpu, insn, v);
	cpu->gpr[RSP] = old;
	return v;
}

/* All eight words are checked before the first is written: a fault must leave everything as it was. */
static enum verdict pusha(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned stack = gen_stack_size(cpu);
	uint64_t size = insn->opsize;
	uint64_t sp = zext(cpu->gpr[RSP], stack);
	enum verdict done = V_DONE;
	for (unsigned reg = 0; reg < 8; reg++) {
		enum verdict v = gen_probe_write(cpu, SEG_SS, zext(sp - (reg + 1) * size, stack), size);
		if (v != V_DONE)
			return v;
	}
	for (unsigned reg = 0; reg < 8; reg++) {
		enum verdict v = gen_write(cpu, SEG_SS, zext(sp - (reg + 1) * size, stack), cpu->gpr[reg], size);
		if (v != V_DONE && v != V_EXIT)
			return v;
		done = v == V_EXIT ? v : done;
	}
	gen_set_reg(cpu, RSP, sp - 8 * size, stack);
	return gen_retire(cpu, insn, done);
}

/*
 * Where a fault comes on the way, processors have put into their registers what they have read by then (seen on AMD's
 * Zen 3 and Intel's Emerald Rapids); the manuals do not say.
 */
static enum verdict popa(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned stack = gen_stack_size(cpu), n = 0;
	uint64_t size = insn->opsize, value[8], sp = zext(cpu->gpr[RSP], stack);
	enum verdict v = V_DONE;
	while (n < 8 && (v = gen_read(cpu, SEG_SS, zext(sp + n * size, stack), &value[n], (unsigned)size)) == V_DONE)
		n++;
	for (unsigned i = 0; i < n; i++) {
		if (7 - i != RSP)
			gen_set_reg(cpu, 7 - i, value[i], (unsigned)size);
	}
	if (v != V_DONE)
		return v;
	gen_set_reg(cpu, RSP, sp + 8 * size, stack);
	return gen_retire(cpu, insn, V_DONE);
}

/* The words that ENTER pushes after RBP: the outer frames' pointers and its own. Returns how many. */
/* The part of `value`, read at `off`, that the `pushed` words below `sp` have replaced by then. */
static uint64_t as_pushed(uint64_t value, uint64_t off, uint64_t sp, uint64_t size, const uint64_t *word,
			  unsigned pushed, unsigned stack)
{
	for (unsigned i = 0; i < size; i++) {
		uint64_t below = zext(sp - (off + i), stack);
		if (below - 1 >= pushed * size)
			continue;
		uint64_t n = (below - 1) / size, at = (n + 1) * size - below;
		value = (value & ~(0xffull << 8 * i)) | (word[n] >> 8 * at & 0xff) << 8 * i;
	}
	return value;
}

static enum verdict enter_frames(struct x86_cpu *cpu, uint64_t size, unsigned level, uint64_t frame, uint64_t *word)
{
	unsigned stack = gen_stack_size(cpu);
	for (unsigned i = 1; i < level; i++) {
		uint64_t off = zext(cpu->gpr[RBP] - i * size, stack);
		enum verdict v = gen_read(cpu, SEG_SS, off, &word[i], size);
		if (v != V_DONE)
			return v;
		word[i] = as_pushed(word[i], off, cpu->gpr[RSP], size, word, i, stack);
	}
	word[level] = frame;
	return V_DONE;
}

static enum verdict enter(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned stack = gen_stack_size(cpu);
	uint64_t size = insn->opsize;
	uint16_t bytes = insn->bytes[insn->imm_off] | insn->bytes[insn->imm_off + 1] << 8;
	unsigned level = insn->bytes[insn->imm_off + 2] % 32, words = level + 1;
	uint64_t word[32], sp = zext(cpu->gpr[RSP], stack), frame = zext(sp - size, stack);
	enum verdict v = V_DONE, done = V_DONE;
	word[0] = cpu->gpr[RBP];
	if (level)
		v = enter_frames(cpu, size, level, frame, word);
	for (unsigned i = 0; v == V_DONE && i < words; i++)
		v = gen_probe_write(cpu, SEG_SS, zext(sp - (i + 1) * size, stack), size);
	uint64_t end = zext(sp - words * size - bytes, stack);
	/* The new top of the stack must be writable, though nothing is written there (Vol. 2, ENTER). */
	if (v == V_DONE)
		v = gen_probe_write(cpu, SEG_SS, end, size);
	if (v != V_DONE)
		return v;
	for (unsigned i = 0; i < words; i++) {
		v = gen_write(cpu, SEG_SS, zext(sp - (i + 1) * size, stack), word[i], size);
		done = v == V_EXIT ? v : done;
	}
	gen_set_reg(cpu, RBP, frame, size);
	gen_set_reg(cpu, RSP, end, stack);
	return gen_retire(cpu, insn, done);
}

static enum verdict leave(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned stack = gen_stack_size(cpu);
	uint64_t value, sp = zext(cpu->gpr[RBP], stack);
	enum verdict v = gen_read(cpu, SEG_SS, sp, &value, insn->opsize);
	if (v != V_DONE)
		return v;
	gen_set_reg(cpu, RSP, sp + insn->opsize, stack);
	gen_set_reg(cpu, RBP, value, insn->opsize);
	return gen_retire(cpu, insn, V_DONE);
}

enum verdict gen_stack(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->map)
		return x86_raise(cpu, X86_UD);
	switch (insn->opcode) {
	case 0x50 ... 0x57:
		return push(cpu, insn, cpu->gpr[insn->opreg]);
	case 0x58 ... 0x5f:
		return pop_reg(cpu, insn, insn->opreg);
	case 0x60:
		return pusha(cpu, insn);
	case 0x61:
		return popa(cpu, insn);
	case 0x68:
	case 0x6a:
		return push(cpu, insn, insn->imm);
	case 0x8f:
		return pop_rm(cpu, insn);
	case 0xc8:
		return enter(cpu, insn);
	case 0xc9:
		return leave(cpu, insn);
	case 0xff:
		return push_rm(cpu, insn);
	default:
		return x86_raise(cpu, X86_UD);
	}
}
