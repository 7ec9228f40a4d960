/* Between the files space*.c and confine.c. */
#ifndef DOPPEL_HOST_SPACE_INTERNAL_H
#define DOPPEL_HOST_SPACE_INTERNAL_H

#include "host/shared.h"
#include "host/space.h"
#include "host/thread.h"

#include <sys/types.h>
#include <sys/user.h>

extern const uint8_t host_space_program[], host_space_program_end[];
/* Routines in it. */
extern const uint8_t host_space_call[], host_space_changes[], host_space_changed[], host_space_made[], host_space_tsc[],
	host_space_int80[], host_space_stop[], host_space_read[], host_space_zeros[];
/* What depends on the place where it stays. */
extern const uint8_t host_space_place[], host_space_filters[];

#define XSTATE_MOST KiB(16) /* AMX's tiles are the most of it */

struct host_space {
	pid_t pid, tracer;
	int cpu;          /* that it is kept on, -1: none */
	uint8_t *control; /* its control page */
	size_t xstate;    /* how much Linux wants at a time */
	uint32_t pkru;    /* what keeps code from being read, at `pkru_at` in that, where it does; else that is 0 */
	size_t pkru_at;
	unsigned faults;
	uint64_t time_seen;
	struct host_spaces *from;
	uint64_t page_faults, page_faults_seen; /* Linux's own, that nobody hears of */
	uint64_t stops, stops_seen;
	unsigned changes;                   /* that wait in the control page */
	uint64_t breaks[HOST_SPACE_BREAKS]; /* what its debug registers have */
	bool seen_regs;
	struct host_space_state seen; /* if so: its registers, where it stopped */
	bool xstate_seen;
	uint8_t seen_xstate[HOST_SPACE_XSTATE]; /* if so: what its state is */
	_Alignas(64) uint8_t image[XSTATE_MOST];
};

struct host_spaces {
	struct host_spaces *next; /* of all that there are */
	const struct host_shared *mem, *copies;
	uint64_t place;
	_Atomic enum { BREAKS_UNKNOWN, BREAKS_WORK, BREAKS_FAIL } breaks;
	struct host_mutex lock; /* what follows; one thread asks at a time */
	unsigned most, made;
	struct host_space_costs costs; /* as the first space has found out */
	bool tried, failed;
	pid_t pid; /* of the first process, or 0 */
	int asked, control_fd, program;
	uint8_t *control; /* the control pages: the first process's, then each space's */
	uint8_t *stack;   /* of the child that becomes the first process */
	int reading;      /* its end of the pipe */
	struct host_space *space[];
};

/* A routine of the program's. */
static inline uint64_t space_routine(const struct host_space *s, const uint8_t *label)
{
	return s->from->place + (uint64_t)(label - host_space_program);
}

/* Where the process has it. */
static inline uint64_t space_control_page(const struct host_space *s)
{
	return s->from->place + PAGE_SIZE;
}

/* Registers for a routine of the program's. */
static inline struct user_regs_struct space_regs_at(const struct host_space *s, const uint8_t *label)
{
	return (struct user_regs_struct){.rip = space_routine(s, label),
					 .cs = HOST_SPACE_CS,
					 .ss = HOST_SPACE_SS,
					 .orig_rax = (uint64_t)-1,
					 .eflags = 2};
}

/*
 * space.c: lets it go on from `regs`. The signal that ended it: SIGTRAP where all went well; 0: the process is no more.
 */
int space_signal_of_routine(struct host_space *s, struct user_regs_struct *regs);
/* Waits until it stops, for wait4's status. False: the process is no more. */
bool space_wait_stop(struct host_space *s, int *status);
/* Time that a processor has spent on a process, in ns; `otherwise`: it is no more. */
uint64_t space_time_ns(pid_t process, uint64_t otherwise);
/* Makes the changes that wait. False: the host would not. */
bool space_make_changes(struct host_space *s);

/*
 * space_filter.c: the filters of system calls, into an image of the program that stays at `place`: the first, and the
 * address there of the second (struct sock_fprog).
 */
void space_filters_write(uint8_t *image, uint64_t place);
uint64_t space_filter_second(uint64_t place);

/* space_near.c: before its process is let run. */
void space_stay_near(struct host_space *s);

/* space_start.c: this process may start no more from now on. Those that wait for it are started, if they may be. */
void spaces_start_all(bool may);
/* Starts the first process where nobody has. */
void spaces_start_late(struct host_spaces *from);
/* A new process, waiting to be traced, or -1. */
pid_t spaces_fork(struct host_spaces *from);

/* space.c: what host_space_kick sends is taken by the thread that it is for. For the process, once; in its turn. */
void spaces_catch_kicks(void);

#endif
