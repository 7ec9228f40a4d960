/* Loading and examining segment registers and descriptor tables. */
#include "x86_test.h"

enum { OK = 255 };

struct load_case {
	unsigned cpl, sel; /* in FREE_SEL's slot, with its RPL */
	uint64_t desc;
	unsigned data, data_error; /* result for DS: a vector, or OK */
	unsigned ss, ss_error;
};

#define DATA_RO ((D_DATA) & ~BIT(41))
#define CODE_RX D_CODE32
#define CODE_X (D_CODE32 & ~BIT(41))
#define CODE_CONF (D_CODE32 | BIT(42))
#define F FREE_SEL

/* SDM Vol. 3A 5.6 and 5.7, and table "MOV" of Vol. 2. */
static const struct load_case load_cases[] = {
	{0, F, D_DATA, OK, 0, OK, 0},
	{0, F | 3, D_DATA, X86_GP, F, X86_GP, F},
	{0, F | 3, D_DATA | D_DPL(3), OK, 0, X86_GP, F},
	{0, F, D_DATA | D_DPL(3), OK, 0, X86_GP, F},
	{3, F | 3, D_DATA | D_DPL(3), OK, 0, OK, 0},
	{3, F, D_DATA | D_DPL(3), OK, 0, X86_GP, F},
	{3, F | 3, D_DATA, X86_GP, F, X86_GP, F},
	{3, F | 3, D_DATA | D_DPL(2), X86_GP, F, X86_GP, F},
	{0, F, DATA_RO, OK, 0, X86_GP, F},
	{0, F, CODE_RX, OK, 0, X86_GP, F},
	{0, F, CODE_X, X86_GP, F, X86_GP, F},
	{3, F | 3, CODE_CONF, OK, 0, X86_GP, F},
	{3, F | 3, CODE_RX, X86_GP, F, X86_GP, F},
	{0, F, D_DATA & ~D_P, X86_NP, F, X86_SS, F},
	{0, F, 0x0000890000000000, X86_GP, F, X86_GP, F}, /* a TSS */
	{0, 0x100, 0, X86_GP, 0x100, X86_GP, 0x100},      /* past the table */
	{0, F | 4, 0, X86_GP, F | 4, X86_GP, F | 4},      /* no LDT */
};

static void check_load(struct x86_test *t, const struct load_case *c, enum x86_seg seg, unsigned want, unsigned error)
{
	struct x86_segment was = t->cpu.seg[seg];
	enum verdict v;

	set_desc(t, FREE_SEL, c->desc & ~BIT(40)); /* not accessed yet */
	v = x86_load_segment(&t->cpu, seg, (uint16_t)c->sel);
	if (want == OK ? v != V_DONE : v != V_INJECT || t->cpu.exc.vector != want || t->cpu.exc.error != error)
		UNIT_FAIL("cpl %u sel 0x%x desc 0x%" PRIx64 " seg %u: verdict %u vector %u error 0x%x", c->cpl, c->sel,
			  c->desc, seg, v, t->cpu.exc.vector, t->cpu.exc.error);
	if (v == V_DONE) {
		CHECK_EQ(t->cpu.seg[seg].sel, c->sel);
		CHECK_EQ(t->cpu.seg[seg].limit, 0xffffffff);
		CHECK(t->cpu.seg[seg].attr & 1);
		CHECK(peek(t, GDT + FREE_SEL) & BIT(40));
	} else {
		CHECK_MEM(&t->cpu.seg[seg], &was, sizeof(was));
		CHECK(!(peek(t, GDT + FREE_SEL) & BIT(40)));
	}
}

TEST(load_segment)
{
	for (unsigned i = 0; i < ARRAY_LEN(load_cases); i++) {
		const struct load_case *c = &load_cases[i];
		struct x86_test *t = c->cpl ? t_user() : t_long();

		check_load(t, c, SEG_DS, c->data, c->data_error);
		check_load(t, c, SEG_GS, c->data, c->data_error);
		check_load(t, c, SEG_SS, c->ss, c->ss_error);
		t_free(t);
	}
}

TEST(null_selectors)
{
	struct x86_test *t = t_long();

	CHECK_EQ(x86_load_segment(&t->cpu, SEG_DS, 3), V_DONE);
	CHECK_EQ(t->cpu.seg[SEG_DS].sel, 3);
	CHECK(!(t->cpu.seg[SEG_DS].attr & SEG_ATTR_P));
	t->cpu.seg[SEG_FS].base = 0x123;
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_FS, 0), V_DONE);
	CHECK_EQ(t->cpu.seg[SEG_FS].base, 0);
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_SS, 0), V_DONE); /* 64-bit mode, CPL 0 */
	CHECK_FAULT(t, x86_load_segment(&t->cpu, SEG_SS, 3), X86_GP, 0);
	t->cpu.seg[SEG_CS] = t_code32;
	CHECK_FAULT(t, x86_load_segment(&t->cpu, SEG_SS, 0), X86_GP, 0);
	t_free(t);
	t = t_user();
	CHECK_FAULT(t, x86_load_segment(&t->cpu, SEG_SS, 3), X86_GP, 0);
	t_free(t);
}

TEST(descriptor_fields)
{
	struct x86_test *t = t_protected();
	const struct x86_segment *ds = &t->cpu.seg[SEG_DS];

	set_desc(t, FREE_SEL, 0x125a92789abcdef0ull);
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_DS, FREE_SEL), V_DONE);
	CHECK_EQ(ds->base, 0x12789abc);
	CHECK_EQ(ds->limit, 0xadef0);
	CHECK_EQ(ds->attr, 0x5093);
	set_desc(t, FREE_SEL, 0x12da92789abcdef0ull); /* with G */
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_DS, FREE_SEL), V_DONE);
	CHECK_EQ(ds->limit, 0xadef0fff);
	t_free(t);
}

TEST(real_mode_keeps_limits)
{
	struct x86_test *t = t_protected();

	t->cpu.cr0 &= ~CR0_PE;
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_DS, 0x1234), V_DONE);
	CHECK_EQ(t->cpu.seg[SEG_DS].base, 0x12340);
	CHECK_EQ(t->cpu.seg[SEG_DS].limit, 0xffffffff);
	t_free(t);
}

TEST(moves)
{
	struct x86_test *t = t_long();

	t->cpu.gpr[RAX] = U_SS | 3;
	CHECK_EQ(RUN(t, "\x8e\xd8"), V_DONE); /* mov ds, eax */
	CHECK_EQ(t->cpu.seg[SEG_DS].sel, U_SS | 3);
	CHECK_EQ(t->cpu.rip, CODE + 2);
	CHECK_EQ(t->cpu.shadow, 0);
	t->cpu.gpr[RAX] = K_SS;
	CHECK_EQ(RUN(t, "\x8e\xd0"), V_DONE); /* mov ss, eax */
	CHECK_EQ(t->cpu.shadow, 2);
	CHECK(!x86_can_interrupt(&t->cpu));
	t->cpu.gpr[RCX] = ~0ull;
	CHECK_EQ(RUN(t, "\x8c\xd9"), V_DONE); /* mov ecx, ds: zero-extends */
	CHECK_EQ(t->cpu.gpr[RCX], U_SS | 3);
	CHECK_EQ(t->cpu.shadow, 0);
	t->cpu.gpr[RCX] = ~0ull;
	CHECK_EQ(RUN(t, "\x66\x8c\xd9"), V_DONE); /* mov cx, ds */
	CHECK_EQ(t->cpu.gpr[RCX], 0xffffffffffff0000 | U_SS | 3);
	t->cpu.gpr[RBX] = DATA;
	poke(t, DATA, ~0ull);
	CHECK_EQ(RUN(t, "\x48\x8c\x1b"), V_DONE); /* mov [rbx], ds: 16 bits always */
	CHECK_EQ(peek(t, DATA), 0xffffffffffff0000 | U_SS | 3);
	CHECK_EQ(RUN(t, "\x0f\xa8"), V_DONE); /* push gs */
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1008);
	CHECK_EQ(peek(t, t->cpu.gpr[RSP]), K_SS);
	poke(t, t->cpu.gpr[RSP], 0);
	CHECK_EQ(RUN(t, "\x0f\xa1"), V_DONE); /* pop fs */
	CHECK_EQ(t->cpu.seg[SEG_FS].sel, 0);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1000);
	poke(t, t->cpu.gpr[RSP], K_SS | 3);
	CHECK_FAULT(t, RUN(t, "\x0f\xa1"), X86_GP, K_SS);
	CHECK_EQ(t->cpu.gpr[RSP], STACK0 - 0x1000);
	t_free(t);
}

TEST(far_pointers)
{
	struct x86_test *t = t_long();

	poke(t, DATA, 0x123456789abcdef0);
	poke(t, DATA + 8, U_SS);
	t->cpu.gpr[RBX] = DATA + 4;
	poke32(t, DATA + 8, K_SS);
	CHECK_EQ(RUN(t, "\x0f\xb2\x0b"), V_DONE); /* lss ecx, [rbx] */
	CHECK_EQ(t->cpu.gpr[RCX], 0x12345678);
	CHECK_EQ(t->cpu.seg[SEG_SS].sel, K_SS);
	CHECK_EQ(t->cpu.shadow, 0);
	t->model.amd = false;
	t->cpu.gpr[RBX] = DATA;
	CHECK_EQ(RUN(t, "\x48\x0f\xb4\x0b"), V_DONE); /* lfs rcx, [rbx]: 64 bits on Intel only */
	CHECK_EQ(t->cpu.gpr[RCX], 0x123456789abcdef0);
	t->model.amd = true;
	poke32(t, DATA + 4, 0);
	CHECK_EQ(RUN(t, "\x48\x0f\xb4\x0b"), V_DONE);
	CHECK_EQ(t->cpu.gpr[RCX], 0x9abcdef0);
	t_free(t);
}

TEST(tables)
{
	struct x86_test *t = t_long();

	t->cpu.gpr[RBX] = DATA;
	poke(t, DATA, 0x923456789abc0fff);
	poke(t, DATA + 8, 0xffff);
	CHECK_EQ(RUN(t, "\x0f\x01\x1b"), V_DONE); /* lidt */
	CHECK_EQ(t->cpu.idtr.base, 0xffff923456789abcull);
	CHECK_EQ(t->cpu.idtr.limit, 0xfff);
	poke(t, DATA, 0x123456789abc0fff);
	poke(t, DATA + 8, 0);
	CHECK_EQ(RUN(t, "\x0f\x01\x13"), V_DONE); /* lgdt */
	CHECK_EQ(t->cpu.gdtr.base, 0x123456789abc);
	poke(t, DATA + 8, 0x8000);
	CHECK_FAULT(t, RUN(t, "\x0f\x01\x13"), X86_GP, 0);
	CHECK_EQ(RUN(t, "\x0f\x01\x0b"), V_DONE); /* sidt */
	CHECK_EQ(peek(t, DATA), 0x923456789abc0fff);
	CHECK_EQ(peek(t, DATA + 8) & 0xffff, 0xffff);
	t_free(t);
	t = t_user();
	t->cpu.gpr[RBX] = UDATA;
	CHECK_FAULT(t, RUN(t, "\x0f\x01\x13"), X86_GP, 0);
	CHECK_EQ(RUN(t, "\x0f\x01\x03"), V_DONE);
	CHECK_EQ(peek(t, UDATA), (uint64_t)GDT << 16 | 0xff);
	t->cpu.cr4 |= CR4_UMIP;
	CHECK_FAULT(t, RUN(t, "\x0f\x01\x03"), X86_GP, 0); /* sgdt */
	CHECK_FAULT(t, RUN(t, "\x0f\x01\x0b"), X86_GP, 0); /* sidt */
	CHECK_FAULT(t, RUN(t, "\x0f\x00\xc0"), X86_GP, 0); /* sldt */
	CHECK_FAULT(t, RUN(t, "\x0f\x00\xc8"), X86_GP, 0); /* str */
	CHECK_FAULT(t, RUN(t, "\x0f\x01\xe0"), X86_GP, 0); /* smsw */
	t_free(t);
	t = t_protected(); /* with a 16-bit operand size the base has 24 bits */
	t->cpu.gpr[RBX] = DATA;
	poke(t, DATA, 0x0000123456780fff);
	CHECK_EQ(RUN(t, "\x66\x0f\x01\x13"), V_DONE);
	CHECK_EQ(t->cpu.gdtr.base, 0x345678);
	t_free(t);
}

static enum verdict ltr(struct x86_test *t, unsigned sel)
{
	t->cpu.gpr[RAX] = sel;
	return RUN(t, "\x0f\x00\xd8");
}

static enum verdict lldt(struct x86_test *t, unsigned sel)
{
	t->cpu.gpr[RAX] = sel;
	return RUN(t, "\x0f\x00\xd0");
}

TEST(task_register)
{
	struct x86_test *t = t_long();

	CHECK_FAULT(t, ltr(t, TSS_SEL), X86_GP, TSS_SEL); /* busy */
	set_desc16(t, FREE_SEL, system_desc(9, 0x12345678, 0x67), 0xffff8000);
	CHECK_EQ(ltr(t, FREE_SEL), V_DONE);
	CHECK_EQ(t->cpu.seg[SEG_TR].base, 0xffff800012345678);
	CHECK_EQ(t->cpu.seg[SEG_TR].attr, 0x8b);
	CHECK_EQ(peek(t, GDT + FREE_SEL) >> 40 & 0xf, 11);
	set_desc16(t, FREE_SEL, system_desc(9, 0, 0x67), 0x8000); /* not canonical */
	CHECK_FAULT(t, ltr(t, FREE_SEL), X86_GP, FREE_SEL);
	set_desc16(t, FREE_SEL, system_desc(9, 0, 0x67), BIT(40)); /* a type in the upper half */
	CHECK_FAULT(t, ltr(t, FREE_SEL), X86_GP, FREE_SEL);
	set_desc16(t, FREE_SEL, system_desc(9, 0, 0x67) & ~D_P, 0);
	CHECK_FAULT(t, ltr(t, FREE_SEL), X86_NP, FREE_SEL);
	set_desc16(t, FREE_SEL, system_desc(1, 0, 0x67), 0); /* 16 bits */
	CHECK_FAULT(t, ltr(t, FREE_SEL), X86_GP, FREE_SEL);
	CHECK_FAULT(t, ltr(t, 0), X86_GP, 0);
	CHECK_FAULT(t, ltr(t, FREE_SEL | 4), X86_GP, FREE_SEL | 4);
	t->cpu.gdtr.limit = FREE_SEL + 7; /* half of it is in the table */
	set_desc16(t, FREE_SEL, system_desc(9, 0, 0x67), 0);
	CHECK_FAULT(t, ltr(t, FREE_SEL), X86_GP, FREE_SEL);
	t_free(t);
}

TEST(local_descriptor_table)
{
	struct x86_test *t = t_long();

	CHECK_EQ(lldt(t, LDT_SEL), V_DONE);
	CHECK_EQ(t->cpu.seg[SEG_LDTR].base, LDT);
	set_desc(t, 0x1c, D_DATA);
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_DS, 0x1c), V_DONE);
	CHECK_EQ(peek(t, LDT + 0x18), D_DATA);
	CHECK_FAULT(t, x86_load_segment(&t->cpu, SEG_DS, 0x104), X86_GP, 0x104);
	CHECK_FAULT(t, lldt(t, TSS_SEL), X86_GP, TSS_SEL);
	CHECK_EQ(lldt(t, 3), V_DONE);
	CHECK_FAULT(t, x86_load_segment(&t->cpu, SEG_DS, 0x1c), X86_GP, 0x1c);
	t_free(t);
	t = t_user();
	CHECK_FAULT(t, lldt(t, LDT_SEL), X86_GP, 0);
	t_free(t);
}

struct property {
	uint64_t desc;
	unsigned cpl, rpl;
	bool lar, lsl, verr, verw;
};

TEST(properties)
{
	static const struct property cases[] = {
		{D_DATA, 0, 0, true, true, true, true},
		{DATA_RO, 0, 0, true, true, true, false},
		{CODE_RX, 0, 0, true, true, true, false},
		{CODE_X, 0, 0, true, true, false, false},
		{D_DATA, 3, 3, false, false, false, false},
		{D_DATA | D_DPL(3), 3, 3, true, true, true, true},
		{D_DATA, 0, 3, false, false, false, false},
		{CODE_CONF, 3, 3, true, true, true, false},
		{0x00008b0000000067, 0, 0, true, true, false, false},
		{0x0000820000000067, 0, 0, true, true, false, false},
		{0x00008c0000000067, 0, 0, true, false, false, false},
		{0x00008e0000000067, 0, 0, false, false, false, false},
		{0x0000850000000067, 0, 0, false, false, false, false}, /* no task gates in long mode */
		{0x0000810000000067, 0, 0, false, false, false, false},
		{0, 0, 0, false, false, false, false},
	};

	for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
		const struct property *c = &cases[i];
		struct x86_test *t = c->cpl ? t_user() : t_long();

		set_desc(t, FREE_SEL, c->desc);
		t->cpu.gpr[RAX] = FREE_SEL | c->rpl;
		CHECK_EQ(RUN(t, "\x0f\x02\xc8"), V_DONE); /* lar ecx, eax */
		if (!!(t->cpu.rflags & FL_ZF) != c->lar)
			UNIT_FAIL("lar, case %u", i);
		if (c->lar)
			CHECK_EQ(t->cpu.gpr[RCX], c->desc >> 32 & 0xf0ff00);
		CHECK_EQ(RUN(t, "\x0f\x03\xc8"), V_DONE); /* lsl ecx, eax */
		if (!!(t->cpu.rflags & FL_ZF) != c->lsl)
			UNIT_FAIL("lsl, case %u", i);
		if (c->lsl)
			CHECK_EQ(t->cpu.gpr[RCX], c->desc >> 55 & 1 ? 0xffffffff : 0x67);
		CHECK_EQ(RUN(t, "\x0f\x00\xe0"), V_DONE); /* verr eax */
		if (!!(t->cpu.rflags & FL_ZF) != c->verr)
			UNIT_FAIL("verr, case %u", i);
		CHECK_EQ(RUN(t, "\x0f\x00\xe8"), V_DONE); /* verw eax */
		if (!!(t->cpu.rflags & FL_ZF) != c->verw)
			UNIT_FAIL("verw, case %u", i);
		t->cpu.gpr[RAX] = 3; /* null */
		CHECK_EQ(RUN(t, "\x0f\x02\xc8"), V_DONE);
		CHECK(!(t->cpu.rflags & FL_ZF));
		t_free(t);
	}
}

TEST(arpl)
{
	struct x86_test *t = t_protected();

	t->cpu.gpr[RAX] = 0x1231;
	t->cpu.gpr[RCX] = 3;
	CHECK_EQ(RUN(t, "\x63\xc8"), V_DONE); /* arpl ax, cx */
	CHECK_EQ(t->cpu.gpr[RAX], 0x1233);
	CHECK(t->cpu.rflags & FL_ZF);
	t->cpu.gpr[RCX] = 0;
	CHECK_EQ(RUN(t, "\x63\xc8"), V_DONE);
	CHECK_EQ(t->cpu.gpr[RAX], 0x1233);
	CHECK(!(t->cpu.rflags & FL_ZF));
	t_free(t);
}

TEST(protected_only)
{
	struct x86_test *t = t_new();

	CHECK_FAULT(t, RUN(t, "\x0f\x00\xe0"), X86_UD, 0); /* verr */
	CHECK_FAULT(t, RUN(t, "\x0f\x00\xd8"), X86_UD, 0); /* ltr */
	CHECK_FAULT(t, RUN(t, "\x0f\x02\xc8"), X86_UD, 0); /* lar */
	CHECK_FAULT(t, RUN(t, "\x0f\x00\xc0"), X86_UD, 0); /* sldt */
	CHECK_EQ(RUN(t, "\x0f\x01\xe0"), V_DONE);          /* smsw */
	t_free(t);
}

/* A descriptor table in device memory, or nowhere: ones, and writes that go nowhere. */
TEST(tables_nowhere)
{
	struct x86_test *t = t_long();

	t->cpu.gdtr.base = 0x200000;
	poke(t, PT + 0x200 * 8, 0xfed00003);
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_DS, FREE_SEL),
		 V_DONE); /* ones are a conforming, readable code segment */
	CHECK_EQ(t->cpu.seg[SEG_DS].attr, 0xf0ff);
	poke(t, PT + 0x200 * 8, 0);
	CHECK_FAULT(t, x86_load_segment(&t->cpu, SEG_DS, FREE_SEL), X86_PF, 0);
	CHECK_EQ(t->cpu.exc.cr2, 0x200000 + FREE_SEL);
	t->cpu.gdtr.base = BIT(50);
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_DS, FREE_SEL), V_INJECT);
	/* read-only, and the accessed bit is to be set */
	t->cpu.gdtr.base = GDT;
	poke(t, PT + (GDT >> 12) * 8, GDT | 1);
	set_desc(t, FREE_SEL, D_DATA & ~BIT(40));
	CHECK_FAULT(t, x86_load_segment(&t->cpu, SEG_DS, FREE_SEL), X86_PF, PF_P | PF_W);
	CHECK_EQ(t->cpu.exc.cr2, GDT + FREE_SEL + 5);
	CHECK_EQ(x86_load_segment(&t->cpu, SEG_DS, K_SS), V_DONE); /* is set already */
	t_free(t);
}

UNIT_MAIN()
