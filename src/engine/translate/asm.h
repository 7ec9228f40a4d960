/*
 * The host instructions that translated code is made of, beside the guest's own. Each function emits one instruction;
 * registers are encoding numbers; `gs` forms address struct tr_vcpu through the GS base. None touches flags unless its
 * name is that of an instruction that does.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_ASM_H
#define DOPPEL_ENGINE_TRANSLATE_ASM_H

#include "engine/translate/emit.h"

/* Host registers that hold no guest register: the guest's R9, R10 and R11 live in memory. */
#define H_ADDR R10 /* linear address of a memory operand */
#define H_DELTA R11
#define H_TMP R9

enum alu { ALU_ADD, ALU_OR, ALU_ADC, ALU_SBB, ALU_AND, ALU_SUB, ALU_XOR, ALU_CMP };
enum cc { CC_O, CC_NO, CC_B, CC_AE, CC_E, CC_NE, CC_BE, CC_A, CC_S, CC_NS, CC_P, CC_NP, CC_L, CC_GE, CC_LE, CC_G };
enum shift { SH_ROL, SH_ROR, SH_RCL, SH_RCR, SH_SHL, SH_SHR, SH_SAL, SH_SAR };

/* Generic: [rex] opcode modrm with a register operand. `op` up to 2 bytes: 0x8b, or 0x0fb7. size 4 or 8. */
void asm_rr(struct emit *e, unsigned op, unsigned size, unsigned reg, unsigned rm);
/* reg, [base + disp]; base -1: absolute disp32. gs: with the GS prefix. */
void asm_rm(struct emit *e, unsigned op, unsigned size, unsigned reg, bool gs, int base, int32_t disp);
/* reg, [base + index + disp] */
void asm_rmx(struct emit *e, unsigned op, unsigned size, unsigned reg, unsigned base, unsigned index, int32_t disp);

static inline void asm_mov(struct emit *e, unsigned dst, unsigned src)
{
	asm_rr(e, 0x8b, 8, dst, src);
}
static inline void asm_load_gs(struct emit *e, unsigned size, unsigned reg, int32_t off)
{
	asm_rm(e, 0x8b, size, reg, true, -1, off);
}
static inline void asm_store_gs(struct emit *e, unsigned size, unsigned reg, int32_t off)
{
	asm_rm(e, 0x89, size, reg, true, -1, off);
}
void asm_store16_gs(struct emit *e, unsigned reg, int32_t off);
void asm_load16_gs(struct emit *e, unsigned reg, int32_t off); /* the rest of `reg` stays */
void asm_mov_imm(struct emit *e, unsigned reg, uint64_t imm);
void asm_store_gs_imm(struct emit *e, unsigned size, int32_t off, int32_t imm); /* size 1, 4, 8 */
/* lea: base, index -1 for none. size 4 truncates to 32 bits. */
void asm_lea(struct emit *e, unsigned size, unsigned dst, int base, int index, unsigned scale, int32_t disp);
void asm_alu_imm(struct emit *e, enum alu op, unsigned size, unsigned reg, int32_t imm);
void asm_alu_gs_imm(struct emit *e, enum alu op, unsigned size, int32_t off, int32_t imm);
void asm_test_gs_imm8(struct emit *e, int32_t off, uint8_t imm);
void asm_shift_imm(struct emit *e, enum shift op, unsigned size, unsigned reg, uint8_t count);
void asm_jmp_reg(struct emit *e, unsigned reg);
void asm_jmp_gs(struct emit *e, int base, int32_t off); /* jmp qword gs:[base + off] */
/* mov reg, gs:[index * 8 + off] */
void asm_load_gs_index(struct emit *e, unsigned reg, unsigned index, int32_t off);
void asm_store_gs_index(struct emit *e, unsigned reg, unsigned index, int32_t off);
void asm_jmp_gs_index(struct emit *e, unsigned index, int32_t off);
void asm_pdep_gs(struct emit *e, unsigned dst, unsigned src,
		 int32_t off); /* dst = src at the bits of the mask in memory; BMI2 */
void asm_pext_gs(struct emit *e, unsigned dst, unsigned src, int32_t off); /* likewise */
void asm_rorx(struct emit *e, unsigned dst, unsigned src, uint8_t count);  /* 64 bits wide; BMI2 */
void asm_shrx(struct emit *e, unsigned dst, unsigned src, unsigned count); /* likewise */
void asm_not(struct emit *e, unsigned reg);                                /* 64 bits wide */
/* Jumps whose target is filled in later; they return where the rel32 is. */
uint8_t *asm_jcc(struct emit *e, enum cc cc);
uint8_t *asm_jmp(struct emit *e);
/*
 * Room for an opcode of `lead` bytes whose rel32 lies within an aligned quadword, so that it can be changed by one
 * store while other threads run it (APM Vol. 2 7.3.2).
 */
void asm_align_rel32(struct emit *e, unsigned lead);
/* Like asm_jmp, with the rel32 so. */
uint8_t *asm_jmp_patchable(struct emit *e);
/* Short jump if RCX is 0; returns where the rel8 is. */
uint8_t *asm_jrcxz(struct emit *e);
void asm_patch8(uint8_t *rel8, const uint8_t *target);
void asm_patch32(uint8_t *rel32, const uint8_t *target);
/* lea reg, [rip + (target - here)]; returns where the rel32 is. */
uint8_t *asm_lea_rip(struct emit *e, unsigned reg);

#endif
