/*
 * Helpers that translated code calls while the guest's vector state stays in the host's registers: compiled for general
 * registers only, no C library. Each returns the host address to go on at.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_LIGHT_H
#define DOPPEL_ENGINE_TRANSLATE_LIGHT_H

#include "engine/translate/code.h"

/*
 * What a helper is told of its instruction: records, whose numbers it gets.
 *
 * One instruction carried out by emulate.h.
 */
struct call_insn {
	struct x86_insn insn;
	uint32_t resume; /* the code after it, or 0: look the next block up */
	uint16_t off;    /* of the instruction in its page */
};

uint64_t light_system(struct tr_vcpu *v, uint64_t call);
uint64_t light_general(struct tr_vcpu *v, uint64_t call);
/* light_call.c: SYSCALL and SYSRET between 64-bit code; what is unusual of them is light_system's. */
uint64_t light_syscall(struct tr_vcpu *v, uint64_t call);
uint64_t light_sysret(struct tr_vcpu *v, uint64_t call);

/* The page behind an instruction that crosses into it is not known to be `tail`. */
struct call_tail {
	uint32_t tail, resume;
	uint16_t off;
};
uint64_t light_tail(struct tr_vcpu *v, uint64_t call);

/* An indirect call from code with windows, whose target is not in the quick table. Nothing of it has happened yet. */
struct call_target {
	uint32_t resume; /* to look again */
	uint32_t page;   /* struct code_page */
	uint16_t off;
};
uint64_t light_target(struct tr_vcpu *v, uint64_t call);

/* A shared check (share.h) that failed: a miss, or a range that is not in one page. */
struct call_share {
	uint32_t retry;     /* the check */
	int32_t lo;         /* the range of all accesses, from the base register */
	uint16_t span, own; /* how long it is; where in it the leader's own access begins */
	uint16_t off;
	uint8_t base;
	bool write : 1, own_write : 1, slow : 1; /* slow: as MISS_SLOW, of the leader's own access */
};
uint64_t light_share(struct tr_vcpu *v, uint64_t call);

/*
 * light_xstate.c: calls `f`, which may be any C, from a light helper; the guest's vector state is out of the way
 * meanwhile. at_once.c: what can be so called.
 */
bool light_call_out(struct tr_vcpu *v, bool (*f)(struct tr_vcpu *v));
/* The write that cpu->exit asks for has been done; false: an exit it is. Where the engine has an at_once. */
bool at_once_exit(struct tr_vcpu *v);
/*
 * The instruction at cpu->rip, which writes AT_ONCE_SIZE bytes at linear address tlb_va, at `device` in the
 * guest-physical space, has been carried out, and cpu->rip is behind it; false: nothing has happened.
 */
#define AT_ONCE_SIZE 4
bool at_once_store(struct tr_vcpu *v);

/* light_xstate.c: an XSAVE-family instruction, if it is one of those that light_xstate_knows. */
bool light_xstate_knows(const struct x86_insn *insn);
uint64_t light_xstate(struct tr_vcpu *v, uint64_t call);

/*
 * The last x87 instruction's address in a saved image is the host's when it ran in translated code: the guest must not
 * see that. It becomes 0, as after FNINIT. False: it is the guest's.
 */
bool xstate_scrub(const struct tr_engine *eng, uint8_t *image);

/* Between the helpers: leave translated code with cpu->rip true; on at host code number `at`; the way to [va, va+len)
 * in host memory through the TLB, or NULL. */
uint64_t light_leave(struct tr_vcpu *v, enum tr_exit code);
uint64_t light_resume(struct tr_vcpu *v, uint32_t at);
uint8_t *light_pointer(struct tr_vcpu *v, uint64_t va, unsigned len, bool write);
/* x86_cpu_ops.pointer */
uint8_t *light_access(struct x86_cpu *cpu, uint64_t va, unsigned len, unsigned access);

/* A miss in the inlined TLB: fills it, or delivers the fault, or leaves for the slow path. */
#define MISS_OFF(desc) ((desc)&0xfff)
#define MISS_SIZE(desc) ((desc) >> 12 & 0xff)
#define MISS_WRITE (1u << 20)
#define MISS_SLOW \
	(1u << 21) /* something else may come before a page fault: misalignment, a pending x87 exception; or LOCK */
uint64_t light_miss(struct tr_vcpu *v, uint64_t va, uint32_t desc, uint64_t resume);

/*
 * An indirect jump that the jump cache does not know; tlb_va holds the linear target. `arg`: page offset of the
 * instruction (or of the page's end, for who runs into it) in the low 13 bits, what it has added to RSP above, to be
 * undone when the target is not canonical.
 */
#define JUMP_OFF_BITS (PAGE_SHIFT + 1)
#define JUMP_ARG(off, undo) ((uint32_t)(undo) << JUMP_OFF_BITS | (off))
uint64_t light_jump(struct tr_vcpu *v, uint64_t arg);

/*
 * A direct jump to another page that is not linked, or finds another page than it was linked to. tlb_va: the target's
 * page.
 */
uint64_t light_far(struct tr_vcpu *v, uint64_t link);
/* The same from code with windows; the record is a struct far_jump. */
uint64_t light_far_quick(struct tr_vcpu *v, uint64_t jump);
/* A direct jump within its page that is not linked. */
uint64_t light_link(struct tr_vcpu *v, uint64_t link);
/* The record of linear page `linear`'s code, or NULL when nothing of it is translated (or it cannot be executed). */
struct code_page *light_page_of(struct tr_vcpu *v, uint64_t linear);
/* The translator goes by the page tables as they are: so will who looks for what it makes there. */
void light_page_forget(struct tr_vcpu *v, uint64_t linear);

/* Host address of the block at cpu->rip; translated code is entered there with flags in saved_flags. 0: needs the
 * translator or a step. */
uint64_t light_lookup(struct tr_vcpu *v);
/* On to the block at cpu->rip, or out of translated code if there is none yet, or somebody asks for attention. */
uint64_t light_go_on(struct tr_vcpu *v);

/* TLB maintenance; also the engine's x86_cpu_ops. */
void tlb_init(struct tr_vcpu *v);
void tlb_flush_page(struct x86_cpu *cpu, uint64_t va, int pcid);
void tlb_flush_all(struct x86_cpu *cpu, bool global, int pcid);
void tlb_space_changed(struct x86_cpu *cpu);
void tlb_mode_changed(struct x86_cpu *cpu);
/*
 * Entry `e` becomes that of linear page `page`, at page + delta on the host, with a write tag as well if it may be
 * written to and holds no translated code: true then. `meta`: TLB_META_*, and the guest-physical page.
 */
bool tlb_entry_fill(struct tr_vcpu *v, struct tlb_entry *e, uint64_t page, uint64_t delta, uint64_t meta, bool write);
void tlb_entry_drop(struct tlb_entry *e);
/*
 * tlb_saved.c. All entries that are not global are about to be dropped, for CR3 names another PCID: the last of them
 * are put by; those of PCID `pcid`, which is to be run now, are there again. What is put by and goes: of one PCID, or
 * of all with -1; of one page.
 */
void tlb_save(struct tr_vcpu *v, int pcid);
void tlb_restore(struct tr_vcpu *v, int pcid);
void tlb_saved_forget(struct tr_vcpu *v, int pcid);
void tlb_saved_forget_page(struct tr_vcpu *v, int pcid, uint64_t page);
void jc_flush(struct tr_vcpu *v);        /* empties itlb too */
void jc_flush_local(struct tr_vcpu *v);  /* what is not through global mappings, and all of user code */
void itlb_flush_user(struct tr_vcpu *v); /* where the quick tables know nothing of user code's pages any more */
/* Code is executed in linear page `linear`, a piece of one of 2^page_shift bytes: INVLPG of it concerns code. */
void note_code_at(struct tr_vcpu *v, uint64_t linear, unsigned page_shift);
/*
 * No virtual CPU may write page `gpa`, which code[] says is translated, unseen any more, but one that is in the middle
 * of a store already. False: there may be such a one. Not in translated code.
 */
bool tlb_protect(struct tr_engine *eng, uint64_t gpa);
/* `e` is about to get a write tag, of RAM page number `page`; all such entries, or those that are not global, are gone.
 */
void tlb_writes_add(struct tr_vcpu *v, const struct tlb_entry *e, uint64_t page, bool global);
void tlb_writes_forget(struct tr_vcpu *v);
void tlb_writes_forget_local(struct tr_vcpu *v);

/* Flags between the two forms that C sees. */
static inline void flags_to_cpu(struct tr_vcpu *v)
{
	uint64_t s = v->saved_flags;
	v->cpu.rflags = (v->cpu.rflags & ~(uint64_t)FL_ARITH) | (s >> 8 & 0xd5) | (s & 1) << 11;
}

static inline void flags_from_cpu(struct tr_vcpu *v)
{
	v->saved_flags = (uint16_t)((v->cpu.rflags & 0xd5) << 8 | (v->cpu.rflags >> 11 & 1));
}

static inline void set_rip(struct tr_vcpu *v, uint16_t off)
{
	uint64_t linear = v->vpage + off;
	v->cpu.rip = (v->key & KEY_MODE) == MODE_64 ? linear : (uint32_t)(linear - v->cpu.seg[SEG_CS].base);
}

static inline uint64_t linear_rip(const struct x86_cpu *cpu)
{
	return x86_code64(cpu) ? cpu->rip : (uint32_t)(cpu->rip + cpu->seg[SEG_CS].base);
}

static inline void poll_set(struct tr_vcpu *v)
{
	atomic_store(&v->run_on, 0);
	atomic_store(&v->return_mask, 0);
}

/* Nobody asks any more. The other way round: return_mask is never there alone. */
static inline void poll_clear(struct tr_vcpu *v)
{
	atomic_store(&v->return_mask, RETURN_MASK);
	atomic_store(&v->run_on, QUICK_MASK);
}

/*
 * Of user code: who has many does better translated (direct.h). Not those that come soon after another: they are of a
 * burst, and would stop nobody (direct_burst.c).
 */
static inline void count_fault(struct tr_vcpu *v)
{
	struct direct *d = &v->direct;
	if (v->cpu.cpl != 3 || v->cpu.exc.vector != X86_PF)
		return;
	uint64_t before = d->event;
	d->all_faults++;
	d->event = __builtin_ia32_rdtsc();
	d->made_by_user.page_faults += d->event - before > d->quiet;
}

/* After poll_set by another thread: what runs directly does not look. */
static inline void direct_kick(struct tr_vcpu *v)
{
	if (unlikely(atomic_load(&v->direct.running)))
		direct_kick_slowly(v);
}

/* An interrupt or NMI that the monitor waits to inject can be taken now, or after the next instruction. */
static inline bool window_open(const struct tr_vcpu *v)
{
	return (v->window && (v->cpu.rflags & FL_IF)) || (v->nmi_window && !v->cpu.nmi_blocked);
}

static inline bool poll_wanted(const struct tr_vcpu *v)
{
	return !atomic_load_explicit(&v->run_on, memory_order_relaxed);
}

/* The virtual CPU whose thread this is, or NULL. */
extern _Thread_local struct tr_vcpu *tr_current;

/* guest_memory's code_written: at once, or, from translated code and light helpers, when they have been left. */
void light_code_written(void *engine, uint64_t gpa, uint64_t len);

#endif
