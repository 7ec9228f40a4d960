/* Comparison of what two back-ends came to, and its report. */
#include "diff.h"

#include <inttypes.h>
#include <string.h>
#include <Zydis/Zydis.h>

static const char *const gpr_name[X86_GPRS] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

/* Fields of an XSAVE area that are state; those between are padding. */
static const struct {
	const char *name;
	uint16_t off, len, stride, count;
} vector_field[] = {
	{"fcw", 0, 2, 0, 1},      {"fsw", 2, 2, 0, 1},       {"ftw", 4, 1, 0, 1},    {"fop", 6, 2, 0, 1},
	{"fip", 8, 8, 0, 1},      {"fdp", 16, 8, 0, 1},      {"mxcsr", 24, 4, 0, 1}, {"st", 32, 10, 16, 8},
	{"xmm", 160, 16, 16, 16}, {"ymmh", 576, 16, 16, 16},
};

/* Flags that are left undefined may be anything, also what they were. */
uint64_t flags_undefined(const struct x86_insn *insn)
{
	ZydisDecoder decoder;
	ZydisDecodedInstruction zi;
	ZydisDecoderContext ctx;

	ZydisDecoderInit(&decoder, insn->mode == MODE_64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
			 insn->mode == MODE_64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
	if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, &ctx, insn->bytes, insn->len, &zi)) || !zi.cpu_flags)
		return 0;
	return zi.cpu_flags->undefined;
}

/* Components in their initial state may have anything in memory. */
static void fill_initial(uint8_t *xs)
{
	if (!(xs[512] & 1)) {
		memset(xs, 0, 24);
		memset(xs + 32, 0, 128);
		xs[0] = 0x7f;
		xs[1] = 3;
	}
	if (!(xs[512] & 2))
		memset(xs + 160, 0, 256);
	if (!(xs[512] & 4))
		memset(xs + 576, 0, 256);
}

static bool compare_vectors(const struct diff_state *a, const struct diff_state *b, bool loose, char *why, size_t size)
{
	uint8_t x[X86_XSAVE_SIZE], y[X86_XSAVE_SIZE];

	memcpy(x, a->xsave, sizeof(x));
	memcpy(y, b->xsave, sizeof(y));
	fill_initial(x);
	fill_initial(y);
	for (unsigned i = 0; i < ARRAY_LEN(vector_field); i++) {
		if (loose && vector_field[i].off >= 6 && vector_field[i].off < 24)
			continue;
		for (unsigned n = 0; n < vector_field[i].count; n++) {
			unsigned off = vector_field[i].off + n * vector_field[i].stride;
			if (memcmp(x + off, y + off, vector_field[i].len) == 0)
				continue;
			int p = snprintf(why, size, "%s%u:", vector_field[i].name, n);
			for (unsigned k = vector_field[i].len; k--;)
				p += snprintf(why + p, size - (size_t)p, "%s%02x",
					      k == vector_field[i].len - 1u ? " " : "", x[off + k]);
			p += snprintf(why + p, size - (size_t)p, " not");
			for (unsigned k = vector_field[i].len; k--;)
				p += snprintf(why + p, size - (size_t)p, "%s%02x",
					      k == vector_field[i].len - 1u ? " " : "", y[off + k]);
			return false;
		}
	}
	return true;
}

static bool compare_memory(const struct diff_result *a, const struct diff_result *b, char *why, size_t size)
{
	if (memcmp(a->memory, b->memory, WINDOW_SIZE) == 0)
		return true;
	for (unsigned i = 0; i < WINDOW_SIZE; i++) {
		if (a->memory[i] != b->memory[i]) {
			snprintf(why, size, "byte at %#" PRIx64 ": %02x not %02x", (uint64_t)WINDOW + i, a->memory[i],
				 b->memory[i]);
			return false;
		}
	}
	return true;
}

static bool differ(char *why, size_t size, const char *what, uint64_t want, uint64_t got)
{
	snprintf(why, size, "%s: %#" PRIx64 " not %#" PRIx64, what, want, got);
	return false;
}

/* Which of several accesses that fault is first is the processor's own business, and so is what a fault leaves below
 * the stack. */
static bool pushes_many(unsigned mnemonic)
{
	return mnemonic == ZYDIS_MNEMONIC_ENTER || mnemonic == ZYDIS_MNEMONIC_PUSHA ||
	       mnemonic == ZYDIS_MNEMONIC_PUSHAD;
}

/* Both operands are memory, at places of their own: AMD's Zen 5 looks at DS:RSI first, Zen 3 at ES:RDI. */
static bool compares_strings(const struct x86_insn *insn)
{
	return insn->map == 0 && (insn->opcode == 0xa6 || insn->opcode == 0xa7);
}

/* FXSAVE, XSAVE, FNSAVE and what restores: which of their pages is looked at first differs even between runs. */
static bool is_area(const struct x86_insn *insn)
{
	return insn->cls == CLS_SPECIAL && (insn->flags & INSN_FPU) && (insn->flags & INSN_MEM);
}

/*
 * Intel's processors: XSAVE and XRSTOR look at the pages of components that are not in use, or asked for, sometimes;
 * and XRSTOR has loaded some when it faults.
 */
static bool is_area_fault(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got)
{
	unsigned op = c->insn.modrm >> 3 & 7;
	bool loads = c->insn.opcode == 0xae ? op == 5 : op == 3;
	bool xsave = c->insn.map == 1 && ((c->insn.opcode == 0xae && op >= 4) || c->insn.opcode == 0xc7);

	if (!xsave || !is_area(&c->insn) || x86_host_is_amd())
		return false;
	if (want->vector == X86_AC && got->vector == X86_GP) /* of a misaligned area (SDM Vol. 2 XSAVE) */
		return true;
	return want->vector == X86_PF || got->vector == X86_PF ||
	       (loads && want->vector >= 0 && want->vector == got->vector);
}

/* Which byte of a page CR2 names for a masked store that reaches into it from the page before is the processor's
 * choice. */
static bool is_masked_store(const struct x86_insn *insn)
{
	return insn->cls == CLS_SPECIAL && (insn->flags & INSN_AVX) && insn->mem_write && !x86_host_is_amd();
}

/* Flags that the manuals leave undefined and the emulator does not copy. All others are compared, undefined or not. */
static uint64_t flags_compared(const struct diff_case *c, uint64_t rip, bool loose)
{
	unsigned i = 0;

	while (i < c->count && rip - c->in.rip != c->offset[i])
		i++;
	if (loose)
		return FL_COMPARED & ~c->undefined[i];
	switch (c->insn.mnemonic) {
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
		return FL_COMPARED & ~FL_OF;
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
		return FL_COMPARED & ~(FL_OF | FL_SF | FL_ZF | FL_PF);
	case ZYDIS_MNEMONIC_AAD:
	case ZYDIS_MNEMONIC_AAM:
		return FL_COMPARED & ~(FL_OF | FL_AF | FL_CF);
	default:
		return FL_COMPARED;
	}
}

#define AREA 1024 /* more than the largest operand */

/*
 * Where the processor met the fault. An operand of a 16-bit address that goes beyond 64 KiB goes on there; but what the
 * processor does in several accesses (FXSAVE, VMASKMOV) goes on at 0. Neither has pages here.
 */
static uint64_t fault_address(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got)
{
	bool wraps = c->insn.addrsize == 2 && want->cr2 < AREA && got->cr2 - (KiB(64) - AREA) < 2 * AREA;

	return want->cr2 + (wraps ? KiB(64) : 0);
}

/* What goes on behind 4 GiB, with a limit of 4 GiB, may be #GP or not (SDM Vol. 3A 5.3): on Intel's it is not. */
static bool beyond_limit(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got)
{
	bool close = want->cr2 < AREA || want->cr2 >= GiB(4) - AREA;

	return !x86_host_is_amd() && c->mode == MODE_32 && !(c->insn.flags & INSN_ALIGN) &&
	       (got->vector == X86_GP || got->vector == X86_SS) &&
	       ((want->vector == X86_PF && close) || want->vector == X86_AC);
}

/* Where the host may have pages, no program's, and the guest has none: the last of the lower half, and the upper half.
 */
static bool host_has_pages(uint64_t va)
{
	return va >> 63 || (!x86_host_is_amd() && va >= BIT(47) - PAGE_SIZE);
}

static bool compare_faults(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got,
			   char *why, size_t size)
{
	if (want->vector >= 0 && got->vector >= 0 && compares_strings(&c->insn))
		return true;
	if (beyond_limit(c, want, got))
		return true;
	if (want->vector != got->vector)
		return differ(why, size, "exception", (uint64_t)want->vector, (uint64_t)got->vector);
	if ((want->error ^ got->error) & ~(host_has_pages(want->cr2) ? PF_P : 0u))
		return differ(why, size, "error code", want->error, got->error);
	if (is_masked_store(&c->insn) && (want->cr2 ^ got->cr2) < PAGE_SIZE)
		return true;
	if (fault_address(c, want, got) != got->cr2)
		return differ(why, size, "cr2", want->cr2, got->cr2);
	return true;
}

static bool compare_registers(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got,
			      bool loose, char *why, size_t size)
{
	if (want->out.rip != got->out.rip)
		return differ(why, size, "rip", want->out.rip, got->out.rip);
	for (unsigned i = 0; i < (c->mode == MODE_64 ? X86_GPRS : 8); i++) {
		uint64_t mask = c->mode == MODE_64 ? ~0ull : 0xffffffff;
		if ((want->out.gpr[i] ^ got->out.gpr[i]) & mask)
			return differ(why, size, gpr_name[i], want->out.gpr[i], got->out.gpr[i]);
	}
	if ((want->out.rflags ^ got->out.rflags) & flags_compared(c, want->out.rip, loose))
		return differ(why, size, "rflags", want->out.rflags & FL_COMPARED, got->out.rflags & FL_COMPARED);
	return true;
}

bool compare_results(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got,
		     bool loose, char *why, size_t size)
{
	if (want->vector >= 0 && got->vector >= 0 && pushes_many(c->insn.mnemonic))
		return true;
	if (want->vector == X86_PF && got->vector == X86_PF && is_area(&c->insn) &&
	    (want->cr2 - got->cr2 + AREA < 2 * AREA ||
	     (!x86_host_is_amd() && fault_address(c, want, got) - got->cr2 + AREA < 2 * AREA)))
		return true;
	if (is_area_fault(c, want, got))
		return true;
	return compare_faults(c, want, got, why, size) && compare_registers(c, want, got, loose, why, size) &&
	       compare_vectors(&want->out, &got->out, loose, why, size) && compare_memory(want, got, why, size);
}

void print_case(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got)
{
	printf("  mode %d, seed %#" PRIx64 ", %s, at %#" PRIx64 ":",
	       c->mode == MODE_64   ? 64
	       : c->mode == MODE_32 ? 32
				    : 16,
	       c->seed, c->name, c->in.rip);
	for (unsigned i = 0; i < c->len; i++)
		printf(" %02x", c->code[i]);
	printf("\n");
	for (unsigned i = 0; i < X86_GPRS; i++)
		printf("  %-3s %016" PRIx64 " -> %016" PRIx64 " %016" PRIx64 "\n", gpr_name[i], c->in.gpr[i],
		       want->out.gpr[i], got->out.gpr[i]);
	printf("  rip -> %" PRIx64 " %" PRIx64 "\n", want->out.rip, got->out.rip);
	printf("  rflags %" PRIx64 " -> %" PRIx64 " %" PRIx64 ", mxcsr %02x%02x, fcw %02x%02x fsw %02x%02x\n",
	       c->in.rflags, want->out.rflags, got->out.rflags, c->in.xsave[25], c->in.xsave[24], c->in.xsave[1],
	       c->in.xsave[0], c->in.xsave[3], c->in.xsave[2]);
}
