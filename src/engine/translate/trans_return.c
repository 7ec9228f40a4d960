/*
 * Returns of user code. A call leaves, by its place on the stack, which address it has pushed and where the host's code
 * for that is (struct quick_returns); the return looks there, and what it has popped is compared. So it finds what
 * programs return to in a few cache lines, where the quick tables have one for each place that is returned to. What a
 * kernel does in a row is so little that these stay in the host's caches as well, and to leave nothing is quicker.
 */
#include "engine/translate/trans.h"

bool return_known(const struct trans *t)
{
	return t->window && !t->kernel && t->mode == MODE_64 && !t->eng->no_pdep && !t->eng->no_link &&
	       !t->eng->no_return;
}

/* The host's code of the next instruction, as one comes there by a return. */
static void load_landing(struct trans *t, unsigned reg)
{
	enum flags_at flags = t->flags;
	uint16_t off = t->off;
	t->flags = FLAGS_HOST;
	t->off = t->next;
	asm_align_rel32(&t->e, 3);
	link_add(t, asm_lea_rip(&t->e, reg), t->next, next_key(t));
	t->flags = flags;
	t->off = off;
}

/*
 * When somebody asks for attention the place is the first, of which any return shall come to know: its host code
 * always is the way to C.
 */
void return_leave(struct trans *t, unsigned address)
{
	struct emit *e = &t->e;
	if (!return_known(t) || t->next >= PAGE_SIZE || t->shadow)
		return;
	unsigned place = regs_scratch(t, 0);
	asm_pext_gs(e, place, RSP, VCPU_OFF(return_mask));
	asm_not(e, address);
	asm_store_gs_index(e, address, place, VCPU_OFF(returns.not_address));
	load_landing(t, address);
	asm_store_gs_index(e, address, place, VCPU_OFF(returns.host));
	asm_load_gs(e, 8, address, VCPU_OFF(jump_any));
	asm_store_gs(e, 8, address, VCPU_OFF(returns.host));
}

void return_jump(struct trans *t, int32_t by)
{
	struct emit *e = &t->e;
	flags_need(t); /* whoever comes in there takes them to be in the host's */
	asm_pext_gs(e, H_DELTA, RSP, VCPU_OFF(return_mask));
	asm_lea(e, 8, RSP, RSP, -1, 1, by);
	regs_lend(t, RCX, H_TMP);
	asm_load_gs_index(e, RCX, H_DELTA, VCPU_OFF(returns.not_address));
	asm_lea(e, 8, RCX, RCX, H_ADDR, 1, 1);
	quick_on_if_zero(t, COLD_RETURN, NULL)->target = by;
	regs_give_back(t, RCX, H_TMP);
	asm_jmp_gs_index(e, H_DELTA, VCPU_OFF(returns.host));
	t->ended = true;
}
