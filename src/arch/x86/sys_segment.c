/* Instructions that load, store and examine segment registers and descriptor tables (SDM Vol. 3A 5.10, 2.4). */
#include "arch/x86/internal.h"

#include <Zydis/Mnemonic.h>

/* MOV Sreg, r/m16: the segment register is ModRM.reg without REX. */
static enum verdict mov_to_sreg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned seg = insn->modrm >> 3 & 7;
	uint64_t sel;

	if (seg == SEG_CS || seg >= X86_SEGS)
		return raise_ud(cpu);
	TRY(rm_read(cpu, insn, 2, &sel));
	TRY(x86_load_segment(cpu, seg, (uint16_t)sel));
	if (seg == SEG_SS)
		cpu->shadow = 2;
	return V_DONE;
}

static enum verdict mov_from_sreg(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned seg = insn->modrm >> 3 & 7;

	if (seg >= X86_SEGS)
		return raise_ud(cpu);
	return rm_write(cpu, insn, cpu->seg[seg].sel, plain_opsize(insn), 2);
}

enum verdict sys_mov(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->map == 0 && insn->opcode == 0x8e)
		return mov_to_sreg(cpu, insn);
	if (insn->map == 0 && insn->opcode == 0x8c)
		return mov_from_sreg(cpu, insn);
	if (insn->map == 1 && (insn->opcode & 0xfd) == 0x20)
		return sys_mov_cr(cpu, insn);
	if (insn->map == 1 && (insn->opcode & 0xfd) == 0x21)
		return sys_mov_dr(cpu, insn);
	return raise_ud(cpu);
}

/* The segment register that an opcode of PUSH or POP names: 06 0E 16 1E, 0F A0, 0F A8 and one more for POP. */
static unsigned opcode_sreg(const struct x86_insn *insn)
{
	if (insn->map == 1)
		return insn->opcode & 8 ? SEG_GS : SEG_FS;
	return insn->opcode >> 3 & 3;
}

enum verdict sys_push(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t sel = cpu->seg[opcode_sreg(insn)].sel;
	struct stack s;
	enum verdict v;

	stack_current(cpu, &s);
	v = stack_push(cpu, &s, &sel, 1, stack_opsize(insn));
	if (x86_retires(cpu, v))
		stack_commit(cpu, &s);
	return v;
}

enum verdict sys_pop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned seg = opcode_sreg(insn);
	struct stack s;
	uint64_t sel;

	stack_current(cpu, &s);
	TRY(stack_pop(cpu, &s, &sel, 1, stack_opsize(insn)));
	TRY(x86_load_segment(cpu, seg, (uint16_t)sel));
	stack_commit(cpu, &s); /* by the old SS's size */
	if (seg == SEG_SS)
		cpu->shadow = 2;
	return V_DONE;
}

enum verdict sys_load_far(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = plain_opsize(insn), seg;
	uint64_t off = 0, linear;
	uint8_t raw[10] = {0};

	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_LDS:
		seg = SEG_DS;
		break;
	case ZYDIS_MNEMONIC_LES:
		seg = SEG_ES;
		break;
	case ZYDIS_MNEMONIC_LFS:
		seg = SEG_FS;
		break;
	case ZYDIS_MNEMONIC_LGS:
		seg = SEG_GS;
		break;
	default:
		seg = SEG_SS;
	}
	if (modrm_is_reg(insn))
		return raise_ud(cpu);
	if (size == 8 && x86_is_amd(cpu))
		size = 4; /* AMD has no 16:64 pointers: REX.W is ignored */
	TRY(operand_linear(cpu, insn, 0, size + 2, ACC_READ, &linear));
	TRY(check_alignment(cpu, linear, size));
	TRY(mem_read(cpu, linear, raw, size + 2, x86_access_mode(cpu)));
	for (unsigned i = 0; i < size; i++)
		off |= (uint64_t)raw[i] << (8 * i);
	TRY(x86_load_segment(cpu, seg, (uint16_t)(raw[size] | raw[size + 1] << 8)));
	gpr_set(cpu, insn->reg, off, size);
	if (seg == SEG_SS)
		cpu->shadow = 0; /* LSS needs no shadow: it loads the pointer too */
	return V_DONE;
}

/* UMIP: user code does not read where the tables are (SDM Vol. 3A 2.5). */
static bool umip_forbids(const struct x86_cpu *cpu)
{
	return cpu->cr4 & CR4_UMIP && cpu->cpl;
}

static enum verdict store_table(struct x86_cpu *cpu, const struct x86_insn *insn, const struct x86_table *t)
{
	unsigned size = insn->mode == MODE_64 ? 8 : 4;
	uint8_t raw[10];
	uint64_t linear;

	if (modrm_is_reg(insn))
		return raise_ud(cpu);
	if (umip_forbids(cpu))
		return raise_gp(cpu, 0);
	raw[0] = (uint8_t)t->limit;
	raw[1] = (uint8_t)(t->limit >> 8);
	for (unsigned i = 0; i < size; i++)
		raw[2 + i] = (uint8_t)(t->base >> (8 * i));
	TRY(operand_linear(cpu, insn, 0, size + 2, ACC_WRITE, &linear));
	return mem_write(cpu, linear, raw, size + 2, x86_access_mode(cpu));
}

static enum verdict load_table(struct x86_cpu *cpu, const struct x86_insn *insn, struct x86_table *t)
{
	unsigned size = insn->mode == MODE_64 ? 8 : 4;
	uint8_t raw[10];
	uint64_t linear, base = 0;

	if (modrm_is_reg(insn))
		return raise_ud(cpu);
	TRY(operand_linear(cpu, insn, 0, size + 2, ACC_READ, &linear));
	TRY(mem_read(cpu, linear, raw, size + 2, x86_access_mode(cpu)));
	for (unsigned i = 0; i < size; i++)
		base |= (uint64_t)raw[2 + i] << (8 * i);
	if (insn->mode != MODE_64 && plain_opsize(insn) == 2)
		base &= 0xffffff;
	if (!x86_canonical(base) && insn->mode == MODE_64)
		return raise_gp(cpu, 0);
	t->base = base;
	t->limit = (uint16_t)(raw[0] | raw[1] << 8);
	return V_DONE;
}

enum verdict sys_sgdt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return store_table(cpu, insn, &cpu->gdtr);
}

enum verdict sys_sidt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return store_table(cpu, insn, &cpu->idtr);
}

enum verdict sys_lgdt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_table(cpu, insn, &cpu->gdtr);
}

enum verdict sys_lidt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_table(cpu, insn, &cpu->idtr);
}

enum verdict sys_sldt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (umip_forbids(cpu))
		return raise_gp(cpu, 0);
	return rm_write(cpu, insn, cpu->seg[SEG_LDTR].sel, plain_opsize(insn), 2);
}

enum verdict sys_str(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (umip_forbids(cpu))
		return raise_gp(cpu, 0);
	return rm_write(cpu, insn, cpu->seg[SEG_TR].sel, plain_opsize(insn), 2);
}

/* A system descriptor for LLDT and LTR, whole and checked but for its type. */
static enum verdict system_descriptor(struct x86_cpu *cpu, uint16_t sel, struct descriptor *d)
{
	if (sel & 4)
		return raise_gp(cpu, sel & ~3u);
	TRY(desc_read(cpu, sel, X86_GP, 0, d));
	return V_DONE;
}

static enum verdict system_descriptor_rest(struct x86_cpu *cpu, uint16_t sel, struct descriptor *d)
{
	if (!(d->seg.attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, sel & ~3u);
	TRY(desc_read_high(cpu, sel, d));
	if (x86_long_mode(cpu) && !x86_canonical(d->seg.base))
		return raise_gp(cpu, sel & ~3u);
	return V_DONE;
}

enum verdict sys_lldt(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct descriptor d;
	uint64_t sel;

	TRY(rm_read(cpu, insn, 2, &sel));
	if (sel_null((uint16_t)sel)) {
		cpu->seg[SEG_LDTR] = (struct x86_segment){.sel = (uint16_t)sel};
		return V_DONE;
	}
	TRY(system_descriptor(cpu, (uint16_t)sel, &d));
	if ((d.seg.attr & 0x1f) != DESC_LDT)
		return raise_gp(cpu, sel & ~3u);
	TRY(system_descriptor_rest(cpu, (uint16_t)sel, &d));
	cpu->seg[SEG_LDTR] = d.seg;
	return V_DONE;
}

enum verdict sys_ltr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct descriptor d;
	uint64_t sel;
	unsigned type;

	TRY(rm_read(cpu, insn, 2, &sel));
	if (sel_null((uint16_t)sel))
		return raise_gp(cpu, 0);
	TRY(system_descriptor(cpu, (uint16_t)sel, &d));
	type = d.seg.attr & 0x1f;
	if (type != DESC_TSS32 && (type != DESC_TSS16 || x86_long_mode(cpu)))
		return raise_gp(cpu, sel & ~3u);
	TRY(system_descriptor_rest(cpu, (uint16_t)sel, &d));
	TRY(desc_set_bit(cpu, &d, DESC_BUSY));
	cpu->seg[SEG_TR] = d.seg;
	return V_DONE;
}

/* Reads the descriptor for LAR, LSL, VERR, VERW: *ok is false where these only clear ZF. */
static enum verdict examine(struct x86_cpu *cpu, uint16_t sel, struct descriptor *d, bool *ok)
{
	const struct x86_segment *ldt = &cpu->seg[SEG_LDTR];
	bool in_table = sel & 4 ? ldt->attr & SEG_ATTR_P && (sel | 7u) <= ldt->limit : (sel | 7u) <= cpu->gdtr.limit;

	*ok = false;
	if (sel_null(sel) || !in_table)
		return V_DONE;
	TRY(desc_read(cpu, sel, X86_GP, 0, d));
	*ok = true;
	return V_DONE;
}

/* May this privilege see the segment at all? */
static bool visible(const struct x86_cpu *cpu, uint16_t sel, uint16_t attr)
{
	unsigned dpl = SEG_ATTR_DPL(attr);

	return desc_conforming(attr) || (cpu->cpl <= dpl && (sel & 3u) <= dpl);
}

static void set_zf(struct x86_cpu *cpu, bool value)
{
	cpu->rflags = (cpu->rflags & ~(uint64_t)FL_ZF) | (value ? FL_ZF : 0);
}

static enum verdict verify(struct x86_cpu *cpu, const struct x86_insn *insn, bool write)
{
	struct descriptor d;
	uint64_t sel;
	bool ok;

	TRY(rm_read(cpu, insn, 2, &sel));
	TRY(examine(cpu, (uint16_t)sel, &d, &ok));
	ok = ok && d.seg.attr & SEG_ATTR_S && visible(cpu, (uint16_t)sel, d.seg.attr);
	if (ok)
		ok = write ? desc_writable_data(d.seg.attr) : !desc_code(d.seg.attr) || d.seg.attr & 2;
	set_zf(cpu, ok);
	return V_DONE;
}

enum verdict sys_verr(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return verify(cpu, insn, false);
}

enum verdict sys_verw(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return verify(cpu, insn, true);
}

/* System descriptor types that LAR and LSL take, in legacy and in long mode (SDM Vol. 2, tables 3-53 and 3-58). */
#define LAR_LEGACY 0x1a3e /* 1-5, 9, B, C */
#define LAR_LONG 0x1a04   /* 2, 9, B, C */
#define LSL_LEGACY 0x0a0e /* 1-3, 9, B */
#define LSL_LONG 0x0a04   /* 2, 9, B */

static enum verdict load_property(struct x86_cpu *cpu, const struct x86_insn *insn, bool lsl)
{
	unsigned legacy = lsl ? LSL_LEGACY : LAR_LEGACY, wide = lsl ? LSL_LONG : LAR_LONG;
	unsigned types = x86_long_mode(cpu) ? wide : legacy;
	struct descriptor d;
	uint64_t sel;
	bool ok;

	TRY(rm_read(cpu, insn, 2, &sel));
	TRY(examine(cpu, (uint16_t)sel, &d, &ok));
	ok = ok && visible(cpu, (uint16_t)sel, d.seg.attr);
	if (ok && !(d.seg.attr & SEG_ATTR_S))
		ok = types >> (d.seg.attr & SEG_ATTR_TYPE) & 1;
	if (ok)
		gpr_set(cpu, insn->reg, lsl ? d.seg.limit : d.raw[1] & 0x00f0ff00, plain_opsize(insn));
	set_zf(cpu, ok);
	return V_DONE;
}

enum verdict sys_lar(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_property(cpu, insn, false);
}

enum verdict sys_lsl(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return load_property(cpu, insn, true);
}

enum verdict sys_arpl(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t dst, rpl = cpu->gpr[insn->reg] & 3;
	enum verdict v = V_DONE;
	bool adjust;

	TRY(rm_read(cpu, insn, 2, &dst));
	adjust = (dst & 3) < rpl;
	if (adjust)
		v = rm_write(cpu, insn, (dst & ~3ull) | rpl, 2, 2);
	if (x86_retires(cpu, v))
		set_zf(cpu, adjust);
	return v;
}
