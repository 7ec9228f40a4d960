/* What the tests of x86_emulate_general share: 16-bit modes, and running one instruction given as bytes. */
#ifndef DOPPEL_TESTS_UNIT_GENERAL_TEST_H
#define DOPPEL_TESTS_UNIT_GENERAL_TEST_H

#include "x86_test.h"

/* Real mode: CS and SS at their usual places, DS and ES at DATA. */
__attribute__((unused)) static struct x86_test *t_real(void)
{
	struct x86_test *t = t_new();
	struct x86_cpu *cpu = &t->cpu;
	static const struct x86_segment code = {CODE, 0xffff, CODE >> 4, 0x9b},
					stack = {STACK0, 0xffff, STACK0 >> 4, 0x93},
					data = {DATA, 0xffff, DATA >> 4, 0x93};

	cpu->cr0 = CR0_ET;
	cpu->seg[SEG_CS] = code;
	cpu->seg[SEG_SS] = stack;
	cpu->seg[SEG_DS] = cpu->seg[SEG_ES] = cpu->seg[SEG_FS] = cpu->seg[SEG_GS] = data;
	cpu->cpl = 0;
	cpu->rip = 0x100;
	cpu->rflags = FL_FIXED1;
	cpu->gpr[RSP] = 0x1000;
	return t;
}

/* Decodes one instruction at rip and carries it out. */
__attribute__((unused)) static enum verdict g_run(struct x86_test *t, const char *bytes, unsigned len)
{
	struct x86_insn insn;

	x86_decode(&insn, (const uint8_t *)bytes, len, x86_mode(&t->cpu), &t->model);
	if (insn.len != len)
		UNIT_FAIL("%02x %02x...: length %u, class %u", (uint8_t)bytes[0], len > 1 ? (uint8_t)bytes[1] : 0,
			  insn.len, insn.cls);
	return x86_emulate_general(&t->cpu, &insn);
}
#define GEN(t, bytes) g_run((t), (bytes), sizeof(bytes) - 1)

#define GPR(t, r) ((t)->cpu.gpr[r])

#endif
