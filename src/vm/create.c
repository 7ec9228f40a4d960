/* Making a VM: what the user asked for is checked, then every part is built from the bottom up. */
#include "host/host.h"
#include "vm/internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct engine_ops *const engines[] = {&engine_translate};

/* "auto" is the first: there is no other to be measured against yet. */
static const struct engine_ops *find_engine(const char *name, struct error *err)
{
	if (!name || !strcmp(name, "auto"))
		return engines[0];
	for (unsigned i = 0; i < ARRAY_LEN(engines); i++)
		if (!strcmp(name, engines[i]->name))
			return engines[i];
	error_set(err, "no engine '%s': there are auto and translate", name);
	return NULL;
}

static bool check_memory(uint64_t size, struct error *err)
{
	uint64_t host = host_memory_total();

	if (size < VM_MEMORY_MIN)
		return error_set(err,
				 "memory of %" PRIu64 " bytes is too little: give at least 4M (sizes take K, M or G)",
				 size);
	if (size % PAGE_SIZE)
		return error_set(err, "memory of %" PRIu64 " bytes is not a multiple of 4K: give a round size, as 512M",
				 size);
	if (host && size > host)
		return error_set(err, "memory of %" PRIu64 " MiB is more than this host's %" PRIu64 " MiB: give less",
				 size >> 20, host >> 20);
	return true;
}

static bool check_host(struct error *err)
{
	const char *lacks = x86_host_lacks(NULL);

	return !lacks ||
	       error_set(err,
			 "this host's processor has no %s: doppel needs one of the level x86-64-v2 with "
			 "XSAVE, as all are since about 2011 (for a virtual one, choose a CPU type that has it)",
			 lacks);
}

static bool check_cpus(unsigned cpus, struct error *err)
{
	if (cpus >= 1 && cpus <= VM_CPUS_MAX)
		return true;
	return error_set(err, "%u CPUs are not possible: give 1 to %u", cpus, VM_CPUS_MAX);
}

/* What the guest asks for, on the thread of the processor that did it. */
static void on_power_off(void *opaque)
{
	vm_stop(opaque, VM_END_POWER_OFF, 0);
}

void vm_guest_reset(void *opaque)
{
	struct vm *vm = opaque;

	vm_ask(vm, TODO_REBOOT);
	if (vm->no_reboot)
		vm_stop(vm, VM_END_REBOOT, 0);
	else
		vm_reset(vm);
}

static void on_debug_exit(void *opaque, uint32_t value)
{
	vm_stop(opaque, VM_END_DEBUG_EXIT, value);
}

static void on_kick(void *opaque, unsigned cpu)
{
	struct vm *vm = opaque;

	vcpu_request(&vm->vcpu[cpu], REQ_APIC);
}

static bool make_engine(struct vm *vm, const struct vm_config *config, struct error *err)
{
	struct engine_config engine = {
		.mem = &vm->mem,
		.model = &vm->model,
		.cpus = vm->cpus,
		.code_cache = config->code_cache,
		.debug = config->debug,
		.symbols = config->symbols,
		.profile = config->profile,
		.at_once = vcpu_exit_at_once,
		.opaque = vm,
	};

	vm->engine = vm->ops->create(&engine, err);
	if (!vm->engine)
		return false;
	for (unsigned i = 0; i < vm->cpus; i++)
		if (!vcpu_create(vm, i, err))
			return false;
	return true;
}

static bool make_board(struct vm *vm, const struct vm_config *config, struct error *err)
{
	char *cmdline = vm_command_line(config);
	struct pc_config pc = {
		.clock = vm->clock,
		.bus = &vm->bus,
		.mem = &vm->mem,
		.model = &vm->model,
		.cpus = vm->cpus,
		.cpu = vm->cpu,
		.kernel = config->kernel,
		.initrd = config->initrd,
		.cmdline = cmdline,
		.disks = config->disks,
		.shares = config->shares,
		.vsock = config->vsock,
		.vsock_cid = config->vsock_cid,
		.no_balloon = config->no_balloon,
		.balloon = config->balloon,
		.serial = vm_console_port(vm->console),
		.debug_exit = config->debug_exit,
		.power_off = on_power_off,
		.reset = vm_guest_reset,
		.debug_exited = on_debug_exit,
		.panicked = vm_panicked,
		.kick = on_kick,
		.polled_timer = vm_polled_timer,
		.opaque = vm,
	};

	struct vm_nets *nets = vm_nets_parse(config, &pc, err);

	memcpy(pc.disk, config->disk, sizeof(pc.disk));
	memcpy(pc.share, config->share, sizeof(pc.share));
	if (vm->virtio_console)
		pc.virtio = vm_console_port(vm->virtio_console);
	vm->pc = nets && cmdline ? pc_create(&pc, err) : NULL;
	if (vm->pc)
		vm_nets_describe(&pc, vm->networks, sizeof(vm->networks));
	free(nets);
	free(cmdline);
	if (!vm->pc)
		return cmdline ? false : error_set(err, "out of memory");
	pc_pause(vm->pc);
	for (unsigned i = 0; i < vm->cpus; i++)
		vm->vcpu[i].lapic = apic_bus_lapic(pc_apic(vm->pc), i);
	return true;
}

/* Time stands still, as do the devices, until vm_run. The guest's TSC counts from 0. */
static bool make_clock(struct vm *vm, struct error *err)
{
	vm->clock = clock_create();
	if (!vm->clock)
		return error_set(err, "cannot start the VM's clock: %s; see the limit on processes (ulimit -u)",
				 host_error_text());
	vm->motion = VM_IS_STILL;
	return true;
}

static bool make_consoles(struct vm *vm, const struct vm_config *config, struct error *err)
{
	const char *serial = config->console ? config->console : "stdio", *virtio = config->virtio_console;
	struct error why = {""};

	if (virtio && !strcmp(virtio, "stdio") && !strcmp(serial, "stdio"))
		return error_set(err, "the virtio console cannot be on stdio, where the serial port's console is: give "
				      "that another place, as --console none");
	vm->console = vm_console_create(vm, serial, pc_serial_input, err);
	if (!vm->console)
		return false;
	if (!virtio)
		return true;
	vm->virtio_console = vm_console_create(vm, virtio, pc_virtio_input, &why);
	return vm->virtio_console || error_set(err, "virtio console: %s", why.text);
}

static bool make_parts(struct vm *vm, const struct vm_config *config, struct error *err)
{
	uint32_t pv;

	if (!pv_parse(config->pv, &pv, err) || !guest_memory_init(&vm->mem, config->memory, err))
		return false;
	vm->has_memory = true;
	bus_init(&vm->bus);
	vm->has_bus = true;
	x86_cpuid_init(&vm->model, vm->cpus, 0);
	x86_cpuid_offer(&vm->model, pv);
	/* Threads after it: while a library is being loaded (vm_nets_expect), the C library makes none. */
	if (!make_engine(vm, config, err) || !make_clock(vm, err))
		return false;
	if (!make_consoles(vm, config, err) || !make_board(vm, config, err) || !pc_load(vm->pc, err))
		return false;
	x86_cpuid_tell_tsc(&vm->model, clock_tsc_hz(vm->clock));
	for (unsigned i = 0; i < vm->cpus; i++)
		vcpu_set_tsc_lead(&vm->vcpu[i], 0);
	vm_describe(vm);
	return true;
}

struct vm *vm_create_with(const struct vm_config *config, const struct engine_ops *engine, struct error *err)
{
	unsigned cpus = config->cpus;

	host_file_mind_limit();
	/* As early as can be: what they begin is wanted when all else is done. */
	host_tsc_begin();
	vm_nets_expect(config);
	if (!check_host(err) || !check_cpus(cpus, err) || !check_memory(config->memory, err))
		return NULL;
	struct vm *vm = calloc(1, sizeof(*vm));
	if (!vm) {
		error_set(err, "out of memory");
		return NULL;
	}
	host_mutex_init(&vm->lock);
	host_cond_init(&vm->changed);
	snprintf(vm->name, sizeof(vm->name), "%s", config->name ? config->name : "doppel");
	vm->ops = engine;
	vm->cpus = cpus;
	vm->no_reboot = config->no_reboot;
	vm->limit.percent = config->cpu_limit;
	vm->stop_on_panic = config->stop_on_panic;
	vm->holds = 1;
	if (make_parts(vm, config, err))
		return vm;
	vm_destroy(vm);
	return NULL;
}

struct vm *vm_create(const struct vm_config *config, struct error *err)
{
	const struct engine_ops *engine = find_engine(config->engine, err);

	return engine ? vm_create_with(config, engine, err) : NULL;
}
