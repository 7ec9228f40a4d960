/* Breakpoints and single step. */
#include "general_test.h"

#include "arch/x86/debug.h"

static uint64_t dr7(unsigned n, unsigned kind, unsigned len_code)
{
	return BIT(2 * n) | (uint64_t)(kind | len_code << 2) << (16 + 4 * n);
}

TEST(code)
{
	struct x86_test *t = t_long();

	CHECK(!x86_debug_active(&t->cpu));
	t->cpu.dr[1] = CODE;
	t->cpu.dr7 = 0x400 | dr7(1, 0, 0);
	CHECK(x86_debug_active(&t->cpu));
	CHECK_FAULT(t, x86_before_instruction(&t->cpu), X86_DB, 0);
	CHECK_EQ(t->cpu.exc.dr6, 2);
	CHECK_EQ(t->cpu.exc.trap, false);
	t->cpu.rflags |= FL_RF;
	CHECK_EQ(x86_before_instruction(&t->cpu), V_DONE);
	CHECK_EQ(x86_after_instruction(&t->cpu, t->cpu.rflags), V_DONE);
	CHECK(!(t->cpu.rflags & FL_RF));
	/* behind MOV SS the vendors differ */
	t->cpu.shadow = 2;
	t->cpu.db_pending = 4;
	t->model.amd = false;
	CHECK_EQ(x86_before_instruction(&t->cpu), V_DONE);
	CHECK_EQ(t->cpu.db_pending, 4);
	t->model.amd = true;
	CHECK_FAULT(t, x86_before_instruction(&t->cpu), X86_DB, 0);
	CHECK_EQ(t->cpu.exc.dr6, 6);
	t->cpu.shadow = 0;
	t->cpu.rip++;
	CHECK_EQ(x86_before_instruction(&t->cpu), V_DONE);
	t_free(t);
}

/* IRET sets RF for the next instruction, and it must stay. */
TEST(resume_flag)
{
	struct x86_test *t = t_long();
	uint64_t was = t->cpu.rflags;

	t->cpu.rflags |= FL_RF;
	CHECK_EQ(x86_after_instruction(&t->cpu, was), V_DONE);
	CHECK(t->cpu.rflags & FL_RF);
	t_free(t);
}

static unsigned hit(struct x86_test *t, uint64_t at, unsigned len, bool write)
{
	t->cpu.db_pending = 0;
	x86_data_breakpoint(&t->cpu, at, len, write);
	return t->cpu.db_pending;
}

TEST(data)
{
	static const struct {
		uint64_t address;
		unsigned len_code, from, to;
	} rows[] = {{0x1000, 0, 0x1000, 0x1001},
		    {0x1003, 1, 0x1002, 0x1004},
		    {0x1007, 3, 0x1004, 0x1008},
		    {0x100d, 2, 0x1008, 0x1010}};
	struct x86_test *t = t_long();

	for (unsigned i = 0; i < 4; i++) {
		t->cpu.dr[i] = rows[i].address;
		t->cpu.dr7 = dr7(i, 3, rows[i].len_code);
		for (unsigned at = 0xff8; at < 0x1018; at++) {
			for (unsigned len = 1; len <= 8; len *= 2) {
				bool want = at < rows[i].to && at + len > rows[i].from;
				CHECK_EQ(hit(t, at, len, false), want ? BIT(i) : 0);
			}
		}
		t->cpu.dr7 = dr7(i, 1, rows[i].len_code);
		CHECK_EQ(hit(t, rows[i].from, 1, false), 0);
		CHECK_EQ(hit(t, rows[i].from, 1, true), BIT(i));
		t->cpu.dr7 = dr7(i, 0, 0);
		CHECK_EQ(hit(t, rows[i].from, 1, true), 0);
	}
	t_free(t);
}

TEST(trap)
{
	struct x86_test *t = t_long();

	t->cpu.db_pending = 5;
	CHECK_FAULT(t, x86_after_instruction(&t->cpu, FL_TF), X86_DB, 0);
	CHECK_EQ(t->cpu.exc.dr6, DR6_BS | 5);
	CHECK_EQ(t->cpu.exc.trap, true);
	CHECK_EQ(t->cpu.db_pending, 0);
	CHECK_EQ(x86_after_instruction(&t->cpu, 0), V_DONE);
	/* held off behind MOV SS, then reported with what the next instruction meets */
	t->cpu.db_pending = 1;
	t->cpu.shadow = 2;
	CHECK_EQ(x86_after_instruction(&t->cpu, FL_TF), V_DONE);
	CHECK_EQ(x86_before_instruction(&t->cpu), V_DONE);
	t->cpu.shadow = 0;
	CHECK_FAULT(t, x86_after_instruction(&t->cpu, 0), X86_DB, 0);
	CHECK_EQ(t->cpu.exc.dr6, 1);
	t_free(t);
}

TEST(ports)
{
	struct x86_test *t = t_long();

	t->cpu.dr[0] = 0x3f8;
	t->cpu.dr7 = dr7(0, 2, 1);
	x86_io_breakpoint(&t->cpu, 0x3f8, 1);
	CHECK_EQ(t->cpu.db_pending, 0); /* only with CR4.DE */
	t->cpu.cr4 |= CR4_DE;
	x86_io_breakpoint(&t->cpu, 0x3fa, 1);
	CHECK_EQ(t->cpu.db_pending, 0);
	x86_io_breakpoint(&t->cpu, 0x3f9, 4);
	CHECK_EQ(t->cpu.db_pending, 1);
	t_free(t);
}

UNIT_MAIN()
