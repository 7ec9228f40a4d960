/*
 * How long an instruction is that there is not. A processor takes as many bytes as its opcode's place in the maps says,
 * and looks only then at what they mean: if they are more than 15 that is #GP, if they go on in a page that is not
 * there #PF, and else #UD. Measured on AMD's processors; Intel's take a ModRM for UD0 and UD1 (SDM Vol. 2 UD).
 */
#include "arch/x86/decode_class.h"

/* A bit for each opcode, from 0 up: whether a ModRM follows. */
static const uint32_t modrm_one[8] = {0x0f0f0f0f, 0x0f0f0f0f, 0x00000000, 0x00000a0c,
				      0x0000ffff, 0x00000000, 0xff0f00f3, 0xc0c00000};
static const uint32_t modrm_0f[8] = {0xffffa00f, 0x0500ff0f, 0xffffffff, 0xf37fffff,
				     0xffff0000, 0xfdfff838, 0xffff00ff, 0x7fffffff};
enum { MAP_ONE, MAP_0F, MAP_0F38, MAP_0F3A, MAP_XOP_A, MAP_OTHER };

struct bytes {
	const uint8_t *p;
	size_t len, at;
	bool out; /* of them */
};

/* As much of the instruction as is not of prefixes. */
struct shape {
	enum x86_mode mode;
	struct decode_ways ways;
	bool opsize, addrsize, rex, rexw, wide, evex;
	unsigned map;
	uint8_t opcode, modrm;
};

static uint8_t next(struct bytes *b)
{
	if (b->at < b->len)
		return b->p[b->at++];
	b->out = true;
	return 0;
}

static void skip(struct bytes *b, unsigned n)
{
	while (n--)
		next(b);
}

static uint8_t peek(const struct bytes *b)
{
	return b->at < b->len ? b->p[b->at] : 0;
}

/* The first byte that is none. */
static uint8_t prefixes(struct bytes *b, struct shape *s)
{
	for (;;) {
		uint8_t byte = next(b);
		bool rex = s->mode == MODE_64 && (byte & 0xf0) == 0x40;
		switch (byte) {
		case 0x66:
			s->opsize = true;
			break;
		case 0x67:
			s->addrsize = true;
			break;
		case 0x26:
		case 0x2e:
		case 0x36:
		case 0x3e:
		case 0x64:
		case 0x65:
		case 0xf0:
		case 0xf2:
		case 0xf3:
			break;
		default:
			if (!rex)
				return byte;
		}
		if (b->out)
			return byte;
		s->rex = rex;
		s->rexw = rex && byte & 8;
	}
}

/* VEX, EVEX and XOP name the map in a byte of their own; a REX before them makes them something else. */
static bool take_wide(struct bytes *b, struct shape *s, uint8_t first)
{
	static const uint8_t maps[] = {MAP_OTHER, MAP_0F, MAP_0F38, MAP_0F3A};
	uint8_t second = peek(b);
	unsigned map = first == 0x62 ? second & 3 : second & 0x1f;

	if (s->rex || (first == 0x8f ? !(second & 0x38) : s->mode != MODE_64 && second < 0xc0))
		return false;
	skip(b, first == 0xc5 ? 1 : first == 0x62 ? 3 : 2);
	if (first == 0x8f)
		s->map = map == 10 ? MAP_XOP_A : MAP_OTHER;
	else
		s->map = first == 0xc5 ? MAP_0F : map < 4 ? maps[map] : MAP_OTHER;
	s->opcode = next(b);
	s->wide = true;
	s->evex = first == 0x62;
	s->opsize = s->mode == MODE_16;
	return true;
}

static void opcode(struct bytes *b, struct shape *s)
{
	uint8_t byte = prefixes(b, s);

	if ((byte == 0xc4 || byte == 0xc5 || byte == 0x8f || (byte == 0x62 && s->ways.evex)) && take_wide(b, s, byte))
		return;
	s->opcode = byte;
	if (byte != 0x0f)
		return;
	s->map = MAP_0F;
	s->opcode = next(b);
	if (s->opcode == 0x38 || s->opcode == 0x3a) {
		s->map = s->opcode == 0x38 ? MAP_0F38 : MAP_0F3A;
		s->opcode = next(b);
	}
}

static bool is_ud(const struct shape *s)
{
	return s->map == MAP_0F && !s->wide && (s->opcode == 0xff || s->opcode == 0xb9);
}

static bool has_modrm(const struct shape *s)
{
	if (s->map > MAP_0F)
		return true;
	if (s->wide && s->map == MAP_0F && (s->opcode == 0x38 || s->opcode == 0x3a))
		return false;
	if (s->evex && s->map == MAP_0F && (s->opcode == 0x7a || s->opcode == 0x7b)) /* conversions */
		return true;
	if (!s->ways.amd && is_ud(s))
		return true;
	return (s->map == MAP_0F ? modrm_0f : modrm_one)[s->opcode / 32] >> s->opcode % 32 & 1;
}

static void address(struct bytes *b, struct shape *s)
{
	unsigned mod, rm, disp;

	s->modrm = next(b);
	mod = s->modrm >> 6;
	rm = s->modrm & 7;
	if (mod == 3 || (s->map == MAP_0F && s->opcode >= 0x20 && s->opcode <= 0x23)) /* MOV of control registers */
		return;
	if (s->mode != MODE_64 && s->addrsize == (s->mode == MODE_32)) { /* 16 bits */
		skip(b, mod == 2 || (!mod && rm == 6) ? 2 : mod);
		return;
	}
	disp = mod == 1 ? 1 : mod == 2 || rm == 5 ? 4 : 0;
	if (rm == 4) {
		uint8_t sib = next(b);
		if (!mod && (sib & 7) == 5)
			disp = 4;
	}
	skip(b, disp);
}

/* Bytes of an immediate operand or offset as large as the operand, but for 64 bits. */
static unsigned full(const struct shape *s)
{
	return s->rexw || s->opsize == (s->mode == MODE_16) ? 4 : 2;
}

static unsigned near_offset(const struct shape *s)
{
	return s->mode == MODE_64 && !s->ways.amd ? 4 : full(s);
}

static unsigned offset_length(const struct shape *s)
{
	if (s->mode == MODE_64)
		return s->addrsize ? 4 : 8;
	return s->addrsize == (s->mode == MODE_16) ? 4 : 2;
}

static unsigned immediate_one(const struct shape *s)
{
	uint8_t op = s->opcode;

	if (op < 0x40)
		return (op & 7) == 4 ? 1 : (op & 7) == 5 ? full(s) : 0;
	if (op >= 0x70 && op <= 0x7f)
		return 1;
	if (op >= 0xb0 && op <= 0xbf)
		return op < 0xb8 ? 1 : s->rexw ? 8 : full(s);
	if (op >= 0xa0 && op <= 0xa3)
		return offset_length(s);
	switch (op) {
	case 0x68:
	case 0x69:
	case 0x81:
	case 0xa9:
	case 0xc7:
		return full(s);
	case 0x6a:
	case 0x6b:
	case 0x80:
	case 0x82:
	case 0x83:
	case 0xa8:
	case 0xc0:
	case 0xc1:
	case 0xc6:
	case 0xcd:
	case 0xd4:
	case 0xd5:
	case 0xeb:
		return 1;
	case 0xe8:
	case 0xe9:
		return near_offset(s);
	case 0x9a:
	case 0xea:
		return full(s) + 2;
	case 0xc2:
	case 0xca:
		return 2;
	case 0xc8:
		return 3;
	case 0xf6:
		return s->modrm & 0x30 ? 0 : 1;
	case 0xf7:
		return s->modrm & 0x30 ? 0 : full(s);
	default:
		return op >= 0xe0 && op <= 0xe7; /* loops, ports */
	}
}

static unsigned immediate_0f(const struct shape *s)
{
	switch (s->opcode) {
	case 0x0f:
	case 0x70:
	case 0x71:
	case 0x72:
	case 0x73:
	case 0xa4:
	case 0xac:
	case 0xba:
	case 0xc2:
	case 0xc4:
	case 0xc5:
	case 0xc6:
		return 1;
	case 0x78: /* EXTRQ and INSERTQ, or what would be */
		return s->ways.amd && !s->evex ? 2 : 0;
	default:
		return s->opcode >> 4 == 8 ? near_offset(s) : 0;
	}
}

static unsigned immediate(const struct shape *s)
{
	switch (s->map) {
	case MAP_ONE:
		return immediate_one(s);
	case MAP_0F:
		return immediate_0f(s);
	case MAP_0F3A:
		return 1;
	default:
		return s->map == MAP_XOP_A ? 4 : 0;
	}
}

unsigned decode_invalid_length(const uint8_t *p, size_t len, enum x86_mode mode, struct decode_ways ways)
{
	struct bytes b = {p, len, 0, false};
	struct shape s = {.mode = mode, .ways = ways};

	opcode(&b, &s);
	if (!b.out && has_modrm(&s))
		address(&b, &s);
	if (!b.out)
		skip(&b, immediate(&s));
	return b.out ? (unsigned)len + 1 : (unsigned)b.at;
}

/* What Zydis takes for instructions that only VIA's processors have, or AMD's before Zen: they have more bytes there.
 */
static bool is_others(const struct shape *s)
{
	if (s->wide)
		return s->map == MAP_OTHER && !s->evex; /* XOP's map 8 has immediates */
	return s->map == MAP_0F && (s->opcode == 0xa6 || s->opcode == 0xa7);
}

bool decode_is_shorter(const uint8_t *p, size_t len, enum x86_mode mode, struct decode_ways ways)
{
	struct bytes b = {p, len, 0, false};
	struct shape s = {.mode = mode, .ways = ways};

	opcode(&b, &s);
	if (b.out)
		return false;
	return (ways.amd && (is_ud(&s) || is_others(&s))) || (!ways.evex && s.map == MAP_ONE && s.opcode == 0x62);
}

/* UD0 and UD1, of which makers think differently, do not return. */
unsigned x86_length(const uint8_t *p, size_t len)
{
	return decode_invalid_length(p, len, MODE_64, (struct decode_ways){.amd = true, .evex = true});
}
