/* Near branches, the stack and the odd ones of x86_emulate_general, where comparing with the host cannot reach: 16-bit
 * modes, limits, faults. */
#include "general_test.h"

/* --- branches --- */

TEST(branch_real_wraps)
{
	struct x86_test *t = t_real();

	t->cpu.rip = 0xfff0;
	CHECK_EQ(GEN(t, "\xeb\x20"), V_DONE); /* 0xfff2 + 0x20 */
	CHECK_EQ(t->cpu.rip, 0x12);
	CHECK_EQ(GEN(t, "\xeb\x80"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0xff94);
	t_free(t);
}

TEST(branch_beyond_limit)
{
	struct x86_test *t = t_real();

	t->cpu.rip = 0x100;
	CHECK_FAULT(t, GEN(t, "\x66\xe9\x00\x00\x01\x00"), X86_GP, 0); /* a 32-bit displacement */
	CHECK_EQ(t->cpu.rip, 0x100);
	t->cpu.seg[SEG_CS].limit = 0x10f;
	CHECK_EQ(GEN(t, "\xeb\x0d"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x10f);
	t->cpu.rip = 0x100;
	CHECK_FAULT(t, GEN(t, "\xeb\x0e"), X86_GP, 0);
	CHECK_FAULT(t, GEN(t, "\xe8\x0d\x00"), X86_GP, 0);
	CHECK_EQ(GPR(t, RSP), 0x1000);
	t_free(t);
}

TEST(branch_not_canonical)
{
	struct x86_test *t = t_long();

	GPR(t, RAX) = 0x800000000000;
	CHECK_FAULT(t, GEN(t, "\xff\xe0"), X86_GP, 0);
	CHECK_FAULT(t, GEN(t, "\xff\xd0"), X86_GP, 0);
	poke(t, GPR(t, RSP), 0x900000000000);
	uint64_t sp = GPR(t, RSP);
	CHECK_FAULT(t, GEN(t, "\xc3"), X86_GP, 0);
	CHECK_EQ(GPR(t, RSP), sp);
	CHECK_EQ(t->cpu.rip, CODE);
	t->cpu.rip = 0x7fffffffff00;
	CHECK_FAULT(t, GEN(t, "\xe9\x00\x10\x00\x00"), X86_GP, 0);
	t_free(t);
}

/* The count is written only when the branch does not fault. */
TEST(loop)
{
	struct x86_test *t = t_real();

	GPR(t, RCX) = 0xabcd0001;
	CHECK_EQ(GEN(t, "\xe2\xfe"), V_DONE);
	CHECK_EQ(GPR(t, RCX), 0xabcd0000);
	CHECK_EQ(t->cpu.rip, 0x102);
	CHECK_EQ(GEN(t, "\xe2\xfe"), V_DONE); /* 0 - 1 in 16 bits */
	CHECK_EQ(GPR(t, RCX), 0xabcdffff);
	CHECK_EQ(t->cpu.rip, 0x102);
	CHECK_EQ(GEN(t, "\x67\xe2\x10"), V_DONE);
	CHECK_EQ(GPR(t, RCX), 0xabcdfffe);
	CHECK_EQ(t->cpu.rip, 0x115);
	t->cpu.seg[SEG_CS].limit = 0x120;
	CHECK_FAULT(t, GEN(t, "\xe2\x70"), X86_GP, 0);
	CHECK_EQ(GPR(t, RCX), 0xabcdfffe);
	GPR(t, RCX) = 0xabcd0000;
	CHECK_EQ(GEN(t, "\xe3\x02"), V_DONE); /* JCXZ looks at CX */
	CHECK_EQ(t->cpu.rip, 0x119);
	CHECK_EQ(GEN(t, "\x67\xe3\x02"), V_DONE); /* JECXZ at ECX */
	CHECK_EQ(t->cpu.rip, 0x11c);
	t_free(t);
}

TEST(call_ret_sizes)
{
	struct x86_test *t = t_real();

	CHECK_EQ(GEN(t, "\xe8\x10\x00"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x113);
	CHECK_EQ(GPR(t, RSP), 0xffe);
	CHECK_EQ(peek(t, STACK0 + 0xffe) & 0xffff, 0x103);
	CHECK_EQ(GEN(t, "\xc2\x06\x00"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x103);
	CHECK_EQ(GPR(t, RSP), 0x1006);
	CHECK_EQ(GEN(t, "\x66\xe8\x10\x00\x00\x00"), V_DONE);
	CHECK_EQ(GPR(t, RSP), 0x1002);
	CHECK_EQ(peek32(t, STACK0 + 0x1002), 0x109);
	CHECK_EQ(GEN(t, "\x66\xc3"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x109);
	GPR(t, RSP) = 0x12340000; /* SP wraps, the upper half stays */
	CHECK_EQ(GEN(t, "\xe8\x00\x00"), V_DONE);
	CHECK_EQ(GPR(t, RSP), 0x1234fffe);
	CHECK_EQ(peek(t, STACK0 + 0xfffe) & 0xffff, 0x10c);
	t_free(t);
}

TEST(call_through_memory)
{
	struct x86_test *t = t_protected();

	GPR(t, RSP) = STACK0 - 0x100;
	GPR(t, RBX) = DATA;
	poke(t, DATA + 8, 0xffffffff00012345);
	CHECK_EQ(GEN(t, "\xff\x53\x08"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x12345);
	CHECK_EQ(peek32(t, STACK0 - 0x104), CODE + 3);
	CHECK_EQ(GPR(t, RSP), STACK0 - 0x104);
	t_free(t);
}

/* A stack that cannot be written: nothing happens. */
TEST(call_stack_fault)
{
	struct x86_test *t = t_long();

	GPR(t, RSP) = 0x500000; /* beyond the tables' 4 MiB */
	CHECK_FAULT(t, GEN(t, "\xe8\x00\x00\x00\x00"), X86_PF, PF_W);
	CHECK_EQ(t->cpu.exc.cr2, 0x4ffff8);
	CHECK_EQ(t->cpu.rip, CODE);
	CHECK_EQ(GPR(t, RSP), 0x500000);
	t_free(t);
}

/* --- stack --- */

TEST(push_pop_real)
{
	struct x86_test *t = t_real();

	GPR(t, RAX) = 0x11223344;
	CHECK_EQ(GEN(t, "\x50"), V_DONE);
	CHECK_EQ(GPR(t, RSP), 0xffe);
	CHECK_EQ(GEN(t, "\x66\x50"), V_DONE);
	CHECK_EQ(GPR(t, RSP), 0xffa);
	CHECK_EQ(peek32(t, STACK0 + 0xffa), 0x11223344);
	CHECK_EQ(GEN(t, "\x6a\xff"), V_DONE);
	CHECK_EQ(peek(t, STACK0 + 0xff8) & 0xffff, 0xffff);
	CHECK_EQ(GEN(t, "\x66\x6a\xfe"), V_DONE);
	CHECK_EQ(peek32(t, STACK0 + 0xff4), 0xfffffffe);
	GPR(t, RBX) = 0xaaaaaaaaaaaaaaaa;
	CHECK_EQ(GEN(t, "\x5b"), V_DONE);
	CHECK_EQ(GPR(t, RBX), 0xaaaaaaaaaaaafffe);
	CHECK_EQ(GEN(t, "\x66\x5b"), V_DONE);
	CHECK_EQ(GPR(t, RBX), 0xffffffff);
	t_free(t);
}

/* SP = 1: a word push would straddle the segment's ends. */
TEST(push_limit)
{
	struct x86_test *t = t_real();

	GPR(t, RSP) = 1;
	CHECK_FAULT(t, GEN(t, "\x50"), X86_SS, 0);
	CHECK_EQ(GPR(t, RSP), 1);
	GPR(t, RSP) = 0xffff;
	CHECK_FAULT(t, GEN(t, "\x58"), X86_SS, 0);
	GPR(t, RSP) = 0;
	CHECK_EQ(GEN(t, "\x50"), V_DONE);
	CHECK_EQ(GPR(t, RSP), 0xfffe);
	t_free(t);
}

TEST(pop_memory_by_rsp)
{
	struct x86_test *t = t_long();
	uint64_t sp = GPR(t, RSP);

	poke(t, sp, 0x77);
	CHECK_EQ(GEN(t, "\x8f\x44\x24\x10"), V_DONE); /* pop 0x10(%rsp), after the increment */
	CHECK_EQ(peek(t, sp + 0x18), 0x77);
	CHECK_EQ(GPR(t, RSP), sp + 8);
	poke(t, sp + 8, 0x123456);
	CHECK_EQ(GEN(t, "\x5c"), V_DONE); /* pop %rsp */
	CHECK_EQ(GPR(t, RSP), 0x123456);
	t_free(t);
}

/* The write faults: RSP is as it was. */
TEST(pop_memory_fault)
{
	struct x86_test *t = t_long();
	uint64_t sp = GPR(t, RSP);

	GPR(t, RAX) = 0x500000;
	CHECK_FAULT(t, GEN(t, "\x8f\x00"), X86_PF, PF_W);
	CHECK_EQ(GPR(t, RSP), sp);
	CHECK_EQ(t->cpu.rip, CODE);
	t_free(t);
}

TEST(pusha_popa)
{
	struct x86_test *t = t_protected();

	for (unsigned i = 0; i < 8; i++)
		GPR(t, i) = 0x1111 * (i + 1);
	GPR(t, RSP) = STACK0;
	CHECK_EQ(GEN(t, "\x60"), V_DONE);
	CHECK_EQ(GPR(t, RSP), STACK0 - 32);
	for (unsigned i = 0; i < 8; i++)
		CHECK_EQ(peek32(t, STACK0 - 4 - 4 * i), i == RSP ? STACK0 : 0x1111 * (i + 1));
	for (unsigned i = 0; i < 8; i++) {
		if (i != RSP)
			GPR(t, i) = ~0ull;
	}
	CHECK_EQ(GEN(t, "\x61"), V_DONE);
	for (unsigned i = 0; i < 8; i++)
		CHECK_EQ(GPR(t, i), i == RSP ? STACK0 : 0x1111 * (i + 1));
	t_free(t);
}

/* Three words, and then one that straddles the limit: the three are kept. */
TEST(popa_limit)
{
	struct x86_test *t = t_real();

	GPR(t, RSP) = 0xfff9;
	GPR(t, RBP) = GPR(t, RSI) = GPR(t, RDI) = 0x123456;
	CHECK_FAULT(t, GEN(t, "\x61"), X86_SS, 0);
	CHECK_EQ(GPR(t, RSP), 0xfff9);
	CHECK_EQ(GPR(t, RDI), 0x120000);
	CHECK_EQ(GPR(t, RSI), 0x120000);
	CHECK_EQ(GPR(t, RBP), 0x120000);
	CHECK_EQ(GPR(t, RBX), 0);
	t_free(t);
}

/* The limit lies in the middle of what PUSHA writes: nothing of it is written. */
TEST(pusha_limit)
{
	struct x86_test *t = t_real();

	GPR(t, RSP) = 7; /* wraps to 0xfff7 after three words, and a word at 0xffff straddles */
	poke(t, STACK0, 0);
	GPR(t, RAX) = 0x5555;
	CHECK_FAULT(t, GEN(t, "\x60"), X86_SS, 0);
	CHECK_EQ(peek(t, STACK0), 0);
	CHECK_EQ(GPR(t, RSP), 7);
	t_free(t);
}

TEST(enter_leave)
{
	struct x86_test *t = t_protected();

	GPR(t, RSP) = STACK0;
	GPR(t, RBP) = STACK0 + 0x100;
	poke32(t, STACK0 + 0x100 - 4, 0xaaaa);
	poke32(t, STACK0 + 0x100 - 8, 0xbbbb);
	CHECK_EQ(GEN(t, "\xc8\x20\x00\x03"), V_DONE);
	CHECK_EQ(GPR(t, RBP), STACK0 - 4);
	CHECK_EQ(GPR(t, RSP), STACK0 - 16 - 0x20);
	CHECK_EQ(peek32(t, STACK0 - 4), STACK0 + 0x100);
	CHECK_EQ(peek32(t, STACK0 - 8), 0xaaaa);
	CHECK_EQ(peek32(t, STACK0 - 12), 0xbbbb);
	CHECK_EQ(peek32(t, STACK0 - 16), STACK0 - 4);
	CHECK_EQ(GEN(t, "\xc9"), V_DONE);
	CHECK_EQ(GPR(t, RSP), STACK0);
	CHECK_EQ(GPR(t, RBP), STACK0 + 0x100);
	t_free(t);
}

TEST(enter_faults_whole)
{
	struct x86_test *t = t_long();

	GPR(t, RSP) = 0x40; /* frames below would lie at the end of the address space */
	GPR(t, RBP) = DATA;
	poke(t, 0x38, 0);
	CHECK_EQ(GEN(t, "\xc8\x00\x00\x1f"), V_INJECT);
	CHECK_EQ(peek(t, 0x38), 0);
	CHECK_EQ(GPR(t, RBP), DATA);
	CHECK_EQ(GPR(t, RSP), 0x40);
	t_free(t);
}

/* 16-bit code on a 32-bit stack, and the other way round: SS.B alone tells the stack pointer's width. */
TEST(stack_width)
{
	struct x86_test *t = t_protected();

	t->cpu.seg[SEG_SS].attr &= ~SEG_ATTR_DB;
	t->cpu.seg[SEG_SS].limit = 0xffff;
	GPR(t, RSP) = 0xffff0002;
	CHECK_FAULT(t, GEN(t, "\x6a\x05"), X86_SS, 0); /* 4 bytes from 0xfffe */
	t->cpu.seg[SEG_SS].limit = 0xfffff;
	CHECK_EQ(GEN(t, "\x6a\x05"), V_DONE);
	CHECK_EQ(GPR(t, RSP), 0xfffffffe);
	CHECK_EQ(peek32(t, 0xfffe), 5); /* linear 0xfffe: the offset has 16 bits */
	t_free(t);
}

/* --- device memory --- */

#define DEVICE 0xfee00000u

TEST(push_to_device)
{
	struct x86_test *t = t_protected();

	GPR(t, RSP) = DEVICE + 0x84;
	GPR(t, RAX) = 0x1234;
	CHECK_EQ(GEN(t, "\x50"), V_EXIT);
	CHECK_EQ(t->cpu.exit.kind, EXIT_MMIO);
	CHECK_EQ(t->cpu.exit.write, true);
	CHECK_EQ(t->cpu.exit.addr, DEVICE + 0x80);
	CHECK_EQ(t->cpu.exit.data, 0x1234);
	CHECK_EQ(GPR(t, RSP), DEVICE + 0x80); /* it has retired */
	CHECK_EQ(t->cpu.rip, CODE + 1);
	t_free(t);
}

TEST(jump_through_device)
{
	struct x86_test *t = t_protected();

	GPR(t, RBX) = DEVICE;
	CHECK_EQ(GEN(t, "\xff\x23"), V_EXIT);
	CHECK_EQ(t->cpu.exit.write, false);
	CHECK_EQ(t->cpu.rip, CODE);
	t->cpu.exit.data = 0x5678;
	t->cpu.exit.completed = true;
	CHECK_EQ(GEN(t, "\xff\x23"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0x5678);
	t_free(t);
}

/* --- the others --- */

TEST(bound)
{
	struct x86_test *t = t_real();

	poke(t, DATA + 0x10, 0x0005fffe); /* -2 to 5 */
	GPR(t, RBX) = 0x10;
	for (int i = -4; i < 8; i++) {
		t->cpu.rip = 0x100;
		GPR(t, RAX) = 0xabcd0000 | (uint16_t)i;
		enum verdict v = GEN(t, "\x62\x07");
		CHECK_EQ(v, i < -2 || i > 5 ? V_INJECT : V_DONE);
		if (v == V_INJECT)
			CHECK_EQ(t->cpu.exc.vector, X86_BR);
	}
	t_free(t);
}

TEST(xlat)
{
	struct x86_test *t = t_real();

	poke(t, DATA + 0x0005, 0x99);
	GPR(t, RBX) = 0xfff8; /* the sum wraps at 64 KiB */
	GPR(t, RAX) = 0x120d;
	CHECK_EQ(GEN(t, "\xd7"), V_DONE);
	CHECK_EQ(GPR(t, RAX), 0x1299);
	t->cpu.seg[SEG_FS].base = DATA + 0x1000;
	poke(t, DATA + 0x1000 + 5, 0x77);
	GPR(t, RAX) = 0x0d;
	CHECK_EQ(GEN(t, "\x64\xd7"), V_DONE);
	CHECK_EQ(GPR(t, RAX), 0x77);
	t_free(t);
}

TEST(flush_line)
{
	struct x86_test *t = t_long();

	GPR(t, RAX) = DATA;
	CHECK_EQ(GEN(t, "\x0f\xae\x38"), V_DONE);
	GPR(t, RAX) = 0x500000;
	CHECK_FAULT(t, GEN(t, "\x0f\xae\x38"), X86_PF, 0);
	GPR(t, RAX) = 0x800000000000;
	CHECK_FAULT(t, GEN(t, "\x0f\xae\x38"), X86_GP, 0);
	CHECK_EQ(GEN(t, "\x0f\x18\x08"), V_DONE); /* a prefetch never faults */
	t_free(t);
}

/* Tables from SDM Vol. 2's text; comparing with the processor has the rest. */
TEST(decimal)
{
	struct x86_test *t = t_real();

	GPR(t, RAX) = 0xae;
	CHECK_EQ(GEN(t, "\x27"), V_DONE); /* DAA */
	CHECK_EQ(GPR(t, RAX), 0x14);
	CHECK_EQ(t->cpu.rflags & (FL_CF | FL_AF), FL_CF | FL_AF);
	t->cpu.rflags |= FL_AF;
	t->cpu.rflags &= ~FL_CF;
	GPR(t, RAX) = 0xee;
	CHECK_EQ(GEN(t, "\x2f"), V_DONE); /* DAS */
	CHECK_EQ(GPR(t, RAX), 0x88);
	CHECK_EQ(t->cpu.rflags & FL_CF, FL_CF);
	t->cpu.rflags &= ~(uint64_t)FL_AF;
	GPR(t, RAX) = 0x010b;
	CHECK_EQ(GEN(t, "\x37"), V_DONE); /* AAA */
	CHECK_EQ(GPR(t, RAX), 0x0201);
	GPR(t, RAX) = 0x0063;
	CHECK_EQ(GEN(t, "\xd4\x0a"), V_DONE); /* AAM */
	CHECK_EQ(GPR(t, RAX), 0x0909);
	CHECK_EQ(GEN(t, "\xd5\x0a"), V_DONE); /* AAD */
	CHECK_EQ(GPR(t, RAX), 0x63);
	CHECK_FAULT(t, GEN(t, "\xd4\x00"), X86_DE, 0);
	t_free(t);
}

/* Ring 3 with CR0.AM and RFLAGS.AC. */
TEST(alignment)
{
	struct x86_test *t = t_user();

	GPR(t, RSP) = USTACK - 4;
	CHECK_EQ(GEN(t, "\x50"), V_DONE);
	t->cpu.cr0 |= CR0_AM;
	CHECK_EQ(GEN(t, "\x50"), V_DONE);
	t->cpu.rflags |= FL_AC;
	CHECK_FAULT(t, GEN(t, "\x50"), X86_AC, 0);
	GPR(t, RSP) = USTACK;
	CHECK_EQ(GEN(t, "\x50"), V_DONE);
	GPR(t, RSI) = UDATA + 2;
	GPR(t, RDI) = UDATA;
	GPR(t, RCX) = 4;
	CHECK_FAULT(t, GEN(t, "\xf3\xa5"), X86_AC, 0);
	t_free(t);
}

UNIT_MAIN()
