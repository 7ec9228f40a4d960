/* Near branches and the stack. */
#include "engine/translate/trans.h"

static bool in_page(int64_t target)
{
	return target >= 0 && target < (int64_t)PAGE_SIZE;
}

void jmp_glue(struct trans *t, const uint8_t *glue)
{
	uint8_t *rel = asm_jmp(&t->e);
	asm_patch32(rel, t->eng->code.rw + (glue - t->eng->code.rx));
}

void exit_code(struct trans *t, enum tr_exit code, uint16_t off)
{
	quick_tell_page(t);
	asm_mov_imm(&t->e, R11, GLUE_EXIT(code, off));
	jmp_glue(t, t->eng->glue_exit[t->flags == FLAGS_HOST]);
}

void poll_flagged(struct trans *t, uint16_t off)
{
	ENSURE(t->flags != FLAGS_HOST);
	asm_alu_gs_imm(&t->e, ALU_CMP, 4, VCPU_OFF(run_on), 0);
	t->flags = FLAGS_SAVED;
	cold_add(t, COLD_POLL, asm_jcc(&t->e, CC_E))->off = off;
}

/*
 * The same when the flags are in the host's. RCX comes back from H_ADDR on either way; the way out is
 * placed after the block's last jump by quiet_poll_land, for JRCXZ reaches no further.
 */
static void poll_quiet(struct trans *t)
{
	regs_lend(t, RCX, H_ADDR);
	asm_load_gs(&t->e, 8, RCX, VCPU_OFF(run_on));
	t->quiet_poll = asm_jrcxz(&t->e);
	regs_give_back(t, RCX, H_ADDR);
}

static void quiet_poll_land(struct trans *t, enum flags_at flags)
{
	if (!t->quiet_poll)
		return;
	asm_patch8(t->quiet_poll, t->e.p);
	t->flags = flags;
	t->lent = LENT(RCX, H_ADDR);
	map_here(t);
	regs_give_back(t, RCX, H_ADDR);
	cold_add(t, COLD_POLL, asm_jmp(&t->e));
	t->quiet_poll = NULL;
}

/* Before a jump backwards: the loop must be left when somebody asks. The instruction at hand is then run again later.
 */
static void poll_backward(struct trans *t, int64_t target)
{
	if (target > t->off || !in_page(target) || t->shadow) /* jump_far polls */
		return;
	if (t->flags == FLAGS_HOST && in_page(t->next)) {
		poll_quiet(t);
		return;
	}
	flags_clobber(t);
	poll_flagged(t, t->off);
}

static struct tr_link *link_new(struct trans *t, int64_t target, uint32_t key)
{
	struct tr_link *link = code_new(t->eng, struct tr_link);
	*link = (struct tr_link){.from = record_at(t->eng, t->b),
				 .other = t->b->links,
				 .key = (uint16_t)key,
				 .off = target & ~PAGE_MASK,
				 .flags_in_host = t->flags != FLAGS_SAVED};
	t->b->links = record_at(t->eng, link);
	return link;
}

/* Its jump, and its page's immediate, if it has one. */
static void link_place(struct trans *t, struct tr_link *link, const uint8_t *rel32, const uint8_t *imm)
{
	ENSURE(!imm || rel32 - imm <= UINT8_MAX);
	link->rel32 = (uint16_t)(rel32 - t->start);
	link->in_cold = t->part == PART_COLD;
	link->imm_back = imm ? (uint8_t)(rel32 - imm) : 0;
}

void link_add(struct trans *t, uint8_t *from, int64_t target, uint32_t key)
{
	if (t->eng->no_link) { /* by the jump cache instead */
		cold_add(t, COLD_FAR, from)->target = target;
		return;
	}
	struct tr_link *link = link_new(t, target, key);
	link_place(t, link, from, NULL);
	cold_add(t, COLD_LINK, from)->link = link;
}

/* Ends the block with a jump to the linear address in H_ADDR. `undo`: see light_jump. Flags must be saved. */
static void jump_indirect(struct trans *t, uint32_t key, int32_t undo)
{
	struct emit *e = &t->e;
	if (t->window) {
		quick_jump(t, undo);
		return;
	}
	int32_t table = VCPU_OFF(jc) + (int32_t)(key_jc(key) * sizeof(struct jc_entry[JC_ENTRIES]));
	flags_clobber(t);
	asm_alu_gs_imm(e, ALU_CMP, 4, VCPU_OFF(run_on), 0);
	struct cold *c = cold_add(t, COLD_JUMP, asm_jcc(e, CC_E));
	c->target = undo;
	asm_mov(e, H_DELTA, H_ADDR);
	asm_shift_imm(e, SH_SHR, 8, H_DELTA, 10);
	asm_rr(e, 0x33, 4, H_DELTA, H_ADDR); /* xor */
	asm_alu_imm(e, ALU_AND, 4, H_DELTA, JC_ENTRIES - 1);
	asm_shift_imm(e, SH_SHL, 4, H_DELTA, 4);
	asm_rm(e, 0x3b, 8, H_ADDR, true, H_DELTA, table + (int32_t)offsetof(struct jc_entry, tag));
	cold_also(t, c, asm_jcc(e, CC_NE));
	asm_alu_imm(e, ALU_AND, 8, H_ADDR, (int32_t)PAGE_MASK);
	asm_store_gs(e, 8, H_ADDR, VCPU_OFF(vpage));
	asm_jmp_gs(e, H_DELTA, table + (int32_t)offsetof(struct jc_entry, host));
	t->ended = true;
}

/* H_ADDR = a place relative to this page's linear address, whatever that is when it runs. */
static void far_address(struct trans *t, int64_t target)
{
	ENSURE(regs_empty(t));
	if (t->mode == MODE_64) {
		mem_page_address(t, H_ADDR, target);
	} else {
		asm_load_gs(&t->e, 8, H_ADDR, VCPU_OFF(vpage));
		asm_lea(&t->e, 4, H_ADDR, H_ADDR, -1, 1, (int32_t)target);
	}
}

/* mov reg, imm where a store of eight bytes can change it; returns where the immediate is. */
static uint8_t *mov_patchable(struct trans *t, unsigned reg, uint64_t imm)
{
	while (((uintptr_t)t->e.p + 2) & 7)
		emit8(&t->e, 0x90);
	emit8(&t->e, reg < 8 ? 0x48 : 0x49);
	emit8(&t->e, (uint8_t)(0xb8 | (reg & 7)));
	emit64(&t->e, imm);
	return t->e.p - 8;
}

static struct tr_link *link_far(struct trans *t, int64_t target, uint32_t key, int32_t undo)
{
	struct tr_link *link = link_new(t, target, key);
	ENSURE(undo == 0 || undo == -8);
	link->from_off = t->off;
	link->pushed = undo;
	return link;
}

/*
 * A direct jump to another page: if the page that is there now, which the itlb knows, is the one that the jump was
 * linked to, straight to the block.
 */
static void jump_linked(struct trans *t, int64_t target, uint32_t key, int32_t undo)
{
	struct emit *e = &t->e;
	int32_t table = VCPU_OFF(itlb) + (int32_t)(key_mmu(key) * sizeof(struct itlb_entry[ITLB_ENTRIES]));
	struct tr_link *link = link_far(t, target, key, undo);
	far_address(t, target & (int64_t)PAGE_MASK);
	uint8_t *asked = NULL;
	if (target <= t->off) {
		asm_alu_gs_imm(e, ALU_CMP, 4, VCPU_OFF(run_on), 0);
		asked = asm_jcc(e, CC_E);
	}
	asm_mov(e, H_DELTA, H_ADDR);
	asm_shift_imm(e, SH_SHR, 8, H_DELTA, PAGE_SHIFT - 4);
	asm_alu_imm(e, ALU_AND, 4, H_DELTA, (ITLB_ENTRIES - 1) << 4);
	asm_rm(e, 0x3b, 8, H_ADDR, true, H_DELTA, table + (int32_t)offsetof(struct itlb_entry, page));
	struct cold *c = cold_add(t, COLD_UNLINKED, asm_jcc(e, CC_NE));
	c->link = link;
	if (asked)
		cold_also(t, c, asked);
	uint8_t *imm = mov_patchable(t, H_TMP, 0);
	asm_rm(e, 0x3b, 8, H_TMP, true, H_DELTA, table + (int32_t)offsetof(struct itlb_entry, code));
	cold_also(t, c, asm_jcc(e, CC_NE));
	asm_store_gs(e, 8, H_ADDR, VCPU_OFF(vpage));
	uint8_t *rel32 = asm_jmp_patchable(e);
	link_place(t, link, rel32, imm);
	cold_also(t, c, rel32);
	t->ended = true;
}

static void jump_far(struct trans *t, int64_t target, uint32_t key, int32_t undo)
{
	if (!t->window)
		flags_clobber(t);
	if (t->window && !key_windowed(key)) { /* STAC at the end of a page */
		far_address(t, target);
		call_helper(t, HELPER_JUMP, JUMP_ARG(t->off, undo));
		t->ended = true;
		return;
	}
	if (t->mode == MODE_64 && !t->shadow && !t->eng->no_link) {
		if (t->window)
			quick_far(t, target, undo);
		else
			jump_linked(t, target, key, undo);
		return;
	}
	far_address(t, target);
	jump_indirect(t, key, undo);
}

void cold_emit_far(struct trans *t, const struct cold *c)
{
	t->flags = c->flags;
	t->off = c->off;
	jump_far(t, c->target, next_key(t), 0);
}

static void jump_pushed(struct trans *t, int64_t target, uint32_t key, int32_t undo)
{
	if (!in_page(target) || t->shadow) {
		jump_far(t, target, key, undo);
		return;
	}
	link_add(t, asm_jmp_patchable(&t->e), target, key);
	t->ended = true;
}

void jump_to(struct trans *t, int64_t target, uint32_t key)
{
	jump_pushed(t, target, key, 0);
}

/* A conditional jump whose rel32 at `from` has been emitted, taken to `target`. */
static void taken(struct trans *t, uint8_t *from, int64_t target)
{
	if (in_page(target))
		link_add(t, from, target, next_key(t));
	else
		cold_add(t, COLD_FAR, from)->target = target;
}

/* The same, and else on to the next instruction. */
static void conditional(struct trans *t, uint8_t *from, int64_t target)
{
	taken(t, from, target);
	jump_to(t, t->next, next_key(t));
}

/* Offset from the page's start of a relative branch's target; in legacy modes the instruction pointer wraps at 32 bits.
 */
static int64_t branch_target(const struct trans *t, const struct x86_insn *insn)
{
	return (int64_t)t->next + (int64_t)insn->imm;
}

/* The block does go on behind it. */
static bool in_the_middle(const struct trans *t, const struct x86_insn *insn)
{
	return insn + 1 < t->insns + t->count;
}

static void trans_jcc(struct trans *t, const struct x86_insn *insn)
{
	int64_t target = branch_target(t, insn);
	enum cc cc = (enum cc)(insn->opcode & 15);
	if (in_the_middle(t, insn)) {
		bool turns = branch_turns(insn); /* the next turn follows */
		taken(t, flags_jcc(t, turns ? (enum cc)(cc ^ 1) : cc), turns ? t->next : target);
		return;
	}
	poll_backward(t, target);
	enum flags_at polled = t->flags;
	uint8_t *from = flags_jcc(t, cc);
	conditional(t, from, target);
	quiet_poll_land(t, polled);
}

static void trans_jrcxz(struct trans *t, const struct x86_insn *insn)
{
	int64_t target = branch_target(t, insn);
	if (target <= t->off) {
		flags_clobber(t);
		poll_flagged(t, t->off);
	}
	uint8_t *zero = asm_jrcxz(&t->e);
	emit8(&t->e, 0xeb); /* jmp over the next */
	uint8_t *skip = t->e.p;
	emit8(&t->e, 0);
	asm_patch8(zero, t->e.p);
	uint8_t *from = asm_jmp_patchable(&t->e);
	asm_patch8(skip, t->e.p);
	conditional(t, from, target);
}

/* Not to another page: that may be nowhere, and then RCX must not have been counted down. */
static bool trans_loop(struct trans *t, const struct x86_insn *insn)
{
	int64_t target = branch_target(t, insn);
	if (insn->mnemonic != ZYDIS_MNEMONIC_LOOP || insn->addrsize != 8 || insn->opsize != stack_bytes(t) ||
	    target == t->off || !in_page(target) || !in_page(t->next))
		return false;
	if (target <= t->off) {
		flags_clobber(t);
		poll_flagged(t, t->off);
	}
	asm_lea(&t->e, 8, RCX, RCX, -1, 1, -1);
	uint8_t *zero = asm_jrcxz(&t->e);
	uint8_t *from = asm_jmp_patchable(&t->e);
	asm_patch8(zero, t->e.p);
	conditional(t, from, target);
	return true;
}

/* rsp += by, and the high half clear outside 64-bit mode. */
static void move_stack(struct trans *t, int32_t by)
{
	asm_lea(&t->e, stack_bytes(t) == 8 ? 8 : 4, RSP, RSP, -1, 1, by);
}

void trans_push_return(struct trans *t)
{
	int32_t n = (int32_t)stack_bytes(t);
	struct host_mem m = mem_stack(t, -n, true, 0);
	unsigned back = regs_scratch(t, 0);
	mem_page_address(t, back, t->next);
	mem_op(t, 0x89, (unsigned)n, back, &m);
	move_stack(t, -n);
	if (m.index >= 0)
		regs_release(t, (unsigned)m.index);
	return_leave(t, back);
}

static void trans_call_direct(struct trans *t, const struct x86_insn *insn)
{
	int64_t target = branch_target(t, insn);
	if (in_page(target) && target <= t->off && !t->shadow) {
		flags_clobber(t);
		poll_flagged(t, t->off);
	}
	trans_push_return(t);
	regs_flush(t);
	jump_pushed(t, target, next_key(t), -(int32_t)stack_bytes(t));
}

/* The operand of an indirect CALL or JMP, in `reg` of the host or a scratch one. Memory: in H_TMP. */
static unsigned branch_operand(struct trans *t, const struct x86_insn *insn)
{
	if (!(insn->flags & INSN_MEM)) {
		regs_fixed(t);
		return guest_reg(t, insn->rm, H_TMP);
	}
	struct host_mem m = mem_operand(t, insn);
	mem_op(t, 0x8b, stack_bytes(t), H_TMP, &m);
	return H_TMP;
}

/* The same in H_ADDR; H_DELTA and H_TMP are free. */
static void branch_address(struct trans *t, const struct x86_insn *insn)
{
	unsigned operand = branch_operand(t, insn);
	regs_fixed(t);
	asm_rr(&t->e, 0x8b, stack_bytes(t), H_ADDR, operand);
}

static void trans_jmp_indirect(struct trans *t, const struct x86_insn *insn)
{
	branch_address(t, insn);
	jump_indirect(t, next_key(t), 0);
}

/* A call to an address that is not canonical faults before it pushes anything: the slow path's. Flags must be saved.
 * Uses H_DELTA. */
static void check_canonical(struct trans *t, unsigned reg)
{
	ENSURE(t->flags == FLAGS_SAVED);
	asm_mov(&t->e, H_DELTA, reg);
	asm_shift_imm(&t->e, SH_SAR, 8, H_DELTA, 47); /* 0 or -1 */
	asm_alu_imm(&t->e, ALU_ADD, 8, H_DELTA, 1);
	asm_alu_imm(&t->e, ALU_CMP, 8, H_DELTA, 1);
	cold_add(t, COLD_STEP, asm_jcc(&t->e, CC_A));
}

static void trans_call_indirect(struct trans *t, const struct x86_insn *insn)
{
	if (t->window) {
		branch_address(t, insn);
		quick_call(t);
		return;
	}
	flags_clobber(t); /* now: it uses H_TMP, where the target may be */
	unsigned target = branch_operand(t, insn);
	if (t->mode == MODE_64)
		check_canonical(t, target);
	asm_store_gs(&t->e, 8, target, VCPU_OFF(temp));
	regs_flush(t);
	trans_push_return(t);
	regs_fixed(t);
	asm_load_gs(&t->e, stack_bytes(t), H_ADDR, VCPU_OFF(temp));
	jump_indirect(t, next_key(t), (int32_t) - (int)stack_bytes(t));
}

static void trans_ret(struct trans *t, const struct x86_insn *insn)
{
	int32_t by = (int32_t)stack_bytes(t) + (insn->imm_len ? (uint16_t)insn->imm : 0);
	struct host_mem m = mem_stack(t, 0, false, 0);
	regs_fixed(t);
	mem_op(t, 0x8b, stack_bytes(t), H_ADDR, &m);
	if (return_known(t) && !t->shadow) {
		return_jump(t, by);
		return;
	}
	move_stack(t, by);
	jump_indirect(t, next_key(t), by);
}

/*
 * Behind STI, interrupts wait until the branch is through: it must go by a jump that polls after all else, as
 * jump_indirect does.
 */
static bool begin_shadowed(struct trans *t, const struct x86_insn *insn)
{
	if (insn->mnemonic != ZYDIS_MNEMONIC_JMP && insn->mnemonic != ZYDIS_MNEMONIC_CALL &&
	    insn->mnemonic != ZYDIS_MNEMONIC_RET)
		return false;
	asm_store_gs_imm(&t->e, 1, VCPU_OFF(cpu.shadow), 0);
	return true;
}

bool trans_branch(struct trans *t, const struct x86_insn *insn)
{
	bool wide = insn->opsize == stack_bytes(t);
	if (in_the_middle(t, insn) || insn->gpr_write & 1u << RSP) /* which may go by a slot of the stack's */
		regs_store(t);
	else
		regs_flush(t);
	if (!(insn->gpr_write & 1u << RSP))
		window_stack_settle(t);
	if (t->shadow && (!wide || !begin_shadowed(t, insn)))
		return false;
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
		if (!wide)
			return false;
		if (insn->flags & INSN_MODRM)
			return trans_jmp_indirect(t, insn), true;
		poll_backward(t, branch_target(t, insn));
		enum flags_at polled = t->flags;
		jump_to(t, branch_target(t, insn), next_key(t));
		quiet_poll_land(t, polled);
		return true;
	case ZYDIS_MNEMONIC_CALL:
		if (!wide)
			return false;
		if (insn->flags & INSN_MODRM)
			trans_call_indirect(t, insn);
		else
			trans_call_direct(t, insn);
		return true;
	case ZYDIS_MNEMONIC_RET:
		return wide ? trans_ret(t, insn), true : false;
	case ZYDIS_MNEMONIC_JRCXZ:
		return wide && branch_target(t, insn) != t->off ? trans_jrcxz(t, insn), true : false;
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JCXZ:
		return trans_loop(t, insn);
	default:
		return wide ? trans_jcc(t, insn), true : false;
	}
}

/* What is pushed, in a register: a guest's own where that can stay, else a scratch one. */
static unsigned push_source(struct trans *t, const struct x86_insn *insn, unsigned scratch)
{
	if (insn->flags & INSN_MEM)
		asm_load_gs(&t->e, 8, scratch, VCPU_OFF(temp));
	else if (insn->flags & (INSN_OPREG_GPR | INSN_RM_GPR))
		return guest_reg(t, x86_stack_register(insn), scratch);
	else
		asm_mov_imm(&t->e, scratch, zext(insn->imm, stack_bytes(t)));
	return scratch;
}

static void trans_push(struct trans *t, const struct x86_insn *insn)
{
	int32_t n = (int32_t)stack_bytes(t);
	bool cached = t->window && (insn->flags & (INSN_OPREG_GPR | INSN_RM_GPR));
	unsigned reg = x86_stack_register(insn);
	if (insn->flags & INSN_MEM) {
		asm_store_gs(&t->e, 8, branch_operand(t, insn), VCPU_OFF(temp));
		regs_flush(t);
	}
	if (cached)
		regs_use(t, reg);
	struct host_mem m = mem_stack(t, -n, true, 0);
	if (!cached)
		reg = push_source(t, insn, regs_scratch(t, 0));
	mem_op(t, 0x89, (unsigned)n, reg, &m);
	move_stack(t, -n);
}

static void trans_pop(struct trans *t, unsigned reg)
{
	unsigned n = stack_bytes(t);
	struct host_mem m = mem_stack(t, 0, false, regs_mask(1u << reg));
	if (!t->window && spilled(reg)) {
		mem_op(t, 0x8b, n, H_TMP, &m);
		move_stack(t, (int32_t)n);
		asm_store_gs(&t->e, 8, H_TMP, (int32_t)reg * 8);
		return;
	}
	mem_op(t, 0x8b, n, regs_define(t, reg), &m);
	if (reg != RSP)
		move_stack(t, (int32_t)n);
	else if (t->window)
		window_stack_moved(t);
	regs_written(t, 1u << reg);
}

static void trans_leave(struct trans *t)
{
	unsigned n = stack_bytes(t);
	regs_fixed(t);
	if (!t->window)
		flags_clobber(t);
	asm_rr(&t->e, 0x8b, n, H_ADDR, RBP);
	struct host_mem m = mem_check(t, n, false);
	mem_op(t, 0x8b, n, H_TMP, &m);
	asm_lea(&t->e, n, RSP, RBP, -1, 1, (int32_t)n);
	asm_mov(&t->e, RBP, H_TMP);
	if (t->window)
		window_stack_moved(t);
}

bool trans_stack(struct trans *t, const struct x86_insn *insn)
{
	if (insn->opsize != stack_bytes(t))
		return false;
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		trans_push(t, insn);
		return true;
	case ZYDIS_MNEMONIC_POP:
		if (insn->flags & INSN_MEM)
			return false;
		trans_pop(t, x86_stack_register(insn));
		return true;
	case ZYDIS_MNEMONIC_LEAVE:
		trans_leave(t);
		return true;
	default:
		return false;
	}
}
