/*
 * SYSCALL and SYSRET from translated code. All that they change of how code is to be run is the privilege, so the key
 * and the windows of what comes next follow from those at hand, and tlb_mode_changed need not look at all the
 * processor's state. Compiled for general registers only.
 */
#include "engine/translate/light.h"

/* Of a key, what they leave. */
#define KEY_STAYS (KEY_MODE | KEY_COMMON)

/* The instruction has retired. */
static uint64_t retired(struct tr_vcpu *v)
{
	v->noshare = false;
	flags_from_cpu(v);
	if (window_open(v))
		poll_set(v);
	return light_go_on(v);
}

uint64_t light_syscall(struct tr_vcpu *v, uint64_t at)
{
	const struct call_insn *call = record(v->engine, (uint32_t)at);
	struct x86_cpu *cpu = &v->cpu;
	uint32_t key = v->key & KEY_STAYS;

	if (cpu->shadow || !(v->key & KEY_USER))
		return light_system(v, at);
	flags_to_cpu(v);
	set_rip(v, call->off);
	if (!x86_syscall_quickly(cpu, cpu->rip + call->insn.len))
		return light_system(v, at);
	v->stats.helper_calls++;
	v->direct.due = false;
	key |= (cpu->rflags & FL_AC ? MMU_KERNEL_AC : (unsigned)(key_mmu_kernel(key))) << KEY_MMU_SHIFT;
	if (!(cpu->rflags & FL_DF) && window_enter_kernel(v, key_mmu_kernel(key))) {
		quick_begin(v, true);
		key |= KEY_WINDOW;
	}
	if ((key & KEY_WINDOW) != v->jc_window)
		tlb_mode_changed(cpu);
	else
		v->key = key;
	return retired(v);
}

uint64_t light_sysret(struct tr_vcpu *v, uint64_t at)
{
	struct x86_cpu *cpu = &v->cpu;
	uint32_t key = (v->key & KEY_STAYS) | MMU_USER << KEY_MMU_SHIFT | KEY_USER;

	if (cpu->shadow || !x86_sysret_quickly(cpu))
		return light_system(v, at);
	v->stats.helper_calls++;
	v->direct.made_by_user.call_returns++;
	if (v->quick_stale || (cpu->rflags & FL_DF) || key != v->jc_shared || !window_enter(v) ||
	    v->windows.now->apart || v->engine->eager_direct) {
		tlb_mode_changed(cpu);
		return retired(v);
	}
	quick_begin(v, false);
	v->direct.due = false;
	v->key = key | KEY_WINDOW;
	return retired(v);
}
