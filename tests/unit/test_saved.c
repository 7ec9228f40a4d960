/* Saved states of processors: what can be loads, and what cannot is refused with its reason and changes nothing. */
#include "x86_test.h"

#include "bus/bus.h"

static struct x86_test *real(void)
{
	return t_new();
}

TEST(possible_states_load)
{
	static struct x86_test *(*const make[])(void) = {real, t_long, t_user, t_protected};

	for (unsigned i = 0; i < ARRAY_LEN(make); i++) {
		struct x86_test *t = make[i]();
		struct state_stream s = {.saving = true};
		t->cpu.gpr[RBX] = 0x1234;
		x86_cpu_state(&t->cpu, &s);
		CHECK(!s.failed);
		t->cpu.gpr[RBX] = 0;
		t->cpu.tsc_offset = 77;
		t->cpu.id = 3;
		struct state_stream l = {.data = s.data, .len = s.len};
		x86_cpu_state(&t->cpu, &l);
		CHECK(!l.failed && l.pos == l.len);
		CHECK_EQ(t->cpu.gpr[RBX], 0x1234);
		CHECK_EQ(t->cpu.tsc_offset, 77); /* the loading machine's */
		CHECK_EQ(t->cpu.id, 3);
		l = (struct state_stream){.data = s.data, .len = s.len - 1};
		x86_cpu_state(&t->cpu, &l);
		CHECK(l.failed && !strcmp(l.why, "an end too early"));
		state_end(&s);
		t_free(t);
	}
}

/* A value of `size` bytes at `at` of a 64-bit machine that runs kernel code. */
#define AT(field) offsetof(struct x86_cpu, field), sizeof(((struct x86_cpu *)0)->field)
static const struct {
	size_t at, size;
	uint64_t value;
	const char *why;
} impossible[] = {
	{AT(rflags), 0, "flags"},
	{AT(rflags), FL_FIXED1 | BIT(15), "flags"},
	{AT(rflags), FL_FIXED1 | BIT(32), "flags"},
	{AT(shadow), 3, "flags"},
	{AT(db_pending), 0x10, "flags"},
	{AT(halted), 2, "flags"},
	{AT(nmi_blocked), 0xff, "flags"},
	{AT(cr0), 0, "control registers"},
	{AT(cr0), CR0_PG | CR0_ET, "control registers"},
	{AT(cr0), CR0_PG | CR0_PE | CR0_ET | CR0_NW, "control registers"},
	{AT(cr0), CR0_PG | CR0_PE | CR0_ET | BIT(32), "control registers"},
	{AT(cr0), CR0_PE | CR0_ET, "control registers"}, /* EFER.LMA without paging */
	{AT(cr4), 0, "control registers"},
	{AT(cr4), CR4_PAE | BIT(13), "control registers"}, /* VMX */
	{AT(efer), EFER_LME, "control registers"},
	{AT(efer), EFER_LMA, "control registers"},
	{AT(efer), EFER_LME | EFER_LMA | BIT(12), "control registers"},
	{AT(cr3), BIT(60), "control registers"},
	{AT(xcr0), 0, "control registers"},
	{AT(xcr0), XCR0_X87 | XCR0_AVX, "control registers"},
	{AT(xcr0), XCR0_X87 | BIT(9), "control registers"},
	{AT(dr6), BIT(40), "debug registers"},
	{AT(dr7), 0, "debug registers"},
	{AT(dr7), 0x400 | BIT(14), "debug registers"},
	{AT(seg[SEG_CS].attr), 0xa093, "segments"}, /* data */
	{AT(seg[SEG_CS].attr), 0xa01b, "segments"}, /* not present */
	{AT(seg[SEG_CS].attr), 0xe09b, "segments"}, /* of 64 and of 32 bits */
	{AT(seg[SEG_CS].attr), 0xaf9b, "segments"},
	{AT(seg[SEG_DS].base), BIT(32), "segments"},
	{AT(seg[SEG_DS].attr), 0x0083, "segments"}, /* a system segment */
	{AT(seg[SEG_FS].base), BIT(47), "segments"},
	{AT(seg[SEG_TR].attr), 0x0089, "segments"}, /* a TSS that is not busy */
	{AT(seg[SEG_TR].base), BIT(63), "segments"},
	{AT(seg[SEG_LDTR].attr), 0x008b, "segments"},
	{AT(gdtr.base), BIT(50), "segments"},
	{AT(idtr.base), BIT(50), "segments"},
	{AT(cpl), 3, "privilege"},
	{AT(cpl), 4, "privilege"},
	{AT(lstar), BIT(50), "model-specific"},
	{AT(kernel_gs_base), BIT(50), "model-specific"},
	{AT(sysenter_cs), BIT(32), "model-specific"},
	{AT(pat), 2, "model-specific"},
	{AT(mtrr_def_type), 2, "model-specific"},
	{AT(mtrr_fixed[10]), 0xff, "model-specific"},
	{AT(mtrr_var[15]), BIT(60), "model-specific"},
	{AT(xsave[27]), 0x80, "vector"},  /* MXCSR */
	{AT(xsave[513]), 0x80, "vector"}, /* a component that there is not */
	{AT(xsave[527]), 0x80, "vector"}, /* the compacted form */
	{AT(xsave[575]), 1, "vector"},
	{AT(exc.vector), 32, "under way"},
	{AT(exc.soft), 2, "under way"},
	{AT(exit.kind), EXIT_KINDS, "under way"},
	{AT(exit.kind), 0xffffffff, "under way"},
	{AT(exit.write), 3, "under way"},
	{AT(exit.len), 16, "under way"},
	{AT(mmio.count), X86_MMIO_PENDING + 1, "under way"},
	{AT(mmio.next), 1, "under way"},
	{AT(mmio_out.count), 0xffffffff, "under way"},
	{AT(mmio_out.count), 1, "under way"}, /* a piece of no bytes */
	{AT(mmio_out.next), 0x80000000, "under way"},
};

TEST(impossible_states_are_refused)
{
	struct x86_test *t = t_long();
	static struct x86_cpu before;
	struct state_stream s = {.saving = true};

	x86_cpu_state(&t->cpu, &s);
	for (unsigned i = 0; i < ARRAY_LEN(impossible); i++) {
		size_t at = impossible[i].at;
		uint8_t old[8];
		if (at >= offsetof(struct x86_cpu, xsave))
			at -= offsetof(struct x86_cpu, xsave) - offsetof(struct x86_cpu, id);
		memcpy(old, s.data + at, impossible[i].size);
		memcpy(s.data + at, &impossible[i].value, impossible[i].size);
		before = t->cpu;
		struct state_stream l = {.data = s.data, .len = s.len};
		x86_cpu_state(&t->cpu, &l);
		if (!l.failed || !l.why || !strstr(l.why, impossible[i].why))
			UNIT_FAIL("row %u: %s", i, l.failed ? l.why : "taken");
		CHECK(!memcmp(&before, &t->cpu, sizeof(before)));
		memcpy(s.data + at, old, impossible[i].size);
	}
	state_end(&s);
	t_free(t);
}

/* Who leaves long mode keeps all of CR3, though only half of it can be read then. */
TEST(cr3_outside_long_mode)
{
	struct x86_test *t = t_protected();

	CHECK(!x86_cpu_flaw(&t->cpu));
	t->cpu.cr3 = BIT(36) | PML4;
	CHECK(!x86_cpu_flaw(&t->cpu));
	t->cpu.cr3 = BIT(60) | PML4;
	CHECK(x86_cpu_flaw(&t->cpu));
	t_free(t);
}

/* Real and virtual-8086 mode have rules of their own. */
TEST(modes_without_descriptors)
{
	struct x86_test *t = t_new();

	CHECK(!x86_cpu_flaw(&t->cpu));
	t->cpu.cpl = 3;
	CHECK(x86_cpu_flaw(&t->cpu));
	t->cpu.cpl = 0;
	t->cpu.rip = BIT(32);
	CHECK(x86_cpu_flaw(&t->cpu));
	t_free(t);
	t = t_protected();
	t->cpu.rflags |= FL_VM;
	CHECK(x86_cpu_flaw(&t->cpu));
	t->cpu.cpl = 3;
	t->cpu.seg[SEG_CS].attr = 0xf3;
	CHECK(!x86_cpu_flaw(&t->cpu));
	t_free(t);
	t = t_long();
	t->cpu.rflags |= FL_VM;
	t->cpu.cpl = 3;
	CHECK(x86_cpu_flaw(&t->cpu));
	t_free(t);
}

UNIT_MAIN()
