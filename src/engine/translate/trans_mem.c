/* Memory operands, and the instructions that are copied. */
#include "engine/translate/rewrite.h"
#include "engine/translate/trans.h"

void map_here(struct trans *t)
{
	size_t host = (size_t)(t->e.p - t->start);
	ENSURE(host <= UINT16_MAX && t->maps < MAP_MAX);
	t->map[t->maps++] =
		(struct insn_map){(uint16_t)host, t->off, t->flags == FLAGS_HOST, regs_dirty(t), t->moved, t->lent};
}

void mem_page_address(struct trans *t, unsigned reg, int64_t off)
{
	int64_t half = off == (int32_t)off ? 0 : off / 2; /* it may be a little more than a displacement can say */
	asm_load_gs(&t->e, 8, reg, key_windowed(t->key) ? quick_where(t) : VCPU_OFF(vpage));
	if (half)
		asm_lea(&t->e, 8, reg, (int)reg, -1, 1, (int32_t)half);
	if (off)
		asm_lea(&t->e, 8, reg, (int)reg, -1, 1, (int32_t)(off - half));
}

static void effective_address(struct trans *t, const struct x86_insn *insn)
{
	struct emit *e = &t->e;
	if (insn->base == 16) {
		mem_page_address(t, H_ADDR, t->next + insn->disp);
		if (insn->addrsize == 4)
			asm_rr(e, 0x8b, 4, H_ADDR, H_ADDR);
		return;
	}
	if (insn->base < 0 && insn->index < 0) {
		asm_mov_imm(e, H_ADDR,
			    insn->addrsize == 8 ? (uint64_t)insn->disp : zext((uint64_t)insn->disp, insn->addrsize));
		return;
	}
	int base = insn->base < 0 ? -1 : (int)guest_reg(t, (unsigned)insn->base, H_ADDR);
	int index = insn->index < 0 ? -1 : (int)guest_reg(t, (unsigned)insn->index, H_DELTA);
	asm_lea(e, insn->addrsize == 8 ? 8 : 4, H_ADDR, base, index, insn->scale ? insn->scale : 1,
		(int32_t)insn->disp);
	if (insn->addrsize == 2)
		asm_rr(e, 0x0fb7, 4, H_ADDR, H_ADDR);
}

#define SEG_FIELD(f) ((int32_t)offsetof(struct x86_segment, f))

static int32_t segment_offset(unsigned seg)
{
	return VCPU_OFF(cpu.seg) + (int32_t)seg * (int32_t)sizeof(struct x86_segment);
}

int32_t mem_segment_base(unsigned seg)
{
	return segment_offset(seg) + SEG_FIELD(base);
}

/*
 * Outside 64-bit mode FS and GS have limits and types, and no key tells of them: anything but a present, writable,
 * expand-up data segment that ends at 4 GiB is left to the slow path. Flags must be saved.
 */
static void check_segment(struct trans *t, unsigned seg)
{
	enum { MASK = SEG_ATTR_P | SEG_ATTR_S | 0xe, GOOD = SEG_ATTR_P | SEG_ATTR_S | 2 };
	asm_alu_gs_imm(&t->e, ALU_CMP, 4, segment_offset(seg) + SEG_FIELD(limit), -1);
	cold_add(t, COLD_STEP, asm_jcc(&t->e, CC_NE));
	asm_rm(&t->e, 0x0fb6, 4, H_TMP, true, -1, segment_offset(seg) + SEG_FIELD(attr));
	asm_alu_imm(&t->e, ALU_AND, 4, H_TMP, MASK);
	asm_alu_imm(&t->e, ALU_CMP, 4, H_TMP, GOOD);
	cold_add(t, COLD_STEP, asm_jcc(&t->e, CC_NE));
}

void mem_address(struct trans *t, const struct x86_insn *insn, bool segment)
{
	ENSURE(regs_empty(t));
	effective_address(t, insn);
	if (!segment || (insn->seg != SEG_FS && insn->seg != SEG_GS))
		return;
	if (t->mode != MODE_64)
		check_segment(t, insn->seg);
	asm_rm(&t->e, 0x03, t->mode == MODE_64 ? 8 : 4, H_ADDR, true, -1, mem_segment_base(insn->seg));
}

/* The first half of a check: H_DELTA = offset of the TLB entry of H_ADDR's page; compares the page of H_TMP with its
 * tag. */
static void compare_tag(struct trans *t, bool write)
{
	struct emit *e = &t->e;
	int32_t table = VCPU_OFF(tlb) + (int32_t)(t->mmu * sizeof(struct tlb_entry[TLB_ENTRIES]));
	ENSURE(t->flags != FLAGS_HOST);
	asm_mov(e, H_DELTA, H_ADDR);
	asm_shift_imm(e, SH_SHR, 8, H_DELTA, PAGE_SHIFT - 5);
	asm_alu_imm(e, ALU_AND, 4, H_DELTA, (TLB_ENTRIES - 1) << 5);
	asm_alu_imm(e, ALU_AND, 8, H_TMP, (int32_t)PAGE_MASK);
	asm_rm(e, 0x3b, 8, H_TMP, true, H_DELTA,
	       table + (write ? (int32_t)offsetof(struct tlb_entry, tag_write)
			      : (int32_t)offsetof(struct tlb_entry, tag_read)));
	t->flags = FLAGS_SAVED;
}
_Static_assert(sizeof(struct tlb_entry) == 32, "compare_tag's shift by 5");

static void load_delta(struct trans *t)
{
	int32_t table = VCPU_OFF(tlb) + (int32_t)(t->mmu * sizeof(struct tlb_entry[TLB_ENTRIES]));
	asm_rm(&t->e, 0x8b, 8, H_DELTA, true, H_DELTA, table + (int32_t)offsetof(struct tlb_entry, delta));
}

/*
 * Other faults than a page fault may be due first; the slow path knows their order. It also knows what it takes to make
 * one access of a locked one that crosses a page.
 */
static bool slow_fault(const struct x86_insn *insn)
{
	return insn->flags & (INSN_ALIGN | INSN_FPU | INSN_LOCK) || insn->mnemonic == ZYDIS_MNEMONIC_XCHG ||
	       insn->mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH;
}

struct host_mem mem_check(struct trans *t, unsigned size, bool write)
{
	ENSURE(size >= 1 && size <= 64);
	if (t->window)
		return window_fixed(t);
	asm_lea(&t->e, 8, H_TMP, H_ADDR, -1, 1, (int32_t)size - 1); /* the last byte's page must be the first's */
	compare_tag(t, write);
	struct cold *c = cold_add(t, COLD_MISS, asm_jcc(&t->e, CC_NE));
	load_delta(t);
	c->arg = t->off | size << 12 | (write ? MISS_WRITE : 0) | (slow_fault(t->insn) ? MISS_SLOW : 0);
	c->resume = t->e.p;
	return (struct host_mem){H_ADDR, H_DELTA, 0};
}

/* One check for all of the group's accesses: its slot is then the page's delta. */
static void check_group(struct trans *t, const struct share *s, unsigned base)
{
	uint8_t *start;
	flags_clobber(t);
	start = t->e.p;
	unsigned host = guest_reg(t, base, H_DELTA);
	asm_lea(&t->e, 8, H_ADDR, (int)host, -1, 1, s->lo);
	asm_lea(&t->e, 8, H_TMP, (int)host, -1, 1, s->hi - 1);
	compare_tag(t, s->write);
	struct cold *c = cold_add(t, COLD_SHARE, asm_jcc(&t->e, CC_NE));
	load_delta(t);
	asm_store_gs(&t->e, 8, H_DELTA, VCPU_OFF(slot) + s->slot * 8);
	c->resume = start;
	c->share = s;
	c->base = (uint8_t)base;
	c->slow = slow_fault(t->insn);
}

/* [guest register base + disp] by a shared check. H_ADDR holds the base if that lives in memory. */
static struct host_mem shared(struct trans *t, const struct share *s, unsigned base, int32_t disp)
{
	if (s->leader)
		check_group(t, s, base);
	else
		asm_load_gs(&t->e, 8, H_DELTA, VCPU_OFF(slot) + s->slot * 8);
	return (struct host_mem){(uint8_t)guest_reg(t, base, H_ADDR), H_DELTA, disp};
}

struct host_mem mem_operand(struct trans *t, const struct x86_insn *insn)
{
	if (t->window)
		return window_flat(t, insn);
	regs_fixed(t);
	if (t->sharing->mem.slot >= 0)
		return shared(t, &t->sharing->mem, (unsigned)insn->base, (int32_t)insn->disp);
	flags_clobber(t);
	mem_address(t, insn, true);
	return mem_check(t, insn->mem_size, insn->mem_write);
}

struct host_mem mem_stack(struct trans *t, int32_t disp, bool write, uint8_t avoid)
{
	unsigned n = stack_bytes(t);
	if (t->window)
		return window_stack(t, disp, avoid);
	regs_fixed(t);
	if (t->sharing->stack.slot >= 0)
		return shared(t, &t->sharing->stack, RSP, disp);
	flags_clobber(t);
	asm_lea(&t->e, n, H_ADDR, RSP, -1, 1, disp);
	return mem_check(t, n, write);
}

void mem_op(struct trans *t, unsigned op, unsigned size, unsigned reg, const struct host_mem *m)
{
	if (t->window)
		map_here(t);
	if (m->index < 0)
		asm_rm(&t->e, op, size, reg, false, m->base, m->disp);
	else
		asm_rmx(&t->e, op, size, reg, m->base, (unsigned)m->index, m->disp);
}

unsigned named_gprs(const struct x86_insn *insn)
{
	unsigned m = 0;
	if (insn->flags & INSN_REG_GPR)
		m |= 1u << insn->reg;
	if (insn->flags & INSN_RM_GPR)
		m |= 1u << insn->rm;
	if (insn->flags & INSN_VVVV_GPR)
		m |= 1u << insn->vvvv;
	if (insn->flags & INSN_OPREG_GPR)
		m |= 1u << insn->opreg;
	return m;
}

static const struct rewrite_map identity = {
	.gpr = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
	.mem_base = H_ADDR,
	.mem_index = H_DELTA,
};

static void load_spilled(struct trans *t, const struct x86_insn *insn, unsigned reg, unsigned host)
{
	if (insn->gpr_read & 1u << reg)
		asm_load_gs(&t->e, 8, host, (int32_t)reg * 8);
}

static void store_spilled(struct trans *t, const struct x86_insn *insn, unsigned reg, unsigned host)
{
	if (insn->gpr_write & 1u << reg)
		asm_store_gs(&t->e, 8, host, (int32_t)reg * 8);
}

/* Emits `insn` by `map`. What cannot be said for the host leaves for the slow path, which says so to the guest if need
 * be. */
static void rewrite(struct trans *t, const struct x86_insn *insn, const struct rewrite_map *map)
{
	if (!rewrite_plain(&t->e, insn, map))
		trans_step(t);
}

static void copy_registers(struct trans *t, const struct x86_insn *insn)
{
	regs_operands(t, insn);
	map_here(t);
	if (t->mode == MODE_64)
		emit_bytes(&t->e, insn->bytes, insn->len);
	else
		rewrite(t, insn, &identity);
	if (!t->ended)
		regs_written(t, insn->gpr_write);
}

/* H_ADDR = the operand's host address; H_DELTA becomes free. */
static void flatten(struct trans *t, struct host_mem *m)
{
	asm_lea(&t->e, 8, H_ADDR, m->base, m->index, 1, m->disp);
	*m = (struct host_mem){H_ADDR, -1, 0};
}

/* AH, CH, DH and BH cannot be named beside R8 to R15: a low register lends itself for the address. */
static void copy_high8(struct trans *t, const struct x86_insn *insn, struct host_mem *m)
{
	unsigned used = insn->gpr_read | insn->gpr_write;
	unsigned low = !(used & 1u << RSI) ? RSI : RDI;
	struct rewrite_map map = identity;
	uint8_t code[REWRITE_MAX];
	struct emit e = {code, code + sizeof(code)};
	map.mem_base = (int8_t)low;
	map.mem_index = -1;
	if (!rewrite_plain(&e, insn, &map)) {
		trans_step(t);
		return;
	}
	flatten(t, m);
	asm_mov(&t->e, H_DELTA, low);
	t->lent = LENT(low, H_DELTA);
	map_here(t);
	asm_mov(&t->e, low, H_ADDR);
	emit_bytes(&t->e, code, (size_t)(e.p - code));
	asm_mov(&t->e, low, H_DELTA);
	t->lent = 0;
}

static void copy_memory(struct trans *t, const struct x86_insn *insn, struct host_mem m)
{
	struct rewrite_map map = identity;
	unsigned named = named_gprs(insn) & (1u << R9 | 1u << R10 | 1u << R11), used = 0;
	for (unsigned r = R9; r <= R11; r++) {
		if (!(named & 1u << r))
			continue;
		if (used == 1)
			flatten(t, &m);
		map.gpr[r] = used++ ? H_DELTA : H_TMP;
		load_spilled(t, insn, r, map.gpr[r]);
	}
	ENSURE(used <= 2);
	map.mem_base = (int8_t)m.base;
	map.mem_index = m.index;
	map.mem_disp = m.disp;
	map_here(t);
	if (!rewrite_plain(&t->e, insn, &map))
		copy_high8(t, insn, &m);
	for (unsigned r = R9; r <= R11; r++)
		if (named & 1u << r)
			store_spilled(t, insn, r, map.gpr[r]);
}

/* With all registers where they are in the guest. */
static void lea_copied(struct trans *t, const struct x86_insn *insn)
{
	if (insn->base >= 0)
		regs_use(t, (unsigned)insn->base);
	if (insn->index >= 0)
		regs_use(t, (unsigned)insn->index);
	regs_operands(t, insn);
	emit_bytes(&t->e, insn->bytes, insn->len);
	regs_written(t, insn->gpr_write);
}

static void trans_lea(struct trans *t, const struct x86_insn *insn)
{
	if (t->mode == MODE_64 && insn->base != 16 && insn->addrsize >= 4) {
		lea_copied(t, insn);
		return;
	}
	if (t->mode == MODE_64 && insn->opsize == 8 && insn->addrsize == 8) {
		mem_page_address(t, regs_define(t, insn->reg), t->next + insn->disp);
		regs_written(t, insn->gpr_write);
		return;
	}
	regs_fixed(t);
	mem_address(t, insn, false);
	if (insn->opsize == 4 && insn->addrsize != 4)
		asm_rr(&t->e, 0x8b, 4, H_ADDR, H_ADDR);
	if (insn->opsize == 2 && spilled(insn->reg)) {
		emit_store16(t, H_ADDR, insn->reg * 8);
	} else if (insn->opsize == 2) {
		emit8(&t->e, 0x66);
		asm_rr(&t->e, 0x8b, 4, insn->reg, H_ADDR);
	} else if (spilled(insn->reg)) {
		asm_store_gs(&t->e, 8, H_ADDR, insn->reg * 8);
	} else {
		asm_mov(&t->e, insn->reg, H_ADDR);
	}
}

static void plain_memory(struct trans *t, const struct x86_insn *insn)
{
	if (insn->mem_size < 1 || insn->mem_size > 64) {
		trans_step(t);
		return;
	}
	if (t->window && !here_by_tlb(t) && window_plain(t, insn))
		return;
	bool window = t->window;
	t->window = window && !here_by_tlb(t);
	struct host_mem m = mem_operand(t, insn);
	if (flags_merge(insn))
		flags_need(t);
	copy_memory(t, insn, m);
	t->window = window;
}

void trans_plain(struct trans *t, const struct x86_insn *insn)
{
	if (insn->flags & INSN_ADDR_ONLY) {
		if (insn->mnemonic == ZYDIS_MNEMONIC_LEA)
			trans_lea(t, insn);
	} else if (insn->flags & INSN_MEM) {
		plain_memory(t, insn);
	} else {
		if (flags_merge(insn))
			flags_need(t);
		copy_registers(t, insn);
	}
	if ((insn->fl_write & FL_ARITH) && !t->ended)
		t->flags = FLAGS_HOST;
	if (t->window && !t->ended && insn->gpr_write & 1u << RSP)
		window_stack_after(t, insn);
}
