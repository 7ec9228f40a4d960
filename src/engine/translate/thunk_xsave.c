/*
 * Saving and restoring vector state: FXSAVE, FXRSTOR and the XSAVE family (SDM Vol. 1 10.5 and ch. 13). The guest's
 * state is an area in standard format already; these move it between that and the guest's own formats.
 */
#include "engine/translate/thunk_internal.h"

#include <string.h>

#define MXCSR_INIT 0x1f80u
#define FCW_INIT 0x037f
#define COMPACT BIT(63)
#define AVX_SIZE 256

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return v;
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, 8);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, 4);
}

/* The x87 part in its initial state: all of it zero but the control word. */
static void init_x87(uint8_t *area)
{
	memset(area, 0, XS_MXCSR);
	memset(area + XS_ST(0), 0, XS_XMM(0) - XS_ST(0));
	area[XS_FCW] = FCW_INIT & 0xff;
	area[XS_FCW + 1] = FCW_INIT >> 8;
}

void thunk_xsave_fill(uint8_t *xsave)
{
	uint64_t bv = get64(xsave + XS_BV);

	if (!(bv & XCR0_X87))
		init_x87(xsave);
	if (!(bv & XCR0_SSE))
		memset(xsave + XS_XMM(0), 0, XS_LEGACY_END - XS_XMM(0));
	if (!(bv & XCR0_AVX))
		memset(xsave + XS_YMMH(0), 0, AVX_SIZE);
}

/* What one of these instructions works with. */
struct save {
	struct thunk_operand op;
	uint64_t mask;  /* components asked for and enabled (RFBM) */
	size_t vectors; /* 16 registers in 64-bit mode, else 8 */
	bool wide;      /* FIP and FDP are 64 bits: REX.W */
};

static void put_x87(uint8_t *area, const uint8_t *xsave, const struct save *s)
{
	memcpy(area, xsave, XS_MXCSR);
	if (!s->wide) { /* 32-bit offsets; the selectors beside them are not kept by current processors */
		put64(area + XS_FIP, (uint32_t)get64(xsave + XS_FIP));
		put64(area + XS_FDP, (uint32_t)get64(xsave + XS_FDP));
	}
	memcpy(area + XS_ST(0), xsave + XS_ST(0), XS_XMM(0) - XS_ST(0));
}

static void get_x87(uint8_t *xsave, const uint8_t *area, const struct save *s)
{
	memcpy(xsave, area, XS_MXCSR);
	if (!s->wide) {
		put64(xsave + XS_FIP, get32(area + XS_FIP));
		put64(xsave + XS_FDP, get32(area + XS_FDP));
	}
	memcpy(xsave + XS_ST(0), area + XS_ST(0), XS_XMM(0) - XS_ST(0));
}

static void put_mxcsr(uint8_t *area, const uint8_t *xsave, const struct thunk *t)
{
	memcpy(area + XS_MXCSR, xsave + XS_MXCSR, 4);
	put32(area + XS_MXCSR_MASK, t->mxcsr_mask);
}

static enum verdict save_begin(struct x86_cpu *cpu, const struct x86_insn *insn, struct save *s, unsigned size,
			       unsigned align, bool write)
{
	uint64_t off, linear;
	enum verdict v;

	s->vectors = insn->mode == MODE_64 ? 16 : 8;
	s->wide = insn->flags & INSN_REXW;
	s->op.size = size;
	s->op.read = true;
	s->op.write = write;
	off = x86_effective_address(cpu, insn);
	v = thunk_linear(cpu, insn->seg, off, size, write, &s->op.linear);
	if (v == V_INJECT && (align == 16 || !x86_is_amd(cpu)))
		return v;
	linear = off + x86_operand_base(cpu, insn);
	if (!(linear & (align - 1)))
		return v;
	if (align == 16 && (linear & 3) && thunk_checks_alignment(cpu)) /* FXSAVE's own choice (SDM Vol. 2) */
		return x86_raise_error(cpu, X86_AC, 0);
	return x86_raise_error(cpu, X86_GP, 0); /* for XSAVE comes before #SS on AMD's */
}

/* AMD's processors look at the last byte before the others (but for XSAVE's first), and CR2 shows it. */
static enum verdict probe_end(struct x86_cpu *cpu, const struct save *s)
{
	if (!x86_is_amd(cpu))
		return V_DONE;
	return thunk_probe(cpu, s->op.linear + s->op.size - 1, 1, s->op.write);
}

/* The operating system has said that it saves SSE state. */
static bool sse_enabled(const struct x86_cpu *cpu)
{
	return cpu->cr4 & CR4_OSFXSR;
}

static enum verdict fxsave(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn, struct save *s)
{
	enum verdict v = thunk_operand_open(t, cpu, &s->op);

	if (v != V_DONE)
		return v;
	thunk_xsave_fill(cpu->xsave);
	put_x87(s->op.host, cpu->xsave, s);
	put_mxcsr(s->op.host, cpu->xsave, t);
	if (sse_enabled(cpu))
		memcpy(s->op.host + XS_XMM(0), cpu->xsave + XS_XMM(0), s->vectors * 16);
	v = thunk_operand_close(t, cpu, &s->op);
	return v == V_DONE || v == V_EXIT ? thunk_retire(cpu, insn, v) : v;
}

static enum verdict fxrstor(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn, struct save *s)
{
	uint8_t area[512];
	enum verdict v = thunk_read(cpu, s->op.linear, area, sizeof(area));

	if (v != V_DONE)
		return v;
	if (sse_enabled(cpu) && (get32(area + XS_MXCSR) & ~t->mxcsr_mask))
		return x86_raise_error(cpu, X86_GP, 0);
	thunk_xsave_fill(cpu->xsave);
	get_x87(cpu->xsave, area, s);
	cpu->xsave[XS_BV] |= XCR0_X87;
	if (sse_enabled(cpu)) {
		memcpy(cpu->xsave + XS_MXCSR, area + XS_MXCSR, 4);
		memcpy(cpu->xsave + XS_XMM(0), area + XS_XMM(0), s->vectors * 16);
		cpu->xsave[XS_BV] |= XCR0_SSE;
	}
	thunk_canonicalize(t, cpu);
	return thunk_retire(cpu, insn, V_DONE);
}

enum verdict thunk_fxsave(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	bool store = (insn->modrm >> 3 & 7) == 0;
	struct save s = {0};
	enum verdict v = save_begin(cpu, insn, &s, 512, 16, store);

	if (v == V_DONE)
		v = probe_end(cpu, &s);
	if (v != V_DONE)
		return v;
	return store ? fxsave(t, cpu, insn, &s) : fxrstor(t, cpu, insn, &s);
}

enum xsave_kind { KIND_XSAVE, KIND_XSAVEOPT, KIND_XSAVEC, KIND_XSAVES, KIND_XRSTOR, KIND_XRSTORS };

static enum xsave_kind kind_of(const struct x86_insn *insn)
{
	unsigned n = insn->modrm >> 3 & 7;

	if (insn->opcode == 0xae)
		return n == 4 ? KIND_XSAVE : n == 5 ? KIND_XRSTOR : KIND_XSAVEOPT;
	return n == 3 ? KIND_XRSTORS : n == 4 ? KIND_XSAVEC : KIND_XSAVES;
}

static unsigned area_size(uint64_t mask)
{
	return XS_HEADER_END + (mask & XCR0_AVX ? AVX_SIZE : 0);
}

/* Components [13.7 to 13.11]: which are written, out of those asked for; `used` are not in their initial state. */
static void put_components(struct thunk *t, const struct x86_cpu *cpu, const struct save *s, uint64_t written,
			   bool mxcsr)
{
	uint8_t *area = s->op.host;

	if (written & XCR0_X87)
		put_x87(area, cpu->xsave, s);
	if (mxcsr)
		put_mxcsr(area, cpu->xsave, t);
	if (written & XCR0_SSE)
		memcpy(area + XS_XMM(0), cpu->xsave + XS_XMM(0), s->vectors * 16);
	if (written & XCR0_AVX)
		memcpy(area + XS_YMMH(0), cpu->xsave + XS_YMMH(0), s->vectors * 16);
}

static void save_standard(struct thunk *t, struct x86_cpu *cpu, const struct save *s, bool optimize)
{
	uint64_t used = get64(cpu->xsave + XS_BV), bv = get64(s->op.host + XS_BV);

	put_components(t, cpu, s, optimize ? s->mask & used : s->mask, s->mask & (XCR0_SSE | XCR0_AVX));
	put64(s->op.host + XS_BV, (bv & ~s->mask) | (used & s->mask));
}

static void save_compact(struct thunk *t, struct x86_cpu *cpu, const struct save *s)
{
	uint64_t used = get64(cpu->xsave + XS_BV);

	if (get32(cpu->xsave + XS_MXCSR) != MXCSR_INIT)
		used |= XCR0_SSE;
	used &= s->mask;
	put_components(t, cpu, s, used, used & XCR0_SSE);
	put64(s->op.host + XS_BV, used);
	put64(s->op.host + XS_COMP_BV, s->mask | COMPACT);
}

static enum verdict xsave(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn, struct save *s,
			  enum xsave_kind kind)
{
	enum verdict v = thunk_operand_open(t, cpu, &s->op);

	if (v != V_DONE)
		return v;
	thunk_canonicalize(t, cpu);
	if (kind == KIND_XSAVE || kind == KIND_XSAVEOPT)
		save_standard(t, cpu, s, kind == KIND_XSAVEOPT);
	else
		save_compact(t, cpu, s);
	v = thunk_operand_close(t, cpu, &s->op);
	return v == V_DONE || v == V_EXIT ? thunk_retire(cpu, insn, v) : v;
}

/* The checks of an area's header (SDM Vol. 1 13.8.1, 13.12). */
static bool header_good(const struct x86_cpu *cpu, const uint8_t *area, enum xsave_kind kind)
{
	uint64_t bv = get64(area + XS_BV), comp = get64(area + XS_COMP_BV);
	unsigned zero_from = XS_COMP_BV, zero_to = XS_COMP_BV + 16;

	if (comp & COMPACT) {
		if ((comp & ~COMPACT & ~cpu->xcr0) || (bv & ~comp))
			return false;
		zero_from = XS_COMP_BV + 8;
		zero_to = XS_HEADER_END;
	} else if (kind == KIND_XRSTORS || (bv & ~cpu->xcr0)) {
		return false;
	}
	for (unsigned i = zero_from; i < zero_to; i++) {
		if (area[i])
			return false;
	}
	return true;
}

static void get_vectors(uint8_t *to, const uint8_t *from, const struct save *s)
{
	if (from)
		memcpy(to, from, s->vectors * 16);
	else
		memset(to, 0, s->vectors * 16);
}

/* All that was checked goes in; components that XSTATE_BV leaves out come to their initial state. */
static void restore_components(struct x86_cpu *cpu, const struct save *s, const uint8_t *area)
{
	uint64_t bv = get64(area + XS_BV) & s->mask;
	bool compact = get64(area + XS_COMP_BV) & COMPACT;
	uint8_t *xs = cpu->xsave;

	thunk_xsave_fill(xs);
	if (bv & XCR0_X87)
		get_x87(xs, area, s);
	else if (s->mask & XCR0_X87)
		init_x87(xs);
	if (s->mask & XCR0_SSE)
		get_vectors(xs + XS_XMM(0), bv & XCR0_SSE ? area + XS_XMM(0) : NULL, s);
	if (s->mask & XCR0_AVX)
		get_vectors(xs + XS_YMMH(0), bv & XCR0_AVX ? area + XS_YMMH(0) : NULL, s);
	if (compact ? bv & XCR0_SSE : s->mask & (XCR0_SSE | XCR0_AVX))
		memcpy(xs + XS_MXCSR, area + XS_MXCSR, 4);
	else if (compact && (s->mask & XCR0_SSE))
		put32(xs + XS_MXCSR, MXCSR_INIT);
	if (s->vectors == 8)
		bv |= s->mask & (XCR0_SSE | XCR0_AVX); /* registers 8 to 15 are still there */
	put64(xs + XS_BV, (get64(xs + XS_BV) & ~s->mask) | bv);
}

static bool mxcsr_good(const struct thunk *t, const struct save *s, const uint8_t *area)
{
	bool compact = get64(area + XS_COMP_BV) & COMPACT;
	bool loaded = compact ? get64(area + XS_BV) & s->mask & XCR0_SSE : s->mask & (XCR0_SSE | XCR0_AVX);

	return !loaded || !(get32(area + XS_MXCSR) & ~t->mxcsr_mask);
}

/* In the standard format AVX's place is looked at even when it is not used. */
static enum verdict read_avx(struct x86_cpu *cpu, const struct save *s, uint8_t *area)
{
	bool used = get64(area + XS_BV) & s->mask & XCR0_AVX;
	enum verdict v = V_DONE;

	if (used || !(get64(area + XS_COMP_BV) & COMPACT))
		v = probe_end(cpu, s);
	return v == V_DONE && used ? thunk_read(cpu, s->op.linear + XS_YMMH(0), area + XS_YMMH(0), AVX_SIZE) : v;
}

static enum verdict xrstor(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn, struct save *s,
			   enum xsave_kind kind)
{
	uint8_t area[X86_XSAVE_SIZE];
	enum verdict v = thunk_read(cpu, s->op.linear, area, XS_HEADER_END);

	if (v != V_DONE)
		return v;
	if (!header_good(cpu, area, kind))
		return x86_raise_error(cpu, X86_GP, 0);
	v = read_avx(cpu, s, area);
	if (v != V_DONE)
		return v;
	if (!mxcsr_good(t, s, area))
		return x86_raise_error(cpu, X86_GP, 0);
	restore_components(cpu, s, area);
	thunk_canonicalize(t, cpu);
	return thunk_retire(cpu, insn, V_DONE);
}

enum verdict thunk_xsave(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	enum xsave_kind kind = kind_of(insn);
	struct save s = {0};
	enum verdict v;

	if ((kind == KIND_XSAVES || kind == KIND_XRSTORS) && cpu->cpl != 0)
		return x86_raise_error(cpu, X86_GP, 0);
	s.mask = cpu->xcr0 & ((uint32_t)cpu->gpr[RAX] | cpu->gpr[RDX] << 32);
	v = save_begin(cpu, insn, &s, area_size(s.mask), 64, kind < KIND_XRSTOR);
	if (v == V_DONE)
		v = thunk_probe(cpu, s.op.linear, 1, s.op.write);
	if (v == V_DONE)
		v = kind < KIND_XRSTOR ? probe_end(cpu, &s) : thunk_probe(cpu, s.op.linear + XS_BV, 64, false);
	if (v != V_DONE)
		return v;
	return kind < KIND_XRSTOR ? xsave(t, cpu, insn, &s, kind) : xrstor(t, cpu, insn, &s, kind);
}
