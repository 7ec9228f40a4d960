/*
 * FXSAVE, FXRSTOR and the XSAVE family from translated code. The guest's vector state is live in the host's registers,
 * so the host's own instruction does the work: saves go straight to guest memory; restores go through a copy, checked
 * first, because another CPU could change the image in between and the fault would be ours. Whatever is unusual is left
 * to the slow path (SDM Vol. 1 13.7-13.13).
 */
#include "engine/translate/light.h"

#include <Zydis/Mnemonic.h>

enum xs_op { XS_FXSAVE, XS_XSAVE, XS_XSAVEC, XS_FXRSTOR, XS_XRSTOR, XS_XRSTORS };

static const struct {
	uint16_t mnemonic;
	uint8_t op;
	bool supervisor;
} xs_table[] = {
	{ZYDIS_MNEMONIC_FXSAVE64, XS_FXSAVE, false},  {ZYDIS_MNEMONIC_FXRSTOR64, XS_FXRSTOR, false},
	{ZYDIS_MNEMONIC_XSAVE64, XS_XSAVE, false},    {ZYDIS_MNEMONIC_XSAVEC64, XS_XSAVEC, false},
	{ZYDIS_MNEMONIC_XSAVEOPT64, XS_XSAVE, false}, {ZYDIS_MNEMONIC_XSAVES64, XS_XSAVEC, true}, /* IA32_XSS is 0 */
	{ZYDIS_MNEMONIC_XRSTOR64, XS_XRSTOR, false},  {ZYDIS_MNEMONIC_XRSTORS64, XS_XRSTORS, true},
};

static int find_op(const struct x86_insn *insn)
{
	for (unsigned i = 0; i < ARRAY_LEN(xs_table); i++)
		if (xs_table[i].mnemonic == insn->mnemonic)
			return (int)i;
	return -1;
}

bool light_xstate_knows(const struct x86_insn *insn)
{
	return find_op(insn) >= 0;
}

#define HEADER 512
#define COMPACTED BIT(63)

static uint64_t load64(const uint8_t *p)
{
	return *(const uint64_t *)(const void *)p;
}

/* An image that XRSTOR takes without a fault, for components of `xcr0`. */
static bool image_good(const uint8_t *image, enum xs_op op, uint64_t xcr0)
{
	if (*(const uint32_t *)(const void *)(image + 24) & 0xffff0000) /* MXCSR's reserved bits */
		return false;
	if (op == XS_FXRSTOR)
		return true;
	uint64_t bv = load64(image + HEADER), comp = load64(image + HEADER + 8);
	for (unsigned i = 16; i < 64; i += 8)
		if (load64(image + HEADER + i))
			return false;
	if (bv & ~xcr0)
		return false;
	if (op == XS_XRSTORS || (comp & COMPACTED))
		return (comp & COMPACTED) && !((comp & ~COMPACTED) & ~xcr0) && !(bv & ~comp);
	return comp == 0;
}

static void execute(enum xs_op op, uint8_t *image, uint64_t mask)
{
	uint32_t lo = (uint32_t)mask, hi = (uint32_t)(mask >> 32);
	switch (op) {
	case XS_FXSAVE:
		__asm__ volatile("fxsave64 (%0)" : : "r"(image) : "memory");
		break;
	case XS_XSAVE:
		__asm__ volatile("xsave64 (%0)" : : "r"(image), "a"(lo), "d"(hi) : "memory");
		break;
	case XS_XSAVEC:
		__asm__ volatile("xsavec64 (%0)" : : "r"(image), "a"(lo), "d"(hi) : "memory");
		break;
	case XS_FXRSTOR:
		__asm__ volatile("fxrstor64 (%0)" : : "r"(image) : "memory");
		break;
	default:
		__asm__ volatile("xrstor64 (%0)" : : "r"(image), "a"(lo), "d"(hi) : "memory");
		break;
	}
}

/* FOP at 6, FIP at 8, FDP at 16 (SDM Vol. 1 10.5.1). */
bool xstate_scrub(const struct tr_engine *eng, uint8_t *image)
{
	if (load64(image + 8) - (uint64_t)(uintptr_t)eng->code.rx >= eng->code.size)
		return false;
	*(uint16_t *)(void *)(image + 6) = 0;
	*(uint64_t *)(void *)(image + 8) = 0;
	*(uint64_t *)(void *)(image + 16) = 0;
	return true;
}

/* In the processor itself: out of guest memory others could read the pointers before they are scrubbed there. */
static void scrub_live(struct tr_vcpu *v)
{
	execute(XS_FXSAVE, v->image, 0);
	if (xstate_scrub(v->engine, v->image))
		execute(XS_FXRSTOR, v->image, 0);
}

static bool transfer(struct tr_vcpu *v, enum xs_op op, uint64_t linear, uint64_t mask)
{
	bool fx = op == XS_FXSAVE || op == XS_FXRSTOR, restore = op >= XS_FXRSTOR;
	unsigned size = fx ? 512 : X86_XSAVE_SIZE;
	if (linear & (fx ? 15 : 63))
		return false;
	uint8_t *p = light_pointer(v, linear, size, !restore);
	if (!p)
		return false;
	if (!restore) {
		if (fx || mask & XCR0_X87)
			scrub_live(v);
		execute(op, p, mask);
		return true;
	}
	uint8_t *to = v->image;
	const uint8_t *from = p;
	uint64_t n = size;
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	if (!image_good(v->image, op, v->cpu.xcr0))
		return false;
	execute(op, v->image, mask);
	return true;
}

bool light_call_out(struct tr_vcpu *v, bool (*f)(struct tr_vcpu *v))
{
	const uint32_t mask = XCR0_X87 | XCR0_SSE | XCR0_AVX, mxcsr = 0x1f80;

	__asm__ volatile("xsave64 (%0); fninit; ldmxcsr %3"
			 :
			 : "r"(v->cpu.xsave), "a"(mask), "d"(0), "m"(mxcsr)
			 : "memory");
	bool result = f(v);
	__asm__ volatile("xrstor64 (%0)" : : "r"(v->cpu.xsave), "a"(mask), "d"(0) : "memory");
	return result;
}

uint64_t light_xstate(struct tr_vcpu *v, uint64_t at)
{
	const struct call_insn *call = record(v->engine, (uint32_t)at);
	struct x86_cpu *cpu = &v->cpu;
	int i = find_op(&call->insn);
	bool fx = xs_table[i].op == XS_FXSAVE || xs_table[i].op == XS_FXRSTOR;

	set_rip(v, call->off); /* first: the operand may be relative to it */
	uint64_t linear = x86_effective_address(cpu, &call->insn) + x86_operand_base(cpu, &call->insn);
	if ((v->key & KEY_NO_FPU) || (xs_table[i].supervisor && cpu->cpl) || (!fx && !(cpu->cr4 & CR4_OSXSAVE)) ||
	    (cpu->xcr0 & ~(uint64_t)(XCR0_X87 | XCR0_SSE | XCR0_AVX)))
		return light_leave(v, TRX_STEP);
	uint64_t mask = ((cpu->gpr[RDX] << 32) | (uint32_t)cpu->gpr[RAX]) & cpu->xcr0;
	if (!transfer(v, xs_table[i].op, linear, mask))
		return light_leave(v, TRX_STEP);
	return light_resume(v, call->resume);
}
