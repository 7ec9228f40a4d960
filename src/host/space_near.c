/*
 * A process of space.h runs on the processor of the thread that waits for it. Each wakes the other, and where another
 * processor sleeps Linux would have it woken for that: it takes longer than most stops do. So both are kept on one, but
 * let go from time to time: the one that they have may be wanted by others, and another be free.
 */
#include "host/host.h"
#include "host/space_internal.h"

#include <sched.h>

#define KEEP_NS 16000000u

/* The thread that this is, as long as it is kept. */
static _Thread_local struct {
	bool kept;
	int cpu;
	uint64_t until;   /* host_now_ns */
	cpu_set_t before; /* where it may run otherwise */
} thread;

static bool set_affinity(pid_t tid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((unsigned)cpu, &set);
	return !sched_setaffinity(tid, sizeof(set), &set);
}

static void keep_thread(void)
{
	int cpu = sched_getcpu();

	thread.until = host_now_ns() + KEEP_NS;
	thread.cpu = cpu;
	thread.kept = cpu >= 0 && cpu < CPU_SETSIZE && !sched_getaffinity(0, sizeof(thread.before), &thread.before) &&
		      set_affinity(0, cpu);
}

void space_stay_near(struct host_space *s)
{
	if (!thread.kept) {
		keep_thread();
	} else if (host_now_ns() >= thread.until) {
		host_space_roam(); /* until it is woken by the stop */
		return;
	}
	if (thread.kept && s->cpu != thread.cpu && set_affinity(s->pid, thread.cpu))
		s->cpu = thread.cpu;
}

void host_space_roam(void)
{
	cpu_set_t now;

	/* Somebody else may have said meanwhile where it is to run. */
	if (thread.kept && !sched_getaffinity(0, sizeof(now), &now) && CPU_COUNT(&now) == 1 &&
	    CPU_ISSET((unsigned)thread.cpu, &now))
		sched_setaffinity(0, sizeof(thread.before), &thread.before);
	thread.kept = false;
}
