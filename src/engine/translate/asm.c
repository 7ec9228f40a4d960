#include "engine/translate/asm.h"

static void opcode(struct emit *e, unsigned op)
{
	if (op > 0xff)
		emit8(e, (uint8_t)(op >> 8));
	emit8(e, (uint8_t)op);
}

static void rex(struct emit *e, unsigned size, unsigned reg, unsigned index, unsigned base)
{
	unsigned v = 0x40 | (size == 8) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3;
	if (v != 0x40)
		emit8(e, (uint8_t)v);
}

static void modrm(struct emit *e, unsigned mod, unsigned reg, unsigned rm)
{
	emit8(e, (uint8_t)(mod << 6 | (reg & 7) << 3 | (rm & 7)));
}

/* ModRM, SIB and displacement for [base + disp], or [disp32] when base is -1. */
static void operand(struct emit *e, unsigned reg, int base, int32_t disp)
{
	if (base < 0) {
		modrm(e, 0, reg, 4);
		emit8(e, 0x25);
		emit32(e, (uint32_t)disp);
		return;
	}
	unsigned mod = disp == 0 && (base & 7) != RBP ? 0 : disp == (int8_t)disp ? 1 : 2;
	modrm(e, mod, reg, (unsigned)base);
	if ((base & 7) == RSP)
		emit8(e, 0x24);
	if (mod == 1)
		emit8(e, (uint8_t)disp);
	else if (mod == 2)
		emit32(e, (uint32_t)disp);
}

void asm_rr(struct emit *e, unsigned op, unsigned size, unsigned reg, unsigned rm)
{
	rex(e, size, reg, 0, rm);
	opcode(e, op);
	modrm(e, 3, reg, rm);
}

void asm_rm(struct emit *e, unsigned op, unsigned size, unsigned reg, bool gs, int base, int32_t disp)
{
	if (gs)
		emit8(e, 0x65);
	rex(e, size, reg, 0, base < 0 ? 0 : (unsigned)base);
	opcode(e, op);
	operand(e, reg, base, disp);
}

/* ModRM, SIB and displacement for [base + index * scale + disp]; base or index may be -1. */
static void operand_sib(struct emit *e, unsigned reg, int base, int index, unsigned scale, int32_t disp)
{
	unsigned ss = scale == 8 ? 3 : scale == 4 ? 2 : scale == 2 ? 1 : 0;
	unsigned idx = index < 0 ? 4 : (unsigned)index & 7;
	unsigned mod = base < 0 ? 0 : disp == 0 && (base & 7) != RBP ? 0 : disp == (int8_t)disp ? 1 : 2;
	modrm(e, mod, reg, 4);
	emit8(e, (uint8_t)(ss << 6 | idx << 3 | (base < 0 ? 5 : (unsigned)base & 7)));
	if (mod == 1)
		emit8(e, (uint8_t)disp);
	else if (mod == 2 || base < 0)
		emit32(e, (uint32_t)disp);
}

void asm_rmx(struct emit *e, unsigned op, unsigned size, unsigned reg, unsigned base, unsigned index, int32_t disp)
{
	rex(e, size, reg, index, base);
	opcode(e, op);
	operand_sib(e, reg, (int)base, (int)index, 1, disp);
}

static void gs_index(struct emit *e, unsigned op, unsigned reg, unsigned index, int32_t off)
{
	emit8(e, 0x65);
	rex(e, 8, reg, index, 0);
	emit8(e, (uint8_t)op);
	operand_sib(e, reg, -1, (int)index, 8, off);
}

void asm_load_gs_index(struct emit *e, unsigned reg, unsigned index, int32_t off)
{
	gs_index(e, 0x8b, reg, index, off);
}

void asm_store_gs_index(struct emit *e, unsigned reg, unsigned index, int32_t off)
{
	gs_index(e, 0x89, reg, index, off);
}

void asm_jmp_gs_index(struct emit *e, unsigned index, int32_t off)
{
	gs_index(e, 0xff, 4, index, off);
}

void asm_rorx(struct emit *e, unsigned dst, unsigned src, uint8_t count)
{
	emit8(e, 0xc4);
	emit8(e, (uint8_t)((dst < 8) << 7 | 1 << 6 | (src < 8) << 5 | 3));
	emit8(e, 0xfb);
	emit8(e, 0xf0);
	modrm(e, 3, dst, src);
	emit8(e, count);
}

/* `pp`: 2 PEXT, 3 PDEP. */
static void pext_or_pdep_gs(struct emit *e, unsigned pp, unsigned dst, unsigned src, int32_t off)
{
	emit8(e, 0x65);
	emit8(e, 0xc4);
	emit8(e, (uint8_t)((dst < 8) << 7 | 1 << 6 | 1 << 5 | 2));
	emit8(e, (uint8_t)(0x80 | (~src & 15) << 3 | pp));
	emit8(e, 0xf5);
	operand(e, dst, -1, off);
}

void asm_pdep_gs(struct emit *e, unsigned dst, unsigned src, int32_t off)
{
	pext_or_pdep_gs(e, 3, dst, src, off);
}

void asm_pext_gs(struct emit *e, unsigned dst, unsigned src, int32_t off)
{
	pext_or_pdep_gs(e, 2, dst, src, off);
}

void asm_store16_gs(struct emit *e, unsigned reg, int32_t off)
{
	emit8(e, 0x66);
	asm_rm(e, 0x89, 4, reg, true, -1, off);
}

void asm_load16_gs(struct emit *e, unsigned reg, int32_t off)
{
	emit8(e, 0x66);
	asm_rm(e, 0x8b, 4, reg, true, -1, off);
}

void asm_mov_imm(struct emit *e, unsigned reg, uint64_t imm)
{
	if (imm == (uint32_t)imm) {
		rex(e, 4, 0, 0, reg);
		emit8(e, (uint8_t)(0xb8 | (reg & 7)));
		emit32(e, (uint32_t)imm);
	} else if (imm == (uint64_t)(int32_t)imm) {
		asm_rr(e, 0xc7, 8, 0, reg);
		emit32(e, (uint32_t)imm);
	} else {
		rex(e, 8, 0, 0, reg);
		emit8(e, (uint8_t)(0xb8 | (reg & 7)));
		emit64(e, imm);
	}
}

void asm_store_gs_imm(struct emit *e, unsigned size, int32_t off, int32_t imm)
{
	asm_rm(e, size == 1 ? 0xc6 : 0xc7, size == 8 ? 8 : 4, 0, true, -1, off);
	if (size == 1)
		emit8(e, (uint8_t)imm);
	else
		emit32(e, (uint32_t)imm);
}

void asm_lea(struct emit *e, unsigned size, unsigned dst, int base, int index, unsigned scale, int32_t disp)
{
	if (index < 0 && base >= 0) {
		asm_rm(e, 0x8d, size, dst, false, base, disp);
		return;
	}
	rex(e, size, dst, index < 0 ? 0 : (unsigned)index, base < 0 ? 0 : (unsigned)base);
	emit8(e, 0x8d);
	operand_sib(e, dst, base, index, scale, disp);
}

void asm_alu_imm(struct emit *e, enum alu op, unsigned size, unsigned reg, int32_t imm)
{
	bool small = imm == (int8_t)imm;
	asm_rr(e, small ? 0x83 : 0x81, size, op, reg);
	if (small)
		emit8(e, (uint8_t)imm);
	else
		emit32(e, (uint32_t)imm);
}

void asm_alu_gs_imm(struct emit *e, enum alu op, unsigned size, int32_t off, int32_t imm)
{
	bool small = imm == (int8_t)imm;
	asm_rm(e, small ? 0x83 : 0x81, size, op, true, -1, off);
	if (small)
		emit8(e, (uint8_t)imm);
	else
		emit32(e, (uint32_t)imm);
}

void asm_test_gs_imm8(struct emit *e, int32_t off, uint8_t imm)
{
	asm_rm(e, 0xf6, 4, 0, true, -1, off);
	emit8(e, imm);
}

void asm_shift_imm(struct emit *e, enum shift op, unsigned size, unsigned reg, uint8_t count)
{
	asm_rr(e, 0xc1, size, op, reg);
	emit8(e, count);
}

/* VEX.LZ.F2.0F38.W1 F7 /r */
void asm_shrx(struct emit *e, unsigned dst, unsigned src, unsigned count)
{
	emit8(e, 0xc4);
	emit8(e, (uint8_t)((dst < 8) << 7 | 1 << 6 | (src < 8) << 5 | 2));
	emit8(e, (uint8_t)(0x80 | (~count & 15) << 3 | 3));
	emit8(e, 0xf7);
	emit8(e, (uint8_t)(0xc0 | (dst & 7) << 3 | (src & 7)));
}

void asm_not(struct emit *e, unsigned reg)
{
	asm_rr(e, 0xf7, 8, 2, reg);
}

void asm_jmp_gs(struct emit *e, int base, int32_t off)
{
	asm_rm(e, 0xff, 4, 4, true, base, off);
}

void asm_jmp_reg(struct emit *e, unsigned reg)
{
	asm_rr(e, 0xff, 4, 4, reg);
}

uint8_t *asm_jcc(struct emit *e, enum cc cc)
{
	emit8(e, 0x0f);
	emit8(e, (uint8_t)(0x80 | cc));
	emit32(e, 0);
	return e->p - 4;
}

uint8_t *asm_jmp(struct emit *e)
{
	emit8(e, 0xe9);
	emit32(e, 0);
	return e->p - 4;
}

void asm_align_rel32(struct emit *e, unsigned lead)
{
	static const uint8_t nops[3][3] = {{0x90}, {0x66, 0x90}, {0x0f, 0x1f, 0x00}};
	unsigned at = ((uintptr_t)e->p + lead) & 7;
	if (at > 4)
		emit_bytes(e, nops[7 - at], 8 - at);
}

uint8_t *asm_jmp_patchable(struct emit *e)
{
	asm_align_rel32(e, 1);
	return asm_jmp(e);
}

uint8_t *asm_jrcxz(struct emit *e)
{
	emit8(e, 0xe3);
	emit8(e, 0);
	return e->p - 1;
}

void asm_patch8(uint8_t *rel8, const uint8_t *target)
{
	ptrdiff_t d = target - (rel8 + 1);
	ENSURE(d == (int8_t)d);
	*rel8 = (uint8_t)d;
}

void asm_patch32(uint8_t *rel32, const uint8_t *target)
{
	int32_t d = (int32_t)(target - (rel32 + 4));
	__asm__ volatile("movl %1, %0"
			 : "=m"(*(struct { int32_t d; } __attribute__((packed)) *)rel32)
			 : "r"(d)); /* one store */
}

uint8_t *asm_lea_rip(struct emit *e, unsigned reg)
{
	rex(e, 8, reg, 0, 0);
	emit8(e, 0x8d);
	modrm(e, 0, reg, 5);
	emit32(e, 0);
	return e->p - 4;
}
