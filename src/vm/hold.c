/* Pausing: every processor's thread parks, devices' threads and consoles stop, and the guest's time stands still. */
#include "vm/internal.h"

/* Nobody's hold is not enough to go on: the guest's time may still be about to be set in motion. */
void vm_park(struct vm *vm)
{
	host_lock(&vm->lock);
	vm->parked++;
	host_cond_broadcast(&vm->changed);
	while ((vm->holds || vm->motion != VM_MOVES) && !vm->over)
		host_cond_wait(&vm->changed, &vm->lock);
	vm->parked--;
	host_unlock(&vm->lock);
}

/* A thread that is gone counts as parked for ever. */
void vm_thread_ended(struct vm *vm)
{
	host_lock(&vm->lock);
	vm->parked++;
	host_cond_broadcast(&vm->changed);
	host_unlock(&vm->lock);
}

void vm_hold_locked(struct vm *vm)
{
	vm->holds++;
	for (unsigned i = 0; i < vm->threads; i++)
		vcpu_request(&vm->vcpu[i], REQ_PAUSE);
}

void vm_tsc_moved(struct vm *vm, uint64_t ticks)
{
	for (unsigned i = 0; i < vm->cpus; i++)
		vm->cpu[i]->tsc_offset -= ticks;
}

static void hold_consoles(struct vm *vm, bool held)
{
	vm_console_hold(vm->console, held);
	if (vm->virtio_console)
		vm_console_hold(vm->virtio_console, held);
}

/* Devices finish what is under way, and take locks of which some may be held while vm->lock is taken: it is let go. */
static void be_still(struct vm *vm)
{
	while (vm->motion == VM_CHANGES)
		host_cond_wait(&vm->changed, &vm->lock);
	if (vm->motion == VM_IS_STILL)
		return;
	vm->motion = VM_CHANGES;
	host_unlock(&vm->lock);
	hold_consoles(vm, true);
	pc_pause(vm->pc);
	clock_pause(vm->clock);
	host_lock(&vm->lock);
	vm->motion = VM_IS_STILL;
	host_cond_broadcast(&vm->changed);
}

/* Who wants the VM paused again meanwhile waits in be_still. */
static void move_on(struct vm *vm)
{
	vm->motion = VM_CHANGES;
	host_unlock(&vm->lock);
	vm_tsc_moved(vm, clock_resume(vm->clock));
	pc_resume(vm->pc);
	hold_consoles(vm, false);
	host_lock(&vm->lock);
	vm->motion = VM_MOVES;
}

void vm_hold_wait_locked(struct vm *vm)
{
	while (vm->parked < vm->threads)
		host_cond_wait(&vm->changed, &vm->lock);
	be_still(vm);
}

void vm_release_locked(struct vm *vm)
{
	ENSURE(vm->holds);
	if (--vm->holds)
		return;
	if (vm->motion == VM_IS_STILL)
		move_on(vm);
	host_cond_broadcast(&vm->changed);
}

void vm_pause(struct vm *vm)
{
	host_lock(&vm->lock);
	vm_hold_locked(vm);
	vm_hold_wait_locked(vm);
	host_unlock(&vm->lock);
}

void vm_resume(struct vm *vm)
{
	host_lock(&vm->lock);
	vm_release_locked(vm);
	host_unlock(&vm->lock);
}
