/*
 * The software TLB's upkeep, and the address-translation caches beside it: itlb (linear page → code page) and the jump
 * cache. Compiled for general registers only: light helpers call it.
 */
#include "engine/translate/light.h"

static void jc_clear(struct tr_vcpu *v, unsigned mode)
{
	for (unsigned i = 0; i < JC_ENTRIES; i++)
		v->jc[mode][i].tag = JC_NONE(i);
}

static void itlb_clear(struct tr_vcpu *v, unsigned mmu)
{
	const uint16_t *log = v->itlb_log[mmu];
	unsigned n = v->itlb_logged[mmu];
	for (unsigned i = 0; n <= FEW_LOGGED && i < n; i++)
		v->itlb[mmu][log[i]].page = TLB_NONE;
	for (unsigned i = 0; n > FEW_LOGGED && i < ITLB_ENTRIES; i++)
		v->itlb[mmu][i].page = TLB_NONE;
	v->itlb_logged[mmu] = 0;
}

static void filter_clear(struct tr_vcpu *v, unsigned half)
{
	for (unsigned i = 0; i < ARRAY_LEN(v->exec_filter[half]); i++)
		v->exec_filter[half][i] = 0;
	v->exec_large[half] = false;
}

static void jc_forget_logged(struct tr_vcpu *v, unsigned i)
{
	v->jc[v->jc_log[i] / JC_ENTRIES][v->jc_log[i] % JC_ENTRIES].tag = JC_NONE(v->jc_log[i]);
}

/* All but the quick tables of user code. */
static void flush_but_users_quick(struct tr_vcpu *v)
{
	if (v->jc_logged <= ARRAY_LEN(v->jc_log)) {
		for (unsigned i = 0; i < v->jc_logged; i++)
			jc_forget_logged(v, i);
	} else {
		for (unsigned m = 0; m < JC_MODES; m++)
			jc_clear(v, m);
	}
	for (unsigned m = 0; m < MMU_MODES; m++)
		itlb_clear(v, m);
	filter_clear(v, 0);
	filter_clear(v, 1);
	v->exec_local = v->exec_low = false;
	v->jc_logged = 0;
	quick_flush(v, true);
}

void jc_flush(struct tr_vcpu *v)
{
	flush_but_users_quick(v);
	quick_flush(v, false);
}

/* Forgets where code is in the user's half; the kernel's is in global pages. */
void jc_flush_local(struct tr_vcpu *v)
{
	v->quick_stale = true;
	if (v->exec_local) {
		flush_but_users_quick(v);
		return;
	}
	if (v->jc_logged > ARRAY_LEN(v->jc_log)) {
		jc_clear(v, JC_USER);
	} else {
		unsigned kept = 0;
		for (unsigned i = 0; i < v->jc_logged; i++) {
			unsigned mode = v->jc_log[i] / JC_ENTRIES;
			if (mode == JC_USER)
				jc_forget_logged(v, i);
			else
				v->jc_log[kept++] = v->jc_log[i];
		}
		v->jc_logged = kept;
	}
	itlb_clear(v, MMU_USER);
	if (!v->exec_low)
		filter_clear(v, 0);
}

void itlb_flush_user(struct tr_vcpu *v)
{
	itlb_clear(v, MMU_USER);
}

void tlb_entry_drop(struct tlb_entry *e)
{
	atomic_store_explicit(&e->tag_read, TLB_NONE, memory_order_relaxed);
	atomic_store_explicit(&e->tag_write, TLB_NONE, memory_order_relaxed);
	e->meta = 0;
}

bool tlb_entry_fill(struct tr_vcpu *v, struct tlb_entry *e, uint64_t page, uint64_t delta, uint64_t meta, bool write)
{
	uint64_t ram_page = guest_memory_page_index(v->engine->mem, meta & PAGE_MASK);
	bool global = meta & TLB_META_GLOBAL;

	/* A translator on another thread marks the page first and then looks for write tags: one of us sees the other.
	 */
	atomic_store_explicit(&e->tag_write, TLB_NONE, memory_order_relaxed);
	e->tag_read = TLB_NONE;
	e->delta = delta;
	v->tlb_filled = true;
	if (!global)
		flush_note(v->tlb_log, &v->tlb_logged, ARRAY_LEN(v->tlb_log), e - v->tlb[0]);
	e->meta = meta;
	if (write)
		tlb_writes_add(v, e, ram_page, global);
	atomic_store(&e->tag_write, write ? page : TLB_NONE);
	if (write && atomic_load(&v->engine->mem->code[ram_page])) {
		atomic_store(&e->tag_write, TLB_NONE);
		write = false;
	}
	e->tag_read = page;
	if (meta & TLB_META_LARGE)
		v->large[page >> 63] |= tlb_large_bit(page);
	return write;
}

static void flush_local(struct tr_vcpu *v)
{
	tlb_writes_forget_local(v);
	if (v->tlb_logged <= ARRAY_LEN(v->tlb_log)) {
		for (unsigned i = 0; i < v->tlb_logged; i++)
			tlb_entry_drop(&v->tlb[v->tlb_log[i] / TLB_ENTRIES][v->tlb_log[i] % TLB_ENTRIES]);
		return;
	}
	for (unsigned m = 0; m < MMU_MODES; m++)
		for (unsigned i = 0; i < TLB_ENTRIES; i++)
			if (!(v->tlb[m][i].meta & TLB_META_GLOBAL))
				tlb_entry_drop(&v->tlb[m][i]);
}

/* All that is not global. */
static void flush_space(struct tr_vcpu *v)
{
	flush_local(v);
	jc_flush_local(v);
	v->tlb_logged = 0;
}

/* CR3 may name another PCID than what is in the TLB was filled under. */
static void space_leave(struct tr_vcpu *v)
{
	tlb_save(v, v->tlb_pcid);
	flush_space(v);
	v->tlb_pcid = x86_pcid(&v->cpu);
}

/* MOV CR3, to the PCID that is in use now, or INVPCID and the like. */
static void flush_pcid(struct tr_vcpu *v, int pcid)
{
	int now = x86_pcid(&v->cpu);
	if (v->tlb_pcid != now)
		space_leave(v);
	else if (pcid < 0 || pcid == now)
		flush_space(v);
	tlb_saved_forget(v, pcid);
}

void tlb_flush_all(struct x86_cpu *cpu, bool global, int pcid)
{
	struct tr_vcpu *v = vcpu_of(cpu);
	v->stats.tlb_flushes++;
	window_flush(v, global, pcid);
	if (!global) {
		flush_pcid(v, pcid);
		return;
	}
	for (unsigned m = 0; v->tlb_filled && m < MMU_MODES; m++)
		for (unsigned i = 0; i < TLB_ENTRIES; i++)
			tlb_entry_drop(&v->tlb[m][i]);
	if (v->tlb_filled)
		tlb_writes_forget(v);
	v->tlb_filled = false;
	v->tlb_logged = 0;
	v->tlb_pcid = x86_pcid(cpu);
	tlb_saved_forget(v, -1);
	v->large[0] = v->large[1] = 0;
	jc_flush(v);
	quick_saved_forget(v);
}

/*
 * Zeros are good for an empty table, but where page 0 is looked for: what is not used is not touched. That is in the
 * first entry, and in the TLB's last too, for an access that begins in the last page and ends in the first one.
 */
void tlb_init(struct tr_vcpu *v)
{
	for (unsigned m = 0; m < MMU_MODES; m++) {
		tlb_entry_drop(&v->tlb[m][0]);
		tlb_entry_drop(&v->tlb[m][TLB_ENTRIES - 1]);
		v->itlb[m][0].page = TLB_NONE;
	}
	for (unsigned m = 0; m < JC_MODES; m++)
		v->jc[m][0].tag = JC_NONE(0);
	tlb_flush_all(&v->cpu, true, -1);
}

/* The TLB has no tags, so it has entries of one address space at a time, beside those that have been put by. */
void tlb_space_changed(struct x86_cpu *cpu)
{
	struct tr_vcpu *v = vcpu_of(cpu);
	window_pcid_changed(v);
	space_leave(v);
	tlb_restore(v, v->tlb_pcid);
}

static void flush_one(struct tr_vcpu *v, uint64_t page)
{
	for (unsigned m = 0; m < MMU_MODES; m++) {
		struct tlb_entry *e = &v->tlb[m][(page >> PAGE_SHIFT) % TLB_ENTRIES];
		if (e->tag_read == page || e->tag_write == page)
			tlb_entry_drop(e);
	}
}

/* INVLPG drops the whole of a larger page: the entries of its 4 KiB pieces, wherever they are. */
static void flush_large(struct tr_vcpu *v, uint64_t va)
{
	for (unsigned m = 0; m < MMU_MODES; m++) {
		for (unsigned i = 0; i < TLB_ENTRIES; i++) {
			struct tlb_entry *e = &v->tlb[m][i];
			uint64_t tag = e->tag_read != TLB_NONE ? e->tag_read : e->tag_write;
			if ((e->meta & TLB_META_LARGE) && tag >> 63 == va >> 63 &&
			    tlb_large_bit(tag) == tlb_large_bit(va))
				tlb_entry_drop(e);
		}
	}
	v->large[va >> 63] &= ~tlb_large_bit(va);
}

static unsigned exec_hash(uint64_t page)
{
	uint64_t n = page >> PAGE_SHIFT;
	return (unsigned)((n ^ n >> 12) % EXEC_FILTER_BITS);
}

void note_code_at(struct tr_vcpu *v, uint64_t linear, unsigned page_shift)
{
	unsigned h = exec_hash(linear);
	v->exec_filter[linear >> 63][h / 64] |= 1ull << (h % 64);
	v->exec_large[linear >> 63] |= page_shift > PAGE_SHIFT;
}

void tlb_flush_page(struct x86_cpu *cpu, uint64_t va, int pcid)
{
	struct tr_vcpu *v = vcpu_of(cpu);
	uint64_t page = va & PAGE_MASK;
	bool kernel = va >> 63;
	flush_one(v, page);
	tlb_saved_forget_page(v, pcid, page);
	window_flush_page(v, page);
	if (v->large[kernel] & tlb_large_bit(page))
		flush_large(v, page);
	unsigned h = exec_hash(page);
	if (!v->exec_large[kernel] && !(v->exec_filter[kernel][h / 64] >> (h % 64) & 1))
		return;
	if (kernel || v->exec_low)
		jc_flush(v);
	else
		jc_flush_local(v);
}

static bool flat(const struct x86_segment *s)
{
	return s->base == 0 && s->limit == 0xffffffff && (s->attr & SEG_ATTR_P);
}

/* Segments that translated code of the legacy modes may take for granted: everything readable and writable from 0 to 4
 * GiB. */
static bool legacy_flat(const struct x86_cpu *cpu)
{
	static const uint8_t data[] = {SEG_DS, SEG_ES, SEG_SS};
	for (unsigned i = 0; i < ARRAY_LEN(data); i++) {
		const struct x86_segment *s = &cpu->seg[data[i]];
		if (!flat(s) || (s->attr & 0xe) != 2) /* data, expand up, writable */
			return false;
	}
	return flat(&cpu->seg[SEG_CS]) && (cpu->seg[SEG_CS].attr & 2 /* readable */) && (cpu->cr0 & CR0_PE) &&
	       (cpu->seg[SEG_SS].attr & SEG_ATTR_DB);
}

static bool must_step(const struct x86_cpu *cpu, enum x86_mode mode)
{
	if ((cpu->rflags & FL_TF) || (cpu->dr7 & 0xff) || cpu->db_pending)
		return true;
	if (cpu->cpl == 3 && (cpu->rflags & FL_AC) && (cpu->cr0 & CR0_AM))
		return true;
	return mode != MODE_64 && (mode == MODE_16 || (cpu->rflags & FL_VM) || !legacy_flat(cpu));
}

static uint32_t mode_key(const struct x86_cpu *cpu)
{
	enum x86_mode mode = x86_mode(cpu);
	unsigned mmu = cpu->cpl == 3                                     ? MMU_USER
		       : (cpu->cr4 & CR4_SMAP) && !(cpu->rflags & FL_AC) ? MMU_KERNEL
									 : MMU_KERNEL_AC;
	uint32_t key = mode | mmu << KEY_MMU_SHIFT;
	if (cpu->cr0 & (CR0_TS | CR0_EM))
		key |= KEY_NO_FPU | KEY_NO_SSE | KEY_NO_AVX;
	if (!(cpu->cr4 & CR4_OSFXSR))
		key |= KEY_NO_SSE;
	if (!(cpu->cr4 & CR4_OSXSAVE) || (cpu->xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX))
		key |= KEY_NO_AVX;
	if (cpu->cpl)
		key |= cpu->cpl == 3 ? KEY_USER : KEY_RING12;
	if (cpu->cr4 & CR4_SMAP)
		key |= KEY_SMAP;
	if (cpu->cr4 & CR4_TSD)
		key |= KEY_TSD;
	if (must_step(cpu, mode))
		key |= KEY_SLOW;
	return key;
}

static bool direct_is_due(const struct tr_vcpu *v, uint32_t key)
{
	return !v->direct.burst && direct_fits(v, key) && __builtin_ia32_rdtsc() >= v->direct.later;
}

/*
 * Blocks of different keys must not meet in the jump cache. Its tables tell 64-bit code's ways of looking at memory
 * apart; all else that makes a key changes seldom, and empties it.
 */
void tlb_mode_changed(struct x86_cpu *cpu)
{
	struct tr_vcpu *v = vcpu_of(cpu);
	uint32_t key = mode_key(cpu);
	if ((key & KEY_USER) && unlikely(v->quick_stale))
		quick_user_refresh(v);
	if ((key & (KEY_MODE | KEY_SLOW | KEY_RING12)) == MODE_64 && !(cpu->rflags & FL_DF) &&
	    (key & KEY_USER ? window_enter(v) : window_enter_kernel(v, key_mmu_kernel(key)))) {
		quick_begin(v, key_ring0(key));
		key |= KEY_WINDOW;
	}
	v->direct.due = (key & KEY_USER) && (key & KEY_WINDOW) &&
			unlikely(v->windows.now->apart || v->engine->eager_direct) && direct_is_due(v, key);
	if (key == v->key)
		return;
	v->key = key;
	v->noshare = false; /* meant code of the other key; that with windows has no such variant */
	if (key & KEY_SLOW)
		return;
	if ((key & KEY_COMMON) != v->jc_common) {
		jc_flush(v);
		v->jc_common = key & KEY_COMMON;
	}
	/* Code between STAC and CLAC is in it, and goes on to code that has windows or, while DF is set, has not. */
	if ((key & KEY_MODE) == MODE_64 && key_ring0(key) && (key & KEY_WINDOW) != v->jc_window) {
		jc_clear(v, JC_KERNEL_AC);
		v->jc_window = key & KEY_WINDOW;
	}
	key &= ~(uint32_t)KEY_WINDOW; /* blocks with windows are not in it */
	if (key_jc(key) == JC_LEGACY && key != v->jc_shared) {
		jc_clear(v, JC_LEGACY);
		v->jc_shared = key;
	}
}
