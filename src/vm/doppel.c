/* libdoppel's public functions (doppel/doppel.h), over struct vm. */
#include "doppel/doppel.h"

#include "dev/virtio_balloon.h"
#include "host/confine.h"
#include "host/signals.h"
#include "vm/vm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef DOPPEL_VERSION
#define DOPPEL_VERSION "unknown"
#endif

struct doppel_config {
	struct vm_config vm; /* its strings are the config's own */
	bool no_memory;      /* a setter could not copy its string */
	bool too_many_disks, too_many_nets, too_many_shares;
	bool stop_on_signals;
};

struct doppel_vm {
	struct vm *_Atomic vm; /* NULL while it is being created */
	_Atomic int signal;    /* that has come, or 0 */
	void (*event)(void *opaque, doppel_event event);
	void *event_opaque;
	bool on_signals;
	char *stats; /* the last doppel_vm_stats_json */
};

const char *doppel_version(void)
{
	return DOPPEL_VERSION;
}

void doppel_log(doppel_log_level most)
{
	log_set_level((enum log_level)most);
}

doppel_config *doppel_config_new(void)
{
	doppel_config *config = calloc(1, sizeof(*config));

	if (config) {
		config->vm.memory = VM_MEMORY_DEFAULT;
		config->vm.cpus = 1;
	}
	return config;
}

void doppel_config_free(doppel_config *config)
{
	if (!config)
		return;
	const char *owned[] = {config->vm.name,    config->vm.kernel,  config->vm.initrd,         config->vm.append,
			       config->vm.engine,  config->vm.console, config->vm.virtio_console, config->vm.debug,
			       config->vm.symbols, config->vm.vsock};
	for (size_t i = 0; i < ARRAY_LEN(owned); i++)
		free((void *)(uintptr_t)owned[i]);
	for (unsigned i = 0; i < config->vm.disks; i++) {
		free((void *)(uintptr_t)config->vm.disk[i].path);
		free((void *)(uintptr_t)config->vm.disk[i].format);
	}
	for (unsigned i = 0; i < config->vm.nets; i++)
		free((void *)(uintptr_t)config->vm.net[i]);
	for (unsigned i = 0; i < config->vm.shares; i++) {
		free((void *)(uintptr_t)config->vm.share[i].path);
		free((void *)(uintptr_t)config->vm.share[i].tag);
	}
	free((void *)(uintptr_t)config->vm.pv);
	free(config);
}

/* Replaces a string of the config by a copy of `value`; what cannot be copied is told by doppel_vm_create. */
static void set_string(doppel_config *config, const char **field, const char *value)
{
	free((void *)(uintptr_t)*field);
	*field = value ? strdup(value) : NULL;
	if (value && !*field)
		config->no_memory = true;
}

void doppel_config_name(doppel_config *config, const char *name)
{
	set_string(config, &config->vm.name, name);
}

void doppel_config_kernel(doppel_config *config, const char *path)
{
	set_string(config, &config->vm.kernel, path);
}

void doppel_config_initrd(doppel_config *config, const char *path)
{
	set_string(config, &config->vm.initrd, path);
}

void doppel_config_append(doppel_config *config, const char *command_line)
{
	set_string(config, &config->vm.append, command_line);
}

void doppel_config_memory(doppel_config *config, uint64_t bytes)
{
	config->vm.memory = bytes;
}

void doppel_config_cpus(doppel_config *config, unsigned cpus)
{
	config->vm.cpus = cpus;
}

void doppel_config_cpu_limit(doppel_config *config, unsigned percent)
{
	config->vm.cpu_limit = percent;
}

void doppel_config_engine(doppel_config *config, const char *engine)
{
	set_string(config, &config->vm.engine, engine);
}

void doppel_config_console(doppel_config *config, const char *console)
{
	set_string(config, &config->vm.console, console);
}

void doppel_config_virtio_console(doppel_config *config, const char *console)
{
	set_string(config, &config->vm.virtio_console, console);
}

void doppel_config_pv(doppel_config *config, const char *list)
{
	set_string(config, &config->vm.pv, list);
}

void doppel_config_code_cache(doppel_config *config, uint64_t bytes)
{
	config->vm.code_cache = bytes;
}

void doppel_config_debug(doppel_config *config, const char *switches)
{
	set_string(config, &config->vm.debug, switches);
}

void doppel_config_symbols(doppel_config *config, const char *path)
{
	set_string(config, &config->vm.symbols, path);
}

void doppel_config_profile(doppel_config *config, bool profile)
{
	config->vm.profile = profile;
}

void doppel_config_disk(doppel_config *config, const char *path, unsigned flags)
{
	const doppel_disk disk = {.path = path, .flags = flags};

	doppel_config_add_disk(config, &disk, sizeof(disk));
}

void doppel_config_add_disk(doppel_config *config, const doppel_disk *disk, size_t size)
{
	doppel_disk d = {0};

	memcpy(&d, disk, MIN(size, sizeof(d)));
	if (config->vm.disks == PC_DISKS) {
		config->too_many_disks = true;
		return;
	}
	struct pc_disk *to = &config->vm.disk[config->vm.disks++];
	set_string(config, &to->path, d.path);
	set_string(config, &to->format, d.format);
	to->readonly = d.flags & DOPPEL_DISK_READONLY;
	to->snapshot = d.flags & DOPPEL_DISK_SNAPSHOT;
	to->direct = d.flags & DOPPEL_DISK_DIRECT;
	to->block_size = d.block_size;
	to->iops = d.iops;
	to->bps = d.bps;
}

void doppel_config_net(doppel_config *config, const char *net)
{
	if (config->vm.nets == PC_NETS) {
		config->too_many_nets = true;
		return;
	}
	set_string(config, &config->vm.net[config->vm.nets++], net);
}

void doppel_config_share(doppel_config *config, const char *path, const char *tag, unsigned flags)
{
	char name[16];

	if (config->vm.shares == PC_SHARES) {
		config->too_many_shares = true;
		return;
	}
	struct pc_share *share = &config->vm.share[config->vm.shares++];
	snprintf(name, sizeof(name), config->vm.shares > 1 ? "share%u" : "share", config->vm.shares);
	set_string(config, &share->path, path);
	set_string(config, &share->tag, tag ? tag : name);
	share->readonly = flags & DOPPEL_SHARE_READONLY;
}

void doppel_config_vsock(doppel_config *config, const char *path, unsigned cid)
{
	set_string(config, &config->vm.vsock, path);
	config->vm.vsock_cid = cid;
}

void doppel_config_balloon(doppel_config *config, bool balloon, uint64_t bytes)
{
	config->vm.no_balloon = !balloon;
	config->vm.balloon = bytes;
}

void doppel_config_flags(doppel_config *config, unsigned flags)
{
	config->vm.no_reboot = flags & DOPPEL_NO_REBOOT;
	config->vm.debug_exit = flags & DOPPEL_DEBUG_EXIT;
	config->vm.stop_on_panic = flags & DOPPEL_STOP_ON_PANIC;
	config->stop_on_signals = flags & DOPPEL_STOP_ON_SIGNALS;
}

static bool create(doppel_vm *vm, const doppel_config *config, struct error *err)
{
	if (!vm || config->no_memory)
		return error_set(err, "out of memory");
	if (config->too_many_disks)
		return error_set(err, "too many disks: at most %u", PC_DISKS);
	if (config->too_many_nets)
		return error_set(err, "too many networks: at most %u", PC_NETS);
	if (config->too_many_shares)
		return error_set(err, "too many shares: at most %u", PC_SHARES);
	vm->vm = vm_create(&config->vm, err);
	return vm->vm;
}

static void tell(doppel_error *error, const struct error *err)
{
	if (error)
		memcpy(error->text, err->text, MIN(sizeof(error->text), sizeof(err->text)));
}

/* Whoever comes second, the signal or the VM, sees the other. */
static void stop_by_signal(doppel_vm *vm)
{
	struct vm *made = vm->vm;
	int signal = vm->signal;

	if (made && signal)
		vm_stop(made, VM_END_SIGNAL, (uint32_t)signal);
}

static void on_signal(void *opaque, int signal)
{
	doppel_vm *vm = opaque;

	vm->signal = signal;
	stop_by_signal(vm);
}

bool doppel_vm_stop_on_signals(doppel_vm *vm)
{
	vm->on_signals = vm->on_signals || host_signals_watch(on_signal, vm);
	return vm->on_signals;
}

doppel_vm *doppel_vm_create(const doppel_config *config, doppel_error *error)
{
	doppel_vm *vm = calloc(1, sizeof(*vm));
	struct error err = {""};

	if (vm && config->stop_on_signals)
		doppel_vm_stop_on_signals(vm);
	if (create(vm, config, &err)) {
		stop_by_signal(vm);
		return vm;
	}
	if (vm && vm->on_signals)
		host_signals_unwatch();
	free(vm);
	tell(error, &err);
	return NULL;
}

void doppel_vm_destroy(doppel_vm *vm)
{
	if (!vm)
		return;
	if (vm->on_signals)
		host_signals_unwatch();
	vm_destroy(vm->vm);
	free(vm->stats);
	free(vm);
}

bool doppel_confine(doppel_error *error)
{
	struct error err = {""};

	if (host_confine(&err))
		return true;
	tell(error, &err);
	return false;
}

const char *doppel_confinement(void)
{
	return host_confinement();
}

void doppel_close_inherited(void)
{
	host_inherited();
}

static doppel_end public_end(struct vm_end end)
{
	switch (end.reason) {
	case VM_END_POWER_OFF:
		return (doppel_end){DOPPEL_END_POWER_OFF, 0, 0};
	case VM_END_REBOOT:
		return (doppel_end){DOPPEL_END_REBOOT, 0, 0};
	case VM_END_CRASH:
		return (doppel_end){DOPPEL_END_CRASH, 3, 0};
	case VM_END_DEBUG_EXIT: /* QEMU's isa-debug-exit; the host keeps 8 bits */
		return (doppel_end){DOPPEL_END_DEBUG_EXIT, (int)((end.value << 1 | 1) & 0xff), 0};
	case VM_END_QUIT:
		return (doppel_end){DOPPEL_END_QUIT, 0, 0};
	case VM_END_STOPPED:
		return (doppel_end){DOPPEL_END_STOPPED, 0, 0};
	case VM_END_SIGNAL:
		return (doppel_end){DOPPEL_END_SIGNAL, 128 + (int)end.value, (int)end.value};
	case VM_END_PANIC:
		return (doppel_end){DOPPEL_END_PANIC, 4, 0};
	case VM_END_NONE:
	case VM_END_FAILED:
		break;
	}
	return (doppel_end){DOPPEL_END_FAILED, 2, 0};
}

static void on_event(void *opaque, enum vm_event event)
{
	static const doppel_event public[] = {
		[VM_EVENT_PANIC] = DOPPEL_EVENT_PANIC,
		[VM_EVENT_PANIC_HANDLED] = DOPPEL_EVENT_PANIC_HANDLED,
		[VM_EVENT_REBOOT] = DOPPEL_EVENT_REBOOT,
	};
	doppel_vm *vm = opaque;

	vm->event(vm->event_opaque, public[event]);
}

void doppel_vm_on_event(doppel_vm *vm, void (*event)(void *opaque, doppel_event event), void *opaque)
{
	vm->event = event;
	vm->event_opaque = opaque;
	vm_on_event(vm->vm, event ? on_event : NULL, vm);
}

int doppel_vm_run(doppel_vm *vm, doppel_end *end)
{
	doppel_end result = public_end(vm_run(vm->vm));

	if (end)
		*end = result;
	return result.status;
}

void doppel_vm_stop(doppel_vm *vm)
{
	vm_stop(vm->vm, VM_END_STOPPED, 0);
}

void doppel_vm_pause(doppel_vm *vm)
{
	vm_pause(vm->vm);
}

void doppel_vm_resume(doppel_vm *vm)
{
	vm_resume(vm->vm);
}

void doppel_vm_reset(doppel_vm *vm)
{
	vm_reset(vm->vm);
}

bool doppel_vm_balloon(doppel_vm *vm, uint64_t bytes)
{
	return vm_balloon(vm->vm, bytes);
}

bool doppel_vm_memory(doppel_vm *vm, doppel_memory *memory, size_t size)
{
	struct balloon_info info = {0};
	bool has = vm_balloon_info(vm->vm, &info);
	doppel_memory all = {
		.target = info.target,
		.ballooned = info.taken,
		.returned = info.returned,
		.guest_free = info.guest_free,
		.guest_available = info.guest_available,
		.guest_total = info.guest_total,
	};

	memcpy(memory, &all, MIN(size, sizeof(all)));
	return has;
}

const char *doppel_vm_description(doppel_vm *vm)
{
	return vm_description(vm->vm);
}

char *doppel_vm_show(doppel_vm *vm)
{
	return vm_show(vm->vm);
}

const char *doppel_vm_report(doppel_vm *vm)
{
	return vm_report(vm->vm);
}

void doppel_vm_stats(doppel_vm *vm, doppel_stats *stats, size_t size)
{
	struct vm_stats from;

	vm_stats(vm->vm, &from);
	const struct engine_stats *e = &from.engine;
	doppel_stats all = {
		.time_translated = e->time_translated,
		.time_translator = e->time_translator,
		.time_monitor = e->time_monitor,
		.time_halted = from.time_halted,
		.exits_interrupted = e->exits[EXIT_INTERRUPTED],
		.exits_io = e->exits[EXIT_IO],
		.exits_mmio = e->exits[EXIT_MMIO],
		.exits_msr = e->exits[EXIT_MSR],
		.exits_cr8 = e->exits[EXIT_CR8],
		.exits_halt = e->exits[EXIT_HLT],
		.interrupts = from.interrupts,
		.blocks = e->blocks,
		.guest_bytes = e->guest_bytes,
		.host_bytes = e->host_bytes,
		.cache_flushes = e->flushes,
		.invalidations = e->invalidations,
		.tlb_misses = e->tlb_misses,
		.tlb_flushes = e->tlb_flushes,
		.window_faults = e->window_faults,
		.window_shown = e->window_shown,
		.window_hidden = e->window_hidden,
		.window_given_up = e->window_given_up,
		.time_direct = e->time_direct,
		.direct_stops = e->direct_stops,
		.direct_calls = e->direct_calls,
		.direct_faults = e->direct_faults,
		.direct_exceptions = e->direct_exceptions,
		.direct_kicks = e->direct_kicks,
		.direct_refused = e->direct_refused,
		.direct_bursts = e->direct_bursts,
		.dispatches = e->dispatches,
		.helper_calls = e->helper_calls,
		.at_once = e->at_once,
		.single_steps = e->single_steps,
		.time_user = e->time_user,
		.time_kernel = e->time_kernel,
		.tlb_misses_user_read = e->tlb_miss[TLB_MISS_USER_READ],
		.tlb_misses_user_write = e->tlb_miss[TLB_MISS_USER_WRITE],
		.tlb_misses_kernel_read = e->tlb_miss[TLB_MISS_KERNEL_READ],
		.tlb_misses_kernel_write = e->tlb_miss[TLB_MISS_KERNEL_WRITE],
	};
	memcpy(stats, &all, MIN(size, sizeof(all)));
}

const char *doppel_vm_stats_json(doppel_vm *vm)
{
	free(vm->stats);
	vm->stats = vm_stats_json(vm->vm);
	return vm->stats ? vm->stats : "";
}
