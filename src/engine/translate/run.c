/* The run loop: between translated code, the translator, the slow path and the monitor. */
#include "engine/translate/run.h"

#include "engine/translate/asm.h"
#include "engine/translate/light.h"
#include "engine/translate/step.h"
#include "engine/translate/thunk.h"

/* Stores into translated code that helpers noted while it ran. */
static void settle_writes(struct tr_vcpu *v)
{
	for (unsigned i = 0; i < v->wrote_count; i++) {
		code_written(v->engine, v, v->wrote[i].gpa, v->wrote[i].len);
		v->wrote[i].len = 0;
	}
	v->wrote_count = 0;
}

static void settle_given_up(struct tr_vcpu *v)
{
	if (likely(!v->give_up))
		return;
	v->give_up = false;
	v->windows.impatience = 0;
	code_by_tlb(v->engine, v, v->gave_up, v->gave_up_count);
	v->gave_up_count = 0;
}

/* Delivers cpu->exc. False: the monitor is needed. */
static bool deliver(struct tr_vcpu *v)
{
	count_fault(v);
	return x86_deliver_exception(&v->cpu) != V_EXIT;
}

/* One instruction the slow way. False: the monitor is needed. */
static bool run_step(struct tr_vcpu *v)
{
	v->noshare = false;
	enum verdict r = step(v);
	if (r == V_INJECT)
		return deliver(v);
	return r != V_EXIT;
}

/* The RAM page after `linear`'s, where an instruction at `linear` may reach into it and it is there. */
static uint64_t tail_page(struct tr_vcpu *v, uint64_t linear)
{
	struct x86_cpu *cpu = &v->cpu;
	struct x86_mapping m;
	if ((linear & ~PAGE_MASK) <= PAGE_SIZE - X86_INSN_MAX)
		return CODE_NO_TAIL;
	linear = (linear & PAGE_MASK) + PAGE_SIZE;
	if (!x86_canonical(linear) || mmu_translate(cpu, linear, ACC_EXEC | x86_access_mode(cpu), &m) != V_DONE ||
	    !guest_memory_ptr(v->engine->mem, m.gpa, 1, false))
		return CODE_NO_TAIL;
	return m.gpa & PAGE_MASK;
}

/* Makes the block at cpu->rip, or, where there can be none, runs one instruction. False: the monitor is needed. */
static bool run_lookup(struct tr_vcpu *v)
{
	struct x86_cpu *cpu = &v->cpu;
	struct x86_mapping m;
	uint64_t linear = linear_rip(cpu);
	if ((v->key & KEY_SLOW) || cpu->shadow || !x86_canonical(linear))
		return run_step(v);
	if (mmu_translate(cpu, linear, ACC_EXEC | x86_access_mode(cpu), &m) != V_DONE)
		return deliver(v);
	if (!guest_memory_ptr(v->engine->mem, m.gpa, 1, false))
		return run_step(v);
	code_get(v, m.gpa & PAGE_MASK, tail_page(v, linear), m.gpa & ~PAGE_MASK,
		 v->key | (v->noshare ? KEY_NOSHARE : 0));
	return true;
}

/* Still in code, so that no block goes away: links the jump just taken if its target is there. */
static void try_link(struct tr_vcpu *v, struct tr_link *link)
{
	const struct tr_engine *eng = v->engine;
	const struct block *from = block_of(eng, link->from);
	if (!from->page)
		return; /* it is dead */
	/* Whatever page is found for a far one will do: the jump compares. */
	struct code_page *page = link->imm_back ? light_page_of(v, linear_rip(&v->cpu)) : page_of(eng, from->page);
	struct block *to = block_find(eng, page, link->off, link->key);
	if (to)
		code_link(v->engine, link, to);
}

static void enter(struct tr_vcpu *v, uint64_t pc)
{
	struct x86_cpu *cpu = &v->cpu;
	flags_from_cpu(v);
	uint64_t t0 = __builtin_ia32_rdtsc();
	v->engine->enter(v, (const uint8_t *)(uintptr_t)pc);
	v->tsc_translated += __builtin_ia32_rdtsc() - t0;
	xstate_scrub(v->engine, cpu->xsave);
	if (v->rip_off != RIP_KNOWN)
		set_rip(v, (uint16_t)v->rip_off);
	flags_to_cpu(v);
	cpu->rflags |= FL_FIXED1;
}

/* Runs translated code if there is any for cpu->rip. False: the monitor is needed. */
static bool run_some(struct tr_vcpu *v)
{
	struct tr_link *link = v->want_link;
	v->want_link = NULL;
	vcpu_code_enter(v);
	if (link && v->link_flushes == v->engine->stats.flushes)
		try_link(v, link);
	uint64_t pc = light_lookup(v);
	if (!pc) {
		light_page_forget(v, linear_rip(&v->cpu));
		vcpu_code_leave(v);
		return run_lookup(v);
	}
	enter(v, pc);
	enum tr_exit code = v->exit_code;
	if (code == TRX_LINK) {
		link = link_of(v->engine, (uint32_t)v->exit_arg);
		v->link_flushes = v->engine->stats.flushes;
		v->want_link = link;
		try_link(v, link);
	}
	vcpu_code_leave(v);
	settle_writes(v);
	settle_given_up(v);
	return code == TRX_STEP ? run_step(v) : code != TRX_EXIT;
}

/* User code by itself, and then the instruction that it stopped at. False: the monitor is needed. */
static bool run_direct(struct tr_vcpu *v)
{
	switch (direct_run(v)) {
	case DIRECT_STEP: {
		bool on = run_step(v);
		if (v->direct.soon)
			direct_burst_begin(v);
		return on;
	}
	case DIRECT_RAISE:
		return deliver(v);
	default:
		return true;
	}
}

/* The answer to a read has come: the instruction runs again and finds it. */
static bool answered(const struct x86_cpu *cpu)
{
	return cpu->exit.completed && !cpu->exit.write && cpu->exit.kind != EXIT_NONE;
}

static enum x86_exit_kind interrupted(struct tr_vcpu *v)
{
	poll_clear(v);
	v->noshare = false;
	window_sample(v);
	direct_sample(v);
	direct_burst_look(v);
	v->cpu.exit = (struct x86_exit){.kind = EXIT_INTERRUPTED};
	return EXIT_INTERRUPTED;
}

enum x86_exit_kind run(struct tr_vcpu *v)
{
	struct x86_cpu *cpu = &v->cpu;
	enum verdict r = x86_resume(cpu);
	if (r == V_DONE)
		r = step_trap_due(v);
	if (r == V_EXIT || (r == V_INJECT && !deliver(v)))
		return cpu->exit.kind;
	bool must_step = answered(cpu);
	for (;;) {
		tlb_mode_changed(cpu);
		if (!must_step && (poll_wanted(v) || (window_open(v) && !cpu->shadow)))
			return interrupted(v);
		if (unlikely(v->direct.due && !v->windows.now->apart))
			direct_eagerly(v);
		bool on = must_step ? run_step(v) : v->direct.due ? run_direct(v) : run_some(v);
		settle_writes(v);
		must_step = false;
		if (!on) {
			if (cpu->exit.kind == EXIT_HLT)
				direct_rest(v);
			v->stats.exits[cpu->exit.kind]++;
			tlb_mode_changed(cpu);
			return cpu->exit.kind;
		}
	}
}

/* The way out of translated code, with a stack pointer that any host takes back from a handler: the guest's may not be
 * canonical. */
static void leave_from(struct tr_vcpu *v, struct host_fault_context *ctx, unsigned dirty)
{
	for (unsigned r = 0; r < X86_GPRS; r++)
		if (glue_in_host(r) || dirty & 1u << r)
			v->cpu.gpr[r] = ctx->gpr[r];
	ctx->gpr[RSP] = v->host_rsp;
	ctx->rip = (uint64_t)(uintptr_t)v->engine->glue_exit_stored;
}

bool run_claim_fault(struct host_fault_context *ctx)
{
	struct tr_vcpu *v = tr_current;
	const uint8_t *pc = (const uint8_t *)(uintptr_t)ctx->rip;
	if (thunk_claim_fault(ctx))
		return true;
	if (!v || !atomic_load(&v->in_code) || ctx->fault == HOST_FAULT_BUS)
		return false;
	unsigned part;
	struct block *b = code_find_host(v->engine, pc, &part);
	if (!b)
		return false;
	struct insn_map m =
		insn_map_find(record(v->engine, b->map), part, (uint16_t)(pc - block_part(v->engine, b, part)));
	if (ctx->fault == HOST_FAULT_MEMORY) {
		if (!key_windowed(b->key))
			return false;
		bool kernel = key_ring0(b->key), again = window_fault(v, kernel, ctx->address, ctx->write);
		bool leave = window_gives_up(v, kernel, page_of(v->engine, b->page)->gpa + m.off);
		/* Code that faults all the time meets no other poll: whoever asks for attention gets it here. */
		if (again && !leave && !poll_wanted(v) && x86_canonical(ctx->gpr[RSP]))
			return true;
	}
	if (m.flags_in_host)
		v->saved_flags = (uint16_t)((ctx->rflags & 0xd5) << 8 | (ctx->rflags >> 11 & 1));
	if (key_windowed(b->key))
		v->vpage = v->place[page_of(v->engine, b->page)->slot][key_ring0(b->key)].linear;
	v->rip_off = m.off;
	v->exit_code = TRX_STEP;
	if (m.moved & MOVED_RSI)
		ctx->gpr[RSI] -= ctx->gpr[H_ADDR];
	if (m.moved & MOVED_RDI)
		ctx->gpr[RDI] -= ctx->gpr[H_DELTA];
	if (m.lent)
		ctx->gpr[m.lent & 15] = ctx->gpr[m.lent >> 4];
	leave_from(v, ctx, (unsigned)m.dirty << R9);
	return true;
}
