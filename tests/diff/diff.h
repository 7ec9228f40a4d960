/*
 * Differential tests of instructions: random instances of every instruction that the CPU model claims are run on the
 * real processor in user mode and by the engine's ways of carrying them out, and all that a program could see is
 * compared.
 *
 * Both sides see the same linear addresses: a window of data pages, some of them read-only or missing, and a page of
 * code.
 */
#ifndef DOPPEL_TESTS_DIFF_H
#define DOPPEL_TESTS_DIFF_H

#include "arch/x86/cpuid.h"
#include "arch/x86/emulate.h"
#include "arch/x86/insn.h"

#include <stdio.h>

#define WINDOW 0x40000000ull
#define WINDOW_PAGES 8
#define WINDOW_SIZE (WINDOW_PAGES * PAGE_SIZE)
#define CODE 0x50000000ull /* one page, all INT3 around the case */
#define MAX_CODE 256
#define MAX_INSNS 16

enum page_kind { PAGE_NONE, PAGE_RO, PAGE_RW };
extern const enum page_kind window_kind[WINDOW_PAGES];

/* Flags that a user program sees and that are compared. */
#define FL_COMPARED (FL_ARITH | FL_DF | FL_AC | FL_ID | FL_NT)

struct diff_state {
	_Alignas(64) uint8_t xsave[X86_XSAVE_SIZE];
	uint64_t gpr[X86_GPRS], rip, rflags, fs, gs;
};

struct diff_case {
	uint64_t seed; /* that made it */
	enum x86_mode mode;
	const char *name;                  /* of its (first) instruction */
	struct x86_insn insn;              /* the first one */
	unsigned count;                    /* instructions */
	uint16_t offset[MAX_INSNS + 1];    /* where each begins, and the end */
	uint64_t undefined[MAX_INSNS + 1]; /* flags that are undefined there */
	uint8_t code[MAX_CODE];
	unsigned len;
	struct diff_state in;
	uint8_t memory[WINDOW_SIZE];
};

struct diff_result {
	int vector; /* exception, or -1: ran to its end, or left by a branch */
	uint32_t error;
	uint64_t cr2;
	struct diff_state out;
	uint8_t *memory; /* the back-end's window */
};

/* One way of running a case. */
struct backend {
	const char *name;
	bool loose; /* flags left undefined, and the x87's pointers to its last instruction, may differ */
	bool (*start)(const struct x86_cpuid_model *model);
	void (*run)(const struct diff_case *c, struct diff_result *r);
};

extern const struct backend backend_native, backend_step, backend_translate, backend_window, backend_mixed;

/* --- guest.c: the guest's memory and processor, for back-ends other than native --- */

#define GUEST_SIZE MiB(16)
#define GUEST_WINDOW 0x100000ull /* gpa */
#define GUEST_CODE 0x200000ull
#define GUEST_KERNEL 0x300000ull /* gpa; a page for supervisor tables, seen at linear KERNEL */
#define GUEST_KERNEL_PAGES 4
#define KERNEL 0xffffffff90000000ull
#define GUEST_TSS GUEST_KERNEL /* and what the translate back-end puts behind it */

struct guest_memory;
/* Lays out page tables for the window, the code page and the supervisor's pages. */
bool guest_layout(struct guest_memory *mem);
/* User mode of the case's code size, with the case's registers. */
void guest_cpu_load(struct x86_cpu *cpu, const struct diff_case *c);
void guest_cpu_store(const struct x86_cpu *cpu, struct diff_state *out);
void guest_memory_load(struct guest_memory *mem, const struct diff_case *c);

/* --- step.c, for those who look at each instruction: begin, then what it decoded, one by one, then the result --- */

const struct x86_cpu *step_load(const struct diff_case *c);
enum verdict step_one(const struct x86_insn *insn);
void step_store(enum verdict last, struct diff_result *r);

/* --- native.c --- */

/* The handler of host faults that belong to the other back-ends is chained behind native's. */
static inline bool native_can_run(enum x86_mode mode)
{
	uint32_t rights = 0, selector = 0x23;

	/* Linux without ia32 emulation has no such segment. */
	__asm__("lar %1, %0" : "+r"(rights) : "r"(selector) : "cc");
	return mode == MODE_64 || (mode == MODE_32 && (rights & 0xf800) == 0xf800);
}

/* --- random.c --- */

struct rng {
	uint64_t s;
};
uint64_t rng_next(struct rng *r);
static inline unsigned rng_below(struct rng *r, unsigned n)
{
	return (unsigned)((rng_next(r) >> 32) * n >> 32);
}
static inline bool rng_chance(struct rng *r, unsigned percent)
{
	return rng_below(r, 100) < percent;
}
uint64_t random_value(struct rng *r);
uint64_t random_window(struct rng *r, unsigned align);
void random_state(struct rng *r, struct diff_case *c);

/* --- template.c: every encoding that there is --- */

struct template
{
	uint16_t mnemonic;
	uint8_t vex, map, opcode;
	uint8_t prefix; /* bit 0: 66, bit 1: F3, bit 2: F2 */
	uint8_t w, l;
	uint8_t modrm; /* its fixed fields */
	bool has_modrm, mem, free_reg, free_rm, use_vvvv;
	uint8_t cls;
};

struct templates {
	struct template *t;
	unsigned count;
	unsigned *first; /* by mnemonic: index into t, sorted by mnemonic */
	unsigned mnemonics;
	uint16_t *mnemonic; /* those that have templates */
};

void templates_init(struct templates *all, enum x86_mode mode, const struct x86_cpuid_model *model);

/* --- generate.c --- */

/* Makes case `seed` of one instruction of `mnemonic` (index into templates.mnemonic); false when this try came to
 * nothing. */
bool generate_one(struct diff_case *c, const struct templates *all, unsigned mnemonic, uint64_t seed,
		  enum x86_mode mode, const struct x86_cpuid_model *model);
/* Makes a case of several instructions in a row. */
bool generate_block(struct diff_case *c, const struct templates *all, uint64_t seed, enum x86_mode mode,
		    const struct x86_cpuid_model *model);

/* Linear address of the first instruction's memory operand. */
uint64_t case_linear(const struct diff_case *c);

/* --- facts.c --- */

/* Whether the case, whose native result is `first`, bears out what the decoder says of it; else `why`. Changes the
 * case. */
bool check_facts(struct diff_case *c, const struct diff_result *first, char *why, size_t size);

/* --- reach.c --- */

/* Why cases of this mnemonic are not run natively; NULL when they are. */
const char *not_reachable(uint16_t mnemonic, enum x86_mode mode);

/* --- compare.c --- */

/* Flags that an instruction leaves undefined, by Zydis's tables. */
uint64_t flags_undefined(const struct x86_insn *insn);

/* True when equal, or differing only in what `loose` allows; else `why` says the first difference. */
bool compare_results(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got,
		     bool loose, char *why, size_t size);
void print_case(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got);

#endif
