/*
 * libdoppel: virtual machines inside an ordinary process, without hardware virtualization.
 *
 *	doppel_config *config = doppel_config_new();
 *	doppel_config_kernel(config, "vmlinuz");
 *	doppel_config_memory(config, 1 << 30);
 *	doppel_error error;
 *	doppel_vm *vm = doppel_vm_create(config, &error);
 *	doppel_config_free(config);
 *	if (!vm)
 *		fprintf(stderr, "%s\n", error.text);
 *	else
 *		doppel_vm_run(vm, NULL), doppel_vm_destroy(vm);
 *
 * Who owns what. What a function named ..._new or ..._create returns is the caller's, and goes back by the ..._free or
 * ..._destroy of the same type. Strings passed in are copied. Strings passed out belong to the library: those of a VM
 * live as long as the VM. A config can be used for several VMs and freed as soon as they have been created.
 *
 * Threads. A config belongs to one thread at a time. doppel_vm_stop, _pause, _resume, _reset, _balloon, _memory, _stats
 * and _show may be called on a VM from any thread while doppel_vm_run runs on another; doppel_vm_destroy only after it
 * has returned. Several VMs may run in one process. Nothing in the library ends the process for what a guest or a user
 * did.
 *
 * Signals. From the first doppel_vm_create on, SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGTRAP come to the library first,
 * which hands on those that are not a guest's; SIGXFSZ is ignored, unless the program handles it.
 */
#ifndef DOPPEL_DOPPEL_H
#define DOPPEL_DOPPEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DOPPEL_API __attribute__((visibility("default")))

typedef struct doppel_config doppel_config;
typedef struct doppel_vm doppel_vm;

/* Why a call failed: one line, without a newline at its end, that names the thing and the fix. */
typedef struct doppel_error {
	char text[512];
} doppel_error;

/* "0.1.0" */
DOPPEL_API const char *doppel_version(void);

/* What the library itself says on standard error; the default is DOPPEL_LOG_WARN. For the whole process. */
typedef enum doppel_log_level { DOPPEL_LOG_ERROR, DOPPEL_LOG_WARN, DOPPEL_LOG_INFO, DOPPEL_LOG_DEBUG } doppel_log_level;
DOPPEL_API void doppel_log(doppel_log_level most);

/*
 * What a VM is to be. Nothing is checked before doppel_vm_create. NULL for a string means the default. A new config
 * has: no kernel, 1 GiB of memory, 1 CPU, engine "auto", console "stdio", network "user".
 */
DOPPEL_API doppel_config *doppel_config_new(void); /* NULL: out of memory */
DOPPEL_API void doppel_config_free(doppel_config *config);
DOPPEL_API void doppel_config_name(doppel_config *config, const char *name); /* default "doppel" */
DOPPEL_API void doppel_config_kernel(doppel_config *config, const char *path);
DOPPEL_API void doppel_config_initrd(doppel_config *config, const char *path);
/*
 * The kernel's command line. Unless a word of it says console=, the console is put in front: console=ttyS0 (or hvc0,
 * when the virtio console is the only one or is on stdio). console=null means none.
 */
DOPPEL_API void doppel_config_append(doppel_config *config, const char *command_line);
DOPPEL_API void doppel_config_memory(doppel_config *config, uint64_t bytes);
DOPPEL_API void doppel_config_cpus(doppel_config *config, unsigned cpus);
/* The host's CPU time that all the VM's CPUs together may take, in percent of one host CPU; 0, the default: any. */
DOPPEL_API void doppel_config_cpu_limit(doppel_config *config, unsigned percent);
/* "auto" or "translate". */
DOPPEL_API void doppel_config_engine(doppel_config *config, const char *engine);
/* "stdio" (raw terminal; keys start with Ctrl-A), "file=PATH", "pty", "unix=PATH" or "none". */
DOPPEL_API void doppel_config_console(doppel_config *config, const char *console);
/* Adds a virtio console (hvc0 in Linux) that leads to such a place. Only one of the two can be on stdio. Default: none.
 */
DOPPEL_API void doppel_config_virtio_console(doppel_config *config, const char *console);
/*
 * What the guest is offered of KVM's paravirtual interface: "all" (the default), "none" (it finds no hypervisor), or
 * some of "clock,delay,steal,eoi,ipi,tlb,lock" (doppel(1)).
 */
DOPPEL_API void doppel_config_pv(doppel_config *config, const char *list);
/* Bytes of translated code to keep, 1 MiB to 1 GiB; 0: the engine's default. */
DOPPEL_API void doppel_config_code_cache(doppel_config *config, uint64_t bytes);
/* Comma-separated switches of the engine, for debugging it (docs/translator.md). */
DOPPEL_API void doppel_config_debug(doppel_config *config, const char *switches);
/* Sample where the guest's code spends its time, at the cost of a thousand signals a second and CPU. */
DOPPEL_API void doppel_config_profile(doppel_config *config, bool profile);
/* Names of the guest's code for the profile and for what those switches print: System.map, a copy of /proc/kallsyms, or
 * vmlinux. */
DOPPEL_API void doppel_config_symbols(doppel_config *config, const char *path);

/* Flags of a disk. SNAPSHOT: writes are kept aside and forgotten at the end. DIRECT: past the host's cache. */
enum { DOPPEL_DISK_READONLY = 1, DOPPEL_DISK_SNAPSHOT = 2, DOPPEL_DISK_DIRECT = 4 };
/* Adds a raw image file as the next virtio block device (vda, vdb, ...). */
DOPPEL_API void doppel_config_disk(doppel_config *config, const char *path, unsigned flags);
/* The same with all that can be said of a disk; what is 0 has its default. */
typedef struct doppel_disk {
	/* An image, a block device of the host, or a server: "nbd://HOST[:PORT]/EXPORT",
	 * "nbd+unix:///EXPORT?socket=PATH".
	 */
	const char *path;
	const char *format; /* "raw" or "qcow2" (served by Debian's qemu-nbd); NULL: by name and contents */
	unsigned flags;
	unsigned block_size; /* what the guest is told: 512 or 4096; 0: as small as the image allows */
	uint64_t iops, bps;  /* caps on requests and bytes a second */
} doppel_disk;
/* `size` is sizeof(doppel_disk) as the caller knows it: later versions add fields at the end. */
DOPPEL_API void doppel_config_add_disk(doppel_config *config, const doppel_disk *disk, size_t size);

/*
 * Adds a network device, as doppel(1)'s --net does: "user[,hostfwd=...][,mac=...]...", "tap=INTERFACE[,...]", or
 * "none", which stands alone and leaves the VM without one. Given none at all, a VM has "user".
 */
DOPPEL_API void doppel_config_net(doppel_config *config, const char *net);

enum { DOPPEL_SHARE_READONLY = 1 };
/*
 * Shares a folder, as a virtio file system ("mount -t virtiofs TAG /mnt" in a Linux guest) that the guest cannot get
 * out of. tag: up to 36 bytes; NULL: "share" for the first one, then "share2", "share3", ...
 */
DOPPEL_API void doppel_config_share(doppel_config *config, const char *path, const char *tag, unsigned flags);

/*
 * A socket device between the guest's AF_VSOCK and Unix sockets of the host: a program of the host's connects to `path`
 * and says "CONNECT PORT\n", and reads "OK ...\n" once the guest has taken it; one of the guest's that connects to PORT
 * of CID 2 gets the socket `path`_PORT. cid: the guest's address, 3 or more. NULL for path: no such device.
 */
DOPPEL_API void doppel_config_vsock(doppel_config *config, const char *path, unsigned cid);
/*
 * Whether the VM has a balloon, by which memory that the guest has free goes back to the host, and how many bytes it is
 * to take from the guest at first. A new config has one that takes nothing.
 */
DOPPEL_API void doppel_config_balloon(doppel_config *config, bool balloon, uint64_t bytes);

/*
 * Flags of a VM. NO_REBOOT: a reboot ends it. DEBUG_EXIT: a write of v to port 0xf4 ends it with status (v << 1) | 1.
 * STOP_ON_PANIC: so does a panic of its kernel, told through the device pvpanic, unless a crash kernel takes over.
 * STOP_ON_SIGNALS: doppel_vm_stop_on_signals from the beginning of doppel_vm_create on, so that names that it has made
 * by then (sockets, files) go again: the VM is created, and ends as soon as it is run.
 */
enum { DOPPEL_NO_REBOOT = 1, DOPPEL_DEBUG_EXIT = 2, DOPPEL_STOP_ON_PANIC = 4, DOPPEL_STOP_ON_SIGNALS = 8 };
DOPPEL_API void doppel_config_flags(doppel_config *config, unsigned flags);

/* Builds the machine and loads the kernel; nothing runs yet. NULL: `error` (which may be NULL) says why. */
DOPPEL_API doppel_vm *doppel_vm_create(const doppel_config *config, doppel_error *error);
/* Accepts NULL. The VM must not be running. Puts the terminal back as it was. */
DOPPEL_API void doppel_vm_destroy(doppel_vm *vm);

/* Why a VM ended. */
typedef enum doppel_end_reason {
	DOPPEL_END_FAILED,     /* the host could not go on (no thread, no memory); doppel_vm_report says why */
	DOPPEL_END_POWER_OFF,  /* by the guest */
	DOPPEL_END_REBOOT,     /* by the guest, under DOPPEL_NO_REBOOT */
	DOPPEL_END_CRASH,      /* the machine cannot go on (triple fault); doppel_vm_report shows the processor */
	DOPPEL_END_DEBUG_EXIT, /* by the guest, through port 0xf4 */
	DOPPEL_END_QUIT,       /* by a key on the console */
	DOPPEL_END_STOPPED,    /* by doppel_vm_stop */
	DOPPEL_END_SIGNAL,     /* by a signal; see doppel_vm_stop_on_signals */
	DOPPEL_END_PANIC,      /* by the guest, under DOPPEL_STOP_ON_PANIC */
} doppel_end_reason;

typedef struct doppel_end {
	doppel_end_reason reason;
	/* What doppel(1) exits with: 0 power-off, reboot, quit, stop; 2 failed; 3 crash; 4 panic; 128 + signal;
	 * debug-exit's. */
	int status;
	int signal; /* of DOPPEL_END_SIGNAL */
} doppel_end;

/* What a guest did that one may want to know. */
typedef enum doppel_event {
	DOPPEL_EVENT_PANIC,         /* its kernel panicked; told once until a reboot */
	DOPPEL_EVENT_PANIC_HANDLED, /* the same, and a crash kernel of the guest's own takes over */
	DOPPEL_EVENT_REBOOT,        /* it reboots, or would under DOPPEL_NO_REBOOT */
} doppel_event;
/* Before doppel_vm_run. `event` is called by the thread in doppel_vm_run, which the guest need not wait for. */
DOPPEL_API void doppel_vm_on_event(doppel_vm *vm, void (*event)(void *opaque, doppel_event event), void *opaque);

/*
 * Runs the VM on threads of its own until it ends; the caller waits meanwhile. `end` (which may be NULL) says why it
 * did. Returns end->status. A VM runs once.
 *
 * Where the host lets it, user code that computes runs in processes that those threads trace. So a program that has
 * children of its own waits for each by its number, never for any (waitpid(-1)), and sets SA_NOCLDSTOP if it handles
 * SIGCHLD; or it leaves them out: doppel_config_debug(config, "no-direct").
 */
DOPPEL_API int doppel_vm_run(doppel_vm *vm, doppel_end *end);
/* Makes doppel_vm_run return soon; before it was called, makes it return at once. */
DOPPEL_API void doppel_vm_stop(doppel_vm *vm);
/* SIGINT, SIGTERM and SIGHUP, sent to the process, end this VM until it is destroyed. False: another VM has them. */
DOPPEL_API bool doppel_vm_stop_on_signals(doppel_vm *vm);
/* Time stands still for the guest between the two; returns when every CPU has stopped. Calls nest. */
DOPPEL_API void doppel_vm_pause(doppel_vm *vm);
DOPPEL_API void doppel_vm_resume(doppel_vm *vm);
/* As the reset button does; the kernel is loaded anew. */
DOPPEL_API void doppel_vm_reset(doppel_vm *vm);

/*
 * Takes `bytes` of its memory from the guest, as far as its driver can give them, and gives others back. False: the VM
 * has no balloon, or that is more than its memory.
 */
DOPPEL_API bool doppel_vm_balloon(doppel_vm *vm, uint64_t bytes);
/* In bytes. What the guest says of itself is 0 as long as it has not, and may be a call old. */
typedef struct doppel_memory {
	uint64_t target, ballooned; /* what is to be taken from the guest, and what is */
	uint64_t returned;          /* given back to the host since the start, ballooned or free; grows only */
	uint64_t guest_free, guest_available, guest_total;
} doppel_memory;
/* `size` as for doppel_vm_stats. False: the VM has no balloon. */
DOPPEL_API bool doppel_vm_memory(doppel_vm *vm, doppel_memory *memory, size_t size);

/* What was chosen: "engine translate, CPU ..., 1 GiB of memory, 2 CPUs". */
DOPPEL_API const char *doppel_vm_description(doppel_vm *vm);
/* After the VM has ended: why, in full, for people: several lines; "" when there is nothing to say. */
DOPPEL_API const char *doppel_vm_report(doppel_vm *vm);

/*
 * How the VM is right now, for people: its CPUs, memory, exits, devices; several lines, to be freed by free(). NULL:
 * out of memory. Any thread, until the VM has ended; it is paused meanwhile.
 */
DOPPEL_API char *doppel_vm_show(doppel_vm *vm);

/*
 * The sandbox, which is the process's and cannot be left again: system calls, privileges and what may be opened are cut
 * down to what the VMs need that have been created by then; no VM can be created afterwards. What else the program does
 * must be done before, or be among what is kept (docs/confinement.md): a call that is not ends the process with a line
 * on standard error and the status 159. Threads that the program itself has started by then are bound by the filter of
 * system calls alone. False: `error` (which may be NULL) says why, and the process should end.
 */
DOPPEL_API bool doppel_confine(doppel_error *error);
/* "sandbox on", "sandbox off", or "sandbox on, but ..." with what the host lacks. */
DOPPEL_API const char *doppel_confinement(void);
/*
 * First in main() of a program that does nothing else: standard input, output and error are opened on /dev/null where
 * they are closed, and doppel_confine closes all other descriptors that were inherited.
 */
DOPPEL_API void doppel_close_inherited(void);

/* Counters since the VM was created, summed over its CPUs. Times in nanoseconds. */
typedef struct doppel_stats {
	uint64_t time_translated, time_translator, time_monitor, time_halted;
	uint64_t exits_interrupted, exits_io, exits_mmio, exits_msr, exits_cr8, exits_halt;
	uint64_t interrupts; /* delivered, NMIs too */
	uint64_t blocks, guest_bytes, host_bytes, cache_flushes, invalidations;
	uint64_t tlb_misses, tlb_flushes, dispatches, helper_calls, single_steps;
	uint64_t time_user, time_kernel; /* the parts of time_translated; only with doppel_config_profile */
	uint64_t tlb_misses_user_read, tlb_misses_user_write, tlb_misses_kernel_read, tlb_misses_kernel_write;
	uint64_t window_faults, window_shown, window_hidden,
		window_given_up; /* pages that the host's MMU checks for user code */
	uint64_t time_direct, direct_stops, direct_calls, direct_faults, direct_exceptions, direct_kicks,
		direct_refused, direct_bursts; /* user code run as it is, in processes of its own */
	uint64_t at_once;                      /* writes to the local APIC that were no exits */
} doppel_stats;
/* `size` is sizeof(doppel_stats) as the caller knows it: later versions add fields at the end. */
DOPPEL_API void doppel_vm_stats(doppel_vm *vm, doppel_stats *stats, size_t size);
/*
 * The same as JSON, with those of each CPU beside the sums, and with doppel_config_profile the hottest of the guest's
 * functions, pages and blocks. Valid until the next call on this VM, which must not be made at the same time. "" when
 * there is no memory for it.
 */
DOPPEL_API const char *doppel_vm_stats_json(doppel_vm *vm);

#ifdef __cplusplus
}
#endif

#endif
