/*
 * The whole board as two processors' guest sees it: ports, local and I/O APICs, 8259s, timers, CMOS clock, UART,
 * keyboard controller, PCI; with time passing, interrupts taken, bytes typed, and states saved and loaded, whole,
 * cut short and changed, those of the processors too, which then go on. Time is the test's, so an input always does the
 * same (but for the TSC deadline).
 */
#include "fuzz.h"

#include "../unit/device_test.h"

#include "arch/x86/cpuid.h"
#include "arch/x86/emulate.h"
#include "bus/memory.h"
#include "dev/lapic.h"
#include "machine/pc.h"

#define CPUS 2
#define FIRES_MAX 100 /* timers that fire in one step of time */
#define STEPS_MAX 600 /* of one input */
#define TYPED_MAX 64  /* bytes at a time */
#define RAM MiB(1)

static struct pc *pc;
static struct guest_memory mem;
static struct x86_cpu *cpu[CPUS];
static struct x86_cpuid_model model;
static struct state_stream power_on;

static void nothing(void *opaque) {}

static void nothing_exited(void *opaque, uint32_t value) {}

static void nothing_kicked(void *opaque, unsigned n)
{
	EXPECT(n < CPUS);
}

static void sent(void *opaque, const uint8_t *data, size_t len)
{
	look_at(data, len);
}

static struct state_stream save(void)
{
	struct state_stream s = {.saving = true};

	for (unsigned i = 0; i < CPUS; i++)
		x86_cpu_state(cpu[i], &s);
	pc_state(pc, &s);
	EXPECT(!s.failed);
	return s;
}

static void start(void)
{
	struct error err;
	struct pc_config config = {
		.clock = &test_clock,
		.bus = &test_bus,
		.mem = &mem,
		.model = &model,
		.cpus = CPUS,
		.cpu = cpu,
		.serial = {sent, NULL, NULL},
		.debug_exit = true,
		.power_off = nothing,
		.reset = nothing,
		.debug_exited = nothing_exited,
		.kick = nothing_kicked,
	};

	setup();
	x86_cpuid_init(&model, CPUS, 2000000000);
	for (unsigned i = 0; i < CPUS; i++) {
		cpu[i] = aligned_alloc(64, align_up(sizeof(*cpu[i]), 64));
		EXPECT(cpu[i]);
		*cpu[i] = (struct x86_cpu){.id = i, .mem = &mem, .model = &model};
		x86_cpu_reset(cpu[i], false);
	}
	if (!guest_memory_init(&mem, RAM, &err))
		found(err.text);
	pc = pc_create(&config, &err);
	if (!pc)
		found(err.text);
	pc_pause(pc);
	pc_reset(pc);
	power_on = save();
}

/* False: the stream was refused, and devices may be in any state that they stand. */
static bool load(const struct state_stream *from, size_t len)
{
	struct state_stream s = {.data = from->data, .len = len};

	for (unsigned i = 0; i < CPUS; i++)
		x86_cpu_state(cpu[i], &s);
	pc_state(pc, &s);
	EXPECT(s.failed == !!s.why);
	return !s.failed && s.pos == from->len;
}

/* As pass(), but a guest's shortest period does not make it endless. */
static void let_pass(uint64_t ns)
{
	uint64_t end = test_clock.now + ns;
	unsigned fired = 0;

	for (struct clock_timer *t = first_timer(); t && t->deadline <= end && fired < FIRES_MAX; t = first_timer()) {
		test_clock.now = MAX(test_clock.now, t->deadline);
		t->deadline = CLOCK_NEVER;
		fired++;
		t->fire(t->opaque);
	}
	test_clock.now = end;
}

static unsigned any_port(struct input *in)
{
	static const struct {
		uint16_t base, count;
	} range[] = {{0x20, 2}, {0xa0, 2},     {0x4d0, 2},  {0x40, 4},   {0x61, 1},  {0x70, 2},
		     {0x60, 5}, {0x92, 1},     {0x3f8, 8},  {0x600, 16}, {0xcf8, 8}, {0xf4, 4},
		     {0x80, 1}, {0xc000, 256}, {0, 0x8000}, {0x500, 256}};
	unsigned n = (unsigned)take(in, 1), off = (unsigned)take(in, range[n % ARRAY_LEN(range)].count > 256 ? 2 : 1);

	return range[n % ARRAY_LEN(range)].base + off % range[n % ARRAY_LEN(range)].count;
}

static uint64_t any_address(struct input *in)
{
	unsigned choice = (unsigned)take(in, 1);
	uint64_t off = take(in, 2);

	switch (choice & 7) {
	case 0:
	case 1:
		return PC_LAPIC + (off & 0xff) * 16 + (off >> 12);
	case 2:
		return PC_IOAPIC + (off & 0x7f);
	case 3:
		return PC_ECAM + (choice >> 3 & 3) * 0x8000 + (off & 0xfff);
	case 4:
		return PC_PCI_WINDOW + off;
	case 5:
		return PC_PCI_WINDOW64 + off * 4;
	case 6:
		return PC_LAPIC - 32 + off;
	default:
		return off << (choice >> 3);
	}
}

static void access_memory(struct input *in, unsigned who, unsigned len)
{
	uint64_t at = any_address(in);

	if (take(in, 1) & 1)
		bus_write(&test_bus, BUS_MMIO, at, len, take(in, len), who);
	else
		bus_read(&test_bus, BUS_MMIO, at, len, who);
}

/* An entry of the I/O APIC, so that inputs need not find its two halves. */
static void program_entry(struct input *in, unsigned who)
{
	unsigned reg = (unsigned)take(in, 1) & 0x3f;

	bus_write(&test_bus, BUS_MMIO, PC_IOAPIC, 4, reg, who);
	bus_write(&test_bus, BUS_MMIO, PC_IOAPIC + 0x10, 4, take(in, 4), who);
}

static void access_msr(struct input *in, struct lapic *apic)
{
	static const uint32_t other[] = {MSR_IA32_APIC_BASE, MSR_IA32_TSC_DEADLINE};
	unsigned choice = (unsigned)take(in, 1);
	uint32_t msr = choice & 1 ? other[choice >> 1 & 1] : MSR_X2APIC_FIRST + (uint32_t)take(in, 1);
	uint64_t value, base = lapic_base(apic);

	if (!(choice & 4)) {
		lapic_msr_read(apic, msr, &value);
		return;
	}
	value = take(in, choice & 8 ? 8 : 4);
	if (!lapic_msr_write(apic, msr, value) || msr != MSR_IA32_APIC_BASE)
		EXPECT(lapic_base(apic) == base);
}

/* What a processor's loop does with its local APIC. */
static void take_interrupts(struct input *in, struct lapic *apic)
{
	uint8_t vector = 0;
	unsigned choice = (unsigned)take(in, 1);
	int pending, taken;

	if (choice & 1)
		lapic_set_cr8(apic, choice >> 4);
	EXPECT(lapic_cr8(apic) <= 15);
	if (choice & 2)
		lapic_take_events(apic, &vector);
	if (choice & 4)
		lapic_reset(apic, true);
	pending = lapic_pending(apic);
	taken = lapic_ack(apic);
	if (pending == LAPIC_EXTINT)
		EXPECT(taken >= 0 && taken <= 255);
	else
		EXPECT(pending == taken);
	if (choice & 8)
		lapic_mmio_write(apic, 0xb0, 4, 0); /* EOI */
}

static void compare(const struct state_stream *a, const struct state_stream *b)
{
	EXPECT(a->len == b->len);
	for (size_t i = 0; i < a->len; i++) {
		if (a->data[i] == b->data[i])
			continue;
		fprintf(stderr, "fuzz: byte %zu of %zu: %02x and then %02x\n", i, a->len, a->data[i], b->data[i]);
		found("what was loaded is saved as something else");
	}
}

static enum verdict carry_out(struct x86_cpu *c, const struct x86_insn *insn)
{
	switch (insn->cls) {
	case CLS_SYSTEM:
		return x86_emulate_system(c, insn);
	case CLS_BRANCH:
	case CLS_STACK:
	case CLS_STRING:
		return x86_emulate_general(c, insn);
	default:
		return V_RETRY; /* the engine's */
	}
}

/* A few instructions on a processor in whatever state has been taken; each leaves a state that would be taken. */
static void go_on(struct input *in, struct x86_cpu *c)
{
	for (unsigned n = 0; x86_resume(c) == V_EXIT; n++)
		EXPECT(n <= X86_MMIO_PENDING);
	for (unsigned left = take(in, 1) & 15; left; left--) {
		struct x86_insn insn;
		uint8_t bytes[15];
		for (unsigned i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)take(in, 1);
		x86_decode(&insn, bytes, sizeof(bytes), x86_mode(c), &model);
		enum verdict v = carry_out(c, &insn);
		if (v == V_EXIT && !c->exit.write) {
			c->exit.data = take(in, 8);
			c->exit.completed = true;
			v = carry_out(c, &insn);
		}
		if (v == V_INJECT && x86_deliver_exception(c) == V_EXIT)
			break;
		const char *flaw = x86_cpu_flaw(c);
		if (flaw)
			found(flaw);
	}
}

/*
 * What is saved loads, and is the same when saved again (but for what no longer matters, such as when a timer that has
 * stopped began: the first loading drops it). What is changed or cut may load or not.
 */
static void save_and_load(struct input *in)
{
	size_t at = take(in, 2), change = take(in, 1);
	struct state_stream s = save();

	if (at & 0x8000) /* half of the time, one of the processors' registers; the vectors' are large */
		at = at % CPUS * (offsetof(struct x86_cpu, id) + X86_XSAVE_SIZE) +
		     (at & 0x7fff) % offsetof(struct x86_cpu, id);
	at %= s.len;
	if (!change) {
		EXPECT(load(&s, s.len));
		struct state_stream first = save();
		EXPECT(load(&first, first.len));
		struct state_stream second = save();
		compare(&first, &second);
		state_end(&first);
		state_end(&second);
	} else {
		if (change & 1)
			s.data[at] ^= change;
		if (change & 2)
			memset(s.data + at, (int)change, MIN(8, s.len - at));
		load(&s, change & 4 ? at : s.len);
		go_on(in, cpu[at & 1]);
	}
	state_end(&s);
}

static void step(struct input *in)
{
	unsigned op = (unsigned)take(in, 1), who = op >> 4 & 1, len = 1u << (op >> 5 & 3);
	struct lapic *apic = apic_bus_lapic(pc_apic(pc), who);
	struct msi_sink msi = apic_bus_msi(pc_apic(pc));
	uint64_t a;

	switch (op & 15) {
	case 0:
	case 1:
		a = any_port(in);
		bus_write(&test_bus, BUS_PORT, a, MIN(len, 4u), take(in, MIN(len, 4u)), who);
		break;
	case 2:
		bus_read(&test_bus, BUS_PORT, any_port(in), MIN(len, 4u), who);
		break;
	case 3:
	case 4:
		access_memory(in, who, len);
		break;
	case 5: /* the registers that count, as they are meant to be written */
		a = take(in, 1);
		lapic_mmio_write(apic, (uint32_t)a * 16, 4, take(in, 4));
		lapic_mmio_read(apic, (uint32_t)a * 16, 4);
		break;
	case 6:
		program_entry(in, who);
		break;
	case 7:
		access_msr(in, apic);
		break;
	case 8:
		a = take(in, 2);
		let_pass(a << take(in, 1) % 44);
		break;
	case 9: /* the clock's thread sleeps meanwhile */
		a = take(in, 2);
		test_clock.now += a << take(in, 1) % 44;
		let_pass(0);
		break;
	case 10:
		take_interrupts(in, apic);
		break;
	case 11:
		a = take(in, 1) % TYPED_MAX;
		pc_serial_input(pc, in->p, MIN(a, in->left));
		break;
	case 12:
		save_and_load(in);
		break;
	case 13:
		a = take(in, 4);
		msi.send(msi.opaque, (take(in, 1) & 1 ? 0xfee00000 : 0) | (a & 0xfffff), (uint32_t)take(in, 4));
		break;
	case 14:
		if (take(in, 1) == 1)
			pc_reset(pc);
		break;
	case 15:
		lapic_set_tsc_offset(apic, (int64_t)take(in, 8));
		lapic_timer_deadline(apic);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};

	if (!pc)
		start();
	for (struct clock_timer *t = test_clock.timers; t; t = t->next)
		t->deadline = CLOCK_NEVER;
	test_clock.now = 0;
	pc_reset(pc);
	EXPECT(load(&power_on, power_on.len));
	for (unsigned n = 0; in.left && n < STEPS_MAX; n++)
		step(&in);
	return 0;
}
