/*
 * A guest that measures its TSC by the 8254 gets what an undisturbed machine would show.
 *
 * Systems poll a counter for some milliseconds with interrupts off and read the TSC in between. When the host does
 * something else then (runs another thread, serves an interrupt, translates the loop), they take the gap for an SMI and
 * give up, or arrive at a frequency that is too low. So while a processor measures, time stands still at each of its
 * looks at the time, by a device or by RDTSC (which is an exit then), and from one to the next no more passes than what
 * those few instructions need: the rest is lost, as if the VM had been paused. That is not for a system whose clock the
 * 8254 is, which does not read the TSC meanwhile, nor once other processors run, who could tell; and it has a bound.
 */
#include "vm/internal.h"

#define NS_PER_S 1000000000u
#define LOOK_NS 1000u        /* from one look to the next */
#define POLL_GAP_NS 5000000u /* who has not polled for that long does not measure any more */
#define LOOKS 4 /* after the counter was set, or a look at the TSC, so many at devices are of the same measurement */
#define LOST_MAX_NS 10000000000u /* from one reset to the next */

static uint64_t to_ticks(const struct vm *vm, uint64_t ns)
{
	return (uint64_t)((unsigned __int128)ns * clock_tsc_hz(vm->clock) / NS_PER_S);
}

static bool alone(const struct vm *vm, unsigned cpu)
{
	for (unsigned i = 0; i < vm->cpus; i++)
		if (i != cpu && !atomic_load(&vm->vcpu[i].wait_sipi))
			return false;
	return true;
}

void vcpu_look(struct vcpu *v, bool tsc)
{
	struct measure *m = &v->measure;
	uint64_t usual = to_ticks(v->vm, LOOK_NS), passed;

	clock_pause(v->vm->clock);
	passed = clock_ticks(v->vm->clock) - m->looked;
	if (m->looks && passed > usual && !(v->cpu->rflags & FL_IF) &&
	    m->lost + passed - usual < to_ticks(v->vm, LOST_MAX_NS))
		m->lost += clock_lose(v->vm->clock, passed - usual);
	if (tsc)
		m->looks = LOOKS;
	else if (m->looks)
		m->looks--;
}

void vcpu_looked(struct vcpu *v)
{
	struct measure *m = &v->measure;
	struct vm_clock *clock = v->vm->clock;

	m->on = alone(v->vm, v->index) && clock_now(clock) - m->polled < POLL_GAP_NS;
	m->looked = clock_ticks(clock);
	vm_tsc_moved(v->vm, clock_resume(clock));
}

void vm_polled_timer(void *opaque, unsigned cpu, bool set)
{
	struct vm *vm = opaque;
	struct measure *m = &vm->vcpu[cpu].measure;

	if (!alone(vm, cpu))
		return;
	m->polled = clock_now(vm->clock);
	if (!m->on) {
		m->on = true;
		m->looks = 0;
		m->looked = clock_ticks(vm->clock);
	}
	if (set)
		m->looks = LOOKS;
}
