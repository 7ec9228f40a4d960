/*
 * Time that the host took away from the guest while it measured its TSC.
 *
 * Systems poll a counter of the 8254 for some milliseconds and read the TSC meanwhile. When the host runs another
 * thread then, Linux takes the gap for an SMI and gives up; or, when the count ended within the gap, it arrives at a
 * frequency that is several times too low, and its clock runs that much too fast. So while a processor polls the 8254,
 * and as long as no other has been started that could tell, the time that its thread does not run does not pass for the
 * VM.
 */
#include "host/host.h"
#include "vm/internal.h"

#define NS_PER_S 1000000000u
#define LOST_MIN_NS 10000u     /* what is less disturbs nobody */
#define POLL_GAP_NS 200000000u /* who has not looked for that long does not poll */

/* How long the processor's thread has been kept from running since it began; only differences mean anything. */
static uint64_t time_away(const struct vcpu *v, uint64_t *now)
{
	uint64_t ran;

	for (unsigned tries = 0; tries < 8; tries++) {
		*now = host_now_ns();
		ran = host_thread_time_ns();
		if (host_now_ns() - *now < LOST_MIN_NS / 2)
			break;
	}
	return *now - ran - atomic_load_explicit(&v->time_halted, memory_order_relaxed);
}

static bool alone(const struct vm *vm, unsigned cpu)
{
	for (unsigned i = 0; i < vm->cpus; i++)
		if (i != cpu && !atomic_load(&vm->vcpu[i].wait_sipi))
			return false;
	return true;
}

/* No more than what has passed since the guest looked at its TSC last: it does not run backwards. */
static void lose(struct vm *vm, const struct x86_cpu *cpu, uint64_t ns)
{
	uint64_t hz = clock_tsc_hz(vm->clock), ticks = (uint64_t)((unsigned __int128)ns * hz / NS_PER_S);
	int64_t since = (int64_t)(__builtin_ia32_rdtsc() + cpu->tsc_offset - cpu->tsc_seen);

	if (since < 0)
		return;
	if (ticks > (uint64_t)since) {
		ticks = (uint64_t)since;
		ns = (uint64_t)((unsigned __int128)ticks * NS_PER_S / hz);
	}
	clock_lose(vm->clock, ns);
	for (unsigned i = 0; i < vm->cpus; i++)
		vcpu_set_tsc_offset(&vm->vcpu[i], vm->cpu[i]->tsc_offset - ticks);
}

void vm_polled_timer(void *opaque, unsigned cpu, bool first)
{
	struct vm *vm = opaque;
	struct vcpu *v = &vm->vcpu[cpu];
	uint64_t now, away, lost, gap;

	if (!alone(vm, cpu))
		return;
	away = time_away(v, &now);
	lost = away - v->away;
	gap = now - v->polled_at;
	v->away = away;
	v->polled_at = now;
	if (!first && gap < POLL_GAP_NS && lost >= LOST_MIN_NS && lost <= gap)
		lose(vm, v->cpu, lost);
}
