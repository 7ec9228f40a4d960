/* The pages of one address space that are shown, and the host addresses where. Compiled for general registers only. */
#include "engine/translate/window_space.h"

/*
 * By all VMs, because the host bounds the number of mappings of a process, 65530 unless it was told otherwise; a page
 * in the middle of nothing makes two.
 */
static _Atomic unsigned pages_shown;

/* --- by linear address */

static unsigned hash(uint64_t page)
{
	uint64_t n = page >> PAGE_SHIFT;
	return (unsigned)((n ^ n >> 14 ^ n >> 28) % WINDOW_HASH);
}

/* `page`: the address, | WINDOW_LARGE. */
static struct window_page *page_find(struct window_space *s, uint64_t page)
{
	for (unsigned i = s->bucket[hash(page)]; i; i = s->page[i - 1].next)
		if ((s->page[i - 1].va & (PAGE_MASK | WINDOW_LARGE)) == page)
			return &s->page[i - 1];
	return NULL;
}

#define LARGE_SHIFT 21
#define LARGE_MASK (~(BIT(LARGE_SHIFT) - 1))

/* The page that `va` is in, whatever its size. */
struct window_page *space_page_of(struct window_space *s, uint64_t va)
{
	struct window_page *p = page_find(s, va & PAGE_MASK);
	return p ? p : page_find(s, (va & LARGE_MASK) | WINDOW_LARGE);
}

/* `page`: the address, | WINDOW_*. */
static void page_add(struct window_space *s, uint64_t page, uint64_t gpa)
{
	struct window_page *p = &s->page[s->count++];
	uint16_t *bucket = &s->bucket[hash(page)];
	*p = (struct window_page){.va = page, .gpa = gpa, .next = *bucket};
	*bucket = (uint16_t)s->count;
}

static uint16_t *link_to(struct window_space *s, const struct window_page *p)
{
	uint16_t number = (uint16_t)(p - s->page + 1);
	uint16_t *link = &s->bucket[hash(p->va)];
	while (*link != number)
		link = &s->page[*link - 1].next;
	return link;
}

/* The last page takes the place of `p`. */
static void page_remove(struct window_space *s, struct window_page *p)
{
	*link_to(s, p) = p->next;
	struct window_page *last = &s->page[--s->count];
	if (p == last)
		return;
	*link_to(s, last) = (uint16_t)(p - s->page + 1);
	*p = *last;
}

/* --- regions */

int space_region_find(const struct window_space *s, uint64_t va)
{
	for (unsigned i = 0; i < s->regions; i++)
		if (s->guest[i] == region_of(va))
			return (int)i;
	return -1;
}

/* Where `va`, which is in one of the space's regions, is seen. */
static uint64_t host_address(const struct window_space *s, uint64_t va)
{
	return s->host[space_region_find(s, va)] + (va & (REGION_SIZE - 1));
}

/* 0: there is none. The lock is the engine's. */
static uint64_t slot_take(struct window_slots *slots)
{
	uint64_t at = 0;
	window_lock(&slots->lock);
	for (unsigned i = 0; i < slots->made && !at; i++) {
		if (!slots->taken[i]) {
			slots->taken[i] = true;
			at = slots->at[i];
		}
	}
	if (!at && slots->made < WINDOW_SLOTS && (at = host_window_reserve(REGION_SIZE, REGION_MARGIN))) {
		slots->taken[slots->made] = true;
		slots->at[slots->made++] = at;
	}
	window_unlock(&slots->lock);
	return at;
}

static void slot_give(struct window_slots *slots, uint64_t at)
{
	window_lock(&slots->lock);
	for (unsigned i = 0; i < slots->made; i++)
		if (slots->at[i] == at)
			slots->taken[i] = false;
	window_unlock(&slots->lock);
}

uint64_t table_first_entry(const struct guest_memory *mem, uint64_t table, unsigned n)
{
	const uint64_t *entry = guest_memory_ptr(mem, table & ENTRY_TABLE, PAGE_SIZE, false);
	for (unsigned i = 0; entry && i < n; i++)
		if (entry[i] & ENTRY_PRESENT)
			return entry[i];
	return 0;
}

/*
 * For a kernel its own half first; what it shares the other with is user code's. Kernels prepare tables of the second
 * level for what may come, and leave them empty.
 */
static bool wanted(struct tr_vcpu *v, const struct window_space *s, uint64_t va, uint64_t entry)
{
	bool user = entry & ENTRY_USER, own = s->regions && region_start(s->guest[0]) >> 63;
	if (!(entry & ENTRY_PRESENT))
		return false;
	if (!space_is_kernel(s))
		return user;
	return (va >> 63 || !user || !own) && table_first_entry(v->engine->mem, entry, ENTRIES);
}

bool space_regions_add(struct tr_vcpu *v, struct window_space *s)
{
	const uint64_t *top = guest_memory_ptr(v->engine->mem, v->cpu.cr3 & ENTRY_TABLE, PAGE_SIZE, false);
	if (!top)
		return false;
	for (unsigned i = space_is_kernel(s) ? ENTRIES : ENTRIES / 2; i-- > 0;) {
		uint64_t va = (uint64_t)((int64_t)i << 55 >> 16);
		if (!wanted(v, s, va, top[i]) || space_region_find(s, va) >= 0)
			continue;
		uint64_t at = s->regions < WINDOW_REGIONS ? slot_take(&v->engine->slots) : 0;
		if (!at)
			return false;
		s->guest[s->regions] = region_of(va);
		s->host[s->regions++] = at;
	}
	return s->regions > 0;
}

/* --- what is not true any more */

static uint64_t bit_of_pcid(int pcid)
{
	return pcid >= 0 && pcid < 64 ? BIT(pcid) : 0;
}

static void local_add(struct window_space *s, uint64_t va, int pcid)
{
	ENSURE(s->locals < WINDOW_LOCALS);
	s->local[s->locals++] = (struct window_local){va, bit_of_pcid(pcid)};
}

/* That of page `p`, which is one. */
static struct window_local *local_of(struct window_space *s, const struct window_page *p)
{
	struct window_local *l = s->local;
	while (l->va != (p->va & PAGE_MASK))
		l++;
	return l;
}

void space_locals_doubt(struct window_space *s, int pcid)
{
	for (unsigned i = 0; i < s->locals; i++)
		s->local[i].known &= pcid < 0 ? 0 : ~bit_of_pcid(pcid);
}

bool space_local_doubt(struct window_space *s, uint64_t va)
{
	const struct window_page *p = s->locals ? space_page_of(s, va) : NULL;
	if (!p || !(p->va & WINDOW_LOCAL))
		return false;
	local_of(s, p)->known = 0;
	return true;
}

bool space_locals_known(const struct window_space *s, int pcid)
{
	uint64_t known = bit_of_pcid(pcid);
	for (unsigned i = 0; i < s->locals; i++)
		known &= s->local[i].known;
	return known || !s->locals;
}

static void forget(struct tr_vcpu *v, struct window_space *s, struct window_page *p)
{
	if (p->va & WINDOW_UNSEEN)
		s->unseen--;
	else
		atomic_fetch_sub(&pages_shown, 1u + p->holes);
	s->holes -= p->holes;
	if (p->va & WINDOW_LOCAL)
		*local_of(s, p) = s->local[--s->locals];
	if (p->va & WINDOW_APART)
		apart_hide(s, p->va & PAGE_MASK, window_page_size(p));
	page_remove(s, p);
	v->windows.hidden++;
}

static void hide(struct tr_vcpu *v, struct window_space *s, struct window_page *p)
{
	if (!(p->va & WINDOW_UNSEEN))
		ENSURE(host_window_hide(host_address(s, p->va & PAGE_MASK), window_page_size(p)));
	forget(v, s, p);
}

/* Host addresses to be hidden by one system call. */
struct run {
	uint64_t from, to;
};

static void run_hide(struct run *r)
{
	if (r->to)
		ENSURE(host_window_hide(r->from, r->to - r->from));
	*r = (struct run){0};
}

static void run_add(struct run *r, uint64_t at, uint64_t size)
{
	if (r->to && at + size == r->from) {
		r->from = at;
	} else if (r->to && at == r->to) {
		r->to += size;
	} else {
		run_hide(r);
		*r = (struct run){at, at + size};
	}
}

static void hide_all(struct tr_vcpu *v, struct window_space *s)
{
	if (!s->count)
		return;
	for (unsigned i = 0; i < s->regions; i++)
		ENSURE(host_window_hide(s->host[i], REGION_SIZE));
	space_forget(s);
	apart_clear(s);
	v->windows.hidden += s->count;
	s->count = s->holes = s->unseen = s->locals = 0;
	for (unsigned i = 0; i < ARRAY_LEN(s->pieces); i++)
		s->pieces[i] = 0;
	for (unsigned i = 0; i < WINDOW_HASH; i++)
		s->bucket[i] = 0;
}

void space_drop(struct tr_vcpu *v, struct window_space *s)
{
	hide_all(v, s);
	apart_release(v, s);
	for (unsigned i = 0; i < s->regions; i++)
		slot_give(&v->engine->slots, s->host[i]);
	s->regions = 0;
	s->cr3 = WINDOW_FREE;
}

/* Is the page what the page tables say now? */
static bool valid(const struct tr_vcpu *v, const struct window_space *s, const struct window_page *p)
{
	struct x86_mapping m;
	unsigned access = ACC_READ | s->access | (p->va & WINDOW_APART_EXEC ? ACC_EXEC : 0);
	return mmu_probe(&v->cpu, p->va & PAGE_MASK, access, &m) && m.gpa == p->gpa &&
	       (m.global || p->va & WINDOW_LOCAL || !space_is_kernel(s)) &&
	       (!(p->va & WINDOW_LARGE) || m.page_shift >= LARGE_SHIFT) && (!(p->va & WINDOW_WRITABLE) || m.writable);
}

static void check(struct tr_vcpu *v, struct window_space *s, struct window_page *p, struct run *run)
{
	if (!p || valid(v, s, p))
		return;
	if (!(p->va & WINDOW_UNSEEN))
		run_add(run, host_address(s, p->va & PAGE_MASK), window_page_size(p));
	forget(v, s, p);
}

static void check_locals(struct tr_vcpu *v, struct window_space *s, struct run *run)
{
	uint64_t bit = bit_of_pcid(x86_pcid(&v->cpu));
	for (unsigned i = s->locals; i-- > 0;) {
		struct window_local *l = &s->local[i];
		if (l->known & bit)
			continue;
		l->known |= bit;
		check(v, s, space_page_of(s, l->va), run);
	}
}

/* What is not true any more goes, in as few system calls as there are runs: each interrupts the host's other CPUs. */
void space_revalidate(struct tr_vcpu *v, struct window_space *s)
{
	struct run run = {0};
	for (unsigned i = s->stale ? s->count : 0; i-- > 0;)
		check(v, s, &s->page[i], &run);
	if (s->stale_local && !s->stale)
		check_locals(v, s, &run);
	for (unsigned i = 0; i < s->pendings; i++)
		check(v, s, space_page_of(s, s->pending[i]), &run);
	run_hide(&run);
	s->stale = s->stale_local = false;
	s->pendings = 0;
}

/* --- what is shown */

/* Whether stores may go into these pages: not into translated code without our knowing. */
static bool free_of_code(const struct guest_memory *mem, uint64_t gpa, uint64_t size)
{
	uint64_t first = guest_memory_page_index(mem, gpa);
	for (uint64_t i = 0; i < size >> PAGE_SHIFT; i++)
		if (atomic_load(&mem->code[first + i]))
			return false;
	return true;
}

static bool all_are_full(void)
{
	return atomic_load(&pages_shown) >= WINDOW_PAGES_ALL;
}

/* First those that this virtual CPU does not use at the moment. */
static void make_room(struct tr_vcpu *v, struct window_space *s, unsigned pages)
{
	for (unsigned i = 0; i < WINDOW_SPACES && all_are_full(); i++) {
		struct window_space *other = v->windows.space[i];
		if (other && other != s && other != v->windows.now)
			hide_all(v, other);
	}
	if (s->count + pages > WINDOW_PAGES || all_are_full())
		hide_all(v, s);
}

/* Shows [page, page + size), which is RAM and has its page in `m`. */
static bool show_page(struct tr_vcpu *v, struct window_space *s, uint64_t page, uint64_t size, uint64_t gpa,
		      bool writable)
{
	const struct guest_memory *mem = v->engine->mem;
	v->windows.shown++;
	return host_window_show(&mem->shared, host_address(s, page), window_offset(mem, gpa, size), size, writable);
}

/* After make_room, which may forget it. */
static void note_kind(struct window_space *s, uint64_t va, const struct x86_mapping *m, unsigned shift)
{
	if (m->page_shift > shift)
		s->pieces[region_of(va) / 64] |= BIT(region_of(va) % 64);
}

static uint64_t flags_of(const struct window_space *s, const struct x86_mapping *m, bool writable)
{
	return (writable ? WINDOW_WRITABLE : 0) | (space_is_kernel(s) && !m->global ? WINDOW_LOCAL : 0);
}

/*
 * Shows `n` pages in a row, the first of them `page`: the address, | WINDOW_*. NULL: the host would not, and nothing is
 * there.
 */
static struct window_page *add_shown(struct tr_vcpu *v, struct window_space *s, uint64_t page, uint64_t gpa, unsigned n)
{
	uint64_t size = page & WINDOW_LARGE ? BIT(LARGE_SHIFT) : PAGE_SIZE;
	make_room(v, s, n);
	struct window_page *first = &s->page[s->count];
	if (!(page & WINDOW_UNSEEN) && !show_page(v, s, page & PAGE_MASK, n * size, gpa, page & WINDOW_WRITABLE))
		return NULL;
	for (unsigned i = 0; i < n; i++)
		page_add(s, page + i * size, gpa + i * size);
	if (page & WINDOW_LOCAL) /* alone: pages_in_a_row */
		local_add(s, page & PAGE_MASK, x86_pcid(&v->cpu));
	if (page & WINDOW_UNSEEN) {
		s->unseen += n;
		return first;
	}
	atomic_fetch_add(&pages_shown, n);
	v->windows.shown += n - 1; /* one is counted */
	return first;
}

#define HOLES_MAX 1024 /* then it is shown anew: many may not be any more */

/* Which piece of a large page `offset` is in. */
static uint32_t piece_bit(uint64_t offset)
{
	return (uint32_t)BIT(offset / WINDOW_PIECE);
}
_Static_assert(BIT(LARGE_SHIFT) / WINDOW_PIECE == 32, "window_page has a bit for each");

static uint64_t piece_start(uint64_t offset)
{
	return offset & ~(WINDOW_PIECE - 1);
}

/* Whether the piece that `offset` of `p` is in has translated code elsewhere. */
static bool code_beside(const struct guest_memory *mem, const struct window_page *p, uint64_t offset)
{
	uint64_t piece = piece_start(offset);
	for (uint64_t at = piece; at < piece + WINDOW_PIECE; at += PAGE_SIZE)
		if (at != offset && !free_of_code(mem, p->gpa + at, PAGE_SIZE))
			return true;
	return false;
}

/*
 * Translated code in a large page that is shown writable is seen through a small one that is not. Where there is code,
 * there will be more: with the second page of it, all of a piece is barred, which is one system call for many.
 */
static bool hole(struct tr_vcpu *v, struct window_space *s, struct window_page *p, uint64_t offset)
{
	uint64_t size = PAGE_SIZE;
	uint32_t piece = piece_bit(offset);
	if (p->barred & ~p->opened & piece)
		return true;
	if (!(p->barred & piece) && code_beside(v->engine->mem, p, offset)) {
		p->barred |= piece;
		size = WINDOW_PIECE;
		offset = piece_start(offset);
	}
	p->holes++;
	s->holes++;
	atomic_fetch_add(&pages_shown, 1);
	return show_page(v, s, (p->va & PAGE_MASK) + offset, size, p->gpa + offset, false);
}

/* A store to the page at `offset`, which has no code (any more): it can be written again, and so can its neighbours. */
static bool open_hole(struct tr_vcpu *v, struct window_space *s, struct window_page *p, uint64_t offset)
{
	const struct guest_memory *mem = v->engine->mem;
	uint64_t piece = piece_start(offset), from = offset, to = offset + PAGE_SIZE;
	while (from > piece && free_of_code(mem, p->gpa + from - PAGE_SIZE, PAGE_SIZE))
		from -= PAGE_SIZE;
	while (to < piece + WINDOW_PIECE && free_of_code(mem, p->gpa + to, PAGE_SIZE))
		to += PAGE_SIZE;
	p->opened |= piece_bit(offset);
	return show_page(v, s, (p->va & PAGE_MASK) + from, to - from, p->gpa + from, true);
}

static bool holes(struct tr_vcpu *v, struct window_space *s, struct window_page *p)
{
	for (uint64_t offset = 0; offset < BIT(LARGE_SHIFT); offset += PAGE_SIZE)
		if (!free_of_code(v->engine->mem, p->gpa + offset, PAGE_SIZE) && !hole(v, s, p, offset))
			return false;
	return true;
}

static bool add_large(struct tr_vcpu *v, struct window_space *s, uint64_t page, uint64_t gpa)
{
	struct window_page *p = add_shown(v, s, page, gpa, 1);
	if (!p)
		return false;
	if (!(page & WINDOW_WRITABLE) || holes(v, s, p))
		return true;
	hide(v, s, p);
	return false;
}

/*
 * A page of the guest's that is as large as ours. For user code, if all of it can be shown in the same way; the
 * kernel's direct map has some translated code everywhere.
 */
static bool show_large(struct tr_vcpu *v, struct window_space *s, uint64_t va, const struct x86_mapping *m)
{
	struct guest_memory *mem = v->engine->mem;
	uint64_t gpa = m->gpa & LARGE_MASK, page = va & LARGE_MASK;
	const struct guest_range *r = guest_range_find(mem, gpa, BIT(LARGE_SHIFT));
	bool writable = r && m->writable && !r->readonly;
	if (m->page_shift < LARGE_SHIFT || !r ||
	    (writable && !space_is_kernel(s) && !free_of_code(mem, gpa, BIT(LARGE_SHIFT))))
		return false;
	for (uint64_t i = 0; i < 1u << (LARGE_SHIFT - PAGE_SHIFT); i++) {
		struct window_page *small = page_find(s, page + (i << PAGE_SHIFT));
		if (small)
			hide(v, s, small);
	}
	if (!add_large(v, s, page | WINDOW_LARGE | flags_of(s, m, writable), gpa))
		return false;
	note_kind(s, va, m, LARGE_SHIFT);
	return true;
}

/* A page of 4 KiB as it would be shown; false if it is no RAM. */
static bool small_page(const struct tr_vcpu *v, const struct window_space *s, uint64_t va, const struct x86_mapping *m,
		       struct window_page *p)
{
	const struct guest_memory *mem = v->engine->mem;
	uint64_t gpa = m->gpa & PAGE_MASK;
	const struct guest_range *r = guest_range_find(mem, gpa, PAGE_SIZE);
	if (!r)
		return false;
	bool writable = m->writable && !r->readonly && free_of_code(mem, gpa, PAGE_SIZE);
	*p = (struct window_page){.va = (va & PAGE_MASK) | flags_of(s, m, writable), .gpa = gpa};
	return true;
}

/*
 * How many pages, from `first` on, can be shown by one mapping: those that a TLB could hold as well. It is likely that
 * they are wanted, too. Not what makes each load of CR3 dearer.
 */
static unsigned pages_in_a_row(const struct tr_vcpu *v, struct window_space *s, const struct window_page *first)
{
	const struct guest_memory *mem = v->engine->mem;
	uint64_t page = first->va & PAGE_MASK;
	unsigned n = 1, most = first->va & WINDOW_LOCAL ? 1 : WINDOW_ROW - (unsigned)(page >> PAGE_SHIFT) % WINDOW_ROW;
	for (; n < most; n++) {
		uint64_t size = (uint64_t)n << PAGE_SHIFT;
		struct x86_mapping m;
		struct window_page next;
		if (page_find(s, page + size) || !mmu_probe(&v->cpu, page + size, ACC_READ | s->access, &m) ||
		    !small_page(v, s, page + size, &m, &next) || next.va != first->va + size ||
		    next.gpa != first->gpa + size || !guest_range_find(mem, first->gpa, size + PAGE_SIZE))
			break;
	}
	return n;
}

static bool show_small(struct tr_vcpu *v, struct window_space *s, uint64_t va, const struct x86_mapping *m, bool apart)
{
	struct guest_memory *mem = v->engine->mem;
	struct window_page first;
	if (!small_page(v, s, va, m, &first))
		return false;
	guest_memory_touch(mem, guest_memory_ptr(mem, first.gpa, PAGE_SIZE, false));
	unsigned n = pages_in_a_row(v, s, &first);
	if (!add_shown(v, s, first.va | (apart ? WINDOW_UNSEEN : 0), first.gpa, n))
		return false;
	note_kind(s, va, m, PAGE_SHIFT);
	return true;
}

/* What the process has been shown becomes seen in the windows. */
static bool see(struct tr_vcpu *v, struct window_space *s, struct window_page *p)
{
	if (!(p->va & WINDOW_UNSEEN))
		return true;
	if (!show_page(v, s, p->va & PAGE_MASK, PAGE_SIZE, p->gpa, p->va & WINDOW_WRITABLE))
		return false;
	p->va &= ~WINDOW_UNSEEN;
	s->unseen--;
	atomic_fetch_add(&pages_shown, 1);
	return true;
}

bool space_show(struct tr_vcpu *v, struct window_space *s, uint64_t va, const struct x86_mapping *m, bool write,
		bool apart)
{
	struct window_page *p = space_page_of(s, va);
	bool same = p && m->gpa - p->gpa == va - (p->va & PAGE_MASK), writable = p && p->va & WINDOW_WRITABLE;
	bool code = !free_of_code(v->engine->mem, m->gpa & PAGE_MASK, PAGE_SIZE);
	if (same && writable && write && p->holes)
		return !code && open_hole(v, s, p, (m->gpa & PAGE_MASK) - p->gpa);
	if (same && (writable || !m->writable || code))
		/* Another access of the same instruction, or a store into translated code. */
		return (apart || see(v, s, p)) && (writable || !write);
	if (p)
		hide(v, s, p);
	if (!show_large(v, s, va, m) && !show_small(v, s, va, m, apart))
		return false;
	p = space_page_of(s, va);
	return !write || p->va & WINDOW_WRITABLE;
}

/* The guest's address that is seen at `address`. */
bool space_guest_address(const struct window_space *s, uint64_t address, uint64_t *va)
{
	for (unsigned i = 0; i < s->regions; i++) {
		if (address - s->host[i] >= REGION_SIZE)
			continue;
		*va = region_start(s->guest[i]) + (address - s->host[i]);
		return true;
	}
	return false;
}

bool space_protect(struct tr_vcpu *v, struct window_space *s, uint64_t gpa)
{
	bool apart = false;
	for (unsigned i = 0; i < s->count; i++) {
		struct window_page *p = &s->page[i];
		if (gpa - p->gpa >= window_page_size(p) || !(p->va & WINDOW_WRITABLE))
			continue;
		if (p->va & WINDOW_LARGE && space_is_kernel(s) && p->holes < HOLES_MAX && hole(v, s, p, gpa - p->gpa))
			continue;
		apart |= p->va & WINDOW_APART;
		hide(v, s, p);
		i--; /* another is in its place */
	}
	return !apart;
}

void space_forget(const struct window_space *s)
{
	atomic_fetch_sub(&pages_shown, s->count - s->unseen + s->holes);
}
