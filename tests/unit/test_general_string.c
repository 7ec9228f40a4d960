/* String instructions: chunks and faults, wrapping addresses, device memory, writes to translated code. */
#include "general_test.h"

static unsigned wrote_calls;
static uint64_t wrote_gpa, wrote_len;

static void on_wrote(void *opaque, uint64_t gpa, uint64_t len)
{
	wrote_calls++;
	wrote_gpa = gpa;
	wrote_len = len;
}

static uint8_t *bytes_at(struct x86_test *t, uint64_t gpa)
{
	return ram(t, gpa);
}

static void count_up(struct x86_test *t, uint64_t gpa, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		bytes_at(t, gpa)[i] = (uint8_t)(i * 7 + 3);
}

/* Runs until it has left the instruction or faulted; returns the calls it took. */
static unsigned run_all(struct x86_test *t, const char *bytes, unsigned len, enum verdict *v)
{
	uint64_t rip = t->cpu.rip;
	unsigned calls = 0;

	do {
		*v = g_run(t, bytes, len);
		calls++;
	} while (*v == V_DONE && t->cpu.rip == rip && calls < 100000);
	return calls;
}
#define ALL(t, bytes, v) run_all((t), (bytes), sizeof(bytes) - 1, (v))

TEST(rep_movs_chunks)
{
	struct x86_test *t = t_long();
	enum verdict v;

	count_up(t, 0x200000, 0x8000);
	GPR(t, RSI) = 0x200123;
	GPR(t, RDI) = 0x210456;
	GPR(t, RCX) = 0x5000;
	unsigned calls = ALL(t, "\xf3\xa4", &v);
	CHECK_EQ(v, V_DONE);
	CHECK(calls >= 6 && calls <= 16); /* by pages, not by bytes */
	CHECK_EQ(GPR(t, RCX), 0);
	CHECK_EQ(GPR(t, RSI), 0x205123);
	CHECK_EQ(GPR(t, RDI), 0x215456);
	CHECK_EQ(memcmp(bytes_at(t, 0x200123), bytes_at(t, 0x210456), 0x5000), 0);
	CHECK_EQ(bytes_at(t, 0x215456)[0], 0);
	CHECK_EQ(t->cpu.rip, CODE + 2);
	t_free(t);
}

TEST(rep_zero)
{
	struct x86_cpuid_model amd = {.amd = true};
	struct x86_test *t = t_long();

	GPR(t, RSI) = GPR(t, RDI) = 0x800000000000;
	GPR(t, RCX) = 0;
	CHECK_EQ(GEN(t, "\xf3\xa4"), V_DONE);
	CHECK_EQ(t->cpu.rip, CODE + 2);
	for (unsigned i = 0; i < 2; i++) {
		t->cpu.model = i ? &amd : NULL;
		GPR(t, RCX) = 0x100000000;
		GPR(t, RDI) = 0x500000000;
		CHECK_EQ(GEN(t, "\x67\xf3\xaa"), V_DONE); /* ECX is 0: nothing but Intel's zero-extension */
		CHECK_EQ(GPR(t, RCX), i ? 0x100000000 : 0);
		CHECK_EQ(GPR(t, RDI), 0x500000000);
	}
	t->cpu.model = NULL;
	t_free(t);
}

TEST(down)
{
	struct x86_test *t = t_long();
	enum verdict v;

	count_up(t, 0x200000, 0x4000);
	t->cpu.rflags |= FL_DF;
	GPR(t, RSI) = 0x203001;
	GPR(t, RDI) = 0x213005;
	GPR(t, RCX) = 0x600;
	ALL(t, "\xf3\x48\xa5", &v);
	CHECK_EQ(v, V_DONE);
	CHECK_EQ(GPR(t, RSI), 0x203001 - 0x3000);
	CHECK_EQ(memcmp(bytes_at(t, 0x200009), bytes_at(t, 0x21000d), 0x3000), 0);
	CHECK_EQ(bytes_at(t, 0x21000c)[0], 0);
	t_free(t);
}

/* A store onto what is read next goes on from element to element. */
TEST(overlap)
{
	for (unsigned d = 1; d < 9; d++) {
		struct x86_test *t = t_long();
		enum verdict v;
		uint8_t model[0x400];

		count_up(t, 0x200000, sizeof(model));
		memcpy(model, bytes_at(t, 0x200000), sizeof(model));
		for (unsigned i = 0; i < 100; i++) {
			uint32_t element;
			memcpy(&element, &model[i * 4], 4);
			memcpy(&model[i * 4 + d], &element, 4);
		}
		GPR(t, RSI) = 0x200000;
		GPR(t, RDI) = 0x200000 + d;
		GPR(t, RCX) = 100;
		ALL(t, "\xf3\xa5", &v);
		CHECK_EQ(memcmp(model, bytes_at(t, 0x200000), sizeof(model)), 0);
		t_free(t);
	}
}

/* The missing page is met with all before it done; mended, the instruction goes on. */
TEST(fault_in_the_middle)
{
	struct x86_test *t = t_long();
	enum verdict v;

	count_up(t, 0x200000, 0x4000);
	poke(t, PT + 0x212 * 8, 0);
	GPR(t, RSI) = 0x200000;
	GPR(t, RDI) = 0x210004;
	GPR(t, RCX) = 0x3000 / 8;
	ALL(t, "\xf3\x48\xa5", &v);
	CHECK_FAULT(t, v, X86_PF, PF_W);
	CHECK_EQ(t->cpu.exc.cr2, 0x212000);
	CHECK_EQ(t->cpu.rip, CODE);
	CHECK_EQ(GPR(t, RDI), 0x211ffc); /* the element that straddles has not begun */
	CHECK_EQ(GPR(t, RSI), 0x200000 + 0x1ff8);
	CHECK_EQ(GPR(t, RCX), 0x3000 / 8 - 0x3ff);
	CHECK_EQ(bytes_at(t, 0x211ffc)[0], 0);
	poke(t, PT + 0x212 * 8, 0x212000 | 3);
	ALL(t, "\xf3\x48\xa5", &v);
	CHECK_EQ(v, V_DONE);
	CHECK_EQ(memcmp(bytes_at(t, 0x200000), bytes_at(t, 0x210004), 0x3000), 0);
	t_free(t);
}

TEST(compare_ends)
{
	struct x86_test *t = t_long();
	enum verdict v;

	memset(bytes_at(t, 0x200000), 5, 0x2000);
	memset(bytes_at(t, 0x210000), 5, 0x2000);
	bytes_at(t, 0x211100)[0] = 6;
	GPR(t, RSI) = 0x200000;
	GPR(t, RDI) = 0x210000;
	GPR(t, RCX) = 0x2000;
	ALL(t, "\xf3\xa6", &v);
	CHECK_EQ(GPR(t, RCX), 0x2000 - 0x1101);
	CHECK_EQ(GPR(t, RDI), 0x211101);
	CHECK_EQ(t->cpu.rflags & FL_ARITH, FL_CF | FL_SF | FL_AF | FL_PF);
	GPR(t, RDI) = 0x210000;
	GPR(t, RCX) = ~0ull;
	GPR(t, RAX) = 6;
	t->cpu.rip = CODE;
	ALL(t, "\xf2\xae", &v);
	CHECK_EQ(GPR(t, RDI), 0x211101);
	CHECK_EQ(t->cpu.rflags & FL_ARITH, FL_ZF | FL_PF);
	t_free(t);
}

/* 16-bit addresses wrap within their segment; an element across its end is a fault. */
TEST(wrap_16)
{
	struct x86_test *t = t_real();
	enum verdict v;

	GPR(t, RDI) = 0xffff0000 | 0xfffc;
	GPR(t, RCX) = 0xabcd0008;
	GPR(t, RAX) = 0x41;
	ALL(t, "\xf3\xaa", &v);
	CHECK_EQ(v, V_DONE);
	CHECK_EQ(GPR(t, RDI), 0xffff0004);
	CHECK_EQ(GPR(t, RCX), 0xabcd0000);
	CHECK_EQ(bytes_at(t, DATA + 0xffff)[0], 0x41);
	CHECK_EQ(bytes_at(t, DATA + 3)[0], 0x41);
	CHECK_EQ(bytes_at(t, DATA + 4)[0], 0);
	CHECK_EQ(bytes_at(t, DATA + 0x10000)[0], 0);
	GPR(t, RDI) = 0xfff9;
	GPR(t, RCX) = 8;
	t->cpu.rip = 0x100;
	ALL(t, "\xf3\xab", &v);
	CHECK_FAULT(t, v, X86_GP, 0);
	CHECK_EQ(GPR(t, RDI), 0xffff);
	CHECK_EQ(GPR(t, RCX), 5);
	t_free(t);
}

TEST(limit)
{
	struct x86_test *t = t_protected();
	enum verdict v;

	t->cpu.seg[SEG_ES] = (struct x86_segment){DATA, 0xff, 0x80, 0x4093};
	GPR(t, RDI) = 0xf0;
	GPR(t, RCX) = 0x20;
	GPR(t, RAX) = 9;
	ALL(t, "\xf3\xaa", &v);
	CHECK_FAULT(t, v, X86_GP, 0);
	CHECK_EQ(GPR(t, RDI), 0x100);
	CHECK_EQ(GPR(t, RCX), 0x10);
	CHECK_EQ(bytes_at(t, DATA + 0xff)[0], 9);
	CHECK_EQ(bytes_at(t, DATA + 0x100)[0], 0);
	t_free(t);
}

TEST(segment_override)
{
	struct x86_test *t = t_protected();

	t->cpu.seg[SEG_FS].base = DATA;
	poke(t, DATA + 0x20, 0x1122334455667788);
	GPR(t, RSI) = 0x20;
	CHECK_EQ(GEN(t, "\x64\xad"), V_DONE);
	CHECK_EQ(GPR(t, RAX), 0x55667788);
	CHECK_EQ(GPR(t, RSI), 0x24);
	t_free(t);
}

/* Whoever holds translations of a page is told of writes to it. */
TEST(tells_of_code)
{
	struct x86_test *t = t_long();
	enum verdict v;

	t->mem.code_written = on_wrote;
	atomic_store(&t->mem.code[guest_memory_page_index(&t->mem, 0x211000)], 1);
	wrote_calls = 0;
	GPR(t, RDI) = 0x210ff0;
	GPR(t, RCX) = 0x40;
	ALL(t, "\xf3\xaa", &v);
	CHECK(wrote_calls > 0);
	CHECK(wrote_gpa + wrote_len == 0x211030);
	wrote_calls = 0;
	t->cpu.rflags |= FL_DF;
	GPR(t, RDI) = 0x21100f;
	GPR(t, RCX) = 0x10;
	t->cpu.rip = CODE;
	ALL(t, "\xf3\xaa", &v);
	CHECK_EQ(wrote_calls, 1);
	CHECK_EQ(wrote_gpa, 0x211000);
	CHECK_EQ(wrote_len, 0x10);
	t_free(t);
}

/* Device to memory: one exit an element, each answered before the next. */
TEST(from_device)
{
	struct x86_test *t = t_protected();
	unsigned exits = 0;

	GPR(t, RSI) = 0xfed00000;
	GPR(t, RDI) = DATA;
	GPR(t, RCX) = 4;
	for (unsigned i = 0; i < 20 && t->cpu.rip == CODE; i++) {
		t->cpu.mmio.next = 0;
		enum verdict v = GEN(t, "\xf3\xa5");
		if (v == V_EXIT) {
			CHECK_EQ(t->cpu.exit.write, false);
			CHECK_EQ(t->cpu.exit.addr, 0xfed00000 + 4 * exits);
			t->cpu.exit.data = 0x100 + exits++;
			t->cpu.exit.completed = true;
		}
	}
	CHECK_EQ(exits, 4);
	for (unsigned i = 0; i < 4; i++)
		CHECK_EQ(peek32(t, DATA + 4 * i), 0x100 + i);
	t_free(t);
}

TEST(to_device)
{
	struct x86_test *t = t_protected();

	GPR(t, RDI) = 0xfed00000;
	GPR(t, RCX) = 3;
	GPR(t, RAX) = 0x77;
	for (unsigned i = 0; i < 3; i++) {
		CHECK_EQ(GEN(t, "\xf3\xab"), V_EXIT);
		CHECK_EQ(t->cpu.exit.write, true);
		CHECK_EQ(t->cpu.exit.addr, 0xfed00000 + 4 * i);
		CHECK_EQ(GPR(t, RCX), 2 - i);
	}
	CHECK_EQ(t->cpu.rip, CODE + 2);
	t_free(t);
}

/* Under TF every element is an instruction. */
TEST(single_step)
{
	struct x86_test *t = t_long();

	t->cpu.rflags |= FL_TF;
	GPR(t, RDI) = DATA;
	GPR(t, RCX) = 3;
	for (unsigned i = 0; i < 3; i++) {
		CHECK_EQ(t->cpu.rip, CODE);
		CHECK_EQ(GEN(t, "\xf3\xaa"), V_DONE);
		CHECK_EQ(GPR(t, RCX), 2 - i);
	}
	CHECK_EQ(t->cpu.rip, CODE + 2);
	t_free(t);
}

UNIT_MAIN()
