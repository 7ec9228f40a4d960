/*
 * Vector instructions that touch only some of their elements in memory: masked moves and gathers (SDM Vol. 2
 * MASKMOVDQU, VMASKMOV, VPMASKMOV, VPGATHERDD …). An element that is masked off is not accessed and cannot fault.
 */
#include "engine/translate/thunk_internal.h"

#include <string.h>

struct vector {
	uint8_t b[32];
};

static void get_vector(const struct x86_cpu *cpu, unsigned n, struct vector *v)
{
	memcpy(v->b, cpu->xsave + XS_XMM(n), 16);
	memcpy(v->b + 16, cpu->xsave + XS_YMMH(n), 16);
}

static void set_vector(struct x86_cpu *cpu, unsigned n, const struct vector *v)
{
	memcpy(cpu->xsave + XS_XMM(n), v->b, 16);
	memcpy(cpu->xsave + XS_YMMH(n), v->b + 16, 16);
	cpu->xsave[XS_BV] |= XCR0_SSE | XCR0_AVX;
}

/* MMX register n is physical; the area holds ST registers in order from TOP (SDM Vol. 1 13.4.1). */
static void get_mmx(const struct x86_cpu *cpu, unsigned n, struct vector *v)
{
	unsigned top = cpu->xsave[XS_FSW + 1] >> 3 & 7;

	memset(v, 0, sizeof(*v));
	memcpy(v->b, cpu->xsave + XS_ST((n - top) & 7), 8);
}

static bool element_on(const struct vector *mask, unsigned i, unsigned size)
{
	return mask->b[i * size + size - 1] & 0x80;
}

/* A move of `count` elements of `size` bytes from or to seg:off. */
struct masked {
	enum x86_seg seg;
	uint64_t off;
	unsigned addrsize, size, count;
	struct vector mask, data;
};

/* Elements [first, *end) are the next run that is on; false when there is none. */
static bool next_run(const struct masked *m, unsigned *first, unsigned *end)
{
	unsigned i = *end;

	while (i < m->count && !element_on(&m->mask, i, m->size))
		i++;
	*first = i;
	while (i < m->count && element_on(&m->mask, i, m->size))
		i++;
	*end = i;
	return *first < *end;
}

static enum verdict run_linear(struct x86_cpu *cpu, const struct masked *m, unsigned first, unsigned end, bool write,
			       uint64_t *linear)
{
	uint64_t off = zext(m->off + (uint64_t)first * m->size, MAX(m->addrsize, 4)); /* elements do not wrap at 64K */

	return thunk_linear(cpu, m->seg, off, (end - first) * m->size, write, linear);
}

static enum verdict masked_load(struct x86_cpu *cpu, struct masked *m)
{
	unsigned first, end = 0;
	uint64_t linear;
	enum verdict v;

	memset(&m->data, 0, sizeof(m->data));
	while (next_run(m, &first, &end)) {
		v = run_linear(cpu, m, first, end, false, &linear);
		if (v == V_DONE)
			v = thunk_read(cpu, linear, m->data.b + (size_t)first * m->size, (end - first) * m->size);
		if (v != V_DONE)
			return v;
	}
	return V_DONE;
}

static enum verdict masked_probe(struct x86_cpu *cpu, const struct masked *m)
{
	unsigned first, end = 0;
	uint64_t linear;
	enum verdict v;

	while (next_run(m, &first, &end)) {
		v = run_linear(cpu, m, first, end, true, &linear);
		if (v == V_DONE)
			v = thunk_probe(cpu, linear, (end - first) * m->size, true);
		if (v != V_DONE)
			return v;
	}
	return V_DONE;
}

/* Of several runs in device memory only the last one gets there: no device is written to so. */
static enum verdict masked_store(struct x86_cpu *cpu, const struct masked *m)
{
	enum verdict v = masked_probe(cpu, m), result = V_DONE;
	unsigned first, end = 0;
	uint64_t linear;

	if (v != V_DONE)
		return v;
	while (next_run(m, &first, &end)) {
		v = run_linear(cpu, m, first, end, true, &linear);
		if (v == V_DONE)
			v = thunk_write(cpu, linear, m->data.b + (size_t)first * m->size, (end - first) * m->size);
		if (v == V_EXIT)
			result = V_EXIT;
		else if (v != V_DONE)
			return v;
	}
	return result;
}

/* Both halves of 16 bytes, the upper one first, as CR2 shows of Intel's. */
static enum verdict byte_probe(struct x86_cpu *cpu, const struct masked *m, uint64_t linear)
{
	enum verdict v = V_DONE;

	if (!x86_is_amd(cpu) && m->count == 16)
		v = thunk_probe(cpu, linear + 8, 8, true);
	return v == V_DONE ? thunk_probe(cpu, linear, m->count, true) : v;
}

/* These check all of the operand, whatever the mask says, as they may (SDM Vol. 2 MASKMOVDQU) and do. */
static enum verdict byte_store(struct x86_cpu *cpu, const struct masked *m)
{
	uint64_t linear;
	enum verdict v = thunk_linear(cpu, m->seg, m->off, m->count, true, &linear);

	if (v == V_DONE && thunk_checks_alignment(cpu) && (linear & 7))
		return x86_raise_error(cpu, X86_AC, 0);
	if (v == V_DONE)
		v = byte_probe(cpu, m, linear);
	return v == V_DONE ? masked_store(cpu, m) : v;
}

/* MASKMOVDQU and VMASKMOVDQU: bytes, to DS:rDI. */
static enum verdict maskmov_sse(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct masked m = {.seg = insn->seg, .addrsize = insn->addrsize, .size = 1, .count = 16};

	m.off = zext(cpu->gpr[RDI], insn->addrsize);
	get_vector(cpu, insn->reg, &m.data);
	get_vector(cpu, insn->rm, &m.mask);
	return byte_store(cpu, &m);
}

static enum verdict maskmov_mmx(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	struct masked m = {.seg = insn->seg, .addrsize = insn->addrsize, .size = 1, .count = 8};
	enum verdict v;

	m.off = zext(cpu->gpr[RDI], insn->addrsize);
	get_mmx(cpu, insn->reg & 7, &m.data);
	get_mmx(cpu, insn->rm & 7, &m.mask);
	v = thunk_enter_mmx(t, cpu); /* stays when the store faults, as the processor has it */
	return v == V_DONE ? byte_store(cpu, &m) : v;
}

/* 2C to 2F: VMASKMOVPS, PD, loads then stores; 8C, 8E: VPMASKMOVD, Q. */
static enum verdict maskmov_avx(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	bool store = insn->opcode & 2;
	unsigned wide = insn->opcode >= 0x80 ? insn->flags & INSN_REXW : insn->opcode & 1;
	struct masked m = {.seg = insn->seg, .addrsize = insn->addrsize, .size = wide ? 8 : 4};
	enum verdict v;

	m.count = (insn->vexl ? 32 : 16) / m.size;
	m.off = x86_effective_address(cpu, insn);
	get_vector(cpu, insn->vvvv, &m.mask);
	if (store) {
		get_vector(cpu, insn->reg, &m.data);
		return masked_store(cpu, &m);
	}
	v = masked_load(cpu, &m);
	if (v == V_DONE)
		set_vector(cpu, insn->reg, &m.data);
	return v;
}

enum verdict thunk_masked(struct thunk *t, struct x86_cpu *cpu, const struct x86_insn *insn)
{
	enum verdict v;

	thunk_xsave_fill(cpu->xsave);
	if (insn->map == 2)
		v = maskmov_avx(cpu, insn);
	else if (insn->flags & (INSN_SSE | INSN_AVX))
		v = maskmov_sse(cpu, insn);
	else
		v = maskmov_mmx(t, cpu, insn);
	return v == V_DONE || v == V_EXIT ? thunk_retire(cpu, insn, v) : v;
}

/* A gather: elements in order; those fetched before one that faults are kept, with their mask cleared. */
struct gather {
	struct vector index, mask, data;
	unsigned size, index_size, count;
	bool some; /* has been fetched */
};

static void gather_shape(const struct x86_insn *insn, struct gather *g)
{
	unsigned bytes = insn->vexl ? 32 : 16;

	g->size = insn->flags & INSN_REXW ? 8 : 4;
	g->index_size = insn->opcode & 1 ? 8 : 4;
	g->count = bytes / MAX(g->size, g->index_size);
}

static enum verdict gather_element(struct x86_cpu *cpu, const struct x86_insn *insn, struct gather *g, unsigned i)
{
	uint64_t index = 0, linear, off;
	enum verdict v;

	memcpy(&index, g->index.b + (size_t)i * g->index_size, g->index_size);
	off = x86_effective_address(cpu, insn) + (uint64_t)sext(index, g->index_size) * insn->scale;
	v = thunk_linear(cpu, insn->seg, zext(off, insn->addrsize), g->size, false, &linear);
	if (v == V_DONE)
		v = thunk_read(cpu, linear, g->data.b + (size_t)i * g->size, g->size);
	g->some |= v == V_DONE;
	return v;
}

/* What has been fetched goes to the registers; when all has been, their upper parts become zero. */
static void gather_commit(struct x86_cpu *cpu, const struct x86_insn *insn, struct gather *g, bool whole)
{
	unsigned bytes = g->count * g->size, vector = insn->vexl ? 32 : 16;

	if (whole) {
		memset(g->data.b + bytes, 0, sizeof(g->data.b) - bytes);
		memset(g->mask.b + bytes, 0, sizeof(g->mask.b) - bytes);
	} else if (g->some && !x86_is_amd(cpu)) {
		memset(g->data.b + vector, 0, sizeof(g->data.b) - vector);
	}
	set_vector(cpu, insn->reg, &g->data);
	set_vector(cpu, insn->vvvv, &g->mask);
}

/* Each element of the mask becomes all ones or zero; what lies behind the `bytes` of the vectors goes. */
static void spread_mask(struct gather *g, unsigned bytes)
{
	for (unsigned i = 0; i * g->size < bytes; i++)
		memset(g->mask.b + (size_t)i * g->size, element_on(&g->mask, i, g->size) ? 0xff : 0, g->size);
	memset(g->mask.b + bytes, 0, sizeof(g->mask.b) - bytes);
}

/* Where an element faults, Intel's processors have spread the mask before (SDM Vol. 2 VGATHERDPS); AMD's leave it. */
enum verdict thunk_gather(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	bool spreads = !x86_is_amd(cpu);
	struct gather g;
	enum verdict v = V_DONE;
	unsigned i;

	thunk_xsave_fill(cpu->xsave);
	gather_shape(insn, &g);
	g.some = false;
	get_vector(cpu, (unsigned)insn->index, &g.index);
	get_vector(cpu, insn->vvvv, &g.mask);
	get_vector(cpu, insn->reg, &g.data);
	if (spreads)
		spread_mask(&g, insn->vexl ? 32 : 16);
	for (i = 0; i < g.count; i++) {
		if (element_on(&g.mask, i, g.size))
			v = gather_element(cpu, insn, &g, i);
		if (v != V_DONE)
			break;
		memset(g.mask.b + (size_t)i * g.size, 0, g.size);
	}
	if (v == V_DONE || (v == V_INJECT && (spreads || i > 0)))
		gather_commit(cpu, insn, &g, v == V_DONE);
	return v == V_DONE ? thunk_retire(cpu, insn, v) : v;
}
