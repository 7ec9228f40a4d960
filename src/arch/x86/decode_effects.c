/* What an instruction does beside its operands: flags, the vector units it needs, alignment; and where Zydis is not
 * exact. */
#include "arch/x86/decode_class.h"

uint32_t decode_repeat_prefix(const ZydisDecodedInstruction *zi)
{
	for (unsigned i = zi->raw.prefix_count; i--;) {
		if (zi->raw.prefixes[i].value == 0xf3)
			return INSN_REP;
		if (zi->raw.prefixes[i].value == 0xf2)
			return INSN_REPNE;
	}
	return 0;
}

/* True when the shift or rotate count may be zero, which leaves the flags alone (SDM Vol. 2 SAL, RCL, SHLD). */
static bool count_may_be_zero(const struct x86_insn *insn)
{
	if (insn->map == 0 && (insn->opcode == 0xd0 || insn->opcode == 0xd1))
		return false;
	if (insn->imm_len)
		return (insn->imm & (insn->opsize == 8 ? 0x3f : 0x1f)) == 0;
	return true;
}

static void take_flags(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	const ZydisAccessedFlags *f = zi->cpu_flags;

	if (f) {
		insn->fl_read = (uint16_t)f->tested;
		insn->fl_write = (uint16_t)(f->modified | f->set_0 | f->set_1 | f->undefined);
	}
	switch (zi->meta.category) {
	case ZYDIS_CATEGORY_SHIFT:
	case ZYDIS_CATEGORY_ROTATE:
		insn->fl_cond = count_may_be_zero(insn);
		break;
	case ZYDIS_CATEGORY_STRINGOP:
	case ZYDIS_CATEGORY_IOSTRINGOP:
		insn->fl_cond = insn->fl_write && (insn->flags & (INSN_REP | INSN_REPNE));
		if (insn->flags & (INSN_REP | INSN_REPNE)) {
			insn->gpr_read |= 1u << RCX;
			insn->gpr_write |= 1u << RCX;
		}
		break;
	default:
		break;
	}
}

/* SSE without an XMM register to show for it: CVTSD2SI r, m64; CVTPS2PI mm, m64. */
static bool legacy_sse(const ZydisDecodedInstruction *zi)
{
	if (zi->meta.exception_class >= ZYDIS_EXCEPTION_CLASS_SSE1 &&
	    zi->meta.exception_class <= ZYDIS_EXCEPTION_CLASS_SSE7)
		return true;
	return zi->encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->meta.category == ZYDIS_CATEGORY_CONVERT &&
	       (zi->meta.isa_set == ZYDIS_ISA_SET_SSE || zi->meta.isa_set == ZYDIS_ISA_SET_SSE2);
}

/* SSE's operands of 16 bytes must be aligned but for a few; AVX's only where the name says so (SDM Vol. 2 2.4). */
static bool must_align(const ZydisDecodedInstruction *zi, unsigned size, bool amd)
{
	switch (zi->meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_AVX1:
		return true;
	case ZYDIS_EXCEPTION_CLASS_SSE1:
	case ZYDIS_EXCEPTION_CLASS_SSE2:
	case ZYDIS_EXCEPTION_CLASS_SSE4:
		break;
	default: /* also CVTPD2PI */
		return zi->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B || (size == 16 && legacy_sse(zi));
	}
	if (zi->meta.isa_set == ZYDIS_ISA_SET_SHA && amd) /* there they need not be (APM Vol. 4 SHA1MSG1) */
		return false;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM:
		return false;
	default:
		return size == 16;
	}
}

/* Which vector or x87 state it needs, where the registers it names did not say so already. */
static void take_units(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	switch (zi->meta.isa_set) {
	case ZYDIS_ISA_SET_X87:
	case ZYDIS_ISA_SET_FCMOV:
	case ZYDIS_ISA_SET_SSE3X87:
	case ZYDIS_ISA_SET_FXSAVE:
	case ZYDIS_ISA_SET_FXSAVE64:
	case ZYDIS_ISA_SET_XSAVEOPT:
	case ZYDIS_ISA_SET_XSAVEC:
	case ZYDIS_ISA_SET_XSAVES:
		insn->flags |= INSN_FPU;
		break;
	case ZYDIS_ISA_SET_XSAVE:
		if (insn->cls != CLS_SYSTEM)
			insn->flags |= INSN_FPU;
		break;
	case ZYDIS_ISA_SET_SSEMXCSR:
		insn->flags |= INSN_SSE;
		break;
	case ZYDIS_ISA_SET_AVX:
	case ZYDIS_ISA_SET_AVX2:
	case ZYDIS_ISA_SET_AVX2GATHER:
		insn->flags |= INSN_AVX;
		break;
	default:
		if (legacy_sse(zi))
			insn->flags |= INSN_SSE;
		if (zi->meta.category == ZYDIS_CATEGORY_X87_ALU || insn->mnemonic == ZYDIS_MNEMONIC_EMMS)
			insn->flags |= INSN_FPU;
		else if ((insn->flags & INSN_VEX) && zi->meta.isa_set != ZYDIS_ISA_SET_BMI1 &&
			 zi->meta.isa_set != ZYDIS_ISA_SET_BMI2)
			insn->flags |= INSN_AVX;
	}
}

/*
 * AMD's processors in 64-bit mode take the 66 prefix on short branches too, and on all of them F2 and F3 before LOOPE
 * and LOOPNE choose the condition, as they do for CMPS (found by trial; not in the APM).
 */
static void take_amd_branch(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	if (insn->mode == MODE_64 && (insn->flags & (INSN_OPSIZE | INSN_REXW)) == INSN_OPSIZE)
		insn->opsize = 2;
	if (insn->map == 0 && (insn->opcode == 0xe0 || insn->opcode == 0xe1)) {
		uint32_t repeat = decode_repeat_prefix(zi);
		if (repeat)
			insn->opcode = repeat == INSN_REP ? 0xe1 : 0xe0;
	}
}

static void take_xchg(struct x86_insn *insn)
{
	insn->mnemonic = ZYDIS_MNEMONIC_XCHG;
	insn->flags = (insn->flags & ~(uint32_t)INSN_REP) | INSN_OPREG_GPR;
	insn->gpr_read = insn->gpr_write = (uint16_t)(1u << RAX | 1u << insn->opreg);
	insn->gpr_implicit = 1u << RAX;
}

/* What Zydis's tables say less exactly than the processor is. */
static void take_corrections(struct x86_insn *insn, const ZydisDecodedInstruction *zi, bool amd)
{
	if (amd && insn->cls == CLS_BRANCH)
		take_amd_branch(insn, zi);
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_PAUSE:
		if (insn->opreg && amd) /* F3 41 90 is XCHG R8, RAX all the same; Intel's pause */
			take_xchg(insn);
		break;
	case ZYDIS_MNEMONIC_MOVSXD: /* from 16 bits to 16 (SDM Vol. 2 MOVSXD); AMD's read 32 */
		if (insn->opsize == 2 && insn->mem_size && !amd)
			insn->mem_size = 2;
		break;
	case ZYDIS_MNEMONIC_VPTEST: /* the other flags become 0 */
	case ZYDIS_MNEMONIC_VTESTPS:
	case ZYDIS_MNEMONIC_VTESTPD:
		insn->fl_write = FL_ARITH;
		break;
	case ZYDIS_MNEMONIC_BSF: /* the destination stays when the source is zero */
	case ZYDIS_MNEMONIC_BSR:
	case ZYDIS_MNEMONIC_LZCNT: /* BSR and BSF on a host without the feature */
	case ZYDIS_MNEMONIC_TZCNT:
		insn->gpr_read |= insn->gpr_write;
		break;
	default:
		break;
	}
	if (insn->opsize == 2 &&
	    ((insn->flags & (INSN_VEX | INSN_SSE | INSN_FPU)) || insn->mnemonic == ZYDIS_MNEMONIC_MOVNTI))
		insn->opsize = 4; /* 16-bit mode; a 66 prefix does not reach these */
	if ((insn->flags & INSN_MEM) && must_align(zi, insn->mem_size, amd))
		insn->flags |= INSN_ALIGN;
	if (insn->cls == CLS_SPECIAL && zi->meta.category == ZYDIS_CATEGORY_BITBYTE)
		insn->flags |= INSN_BITOFF;
}

void decode_effects(struct x86_insn *insn, const ZydisDecodedInstruction *zi, bool amd)
{
	take_flags(insn, zi);
	take_units(insn, zi);
	take_corrections(insn, zi, amd);
}
