/* Control, debug and model-specific registers, port I/O and the short system instructions. */
#include "x86_test.h"

/* --- control registers --- */

static enum verdict mov_cr(struct x86_test *t, unsigned cr, uint64_t value)
{
	char code[] = "\x0f\x22\xc0";

	code[2] = (char)(0xc0 | cr << 3);
	t->cpu.gpr[RAX] = value;
	return t_run(t, code, 3);
}

TEST(cr0_rules)
{
	struct x86_test *t = t_long();
	uint64_t cr0 = t->cpu.cr0;

	CHECK_FAULT(t, mov_cr(t, 0, cr0 | BIT(32)), X86_GP, 0);
	CHECK_FAULT(t, mov_cr(t, 0, cr0 & ~CR0_PE), X86_GP, 0);
	CHECK_FAULT(t, mov_cr(t, 0, cr0 | CR0_NW), X86_GP, 0);
	CHECK_FAULT(t, mov_cr(t, 0, cr0 & ~CR0_PG), X86_GP, 0); /* in 64-bit mode */
	CHECK_EQ(t->cpu.cr0, cr0);
	t->flush_alls = t->modes = 0;
	CHECK_EQ(mov_cr(t, 0, cr0 | CR0_TS | CR0_MP), V_DONE);
	CHECK_EQ(t->modes, 1);
	CHECK_EQ(t->flush_alls, 0);
	CHECK_EQ(t->cpu.rip, CODE + 3);
	CHECK_EQ(mov_cr(t, 0, cr0 & ~CR0_WP & ~CR0_ET), V_DONE);
	CHECK_EQ(t->cpu.cr0, (cr0 & ~CR0_WP) | CR0_ET);
	CHECK_EQ(t->flush_alls, 1);
	t_free(t);
	t = t_user();
	CHECK_FAULT(t, mov_cr(t, 0, cr0), X86_GP, 0);
	CHECK_FAULT(t, RUN(t, "\x0f\x20\xc0"), X86_GP, 0);
	CHECK_FAULT(t, RUN(t, "\x0f\x06"), X86_GP, 0); /* clts */
	CHECK_EQ(RUN(t, "\x48\x0f\x01\xe1"), V_DONE);  /* smsw rcx */
	CHECK_EQ(t->cpu.gpr[RCX], cr0);
	t_free(t);
}

/* There and back: protected mode, long mode, compatibility mode, protected mode. */
TEST(long_mode_transitions)
{
	struct x86_test *t = t_protected();

	t->cpu.cr3 = PML4;
	t->cpu.efer = EFER_LME;
	CHECK_FAULT(t, mov_cr(t, 0, t->cpu.cr0 | CR0_PG), X86_GP, 0); /* without PAE */
	t->cpu.cr4 = CR4_PAE;
	t->model.amd = false;
	t->cpu.seg[SEG_TR].attr = 0x83;
	CHECK_FAULT(t, mov_cr(t, 0, t->cpu.cr0 | CR0_PG), X86_GP, 0); /* from a task of 16 bits: on Intel's */
	t->cpu.seg[SEG_TR].attr = 0x8b;
	CHECK_EQ(mov_cr(t, 0, t->cpu.cr0 | CR0_PG), V_DONE);
	CHECK_EQ(t->cpu.efer, EFER_LME | EFER_LMA);
	CHECK(!x86_code64(&t->cpu));
	CHECK_FAULT(t, mov_cr(t, 4, 0), X86_GP, 0);
	t->cpu.gpr[RCX] = 0xc0000080;
	t->cpu.gpr[RAX] = t->cpu.gpr[RDX] = 0;
	CHECK_FAULT(t, RUN(t, "\x0f\x30"), X86_GP, 0); /* LME can't change now */
	CHECK_EQ(mov_cr(t, 0, t->cpu.cr0 & ~CR0_PG), V_DONE);
	CHECK_EQ(t->cpu.efer, EFER_LME);
	t->cpu.gpr[RCX] = 0xc0000080;
	t->cpu.gpr[RAX] = EFER_LMA | EFER_NXE;
	t->cpu.gpr[RDX] = 0;
	CHECK_EQ(RUN(t, "\x0f\x30"), V_DONE);
	CHECK_EQ(t->cpu.efer, EFER_NXE); /* LMA is not for software */
	t_free(t);
}

TEST(pae_loads_its_pointers)
{
	struct x86_test *t = t_protected();

	t->cpu.cr4 = CR4_PAE;
	poke(t, DATA, PD | 1);
	t->cpu.cr3 = DATA;
	CHECK_EQ(mov_cr(t, 0, t->cpu.cr0 | CR0_PG), V_DONE);
	poke(t, DATA + 0x20, PD | 3);
	CHECK_FAULT(t, mov_cr(t, 3, DATA + 0x20), X86_GP, 0);
	CHECK_FAULT(t, mov_cr(t, 3, 0xfff00000), X86_GP, 0);
	CHECK_EQ(t->cpu.cr3, DATA);
	poke(t, DATA + 0x20, PD | 2); /* not present: anything goes */
	CHECK_EQ(mov_cr(t, 3, DATA + 0x20), V_DONE);
	t_free(t);
}

TEST(cr3_rules)
{
	struct x86_test *t = t_long();

	CHECK_FAULT(t, mov_cr(t, 3, BIT(63) | PML4), X86_GP, 0);
	CHECK_FAULT(t, mov_cr(t, 3, BIT(52) | PML4), X86_GP, 0);
	if (t->model.phys_bits < 52)
		CHECK_FAULT(t, mov_cr(t, 3, BIT(t->model.phys_bits) | PML4), X86_GP, 0);
	t->flush_alls = 0;
	CHECK_EQ(mov_cr(t, 3, PML4 | 0x18), V_DONE);
	CHECK_EQ(t->flush_alls, 1);
	CHECK(!t->flushed_global);
	CHECK_EQ(t->flushed_pcid, -1);
	/* with PCIDs */
	CHECK_FAULT(t, mov_cr(t, 4, t->cpu.cr4 | CR4_PCIDE), X86_GP, 0); /* while CR3 has low bits */
	CHECK_EQ(mov_cr(t, 3, PML4), V_DONE);
	CHECK_EQ(mov_cr(t, 4, t->cpu.cr4 | CR4_PCIDE), V_DONE);
	t->flush_alls = 0;
	CHECK_EQ(mov_cr(t, 3, PML4 | 5), V_DONE);
	CHECK_EQ(t->flush_alls, 1);
	CHECK_EQ(t->flushed_pcid, 5);
	CHECK_EQ(mov_cr(t, 3, BIT(63) | PML4 | 6), V_DONE); /* keep */
	CHECK_EQ(t->flush_alls, 1);
	CHECK_EQ(t->cpu.cr3, PML4 | 6);
	CHECK_EQ(RUN(t, "\x0f\x01\x38"), V_DONE); /* invlpg [rax] */
	CHECK_EQ(t->flush_pages, 0);              /* not canonical */
	t->cpu.gpr[RAX] = DATA;
	CHECK_EQ(RUN(t, "\x0f\x01\x38"), V_DONE);
	CHECK_EQ(t->flushed_va, DATA);
	CHECK_EQ(t->flushed_pcid, 6);
	t_free(t);
}

TEST(cr4_rules)
{
	struct x86_test *t = t_long();

	CHECK_FAULT(t, mov_cr(t, 4, t->cpu.cr4 | BIT(13)), X86_GP, 0); /* VMXE */
	CHECK_FAULT(t, mov_cr(t, 4, t->cpu.cr4 | BIT(12)), X86_GP, 0); /* LA57 */
	CHECK_FAULT(t, mov_cr(t, 4, t->cpu.cr4 | BIT(32)), X86_GP, 0);
	CHECK_FAULT(t, mov_cr(t, 4, t->cpu.cr4 & ~CR4_PAE), X86_GP, 0);
	CHECK_EQ(mov_cr(t, 4, t->cpu.cr4 | CR4_SMAP | CR4_SMEP | CR4_UMIP | CR4_FSGSBASE), V_DONE);
	t->model.features &= ~BIT(FEAT_SMAP);
	CHECK_FAULT(t, mov_cr(t, 4, t->cpu.cr4), X86_GP, 0);
	t_free(t);
	t = t_protected();
	CHECK_FAULT(t, mov_cr(t, 4, CR4_PCIDE), X86_GP, 0); /* long mode only */
	t_free(t);
}

TEST(cr8)
{
	struct x86_test *t = t_long();

	t->cpu.gpr[RAX] = 16;
	CHECK_FAULT(t, RUN(t, "\x44\x0f\x22\xc0"), X86_GP, 0);
	t->cpu.gpr[RAX] = 5;
	CHECK_EQ(RUN(t, "\x44\x0f\x22\xc0"), V_EXIT);
	CHECK_EQ(t->cpu.exit.kind, EXIT_CR8);
	CHECK(t->cpu.exit.write);
	CHECK_EQ(t->cpu.exit.data, 5);
	CHECK_EQ(t->cpu.rip, CODE + 4);
	CHECK_EQ(RUN(t, "\x44\x0f\x20\xc1"), V_EXIT);
	CHECK_EQ(t->cpu.rip, CODE + 4);
	t->cpu.exit.completed = true;
	t->cpu.exit.data = 9;
	CHECK_EQ(RUN(t, "\x44\x0f\x20\xc1"), V_DONE);
	CHECK_EQ(t->cpu.gpr[RCX], 9);
	CHECK_EQ(t->cpu.rip, CODE + 8);
	t_free(t);
}

TEST(lmsw)
{
	struct x86_test *t = t_long();

	t->cpu.gpr[RAX] = 0xfffe & ~1u;
	CHECK_EQ(RUN(t, "\x0f\x01\xf0"), V_DONE);
	CHECK_EQ(t->cpu.cr0 & 0xf, 0xf); /* PE stays */
	CHECK_EQ(RUN(t, "\x0f\x06"), V_DONE);
	CHECK_EQ(t->cpu.cr0 & 0xf, 0x7);
	t_free(t);
}

/* INVPCID type n with descriptor (pcid, address). */
static enum verdict invpcid(struct x86_test *t, uint64_t type, uint64_t pcid, uint64_t va)
{
	poke(t, DATA, pcid);
	poke(t, DATA + 8, va);
	t->cpu.gpr[RBX] = DATA;
	t->cpu.gpr[RAX] = type;
	t->flushed_pcid = -2;
	return RUN(t, "\x66\x0f\x38\x82\x03");
}

TEST(invpcid)
{
	struct x86_test *t = t_long();

	CHECK_EQ(invpcid(t, 0, 0, DATA), V_DONE);
	CHECK_EQ(t->flushed_va, DATA);
	CHECK_EQ(t->flushed_pcid, -1);
	CHECK_FAULT(t, invpcid(t, 0, 1, DATA), X86_GP, 0);
	CHECK_FAULT(t, invpcid(t, 0, 0x1000, DATA), X86_GP, 0);
	CHECK_FAULT(t, invpcid(t, 0, 0, BIT(60)), X86_GP, 0);
	CHECK_FAULT(t, invpcid(t, 4, 0, 0), X86_GP, 0);
	CHECK_FAULT(t, invpcid(t, 2, 0x1000, 0), X86_GP, 0); /* reserved bits are for all types */
	CHECK_FAULT(t, invpcid(t, 3, BIT(63), 0), X86_GP, 0);
	CHECK_EQ(invpcid(t, 2, 0xfff, BIT(60)), V_DONE); /* but nothing else of the descriptor matters */
	CHECK(t->flushed_global);
	CHECK_EQ(t->flushed_pcid, -1);
	t->cpu.cr4 |= CR4_PCIDE;
	CHECK_EQ(invpcid(t, 1, 7, 0), V_DONE);
	CHECK(!t->flushed_global);
	CHECK_EQ(t->flushed_pcid, 7);
	CHECK_EQ(invpcid(t, 3, 0, 0), V_DONE);
	CHECK(!t->flushed_global);
	CHECK_EQ(t->flushed_pcid, -1);
	t_free(t);
}

/* --- debug registers --- */

TEST(debug_registers)
{
	struct x86_test *t = t_long();

	t->cpu.gpr[RAX] = ~0ull;
	CHECK_EQ(RUN(t, "\x0f\x23\xc0"), V_DONE); /* dr0 */
	CHECK_EQ(t->cpu.dr[0], ~0ull);
	CHECK_FAULT(t, RUN(t, "\x0f\x23\xf0"), X86_GP, 0); /* dr6 has 32 bits */
	CHECK_FAULT(t, RUN(t, "\x0f\x23\xf8"), X86_GP, 0);
	t->cpu.gpr[RAX] = 0;
	CHECK_EQ(RUN(t, "\x0f\x23\xf0"), V_DONE);
	CHECK_EQ(t->cpu.dr6, 0xffff0ff0);
	CHECK_EQ(RUN(t, "\x0f\x23\xe8"), V_DONE); /* dr5 is dr7 */
	CHECK_EQ(t->cpu.dr7, 0x400);
	t->cpu.cr4 |= CR4_DE;
	CHECK_FAULT(t, RUN(t, "\x0f\x23\xe8"), X86_UD, 0);
	t->cpu.dr7 |= BIT(13);
	CHECK_FAULT(t, RUN(t, "\x0f\x21\xc1"), X86_DB, 0);
	CHECK_EQ(t->cpu.exc.dr6, BIT(13));
	CHECK(!t->cpu.exc.trap);
	t_free(t);
	t = t_user();
	CHECK_FAULT(t, RUN(t, "\x0f\x21\xc1"), X86_GP, 0);
	t_free(t);
}

/* --- model-specific registers --- */

static enum verdict wrmsr(struct x86_test *t, uint32_t msr, uint64_t value)
{
	t->cpu.gpr[RCX] = msr;
	t->cpu.gpr[RAX] = (uint32_t)value | 0xdead00000000; /* upper halves don't matter */
	t->cpu.gpr[RDX] = value >> 32 | 0xbeef00000000;
	return RUN(t, "\x0f\x30");
}

static enum verdict rdmsr(struct x86_test *t, uint32_t msr, uint64_t *value)
{
	enum verdict v;

	t->cpu.gpr[RCX] = msr;
	t->cpu.gpr[RAX] = t->cpu.gpr[RDX] = ~0ull;
	v = RUN(t, "\x0f\x32");
	*value = t->cpu.gpr[RAX] | t->cpu.gpr[RDX] << 32;
	if (v == V_DONE)
		CHECK_EQ(t->cpu.gpr[RAX] >> 32 | t->cpu.gpr[RDX] >> 32, 0);
	return v;
}

enum { ANY, AMD, INTEL };

/* Values that must be taken and read back, and one that must be refused (0: none is). */
static const struct {
	uint32_t msr;
	unsigned vendor;
	uint64_t good, bad;
} msr_cases[] = {
	{0x174, ANY, 0x10, BIT(32)},
	{0x175, ANY, 0xffff800000000000, BIT(47)},
	{0x176, ANY, 0x00007fffffffffff, BIT(63)},
	{0x200, ANY, 0xc0000006, 0xc0000002},
	{0x201, ANY, 0xffc0000800, 0x400},
	{0x20f, ANY, 0, BIT(60)},
	{0x250, ANY, 0x0606060606060606, 0x0203040506060606},
	{0x26f, ANY, 0x0504010006060606, 0x0700000000000000},
	{0x277, ANY, 0x0007040600070406, 0x0000000000000002},
	{0x2ff, ANY, 0xc06, 0x1c06},
	{0xc0000081, ANY, 0x0123456789abcdef, 0},
	{0xc0000082, ANY, 0xffffffff81000000, BIT(50)},
	{0xc0000083, ANY, 0xffffffff81000000, BIT(50)},
	{0xc0000084, ANY, 0x47700, BIT(32)},
	{0xc0000100, ANY, 0x7f1234567000, BIT(50)},
	{0xc0000101, ANY, 0xffff888000000000, BIT(50)},
	{0xc0000102, ANY, 0xffff888000000000, BIT(50)},
	{0xc0000103, ANY, 0x1002, BIT(32)},
	{0x48, INTEL, 0x407, 8},
	{0x48, INTEL, 0x400, 0x800},
	{0x1a0, INTEL, 0x1801, 0},
};

TEST(msrs_keep_values)
{
	for (unsigned amd = 0; amd < 2; amd++) {
		struct x86_test *t = t_long();

		t->model.amd = amd;
		for (unsigned i = 0; i < ARRAY_LEN(msr_cases); i++) {
			uint64_t v;

			if (msr_cases[i].vendor == (amd ? INTEL : AMD)) {
				CHECK_FAULT(t, rdmsr(t, msr_cases[i].msr, &v), X86_GP, 0);
				continue;
			}
			CHECK_EQ(wrmsr(t, msr_cases[i].msr, msr_cases[i].good), V_DONE);
			if (msr_cases[i].bad)
				CHECK_FAULT(t, wrmsr(t, msr_cases[i].msr, msr_cases[i].bad), X86_GP, 0);
			CHECK_EQ(rdmsr(t, msr_cases[i].msr, &v), V_DONE);
			if (v != msr_cases[i].good)
				UNIT_FAIL("msr 0x%x: 0x%" PRIx64, msr_cases[i].msr, v);
		}
		t_free(t);
	}
}

TEST(msrs_read_only_and_unknown)
{
	struct x86_test *t = t_long();
	uint64_t v;

	CHECK_EQ(rdmsr(t, 0xfe, &v), V_DONE);
	CHECK_EQ(v, 0x508);
	CHECK_FAULT(t, wrmsr(t, 0xfe, v), X86_GP, 0);
	CHECK_EQ(rdmsr(t, 0x8b, &v), V_DONE);
	CHECK_FAULT(t, rdmsr(t, 0x12345, &v), X86_GP, 0);
	CHECK_FAULT(t, rdmsr(t, 0xc0010117, &v), X86_GP, 0); /* VM_HSAVE_PA */
	CHECK_FAULT(t, rdmsr(t, 0x480, &v), X86_GP, 0);      /* VMX */
	CHECK_FAULT(t, wrmsr(t, 0xda0, 1), X86_GP, 0);
	CHECK_EQ(wrmsr(t, 0xda0, 0), V_DONE);
	CHECK_FAULT(t, wrmsr(t, 0xc0000080, EFER_LME | BIT(12)), X86_GP, 0); /* SVME */
	t->model.amd = true;
	CHECK_EQ(rdmsr(t, 0xc0010015, &v), V_DONE);
	CHECK(v & BIT(24)); /* or the kernel speaks of a firmware bug */
	CHECK_EQ(rdmsr(t, 0xc0011029, &v), V_DONE);
	CHECK(v & BIT(1));
	t->model.amd = false;
	CHECK_FAULT(t, rdmsr(t, 0xc0010015, &v), X86_GP, 0);
	t_free(t);
	t = t_user();
	CHECK_FAULT(t, rdmsr(t, 0xc0000080, &v), X86_GP, 0);
	t_free(t);
}

TEST(msrs_of_the_apic)
{
	static const uint32_t outside[] = {0x1b, 0x6e0, 0x800, 0x80b, 0x8ff};
	struct x86_test *t = t_long();
	uint64_t v;

	for (unsigned i = 0; i < ARRAY_LEN(outside); i++) {
		t->cpu.rip = CODE;
		CHECK_EQ(wrmsr(t, outside[i], 0x123456789), V_EXIT);
		CHECK_EQ(t->cpu.exit.kind, EXIT_MSR);
		CHECK(t->cpu.exit.write);
		CHECK_EQ(t->cpu.exit.addr, outside[i]);
		CHECK_EQ(t->cpu.exit.data, 0x123456789);
		CHECK_EQ(t->cpu.rip, CODE + 2);
		t->cpu.exit.fault = true; /* refused: as if it had not run */
		CHECK_FAULT(t, x86_resume(&t->cpu), X86_GP, 0);
		CHECK_EQ(t->cpu.rip, CODE);
		CHECK_EQ(rdmsr(t, outside[i], &v), V_EXIT);
		CHECK_EQ(t->cpu.rip, CODE);
		t->cpu.exit.completed = true;
		t->cpu.exit.data = 0xabcdef0123;
		CHECK_EQ(x86_resume(&t->cpu), V_DONE);
		CHECK_EQ(rdmsr(t, outside[i], &v), V_DONE);
		CHECK_EQ(v, 0xabcdef0123);
		CHECK_EQ(rdmsr(t, outside[i], &v), V_EXIT);
		t->cpu.exit.completed = t->cpu.exit.fault = true;
		CHECK_FAULT(t, rdmsr(t, outside[i], &v), X86_GP, 0);
	}
	CHECK_FAULT(t, rdmsr(t, 0x900, &v), X86_GP, 0);
	t_free(t);
}

/* The core writes it, and the monitor hears of it. */
static void move_tsc(struct x86_test *t, uint32_t msr, uint64_t value)
{
	uint64_t rip = t->cpu.rip;

	CHECK_EQ(wrmsr(t, msr, value), V_EXIT);
	CHECK_EQ(t->cpu.exit.kind, EXIT_MSR);
	CHECK(t->cpu.exit.write);
	CHECK_EQ(t->cpu.exit.addr, msr);
	CHECK_EQ(t->cpu.rip, rip + 2);
	CHECK_EQ(x86_resume(&t->cpu), V_DONE);
}

TEST(time_stamp_counter)
{
	struct x86_test *t = t_long();
	uint64_t v, adjust;

	move_tsc(t, 0x10, 1000);
	CHECK_EQ(rdmsr(t, 0x10, &v), V_DONE);
	CHECK(v >= 1000 && v < 1000 + 4000000000u);
	CHECK_EQ(rdmsr(t, 0x3b, &adjust), V_DONE);
	CHECK_EQ(adjust, t->cpu.tsc_offset);
	move_tsc(t, 0x3b, adjust + GiB(1024));
	CHECK_EQ(RUN(t, "\x0f\x31"), V_DONE);
	CHECK((t->cpu.gpr[RAX] | t->cpu.gpr[RDX] << 32) >= GiB(1024) + 1000);
	t->cpu.tsc_aux = 0x77;
	CHECK_EQ(RUN(t, "\x0f\x01\xf9"), V_DONE); /* rdtscp */
	CHECK_EQ(t->cpu.gpr[RCX], 0x77);
	CHECK_EQ(RUN(t, "\xf3\x0f\xc7\xfb"), V_DONE); /* rdpid rbx */
	CHECK_EQ(t->cpu.gpr[RBX], 0x77);
	t->cpu.cr4 |= CR4_TSD;
	CHECK_EQ(RUN(t, "\x0f\x31"), V_DONE);
	t_segments(t, &t_ucode64, &t_udata);
	CHECK_FAULT(t, RUN(t, "\x0f\x31"), X86_GP, 0);
	CHECK_FAULT(t, RUN(t, "\x0f\x01\xf9"), X86_GP, 0);
	CHECK_FAULT(t, RUN(t, "\x0f\x33"), X86_GP, 0); /* rdpmc */
	t_free(t);
}

/* --- XCR0 --- */

static enum verdict xsetbv(struct x86_test *t, uint32_t n, uint64_t value)
{
	t->cpu.gpr[RCX] = n;
	t->cpu.gpr[RAX] = (uint32_t)value;
	t->cpu.gpr[RDX] = value >> 32;
	return RUN(t, "\x0f\x01\xd1");
}

TEST(xcr0)
{
	struct x86_test *t = t_long();

	CHECK_FAULT(t, xsetbv(t, 0, 3), X86_UD, 0);
	CHECK_FAULT(t, RUN(t, "\x0f\x01\xd0"), X86_UD, 0);
	t->cpu.cr4 |= CR4_OSXSAVE;
	CHECK_EQ(xsetbv(t, 0, 7), V_DONE);
	CHECK_EQ(RUN(t, "\x0f\x01\xd0"), V_DONE);
	CHECK_EQ(t->cpu.gpr[RAX], 7);
	CHECK_EQ(t->cpu.gpr[RDX], 0);
	CHECK_FAULT(t, xsetbv(t, 0, 6), X86_GP, 0);
	CHECK_FAULT(t, xsetbv(t, 0, 5), X86_GP, 0);
	CHECK_FAULT(t, xsetbv(t, 0, 0xf), X86_GP, 0);
	CHECK_FAULT(t, xsetbv(t, 0, BIT(63) | 7), X86_GP, 0);
	CHECK_FAULT(t, xsetbv(t, 1, 7), X86_GP, 0);
	t->cpu.gpr[RCX] = 2;
	CHECK_FAULT(t, RUN(t, "\x0f\x01\xd0"), X86_GP, 0);
	t_segments(t, &t_ucode64, &t_udata);
	CHECK_FAULT(t, xsetbv(t, 0, 7), X86_GP, 0);
	t->cpu.gpr[RCX] = 0;
	CHECK_EQ(RUN(t, "\x0f\x01\xd0"), V_DONE);
	t_free(t);
}

/* --- flags --- */

TEST(interrupt_flag)
{
	struct x86_test *t = t_long();

	t->cpu.rflags = FL_FIXED1;
	CHECK_EQ(RUN(t, "\xfb"), V_DONE);
	CHECK(t->cpu.rflags & FL_IF);
	CHECK_EQ(t->cpu.shadow, 1);
	CHECK(!x86_can_interrupt(&t->cpu));
	CHECK_EQ(RUN(t, "\xfb"), V_DONE); /* the second gives no new shadow */
	CHECK(x86_can_interrupt(&t->cpu));
	CHECK_EQ(RUN(t, "\xfa"), V_DONE);
	CHECK(!x86_can_interrupt(&t->cpu));
	t_segments(t, &t_ucode64, &t_udata);
	CHECK_FAULT(t, RUN(t, "\xfa"), X86_GP, 0);
	CHECK_FAULT(t, RUN(t, "\xfb"), X86_GP, 0);
	t->cpu.rflags |= FL_IOPL;
	CHECK_EQ(RUN(t, "\xfb"), V_DONE);
	t_free(t);
}

TEST(push_and_pop_flags)
{
	struct x86_test *t = t_long();
	uint64_t all = FL_ARITH | FL_TF | FL_IF | FL_DF | FL_IOPL | FL_NT | FL_AC | FL_ID;

	t->cpu.rflags = all | FL_RF | FL_FIXED1;
	CHECK_EQ(RUN(t, "\x9c"), V_DONE);
	CHECK_EQ(peek(t, t->cpu.gpr[RSP]), all | FL_FIXED1);
	t->cpu.rflags = FL_FIXED1;
	t->modes = 0;
	CHECK_EQ(RUN(t, "\x9d"), V_DONE);
	CHECK_EQ(t->cpu.rflags, all | FL_FIXED1);
	CHECK_EQ(t->modes, 1);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1000);
	/* 16 bits leave the upper half */
	t->cpu.rflags = FL_FIXED1 | FL_AC;
	t->cpu.gpr[RSP] -= 2;
	poke(t, t->cpu.gpr[RSP], 0xffff);
	CHECK_EQ(RUN(t, "\x66\x9d"), V_DONE);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_AC | (all & 0xffff));
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1000);
	t_free(t);
	t = t_user(); /* IOPL and IF are not for users, VM, RF, VIF for nobody */
	poke(t, USTACK, ~0ull);
	CHECK_EQ(RUN(t, "\x9d"), V_DONE);
	CHECK_EQ(t->cpu.rflags, (all & ~FL_IOPL) | FL_FIXED1);
	poke(t, USTACK + 8, 0);
	CHECK_EQ(RUN(t, "\x9d"), V_DONE);
	CHECK_EQ(t->cpu.rflags, FL_FIXED1 | FL_IF);
	t_free(t);
}

TEST(alignment_check_flag)
{
	struct x86_test *t = t_long();

	CHECK_EQ(RUN(t, "\x0f\x01\xcb"), V_DONE);
	CHECK(t->cpu.rflags & FL_AC);
	CHECK_EQ(RUN(t, "\x0f\x01\xca"), V_DONE);
	CHECK(!(t->cpu.rflags & FL_AC));
	t_segments(t, &t_ucode64, &t_udata);
	CHECK_FAULT(t, RUN(t, "\x0f\x01\xcb"), X86_UD, 0);
	t_free(t);
}

TEST(alignment_checks)
{
	struct x86_test *t = t_user();

	t->cpu.cr0 |= CR0_AM;
	t->cpu.rflags |= FL_AC;
	t->cpu.gpr[RBX] = UDATA + 1;
	CHECK_FAULT(t, RUN(t, "\x8e\x1b"), X86_AC, 0); /* mov ds, [rbx] */
	CHECK_FAULT(t, RUN(t, "\x8c\x1b"), X86_AC, 0);
	CHECK_FAULT(t, RUN(t, "\x0f\xb4\x03"), X86_AC, 0); /* lfs eax, [rbx]; ljmp [rbx] */
	CHECK_FAULT(t, RUN(t, "\xff\x2b"), X86_AC, 0);
	t->cpu.gpr[RBX] = UDATA + 2; /* a far pointer with an offset of 16 bits is one of words */
	CHECK_FAULT(t, RUN(t, "\x0f\xb4\x03"), X86_AC, 0);
	CHECK_EQ(RUN(t, "\x66\x0f\xb4\x03"), V_DONE);
	t->cpu.rflags |= FL_IOPL;
	t->cpu.gpr[RSI] = t->cpu.gpr[RDI] = UDATA + 2;
	CHECK_FAULT(t, RUN(t, "\x6f"), X86_AC, 0); /* outsd, insd */
	CHECK_FAULT(t, RUN(t, "\x6d"), X86_AC, 0);
	CHECK_EQ(RUN(t, "\x66\x6f"), V_EXIT);
	t->cpu.gpr[RSP] = USTACK + 4;
	CHECK_FAULT(t, RUN(t, "\x9c"), X86_AC, 0);
	CHECK_EQ(RUN(t, "\xcd\x80"), V_DONE); /* an inner stack is not the user's business */
	t_free(t);
	t = t_user();
	t->cpu.rflags |= FL_AC;
	t->cpu.gpr[RSP] = USTACK + 4;
	CHECK_EQ(RUN(t, "\x9c"), V_DONE);
	t_free(t);
}

/* --- bases, halting, what is not there --- */

TEST(fs_and_gs_bases)
{
	struct x86_test *t = t_long();

	t->cpu.kernel_gs_base = 0x1234;
	t->cpu.seg[SEG_GS].base = 0x5678;
	CHECK_EQ(RUN(t, "\x0f\x01\xf8"), V_DONE);
	CHECK_EQ(t->cpu.seg[SEG_GS].base, 0x1234);
	CHECK_EQ(t->cpu.kernel_gs_base, 0x5678);
	CHECK_FAULT(t, RUN(t, "\xf3\x48\x0f\xae\xd8"), X86_UD, 0); /* wrgsbase rax */
	t->cpu.cr4 |= CR4_FSGSBASE;
	t->cpu.gpr[RAX] = 0xffff888012345678;
	CHECK_EQ(RUN(t, "\xf3\x48\x0f\xae\xd8"), V_DONE);
	CHECK_EQ(t->cpu.seg[SEG_GS].base, 0xffff888012345678);
	CHECK_EQ(RUN(t, "\xf3\x0f\xae\xd0"), V_DONE); /* wrfsbase eax */
	CHECK_EQ(t->cpu.seg[SEG_FS].base, 0x12345678);
	CHECK_EQ(RUN(t, "\xf3\x48\x0f\xae\xc9"), V_DONE); /* rdgsbase rcx */
	CHECK_EQ(t->cpu.gpr[RCX], 0xffff888012345678);
	CHECK_EQ(RUN(t, "\xf3\x0f\xae\xc9"), V_DONE); /* rdgsbase ecx */
	CHECK_EQ(t->cpu.gpr[RCX], 0x12345678);
	t->cpu.gpr[RAX] = BIT(50);
	CHECK_FAULT(t, RUN(t, "\xf3\x48\x0f\xae\xd8"), X86_GP, 0);
	t_segments(t, &t_ucode64, &t_udata);
	CHECK_FAULT(t, RUN(t, "\x0f\x01\xf8"), X86_GP, 0);
	t_free(t);
}

TEST(halt)
{
	struct x86_test *t = t_long();

	CHECK_EQ(RUN(t, "\xf4"), V_EXIT);
	CHECK_EQ(t->cpu.exit.kind, EXIT_HLT);
	CHECK(t->cpu.halted);
	CHECK_EQ(t->cpu.rip, CODE + 1);
	CHECK_EQ(x86_deliver_interrupt(&t->cpu, 0x30), V_DONE);
	CHECK(!t->cpu.halted);
	t_free(t);
	t = t_user();
	CHECK_FAULT(t, RUN(t, "\xf4"), X86_GP, 0);
	CHECK_FAULT(t, RUN(t, "\x0f\x09"), X86_GP, 0);     /* wbinvd */
	CHECK_FAULT(t, RUN(t, "\x0f\x01\x38"), X86_GP, 0); /* invlpg */
	t_free(t);
}

/* --- port I/O --- */

TEST(in_and_out)
{
	struct x86_test *t = t_long();

	t->cpu.gpr[RAX] = 0x1122334455667788;
	t->cpu.gpr[RDX] = 0x123403f8;
	CHECK_EQ(RUN(t, "\xee"), V_EXIT); /* out dx, al */
	CHECK_EQ(t->cpu.exit.kind, EXIT_IO);
	CHECK(t->cpu.exit.write);
	CHECK_EQ(t->cpu.exit.addr, 0x3f8);
	CHECK_EQ(t->cpu.exit.len, 1);
	CHECK_EQ(t->cpu.exit.data, 0x88);
	CHECK_EQ(t->cpu.rip, CODE + 1);
	CHECK_EQ(RUN(t, "\x66\xe7\x80"), V_EXIT); /* out 0x80, ax */
	CHECK_EQ(t->cpu.exit.addr, 0x80);
	CHECK_EQ(t->cpu.exit.len, 2);
	CHECK_EQ(t->cpu.exit.data, 0x7788);
	CHECK_EQ(RUN(t, "\xed"), V_EXIT); /* in eax, dx */
	CHECK(!t->cpu.exit.write);
	CHECK_EQ(t->cpu.exit.len, 4);
	CHECK_EQ(t->cpu.rip, CODE + 4);
	t->cpu.exit.data = 0xcafe;
	t->cpu.exit.completed = true;
	CHECK_EQ(RUN(t, "\xed"), V_DONE);
	CHECK_EQ(t->cpu.gpr[RAX], 0xcafe);
	CHECK_EQ(t->cpu.rip, CODE + 5);
	t->cpu.gpr[RAX] = ~0ull;
	CHECK_EQ(RUN(t, "\xe4\x60"), V_EXIT); /* in al, 0x60: asked anew */
	t->cpu.exit.data = 0x11;
	t->cpu.exit.completed = true;
	CHECK_EQ(RUN(t, "\xe4\x60"), V_DONE);
	CHECK_EQ(t->cpu.gpr[RAX], 0xffffffffffffff11);
	t_free(t);
}

TEST(port_permission)
{
	struct x86_test *t = t_user();
	uint8_t *map = ram(t, TSS + 0x68);

	t->cpu.gpr[RDX] = 0x21;
	poke32(t, TSS + 0x64, 0xffff0000);
	CHECK_FAULT(t, RUN(t, "\xee"), X86_GP, 0); /* no bitmap */
	t->cpu.seg[SEG_TR].limit = 0x68 + 16;
	poke32(t, TSS + 0x64, 0x68 << 16);
	memset(map, 0xff, 17);
	CHECK_FAULT(t, RUN(t, "\xee"), X86_GP, 0);
	map[4] = 0xfd;
	CHECK_EQ(RUN(t, "\xee"), V_EXIT);
	CHECK_FAULT(t, RUN(t, "\x66\xef"), X86_GP, 0); /* the second port is not allowed */
	map[4] = 0xf9;
	CHECK_EQ(RUN(t, "\x66\xef"), V_EXIT);
	map[4] = 0x7f;
	map[5] = 0xfe;
	t->cpu.gpr[RDX] = 0x27;
	CHECK_EQ(RUN(t, "\x66\xef"), V_EXIT); /* across two bytes */
	t->cpu.gpr[RDX] = 0x7f;
	map[15] = 0x7f;
	CHECK_EQ(RUN(t, "\xee"), V_EXIT);
	t->cpu.seg[SEG_TR].limit--; /* the byte after must be inside too */
	CHECK_FAULT(t, RUN(t, "\xee"), X86_GP, 0);
	t->cpu.rflags |= FL_IOPL;
	CHECK_EQ(RUN(t, "\xee"), V_EXIT);
	t_free(t);
}

TEST(string_io)
{
	struct x86_test *t = t_long();
	static const char outsb[] = "\xf3\x6e", insw[] = "\x66\xf3\x6d";

	memcpy(ram(t, DATA), "abc", 3);
	t->cpu.gpr[RDX] = 0x3f8;
	t->cpu.gpr[RSI] = DATA;
	t->cpu.gpr[RCX] = 3;
	for (unsigned i = 0; i < 3; i++) {
		CHECK_EQ(t->cpu.rip, CODE);
		CHECK_EQ(t_run(t, outsb, 2), V_EXIT);
		CHECK_EQ(t->cpu.exit.data, (unsigned)"abc"[i]);
		CHECK_EQ(t->cpu.gpr[RCX], 2 - i);
		CHECK_EQ(t->cpu.gpr[RSI], DATA + 1 + i);
	}
	CHECK_EQ(t->cpu.rip, CODE + 2);
	CHECK_EQ(t_run(t, outsb, 2), V_DONE); /* nothing to do */
	CHECK_EQ(t->cpu.rip, CODE + 4);
	t->cpu.rip = CODE;
	t->cpu.gpr[RDI] = DATA + 0x10;
	t->cpu.gpr[RCX] = 2;
	t->cpu.rflags |= FL_DF;
	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ(t_run(t, insw, 3), V_EXIT);
		CHECK_EQ(t->cpu.rip, CODE);
		t->cpu.exit.data = 0x1111 * (i + 1);
		t->cpu.exit.completed = true;
		CHECK_EQ(t_run(t, insw, 3), V_DONE);
	}
	CHECK_EQ(t->cpu.rip, CODE + 3);
	CHECK_EQ(peek(t, DATA + 0xe) & 0xffffffff, 0x11112222);
	CHECK_EQ(t->cpu.gpr[RDI], DATA + 0xc);
	/* a fault comes before the device is asked */
	t->cpu.gpr[RDI] = 0x7fff0000;
	t->cpu.gpr[RCX] = 1;
	CHECK_FAULT(t, t_run(t, insw, 3), X86_PF, PF_W);
	CHECK_EQ(t->cpu.gpr[RCX], 1);
	t_free(t);
}

/* --- lock prefixes, and a processor's beginning --- */

TEST(power_on)
{
	struct x86_test *t = t_new();
	struct x86_cpu *cpu = &t->cpu;

	CHECK_EQ(cpu->cr0, 0x60000010);
	CHECK_EQ(cpu->seg[SEG_CS].base + cpu->rip, 0xfffffff0);
	CHECK_EQ(cpu->rflags, 2);
	CHECK_EQ(cpu->dr6, 0xffff0ff0);
	CHECK_EQ(cpu->dr7, 0x400);
	CHECK_EQ(cpu->pat, 0x0007040600070406);
	CHECK_EQ(cpu->apic_base, 0xfee00900);
	CHECK_EQ(cpu->gpr[RDX], t->model.leaf[1].eax);
	cpu->star = 5;
	cpu->cr0 = CR0_PE | CR0_PG | CR0_CD;
	cpu->gpr[RAX] = 7;
	cpu->xcr0 = 7;
	x86_cpu_reset(cpu, true);
	CHECK_EQ(cpu->star, 5);
	CHECK_EQ(cpu->xcr0, 7);
	CHECK_EQ(cpu->cr0, 0x40000010);
	CHECK_EQ(cpu->gpr[RAX], 0);
	x86_start_ap(cpu, 0x9a);
	CHECK_EQ(cpu->seg[SEG_CS].sel, 0x9a00);
	CHECK_EQ(cpu->seg[SEG_CS].base, 0x9a000);
	CHECK_EQ(cpu->rip, 0);
	t_free(t);
}

TEST(retiring)
{
	struct x86_test *t = t_long();

	t->cpu.rflags |= FL_RF;
	t->cpu.shadow = 2;
	CHECK_EQ(RUN(t, "\x0f\x31"), V_DONE);
	CHECK(!(t->cpu.rflags & FL_RF));
	CHECK_EQ(t->cpu.shadow, 0);
	t->cpu.shadow = 1;
	t->cpu.gpr[RCX] = 0x12345;
	CHECK_EQ(RUN(t, "\x0f\x32"), V_INJECT);
	CHECK_EQ(t->cpu.shadow, 1);
	CHECK_EQ(t->cpu.rip, CODE + 2);
	t_free(t);
	t = t_protected(); /* 32 bits of EIP */
	t->cpu.rip = 0xffffffff;
	CHECK_EQ(RUN(t, "\xfa"), V_DONE);
	CHECK_EQ(t->cpu.rip, 0);
	t_free(t);
}

UNIT_MAIN()
