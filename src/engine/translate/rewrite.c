/* Encoding of instructions anew (SDM Vol. 2 ch. 2): see rewrite.h. */
#include "engine/translate/rewrite.h"

/* What goes out, field by field. */
struct encoding {
	uint8_t opcode;
	unsigned reg, rm, vvvv, opreg; /* host numbers, 0..15 */
	bool modrm;                    /* opcode is followed by ModRM */
	bool mem;                      /* rm is the memory operand */
	bool need_rex;                 /* SPL, BPL, SIL or DIL is named */
	bool no_rex;                   /* AH, CH, DH or BH is named */
};

enum { BYTE_REG = 1, BYTE_RM = 2, BYTE_OPREG = 4 };

/* Which general-register fields of a legacy instruction name 8-bit registers, by the opcode maps (SDM Vol. 2 appendix
 * A). */
static unsigned byte_fields_map0(uint8_t op)
{
	if (op < 0x40)
		return (op & 7) == 0 || (op & 7) == 2 ? BYTE_REG | BYTE_RM : 0;
	if (op >= 0xb0 && op <= 0xb7)
		return BYTE_OPREG;
	switch (op) {
	case 0x84:
	case 0x86:
	case 0x88:
	case 0x8a:
		return BYTE_REG | BYTE_RM;
	case 0x80:
	case 0x82:
	case 0xc0:
	case 0xc6:
	case 0xd0:
	case 0xd2:
	case 0xf6:
	case 0xfe:
		return BYTE_RM;
	default:
		return 0;
	}
}

static unsigned byte_fields(const struct x86_insn *insn)
{
	uint8_t op = insn->opcode;

	if (insn->flags & INSN_VEX)
		return 0;
	if (insn->map == 0)
		return byte_fields_map0(op);
	if (insn->map == 1) {
		if ((op & 0xf0) == 0x90 || op == 0xb6 || op == 0xbe)
			return BYTE_RM;
		return op == 0xb0 || op == 0xc0 ? BYTE_REG | BYTE_RM : 0;
	}
	return insn->map == 2 && op == 0xf0 && (insn->flags & INSN_REPNE) ? BYTE_RM : 0; /* CRC32 r, r/m8 */
}

/* The host's number for guest register `n` in one field; false when it cannot be named. */
static bool map_gpr(struct encoding *enc, const struct x86_insn *insn, const struct rewrite_map *map, unsigned n,
		    bool byte, unsigned *out)
{
	if (byte && n >= 4 && n < 8 && !(insn->flags & INSN_REX)) {
		*out = map->gpr[n - 4] + 4u;
		enc->no_rex = true;
		return *out < 8;
	}
	*out = map->gpr[n];
	if (byte && *out >= 4)
		enc->need_rex = true;
	return true;
}

static bool map_registers(struct encoding *enc, const struct x86_insn *insn, const struct rewrite_map *map)
{
	unsigned bytes = byte_fields(insn);

	enc->reg = insn->reg;
	enc->rm = insn->rm;
	enc->vvvv = insn->vvvv;
	enc->opreg = insn->opreg;
	if ((insn->flags & INSN_REG_GPR) && !map_gpr(enc, insn, map, insn->reg, bytes & BYTE_REG, &enc->reg))
		return false;
	if ((insn->flags & INSN_RM_GPR) && !map_gpr(enc, insn, map, insn->rm, bytes & BYTE_RM, &enc->rm))
		return false;
	if (insn->flags & INSN_VVVV_GPR)
		enc->vvvv = map->gpr[insn->vvvv];
	if ((insn->flags & INSN_OPREG_GPR) && !map_gpr(enc, insn, map, insn->opreg, bytes & BYTE_OPREG, &enc->opreg))
		return false;
	return true;
}

static bool implicit_in_place(const struct x86_insn *insn, const struct rewrite_map *map)
{
	for (unsigned n = 0; n < X86_GPRS; n++) {
		if ((insn->gpr_implicit & (1u << n)) && map->gpr[n] != n)
			return false;
	}
	return true;
}

/* Forms that take another opcode: those that 64-bit mode gave away, and those whose short form does not take every
 * register. */
static void change_form(struct encoding *enc, const struct x86_insn *insn)
{
	uint8_t op = insn->opcode;

	enc->opcode = op;
	enc->modrm = insn->flags & INSN_MODRM;
	enc->mem = insn->flags & INSN_MEM;
	if (insn->map != 0 || (insn->flags & INSN_VEX))
		return;
	if (op == 0x82) {
		enc->opcode = 0x80;
	} else if (op >= 0xa0 && op <= 0xa3) { /* MOV AL/eAX, moffs and back: 8A, 8B, 88, 89 /0 */
		enc->opcode = op < 0xa2 ? op - 0xa0 + 0x8a : op - 0xa2 + 0x88;
		enc->modrm = true;
		enc->reg = 0;
	} else if (op >= 0x40 && op <= 0x4f) { /* INC, DEC r: FF /0, FF /1 */
		enc->opcode = 0xff;
		enc->modrm = true;
		enc->reg = op >= 0x48;
		enc->rm = enc->opreg;
	} else if (op >= 0x90 && op <= 0x97 &&
		   (insn->flags & INSN_OPREG_GPR)) { /* XCHG r, eAX: 90 + eAX would be NOP */
		enc->opcode = 0x87;
		enc->modrm = true;
		enc->reg = 0;
		enc->rm = enc->opreg;
	}
	if (enc->modrm)
		enc->opreg = 0;
}

/* Instructions of a fixed operand size in map 1 and 2 that 16-bit mode must not add a 66 prefix to. */
static bool fixed_size(const struct x86_insn *insn)
{
	if (insn->flags & (INSN_FPU | INSN_SSE | INSN_AVX | INSN_VEX))
		return true;
	if (insn->map == 1)
		return insn->opcode == 0xc3 || insn->opcode == 0xae ||
		       (insn->opcode == 0xc7 && (insn->flags & INSN_MEM)); /* MOVNTI, fences, CMPXCHG8B */
	return insn->map == 2 && insn->opcode == 0xf6;                     /* ADCX, ADOX */
}

static bool needs_66(const struct x86_insn *insn)
{
	if (insn->mode != MODE_16 || (insn->flags & INSN_MAND66))
		return insn->flags & INSN_OPSIZE;
	if ((insn->flags & INSN_FPU) && (insn->mem_size == 14 || insn->mem_size == 94))
		return true; /* the short environment of FNSTENV and FNSAVE */
	return insn->opsize == 2 && !fixed_size(insn);
}

static unsigned mem_bits(const struct rewrite_map *map)
{
	if (map->mem_gs)
		return 0;
	return (map->mem_index >= 8 ? 2u : 0) | (map->mem_base >= 8 ? 1u : 0);
}

/* REX.R, X and B as the fields ask for. */
static unsigned rex_bits(const struct encoding *enc, const struct rewrite_map *map)
{
	unsigned bits = enc->modrm && enc->reg >= 8 ? 4 : 0;

	if (enc->mem)
		bits |= mem_bits(map);
	else if (enc->modrm)
		bits |= enc->rm >= 8;
	else
		bits |= enc->opreg >= 8;
	return bits;
}

static void emit_prefixes(struct emit *e, const struct x86_insn *insn)
{
	if (needs_66(insn))
		emit8(e, 0x66);
	if (insn->flags & INSN_REP)
		emit8(e, 0xf3);
	if (insn->flags & INSN_REPNE)
		emit8(e, 0xf2);
	if (insn->flags & INSN_LOCK)
		emit8(e, 0xf0);
}

static void emit_map(struct emit *e, unsigned map)
{
	if (map)
		emit8(e, 0x0f);
	if (map >= 2)
		emit8(e, map == 2 ? 0x38 : 0x3a);
}

static bool emit_legacy(struct emit *e, const struct encoding *enc, const struct x86_insn *insn,
			const struct rewrite_map *map)
{
	unsigned bits = rex_bits(enc, map);

	if (insn->flags & INSN_REXW)
		bits |= 8;
	if (enc->no_rex && (bits || enc->need_rex))
		return false;
	if (enc->mem && map->mem_gs)
		emit8(e, 0x65);
	emit_prefixes(e, insn);
	if (bits || enc->need_rex)
		emit8(e, (uint8_t)(0x40 | bits));
	emit_map(e, insn->map);
	emit8(e, enc->modrm ? enc->opcode
			    : (uint8_t)((insn->flags & INSN_OPREG_GPR) ? (enc->opcode & ~7u) | (enc->opreg & 7)
								       : enc->opcode));
	return true;
}

/*
 * Outside 64-bit mode VEX.W is ignored where it chooses between 32 and 64 bits of a general register, be it
 * VPCMPESTRI's implicit ones, or its memory operand (SDM Vol. 2 2.3.5.5); elsewhere it is part of the opcode.
 */
static bool vex_w(const struct x86_insn *insn)
{
	if (!(insn->flags & INSN_REXW))
		return false;
	if (insn->mode == MODE_64)
		return true;
	if (insn->flags & (INSN_REG_GPR | INSN_RM_GPR | INSN_VVVV_GPR))
		return false;
	if (insn->map == 1)
		return !(insn->opcode == 0x2a || insn->opcode == 0x6e || (insn->opcode == 0x7e && insn->vexpp == 1));
	return !(insn->map == 3 &&
		 (insn->opcode == 0x16 || insn->opcode == 0x22 || insn->opcode == 0x60 || insn->opcode == 0x61));
}

static void emit_vex(struct emit *e, const struct encoding *enc, const struct x86_insn *insn,
		     const struct rewrite_map *map)
{
	unsigned bits = rex_bits(enc, map), w = vex_w(insn);
	unsigned low = (~enc->vvvv & 15) << 3 | (unsigned)insn->vexl << 2 | insn->vexpp;

	if (enc->mem && map->mem_gs)
		emit8(e, 0x65);
	if (insn->map == 1 && !w && !(bits & 3)) {
		emit8(e, 0xc5);
		emit8(e, (uint8_t)((bits & 4 ? 0 : 0x80) | low));
	} else {
		emit8(e, 0xc4);
		emit8(e, (uint8_t)((~bits & 7) << 5 | insn->map));
		emit8(e, (uint8_t)(w << 7 | low));
	}
	emit8(e, enc->opcode);
}

static void emit_memory(struct emit *e, unsigned reg, const struct rewrite_map *map)
{
	unsigned mod, base = map->mem_base & 7;
	uint8_t r = (uint8_t)((reg & 7) << 3);

	if (map->mem_gs || map->mem_base < 0) { /* absolute: SIB without base and index */
		emit8(e, r | 4);
		emit8(e, 0x25);
		emit32(e, (uint32_t)map->mem_disp);
		return;
	}
	mod = map->mem_disp == 0 && base != 5 ? 0 : map->mem_disp == (int8_t)map->mem_disp ? 1 : 2;
	if (map->mem_index >= 0) {
		emit8(e, (uint8_t)(mod << 6 | r | 4));
		emit8(e, (uint8_t)((map->mem_index & 7) << 3 | base));
	} else {
		emit8(e, (uint8_t)(mod << 6 | r | base));
		if (base == 4)
			emit8(e, 0x24);
	}
	if (mod == 1)
		emit8(e, (uint8_t)map->mem_disp);
	else if (mod == 2)
		emit32(e, (uint32_t)map->mem_disp);
}

/* Immediates stay, but for the register in VBLENDV's: outside 64-bit mode its high bit is ignored. */
static void emit_immediates(struct emit *e, const struct x86_insn *insn)
{
	bool is4 = (insn->flags & INSN_VEX) && insn->map == 3 && insn->opcode >= 0x4a && insn->opcode <= 0x4c;

	if (is4 && insn->mode != MODE_64)
		emit8(e, insn->bytes[insn->imm_off] & 0x7f);
	else
		emit_bytes(e, insn->bytes + insn->imm_off, insn->imm_len);
}

static bool is_wide_nop(const struct x86_insn *insn)
{
	return insn->map == 1 && !(insn->flags & INSN_VEX) &&
	       ((insn->opcode >= 0x18 && insn->opcode <= 0x1f) || insn->opcode == 0x0d);
}

bool rewrite_plain(struct emit *e, const struct x86_insn *insn, const struct rewrite_map *map)
{
	struct encoding enc = {0};

	if (is_wide_nop(insn))
		return true; /* comes to nothing: ENDBR64 and RDSSP are not to reach a host that knows them */
	if (insn->flags & INSN_ADDR_ONLY)
		return false; /* LEA is the caller's */
	if (!implicit_in_place(insn, map) || !map_registers(&enc, insn, map))
		return false;
	change_form(&enc, insn);
	if (insn->flags & INSN_VEX)
		emit_vex(e, &enc, insn, map);
	else if (!emit_legacy(e, &enc, insn, map))
		return false;
	if (enc.modrm && enc.mem)
		emit_memory(e, enc.reg, map);
	else if (enc.modrm)
		emit8(e, (uint8_t)(0xc0 | (enc.reg & 7) << 3 | (enc.rm & 7)));
	emit_immediates(e, insn);
	return true;
}
