/*
 * The code cache: blocks of translated code, indexed by guest-physical page, offset and mode, linked to each other; and
 * the rule that no virtual CPU runs a translation of bytes that have been changed.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_CODE_H
#define DOPPEL_ENGINE_TRANSLATE_CODE_H

#include "engine/translate/emit.h"
#include "engine/translate/vcpu.h"
#include "host/host.h"
#include "host/thread.h"

/*
 * What translated code was made for, beside its bytes: all state that decides what an instruction means and that
 * translated code does not look at when it runs. Blocks of different keys never mix.
 */
enum {
	KEY_MODE = 3,      /* enum x86_mode */
	KEY_MMU_SHIFT = 2, /* enum MMU_*: which TLB */
	KEY_MMU = 3 << 2,
	KEY_NO_FPU = 1 << 4, /* CR0.TS or EM: x87 and MMX instructions trap or wait */
	KEY_NO_SSE = 1 << 5,
	KEY_NO_AVX = 1 << 6,
	KEY_GATES = KEY_NO_FPU | KEY_NO_SSE | KEY_NO_AVX,
	KEY_SS32 = 1 << 7,     /* legacy modes: stack pointer is ESP, not SP */
	KEY_USER = 1 << 8,     /* CPL 3 */
	KEY_WINDOW = 1 << 14,  /* user code that goes through windows (window.h) */
	KEY_NOSHARE = 1 << 10, /* a variant of a block without shared TLB checks; the CPU's own key never has it */
	KEY_RING12 = 1 << 11,  /* CPL 1 or 2 */
	KEY_SMAP = 1 << 12,    /* CR4.SMAP */
	KEY_TSD = 1 << 13,     /* CR4.TSD */
	KEY_COMMON = KEY_GATES | KEY_SMAP | KEY_TSD |
		     KEY_RING12, /* what all tables of the jump cache have in common at a time */
	KEY_SLOW =
		1
		<< 9, /* not translated but stepped: segments with bases or limits, TF, breakpoints, alignment checks */
};

uint32_t mode_key(const struct x86_cpu *cpu);

static inline unsigned key_mmu(uint32_t key)
{
	return (key & KEY_MMU) >> KEY_MMU_SHIFT;
}

static inline unsigned key_jc(uint32_t key)
{
	return (key & KEY_MODE) == MODE_64 ? key_mmu(key) : JC_LEGACY;
}

struct block;

/*
 * A direct jump out of a block to a fixed place in the same page, or (`page_imm`) in another one. The latter compares
 * the page that is there, by the itlb, with the one that it was linked to.
 */
struct tr_link {
	struct block *from, *to;
	struct tr_link *next;  /* in to->incoming */
	struct tr_link *other; /* in from->links */
	uint8_t *rel32;        /* of the jump, writable view, within an aligned quadword */
	uint8_t *stub;         /* where it goes while it is not linked */
	uint8_t *page_imm;     /* 64-bit immediate that tells the target's code page, or none; 8-byte aligned */
	int32_t undo;       /* what the instruction has added to RSP, to be taken back if its target is not canonical */
	uint32_t key;       /* of the target */
	uint16_t off;       /* of the target in its page */
	uint16_t from_off;  /* of the instruction in its own */
	bool flags_in_host; /* the guest's flags are in the host's at this jump, not in saved_flags */
	bool quick;         /* compares by the quick table: the immediate is a quick_tag */
};

/* Where an instruction's own host code is, to find the guest's from a host fault. */
struct insn_map {
	uint16_t host; /* first byte after the part's start that belongs to this instruction or a later one */
	uint16_t off;  /* of the guest instruction in the page */
	bool flags_in_host : 1;
	bool arriving : 1; /* from an indirect jump: vpage is still to be set, from H_ADDR */
	uint8_t dirty : 3; /* guest registers R9, R10, R11 that the host's of the same number have, and memory has not
			    */
	uint8_t moved : 2; /* MOVED_*: these have host addresses, by the deltas in H_ADDR and H_DELTA */
	uint8_t lent; /* LENT(register, holder): a host register has something else for now, and another its value; 0:
			 none */
};
#define MOVED_RSI 1 /* by H_ADDR */
#define MOVED_RDI 2 /* by H_DELTA */
#define LENT(reg, holder) ((uint8_t)((holder) << 4 | (reg)))

/* A block's host code: what runs in a row, and what is seldom run and lies elsewhere, out of the caches' way. */
enum { PART_HOT, PART_COLD, PARTS };

struct block_part {
	const uint8_t *start, *end; /* executable view */
	struct insn_map *map;       /* ends with one of host UINT16_MAX */
};

struct block {
	struct code_page *page;
	struct block *next; /* in its bucket */
	uint32_t key;
	uint16_t off, len; /* guest bytes covered, within the page */
	bool dead;
	uint8_t insns;
	uint8_t tail_len; /* in tail_page */
	struct block_part part[PARTS];
	const uint8_t *entry_host, *entry_saved; /* with the guest's flags in the host's; in saved_flags */
	const uint8_t *entry_indirect;           /* with windows: flags in the host's, the linear address in H_ADDR */
	struct code_page *tail_page; /* where its one instruction ends, when that crosses a page; else NULL */
	struct block *tail_next;     /* in tail_page->tails */
	struct tr_link *incoming;
	struct tr_link *links;
};

#define PAGE_BUCKETS 64

struct code_page {
	uint64_t gpa;
	uint64_t index;                 /* in guest_memory.code */
	struct code_page *next, **link; /* in tr_engine.pages */
	unsigned blocks;                /* that begin here, or end here */
	struct block *tails;            /* that end here */
	unsigned stray_writes;          /* to the page, but to no translated byte */
	struct block *_Atomic bucket[PAGE_BUCKETS];
};

struct tr_engine {
	struct guest_memory *mem;
	const struct x86_cpuid_model *model;
	unsigned cpus;
	struct tr_vcpu *vcpu[255];

	/* The code cache; `lock` guards all of it and every change to blocks. */
	struct host_mutex lock;
	struct host_code code;
	uint8_t *populated, *populated_cold; /* how far the host has been asked for it, writable view */
	uint8_t *code_start;                 /* after the glue, writable view */
	uint8_t *cold_start;
	struct emit emit, cold;          /* for the two parts of blocks */
	struct code_page *_Atomic *page; /* by guest_memory_page_index */
	struct code_page *pages;         /* all there are */
	struct block **sorted;           /* live and dead blocks by host address, of either part */
	_Atomic unsigned blocks; /* of them; a host fault looks them up without the lock, while others may be added */
	unsigned blocks_max;
	struct arena_chunk *arena;

	/* Stop-the-world: see exclusive_begin. */
	struct host_mutex excl_lock;
	struct host_cond excl_cond;
	struct host_mutex excl_owner;
	_Atomic int excl_pending;

	void (*enter)(struct tr_vcpu *v, const uint8_t *pc);
	/* Executable view. glue_exit_stored: the guest's registers are in cpu.gpr already. */
	const uint8_t *glue_exit, *glue_exit_stored, *glue_call, *glue_miss;
	bool no_link, no_share, no_inline, no_window, eager_window, step_only; /* debug switches */
	struct window_slots slots;
	struct profile *profile; /* NULL when nobody asked */
	struct engine_stats stats;
};

static inline const uint8_t *code_rx(const struct tr_engine *eng, const uint8_t *rw)
{
	return eng->code.rx + (rw - eng->code.rw);
}

static inline struct block *block_find(struct code_page *page, uint16_t off, uint32_t key)
{
	if (!page)
		return NULL;
	struct block *b = atomic_load_explicit(&page->bucket[off % PAGE_BUCKETS], memory_order_acquire);
	while (b && (b->off != off || b->key != key))
		b = b->next;
	return b;
}

bool code_init(struct tr_engine *eng, uint64_t size, struct error *err);
void code_destroy(struct tr_engine *eng);

/*
 * Sees to it that there is a block at page offset `off` of RAM page `gpa`. `tail` is the RAM page behind it in the
 * linear address space, for an instruction that reaches into it, or CODE_NO_TAIL. May flush the cache.
 */
#define CODE_NO_TAIL UINT64_MAX
void code_get(struct tr_vcpu *v, uint64_t gpa, uint64_t tail, uint16_t off, uint32_t key);
/* Makes `link` jump to `to` from now on. */
void code_link(struct tr_engine *eng, struct tr_link *link, struct block *to);
/* The block whose host code contains `pc`, and in which part of it that is; or NULL. */
struct block *code_find_host(struct tr_engine *eng, const uint8_t *pc, const struct block_part **part);
/* Guest memory changed: forget translations of it. Any thread that is not in translated code or a light helper. */
void code_written(struct tr_engine *eng, struct tr_vcpu *self, uint64_t gpa, uint64_t len);
/* Metadata that lives as long as the cache's content. */
void *code_alloc(struct tr_engine *eng, size_t size);

/*
 * Between begin and end no other virtual CPU runs translated code. `self` is the caller's own, or NULL on another
 * thread; it must have left translated code (in_code false).
 */
void exclusive_begin(struct tr_engine *eng, struct tr_vcpu *self);
void exclusive_end(struct tr_engine *eng);
/* Around translated code. enter waits while somebody is exclusive. */
void vcpu_code_enter(struct tr_vcpu *v);
void vcpu_code_leave(struct tr_vcpu *v);

/* translate.c: emits the block into eng->emit and fills it in. The lock is held. */
struct code_source {
	struct code_page *page, *tail;     /* tail: NULL when there is none */
	const uint8_t *bytes, *tail_bytes; /* the whole pages */
};
struct block *translate_block(struct tr_vcpu *v, const struct code_source *src, uint16_t off, uint32_t key);
/* glue.c */
void glue_emit(struct tr_engine *eng);
bool glue_in_host(unsigned reg); /* whether translated code holds the guest's `reg` in the host's */

#define BLOCK_INSNS 64
#define BLOCK_HOST_MAX 49152 /* host bytes each part of a block can take */

#endif
