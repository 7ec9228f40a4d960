/*
 * Is what the decoder says of an instruction true? The translator lives by it: registers and flags that are not written
 * stay, those that are not read do not matter, and no byte outside the memory operand is touched.
 */
#include "diff.h"

#include <inttypes.h>
#include <string.h>
#include <Zydis/Zydis.h>

static bool wrong(char *why, size_t size, const char *what, uint64_t detail)
{
	snprintf(why, size, "%s: %#" PRIx64, what, detail);
	return false;
}

static uint64_t flags_read(const struct x86_insn *insn)
{
	return (insn->fl_read | (insn->fl_cond ? insn->fl_write : 0)) & FL_ARITH;
}

/* What is not written stays. */
static bool check_written(const struct diff_case *c, const struct diff_result *r, char *why, size_t size)
{
	const struct x86_insn *insn = &c->insn;
	uint64_t kept = FL_ARITH & ~(uint64_t)insn->fl_write;

	for (unsigned i = 0; i < X86_GPRS; i++) {
		if (!(insn->gpr_write & 1u << i) && r->out.gpr[i] != c->in.gpr[i])
			return wrong(why, size, "register written that should not be", i);
	}
	if ((r->out.rflags ^ c->in.rflags) & kept)
		return wrong(why, size, "flags written that should not be", (r->out.rflags ^ c->in.rflags) & kept);
	return true;
}

static bool check_memory(const struct diff_case *c, const struct diff_result *r, uint64_t at, char *why, size_t size)
{
	bool writes = c->insn.flags & INSN_MEM && c->insn.mem_write;

	for (uint64_t i = 0; i < WINDOW_SIZE; i++) {
		if (r->memory[i] != c->memory[i] && !(writes && WINDOW + i - at < c->insn.mem_size))
			return wrong(why, size, "byte written that should not be", WINDOW + i);
	}
	return true;
}

/* The same case with everything changed that is not read. */
static void disturb(struct diff_case *c, struct rng *r)
{
	uint64_t flags = FL_ARITH & ~flags_read(&c->insn);

	for (unsigned i = 0; i < X86_GPRS; i++) {
		if (!(c->insn.gpr_read & 1u << i) && i != RSP)
			c->in.gpr[i] = rng_next(r);
	}
	c->in.rflags = (c->in.rflags & ~flags) | (rng_next(r) & flags);
}

static bool check_read(const struct diff_case *c, const struct diff_result *a, const struct diff_result *b, char *why,
		       size_t size)
{
	const struct x86_insn *insn = &c->insn;
	uint64_t set = insn->fl_write & FL_ARITH & ~flags_undefined(insn);

	if (a->vector != b->vector)
		return wrong(why, size, "exception depends on what is not read", (uint64_t)b->vector);
	for (unsigned i = 0; i < X86_GPRS && a->vector < 0; i++) {
		if ((insn->gpr_write & 1u << i) && a->out.gpr[i] != b->out.gpr[i])
			return wrong(why, size, "register depends on what is not read", i);
	}
	if (a->vector < 0 && ((a->out.rflags ^ b->out.rflags) & set))
		return wrong(why, size, "flags depend on what is not read", (a->out.rflags ^ b->out.rflags) & set);
	return true;
}

bool check_facts(struct diff_case *c, const struct diff_result *first, char *why, size_t size)
{
	static uint8_t memory[WINDOW_SIZE];
	static struct diff_result second, one;
	struct rng r = {c->seed ^ 0x5555};
	uint64_t at = case_linear(c);

	if (c->insn.cls != CLS_PLAIN)
		return true;
	one = *first;
	memcpy(memory, first->memory, WINDOW_SIZE);
	one.memory = memory;
	if (one.vector < 0 && (!check_written(c, &one, why, size) || !check_memory(c, &one, at, why, size)))
		return false;
	disturb(c, &r);
	backend_native.run(c, &second);
	if (memcmp(memory, second.memory, WINDOW_SIZE) != 0)
		return wrong(why, size, "memory depends on what is not read", at);
	return check_read(c, &one, &second, why, size);
}
