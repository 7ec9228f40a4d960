/* Inside the translator: the block being made, and the parts that make it. docs/translator.md explains the whole. */
#ifndef DOPPEL_ENGINE_TRANSLATE_TRANS_H
#define DOPPEL_ENGINE_TRANSLATE_TRANS_H

#include "engine/translate/asm.h"
#include "engine/translate/code.h"
#include "engine/translate/light.h"
#include "engine/translate/share.h"

#include <Zydis/Mnemonic.h>

/* Where the guest's arithmetic flags are. */
enum flags_at {
	FLAGS_HOST,  /* in the host's flags; saved_flags is stale */
	FLAGS_SAVED, /* in saved_flags; the host's are free */
	FLAGS_BOTH,
};

/* Code that is seldom run, put after the block: one for each place that jumps to it. */
enum cold_kind {
	COLD_MISS,
	COLD_LINK,
	COLD_UNLINKED,
	COLD_FAR_QUICK,
	COLD_POLL,
	COLD_FAR,
	COLD_TAIL,
	COLD_SHARE,
	COLD_ENTRY,
	COLD_JUMP,
	COLD_RETURN,
	COLD_CALL,
	COLD_STRING,
	COLD_WINDOW,
	COLD_STEP
};

#define COLD_FROM 4

struct cold {
	uint8_t kind;
	uint8_t flags;               /* enum flags_at on arrival */
	uint8_t flags_after;         /* COLD_STRING: at resume */
	bool rcx_in_tmp;             /* RCX has to be taken back from H_TMP */
	bool rdx_in_delta;           /* COLD_STEP: RDX has to be taken back from H_DELTA */
	uint16_t off;                /* COLD_MISS, COLD_POLL: of the instruction */
	uint32_t arg;                /* COLD_MISS: description */
	int64_t target;              /* COLD_FAR: offset from the page's start; COLD_JUMP: undo */
	uint8_t *from[COLD_FROM];    /* rel32s that jump here, or NULL. COLD_ENTRY: none */
	uint8_t *found;              /* COLD_CALL: on with the target's host code in H_DELTA */
	uint8_t *resume;             /* COLD_MISS, COLD_TAIL, COLD_SHARE, COLD_WINDOW, COLD_CALL, COLD_ENTRY */
	struct tr_link *link;        /* COLD_LINK, COLD_UNLINKED */
	struct far_jump *far;        /* COLD_FAR_QUICK */
	const struct share *share;   /* COLD_SHARE */
	const struct x86_insn *insn; /* COLD_STRING */
	uint8_t base;                /* COLD_SHARE: the guest register */
	bool slow;                   /* COLD_SHARE: as MISS_SLOW */
};

/* What R9, R10 and R11 of the host hold: trans_regs.c. Masks are by register, R9 the lowest bit. */
struct regs {
	uint8_t holds[3];
	uint8_t dirty;  /* the host's register alone has the value */
	uint8_t pinned; /* not to be taken: the instruction at hand needs it */
};

#define COLD_MAX (BLOCK_INSNS * 6 + 8)
#define MAP_MAX (BLOCK_INSNS * 10 + COLD_MAX * 4 + 8)

struct trans {
	struct emit e;
	struct tr_vcpu *v;
	struct tr_engine *eng;
	struct block *b;
	struct code_page *tail; /* where its one instruction ends, when that crosses a page; else NULL */
	unsigned part;          /* that is being emitted */
	uint8_t *start;         /* of the part, writable view */
	enum flags_at flags;
	enum x86_mode mode;
	unsigned mmu;
	bool window; /* memory is accessed through windows (window.h) */
	bool kernel; /* CPL 0 */
	uint32_t key;
	const struct x86_insn *insn; /* at hand */
	uint16_t off, next;          /* its offset in the page, and the next one's (up to 4096) */
	bool shadow;                 /* the last instruction was STI or a load of SS */
	bool ended;                  /* the block has its last jump */
	uint8_t lent;                /* of insn_map, from here on */
	uint8_t moved;               /* likewise */
	struct regs regs;
	bool stack_moved;    /* with windows: RSP, by known amounts, since it was last sure to be near its region */
	bool stack_sure;     /* it was, at some point of this block */
	uint8_t *quiet_poll; /* rel8 of a poll_quiet whose landing is still to be placed */
	unsigned colds, maps, count; /* count: of insns */
	struct cold cold[COLD_MAX];
	struct insn_map map[MAP_MAX];
	size_t packed_len;
	uint8_t packed[(MAP_MAX + 1) * PARTS * INSN_MAP_PACKED_MAX];
	struct x86_insn insns[BLOCK_INSNS];
	struct share_insn share[BLOCK_INSNS];
	bool by_tlb[BLOCK_INSNS];         /* with windows: the operand is looked up in the TLB nevertheless */
	const struct share_insn *sharing; /* of the instruction at hand */
};

static inline bool spilled(unsigned reg)
{
	return reg >= R9 && reg <= R11;
}

/* The key of the code after this block. */
static inline uint32_t next_key(const struct trans *t)
{
	return t->key & ~(uint32_t)KEY_NOSHARE;
}

/* Whether the instruction at hand goes by the TLB though its block has windows. */
static inline bool here_by_tlb(const struct trans *t)
{
	return t->by_tlb[t->insn - t->insns];
}

static inline unsigned stack_bytes(const struct trans *t)
{
	return t->mode == MODE_64 ? 8 : 4;
}

/*
 * trans_regs.c. The guest's R9 to R11 are used by regs_use, regs_define and regs_written; host code that needs
 * registers takes regs_scratch; host code with fixed ones (H_ADDR, H_DELTA, H_TMP) begins with regs_fixed. What is
 * pinned stays so until the end of the instruction. `avoid`: a mask as of regs_mask.
 */
uint8_t regs_mask(unsigned gprs); /* of a mask of all general registers */
unsigned regs_scratch(struct trans *t, uint8_t avoid);
void regs_release(struct trans *t, unsigned reg);
unsigned regs_use(struct trans *t, unsigned reg);                 /* guest register `reg`, in the host's `reg` */
unsigned regs_define(struct trans *t, unsigned reg);              /* the same, about to be overwritten as a whole */
void regs_operands(struct trans *t, const struct x86_insn *insn); /* all that its encoding names, but for its address */
void regs_written(struct trans *t, unsigned gprs); /* the instruction has been carried out and wrote these */
unsigned regs_slot(struct trans *t, unsigned slot, uint8_t avoid); /* a register that holds the slot's delta */
#define SLOT_STACK SHARE_SLOTS /* beside them: the delta of RSP's region, always in stack_delta */
void regs_slot_made(struct trans *t, unsigned slot, unsigned reg); /* `reg` has got it */
void regs_slot_done(struct trans *t, unsigned slot);               /* nobody needs it from here on */
void regs_store(struct trans *t);                                  /* memory has all of the guest's from here on */
void regs_flush(struct trans *t);                                  /* and the host's registers are free */
void regs_fixed(struct trans *t);                                  /* and H_ADDR and H_DELTA are in use */
/* Guest register `reg` has something else from here on, and `holder` its value; and back again. */
void regs_lend(struct trans *t, unsigned reg, unsigned holder);
void regs_give_back(struct trans *t, unsigned reg, unsigned holder);
uint8_t regs_dirty(const struct trans *t); /* the guest's that memory has not */
bool regs_empty(const struct trans *t);

/* trans_flags.c: flags are saved only before host code that would destroy them, and restored only before who reads
 * them. */
void flags_clobber(struct trans *t); /* after it the host's flags are free */
void flags_need(struct trans *t);    /* after it the host's flags are the guest's */
void flags_save(struct trans *t);
/* From a helper, which leaves flags saved, back to `resume`, where they are at `flags`. */
void flags_resume(struct trans *t, enum flags_at flags, const uint8_t *resume);
/* Emits a jump that is taken when the guest's condition `cc` holds, from wherever the flags are; returns its rel32,
 * within an aligned quadword. */
uint8_t *flags_jcc(struct trans *t, enum cc cc);
bool flags_merge(const struct x86_insn *insn); /* reads flags, or leaves some of them as they were */

/* trans_mem.c */
/* Where an operand is in host memory: [base + index + disp]. */
struct host_mem {
	uint8_t base;
	int8_t index; /* -1: none */
	int32_t disp;
};
void mem_address(struct trans *t, const struct x86_insn *insn,
		 bool segment); /* H_ADDR = linear (or, without segment, effective) address */
void mem_page_address(struct trans *t, unsigned reg, int64_t off); /* reg = the page's linear address + off */
int32_t mem_segment_base(unsigned seg);                            /* of struct tr_vcpu */
unsigned named_gprs(const struct x86_insn *insn); /* what the encoding names, but for the address; as a mask */
/*
 * Looks H_ADDR up for `size` bytes; the host's address is then [H_ADDR + H_DELTA]. Flags must be saved. Uses H_TMP.
 */
struct host_mem mem_check(struct trans *t, unsigned size, bool write);
/* The instruction's memory operand: after it, flags may have been saved, H_TMP is free, H_ADDR and H_DELTA may not be.
 */
struct host_mem mem_operand(struct trans *t, const struct x86_insn *insn);
/* RSP + disp, in registers that are pinned. */
struct host_mem mem_stack(struct trans *t, int32_t disp, bool write, uint8_t avoid);
/* trans_window.c: the same through windows. The operand's registers are pinned until the end of the instruction. */
/* After an instruction that may have moved RSP anywhere: finds its region. */
void window_stack_moved(struct trans *t);
/* After a plain instruction. */
void window_stack_after(struct trans *t, const struct x86_insn *insn);
/* Before a way out of the block that leads straight to another. */
void window_stack_settle(struct trans *t);
/* `delta` = host address - linear address in the region of host register `reg`; what is not to be accessed there
 * faults. */
void window_delta(struct trans *t, unsigned delta, unsigned reg);
struct host_mem window_stack(struct trans *t, int32_t disp, uint8_t avoid);
struct host_mem window_fixed(struct trans *t); /* at the linear address in H_ADDR. Uses H_DELTA */
struct host_mem window_flat(struct trans *t, const struct x86_insn *insn); /* [H_ADDR]; all else is in memory */
bool window_string(struct trans *t, const struct x86_insn *insn); /* trans_string.c; false: to be left to a helper */
bool window_plain(struct trans *t, const struct x86_insn *insn);  /* false: to be done with fixed registers */
void mem_op(struct trans *t, unsigned op, unsigned size, unsigned reg, const struct host_mem *m); /* op reg, [m] */
void trans_plain(struct trans *t, const struct x86_insn *insn);
void map_here(struct trans *t); /* host code from here on belongs to the instruction at hand */

/* trans_branch.c: each returns false when it leaves the instruction to the slow path, with nothing emitted. */
bool trans_branch(struct trans *t, const struct x86_insn *insn);
bool trans_stack(struct trans *t, const struct x86_insn *insn);
/* Ends the block with a jump to offset `target` from the page's start (it may be in another page). */
void jump_to(struct trans *t, int64_t target, uint32_t key);
/* Makes the rel32 at `from` a link to offset `target` of this page. */
void link_add(struct trans *t, uint8_t *from, int64_t target, uint32_t key);
void poll_flagged(struct trans *t, uint16_t off);
void trans_push_return(struct trans *t);

/* trans_loop.c */
/* A conditional jump forwards: a block may go on behind it, where it is not taken. */
bool branch_goes_on(const struct x86_insn *insn);
/* And one backwards: in the middle of a block, it goes on with the next turn of the loop, where it is taken. */
bool branch_turns(const struct x86_insn *insn);
/* The block has `n` instructions: how many they are with all turns of it, if it is a loop. */
unsigned loop_turns(struct trans *t, unsigned n);

/* trans_quick.c: a jump to the linear address in H_ADDR, CALL to that, and a direct jump, with windows. */
void quick_jump(struct trans *t, int32_t undo);
/* On if RCX is 0; else, and from `out`, to the cold code that this returns. */
struct cold *quick_on_if_zero(struct trans *t, enum cold_kind kind, uint8_t *out);
void quick_call(struct trans *t);
void quick_far(struct trans *t, int64_t target, int32_t undo);
/* Of the page that the code is in: its linear address, and the host's through windows (of struct tr_vcpu). */
int32_t quick_where(const struct trans *t);
int32_t quick_seen(const struct trans *t);
/* Before C, or code without windows, is to know what page this is. Uses R11. */
void quick_tell_page(struct trans *t);
void quick_rcx_lent(struct trans *t); /* H_TMP has RCX from here on, as it came */
/* For COLD_JUMP and COLD_CALL: the second entry is tried first. Returns what quick_second_found completes, at the end.
 */
uint8_t *quick_second(struct trans *t);
void quick_second_found(struct trans *t, const struct cold *c, uint8_t *found);
void cold_emit_jump(struct trans *t, const struct cold *c);
void cold_emit_call(struct trans *t, const struct cold *c);
void cold_emit_far_quick(struct trans *t, const struct cold *c);
void cold_emit_far(struct trans *t, const struct cold *c);

/* trans_return.c */
bool return_known(const struct trans *t);
/* After the address of the next instruction, which `address` has and does not keep, has been pushed. */
void return_leave(struct trans *t, unsigned address);
/* Ends the block with a return to the linear address in H_ADDR, which is still to be popped. */
void return_jump(struct trans *t, int32_t by);

/* trans_system.c */
/* Goes to a light helper, whose second argument is `arg`; flags are saved after it. */
void call_helper(struct trans *t, enum helper helper, uint32_t arg);
void trans_call(struct trans *t, const struct x86_insn *insn); /* CLS_SYSTEM, or one left to x86_emulate_general */
void cold_emit_string(struct trans *t, const struct cold *c);
void trans_step(struct trans *t); /* ends the block by leaving for the slow path at the instruction at hand */
void exit_code(struct trans *t, enum tr_exit code, uint16_t off);

static inline struct cold *cold_add(struct trans *t, enum cold_kind kind, uint8_t *from)
{
	ENSURE(t->colds < COLD_MAX && !regs_dirty(t));
	struct cold *c = &t->cold[t->colds++];
	*c = (struct cold){.kind = kind, .flags = t->flags, .from = {from}, .off = t->off};
	return c;
}

/* It is jumped to from there as well, with flags in the same place. */
static inline void cold_also(const struct trans *t, struct cold *c, uint8_t *from)
{
	unsigned i = 0;
	while (c->from[i])
		ENSURE(++i < COLD_FROM);
	ENSURE(c->flags == t->flags);
	c->from[i] = from;
}

static inline void emit_store16(struct trans *t, unsigned reg, int32_t off)
{
	asm_store16_gs(&t->e, reg, off);
}

/* Loads guest register `reg` into `scratch` if it lives in memory; returns the host register that has it. */
static inline unsigned guest_reg(struct trans *t, unsigned reg, unsigned scratch)
{
	ENSURE(regs_empty(t));
	if (!spilled(reg))
		return reg;
	asm_load_gs(&t->e, 8, scratch, (int32_t)reg * 8);
	return scratch;
}

/* trans_inline.c: each returns false when it leaves the instruction to its helper, with nothing emitted. */
bool trans_inline(struct trans *t, const struct x86_insn *insn);
bool trans_bit_string(struct trans *t, const struct x86_insn *insn);

void jmp_glue(struct trans *t, const uint8_t *glue); /* direct jump to a piece of glue, executable view address */

#endif
