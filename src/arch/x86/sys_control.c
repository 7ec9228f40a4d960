/* Instructions that read and write control and debug registers, and those that drop translations. */
#include "arch/x86/internal.h"

/* MOV to and from control and debug registers take no notice of ModRM.mod: rm is a register always. */
static unsigned rm_as_gpr(const struct x86_insn *insn)
{
	unsigned rex = insn->flags & INSN_REX && insn->opcode_off >= 2 ? insn->bytes[insn->opcode_off - 2] : 0;

	return (insn->modrm & 7) | (rex & 1) << 3;
}

static unsigned modrm_reg(const struct x86_insn *insn)
{
	unsigned rex = insn->flags & INSN_REX && insn->opcode_off >= 2 ? insn->bytes[insn->opcode_off - 2] : 0;

	return (insn->modrm >> 3 & 7) | (rex & 4) << 1;
}

static unsigned mov_size(const struct x86_insn *insn)
{
	return insn->mode == MODE_64 ? 8 : 4;
}

static enum verdict read_cr8(struct x86_cpu *cpu, unsigned gpr, unsigned size)
{
	struct x86_exit *x = &cpu->exit;

	if (x->kind == EXIT_CR8 && !x->write && x->completed) {
		gpr_set(cpu, gpr, x->data, size);
		*x = (struct x86_exit){0};
		return V_DONE;
	}
	*x = (struct x86_exit){.kind = EXIT_CR8, .addr = 8, .len = 8};
	return V_EXIT;
}

static enum verdict write_cr8(struct x86_cpu *cpu, uint64_t value)
{
	if (value > 15)
		return raise_gp(cpu, 0);
	cpu->exit = (struct x86_exit){.kind = EXIT_CR8, .write = true, .addr = 8, .len = 8, .data = value};
	return V_EXIT;
}

static enum verdict mov_from_cr(struct x86_cpu *cpu, unsigned cr, unsigned gpr, unsigned size)
{
	switch (cr) {
	case 0:
		gpr_set(cpu, gpr, cpu->cr0, size);
		break;
	case 2:
		gpr_set(cpu, gpr, cpu->cr2, size);
		break;
	case 3:
		gpr_set(cpu, gpr, cpu->cr3, size);
		break;
	case 4:
		gpr_set(cpu, gpr, cpu->cr4, size);
		break;
	default:
		return read_cr8(cpu, gpr, size);
	}
	return V_DONE;
}

static enum verdict mov_to_cr(struct x86_cpu *cpu, unsigned cr, uint64_t value)
{
	switch (cr) {
	case 0:
		return write_cr0(cpu, value);
	case 2:
		cpu->cr2 = value;
		return V_DONE;
	case 3:
		return write_cr3(cpu, value);
	case 4:
		return write_cr4(cpu, value);
	default:
		return write_cr8(cpu, value);
	}
}

enum verdict sys_mov_cr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned cr = modrm_reg(insn), gpr = rm_as_gpr(insn), size = mov_size(insn);

	if (cr > 8 || !(BIT(cr) & 0x11d)) /* 0, 2, 3, 4, 8 */
		return raise_ud(cpu);
	if (cpu->cpl)
		return raise_gp(cpu, 0);
	if (insn->opcode == 0x20)
		return mov_from_cr(cpu, cr, gpr, size);
	return mov_to_cr(cpu, cr, gpr_get(cpu, gpr, size));
}

#define DR6_FIXED1 0xffff0ff0ull
#define DR6_WRITABLE 0xe00full

static enum verdict write_dr(struct x86_cpu *cpu, unsigned n, uint64_t value)
{
	if (n < 4) {
		cpu->dr[n] = value;
		return V_DONE;
	}
	if (value >> 32)
		return raise_gp(cpu, 0);
	if (n == 6) {
		cpu->dr6 = (value & DR6_WRITABLE) | DR6_FIXED1;
		return V_DONE;
	}
	cpu->dr7 = (value & ~DR7_RESERVED) | DR7_FIXED1;
	mode_changed(cpu);
	return V_DONE;
}

enum verdict sys_mov_dr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned n = modrm_reg(insn), gpr = rm_as_gpr(insn), size = mov_size(insn);
	uint64_t value;

	if (n > 7 || ((n == 4 || n == 5) && cpu->cr4 & CR4_DE))
		return raise_ud(cpu);
	if (cpu->cpl)
		return raise_gp(cpu, 0);
	if (cpu->dr7 & DR7_GD) {
		x86_raise(cpu, X86_DB);
		cpu->exc.dr6 = DR6_BD;
		return V_INJECT;
	}
	if (n == 4 || n == 5)
		n += 2;
	if (insn->opcode == 0x23)
		return write_dr(cpu, n, gpr_get(cpu, gpr, size));
	value = n < 4 ? cpu->dr[n] : n == 6 ? cpu->dr6 : cpu->dr7;
	gpr_set(cpu, gpr, value, size);
	return V_DONE;
}

enum verdict sys_smsw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (cpu->cr4 & CR4_UMIP && cpu->cpl)
		return raise_gp(cpu, 0);
	return rm_write(cpu, insn, cpu->cr0, plain_opsize(insn), 2);
}

enum verdict sys_lmsw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value;

	TRY(rm_read(cpu, insn, 2, &value));
	value = (value & 0xf) | (cpu->cr0 & CR0_PE); /* PE can be set, not cleared */
	return write_cr0(cpu, (cpu->cr0 & ~0xfull) | value);
}

enum verdict sys_clts(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	cpu->cr0 &= ~CR0_TS;
	mode_changed(cpu);
	return V_DONE;
}

enum verdict sys_invlpg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t va;

	if (modrm_is_reg(insn))
		return raise_ud(cpu);
	va = x86_effective_address(cpu, insn);
	if (insn->mode != MODE_64)
		va = (uint32_t)(va + cpu->seg[insn->seg].base);
	else if (insn->seg >= SEG_FS)
		va += cpu->seg[insn->seg].base;
	if (x86_canonical(va))
		flush_page(cpu, va, x86_pcid(cpu));
	return V_DONE;
}

enum { INVPCID_ADDRESS, INVPCID_CONTEXT, INVPCID_ALL_GLOBAL, INVPCID_ALL };

enum verdict sys_invpcid(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t desc[2], linear, type = gpr_get(cpu, insn->reg, mov_size(insn));
	int pcid;

	if (modrm_is_reg(insn) || !cpu_has(cpu, FEAT_INVPCID))
		return raise_ud(cpu);
	if (cpu->cpl || type > INVPCID_ALL)
		return raise_gp(cpu, 0);
	TRY(operand_linear(cpu, insn, 0, 16, ACC_READ, &linear));
	TRY(mem_read(cpu, linear, desc, 16, x86_access_mode(cpu)));
	if (desc[0] >> 12 || (type <= INVPCID_CONTEXT && desc[0] && !(cpu->cr4 & CR4_PCIDE)))
		return raise_gp(cpu, 0);
	if (type == INVPCID_ADDRESS && !x86_canonical(desc[1]))
		return raise_gp(cpu, 0);
	pcid = cpu->cr4 & CR4_PCIDE ? (int)desc[0] : -1;
	switch (type) {
	case INVPCID_ADDRESS:
		flush_page(cpu, desc[1], pcid);
		break;
	case INVPCID_CONTEXT:
		flush_all(cpu, false, pcid);
		break;
	case INVPCID_ALL_GLOBAL:
		flush_all(cpu, true, -1);
		break;
	default:
		flush_all(cpu, false, -1);
	}
	return V_DONE;
}
