/*
 * Registers and memory for a case: operands lie in the window, branches go to the code page, areas to be restored have
 * good headers.
 */
#include "maker.h"

#include <string.h>
#include <Zydis/Mnemonic.h>

static void put(void *p, uint64_t v, unsigned n)
{
	memcpy(p, &v, n);
}

static uint64_t get(const void *p, unsigned n)
{
	uint64_t v = 0;

	memcpy(&v, p, n);
	return v;
}

static uint64_t code_pointer(struct maker *m)
{
	uint64_t at;

	do
		at = CODE + rng_below(&m->r, PAGE_SIZE);
	while (at - m->c->in.rip < 32); /* not into the instruction itself */
	return at;
}

/* --- Placing of memory operands --- */

static unsigned disp_offset(const struct x86_insn *insn)
{
	if (!(insn->flags & INSN_MODRM))
		return insn->opcode_off + 1u;
	return insn->modrm_off + 1u + ((insn->modrm & 7) == 4 && insn->addrsize != 2);
}

/* Arranges base register or displacement so that the operand is at `at`. */
static void place_operand(struct maker *m, uint64_t at)
{
	struct diff_case *c = m->c;
	struct x86_insn *insn = &c->insn;
	uint64_t off = at - (c->mode != MODE_64    ? 0
			     : insn->seg == SEG_FS ? c->in.fs
			     : insn->seg == SEG_GS ? c->in.gs
						   : 0);
	bool index = insn->index >= 0 && !(insn->flags & INSN_VSIB);

	if (insn->addrsize == 2)
		return;
	if (index && (rng_chance(&m->r, 50) || insn->base < 0 || insn->base == RSP || insn->base == RBP))
		c->in.gpr[insn->index] = (uint64_t)(int64_t)(int8_t)rng_next(&m->r);
	if (index)
		off -= c->in.gpr[insn->index] * insn->scale;
	if (insn->base >= 0 && insn->base < 16) {
		off -= (uint64_t)insn->disp;
		c->in.gpr[insn->base] =
			insn->addrsize == 4 && c->mode == MODE_64 ? (uint32_t)off | rng_next(&m->r) << 32 : off;
		if (c->mode != MODE_64)
			c->in.gpr[insn->base] = (uint32_t)off;
		return;
	}
	if (insn->base == 16)
		off -= c->in.rip + insn->len;
	put(c->code + disp_offset(insn), off, insn->flags & INSN_MODRM ? 4 : insn->addrsize);
	x86_decode(insn, c->code, c->len, c->mode, m->model);
}

static unsigned operand_align(const struct x86_insn *insn)
{
	if (insn->mnemonic == ZYDIS_MNEMONIC_FXSAVE || insn->mnemonic == ZYDIS_MNEMONIC_FXRSTOR)
		return 64;
	for (unsigned a = 64; a > 1; a /= 2) {
		if (insn->mem_size >= a)
			return a;
	}
	return 1;
}

static uint8_t *memory_at(struct diff_case *c, uint64_t at, unsigned len)
{
	return at - WINDOW < WINDOW_SIZE && WINDOW_SIZE - (at - WINDOW) >= len ? c->memory + (at - WINDOW) : NULL;
}

uint64_t case_linear(const struct diff_case *c)
{
	uint64_t ea = (uint64_t)c->insn.disp;
	const struct x86_insn *insn = &c->insn;

	if (insn->base == 16)
		ea += c->in.rip + insn->len;
	else if (insn->base >= 0)
		ea += c->in.gpr[insn->base];
	if (insn->index >= 0 && !(insn->flags & INSN_VSIB))
		ea += c->in.gpr[insn->index] * insn->scale;
	ea = zext(ea, insn->addrsize);
	if (c->mode == MODE_64)
		ea += insn->seg == SEG_FS ? c->in.fs : insn->seg == SEG_GS ? c->in.gs : 0;
	return ea;
}

/* --- Contents --- */

static void good_mxcsr(struct maker *m, uint8_t *p)
{
	if (rng_chance(&m->r, 85))
		put(p, rng_chance(&m->r, 50) ? 0x1f80 : rng_next(&m->r) & 0xffff, 4);
}

/* An area as XSAVE or XSAVEC leaves it, sometimes not quite. */
static void xsave_area(struct maker *m, uint8_t *p)
{
	uint64_t bv = rng_below(&m->r, 8), comp = 0;

	good_mxcsr(m, p + 24);
	memset(p + 520, 0, 56);
	if (rng_chance(&m->r, 50))
		comp = BIT(63) | (rng_chance(&m->r, 90) ? 7 : bv);
	if (rng_chance(&m->r, 4))
		p[512 + rng_below(&m->r, 64)] ^= 1u << rng_below(&m->r, 8);
	put(p + 512, bv, 8);
	put(p + 520, comp, 8);
}

static void fill_special(struct maker *m, uint8_t *p)
{
	switch (m->c->insn.mnemonic) {
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
		good_mxcsr(m, p);
		break;
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
		good_mxcsr(m, p + 24);
		break;
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FRSTOR:
		if (rng_chance(&m->r, 70))
			p[0] |= 0x3f;
		break;
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL:
		if (rng_chance(&m->r, 80))
			put(p, code_pointer(m), m->c->insn.mem_size);
		break;
	default:
		break;
	}
}

static bool is_xrstor(unsigned mnemonic)
{
	return mnemonic == ZYDIS_MNEMONIC_XRSTOR || mnemonic == ZYDIS_MNEMONIC_XRSTOR64 ||
	       mnemonic == ZYDIS_MNEMONIC_XRSTORS || mnemonic == ZYDIS_MNEMONIC_XRSTORS64;
}

static bool is_xsave(unsigned mnemonic)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVES:
	case ZYDIS_MNEMONIC_XSAVES64:
		return true;
	default:
		return is_xrstor(mnemonic);
	}
}

static void fill_operand(struct maker *m, uint64_t at)
{
	struct x86_insn *insn = &m->c->insn;
	unsigned len = is_xsave(insn->mnemonic) ? X86_XSAVE_SIZE : MAX(insn->mem_size, 8);
	uint8_t *p = memory_at(m->c, at, len);

	if (!p)
		return;
	for (unsigned i = 0; i + 8 <= len && i < 64; i += 8)
		put(p + i, random_value(&m->r), 8);
	if (is_xsave(insn->mnemonic))
		xsave_area(m, p);
	else
		fill_special(m, p);
}

static uint64_t pick_address(struct maker *m)
{
	struct x86_insn *insn = &m->c->insn;

	if (m->c->mode == MODE_64 && rng_chance(&m->r, 1))
		return rng_next(&m->r) | BIT(63); /* hardly ever canonical */
	if (is_xsave(insn->mnemonic))
		return WINDOW + rng_below(&m->r, WINDOW_SIZE / 64) * 64 + (rng_chance(&m->r, 4) ? 16 : 0);
	return random_window(&m->r, operand_align(insn));
}

static void arrange_bits(struct maker *m)
{
	struct x86_insn *insn = &m->c->insn;

	if (insn->reg != insn->base && insn->reg != insn->index && rng_chance(&m->r, 90))
		m->c->in.gpr[insn->reg] = (uint64_t)(int64_t)(int16_t)rng_next(&m->r);
}

static void arrange_memory(struct maker *m)
{
	struct x86_insn *insn = &m->c->insn;
	uint64_t at = pick_address(m);

	if (insn->flags & INSN_BITOFF)
		arrange_bits(m);
	place_operand(m, at);
	fill_operand(m, case_linear(m->c));
}

static void arrange_gather(struct maker *m)
{
	unsigned n = (unsigned)m->c->insn.index, size = m->c->insn.opcode & 1 ? 8 : 4;

	for (unsigned i = 0; i < 16; i += size) {
		put(m->c->in.xsave + 160 + n * 16 + i, (uint64_t)(int64_t)(int16_t)(rng_next(&m->r) & 0x83ff), size);
		put(m->c->in.xsave + 576 + n * 16 + i, (uint64_t)(int64_t)(int16_t)(rng_next(&m->r) & 0x83ff), size);
	}
}

/* --- Implicit operands --- */

static void arrange_string(struct maker *m)
{
	uint64_t *gpr = m->c->in.gpr;

	gpr[RSI] = random_window(&m->r, 8);
	gpr[RDI] = random_window(&m->r, 8);
	gpr[RCX] = rng_below(&m->r, rng_chance(&m->r, 85) ? 24 : 3000);
	if (m->c->insn.addrsize == 4 && m->c->mode == MODE_64) {
		gpr[RSI] |= rng_next(&m->r) << 32;
		gpr[RCX] |= rng_next(&m->r) << 32;
	}
	if (rng_chance(&m->r, 40)) { /* equal bytes, so that comparisons go on */
		uint8_t *a = memory_at(m->c, (uint32_t)gpr[RSI], 256), *b = memory_at(m->c, (uint32_t)gpr[RDI], 256);
		if (a && b)
			memmove(b, a, 256);
		if (b && rng_chance(&m->r, 50))
			memset(b, (int)(gpr[RAX] & 0xff), 200);
	}
}

static void arrange_branch(struct maker *m)
{
	struct diff_case *c = m->c;
	struct x86_insn *insn = &c->insn;
	uint64_t target = code_pointer(m);
	uint8_t *top = memory_at(c, c->in.gpr[RSP], 8);

	if (insn->mnemonic == ZYDIS_MNEMONIC_RET) {
		if (top && rng_chance(&m->r, 85))
			put(top, target, 8);
	} else if (insn->imm_len == 4) {
		put(c->code + insn->imm_off, target - (c->in.rip + insn->len), 4);
	} else if (insn->imm_len == 1) {
		do
			c->code[insn->imm_off] = (uint8_t)rng_next(&m->r);
		while ((unsigned)(int8_t)c->code[insn->imm_off] + insn->len < insn->len);
	} else if (insn->flags & INSN_RM_GPR) {
		c->in.gpr[insn->rm] = rng_chance(&m->r, 85) ? target : rng_next(&m->r);
	}
	if (rng_chance(&m->r, 30))
		c->in.gpr[RCX] = rng_below(&m->r, 3);
	x86_decode(insn, c->code, c->len, c->mode, m->model);
}

static void arrange_divide(struct maker *m)
{
	uint64_t *gpr = m->c->in.gpr;

	if (rng_chance(&m->r, 60))
		gpr[RDX] = rng_chance(&m->r, 50) ? 0 : (uint64_t)((int64_t)gpr[RAX] >> 63);
	if (rng_chance(&m->r, 30))
		gpr[RAX] &= 0xff;
}

static void arrange_compare(struct maker *m)
{
	struct diff_case *c = m->c;
	struct x86_insn *insn = &c->insn;
	const uint8_t *p = insn->flags & INSN_MEM ? memory_at(c, case_linear(c), insn->mem_size) : NULL;
	unsigned half = insn->mem_size / 2;

	if (rng_chance(&m->r, 50))
		return;
	if (insn->flags & INSN_RM_GPR) {
		c->in.gpr[RAX] = c->in.gpr[insn->rm];
	} else if (p && insn->mnemonic == ZYDIS_MNEMONIC_CMPXCHG) {
		c->in.gpr[RAX] = get(p, insn->mem_size);
	} else if (p && insn->base != RAX && insn->base != RDX && insn->index != RAX && insn->index != RDX) {
		c->in.gpr[RAX] = get(p, half);
		c->in.gpr[RDX] = get(p + half, half);
	}
}

static void arrange_implicit(struct maker *m)
{
	struct diff_case *c = m->c;
	uint64_t *gpr = c->in.gpr;

	switch (c->insn.mnemonic) {
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
		arrange_divide(m);
		break;
	case ZYDIS_MNEMONIC_CMPXCHG:
	case ZYDIS_MNEMONIC_CMPXCHG8B:
	case ZYDIS_MNEMONIC_CMPXCHG16B:
		arrange_compare(m);
		break;
	case ZYDIS_MNEMONIC_XLAT:
		gpr[RBX] = random_window(&m->r, 1);
		break;
	case ZYDIS_MNEMONIC_CLZERO:
		gpr[RAX] = random_window(&m->r, 1);
		break;
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		gpr[RDI] = random_window(&m->r, 1);
		break;
	case ZYDIS_MNEMONIC_LEAVE:
		gpr[RBP] = random_window(&m->r, 8);
		break;
	case ZYDIS_MNEMONIC_ENTER: /* frames that do not overlap */
		gpr[RBP] = WINDOW + (rng_chance(&m->r, 50) ? 0 : 7) * PAGE_SIZE + 1024 + rng_below(&m->r, 3000);
		break;
	default:
		break;
	}
	if (is_xsave(c->insn.mnemonic)) {
		gpr[RAX] = rng_below(&m->r, 8) | (rng_next(&m->r) << 32); /* the host may have more components */
		gpr[RDX] = 0;
		place_operand(m, case_linear(c));
	}
}

/* The host's processor may know components that the model does not: they must not be asked for. */
static bool unfit(const struct x86_insn *insn)
{
	return is_xsave(insn->mnemonic) &&
	       (insn->base == RAX || insn->base == RDX || insn->index == RAX || insn->index == RDX);
}

bool arrange(struct maker *m)
{
	struct diff_case *c = m->c;

	if (c->insn.cls == CLS_STRING)
		arrange_string(m);
	if (c->insn.flags & INSN_VSIB)
		arrange_gather(m);
	if (c->insn.flags & INSN_MEM)
		arrange_memory(m);
	arrange_implicit(m);
	if (c->insn.cls == CLS_BRANCH)
		arrange_branch(m);
	return !unfit(&c->insn);
}
