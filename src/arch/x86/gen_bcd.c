/*
 * DAA, DAS, AAA, AAS, AAM, AAD and SALC, outside 64-bit mode (SDM Vol. 2). Flags that the manual leaves undefined come
 * out as the operation's last addition or logical result would set them.
 */
#include "arch/x86/gen.h"

static void set_al(struct x86_cpu *cpu, uint8_t al)
{
	gen_set_reg(cpu, RAX, al, 1);
}

/* Sets SF, ZF and PF by `al`, CF and AF as told, and clears OF. */
static enum verdict retire_flags(struct x86_cpu *cpu, const struct x86_insn *insn, uint8_t al, bool cf, bool af)
{
	uint64_t fl = (cf ? FL_CF : 0) | (af ? FL_AF : 0) | (al & 0x80 ? FL_SF : 0) | (al ? 0 : FL_ZF);
	if (!(__builtin_popcount(al) & 1))
		fl |= FL_PF;
	cpu->rflags = (cpu->rflags & ~(uint64_t)FL_ARITH) | fl;
	return gen_retire(cpu, insn, V_DONE);
}

static enum verdict daa_das(struct x86_cpu *cpu, const struct x86_insn *insn, bool subtract)
{
	uint8_t old = cpu->gpr[RAX], al = old;
	bool old_cf = cpu->rflags & FL_CF, cf = old_cf;
	bool af = (old & 15) > 9 || (cpu->rflags & FL_AF);
	if (af) {
		/* DAS borrows out of bit 7 when AL was below 6; DAA's carry is always covered by the next step */
		cf = old_cf || (subtract && old < 6);
		al += subtract ? -6 : 6;
	}
	if (old > 0x99 || old_cf) {
		al += subtract ? -0x60 : 0x60;
		cf = true;
	} else if (!subtract) {
		cf = false;
	}
	set_al(cpu, al);
	return retire_flags(cpu, insn, al, cf, af);
}

static enum verdict aaa_aas(struct x86_cpu *cpu, const struct x86_insn *insn, bool subtract)
{
	uint16_t ax = cpu->gpr[RAX];
	bool adjust = (ax & 15) > 9 || (cpu->rflags & FL_AF);
	if (adjust)
		ax += subtract ? -0x106 : 0x106;
	ax &= 0xff0f;
	gen_set_reg(cpu, RAX, ax, 2);
	return retire_flags(cpu, insn, ax, adjust, adjust);
}

static enum verdict aam(struct x86_cpu *cpu, const struct x86_insn *insn, uint8_t base)
{
	if (!base)
		return x86_raise(cpu, X86_DE);
	uint8_t al = cpu->gpr[RAX];
	gen_set_reg(cpu, RAX, (uint16_t)(al / base) << 8 | al % base, 2);
	return retire_flags(cpu, insn, al % base, false, false);
}

static enum verdict aad(struct x86_cpu *cpu, const struct x86_insn *insn, uint8_t base)
{
	uint16_t ax = cpu->gpr[RAX];
	uint8_t al = ax + (ax >> 8) * base;
	gen_set_reg(cpu, RAX, al, 2);
	return retire_flags(cpu, insn, al, false, false);
}

enum verdict gen_bcd(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	switch (insn->map || insn->mode == MODE_64 ? 0 : insn->opcode) {
	case 0x27:
		return daa_das(cpu, insn, false);
	case 0x2f:
		return daa_das(cpu, insn, true);
	case 0x37:
		return aaa_aas(cpu, insn, false);
	case 0x3f:
		return aaa_aas(cpu, insn, true);
	case 0xd4:
		return aam(cpu, insn, insn->bytes[insn->imm_off]);
	case 0xd5:
		return aad(cpu, insn, insn->bytes[insn->imm_off]);
	case 0xd6: /* SALC: AL by the carry, flags alone */
		set_al(cpu, cpu->rflags & FL_CF ? 0xff : 0);
		return gen_retire(cpu, insn, V_DONE);
	default:
		return x86_raise(cpu, X86_UD);
	}
}
