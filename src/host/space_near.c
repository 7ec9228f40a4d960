/*
 * A process of space.h runs on the processor of the thread that waits for it. Each wakes the other, and where another
 * processor sleeps Linux would have it woken for that: it takes longer than most stops do. So both are kept on one, but
 * let go when they do not have it to themselves: another may be free.
 */
#include "host/host.h"
#include "host/space_internal.h"

#include <sched.h>

#define KEEP_NS 16000000u /* then it is asked whether others wanted the processor */
#define OTHERS_MOST 8     /* and if they had it for one part in so many of that time */

/* The thread that this is, as long as it is kept. */
static _Thread_local struct {
	bool kept;
	int cpu;
	cpu_set_t before;        /* where it may run otherwise */
	uint64_t since;          /* host_now_ns */
	uint64_t own, processes; /* time that it had by then, and that its processes have had since */
	pid_t latest;            /* of them */
	uint64_t latest_since;   /* what it had had when it became that */
} thread;

static bool set_affinity(pid_t tid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((unsigned)cpu, &set);
	return !sched_setaffinity(tid, sizeof(set), &set);
}

static void count_process(pid_t process)
{
	thread.latest = process;
	thread.latest_since = space_time_ns(process, 0);
}

static void count_latest(void)
{
	thread.processes += space_time_ns(thread.latest, thread.latest_since) - thread.latest_since;
}

static void count_from_now(pid_t process)
{
	thread.since = host_now_ns();
	thread.own = host_thread_time_ns();
	thread.processes = 0;
	count_process(process);
}

/* False: this thread, or a process that it waited for, has run on that processor for nearly all of the time. */
static bool others_had_it(uint64_t now)
{
	uint64_t wall = now - thread.since;

	count_latest();
	uint64_t ours = host_thread_time_ns() - thread.own + thread.processes;
	return ours < wall - wall / OTHERS_MOST;
}

static void keep_thread(void)
{
	int cpu = sched_getcpu();

	thread.cpu = cpu;
	thread.kept = cpu >= 0 && cpu < CPU_SETSIZE && !sched_getaffinity(0, sizeof(thread.before), &thread.before) &&
		      set_affinity(0, cpu);
}

void space_stay_near(struct host_space *s)
{
	uint64_t now = host_now_ns();

	if (!thread.kept) {
		keep_thread();
		if (thread.kept)
			count_from_now(s->pid);
	} else if (now - thread.since >= KEEP_NS) {
		if (others_had_it(now)) {
			host_space_roam(); /* until it is woken by the stop */
			return;
		}
		count_from_now(s->pid);
	} else if (thread.latest != s->pid) {
		count_latest();
		count_process(s->pid);
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
