/* Registers and r/m operands of the instructions that are carried out one by one. */
#include "arch/x86/internal.h"

uint64_t gpr_get(const struct x86_cpu *cpu, unsigned n, unsigned size)
{
	return zext(cpu->gpr[n], size);
}

void gpr_set(struct x86_cpu *cpu, unsigned n, uint64_t value, unsigned size)
{
	if (size >= 4)
		cpu->gpr[n] = zext(value, size);
	else
		cpu->gpr[n] = (cpu->gpr[n] & ~(BIT(size * 8) - 1)) | zext(value, size);
}

unsigned plain_opsize(const struct x86_insn *insn)
{
	bool other = insn->flags & INSN_OPSIZE;

	if (insn->mode == MODE_64 && insn->flags & INSN_REXW)
		return 8;
	if (insn->mode == MODE_16)
		return other ? 4 : 2;
	return other ? 2 : 4;
}

unsigned stack_opsize(const struct x86_insn *insn)
{
	unsigned size = plain_opsize(insn);

	return insn->mode == MODE_64 && size == 4 ? 8 : size;
}

enum verdict operand_linear(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned off, unsigned len,
			    unsigned access, uint64_t *linear)
{
	uint64_t ea = zext(x86_effective_address(cpu, insn) + off, insn->addrsize);

	return x86_linear(cpu, insn->seg, ea, len, access, linear);
}

enum verdict rm_read(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned size, uint64_t *value)
{
	uint64_t linear;

	if (modrm_is_reg(insn)) {
		*value = gpr_get(cpu, insn->rm, size);
		return V_DONE;
	}
	*value = 0;
	TRY(operand_linear(cpu, insn, 0, size, ACC_READ, &linear));
	TRY(check_alignment(cpu, linear, size));
	return mem_read(cpu, linear, value, size, x86_access_mode(cpu));
}

enum verdict rm_write(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t value, unsigned reg_size,
		      unsigned mem_size)
{
	uint64_t linear;

	if (modrm_is_reg(insn)) {
		gpr_set(cpu, insn->rm, value, reg_size);
		return V_DONE;
	}
	TRY(operand_linear(cpu, insn, 0, mem_size, ACC_WRITE, &linear));
	TRY(check_alignment(cpu, linear, mem_size));
	return mem_write(cpu, linear, &value, mem_size, x86_access_mode(cpu));
}
