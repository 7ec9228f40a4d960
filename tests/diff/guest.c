/* A guest with page tables that show the same window and code page as the process has, user accessible. */
#include "diff.h"

#include "bus/memory.h"

#include <string.h>

#define PML4 0x1000ull
#define PDPT(n) (0x2000ull + (n)*PAGE_SIZE) /* 0: the lower half of the address space, 1: the upper */
#define PD(n) (0x4000ull + (n)*PAGE_SIZE)
#define PT(n) (0x6000ull + (n)*PAGE_SIZE)

#define PTE_P BIT(0)
#define PTE_W BIT(1)
#define PTE_U BIT(2)
#define PTE_A BIT(5)
#define PTE_D BIT(6)
#define PTE_NX BIT(63)

static void put_entry(struct guest_memory *mem, uint64_t table, uint64_t index, uint64_t entry)
{
	guest_memory_write(mem, table + index * 8, &entry, 8);
}

/* Each area has a page table of its own, `n`. */
static void map_page(struct guest_memory *mem, unsigned n, uint64_t va, uint64_t gpa, uint64_t bits)
{
	unsigned half = va >> 63;

	put_entry(mem, PML4, va >> 39 & 511, PDPT(half) | PTE_P | PTE_W | PTE_U);
	put_entry(mem, PDPT(half), va >> 30 & 511, PD(half) | PTE_P | PTE_W | PTE_U);
	put_entry(mem, PD(half), va >> 21 & 511, PT(n) | PTE_P | PTE_W | PTE_U);
	put_entry(mem, PT(n), va >> 12 & 511, gpa | bits);
}

bool guest_layout(struct guest_memory *mem)
{
	struct error err;

	if (!guest_memory_init(mem, GUEST_SIZE, &err)) {
		printf("FAIL diff: %s\n", err.text);
		return false;
	}
	for (unsigned i = 0; i < WINDOW_PAGES; i++) {
		uint64_t bits = PTE_U | PTE_NX | (window_kind[i] == PAGE_NONE ? 0 : PTE_P) |
				(window_kind[i] == PAGE_RW ? PTE_W : 0);
		map_page(mem, 0, WINDOW + i * PAGE_SIZE, GUEST_WINDOW + i * PAGE_SIZE, bits);
	}
	map_page(mem, 1, CODE, GUEST_CODE, PTE_P | PTE_U);
	for (unsigned i = 0; i < GUEST_KERNEL_PAGES; i++)
		map_page(mem, 2, KERNEL + i * PAGE_SIZE, GUEST_KERNEL + i * PAGE_SIZE, PTE_P | PTE_W);
	guest_memory_write(mem, GUEST_TSS + 0x66, &(uint16_t){0xffff}, 2); /* no I/O permission map */
	memset(guest_memory_ptr(mem, GUEST_CODE, PAGE_SIZE, true), 0xcc, PAGE_SIZE);
	return true;
}

static void load_segments(struct x86_cpu *cpu, const struct diff_case *c)
{
	for (unsigned i = 0; i < X86_SEGS; i++)
		cpu->seg[i] = (struct x86_segment){.limit = 0xffffffff, .sel = 0x2b, .attr = 0xc0f3};
	cpu->seg[SEG_CS].attr = c->mode == MODE_64 ? 0xa0fb : 0xc0fb;
	cpu->seg[SEG_CS].sel = c->mode == MODE_64 ? 0x33 : 0x23;
	cpu->seg[SEG_TR] = (struct x86_segment){
		.base = KERNEL + (GUEST_TSS - GUEST_KERNEL), .limit = 0x67, .sel = 0x40, .attr = 0x8b};
	for (unsigned i = SEG_FS; i <= SEG_GS; i++)
		cpu->seg[i] = (struct x86_segment){.base = i == SEG_FS ? c->in.fs : c->in.gs};
}

void guest_cpu_load(struct x86_cpu *cpu, const struct diff_case *c)
{
	cpu->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	cpu->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE;
	cpu->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	cpu->cr3 = PML4;
	cpu->xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
	cpu->cpl = 3;
	cpu->shadow = 0;
	cpu->halted = false;
	load_segments(cpu, c);
	memcpy(cpu->gpr, c->in.gpr, sizeof(cpu->gpr));
	memcpy(cpu->xsave, c->in.xsave, sizeof(cpu->xsave));
	cpu->rip = c->in.rip;
	cpu->rflags = c->in.rflags | FL_FIXED1 | FL_IF;
}

void guest_cpu_store(const struct x86_cpu *cpu, struct diff_state *out)
{
	memcpy(out->gpr, cpu->gpr, sizeof(out->gpr));
	memcpy(out->xsave, cpu->xsave, sizeof(out->xsave));
	out->rip = cpu->rip;
	out->rflags = cpu->rflags;
}

void guest_memory_load(struct guest_memory *mem, const struct diff_case *c)
{
	uint64_t code = GUEST_CODE + (c->in.rip - CODE);

	memcpy(guest_memory_ptr(mem, GUEST_WINDOW, WINDOW_SIZE, true), c->memory, WINDOW_SIZE);
	guest_memory_write(mem, code, c->code, c->len);
	guest_memory_wrote(mem, code, c->len);
}
