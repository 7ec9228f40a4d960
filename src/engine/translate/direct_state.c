/* A virtual CPU's user state as a process of Linux's has it (direct.h). Compiled for general registers only. */
#include "engine/translate/light.h"

/* What user code sees of RFLAGS and can change; the rest is as Linux has it for every program. */
#define USER_FLAGS (FL_ARITH | FL_TF | FL_DF | FL_NT | FL_AC | FL_ID)
#define LINUX_FLAGS (FL_IOPL | FL_IF | FL_VM | FL_VIF | FL_VIP | FL_TF | FL_NT | FL_AC | FL_ID)

static bool selectors_fit(const struct x86_cpu *cpu)
{
	static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	for (unsigned i = 0; i < ARRAY_LEN(data); i++)
		if (cpu->seg[data[i]].sel && cpu->seg[data[i]].sel != HOST_SPACE_SS)
			return false;
	return cpu->seg[SEG_CS].sel == HOST_SPACE_CS && cpu->seg[SEG_SS].sel == HOST_SPACE_SS;
}

bool direct_fits(const struct tr_vcpu *v, uint32_t key)
{
	const struct x86_cpu *cpu = &v->cpu;
	return !(key & (KEY_GATES | KEY_SLOW)) && selectors_fit(cpu) && (cpu->rflags & LINUX_FLAGS) == FL_IF &&
	       !cpu->shadow && !cpu->db_pending && cpu->seg[SEG_FS].base < HOST_SPACE_TOP &&
	       cpu->seg[SEG_GS].base < HOST_SPACE_TOP;
}

void direct_state_get(const struct x86_cpu *cpu, struct host_space_state *state)
{
	for (unsigned i = 0; i < X86_GPRS; i++)
		state->gpr[i] = cpu->gpr[i];
	for (unsigned i = 0; i < X86_SEGS; i++)
		state->sel[i] = cpu->seg[i].sel;
	state->rip = cpu->rip;
	state->rflags = cpu->rflags & (USER_FLAGS | FL_IF | FL_FIXED1);
	state->fs_base = cpu->seg[SEG_FS].base;
	state->gs_base = cpu->seg[SEG_GS].base;
}

enum verdict direct_state_put(struct x86_cpu *cpu, const struct host_space_state *state)
{
	for (unsigned i = 0; i < X86_GPRS; i++)
		cpu->gpr[i] = state->gpr[i];
	cpu->rip = state->rip;
	cpu->rflags = (cpu->rflags & ~(uint64_t)(USER_FLAGS | FL_RF)) | (state->rflags & USER_FLAGS);
	cpu->seg[SEG_FS].base = state->fs_base;
	cpu->seg[SEG_GS].base = state->gs_base;
	return x86_adopt_selectors(cpu, state->sel);
}
