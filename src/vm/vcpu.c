/* A virtual processor's thread: requests, interrupts, guest code, exits, in turn. */
#include "arch/x86/emulate.h"
#include "host/confine.h"
#include "host/host.h"
#include "vm/internal.h"

#include <stdio.h>

bool vcpu_create(struct vm *vm, unsigned index, struct error *err)
{
	struct vcpu *v = &vm->vcpu[index];

	v->vm = vm;
	v->index = index;
	v->engine = vm->ops->vcpu_create(vm->engine, index, &v->cpu, err);
	if (!v->engine)
		return false;
	vm->cpu[index] = v->cpu;
	v->requests = REQ_PAUSE;
	v->acked = -1;
	v->wait_sipi = index != 0;
	return true;
}

void vcpu_destroy(struct vcpu *v)
{
	if (!v->vm)
		return;
	if (v->engine)
		v->vm->ops->vcpu_destroy(v->engine);
}

void vcpu_request(struct vcpu *v, unsigned request)
{
	atomic_fetch_or(&v->requests, request);
	switch (atomic_load(&v->place)) {
	case PLACE_GUEST:
		v->vm->ops->kick(v->engine);
		break;
	case PLACE_ASLEEP:
		host_word_wake(&v->requests);
		break;
	case PLACE_MONITOR:
		break;
	}
}

/* What an engine may have cached of the processor's state is worth nothing any more. */
static void vcpu_state_replaced(struct vcpu *v)
{
	if (!v->cpu->ops)
		return;
	v->cpu->ops->flush_all(v->cpu, true, -1);
	v->cpu->ops->mode_changed(v->cpu);
}

void vcpu_reset(struct vcpu *v)
{
	v->wait_sipi = v->index != 0;
	v->nmi = v->completing = false;
	v->measure = (struct measure){0};
	pv_reset(v);
	v->acked = -1;
	v->cpu->halted = false;
	vcpu_state_replaced(v);
}

void vcpu_set_tsc_lead(struct vcpu *v, uint64_t lead)
{
	v->cpu->tsc_offset = lead - clock_base(v->vm->clock);
	lapic_set_tsc_offset(v->lapic, lead);
}

uint64_t vcpu_tsc_lead(const struct vcpu *v)
{
	return v->cpu->tsc_offset + clock_base(v->vm->clock);
}

void vcpu_state(struct vcpu *v, struct state_stream *s)
{
	bool wait_sipi = v->wait_sipi;

	state_mark(s, 0x75706376); /* "vcpu" */
	x86_cpu_state(v->cpu, s);
	state_flag(s, &wait_sipi);
	state_flag(s, &v->nmi);
	state_flag(s, &v->completing);
	state_field(s, v->acked);
	pv_state(v, s);
	if (s->saving)
		return;
	v->wait_sipi = wait_sipi;
	v->measure = (struct measure){0}; /* its times are of the clock that was */
	if (v->acked < 0 || v->acked > 255)
		v->acked = -1;
	vcpu_state_replaced(v);
}

/* INIT: SDM Vol. 3A 9.1. The boot processor would begin at the reset vector, in firmware that resets the machine. */
static void take_init(struct vcpu *v)
{
	if (v->index == 0) {
		vm_guest_reset(v->vm);
		return;
	}
	lapic_reset(v->lapic, true);
	x86_cpu_reset(v->cpu, true);
	vcpu_reset(v);
}

static void take_sipi(struct vcpu *v, uint8_t vector)
{
	if (!v->wait_sipi)
		return; /* only the first of the two counts */
	v->wait_sipi = false;
	x86_start_ap(v->cpu, vector);
	vcpu_state_replaced(v);
}

static void take_events(struct vcpu *v)
{
	uint8_t vector = 0;
	uint32_t events = lapic_take_events(v->lapic, &vector);

	if (events & BIT(APIC_EVENT_INIT))
		take_init(v);
	if (events & BIT(APIC_EVENT_SIPI))
		take_sipi(v, vector);
	if (events & BIT(APIC_EVENT_NMI))
		v->nmi = true;
}

/* What came of delivering an interrupt: true when it has been, or was replaced by the exception that it met. */
static bool delivered(struct vcpu *v, enum verdict verdict)
{
	switch (verdict) {
	case V_DONE:
		break;
	case V_RETRY:
		return false;
	case V_INJECT:
		if (x86_deliver_exception(v->cpu) == V_EXIT)
			vcpu_handle_exit(v);
		break;
	case V_EXIT: /* a table or stack in device memory: a read is answered and the delivery tried again */
		vcpu_handle_exit(v);
		if (!v->cpu->exit.write && v->cpu->exit.kind == EXIT_MMIO) {
			v->completing = false;
			return false;
		}
		break;
	}
	v->cpu->halted = false;
	atomic_fetch_add_explicit(&v->interrupts, 1, memory_order_relaxed);
	return true;
}

static void want_window(struct vcpu *v, bool interrupt, bool nmi)
{
	if (v->window == interrupt && v->nmi_window == nmi)
		return;
	v->window = interrupt;
	v->nmi_window = nmi;
	v->vm->ops->want_window(v->engine, interrupt, nmi);
}

/*
 * Delivers what can be: an NMI before an interrupt (SDM Vol. 3A table 6-2). False: to be tried again, or there is
 * another one, for which the engine may have to watch: nothing says that the first one's handler leaves guest code.
 */
static bool inject(struct vcpu *v)
{
	struct x86_cpu *cpu = v->cpu;

	pv_leave_guest(v); /* an offer that has not reached the guest: what has come since may wait for that end */
	if (v->nmi && x86_can_nmi(cpu)) {
		if (!delivered(v, v->vm->ops->nmi(v->engine)))
			return false;
		v->nmi = false;
	}
	bool pending = v->acked >= 0 || lapic_pending(v->lapic) != LAPIC_NONE;
	want_window(v, pending && !x86_can_interrupt(cpu), v->nmi);
	if (!pending || !x86_can_interrupt(cpu))
		return true;
	if (v->acked < 0)
		v->acked = (int16_t)lapic_ack(v->lapic);
	if (v->acked < 0)
		return true;
	if (!delivered(v, v->vm->ops->interrupt(v->engine, (uint8_t)v->acked)))
		return false;
	v->acked = -1;
	pc_interrupt_taken(v->vm->pc);
	pv_interrupt_delivered(v);
	return lapic_pending(v->lapic) == LAPIC_NONE;
}

/* A guest whose handlers take longer than its timers' periods still gets on, after so many. */
#define DEFERRED_MAX 5000

bool vcpu_interrupt_first(struct vcpu *v, uint64_t tsc)
{
	if (tsc >= clock_due_tsc(v->vm->clock))
		clock_fire_due(v->vm->clock, tsc);
	if (v->completing || v->acked >= 0 || v->nmi || !x86_can_interrupt(v->cpu) ||
	    lapic_pending(v->lapic) == LAPIC_NONE || v->deferred >= DEFERRED_MAX) {
		v->deferred = 0;
		return false;
	}
	v->deferred++;
	return true;
}

static void count_idle(struct vcpu *v, uint64_t ns)
{
	atomic_fetch_add_explicit(&v->time_halted, ns, memory_order_relaxed);
}

#define LOOKS 32

static bool is_requested(const struct vcpu *v)
{
	for (unsigned i = 0; i < LOOKS; i++) {
		if (atomic_load_explicit(&v->requests, memory_order_relaxed))
			return true;
		__builtin_ia32_pause();
	}
	return false;
}

static void vcpu_sleep(struct vcpu *v)
{
	bool requested = false;

	pv_asleep(v);
	host_linger_begin(&v->linger);
	while (!requested && host_linger(&v->linger))
		requested = is_requested(v);
	if (!requested) {
		atomic_store(&v->place, PLACE_ASLEEP);
		while (!atomic_load(&v->requests))
			host_word_wait(&v->requests, 0);
		atomic_store(&v->place, PLACE_MONITOR);
	}
	count_idle(v, host_linger_end(&v->linger));
	pv_awake(v);
}

static void park(struct vcpu *v)
{
	uint64_t from = host_now_ns();

	vm_park(v->vm);
	count_idle(v, host_now_ns() - from);
}

/* Whatever is to be done before guest code runs on; sleeps while there is none to run. False: the VM has ended. */
static bool vcpu_service(struct vcpu *v)
{
	for (;;) {
		unsigned requests = atomic_exchange(&v->requests, 0) & ~(unsigned)REQ_HELD;
		if (requests & REQ_STOP)
			return false;
		if (requests & REQ_PAUSE) {
			park(v);
			continue;
		}
		if (vcpu_is_held(v)) {
			atomic_fetch_or(&v->requests, requests);
			vcpu_wait_held(v);
			continue;
		}
		if (v->completing) { /* vcpu_run_guest sees to what was asked when the instruction is through */
			atomic_fetch_or(&v->requests, requests);
			return true;
		}
		if (__builtin_ia32_rdtsc() >= clock_due_tsc(v->vm->clock))
			clock_fire_due(v->vm->clock, __builtin_ia32_rdtsc());
		take_events(v);
		if (v->cpu->halted && pv_take_kick(v))
			v->cpu->halted = false;
		if (!v->wait_sipi && !inject(v))
			continue;
		if (!v->wait_sipi && !v->cpu->halted)
			return true;
		vcpu_sleep(v);
	}
}

static void vcpu_run_guest(struct vcpu *v)
{
	atomic_store(&v->place, PLACE_GUEST);
	unsigned requests = atomic_load(&v->requests);
	if (requests == REQ_APIC && v->completing) {
		/* It waits until the instruction is through: a kick ends run() after that. */
		v->vm->ops->kick(v->engine);
	} else if (requests) {
		atomic_store(&v->place, PLACE_MONITOR);
		return;
	}
	v->cpu->tsc_due = v->measure.on ? 0 : clock_due_tsc(v->vm->clock);
	pv_enter_guest(v);
	v->vm->ops->run(v->engine);
	pv_leave_guest(v);
	atomic_store(&v->place, PLACE_MONITOR);
	v->completing = v->cpu->mmio.count != 0;
	vcpu_handle_exit(v);
}

static void *vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	const struct engine_ops *ops = v->vm->ops;

	v->started = host_now_ns();
	if (ops->thread_enter(v->engine)) {
		host_confine_guest_thread();
		while (vcpu_service(v))
			vcpu_run_guest(v);
		ops->thread_leave(v->engine);
	} else {
		vm_report_text(v->vm, "the engine cannot run CPU %u on this host: %s", v->index, host_error_text());
		vm_stop(v->vm, VM_END_FAILED, 0);
	}
	v->ended = host_now_ns();
	vm_thread_ended(v->vm);
	return NULL;
}

bool vcpu_start(struct vcpu *v)
{
	char name[16];

	snprintf(name, sizeof(name), "cpu%u", v->index);
	return host_thread_start(&v->thread, name, vcpu_main, v);
}
