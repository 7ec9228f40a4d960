/* From bytes to struct x86_insn: Zydis decodes, and this turns its answer into the fields that the rest of the code
 * uses. */
#include "arch/x86/cpuid.h"
#include "arch/x86/decode_cache.h"
#include "arch/x86/decode_class.h"
#include "arch/x86/insn.h"

#include <string.h>
#include <Zydis/Decoder.h>

/*
 * CET and MPX are never claimed: without them their encodings are NOPs (ENDBR64) or undefined. In 64-bit mode AMD's
 * processors take a near branch with a 66 prefix for a 16-bit one, Intel's ignore the prefix (SDM Vol. 2 JMP; APM Vol.
 * 3 1.2.2).
 */
#ifdef ZYDIS_MODES_ARE_BITS /* from version 4.1 on: meson.build */
#define MODES(amd) \
	((amd) << ZYDIS_DECODER_MODE_AMD_BRANCHES | BIT(ZYDIS_DECODER_MODE_LZCNT) | BIT(ZYDIS_DECODER_MODE_TZCNT))
#else
#define MODES(amd)                                                                                 \
	{                                                                                          \
		[ZYDIS_DECODER_MODE_AMD_BRANCHES] = (amd), [ZYDIS_DECODER_MODE_LZCNT] = ZYAN_TRUE, \
		[ZYDIS_DECODER_MODE_TZCNT] = ZYAN_TRUE,                                            \
	}
#endif
#define DECODER(mode, width, amd)                                                                    \
	{                                                                                            \
		.machine_mode = ZYDIS_MACHINE_MODE_##mode, .stack_width = ZYDIS_STACK_WIDTH_##width, \
		.decoder_mode = MODES(amd)                                                           \
	}

static const ZydisDecoder decoders[2][3] = {
	{DECODER(LEGACY_16, 16, ZYAN_FALSE), DECODER(LEGACY_32, 32, ZYAN_FALSE), DECODER(LONG_64, 64, ZYAN_FALSE)},
	{DECODER(LEGACY_16, 16, ZYAN_TRUE), DECODER(LEGACY_32, 32, ZYAN_TRUE), DECODER(LONG_64, 64, ZYAN_TRUE)},
};

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
		insn->flags |= decode_repeat_prefix(zi);
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

#define LENGTH_MAX 15

/* What is wrong with it: of the first 15 bytes those that are not there, then its length, then what it means. */
static void take_needs(struct x86_insn *insn, const uint8_t *p, size_t len, unsigned needs)
{
	insn->cls = needs > LENGTH_MAX ? CLS_TOOLONG : needs > len ? CLS_PARTIAL : CLS_INVALID;
	insn->len = insn->cls == CLS_PARTIAL ? 0 : (uint8_t)MIN(needs, len);
	memcpy(insn->bytes, p, insn->len);
}

/* The processor has no such instruction, whatever it is elsewhere. */
static void take_invalid(struct x86_insn *insn, const uint8_t *p, size_t len, struct decode_ways ways)
{
	len = MIN(len, LENGTH_MAX);
	take_needs(insn, p, len, decode_invalid_length(p, len, (enum x86_mode)insn->mode, ways));
}

static void take_failure(struct x86_insn *insn, const uint8_t *p, size_t len, ZyanStatus status,
			 struct decode_ways ways)
{
	len = MIN(len, LENGTH_MAX);
	if (decode_is_shorter(p, len, (enum x86_mode)insn->mode, ways) ||
	    (status != ZYDIS_STATUS_NO_MORE_DATA && status != ZYDIS_STATUS_INSTRUCTION_TOO_LONG))
		take_invalid(insn, p, len, ways);
	else
		take_needs(insn, p, len, len < LENGTH_MAX ? (unsigned)len + 1 : LENGTH_MAX + 1);
}

static void take_instruction(struct x86_insn *insn, const ZydisDecodedInstruction *zi)
{
	insn->len = zi->length;
	insn->mnemonic = (uint16_t)zi->mnemonic;
	insn->opsize = zi->operand_width / 8;
	insn->addrsize = zi->address_width / 8;
	take_encoding(insn, zi);
}

/* The bytes that decide what the instruction is, and its length; behind them are values. */
static void take_shape(struct decode_shape *shape, const struct x86_insn *insn, const ZydisDecodedInstruction *zi,
		       const ZydisDecodedOperand *op)
{
	bool shift = zi->meta.category == ZYDIS_CATEGORY_SHIFT || zi->meta.category == ZYDIS_CATEGORY_ROTATE;
	bool exact =
		zi->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY && zi->encoding != ZYDIS_INSTRUCTION_ENCODING_VEX;
	for (unsigned i = 0; i < zi->operand_count; i++)
		exact |= op[i].encoding == ZYDIS_OPERAND_ENCODING_IS4;
	if (exact || zi->raw.imm[1].size || (shift && insn->imm_len)) {
		*shape = (struct decode_shape){.head = insn->len};
		return;
	}
	shape->disp_len = zi->raw.disp.size / 8;
	shape->imm_signed = zi->raw.imm[0].is_signed;
	shape->head = (uint8_t)(insn->len - shape->disp_len - insn->imm_len);
}

void x86_decode(struct x86_insn *insn, const uint8_t *p, size_t len, enum x86_mode mode,
		const struct x86_cpuid_model *model)
{
	struct decode_shape shape;
	decode_shaped(insn, p, len, mode, model, &shape);
}

void decode_shaped(struct x86_insn *insn, const uint8_t *p, size_t len, enum x86_mode mode,
		   const struct x86_cpuid_model *model, struct decode_shape *shape)
{
	const struct decode_ways ways = {model ? model->amd : x86_host_is_amd(),
					 model ? model->evex : x86_host_has_evex()};
	const ZydisDecoder *decoder = &decoders[ways.amd][mode];
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecoderContext ctx;
	ZyanStatus status;

	memset(insn, 0, sizeof(*insn));
	insn->mode = (uint8_t)mode;
	insn->base = insn->index = -1;
	insn->scale = 1;
	status = len ? ZydisDecoderDecodeInstruction(decoder, &ctx, p, len, &zi) : ZYDIS_STATUS_NO_MORE_DATA;
	if (!ZYAN_SUCCESS(status)) {
		take_failure(insn, p, len, status, ways);
		return;
	}
	memcpy(insn->bytes, p, MIN(zi.length, sizeof(insn->bytes)));
	take_instruction(insn, &zi);
	insn->cls = decode_class(&zi, model ? model->features : ~0ull, ways.amd);
	if (insn->cls == CLS_INVALID ||
	    !ZYAN_SUCCESS(ZydisDecoderDecodeOperands(decoder, &ctx, &zi, op, zi.operand_count))) {
		take_invalid(insn, p, len, ways);
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
	insn->seg = segment_of(insn, zi.attributes);
	decode_effects(insn, &zi, ways.amd);
	take_shape(shape, insn, &zi, op);
}
