/*
 * System instructions, exceptions and far transfers on processors in any state, with any descriptors, stacks and page
 * tables: nothing crashes, what faults changes nothing, and what is done leaves a state that a processor can be in.
 * The input is what is chosen, choice by choice; when it is used up the choices go on by a fixed sequence.
 */
#include "fuzz.h"

#include "../unit/x86_test.h"

static struct input in;
static uint64_t rng;

static uint64_t next(void)
{
	if (in.left)
		return take(&in, 8);
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng * 0x2545f4914f6cdd1dull;
}

static unsigned below(unsigned n)
{
	if (in.left)
		return (unsigned)take(&in, n > 256 ? 2 : 1) % n;
	return (unsigned)(next() >> 33) % n;
}

static bool chance(unsigned percent)
{
	return below(100) < percent;
}

#define PICK(a) ((a)[below(ARRAY_LEN(a))])

/* Selectors: good ones, ones with a wrong RPL, ones that name nothing. */
static uint16_t any_selector(void)
{
	static const uint16_t good[] = {0,       K_CS,    K_SS,   U_CS32 | 3, U_SS | 3,     U_CS | 3,
					TSS_SEL, LDT_SEL, K_CS32, FREE_SEL,   FREE_SEL | 3, 0x90,
					0x93,    0xa0,    0xa3,   0x0c,       0x0f};

	return chance(90) ? PICK(good) : (uint16_t)next();
}

static uint64_t any_address(void)
{
	static const uint64_t good[] = {CODE, STACK0, STACK0 - 0x20, DATA, UCODE,        USTACK,        UDATA,
					IST1, GDT,    IDT,           TSS,  DATA + 0xffc, UDATA + 0xff9, 0x200000};
	static const uint64_t odd[] = {
		0, 0xffffffff, 0xfffffffffffffff8, 0x7ffffffffff8, BIT(47), 0xffff800000000000, 0x3ffffc};

	return chance(85) ? PICK(good) : chance(70) ? PICK(odd) : next();
}

static uint64_t canonical(uint64_t va)
{
	return (uint64_t)((int64_t)(va << 16) >> 16);
}

static uint64_t any_value(void)
{
	switch (below(6)) {
	case 0:
		return any_selector();
	case 1:
		return BIT(below(64));
	case 2:
		return below(256);
	case 3:
		return next();
	default:
		return any_address();
	}
}

static uint64_t any_descriptor(void)
{
	static const uint64_t good[] = {D_CODE64,
					D_CODE32,
					D_DATA,
					D_CODE64 | D_DPL(3),
					D_DATA | D_DPL(3),
					D_CODE32 | BIT(42),
					0x00008b0000000067,
					0x0000890000000067 | (uint64_t)TSS << 16,
					0x0000ec0000100000 | CODE,
					0x0000ec0000600000 | CODE,
					0x0000e50000800000,
					0x0000e30000000067,
					0x00008200000000ff};
	uint64_t d = PICK(good);

	if (chance(40))
		d ^= BIT(below(64));
	return chance(3) ? next() : d;
}

static void scramble_tables(struct x86_test *t)
{
	for (unsigned i = 0; i < 4; i++)
		set_desc(t, FREE_SEL + 8 * below(6), any_descriptor());
	if (chance(20))
		set_desc(t, 8 * below(16), any_descriptor());
	set_desc(t, 8 * below(3) + 4, any_descriptor());
	for (unsigned i = 0; i < 3; i++)
		poke(t, IDT + 8 * below(64), peek(t, IDT + 8 * below(64)) ^ (chance(50) ? BIT(below(64)) : 0));
	if (chance(25))
		poke(t, PT + 8 * below(1024), next() & 0x80000000000fffff);
	if (chance(10))
		poke(t, PT + 8 * (any_address() >> 12 & 1023), chance(50) ? 0 : 0xfed00067);
	if (chance(5))
		poke(t, PD + 8 * below(3), next());
	for (unsigned i = 0; i < 8; i++)
		poke(t, TSS + 4 + 8 * i, chance(80) ? STACK0 : any_value());
}

static void scramble_stack(struct x86_test *t)
{
	static const uint64_t bases[] = {STACK0 - 0x1000, USTACK, STACK0, DATA, UDATA};

	for (unsigned i = 0; i < ARRAY_LEN(bases); i++)
		for (unsigned k = 0; k < 12; k++) {
			if (chance(50))
				poke(t, bases[i] + 8 * k, any_value());
			else
				poke32(t, bases[i] + 4 * k, (uint32_t)any_value());
		}
}

static struct x86_segment any_segment(struct x86_test *t)
{
	static const struct x86_segment *const good[] = {&t_data, &t_udata, &t_code32};
	struct x86_segment s = *PICK(good);

	if (chance(20))
		s.limit = (uint32_t)next() >> below(32);
	if (chance(20))
		s.base = (uint32_t)any_address();
	if (chance(10))
		s = (struct x86_segment){.sel = 3};
	return s;
}

static void scramble_registers(struct x86_test *t)
{
	static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	struct x86_cpu *cpu = &t->cpu;

	for (unsigned i = 0; i < X86_GPRS; i++)
		if (i != RSP || chance(20))
			cpu->gpr[i] = any_value();
	for (unsigned i = 0; i < ARRAY_LEN(data); i++)
		if (chance(30))
			cpu->seg[data[i]] = any_segment(t);
	if (x86_long_mode(cpu) && chance(10))
		cpu->seg[SEG_FS].base = canonical(any_address());
	cpu->rflags = (next() & 0x247fd5) | FL_FIXED1;
	if (chance(70))
		cpu->rflags &= ~(uint64_t)FL_NT;
	cpu->cr0 ^= chance(30) ? CR0_WP : 0;
	cpu->cr0 &= ~(uint64_t)CR0_TS; /* task_changed */
	cpu->cr4 ^= next() & (CR4_SMEP | CR4_SMAP | CR4_UMIP | CR4_FSGSBASE | CR4_DE | CR4_OSXSAVE | CR4_TSD);
	cpu->dr7 = chance(5) ? (next() & 0xffff23ff) | 0x400 : 0x400;
	cpu->star = next();
	cpu->lstar = CODE;
	cpu->sysenter_cs = any_selector();
	cpu->shadow = (uint8_t)below(3);
	if (chance(50))
		cpu->seg[SEG_LDTR] = (struct x86_segment){LDT, 0xff, LDT_SEL, 0x82};
	if (chance(10))
		cpu->seg[SEG_TR].limit = below(0x100);
	if (chance(3))
		cpu->gdtr.limit = (uint16_t)next();
	if (chance(3))
		cpu->idtr.limit = (uint16_t)next();
	if (chance(2))
		cpu->gdtr.base = canonical(any_address());
}

static struct x86_test *any_machine(void)
{
	struct x86_test *t;

	switch (below(8)) {
	case 0:
		t = t_protected();
		break;
	case 1:
		t = t_protected();
		t_segments(t, &t_ucode32, &t_udata);
		break;
	case 2:
		t = t_new();
		t->cpu.seg[SEG_CS].base = 0;
		break;
	case 3:
		t = t_user();
		t_segments(t, &t_ucode32, &t_udata);
		break;
	case 4:
	case 5:
		t = t_user();
		break;
	default:
		t = t_long();
	}
	scramble_tables(t);
	scramble_stack(t);
	scramble_registers(t);
	return t;
}

/* Opcodes; ModRM and what follows are random. */
static const char *const opcodes[] = {
	"\x8e",
	"\x8c",
	"\xff",
	"\xcf",
	"\x48\xcf",
	"\x66\xcf",
	"\xcb",
	"\x48\xcb",
	"\xca",
	"\xcd",
	"\xcc",
	"\xce",
	"\xf1",
	"\x0f\x05",
	"\x0f\x07",
	"\x48\x0f\x07",
	"\x0f\x34",
	"\x0f\x35",
	"\x0f\x01",
	"\x0f\x00",
	"\x0f\x02",
	"\x0f\x03",
	"\x0f\x20",
	"\x0f\x21",
	"\x0f\x22",
	"\x0f\x23",
	"\x44\x0f\x22",
	"\x0f\x30",
	"\x0f\x32",
	"\x0f\xa2",
	"\x0f\x31",
	"\x0f\x33",
	"\xea",
	"\x9a",
	"\xec",
	"\xed",
	"\xee",
	"\xef",
	"\xe4",
	"\xe7",
	"\x6c",
	"\x6d",
	"\xf3\x6d",
	"\x6e",
	"\xf3\x6f",
	"\x9c",
	"\x9d",
	"\x66\x9d",
	"\xfa",
	"\xfb",
	"\xf4",
	"\x06",
	"\x07",
	"\x0e",
	"\x16",
	"\x17",
	"\x1e",
	"\x1f",
	"\x0f\xa0",
	"\x0f\xa1",
	"\x0f\xa8",
	"\x0f\xa9",
	"\xc4",
	"\xc5",
	"\x0f\xb2",
	"\x0f\xb4",
	"\x48\x0f\xb5",
	"\x63",
	"\x66\x0f\x38\x82",
	"\xf3\x48\x0f\xae",
	"\x0f\x06",
	"\x0f\x08",
	"\x0f\x09",
	"\xf3\x0f\xc7",
};

static bool any_instruction(struct x86_test *t, struct x86_insn *insn)
{
	const char *op = PICK(opcodes);
	uint8_t bytes[15];
	size_t n = strlen(op);

	memcpy(bytes, op, n);
	for (size_t i = n; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)next();
	if (chance(60) && n < 14)
		bytes[n] = (uint8_t)(below(64) | 0xc0);
	if (op[0] == '\xea' || op[0] == '\x9a') {
		uint16_t sel = any_selector();
		memcpy(bytes + 5, &sel, 2);
	}
	x86_decode(insn, bytes, sizeof(bytes), x86_mode(&t->cpu), &t->model);
	return insn->cls == CLS_SYSTEM;
}

/* All that software can see and a fault must not change. */
static void check_unchanged(const struct x86_cpu *a, const struct x86_cpu *b)
{
	EXPECT(!memcmp(a->gpr, b->gpr, sizeof(a->gpr)));
	EXPECT(a->rip == b->rip);
	EXPECT(a->rflags == b->rflags);
	EXPECT(!memcmp(a->seg, b->seg, sizeof(a->seg)));
	EXPECT(!memcmp(&a->gdtr, &b->gdtr, sizeof(a->gdtr)));
	EXPECT(!memcmp(&a->idtr, &b->idtr, sizeof(a->idtr)));
	EXPECT(a->cr0 == b->cr0 && a->cr2 == b->cr2 && a->cr3 == b->cr3 && a->cr4 == b->cr4);
	EXPECT(a->efer == b->efer && a->xcr0 == b->xcr0 && a->dr6 == b->dr6 && a->dr7 == b->dr7);
	EXPECT(a->cpl == b->cpl && a->shadow == b->shadow && a->halted == b->halted);
	EXPECT(a->star == b->star && a->lstar == b->lstar && a->kernel_gs_base == b->kernel_gs_base);
}

/* A processor can be in this state, so it can be saved and loaded. */
static void check_possible(const struct x86_cpu *cpu)
{
	const char *flaw = x86_cpu_flaw(cpu);

	if (flaw)
		found(flaw);
}

/* Nothing else that faults sets CR0.TS, and the other task may have the same selector. */
static bool task_changed(const struct x86_cpu *a, const struct x86_cpu *b)
{
	return !(a->cr0 & CR0_TS) && b->cr0 & CR0_TS;
}

/* An exception that could be delivered, or a triple fault that changes nothing but what causes say. */
static void deliver(struct x86_test *t, struct x86_cpu *before)
{
	enum verdict v;

	t->cpu.cr0 &= ~(uint64_t)CR0_TS;
	*before = t->cpu;
	v = x86_deliver_exception(&t->cpu);
	EXPECT(v == V_DONE || (v == V_EXIT && t->cpu.exit.kind == EXIT_SHUTDOWN));
	if (v == V_DONE) {
		check_possible(&t->cpu);
	} else if (!task_changed(before, &t->cpu)) {
		before->cr2 = t->cpu.cr2;
		before->dr6 = t->cpu.dr6;
		before->dr7 = t->cpu.dr7;
		check_unchanged(&t->cpu, before);
	}
}

static void round_one(struct x86_test *t, struct x86_cpu *before)
{
	struct x86_insn insn;
	enum verdict v;

	if (!any_instruction(t, &insn))
		return;
	for (unsigned tries = 0; tries < 40; tries++) { /* as often as exits need to be answered */
		*before = t->cpu;
		v = x86_emulate_system(&t->cpu, &insn);
		if (v != V_EXIT || t->cpu.exit.write || t->cpu.exit.kind == EXIT_HLT)
			break;
		check_unchanged(&t->cpu, before);
		t->cpu.exit.data = next();
		t->cpu.exit.completed = true;
	}
	EXPECT(v != V_EXIT || t->cpu.exit.write || t->cpu.exit.kind == EXIT_HLT);
	if (v == V_INJECT) {
		if (!task_changed(before, &t->cpu))
			check_unchanged(&t->cpu, before);
		deliver(t, before);
		return;
	}
	check_possible(&t->cpu);
	if (chance(30)) {
		*before = t->cpu;
		x86_deliver_interrupt(&t->cpu, (uint8_t)next());
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct x86_cpu before;
	struct x86_test *t;

	in = (struct input){data, size};
	rng = 0x9e3779b97f4a7c15ull;
	t = any_machine();
	round_one(t, &before);
	t_free(t);
	return 0;
}
