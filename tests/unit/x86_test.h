/*
 * A processor with a little memory, for tests of arch/x86: page tables, descriptor tables and a TSS in 64-bit mode, and
 * single instructions given as bytes.
 */
#ifndef DOPPEL_TESTS_UNIT_X86_TEST_H
#define DOPPEL_TESTS_UNIT_X86_TEST_H

#include "unit.h"

#include "arch/x86/cpuid.h"
#include "arch/x86/emulate.h"
#include "bus/memory.h"

#define RAM_SIZE MiB(4)

/* Where things are. All of memory is mapped one to one, supervisor, writable, by 4 KiB pages; USER_BASE on is for users
 * too. */
enum {
	PML4 = 0x1000,
	PDPT = 0x2000,
	PD = 0x3000,
	PT = 0x4000 /* 2 tables: 4 MiB */,
	GDT = 0x8000,
	IDT = 0x9000,
	TSS = 0xa000,
	LDT = 0xb000,
	CODE = 0x10000,
	STACK0 = 0x20000,
	IST1 = 0x28000,
	DATA = 0x30000,
	USER_BASE = 0x100000,
	UCODE = 0x110000,
	USTACK = 0x120000,
	UDATA = 0x130000,
};

/* Selectors, without RPL. */
enum {
	K_CS = 0x10,
	K_SS = 0x18,
	U_CS32 = 0x20,
	U_SS = 0x28,
	U_CS = 0x30,
	TSS_SEL = 0x40,
	LDT_SEL = 0x50,
	K_CS32 = 0x60,
	FREE_SEL = 0x80,
};

#define D_CODE64 0x00a09b0000000000ull
#define D_CODE32 0x00cf9b000000ffffull
#define D_DATA 0x00cf93000000ffffull
#define D_DPL(n) ((uint64_t)(n) << 45)
#define D_P BIT(47)

struct x86_test {
	struct x86_cpu cpu;
	struct x86_cpuid_model model;
	struct guest_memory mem;
	unsigned flush_pages, flush_alls, modes;
	uint64_t flushed_va;
	int flushed_pcid;
	bool flushed_global;
};

static struct x86_test *t_now;

__attribute__((unused)) static void t_flush_page(struct x86_cpu *cpu, uint64_t va, int pcid)
{
	t_now->flush_pages++;
	t_now->flushed_va = va;
	t_now->flushed_pcid = pcid;
}

__attribute__((unused)) static void t_flush_all(struct x86_cpu *cpu, bool global, int pcid)
{
	t_now->flush_alls++;
	t_now->flushed_global = global;
	t_now->flushed_pcid = pcid;
}

__attribute__((unused)) static void t_mode_changed(struct x86_cpu *cpu)
{
	t_now->modes++;
}

static const struct x86_cpu_ops t_ops = {
	.flush_page = t_flush_page,
	.flush_all = t_flush_all,
	.mode_changed = t_mode_changed,
};

/* Guest memory at a physical address. */
__attribute__((unused)) static void *ram(struct x86_test *t, uint64_t gpa)
{
	void *p = guest_memory_ptr(&t->mem, gpa, 1, true);

	REQUIRE(p);
	return p;
}

__attribute__((unused)) static uint64_t peek(struct x86_test *t, uint64_t gpa)
{
	uint64_t v;

	memcpy(&v, ram(t, gpa), 8);
	return v;
}

__attribute__((unused)) static uint32_t peek32(struct x86_test *t, uint64_t gpa)
{
	return (uint32_t)peek(t, gpa);
}

__attribute__((unused)) static void poke(struct x86_test *t, uint64_t gpa, uint64_t v)
{
	memcpy(ram(t, gpa), &v, 8);
}

__attribute__((unused)) static void poke32(struct x86_test *t, uint64_t gpa, uint32_t v)
{
	memcpy(ram(t, gpa), &v, 4);
}

__attribute__((unused)) static struct x86_test *t_new(void)
{
	static struct x86_cpuid_model model; /* asking the host may take milliseconds where it is a guest itself */
	struct x86_test *t = aligned_alloc(64, align_up(sizeof(*t), 64));
	struct error err;

	if (!model.count)
		x86_cpuid_init(&model, 1, 2500000000);
	memset(t, 0, sizeof(*t));
	if (!guest_memory_init(&t->mem, RAM_SIZE, &err))
		abort();
	t->model = model;
	t->cpu.mem = &t->mem;
	t->cpu.model = &t->model;
	t->cpu.ops = &t_ops;
	t_now = t;
	x86_cpu_reset(&t->cpu, false);
	return t;
}

__attribute__((unused)) static void t_free(struct x86_test *t)
{
	guest_memory_destroy(&t->mem);
	free(t);
}

__attribute__((unused)) static void set_desc(struct x86_test *t, unsigned sel, uint64_t desc)
{
	poke(t, (sel & 4 ? LDT : GDT) + (sel & ~7u), desc);
}

/* A descriptor of 16 bytes. */
__attribute__((unused)) static void set_desc16(struct x86_test *t, unsigned sel, uint64_t low, uint64_t high)
{
	set_desc(t, sel, low);
	set_desc(t, sel + 8, high);
}

__attribute__((unused)) static uint64_t system_desc(unsigned type, uint64_t base, uint32_t limit)
{
	return (limit & 0xffff) | (base & 0xffffff) << 16 | (uint64_t)(0x80 | type) << 40 |
	       (uint64_t)(limit >> 16 & 0xf) << 48 | (base >> 24 & 0xff) << 56;
}

__attribute__((unused)) static void set_idt64(struct x86_test *t, unsigned vector, uint64_t target, unsigned type,
					      unsigned dpl, unsigned ist)
{
	uint64_t low = (target & 0xffff) | (uint64_t)K_CS << 16 | (uint64_t)ist << 32 |
		       (uint64_t)(0x80 | dpl << 5 | type) << 40 | (target >> 16 & 0xffff) << 48;

	poke(t, IDT + vector * 16, low);
	poke(t, IDT + vector * 16 + 8, target >> 32);
}

__attribute__((unused)) static void set_idt32(struct x86_test *t, unsigned vector, unsigned sel, uint32_t target,
					      unsigned type, unsigned dpl)
{
	poke(t, IDT + vector * 8,
	     (target & 0xffff) | (uint64_t)sel << 16 | (uint64_t)(0x80 | dpl << 5 | type) << 40 |
		     (uint64_t)(target >> 16) << 48);
}

/* Handlers' addresses: told apart by vector. */
#define HANDLER(vector) (0x40000ull + (vector)*16)

__attribute__((unused)) static void t_tables(struct x86_test *t)
{
	poke(t, PML4, PDPT | 7);
	poke(t, PDPT, PD | 7);
	for (unsigned i = 0; i < RAM_SIZE >> 21; i++)
		poke(t, PD + 8 * i, (PT + i * 0x1000) | 7);
	for (unsigned i = 0; i < RAM_SIZE >> 12; i++)
		poke(t, PT + 8 * i, (uint64_t)i << 12 | (i << 12 >= USER_BASE ? 7 : 3));
	set_desc(t, K_CS, D_CODE64);
	set_desc(t, K_SS, D_DATA);
	set_desc(t, U_CS32, D_CODE32 | D_DPL(3));
	set_desc(t, U_SS, D_DATA | D_DPL(3));
	set_desc(t, U_CS, D_CODE64 | D_DPL(3));
	set_desc(t, K_CS32, D_CODE32);
}

static const struct x86_segment t_code64 = {0, 0xffffffff, K_CS, 0xa09b};
static const struct x86_segment t_code32 = {0, 0xffffffff, K_CS32, 0xc09b};
static const struct x86_segment t_data = {0, 0xffffffff, K_SS, 0xc093};
static const struct x86_segment t_ucode64 = {0, 0xffffffff, U_CS | 3, 0xa0fb};
static const struct x86_segment t_ucode32 = {0, 0xffffffff, U_CS32 | 3, 0xc0fb};
static const struct x86_segment t_udata = {0, 0xffffffff, U_SS | 3, 0xc0f3};

__attribute__((unused)) static void t_segments(struct x86_test *t, const struct x86_segment *cs,
					       const struct x86_segment *ss)
{
	static const uint8_t data[] = {SEG_ES, SEG_SS, SEG_DS, SEG_FS, SEG_GS};

	t->cpu.seg[SEG_CS] = *cs;
	for (unsigned i = 0; i < ARRAY_LEN(data); i++)
		t->cpu.seg[data[i]] = *ss;
	t->cpu.cpl = cs->sel & 3;
}

/* Kernel code in 64-bit mode, with handlers for the 32 exceptions and for INT 0x80 (DPL 3). */
__attribute__((unused)) static struct x86_test *t_long(void)
{
	struct x86_test *t = t_new();
	struct x86_cpu *cpu = &t->cpu;

	t_tables(t);
	for (unsigned v = 0; v < 256; v++)
		set_idt64(t, v, HANDLER(v), 14, v == 3 || v == 4 || v == 0x80 ? 3 : 0, 0);
	poke(t, TSS + 4, STACK0);
	poke(t, TSS + 0x24, IST1);
	set_desc16(t, TSS_SEL, system_desc(11, TSS, 0x67), 0);
	set_desc16(t, LDT_SEL, system_desc(2, LDT, 0xff), 0);
	cpu->cr0 = CR0_PE | CR0_PG | CR0_WP | CR0_ET | CR0_NE;
	cpu->cr3 = PML4;
	cpu->cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	cpu->efer = EFER_LME | EFER_LMA | EFER_SCE | EFER_NXE;
	cpu->gdtr = (struct x86_table){GDT, 0xff};
	cpu->idtr = (struct x86_table){IDT, 0xfff};
	cpu->seg[SEG_TR] = (struct x86_segment){TSS, 0x67, TSS_SEL, 0x8b};
	cpu->seg[SEG_LDTR] = (struct x86_segment){0};
	t_segments(t, &t_code64, &t_data);
	cpu->gpr[RSP] = STACK0 - 0x1000;
	cpu->rip = CODE;
	cpu->rflags = FL_FIXED1 | FL_IF;
	return t;
}

__attribute__((unused)) static struct x86_test *t_user(void)
{
	struct x86_test *t = t_long();

	t_segments(t, &t_ucode64, &t_udata);
	t->cpu.gpr[RSP] = USTACK;
	t->cpu.rip = UCODE;
	return t;
}

/* 32-bit protected mode, no paging. */
__attribute__((unused)) static struct x86_test *t_protected(void)
{
	struct x86_test *t = t_long();
	struct x86_cpu *cpu = &t->cpu;

	for (unsigned v = 0; v < 256; v++)
		set_idt32(t, v, K_CS32, (uint32_t)HANDLER(v), 14, v == 3 || v == 4 || v == 0x80 ? 3 : 0);
	cpu->cr0 = CR0_PE | CR0_ET | CR0_NE;
	cpu->cr4 = 0;
	cpu->efer = 0;
	poke32(t, TSS + 4, STACK0);
	poke32(t, TSS + 8, K_SS);
	t_segments(t, &t_code32, &t_data);
	return t;
}

/* Decodes one instruction and carries it out. */
__attribute__((unused)) static enum verdict t_run(struct x86_test *t, const char *bytes, unsigned len)
{
	struct x86_insn insn;

	x86_decode(&insn, (const uint8_t *)bytes, len, x86_mode(&t->cpu), &t->model);
	if (insn.cls != CLS_SYSTEM) {
		UNIT_FAIL("%02x %02x...: class %u", (uint8_t)bytes[0], len > 1 ? (uint8_t)bytes[1] : 0, insn.cls);
		return V_RETRY;
	}
	return x86_emulate_system(&t->cpu, &insn);
}

#define RUN(t, bytes) t_run((t), (bytes), sizeof(bytes) - 1)

#define CHECK_FAULT(t, verdict, vec, err)             \
	do {                                          \
		CHECK_EQ((verdict), V_INJECT);        \
		CHECK_EQ((t)->cpu.exc.vector, (vec)); \
		CHECK_EQ((t)->cpu.exc.error, (err));  \
	} while (0)

#endif
