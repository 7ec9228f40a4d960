/*
 * The guest's arithmetic flags live in the host's, and host code between guest instructions destroys them. They are
 * saved (LAHF, SETO) before the first host code that would, and restored (ADD to make OF, SAHF) before a reader; so at
 * every point where the guest can be interrupted or can fault they are whole in one of the two places, and the
 * translator knows in which.
 */
#include "engine/translate/trans.h"

/* RAX is in the register that this returns while something else is in it. */
static unsigned lend_rax(struct trans *t)
{
	unsigned holder = regs_scratch(t, 0);
	regs_lend(t, RAX, holder);
	return holder;
}

static void return_rax(struct trans *t, unsigned holder)
{
	regs_give_back(t, RAX, holder);
	regs_release(t, holder);
}

/* Saves the flags, which are in the host's and stay there. */
void flags_save(struct trans *t)
{
	static const uint8_t lahf_seto_al[] = {0x9f, 0x0f, 0x90, 0xc0};
	unsigned holder = lend_rax(t);
	emit_bytes(&t->e, lahf_seto_al, sizeof(lahf_seto_al));
	asm_store16_gs(&t->e, RAX, VCPU_OFF(saved_flags));
	return_rax(t, holder);
}

void flags_clobber(struct trans *t)
{
	if (t->flags == FLAGS_HOST)
		flags_save(t);
	t->flags = FLAGS_SAVED;
}

static void restore(struct trans *t)
{
	struct emit *e = &t->e;
	static const uint8_t add_al_sahf[] = {0x04, 0x7f, 0x9e}; /* add al, 0x7f: OF from 0 or 1; sahf: the rest */
	unsigned holder = lend_rax(t);
	asm_rm(e, 0x0fb7, 4, RAX, true, -1, VCPU_OFF(saved_flags));
	emit_bytes(e, add_al_sahf, sizeof(add_al_sahf));
	return_rax(t, holder);
}

void flags_need(struct trans *t)
{
	if (t->flags != FLAGS_SAVED)
		return;
	restore(t);
	t->flags = FLAGS_BOTH;
}

void flags_resume(struct trans *t, enum flags_at flags, const uint8_t *resume)
{
	t->flags = FLAGS_SAVED;
	if (flags != FLAGS_SAVED)
		flags_need(t);
	asm_patch32(asm_jmp(&t->e), resume);
}

bool flags_merge(const struct x86_insn *insn)
{
	unsigned written = insn->fl_write & FL_ARITH;
	return (insn->fl_read & FL_ARITH) || (written && (written != FL_ARITH || insn->fl_cond));
}

/* Bits of saved_flags that decide a condition and its opposite, by cc / 2; 0: not a test of one byte. */
static const struct {
	uint8_t byte, mask;
} saved_test[8] = {
	{0, 1},             /* O */
	{1, FL_CF},         /* B */
	{1, FL_ZF},         /* E */
	{1, FL_CF | FL_ZF}, /* BE */
	{1, FL_SF},         /* S */
	{1, FL_PF},         /* P */
	{0, 0},             /* L */
	{0, 0},             /* LE */
};

uint8_t *flags_jcc(struct trans *t, enum cc cc)
{
	if (t->flags == FLAGS_SAVED && saved_test[cc / 2].mask) {
		asm_test_gs_imm8(&t->e, VCPU_OFF(saved_flags) + saved_test[cc / 2].byte, saved_test[cc / 2].mask);
		cc = cc & 1 ? CC_E : CC_NE;
	} else {
		flags_need(t);
	}
	asm_align_rel32(&t->e, 2);
	return asm_jcc(&t->e, cc);
}
