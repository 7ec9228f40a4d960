/* x86_emulate_general: dispatch and the accesses that its parts share. */
#include "arch/x86/gen.h"

enum verdict x86_emulate_general(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	switch (insn->cls) {
	case CLS_BRANCH:
		return gen_branch(cpu, insn);
	case CLS_STACK:
		return gen_stack(cpu, insn);
	case CLS_STRING:
		return gen_string(cpu, insn);
	case CLS_SPECIAL:
		return gen_special(cpu, insn);
	default:
		return x86_raise(cpu, X86_UD);
	}
}

/* #AC(0): CPL 3, CR0.AM and RFLAGS.AC (SDM Vol. 3A 6.15). It is seen before a page fault. */
static enum verdict check_alignment(struct x86_cpu *cpu, uint64_t linear, unsigned len)
{
	if (likely(!gen_alignment_checked(cpu)) || !(linear & (len - 1)))
		return V_DONE;
	return x86_raise_error(cpu, X86_AC, 0);
}

enum verdict gen_read(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, uint64_t *value, unsigned len)
{
	unsigned access = ACC_READ | x86_access_mode(cpu);
	uint64_t linear;
	*value = 0;
	enum verdict v = x86_linear(cpu, seg, off, len, access, &linear);
	if (v == V_DONE)
		v = check_alignment(cpu, linear, len);
	return v != V_DONE ? v : mem_read(cpu, linear, value, len, access);
}

enum verdict gen_write(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, uint64_t value, unsigned len)
{
	unsigned access = ACC_WRITE | x86_access_mode(cpu);
	uint64_t linear;
	enum verdict v = x86_linear(cpu, seg, off, len, access, &linear);
	if (v == V_DONE)
		v = check_alignment(cpu, linear, len);
	return v != V_DONE ? v : mem_write(cpu, linear, &value, len, access);
}

enum verdict gen_probe_write(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, unsigned len)
{
	unsigned access = ACC_WRITE | x86_access_mode(cpu);
	uint64_t linear;
	enum verdict v = x86_linear(cpu, seg, off, len, access, &linear);
	if (v == V_DONE)
		v = check_alignment(cpu, linear, len);
	return v != V_DONE ? v : mem_probe(cpu, linear, len, access);
}

enum verdict gen_read_rm(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t *value, unsigned len)
{
	if (insn->modrm >> 6 == 3) {
		*value = zext(cpu->gpr[insn->rm], len);
		return V_DONE;
	}
	return gen_read(cpu, insn->seg, x86_effective_address(cpu, insn), value, len);
}

enum x86_seg gen_data_segment(const struct x86_insn *insn)
{
	enum x86_seg seg = SEG_DS;
	for (unsigned i = 0; i < insn->opcode_off; i++) {
		uint8_t b = insn->bytes[i];
		if (b == 0x64 || b == 0x65)
			seg = SEG_FS + (b & 1);
		else if (insn->mode != MODE_64 && (b & 0xe7) == 0x26)
			seg = SEG_ES + (b >> 3 & 3);
	}
	return seg;
}
