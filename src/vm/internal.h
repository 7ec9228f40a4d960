/* Between the files of src/vm only. */
#ifndef DOPPEL_VM_INTERNAL_H
#define DOPPEL_VM_INTERNAL_H

#include "base/rate.h"
#include "dev/lapic.h"
#include "vm/vm.h"

#include <stdatomic.h>

/* What a processor is asked to look at before it runs on (vcpu.requests). */
enum {
	REQ_STOP = 1 << 0,  /* for good: never taken back */
	REQ_PAUSE = 1 << 1, /* vm->holds was raised */
	REQ_HELD = 1 << 3,  /* it is beyond its share of the host's processors: vm->limit */
	REQ_APIC = 1 << 2,  /* an interrupt, NMI, INIT or SIPI waits in the local APIC */
};

/* Where a processor's thread is; who makes a request acts by it. */
enum vcpu_place {
	PLACE_MONITOR /* looks at its requests before it leaves */,
	PLACE_GUEST /* kick it */,
	PLACE_ASLEEP /* wake it */
};

/* measure.c. Ticks are those of clock_ticks. */
struct measure {
	bool on;         /* it polls the 8254: RDTSC is an exit */
	unsigned looks;  /* so many more may be of the measurement */
	uint64_t looked; /* ticks at the last look at the time */
	uint64_t polled; /* ns at the last look at the 8254 */
	uint64_t lost;   /* ticks */
};

/* pv.c: the paravirtual interface's state. MSRs as they were written. */
struct pv {
	uint64_t system_time, steal_time, eoi;
	bool eoi_offered;           /* the guest may end its interrupt by its flag */
	uint64_t stolen, steal_due; /* ns that have been accounted for; when to look again */
	_Atomic bool kicked;        /* HLT ends, or the next one does not wait; any thread */
};

struct vcpu {
	struct vm *vm;
	unsigned index;
	struct engine_vcpu *engine;
	struct x86_cpu *cpu; /* the engine's */
	struct lapic *lapic; /* the board's */
	struct host_thread thread;

	/*
	 * Who asks sets `requests` and then reads `place`; the processor's thread sets `place` and then reads
	 * `requests`. Both are sequentially consistent, so one of the two sees the other's: no request is lost, and
	 * only a processor that runs guest code is kicked, only one asleep is woken. It sleeps on the word `requests`.
	 */
	_Atomic unsigned requests;
	_Atomic enum vcpu_place place;
	/* The processor's own thread only (and who holds the VM paused). */
	_Atomic bool wait_sipi;  /* an application processor before its start-up IPI; others may look */
	bool nmi;                /* taken from the APIC, not delivered yet */
	bool window, nmi_window; /* the engine was asked to come back when interrupts, NMIs can be delivered */
	bool completing; /* the instruction at hand has had its answer and has not retired: nothing may come between */
	int16_t acked;   /* an interrupt taken from the APIC, not delivered yet; -1 none */
	struct measure measure;
	struct pv pv;
	unsigned deferred; /* times that the read at hand has waited for an interrupt */
	struct host_linger linger;

	_Atomic uint64_t interrupts, time_halted; /* asleep or parked, in ns */
	_Atomic uint64_t time_held;               /* by the limit, in ns: what a guest calls stolen */
	uint64_t counted;                         /* the limit's thread: so much of its run time is accounted for */
	_Atomic uint64_t started, ended;          /* its thread, by host_now_ns(); 0 not yet */
};

/* All but the processors: time, the devices' threads, the consoles' input. Changed by hold.c. */
enum vm_motion { VM_MOVES, VM_CHANGES /* by a thread that has let go of the lock */, VM_IS_STILL };

/* limit.c: a cap on the time that the processors' threads run. */
struct cpu_limit {
	unsigned percent; /* of one host CPU; 0: none */
	_Atomic bool held;
	struct rate rate;
	struct host_thread thread;
	struct host_mutex lock; /* of what follows */
	struct host_cond wake;
	bool started, quit;
};

struct vm {
	char name[64], description[512], networks[128];
	const struct engine_ops *ops;
	struct engine *engine;
	struct x86_cpuid_model model;
	struct guest_memory mem;
	struct bus bus;
	struct vm_clock *clock;
	struct pc *pc;
	struct vm_console *console, *virtio_console; /* the latter NULL: the machine has none */
	struct cpu_limit limit;
	unsigned cpus;
	struct vcpu vcpu[VM_CPUS_MAX];
	struct x86_cpu *cpu[VM_CPUS_MAX];
	_Atomic uint64_t pv_wall_clock; /* an MSR of all processors */
	bool no_reboot, stop_on_panic, has_memory, has_bus;
	void (*event)(void *opaque, enum vm_event event);
	void *event_opaque;

	/*
	 * For what follows. Devices may hold their own lock when they take it (power-off, reset); under it only
	 * the clock's is taken.
	 */
	struct host_mutex lock;
	struct host_cond changed;
	struct vm_end end;
	bool want_reset;  /* its hold is counted in `holds` */
	unsigned todo;    /* TODO_* bits */
	bool panicked;    /* and nobody needs to be told again until a reset */
	bool key_paused;  /* its hold is counted in `holds`; changed by the thread in vm_run, read by the consoles' */
	bool over;        /* vm_run is past its loop: nobody stays parked */
	unsigned threads; /* started */
	unsigned holds;   /* how many want the VM paused; 1 from the start, until vm_run */
	unsigned parked;  /* threads that have stopped for that, or ended */
	enum vm_motion motion;
	char *report;
};

/* vcpu.c: a processor's thread. */
bool vcpu_create(struct vm *vm, unsigned index, struct error *err);
void vcpu_destroy(struct vcpu *v);
bool vcpu_start(struct vcpu *v);
/* Any thread. */
void vcpu_request(struct vcpu *v, unsigned request);
/* Power-on state of what is here; the processor is parked, its struct x86_cpu has been reset by the board. */
void vcpu_reset(struct vcpu *v);
void vcpu_state(struct vcpu *v, struct state_stream *s);
/* What the guest's TSC is ahead of clock_ticks(): 0 unless the guest has set it. In the processor and its APIC. */
void vcpu_set_tsc_lead(struct vcpu *v, uint64_t lead);
uint64_t vcpu_tsc_lead(const struct vcpu *v);

/*
 * The processor is about to read something that may tell the time, which is `tsc` of the host now. What is due before
 * happens first. True: so does an interrupt that can be delivered now; the instruction is to run anew after it.
 */
bool vcpu_interrupt_first(struct vcpu *v, uint64_t tsc);

/* exits.c: acts on cpu->exit. */
void vcpu_handle_exit(struct vcpu *v);
/* struct engine_config's at_once; opaque is the VM. */
bool vcpu_exit_at_once(void *opaque, unsigned index, struct x86_exit *exit);

/*
 * hold.c: pausing. vm_park is called by a processor's thread that has seen REQ_PAUSE and returns when it may go on.
 * hold_wait and release let go of the lock for a while.
 */
void vm_park(struct vm *vm);
void vm_thread_ended(struct vm *vm);
void vm_hold_locked(struct vm *vm);
void vm_hold_wait_locked(struct vm *vm);
void vm_release_locked(struct vm *vm);

/* How long the processor's code has run elsewhere than on its own thread, in ns. Any thread. */
static inline uint64_t vcpu_time_elsewhere(const struct vcpu *v)
{
	return v->vm->ops->time_elsewhere ? v->vm->ops->time_elsewhere(v->engine) : 0;
}

/* limit.c. Starts and ends with the processors' threads; false: no thread. */
bool vm_limit_start(struct vm *vm);
void vm_limit_end(struct vm *vm);
bool vcpu_is_held(const struct vcpu *v);
/* On its own thread: returns when it may run again, or is asked to stop or to pause. */
void vcpu_wait_held(struct vcpu *v);

/* todo.c: what the thread in vm_run is asked to do. do_todo is called with the lock held and lets go of it. */
enum {
	TODO_PANIC = 1 << 0, /* tell of it, and of the next two */
	TODO_PANIC_HANDLED = 1 << 1,
	TODO_REBOOT = 1 << 2,
	TODO_PAUSE = 1 << 3, /* pause, or go on: a person's key */
	TODO_SHOW = 1 << 4,
};
void vm_ask(struct vm *vm, unsigned todo);
void vm_do_todo_locked(struct vm *vm);
bool vm_is_key_paused(struct vm *vm);
/* struct pc_config's reset: the guest wants it, by a device or an INIT of the boot processor. */
void vm_guest_reset(void *opaque);
/* struct pc_config's panicked; opaque is the VM. */
void vm_panicked(void *opaque, bool handled);

/* cmdline.c: the kernel's command line, to be freed. NULL: out of memory. */
char *vm_command_line(const struct vm_config *config);

/* clock_base has moved by so much: the guest's TSC is to go on where it was. No processor runs guest code. */
void vm_tsc_moved(struct vm *vm, uint64_t ticks);

/* pv.c: on the processor's thread, but for reset, state and the system time, while none runs. */
void pv_reset(struct vcpu *v);
void pv_state(struct vcpu *v, struct state_stream *s);
void pv_vm_state(struct vm *vm, struct state_stream *s); /* after memory, all processors and the clock */
/* BIT(PV_*) of a list like "clock,eoi", "all" or "none"; NULL is the default. False: err names the unknown word. */
bool pv_parse(const char *list, uint32_t *pv, struct error *err);
/* Before and after the engine runs. */
void pv_enter_guest(struct vcpu *v);
void pv_leave_guest(struct vcpu *v);
void pv_asleep(struct vcpu *v);
void pv_awake(struct vcpu *v);
void pv_interrupt_delivered(struct vcpu *v);
/* A halted processor was told to go on. */
bool pv_take_kick(struct vcpu *v);
/* After the guest's TSC has moved against the VM's time. */
void pv_write_system_time(struct vcpu *v);
void pv_hypercall(struct vcpu *v);
/* False: #GP(0). */
bool pv_has_msr(uint32_t msr);
bool pv_msr_write(struct vcpu *v, uint32_t msr, uint64_t value);
bool pv_msr_read(struct vcpu *v, uint32_t msr, uint64_t *value);

/* measure.c: struct pc_config's polled_timer; opaque is the VM. */
void vm_polled_timer(void *opaque, unsigned cpu, bool set);
/* While measure.on, before and after the processor is shown a time, its TSC or a device's. */
void vcpu_look(struct vcpu *v, bool tsc);
void vcpu_looked(struct vcpu *v);

/* net.c: has what the networks will need loaded meanwhile. */
void vm_nets_expect(const struct vm_config *config);
/* Puts what the config says of networks into *pc. What it returns holds what *pc points to; to be freed. */
struct vm_nets *vm_nets_parse(const struct vm_config *config, struct pc_config *pc, struct error *err);
/* "network user", "no network"; while what vm_nets_parse returned is there. */
void vm_nets_describe(const struct pc_config *pc, char *text, size_t size);

/* report.c: text that grows up to its buffer's size. */
struct note {
	char *p;
	size_t size, len;
};
void say(struct note *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The text is kept in vm->report if there is none yet. */
void vm_report_crash(struct vcpu *v, const char *what);
void vm_report_text(struct vm *vm, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void vm_describe(struct vm *vm);

/* console.c: where the guest's serial port or virtio console leads. */
typedef size_t vm_console_input(struct pc *pc, const uint8_t *data, size_t len);
/* `input` is how the board takes what is typed. */
struct vm_console *vm_console_create(struct vm *vm, const char *spec, vm_console_input *input, struct error *err);
/* What the board is to call; it may be called until the console is destroyed. */
struct pc_console vm_console_port(struct vm_console *console);
const char *vm_console_where(const struct vm_console *console);
/* A terminal becomes raw, and input goes to the board, which is there by now. */
bool vm_console_start(struct vm_console *console, struct error *err);
/* While held, the board gets no input; the keys that are the monitor's work. */
void vm_console_hold(struct vm_console *console, bool held);
/* No input goes to the board any more; output on its way goes out, later output is dropped; the terminal is put back.
 */
void vm_console_close(struct vm_console *console);
void vm_console_destroy(struct vm_console *console);

#endif
