/* Random encodings of a template: prefixes, registers, forms of addressing. */
#include "maker.h"

static void emit(struct maker *m, unsigned byte)
{
	*m->p++ = (uint8_t)byte;
}

/* Memory operand and the REX bits that go with it. */
struct form {
	unsigned mod, rm, base, index, scale;
	bool sib;
};

static unsigned pick_base(struct maker *m)
{
	unsigned n;

	do
		n = rng_below(&m->r, m->c->mode == MODE_64 ? 16 : 8);
	while (!(m->bases & 1u << n));
	return n;
}

static void pick_form(struct maker *m, const struct template *t, struct form *f, bool vsib)
{
	unsigned kind = m->plain_form ? 1 + rng_below(&m->r, 2) : rng_below(&m->r, 7);

	*f = (struct form){.mod = rng_below(&m->r, 3), .base = pick_base(m)};
	if (m->plain_form)
		f->mod = 1;
	if (vsib || kind >= 5 || (f->base & 7) == 4) {
		f->sib = true;
		f->rm = 4;
		f->index = m->plain_form ? 4 : rng_below(&m->r, m->c->mode == MODE_64 ? 16 : 8);
		if (f->index == f->base && !vsib)
			f->index = 4; /* none */
		f->scale = rng_below(&m->r, 4);
		if (f->mod == 0 && (f->base & 7) == 5)
			f->mod = 1;
		if (!m->plain_form && kind == 6 && rng_chance(&m->r, 30)) {
			f->mod = 0; /* no base: disp32, with or without index */
			f->base = 5;
		}
		return;
	}
	if (kind == 0 && !m->plain_form) {
		f->mod = 0; /* RIP-relative; absolute outside 64-bit mode */
		f->base = 5;
	} else if (f->mod == 0 && (f->base & 7) == 5) {
		f->mod = 1;
	}
	f->rm = f->base & 7;
}

static void emit_form(struct maker *m, unsigned reg, const struct form *f)
{
	emit(m, f->mod << 6 | (reg & 7) << 3 | f->rm);
	if (f->sib)
		emit(m, f->scale << 6 | (f->index & 7) << 3 | (f->base & 7));
}

static void emit_segment(struct maker *m)
{
	static const uint8_t ignored[] = {0x26, 0x2e, 0x36, 0x3e};

	if (m->c->mode == MODE_64 && rng_chance(&m->r, 6))
		emit(m, rng_chance(&m->r, 60) ? 0x65 : 0x64);
	else if (rng_chance(&m->r, 4))
		emit(m, ignored[rng_below(&m->r, 4)]);
}

static void emit_prefixes(struct maker *m, const struct template *t)
{
	if (!m->plain_form)
		emit_segment(m);
	if (!m->plain_form && rng_chance(&m->r, t->mem ? 4 : 1))
		emit(m, 0x67);
	if (t->mem && !t->vex && t->map < 2 && !(t->prefix & 6) && rng_chance(&m->r, 12))
		emit(m, 0xf0);
}

static void emit_vex(struct maker *m, const struct template *t, unsigned rxb)
{
	static const uint8_t pp[8] = {0, 1, 2, 0, 3};
	unsigned vvvv = t->use_vvvv ? rng_below(&m->r, m->c->mode == MODE_64 ? 16 : 8) : 0;
	unsigned low = (~vvvv & 15) << 3 | t->l << 2 | pp[t->prefix];

	if (t->map == 1 && !t->w && !(rxb & 3) && rng_chance(&m->r, 50)) {
		emit(m, 0xc5);
		emit(m, (rxb & 4 ? 0 : 0x80) | low);
		return;
	}
	emit(m, 0xc4);
	emit(m, (~rxb & 7) << 5 | t->map);
	emit(m, t->w << 7 | low);
}

static void emit_legacy(struct maker *m, const struct template *t, unsigned rxb)
{
	if (t->prefix & 1)
		emit(m, 0x66);
	if (t->prefix & 2)
		emit(m, 0xf3);
	if (t->prefix & 4)
		emit(m, 0xf2);
	if (m->c->mode == MODE_64 && (t->w || rxb || rng_chance(&m->r, 10)))
		emit(m, 0x40 | t->w << 3 | rxb);
	if (t->map)
		emit(m, 0x0f);
	if (t->map >= 2)
		emit(m, t->map == 2 ? 0x38 : 0x3a);
}

void encode(struct maker *m, const struct template *t)
{
	unsigned regs = m->c->mode == MODE_64 ? 16 : 8, rxb;
	unsigned reg = t->free_reg ? rng_below(&m->r, regs) : t->modrm >> 3 & 7;
	unsigned rm = t->free_rm ? rng_below(&m->r, regs) : t->modrm & 7;
	bool vsib = t->vex && t->map == 2 && t->opcode >= 0x90 && t->opcode <= 0x93;
	struct form f = {0};

	emit_prefixes(m, t);
	if (t->mem) {
		pick_form(m, t, &f, vsib);
		rxb = (f.sib && f.index >= 8 ? 2 : 0) | (f.base >= 8 ? 1 : 0);
	} else {
		rxb = t->has_modrm ? rm >> 3 : rng_below(&m->r, regs) >> 3;
	}
	rxb |= reg >= 8 ? 4 : 0;
	if (t->vex)
		emit_vex(m, t, rxb);
	else
		emit_legacy(m, t, rxb);
	emit(m, t->opcode);
	if (t->mem)
		emit_form(m, reg, &f);
	else if (t->has_modrm)
		emit(m, 0xc0 | (reg & 7) << 3 | (rm & 7));
}
