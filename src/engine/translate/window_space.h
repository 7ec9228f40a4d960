/*
 * The pages of one address space that are shown, between window.c, which decides who gets windows, and the host. The
 * callers hold the lock of struct windows.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_WINDOW_SPACE_H
#define DOPPEL_ENGINE_TRANSLATE_WINDOW_SPACE_H

#include "engine/translate/light.h"

static inline void window_lock(_Atomic bool *l)
{
	while (atomic_exchange_explicit(l, true, memory_order_acquire))
		__builtin_ia32_pause();
}

static inline void window_unlock(_Atomic bool *l)
{
	atomic_store_explicit(l, false, memory_order_release);
}

static inline uint64_t ns_to_tsc(const struct tr_vcpu *v, uint64_t ns)
{
	return (uint64_t)((__uint128_t)ns * v->engine->model->tsc_hz / 1000000000);
}

static inline uint64_t tsc_to_ns(const struct tr_vcpu *v, uint64_t ticks)
{
	return (uint64_t)((__uint128_t)ticks * 1000000000 / v->engine->model->tsc_hz);
}

/* By what the address space at hand is told: window_space.cr3. */
static inline uint64_t space_of(const struct x86_cpu *cpu)
{
	return cpu->cr3 & 0x000ffffffffff000ull;
}

/* The program in that. */
static inline uint64_t program_here(const struct tr_vcpu *v)
{
	return direct_program(v->engine->mem, v->cpu.cr3);
}

static inline bool is_ram(const struct tr_vcpu *v, uint64_t gpa)
{
	return guest_range_find(v->engine->mem, gpa, 1);
}

static inline uint64_t window_page_size(const struct window_page *p)
{
	return p->va & WINDOW_LARGE ? MiB(2) : PAGE_SIZE;
}

/* Where [gpa, gpa + size), which is RAM, is in the memory that is shown. */
static inline uint64_t window_offset(const struct guest_memory *mem, uint64_t gpa, uint64_t size)
{
	const struct guest_range *r = guest_range_find(mem, gpa, size);
	return (uint64_t)(r->host + (gpa - r->gpa) - mem->shared.at);
}

/* The guest's page tables, where they are read without a walk. */
#define ENTRY_PRESENT 1u
#define ENTRY_USER 4u
#define ENTRY_LARGE 0x80u
#define ENTRY_TABLE 0x000ffffffffff000ull
#define ENTRIES 512u
/* The first entry in use of the first `n` in the table that an entry, or CR3, leads to; 0: there is none. */
uint64_t table_first_entry(const struct guest_memory *mem, uint64_t table, unsigned n);

#define WINDOW_ROW 16 /* pages that are shown at once at most */

static inline bool space_is_kernel(const struct window_space *s)
{
	return s->cr3 == WINDOW_KERNEL;
}

/* Gives windows to the regions that the guest's tables name; false when they name none, or there is no room. */
bool space_regions_add(struct tr_vcpu *v, struct window_space *s);
/* The same for those that came into use, and translated code comes to know. In window.c. */
void window_regions_add(struct tr_vcpu *v, struct window_space *s);
int space_region_find(const struct window_space *s, uint64_t va); /* its number in the space, or -1 */
/* The guest's address that is seen at `address`; false: none is. */
bool space_guest_address(const struct window_space *s, uint64_t address, uint64_t *va);
struct window_page *space_page_of(struct window_space *s, uint64_t va); /* the page that `va` is in, of any size */

/*
 * Shows the page that `va` is in, in place of what was shown there; false when a `write` is not to go through it.
 * `apart`: it is wanted in the process that has the space, and need not be seen in the windows.
 */
bool space_show(struct tr_vcpu *v, struct window_space *s, uint64_t va, const struct x86_mapping *m, bool write,
		bool apart);
/* Compares what is stale or pending with the page tables. What is not true any more goes. */
void space_revalidate(struct tr_vcpu *v, struct window_space *s);
/* Those of its pages that are not global have been flushed for this PCID, -1: for all; are they known for it? */
void space_locals_doubt(struct window_space *s, int pcid);
bool space_locals_known(const struct window_space *s, int pcid);
bool space_local_doubt(struct window_space *s, uint64_t va); /* the one with `va`, for all PCIDs; false: none has */
/* RAM page `gpa` is not to be written through windows. False: it could be written in the process as well. */
bool space_protect(struct tr_vcpu *v, struct window_space *s, uint64_t gpa);
/*
 * window_apart.c: what the process that has the space is shown. Nothing of it is done before direct_settle has it done.
 *
 * Shows `p` there as it is shown in the windows, to be executed if `exec`. False: nothing can be shown at such an
 * address.
 */
bool apart_show(struct tr_vcpu *v, struct window_space *s, struct window_page *p, bool exec);
/* Whether it has breakpoints left for code at `gpa`; if not, other pages that have some go when that is shown. */
bool apart_has_breaks_for(const struct tr_engine *eng, const struct window_space *s, uint64_t gpa);
/* [va, va + size) goes. */
void apart_hide(struct window_space *s, uint64_t va, uint64_t size);
/* Everything goes. */
void apart_clear(struct window_space *s);
/* No virtual CPU executes RAM page `gpa` directly any more. Exclusive. */
void apart_revoke(struct tr_engine *eng, uint64_t gpa);
void apart_revoke_all(struct tr_engine *eng);
/* The process is for other address spaces. */
void apart_release(struct tr_vcpu *v, struct window_space *s);

/* All goes, and the space is WINDOW_FREE. */
void space_drop(struct tr_vcpu *v, struct window_space *s);
/* The same, without the host being told: its addresses go next. */
void space_forget(const struct window_space *s);

#endif
