/*
 * The engine itself. A case runs in user mode of a guest whose interrupt table sends each exception to a HLT of its
 * own, so that the engine comes back with the vector in RIP and the state at the fault on the supervisor's stack.
 */
#include "diff.h"

#include "bus/memory.h"
#include "engine/engine.h"

#include <string.h>

#define IDT (KERNEL + PAGE_SIZE)
#define HANDLERS (KERNEL + 2 * PAGE_SIZE) /* HLT for vector n at n * 8 */
#define STACK_TOP (KERNEL + 4 * PAGE_SIZE)
#define GDT (KERNEL + 0x100)
#define GPA(linear) (GUEST_KERNEL + ((linear)-KERNEL))

static struct guest_memory mem;
static struct engine *engine;
static struct engine_vcpu *vcpu;
static struct x86_cpu *cpu;

static void put_gate(unsigned vector)
{
	uint64_t handler = HANDLERS + vector * 8;
	uint64_t gate[2] = {(handler & 0xffff) | 0x08 << 16 | 0xee00ull << 32 | (handler >> 16 & 0xffff) << 48,
			    handler >> 32};
	uint8_t hlt = 0xf4;

	guest_memory_write(&mem, GPA(IDT + vector * 16), gate, sizeof(gate));
	guest_memory_write(&mem, GPA(handler), &hlt, 1);
}

static void put_tables(void)
{
	static const uint64_t gdt[8] = {
		0,
		0x00af9b000000ffff, /* 08: kernel code */
		0x00cf93000000ffff, /* 10: kernel data */
		0,
		0x00cffb000000ffff, /* 23: user code, 32 bits */
		0x00cff3000000ffff, /* 2b: user data */
		0x00affb000000ffff, /* 33: user code, 64 bits */
	};
	uint64_t stack = STACK_TOP;

	guest_memory_write(&mem, GPA(GDT), gdt, sizeof(gdt));
	guest_memory_write(&mem, GUEST_TSS + 4, &stack, 8);
	for (unsigned i = 0; i < 256; i++)
		put_gate(i);
}

static bool start(const struct x86_cpuid_model *model, const char *debug)
{
	struct engine_config config = {.mem = &mem, .model = model, .cpus = 1, .debug = debug};
	struct error err;

	if (!guest_layout(&mem))
		return false;
	put_tables();
	engine = engine_translate.create(&config, &err);
	vcpu = engine ? engine_translate.vcpu_create(engine, 0, &cpu, &err) : NULL;
	if (!vcpu) {
		printf("  %s\n", err.text);
		return false;
	}
	return engine_translate.thread_enter(vcpu);
}

static void load_tables(void)
{
	cpu->gdtr = (struct x86_table){.base = GDT, .limit = 8 * 8 - 1};
	cpu->idtr = (struct x86_table){.base = IDT, .limit = 256 * 16 - 1};
	cpu->halted = false;
	cpu->exit = (struct x86_exit){0};
}

static uint64_t stack_word(uint64_t at)
{
	uint64_t v = 0;

	guest_memory_read(&mem, GPA(at), &v, 8);
	return v;
}

static bool has_error_code(int vector)
{
	return vector == X86_DF || (vector >= X86_TS && vector <= X86_PF) || vector == X86_AC;
}

/* From the frame that the exception pushed: error code, RIP, CS, RFLAGS, RSP. */
static void take_frame(struct diff_result *r)
{
	uint64_t at = cpu->gpr[RSP];

	r->vector = (int)((cpu->rip - 1 - HANDLERS) / 8);
	r->error = 0;
	guest_cpu_store(cpu, &r->out);
	if (has_error_code(r->vector)) {
		r->error = (uint32_t)stack_word(at);
		at += 8;
	}
	r->cr2 = r->vector == X86_PF ? cpu->cr2 : 0;
	r->out.rip = stack_word(at);
	r->out.rflags = stack_word(at + 16);
	r->out.gpr[RSP] = stack_word(at + 24);
	if (r->vector == X86_BP || (r->vector == X86_PF && (r->error & PF_I))) {
		r->out.rip -= r->vector == X86_BP;
		r->vector = -1;
		r->error = 0;
		r->cr2 = 0;
	}
}

static void forget_code(const struct diff_case *c)
{
	uint64_t gpa = GUEST_CODE + (c->in.rip - CODE);

	memset(guest_memory_ptr(&mem, gpa, c->len, true), 0xcc, c->len);
	guest_memory_wrote(&mem, gpa, c->len);
}

static void run_translate(const struct diff_case *c, struct diff_result *r)
{
	enum x86_exit_kind kind;

	guest_memory_load(&mem, c);
	guest_cpu_load(cpu, c);
	load_tables();
	if (cpu->ops && cpu->ops->mode_changed)
		cpu->ops->mode_changed(cpu);
	do
		kind = engine_translate.run(vcpu);
	while (kind == EXIT_INTERRUPTED);
	if (kind == EXIT_HLT && cpu->rip - HANDLERS < PAGE_SIZE) {
		take_frame(r);
	} else {
		r->vector = -2 - (int)kind;
		guest_cpu_store(cpu, &r->out);
	}
	r->memory = guest_memory_ptr(&mem, GUEST_WINDOW, WINDOW_SIZE, true);
	forget_code(c);
}

static bool translate_start(const struct x86_cpuid_model *model)
{
	return start(model, "no-window");
}

static bool window_start(const struct x86_cpuid_model *model)
{
	return start(model, "eager-window");
}

static bool mixed_start(const struct x86_cpuid_model *model)
{
	return start(model, "mixed-window");
}

const struct backend backend_translate = {"translate", true, translate_start, run_translate};
const struct backend backend_window = {"window", true, window_start, run_translate};
const struct backend backend_mixed = {"mixed", true, mixed_start, run_translate};
