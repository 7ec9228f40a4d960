/*
 * The page walk (SDM Vol. 3A ch. 4): 4-level, PAE and 32-bit paging, in software, on the guest's own tables.
 *
 * A walk changes nothing until all its checks have passed; then accessed and dirty bits are set by compare-and-exchange
 * on what was read, and the walk starts again when another processor was faster.
 */
#include "arch/x86/internal.h"
#include "bus/memory.h"

#define PTE_P BIT(0)
#define PTE_W BIT(1)
#define PTE_U BIT(2)
#define PTE_A BIT(5)
#define PTE_D BIT(6)
#define PTE_PS BIT(7)
#define PTE_G BIT(8)
#define PTE_NX BIT(63)

#define FRAME_MASK 0x000ffffffffff000ull

struct walk {
	unsigned size;   /* of an entry: 8 or 4 bytes */
	unsigned count;  /* entries that have accessed bits, the leaf last */
	uint64_t gpa[4]; /* where each lies */
	uint64_t entry[4];
	uint64_t reserved; /* bits that no entry may have */
	uint64_t frame;    /* the leaf's page */
	unsigned shift;    /* log2 of its size */
	uint64_t rights;   /* PTE_U and PTE_W of all levels */
	bool nx;
};

/* A table that is not RAM reads as ones, as an empty bus does. */
static uint64_t read_entry(const struct x86_cpu *cpu, uint64_t gpa, unsigned size)
{
	const void *p = guest_memory_ptr(cpu->mem, gpa, size, false);

	if (!p)
		return size == 8 ? ~0ull : 0xffffffffu;
	if (size == 8)
		return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED);
	return __atomic_load_n((const uint32_t *)p, __ATOMIC_RELAXED);
}

/* Takes the entry at `gpa` into the walk. `reserved`: bits reserved at this level. Returns PF_* bits, or -1 when it is
 * good. */
static int take_entry(const struct x86_cpu *cpu, struct walk *w, uint64_t gpa, uint64_t reserved)
{
	uint64_t e = read_entry(cpu, gpa, w->size);

	if (!(e & PTE_P))
		return 0;
	w->gpa[w->count] = gpa;
	w->entry[w->count++] = e;
	if (e & (w->reserved | reserved))
		return PF_P | PF_RSVD;
	w->rights &= e;
	w->nx |= e >> 63;
	return -1;
}

static uint64_t leaf_offset_mask(unsigned shift)
{
	return BIT(shift) - 1;
}

/* The levels that long mode and PAE share: from the table at `table`, whose entries map BIT(shift) bytes each. */
static int walk_levels(const struct x86_cpu *cpu, struct walk *w, uint64_t va, uint64_t table, unsigned shift)
{
	uint64_t pml4_g =
		x86_is_amd(cpu) ? PTE_G : 0; /* APM Vol. 2 figure 5-21: bit 8 must be zero; below it is ignored */

	for (;; shift -= 9) {
		uint64_t reserved = 0, e;
		int fault;

		if (shift == 39)
			reserved = PTE_PS | pml4_g;
		else if (shift == 30 && !cpu_has(cpu, FEAT_PAGE1G))
			reserved = PTE_PS;
		fault = take_entry(cpu, w, table + (va >> shift & 511) * 8, reserved);
		if (fault >= 0)
			return fault;
		e = w->entry[w->count - 1];
		if (shift == 12 || (shift != 39 && e & PTE_PS)) {
			uint64_t low = leaf_offset_mask(shift) & ~0x1fffull; /* bit 12 of a large page is PAT */

			w->shift = shift;
			w->frame = e & FRAME_MASK & ~leaf_offset_mask(shift);
			return shift > 12 && e & low ? PF_P | PF_RSVD : -1;
		}
		table = e & FRAME_MASK;
	}
}

/* PAE's four top entries have no rights, no accessed bit and rules of their own. */
static int walk_pae(const struct x86_cpu *cpu, struct walk *w, uint64_t va)
{
	uint64_t e = read_entry(cpu, (cpu->cr3 & 0xffffffe0) + (va >> 30 & 3) * 8, 8);

	w->reserved |= bits(~0ull, 62, 52) << 52;
	if (!(e & PTE_P))
		return 0;
	if (e & (w->reserved | PTE_NX | 0x1e6))
		return PF_P | PF_RSVD;
	return walk_levels(cpu, w, va, e & FRAME_MASK, 21);
}

static int walk_32(const struct x86_cpu *cpu, struct walk *w, uint64_t va)
{
	uint64_t e;
	int fault;

	w->size = 4;
	w->reserved = 0;
	fault = take_entry(cpu, w, (cpu->cr3 & 0xfffff000) + (va >> 22 & 1023) * 4, 0);
	if (fault >= 0)
		return fault;
	e = w->entry[0];
	if (e & PTE_PS && cpu->cr4 & CR4_PSE) { /* PSE-36: bits 20:13 are bits 39:32 of the address */
		w->shift = 22;
		w->frame = (e & 0xffc00000) | bits(e, 20, 13) << 32;
		return e & BIT(21) || w->frame & phys_reserved(cpu) ? PF_P | PF_RSVD : -1;
	}
	fault = take_entry(cpu, w, (e & 0xfffff000) + (va >> 12 & 1023) * 4, 0);
	if (fault >= 0)
		return fault;
	w->shift = 12;
	w->frame = w->entry[1] & 0xfffff000;
	return -1;
}

static int walk_tables(const struct x86_cpu *cpu, struct walk *w, uint64_t va)
{
	w->size = 8;
	w->count = 0;
	w->rights = PTE_U | PTE_W;
	w->nx = false;
	w->reserved = phys_reserved(cpu) | (cpu->efer & EFER_NXE ? 0 : PTE_NX);
	if (x86_long_mode(cpu))
		return walk_levels(cpu, w, va, cpu->cr3 & FRAME_MASK, 39);
	if (cpu->cr4 & CR4_PAE)
		return walk_pae(cpu, w, va);
	return walk_32(cpu, w, va);
}

/* May a page with these rights be used so? (SDM Vol. 3A 4.6.1) */
static bool allowed(const struct x86_cpu *cpu, const struct walk *w, unsigned access)
{
	bool user_page = w->rights & PTE_U, write_page = w->rights & PTE_W;

	if (access & ACC_EXEC && w->nx)
		return false;
	if (access & ACC_USER)
		return user_page && (write_page || !(access & ACC_WRITE));
	if (access & ACC_EXEC)
		return !(user_page && cpu->cr4 & CR4_SMEP);
	if (user_page && cpu->cr4 & CR4_SMAP && (access & ACC_IMPLICIT || !(cpu->rflags & FL_AC)))
		return false;
	return !(access & ACC_WRITE) || write_page || !(cpu->cr0 & CR0_WP);
}

static enum verdict page_fault(struct x86_cpu *cpu, uint64_t va, unsigned access, unsigned error)
{
	bool nx_on = cpu->cr4 & CR4_PAE && cpu->efer & EFER_NXE;

	error |= access & ACC_WRITE ? PF_W : 0;
	error |= access & ACC_USER ? PF_U : 0;
	error |= access & ACC_EXEC && (nx_on || cpu->cr4 & CR4_SMEP) ? PF_I : 0;
	x86_raise_error(cpu, X86_PF, error);
	cpu->exc.cr2 = va;
	return V_INJECT;
}

/* Sets `want` in an entry; false when it is not any more what the walk saw. */
static bool mark_entry(struct x86_cpu *cpu, struct walk *w, unsigned i, uint64_t want)
{
	uint64_t old = w->entry[i];
	void *p = guest_memory_ptr(cpu->mem, w->gpa[i], w->size, true);
	bool same;

	w->entry[i] |= want;
	if (!p) /* tables in ROM, or nowhere: the write is lost */
		return true;
	if (w->size == 8) {
		same = __atomic_compare_exchange_n((uint64_t *)p, &old, old | want, false, __ATOMIC_SEQ_CST,
						   __ATOMIC_SEQ_CST);
	} else {
		uint32_t old32 = (uint32_t)old;
		same = __atomic_compare_exchange_n((uint32_t *)p, &old32, old32 | (uint32_t)want, false,
						   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	}
	if (same)
		guest_memory_wrote(cpu->mem, w->gpa[i], w->size);
	return same;
}

static bool mark_tables(struct x86_cpu *cpu, struct walk *w, unsigned access)
{
	for (unsigned i = 0; i < w->count; i++) {
		uint64_t want = PTE_A | (i + 1 == w->count && access & ACC_WRITE ? PTE_D : 0);

		if ((w->entry[i] & want) != want && !mark_entry(cpu, w, i, want))
			return false;
	}
	return true;
}

static void fill_mapping(const struct x86_cpu *cpu, const struct walk *w, uint64_t va, unsigned access,
			 struct x86_mapping *out)
{
	uint64_t leaf = w->entry[w->count - 1];

	out->gpa = w->frame | (va & leaf_offset_mask(w->shift));
	out->page_shift = (uint8_t)w->shift;
	out->user = w->rights & PTE_U;
	out->global = leaf & PTE_G && cpu->cr4 & CR4_PGE;
	out->nx = w->nx;
	out->writable = leaf & PTE_D && allowed(cpu, w, (access & ~ACC_EXEC) | ACC_WRITE);
}

enum verdict mmu_translate(struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_mapping *out)
{
	struct walk w;

	if (!x86_long_mode(cpu))
		va = (uint32_t)va;
	if (!(cpu->cr0 & CR0_PG)) {
		*out = (struct x86_mapping){.gpa = va, .page_shift = PAGE_SHIFT, .writable = true, .user = true};
		return V_DONE;
	}
	do {
		int fault = walk_tables(cpu, &w, va);

		if (fault >= 0)
			return page_fault(cpu, va, access, (unsigned)fault);
		if (!allowed(cpu, &w, access))
			return page_fault(cpu, va, access, PF_P);
	} while (!mark_tables(cpu, &w, access));
	fill_mapping(cpu, &w, va, access, out);
	return V_DONE;
}

bool mmu_probe(const struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_mapping *out)
{
	struct walk w;

	if (!x86_long_mode(cpu) || !(cpu->cr0 & CR0_PG) || walk_tables(cpu, &w, va) >= 0 || !allowed(cpu, &w, access))
		return false;
	for (unsigned i = 0; i < w.count; i++)
		if (!(w.entry[i] & PTE_A))
			return false;
	fill_mapping(cpu, &w, va, access, out);
	return true;
}
