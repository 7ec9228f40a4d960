/* The thunk and the emulator, instruction by instruction. */
#include "diff.h"

#include "arch/x86/emulate.h"
#include "bus/memory.h"
#include "engine/translate/thunk.h"
#include "host/guest_signals.h"

#include <stdlib.h>
#include <string.h>

static struct guest_memory mem;
static struct x86_cpu *cpu;
static struct thunk *thunk;

static bool step_start(const struct x86_cpuid_model *model)
{
	cpu = aligned_alloc(64, align_up(sizeof(*cpu), 64));
	thunk = thunk_create();
	if (!cpu || !thunk || !guest_layout(&mem))
		return false;
	if (!host_guest_signals_init(thunk_claim_fault) || !host_guest_signals_thread_enter())
		return false;
	*cpu = (struct x86_cpu){.mem = &mem, .model = model};
	x86_cpu_reset(cpu, false);
	return true;
}

enum verdict step_one(const struct x86_insn *insn)
{
	switch (insn->cls) {
	case CLS_PLAIN:
	case CLS_SPECIAL:
		return thunk_step(thunk, cpu, insn);
	case CLS_SYSTEM:
		return x86_emulate_system(cpu, insn);
	case CLS_TOOLONG:
		return x86_raise_error(cpu, X86_GP, 0);
	case CLS_INVALID:
		return x86_raise(cpu, X86_UD);
	default:
		return x86_emulate_general(cpu, insn);
	}
}

/* Until it leaves the case's code, or faults. A repeated string instruction takes several calls. */
static enum verdict run_to_end(const struct diff_case *c)
{
	struct x86_insn insn;
	uint64_t at;
	enum verdict v;

	for (unsigned i = 0; i < 10000; i++) {
		at = cpu->rip - c->in.rip;
		x86_decode(&insn, c->code + at, c->len - at, c->mode, cpu->model);
		v = step_one(&insn);
		if (v == V_INJECT || v == V_EXIT)
			return v;
		at = cpu->rip - c->in.rip;
		if (at >= c->len || (c->count == 1 && (at != 0 || insn.cls == CLS_BRANCH)))
			return V_DONE;
	}
	return V_RETRY;
}

const struct x86_cpu *step_load(const struct diff_case *c)
{
	memset(guest_memory_ptr(&mem, GUEST_CODE, PAGE_SIZE, true), 0xcc, PAGE_SIZE);
	guest_memory_load(&mem, c);
	guest_cpu_load(cpu, c);
	return cpu;
}

void step_store(enum verdict v, struct diff_result *r)
{
	r->vector = v == V_INJECT ? cpu->exc.vector : v == V_DONE ? -1 : -2;
	r->error = v == V_INJECT && cpu->exc.has_error ? cpu->exc.error : 0;
	r->cr2 = v == V_INJECT && cpu->exc.vector == X86_PF ? cpu->exc.cr2 : 0;
	guest_cpu_store(cpu, &r->out);
	r->memory = guest_memory_ptr(&mem, GUEST_WINDOW, WINDOW_SIZE, true);
}

static void run_step(const struct diff_case *c, struct diff_result *r)
{
	step_load(c);
	step_store(run_to_end(c), r);
}

const struct backend backend_step = {"step", false, step_start, run_step};
