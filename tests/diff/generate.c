/* Cases: single instructions, and blocks of several. */
#include "maker.h"

#include <string.h>
#include <Zydis/Mnemonic.h>

static void random_tail(struct maker *m, unsigned n)
{
	for (unsigned i = 0; i < n; i += 8)
		memcpy(m->p + i, &(uint64_t){rng_chance(&m->r, 50) ? rng_next(&m->r) : random_value(&m->r)}, 8);
}

static bool make_one(struct maker *m, const struct template *t, struct x86_insn *insn)
{
	uint8_t *start = m->p;

	encode(m, t);
	random_tail(m, 16);
	x86_decode(insn, start, 15, m->c->mode, m->model);
	if (insn->cls == CLS_INVALID && !rng_chance(&m->r, 3))
		return false;
	if (insn->len == 0 || insn->cls == CLS_TOOLONG)
		return false;
	m->p = start + insn->len;
	return true;
}

static const struct template *pick_template(struct maker *m, const struct templates *all, unsigned mnemonic)
{
	unsigned first = all->first[mnemonic], count = all->first[mnemonic + 1] - first;

	return &all->t[first + rng_below(&m->r, count)];
}

static void begin(struct maker *m, struct diff_case *c, uint64_t seed, enum x86_mode mode,
		  const struct x86_cpuid_model *model)
{
	*m = (struct maker){.r = {seed}, .c = c, .model = model, .p = c->code, .bases = 0xffff};
	c->seed = seed;
	c->mode = mode;
	random_state(&m->r, c);
	c->in.rip = CODE + 512 + rng_below(&m->r, 3000);
}

bool generate_one(struct diff_case *c, const struct templates *all, unsigned mnemonic, uint64_t seed,
		  enum x86_mode mode, const struct x86_cpuid_model *model)
{
	struct maker m;
	const struct template *t;

	begin(&m, c, seed, mode, model);
	t = pick_template(&m, all, mnemonic);
	if (!make_one(&m, t, &c->insn))
		return false;
	c->count = 1;
	c->offset[0] = 0;
	c->undefined[0] = 0;
	c->undefined[1] = flags_undefined(&c->insn);
	c->len = c->insn.len;
	c->name = ZydisMnemonicGetString((ZydisMnemonic)t->mnemonic);
	if (c->insn.cls != CLS_INVALID && c->insn.mnemonic != t->mnemonic)
		return false;
	return c->insn.cls == CLS_INVALID || arrange(&m);
}

/* --- Blocks --- */

/* Registers that hold addresses throughout a block; some of those that the translator keeps in memory are among them.
 */
static uint16_t block_bases(struct maker *m)
{
	uint16_t bases = 0;

	while (__builtin_popcount(bases) < 3) {
		unsigned n = rng_below(&m->r, m->c->mode == MODE_64 ? 16 : 8);
		if (n > RDX && n != RSP)
			bases |= 1u << n;
	}
	for (unsigned i = 0; i < X86_GPRS; i++) {
		if (bases & 1u << i)
			m->c->in.gpr[i] =
				WINDOW + (rng_chance(&m->r, 50) ? 0 : 4 * PAGE_SIZE) + 256 + rng_below(&m->r, 7000);
	}
	return bases;
}

static bool fits_block(const struct maker *m, const struct x86_insn *insn)
{
	if ((insn->cls != CLS_PLAIN && insn->cls != CLS_STACK) || (insn->fl_read & m->c->undefined[m->c->count]))
		return false;
	if ((insn->gpr_write & (m->bases | 1u << RSP)) && insn->cls != CLS_STACK)
		return false;
	if (insn->cls == CLS_STACK && (insn->gpr_write & m->bases))
		return false;
	if (insn->cls == CLS_STACK && (insn->mnemonic != ZYDIS_MNEMONIC_PUSH && insn->mnemonic != ZYDIS_MNEMONIC_POP))
		return false;
	if (insn->mnemonic == ZYDIS_MNEMONIC_POP && (insn->gpr_read & ~(1u << RSP) & ~m->bases & ~insn->gpr_write))
		return false;
	return !(insn->flags & INSN_MEM) || (insn->flags & INSN_MODRM);
}

static void add_to_block(struct diff_case *c, const struct x86_insn *insn, unsigned offset)
{
	uint64_t defined = insn->fl_cond ? 0 : insn->fl_write;

	if (c->count == 0)
		c->insn = *insn;
	c->offset[c->count] = (uint16_t)offset;
	c->undefined[c->count + 1] = (c->undefined[c->count] & ~defined) | flags_undefined(insn);
	c->count++;
}

static void add_bytes(struct maker *m, const uint8_t *bytes, unsigned len)
{
	struct x86_insn insn;
	uint8_t *at = m->p;

	memcpy(m->p, bytes, len);
	m->p += len;
	x86_decode(&insn, at, len, m->c->mode, m->model);
	add_to_block(m->c, &insn, (unsigned)(at - m->c->code));
}

#define AWAY 230 /* from the case's start, behind its code: all INT3 */

/* A conditional jump forwards; where it is taken, RIP tells which one it was. */
static void add_branch(struct maker *m)
{
	unsigned at = (unsigned)(m->p - m->c->code), away = AWAY + m->c->count;
	uint8_t code[6] = {0x0f, (uint8_t)(0x80 | rng_below(&m->r, 16)), (uint8_t)(away - at - 6)};

	add_bytes(m, code, sizeof(code));
}

/* MOV r, the address behind CALL r; CALL r. */
static void add_call(struct maker *m)
{
	unsigned reg = rng_below(&m->r, X86_GPRS), len = reg < 8 ? 2 : 3;
	uint64_t behind = m->c->in.rip + (uint64_t)(m->p - m->c->code) + 10 + len;
	uint8_t mov[10] = {(uint8_t)(reg < 8 ? 0x48 : 0x49), (uint8_t)(0xb8 | (reg & 7))};
	uint8_t call[3] = {0x41, 0xff, (uint8_t)(0xd0 | (reg & 7))};

	if (reg == RSP || m->bases & 1u << reg)
		return;
	memcpy(mov + 2, &behind, 8);
	add_bytes(m, mov, sizeof(mov));
	add_bytes(m, call + 3 - len, len);
}

/* Where no flag is undefined: what a jump does then cannot be compared. */
static void add_control(struct maker *m)
{
	struct diff_case *c = m->c;

	if (c->mode != MODE_64 || c->count + 3 > MAX_INSNS || m->p - c->code > AWAY - 90 || c->undefined[c->count])
		return;
	if (rng_chance(&m->r, 15))
		add_branch(m);
	else if (rng_chance(&m->r, 10))
		add_call(m);
}

bool generate_block(struct diff_case *c, const struct templates *all, uint64_t seed, enum x86_mode mode,
		    const struct x86_cpuid_model *model)
{
	struct maker m;
	struct x86_insn insn;
	unsigned want;

	begin(&m, c, seed, mode, model);
	c->in.gpr[RSP] = WINDOW + 4 * PAGE_SIZE + 512 + rng_below(&m.r, 400) * 8;
	m.plain_form = true;
	m.bases = block_bases(&m);
	want = 2 + rng_below(&m.r, 7);
	c->count = 0;
	c->undefined[0] = 0;
	c->name = "block";
	for (unsigned tries = 0; c->count < want && tries < 200; tries++) {
		uint8_t *at = m.p;
		unsigned n = rng_below(&m.r, all->mnemonics);
		if (not_reachable(all->mnemonic[n], mode) || !make_one(&m, pick_template(&m, all, n), &insn) ||
		    insn.cls == CLS_INVALID || !fits_block(&m, &insn)) {
			m.p = at;
			continue;
		}
		add_to_block(c, &insn, (unsigned)(at - c->code));
		add_control(&m);
	}
	c->len = (unsigned)(m.p - c->code);
	return c->count > 1;
}
