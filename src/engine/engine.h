/*
 * The seam: what runs a guest's instructions. Nothing above it knows which engine ran. An engine knows the processor's
 * state and guest memory, never a device: what it cannot do itself comes back as a typed exit.
 */
#ifndef DOPPEL_ENGINE_ENGINE_H
#define DOPPEL_ENGINE_ENGINE_H

#include "arch/x86/cpuid.h"
#include "arch/x86/state.h"
#include "bus/memory.h"

struct engine;
struct engine_vcpu;

struct engine_config {
	struct guest_memory *mem;
	const struct x86_cpuid_model *model;
	unsigned cpus;
	uint64_t code_cache; /* bytes of translated code kept; 0: the engine's default */
	const char
		*debug; /* comma-separated switches that turn mechanisms off, or NULL (docs/translator.md lists them) */
	const char *symbols; /* a file with the names of the guest's code, or NULL */
	bool profile;        /* sample what code the guest spends its time in: time_user, time_kernel, ops->hot */
	/*
	 * What of the monitor's work can be done at once, without an end of run(): an engine may ask so of an exit that
	 * is a write, on the vcpu's thread, before it makes it one. True: it is done (exit->fault: refused). NULL:
	 * nothing is.
	 */
	bool (*at_once)(void *opaque, unsigned vcpu, struct x86_exit *exit);
	void *opaque;
};

enum tlb_miss_kind {
	TLB_MISS_USER_READ,
	TLB_MISS_USER_WRITE,
	TLB_MISS_KERNEL_READ,
	TLB_MISS_KERNEL_WRITE,
	TLB_MISS_KINDS
};

/* Counters, summed over CPUs where they are the engine's. Times in ns. */
struct engine_stats {
	uint64_t time_translated, time_translator, time_monitor;
	uint64_t exits[EXIT_KINDS];
	uint64_t blocks, guest_bytes, host_bytes, flushes, invalidations;
	uint64_t tlb_misses, tlb_flushes, dispatches, helper_calls, single_steps;
	uint64_t tlb_restored; /* entries that came back with their address space */
	uint64_t at_once;      /* writes that were no exits, for the monitor did them at once */
	uint64_t tlb_miss[TLB_MISS_KINDS];
	uint64_t window_faults, window_shown, window_hidden,
		window_given_up;         /* pages of windows (translate/window.h) */
	uint64_t time_user, time_kernel; /* the parts of time_translated, by samples; 0 without them */
	/* User code run directly (translate/direct.h): how long, stops, and why. */
	uint64_t time_direct, direct_stops, direct_calls, direct_faults, direct_exceptions, direct_kicks,
		direct_refused, /* address spaces that it did not pay for */
		direct_bursts;  /* of page faults and system calls, for which it was not done */
};

/* Where samples were taken. */
enum engine_hot_kind { HOT_FUNCTIONS, HOT_PAGES, HOT_BLOCKS };

struct engine_hot {
	uint64_t linear, gpa; /* of the first sample; of the page or block */
	uint64_t samples;
	bool user;
	char name[128]; /* of the guest's function there, with its offset in it for a block; "" when it is not known */
};

struct engine_ops {
	const char *name;
	/* NULL: err says why (a host without what the engine needs). */
	struct engine *(*create)(const struct engine_config *config, struct error *err);
	void (*destroy)(struct engine *engine); /* after all its vcpus */
	/* The engine allocates the state; *cpu lives as long as the vcpu. It has been reset by x86_cpu_reset(cpu,
	 * false). */
	struct engine_vcpu *(*vcpu_create)(struct engine *engine, unsigned index, struct x86_cpu **cpu,
					   struct error *err);
	void (*vcpu_destroy)(struct engine_vcpu *vcpu);
	/* On the vcpu's own thread, before the first run and after the last. */
	bool (*thread_enter)(struct engine_vcpu *vcpu);
	void (*thread_leave)(struct engine_vcpu *vcpu);
	/*
	 * Runs guest code until the monitor is needed; cpu->exit says for what, and is also returned. Before it is
	 * called again a read exit must be completed (see struct x86_exit). Exceptions of the guest are delivered
	 * inside.
	 */
	enum x86_exit_kind (*run)(struct engine_vcpu *vcpu);
	/* Any thread: makes run() return soon with EXIT_INTERRUPTED, or at once when next called. May come for no
	 * reason. */
	void (*kick)(struct engine_vcpu *vcpu);
	/*
	 * On the vcpu's thread between runs. `interrupt` injects `vector` (x86_can_interrupt was true); `want_window`
	 * asks run() to return EXIT_INTERRUPTED as soon as x86_can_interrupt turns true, or an NMI is blocked no more;
	 * neither must be the case now.
	 */
	enum verdict (*interrupt)(struct engine_vcpu *vcpu, uint8_t vector);
	enum verdict (*nmi)(struct engine_vcpu *vcpu);
	void (*want_window)(struct engine_vcpu *vcpu, bool interrupt, bool nmi);
	/* Any thread: how long code of the vcpu has run on other threads than its own, in ns. NULL: none ever does. */
	uint64_t (*time_elsewhere)(const struct engine_vcpu *vcpu);
	void (*stats)(struct engine *engine, struct engine_stats *stats);
	/* The part of one vcpu; what belongs to all of them is 0. NULL: not counted. */
	void (*vcpu_stats)(struct engine_vcpu *vcpu, struct engine_stats *stats);
	/* Fills `list` with up to `most` of what had most samples, of `*total`; returns how many. NULL: no samples. */
	size_t (*hot)(struct engine *engine, enum engine_hot_kind kind, struct engine_hot *list, size_t most,
		      uint64_t *total);
	/* Multi-line text for a crash report: last blocks of this vcpu and the like. Any amount up to `size`. */
	void (*describe)(struct engine_vcpu *vcpu, char *buf, size_t size);
};

extern const struct engine_ops engine_translate;

#endif
