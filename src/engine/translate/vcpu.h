/*
 * What a virtual CPU of this engine is: its processor state, and beside it all that translated code reaches through the
 * GS base (which points at struct tr_vcpu while translated code runs). One object a CPU; no other thread writes to it
 * but where it says so.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_VCPU_H
#define DOPPEL_ENGINE_TRANSLATE_VCPU_H

#include "arch/x86/decode_cache.h"
#include "arch/x86/emulate.h"
#include "engine/engine.h"
#include "engine/translate/direct.h"
#include "engine/translate/quick.h"
#include "engine/translate/window.h"

#include <stdatomic.h>

/*
 * Software TLB: one direct-mapped table for each way of looking at memory, so that a change of privilege flushes
 * nothing and a hit needs no permission check beyond the tag. The tag is the linear page address; TLB_NONE matches no
 * page.
 */
enum { MMU_USER, MMU_KERNEL /* SMAP in force */, MMU_KERNEL_AC /* SMAP off, or RFLAGS.AC set */, MMU_MODES };

#define TLB_BITS 14
#define TLB_ENTRIES (1u << TLB_BITS)
#define TLB_NONE 1ull

struct tlb_entry {
	_Atomic uint64_t tag_read;
	_Atomic uint64_t tag_write; /* set only when the page is writable, dirty and holds no translated code; another
				       thread may set it back to TLB_NONE (code_protect) */
	uint64_t delta;             /* host address - linear address */
	uint64_t meta;              /* gpa page | TLB_META_* */
};

#define TLB_META_LARGE 1 /* part of a larger guest page */
#define TLB_META_GLOBAL 2

/* An entry that has been put by: see tlb_saved.c. */
struct tlb_saved {
	uint64_t page, delta, meta;
	uint16_t place; /* in all of tlb */
	bool write;
};
#define TLB_SAVED 32
#define TLB_SPACES 6
struct tlb_space {
	int pcid;
	unsigned count; /* 0: it is nobody's */
	unsigned turns; /* that it has been put by, since the first of its entries was made */
	uint64_t saved; /* when, for who must go; counts */
	struct tlb_saved entry[TLB_SAVED];
};

/* The largest page that there is, hashed. */
static inline uint64_t tlb_large_bit(uint64_t va)
{
	return BIT((va >> 30) % 64);
}

/*
 * Where an indirect jump goes: linear address → host code, for each kind of 64-bit code. Code of the legacy modes
 * shares with user code: where both run, a change of address space, which empties it, mostly lies between.
 */
enum { JC_USER, JC_KERNEL, JC_KERNEL_AC, JC_MODES, JC_LEGACY = JC_USER };
#define JC_BITS 14
#define JC_ENTRIES (1u << JC_BITS)

struct jc_entry {
	uint64_t tag; /* linear address; JC_NONE of the entry's number matches none */
	uint64_t host;
};
_Static_assert((JC_MODES << JC_BITS) <= 1 << 16 && (MMU_MODES << TLB_BITS) <= 1 << 16, "the logs hold 16-bit indices");
/*
 * Any address can be jumped to, this one too. But it is looked for in one entry only, 0 for the first and 1 for the one
 * that stands there instead.
 */
#define JC_NONE(n) (0x8000000000000000ull | ((n) % JC_ENTRIES == 0))

#define ITLB_ENTRIES 1024

struct itlb_entry {
	uint64_t page; /* linear page address, or TLB_NONE */
	struct code_page *code;
};

#define FEW_LOGGED 64
#define EXEC_FILTER_BITS 4096
#define WRITE_FILTER_BITS 65536
#define WRITTEN_PAGES (GiB(1) / PAGE_SIZE)

/* Why translated code came back to C (vcpu->exit_code). */
enum tr_exit {
	TRX_NONE,
	TRX_LOOKUP, /* find or make the block at cpu->rip */
	TRX_LINK,   /* the same, and link exit_arg (number of a struct tr_link) to it */
	TRX_STEP,   /* carry out the instruction at cpu->rip by the slow path */
	TRX_EXIT,   /* cpu->exit holds an exit for the monitor */
	TRX_POLL,   /* somebody asked for attention */
	TRX_CODES
};

#define VCPU_SLOTS 16 /* SHARE_SLOTS */

#define RIP_KNOWN 0xffffffffu

/* What a virtual CPU is to forget before it runs on. It does so itself: out of translated code it may be doing that
 * already. */
enum {
	FORGET_LOOKUPS = 1 << 0, /* jump caches and itlbs: blocks have been dropped */
	FORGET_FARS = 1 << 1,    /* and all far pointers: the cache has been emptied */
};

struct tr_engine;
struct tr_link;
struct thunk;

struct tr_vcpu {
	struct x86_cpu cpu; /* first: its general registers are at gs:[0] */

	/* Reached by translated code and the glue, at VCPU_OFF from the GS base. */
	uint64_t vpage;       /* linear address of the page that the running block's code is in; code with windows
				 says it when it is left */
	uint16_t saved_flags; /* AH of LAHF in the high byte, OF in the low one; to be loaded by no more than what has
				 been stored, which would wait for it */
	_Atomic uint64_t run_on; /* 0: leave at the next poll (any thread sets that), else QUICK_MASK. One word, so that
				    those that poll agree */
	_Atomic uint64_t return_mask; /* 0 when run_on is, or at once after, else RETURN_MASK */
	uint64_t jump_any;            /* glue_jump_any */
	uint64_t host_rsp, self;
	uint64_t temp;
	uint64_t slot[VCPU_SLOTS]; /* deltas of shared TLB checks of the running block */
	uint64_t tlb_va, tlb_delta, next_pc;
	uint64_t quick_pc;    /* where glue_quick goes */
	uint64_t stack_delta; /* through windows: window_delta of RSP's region, or of one that RSP has left by
				 less than a window's margin */
	uint64_t window_delta[2][REGION_COUNT]; /* through windows, user code and CPL 0: host address - linear address,
						   by region */
	uint32_t exit_code, rip_off; /* rip_off: page offset of cpu->rip, or RIP_KNOWN when cpu->rip is true already */
	uint64_t exit_arg;

	struct jc_entry jc[JC_MODES][JC_ENTRIES];

	/* C only. */
	struct itlb_entry itlb[MMU_MODES][ITLB_ENTRIES];
	uint64_t exec_filter[2][EXEC_FILTER_BITS /
				64]; /* hashed pages that jc may have entries of; by half of the address space */
	_Atomic uint64_t write_filter[2][WRITE_FILTER_BITS / 64]; /* by RAM page, hashed: write tags of it may be in the
								     TLB; from mappings that are not global, global */
	_Atomic uint16_t written_at[WRITTEN_PAGES]; /* by RAM page, hashed: where in the TLB those are (tlb_writes.c)
						     */
	struct windows windows;
	struct direct direct;
	struct tr_engine *engine;
	struct thunk *thunk;
	unsigned index;
	bool running, stepping; /* inside run(), in an instruction of the slow path: for the profile */
	uint32_t key;           /* of the code to run now: mode_key() */
	uint64_t large[2];  /* tlb_large_bit of where the TLB may have entries of larger pages, by half of the address
			       space */
	bool exec_large[2]; /* code runs in larger pages, which exec_filter does not tell of; by half (1: the kernel's)
			     */
	bool exec_local;    /* the kernel runs code through mappings that are not global */
	bool exec_low;      /* or in the user's half of the address space */

	/*
	 * What there is to forget, so that a flush need not look at every entry: indices into tlb of entries that came
	 * from mappings that are not global, into jc and itlb of all entries, and into write_filter[0] of words. A
	 * count above its log's length: too many to tell.
	 */
	bool tlb_filled; /* since all of tlb was emptied */
	unsigned tlb_logged, jc_logged, itlb_logged[MMU_MODES], write_logged;
	int tlb_pcid;                           /* what is not global in tlb was filled under it; -1: without PCIDs */
	struct tlb_space tlb_space[TLB_SPACES]; /* of others */
	uint64_t tlb_saves;
	unsigned tlb_turns; /* tlb_space.turns of what is in tlb */
	struct quick_log quick_log[2];
	bool quick_lost;    /* something has been flushed: that of code which is to be resumed may be missing */
	bool quick_stale;   /* quick[0] is to be compared with the page tables before user code runs */
	uint64_t quick_cr3; /* CR3 that it was filled by */
	struct quick_saved *quick_saved[QUICK_SPACES]; /* by other CR3s; NULL: not needed yet */
	uint64_t quick_saves;
	struct quick_turns quick_turns; /* of what is in quick[0] */
	uint16_t tlb_log[4096], jc_log[8192], itlb_log[MMU_MODES][FEW_LOGGED], write_log[FEW_LOGGED];
	uint32_t jc_common, jc_shared; /* KEY_COMMON bits of all blocks in jc; the key of those in its JC_LEGACY */
	uint32_t jc_window;            /* KEY_WINDOW of CPL 0's code, which decides what its JC_KERNEL_AC may hold */
	bool noshare;                  /* the next block looked up is to be the variant that shares no checks */
	uint32_t window;               /* leave as soon as interrupts can be taken; translated code looks at it */
	bool nmi_window;               /* leave as soon as interrupts, NMIs can be taken */
	_Atomic bool in_code;    /* running translated code, a light helper or an instruction of the slow path, or about
				    to: nothing of the cache may go away */
	_Atomic unsigned forget; /* FORGET_*, for vcpu_code_enter; others set them while they are exclusive */
	bool give_up;            /* these instructions are to go by the TLB now */
	unsigned gave_up_count;
	uint64_t gave_up[64]; /* guest-physical addresses */
	bool exclusive;       /* in thunk_exclusive: stores into translated code are dealt with afterwards, too */
	unsigned wrote_count; /* stores into translated code, not yet dealt with */
	struct {
		uint64_t gpa, len;
	} wrote[8];
	uint64_t device;           /* at_once_store: guest-physical */
	struct tr_link *want_link; /* to be linked when its target has been made, unless the cache is flushed first */
	uint64_t link_flushes;
	uint64_t tsc_translated, tsc_translator;
	struct x86_decode_cache decoded;
	struct engine_stats stats;
	_Alignas(64) uint8_t image[X86_XSAVE_SIZE]; /* light_xstate's copy of what is to be restored, or scrubbed */
	unsigned trace_next;
	uint64_t trace[1024]; /* last blocks entered through the dispatcher: linear addresses */

	/* Reached by translated code again, and last: what is used last lies in a large page of its own. */
	struct quick_returns returns; /* user code's */
	struct tlb_entry tlb[MMU_MODES][TLB_ENTRIES];
	struct code_place place[CODE_SLOTS][2]; /* by code_page.slot; for user code, for CPL 0 */
	uint64_t far[FAR_JUMPS];                /* host code, by far_jump.index */
	struct quick_tables quick[2];           /* user code's, CPL 0's */
};

_Static_assert(offsetof(struct tr_vcpu, cpu) == 0 && offsetof(struct x86_cpu, gpr) == 0, "gs:[8 * n] is register n");

static inline struct tr_vcpu *vcpu_of(struct x86_cpu *cpu)
{
	return container_of(cpu, struct tr_vcpu, cpu);
}

/* Notes in a log with room for so many what is to be forgotten at a flush. */
static inline void flush_note(uint16_t *log, unsigned *count, unsigned room, ptrdiff_t index)
{
	if (*count < room)
		log[*count] = (uint16_t)index;
	if (*count <= room)
		++*count;
}

#define VCPU_OFF(field) ((int32_t)offsetof(struct tr_vcpu, field))

#endif
