/*
 * A virtual machine's life: create, run, pause, reset, save, load, destroy. It owns guest memory, the bus, the clock,
 * the engine, the processors, the board and the console.
 */
#ifndef DOPPEL_VM_VM_H
#define DOPPEL_VM_VM_H

#include "engine/engine.h"
#include "machine/pc.h"

#define VM_CPUS_MAX 64
#define VM_MEMORY_MIN MiB(4)
#define VM_MEMORY_DEFAULT GiB(1)

/* Everything is borrowed until vm_create returns. NULL means the default, as does 0 for code_cache. */
struct vm_config {
	const char *name, *kernel, *initrd;
	const char *append; /* cmdline.c says what becomes of it */
	uint64_t memory;
	unsigned cpus;
	unsigned cpu_limit; /* percent of one host CPU; 0: none */
	struct pc_disk disk[PC_DISKS];
	unsigned disks;
	/*
	 * "user", "tap=INTERFACE" or "none", each with options after commas (doppel(1)). `nets` 0: one, "user".
	 */
	const char *net[PC_NETS];
	unsigned nets;
	const char *vsock; /* NULL: none */
	uint32_t vsock_cid;
	bool no_balloon;
	uint64_t balloon; /* bytes to take from the guest at first */
	struct pc_share share[PC_SHARES];
	unsigned shares;
	const char *engine;         /* "auto" or an engine's name */
	const char *console;        /* "stdio", "file=PATH", "pty", "unix=PATH", "none" */
	const char *virtio_console; /* the same; NULL: the machine has none */
	const char *pv;             /* the paravirtual interface: "all", "none", or "clock,eoi" and the like */
	uint64_t code_cache;
	const char *debug;
	const char *symbols;
	bool profile;
	bool no_reboot, debug_exit, stop_on_panic;
};

enum vm_end_reason {
	VM_END_NONE,
	VM_END_FAILED,
	VM_END_POWER_OFF,
	VM_END_REBOOT,
	VM_END_CRASH,
	VM_END_DEBUG_EXIT,
	VM_END_QUIT,
	VM_END_STOPPED,
	VM_END_SIGNAL,
	VM_END_PANIC
};

struct vm_end {
	enum vm_end_reason reason;
	uint32_t value; /* what debug-exit was given; the signal's number */
};

struct vm_stats {
	struct engine_stats engine; /* time_monitor: all that is neither translated code, translator nor idle */
	uint64_t interrupts, time_halted;
};

struct vm;

/* Builds the machine and loads the kernel; nothing runs. NULL: err says why, for the user. */
struct vm *vm_create(const struct vm_config *config, struct error *err);
/* The same with an engine of the caller's (tests). */
struct vm *vm_create_with(const struct vm_config *config, const struct engine_ops *engine, struct error *err);
/* The VM is not running. NULL is accepted. */
void vm_destroy(struct vm *vm);

/* What the guest did that somebody may want to know; told by the thread in vm_run, with no lock held. */
enum vm_event { VM_EVENT_PANIC, VM_EVENT_PANIC_HANDLED /* a crash kernel takes over */, VM_EVENT_REBOOT };
void vm_on_event(struct vm *vm, void (*event)(void *opaque, enum vm_event event), void *opaque);

/* Starts the processors' threads and waits until the VM has ended and they are gone. Once in a VM's life. */
struct vm_end vm_run(struct vm *vm);
/* Ends the VM from any thread; the first reason given is the one that counts. */
void vm_stop(struct vm *vm, enum vm_end_reason reason, uint32_t value);
/* Any thread but a processor's own. When vm_pause returns no processor runs and time stands still. Calls nest. */
void vm_pause(struct vm *vm);
void vm_resume(struct vm *vm);
/* The reset button. Any thread; it happens soon. */
void vm_reset(struct vm *vm);

/*
 * Saves or loads every part: what the machine is, memory, processors, devices. The VM is paused or has not run yet. A
 * stream saved by a machine of another shape (memory, CPUs, CPU features) sets s->failed and changes nothing. One with
 * a state that cannot be fails too, but where memory has been loaded already: of use is the machine then only after a
 * reset. s->why says what was wrong: "the saved state has ...".
 */
void vm_state(struct vm *vm, struct state_stream *s);

/* As pc.h's pc_balloon_...; any thread. */
bool vm_balloon(struct vm *vm, uint64_t bytes);
bool vm_balloon_info(struct vm *vm, struct balloon_info *info);

void vm_stats(struct vm *vm, struct vm_stats *stats);
/* All counters, those of each processor and what was hot, as JSON; the caller frees it. NULL: out of memory. */
char *vm_stats_json(struct vm *vm);
/* Any thread; not after vm_destroy. "engine translate, CPU AMD EPYC (…), 1 GiB of memory, 2 CPUs". */
const char *vm_description(const struct vm *vm);
/* How the VM is right now, for people: many lines, to be freed; NULL: out of memory. Pauses it meanwhile. Any thread.
 */
char *vm_show(struct vm *vm);
/* Why the VM crashed or failed, many lines; "" otherwise. After vm_run has returned. */
const char *vm_report(const struct vm *vm);

#endif
