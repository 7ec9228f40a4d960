/* Stop-the-world: who is in translated code, and who wants nobody there. Contracts: code.h. */
#include "engine/translate/light.h"

/* With the lock there is no far jump whose cold code is not known yet. */
static void forget(struct tr_vcpu *v)
{
	struct tr_engine *eng = v->engine;
	host_lock(&eng->lock);
	if (atomic_exchange(&v->forget, 0) & FORGET_FARS)
		quick_fars_lost(v);
	jc_flush(v);
	quick_saved_forget(v);
	host_unlock(&eng->lock);
}

void vcpu_code_enter(struct tr_vcpu *v)
{
	struct tr_engine *eng = v->engine;
	for (;;) {
		atomic_store(&v->in_code, true);
		if (likely(!atomic_load(&eng->excl_pending))) {
			if (unlikely(atomic_load_explicit(&v->forget, memory_order_relaxed)))
				forget(v);
			return;
		}
		atomic_store(&v->in_code, false);
		host_lock(&eng->excl_lock);
		host_cond_broadcast(&eng->excl_cond);
		while (atomic_load(&eng->excl_pending))
			host_cond_wait(&eng->excl_cond, &eng->excl_lock);
		host_unlock(&eng->excl_lock);
	}
}

void vcpu_code_leave(struct tr_vcpu *v)
{
	struct tr_engine *eng = v->engine;
	atomic_store(&v->in_code, false);
	if (unlikely(atomic_load(&eng->excl_pending))) {
		host_lock(&eng->excl_lock);
		host_cond_broadcast(&eng->excl_cond);
		host_unlock(&eng->excl_lock);
	}
}

static bool others_in_code(struct tr_engine *eng, struct tr_vcpu *self)
{
	bool any = false;
	for (unsigned i = 0; i < eng->cpus; i++) {
		struct tr_vcpu *v = eng->vcpu[i];
		if (v && v != self && atomic_load(&v->in_code)) {
			poll_set(v);
			direct_kick(v);
			any = true;
		}
	}
	return any;
}

void exclusive_begin(struct tr_engine *eng, struct tr_vcpu *self)
{
	ENSURE(!self || !atomic_load(&self->in_code));
	host_lock(&eng->excl_owner);
	host_lock(&eng->excl_lock);
	atomic_store(&eng->excl_pending, 1);
	while (others_in_code(eng, self))
		host_cond_wait(&eng->excl_cond, &eng->excl_lock);
	host_unlock(&eng->excl_lock);
}

void exclusive_end(struct tr_engine *eng)
{
	host_lock(&eng->excl_lock);
	atomic_store(&eng->excl_pending, 0);
	host_cond_broadcast(&eng->excl_cond);
	host_unlock(&eng->excl_lock);
	host_unlock(&eng->excl_owner);
}
