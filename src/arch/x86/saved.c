/*
 * Saving and loading a processor. What is loaded may come from anywhere, and everything else takes for granted what the
 * instructions have seen to, so it is refused unless a processor can be in that state.
 */
#include "arch/x86/internal.h"
#include "bus/bus.h"

#include <string.h>

#define RFLAGS_FIXED 0xffffffffffc0802aull
#define MXCSR_AT 24
#define XSTATE_AT 512
#define XSTATE_END 576
#define MXCSR_MM BIT(17) /* AMD's */

static bool is_flag(const bool *flag)
{
	uint8_t byte;

	memcpy(&byte, flag, sizeof(byte));
	return byte <= 1;
}

static bool rflags_good(const struct x86_cpu *cpu)
{
	return (cpu->rflags & RFLAGS_FIXED) == FL_FIXED1 && cpu->shadow <= 2 &&
	       !(cpu->db_pending & ~(0xf | X86_NO_STEP | X86_TRAP_DUE)) && is_flag(&cpu->nmi_blocked) &&
	       is_flag(&cpu->halted);
}

/* SDM Vol. 3A 2.5, 4.1.1, 10.8.5. */
static bool control_good(const struct x86_cpu *cpu)
{
	uint64_t cr0 = cpu->cr0, cr4 = cpu->cr4, lma = cpu->efer & EFER_LMA;

	if (cr0 & ~CR0_DEFINED || !(cr0 & CR0_ET) || (cr0 & CR0_PG && !(cr0 & CR0_PE)) ||
	    (cr0 & CR0_NW && !(cr0 & CR0_CD)))
		return false;
	if (cr4 & ~cr4_allowed(cpu) || (cr4 & CR4_PCIDE && !lma) || (lma && !(cr4 & CR4_PAE)))
		return false;
	if (cpu->efer & ~efer_allowed(cpu) || !lma != !(cpu->efer & EFER_LME && cr0 & CR0_PG))
		return false;
	/* Outside long mode too: who leaves it keeps the upper half, which shows again when it is entered. */
	return !(cpu->cr3 & (phys_reserved(cpu) | ~(BIT(52) - 1))) && xcr0_good(cpu, cpu->xcr0);
}

static bool debug_good(const struct x86_cpu *cpu)
{
	return !(cpu->dr6 >> 32) && !(cpu->dr7 & (DR7_RESERVED | ~0xffffffffull)) && cpu->dr7 & DR7_FIXED1;
}

static bool system_segment_good(const struct x86_segment *s, unsigned types)
{
	return x86_canonical(s->base) && !(s->attr & SEG_ATTR_S) && BIT(s->attr & SEG_ATTR_TYPE) & types;
}

/* Data or readable code, or unusable. */
static bool data_segment_good(const struct x86_segment *s)
{
	return !(s->attr & SEG_ATTR_P) || (s->attr & SEG_ATTR_S && (s->attr & 0xa) != 8);
}

static bool code_segment_good(const struct x86_cpu *cpu)
{
	uint16_t attr = cpu->seg[SEG_CS].attr;

	if (!flat_selectors(cpu) && (attr & (SEG_ATTR_P | SEG_ATTR_S | 8)) != (SEG_ATTR_P | SEG_ATTR_S | 8))
		return false;
	return x86_code64(cpu) ? !(attr & SEG_ATTR_DB) : !(cpu->rip >> 32);
}

static bool segments_good(const struct x86_cpu *cpu)
{
	for (unsigned i = 0; i < X86_SEGS_ALL; i++)
		if (cpu->seg[i].attr & 0x0f00)
			return false;
	for (unsigned i = 0; i < X86_SEGS; i++) {
		const struct x86_segment *s = &cpu->seg[i];
		if (i == SEG_FS || i == SEG_GS ? !x86_canonical(s->base) : s->base >> 32)
			return false;
		if (i != SEG_CS && !data_segment_good(s))
			return false;
	}
	const struct x86_segment *ldt = &cpu->seg[SEG_LDTR];
	return code_segment_good(cpu) && (!(ldt->attr & SEG_ATTR_P) || system_segment_good(ldt, BIT(2))) &&
	       system_segment_good(&cpu->seg[SEG_TR], BIT(3) | BIT(11)) && x86_canonical(cpu->gdtr.base) &&
	       x86_canonical(cpu->idtr.base);
}

static bool privilege_good(const struct x86_cpu *cpu)
{
	if (vm86_mode(cpu))
		return cpu->cpl == 3 && cpu->cr0 & CR0_PE && !x86_long_mode(cpu);
	if (real_mode(cpu))
		return cpu->cpl == 0;
	return cpu->cpl == SEG_ATTR_DPL(cpu->seg[SEG_SS].attr);
}

/* What XRSTOR would fault on (SDM Vol. 1 13.8). */
static bool vectors_good(const struct x86_cpu *cpu)
{
	uint32_t mxcsr;
	uint64_t xstate, allowed = XCR0_X87 | XCR0_SSE | (cpu_has(cpu, FEAT_AVX) ? XCR0_AVX : 0);

	memcpy(&mxcsr, cpu->xsave + MXCSR_AT, sizeof(mxcsr));
	memcpy(&xstate, cpu->xsave + XSTATE_AT, sizeof(xstate));
	for (unsigned i = XSTATE_AT + sizeof(xstate); i < XSTATE_END; i++)
		if (cpu->xsave[i])
			return false;
	return !(mxcsr & ~(0xffff | (x86_is_amd(cpu) ? MXCSR_MM : 0))) && !(xstate & ~allowed);
}

static bool pieces_good(unsigned count, unsigned next, const struct x86_mmio_piece *piece)
{
	if (count > X86_MMIO_PENDING || next > count)
		return false;
	for (unsigned i = 0; i < count; i++)
		if (!piece[i].len || piece[i].len > 8)
			return false;
	return true;
}

static bool exit_good(const struct x86_cpu *cpu)
{
	const struct x86_exit *x = &cpu->exit;

	if ((unsigned)x->kind >= EXIT_KINDS || !is_flag(&x->write) || !is_flag(&x->completed) || !is_flag(&x->fault))
		return false;
	if (x->kind == EXIT_IO && (x->addr > UINT16_MAX || (x->len != 1 && x->len != 2 && x->len != 4)))
		return false;
	if (x->kind == EXIT_MMIO && (!x->len || x->len > 8))
		return false;
	return x->len <= 15;
}

static bool pending_good(const struct x86_cpu *cpu)
{
	return exit_good(cpu) && cpu->exc.vector < 32 && is_flag(&cpu->exc.has_error) && is_flag(&cpu->exc.soft) &&
	       is_flag(&cpu->exc.trap) && pieces_good(cpu->mmio.count, cpu->mmio.next, cpu->mmio.piece) &&
	       pieces_good(cpu->mmio_out.count, cpu->mmio_out.next, cpu->mmio_out.piece);
}

const char *x86_cpu_flaw(const struct x86_cpu *cpu)
{
	static const struct {
		bool (*good)(const struct x86_cpu *cpu);
		const char *flaw;
	} parts[] = {
		{rflags_good, "flags that no processor has"},
		{control_good, "control registers that no processor has, or not this one"},
		{debug_good, "debug registers that no processor has"},
		{segments_good, "segments that no processor has"},
		{privilege_good, "a privilege level that is not its segments'"},
		{msrs_good, "model-specific registers that no processor has, or not this one"},
		{vectors_good, "vector registers that no processor has, or not this one"},
		{pending_good, "accesses under way that cannot be"},
	};

	for (unsigned i = 0; i < ARRAY_LEN(parts); i++)
		if (!parts[i].good(cpu))
			return parts[i].flaw;
	return NULL;
}

void x86_cpu_state(struct x86_cpu *cpu, struct state_stream *s)
{
	struct x86_cpu new = *cpu;
	const char *flaw;

	/* All but who it is and the pointers, which stand between the two parts. */
	state_bytes(s, &new, offsetof(struct x86_cpu, id));
	state_bytes(s, new.xsave, sizeof(new.xsave));
	if (s->saving || s->failed)
		return;
	flaw = x86_cpu_flaw(&new);
	if (flaw) {
		state_refuse(s, flaw);
		return;
	}
	new.tsc_offset = cpu->tsc_offset; /* of another host */
	*cpu = new;
}
