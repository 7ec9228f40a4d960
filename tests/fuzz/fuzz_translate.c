/*
 * Any bytes as a user program: by the slow path, instruction by instruction, by the translator, and on the real
 * processor. All that the program could see must be the same.
 *
 * The input: a byte for the mode, two that say which registers point into the window, one for where in the code page
 * the code lies, four that seed all other state, and the code. The slow path goes first. Where it comes to an
 * instruction that cannot be compared, INT3 takes its place and ends the program there.
 */
#include "fuzz.h"

#include "native_parent.h"

#include <inttypes.h>
#include <Zydis/Zydis.h>

#define CODE_MAX 200
#define STEPS_MAX 1500
#define CUTS_MAX 24
#define INT3 0xcc

static struct x86_cpuid_model model;

static void start(void)
{
	x86_cpuid_init(&model, 1, 1000000000);
	if (!backend_step.start(&model) || !backend_translate.start(&model))
		found("cannot start");
	native_start();
}

/* --- The case --- */

/* On the real processor nothing may enter the host's kernel, from wherever the code is entered: SYSCALL, SYSENTER, INT.
 */
static void disarm(uint8_t *code, unsigned len)
{
	for (unsigned i = 0; i < len; i++) {
		bool call = code[i] == 0x0f && i + 1 < len && (code[i + 1] == 0x05 || code[i + 1] == 0x34);
		if (call || code[i] == 0xcd)
			code[i] = 0x90;
	}
}

static void make_case(struct diff_case *c, struct input *in)
{
	unsigned mode = (unsigned)take(in, 1), place, pointers = (unsigned)take(in, 2);
	struct rng r;

	c->mode = mode & 1 ? MODE_32 : MODE_64;
	place = (unsigned)take(in, 1);
	r.s = c->seed = take(in, 4);
	random_state(&r, c);
	for (unsigned i = 0; i < (c->mode == MODE_64 ? X86_GPRS : 8); i++)
		if (pointers & 1u << i && i != RSP)
			c->in.gpr[i] = random_window(&r, 8);
	c->len = (unsigned)MIN(in->left, CODE_MAX);
	/* Anywhere in the page, at its end too. */
	c->in.rip = CODE +
		    (place < 8 ? PAGE_SIZE - MIN(c->len, 16 + place) - (c->len > 16 + place ? c->len - 16 - place : 0)
			       : place * 15);
	memcpy(c->code, in->p, c->len);
	disarm(c->code, c->len);
	c->name = "fuzz";
	c->count = 0; /* compare_results looks at undefined[0] */
	c->undefined[0] = 0;
}

/* --- What can be compared --- */

static bool segment_or_far(const struct x86_insn *insn)
{
	if (insn->cls != CLS_SYSTEM)
		return false;
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
		return insn->map == 0 || insn->opcode >= 0x80;
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_RET:
		return true;
	default:
		return false;
	}
}

/* Not claimed to the guest: the host's processor may know it. */
static bool unclaimed(const struct x86_insn *insn, const uint8_t *bytes, size_t len)
{
	ZydisDecoder decoder;
	ZydisDecodedInstruction zi;
	ZydisDecoderContext ctx;

	if (insn->cls != CLS_INVALID)
		return false;
	ZydisDecoderInit(&decoder, insn->mode == MODE_64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
			 insn->mode == MODE_64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
	return ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, &ctx, bytes, len, &zi));
}

static unsigned prefixes(const uint8_t *bytes, size_t len)
{
	static const uint8_t all[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3};
	unsigned n = 0;

	while (n < len && (memchr(all, bytes[n], sizeof(all)) || (bytes[n] & 0xf0) == 0x40))
		n++;
	return n;
}

/* AltMovCr8, which guests are not told of: LOCK makes MOV CR0 one of CR8 (APM Vol. 3, MOV CRn). */
static bool moves_cr8(const uint8_t *bytes, size_t len)
{
	unsigned n = prefixes(bytes, len);

	return memchr(bytes, 0xf0, n) && n + 1 < len && bytes[n] == 0x0f && (bytes[n + 1] & ~2) == 0x20;
}

static bool comparable(const struct x86_insn *insn, const uint8_t *bytes, size_t len, uint64_t undefined)
{
	uint64_t reads = insn->fl_read | (insn->fl_cond ? insn->fl_write : 0);

	if (unclaimed(insn, bytes, len) || moves_cr8(bytes, len) || segment_or_far(insn))
		return false;
	/* How much of it Intel's processors fetch before they say so, and so whether it is too long, has not been seen.
	 */
	if (insn->cls == CLS_INVALID && !model.amd && (len < 15 || prefixes(bytes, len) > 3))
		return false;
	if (insn->cls == CLS_INVALID || insn->cls == CLS_TOOLONG)
		return true;
	if (not_reachable(insn->mnemonic, insn->mode) || reads & undefined)
		return false;
	/* Frames that overlap are read before they are written here, and one by one there. */
	if (insn->mnemonic == ZYDIS_MNEMONIC_ENTER && (insn->bytes[insn->len - 1] & 31) > 1)
		return false;
	/* Areas that hold addresses of earlier x87 instructions, and components that the guest does not have. */
	return !(insn->cls == CLS_SPECIAL && insn->flags & INSN_FPU && insn->flags & INSN_MEM);
}

/*
 * Intel's processors sometimes fetch what is behind the 15th byte before they say that there are too many: a page
 * fault.
 */
#define FETCHED 32

static bool ends_with_page(const struct x86_insn *insn, uint64_t at)
{
	return insn->cls == CLS_TOOLONG && !model.amd && at + FETCHED > PAGE_SIZE;
}

/* --- The slow path --- */

enum outcome { ENDED, CUT, GIVEN_UP };

/* One run up to its end, or to the first instruction that cannot be compared, which is cut away. */
static enum outcome trace(struct diff_case *c, struct diff_result *r)
{
	static uint8_t page[PAGE_SIZE + 15]; /* and what an instruction at its end might go on with */
	uint8_t *code = page + (c->in.rip - CODE);
	const struct x86_cpu *cpu = step_load(c);
	enum verdict v = V_DONE;

	memset(page, INT3, sizeof(page));
	memcpy(code, c->code, c->len);
	c->undefined[0] = 0;
	memset(&c->insn, 0, sizeof(c->insn));
	for (unsigned steps = 0;; steps++) {
		uint64_t at = cpu->rip - CODE;
		struct x86_insn insn;
		size_t len = at < PAGE_SIZE ? MIN(PAGE_SIZE - at, 15) : 0;

		if (steps == STEPS_MAX)
			return GIVEN_UP;
		if (!len || page[at] == INT3)
			break;
		x86_decode(&insn, page + at, len, c->mode, &model);
		if (insn.cls == CLS_PARTIAL) {
			if (model.amd)
				break;
			x86_decode(&insn, page + at, 15, c->mode, &model);
			if (insn.cls != CLS_INVALID)
				break;
		}
		if (ends_with_page(&insn, at) || !comparable(&insn, page + at, len, c->undefined[0])) {
			c->code[page + at - code] = INT3;
			return CUT;
		}
		c->insn = insn;
		v = step_one(&insn);
		if (v == V_INJECT)
			break;
		if (v == V_EXIT)
			return GIVEN_UP;
		/* A host that is virtualized in software does not return from an interrupt to such a stack pointer. */
		if (cpu->rflags & FL_TF || !x86_canonical(cpu->gpr[RSP])) {
			c->code[page + at - code] = INT3;
			return CUT;
		}
		c->undefined[0] =
			(c->undefined[0] & ~(uint64_t)(insn.fl_cond ? 0 : insn.fl_write)) | flags_undefined(&insn);
	}
	step_store(v == V_INJECT ? V_INJECT : V_DONE, r);
	return ENDED;
}

/* Where the guest has nothing the host might. */
static bool host_has(uint64_t rip)
{
	return rip >= GiB(4) && rip - CODE >= PAGE_SIZE;
}

static void compare(const struct diff_case *c, const struct diff_result *want, const struct diff_result *got,
		    const char *who)
{
	char why[300];

	if (compare_results(c, want, got, true, why, sizeof(why)))
		return;
	fprintf(stderr, "fuzz: %s: %s; vector %d not %d, last instruction %s\n", who, why, want->vector, got->vector,
		ZydisMnemonicGetString((ZydisMnemonic)c->insn.mnemonic));
	print_case(c, want, got);
	fflush(stdout);
	found("not as the processor does it");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct diff_case c;
	static struct diff_result native, step, translated;
	struct input in = {data, size};
	enum outcome outcome = CUT;

	if (!model.count)
		start();
	make_case(&c, &in);
	if (!c.len)
		return 0;
	for (unsigned cuts = 0; outcome == CUT && cuts < CUTS_MAX; cuts++)
		outcome = trace(&c, &step);
	if (outcome != ENDED)
		return 0;
	if (native_can_run(c.mode) && !host_has(step.out.rip) && native_ask(&c, &native))
		compare(&c, &native, &step, "slow path");
	else
		native = step;
	backend_translate.run(&c, &translated);
	compare(&c, &native, &translated, "translator");
	return 0;
}
