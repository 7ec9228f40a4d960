/*
 * diff [--cases N] [--seed S] [--back-end step|translate|window|mixed] [--only MNEMONIC] [--mode 64|32] [--blocks |
 * --facts]
 * [--replay SEED] [--verbose] [--trace] Prints 'ok NAME' or 'FAIL NAME: why' for each group of instructions, and what
 * was not reached.
 */
#include "diff.h"

#include "engine/translate/thunk.h"
#include "host/guest_signals.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <Zydis/Zydis.h>

struct options {
	uint64_t cases, seed, replay;
	const char *backend, *only;
	int mode;
	bool blocks, facts, verbose, trace;
};

struct tally {
	uint64_t run, failed, refused, faulted, shown;
	uint64_t *by_mnemonic; /* cases run that did not fault */
	uint64_t *any;
};

static bool differs_by_design(const struct diff_case *c)
{
	const struct x86_insn *insn = &c->insn;

	if (c->count > 1 || insn->cls != CLS_SYSTEM)
		return false;
	if (insn->mnemonic == ZYDIS_MNEMONIC_MOV || insn->mnemonic == ZYDIS_MNEMONIC_PUSH ||
	    insn->mnemonic == ZYDIS_MNEMONIC_POP)
		return insn->map == 0 || insn->opcode >= 0x80; /* segment registers */
	return insn->mnemonic == ZYDIS_MNEMONIC_JMP || insn->mnemonic == ZYDIS_MNEMONIC_CALL ||
	       insn->mnemonic == ZYDIS_MNEMONIC_RET; /* far ones */
}

static void check_case(struct diff_case *c, struct tally *t, const struct options *o)
{
	static struct diff_result r;
	char why[300];

	backend_native.run(c, &r);
	t->run++;
	if (check_facts(c, &r, why, sizeof(why)))
		return;
	t->failed++;
	if (t->shown++ >= (o->verbose ? 200 : 20))
		return;
	printf("FAIL diff/facts/%s: %s; seed %#" PRIx64 "\n", c->name, why, c->seed);
	if (o->verbose || o->replay)
		print_case(c, &r, &r);
}

/*
 * A host that is virtualized in software cannot go back to a stack pointer that is not canonical after a page fault of
 * its own: it emulates the instruction, and refuses one that its emulator does not know.
 */
static bool host_refused(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got)
{
	return want->vector == X86_UD && got->vector != X86_UD && !x86_canonical(c->in.gpr[RSP]);
}

/* Such a host may also emulate where there was no need, when it was interrupted: then it answers otherwise the next
 * time. */
static bool host_wavers(const struct diff_case *c, const struct diff_result *want)
{
	static struct diff_result again;
	char why[300];

	backend_native.run(c, &again);
	return !compare_results(c, want, &again, false, why, sizeof(why));
}

/* Nor can it go back to translated code with such a stack pointer: what that came to counts if it comes to it again. */
static bool engine_wavers(const struct diff_case *c, const struct backend *b, const struct diff_result *want)
{
	static struct diff_result again;
	char why[300];

	if (x86_canonical(want->out.gpr[RSP]))
		return false;
	b->run(c, &again);
	return compare_results(c, want, &again, b->loose, why, sizeof(why));
}

static void run_case(const struct diff_case *c, const struct backend *b, struct tally *t, const struct options *o)
{
	static struct diff_result want, got;
	char why[300];

	if (o->trace)
		fprintf(stderr, "%#" PRIx64 " %s\n", c->seed, c->name);
	backend_native.run(c, &want);
	b->run(c, &got);
	t->run++;
	t->any[c->insn.mnemonic]++;
	if (want.vector >= 0)
		t->faulted++;
	else
		t->by_mnemonic[c->insn.mnemonic]++;
	if (compare_results(c, &want, &got, b->loose, why, sizeof(why)))
		return;
	if (host_refused(c, &want, &got) || host_wavers(c, &want) || engine_wavers(c, b, &want)) {
		t->refused++;
		return;
	}
	t->failed++;
	if (t->shown++ >= (o->verbose ? 200 : 20))
		return;
	printf("FAIL diff/%s/%s: %s; vector %d cr2 %" PRIx64 "; seed %#" PRIx64 "\n", b->name, c->name, why,
	       want.vector, want.cr2, c->seed);
	if (o->verbose || o->replay)
		print_case(c, &want, &got);
}

static void one_case(struct diff_case *c, const struct backend *b, struct tally *t, const struct options *o)
{
	if (o->facts)
		check_case(c, t, o);
	else
		run_case(c, b, t, o);
}

static bool case_of(struct diff_case *c, const struct templates *all, uint64_t seed, enum x86_mode mode,
		    const struct options *o, const struct x86_cpuid_model *model)
{
	struct rng r = {seed};
	unsigned n = rng_below(&r, all->mnemonics);

	if (o->blocks)
		return generate_block(c, all, seed, mode, model);
	if (o->only) {
		for (n = 0; n < all->mnemonics; n++) {
			if (strcmp(ZydisMnemonicGetString(all->mnemonic[n]), o->only) == 0)
				break;
		}
		if (n == all->mnemonics)
			return false;
	}
	if (not_reachable(all->mnemonic[n], mode))
		return false;
	return generate_one(c, all, n, seed, mode, model) && !differs_by_design(c);
}

static void report_reach(const struct templates *all, const struct tally *t, enum x86_mode mode)
{
	unsigned reached = 0, only_faults = 0;

	for (unsigned i = 0; i < all->mnemonics; i++) {
		uint16_t m = all->mnemonic[i];
		const char *why = not_reachable(m, mode), *name = ZydisMnemonicGetString(m);
		if (t->by_mnemonic[m]) {
			reached++;
		} else if (t->any[m]) {
			only_faults++;
			printf("  %s: faults in user mode, as it must\n", name);
		} else {
			printf("  %s: not reached: %s\n", name, why ? why : "no case came up");
		}
	}
	printf("  %u of %u mnemonics reached, %u more by their faults\n", reached, all->mnemonics, only_faults);
}

static bool run_mode(const struct options *o, const struct backend *b, enum x86_mode mode,
		     const struct x86_cpuid_model *model)
{
	static struct diff_case c;
	struct templates all;
	struct tally t = {0};
	uint64_t seed = o->seed;
	int bits = mode == MODE_64 ? 64 : 32;

	const char *kind = o->facts ? "facts" : o->blocks ? "blocks" : "single";

	if (!native_can_run(mode)) {
		printf("skip diff/%s/%s%d: this host's kernel runs no %d-bit code\n", b->name, kind, bits, bits);
		return true;
	}
	t.by_mnemonic = calloc(ZYDIS_MNEMONIC_MAX_VALUE + 1, sizeof(uint64_t));
	t.any = calloc(ZYDIS_MNEMONIC_MAX_VALUE + 1, sizeof(uint64_t));
	templates_init(&all, mode, model);
	if (o->replay) {
		if (case_of(&c, &all, o->replay, mode, o, model))
			one_case(&c, b, &t, o);
		return !t.failed;
	}
	for (uint64_t tries = 0; t.run < o->cases && tries < o->cases * 20; tries++) {
		if (case_of(&c, &all, seed++, mode, o, model))
			one_case(&c, b, &t, o);
	}
	printf("  %" PRIu64 " cases in %d-bit mode, %" PRIu64 " of them faulted, %u encodings\n", t.run, bits,
	       t.faulted, all.count);
	if (t.refused)
		printf("  %" PRIu64 " cases were refused by the host, or answered in two ways\n", t.refused);
	if (!o->blocks && !o->facts && !o->only)
		report_reach(&all, &t, mode);
	if (!t.failed)
		printf("ok diff/%s/%s%d\n", b->name, kind, bits);
	else
		printf("FAIL diff/%s/%s%d: %" PRIu64 " of %" PRIu64 " cases differ\n", b->name, kind, bits, t.failed,
		       t.run);
	return !t.failed;
}

static void parse(int argc, char **argv, struct options *o)
{
	for (int i = 1; i < argc; i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";
		if (!strcmp(argv[i], "--cases"))
			o->cases = strtoull(value, NULL, 0), i++;
		else if (!strcmp(argv[i], "--seed"))
			o->seed = strtoull(value, NULL, 0), i++;
		else if (!strcmp(argv[i], "--replay"))
			o->replay = strtoull(value, NULL, 0), i++;
		else if (!strcmp(argv[i], "--back-end"))
			o->backend = value, i++;
		else if (!strcmp(argv[i], "--only"))
			o->only = value, i++;
		else if (!strcmp(argv[i], "--mode"))
			o->mode = atoi(value), i++;
		else if (!strcmp(argv[i], "--blocks"))
			o->blocks = true;
		else if (!strcmp(argv[i], "--facts"))
			o->facts = true;
		else if (!strcmp(argv[i], "--trace"))
			o->trace = true;
		else if (!strcmp(argv[i], "--verbose"))
			o->verbose = true;
	}
}

int main(int argc, char **argv)
{
	struct options o = {.cases = 50000, .backend = "step", .seed = (uint64_t)time(NULL) << 20};
	const struct backend *b;
	static struct x86_cpuid_model model;
	bool good = true;

	parse(argc, argv, &o);
	b = strcmp(o.backend, "translate") == 0 ? &backend_translate
	    : strcmp(o.backend, "window") == 0  ? &backend_window
	    : strcmp(o.backend, "mixed") == 0   ? &backend_mixed
						: &backend_step;
	x86_cpuid_init(&model, 1, 1000000000);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("  seed %#" PRIx64 "\n", o.seed);
	if (!b->start(&model) || !backend_native.start(&model)) {
		printf("FAIL diff/%s: cannot start\n", b->name);
		return 1;
	}
	if (o.mode != 32)
		good &= run_mode(&o, b, MODE_64, &model);
	if (o.mode != 64)
		good &= run_mode(&o, b, MODE_32, &model);
	return good ? 0 : 1;
}
