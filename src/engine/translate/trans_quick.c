/* Jumps to other pages by the quick tables (quick.h): the guest's flags are where they were. */
#include "engine/translate/trans.h"

#define QUICK_OFF(field) ((int32_t)offsetof(struct quick_tables, field))

static int32_t quick_table(const struct trans *t)
{
	return VCPU_OFF(quick) + t->kernel * (int32_t)sizeof(struct quick_tables);
}

static uint8_t *poll(struct trans *t)
{
	asm_load_gs(&t->e, 8, RCX, VCPU_OFF(run_on));
	return asm_jrcxz(&t->e);
}

struct cold *quick_on_if_zero(struct trans *t, enum cold_kind kind, uint8_t *out)
{
	uint8_t *on = asm_jrcxz(&t->e);
	if (out)
		asm_patch8(out, t->e.p);
	struct cold *c = cold_add(t, kind, asm_jmp(&t->e));
	c->rcx_in_tmp = true;
	asm_patch8(on, t->e.p);
	return c;
}

/*
 * H_DELTA = where the entry for the linear address in H_ADDR is, from the table's start. Returns the way out of a poll,
 * or NULL where there is none: when somebody asks for attention it is the first entry.
 */
static uint8_t *entry_offset(struct trans *t)
{
	struct emit *e = &t->e;
	if (!t->eng->no_pdep) {
		asm_pdep_gs(e, H_DELTA, H_ADDR, VCPU_OFF(run_on));
		return NULL;
	}
	uint8_t *out = poll(t);
	asm_rr(e, 0x0fb7, 4, H_DELTA, H_ADDR);
	asm_lea(e, 8, H_DELTA, H_DELTA, H_DELTA, 1, 0);
	asm_lea(e, 8, H_DELTA, -1, H_DELTA, 8, 0);
	return out;
}
_Static_assert(sizeof(struct quick_jump) == 16 && QUICK_BITS == 16, "entry_offset");

/* The entry's field, in `reg`. */
static void load_entry(struct trans *t, unsigned reg, int32_t field)
{
	asm_rm(&t->e, 0x8b, 8, reg, true, H_DELTA, quick_table(t) + field);
}

/* H_DELTA = entry_offset for the linear address in H_ADDR. Uses H_TMP. */
static struct cold *find(struct trans *t, enum cold_kind kind)
{
	ENSURE(regs_empty(t));
	regs_lend(t, RCX, H_TMP);
	uint8_t *out = entry_offset(t);
	load_entry(t, RCX, QUICK_OFF(jump[0].minus));
	asm_lea(&t->e, 8, RCX, RCX, H_ADDR, 1, 0);
	struct cold *c = quick_on_if_zero(t, kind, out);
	regs_give_back(t, RCX, H_TMP);
	return c;
}

void quick_rcx_lent(struct trans *t)
{
	t->lent = LENT(RCX, H_TMP);
	map_here(t);
}

/* H_TMP has RCX. */
uint8_t *quick_second(struct trans *t)
{
	struct emit *e = &t->e;
	quick_rcx_lent(t);
	uint8_t *asked = poll(t);
	load_entry(t, RCX, QUICK_OFF(second[0].minus));
	asm_lea(e, 8, RCX, RCX, H_ADDR, 1, 0);
	uint8_t *found = asm_jrcxz(e);
	asm_patch8(asked, e->p);
	return found;
}

void quick_second_found(struct trans *t, const struct cold *c, uint8_t *found)
{
	struct emit *e = &t->e;
	asm_patch8(found, e->p);
	t->flags = c->flags;
	quick_rcx_lent(t);
	regs_give_back(t, RCX, H_TMP);
	if (c->kind == COLD_JUMP) {
		asm_jmp_gs(e, H_DELTA, quick_table(t) + QUICK_OFF(second[0].host));
		return;
	}
	load_entry(t, H_DELTA, QUICK_OFF(second[0].host));
	asm_patch32(asm_jmp(e), c->found);
}

void quick_jump(struct trans *t, int32_t undo)
{
	flags_need(t); /* whoever comes in there takes them to be in the host's */
	find(t, COLD_JUMP)->target = undo;
	asm_jmp_gs(&t->e, H_DELTA, quick_table(t) + QUICK_OFF(jump[0].host));
	t->ended = true;
}

void cold_emit_jump(struct trans *t, const struct cold *c)
{
	call_helper(t, HELPER_JUMP, JUMP_ARG(c->off, c->target));
}

/* The target is looked up first, so that nothing is pushed if there is none. */
void quick_call(struct trans *t)
{
	flags_need(t);
	uint8_t *retry = t->e.p;
	struct cold *c = find(t, COLD_CALL);
	c->resume = retry;
	load_entry(t, H_DELTA, QUICK_OFF(jump[0].host));
	c->found = t->e.p;
	regs_release(t, H_ADDR); /* but not H_DELTA */
	trans_push_return(t);
	asm_jmp_reg(&t->e, H_DELTA);
	t->ended = true;
}

void cold_emit_call(struct trans *t, const struct cold *c)
{
	struct call_target *call = code_new(t->eng, struct call_target);
	call_helper(t, HELPER_TARGET, record_at(t->eng, call));
	*call = (struct call_target){.resume = code_at(t->eng, t->e.p), .page = t->b->page, .off = c->off};
	flags_resume(t, (enum flags_at)c->flags, c->resume);
}

static int32_t place(const struct trans *t, size_t field)
{
	size_t slot = page_of(t->eng, t->b->page)->slot;
	return VCPU_OFF(place) + (int32_t)((slot * 2 + t->kernel) * sizeof(struct code_place) + field);
}

int32_t quick_where(const struct trans *t)
{
	return place(t, offsetof(struct code_place, linear));
}

int32_t quick_seen(const struct trans *t)
{
	return place(t, offsetof(struct code_place, seen));
}

void quick_tell_page(struct trans *t)
{
	if (!key_windowed(t->key))
		return;
	asm_load_gs(&t->e, 8, R11, quick_where(t));
	asm_store_gs(&t->e, 8, R11, VCPU_OFF(vpage));
}

static void far_jump(struct trans *t, struct far_jump *jump, bool backward)
{
	struct emit *e = &t->e;
	uint8_t *out = NULL;
	if (backward) {
		regs_lend(t, RCX, H_TMP);
		out = poll(t);
		regs_give_back(t, RCX, H_TMP);
	}
	asm_jmp_gs(e, -1, VCPU_OFF(far) + (int32_t)(jump->index * sizeof(uint64_t)));
	cold_add(t, COLD_FAR_QUICK, NULL)->far = jump;
	if (!out)
		return;
	asm_patch8(out, e->p);
	quick_rcx_lent(t);
	struct cold *c = cold_add(t, COLD_FAR_QUICK, asm_jmp(e));
	c->far = jump;
	c->rcx_in_tmp = true;
	t->lent = 0;
}

void quick_far(struct trans *t, int64_t target, int32_t undo)
{
	struct far_jump *jump = target == (int32_t)target ? code_far_jump(t->eng) : NULL;
	ENSURE(regs_empty(t));
	if (!jump) {
		mem_page_address(t, H_ADDR, target);
		quick_jump(t, undo);
		return;
	}
	jump->from = record_at(t->eng, t->b);
	jump->target = (int32_t)target;
	jump->from_off = t->off;
	jump->pushed = undo != 0;
	flags_need(t); /* whoever comes in there takes them to be in the host's */
	far_jump(t, jump, target <= t->off);
	t->ended = true;
}

void cold_emit_far_quick(struct trans *t, const struct cold *c)
{
	if (!c->rcx_in_tmp)
		code_far_cold(t->eng, c->far, t->e.p);
	call_helper(t, HELPER_FAR_QUICK, record_at(t->eng, c->far));
}
