/*
 * KVM's paravirtual interface, which most systems' kernels speak (Linux, Documentation/virt/kvm/x86: cpuid.rst,
 * msr.rst, hypercalls.rst). CPUID says what of it is offered; each part can be left out.
 *
 * What a guest shares with us are a few structures in its memory, whose addresses it writes to MSRs. They are touched
 * on the thread of the processor that they belong to, or while no processor runs.
 */
#include "host/host.h"
#include "vm/internal.h"

#include <string.h>

#define NS_PER_S 1000000000u

enum {
	MSR_WALL_CLOCK_OLD = 0x11,
	MSR_SYSTEM_TIME_OLD = 0x12,
	MSR_WALL_CLOCK = 0x4b564d00,
	MSR_SYSTEM_TIME = 0x4b564d01,
	MSR_STEAL_TIME = 0x4b564d03,
	MSR_EOI_EN = 0x4b564d04,
};
#define ENABLED 1u

static bool offered(const struct vcpu *v, enum x86_pv part)
{
	return v->vm->model.pv & BIT(part);
}

/* ---- Clock ---- */

struct wall_clock {
	uint32_t version, sec, nsec;
};

struct system_time {
	uint32_t version, pad;
	uint64_t tsc_timestamp, system_time;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad2[2];
};
_Static_assert(sizeof(struct system_time) == 32, "msr.rst");
#define FLAG_STABLE 1 /* the same on all processors */

/*
 * Both structures begin with a version: who sees an odd one, or another afterwards, reads again. Nothing is written
 * where there is no room for all.
 */
static void publish(struct vcpu *v, uint64_t gpa, void *data, size_t len)
{
	struct guest_memory *mem = &v->vm->mem;
	uint32_t version = 0, *first = data;

	if (!guest_memory_ptr(mem, gpa, len, true))
		return;
	guest_memory_read(mem, gpa, &version, sizeof(version));
	*first = version & 1 ? version + 2 : version + 1;
	guest_memory_write(mem, gpa, first, sizeof(*first));
	atomic_thread_fence(memory_order_seq_cst);
	guest_memory_write(mem, gpa, data, len);
	atomic_thread_fence(memory_order_seq_cst);
	++*first;
	guest_memory_write(mem, gpa, first, sizeof(*first));
}

/* The wall clock at the VM's time 0: with what the system time shows it is the host's now. */
static void write_wall_clock(struct vcpu *v, uint64_t gpa)
{
	uint64_t sec, start;
	uint32_t nsec;

	clock_wall(&sec, &nsec);
	start = sec * NS_PER_S + nsec - clock_now(v->vm->clock);
	struct wall_clock wall = {.sec = (uint32_t)(start / NS_PER_S), .nsec = (uint32_t)(start % NS_PER_S)};
	publish(v, gpa, &wall, sizeof(wall));
}

/* So that ns = ((ticks << shift) * mul) >> 32, with the greatest mul that fits: mul / 2^32 * 2^shift = NS_PER_S / hz.
 */
static void scale(uint64_t hz, uint32_t *mul, int8_t *shift)
{
	unsigned __int128 m = ((unsigned __int128)NS_PER_S << 64) / hz; /* 64 bits of fraction */
	int8_t s = -32;

	for (; m > UINT32_MAX; s++)
		m >>= 1;
	*mul = (uint32_t)m;
	*shift = s;
}

/*
 * The VM's clock is the TSC: the guest's was `lead` when it began, and nothing but a write to the TSC changes that. So
 * the structure is written once, and says the same on all processors.
 */
void pv_write_system_time(struct vcpu *v)
{
	struct system_time t = {.tsc_timestamp = vcpu_tsc_lead(v), .flags = FLAG_STABLE};

	if (!(v->pv.system_time & ENABLED))
		return;
	scale(clock_tsc_hz(v->vm->clock), &t.mul, &t.shift);
	publish(v, v->pv.system_time & ~(uint64_t)ENABLED, &t, sizeof(t));
}

/* ---- Steal time ---- */

struct steal_time {
	uint64_t steal;
	_Atomic uint32_t version;
	uint32_t flags;
	_Atomic uint8_t preempted;
	uint8_t pad[47];
};
_Static_assert(sizeof(struct steal_time) == 64, "msr.rst");
enum { PREEMPTED = 1, FLUSH_TLB = 2 };
#define STEAL_RESERVED 0x3e
#define STEAL_PERIOD_NS 10000000u

/* NULL: not enabled. Whoever has written to it says so by steal_written. */
static struct steal_time *steal_time(const struct vcpu *v)
{
	if (!(v->pv.steal_time & ENABLED))
		return NULL;
	return guest_memory_ptr(&v->vm->mem, v->pv.steal_time & ~(uint64_t)ENABLED, sizeof(struct steal_time), true);
}

static void steal_written(const struct vcpu *v)
{
	guest_memory_wrote(&v->vm->mem, v->pv.steal_time & ~(uint64_t)ENABLED, sizeof(struct steal_time));
}

/* How long this thread, the processor's, could have run and did not, since it began. */
static uint64_t time_stolen(const struct vcpu *v)
{
	uint64_t lived = host_now_ns() - v->started,
		 ran = host_thread_time_ns() + vcpu_time_elsewhere(v) + v->time_halted;

	return lived - MIN(lived, ran);
}

/* The host's two clocks differ by a little: what is stolen never shrinks for that. */
static void update_steal(struct vcpu *v, struct steal_time *t)
{
	uint64_t stolen = time_stolen(v);

	if (!v->pv.stolen)
		v->pv.stolen = stolen;
	if (stolen <= v->pv.stolen)
		return;
	t->version |= 1;
	t->steal += stolen - v->pv.stolen;
	t->version++;
	v->pv.stolen = stolen;
	steal_written(v);
}

void pv_enter_guest(struct vcpu *v)
{
	uint64_t now;
	struct steal_time *t;

	if (!(v->pv.steal_time & ENABLED))
		return;
	now = clock_now(v->vm->clock);
	if (now < v->pv.steal_due)
		return;
	v->pv.steal_due = now + STEAL_PERIOD_NS;
	t = steal_time(v);
	if (t)
		update_steal(v, t);
}

/*
 * A processor that sleeps is said to be preempted: others need not wake it to have its TLB flushed, but leave word,
 * which it finds before it runs on.
 */
void pv_asleep(struct vcpu *v)
{
	struct steal_time *t = steal_time(v);

	if (!t)
		return;
	t->preempted = PREEMPTED;
	steal_written(v);
}

void pv_awake(struct vcpu *v)
{
	struct steal_time *t = steal_time(v);

	if (!t)
		return;
	if (atomic_exchange(&t->preempted, 0) & FLUSH_TLB && v->cpu->ops)
		v->cpu->ops->flush_all(v->cpu, true, -1);
	steal_written(v);
}

/* ---- End of interrupt ---- */

static _Atomic uint8_t *eoi_flag(const struct vcpu *v)
{
	return guest_memory_ptr(&v->vm->mem, v->pv.eoi & ~(uint64_t)ENABLED, 4, true);
}

static void set_eoi_flag(struct vcpu *v, bool value)
{
	_Atomic uint8_t *flag = eoi_flag(v);

	if (!flag)
		return;
	*flag = (uint8_t)((*flag & ~1u) | value);
	guest_memory_wrote(&v->vm->mem, v->pv.eoi & ~(uint64_t)ENABLED, 1);
}

/*
 * The guest may end the interrupt by clearing the flag if nothing else comes of the end: no other is in service or
 * waits, and no device listens. One that is requested later kicks the processor, which then finds out.
 */
void pv_interrupt_delivered(struct vcpu *v)
{
	if (!(v->pv.eoi & ENABLED) || !lapic_eoi_is_plain(v->lapic))
		return;
	set_eoi_flag(v, true);
	v->pv.eoi_offered = true;
}

/* Before anyone looks at the local APIC: has the guest ended its interrupt? If not, it now has to tell the APIC. */
void pv_leave_guest(struct vcpu *v)
{
	_Atomic uint8_t *flag;

	if (!v->pv.eoi_offered)
		return;
	v->pv.eoi_offered = false;
	flag = eoi_flag(v);
	if (flag && !(*flag & 1))
		lapic_end_interrupt(v->lapic);
	else
		set_eoi_flag(v, false);
}

/* ---- MSRs ---- */

static bool set_eoi(struct vcpu *v, uint64_t value)
{
	if (value & 2 || ((value & ENABLED) && !guest_memory_ptr(&v->vm->mem, value & ~(uint64_t)ENABLED, 4, true)))
		return false;
	v->pv.eoi = value;
	return true;
}

static bool set_steal_time(struct vcpu *v, uint64_t value)
{
	uint64_t gpa = value & ~(uint64_t)ENABLED;

	if (value & STEAL_RESERVED ||
	    ((value & ENABLED) && !guest_memory_ptr(&v->vm->mem, gpa, sizeof(struct steal_time), true)))
		return false;
	v->pv.steal_time = value;
	v->pv.stolen = time_stolen(v);
	v->pv.steal_due = 0;
	return true;
}

bool pv_has_msr(uint32_t msr)
{
	return msr == MSR_WALL_CLOCK_OLD || msr == MSR_SYSTEM_TIME_OLD || msr >> 8 == MSR_WALL_CLOCK >> 8;
}

bool pv_msr_write(struct vcpu *v, uint32_t msr, uint64_t value)
{
	switch (msr) {
	case MSR_WALL_CLOCK_OLD:
	case MSR_WALL_CLOCK:
		if (!offered(v, PV_CLOCK))
			return false;
		atomic_store(&v->vm->pv_wall_clock, value);
		write_wall_clock(v, value);
		return true;
	case MSR_SYSTEM_TIME_OLD:
	case MSR_SYSTEM_TIME:
		if (!offered(v, PV_CLOCK))
			return false;
		v->pv.system_time = value;
		pv_write_system_time(v);
		return true;
	case MSR_STEAL_TIME:
		return offered(v, PV_STEAL) && set_steal_time(v, value);
	case MSR_EOI_EN:
		return offered(v, PV_EOI) && set_eoi(v, value);
	default:
		return false;
	}
}

bool pv_msr_read(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	switch (msr) {
	case MSR_WALL_CLOCK_OLD:
	case MSR_WALL_CLOCK:
		*value = atomic_load(&v->vm->pv_wall_clock);
		return offered(v, PV_CLOCK);
	case MSR_SYSTEM_TIME_OLD:
	case MSR_SYSTEM_TIME:
		*value = v->pv.system_time;
		return offered(v, PV_CLOCK);
	case MSR_STEAL_TIME:
		*value = v->pv.steal_time;
		return offered(v, PV_STEAL);
	case MSR_EOI_EN:
		*value = v->pv.eoi;
		return offered(v, PV_EOI);
	default:
		return false;
	}
}

/* ---- Hypercalls ---- */

enum { HC_VAPIC_POLL_IRQ = 1, HC_KICK_CPU = 5, HC_SEND_IPI = 10 };
enum { HC_ENOSYS = -1000, HC_EPERM = -1, HC_EINVAL = -22 };

/* Wakes a processor from HLT, or keeps it from its next one. */
static int64_t kick_cpu(struct vcpu *v, uint64_t apic_id)
{
	if (apic_id >= v->vm->cpus)
		return HC_EINVAL;
	atomic_store(&v->vm->vcpu[apic_id].pv.kicked, true);
	vcpu_request(&v->vm->vcpu[apic_id], REQ_APIC);
	return 0;
}

static unsigned send_each(struct vcpu *v, uint64_t mask, uint64_t first, struct apic_message msg)
{
	unsigned sent = 0;

	for (; mask; mask &= mask - 1) {
		uint64_t id = first + (unsigned)__builtin_ctzll(mask);

		if (id >= v->vm->cpus)
			break;
		msg.dest = (uint32_t)id;
		sent += apic_bus_send(pc_apic(v->vm->pc), &msg);
	}
	return sent;
}

/* To the APIC IDs in two words of a bit map that begins with `first`; `icr` is that register's low half. */
static int64_t send_ipi(struct vcpu *v, uint64_t low, uint64_t high, uint64_t first, uint64_t icr, unsigned word)
{
	struct apic_message msg = {.wide = true, .mode = icr >> 8 & 7, .vector = icr & 0xff};

	if ((msg.mode != APIC_FIXED && msg.mode != APIC_NMI) || (msg.mode == APIC_FIXED && msg.vector < 16) ||
	    first > UINT32_MAX)
		return HC_EINVAL;
	return send_each(v, low, first, msg) + send_each(v, high, first + word, msg);
}

void pv_hypercall(struct vcpu *v)
{
	uint64_t *gpr = v->cpu->gpr;
	bool wide = x86_code64(v->cpu);
	uint64_t mask = wide ? UINT64_MAX : UINT32_MAX, number = gpr[RAX] & mask;
	uint64_t a[] = {gpr[RBX] & mask, gpr[RCX] & mask, gpr[RDX] & mask, gpr[RSI] & mask};
	int64_t result = HC_ENOSYS;

	if (v->cpu->cpl)
		result = HC_EPERM;
	else if (number == HC_VAPIC_POLL_IRQ)
		result = 0;
	else if (number == HC_KICK_CPU && offered(v, PV_LOCK))
		result = kick_cpu(v, a[1]);
	else if (number == HC_SEND_IPI && offered(v, PV_IPI))
		result = send_ipi(v, a[0], a[1], a[2], a[3], wide ? 64 : 32);
	gpr[RAX] = (uint64_t)result & mask;
}

bool pv_take_kick(struct vcpu *v)
{
	return atomic_load(&v->pv.kicked) && atomic_exchange(&v->pv.kicked, false);
}

/* ---- Life ---- */

void pv_reset(struct vcpu *v)
{
	v->pv.system_time = v->pv.steal_time = v->pv.eoi = 0;
	v->pv.eoi_offered = false;
	atomic_store(&v->pv.kicked, false);
	if (!v->index)
		atomic_store(&v->vm->pv_wall_clock, 0);
}

void pv_state(struct vcpu *v, struct state_stream *s)
{
	bool kicked = atomic_load(&v->pv.kicked);

	state_field(s, v->pv.system_time);
	state_field(s, v->pv.steal_time);
	state_field(s, v->pv.eoi);
	state_flag(s, &v->pv.eoi_offered);
	state_flag(s, &kicked);
	if (s->saving)
		return;
	atomic_store(&v->pv.kicked, kicked);
	v->pv.steal_time &= ~(uint64_t)STEAL_RESERVED;
	v->pv.eoi_offered &= v->pv.eoi & ENABLED;
	v->pv.stolen = v->pv.steal_due = 0; /* begins anew, from when it is looked at next */
}

/* The host that loads may have a TSC of another frequency. */
void pv_vm_state(struct vm *vm, struct state_stream *s)
{
	uint64_t wall_clock = atomic_load(&vm->pv_wall_clock);

	state_field(s, wall_clock);
	if (s->saving || s->failed)
		return;
	atomic_store(&vm->pv_wall_clock, wall_clock);
	for (unsigned i = 0; i < vm->cpus; i++)
		pv_write_system_time(&vm->vcpu[i]);
}

/* ---- What is offered ---- */

static const char *const names[X86_PVS] = {
	[PV_CLOCK] = "clock", [PV_DELAY] = "delay", [PV_STEAL] = "steal", [PV_EOI] = "eoi",
	[PV_IPI] = "ipi",     [PV_TLB] = "tlb",     [PV_LOCK] = "lock",
};
#define ALL (BIT(X86_PVS) - 1)

static bool is_word(const char *list, size_t len, const char *word)
{
	return strlen(word) == len && !strncmp(list, word, len);
}

static uint32_t find_word(const char *word, size_t len)
{
	for (unsigned i = 0; i < X86_PVS; i++)
		if (is_word(word, len, names[i]))
			return BIT(i) | (i == PV_TLB ? BIT(PV_STEAL) : 0);
	return 0;
}

bool pv_parse(const char *list, uint32_t *pv, struct error *err)
{
	*pv = !list || !strcmp(list, "all") ? ALL : 0;
	if (!list || !strcmp(list, "all") || !strcmp(list, "none"))
		return true;
	for (const char *word = list;; word++) {
		size_t len = strcspn(word, ",");
		uint32_t found = find_word(word, len);

		if (!found)
			return error_set(
				err,
				"pv '%s': there is no '%.*s': give all, none, or of clock, delay, steal, eoi, ipi, "
				"tlb and lock some with commas between them",
				list, (int)MIN(len, 64u), word);
		*pv |= found;
		word += len;
		if (!*word)
			return true;
	}
}
