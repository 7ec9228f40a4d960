#include "engine/translate/code.h"

#include "engine/translate/asm.h"
#include "engine/translate/light.h"
#include "engine/translate/profile.h"

#include <stdlib.h>

/* Metadata of blocks: chunks that are freed together, each one of the host's large pages, if it has them. */
#define ARENA_CHUNK MiB(2)

struct arena_chunk {
	struct arena_chunk *next;
	size_t used;
	_Alignas(16) uint8_t data[];
};

#define ARENA_ROOM (ARENA_CHUNK - sizeof(struct arena_chunk))

void *code_alloc(struct tr_engine *eng, size_t size)
{
	size = align_up(size, 8);
	ENSURE(size <= ARENA_ROOM);
	if (!eng->arena || eng->arena->used + size > ARENA_ROOM) {
		struct arena_chunk *c = host_memory_alloc(ARENA_CHUNK);
		ENSURE(c);
		c->next = eng->arena;
		c->used = 0;
		eng->arena = c;
	}
	void *p = eng->arena->data + eng->arena->used;
	eng->arena->used += size;
	return p;
}

static void arena_free(struct tr_engine *eng)
{
	while (eng->arena) {
		struct arena_chunk *next = eng->arena->next;
		host_memory_free(eng->arena, ARENA_CHUNK);
		eng->arena = next;
	}
}

bool code_init(struct tr_engine *eng, uint64_t size, struct error *err)
{
	if (!host_code_alloc(&eng->code, size))
		return error_set(err, "no memory for a code cache of %llu MiB (%s); give a smaller --code-cache",
				 (unsigned long long)(size >> 20), host_error_text());
	eng->cold_start = eng->code.rw + eng->code.size / 2; /* both parts fill at about the same rate */
	eng->emit = (struct emit){eng->code.rw, eng->cold_start};
	eng->populated = eng->code.rw;
	eng->populated_cold = eng->cold_start;
	eng->cold = (struct emit){eng->cold_start, eng->code.rw + eng->code.size};
	glue_emit(eng);
	while ((uintptr_t)eng->emit.p & 15)
		emit8(&eng->emit, 0xcc);
	eng->code_start = eng->emit.p;
	eng->blocks_max = (unsigned)(eng->code.size / 128 + 64);
	eng->page = calloc(eng->mem->pages, sizeof(*eng->page));
	eng->sorted = calloc(eng->blocks_max, sizeof(*eng->sorted));
	host_mutex_init(&eng->lock);
	host_mutex_init(&eng->excl_lock);
	host_mutex_init(&eng->excl_owner);
	host_cond_init(&eng->excl_cond);
	if (!eng->page || !eng->sorted)
		return error_set(err, "no memory for the code cache's index; give the guest less --memory");
	return true;
}

/* The page holds no translated code any more: it can be written freely. */
static void page_release(struct tr_engine *eng, struct code_page *page)
{
	atomic_store(&eng->mem->code[page->index], 0);
	atomic_store(&eng->page[page->index], NULL);
	*page->link = page->next;
	if (page->next)
		page->next->link = page->link;
	free(page);
}

static void free_pages(struct tr_engine *eng)
{
	while (eng->pages)
		page_release(eng, eng->pages);
}

void code_destroy(struct tr_engine *eng)
{
	free_pages(eng);
	arena_free(eng);
	free(eng->page);
	free(eng->sorted);
	if (eng->code.rw)
		host_code_free(&eng->code);
	host_mutex_destroy(&eng->lock);
	host_mutex_destroy(&eng->excl_lock);
	host_mutex_destroy(&eng->excl_owner);
	host_cond_destroy(&eng->excl_cond);
}

void vcpu_code_enter(struct tr_vcpu *v)
{
	struct tr_engine *eng = v->engine;
	for (;;) {
		atomic_store(&v->in_code, true);
		if (likely(!atomic_load(&eng->excl_pending)))
			return;
		atomic_store(&v->in_code, false);
		host_lock(&eng->excl_lock);
		host_cond_broadcast(&eng->excl_cond);
		while (atomic_load(&eng->excl_pending))
			host_cond_wait(&eng->excl_cond, &eng->excl_lock);
		host_unlock(&eng->excl_lock);
	}
}

void vcpu_code_leave(struct tr_vcpu *v)
{
	struct tr_engine *eng = v->engine;
	atomic_store(&v->in_code, false);
	if (unlikely(atomic_load(&eng->excl_pending))) {
		host_lock(&eng->excl_lock);
		host_cond_broadcast(&eng->excl_cond);
		host_unlock(&eng->excl_lock);
	}
}

static bool others_in_code(struct tr_engine *eng, struct tr_vcpu *self)
{
	bool any = false;
	for (unsigned i = 0; i < eng->cpus; i++) {
		struct tr_vcpu *v = eng->vcpu[i];
		if (v && v != self && atomic_load(&v->in_code)) {
			poll_set(v);
			any = true;
		}
	}
	return any;
}

void exclusive_begin(struct tr_engine *eng, struct tr_vcpu *self)
{
	ENSURE(!self || !atomic_load(&self->in_code));
	host_lock(&eng->excl_owner);
	host_lock(&eng->excl_lock);
	atomic_store(&eng->excl_pending, 1);
	while (others_in_code(eng, self))
		host_cond_wait(&eng->excl_cond, &eng->excl_lock);
	host_unlock(&eng->excl_lock);
}

void exclusive_end(struct tr_engine *eng)
{
	host_lock(&eng->excl_lock);
	atomic_store(&eng->excl_pending, 0);
	host_cond_broadcast(&eng->excl_cond);
	host_unlock(&eng->excl_lock);
	host_unlock(&eng->excl_owner);
}

static void flush_lookups(struct tr_engine *eng)
{
	for (unsigned i = 0; i < eng->cpus; i++)
		if (eng->vcpu[i])
			jc_flush(eng->vcpu[i]);
}

/* Empties the cache. Exclusive, with the lock held. */
static void flush(struct tr_engine *eng)
{
	free_pages(eng);
	arena_free(eng);
	eng->blocks = 0;
	eng->emit.p = eng->code_start;
	eng->cold.p = eng->cold_start;
	eng->stats.flushes++;
	flush_lookups(eng);
}

static bool full(const struct tr_engine *eng)
{
	return emit_room(&eng->emit) < BLOCK_HOST_MAX + 64 || emit_room(&eng->cold) < BLOCK_HOST_MAX ||
	       eng->blocks == eng->blocks_max;
}

/* The page's record, made when it is the first time. A virtual CPU that could write the page unseen is stopped first.
 */
static struct code_page *page_get(struct tr_engine *eng, uint64_t gpa)
{
	uint64_t index = guest_memory_page_index(eng->mem, gpa);
	struct code_page *page = atomic_load(&eng->page[index]);
	if (page)
		return page;
	page = calloc(1, sizeof(*page));
	ENSURE(page);
	page->gpa = gpa;
	page->index = index;
	page->next = eng->pages;
	page->link = &eng->pages;
	if (page->next)
		page->next->link = &page->next;
	eng->pages = page;
	atomic_store(&eng->mem->code[index], 1);
	atomic_thread_fence(memory_order_seq_cst);
	tlb_protect(eng, gpa);
	atomic_store(&eng->page[index], page);
	return page;
}

/* To ask the host for code memory in pieces is several times cheaper than a page fault for each page and view. */
#define POPULATE_CHUNK KiB(256)

static void populate(struct tr_engine *eng, const struct emit *e, uint8_t **populated)
{
	const uint8_t *end = e->p + MIN(BLOCK_HOST_MAX, emit_room(e));
	while (*populated < end) {
		uint8_t *next = MIN(*populated + POPULATE_CHUNK, e->end);
		size_t from = align_down((size_t)(*populated - eng->code.rw), PAGE_SIZE);
		host_code_populate(&eng->code, from, align_up((size_t)(next - eng->code.rw), PAGE_SIZE) - from);
		*populated = next;
	}
}

static void make(struct tr_vcpu *v, uint64_t gpa, uint64_t tail, uint16_t off, uint32_t key)
{
	struct tr_engine *eng = v->engine;
	struct code_source src = {.page = page_get(eng, gpa),
				  .bytes = guest_memory_ptr(eng->mem, gpa, PAGE_SIZE, false)};
	if (block_find(src.page, off, key))
		return;
	if (tail != CODE_NO_TAIL) {
		src.tail = page_get(eng, tail);
		src.tail_bytes = guest_memory_ptr(eng->mem, tail, PAGE_SIZE, false);
	}
	uint64_t t0 = __builtin_ia32_rdtsc();
	populate(eng, &eng->emit, &eng->populated);
	populate(eng, &eng->cold, &eng->populated_cold);
	struct block *b = translate_block(v, &src, off, key);
	v->tsc_translator += __builtin_ia32_rdtsc() - t0;
	if (unlikely(eng->profile))
		profile_block(eng, v, b, (linear_rip(&v->cpu) & PAGE_MASK) | off);
	eng->sorted[eng->blocks] = b;
	eng->blocks++; /* not before */
	src.page->blocks++;
	if (b->tail_page) {
		b->tail_page->blocks++;
		b->tail_next = b->tail_page->tails;
		b->tail_page->tails = b;
	}
	struct block *_Atomic *bucket = &src.page->bucket[off % PAGE_BUCKETS];
	b->next = atomic_load(bucket);
	atomic_store_explicit(bucket, b, memory_order_release);
	eng->stats.blocks++;
	eng->stats.guest_bytes += b->len;
	eng->stats.host_bytes += (uint64_t)(b->part[PART_HOT].end - b->part[PART_HOT].start) +
				 (uint64_t)(b->part[PART_COLD].end - b->part[PART_COLD].start);
}

static bool known(struct tr_engine *eng, uint64_t gpa)
{
	return atomic_load(&eng->page[guest_memory_page_index(eng->mem, gpa)]);
}

void code_get(struct tr_vcpu *v, uint64_t gpa, uint64_t tail, uint16_t off, uint32_t key)
{
	struct tr_engine *eng = v->engine;
	host_lock(&eng->lock);
	bool alone = known(eng, gpa) && (tail == CODE_NO_TAIL || known(eng, tail)) && !full(eng);
	if (!alone) { /* a first translation of the page, or a flush: nobody may be in between a TLB hit and its store
		       */
		host_unlock(&eng->lock);
		exclusive_begin(eng, v);
		host_lock(&eng->lock);
		if (full(eng))
			flush(eng);
	}
	make(v, gpa, tail, off, key);
	host_unlock(&eng->lock);
	if (!alone)
		exclusive_end(eng);
}

static uint64_t page_immediate(const struct tr_link *link, const struct code_page *page)
{
	if (link->quick)
		return page ? quick_tag(page) : QUICK_TAG_NONE;
	return (uint64_t)(uintptr_t)page;
}

/* The page last: until then nobody gets as far as the jump. */
static void link_patch(struct tr_link *link, const uint8_t *target, const struct code_page *page)
{
	if (!link->page_imm || page)
		asm_patch32(link->rel32, target);
	if (link->page_imm)
		__atomic_store_n((uint64_t *)link->page_imm, page_immediate(link, page), __ATOMIC_RELEASE);
}

void code_link(struct tr_engine *eng, struct tr_link *link, struct block *to)
{
	host_lock(&eng->lock);
	if (!link->to && !link->from->dead && !to->dead) {
		link->to = to;
		link->next = to->incoming;
		to->incoming = link;
		const uint8_t *entry = link->flags_in_host ? to->entry_host : to->entry_saved;
		link_patch(link, eng->code.rw + (entry - eng->code.rx), to->page);
	}
	host_unlock(&eng->lock);
}

static void unlink_incoming(struct block *b)
{
	for (struct tr_link *l = b->incoming, *next; l; l = next) {
		next = l->next;
		l->to = NULL;
		l->next = NULL;
		link_patch(l, l->stub, NULL);
	}
	b->incoming = NULL;
}

/* Takes `b`'s own links out of their targets' lists, so that nobody patches them later. */
static void unlink_outgoing(struct block *b)
{
	for (struct tr_link *l = b->links; l; l = l->other) {
		if (!l->to)
			continue;
		struct tr_link **p = &l->to->incoming;
		while (*p != l)
			p = &(*p)->next;
		*p = l->next;
		l->to = NULL;
		link_patch(l, l->stub, NULL);
	}
}

static void bucket_remove(struct code_page *page, struct block *b)
{
	struct block *_Atomic *bucket = &page->bucket[b->off % PAGE_BUCKETS];
	struct block *prev = atomic_load(bucket);
	if (prev == b) {
		atomic_store(bucket, b->next);
		return;
	}
	while (prev->next != b)
		prev = prev->next;
	prev->next = b->next;
}

static void tail_remove(struct block *b)
{
	struct block **p = &b->tail_page->tails;
	while (*p != b)
		p = &(*p)->tail_next;
	*p = b->tail_next;
	b->tail_page->blocks--;
}

static void drop(struct tr_engine *eng, struct block *b)
{
	bucket_remove(b->page, b);
	b->dead = true;
	b->page->blocks--;
	unlink_incoming(b);
	unlink_outgoing(b);
	if (b->tail_page)
		tail_remove(b);
	eng->stats.invalidations++;
}

/* Drops the blocks that cover a byte of [from, to) of `page`. Returns how many. */
static unsigned drop_range(struct tr_engine *eng, struct code_page *page, unsigned from, unsigned to)
{
	unsigned n = 0;
	for (unsigned i = 0; i < PAGE_BUCKETS; i++) {
		for (struct block *b = atomic_load(&page->bucket[i]), *next; b; b = next) {
			next = b->next;
			if (b->off >= to || b->off + b->len <= (int)from)
				continue;
			struct code_page *tail = b->tail_page;
			drop(eng, b);
			if (tail && !tail->blocks && tail != page)
				page_release(eng, tail);
			n++;
		}
	}
	for (struct block *b = page->tails, *next; b; b = next) {
		next = b->tail_next;
		if (b->tail_len <= from)
			continue;
		struct code_page *head = b->page;
		drop(eng, b);
		if (!head->blocks && head != page)
			page_release(eng, head);
		n++;
	}
	return n;
}

/* So many writes beside its code, and a page counts as data that once was code. */
#define STRAY_WRITES 16

static void page_written(struct tr_engine *eng, struct code_page *page, unsigned from, unsigned to)
{
	unsigned n = drop_range(eng, page, from, to);
	if (!n && ++page->stray_writes > STRAY_WRITES)
		n = drop_range(eng, page, 0, PAGE_SIZE);
	if (!page->blocks)
		page_release(eng, page);
	else if (!n)
		return;
	flush_lookups(eng); /* jump caches name dropped blocks, itlbs perhaps released pages */
}

void code_written(struct tr_engine *eng, struct tr_vcpu *self, uint64_t gpa, uint64_t len)
{
	exclusive_begin(eng, self);
	host_lock(&eng->lock);
	uint64_t end = gpa + len;
	for (uint64_t at = gpa; at < end; at = (at & PAGE_MASK) + PAGE_SIZE) {
		if (!guest_memory_ptr(eng->mem, at, 1, false))
			continue;
		struct code_page *page = atomic_load(&eng->page[guest_memory_page_index(eng->mem, at)]);
		if (page)
			page_written(eng, page, at & ~PAGE_MASK, (unsigned)MIN(end - (at & PAGE_MASK), PAGE_SIZE));
	}
	host_unlock(&eng->lock);
	exclusive_end(eng);
}

/* Blocks are made one after the other, so that they are sorted by the address of either part. */
static struct block *find_in(struct tr_engine *eng, unsigned part, const uint8_t *pc)
{
	unsigned lo = 0, hi = eng->blocks;
	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;
		if (eng->sorted[mid]->part[part].start <= pc)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo && pc < eng->sorted[lo - 1]->part[part].end ? eng->sorted[lo - 1] : NULL;
}

struct block *code_find_host(struct tr_engine *eng, const uint8_t *pc, const struct block_part **part)
{
	unsigned n = pc < code_rx(eng, eng->cold_start) ? PART_HOT : PART_COLD;
	struct block *b = find_in(eng, n, pc);
	if (b)
		*part = &b->part[n];
	return b;
}
