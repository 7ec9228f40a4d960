/* Saving and loading a whole VM: what it is, its memory, its processors, its devices. */
#include "vm/internal.h"

#include <string.h>

#define STATE_MAGIC 0x6c657070 /* "ppel" */
#define STATE_VERSION 3

/* What must be the same in the machine that loads. */
struct shape {
	uint32_t version, cpus;
	uint64_t pages, features, pv;
};

static void shape_state(struct vm *vm, struct state_stream *s)
{
	struct shape mine = {STATE_VERSION, vm->cpus, vm->mem.pages, vm->model.features, vm->model.pv}, shape = mine;

	state_mark(s, STATE_MAGIC);
	state_field(s, shape);
	/* More features than the saved guest has seen do no harm; fewer do. */
	if (shape.version != mine.version)
		state_refuse(s, "the form of another version of doppel");
	else if (shape.cpus != mine.cpus)
		state_refuse(s, "another number of processors");
	else if (shape.pages != mine.pages)
		state_refuse(s, "another size of memory");
	else if (shape.features & ~mine.features)
		state_refuse(s, "processor features that there are not here");
	else if (shape.pv & ~mine.pv)
		state_refuse(s, "paravirtual features that are not offered here");
}

static bool page_is_zero(const uint8_t *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE_SIZE - 1);
}

static void page_state(struct vm *vm, struct state_stream *s, uint64_t gpa, uint8_t *page)
{
	bool had = !page_is_zero(page), full = had;

	state_field(s, full);
	if (full)
		state_bytes(s, page, PAGE_SIZE);
	else if (had)
		memset(page, 0, PAGE_SIZE);
	if (!s->saving && (full || had))
		guest_memory_wrote(&vm->mem, gpa, PAGE_SIZE);
}

static void memory_state(struct vm *vm, struct state_stream *s)
{
	state_mark(s, 0x6d656d); /* "mem" */
	for (unsigned i = 0; i < vm->mem.count; i++) {
		struct guest_range *r = &vm->mem.range[i];
		for (uint64_t off = 0; off < r->size && !s->failed; off += PAGE_SIZE)
			page_state(vm, s, r->gpa + off, r->host + off);
	}
}

/* Of the VM's time, in ns: 18 years. Deadlines are sums with it, and in ticks of the TSC it is to fit as well. */
#define CLOCK_MAX BIT(59)

static void clock_state(struct vm *vm, struct state_stream *s)
{
	uint64_t now = clock_now(vm->clock);

	state_field(s, now);
	if (now > CLOCK_MAX)
		state_refuse(s, "a time that no machine has come to");
	if (!s->saving && !s->failed)
		clock_set(vm->clock, now);
}

/* The guest's TSC goes on from the value saved. */
static void tsc_state(struct vm *vm, struct state_stream *s)
{
	for (unsigned i = 0; i < vm->cpus; i++) {
		uint64_t ticks = clock_ticks(vm->clock), tsc = ticks + vcpu_tsc_lead(&vm->vcpu[i]);
		state_field(s, tsc);
		if (!s->saving && !s->failed)
			vcpu_set_tsc_lead(&vm->vcpu[i], tsc - ticks);
	}
	pv_vm_state(vm, s);
}

void vm_state(struct vm *vm, struct state_stream *s)
{
	ENSURE(vm->motion == VM_IS_STILL);
	shape_state(vm, s);
	if (s->failed)
		return;
	memory_state(vm, s);
	for (unsigned i = 0; i < vm->cpus; i++)
		vcpu_state(&vm->vcpu[i], s);
	clock_state(vm, s);
	tsc_state(vm, s);
	pc_state(vm->pc, s); /* its timers count by the two above */
	for (unsigned i = 0; i < vm->cpus; i++)
		vm->cpu[i]->apic_base = lapic_base(vm->vcpu[i].lapic);
}
