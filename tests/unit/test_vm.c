/* The run loop and a VM's life, with an engine that runs a C function in place of guest code. */
#include "dev/lapic.h"
#include "host/host.h"
#include "host/thread.h"
#include "vm/internal.h"

#include "unit.h"

#define CPUS 4
#define VECTOR 0x40

struct fake_cpu {
	struct x86_cpu cpu;
	unsigned index;
	_Atomic bool kicked;
	bool window;
	unsigned runs, step, seen;
	_Atomic unsigned taken; /* interrupts */
	bool between;           /* an interrupt came between a read and its retirement */
};

/* What a virtual CPU does until its next exit; the exit is filled in. */
static enum x86_exit_kind (*script)(struct fake_cpu *f);
static struct fake_cpu *fakes[VM_CPUS_MAX];

static struct engine *fake_create(const struct engine_config *config, struct error *err)
{
	struct engine_config *copy = malloc(sizeof(*copy));

	*copy = *config;
	return (struct engine *)copy;
}

static void fake_destroy(struct engine *engine)
{
	free(engine);
}

static struct engine_vcpu *fake_vcpu_create(struct engine *engine, unsigned index, struct x86_cpu **cpu,
					    struct error *err)
{
	const struct engine_config *config = (const struct engine_config *)engine;
	struct fake_cpu *f = aligned_alloc(64, sizeof(*f));

	memset(f, 0, sizeof(*f));
	f->index = index;
	f->cpu.id = index;
	f->cpu.mem = config->mem;
	f->cpu.model = config->model;
	x86_cpu_reset(&f->cpu, false);
	fakes[index] = f;
	*cpu = &f->cpu;
	return (struct engine_vcpu *)f;
}

static void fake_vcpu_destroy(struct engine_vcpu *vcpu)
{
	free(vcpu);
}

static bool fake_enter(struct engine_vcpu *vcpu)
{
	return true;
}

static void fake_leave(struct engine_vcpu *vcpu) {}

static enum x86_exit_kind fake_run(struct engine_vcpu *vcpu)
{
	struct fake_cpu *f = (struct fake_cpu *)vcpu;
	bool answered = f->cpu.exit.completed && !f->cpu.exit.write;

	f->runs++;
	if (!answered && atomic_exchange(&f->kicked, false)) {
		f->cpu.exit = (struct x86_exit){.kind = EXIT_INTERRUPTED};
		return EXIT_INTERRUPTED;
	}
	f->cpu.rflags |= FL_IF;
	f->cpu.exit.kind = script(f);
	return f->cpu.exit.kind;
}

static void fake_kick(struct engine_vcpu *vcpu)
{
	atomic_store(&((struct fake_cpu *)vcpu)->kicked, true);
}

static enum verdict fake_interrupt(struct engine_vcpu *vcpu, uint8_t vector)
{
	struct fake_cpu *f = (struct fake_cpu *)vcpu;

	if (f->cpu.exit.completed && !f->cpu.exit.write)
		f->between = true;
	if (vector == VECTOR)
		atomic_fetch_add(&f->taken, 1);
	return V_DONE;
}

static enum verdict fake_nmi(struct engine_vcpu *vcpu)
{
	return V_DONE;
}

static void fake_window(struct engine_vcpu *vcpu, bool want, bool nmi)
{
	((struct fake_cpu *)vcpu)->window = want;
}

static void fake_stats(struct engine *engine, struct engine_stats *stats)
{
	*stats = (struct engine_stats){.blocks = 42};
}

static const struct engine_ops fake_engine = {
	.name = "fake",
	.create = fake_create,
	.destroy = fake_destroy,
	.vcpu_create = fake_vcpu_create,
	.vcpu_destroy = fake_vcpu_destroy,
	.thread_enter = fake_enter,
	.thread_leave = fake_leave,
	.run = fake_run,
	.kick = fake_kick,
	.interrupt = fake_interrupt,
	.nmi = fake_nmi,
	.want_window = fake_window,
	.stats = fake_stats,
};

/* Exits. */
static enum x86_exit_kind access_exit(struct fake_cpu *f, enum x86_exit_kind kind, uint64_t addr, unsigned len,
				      bool write, uint64_t data)
{
	f->cpu.exit = (struct x86_exit){.kind = kind, .write = write, .len = (uint8_t)len, .addr = addr, .data = data};
	return kind;
}

static enum x86_exit_kind out(struct fake_cpu *f, uint16_t port, unsigned len, uint32_t value)
{
	return access_exit(f, EXIT_IO, port, len, true, value);
}

static enum x86_exit_kind wrmsr(struct fake_cpu *f, uint32_t msr, uint64_t value)
{
	return access_exit(f, EXIT_MSR, msr, 8, true, value);
}

static enum x86_exit_kind power_off(struct fake_cpu *f)
{
	return out(f, PC_PM_BASE + 4, 2, 5 << 10 | 1 << 13);
}

/* Runs "guest code" until a kick. */
static enum x86_exit_kind spin(struct fake_cpu *f)
{
	while (!atomic_exchange(&f->kicked, false))
		__builtin_ia32_pause();
	return access_exit(f, EXIT_INTERRUPTED, 0, 0, false, 0);
}

static enum x86_exit_kind halt(struct fake_cpu *f)
{
	return access_exit(f, EXIT_HLT, 0, 0, false, 0);
}

/* A multiboot kernel that is never run. */
static void write_kernel(const char *path)
{
	static uint32_t image[1024 + 16] = {
		0x464c457f, 0x00010101, 0,          0,          0x00030002, 1,  0x100010, 52,
		0,          0,          0x00200034, 0x00000001, 0,                              /* header */
		1,          4096,       0x100000,   0x100000,   64,         64, 7,        4096, /* segment */
	};
	image[1024] = 0x1badb002;
	image[1026] = -0x1badb002u;
	struct host_file *file = host_file_open(path, HOST_FILE_WRITE | HOST_FILE_CREATE);
	REQUIRE(file);
	REQUIRE(host_file_pwrite(file, image, sizeof(image), 0) == sizeof(image));
	host_file_close(file);
}

static struct vm *make(unsigned cpus, enum x86_exit_kind (*what)(struct fake_cpu *f), bool no_reboot)
{
	char path[64];
	struct error err = {""};
	struct vm_config config = {.kernel = path,
				   .memory = MiB(16),
				   .cpus = cpus,
				   .console = "none",
				   .no_reboot = no_reboot,
				   .debug_exit = true};

	snprintf(path, sizeof(path), "/tmp/doppel-test-vm.%u", (unsigned)(host_now_ns() & 0xffffffff));
	write_kernel(path);
	script = what;
	struct vm *vm = vm_create_with(&config, &fake_engine, &err);
	remove(path);
	if (!vm)
		UNIT_FAIL("%s", err.text);
	REQUIRE(vm);
	return vm;
}

static void run_to(struct vm *vm, enum vm_end_reason reason, uint32_t value)
{
	struct vm_end end = vm_run(vm);

	CHECK_EQ(end.reason, reason);
	CHECK_EQ(end.value, value);
	vm_destroy(vm);
}

TEST(power_off)
{
	run_to(make(1, power_off, false), VM_END_POWER_OFF, 0);
}

static enum x86_exit_kind do_debug_exit(struct fake_cpu *f)
{
	return out(f, PC_DEBUG_EXIT, 1, 0x42);
}

TEST(debug_exit)
{
	run_to(make(1, do_debug_exit, false), VM_END_DEBUG_EXIT, 0x42);
}

static enum x86_exit_kind reset_then_off(struct fake_cpu *f)
{
	return f->step++ < 3 ? out(f, PC_RESET_PORT, 1, PC_RESET_VALUE) : power_off(f);
}

TEST(reset)
{
	run_to(make(1, reset_then_off, false), VM_END_POWER_OFF, 0);
}

TEST(reset_with_many_cpus)
{
	run_to(make(CPUS, reset_then_off, false), VM_END_POWER_OFF, 0);
}

TEST(no_reboot)
{
	run_to(make(1, reset_then_off, true), VM_END_REBOOT, 0);
}

/* What was told, a bit an event, and how often anything was. */
static unsigned events, tellings;

static void on_event(void *opaque, enum vm_event event)
{
	CHECK_EQ(opaque, (void *)&events);
	events |= BIT(event);
	tellings++;
}

static struct vm *watched(unsigned cpus, enum x86_exit_kind (*what)(struct fake_cpu *f), bool no_reboot)
{
	struct vm *vm = make(cpus, what, no_reboot);

	events = tellings = 0;
	vm_on_event(vm, on_event, &events);
	return vm;
}

TEST(reboots_are_told)
{
	run_to(watched(1, reset_then_off, false), VM_END_POWER_OFF, 0);
	CHECK_EQ(events, BIT(VM_EVENT_REBOOT));
	CHECK_EQ(tellings, 3);
	run_to(watched(1, reset_then_off, true), VM_END_REBOOT, 0);
	CHECK_EQ(events, BIT(VM_EVENT_REBOOT));
	CHECK_EQ(tellings, 1);
	run_to(watched(1, power_off, false), VM_END_POWER_OFF, 0);
	CHECK_EQ(tellings, 0);
}

static uint64_t panic_bar;

/* Finds the function as a kernel does, without the processors' help. */
static void find_pvpanic(struct vm *vm)
{
	for (unsigned slot = 0; slot < 32; slot++) {
		bus_write(&vm->bus, BUS_PORT, 0xcf8, 4, 0x80000000 | slot << 11, 0);
		if (bus_read(&vm->bus, BUS_PORT, 0xcfc, 4, 0) != 0x00111b36)
			continue;
		bus_write(&vm->bus, BUS_PORT, 0xcf8, 4, 0x80000010 | slot << 11, 0);
		panic_bar = bus_read(&vm->bus, BUS_PORT, 0xcfc, 4, 0) & ~0xfull;
		return;
	}
	UNIT_FAIL("no pvpanic");
}

/* Panics, reboots and panics again, each time over and over. */
static enum x86_exit_kind panic_often(struct fake_cpu *f)
{
	f->step++;
	if (f->step == 100)
		return out(f, PC_RESET_PORT, 1, PC_RESET_VALUE);
	return f->step < 200 ? access_exit(f, EXIT_MMIO, panic_bar, 1, true, 1) : power_off(f);
}

TEST(a_panic_is_told_once_a_boot)
{
	struct vm *vm = watched(1, panic_often, false);

	find_pvpanic(vm);
	run_to(vm, VM_END_POWER_OFF, 0);
	CHECK_EQ(events, BIT(VM_EVENT_PANIC) | BIT(VM_EVENT_REBOOT));
	CHECK_EQ(tellings, 3);
}

TEST(a_panic_ends_it_if_that_is_wished)
{
	struct vm *vm = watched(1, panic_often, false);

	find_pvpanic(vm);
	vm->stop_on_panic = true;
	run_to(vm, VM_END_PANIC, 0);
	CHECK_EQ(events, BIT(VM_EVENT_PANIC));
}

static enum x86_exit_kind crash_kernel(struct fake_cpu *f)
{
	return f->step++ ? power_off(f) : access_exit(f, EXIT_MMIO, panic_bar, 1, true, 2);
}

TEST(a_panic_that_a_crash_kernel_takes_goes_on)
{
	struct vm *vm = watched(1, crash_kernel, false);

	find_pvpanic(vm);
	vm->stop_on_panic = true;
	run_to(vm, VM_END_POWER_OFF, 0);
	CHECK_EQ(events, BIT(VM_EVENT_PANIC_HANDLED));
}

static enum x86_exit_kind crash(struct fake_cpu *f)
{
	return access_exit(f, EXIT_SHUTDOWN, 0, 0, false, 0);
}

TEST(crash_report)
{
	struct vm *vm = make(1, crash, false);

	CHECK_STR(vm_report(vm), "");
	CHECK_EQ(vm_run(vm).reason, VM_END_CRASH);
	CHECK(strstr(vm_report(vm), "triple fault"));
	CHECK(strstr(vm_report(vm), "cr3"));
	vm_destroy(vm);
}

/* A thread that does something to a VM while the test's own runs it. */
struct helper {
	struct host_thread thread;
	struct vm *vm;
	_Atomic unsigned progress;
	bool failed;
};

static void with_helper(struct helper *h, void *(*fn)(void *), struct vm *vm, enum vm_end_reason reason)
{
	*h = (struct helper){.vm = vm};
	REQUIRE(host_thread_start(&h->thread, "helper", fn, h));
	CHECK_EQ(vm_run(vm).reason, reason);
	host_thread_join(&h->thread);
	CHECK(!h->failed);
	vm_destroy(vm);
}

static void *stop_soon(void *arg)
{
	struct helper *h = arg;

	host_sleep_ns(20000000);
	vm_stop(h->vm, VM_END_STOPPED, 0);
	return NULL;
}

TEST(stop_while_running)
{
	struct helper h;

	with_helper(&h, stop_soon, make(CPUS, spin, false), VM_END_STOPPED);
}

/* Half a second of a guest that spins, with the tenth of one allowed. */
static uint64_t spinners_ran;

static void *measure_limit(void *arg)
{
	struct helper *h = arg;
	uint64_t from = host_now_ns(), before = 0, after = 0;

	while (h->vm->threads < CPUS || !h->vm->limit.started)
		host_sleep_ns(1000000);
	for (unsigned i = 0; i < CPUS; i++)
		before += host_thread_time_of(&h->vm->vcpu[i].thread);
	host_sleep_ns(500000000);
	for (unsigned i = 0; i < CPUS; i++)
		after += host_thread_time_of(&h->vm->vcpu[i].thread);
	spinners_ran = after - before;
	vm_pause(h->vm); /* as well as ever */
	vm_resume(h->vm);
	/* Allowed are a tenth, what may be saved up, and what passes from one look to the next on a busy host. */
	h->failed |= spinners_ran > (host_now_ns() - from) / 10 + 150000000;
	vm_stop(h->vm, VM_END_STOPPED, 0);
	return NULL;
}

TEST(cpu_limit)
{
	struct vm *vm = make(CPUS, spin, false);
	struct helper h;

	vm->limit.percent = 10;
	with_helper(&h, measure_limit, vm, VM_END_STOPPED);
	CHECK(spinners_ran);
}

TEST(cpu_limit_and_the_end)
{
	struct vm *vm = make(CPUS, spin, false);
	struct helper h;

	vm->limit.percent = 1; /* held for seconds when it is stopped */
	with_helper(&h, stop_soon, vm, VM_END_STOPPED);
}

TEST(stop_while_halted)
{
	struct helper h;

	with_helper(&h, stop_soon, make(1, halt, false), VM_END_STOPPED);
}

TEST(stop_before_running)
{
	struct vm *vm = make(2, spin, false);

	vm_stop(vm, VM_END_SIGNAL, 15);
	run_to(vm, VM_END_SIGNAL, 15);
}

static void *pause_often(void *arg)
{
	struct helper *h = arg;

	for (unsigned i = 0; i < 200; i++) {
		vm_pause(h->vm);
		unsigned runs = fakes[0]->runs;
		if (i % 50 == 0)
			host_sleep_ns(2000000);
		h->failed |= fakes[0]->runs != runs;
		vm_resume(h->vm);
	}
	vm_stop(h->vm, VM_END_STOPPED, 0);
	return NULL;
}

/* Ctrl-A P: paused, shown while it is, and it goes on. */
static void *pause_by_key(void *arg)
{
	struct helper *h = arg;

	for (unsigned i = 0; i < 10; i++) {
		vm_ask(h->vm, TODO_PAUSE);
		while (!vm_is_key_paused(h->vm))
			host_sleep_ns(100000);
		vm_pause(h->vm); /* whoever waits for the pause has it afterwards */
		vm_resume(h->vm);
		unsigned runs = fakes[0]->runs;
		host_sleep_ns(1000000);
		char *text = vm_show(h->vm);
		h->failed |= fakes[0]->runs != runs || !strstr(text, ", paused") || !strstr(text, "CPU 3");
		free(text);
		vm_ask(h->vm, TODO_PAUSE);
		while (vm_is_key_paused(h->vm) || fakes[0]->runs == runs)
			host_sleep_ns(100000);
	}
	vm_ask(h->vm, TODO_PAUSE); /* and it can be ended as it is */
	while (!vm_is_key_paused(h->vm))
		host_sleep_ns(100000);
	vm_stop(h->vm, VM_END_QUIT, 0);
	return NULL;
}

static enum x86_exit_kind count_runs(struct fake_cpu *f)
{
	return access_exit(f, EXIT_INTERRUPTED, 0, 0, false, 0);
}

TEST(pause_by_key)
{
	struct helper h;

	with_helper(&h, pause_by_key, make(CPUS, count_runs, false), VM_END_QUIT);
}

TEST(show)
{
	struct vm *vm = make(2, halt, false);
	char *text = vm_show(vm);

	CHECK(strstr(text, "'doppel', up 0.0 s: engine fake"));
	CHECK(strstr(text, "CPU 0  runs, protected mode, privilege level 0, rip 0000000000100010"));
	CHECK(strstr(text, "CPU 1  waits to be started"));
	CHECK(strstr(text, "memory: 16 MiB, of which the guest has touched"));
	CHECK(strstr(text, "devices: local APICs, "));
	CHECK(strstr(text, ", 16550A, "));
	free(text);
	vm_destroy(vm);
}

TEST(pause)
{
	struct helper h;

	with_helper(&h, pause_often, make(CPUS, spin, false), VM_END_STOPPED);
}

static enum x86_exit_kind outs(struct fake_cpu *f)
{
	return out(f, 0x80, 1, 0);
}

TEST(pause_in_exits)
{
	struct helper h;

	with_helper(&h, pause_often, make(1, outs, false), VM_END_STOPPED);
}

/* Runs until a kick, and reads its TSC all the time. */
static enum x86_exit_kind watch_tsc(struct fake_cpu *f)
{
	static uint64_t last;

	do {
		uint64_t now = __builtin_ia32_rdtsc() + f->cpu.tsc_offset;
		f->between |= f->runs > 1 && now < last;
		last = now;
	} while (!atomic_exchange(&f->kicked, false));
	return access_exit(f, EXIT_INTERRUPTED, 0, 0, false, 0);
}

/* Who waits for the VM to go on may wake before it does. */
static void *wake_in_vain(void *arg)
{
	struct helper *h = arg;

	while (!h->progress) {
		host_lock(&h->vm->lock);
		host_cond_broadcast(&h->vm->changed);
		host_unlock(&h->vm->lock);
	}
	return NULL;
}

static void *pause_and_wake(void *arg)
{
	struct helper *h = arg, waker = {.vm = h->vm};

	bool wakes = host_thread_start(&waker.thread, "waker", wake_in_vain, &waker);
	pause_often(h);
	waker.progress = 1;
	if (wakes)
		host_thread_join(&waker.thread);
	h->failed |= !wakes || fakes[0]->between;
	return NULL;
}

TEST(tsc_goes_on_after_a_pause)
{
	struct helper h;

	with_helper(&h, pause_and_wake, make(1, watch_tsc, false), VM_END_STOPPED);
}

/* Sends an interrupt of x2APIC `icr` command to `to`. */
static enum x86_exit_kind send_ipi(struct fake_cpu *f, unsigned to, uint32_t command)
{
	return wrmsr(f, MSR_X2APIC_FIRST + 0x30, (uint64_t)to << 32 | command);
}

#define ROUNDS 20000

/*
 * CPU 0 starts CPU 1; then each waits for an interrupt from the other, halted or running, and answers it. A lost
 * wake-up stops the game.
 */
static enum x86_exit_kind ping_pong(struct fake_cpu *f)
{
	unsigned other = 1 - f->index;

	switch (f->step) {
	case 0:
		f->step++;
		return wrmsr(f, MSR_IA32_APIC_BASE,
			     APIC_MMIO_BASE | APIC_BASE_ENABLE | APIC_BASE_EXTD | (f->index ? 0 : APIC_BASE_BSP));
	case 1:
		f->step += f->index ? 4 : 1;
		return wrmsr(f, MSR_X2APIC_FIRST + 0xf, 0x1ff);
	case 2:
		f->step++;
		return send_ipi(f, other, APIC_INIT << 8 | 1 << 14);
	case 3:
		f->step++;
		return send_ipi(f, other, APIC_SIPI << 8 | 0x10);
	case 4: /* the other answers as soon as it can */
		host_sleep_ns(20000000);
		f->step = 6;
		break;
	case 5:
		if (f->taken == f->seen)
			return (f->seen + f->index) % 3 ? halt(f) : spin(f);
		f->seen++;
		f->step = 6;
		return wrmsr(f, MSR_X2APIC_FIRST + 0xb, 0);
	}
	f->step = 5;
	if (f->seen >= ROUNDS && !f->index)
		return power_off(f);
	return send_ipi(f, other, VECTOR);
}

/* Ends a VM that makes no progress. */
static void *watch(void *arg)
{
	struct helper *h = arg;
	unsigned last = 0;

	for (;;) {
		host_sleep_ns(1000000000);
		unsigned now = fakes[0]->taken;
		if (h->progress)
			return NULL;
		if (now == last)
			break;
		last = now;
	}
	vm_stop(h->vm, VM_END_FAILED, 0);
	return NULL;
}

TEST(no_wakeup_is_lost)
{
	struct vm *vm = make(2, ping_pong, false);
	struct helper h = {.vm = vm};

	REQUIRE(host_thread_start(&h.thread, "watch", watch, &h));
	CHECK_EQ(vm_run(vm).reason, VM_END_POWER_OFF);
	h.progress = 1;
	host_thread_join(&h.thread);
	CHECK_EQ(fakes[0]->seen, ROUNDS);
	struct vm_stats stats;
	vm_stats(vm, &stats);
	CHECK(stats.interrupts >= 2 * ROUNDS - 1);
	CHECK_EQ(stats.engine.blocks, 42);
	vm_destroy(vm);
}

/* Interrupts itself before each read of a port: the interrupt must wait until the read has retired. */
static enum x86_exit_kind read_and_interrupt(struct fake_cpu *f)
{
	switch (f->step++) {
	case 0:
		return wrmsr(f, MSR_IA32_APIC_BASE, APIC_MMIO_BASE | APIC_BASE_ENABLE | APIC_BASE_EXTD | APIC_BASE_BSP);
	case 1:
		return wrmsr(f, MSR_X2APIC_FIRST + 0xf, 0x1ff);
	case 2: /* the ACPI timer runs on: the answer differs from call to call */
		return access_exit(f, EXIT_IO, PC_PM_BASE + 8, 4, false, 0);
	case 3:
		if (!f->cpu.exit.completed || f->cpu.exit.fault)
			f->between = true;
		return send_ipi(f, 0, VECTOR);
	case 4: /* taken before anything else ran */
		if (f->taken != f->seen + 1)
			f->between = true;
		f->seen++;
		return wrmsr(f, MSR_X2APIC_FIRST + 0xb, 0);
	}
	f->step = 2;
	return f->seen < 100 ? outs(f) : power_off(f);
}

TEST(nothing_comes_between_a_read_and_its_end)
{
	struct vm *vm = make(1, read_and_interrupt, false);

	CHECK_EQ(vm_run(vm).reason, VM_END_POWER_OFF);
	CHECK(!fakes[0]->between);
	CHECK_EQ(fakes[0]->seen, 100);
	vm_destroy(vm);
}

/* An MSR that is not there: the fault reaches the processor. */
static enum x86_exit_kind bad_msr(struct fake_cpu *f)
{
	if (f->step++ == 0)
		return wrmsr(f, MSR_X2APIC_FIRST + 0x30, 0); /* not in x2APIC mode */
	f->between = !f->cpu.exit.fault;
	return power_off(f);
}

TEST(msr_fault)
{
	struct vm *vm = make(1, bad_msr, false);

	vm_run(vm);
	CHECK(!fakes[0]->between);
	vm_destroy(vm);
}

/* Its deadline is hours away, until it moves its TSC past it. */
static enum x86_exit_kind move_tsc(struct fake_cpu *f)
{
	uint64_t far = (uint64_t)1 << 50;

	switch (f->step++) {
	case 0:
		return wrmsr(f, MSR_IA32_APIC_BASE, APIC_MMIO_BASE | APIC_BASE_ENABLE | APIC_BASE_EXTD | APIC_BASE_BSP);
	case 1:
		return wrmsr(f, MSR_X2APIC_FIRST + 0xf, 0x1ff);
	case 2:
		return wrmsr(f, MSR_X2APIC_FIRST + 0x32, 2 << 17 | VECTOR);
	case 3:
		return wrmsr(f, MSR_IA32_TSC_DEADLINE, far);
	case 4:
		f->seen = f->taken;
		f->cpu.tsc_offset += far; /* as the core does */
		return wrmsr(f, 0x10, far);
	}
	return power_off(f);
}

TEST(deadline_follows_tsc)
{
	struct vm *vm = make(1, move_tsc, false);

	CHECK_EQ(vm_run(vm).reason, VM_END_POWER_OFF);
	CHECK_EQ(fakes[0]->seen, 0);
	CHECK_EQ(fakes[0]->taken, 1);
	vm_destroy(vm);
}

/* What a guest added to its time-stamp counter is gone with RESET, as IA32_TSC_ADJUST is (SDM Vol. 3A table 9-1). */
static enum x86_exit_kind move_tsc_and_reset(struct fake_cpu *f)
{
	uint64_t far = BIT(50);

	if (f->index)
		return halt(f);
	switch (f->step++) {
	case 0:
		f->cpu.tsc_offset += far; /* as the core does */
		return wrmsr(f, 0x10, far);
	case 1:
		return out(f, PC_RESET_PORT, 1, PC_RESET_VALUE);
	}
	f->between = __builtin_ia32_rdtsc() + f->cpu.tsc_offset >= far;
	return power_off(f);
}

TEST(reset_puts_tsc_back)
{
	struct vm *vm = make(2, move_tsc_and_reset, false);

	CHECK_EQ(vm_run(vm).reason, VM_END_POWER_OFF);
	CHECK(!fakes[0]->between);
	CHECK_EQ(fakes[0]->cpu.tsc_offset, fakes[1]->cpu.tsc_offset);
	vm_destroy(vm);
}

/* The paravirtual clocks' structures are written whole or not at all: the last 16 bytes of memory hold neither's. */
static enum x86_exit_kind clocks_at_the_end(struct fake_cpu *f)
{
	uint8_t last[16], zero[16] = {0};

	switch (f->step++) {
	case 0:
		return wrmsr(f, 0x4b564d01, (MiB(16) - sizeof(last)) | 1);
	case 1:
		return wrmsr(f, 0x4b564d00, MiB(16) - 8);
	}
	f->between = !guest_memory_read(f->cpu.mem, MiB(16) - sizeof(last), last, sizeof(last)) ||
		     memcmp(last, zero, sizeof(last));
	return power_off(f);
}

TEST(no_half_a_clock)
{
	struct vm *vm = make(1, clocks_at_the_end, false);

	CHECK_EQ(vm_run(vm).reason, VM_END_POWER_OFF);
	CHECK(!fakes[0]->between);
	vm_destroy(vm);
}

/* Where the guest's flag for the end of an interrupt is (--pv eoi), and a vector of VECTOR's class. */
#define EOI_FLAG 0x6000
#define OTHER_VECTOR (VECTOR | 0xf)

static bool request_once;

/* Another processor's IPI, just when the flag has been offered, and before the guest runs on. */
static void flag_written(void *opaque, uint64_t gpa, uint64_t len)
{
	struct vm *vm = opaque;
	struct apic_message msg = {.wide = true, .mode = APIC_FIXED, .vector = VECTOR};

	if (!request_once || gpa != EOI_FLAG)
		return;
	request_once = false;
	apic_bus_send(pc_apic(vm->pc), &msg);
}

static enum x86_exit_kind end_by_flag(struct fake_cpu *f)
{
	uint8_t flag = 0;

	switch (f->step++) {
	case 0:
		return wrmsr(f, MSR_IA32_APIC_BASE, APIC_MMIO_BASE | APIC_BASE_ENABLE | APIC_BASE_EXTD | APIC_BASE_BSP);
	case 1:
		return wrmsr(f, MSR_X2APIC_FIRST + 0xf, 0x1ff);
	case 2:
		return wrmsr(f, 0x4b564d04, EOI_FLAG | 1);
	case 3:
		request_once = true;
		return send_ipi(f, 0, OTHER_VECTOR);
	case 4: /* in its handler */
		CHECK(!request_once && !f->taken);
		guest_memory_read(f->cpu.mem, EOI_FLAG, &flag, 1);
		if (!(flag & 1))
			return wrmsr(f, MSR_X2APIC_FIRST + 0xb, 0);
		flag = 0;
		guest_memory_write(f->cpu.mem, EOI_FLAG, &flag, 1);
	} /* and goes on, without an exit, with the other one still to come */
	f->seen = f->taken;
	return power_off(f);
}

TEST(nothing_waits_behind_an_offered_end)
{
	struct vm *vm = make(1, end_by_flag, false);

	vm->mem.code[EOI_FLAG >> PAGE_SHIFT] = 1;
	vm->mem.code_written = flag_written;
	vm->mem.code_opaque = vm;
	CHECK_EQ(vm_run(vm).reason, VM_END_POWER_OFF);
	CHECK_EQ(fakes[0]->seen, 1);
	vm_destroy(vm);
}

static void *save_it(void *arg)
{
	struct helper *h = arg;
	static struct state_stream s;

	host_sleep_ns(20000000);
	vm_pause(h->vm);
	s = (struct state_stream){.saving = true};
	vm_state(h->vm, &s);
	h->failed = s.failed || s.len < PAGE_SIZE;
	struct state_stream load = {.data = s.data, .len = s.len};
	fakes[0]->cpu.gpr[RAX] = 0;
	/* Times of this machine's own past mean nothing to the one that is loaded, which may be younger. */
	struct vcpu *v = &h->vm->vcpu[0];
	v->pv.steal_due = v->measure.looked = v->measure.polled = BIT(50);
	v->measure.on = true;
	v->measure.looks = 1;
	vm_state(h->vm, &load);
	h->failed |= load.failed || load.pos != load.len || fakes[0]->cpu.gpr[RAX] != 0x1234;
	h->failed |= v->pv.steal_due || v->measure.on || v->measure.looks;
	/* A time at which the sums of deadlines would not fit any more is none. */
	uint64_t now = clock_now(h->vm->clock), never = UINT64_MAX - 1;
	uint8_t *at = memmem(s.data, s.len, &now, sizeof(now));
	struct state_stream late = {.data = s.data, .len = s.len};
	if (at)
		memcpy(at, &never, sizeof(never));
	vm_state(h->vm, &late);
	h->failed |= !at || !late.failed || clock_now(h->vm->clock) != now;
	/* Cut short it fails, and does no harm. */
	struct state_stream cut = {.data = s.data, .len = s.len / 2};
	vm_state(h->vm, &cut);
	h->failed |= !cut.failed;
	state_end(&s);
	vm_resume(h->vm);
	vm_stop(h->vm, VM_END_STOPPED, 0);
	return NULL;
}

static enum x86_exit_kind spin_with_value(struct fake_cpu *f)
{
	f->cpu.gpr[RAX] = 0x1234;
	return spin(f);
}

TEST(save_and_load)
{
	struct helper h;

	with_helper(&h, save_it, make(2, spin_with_value, false), VM_END_STOPPED);
}

TEST(mistakes)
{
	struct error err;
	struct vm_config config = {.kernel = "/nonexistent", .cpus = 0, .console = "none"};

	CHECK(!vm_create_with(&config, &fake_engine, &err));
	config.cpus = VM_CPUS_MAX + 1;
	CHECK(!vm_create_with(&config, &fake_engine, &err));
	config.cpus = 1;
	config.memory = 4096;
	CHECK(!vm_create_with(&config, &fake_engine, &err));
	config.memory = MiB(16);
	CHECK(!vm_create_with(&config, &fake_engine, &err));
	CHECK(strstr(err.text, "/nonexistent"));
	config.pv = "clock,,eoi";
	CHECK(!vm_create_with(&config, &fake_engine, &err));
	CHECK(strstr(err.text, "clock,,eoi"));
	config.pv = "none";
	CHECK(!vm_create_with(&config, &fake_engine, &err));
	CHECK(strstr(err.text, "/nonexistent"));
	config.engine = "none such";
	CHECK(!vm_create(&config, &err));
	CHECK(strstr(err.text, "none such"));
}

UNIT_MAIN()
