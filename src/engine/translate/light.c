/*
 * Helpers of translated code. They run on the host's stack with the guest's general registers stored in cpu.gpr and its
 * vector state still in the host's registers, which is why this file is compiled for general registers only.
 */
#include "engine/translate/light.h"

#include <Zydis/Mnemonic.h>

_Thread_local struct tr_vcpu *tr_current;

void light_code_written(void *engine, uint64_t gpa, uint64_t len)
{
	struct tr_engine *eng = engine;
	struct tr_vcpu *v = tr_current && tr_current->engine == eng ? tr_current : NULL;
	if (!v || (!atomic_load(&v->in_code) && !v->exclusive)) {
		code_written(eng, v, gpa, len);
		return;
	}
	unsigned n = v->wrote_count < ARRAY_LEN(v->wrote) ? v->wrote_count++ : ARRAY_LEN(v->wrote) - 1;
	if (v->wrote[n].len) { /* no room: one range that spans both */
		uint64_t end = MAX(gpa + len, v->wrote[n].gpa + v->wrote[n].len);
		gpa = MIN(gpa, v->wrote[n].gpa);
		len = end - gpa;
	}
	v->wrote[n].gpa = gpa;
	v->wrote[n].len = len;
}

uint64_t light_leave(struct tr_vcpu *v, enum tr_exit code)
{
	v->exit_code = code;
	v->rip_off = RIP_KNOWN;
	return (uint64_t)(uintptr_t)v->engine->glue_exit_stored;
}

/* Code of `page` is going to be executed at `linear`: what is known by its being elsewhere goes. */
static void execute_at(struct tr_vcpu *v, const struct code_page *page, uint64_t linear)
{
	bool kernel = key_mmu(v->key) != MMU_USER;
	if (quick_page_is_at(v, kernel, page, linear))
		return;
	jc_flush(v);
	quick_page_is_at(v, kernel, page, linear);
}

/* What translated code knows of where its page is has been flushed while it was away in a helper. */
static void page_refresh(struct tr_vcpu *v, const uint8_t *pc)
{
	unsigned part;
	const struct block *b = code_find_host(v->engine, pc, &part);
	execute_at(v, page_of(v->engine, b->page), v->vpage);
	v->quick_lost = false;
}

uint64_t light_resume(struct tr_vcpu *v, uint32_t at)
{
	v->stack_delta = v->window_delta[key_ring0(v->key)][region_of(v->cpu.gpr[RSP])];
	if (unlikely(v->quick_lost))
		page_refresh(v, host_at(v->engine, at));
	return (uint64_t)(uintptr_t)host_at(v->engine, at);
}

uint64_t light_go_on(struct tr_vcpu *v)
{
	if (v->wrote_count || poll_wanted(v) || v->direct.due)
		return light_leave(v, TRX_POLL);
	uint64_t pc = light_lookup(v);
	return pc ? pc : light_leave(v, TRX_LOOKUP);
}

/* Delivers cpu->exc; false when the monitor is needed (shutdown). */
static bool deliver(struct tr_vcpu *v)
{
	count_fault(v);
	enum verdict r = x86_deliver_exception(&v->cpu);
	tlb_mode_changed(&v->cpu);
	return r != V_EXIT;
}

/* RF matters to code breakpoints only; with none enabled it is as good as the one instruction old that it would live
 * to. */
static void clear_rf(struct x86_cpu *cpu)
{
	if (!(cpu->dr7 & 0xff))
		cpu->rflags &= ~(uint64_t)FL_RF;
}

/* Back to translated code after the processor's state has changed: flags to where translated code has them. */
static uint64_t resume_changed(struct tr_vcpu *v)
{
	clear_rf(&v->cpu);
	flags_from_cpu(v);
	tlb_mode_changed(&v->cpu);
	if (window_open(v))
		poll_set(v);
	return light_go_on(v);
}

static uint64_t exception(struct tr_vcpu *v)
{
	if (!deliver(v)) {
		flags_from_cpu(v);
		return light_leave(v, TRX_EXIT);
	}
	return resume_changed(v);
}

/* It does not change how code is to be run, or has said so itself, last of all (x86_cpu_ops.mode_changed). */
static bool has_told_mode(const struct x86_insn *insn)
{
	return insn->cls == CLS_STRING || insn->mnemonic == ZYDIS_MNEMONIC_SYSCALL ||
	       insn->mnemonic == ZYDIS_MNEMONIC_SYSRET || insn->mnemonic == ZYDIS_MNEMONIC_IRETQ;
}

/* On after the instruction at `call` has retired: in the same block if nothing has happened that translated code must
 * know. */
static uint64_t retired(struct tr_vcpu *v, const struct call_insn *call, uint64_t next, uint32_t key)
{
	clear_rf(&v->cpu);
	flags_from_cpu(v);
	if (!has_told_mode(&call->insn))
		tlb_mode_changed(&v->cpu);
	if (window_open(v))
		poll_set(v);
	bool attend =
		poll_wanted(v) && !v->cpu.shadow; /* behind a shadow, the block polls after the next instruction */
	if (call->resume && v->cpu.rip == next && v->key == key && !v->wrote_count && !attend)
		return light_resume(v, call->resume);
	return light_go_on(v);
}

/* The write that cpu->exit asks for has been done. */
static bool done_at_once(struct tr_vcpu *v)
{
	const struct x86_exit *exit = &v->cpu.exit;
	return v->engine->at_once && exit->write && (exit->kind == EXIT_MSR || exit->kind == EXIT_CR8) &&
	       light_call_out(v, at_once_exit);
}

static uint64_t carry_out(struct tr_vcpu *v, const struct call_insn *call,
			  enum verdict (*emulate)(struct x86_cpu *, const struct x86_insn *))
{
	struct x86_cpu *cpu = &v->cpu;
	uint32_t key = v->key;
	uint8_t shadow = cpu->shadow;

	v->stats.helper_calls++;
	cpu->mmio.count = cpu->mmio.next = 0;
	set_rip(v, call->off);
	flags_to_cpu(v);
	uint64_t next = cpu->rip + call->insn.len;
	switch (emulate(cpu, &call->insn)) {
	case V_INJECT:
		return exception(v);
	case V_EXIT:
		if (!done_at_once(v)) {
			flags_from_cpu(v);
			tlb_mode_changed(cpu);
			return light_leave(v, TRX_EXIT);
		}
		if (x86_resume(cpu) == V_INJECT) /* as after an exit */
			return exception(v);
		break;
	default:
		break;
	}
	if (shadow && cpu->shadow == shadow)
		cpu->shadow = 0;
	return retired(v, call, next, key);
}

uint64_t light_system(struct tr_vcpu *v, uint64_t at)
{
	const struct call_insn *call = record(v->engine, (uint32_t)at);
	v->direct.made_by_user.call_returns += call->insn.mnemonic == ZYDIS_MNEMONIC_SYSRET;
	if (call->insn.mnemonic == ZYDIS_MNEMONIC_SYSRET && (v->cpu.gpr[R11] & FL_TF)) {
		set_rip(v, call->off);
		return light_leave(v, TRX_STEP); /* which knows the trap that is due */
	}
	return carry_out(v, call, x86_emulate_system);
}

uint64_t light_general(struct tr_vcpu *v, uint64_t at)
{
	return carry_out(v, record(v->engine, (uint32_t)at), x86_emulate_general);
}

/* Puts the mapping of RAM page `host` into the TLB; true if a write may go through it. */
static bool tlb_fill(struct tr_vcpu *v, unsigned mmu, uint64_t va, const struct x86_mapping *m, uint8_t *host,
		     bool readonly)
{
	uint64_t page = va & PAGE_MASK, gpa = m->gpa & PAGE_MASK;
	struct tlb_entry *e = &v->tlb[mmu][(page >> PAGE_SHIFT) % TLB_ENTRIES];
	uint64_t meta = gpa | (m->page_shift > PAGE_SHIFT ? TLB_META_LARGE : 0) | (m->global ? TLB_META_GLOBAL : 0);

	guest_memory_touch(v->engine->mem, host);
	return tlb_entry_fill(v, e, page, (uint64_t)(uintptr_t)host - va, meta, m->writable && !readonly);
}

/* Fills by `m`; gives the host address of `va`, or NULL when that is not RAM, or not to be written to through the TLB.
 */
static uint8_t *fill_pointer(struct tr_vcpu *v, unsigned mmu, uint64_t va, const struct x86_mapping *m, bool write)
{
	const struct guest_range *r = guest_range_find(v->engine->mem, m->gpa, 1);
	if (!r)
		return NULL;
	uint8_t *host = r->host + (m->gpa - r->gpa);
	return tlb_fill(v, mmu, va, m, host, r->readonly) || !write ? host : NULL;
}

static void count_miss(struct tr_vcpu *v, bool write)
{
	v->stats.tlb_miss[(key_mmu(v->key) == MMU_USER ? TLB_MISS_USER_READ : TLB_MISS_KERNEL_READ) + write]++;
}

/* The host address of linear page `page` for an access, by its TLB entry; NULL: it has none. */
static uint8_t *page_hit(const struct tr_vcpu *v, unsigned mmu, uint64_t page, bool write)
{
	const struct tlb_entry *e = &v->tlb[mmu][(page >> PAGE_SHIFT) % TLB_ENTRIES];
	return (write ? e->tag_write : e->tag_read) == page ? (uint8_t *)(uintptr_t)(page + e->delta) : NULL;
}

/* The same, and the entry is made if need be; NULL when it takes more than that. `mmu` is that of `access`. */
static uint8_t *page_pointer(struct tr_vcpu *v, unsigned mmu, uint64_t page, unsigned access)
{
	bool write = access & ACC_WRITE;
	uint8_t *host = page_hit(v, mmu, page, write);
	if (host)
		return host;
	struct x86_mapping m;
	if (!x86_canonical(page) || mmu_translate(&v->cpu, page, access, &m) != V_DONE)
		return NULL;
	return fill_pointer(v, mmu, page, &m, write);
}

/* As the code that runs. */
static uint8_t *own_pointer(struct tr_vcpu *v, uint64_t page, bool write)
{
	return page_pointer(v, key_mmu(v->key), page, (write ? ACC_WRITE : ACC_READ) | x86_access_mode(&v->cpu));
}

static unsigned mmu_of(const struct x86_cpu *cpu, unsigned access)
{
	if (access & ACC_USER)
		return MMU_USER;
	return cpu->cr4 & CR4_SMAP && (access & ACC_IMPLICIT || !(cpu->rflags & FL_AC)) ? MMU_KERNEL : MMU_KERNEL_AC;
}

uint8_t *light_access(struct x86_cpu *cpu, uint64_t va, unsigned len, unsigned access)
{
	struct tr_vcpu *v = vcpu_of(cpu);
	uint64_t page = va & PAGE_MASK, offset = va - page;
	unsigned mmu = mmu_of(cpu, access);
	uint8_t *host;
	if (offset + len > PAGE_SIZE)
		return NULL;
	/* Out of it, a page may come to hold translated code between its write tag, looked at or made, and a store. */
	if (atomic_load(&v->in_code))
		host = page_pointer(v, mmu, page, access);
	else
		host = access & ACC_WRITE ? NULL : page_hit(v, mmu, page, false);
	return host ? host + offset : NULL;
}

/* An operand in two pages, which mostly are neighbours in host memory as well: then one delta does for both. */
static uint64_t miss_crossing(struct tr_vcpu *v, uint64_t va, uint32_t desc, uint64_t resume)
{
	bool write = desc & MISS_WRITE;
	uint64_t page = va & PAGE_MASK, next = page + PAGE_SIZE;
	const uint8_t *first = desc & MISS_SLOW ? NULL : page_hit(v, key_mmu(v->key), page, write);
	if ((v->key & KEY_MODE) != MODE_64)
		next = (uint32_t)next;
	/* In this order, so that no bit of the page tables changes if one of them faults. */
	if (!first || own_pointer(v, next, write) != first + PAGE_SIZE)
		return light_leave(v, TRX_STEP);
	v->tlb_delta = (uint64_t)(uintptr_t)first - page;
	return resume;
}

/* An access to what is no RAM. */
static uint64_t miss_device(struct tr_vcpu *v, const struct x86_mapping *m, uint32_t desc)
{
	bool store = (desc & (MISS_WRITE | MISS_SLOW)) == MISS_WRITE && MISS_SIZE(desc) == AT_ONCE_SIZE;
	if (!store || !v->engine->at_once || v->cpu.shadow || guest_range_find(v->engine->mem, m->gpa, 1))
		return light_leave(v, TRX_STEP);
	v->device = m->gpa;
	return light_call_out(v, at_once_store) ? light_go_on(v) : light_leave(v, TRX_STEP);
}

uint64_t light_miss(struct tr_vcpu *v, uint64_t va, uint32_t desc, uint64_t resume)
{
	struct x86_cpu *cpu = &v->cpu;
	struct x86_mapping m;
	unsigned access = (desc & MISS_WRITE ? ACC_WRITE : ACC_READ) | x86_access_mode(cpu);

	count_miss(v, desc & MISS_WRITE);
	set_rip(v, MISS_OFF(desc));
	if (!x86_canonical(va))
		return light_leave(v, TRX_STEP);
	if ((va & ~PAGE_MASK) + MISS_SIZE(desc) > PAGE_SIZE)
		return miss_crossing(v, va, desc, resume);
	if (mmu_translate(cpu, va, access, &m) != V_DONE) {
		if (desc & MISS_SLOW)
			return light_leave(v, TRX_STEP);
		flags_to_cpu(v);
		return exception(v);
	}
	const uint8_t *host = fill_pointer(v, key_mmu(v->key), va, &m, desc & MISS_WRITE);
	if (!host)
		return miss_device(v, &m, desc);
	v->tlb_delta = (uint64_t)(uintptr_t)host - va;
	return resume;
}

/* On with the variant of the block, from the instruction at cpu->rip, that checks each access by itself. */
static uint64_t go_unshared(struct tr_vcpu *v)
{
	v->noshare = true;
	return light_go_on(v);
}

uint64_t light_share(struct tr_vcpu *v, uint64_t at)
{
	const struct call_share *call = record(v->engine, (uint32_t)at);
	struct x86_cpu *cpu = &v->cpu;
	struct x86_mapping m;
	uint64_t base = cpu->gpr[call->base];
	uint64_t lo = base + (uint64_t)(int64_t)call->lo, page = lo & PAGE_MASK, va = lo + call->own;

	count_miss(v, call->write);
	set_rip(v, call->off);
	/* Only what the leader would do by itself may be done here: a later write must not set a dirty bit, or fault,
	 * early. */
	if (page != ((lo + call->span - 1) & PAGE_MASK) || !x86_canonical(page) || (call->write && !call->own_write))
		return go_unshared(v);
	unsigned access = (call->write ? ACC_WRITE : ACC_READ) | x86_access_mode(cpu);
	if (mmu_translate(cpu, va, access, &m) != V_DONE) {
		if (call->slow)
			return go_unshared(v);
		flags_to_cpu(v);
		return exception(v);
	}
	if (!fill_pointer(v, key_mmu(v->key), va, &m, call->write))
		return go_unshared(v);
	return light_resume(v, call->retry);
}

uint8_t *light_pointer(struct tr_vcpu *v, uint64_t va, unsigned len, bool write)
{
	uint64_t page = va & PAGE_MASK, last = (va + len - 1) & PAGE_MASK;
	uint8_t *p = own_pointer(v, page, write);
	if (!p)
		return NULL;
	if (last != page && own_pointer(v, last, write) != p + (last - page))
		return NULL;
	return p + (va - page);
}

/* A jump whose target is not canonical: the instruction, which has moved RSP by `undo`, faults. */
static uint64_t jump_nowhere(struct tr_vcpu *v, uint16_t off, int32_t undo)
{
	v->cpu.gpr[RSP] -= (uint64_t)(int64_t)undo;
	set_rip(v, off);
	return light_leave(v, TRX_STEP);
}

uint64_t light_jump(struct tr_vcpu *v, uint64_t arg)
{
	struct x86_cpu *cpu = &v->cpu;
	bool code64 = (v->key & KEY_MODE) == MODE_64;
	v->stats.dispatches++;
	if (code64 && !x86_canonical(v->tlb_va))
		return jump_nowhere(v, arg & (BIT(JUMP_OFF_BITS) - 1), (int32_t)arg >> JUMP_OFF_BITS);
	cpu->rip = code64 ? v->tlb_va : (uint32_t)(v->tlb_va - cpu->seg[SEG_CS].base);
	return light_go_on(v);
}

uint64_t light_far(struct tr_vcpu *v, uint64_t at)
{
	const struct tr_link *link = link_of(v->engine, (uint32_t)at);
	v->stats.dispatches++;
	v->tlb_va += link->off;
	if (!x86_canonical(v->tlb_va))
		return jump_nowhere(v, link->from_off, link->pushed ? -8 : 0);
	v->cpu.rip = v->tlb_va;
	light_page_of(v, v->cpu.rip); /* so that the jump finds it next time */
	if (link->to)
		return light_go_on(v);
	v->exit_arg = at;
	return light_leave(v, TRX_LINK);
}

uint64_t light_far_quick(struct tr_vcpu *v, uint64_t at)
{
	const struct far_jump *jump = record(v->engine, (uint32_t)at);
	uint64_t linear = v->vpage + (uint64_t)(int64_t)jump->target;
	v->stats.dispatches++;
	if (!x86_canonical(linear))
		return jump_nowhere(v, jump->from_off, jump->pushed ? -8 : 0);
	v->cpu.rip = linear;
	struct block *b = block_find(v->engine, light_page_of(v, linear), linear & ~PAGE_MASK, v->key);
	if (b)
		quick_far_fill(v, key_ring0(v->key), jump, b, linear);
	return light_go_on(v);
}

uint64_t light_link(struct tr_vcpu *v, uint64_t at)
{
	set_rip(v, link_of(v->engine, (uint32_t)at)->off);
	v->exit_arg = at;
	return light_leave(v, TRX_LINK);
}

uint64_t light_target(struct tr_vcpu *v, uint64_t at)
{
	const struct call_target *call = record(v->engine, (uint32_t)at);
	uint64_t linear = v->tlb_va;
	v->stats.dispatches++;
	set_rip(v, call->off);
	if (v->wrote_count || poll_wanted(v))
		return light_leave(v, TRX_POLL);
	if (!x86_canonical(linear))
		return light_leave(v, TRX_STEP);
	struct block *b = block_find(v->engine, light_page_of(v, linear), linear & ~PAGE_MASK, v->key);
	if (!b || !quick_page_known(v, key_ring0(v->key), page_of(v->engine, call->page), v->vpage))
		return light_leave(v, TRX_STEP);
	quick_jump_fill(v, key_ring0(v->key), linear, b);
	return light_resume(v, call->resume);
}

static void itlb_note(struct tr_vcpu *v, const struct itlb_entry *e)
{
	unsigned mmu = key_mmu(v->key);
	flush_note(v->itlb_log[mmu], &v->itlb_logged[mmu], FEW_LOGGED, e - v->itlb[mmu]);
}

static struct code_page *itlb_fill(struct tr_vcpu *v, struct itlb_entry *e, uint64_t linear)
{
	struct x86_mapping m;
	enum verdict r = mmu_translate(&v->cpu, linear, ACC_EXEC | x86_access_mode(&v->cpu), &m);
	if (r != V_DONE || !guest_memory_ptr(v->engine->mem, m.gpa, 1, false))
		return NULL;
	struct code_page *page = code_page_at(v->engine, m.gpa);
	if (!page)
		return NULL;
	execute_at(v, page, linear); /* it may flush: the entry counts from here on */
	itlb_note(v, e);
	e->page = linear & PAGE_MASK;
	e->code = page;
	note_code_at(v, e->page, m.page_shift);
	if (key_mmu(v->key) != MMU_USER) {
		v->exec_local |= !m.global;
		v->exec_low |= !(linear >> 63);
	}
	return page;
}

static struct itlb_entry *itlb_of(struct tr_vcpu *v, uint64_t linear)
{
	return &v->itlb[key_mmu(v->key)][(linear >> PAGE_SHIFT) % ITLB_ENTRIES];
}

struct code_page *light_page_of(struct tr_vcpu *v, uint64_t linear)
{
	struct itlb_entry *it = itlb_of(v, linear);
	return it->page == (linear & PAGE_MASK) ? it->code : itlb_fill(v, it, linear);
}

void light_page_forget(struct tr_vcpu *v, uint64_t linear)
{
	itlb_of(v, linear)->page = TLB_NONE;
}

uint64_t light_tail(struct tr_vcpu *v, uint64_t at)
{
	const struct call_tail *call = record(v->engine, (uint32_t)at);
	uint64_t linear = v->vpage + PAGE_SIZE;
	set_rip(v, call->off);
	if ((v->key & KEY_MODE) != MODE_64)
		linear = (uint32_t)linear;
	if (!x86_canonical(linear))
		return light_leave(v, TRX_STEP);
	if (light_page_of(v, linear) != page_of(v->engine, call->tail))
		return light_leave(v, TRX_STEP);
	return light_resume(v, call->resume);
}

static uint64_t lookup_unshared(struct tr_vcpu *v, uint64_t linear)
{
	struct block *b = block_find(v->engine, light_page_of(v, linear), linear & ~PAGE_MASK, v->key | KEY_NOSHARE);
	if (!b)
		return 0;
	v->noshare = false;
	v->vpage = linear & PAGE_MASK;
	return block_entry_saved(v->engine, b);
}

/* block_entry_quick, if the table has it where it is looked for first, else 0. */
static uint64_t quick_jump_find(const struct tr_vcpu *v, bool kernel, uint64_t linear)
{
	const struct quick_jump *e = &v->quick[kernel].jump[linear % QUICK_ENTRIES];
	return linear % QUICK_ENTRIES && e->minus == -linear ? e->host : 0;
}

static uint64_t lookup_quick(struct tr_vcpu *v, uint64_t linear)
{
	bool kernel = key_ring0(v->key);
	uint64_t known = quick_jump_find(v, kernel, linear);
	struct block *b = known ? NULL : block_find(v->engine, light_page_of(v, linear), linear & ~PAGE_MASK, v->key);
	if (!known && !b)
		return 0;
	if (b)
		quick_jump_fill(v, kernel, linear, b);
	v->vpage = linear & PAGE_MASK;
	v->stack_delta = v->window_delta[kernel][region_of(v->cpu.gpr[RSP])];
	v->trace[v->trace_next++ % ARRAY_LEN(v->trace)] = linear;
	if (b)
		return block_entry_saved(v->engine, b);
	v->quick_pc = known;
	return (uint64_t)(uintptr_t)v->engine->glue_quick;
}

uint64_t light_lookup(struct tr_vcpu *v)
{
	struct x86_cpu *cpu = &v->cpu;
	if ((v->key & KEY_SLOW) || cpu->shadow)
		return 0;
	uint64_t linear = linear_rip(cpu);
	if (!x86_canonical(linear))
		return 0;
	if (v->noshare)
		return lookup_unshared(v, linear);
	if (key_windowed(v->key))
		return lookup_quick(v, linear);
	struct jc_entry *jc = &v->jc[key_jc(v->key)][(linear ^ linear >> 10) % JC_ENTRIES];
	if (jc->tag == linear) {
		v->vpage = linear & PAGE_MASK;
		return jc->host;
	}
	struct block *b = block_find(v->engine, light_page_of(v, linear), linear & ~PAGE_MASK, v->key);
	if (!b)
		return 0; /* a fault, too, is the slow path's to deliver */
	flush_note(v->jc_log, &v->jc_logged, ARRAY_LEN(v->jc_log), jc - v->jc[0]);
	jc->tag = linear;
	jc->host = block_entry_saved(v->engine, b);
	v->vpage = linear & PAGE_MASK;
	v->trace[v->trace_next++ % ARRAY_LEN(v->trace)] = linear;
	return jc->host;
}
