/* From bytes to struct x86_insn: Zydis decodes, and this turns its answer into the fields that the rest of the code
 * uses. */
#include "arch/x86/cpuid.h"
#include "arch/x86/decode_class.h"
#include "arch/x86/insn.h"

#include <string.h>
#include <Zydis/Decoder.h>

/*
 * CET and MPX are never claimed: without them their encodings are NOPs (ENDBR64) or undefined. In 64-bit mode AMD's
 * processors take a near branch with a 66 prefix for a 16-bit one, Intel's ignore the prefix (SDM Vol. 2 JMP; APM Vol.
 * 3 1.2.2).
 */
#define DECODER(mode, width, amd)                                                                                      \
	{                                                                                                              \
		.machine_mode = ZYDIS_MACHINE_MODE_##mode, .stack_width = ZYDIS_STACK_WIDTH_##width, .decoder_mode = { \
			[ZYDIS_DECODER_MODE_AMD_BRANCHES] = amd,                                                       \
			[ZYDIS_DECODER_MODE_LZCNT] = ZYAN_TRUE,                                                        \
			[ZYDIS_DECODER_MODE_TZCNT] = ZYAN_TRUE,                                                        \
		}                                                                                                      \
	}

static const ZydisDecoder decoders[2][3] = {
	{DECODER(LEGACY_16, 16, ZYAN_FALSE), DECODER(LEGACY_32, 32, ZYAN_FALSE), DECODER(LONG_64, 64, ZYAN_FALSE)},
	{DECODER(LEGACY_16, 16, ZYAN_TRUE), DECODER(LEGACY_32, 32, ZYAN_TRUE), DECODER(LONG_64, 64, ZYAN_TRUE)},
};

static bool vendor_is_amd(const struct x86_cpuid_model *model)
{
	return model ? model->amd : __builtin_cpu_is("amd") != 0;
}

/* A general register's number and width in bytes; false for other registers. Zydis numbers them in groups, from 8 bits
 * up. */
static bool gpr_of(ZydisRegister r, unsigned *num, unsigned *width, bool *high)
{
	*high = r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH;
	if (r >= ZYDIS_REGISTER_RAX && r <= ZYDIS_REGISTER_R15)
		*num = r - ZYDIS_REGISTER_RAX, *width = 8;
	else if (r >= ZYDIS_REGISTER_EAX && r <= ZYDIS_REGISTER_R15D)
		*num = r - ZYDIS_REGISTER_EAX, *width = 4;
	else if (r >= ZYDIS_REGISTER_AX && r <= ZYDIS_REGISTER_R15W)
		*num = r - ZYDIS_REGISTER_AX, *width = 2;
	else if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_R15B)
		*num = r - ZYDIS_REGISTER_SPL + 4, *width = 1;
	else if (r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_BH)
		*num = (r - ZYDIS_REGISTER_AL) & 3, *width = 1;
	else
		return false;
	return true;
}

static uint16_t gpr_bit(ZydisRegister r)
{
	unsigned num, width;
	bool high;

	return r != ZYDIS_REGISTER_NONE && gpr_of(r, &num, &width, &high) ? (uint16_t)(1u << num) : 0;
}

static void take_gpr(struct x86_insn *insn, const ZydisDecodedOperand *op, unsigned num, unsigned width)
{
	uint16_t bit = (uint16_t)(1u << num);

	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
		insn->gpr_read |= bit;
	if (op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) {
		insn->gpr_write |= bit;
		if (width < 4 || (op->actions & ZYDIS_OPERAND_ACTION_CONDWRITE))
			insn->gpr_read |= bit;
	}
	switch (op->encoding) {
	case ZYDIS_OPERAND_ENCODING_MODRM_REG:
		insn->flags |= INSN_REG_GPR;
		break;
	case ZYDIS_OPERAND_ENCODING_MODRM_RM:
		insn->flags |= INSN_RM_GPR;
		break;
	case ZYDIS_OPERAND_ENCODING_NDSNDD:
		insn->flags |= INSN_VVVV_GPR;
		break;
	case ZYDIS_OPERAND_ENCODING_OPCODE:
		insn->flags |= INSN_OPREG_GPR;
		break;
	default:
		insn->gpr_implicit |= bit;
	}
}

static void take_register(struct x86_insn *insn, const ZydisDecodedOperand *op)
{
	ZydisRegister r = op->reg.value;
	unsigned num, width;
	bool high;

	if (gpr_of(r, &num, &width, &high)) {
		if (high)
			insn->flags |= INSN_HIGH8;
		take_gpr(insn, op, num, width);
	} else if (r >= ZYDIS_REGISTER_XMM0 && r <= ZYDIS_REGISTER_XMM31) {
		insn->flags |= insn->flags & INSN_VEX ? INSN_AVX : INSN_SSE;
	} else if (r >= ZYDIS_REGISTER_MM0 && r <= ZYDIS_REGISTER_MM7) {
		insn->flags |= INSN_FPU;
	}
}

static void take_memory(struct x86_insn *insn, const ZydisDecodedOperand *op)
{
	insn->gpr_read |= gpr_bit(op->mem.base);
	if (op->mem.type != ZYDIS_MEMOP_TYPE_VSIB)
		insn->gpr_read |= gpr_bit(op->mem.index);
	if (op->encoding != ZYDIS_OPERAND_ENCODING_MODRM_RM && op->encoding != ZYDIS_OPERAND_ENCODING_DISP16_32_64)
		return; /* an implicit one: strings, the stack */
	if (op->mem.type == ZYDIS_MEMOP_TYPE_AGEN || insn->mnemonic == ZYDIS_MNEMONIC_NOP) {
		insn->flags |= INSN_ADDR_ONLY;
		return;
	}
	insn->flags |= INSN_MEM;
	insn->mem_size = op->size / 8;
	insn->mem_read = op->actions & ZYDIS_OPERAND_ACTION_MASK_READ;
	insn->mem_write = op->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE;
}

static void take_operands(struct x86_insn *insn, const ZydisDecodedOperand *op, unsigned n)
{
	for (; n--; op++) {
		if (op->type == ZYDIS_OPERAND_TYPE_REGISTER)
			take_register(insn, op);
		else if (op->type == ZYDIS_OPERAND_TYPE_MEMORY)
			take_memory(insn, op);
	}
}

/* Base and index of 16-bit addressing, by ModRM.rm (SDM Vol. 2 table 2-1). */
static const int8_t base16[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX};
static const int8_t index16[8] = {RSI, RDI, RSI, RDI, -1, -1, -1, -1};

static void take_address16(struct x86_insn *insn, unsigned mod, unsigned rm)
{
	if (mod == 0 && rm == 6)
		return; /* disp16 alone */
	insn->base = base16[rm];
	insn->index = index16[rm];
}

static void take_sib(struct x86_insn *insn, const ZydisDecodedInstruction *zi, unsigned x, unsigned b)
{
	unsigned index = zi->raw.sib.index | x << 3;

	insn->scale = (uint8_t)(1u << zi->raw.sib.scale);
	if (index != 4 || (insn->flags & INSN_VSIB))
		insn->index = (int8_t)index;
	if (zi->raw.sib.base != 5 || zi->raw.modrm.mod != 0)
		insn->base = (int8_t)(zi->raw.sib.base | b << 3);
}

static void take_address(struct x86_insn *insn, const ZydisDecodedInstruction *zi, unsigned x, unsigned b)
{
	unsigned mod = zi->raw.modrm.mod, rm = zi->raw.modrm.rm;

	if (insn->addrsize == 2)
		take_address16(insn, mod, rm);
	else if (rm == 4)
		take_sib(insn, zi, x, b);
	else if (mod == 0 && rm == 5)
		insn->base = insn->mode == MODE_64 ? 16 : -1;
	else
		insn->base = (int8_t)(rm | b << 3);
}

/* The segment of the memory operand. 64-bit mode knows no overrides but FS and GS (SDM Vol. 1 3.4.4). */
static uint8_t segment_of(const struct x86_insn *insn, ZydisInstructionAttributes attr)
{
	if (attr & ZYDIS_ATTRIB_HAS_SEGMENT_FS)
		return SEG_FS;
	if (attr & ZYDIS_ATTRIB_HAS_SEGMENT_GS)
		return SEG_GS;
	if (insn->mode != MODE_64) {
		if (attr & ZYDIS_ATTRIB_HAS_SEGMENT_CS)
			return SEG_CS;
		if (attr & ZYDIS_ATTRIB_HAS_SEGMENT_SS)
			return SEG_SS;
		if (attr & ZYDIS_ATTRIB_HAS_SEGMENT_DS)
			return SEG_DS;
		if (attr & ZYDIS_ATTRIB_HAS_SEGMENT_ES)
			return SEG_ES;
	}
	return insn->base == RSP || insn->base == RBP ? SEG_SS : SEG_DS;
}

static void take_modrm(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	unsigned r = 0, x = 0, b = 0;

	insn->modrm_off = zi->raw.modrm.offset;
	insn->modrm = insn->bytes[insn->modrm_off];
	if (insn->flags & INSN_VEX) {
		r = !zi->raw.vex.R, x = !zi->raw.vex.X, b = !zi->raw.vex.B;
		if (insn->mode != MODE_64)
			r = x = b = 0;
	} else if (insn->flags & INSN_REX) {
		r = zi->raw.rex.R, x = zi->raw.rex.X, b = zi->raw.rex.B;
	}
	insn->reg = (uint8_t)(zi->raw.modrm.reg | r << 3);
	insn->rm = (uint8_t)(zi->raw.modrm.rm | b << 3);
	if (zi->raw.modrm.mod != 3)
		take_address(insn, zi, x, b);
}

/* Of F2 and F3 the last one counts; string instructions without a condition take both for REP. */
static uint32_t repeat_prefix(const ZydisDecodedInstruction *zi)
{
	for (unsigned i = zi->raw.prefix_count; i--;) {
		if (zi->raw.prefixes[i].value == 0xf3)
			return INSN_REP;
		if (zi->raw.prefixes[i].value == 0xf2)
			return INSN_REPNE;
	}
	return 0;
}

/* Prefixes: Zydis says which of them mean something here. */
static void take_prefixes(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	ZydisInstructionAttributes attr = zi->attributes;

	if (attr & ZYDIS_ATTRIB_HAS_LOCK)
		insn->flags |= INSN_LOCK;
	if (attr & ZYDIS_ATTRIB_HAS_OPERANDSIZE)
		insn->flags |= INSN_OPSIZE;
	if (attr & ZYDIS_ATTRIB_HAS_ADDRESSSIZE)
		insn->flags |= INSN_ADDRSIZE;
	if (zi->meta.category == ZYDIS_CATEGORY_STRINGOP || zi->meta.category == ZYDIS_CATEGORY_IOSTRINGOP)
		insn->flags |= repeat_prefix(zi);
	for (unsigned i = 0; i < zi->raw.prefix_count; i++) {
		uint8_t value = zi->raw.prefixes[i].value;
		if (zi->raw.prefixes[i].type != ZYDIS_PREFIX_TYPE_MANDATORY)
			continue;
		if (value == 0x66)
			insn->flags |= INSN_OPSIZE | INSN_MAND66;
		else if (value == 0xf3)
			insn->flags |= INSN_REP;
		else if (value == 0xf2)
			insn->flags |= INSN_REPNE;
	}
}

static void take_encoding(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	insn->map = (uint8_t)(zi->opcode_map - ZYDIS_OPCODE_MAP_DEFAULT);
	insn->opcode = zi->opcode;
	if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
		insn->flags |= INSN_VEX;
		insn->opcode_off = zi->raw.vex.offset + zi->raw.vex.size;
		insn->vexl = zi->raw.vex.L;
		insn->vexpp = zi->raw.vex.pp;
		insn->vvvv = ~zi->raw.vex.vvvv & (insn->mode == MODE_64 ? 15 : 7);
		insn->flags |= zi->raw.vex.W ? INSN_REXW : 0;
	} else {
		insn->opcode_off = zi->raw.prefix_count + (insn->map == 0 ? 0 : insn->map == 1 ? 1 : 2);
		if (zi->attributes & ZYDIS_ATTRIB_HAS_REX)
			insn->flags |= INSN_REX | (zi->raw.rex.W ? INSN_REXW : 0);
		insn->opreg = (uint8_t)((insn->opcode & 7) | ((insn->flags & INSN_REX) && zi->raw.rex.B ? 8 : 0));
	}
	take_prefixes(insn, zi);
}

static void take_immediates(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	insn->imm_off = zi->raw.imm[0].offset;
	insn->imm_len = (uint8_t)((zi->raw.imm[0].size + zi->raw.imm[1].size) / 8);
	insn->imm = zi->raw.imm[0].value.u;
	insn->imm2 = zi->raw.imm[1].value.u;
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
		uint32_t repeat = repeat_prefix(zi);
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
		if (insn->opreg) /* F3 41 90 is XCHG R8, RAX all the same */
			take_xchg(insn);
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
	insn->seg = segment_of(insn, zi->attributes);
}

static void take_failure(struct x86_insn *insn, const ZydisDecodedInstruction *zi, ZyanStatus status)
{
	insn->cls = status == ZYDIS_STATUS_NO_MORE_DATA           ? CLS_PARTIAL
		    : status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? CLS_TOOLONG
								  : CLS_INVALID;
	insn->len = insn->cls == CLS_PARTIAL ? 0 : MAX(zi->length, 1);
}

static void take_instruction(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	insn->len = zi->length;
	insn->mnemonic = (uint16_t)zi->mnemonic;
	insn->opsize = zi->operand_width / 8;
	insn->addrsize = zi->address_width / 8;
	take_encoding(insn, zi);
}

void x86_decode(struct x86_insn *insn, const uint8_t *p, size_t len, enum x86_mode mode,
		const struct x86_cpuid_model *model)
{
	bool amd = vendor_is_amd(model);
	const ZydisDecoder *decoder = &decoders[amd][mode];
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecoderContext ctx;
	ZyanStatus status;

	memset(insn, 0, sizeof(*insn));
	insn->mode = (uint8_t)mode;
	insn->base = insn->index = -1;
	insn->scale = 1;
	zi.length = 0;
	status = len ? ZydisDecoderDecodeInstruction(decoder, &ctx, p, len, &zi) : ZYDIS_STATUS_NO_MORE_DATA;
	memcpy(insn->bytes, p, MIN(zi.length, sizeof(insn->bytes)));
	if (!ZYAN_SUCCESS(status)) {
		take_failure(insn, &zi, status);
		return;
	}
	take_instruction(insn, &zi);
	insn->cls = decode_class(&zi, model ? model->features : ~0ull, amd);
	if (insn->cls == CLS_INVALID ||
	    !ZYAN_SUCCESS(ZydisDecoderDecodeOperands(decoder, &ctx, &zi, op, zi.operand_count))) {
		insn->cls = CLS_INVALID;
		return;
	}
	insn->disp = zi.raw.disp.value;
	if (zi.attributes & ZYDIS_ATTRIB_HAS_MODRM) {
		insn->flags |= INSN_MODRM;
		if (zi.meta.category == ZYDIS_CATEGORY_AVX2GATHER)
			insn->flags |= INSN_VSIB;
		take_modrm(insn, &zi);
	}
	take_operands(insn, op, zi.operand_count);
	take_immediates(insn, &zi);
	take_flags(insn, &zi);
	take_units(insn, &zi);
	take_corrections(insn, &zi, amd);
}
