/* A VM from its making to its end. */
#include "vm/vm.h"

#include "host/host.h"
#include "vm/internal.h"

#include <stdlib.h>

static void post_all(struct vm *vm, unsigned request)
{
	for (unsigned i = 0; i < vm->threads; i++)
		vcpu_request(&vm->vcpu[i], request);
}

void vm_stop(struct vm *vm, enum vm_end_reason reason, uint32_t value)
{
	host_lock(&vm->lock);
	if (vm->end.reason == VM_END_NONE)
		vm->end = (struct vm_end){reason, value};
	post_all(vm, REQ_STOP);
	host_cond_broadcast(&vm->changed);
	host_unlock(&vm->lock);
}

void vm_reset(struct vm *vm)
{
	host_lock(&vm->lock);
	if (!vm->want_reset) {
		vm->want_reset = true;
		vm_hold_locked(vm);
		host_cond_broadcast(&vm->changed);
	}
	host_unlock(&vm->lock);
}

/* Called with the lock held, which it gives up while the machine is reset and the kernel loaded again. */
static void do_reset(struct vm *vm)
{
	struct error err;

	vm_hold_wait_locked(vm);
	if (vm->end.reason != VM_END_NONE)
		return;
	host_unlock(&vm->lock);
	pc_reset(vm->pc);
	for (unsigned i = 0; i < vm->cpus; i++) {
		vcpu_reset(&vm->vcpu[i]);
		/* In step again. Not 0, as the SDM has it: the paravirtual clock begins where the VM's time does. */
		vcpu_set_tsc_lead(&vm->vcpu[i], 0);
	}
	if (!pc_load(vm->pc, &err)) {
		vm_report_text(vm, "the machine was reset and cannot start again: %s", err.text);
		vm_stop(vm, VM_END_FAILED, 0);
	}
	host_lock(&vm->lock);
	vm->want_reset = vm->panicked = false;
	vm_release_locked(vm);
}

static void start_threads(struct vm *vm)
{
	for (unsigned i = 0; i < vm->cpus; i++) {
		host_lock(&vm->lock);
		bool started = vcpu_start(&vm->vcpu[i]);
		vm->threads += started;
		host_unlock(&vm->lock);
		if (!started) {
			vm_report_text(vm, "no thread for CPU %u: %s; see the limit on processes (ulimit -u)", i,
				       host_error_text());
			vm_stop(vm, VM_END_FAILED, 0);
			return;
		}
	}
}

static bool start_consoles(struct vm *vm)
{
	struct error err;

	if (vm_console_start(vm->console, &err) && (!vm->virtio_console || vm_console_start(vm->virtio_console, &err)))
		return true;
	vm_report_text(vm, "%s", err.text);
	vm_stop(vm, VM_END_FAILED, 0);
	return false;
}

/* The processors' threads first: they give up system calls and wait, while the consoles' are being made. */
static void start(struct vm *vm)
{
	start_threads(vm);
	if (!start_consoles(vm))
		return;
	if (!vm_limit_start(vm)) {
		vm_report_text(vm, "no thread for the CPU limit: %s", host_error_text());
		vm_stop(vm, VM_END_FAILED, 0);
	}
	vm_resume(vm);
}

struct vm_end vm_run(struct vm *vm)
{
	start(vm);
	host_lock(&vm->lock);
	while (vm->end.reason == VM_END_NONE) {
		if (vm->todo)
			vm_do_todo_locked(vm);
		else if (vm->want_reset)
			do_reset(vm);
		else
			host_cond_wait(&vm->changed, &vm->lock);
	}
	vm->todo &= TODO_PANIC | TODO_PANIC_HANDLED | TODO_REBOOT;
	vm_do_todo_locked(vm);
	vm->over = true;
	post_all(vm, REQ_STOP);
	host_cond_broadcast(&vm->changed);
	host_unlock(&vm->lock);
	vm_limit_end(vm);
	for (unsigned i = 0; i < vm->threads; i++)
		host_thread_join(&vm->vcpu[i].thread);
	vm_console_close(vm->console);
	if (vm->virtio_console)
		vm_console_close(vm->virtio_console);
	return vm->end;
}

bool vm_balloon(struct vm *vm, uint64_t bytes)
{
	return pc_balloon_set(vm->pc, bytes);
}

bool vm_balloon_info(struct vm *vm, struct balloon_info *info)
{
	return pc_balloon_info(vm->pc, info);
}

void vm_on_event(struct vm *vm, void (*event)(void *opaque, enum vm_event event), void *opaque)
{
	vm->event = event;
	vm->event_opaque = opaque;
}

const char *vm_description(const struct vm *vm)
{
	return vm->description;
}

const char *vm_report(const struct vm *vm)
{
	return vm->report ? vm->report : "";
}

void vm_destroy(struct vm *vm)
{
	if (!vm)
		return;
	if (vm->pc)
		pc_destroy(vm->pc);
	vm_console_destroy(vm->console);
	vm_console_destroy(vm->virtio_console);
	for (unsigned i = 0; i < vm->cpus; i++)
		vcpu_destroy(&vm->vcpu[i]);
	if (vm->engine)
		vm->ops->destroy(vm->engine);
	if (vm->clock)
		clock_destroy(vm->clock);
	if (vm->has_bus)
		bus_destroy(&vm->bus);
	if (vm->has_memory)
		guest_memory_destroy(&vm->mem);
	host_cond_destroy(&vm->changed);
	host_mutex_destroy(&vm->lock);
	free(vm->report);
	free(vm);
}
