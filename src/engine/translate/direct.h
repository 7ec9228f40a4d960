/*
 * User code run directly: as it is, by the processor, in a process in which its pages are shown at the guest's own
 * addresses (host/space.h). It goes on until a system call, a fault or somebody who wants attention stops it; the
 * instruction that it stopped at is the slow path's. Nothing in it is checked or counted by us. Each stop costs more
 * than thousands of translated instructions, so this is for programs that compute: windows first (window.h), and then
 * a process, as long as it is seen to pay.
 *
 * Three things make it exact. What is shown is what windows show, and so what a TLB could hold. Pages are shown to be
 * executed only if no instruction in them tells this processor from the guest's (direct_scan.c), or those that do are
 * faults, in a copy or by breakpoints; no other virtual CPU can change such a page without the process being stopped
 * first, for it counts as translated (code_claim). And it runs there only in a state that Linux gives to programs of
 * its own (direct_fits).
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_DIRECT_H
#define DOPPEL_ENGINE_TRANSLATE_DIRECT_H

#include "arch/x86/emulate.h"
#include "engine/translate/window.h"
#include "host/shared.h"
#include "host/space.h"

#include <stdatomic.h>

struct tr_engine;
struct tr_vcpu;

/* What user code does that stops it where it runs directly. */
struct direct_stops {
	uint64_t page_faults, call_returns; /* SYSRET */
};

/* What is known of programs, by direct_program: two for which there is one place take turns. */
#define DIRECT_PROGRAMS 64
struct direct_programs {
	struct direct_known {
		uint64_t page;
		unsigned failures; /* it did not pay, so many times in a row */
		unsigned trust;    /* so many times it is taken for one that runs long, before it has */
	} known[DIRECT_PROGRAMS];
};

/* Of a virtual CPU. */
struct direct {
	_Atomic(struct host_space *) running;
	bool due;                               /* the user code that is about to run is to run directly */
	uint64_t later;                         /* but not before this time-stamp */
	struct host_space *idle[WINDOW_SPACES]; /* processes that no address space has */
	unsigned idle_count, made;
	uint64_t retry;                                  /* none could be had; not before this time-stamp */
	struct host_space_costs costs;                   /* a guess, until it has had one */
	struct direct_stops made_by_user, sampled_stops; /* now, and at the last sample */
	uint64_t sampled, stops_cost; /* that time-stamp; what they are to cost from sample to sample, in ns */
	struct direct_programs programs;
	bool kept;                /* the thread is, where its processes run */
	uint64_t kept_for;        /* stops, at the last sample */
	_Atomic uint64_t time_ns; /* that its processes have run */
	uint64_t event;           /* time-stamp of the last page fault */
	uint64_t stop;            /* what one takes here, in ticks */
	uint64_t quiet; /* ticks of translated code, and the guest's kernel, after which another is one by itself */
	uint64_t ran;   /* ticks that it has run since it was stopped by one, or by a call */
	bool soon;      /* and then that was soon after the one before */
	bool alarm;     /* there is one */
	bool burst;     /* translated, though it has a process: they come in a burst */
	volatile bool rang;
	unsigned burst_rings;
	uint64_t burst_returns; /* call_returns, when it was last looked at */
	uint64_t alarm_cost;    /* what setting it, and its coming, takes, in ticks */
	uint64_t all_faults;    /* page faults of user code that is translated, those of bursts as well */
	struct {                /* when the burst began */
		struct window_space *space;
		uint64_t tsc, faults, returns;
	} from;
	uint64_t stops, calls, faults, exceptions, kicks, refused, bursts; /* statistics */
};

void direct_init(struct tr_vcpu *v);
/* Whether user code in this state, of this key, can run directly. General registers only. */
bool direct_fits(const struct tr_vcpu *v, uint32_t key);
/* The state as a process has it, and back. V_INJECT: user code has loaded a selector that it may not have. */
void direct_state_get(const struct x86_cpu *cpu, struct host_space_state *state);
enum verdict direct_state_put(struct x86_cpu *cpu, const struct host_space_state *state);

enum direct_next {
	DIRECT_AGAIN, /* see what is to be done now */
	DIRECT_STEP,  /* the slow path carries out the instruction at rip */
	DIRECT_RAISE  /* cpu->exc is to be delivered */
};
/* direct_show.c: all changes to what is shown are made before the process runs on. False: the host would not. */
bool direct_settle(struct tr_vcpu *v, struct window_space *s);
/* The code at `rip` has met a fault at `va`. *shown: the page is going to be shown, and it can go on. In code. */
enum direct_next direct_fault(struct tr_vcpu *v, struct window_space *s, uint64_t rip, uint64_t va, bool *shown);
/* Runs user code directly, from the state at hand; `due` was true. */
enum direct_next direct_run(struct tr_vcpu *v);
/*
 * direct_pay.c: around each run, its account; whether it has gained more than it has cost; and if not: the process goes
 * to others, and this address space is translated for a while.
 */
struct direct_measure {
	unsigned stretches; /* that it stands for; 0: it is not measured */
	uint64_t since;     /* the thread's processor time, in ns */
};
struct direct_measure direct_measure_begin(struct window_space *s);
void direct_measure_end(struct tr_vcpu *v, struct window_space *s, struct direct_measure m);
bool direct_pays(const struct tr_vcpu *v, const struct window_space *s);
void direct_stop(struct tr_vcpu *v, struct window_space *s);
/* An interrupt has been taken: decides whether the address space at hand gets a process. */
void direct_sample(struct tr_vcpu *v);
/* direct_burst.c: on the virtual CPU's own thread, before the first run and after the last. */
void direct_thread_enter(struct tr_vcpu *v);
void direct_thread_leave(struct tr_vcpu *v);
/* The instruction that stopped it soon after another has been carried out: it runs translated from now on. */
void direct_burst_begin(struct tr_vcpu *v);
/* Somebody has asked for attention: whether the burst is over. */
void direct_burst_look(struct tr_vcpu *v);

/* Nothing runs directly for a while: the thread is halted, or at other things. */
void direct_rest(struct tr_vcpu *v);
/* At once, for tests. */
void direct_eagerly(struct tr_vcpu *v);

/*
 * direct_program.c: which program the address space at hand has, as a guest-physical page that is its own, or 0. A
 * guess: other programs may come to have that page, and one may have several.
 */
uint64_t direct_program(const struct guest_memory *mem, uint64_t cr3);
/* How many times in a row it did not pay, at most DIRECT_FAILURES. */
#define DIRECT_FAILURES 4
unsigned direct_program_failures(const struct direct_programs *p, uint64_t page);
/*
 * A process of it has run for long. And whether the next is to be expected to: that is asked once of each, and so many
 * may be short, one after the other, before the answer is no.
 */
#define DIRECT_TRUST 3
void direct_program_lasts(struct direct_programs *p, uint64_t page);
bool direct_program_will_last(struct direct_programs *p, uint64_t page);
/* Learns by the account of one that runs directly, or did until now. */
void direct_program_judge(struct direct_programs *p, const struct direct_account *a);

/* Any thread, after it has asked for attention (run_on): what runs directly does not look. */
void direct_kick_slowly(struct tr_vcpu *v);

/* What of it decides which code can run directly. */
struct direct_host {
	unsigned faults;       /* HOST_SPACE_*_FAULTS */
	uint32_t other_states; /* in its XCR0 or that of guests whose code runs directly, and not in both */
};
/*
 * Whether all instructions in a page do the same here as in the guest, and those of which one page has the beginning
 * and another the end. `before`: the page before it, for who knows it; if not, NULL, any of its first bytes may be
 * where one begins.
 */
bool direct_scan(const uint8_t *page, const uint8_t *before, const struct direct_host *host);
bool direct_scan_join(const uint8_t *page, const uint8_t *next, const struct direct_host *host);
/*
 * A copy of a page that direct_scan refuses, in which each instruction for which it does begins with a fault (HLT), and
 * so does each, wherever one may begin, in which such a fault would lie. So whoever executes the copy, from whatever
 * address on, executes what the page has, or comes to a fault in the place of what it has. False: there can be none,
 * since instructions that begin in the page before would have to fault as well.
 */
bool direct_trap(uint8_t *copy, const uint8_t *page, const uint8_t *before, const struct direct_host *host);

/*
 * The same without a copy: where in the page such instructions begin, and with which prefixes. `at`: offsets, and 0 for
 * none behind them. False: there are more of them, or one may begin in the page before, or none would stop (behind a
 * load of SS).
 */
bool direct_breaks(uint16_t at[HOST_SPACE_BREAKS], const uint8_t *page, const uint8_t *before,
		   const struct direct_host *host);

/*
 * direct_copy.c: the copies that there are, for they are shown in place of the pages. Not all of a page may be true in
 * its copy: so it is executed there and not read, where the host can keep it from that (HOST_SPACE_CODE_FAULTS). With
 * tr_engine.lock.
 */
#define DIRECT_COPIES 256
struct direct_copies {
	struct host_shared pages;
	uint64_t used[DIRECT_COPIES / 64];
};
/* False: the reason is in host_error_text(). */
bool direct_copies_init(struct direct_copies *c);
void direct_copies_destroy(struct direct_copies *c);
/* A copy of `page`, by its number, from 1; 0: there can be none. */
unsigned direct_copy_make(struct direct_copies *c, const uint8_t *page, const uint8_t *before,
			  const struct direct_host *host);
void direct_copy_release(struct direct_copies *c, unsigned number);
/* Where it is in the pages. */
static inline uint64_t direct_copy_offset(unsigned number)
{
	return (number - 1) * PAGE_SIZE;
}

#endif
