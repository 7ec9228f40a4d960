/*
 * --cpu-limit: the processors' threads together run no more than a share of one host CPU's time. A thread of its own
 * adds up every few milliseconds what they have run, and holds them all while they are ahead of their share; so a guest
 * that spins is held and let go many times a second, and one that sleeps most of the time is not held at all.
 */
#include "host/host.h"
#include "vm/internal.h"

#define LOOK_NS 2000000u       /* while they run */
#define IDLE_LOOK_NS 10000000u /* while none did */
#define BURST_NS 10000000u     /* of the share may be saved up: what a guest that wakes up runs without being held */

static bool held(const struct vm *vm)
{
	return atomic_load(&vm->limit.held);
}

bool vcpu_is_held(const struct vcpu *v)
{
	return held(v->vm);
}

void vcpu_wait_held(struct vcpu *v)
{
	uint64_t from = host_now_ns();

	atomic_store(&v->place, PLACE_ASLEEP);
	for (;;) {
		/* REQ_HELD says that `held` has changed: it is taken back before the look at that. */
		unsigned requests = atomic_fetch_and(&v->requests, ~(unsigned)REQ_HELD) & ~(unsigned)REQ_HELD;
		if (!held(v->vm) || (requests & (REQ_STOP | REQ_PAUSE)))
			break;
		host_word_wait(&v->requests, requests);
	}
	atomic_store(&v->place, PLACE_MONITOR);
	atomic_fetch_add_explicit(&v->time_held, host_now_ns() - from, memory_order_relaxed);
}

/* What runs guest code leaves it, and finds itself held; what is asleep may sleep on until something else wakes it. */
static void hold(struct vm *vm)
{
	atomic_store(&vm->limit.held, true);
	for (unsigned i = 0; i < vm->threads; i++) {
		struct vcpu *v = &vm->vcpu[i];
		atomic_fetch_or(&v->requests, REQ_HELD);
		if (atomic_load(&v->place) == PLACE_GUEST)
			vm->ops->kick(v->engine);
	}
}

static void let_go(struct vm *vm)
{
	atomic_store(&vm->limit.held, false);
	for (unsigned i = 0; i < vm->threads; i++) {
		vcpu_request(&vm->vcpu[i], REQ_HELD);
	}
}

/* How long they have run since the last time, in ns. */
static uint64_t count(struct vm *vm)
{
	uint64_t ran = 0;

	for (unsigned i = 0; i < vm->threads; i++) {
		struct vcpu *v = &vm->vcpu[i];
		uint64_t now = host_thread_time_of(&v->thread) + vcpu_time_elsewhere(v);
		if (now > v->counted) {
			ran += now - v->counted;
			v->counted = now;
		}
	}
	return ran;
}

/* Holds or lets go; returns when to look again. */
static uint64_t look(struct vm *vm)
{
	struct cpu_limit *l = &vm->limit;
	uint64_t ran = count(vm), now = host_now_ns(), wait;

	rate_take(&l->rate, ran, now);
	wait = rate_wait(&l->rate, now);
	if (wait && !held(vm))
		hold(vm);
	else if (!wait && held(vm))
		let_go(vm);
	return now + (wait ? wait : ran ? LOOK_NS : IDLE_LOOK_NS);
}

static void *limit_main(void *arg)
{
	struct vm *vm = arg;
	struct cpu_limit *l = &vm->limit;

	host_lock(&l->lock);
	for (uint64_t next = 0; !l->quit; next = look(vm))
		while (!l->quit && host_cond_wait_until(&l->wake, &l->lock, next))
			;
	host_unlock(&l->lock);
	return NULL;
}

bool vm_limit_start(struct vm *vm)
{
	struct cpu_limit *l = &vm->limit;
	uint64_t share = l->percent * 10000000ull; /* ns of run time a second */

	if (!l->percent)
		return true;
	host_mutex_init(&l->lock);
	host_cond_init(&l->wake);
	rate_init(&l->rate, share, (uint64_t)BURST_NS / 100 * l->percent, host_now_ns());
	l->started = host_thread_start(&l->thread, "cpu limit", limit_main, vm);
	return l->started;
}

void vm_limit_end(struct vm *vm)
{
	struct cpu_limit *l = &vm->limit;

	if (!l->started)
		return;
	host_lock(&l->lock);
	l->quit = true;
	host_cond_signal(&l->wake);
	host_unlock(&l->lock);
	host_thread_join(&l->thread);
	host_cond_destroy(&l->wake);
	host_mutex_destroy(&l->lock);
	l->started = false;
	let_go(vm);
}
