/*
 * Address spaces apart: processes in which there is nothing but what they are shown, and two pages of ours somewhere.
 * Code that is not ours runs there by itself, while the thread that has the space waits. It can make no system call:
 * Linux stops it there (PTRACE_SYSEMU), as at a fault, and tells that thread. So whatever runs in a space reaches
 * nothing but the pages that are shown, and has no way to change which those are.
 *
 * They come from a process of their own, one page of code without any memory of this one's (space_program.S), which is
 * started before this process gives up the right to start any, and forks when it is asked to.
 */
#ifndef DOPPEL_HOST_SPACE_H
#define DOPPEL_HOST_SPACE_H

#include "base/base.h"

struct host_shared;
struct host_spaces; /* where they come from */
struct host_space;

#define HOST_SPACE_LOWEST KiB(64)        /* Linux lets nobody map what is below (vm.mmap_min_addr) */
#define HOST_SPACE_TOP 0x7ffffffff000ull /* where addresses end */
#define HOST_SPACE_OURS 8192             /* bytes of it that are not for others */
/* What Linux has in selectors while a program of 64 bits runs. */
#define HOST_SPACE_CS 0x33
#define HOST_SPACE_SS 0x2b

/*
 * For spaces that show parts of `mem`, and of `copies` what is to be executed (both borrowed), `most` of them at a
 * time. NULL: the reason is in host_error_text(). The process is started by host_confine, or, where nobody confines
 * this one, when a space is asked for.
 */
struct host_spaces *host_spaces_create(const struct host_shared *mem, const struct host_shared *copies, unsigned most);
void host_spaces_destroy(struct host_spaces *from); /* after the threads that had spaces have ended */
/* Where what is ours is in all of them: the middle of nowhere, at random. */
uint64_t host_spaces_place(const struct host_spaces *from);

/* Whether there can be something at [at, at + len): not where the system, or what is ours, does not let it. */
static inline bool host_space_may_show(uint64_t place, uint64_t at, uint64_t len)
{
	uint64_t from = (place & ~(GiB(4) - 1)) - GiB(4), to = from + GiB(8);
	return at >= HOST_SPACE_LOWEST && at < HOST_SPACE_TOP && len <= HOST_SPACE_TOP - at && len < GiB(4) &&
	       (at + len <= from || at >= to);
}

/*
 * A space of this thread's, empty; nobody else may use it, but for host_space_kick. It ends with the thread. NULL: this
 * host has none to give, or not yet.
 */
struct host_space *host_space_create(struct host_spaces *from);
/*
 * What raises an exception there, and on other hosts does not: RDTSC and RDTSCP; INT 0x80; reading what is shown to be
 * executed, and no more (by protection keys, SDM Vol. 3A 4.6.2, of which Linux keeps one for this).
 */
enum { HOST_SPACE_TSC_FAULTS = 1, HOST_SPACE_INT80_FAULTS = 2, HOST_SPACE_CODE_FAULTS = 4 };
unsigned host_space_faults(const struct host_space *s);
/* What it takes here, in ns, as has been tried out. */
struct host_space_costs {
	uint64_t stop;       /* there and back, with nothing in between */
	uint64_t show;       /* one page, in a list of many */
	uint64_t page_fault; /* Linux's, for a page that nobody has touched yet */
};
const struct host_space_costs *host_space_costs(const struct host_space *s);
/* Time that a processor has spent on it since this was asked before, in ns. */
uint64_t host_space_time_ns(struct host_space *s);
/* How much of that was Linux's, about: for stops, and for pages that were shown and had not been touched yet. */
uint64_t host_space_system_ns(struct host_space *s);

enum { HOST_SPACE_READ = 1, HOST_SPACE_WRITE = 2, HOST_SPACE_EXEC = 4 };
struct host_space_change {
	uint64_t at, len; /* whole pages where something may be shown; or all before what is ours, or all behind */
	uint32_t rights;  /* HOST_SPACE_*; 0: there is nothing any more */
	uint32_t copy;    /* 0, or 1: of the copies; rights are HOST_SPACE_EXEC alone */
	uint64_t offset;  /* in the memory, or the copies, that are shown */
};
#define HOST_SPACE_CHANGES 120 /* at a time */
/*
 * In this order, before it runs next. Those that wait already are made now: a kick that comes meanwhile is lost, and if
 * the host would not make them, false is returned, and what is shown now is not known.
 */
bool host_space_change(struct host_space *s, const struct host_space_change *list, unsigned n);

#define HOST_SPACE_BREAKS 4
/*
 * Whether there are breakpoints here (SDM Vol. 3B 18.2). That is tried out when it is asked first: Linux may take 10 ms
 * to prepare for the first on the whole host. Not while it has some.
 */
bool host_space_can_break(struct host_space *s);
/*
 * From when it runs next on, what begins at one of these addresses is not carried out, but HOST_SPACE_EXCEPTION, unless
 * it is behind a load of SS; 0: none. False: the host would not.
 */
bool host_space_break(struct host_space *s, const uint64_t at[HOST_SPACE_BREAKS]);

/* Registers in x86 encoding order; selectors as in enum x86_seg: ES, CS, SS, DS, FS, GS. */
struct host_space_state {
	uint64_t gpr[16], rip, rflags, fs_base, gs_base;
	uint16_t sel[6];
};
/* The standard format of XSAVE: legacy region, header, AVX (SDM Vol. 1 13.4). */
#define HOST_SPACE_XSTATE 832
/* Costs nothing if it is what the last get gave. */
bool host_space_set_xstate(struct host_space *s, const uint8_t *image);
bool host_space_get_xstate(struct host_space *s, uint8_t *image);

enum host_space_stop {
	HOST_SPACE_KICKED,    /* or for no reason */
	HOST_SPACE_CALL,      /* at a SYSCALL; or at an INT 0x80, which has lost the upper half of RAX */
	HOST_SPACE_FAULT,     /* memory at `address` is not shown so */
	HOST_SPACE_EXCEPTION, /* another; the instruction that met it has not been carried out */
	HOST_SPACE_INT3,      /* INT3 or INT 3; rip is behind it */
	HOST_SPACE_INT1,      /* rip is behind it, or, where a hypervisor had to deliver it again, at it */
	HOST_SPACE_STEPPED,   /* single step: rip is behind the instruction */
	HOST_SPACE_UNSHOWN,   /* the state is as before; the host would not make changes, and what is shown is not known
			       */
	HOST_SPACE_LOST       /* the process is no more: somebody killed it */
};
/* Runs it from `state`, and says there where it stopped. */
enum host_space_stop host_space_run(struct host_space *s, struct host_space_state *state, uint64_t *address);
/* This thread, kept on a processor together with the processes that it runs, is not to run any for a while. */
void host_space_roam(void);
/* Any thread: it stops soon, or at once when it is run next, unless changes come first. */
void host_space_kick(struct host_space *s);

#endif
