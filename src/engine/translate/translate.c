/* Making a block: decode, choose for each instruction, copy or rewrite it, and lay the cold code out behind. */
#include "engine/translate/step.h"
#include "engine/translate/trans.h"

/* True for the instructions after which no other of this block can run. */
static bool ends(const struct x86_insn *insn)
{
	switch (insn->cls) {
	case CLS_BRANCH:
	case CLS_INVALID:
	case CLS_TOOLONG:
	case CLS_PARTIAL:
		return true;
	default:
		return false;
	}
}

/* The one instruction at `off`, which reaches into the next page. */
static unsigned decode_crossing(struct trans *t, const struct code_source *src, uint16_t off)
{
	uint8_t bytes[2 * 15];
	unsigned head = (unsigned)(PAGE_SIZE - off);
	if (!src->tail)
		return 1;
	memcpy(bytes, src->bytes + off, head);
	memcpy(bytes + head, src->tail_bytes, 15);
	step_decode(t->v, &t->insns[0], bytes, 15, t->mode);
	if (t->insns[0].len <= head)
		return 1;
	t->tail = src->tail;
	struct block_tail *tail = code_new(t->eng, struct block_tail);
	*tail = (struct block_tail){.block = record_at(t->eng, t->b), .page = record_at(t->eng, src->tail)};
	tail->len = (uint8_t)(t->insns[0].len - head);
	t->b->tail = record_at(t->eng, tail);
	return 1;
}

/* Its pages are seldom shown long enough (window_gives_up). */
static bool goes_by_tlb(const struct trans *t, const struct code_page *page, unsigned off)
{
	if (t->eng->mixed_window)
		return off & 1;
	return page->by_tlb && page->by_tlb[off / 64] & BIT(off % 64);
}

#define BRANCHES_MAX 5 /* that a block goes on behind */

/*
 * Instructions from `off` to the first that surely ends the block. User code that runs long enough to have windows goes
 * on behind conditional jumps: it is worth its translation, and what registers hold stays known. One that crosses into
 * the next page has a block to itself, because that page's mapping has to be checked each time.
 */
static unsigned decode_block(struct trans *t, const struct code_source *src, uint16_t off)
{
	const uint8_t *bytes = src->bytes;
	unsigned n = 0, branches = t->window && !t->eng->no_link && !t->eng->no_trace ? 0 : BRANCHES_MAX;
	while (n < BLOCK_INSNS && off < PAGE_SIZE) {
		struct x86_insn *insn = &t->insns[n++];
		step_decode(t->v, insn, bytes + off, PAGE_SIZE - off, t->mode);
		t->by_tlb[n - 1] = t->window && goes_by_tlb(t, src->page, off);
		if (insn->cls == CLS_PARTIAL)
			return n > 1 ? n - 1 : decode_crossing(t, src, off);
		if (ends(insn) && !(branches < BRANCHES_MAX && branch_goes_on(insn) && insn->mode == MODE_64))
			break;
		branches += insn->cls == CLS_BRANCH;
		off += insn->len;
	}
	return n;
}

static bool gated(const struct trans *t, const struct x86_insn *insn)
{
	return ((insn->flags & INSN_FPU) && (t->key & KEY_NO_FPU)) ||
	       ((insn->flags & INSN_SSE) && (t->key & KEY_NO_SSE)) ||
	       ((insn->flags & INSN_AVX) && (t->key & KEY_NO_AVX));
}

/* A write through CS, outside 64-bit mode: never allowed. */
static bool writes_code_segment(const struct trans *t, const struct x86_insn *insn)
{
	return t->mode != MODE_64 && (insn->flags & INSN_MEM) && insn->seg == SEG_CS && insn->mem_write;
}

/* A hint, which has no effect on what the guest can see. */
static bool is_prefetch(const struct x86_insn *insn)
{
	return insn->mnemonic == ZYDIS_MNEMONIC_PREFETCH || insn->mnemonic == ZYDIS_MNEMONIC_PREFETCHW ||
	       insn->mnemonic == ZYDIS_MNEMONIC_PREFETCHWT1 || insn->mnemonic == ZYDIS_MNEMONIC_PREFETCHNTA ||
	       insn->mnemonic == ZYDIS_MNEMONIC_PREFETCHT0 || insn->mnemonic == ZYDIS_MNEMONIC_PREFETCHT1 ||
	       insn->mnemonic == ZYDIS_MNEMONIC_PREFETCHT2;
}

static void trans_insn(struct trans *t, const struct x86_insn *insn)
{
	if (t->eng->step_only || gated(t, insn) || writes_code_segment(t, insn)) {
		trans_step(t);
		return;
	}
	switch (insn->cls) {
	case CLS_PLAIN:
		trans_plain(t, insn);
		return;
	case CLS_BRANCH:
		if (!trans_branch(t, insn))
			trans_step(t);
		return;
	case CLS_STACK:
		if (!trans_stack(t, insn))
			trans_step(t);
		return;
	case CLS_SYSTEM:
		if (!trans_inline(t, insn))
			trans_call(t, insn);
		return;
	case CLS_STRING:
		if (!t->window || here_by_tlb(t) || !window_string(t, insn))
			trans_call(t, insn);
		return;
	case CLS_SPECIAL:
		if (is_prefetch(insn))
			return;
		if ((insn->flags & INSN_BITOFF) && trans_bit_string(t, insn))
			return;
		if (step_is_general(insn) || light_xstate_knows(insn)) {
			trans_call(t, insn);
			return;
		}
		break;
	default:
		break;
	}
	trans_step(t);
}

/* Interrupts held off by the last instruction may come after this one. */
static void end_shadow(struct trans *t)
{
	regs_flush(t);
	flags_clobber(t);
	asm_store_gs_imm(&t->e, 1, VCPU_OFF(cpu.shadow), 0);
	if (!t->ended)
		poll_flagged(t, t->next);
}

/* Before an instruction that crosses a page: is the next linear page still the one that it was translated from? */
static void check_tail(struct trans *t)
{
	struct emit *e = &t->e;
	int32_t table = VCPU_OFF(itlb) + (int32_t)(t->mmu * sizeof(struct itlb_entry[ITLB_ENTRIES]));
	flags_clobber(t);
	mem_page_address(t, H_ADDR, PAGE_SIZE);
	if (t->mode != MODE_64)
		asm_rr(e, 0x8b, 4, H_ADDR, H_ADDR);
	asm_mov(e, H_DELTA, H_ADDR);
	asm_shift_imm(e, SH_SHR, 8, H_DELTA, PAGE_SHIFT - 4);
	asm_alu_imm(e, ALU_AND, 4, H_DELTA, (ITLB_ENTRIES - 1) << 4);
	asm_rm(e, 0x3b, 8, H_ADDR, true, H_DELTA, table + (int32_t)offsetof(struct itlb_entry, page));
	struct cold *c[2];
	c[0] = cold_add(t, COLD_TAIL, asm_jcc(e, CC_NE));
	asm_mov_imm(e, H_TMP, (uint64_t)(uintptr_t)t->tail);
	asm_rm(e, 0x3b, 8, H_TMP, true, H_DELTA, table + (int32_t)offsetof(struct itlb_entry, code));
	c[1] = cold_add(t, COLD_TAIL, asm_jcc(e, CC_NE));
	c[0]->resume = c[1]->resume = e->p;
}
_Static_assert(sizeof(struct itlb_entry) == 16, "check_tail's shift by 4");

/* What the switches say must not be kept from one instruction to the next. */
static void carry_less(struct trans *t)
{
	if (t->eng->no_carry)
		regs_flush(t);
	if (t->eng->no_lazy_flags)
		flags_clobber(t);
}

static void emit_insns(struct trans *t, unsigned n)
{
	uint16_t off = t->b->off, end = off;
	for (unsigned i = 0; i < n && !t->ended; i++) {
		const struct x86_insn *insn = &t->insns[i];
		bool shadow = t->shadow;
		t->insn = insn;
		t->sharing = &t->share[i];
		t->off = off;
		t->next = (uint16_t)(off + insn->len);
		t->regs.pinned = 0;
		map_here(t);
		carry_less(t);
		if (t->tail)
			check_tail(t);
		trans_insn(t, insn);
		if (shadow && !t->ended)
			end_shadow(t);
		if (shadow)
			t->shadow = false;
		end = MAX(end, t->next);
		off = branch_turns(insn) && i + 1 < n ? t->b->off : t->next;
	}
	t->b->len = (uint16_t)((end < PAGE_SIZE ? end : PAGE_SIZE) - t->b->off);
	if (t->ended)
		return;
	window_stack_settle(t);
	regs_flush(t);
	if (t->shadow) { /* the run loop steps the next instruction */
		flags_clobber(t);
		exit_code(t, TRX_LOOKUP, off);
	} else {
		t->off = off;
		jump_to(t, off, next_key(t));
	}
}

static void cold_miss(struct trans *t, const struct cold *c)
{
	asm_patch32(asm_lea_rip(&t->e, R9), c->resume);
	quick_tell_page(t);
	asm_mov_imm(&t->e, R11, c->arg);
	jmp_glue(t, t->eng->glue_miss);
}

static void cold_link(struct trans *t, const struct cold *c)
{
	c->link->stub = (uint16_t)(t->e.p - t->start);
	call_helper(t, HELPER_LINK, record_at(t->eng, c->link));
}

static void cold_poll(struct trans *t, const struct cold *c)
{
	exit_code(t, TRX_POLL, c->off);
}

static void cold_tail(struct trans *t, const struct cold *c)
{
	struct call_tail *call = code_new(t->eng, struct call_tail);
	*call = (struct call_tail){
		.tail = record_at(t->eng, t->tail), .resume = code_at(t->eng, c->resume), .off = c->off};
	call_helper(t, HELPER_TAIL, record_at(t->eng, call));
}

static void cold_share(struct trans *t, const struct cold *c)
{
	struct call_share *call = code_new(t->eng, struct call_share);
	*call = (struct call_share){.retry = code_at(t->eng, c->resume), .off = c->off, .base = c->base};
	call->lo = c->share->lo;
	call->span = (uint16_t)(c->share->hi - c->share->lo);
	call->own = (uint16_t)(c->share->own - c->share->lo);
	call->write = c->share->write;
	call->own_write = c->share->own_write;
	call->slow = c->slow;
	call_helper(t, HELPER_SHARE, record_at(t->eng, call));
}

static void cold_step(struct trans *t, const struct cold *c)
{
	if (c->rdx_in_delta)
		asm_mov(&t->e, RDX, H_DELTA);
	exit_code(t, TRX_STEP, c->off);
}

/* The monitor waits for interrupts to be enabled. */
static void cold_window(struct trans *t, const struct cold *c)
{
	asm_store_gs_imm(&t->e, 8, VCPU_OFF(run_on), 0);
	asm_store_gs_imm(&t->e, 8, VCPU_OFF(return_mask), 0);
	asm_patch32(asm_jmp(&t->e), c->resume);
}

static void cold_entry(struct trans *t, const struct cold *c)
{
	t->b->entry_saved = code_at(t->eng, t->e.p);
	flags_resume(t, FLAGS_HOST, c->resume);
}

static void take_back_rcx(struct trans *t)
{
	quick_rcx_lent(t);
	regs_give_back(t, RCX, H_TMP);
}

static void emit_cold(struct trans *t)
{
	for (unsigned i = 0; i < t->colds; i++) {
		struct cold c = t->cold[i];
		for (unsigned k = 0; k < COLD_FROM && c.from[k]; k++)
			asm_patch32(c.from[k], t->e.p);
		t->off = c.off;
		t->flags = c.flags;
		regs_fixed(t);
		bool quick = c.rcx_in_tmp && (c.kind == COLD_JUMP || c.kind == COLD_CALL);
		uint8_t *found = quick ? quick_second(t) : NULL;
		if (c.rcx_in_tmp)
			take_back_rcx(t);
		map_here(t); /* a host that is virtualized in software may fault at any instruction */
		switch (c.kind) {
		case COLD_MISS:
			cold_miss(t, &c);
			break;
		case COLD_LINK:
			cold_link(t, &c);
			break;
		case COLD_POLL:
			cold_poll(t, &c);
			break;
		case COLD_TAIL:
			cold_tail(t, &c);
			break;
		case COLD_STEP:
			cold_step(t, &c);
			break;
		case COLD_WINDOW:
			cold_window(t, &c);
			break;
		case COLD_SHARE:
			cold_share(t, &c);
			break;
		case COLD_ENTRY:
			cold_entry(t, &c);
			break;
		case COLD_STRING:
			cold_emit_string(t, &c);
			break;
		case COLD_JUMP:
			cold_emit_jump(t, &c);
			break;
		case COLD_RETURN:
			quick_jump(t, (int32_t)c.target);
			break;
		case COLD_CALL:
			cold_emit_call(t, &c);
			break;
		case COLD_FAR:
			cold_emit_far(t, &c);
			break;
		case COLD_FAR_QUICK:
			cold_emit_far_quick(t, &c);
			break;
		case COLD_UNLINKED:
			call_helper(t, HELPER_FAR, record_at(t->eng, c.link));
			break;
		}
		if (found)
			quick_second_found(t, &c, found);
	}
}

/* A register instruction that may raise an exception, so that the flags must be known there. */
static bool may_fault(const struct x86_insn *insn)
{
	return (insn->flags & (INSN_FPU | INSN_SSE | INSN_AVX)) || insn->mnemonic == ZYDIS_MNEMONIC_DIV ||
	       insn->mnemonic == ZYDIS_MNEMONIC_IDIV;
}

/*
 * Where the flags should be when the block is entered: what its first instruction that cares wants. Of the two entries,
 * the other one moves the flags first. FLAGS_BOTH: they are overwritten before anything can see them, so either place
 * will do. Where nothing decides, it is where they likely are: jumps of code with windows leave them in the host's.
 */
static enum flags_at flags_wanted(const struct trans *t, unsigned n)
{
	if (t->tail)
		return FLAGS_SAVED;
	enum flags_at arrive = t->window ? FLAGS_HOST : FLAGS_SAVED;
	bool faults = false;
	for (unsigned i = 0; i < n; i++) {
		const struct x86_insn *insn = &t->insns[i];
		bool memory = insn->cls == CLS_STACK || (insn->flags & INSN_MEM);
		if (insn->cls == CLS_BRANCH)
			return insn->fl_read & FL_ARITH ? FLAGS_HOST : arrive;
		if ((insn->cls != CLS_PLAIN && insn->cls != CLS_STACK) || (!t->window && (memory || may_fault(insn))))
			return FLAGS_SAVED;
		faults |= memory || may_fault(insn); /* without destroying flags: they can be anywhere, but one place */
		if (flags_merge(insn))
			return FLAGS_HOST;
		if (insn->fl_write & FL_ARITH)
			return faults ? arrive : FLAGS_BOTH;
	}
	return arrive;
}

/* `saved`: NULL when it is in the cold code. */
static void set_entries(struct trans *t, const uint8_t *host, const uint8_t *saved)
{
	ENSURE(host - t->start <= UINT8_MAX);
	t->b->entry_host = (uint8_t)(host - t->start);
	t->b->entry_saved = saved ? code_at(t->eng, saved) : 0;
}

static void emit_entry(struct trans *t, enum flags_at wanted)
{
	const uint8_t *first = t->e.p;
	if (t->window && wanted == FLAGS_HOST) {
		t->flags = FLAGS_HOST;
		map_here(t);
		set_entries(t, first, NULL);
		cold_add(t, COLD_ENTRY, NULL)->resume = t->e.p;
		return;
	}
	t->flags = wanted == FLAGS_SAVED ? FLAGS_HOST : FLAGS_SAVED;
	map_here(t); /* the first fetch from a host page may fault as well, on a host that is virtualized in software */
	if (wanted == FLAGS_BOTH) {
		set_entries(t, first, first);
	} else if (wanted == FLAGS_HOST) {
		flags_need(t);
		t->flags = FLAGS_HOST;
		set_entries(t, t->e.p, first);
	} else {
		flags_save(t);
		t->flags = FLAGS_SAVED;
		set_entries(t, first, t->e.p);
	}
}

static void plan_sharing(struct trans *t, unsigned n)
{
	if (t->mode == MODE_64 && !(t->key & KEY_NOSHARE) && !t->eng->no_share) {
		share_plan(t->insns, n, t->window, t->by_tlb, t->share);
		return;
	}
	for (unsigned i = 0; i < n; i++)
		t->share[i] = (struct share_insn){.mem.slot = -1, .stack.slot = -1};
}

static void begin_part(struct trans *t, unsigned part)
{
	t->e = t->eng->emit[part];
	t->part = part;
	t->start = t->e.p;
	t->b->start[part] = code_at(t->eng, t->start);
	t->maps = 0;
}

static void finish_part(struct trans *t)
{
	ENSURE(!t->maps || t->map[0].host == 0);
	t->eng->emit[t->part].p = t->e.p;
	t->b->size[t->part] = (uint16_t)(t->e.p - t->start);
	t->packed_len += insn_map_pack(t->packed + t->packed_len, t->map, t->maps);
}

static void keep_map(struct trans *t)
{
	uint8_t *map = code_alloc(t->eng, t->packed_len, 1);
	memcpy(map, t->packed, t->packed_len);
	t->b->map = record_at(t->eng, map);
}

struct block *translate_block(struct tr_vcpu *v, const struct code_source *src, uint16_t off, uint32_t key)
{
	struct tr_engine *eng = v->engine;
	struct trans scratch,
		*t = &scratch; /* on the stack: what is in thread-local memory, each thread's start clears */
	struct block *b = code_alloc(eng, sizeof(*b), BLOCK_ALIGN);

	t->eng = eng;
	t->v = v;
	t->b = b;
	t->mode = (enum x86_mode)(key & KEY_MODE);
	t->mmu = key_mmu(key);
	t->window = key_windowed(key);
	t->kernel = key_ring0(key);
	t->key = key;
	t->shadow = t->ended = t->stack_moved = t->stack_sure = false;
	t->quiet_poll = NULL;
	t->lent = t->moved = 0;
	t->regs = (struct regs){0};
	t->off = off;
	t->colds = 0;
	t->tail = NULL;
	t->packed_len = 0;
	while ((uintptr_t)eng->emit[PART_HOT].p & 15)
		emit8(&eng->emit[PART_HOT], 0xcc);
	*b = (struct block){.page = record_at(eng, src->page), .key = (uint16_t)key, .off = off};
	begin_part(t, PART_HOT);
	unsigned n = t->count = loop_turns(t, decode_block(t, src, off));
	plan_sharing(t, n);
	emit_entry(t, flags_wanted(t, n));
	emit_insns(t, n);
	finish_part(t);
	begin_part(t, PART_COLD);
	emit_cold(t);
	finish_part(t);
	keep_map(t);
	return b;
}
