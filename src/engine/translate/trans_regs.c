/*
 * What R9, R10 and R11 of the host hold. The guest's own live in memory between blocks, because the translator needs
 * registers to work with; within a block each is kept in the host's register of the same number for as long as nothing
 * else wants that, and is written back before the block is left. So are the shared deltas of windows (share.h), in any
 * of the three. Where a fault may come, the map tells which of the guest's are in the host alone.
 */
#include "engine/translate/trans.h"

#define FIRST R9
#define COUNT 3

enum { HOLD_NOTHING, HOLD_GUEST, HOLD_SLOT /* + slot */ };

static uint8_t bit(unsigned reg)
{
	return (uint8_t)(1u << (reg - FIRST));
}

static uint8_t *hold_of(struct trans *t, unsigned reg)
{
	return &t->regs.holds[reg - FIRST];
}

uint8_t regs_mask(unsigned gprs)
{
	return gprs >> FIRST & ((1u << COUNT) - 1);
}

/* In how many instructions guest register `reg` is needed, more than a block has if never. */
static unsigned distance(const struct trans *t, unsigned reg)
{
	unsigned n = 0;
	for (const struct x86_insn *i = t->insn; i < t->insns + t->count; i++, n++)
		if ((i->gpr_read | i->gpr_write) & 1u << reg)
			return n;
	return BLOCK_INSNS;
}

/* The price of taking `reg` for something else. */
static unsigned price(struct trans *t, unsigned reg)
{
	uint8_t hold = *hold_of(t, reg);
	unsigned dirty = t->regs.dirty & bit(reg) ? 1 : 0;
	if (hold == HOLD_NOTHING)
		return 0;
	if (hold >= HOLD_SLOT)
		return BLOCK_INSNS + dirty;
	return 1 + dirty + BLOCK_INSNS - distance(t, reg);
}

static int32_t slot_offset(unsigned slot)
{
	return slot == SLOT_STACK ? VCPU_OFF(stack_delta) : VCPU_OFF(slot) + (int32_t)slot * 8;
}

static void store(struct trans *t, unsigned reg)
{
	uint8_t hold = *hold_of(t, reg);
	if (!(t->regs.dirty & bit(reg)))
		return;
	asm_store_gs(&t->e, 8, reg, hold == HOLD_GUEST ? (int32_t)reg * 8 : slot_offset(hold - HOLD_SLOT));
	t->regs.dirty &= (uint8_t)~bit(reg);
	if (hold == HOLD_GUEST)
		map_here(t); /* before anything else comes into the register */
}

static void evict(struct trans *t, unsigned reg)
{
	store(t, reg);
	*hold_of(t, reg) = HOLD_NOTHING;
}

void regs_lend(struct trans *t, unsigned reg, unsigned holder)
{
	asm_mov(&t->e, holder, reg);
	t->lent = LENT(reg, holder);
	map_here(t);
}

void regs_give_back(struct trans *t, unsigned reg, unsigned holder)
{
	asm_mov(&t->e, reg, holder);
	t->lent = 0;
	map_here(t);
}

uint8_t regs_dirty(const struct trans *t)
{
	uint8_t mask = 0;
	for (unsigned i = 0; i < COUNT; i++)
		if (t->regs.holds[i] == HOLD_GUEST)
			mask |= t->regs.dirty & (uint8_t)(1u << i);
	return mask;
}

bool regs_empty(const struct trans *t)
{
	for (unsigned i = 0; i < COUNT; i++)
		if (t->regs.holds[i] != HOLD_NOTHING)
			return false;
	return true;
}

/* The cheapest of the registers that may be taken. */
static unsigned choose(struct trans *t, uint8_t avoid)
{
	unsigned best = 0, least = UINT32_MAX;
	avoid |= t->regs.pinned;
	for (unsigned reg = FIRST; reg < FIRST + COUNT; reg++) {
		if (avoid & bit(reg))
			continue;
		unsigned p = price(t, reg);
		if (p < least) {
			least = p;
			best = reg;
		}
	}
	ENSURE(least != UINT32_MAX);
	return best;
}

unsigned regs_scratch(struct trans *t, uint8_t avoid)
{
	unsigned reg = choose(t, avoid);
	evict(t, reg);
	t->regs.pinned |= bit(reg);
	return reg;
}

void regs_release(struct trans *t, unsigned reg)
{
	t->regs.pinned &= (uint8_t)~bit(reg);
}

/* Makes the home of guest register `reg` its own. True: its value is there. */
static bool take_home(struct trans *t, unsigned reg)
{
	uint8_t *hold = hold_of(t, reg);
	bool there = *hold == HOLD_GUEST;
	ENSURE(there || !(t->regs.pinned & bit(reg)));
	if (!there)
		evict(t, reg);
	*hold = HOLD_GUEST;
	t->regs.pinned |= bit(reg);
	return there;
}

unsigned regs_use(struct trans *t, unsigned reg)
{
	if (spilled(reg) && !take_home(t, reg))
		asm_load_gs(&t->e, 8, reg, (int32_t)reg * 8);
	return reg;
}

unsigned regs_define(struct trans *t, unsigned reg)
{
	if (spilled(reg))
		take_home(t, reg);
	return reg;
}

void regs_operands(struct trans *t, const struct x86_insn *insn)
{
	unsigned named = named_gprs(insn);
	for (unsigned reg = FIRST; reg < FIRST + COUNT; reg++) {
		if (!(named & 1u << reg))
			continue;
		if (insn->gpr_read & 1u << reg)
			regs_use(t, reg);
		else
			regs_define(t, reg);
	}
}

void regs_written(struct trans *t, unsigned gprs)
{
	uint8_t mask = regs_mask(gprs);
	for (unsigned i = 0; i < COUNT; i++)
		ENSURE(!(mask & 1u << i) || t->regs.holds[i] == HOLD_GUEST);
	t->regs.dirty |= mask;
}

static int held_in(struct trans *t, uint8_t hold)
{
	for (unsigned i = 0; i < COUNT; i++)
		if (t->regs.holds[i] == hold)
			return (int)(FIRST + i);
	return -1;
}

/* A slot's delta out of `from`, which is wanted for something else. */
static unsigned move_slot(struct trans *t, unsigned from, uint8_t avoid)
{
	uint8_t hold = *hold_of(t, from);
	bool dirty = t->regs.dirty & bit(from);
	unsigned to = regs_scratch(t, avoid);
	asm_mov(&t->e, to, from);
	*hold_of(t, from) = HOLD_NOTHING;
	*hold_of(t, to) = hold;
	t->regs.dirty &= (uint8_t)~bit(from);
	if (dirty)
		t->regs.dirty |= bit(to);
	return to;
}

unsigned regs_slot(struct trans *t, unsigned slot, uint8_t avoid)
{
	uint8_t hold = (uint8_t)(HOLD_SLOT + slot);
	int at = held_in(t, hold);
	if (at >= 0 && avoid & bit((unsigned)at))
		return move_slot(t, (unsigned)at, avoid);
	if (at < 0) {
		at = (int)regs_scratch(t, avoid);
		asm_load_gs(&t->e, 8, (unsigned)at, slot_offset(slot));
		*hold_of(t, (unsigned)at) = hold;
	}
	t->regs.pinned |= bit((unsigned)at);
	return (unsigned)at;
}

void regs_slot_made(struct trans *t, unsigned slot, unsigned reg)
{
	*hold_of(t, reg) = (uint8_t)(HOLD_SLOT + slot);
	t->regs.dirty |= bit(reg);
}

void regs_slot_done(struct trans *t, unsigned slot)
{
	int at = held_in(t, (uint8_t)(HOLD_SLOT + slot));
	if (at < 0)
		return;
	t->regs.holds[at - FIRST] = HOLD_NOTHING;
	t->regs.dirty &= (uint8_t)~bit((unsigned)at);
}

void regs_store(struct trans *t)
{
	for (unsigned reg = FIRST; reg < FIRST + COUNT; reg++)
		if (*hold_of(t, reg) == HOLD_GUEST)
			store(t, reg);
}

void regs_flush(struct trans *t)
{
	for (unsigned reg = FIRST; reg < FIRST + COUNT; reg++)
		evict(t, reg);
	t->regs.pinned = 0;
}

void regs_fixed(struct trans *t)
{
	regs_flush(t);
	t->regs.pinned = bit(H_ADDR) | bit(H_DELTA);
}
