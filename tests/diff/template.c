/* Every encoding that the decoder knows, found by trying them all: opcode maps, prefixes, ModRM forms. */
#include "diff.h"

#include "arch/x86/decode_class.h"

#include <stdlib.h>
#include <string.h>
#include <Zydis/Zydis.h>

#define TEMPLATES_MAX 60000

struct search {
	struct templates *all;
	ZydisDecoder decoder;
	uint64_t features;
	bool amd;
	struct template t;
	unsigned room;
};

static unsigned put_prefixes(const struct template *t, uint8_t *p)
{
	unsigned n = 0;

	if (t->prefix & 1)
		p[n++] = 0x66;
	if (t->prefix & 2)
		p[n++] = 0xf3;
	if (t->prefix & 4)
		p[n++] = 0xf2;
	if (t->w && !t->vex)
		p[n++] = 0x48;
	if (t->map)
		p[n++] = 0x0f;
	if (t->map >= 2)
		p[n++] = t->map == 2 ? 0x38 : 0x3a;
	return n;
}

/* Bytes of the template as it is, for a look at what it decodes to. */
static unsigned put_template(const struct template *t, uint8_t *p)
{
	static const uint8_t pp[8] = {0, 1, 2, 0, 3};
	unsigned n = 0;

	if (t->vex) {
		p[n++] = 0xc4;
		p[n++] = (uint8_t)(0xe0 | t->map);
		p[n++] = (uint8_t)(t->w << 7 | (t->use_vvvv ? 0x60 : 0x78) | t->l << 2 | pp[t->prefix]);
	} else {
		n = put_prefixes(t, p);
	}
	p[n++] = t->opcode;
	p[n++] = t->modrm;
	return n;
}

static bool names(const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op, ZydisOperandEncoding enc)
{
	for (unsigned i = 0; i < zi->operand_count; i++) {
		if (op[i].encoding == enc && op[i].type == ZYDIS_OPERAND_TYPE_REGISTER)
			return true;
	}
	return false;
}

static void add(struct search *s, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *op)
{
	struct template *t = &s->t;

	t->mnemonic = (uint16_t)zi->mnemonic;
	t->cls = (uint8_t)decode_class(zi, s->features, s->amd);
	t->has_modrm = zi->attributes & ZYDIS_ATTRIB_HAS_MODRM;
	t->free_reg = names(zi, op, ZYDIS_OPERAND_ENCODING_MODRM_REG);
	t->free_rm = names(zi, op, ZYDIS_OPERAND_ENCODING_MODRM_RM);
	t->mem = t->has_modrm && zi->raw.modrm.mod != 3;
	if (t->cls == CLS_INVALID)
		return;
	if (t->free_reg && (t->modrm >> 3 & 7) != 0)
		return;
	if (t->free_rm && (t->modrm & 7) != 1)
		return;
	if (t->mem && (t->modrm & 7) != 1)
		return;
	ENSURE(s->all->count < TEMPLATES_MAX);
	s->all->t[s->all->count++] = *t;
}

/* VEX.vvvv must be 1111b where it is not used: whether it is shows in which value decodes. */
static bool try_decode(struct search *s, ZydisDecodedInstruction *zi, ZydisDecodedOperand *op)
{
	uint8_t bytes[24];
	unsigned n;

	for (s->t.use_vvvv = s->t.vex;; s->t.use_vvvv = false) {
		memset(bytes, 0, sizeof(bytes));
		n = put_template(&s->t, bytes);
		if ((s->t.modrm & 7) == 4 && s->t.modrm < 0xc0)
			bytes[n++] = 0x11; /* SIB: for gathers, registers that differ */
		if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&s->decoder, bytes, 15, zi, op)))
			return zi->encoding == (s->t.vex ? ZYDIS_INSTRUCTION_ENCODING_VEX
							 : ZYDIS_INSTRUCTION_ENCODING_LEGACY) &&
			       zi->opcode == s->t.opcode && zi->opcode_map == (ZydisOpcodeMap)s->t.map;
		if (!s->t.use_vvvv)
			return false;
	}
}

static void try_modrm(struct search *s)
{
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand op[ZYDIS_MAX_OPERAND_COUNT];
	uint16_t found = 0;

	for (unsigned modrm = 0; modrm < 256; modrm++) {
		if ((modrm & 0xc0) == 0x40)
			modrm = 0xc0;
		s->t.modrm = (uint8_t)modrm;
		if (!try_decode(s, &zi, op))
			continue;
		if (zi.attributes & ZYDIS_ATTRIB_HAS_MODRM) {
			if (zi.meta.category == ZYDIS_CATEGORY_AVX2GATHER && (modrm & 7) == 4)
				s->t.modrm = (uint8_t)((modrm & ~7u) | 1);
			add(s, &zi, op);
		} else if (found != zi.mnemonic) {
			found = (uint16_t)zi.mnemonic;
			add(s, &zi, op);
		}
	}
}

/* Bytes that are prefixes, or escapes to other maps. */
static bool is_opcode(const struct search *s, unsigned op)
{
	if (s->t.map == 1)
		return s->t.vex || (op != 0x38 && op != 0x3a && op != 0x0f);
	if (s->t.map != 0)
		return true;
	if (op == 0x0f || op == 0x26 || op == 0x2e || op == 0x36 || op == 0x3e || (op >= 0x64 && op <= 0x67) ||
	    op == 0xf0 || op == 0xf2 || op == 0xf3)
		return false;
	return s->decoder.machine_mode != ZYDIS_MACHINE_MODE_LONG_64 || (op & 0xf0) != 0x40;
}

static void try_opcodes(struct search *s, uint8_t vex, uint8_t map, uint8_t prefix, uint8_t w, uint8_t l)
{
	s->t = (struct template){.vex = vex, .map = map, .prefix = prefix, .w = w, .l = l};
	for (unsigned op = 0; op < 256; op++) {
		if (!is_opcode(s, op))
			continue;
		s->t.opcode = (uint8_t)op;
		try_modrm(s);
	}
}

static int by_mnemonic(const void *a, const void *b)
{
	const struct template *x = a, *y = b;

	if (x->mnemonic != y->mnemonic)
		return x->mnemonic < y->mnemonic ? -1 : 1;
	return memcmp(x, y, sizeof(*x));
}

static void index_mnemonics(struct templates *all)
{
	qsort(all->t, all->count, sizeof(*all->t), by_mnemonic);
	all->first = calloc(ZYDIS_MNEMONIC_MAX_VALUE + 2, sizeof(*all->first));
	all->mnemonic = calloc(ZYDIS_MNEMONIC_MAX_VALUE + 1, sizeof(*all->mnemonic));
	for (unsigned i = 0; i < all->count; i++) {
		if (i && all->t[i].mnemonic == all->t[i - 1].mnemonic)
			continue;
		all->first[all->mnemonics] = i;
		all->mnemonic[all->mnemonics++] = all->t[i].mnemonic;
	}
	all->first[all->mnemonics] = all->count;
}

void templates_init(struct templates *all, enum x86_mode mode, const struct x86_cpuid_model *model)
{
	static const uint8_t prefixes[] = {0, 1, 2, 4, 3, 5};
	struct search s = {.all = all, .features = model ? model->features : ~0ull, .amd = model && model->amd};
	unsigned wide = mode == MODE_64 ? 2 : 1;

	ZydisDecoderInit(&s.decoder, mode == MODE_64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
			 mode == MODE_64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
	ZydisDecoderEnableMode(&s.decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
	ZydisDecoderEnableMode(&s.decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
	ZydisDecoderEnableMode(&s.decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
	ZydisDecoderEnableMode(&s.decoder, ZYDIS_DECODER_MODE_AMD_BRANCHES, s.amd);
	*all = (struct templates){.t = calloc(TEMPLATES_MAX, sizeof(struct template))};
	for (uint8_t map = 0; map < 4; map++) {
		for (unsigned p = 0; p < sizeof(prefixes); p++) {
			for (uint8_t w = 0; w < wide; w++)
				try_opcodes(&s, 0, map, prefixes[p], w, 0);
		}
	}
	for (uint8_t map = 1; map < 4; map++) {
		for (unsigned p = 0; p < 4; p++) {
			for (uint8_t wl = 0; wl < 4; wl++)
				try_opcodes(&s, 1, map, prefixes[p], wl & 1, wl >> 1);
		}
	}
	index_mnemonics(all);
}
