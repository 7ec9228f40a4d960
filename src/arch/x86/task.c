/*
 * Task switches, by TSS descriptors, task gates and IRET with NT (SDM Vol. 3A 8.3). The old task's state is saved and
 * the new TSS taken whole, or nothing happens; what is wrong with the new task's segments is found afterwards and
 * raised in the new task.
 */
#include "arch/x86/internal.h"

/* Where a TSS keeps things (figures 8-2 and 8-10); `item` is the size of a register and the distance of selectors. */
struct layout {
	unsigned item, limit;
	unsigned cr3, ip, flags, gpr, seg, segs, ldt;
};

static const struct layout layout32 = {4, 0x67, 0x1c, 0x20, 0x24, 0x28, 0x48, 6, 0x60};
static const struct layout layout16 = {2, 0x2b, 0, 0x0e, 0x10, 0x12, 0x22, 4, 0x2a};

#define FLAGS_DEFINED 0x003f7fd5

struct task {
	struct descriptor tss;
	const struct layout *layout;
	uint8_t raw[0x68];
};

static const struct layout *layout_of(uint16_t attr)
{
	return attr & 8 ? &layout32 : &layout16;
}

static uint32_t get(const uint8_t *p, unsigned len)
{
	uint32_t v = 0;

	for (unsigned i = 0; i < len; i++)
		v |= (uint32_t)p[i] << (8 * i);
	return v;
}

static void put(uint8_t *p, unsigned len, uint64_t v)
{
	for (unsigned i = 0; i < len; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

/* Reads or writes [from, to) of a TSS. */
static enum verdict tss_copy(struct x86_cpu *cpu, uint64_t base, uint8_t *raw, unsigned from, unsigned to, bool write)
{
	for (unsigned at = from, n; at < to; at += n) {
		n = MIN(to - at, 32u);
		if (write)
			TRY(mem_write(cpu, (uint32_t)(base + at), raw + at, n, ACC_IMPLICIT));
		else
			TRY(mem_read(cpu, (uint32_t)(base + at), raw + at, n, ACC_IMPLICIT));
	}
	return V_DONE;
}

/* The new task's TSS: its descriptor's checks, and its contents. */
static enum verdict open_task(struct x86_cpu *cpu, uint16_t sel, enum task_source source, uint32_t ext, struct task *t)
{
	enum x86_vector vector = source == TASK_IRET ? X86_TS : X86_GP;
	unsigned want = source == TASK_IRET ? DESC_TSS16_BUSY : DESC_TSS16;
	uint32_t error = (sel & ~3u) | ext;

	if (sel_null(sel) || sel & 4)
		return x86_raise_error(cpu, vector, error);
	TRY(desc_read(cpu, sel, vector, ext, &t->tss));
	if ((t->tss.seg.attr & 0x17) != want)
		return x86_raise_error(cpu, vector, error);
	if (!(t->tss.seg.attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, error);
	t->layout = layout_of(t->tss.seg.attr);
	if (t->tss.seg.limit < t->layout->limit)
		return x86_raise_error(cpu, X86_TS, error);
	return tss_copy(cpu, t->tss.seg.base, t->raw, 0, t->layout->limit + 1, false);
}

static enum verdict save_old(struct x86_cpu *cpu, uint64_t next, enum task_source source)
{
	const struct x86_segment *tr = &cpu->seg[SEG_TR];
	const struct layout *l = layout_of(tr->attr);
	uint64_t flags = cpu->rflags & ~(uint64_t)(source == TASK_IRET ? FL_NT : 0);
	uint8_t raw[0x68];

	put(raw + l->ip, l->item, next);
	put(raw + l->flags, l->item, flags);
	for (unsigned i = 0; i < 8; i++)
		put(raw + (l->gpr + i * l->item), l->item, cpu->gpr[i]);
	for (unsigned i = 0; i < l->segs; i++)
		put(raw + (l->seg + i * l->item), l->item, cpu->seg[i].sel);
	TRY(mem_probe(cpu, (uint32_t)(tr->base + l->ip), l->ldt - l->ip, ACC_WRITE | ACC_IMPLICIT));
	return tss_copy(cpu, tr->base, raw, l->ip, l->ldt, true);
}

/* Busy bits and the back link. */
static enum verdict link_tasks(struct x86_cpu *cpu, struct task *t, enum task_source source)
{
	bool nested = source == TASK_CALL || source == TASK_EVENT;
	struct descriptor old;

	if (!nested) {
		TRY(desc_read(cpu, cpu->seg[SEG_TR].sel, X86_TS, 0, &old));
		TRY(desc_clear_bit(cpu, &old, DESC_BUSY));
	}
	if (source != TASK_IRET)
		TRY(desc_set_bit(cpu, &t->tss, DESC_BUSY));
	if (nested)
		TRY(mem_write(cpu, (uint32_t)t->tss.seg.base, &cpu->seg[SEG_TR].sel, 2, ACC_IMPLICIT));
	return V_DONE;
}

/* Registers of the new task; segment registers hold selectors only, unusable until they are loaded. */
static void load_registers(struct x86_cpu *cpu, const struct task *t, enum task_source source)
{
	const struct layout *l = t->layout;
	bool wide = l->item == 4;

	cpu->rip = get(t->raw + l->ip, l->item);
	cpu->rflags = (get(t->raw + l->flags, l->item) & FLAGS_DEFINED) | FL_FIXED1;
	if (source == TASK_CALL || source == TASK_EVENT)
		cpu->rflags |= FL_NT;
	for (unsigned i = 0; i < 8; i++)
		cpu->gpr[i] = get(t->raw + (l->gpr + i * l->item), l->item) | (wide ? 0 : 0xffff0000);
	for (unsigned i = 0; i < X86_SEGS; i++)
		cpu->seg[i] = (struct x86_segment){
			.sel = i < l->segs ? (uint16_t)get(t->raw + (l->seg + i * l->item), 2) : 0};
	cpu->seg[SEG_LDTR] = (struct x86_segment){.sel = (uint16_t)get(t->raw + l->ldt, 2)};
	cpu->seg[SEG_TR] = t->tss.seg;
	cpu->seg[SEG_TR].attr |= DESC_BUSY;
	cpu->cpl = cpu->rflags & FL_VM ? 3 : cpu->seg[SEG_CS].sel & 3;
	cpu->cr0 |= CR0_TS;
	cpu->dr7 &= ~0x155ull; /* local breakpoints */
	if (wide && cpu->cr0 & CR0_PG) {
		cpu->cr3 = get(t->raw + l->cr3, 4);
		flush_all(cpu, false, -1);
	}
}

static enum verdict load_ldt(struct x86_cpu *cpu, uint32_t ext)
{
	uint16_t sel = cpu->seg[SEG_LDTR].sel;
	struct descriptor d;

	if (sel_null(sel))
		return V_DONE;
	if (sel & 4)
		return x86_raise_error(cpu, X86_TS, (sel & ~3u) | ext);
	TRY(desc_read(cpu, sel, X86_TS, ext, &d));
	if ((d.seg.attr & (0x1f | SEG_ATTR_P)) != (DESC_LDT | SEG_ATTR_P))
		return x86_raise_error(cpu, X86_TS, (sel & ~3u) | ext);
	cpu->seg[SEG_LDTR] = d.seg;
	return V_DONE;
}

static enum verdict load_cs(struct x86_cpu *cpu, uint32_t ext)
{
	uint16_t sel = cpu->seg[SEG_CS].sel;
	uint32_t error = (sel & ~3u) | ext;
	struct descriptor d;
	unsigned dpl;

	if (sel_null(sel))
		return x86_raise_error(cpu, X86_TS, error);
	TRY(desc_read(cpu, sel, X86_TS, ext, &d));
	dpl = SEG_ATTR_DPL(d.seg.attr);
	if (!desc_code(d.seg.attr) || (desc_conforming(d.seg.attr) ? dpl > cpu->cpl : dpl != cpu->cpl))
		return x86_raise_error(cpu, X86_TS, error);
	if (!(d.seg.attr & SEG_ATTR_P))
		return x86_raise_error(cpu, X86_NP, error);
	TRY(desc_set_bit(cpu, &d, 1));
	cpu->seg[SEG_CS] = d.seg;
	return V_DONE;
}

/* The others: as x86_load_segment, but what is #GP there is #TS here. */
static enum verdict load_data(struct x86_cpu *cpu, enum x86_seg seg, uint32_t ext)
{
	uint16_t sel = cpu->seg[seg].sel;
	enum verdict v;

	if (seg == SEG_SS && sel_null(sel))
		return x86_raise_error(cpu, X86_TS, ext);
	v = x86_load_segment(cpu, seg, sel);
	if (v == V_INJECT && cpu->exc.vector == X86_GP)
		cpu->exc.vector = X86_TS;
	if (v == V_INJECT && cpu->exc.vector != X86_PF)
		cpu->exc.error |= ext;
	return v;
}

static enum verdict load_segments(struct x86_cpu *cpu, uint32_t ext)
{
	static const uint8_t order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};

	TRY(load_ldt(cpu, ext));
	if (vm86_mode(cpu)) {
		for (unsigned i = 0; i < X86_SEGS; i++)
			seg_load_flat(cpu, i, cpu->seg[i].sel);
		return V_DONE;
	}
	TRY(load_cs(cpu, ext));
	for (unsigned i = 0; i < ARRAY_LEN(order); i++)
		TRY(load_data(cpu, order[i], ext));
	return cpu->rip > cpu->seg[SEG_CS].limit ? raise_gp(cpu, ext) : V_DONE;
}

enum verdict task_switch(struct x86_cpu *cpu, uint16_t sel, enum task_source source, uint64_t next, uint32_t ext)
{
	struct task t;
	enum verdict v;

	TRY(open_task(cpu, sel, source, ext, &t));
	TRY(save_old(cpu, next, source));
	TRY(link_tasks(cpu, &t, source));
	load_registers(cpu, &t, source);
	v = load_segments(cpu, ext);
	mode_changed(cpu);
	if (v == V_DONE && t.layout->item == 4 && t.raw[0x64] & 1) { /* T: debug trap on entry (19.2.3: DR6.BT) */
		x86_raise(cpu, X86_DB);
		cpu->exc.trap = true;
		cpu->exc.dr6 = BIT(15);
		return V_INJECT;
	}
	return v;
}
