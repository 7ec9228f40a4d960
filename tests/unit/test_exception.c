/* Delivery of exceptions and interrupts, IRET and the fast system calls. */
#include "x86_test.h"

static uint64_t item(struct x86_test *t, unsigned n)
{
	return peek(t, t->cpu.gpr[RSP] + 8 * n);
}

static uint32_t item32(struct x86_test *t, unsigned n)
{
	return peek32(t, t->cpu.gpr[RSP] + 4 * n);
}

static enum verdict raise_gp7(struct x86_test *t)
{
	x86_raise_error(&t->cpu, X86_GP, 7);
	return x86_deliver_exception(&t->cpu);
}

TEST(frame_same_privilege)
{
	struct x86_test *t = t_long();

	t->cpu.gpr[RSP] = STACK0 - 0x1003; /* aligned down to 16 */
	CHECK_EQ(raise_gp7(t), V_DONE);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1010 - 48);
	CHECK_EQ(item(t, 0), 7);
	CHECK_EQ(item(t, 1), CODE);
	CHECK_EQ(item(t, 2), K_CS);
	CHECK_EQ(item(t, 3), FL_FIXED1 | FL_IF | FL_RF);
	CHECK_EQ(item(t, 4), STACK0 - 0x1003);
	CHECK_EQ(item(t, 5), K_SS);
	CHECK_EQ(t->cpu.rip, HANDLER(13));
	CHECK_EQ(t->cpu.rflags, FL_FIXED1);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, K_SS);
	t_free(t);
}

TEST(frame_from_user)
{
	struct x86_test *t = t_user();

	t->cpu.rflags |= FL_TF | FL_NT | FL_AC | FL_ZF;
	CHECK_EQ(raise_gp7(t), V_DONE);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 48);
	CHECK_EQ(item(t, 1), UCODE);
	CHECK_EQ(item(t, 2), U_CS | 3);
	CHECK_EQ(item(t, 3), FL_FIXED1 | FL_IF | FL_RF | FL_TF | FL_NT | FL_AC | FL_ZF);
	CHECK_EQ(item(t, 4), USTACK);
	CHECK_EQ(item(t, 5), U_SS | 3);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_AC | FL_ZF);
	CHECK_EQ(t->cpu.cpl, 0);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, 0);
	CHECK(!(t->cpu.seg[SEG_SS].attr & SEG_ATTR_P));
	CHECK_EQ(t->cpu.seg[SEG_CS].sel, K_CS);
	CHECK_EQ(t->cpu.seg[SEG_CS].attr, 0xa09b);
	t_free(t);
}

TEST(interrupt_with_ist)
{
	struct x86_test *t = t_user();

	set_idt64(t, 0x41, HANDLER(0x41), 15, 0, 1);
	t->cpu.halted = true;
	CHECK_EQ(x86_deliver_interrupt(&t->cpu, 0x41), V_DONE);
	CHECK_EQ(t->cpu.gpr[RSP], IST1 - 40);
	CHECK_EQ(item(t, 0), UCODE);
	CHECK_EQ(item(t, 2), FL_FIXED1 | FL_IF); /* no RF */
	CHECK(t->cpu.rflags & FL_IF);            /* a trap gate */
	CHECK(!t->cpu.halted);
	t_free(t);
}

/* With IST and no change of privilege SS stays. */
TEST(ist_keeps_ss)
{
	struct x86_test *t = t_long();

	set_idt64(t, 2, HANDLER(2), 14, 0, 1);
	CHECK_EQ(x86_deliver_nmi(&t->cpu), V_DONE);
	CHECK(t->cpu.nmi_blocked);
	CHECK_EQ(t->cpu.gpr[RSP], IST1 - 40);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, K_SS);
	CHECK_EQ(RUN(t, "\x48\xcf"), V_DONE);
	CHECK(!t->cpu.nmi_blocked);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1000);
	t_free(t);
}

TEST(page_fault_sets_cr2_and_no_more)
{
	struct x86_test *t = t_user();
	struct x86_mapping m;

	CHECK_EQ(mmu_translate(&t->cpu, DATA + 7, ACC_USER, &m), V_INJECT);
	CHECK_EQ(t->cpu.cr2, 0);
	CHECK_EQ(x86_deliver_exception(&t->cpu), V_DONE);
	CHECK_EQ(t->cpu.cr2, DATA + 7);
	CHECK_EQ(item(t, 0), PF_P | PF_U);
	t_free(t);
}

/* What is wrong with the gate, its code segment or its stack: #GP, #NP, #SS or #TS, and its error code. */
static void second_fault(struct x86_test *t, unsigned vector, unsigned want, unsigned error, unsigned line)
{
	/* An interrupt is benign: what goes wrong on its way is delivered as it is. */
	enum verdict v = x86_deliver_interrupt(&t->cpu, (uint8_t)vector);

	if (v != V_DONE || t->cpu.rip != HANDLER(want) || item(t, 0) != error)
		UNIT_FAIL("line %u: verdict %u rip 0x%" PRIx64 " error 0x%" PRIx64, line, v, t->cpu.rip, item(t, 0));
	t_free(t);
}

#define SECOND(setup, want, error)                            \
	do {                                                  \
		t = t_user();                                 \
		setup;                                        \
		second_fault(t, 0x41, want, error, __LINE__); \
	} while (0)

#define GATE_ERROR (0x41 * 8 + 2 + 1)

TEST(bad_gates)
{
	struct x86_test *t;
	uint64_t gate = IDT + 0x41 * 16;

	SECOND(t->cpu.idtr.limit = 0x41 * 16 + 14, X86_GP, GATE_ERROR);
	SECOND(set_idt64(t, 0x41, HANDLER(1), 12, 0, 0), X86_GP, GATE_ERROR);
	SECOND(set_idt64(t, 0x41, HANDLER(1), 5, 0, 0), X86_GP, GATE_ERROR);
	SECOND(set_idt64(t, 0x41, HANDLER(1), 6, 0, 0), X86_GP, GATE_ERROR);
	SECOND(set_idt64(t, 0x41, HANDLER(1), 0x1e, 0, 0), X86_GP, GATE_ERROR);
	SECOND(poke(t, gate, peek(t, gate) & ~D_P), X86_NP, GATE_ERROR);
	SECOND(poke(t, gate, (peek(t, gate) & ~0xffff0000ull)), X86_GP, 1);
	SECOND(poke(t, gate, (peek(t, gate) & ~0xffff0000ull) | 0x1f8 << 16), X86_GP, 0x1f9);
	SECOND(poke(t, gate, (peek(t, gate) & ~0xffff0000ull) | K_SS << 16), X86_GP, K_SS + 1);
	SECOND(poke(t, gate, (peek(t, gate) & ~0xffff0000ull) | K_CS32 << 16), X86_GP, K_CS32 + 1);
	SECOND(poke(t, gate, (peek(t, gate) & ~0xffff0000ull) | FREE_SEL << 16);
	       set_desc(t, FREE_SEL, D_CODE64 & ~D_P), X86_NP, FREE_SEL + 1);
	SECOND(poke(t, gate + 8, 0x8000), X86_GP, 1); /* not canonical */
}

TEST(bad_stacks)
{
	struct x86_test *t;

	SECOND(poke(t, TSS + 0x24, BIT(50)); set_idt64(t, 0x41, HANDLER(1), 14, 0, 1), X86_SS, 1);
	SECOND(poke(t, TSS + 4, BIT(50)); set_idt64(t, X86_SS, HANDLER(X86_SS), 14, 0, 1), X86_SS, 1);
	SECOND(t->cpu.seg[SEG_TR].limit = 0x2a; set_idt64(t, 0x41, HANDLER(1), 14, 0, 1), X86_TS, TSS_SEL + 1);
	/* The inner stack's page is not there: the fault is a supervisor's, with the handler on a stack that is good.
	 */
	SECOND(poke(t, PT + ((STACK0 >> 12) - 1) * 8, 0);
	       set_idt64(t, X86_PF, HANDLER(X86_PF), 14, 0, 1), X86_PF, PF_W);
}

/* SMAP: a stack in a user page is no good for entry from user mode, whatever AC says; from kernel mode AC lifts it. */
TEST(smap_and_event_stacks)
{
	struct x86_test *t = t_user();

	t->cpu.cr4 |= CR4_SMAP;
	t->cpu.rflags |= FL_AC;
	poke(t, TSS + 4, USTACK);
	set_idt64(t, X86_PF, HANDLER(X86_PF), 14, 0, 1);
	second_fault(t, 0x41, X86_PF, PF_P | PF_W, __LINE__);
	t = t_long();
	t->cpu.cr4 |= CR4_SMAP;
	t->cpu.rflags |= FL_AC;
	t->cpu.gpr[RSP] = USTACK;
	CHECK_EQ(x86_deliver_interrupt(&t->cpu, 0x41), V_DONE);
	CHECK_EQ(t->cpu.rip, HANDLER(0x41));
	t_free(t);
}

/* SDM Vol. 3A tables 7-4 and 7-5, all pairs: B benign, C contributory, P page fault. */
static char class_of(unsigned vector)
{
	static const char classes[32] = "CBBBBBBBB.CCCCPBBBBB";

	return vector == X86_AC ? 'B' : classes[vector];
}

TEST(double_faults)
{
	static const uint8_t first[] = {0, 1, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 16, 17, 18, 19};

	for (unsigned i = 0; i < ARRAY_LEN(first); i++) {
		struct x86_test *t = t_long();
		char c = class_of(first[i]);
		unsigned want = c == 'B' ? X86_NP : X86_DF;

		/* The first one's gate is not present: the second is #NP, contributory. */
		poke(t, IDT + first[i] * 16, peek(t, IDT + first[i] * 16) & ~D_P);
		x86_raise(&t->cpu, first[i]);
		CHECK_EQ(x86_deliver_exception(&t->cpu), first[i] == X86_NP ? V_DONE : V_DONE);
		CHECK_EQ(t->cpu.rip, HANDLER(want));
		CHECK_EQ(item(t, 0), want == X86_DF ? 0 : first[i] * 8 + 3);
		CHECK_EQ(item(t, 1), CODE);
		t_free(t);
	}
}

TEST(page_faults_and_double_faults)
{
	struct x86_test *t = t_long();

	/* A page fault whose delivery meets a page fault: CR2 is the second's. The double fault has a stack of its own.
	 */
	set_idt64(t, X86_DF, HANDLER(X86_DF), 14, 0, 1);
	t->cpu.gpr[RSP] = 0x3fff000;
	x86_raise_error(&t->cpu, X86_PF, 0);
	t->cpu.exc.cr2 = 0x1234;
	CHECK_EQ(x86_deliver_exception(&t->cpu), V_DONE);
	CHECK_EQ(t->cpu.rip, HANDLER(X86_DF));
	CHECK_EQ(t->cpu.cr2, 0x3fff000 - 48);
	CHECK_EQ(item(t, 4), 0x3fff000);
	t_free(t);
	/* A contributory fault whose delivery meets a page fault: just the page fault, if that can be delivered. */
	t = t_long();
	set_idt64(t, X86_PF, HANDLER(X86_PF), 14, 0, 1);
	t->cpu.gpr[RSP] = 0x3fff000;
	CHECK_EQ(raise_gp7(t), V_DONE);
	CHECK_EQ(t->cpu.rip, HANDLER(X86_PF));
	t_free(t);
}

TEST(triple_faults)
{
	struct x86_test *t = t_long();

	t->cpu.idtr.limit = 0;
	CHECK_EQ(raise_gp7(t), V_EXIT);
	CHECK_EQ(t->cpu.exit.kind, EXIT_SHUTDOWN);
	CHECK_EQ(t->cpu.rip, CODE);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1000);
	t_free(t);
	t = t_long();
	t->cpu.idtr.limit = 0;
	CHECK_EQ(x86_deliver_interrupt(&t->cpu, 0x30), V_EXIT);
	CHECK_EQ(t->cpu.exit.kind, EXIT_SHUTDOWN);
	t_free(t);
}

TEST(debug_exception)
{
	struct x86_test *t = t_long();

	t->cpu.dr6 = 0xffff0ff3;
	t->cpu.dr7 = 0x2400 | 3;
	x86_raise(&t->cpu, X86_DB);
	t->cpu.exc.trap = true;
	t->cpu.exc.dr6 = BIT(14) | 4;
	CHECK_EQ(x86_deliver_exception(&t->cpu), V_DONE);
	CHECK_EQ(t->cpu.dr6, 0xffff4ff4);
	CHECK_EQ(t->cpu.dr7, 0x400 | 3); /* GD is cleared */
	CHECK_EQ(item(t, 2), FL_FIXED1 | FL_IF);
	t_free(t);
}

/* --- software interrupts --- */

TEST(software_interrupts)
{
	struct x86_test *t = t_user();

	CHECK_EQ(RUN(t, "\xcd\x80"), V_DONE);
	CHECK_EQ(t->cpu.rip, HANDLER(0x80));
	CHECK_EQ(item(t, 0), UCODE + 2);
	t_free(t);
	t = t_user();
	CHECK_EQ(RUN(t, "\xcc"), V_DONE);
	CHECK_EQ(t->cpu.rip, HANDLER(3));
	CHECK_EQ(item(t, 0), UCODE + 1);
	t_free(t);
	t = t_user(); /* the gate's DPL is 0, and EXT is clear */
	CHECK_FAULT(t, RUN(t, "\xcd\x0d"), X86_GP, 13 * 8 + 2);
	CHECK_EQ(t->cpu.rip, UCODE);
	CHECK_EQ(RUN(t, "\xf1"), V_DONE); /* INT1 asks no DPL */
	CHECK_EQ(t->cpu.rip, HANDLER(1));
	t_free(t);
	t = t_long();
	CHECK_EQ(RUN(t, "\xcd\x0d"), V_DONE); /* no error code, no RF */
	CHECK_EQ(item(t, 0), CODE + 2);
	CHECK_EQ(item(t, 2), FL_FIXED1 | FL_IF);
	t_free(t);
	t = t_protected();
	t->cpu.rflags |= FL_OF;
	CHECK_EQ(RUN(t, "\xce"), V_DONE);
	CHECK_EQ(t->cpu.rip, HANDLER(4));
	CHECK_EQ(item32(t, 0), CODE + 1);
	t_free(t);
}

TEST(no_single_step_into_handlers)
{
	struct x86_test *t = t_user();
	uint64_t was = t->cpu.rflags |= FL_TF;

	CHECK_EQ(RUN(t, "\xcd\x80"), V_DONE);
	CHECK_EQ(x86_after_instruction(&t->cpu, was), V_DONE);
	t_free(t);
	t = t_user(); /* SYSCALL: by the new TF */
	was = t->cpu.rflags |= FL_TF;
	t->cpu.sfmask = 0;
	CHECK_EQ(RUN(t, "\x0f\x05"), V_DONE);
	CHECK_EQ(x86_after_instruction(&t->cpu, was), V_INJECT);
	CHECK_EQ(t->cpu.exc.dr6, BIT(14));
	t_free(t);
	t = t_user();
	was = t->cpu.rflags |= FL_TF;
	t->cpu.sfmask = FL_TF;
	CHECK_EQ(RUN(t, "\x0f\x05"), V_DONE);
	CHECK_EQ(x86_after_instruction(&t->cpu, was), V_DONE);
	t_free(t);
}

/* --- the legacy modes --- */

TEST(frames_32_bit)
{
	struct x86_test *t = t_protected();
	uint64_t sp = t->cpu.gpr[RSP];

	CHECK_EQ(raise_gp7(t), V_DONE);
	CHECK_EQ(t->cpu.gpr[RSP], sp - 16);
	CHECK_EQ(item32(t, 0), 7);
	CHECK_EQ(item32(t, 1), CODE);
	CHECK_EQ(item32(t, 2), K_CS32);
	CHECK_EQ(item32(t, 3), FL_FIXED1 | FL_IF | FL_RF);
	t_free(t);
	t = t_protected();
	t_segments(t, &t_ucode32, &t_udata);
	t->cpu.gpr[RSP] = USTACK;
	CHECK_EQ(RUN(t, "\xcd\x80"), V_DONE);
	CHECK_EQ(t->cpu.cpl, 0);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, K_SS);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 20);
	CHECK_EQ(item32(t, 0), CODE + 2);
	CHECK_EQ(item32(t, 1), U_CS32 | 3);
	CHECK_EQ(item32(t, 3), USTACK);
	CHECK_EQ(item32(t, 4), U_SS | 3);
	CHECK_EQ(RUN(t, "\xcf"), V_DONE);
	CHECK_EQ(t->cpu.cpl, 3);
	CHECK_EQ(t->cpu.rip, CODE + 2);
	CHECK_EQ(t->cpu.gpr[RSP], USTACK);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, U_SS | 3);
	t_free(t);
	t = t_protected(); /* a 16-bit gate */
	sp = t->cpu.gpr[RSP];
	set_idt32(t, 0x41, K_CS32, 0x12345678, 6, 0);
	CHECK_EQ(x86_deliver_interrupt(&t->cpu, 0x41), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x5678);
	CHECK_EQ(t->cpu.gpr[RSP], sp - 6);
	t_free(t);
}

TEST(bad_stacks_32_bit)
{
	struct x86_test *t;
	static const struct {
		uint16_t ss;
		uint64_t desc;
		unsigned vector, error;
	} cases[] = {
		{0, 0, X86_TS, 0},
		{K_SS | 3, D_DATA, X86_TS, K_SS},
		{FREE_SEL, D_DATA | D_DPL(3), X86_TS, FREE_SEL},
		{FREE_SEL, D_CODE32, X86_TS, FREE_SEL},
		{FREE_SEL, D_DATA & ~D_P, X86_SS, FREE_SEL},
		{0x1f8, D_DATA, X86_TS, 0x1f8},
	};

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		t = t_protected();
		t_segments(t, &t_ucode32, &t_udata);
		poke32(t, TSS + 8, cases[i].ss);
		set_desc(t, FREE_SEL, cases[i].desc);
		CHECK_FAULT(t, RUN(t, "\xcd\x80"), cases[i].vector, cases[i].error);
		t_free(t);
	}
}

TEST(real_mode)
{
	struct x86_test *t = t_new();

	t->cpu.seg[SEG_CS].base = 0x10000;
	t->cpu.seg[SEG_CS].sel = 0x1000;
	t->cpu.seg[SEG_SS].base = 0x20000;
	t->cpu.gpr[RSP] = 0xabcd0002; /* only SP is a pointer, and it wraps */
	t->cpu.rip = 0x100;
	t->cpu.rflags |= FL_IF | FL_CF;
	poke32(t, 0x21 * 4, 0x30004567);
	CHECK_EQ(RUN(t, "\xcd\x21"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x4567);
	CHECK_EQ(t->cpu.seg[SEG_CS].sel, 0x3000);
	CHECK_EQ(t->cpu.seg[SEG_CS].base, 0x30000);
	CHECK_EQ(t->cpu.gpr[RSP], 0xabcdfffc);
	CHECK_EQ(peek32(t, 0x2fffc), 0x10000102);
	CHECK_EQ(peek(t, 0x20000) & 0xffff, FL_FIXED1 | FL_IF | FL_CF);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_CF);
	CHECK_EQ(RUN(t, "\xcf"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x102);
	CHECK_EQ(t->cpu.seg[SEG_CS].base, 0x10000);
	CHECK_EQ(t->cpu.gpr[RSP], 0xabcd0002);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_IF | FL_CF);
	t->cpu.idtr.limit = 0x20;
	CHECK_FAULT(t, RUN(t, "\xcd\x21"), X86_GP, 0);
	CHECK_EQ(x86_deliver_exception(&t->cpu), V_EXIT);
	t_free(t);
}

TEST(virtual_8086)
{
	struct x86_test *t = t_protected();
	uint32_t *f;

	t->cpu.gpr[RSP] = STACK0 - 0x100;
	f = ram(t, t->cpu.gpr[RSP]);
	f[0] = 0x100, f[1] = 0x1000, f[2] = FL_VM | FL_IF, f[3] = 0x200, f[4] = 0x1200;
	f[5] = 0x1300, f[6] = 0x1400, f[7] = 0x1500, f[8] = 0x1600;
	CHECK_EQ(RUN(t, "\xcf"), V_DONE);
	CHECK_EQ(t->cpu.cpl, 3);
	CHECK(t->cpu.rflags & FL_VM);
	CHECK_EQ(t->cpu.seg[SEG_CS].base, 0x10000);
	CHECK_EQ(t->cpu.seg[SEG_SS].base, 0x12000);
	CHECK_EQ(t->cpu.seg[SEG_GS].sel, 0x1600);
	CHECK_EQ(t->cpu.gpr[RSP], 0x200);
	CHECK_FAULT(t, RUN(t, "\xcd\x80"), X86_GP, 0); /* IOPL 0 */
	CHECK_FAULT(t, RUN(t, "\x9c"), X86_GP, 0);
	CHECK_FAULT(t, RUN(t, "\xfa"), X86_GP, 0);
	CHECK_EQ(x86_deliver_exception(&t->cpu), V_DONE);
	CHECK_EQ(t->cpu.cpl, 0);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 40);
	CHECK_EQ(item32(t, 1), 0x100);
	CHECK_EQ(item32(t, 3), FL_VM | FL_IF | FL_RF | FL_FIXED1);
	CHECK_EQ(item32(t, 5), 0x1200);
	CHECK_EQ(item32(t, 6), 0x1300); /* ES, DS, FS, GS */
	CHECK_EQ(item32(t, 9), 0x1600);
	CHECK(!(t->cpu.rflags & FL_VM));
	CHECK(!(t->cpu.seg[SEG_DS].attr & SEG_ATTR_P));
	t_free(t);
}

/* --- IRET in long mode --- */

static void frame(struct x86_test *t, uint64_t rip, uint64_t cs, uint64_t flags, uint64_t rsp, uint64_t ss)
{
	const uint64_t f[5] = {rip, cs, flags, rsp, ss};

	memcpy(ram(t, t->cpu.gpr[RSP]), f, sizeof(f));
}

#define IRETQ(t) RUN(t, "\x48\xcf")

TEST(iretq)
{
	struct x86_test *t = t_long();

	t->cpu.seg[SEG_FS].base = 0x1234; /* a null one, or one of DPL 3, stays as it is */
	t->cpu.seg[SEG_FS].attr = 0;
	t->cpu.seg[SEG_GS].base = 0x5678; /* of DPL 0: no segment any more, but a base */
	t->cpu.nmi_blocked = true;
	frame(t, UCODE, U_CS | 3, FL_IF | FL_AC | FL_RF | FL_TF | FL_ID | FL_ARITH | FL_VM | FL_VIF, USTACK, U_SS | 3);
	CHECK_EQ(IRETQ(t), V_DONE);
	CHECK_EQ(t->cpu.rip, UCODE);
	CHECK_EQ(t->cpu.cpl, 3);
	CHECK_EQ(t->cpu.gpr[RSP], USTACK);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_IF | FL_AC | FL_RF | FL_TF | FL_ID | FL_ARITH | FL_VIF);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, U_SS | 3);
	CHECK_EQ(t->cpu.seg[SEG_DS].sel, 0);
	CHECK_EQ(t->cpu.seg[SEG_FS].base, 0x1234);
	CHECK_EQ(t->cpu.seg[SEG_GS].sel, 0);
	CHECK_EQ(t->cpu.seg[SEG_GS].attr & SEG_ATTR_P, 0);
	CHECK_EQ(t->cpu.seg[SEG_GS].base, 0x5678);
	CHECK(!t->cpu.nmi_blocked);
	/* user code returns to itself: IOPL and IF stay */
	t->cpu.rflags = FL_FIXED1 | FL_IF;
	frame(t, UCODE + 8, U_CS | 3, FL_IOPL | FL_CF, USTACK + 0x10, U_SS | 3);
	CHECK_EQ(IRETQ(t), V_DONE);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_IF | FL_CF);
	CHECK_EQ(t->cpu.gpr[RSP], USTACK + 0x10);
	t_free(t);
}

TEST(iret_to_compatibility_mode)
{
	struct x86_test *t = t_long();

	frame(t, UCODE, U_CS32 | 3, FL_IF, 0x100001000ull + USTACK, U_SS | 3);
	CHECK_EQ(IRETQ(t), V_DONE);
	CHECK(!x86_code64(&t->cpu));
	CHECK_EQ(t->cpu.gpr[RSP], USTACK + 0x1000);
	t_free(t);
	t = t_long(); /* a 16-bit stack takes SP only */
	set_desc(t, FREE_SEL, 0x0000f3000000ffffull);
	frame(t, UCODE, U_CS32 | 3, FL_IF, 0x12345678, FREE_SEL | 3);
	t->cpu.gpr[RSP] = STACK0 - 0x1000;
	CHECK_EQ(IRETQ(t), V_DONE);
	CHECK_EQ(t->cpu.gpr[RSP], 0x15678);
	t_free(t);
}

TEST(iret_same_privilege_loads_the_stack)
{
	struct x86_test *t = t_long();

	frame(t, CODE + 5, K_CS, 0, STACK0 - 0x777, 0); /* null SS is fine above user level */
	CHECK_EQ(IRETQ(t), V_DONE);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x777);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, 0);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1);
	t_free(t);
}

TEST(iret_faults)
{
	static const struct {
		uint64_t rip, cs, flags, rsp, ss, desc;
		unsigned vector, error;
	} cases[] = {
		{UCODE, 0, 0, USTACK, U_SS | 3, 0, X86_GP, 0},
		{UCODE, 3, 0, USTACK, U_SS | 3, 0, X86_GP, 0},
		{UCODE, 0x1f8, 0, USTACK, U_SS | 3, 0, X86_GP, 0x1f8},
		{UCODE, U_SS | 3, 0, USTACK, U_SS | 3, 0, X86_GP, U_SS},
		{UCODE, K_CS | 3, 0, USTACK, U_SS | 3, 0, X86_GP, K_CS},
		{UCODE, FREE_SEL | 3, 0, USTACK, U_SS | 3, (D_CODE64 | D_DPL(3)) & ~D_P, X86_NP, FREE_SEL},
		{UCODE, FREE_SEL | 3, 0, USTACK, U_SS | 3, D_CODE64 | D_DPL(3) | BIT(54), X86_GP, FREE_SEL},
		{BIT(47), U_CS | 3, 0, USTACK, U_SS | 3, 0, X86_GP, 0},
		{BIT(32), U_CS32 | 3, 0, USTACK, U_SS | 3, 0, X86_GP, 0},
		{UCODE, U_CS | 3, 0, USTACK, 0, 0, X86_GP, 0},
		{UCODE, U_CS | 3, 0, USTACK, 3, 0, X86_GP, 0},
		{UCODE, U_CS | 3, 0, USTACK, U_SS, 0, X86_GP, U_SS},
		{UCODE, U_CS | 3, 0, USTACK, K_SS | 3, 0, X86_GP, K_SS},
		{UCODE, U_CS | 3, 0, USTACK, U_CS32 | 3, 0, X86_GP, U_CS32},
		{UCODE, U_CS | 3, 0, USTACK, FREE_SEL | 3, (D_DATA | D_DPL(3)) & ~D_P, X86_SS, FREE_SEL},
		{UCODE, U_CS | 3, 0, USTACK, FREE_SEL | 3, (D_DATA | D_DPL(3)) & ~BIT(41), X86_GP, FREE_SEL},
		{CODE, K_CS, 0, STACK0, 3, 0, X86_GP, 0}, /* null with a wrong RPL */
	};

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		struct x86_test *t = t_long();

		set_desc(t, FREE_SEL, cases[i].desc);
		frame(t, cases[i].rip, cases[i].cs, cases[i].flags, cases[i].rsp, cases[i].ss);
		CHECK_FAULT(t, IRETQ(t), cases[i].vector, cases[i].error);
		CHECK_EQ(t->cpu.rip, CODE);
		CHECK_EQ(t->cpu.cpl, 0);
		CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1000);
		t->cpu.rflags |= FL_NT; /* no tasks in long mode */
		CHECK_FAULT(t, IRETQ(t), X86_GP, 0);
		t_free(t);
	}
}

/* --- SYSCALL, SYSRET, SYSENTER, SYSEXIT --- */

static struct x86_test *t_syscall(void)
{
	struct x86_test *t = t_user();

	t->cpu.star = (uint64_t)(U_CS32 | 3) << 48 | (uint64_t)K_CS << 32 | 0x1234;
	t->cpu.lstar = CODE + 0x100;
	t->cpu.cstar = CODE + 0x200;
	t->cpu.sfmask = FL_IF | FL_TF | FL_DF;
	return t;
}

TEST(syscall_and_sysret)
{
	struct x86_test *t = t_syscall();

	t->cpu.rflags |= FL_DF | FL_ZF | FL_RF;
	CHECK_EQ(RUN(t, "\x0f\x05"), V_DONE);
	CHECK_EQ(t->cpu.rip, CODE + 0x100);
	CHECK_EQ(t->cpu.gpr[RCX], UCODE + 2);
	CHECK_EQ(t->cpu.gpr[R11], FL_FIXED1 | FL_IF | FL_DF | FL_ZF);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_ZF);
	CHECK_EQ(t->cpu.cpl, 0);
	CHECK_EQ(t->cpu.seg[SEG_CS].sel, K_CS);
	CHECK_EQ(t->cpu.seg[SEG_CS].attr, 0xa09b);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, K_SS);
	CHECK_EQ(t->cpu.seg[SEG_SS].attr, 0xc093);
	t->cpu.gpr[R11] = ~0ull;
	CHECK_EQ(RUN(t, "\x48\x0f\x07"), V_DONE);
	CHECK_EQ(t->cpu.rip, UCODE + 2);
	CHECK_EQ(t->cpu.cpl, 3);
	CHECK_EQ(t->cpu.seg[SEG_CS].sel, U_CS | 3);
	CHECK_EQ(t->cpu.seg[SEG_CS].attr, 0xa0fb);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, U_SS | 3);
	CHECK_EQ(t->cpu.seg[SEG_SS].attr, 0xc0f3);
	CHECK_EQ(t->cpu.rflags, 0x3c7fd7);
	CHECK_FAULT(t, RUN(t, "\x48\x0f\x07"), X86_GP, 0);
	t->cpu.efer &= ~EFER_SCE;
	CHECK_FAULT(t, RUN(t, "\x0f\x05"), X86_UD, 0);
	CHECK_FAULT(t, RUN(t, "\x48\x0f\x07"), X86_UD, 0);
	t_free(t);
}

TEST(sysret_to_32_bits)
{
	struct x86_test *t = t_syscall();

	t_segments(t, &t_code64, &t_data);
	t->cpu.gpr[RCX] = 0xffffffff00000000 | UCODE;
	t->cpu.gpr[R11] = FL_IF;
	CHECK_EQ(RUN(t, "\x0f\x07"), V_DONE);
	CHECK_EQ(t->cpu.rip, UCODE);
	CHECK_EQ(t->cpu.seg[SEG_CS].sel, U_CS32 | 3);
	CHECK_EQ(t->cpu.seg[SEG_CS].attr, 0xc0fb);
	t_free(t);
}

/* Where the vendors differ: a return address that is not canonical, and SYSCALL in compatibility mode. */
TEST(syscall_by_vendor)
{
	for (unsigned amd = 0; amd < 2; amd++) {
		struct x86_test *t = t_syscall();

		t->model.amd = amd;
		t_segments(t, &t_code64, &t_data);
		t->cpu.gpr[RCX] = BIT(47);
		if (amd) {
			CHECK_EQ(RUN(t, "\x48\x0f\x07"), V_DONE);
			CHECK_EQ(t->cpu.rip, BIT(47));
			CHECK_EQ(t->cpu.cpl, 3);
		} else {
			CHECK_FAULT(t, RUN(t, "\x48\x0f\x07"), X86_GP, 0);
			CHECK_EQ(t->cpu.cpl, 0);
		}
		t_segments(t, &t_ucode32, &t_udata);
		t->cpu.rip = UCODE;
		if (amd) {
			CHECK_EQ(RUN(t, "\x0f\x05"), V_DONE);
			CHECK_EQ(t->cpu.rip, CODE + 0x200);
			CHECK(x86_code64(&t->cpu));
			CHECK_EQ(t->cpu.gpr[RCX], UCODE + 2);
		} else {
			CHECK_FAULT(t, RUN(t, "\x0f\x05"), X86_UD, 0);
		}
		t_free(t);
	}
}

TEST(sysenter_and_sysexit)
{
	struct x86_test *t = t_user();

	t->cpu.sysenter_cs = K_CS;
	t->cpu.sysenter_esp = STACK0;
	t->cpu.sysenter_eip = CODE + 0x300;
	t->model.amd = true;
	CHECK_FAULT(t, RUN(t, "\x0f\x34"), X86_UD, 0);
	t->model.amd = false;
	CHECK_EQ(RUN(t, "\x0f\x34"), V_DONE);
	CHECK_EQ(t->cpu.rip, CODE + 0x300);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0);
	CHECK_EQ(t->cpu.cpl, 0);
	CHECK(x86_code64(&t->cpu));
	CHECK(!(t->cpu.rflags & FL_IF));
	t->cpu.gpr[RDX] = UCODE;
	t->cpu.gpr[RCX] = USTACK;
	CHECK_EQ(RUN(t, "\x48\x0f\x35"), V_DONE);
	CHECK_EQ(t->cpu.rip, UCODE);
	CHECK_EQ(t->cpu.gpr[RSP], USTACK);
	CHECK_EQ(t->cpu.seg[SEG_CS].sel, (K_CS + 32) | 3);
	CHECK_EQ(t->cpu.cpl, 3);
	t->cpu.sysenter_cs = 0;
	CHECK_FAULT(t, RUN(t, "\x0f\x34"), X86_GP, 0);
	t_free(t);
}

/* --- far transfers --- */

static void far_ptr(struct x86_test *t, uint64_t at, uint32_t off, unsigned sel)
{
	poke(t, at, (uint64_t)sel << 32 | off);
	t->cpu.gpr[RBX] = at;
}

TEST(far_jumps)
{
	struct x86_test *t = t_long();

	far_ptr(t, DATA, CODE + 0x40, K_CS32); /* to compatibility mode */
	CHECK_EQ(RUN(t, "\xff\x2b"), V_DONE);
	CHECK_EQ(t->cpu.rip, CODE + 0x40);
	CHECK(!x86_code64(&t->cpu));
	CHECK_EQ(RUN(t, "\xea\x00\x00\x01\x00\x10\x00"), V_DONE); /* and back */
	CHECK_EQ(t->cpu.rip, 0x10000);
	CHECK(x86_code64(&t->cpu));
	far_ptr(t, DATA, CODE, K_SS);
	CHECK_FAULT(t, RUN(t, "\xff\x2b"), X86_GP, K_SS);
	far_ptr(t, DATA, CODE, U_CS | 3);
	CHECK_FAULT(t, RUN(t, "\xff\x2b"), X86_GP, U_CS);
	far_ptr(t, DATA, CODE, 3);
	CHECK_FAULT(t, RUN(t, "\xff\x2b"), X86_GP, 0);
	set_desc(t, FREE_SEL, D_CODE64 & ~D_P);
	far_ptr(t, DATA, CODE, FREE_SEL);
	CHECK_FAULT(t, RUN(t, "\xff\x2b"), X86_NP, FREE_SEL);
	t_free(t);
}

TEST(far_call_and_return)
{
	struct x86_test *t = t_long();
	uint64_t sp = t->cpu.gpr[RSP];

	far_ptr(t, DATA, CODE + 0x40, K_CS);
	CHECK_EQ(RUN(t, "\xff\x1b"), V_DONE);
	CHECK_EQ(t->cpu.rip, CODE + 0x40);
	CHECK_EQ(t->cpu.gpr[RSP], sp - 8);
	CHECK_EQ(peek(t, sp - 8), (uint64_t)K_CS << 32 | (CODE + 2));
	CHECK_EQ(RUN(t, "\xca\x10\x00"), V_DONE);
	CHECK_EQ(t->cpu.rip, CODE + 2);
	CHECK_EQ(t->cpu.gpr[RSP], sp + 16);
	/* to user mode: LRETQ */
	t->cpu.gpr[RSP] = sp;
	frame(t, UCODE, U_CS | 3, USTACK, U_SS | 3, 0);
	CHECK_EQ(RUN(t, "\x48\xcb"), V_DONE);
	CHECK_EQ(t->cpu.cpl, 3);
	CHECK_EQ(t->cpu.gpr[RSP], USTACK);
	t_free(t);
}

TEST(call_gates)
{
	struct x86_test *t = t_user();
	uint64_t target = CODE + 0x1230;

	set_desc16(t, FREE_SEL, (target & 0xffff) | K_CS << 16 | (uint64_t)0xec << 40 | (target >> 16 & 0xffff) << 48,
		   target >> 32);
	far_ptr(t, UDATA, 0, FREE_SEL | 3);
	CHECK_EQ(RUN(t, "\xff\x1b"), V_DONE);
	CHECK_EQ(t->cpu.rip, target);
	CHECK_EQ(t->cpu.cpl, 0);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 32);
	CHECK_EQ(item(t, 0), UCODE + 2);
	CHECK_EQ(item(t, 1), U_CS | 3);
	CHECK_EQ(item(t, 2), USTACK);
	CHECK_EQ(item(t, 3), U_SS | 3);
	CHECK_EQ(RUN(t, "\x48\xcb"), V_DONE);
	CHECK_EQ(t->cpu.cpl, 3);
	CHECK_EQ(t->cpu.rip, UCODE + 2);
	set_desc(t, FREE_SEL, peek(t, GDT + FREE_SEL) & ~D_DPL(3));
	CHECK_FAULT(t, RUN(t, "\xff\x1b"), X86_GP, FREE_SEL);
	t_free(t);
	t = t_protected(); /* 32 bits, with two parameters */
	t_segments(t, &t_ucode32, &t_udata);
	t->cpu.gpr[RSP] = USTACK;
	poke(t, USTACK, 0x2222222211111111);
	set_desc(t, FREE_SEL,
		 (target & 0xffff) | K_CS32 << 16 | 2ull << 32 | (uint64_t)0xec << 40 | (target >> 16) << 48);
	CHECK_EQ(RUN(t, "\x9a\x00\x00\x00\x00\x83\x00"), V_DONE);
	CHECK_EQ(t->cpu.rip, target);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 24);
	CHECK_EQ(item32(t, 0), CODE + 7);
	CHECK_EQ(item32(t, 1), U_CS32 | 3);
	CHECK_EQ(item32(t, 2), 0x11111111);
	CHECK_EQ(item32(t, 3), 0x22222222);
	CHECK_EQ(item32(t, 4), USTACK);
	CHECK_EQ(RUN(t, "\xca\x08\x00"), V_DONE);
	CHECK_EQ(t->cpu.gpr[RSP], USTACK + 8);
	CHECK_EQ(t->cpu.cpl, 3);
	t_free(t);
}

/* --- tasks --- */

static struct x86_test *two_tasks(void)
{
	struct x86_test *t = t_protected();
	const uint64_t tss2 = DATA;

	set_desc(t, FREE_SEL, system_desc(9, tss2, 0x67));
	poke32(t, tss2 + 0x20, CODE + 0x500);
	poke32(t, tss2 + 0x24, FL_FIXED1);
	poke32(t, tss2 + 0x38, STACK0 - 0x2000);
	for (unsigned i = 0; i < 6; i++)
		poke32(t, tss2 + 0x48 + 4 * i, K_SS);
	poke32(t, tss2 + 0x4c, K_CS32);
	poke32(t, tss2 + 0x28, 0x77);
	return t;
}

TEST(task_switches)
{
	struct x86_test *t = two_tasks();
	uint64_t sp = t->cpu.gpr[RSP];

	t->cpu.gpr[RAX] = 0x55;
	CHECK_EQ(RUN(t, "\x9a\x00\x00\x00\x00\x80\x00"), V_DONE); /* CALL */
	CHECK_EQ(t->cpu.rip, CODE + 0x500);
	CHECK_EQ(t->cpu.gpr[RAX], 0x77);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x2000);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_NT);
	CHECK_EQ(t->cpu.seg[SEG_TR].sel, FREE_SEL);
	CHECK_EQ(peek32(t, DATA) & 0xffff, TSS_SEL);
	CHECK_EQ(peek32(t, GDT + FREE_SEL + 4) >> 8 & 0xf, 11);
	CHECK_EQ(peek32(t, TSS + 0x28), 0x55);
	CHECK_EQ(peek32(t, TSS + 0x20), CODE + 7);
	CHECK(t->cpu.cr0 & CR0_TS);
	t->cpu.gpr[RAX] = 0x78;
	CHECK_EQ(RUN(t, "\xcf"), V_DONE); /* IRET with NT */
	CHECK_EQ(t->cpu.rip, CODE + 7);
	CHECK_EQ(t->cpu.gpr[RAX], 0x55);
	CHECK_EQ(t->cpu.gpr[RSP], sp);
	CHECK_EQ(t->cpu.seg[SEG_TR].sel, TSS_SEL);
	CHECK_EQ(peek32(t, DATA + 0x28), 0x78);
	CHECK_EQ(peek32(t, GDT + FREE_SEL + 4) >> 8 & 0xf, 9);
	CHECK_EQ(peek32(t, GDT + TSS_SEL + 4) >> 8 & 0xf, 11);
	CHECK_FAULT(t, RUN(t, "\x9a\x00\x00\x00\x00\x40\x00"), X86_GP, TSS_SEL); /* busy */
	t_free(t);
}

/* A double fault through a task gate, as i386 kernels have it. */
TEST(task_gate)
{
	struct x86_test *t = two_tasks();

	poke(t, IDT + X86_DF * 8, (uint64_t)FREE_SEL << 16 | (uint64_t)0x85 << 40);
	x86_raise_error(&t->cpu, X86_DF, 0);
	CHECK_EQ(x86_deliver_exception(&t->cpu), V_DONE);
	CHECK_EQ(t->cpu.rip, CODE + 0x500);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x2004);
	CHECK_EQ(item32(t, 0), 0);
	CHECK_EQ(peek32(t, TSS + 0x20), CODE);
	t_free(t);
}

UNIT_MAIN()
