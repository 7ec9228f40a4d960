/* How a VM is at this moment, for the person at the console. */
#include "arch/x86/state.h"
#include "host/host.h"
#include "vm/internal.h"

#include <inttypes.h>
#include <stdlib.h>

#define NS_PER_S 1e9

/* SDM Vol. 3A 2.2. */
static const char *mode(const struct x86_cpu *cpu)
{
	if (!(cpu->cr0 & CR0_PE))
		return "real mode";
	if (cpu->rflags & FL_VM)
		return "virtual-8086 mode";
	if (x86_code64(cpu))
		return "64-bit mode";
	return x86_long_mode(cpu) ? "compatibility mode" : "protected mode";
}

static void say_cpu(struct note *t, struct vcpu *v)
{
	const struct x86_cpu *cpu = v->cpu;
	uint64_t ran = v->started ? host_thread_time_of(&v->thread) + vcpu_time_elsewhere(v) : 0;

	say(t, "doppel:   CPU %-2u ", v->index);
	if (atomic_load(&v->wait_sipi)) {
		say(t, "waits to be started\n");
		return;
	}
	say(t, "%s, %s, privilege level %u, rip %016" PRIx64 ", %" PRIu64 " interrupts, ran %.1f s\n",
	    cpu->halted ? "halted" : "runs", mode(cpu), cpu->cpl, cpu->rip,
	    atomic_load_explicit(&v->interrupts, memory_order_relaxed), (double)ran / NS_PER_S);
}

static void say_exits(struct note *t, struct vm *vm)
{
	struct vm_stats stats;

	vm_stats(vm, &stats);
	say(t, "doppel:   exits");
	say(t, ": port I/O %" PRIu64 ", device memory %" PRIu64 ", local APIC %" PRIu64 ", halts %" PRIu64 "\n",
	    stats.engine.exits[EXIT_IO], stats.engine.exits[EXIT_MMIO],
	    stats.engine.exits[EXIT_MSR] + stats.engine.exits[EXIT_CR8], stats.engine.exits[EXIT_HLT]);
}

static void say_devices(struct note *t, struct vm *vm)
{
	const char *name;

	say(t, "doppel:   devices");
	for (unsigned i = 0; (name = pc_device_name(vm->pc, i)); i++)
		say(t, "%s %s", i ? "," : ":", name);
	say(t, "\n");
}

static uint64_t memory_in_use(const struct vm *vm)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < vm->mem.count; i++)
		bytes += host_memory_resident(vm->mem.range[i].host, vm->mem.range[i].size);
	return bytes;
}

static char *show(struct vm *vm)
{
	struct note t = {.size = 4096 + (size_t)vm->cpus * 160};

	t.p = malloc(t.size);
	if (!t.p)
		return NULL;
	say(&t, "doppel: '%s', up %.1f s%s: %s\n", vm->name, (double)clock_now(vm->clock) / NS_PER_S,
	    vm_is_key_paused(vm) ? ", paused" : "", vm->description);
	say(&t, "doppel:   memory: %" PRIu64 " MiB, of which the guest has touched %" PRIu64 " MiB\n",
	    (uint64_t)(vm->mem.pages * PAGE_SIZE) >> 20, memory_in_use(vm) >> 20);
	for (unsigned i = 0; i < vm->cpus; i++)
		say_cpu(&t, &vm->vcpu[i]);
	say_exits(&t, vm);
	say_devices(&t, vm);
	return t.p;
}

char *vm_show(struct vm *vm)
{
	vm_pause(vm);
	char *text = show(vm);
	vm_resume(vm);
	return text;
}
