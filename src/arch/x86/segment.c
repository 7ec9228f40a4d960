/* Segments: linear addresses with their checks, descriptors, and the loading of segment registers (SDM Vol. 3A ch. 3,
 * 5). */
#include "arch/x86/internal.h"
#include "bus/memory.h"

static enum verdict segment_fault(struct x86_cpu *cpu, bool ss, uint32_t error)
{
	return x86_raise_error(cpu, ss ? X86_SS : X86_GP, error);
}

/* May a segment of this type be accessed so? (SDM Vol. 3A 5.5) */
static bool type_allows(uint16_t attr, unsigned access)
{
	if (!(attr & SEG_ATTR_P))
		return false;
	if (access & ACC_EXEC)
		return true;
	if (attr & 8) /* code: never writable, perhaps readable */
		return !(access & ACC_WRITE) && attr & 2;
	return !(access & ACC_WRITE) || attr & 2;
}

static bool within_limit(const struct x86_segment *s, uint64_t off, unsigned len)
{
	uint64_t last = off + len - 1;

	if ((s->attr & (SEG_ATTR_S | 0xc)) == (SEG_ATTR_S | 4)) /* expand-down data (SDM Vol. 3A 5.3) */
		return off > s->limit && last <= (s->attr & SEG_ATTR_DB ? 0xffffffff : 0xffff);
	return last <= s->limit;
}

enum verdict seg_linear(struct x86_cpu *cpu, const struct x86_segment *s, bool ss, uint32_t error, uint64_t off,
			unsigned len, unsigned access, uint64_t *linear)
{
	if (!flat_selectors(cpu) && !type_allows(s->attr, access))
		return segment_fault(cpu, ss, error);
	if (!within_limit(s, off, len))
		return segment_fault(cpu, ss, error);
	*linear = (uint32_t)(s->base + off);
	return V_DONE;
}

enum verdict x86_linear(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, unsigned len, unsigned access,
			uint64_t *linear)
{
	uint64_t la;

	if (!x86_code64(cpu))
		return seg_linear(cpu, &cpu->seg[seg], seg == SEG_SS, 0, off, len, access, linear);
	la = seg == SEG_FS || seg == SEG_GS ? off + cpu->seg[seg].base : off;
	if (!x86_canonical(la) || !x86_canonical(la + len - 1))
		return segment_fault(cpu, seg == SEG_SS, 0);
	*linear = la;
	return V_DONE;
}

static void desc_parse(struct descriptor *d)
{
	uint32_t lo = d->raw[0], hi = d->raw[1];

	d->seg.attr = hi >> 8 & 0xf0ff;
	d->seg.base = lo >> 16 | (hi & 0xff) << 16 | (hi & 0xff000000);
	d->seg.limit = (lo & 0xffff) | (hi & 0xf0000);
	if (d->seg.attr & SEG_ATTR_G)
		d->seg.limit = d->seg.limit << 12 | 0xfff;
}

enum verdict table_read(struct x86_cpu *cpu, uint64_t va, void *dst, unsigned len, enum x86_vector vector,
			uint32_t error)
{
	if (x86_long_mode(cpu) && (!x86_canonical(va) || !x86_canonical(va + len - 1)))
		return x86_raise_error(cpu, vector, error);
	return mem_read(cpu, va, dst, len, ACC_IMPLICIT);
}

enum verdict desc_read(struct x86_cpu *cpu, uint16_t sel, enum x86_vector vector, uint32_t ext, struct descriptor *d)
{
	const struct x86_segment *ldt = &cpu->seg[SEG_LDTR];
	uint64_t base = cpu->gdtr.base;
	uint32_t limit = cpu->gdtr.limit;

	if (sel & 4) {
		base = ldt->base;
		limit = ldt->limit;
	}
	if ((sel & 4 && !(ldt->attr & SEG_ATTR_P)) || (sel | 7u) > limit)
		return x86_raise_error(cpu, vector, (sel & ~3u) | ext);
	d->linear = base + (sel & ~7u);
	d->seg.sel = sel;
	TRY(table_read(cpu, d->linear, d->raw, 8, vector, (sel & ~3u) | ext));
	desc_parse(d);
	return V_DONE;
}

enum verdict desc_read_high(struct x86_cpu *cpu, uint16_t sel, struct descriptor *d)
{
	uint32_t limit = sel & 4 ? cpu->seg[SEG_LDTR].limit : cpu->gdtr.limit;

	if (!x86_long_mode(cpu))
		return V_DONE;
	if ((sel | 7u) + 8 > limit)
		return raise_gp(cpu, sel & ~3u);
	TRY(table_read(cpu, d->linear + 8, d->raw + 2, 8, X86_GP, sel & ~3u));
	if (d->raw[3] & 0x1f00) /* SDM Vol. 3A figure 8-4: the upper type field must be 0 */
		return raise_gp(cpu, sel & ~3u);
	d->seg.base |= (uint64_t)d->raw[2] << 32;
	return V_DONE;
}

/* The access byte of a descriptor in guest memory; *p is NULL when it isn't RAM, and the write is lost. */
static enum verdict access_byte(struct x86_cpu *cpu, const struct descriptor *d, uint8_t **p, uint64_t *gpa)
{
	struct x86_mapping m;

	TRY(mmu_translate(cpu, d->linear + 5, ACC_WRITE | ACC_IMPLICIT, &m));
	*p = guest_memory_ptr(cpu->mem, m.gpa, 1, true);
	*gpa = m.gpa;
	return V_DONE;
}

enum verdict desc_set_bit(struct x86_cpu *cpu, struct descriptor *d, unsigned bit)
{
	uint8_t *p;
	uint64_t gpa;

	if (d->seg.attr & bit)
		return V_DONE;
	TRY(access_byte(cpu, d, &p, &gpa));
	if (p) {
		__atomic_fetch_or(p, (uint8_t)bit, __ATOMIC_SEQ_CST);
		guest_memory_wrote(cpu->mem, gpa, 1);
	}
	d->seg.attr |= (uint16_t)bit;
	return V_DONE;
}

enum verdict desc_clear_bit(struct x86_cpu *cpu, struct descriptor *d, unsigned bit)
{
	uint8_t *p;
	uint64_t gpa;

	TRY(access_byte(cpu, d, &p, &gpa));
	if (p) {
		__atomic_fetch_and(p, (uint8_t)~bit, __ATOMIC_SEQ_CST);
		guest_memory_wrote(cpu->mem, gpa, 1);
	}
	d->seg.attr &= (uint16_t)~bit;
	return V_DONE;
}

enum verdict desc_check_stack(struct x86_cpu *cpu, const struct descriptor *d, uint16_t sel, unsigned cpl,
			      enum x86_vector vector, uint32_t ext)
{
	uint16_t attr = d->seg.attr;
	uint32_t error = (sel & ~3u) | ext;

	if ((sel & 3u) != cpl || SEG_ATTR_DPL(attr) != cpl || !desc_writable_data(attr))
		return x86_raise_error(cpu, vector, error);
	if (!(attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_SS, error);
	return V_DONE;
}

void seg_load_flat(struct x86_cpu *cpu, enum x86_seg seg, uint16_t sel)
{
	struct x86_segment *s = &cpu->seg[seg];

	s->sel = sel;
	s->base = (uint64_t)sel << 4;
	if (vm86_mode(cpu)) {
		s->limit = 0xffff;
		s->attr = 0x00f3;
	} else if (!(s->attr & SEG_ATTR_P)) {
		s->attr = 0x0093; /* limits survive from protected mode ("unreal"), unusable segments don't */
	}
}

void seg_load_cs(struct x86_cpu *cpu, const struct descriptor *d, uint16_t sel, unsigned cpl)
{
	cpu->seg[SEG_CS] = d->seg;
	cpu->seg[SEG_CS].sel = (uint16_t)((sel & ~3u) | cpl);
	cpu->cpl = (uint8_t)cpl;
}

void seg_load_null_ss(struct x86_cpu *cpu, unsigned cpl)
{
	cpu->seg[SEG_SS] = (struct x86_segment){.sel = (uint16_t)cpl, .attr = (uint16_t)(cpl << 5)};
}

void seg_drop_inner(struct x86_cpu *cpu)
{
	static const uint8_t segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

	for (unsigned i = 0; i < ARRAY_LEN(segs); i++) {
		struct x86_segment *s = &cpu->seg[segs[i]];

		if (s->attr & SEG_ATTR_P && !desc_conforming(s->attr) && SEG_ATTR_DPL(s->attr) < cpu->cpl) {
			s->sel = 0;
			s->attr &= (uint16_t)~SEG_ATTR_P;
		}
	}
}

static enum verdict load_null(struct x86_cpu *cpu, enum x86_seg seg, uint16_t sel)
{
	if (seg == SEG_SS) {
		if (!x86_code64(cpu) || cpu->cpl == 3 || (sel & 3) != cpu->cpl)
			return raise_gp(cpu, 0);
		seg_load_null_ss(cpu, cpu->cpl);
		return V_DONE;
	}
	cpu->seg[seg] = (struct x86_segment){.sel = sel};
	return V_DONE;
}

static enum verdict check_data(struct x86_cpu *cpu, uint16_t sel, const struct descriptor *d)
{
	uint16_t attr = d->seg.attr;
	unsigned dpl = SEG_ATTR_DPL(attr);

	if (!(attr & SEG_ATTR_S) || (desc_code(attr) && !(attr & 2)))
		return raise_gp(cpu, sel & ~3u);
	if (!desc_conforming(attr) && (dpl < cpu->cpl || dpl < (sel & 3u)))
		return raise_gp(cpu, sel & ~3u);
	if (!(attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, sel & ~3u);
	return V_DONE;
}

enum verdict x86_load_segment(struct x86_cpu *cpu, enum x86_seg seg, uint16_t sel)
{
	struct descriptor d;

	if (flat_selectors(cpu)) {
		seg_load_flat(cpu, seg, sel);
	} else if (sel_null(sel)) {
		TRY(load_null(cpu, seg, sel));
	} else {
		TRY(desc_read(cpu, sel, X86_GP, 0, &d));
		if (seg == SEG_SS)
			TRY(desc_check_stack(cpu, &d, sel, cpu->cpl, X86_GP, 0));
		else
			TRY(check_data(cpu, sel, &d));
		TRY(desc_set_bit(cpu, &d, 1));
		cpu->seg[seg] = d.seg;
	}
	if (seg == SEG_SS || !x86_code64(cpu))
		mode_changed(cpu);
	return V_DONE;
}

static bool tss_is_16bit(const struct x86_cpu *cpu)
{
	return !(cpu->seg[SEG_TR].attr & 8);
}

static enum verdict tss_read(struct x86_cpu *cpu, uint32_t off, unsigned len, uint32_t ext, void *dst)
{
	const struct x86_segment *tr = &cpu->seg[SEG_TR];

	if (off + len - 1 > tr->limit)
		return x86_raise_error(cpu, X86_TS, (tr->sel & ~3u) | ext);
	return table_read(cpu, tr->base + off, dst, len, X86_TS, (tr->sel & ~3u) | ext);
}

enum verdict tss_stack(struct x86_cpu *cpu, unsigned level, uint32_t ext, uint16_t *ss, uint64_t *sp)
{
	uint16_t raw[4] = {0};

	*ss = 0;
	if (x86_long_mode(cpu))
		return tss_read(cpu, 4 + 8 * level, 8, ext, sp);
	if (tss_is_16bit(cpu)) {
		TRY(tss_read(cpu, 2 + 4 * level, 4, ext, raw));
		*sp = raw[0];
		*ss = raw[1];
		return V_DONE;
	}
	TRY(tss_read(cpu, 4 + 8 * level, 6, ext, raw));
	*sp = raw[0] | (uint32_t)raw[1] << 16;
	*ss = raw[2];
	return V_DONE;
}

enum verdict tss_ist(struct x86_cpu *cpu, unsigned ist, uint32_t ext, uint64_t *sp)
{
	return tss_read(cpu, 0x24 + 8 * (ist - 1), 8, ext, sp);
}
