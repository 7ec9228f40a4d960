/*
 * Code for one instruction, kept by the instruction's bytes. Guest registers are the host's of the same name, but for
 * RSP; the memory operand's address is in a register that the instruction does not name.
 */
#include "engine/translate/rewrite.h"
#include "engine/translate/thunk_internal.h"

#include <string.h>

/* A register that the instruction does not name, not RSP: low ones first, for they need no REX, which AH to BH do not
 * go with. */
static unsigned free_register(unsigned taken)
{
	static const uint8_t order[] = {RBP, RSI, RDI, RBX, RDX, RCX, RAX, R8, R9, R10};

	for (unsigned i = 0; i < ARRAY_LEN(order); i++) {
		if (!(taken & (1u << order[i])))
			return order[i];
	}
	return R11; /* no instruction names so many */
}

/* The registers that are named by an instruction's operands, without those of its address. */
static unsigned named_registers(const struct x86_insn *insn)
{
	unsigned named = insn->gpr_implicit | insn->gpr_write;

	if (insn->flags & INSN_REG_GPR)
		named |= 1u << (insn->flags & INSN_HIGH8 ? insn->reg & 3 : insn->reg) | 1u << insn->reg;
	if (insn->flags & INSN_RM_GPR)
		named |= 1u << (insn->flags & INSN_HIGH8 ? insn->rm & 3 : insn->rm) | 1u << insn->rm;
	if (insn->flags & INSN_VVVV_GPR)
		named |= 1u << insn->vvvv;
	if (insn->flags & INSN_OPREG_GPR)
		named |= 1u << insn->opreg | 1u << (insn->opreg & 3);
	return named;
}

/* jmp [rip + …]: the address is at the slot's end, aligned, for the guest's AC flag may be set. */
static void emit_return(struct emit *e)
{
	uint64_t done = (uint64_t)thunk_run_done;

	emit8(e, 0xff);
	emit8(e, 0x25);
	emit32(e, (uint32_t)(e->end - 8 - (e->p + 4)));
	memcpy(e->end - 8, &done, 8);
}

static bool make_slot(struct thunk *t, struct thunk_slot *s, unsigned index, const struct x86_insn *insn)
{
	struct rewrite_map map = {.mem_index = -1};
	uint8_t *at = t->code.rw + (size_t)index * THUNK_SLOT_SIZE;
	struct emit e = {.p = at, .end = at + THUNK_SLOT_SIZE};
	unsigned named = named_registers(insn);

	for (unsigned i = 0; i < X86_GPRS; i++)
		map.gpr[i] = (uint8_t)i;
	s->rsp = (uint8_t)free_register(named);
	s->mem = (uint8_t)free_register(named | 1u << s->rsp);
	map.gpr[RSP] = s->rsp;
	map.mem_base = (int8_t)s->mem;
	s->len = 0;
	if (!rewrite_plain(&e, insn, &map))
		return false;
	emit_return(&e);
	memcpy(s->bytes, insn->bytes, sizeof(s->bytes));
	s->len = insn->len;
	s->mode = insn->mode;
	return true;
}

static unsigned slot_index(const struct x86_insn *insn)
{
	uint64_t a, b = 0;

	memcpy(&a, insn->bytes, 8);
	memcpy(&b, insn->bytes + 8, 7);
	a = (a ^ b * 0x9e3779b97f4a7c15ull ^ insn->mode) * 0xff51afd7ed558ccdull;
	return (unsigned)(a >> 40) % THUNK_SLOTS;
}

/* Bytes beyond the instruction's length are zero in insn->bytes, so that whole arrays can be compared. */
const struct thunk_slot *thunk_find_slot(struct thunk *t, const struct x86_insn *insn)
{
	unsigned index = slot_index(insn);
	struct thunk_slot *s = &t->slot[index];

	if (s->len != insn->len || s->mode != insn->mode || memcmp(s->bytes, insn->bytes, sizeof(s->bytes)) != 0) {
		if (!make_slot(t, s, index, insn))
			return NULL;
	}
	t->run.code = t->code.rx + (size_t)index * THUNK_SLOT_SIZE;
	return s;
}
