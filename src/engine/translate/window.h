/*
 * Windows: the pages of a guest address space shown in the host's, so that the host's own MMU checks and translates the
 * accesses of translated code. It adds to an address the distance between its region (1 TiB of the guest's
 * address space) and the host addresses set aside for that region; what is not shown there faults, and the fault
 * handler walks the guest's page tables. What is shown is what a TLB may hold: it is dropped where the TLB is flushed.
 *
 * A page costs a host fault and a system call to show, tens of times what a TLB entry costs. So only address spaces
 * that have run for a while get windows, and the kernel, which is in all of them.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_WINDOW_H
#define DOPPEL_ENGINE_TRANSLATE_WINDOW_H

#include "arch/x86/emulate.h"
#include "host/space.h"

struct tr_engine;
struct tr_vcpu;

/* A region is told by bits 47:40 of an address. What the higher bits add makes the sum non-canonical, on purpose. */
#define REGION_SHIFT 40
#define REGION_COUNT 256
#define REGION_SIZE (1ull << REGION_SHIFT)

static inline uint8_t region_of(uint64_t va)
{
	return (uint8_t)(va >> REGION_SHIFT);
}

/* As a canonical address. */
static inline uint64_t region_start(uint8_t region)
{
	return (uint64_t)((int64_t)((uint64_t)region << 56) >> 16);
}

#define REGION_MARGIN \
	GiB(4) /* nothing is shown there: a displacement reaches 2 GiB, the host's table walk no further */

#define WINDOW_SPACES 3  /* address spaces of a CPU that have windows */
#define WINDOW_REGIONS 8 /* of an address space */
#define WINDOW_PAGES 24576
#define WINDOW_HASH 32768
#define WINDOW_PENDING 64
#define WINDOW_LOCALS 32 /* pages of CPL 0's that are not global: each load of CR3 looks through them */

/* A page that is shown, of 4 KiB or 2 MiB. */
struct window_page {
	uint64_t va;    /* page address | WINDOW_* */
	uint64_t gpa;   /* page address */
	uint16_t next;  /* in its hash chain, index + 1 */
	uint16_t holes; /* of a large one: how often a part of it has been shown anew, because it had translated code */
	/* By piece of a large one: it cannot be written; but in those, some pages can again that have no code. */
	uint32_t barred, opened;
};
#define WINDOW_PIECE KiB(64)
#define WINDOW_WRITABLE 1ull
#define WINDOW_LARGE 2ull
#define WINDOW_LOCAL 4ull       /* not global */
#define WINDOW_APART 8ull       /* also shown in the process in which user code runs directly (window_apart.c) */
#define WINDOW_APART_EXEC 16ull /* where it can be executed */
#define WINDOW_UNSEEN 32ull     /* shown there alone so far, of 4 KiB */

/* What is to change in that process before it runs on; two more empty it first. */
#define WINDOW_CHANGES (HOST_SPACE_CHANGES - 2)

/* Whether it pays to run an address space's user code directly. */
struct direct_account {
	uint64_t gain, cost, credit; /* ticks; halved from time to time. The gain that it began with is the credit */
	uint64_t program;            /* direct_program, when it began */
	unsigned stretches;          /* that have not been measured */
	uint64_t refused_until, patience;
	/* Of its bursts: what they have gained and cost, in ticks, halved from time to time; how many are passed over
	 * because they did not pay, and how many next time. */
	uint64_t burst_gain, burst_cost;
	unsigned burst_skip, burst_skips;
};

/* A page of CPL 0's that is not global. */
struct window_local {
	uint64_t va;    /* page address */
	uint64_t known; /* BIT(PCID), for which it is true; above 63, and without PCIDs, it is to be looked at each time
			 */
};

struct window_space {
	uint64_t cr3;    /* the top table's address; WINDOW_FREE: unused; WINDOW_KERNEL: see below */
	int pcid;        /* under which it ran last, or -1 */
	unsigned access; /* ACC_*: what those who run there may reach */
	uint8_t mmu;     /* MMU_*: the way of looking at memory that it stands for */
	bool stale; /* the TLB has been flushed: each page is to be compared with the page tables before user code runs
		     */
	bool stale_local; /* the same, but only those that are not global */
	unsigned locals;  /* pages that are not global */
	struct window_local local[WINDOW_LOCALS];
	uint64_t pieces[REGION_COUNT / 64]; /* regions with pages that are parts of larger ones of the guest's */
	unsigned regions, count, holes, pendings;
	unsigned unseen;                  /* of its `count` pages: WINDOW_UNSEEN */
	uint64_t pending[WINDOW_PENDING]; /* shown, and dropped from the TLB since user code ran: to be compared as well
					   */
	uint8_t guest[WINDOW_REGIONS];    /* region's number */
	unsigned skip, skips;             /* faults at which no regions are looked for; and next time */
	uint64_t host[WINDOW_REGIONS];    /* where it is seen */
	uint64_t used;                    /* when it was entered last, for who must go; counts entries */
	unsigned samples;                 /* interrupts at which its user code has run since it began */
	bool trusted;                     /* to run for long, as its program did before */
	uint64_t cost, since;             /* TSC ticks spent on it, from which time-stamp on */
	uint64_t debt, debt_at;           /* the same, less a share of the time since; reckoned at a time-stamp */
	struct host_space *apart;         /* user code may run in it, or NULL: direct.h */
	bool apart_new;                   /* it has been shown nothing yet */
	bool apart_lost;                  /* it is to be emptied before all changes */
	unsigned changes;
	struct host_space_change change[WINDOW_CHANGES];
	uint64_t breaks[HOST_SPACE_BREAKS]; /* where it is to stop, 0: nowhere */
	bool breaks_changed;                /* and does not know yet */
	struct direct_account account;
	uint16_t bucket[WINDOW_HASH];
	struct window_page page[WINDOW_PAGES];
};
#define WINDOW_FREE UINT64_MAX
/*
 * Kernels map themselves into every address space in the same way. What CPL 0 sees stays, as in a TLB, when CR3 is
 * loaded, if it is global; user code's address spaces come and go beside it.
 */
#define WINDOW_KERNEL (UINT64_MAX - 1)

/* An instruction that found pages not shown, while they cost much. */
struct window_site {
	uint64_t gpa; /* of the instruction */
	unsigned faults;
};
#define WINDOW_SITES 256

/* Regions for which window_delta is a window's. */
struct window_deltas {
	unsigned count;
	uint8_t region[WINDOW_REGIONS];
};

/* Of a virtual CPU; reached by its own thread, and by others in window_protect, hence the lock. */
struct windows {
	_Atomic bool lock;
	struct window_space *space[WINDOW_SPACES]; /* NULL: there was no memory */
	struct window_space *now;                  /* of the address space that user code runs in, or NULL */
	struct window_space *kernel;               /* CPL 0's, or NULL */
	struct window_deltas deltas[2];            /* user code's, CPL 0's */
	uint64_t kernel_refused;                   /* until then */
	uint64_t sampled_cr3, sampled_since;       /* seen running user code at each interrupt since then */
	bool sampled_asked;                        /* whether it is a program that runs long */
	unsigned sampled_flushes, flushes;         /* of the TLB, at the last sample and now */
	uint64_t refused_cr3, refused_until;       /* was more trouble than it was worth */
	uint64_t faulted;                          /* page of the last page fault of user code | 1: about to be used */
	uint64_t absent_cr3;                       /* has none, as was found out */
	uint64_t entries;
	struct window_site site[WINDOW_SITES]; /* by hash */
	bool device;                           /* the last fault was an access to something that is not RAM */
	bool to_code;                          /* or a store to a page with translated code */
	bool hopeless;       /* or to what CPL 0 has too much of to be shown: pages that are not global */
	unsigned impatience; /* how much those noted fault, see window_gives_up */
	uint64_t faults, shown, hidden, given_up; /* statistics */
};

/* Of the engine; `lock` guards taken, made and at: address space of the host, handed out by regions. */
#define WINDOW_SLOTS 88
struct window_slots {
	_Atomic bool lock;
	bool taken[WINDOW_SLOTS];
	unsigned made;
	uint64_t at[WINDOW_SLOTS];
	uint64_t limbo; /* a region in which nothing ever is, for those without windows */
};
#define WINDOW_PAGES_ALL 24000 /* of the process, seen */

bool window_init(struct tr_engine *eng);
void window_destroy(struct tr_engine *eng);
void window_vcpu_init(struct tr_vcpu *v);
void window_vcpu_destroy(struct tr_vcpu *v);

/*
 * User code is about to run: true if it may go through windows, which are then true to the page tables as far as a TLB
 * must be. General registers only.
 */
bool window_enter(struct tr_vcpu *v);
/* The same for code of CPL 0 in 64-bit mode. `mmu`: as it looks at memory when RFLAGS.AC is clear. */
bool window_enter_kernel(struct tr_vcpu *v, unsigned mmu);
/* An interrupt has been taken: decides whether the address space at hand gets windows, or loses them. */
void window_sample(struct tr_vcpu *v);
/* A host fault at `address` in translated code, of CPL 0 or user code: true if the access can be tried again. */
bool window_fault(struct tr_vcpu *v, bool kernel, uint64_t address, bool write);
/*
 * After a fault of the instruction at guest-physical `gpa`: if it meets so many pages that are not shown that it had
 * better go by the TLB, it is noted in gave_up. True: translated code is to be left, for it is time to see to those.
 */
bool window_gives_up(struct tr_vcpu *v, bool kernel, uint64_t gpa);
/* From time to time whoever gave up gets another chance. */
void window_give_chances(struct tr_vcpu *v, uint64_t tsc);

/*
 * The TLB's upkeep: one page; all of PCID `pcid`, or of all with -1, global pages or not; and what another PCID does
 * not see. General registers only.
 */
void window_flush_page(struct tr_vcpu *v, uint64_t va);
void window_flush(struct tr_vcpu *v, bool global, int pcid);
void window_pcid_changed(struct tr_vcpu *v);
/*
 * No store through windows reaches RAM page `gpa` any more. False: what runs directly could store there, and can until
 * it is stopped. Any thread.
 */
bool window_protect(struct tr_vcpu *v, uint64_t gpa);

#endif
