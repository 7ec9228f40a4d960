/* What the thread in vm_run sees to: telling what the guest did, and a person's keys that need the machine to stand
 * still. */
#include "vm/internal.h"

#include <stdio.h>
#include <stdlib.h>

void vm_ask(struct vm *vm, unsigned todo)
{
	host_lock(&vm->lock);
	vm->todo |= todo;
	host_cond_broadcast(&vm->changed);
	host_unlock(&vm->lock);
}

/* A guest can say so over and over: only the first time after a reset is told. */
void vm_panicked(void *opaque, bool handled)
{
	struct vm *vm = opaque;

	host_lock(&vm->lock);
	if (!vm->panicked)
		vm->todo |= handled ? TODO_PANIC_HANDLED : TODO_PANIC;
	vm->panicked = true;
	host_cond_broadcast(&vm->changed);
	host_unlock(&vm->lock);
	if (vm->stop_on_panic && !handled)
		vm_stop(vm, VM_END_PANIC, 0);
}

static void tell(struct vm *vm, unsigned todo)
{
	static const struct {
		unsigned todo;
		enum vm_event event;
	} events[] = {
		{TODO_PANIC, VM_EVENT_PANIC},
		{TODO_PANIC_HANDLED, VM_EVENT_PANIC_HANDLED},
		{TODO_REBOOT, VM_EVENT_REBOOT},
	};

	for (unsigned i = 0; vm->event && i < ARRAY_LEN(events); i++)
		if (todo & events[i].todo)
			vm->event(vm->event_opaque, events[i].event);
}

static void toggle_pause(struct vm *vm)
{
	vm->key_paused = !vm->key_paused;
	if (vm->key_paused) {
		vm_hold_locked(vm);
		vm_hold_wait_locked(vm);
		fprintf(stderr, "\ndoppel: '%s' is paused; Ctrl-A P lets it go on\n", vm->name);
	} else {
		vm_release_locked(vm);
		fprintf(stderr, "\ndoppel: '%s' goes on\n", vm->name);
	}
}

bool vm_is_key_paused(struct vm *vm)
{
	host_lock(&vm->lock);
	bool paused = vm->key_paused;
	host_unlock(&vm->lock);
	return paused;
}

static void show(struct vm *vm)
{
	char *text = vm_show(vm);

	if (text)
		fprintf(stderr, "\n%s", text);
	free(text);
}

void vm_do_todo_locked(struct vm *vm)
{
	unsigned todo = vm->todo;

	vm->todo = 0;
	if (todo & TODO_PAUSE)
		toggle_pause(vm);
	host_unlock(&vm->lock);
	tell(vm, todo);
	if (todo & TODO_SHOW)
		show(vm);
	host_lock(&vm->lock);
}
