/*
 * The code cache: blocks of translated code, indexed by guest-physical page, offset and mode, linked to each other; and
 * the rule that no virtual CPU runs a translation of bytes that have been changed.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_CODE_H
#define DOPPEL_ENGINE_TRANSLATE_CODE_H

#include "engine/translate/emit.h"
#include "engine/translate/insn_map.h"
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
	KEY_USER = 1 << 8,     /* CPL 3 */
	KEY_WINDOW = 1 << 14,  /* memory goes through windows (window.h), if key_windowed */
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

static inline unsigned key_mmu(uint32_t key)
{
	return (key & KEY_MMU) >> KEY_MMU_SHIFT;
}

static inline bool key_ring0(uint32_t key)
{
	return !(key & (KEY_USER | KEY_RING12));
}

/* How CPL 0 looks at memory while RFLAGS.AC is clear. */
static inline unsigned key_mmu_kernel(uint32_t key)
{
	return key & KEY_SMAP ? MMU_KERNEL : MMU_KERNEL_AC;
}

/* Whether code of this key goes through windows. Between STAC and CLAC a kernel's code does not, but that around it. */
static inline bool key_windowed(uint32_t key)
{
	unsigned mmu = key_mmu(key);
	return (key & KEY_WINDOW) && (mmu == MMU_USER || mmu == key_mmu_kernel(key));
}

static inline unsigned key_jc(uint32_t key)
{
	return (key & KEY_MODE) == MODE_64 ? key_mmu(key) : JC_LEGACY;
}

/*
 * Records of translated code. There are many, so they are small: they lie in one piece of memory and name each other by
 * how far behind its start they are (32 bits, 0: none), and name host code by how far behind the cache's start it is.
 * They are forgotten together, when the cache is emptied.
 */
struct records {
	uint8_t *base;
	uint32_t used, size;
	uint32_t populated; /* of the part in small pages */
};

/*
 * A direct jump out of a block to a fixed place in the same page, or (`imm_back`) in another one. The latter compares
 * the page that is there, by the itlb, with the one that it was linked to.
 */
struct tr_link {
	uint32_t from, to; /* blocks */
	uint32_t next;     /* in to's incoming */
	uint32_t other;    /* in from's links */
	uint16_t rel32;    /* of the jump, within an aligned quadword: from the start of its part of `from` */
	uint16_t stub;     /* where it goes while it is not linked: from the start of the cold part. Same page only */
	uint16_t key;      /* of the target */
	uint16_t off;      /* of the target in its page */
	uint16_t from_off; /* of the instruction in its own */
	uint8_t imm_back;  /* how far before rel32 the 64-bit immediate is that tells the target's code page; 8-byte
			      aligned. 0: none */
	bool in_cold : 1;  /* rel32 is */
	bool flags_in_host : 1; /* the guest's flags are in the host's at this jump, not in saved_flags */
	bool pushed : 1;        /* a CALL, in 64-bit mode: what it has pushed is to be taken back if its target is not
				   canonical */
};

/* A direct jump of code with windows to another page: it goes by the pointer of its number (quick.h). */
struct far_jump {
	uint32_t from;          /* block */
	uint32_t index;         /* in tr_vcpu.far, tr_engine.far_cold */
	int32_t target;         /* from the start of the page that the jump is in */
	uint16_t from_off : 13; /* of the instruction there, or of the page's end */
	uint16_t pushed : 1;    /* as in struct tr_link */
};

/* A block's host code: what runs in a row, and what is seldom run and lies elsewhere, out of the caches' way. */
enum { PART_HOT, PART_COLD, PARTS };

struct block {
	uint32_t next; /* in its bucket */
	uint16_t off;  /* in the page */
	uint16_t key;
	uint32_t entry_saved; /* host code, with the guest's flags in saved_flags */
	uint32_t page;        /* struct code_page; 0: the block is dead */
	/* A lookup ends here. */
	uint32_t start[PARTS];
	uint16_t size[PARTS];
	uint32_t map;             /* struct insn_map, packed: of the hot part, then of the cold one */
	uint32_t tail;            /* struct block_tail, or 0 */
	uint32_t incoming, links; /* struct tr_link */
	uint16_t len;             /* guest bytes covered, within the page */
	uint8_t entry_host;       /* with the guest's flags in the host's: from the start of the hot part */
};
#define BLOCK_ALIGN 16 /* so that what a lookup reads is in one cache line */

/* Of a block whose one instruction crosses into another page. */
struct block_tail {
	uint32_t block, page;
	uint32_t next; /* in page's tails */
	uint8_t len;   /* guest bytes there */
};

#define PAGE_BUCKETS 64

struct code_page {
	uint64_t gpa;
	uint32_t index;                     /* in guest_memory.code */
	uint32_t slot;                      /* in tr_vcpu.place; below CODE_SLOTS */
	uint32_t next, prev;                /* in tr_engine.pages */
	uint32_t blocks;                    /* that begin here, or end here */
	uint32_t tails;                     /* struct block_tail: that end here */
	uint32_t stray_writes;              /* to the page, but to no translated byte */
	uint8_t direct;                     /* DIRECT_*: whether it can run directly */
	uint8_t direct_writes;              /* how often that has been asked anew because it was written to */
	uint16_t copy;                      /* if so, in what is executed in its place (direct_copy_make), or 0 */
	uint16_t breaks[HOST_SPACE_BREAKS]; /* or with breakpoints there (direct_breaks) */
	uint64_t *by_tlb; /* a bit for each offset at which an instruction goes by the TLB though its block has windows;
			     NULL: nowhere */
	_Atomic uint32_t bucket[PAGE_BUCKETS];
};

enum { DIRECT_UNKNOWN, DIRECT_FIT, DIRECT_UNFIT };

static inline unsigned page_bucket(uint16_t off)
{
	return (off ^ off >> 6) % PAGE_BUCKETS;
}

/* The light helpers (light.h) that translated code calls by name. */
enum helper {
	HELPER_LINK,
	HELPER_FAR,
	HELPER_FAR_QUICK,
	HELPER_JUMP,
	HELPER_TARGET,
	HELPER_TAIL,
	HELPER_SHARE,
	HELPER_SYSTEM,
	HELPER_GENERAL,
	HELPER_XSTATE,
	HELPER_SYSCALL,
	HELPER_SYSRET,
	HELPERS
};

/* What glue_exit is told: enum tr_exit, and the page offset of cpu->rip. */
#define GLUE_EXIT(code, off) ((uint32_t)(code) << 16 | (off))

struct tr_engine {
	struct guest_memory *mem;
	const struct x86_cpuid_model *model;
	unsigned cpus;
	struct tr_vcpu *vcpu[255];

	/* The code cache; `lock` guards all of it and every change to blocks. */
	struct host_mutex lock;
	struct host_code code;
	struct emit emit[PARTS];         /* where the parts of the next block go */
	uint8_t *part_start[PARTS];      /* where those of the first went (hot: after the glue), writable view */
	uint8_t *populated[PARTS];       /* how far the host has been asked for memory, likewise */
	struct code_page *_Atomic *page; /* by guest_memory_page_index */
	struct records records;
	uint32_t pages, pages_free;    /* struct code_page: all there are; what became of some, with their slots */
	uint32_t page_slots;           /* given to pages */
	uint32_t *slot_page;           /* struct code_page, by slot */
	uint32_t fars;                 /* numbers given to far jumps */
	_Atomic uint32_t fars_known;   /* of them; of the others, being translated, far_cold is not true yet */
	uint32_t *far_cold;            /* where each goes while its target is not known: host code's number */
	_Atomic uint64_t by_tlb_since; /* TSC at which the first of code_page.by_tlb was made; 0: there is none */
	uint32_t *sorted;              /* live and dead blocks by host address, of either part */
	_Atomic unsigned blocks; /* of them; a host fault looks them up without the lock, while others may be added */
	unsigned blocks_max;

	/* Stop-the-world: see exclusive_begin. */
	struct host_mutex excl_lock;
	struct host_cond excl_cond;
	struct host_mutex excl_owner;
	_Atomic int excl_pending;

	void (*enter)(struct tr_vcpu *v, const uint8_t *pc);
	/* Executable view. Of two, the second saves the flags first, which are in the host's. */
	const uint8_t *glue_exit[2];     /* R11: GLUE_EXIT */
	const uint8_t *glue_exit_stored; /* the guest's registers are in cpu.gpr already, and the way out is told */
	const uint8_t *glue_helper[HELPERS][2]; /* R11: the helper's second argument */
	const uint8_t *glue_quick;              /* to quick_pc, an entry as in the quick tables, with flags saved */
	const uint8_t *glue_jump_first;         /* an indirect jump to QUICK_FIRST */
	const uint8_t *glue_jump_any;           /* an indirect jump to H_ADDR */
	const uint8_t *glue_miss;               /* R10: linear address; R11: description; R9: where to resume */
	/* Debug switches. */
	bool step_only, eager_window, mixed_window, no_link, no_share, no_inline, no_window, no_kernel_window, no_pdep,
		no_lazy_flags, no_carry, no_trace, no_loop, no_return, no_copy, no_break, no_string, no_reuse,
		no_decode_cache, no_at_once;
	bool no_direct, no_burst, eager_direct, eager_burst;
	struct direct_host direct_host;
	struct window_slots slots;
	struct host_spaces *spaces; /* where user code runs directly; NULL: nowhere */
	struct direct_copies copies;
	struct profile *profile;                                              /* NULL when nobody asked */
	bool (*at_once)(void *monitor, unsigned vcpu, struct x86_exit *exit); /* struct engine_config's; or NULL */
	void *monitor;
	struct engine_stats stats;
};

static inline const uint8_t *code_rx(const struct tr_engine *eng, const uint8_t *rw)
{
	return eng->code.rx + (rw - eng->code.rw);
}

/* Record number `at`, NULL for 0; and the number of one. */
static inline void *record(const struct tr_engine *eng, uint32_t at)
{
	return at ? eng->records.base + at : NULL;
}

static inline uint32_t record_at(const struct tr_engine *eng, const void *p)
{
	return p ? (uint32_t)((const uint8_t *)p - eng->records.base) : 0;
}

static inline struct block *block_of(const struct tr_engine *eng, uint32_t at)
{
	return record(eng, at);
}

static inline struct tr_link *link_of(const struct tr_engine *eng, uint32_t at)
{
	return record(eng, at);
}

static inline struct code_page *page_of(const struct tr_engine *eng, uint32_t at)
{
	return record(eng, at);
}

static inline struct block_tail *tail_of(const struct tr_engine *eng, uint32_t at)
{
	return record(eng, at);
}

/* Host code number `at`, to be run. */
static inline const uint8_t *host_at(const struct tr_engine *eng, uint32_t at)
{
	return eng->code.rx + at;
}

static inline const uint8_t *block_part(const struct tr_engine *eng, const struct block *b, unsigned part)
{
	return host_at(eng, b->start[part]);
}

/* Where jumps of code with windows come in: flags in the host's. Blocks with windows. */
static inline const uint8_t *block_entry_quick(const struct tr_engine *eng, const struct block *b)
{
	return block_part(eng, b, PART_HOT) + b->entry_host;
}

static inline uint64_t block_entry_saved(const struct tr_engine *eng, const struct block *b)
{
	return (uint64_t)(uintptr_t)host_at(eng, b->entry_saved);
}

/* The number of a place in the writable view. */
static inline uint32_t code_at(const struct tr_engine *eng, const uint8_t *rw)
{
	return (uint32_t)(rw - eng->code.rw);
}

/* The record of RAM page `gpa`, NULL where nobody has made one. */
static inline struct code_page *code_page_at(const struct tr_engine *eng, uint64_t gpa)
{
	return atomic_load(&eng->page[guest_memory_page_index(eng->mem, gpa)]);
}

static inline struct block *block_find(const struct tr_engine *eng, struct code_page *page, uint16_t off, uint32_t key)
{
	if (!page)
		return NULL;
	uint32_t at = atomic_load_explicit(&page->bucket[page_bucket(off)], memory_order_acquire);
	struct block *b = block_of(eng, at);
	while (b && (b->off != off || b->key != key))
		b = block_of(eng, b->next);
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
/*
 * RAM page `gpa`, behind `before` (or NULL), is about to run directly: it counts as translated, so that no store to it
 * goes unnoticed. False: it cannot, by its instructions. Not in translated code. May flush the cache. The second says
 * whether that is true still.
 */
bool code_claim(struct tr_vcpu *v, uint64_t gpa, const uint8_t *before);
bool code_is_claimed(const struct tr_engine *eng, uint64_t gpa);
/* What runs in its place: code_page.copy. */
static inline unsigned code_copy(const struct tr_engine *eng, uint64_t gpa)
{
	const struct code_page *page = code_page_at(eng, gpa);
	return page ? page->copy : 0;
}
/* Where it is to stop: code_page.breaks. */
static inline const uint16_t *code_breaks(const struct tr_engine *eng, uint64_t gpa)
{
	static const uint16_t none[HOST_SPACE_BREAKS];
	const struct code_page *page = code_page_at(eng, gpa);
	return page ? page->breaks : none;
}
/* Makes `link` jump to `to` from now on. */
void code_link(struct tr_engine *eng, struct tr_link *link, struct block *to);
/* The block whose host code contains `pc`, and in which part of it that is; or NULL. */
struct block *code_find_host(const struct tr_engine *eng, const uint8_t *pc, unsigned *part);
/* Guest memory changed: forget translations of it. Any thread that is not in translated code or a light helper. */
void code_written(struct tr_engine *eng, struct tr_vcpu *self, uint64_t gpa, uint64_t len);
/* Translations that have windows of `n` instructions, at `gpa`, go; the next ones look their operands up in the TLB. */
void code_by_tlb(struct tr_engine *eng, struct tr_vcpu *self, const uint64_t *gpa, unsigned n);
/* Forgets what code_by_tlb was told: programs change. */
void code_by_windows(struct tr_engine *eng, struct tr_vcpu *self);
/* A new record; `align`: a power of two up to 16. The lock is held. */
void *code_alloc(struct tr_engine *eng, size_t size, size_t align);
#define code_new(eng, type) ((type *)code_alloc((eng), sizeof(type), _Alignof(type)))
/* A far jump with a number of its own, or NULL: there are no more. The lock is held. */
struct far_jump *code_far_jump(struct tr_engine *eng);
/* Its cold code, writable view: where it leads to begin with. Before the jump can be reached. */
void code_far_cold(struct tr_engine *eng, const struct far_jump *jump, const uint8_t *cold);

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
#define BLOCK_HOST_MAX 49152      /* host bytes each part of a block can take */
#define BLOCK_RECORDS_MAX KiB(96) /* and its records */

#endif
