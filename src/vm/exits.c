/* What a processor left guest code for, by kind of exit: to the bus, the local APIC, or the end. */
#include "vm/internal.h"

#define MSR_IA32_TSC 0x10
#define MSR_IA32_TSC_ADJUST 0x3b

/* The answer is in exit->data: the same instruction runs anew and takes it. */
static void answer(struct vcpu *v)
{
	v->cpu->exit.completed = true;
	v->completing = true;
}

/* The instruction does not run now, but after an interrupt that is due before it. */
static bool deferred(struct vcpu *v, uint64_t tsc)
{
	if (!vcpu_interrupt_first(v, tsc))
		return false;
	v->cpu->exit = (struct x86_exit){0};
	return true;
}

/* Before a device is read, which may tell the time. */
static bool read_deferred(struct vcpu *v)
{
	return deferred(v, __builtin_ia32_rdtsc());
}

static void access_bus(struct vcpu *v, enum bus_space space)
{
	struct x86_exit *exit = &v->cpu->exit;

	if (exit->write) {
		bus_write(&v->vm->bus, space, exit->addr, exit->len, exit->data, v->index);
		return;
	}
	if (read_deferred(v))
		return;
	exit->data = bus_read(&v->vm->bus, space, exit->addr, exit->len, v->index);
	answer(v);
}

static void handle_io(struct vcpu *v)
{
	access_bus(v, BUS_PORT);
}

static void handle_mmio(struct vcpu *v)
{
	access_bus(v, BUS_MMIO);
}

static void write_apic(struct lapic *apic, struct x86_exit *exit)
{
	if (exit->kind == EXIT_CR8)
		lapic_set_cr8(apic, exit->data & 15);
	else if (exit->kind == EXIT_MMIO)
		lapic_mmio_write(apic, exit->addr - APIC_MMIO_BASE, exit->len, exit->data);
	else
		exit->fault = !lapic_msr_write(apic, (uint32_t)exit->addr, exit->data);
}

static void write_msr(struct vcpu *v)
{
	struct x86_exit *exit = &v->cpu->exit;

	if (exit->addr == MSR_IA32_TSC || exit->addr == MSR_IA32_TSC_ADJUST) { /* the core has done it */
		vcpu_set_tsc_lead(v, vcpu_tsc_lead(v));
		pv_write_system_time(v);
		return;
	}
	if (pv_has_msr((uint32_t)exit->addr)) {
		exit->fault = !pv_msr_write(v, (uint32_t)exit->addr, exit->data);
		v->completing = exit->fault;
		return;
	}
	write_apic(v->lapic, exit);
	v->completing = exit->fault;
	v->cpu->apic_base = lapic_base(v->lapic);
}

static void handle_msr(struct vcpu *v)
{
	struct x86_exit *exit = &v->cpu->exit;

	if (exit->write) {
		write_msr(v);
		return;
	}
	if (read_deferred(v))
		return;
	if (pv_has_msr((uint32_t)exit->addr))
		exit->fault = !pv_msr_read(v, (uint32_t)exit->addr, &exit->data);
	else
		exit->fault = !lapic_msr_read(v->lapic, (uint32_t)exit->addr, &exit->data);
	answer(v);
}

static void handle_cr8(struct vcpu *v)
{
	struct x86_exit *exit = &v->cpu->exit;

	if (exit->write) {
		write_apic(v->lapic, exit);
		return;
	}
	exit->data = lapic_cr8(v->lapic);
	answer(v);
}

static void handle_time(struct vcpu *v)
{
	struct x86_exit *exit = &v->cpu->exit;

	if (deferred(v, exit->addr))
		return;
	exit->data = v->measure.on ? clock_ticks(v->vm->clock) + vcpu_tsc_lead(v) : exit->addr + v->cpu->tsc_offset;
	answer(v);
}

/* HLT has retired, and with it an STI before it: the processor waits for an interrupt, NMI or INIT. */
static void handle_hlt(struct vcpu *v)
{
	v->cpu->halted = true;
	v->cpu->shadow = 0;
}

/* Triple fault: a PC would reset; whoever looks for the cause is served better by an end with a report. */
static void handle_shutdown(struct vcpu *v)
{
	vm_report_crash(v, "triple fault");
	vm_stop(v->vm, VM_END_CRASH, 0);
}

static void handle_nothing(struct vcpu *v) {}

static void (*const handler[EXIT_KINDS])(struct vcpu *v) = {
	[EXIT_NONE] = handle_nothing, [EXIT_INTERRUPTED] = handle_nothing,
	[EXIT_IO] = handle_io,        [EXIT_MMIO] = handle_mmio,
	[EXIT_MSR] = handle_msr,      [EXIT_CR8] = handle_cr8,
	[EXIT_TIME] = handle_time,    [EXIT_HYPERCALL] = pv_hypercall,
	[EXIT_HLT] = handle_hlt,      [EXIT_SHUTDOWN] = handle_shutdown,
};

static bool is_apic_register(const struct x86_exit *exit)
{
	uint64_t n = exit->addr;

	switch (exit->kind) {
	case EXIT_CR8:
		return true;
	case EXIT_MSR:
		return n == MSR_IA32_TSC_DEADLINE || (n >= MSR_X2APIC_FIRST && n <= MSR_X2APIC_LAST);
	case EXIT_MMIO:
		return (n & PAGE_MASK) == APIC_MMIO_BASE;
	default:
		return false;
	}
}

/*
 * The local APIC's registers concern nobody but its processor, and whom it interrupts. What would have been seen to on
 * the way out and back is: an end of interrupt that was left to the guest, when time is due next, and what can be
 * delivered now.
 */
bool vcpu_exit_at_once(void *opaque, unsigned index, struct x86_exit *exit)
{
	struct vm *vm = opaque;
	struct vcpu *v = &vm->vcpu[index];

	if (!exit->write || v->measure.on || !is_apic_register(exit))
		return false;
	pv_leave_guest(v);
	write_apic(v->lapic, exit);
	v->cpu->tsc_due = clock_due_tsc(vm->clock);
	if (lapic_pending(v->lapic) != LAPIC_NONE)
		vm->ops->kick(v->engine);
	return true;
}

void vcpu_handle_exit(struct vcpu *v)
{
	enum x86_exit_kind kind = v->cpu->exit.kind;
	bool looks = v->measure.on && (kind == EXIT_TIME || kind == EXIT_IO || kind == EXIT_MMIO || kind == EXIT_MSR);

	ENSURE(kind < EXIT_KINDS);
	if (looks)
		vcpu_look(v, kind == EXIT_TIME);
	handler[kind](v);
	if (looks)
		vcpu_looked(v);
}
