#include "engine/translate/code.h"

#include "engine/translate/asm.h"
#include "engine/translate/light.h"
#include "engine/translate/profile.h"
#include "engine/translate/window_space.h"

#include <stdlib.h>

/*
 * The first records, and the first cold code, are in small pages: to have a large one cleared is a good part of all
 * that comes before a guest's first instruction, and much of a small machine's memory.
 */
#define SMALL_PAGES MiB(2)

/* To ask the host for memory in pieces is several times cheaper than a page fault for each page and view. */
#define POPULATE_CHUNK KiB(256)
#define POPULATE_RECORDS KiB(64)

/* As much room for records as for code: they take less. It is touched only when it is used. */
static bool records_init(struct tr_engine *eng)
{
	size_t size = align_up(MAX(eng->code.size, BLOCK_RECORDS_MAX), MiB(2));
	ENSURE(size < UINT32_MAX);
	eng->records = (struct records){.base = host_memory_alloc(size), .used = BLOCK_ALIGN, .size = (uint32_t)size};
	if (eng->records.base)
		host_memory_small_pages(eng->records.base, SMALL_PAGES);
	return eng->records.base;
}

void *code_alloc(struct tr_engine *eng, size_t size, size_t align)
{
	struct records *r = &eng->records;
	size_t at = align_up(r->used, align);
	ENSURE(at + size <= r->size);
	r->used = (uint32_t)(at + size);
	for (; r->populated < MIN(r->used, SMALL_PAGES); r->populated += POPULATE_RECORDS)
		host_memory_populate(r->base + r->populated, POPULATE_RECORDS);
	return r->base + at;
}

struct far_jump *code_far_jump(struct tr_engine *eng)
{
	if (eng->fars == FAR_JUMPS)
		return NULL;
	struct far_jump *jump = code_new(eng, struct far_jump);
	*jump = (struct far_jump){.index = eng->fars++};
	return jump;
}

void code_far_cold(struct tr_engine *eng, const struct far_jump *jump, const uint8_t *cold)
{
	eng->far_cold[jump->index] = code_at(eng, cold);
	for (unsigned i = 0; i < eng->cpus; i++)
		if (eng->vcpu[i])
			eng->vcpu[i]->far[jump->index] = (uint64_t)(uintptr_t)code_rx(eng, cold);
}

bool code_init(struct tr_engine *eng, uint64_t size, struct error *err)
{
	if (!host_code_alloc(&eng->code, size))
		return error_set(err, "no memory for a code cache of %llu MiB (%s); give a smaller --code-cache",
				 (unsigned long long)(size >> 20), host_error_text());
	uint8_t *cold = eng->code.rw + eng->code.size / 16 * 11; /* it fills at half the hot part's rate, or less */
	eng->emit[PART_HOT] = (struct emit){eng->code.rw, cold};
	eng->emit[PART_COLD] = (struct emit){cold, eng->code.rw + eng->code.size};
	for (unsigned i = 0; i < PARTS; i++)
		eng->populated[i] = eng->emit[i].p;
	host_memory_small_pages(cold, MIN(SMALL_PAGES, emit_room(&eng->emit[PART_COLD])));
	glue_emit(eng);
	for (unsigned i = 0; i < PARTS; i++)
		eng->part_start[i] = eng->emit[i].p;
	eng->blocks_max = (unsigned)(eng->code.size / 128 + 64);
	eng->page = calloc(eng->mem->pages, sizeof(*eng->page));
	eng->sorted = calloc(eng->blocks_max, sizeof(*eng->sorted));
	eng->far_cold = calloc(FAR_JUMPS, sizeof(*eng->far_cold));
	eng->slot_page = calloc(CODE_SLOTS, sizeof(*eng->slot_page));
	host_mutex_init(&eng->lock);
	host_mutex_init(&eng->excl_lock);
	host_mutex_init(&eng->excl_owner);
	host_cond_init(&eng->excl_cond);
	if (!eng->page || !eng->sorted || !eng->far_cold || !eng->slot_page || !records_init(eng))
		return error_set(err, "no memory for the code cache's index; give the guest less --memory");
	return true;
}

/* The page holds no translated code any more: it can be written freely. */
static void page_release(struct tr_engine *eng, struct code_page *page)
{
	atomic_store(&eng->mem->code[page->index], 0);
	atomic_store(&eng->page[page->index], NULL);
	if (page->prev)
		page_of(eng, page->prev)->next = page->next;
	else
		eng->pages = page->next;
	if (page->next)
		page_of(eng, page->next)->prev = page->prev;
	free(page->by_tlb);
	direct_copy_release(&eng->copies, page->copy);
	page->next = eng->pages_free;
	eng->pages_free = record_at(eng, page);
}

static void free_pages(struct tr_engine *eng)
{
	while (eng->pages)
		page_release(eng, page_of(eng, eng->pages));
}

void code_destroy(struct tr_engine *eng)
{
	free_pages(eng);
	host_memory_free(eng->records.base, eng->records.size);
	free(eng->page);
	free(eng->sorted);
	free(eng->far_cold);
	free(eng->slot_page);
	if (eng->code.rw)
		host_code_free(&eng->code);
	host_mutex_destroy(&eng->lock);
	host_mutex_destroy(&eng->excl_lock);
	host_mutex_destroy(&eng->excl_owner);
	host_cond_destroy(&eng->excl_cond);
}

/* Exclusive: whoever is not in translated code sees to it before he is. */
static void flush_lookups(struct tr_engine *eng, unsigned what)
{
	for (unsigned i = 0; i < eng->cpus; i++)
		if (eng->vcpu[i])
			atomic_fetch_or(&eng->vcpu[i]->forget, what);
}

/* Empties the cache. Exclusive, with the lock held. */
static void flush(struct tr_engine *eng)
{
	apart_revoke_all(eng);
	free_pages(eng);
	eng->page_slots = eng->fars = 0;
	atomic_store(&eng->fars_known, 0);
	eng->records.used = BLOCK_ALIGN;
	eng->pages_free = 0;
	eng->blocks = 0;
	for (unsigned i = 0; i < PARTS; i++)
		eng->emit[i].p = eng->part_start[i];
	eng->stats.flushes++;
	flush_lookups(eng, FORGET_LOOKUPS | FORGET_FARS);
}

static bool full(const struct tr_engine *eng)
{
	return emit_room(&eng->emit[PART_HOT]) < BLOCK_HOST_MAX + 64 ||
	       emit_room(&eng->emit[PART_COLD]) < BLOCK_HOST_MAX ||
	       eng->records.size - eng->records.used < BLOCK_RECORDS_MAX || eng->blocks == eng->blocks_max ||
	       eng->page_slots + 2 > CODE_SLOTS;
}

static struct code_page *page_new(struct tr_engine *eng)
{
	struct code_page *page = page_of(eng, eng->pages_free);
	if (page) {
		eng->pages_free = page->next;
		return page;
	}
	page = code_new(eng, struct code_page);
	page->slot = eng->page_slots++;
	eng->slot_page[page->slot] = record_at(eng, page);
	return page;
}

/*
 * The page's record, made when it is the first time. NULL: somebody is running who may be about to write the page
 * unseen, so this must be done exclusively; then there always is one.
 */
static struct code_page *page_get(struct tr_engine *eng, uint64_t gpa, bool exclusive)
{
	uint64_t index = guest_memory_page_index(eng->mem, gpa);
	struct code_page *page = atomic_load(&eng->page[index]);
	if (page)
		return page;
	atomic_store(&eng->mem->code[index], 1);
	atomic_thread_fence(memory_order_seq_cst);
	if (!tlb_protect(eng, gpa) && !exclusive)
		return NULL;
	page = page_new(eng);
	*page = (struct code_page){.gpa = gpa, .index = (uint32_t)index, .slot = page->slot, .next = eng->pages};
	eng->pages = record_at(eng, page);
	if (page->next)
		page_of(eng, page->next)->prev = eng->pages;
	atomic_store(&eng->page[index], page);
	return page;
}

static void populate(struct tr_engine *eng, unsigned part)
{
	const struct emit *e = &eng->emit[part];
	uint8_t **populated = &eng->populated[part];
	const uint8_t *end = e->p + MIN(BLOCK_HOST_MAX, emit_room(e));
	while (*populated < end) {
		uint8_t *next = MIN(*populated + POPULATE_CHUNK, e->end);
		size_t from = align_down((size_t)(*populated - eng->code.rw), PAGE_SIZE);
		host_code_populate(&eng->code, from, align_up((size_t)(next - eng->code.rw), PAGE_SIZE) - from);
		*populated = next;
	}
}

static void tail_add(struct tr_engine *eng, struct block_tail *tail)
{
	struct code_page *page = page_of(eng, tail->page);
	page->blocks++;
	tail->next = page->tails;
	page->tails = record_at(eng, tail);
}

static void make(struct tr_vcpu *v, uint64_t gpa, uint64_t tail, uint16_t off, uint32_t key, bool exclusive)
{
	struct tr_engine *eng = v->engine;
	struct code_source src = {.page = page_get(eng, gpa, exclusive),
				  .bytes = guest_memory_ptr(eng->mem, gpa, PAGE_SIZE, false)};
	if (block_find(eng, src.page, off, key))
		return;
	if (tail != CODE_NO_TAIL) {
		src.tail = page_get(eng, tail, exclusive);
		src.tail_bytes = guest_memory_ptr(eng->mem, tail, PAGE_SIZE, false);
	}
	uint64_t t0 = __builtin_ia32_rdtsc();
	for (unsigned i = 0; i < PARTS; i++)
		populate(eng, i);
	struct block *b = translate_block(v, &src, off, key);
	v->tsc_translator += __builtin_ia32_rdtsc() - t0;
	atomic_store(&eng->fars_known, eng->fars); /* not before */
	if (unlikely(eng->profile))
		profile_block(eng, v, b, (linear_rip(&v->cpu) & PAGE_MASK) | off);
	eng->sorted[eng->blocks] = record_at(eng, b);
	eng->blocks++; /* not before */
	src.page->blocks++;
	if (b->tail)
		tail_add(eng, tail_of(eng, b->tail));
	_Atomic uint32_t *bucket = &src.page->bucket[page_bucket(off)];
	b->next = atomic_load(bucket);
	atomic_store_explicit(bucket, record_at(eng, b), memory_order_release);
	eng->stats.blocks++;
	eng->stats.guest_bytes += b->len;
	eng->stats.host_bytes += (uint64_t)b->size[PART_HOT] + b->size[PART_COLD];
}

/*
 * Takes the lock, to make something of `gpa` and `tail`: page_get has their records. True: exclusively, for the cache
 * is full, or somebody may be in between a TLB hit and its store.
 */
static bool make_begin(struct tr_vcpu *v, uint64_t gpa, uint64_t tail)
{
	struct tr_engine *eng = v->engine;
	host_lock(&eng->lock);
	if (!full(eng) && page_get(eng, gpa, false) && (tail == CODE_NO_TAIL || page_get(eng, tail, false)))
		return false;
	host_unlock(&eng->lock);
	exclusive_begin(eng, v);
	host_lock(&eng->lock);
	if (full(eng))
		flush(eng);
	return true;
}

static void make_end(struct tr_engine *eng, bool exclusive)
{
	host_unlock(&eng->lock);
	if (exclusive)
		exclusive_end(eng);
}

void code_get(struct tr_vcpu *v, uint64_t gpa, uint64_t tail, uint16_t off, uint32_t key)
{
	bool exclusive = make_begin(v, gpa, tail);
	make(v, gpa, tail, off, key, exclusive);
	make_end(v->engine, exclusive);
}

static uint8_t judge(struct tr_engine *eng, struct code_page *page, const uint8_t *before)
{
	const uint8_t *bytes = guest_memory_ptr(eng->mem, page->gpa, PAGE_SIZE, false);
	if (direct_scan(bytes, before, &eng->direct_host))
		return DIRECT_FIT;
	if (!eng->no_copy)
		page->copy = (uint16_t)direct_copy_make(&eng->copies, bytes, before, &eng->direct_host);
	if (page->copy)
		return DIRECT_FIT;
	bool few = !eng->no_break && direct_breaks(page->breaks, bytes, before, &eng->direct_host);
	return few ? DIRECT_FIT : DIRECT_UNFIT;
}

static bool claim(struct tr_engine *eng, uint64_t gpa, const uint8_t *before, bool exclusive)
{
	struct code_page *page = page_get(eng, gpa, exclusive);
	if (page->direct == DIRECT_UNKNOWN)
		page->direct = judge(eng, page, before);
	return page->direct == DIRECT_FIT;
}

bool code_claim(struct tr_vcpu *v, uint64_t gpa, const uint8_t *before)
{
	bool exclusive = make_begin(v, gpa, CODE_NO_TAIL), fit = claim(v->engine, gpa, before, exclusive);
	make_end(v->engine, exclusive);
	return fit;
}

bool code_is_claimed(const struct tr_engine *eng, uint64_t gpa)
{
	const struct code_page *page = code_page_at(eng, gpa);
	return page && page->direct == DIRECT_FIT;
}

static uint8_t *link_rel32(const struct tr_engine *eng, const struct tr_link *link)
{
	return eng->code.rw + block_of(eng, link->from)->start[link->in_cold ? PART_COLD : PART_HOT] + link->rel32;
}

/* The page last: until then nobody gets as far as the jump. */
static void link_patch(struct tr_engine *eng, struct tr_link *link, uint32_t target, const struct code_page *page)
{
	uint8_t *rel32 = link_rel32(eng, link);
	if (!link->imm_back || page)
		asm_patch32(rel32, eng->code.rw + target);
	if (link->imm_back)
		__atomic_store_n((uint64_t *)(rel32 - link->imm_back), (uint64_t)(uintptr_t)page, __ATOMIC_RELEASE);
}

static void link_undo(struct tr_engine *eng, struct tr_link *link)
{
	link->to = 0;
	link->next = 0;
	link_patch(eng, link, block_of(eng, link->from)->start[PART_COLD] + link->stub, NULL);
}

void code_link(struct tr_engine *eng, struct tr_link *link, struct block *to)
{
	host_lock(&eng->lock);
	if (!link->to && block_of(eng, link->from)->page && to->page) {
		link->to = record_at(eng, to);
		link->next = to->incoming;
		to->incoming = record_at(eng, link);
		link_patch(eng, link, link->flags_in_host ? to->start[PART_HOT] + to->entry_host : to->entry_saved,
			   page_of(eng, to->page));
	}
	host_unlock(&eng->lock);
}

static void unlink_incoming(struct tr_engine *eng, struct block *b)
{
	for (uint32_t at = b->incoming, next; at; at = next) {
		struct tr_link *l = link_of(eng, at);
		next = l->next;
		link_undo(eng, l);
	}
	b->incoming = 0;
}

/* Takes `b`'s own links out of their targets' lists, so that nobody patches them later. */
static void unlink_outgoing(struct tr_engine *eng, struct block *b)
{
	for (uint32_t at = b->links; at; at = link_of(eng, at)->other) {
		struct tr_link *l = link_of(eng, at);
		if (!l->to)
			continue;
		uint32_t *p = &block_of(eng, l->to)->incoming;
		while (*p != at)
			p = &link_of(eng, *p)->next;
		*p = l->next;
		link_undo(eng, l);
	}
}

static void bucket_remove(struct tr_engine *eng, struct code_page *page, struct block *b)
{
	_Atomic uint32_t *bucket = &page->bucket[page_bucket(b->off)];
	struct block *prev = block_of(eng, atomic_load(bucket));
	if (prev == b) {
		atomic_store(bucket, b->next);
		return;
	}
	while (block_of(eng, prev->next) != b)
		prev = block_of(eng, prev->next);
	prev->next = b->next;
}

static void tail_remove(struct tr_engine *eng, struct block_tail *tail)
{
	struct code_page *page = page_of(eng, tail->page);
	uint32_t *p = &page->tails;
	while (tail_of(eng, *p) != tail)
		p = &tail_of(eng, *p)->next;
	*p = tail->next;
	page->blocks--;
}

static void drop(struct tr_engine *eng, struct block *b)
{
	struct code_page *page = page_of(eng, b->page);
	bucket_remove(eng, page, b);
	page->blocks--;
	unlink_incoming(eng, b);
	unlink_outgoing(eng, b);
	if (b->tail)
		tail_remove(eng, tail_of(eng, b->tail));
	b->page = 0;
	eng->stats.invalidations++;
}

static bool unused(const struct code_page *page)
{
	return !page->blocks && page->direct != DIRECT_FIT;
}

#define DIRECT_WRITES 8 /* and a page is never run directly again */

static void direct_forget(struct tr_engine *eng, struct code_page *page)
{
	if (page->direct == DIRECT_FIT)
		apart_revoke(eng, page->gpa);
	direct_copy_release(&eng->copies, page->copy);
	page->copy = 0;
	memset(page->breaks, 0, sizeof(page->breaks));
	page->direct = page->direct_writes < DIRECT_WRITES ? DIRECT_UNKNOWN : DIRECT_UNFIT;
	page->direct_writes += page->direct_writes < DIRECT_WRITES;
}

/* Drops the blocks that cover a byte of [from, to) of `page`. Returns how many. */
static unsigned drop_range(struct tr_engine *eng, struct code_page *page, unsigned from, unsigned to)
{
	unsigned n = 0;
	for (unsigned i = 0; i < PAGE_BUCKETS; i++) {
		for (uint32_t at = atomic_load(&page->bucket[i]), next; at; at = next) {
			struct block *b = block_of(eng, at);
			next = b->next;
			if (b->off >= to || b->off + b->len <= (int)from)
				continue;
			struct code_page *tail = b->tail ? page_of(eng, tail_of(eng, b->tail)->page) : NULL;
			drop(eng, b);
			if (tail && unused(tail) && tail != page)
				page_release(eng, tail);
			n++;
		}
	}
	for (uint32_t at = page->tails, next; at; at = next) {
		struct block_tail *tail = tail_of(eng, at);
		next = tail->next;
		if (tail->len <= from)
			continue;
		struct block *b = block_of(eng, tail->block);
		struct code_page *head = page_of(eng, b->page);
		drop(eng, b);
		if (unused(head) && head != page)
			page_release(eng, head);
		n++;
	}
	return n;
}

/* Drops the blocks with windows that cover offset `off` of `page`, which stays. */
static void drop_windowed(struct tr_engine *eng, struct code_page *page, unsigned off)
{
	for (unsigned i = 0; i < PAGE_BUCKETS; i++) {
		for (uint32_t at = atomic_load(&page->bucket[i]), next; at; at = next) {
			struct block *b = block_of(eng, at);
			next = b->next;
			if (key_windowed(b->key) && off >= b->off && off < (unsigned)b->off + b->len && !b->tail)
				drop(eng, b);
		}
	}
}

/* So many writes beside its code, and a page counts as data that once was code. */
#define STRAY_WRITES 16

static void page_written(struct tr_engine *eng, struct code_page *page, unsigned from, unsigned to)
{
	if (page->direct)
		direct_forget(eng, page);
	unsigned n = drop_range(eng, page, from, to);
	if (!n && ++page->stray_writes > STRAY_WRITES)
		n = drop_range(eng, page, 0, PAGE_SIZE);
	if (unused(page))
		page_release(eng, page);
	else if (!n)
		return;
	flush_lookups(eng, FORGET_LOOKUPS); /* jump caches name dropped blocks, itlbs perhaps released pages */
}

/* Around what makes blocks go: nobody runs one, and nobody makes one. */
static void change_begin(struct tr_engine *eng, struct tr_vcpu *self)
{
	exclusive_begin(eng, self);
	host_lock(&eng->lock);
}

static void change_end(struct tr_engine *eng)
{
	host_unlock(&eng->lock);
	exclusive_end(eng);
}

void code_written(struct tr_engine *eng, struct tr_vcpu *self, uint64_t gpa, uint64_t len)
{
	change_begin(eng, self);
	uint64_t end = gpa + len;
	for (uint64_t at = gpa; at < end; at = (at & PAGE_MASK) + PAGE_SIZE) {
		if (!guest_memory_ptr(eng->mem, at, 1, false))
			continue;
		struct code_page *page = code_page_at(eng, at);
		if (page)
			page_written(eng, page, at & ~PAGE_MASK, (unsigned)MIN(end - (at & PAGE_MASK), PAGE_SIZE));
	}
	change_end(eng);
}

#define PAGE_WORDS (PAGE_SIZE / 64)

static void go_by_tlb(struct tr_engine *eng, uint64_t gpa)
{
	unsigned off = gpa & ~PAGE_MASK;
	struct code_page *page = code_page_at(eng, gpa);
	if (page && !page->by_tlb)
		page->by_tlb = calloc(PAGE_WORDS, sizeof(*page->by_tlb));
	if (!page || !page->by_tlb)
		return;
	page->by_tlb[off / 64] |= BIT(off % 64);
	drop_windowed(eng, page, off);
}

void code_by_tlb(struct tr_engine *eng, struct tr_vcpu *self, const uint64_t *gpa, unsigned n)
{
	change_begin(eng, self);
	for (unsigned i = 0; i < n; i++)
		go_by_tlb(eng, gpa[i]);
	if (!eng->by_tlb_since)
		eng->by_tlb_since = __builtin_ia32_rdtsc();
	flush_lookups(eng, FORGET_LOOKUPS);
	change_end(eng);
}

static void go_by_windows(struct tr_engine *eng, struct code_page *page)
{
	for (unsigned off = 0; off < PAGE_SIZE; off++)
		if (page->by_tlb[off / 64] & BIT(off % 64))
			drop_windowed(eng, page, off);
	free(page->by_tlb);
	page->by_tlb = NULL;
}

void code_by_windows(struct tr_engine *eng, struct tr_vcpu *self)
{
	change_begin(eng, self);
	for (uint32_t at = eng->pages; at; at = page_of(eng, at)->next)
		if (page_of(eng, at)->by_tlb)
			go_by_windows(eng, page_of(eng, at));
	eng->by_tlb_since = 0;
	flush_lookups(eng, FORGET_LOOKUPS);
	change_end(eng);
}
