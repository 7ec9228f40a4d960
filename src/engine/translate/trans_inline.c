/*
 * Sensitive instructions that are common enough to be carried out in place. Each is checked against its helper by
 * tests/guest and tests/diff: what is not plain sailing is left to it.
 */
#include "engine/translate/rewrite.h"
#include "engine/translate/trans.h"

/* CPL 0: nothing about privilege is left to be checked. */
static bool ring0(const struct trans *t)
{
	return t->kernel;
}

static bool inline_cli(struct trans *t)
{
	flags_clobber(t);
	asm_alu_gs_imm(&t->e, ALU_AND, 4, VCPU_OFF(cpu.rflags), ~FL_IF);
	return true;
}

/* An interrupt that waits for this comes after the next instruction, where the block polls. */
static bool inline_sti(struct trans *t)
{
	flags_clobber(t);
	asm_alu_gs_imm(&t->e, ALU_OR, 4, VCPU_OFF(cpu.rflags), FL_IF);
	asm_store_gs_imm(&t->e, 1, VCPU_OFF(cpu.shadow), 1);
	asm_alu_gs_imm(&t->e, ALU_CMP, 4, VCPU_OFF(window), 0);
	struct cold *c = cold_add(t, COLD_WINDOW, asm_jcc(&t->e, CC_NE));
	c->resume = t->e.p;
	t->shadow = true;
	return true;
}

#define PUSHF_HIDDEN (FL_ARITH | FL_RF | FL_VM)

static bool inline_pushf(struct trans *t, const struct x86_insn *insn)
{
	struct emit *e = &t->e;
	if (insn->opsize != 8)
		return false;
	flags_clobber(t);
	asm_rm(e, 0x0fb6, 4, H_ADDR, true, -1, VCPU_OFF(saved_flags)); /* OF */
	asm_shift_imm(e, SH_SHL, 4, H_ADDR, 11);
	asm_rm(e, 0x0fb6, 4, H_TMP, true, -1, VCPU_OFF(saved_flags) + 1); /* the rest */
	asm_alu_imm(e, ALU_AND, 4, H_TMP, FL_ARITH & 0xff);
	asm_rr(e, 0x0b, 4, H_TMP, H_ADDR);
	asm_load_gs(e, 4, H_ADDR, VCPU_OFF(cpu.rflags));
	asm_alu_imm(e, ALU_AND, 4, H_ADDR, ~PUSHF_HIDDEN);
	asm_rr(e, 0x0b, 4, H_TMP, H_ADDR);
	asm_store_gs(e, 8, H_TMP, VCPU_OFF(temp));
	regs_flush(t);
	struct host_mem m = mem_stack(t, -8, true, 0);
	unsigned flags = regs_scratch(t, 0);
	asm_load_gs(e, 8, flags, VCPU_OFF(temp));
	mem_op(t, 0x89, 8, flags, &m);
	asm_lea(e, 8, RSP, RSP, -1, 1, -8);
	return true;
}

/* MOV of a segment register to a general one. */
static bool inline_selector(struct trans *t, const struct x86_insn *insn)
{
	int32_t selector = VCPU_OFF(cpu.seg[0].sel) + insn->reg * (int32_t)sizeof(struct x86_segment);
	if (insn->map || insn->opcode != 0x8c || insn->flags & INSN_MEM || insn->reg >= 6)
		return false;
	if (insn->opsize == 2)
		asm_load16_gs(&t->e, regs_use(t, insn->rm), selector);
	else
		asm_rm(&t->e, 0x0fb7, 4, regs_define(t, insn->rm), true, -1, selector);
	regs_written(t, 1u << insn->rm);
	return true;
}

static bool inline_swapgs(struct trans *t)
{
	int32_t base = VCPU_OFF(cpu.seg[0].base) + SEG_GS * (int32_t)sizeof(struct x86_segment);
	asm_load_gs(&t->e, 8, H_ADDR, base);
	asm_load_gs(&t->e, 8, H_DELTA, VCPU_OFF(cpu.kernel_gs_base));
	asm_store_gs(&t->e, 8, H_ADDR, VCPU_OFF(cpu.kernel_gs_base));
	asm_store_gs(&t->e, 8, H_DELTA, base);
	return true;
}

static bool inline_rdtsc(struct trans *t)
{
	static const uint8_t rdtsc[] = {0x0f, 0x31};
	struct emit *e = &t->e;
	flags_clobber(t);
	asm_mov(e, H_ADDR, RAX);
	asm_mov(e, H_DELTA, RDX);
	emit_bytes(e, rdtsc, sizeof(rdtsc));
	asm_shift_imm(e, SH_SHL, 8, RDX, 32);
	asm_rr(e, 0x0b, 8, RDX, RAX);
	asm_rm(e, 0x3b, 8, RDX, true, -1, VCPU_OFF(cpu.tsc_due));
	asm_mov(e, RAX, H_ADDR); /* as it was, if a timer that is due comes first */
	cold_add(t, COLD_STEP, asm_jcc(e, CC_AE))->rdx_in_delta = true;
	asm_rm(e, 0x03, 8, RDX, true, -1, VCPU_OFF(cpu.tsc_offset));
	asm_rr(e, 0x8b, 4, RAX, RDX);
	asm_shift_imm(e, SH_SHR, 8, RDX, 32);
	return true;
}

static bool inline_rdtscp(struct trans *t)
{
	if (!x86_has(t->eng->model, FEAT_RDTSCP))
		return false;
	inline_rdtsc(t);
	asm_load_gs(&t->e, 8, RCX, VCPU_OFF(cpu.tsc_aux));
	return true;
}

static void step_unless_fsgsbase(struct trans *t)
{
	const unsigned bit = __builtin_ctz(CR4_FSGSBASE);
	asm_test_gs_imm8(&t->e, VCPU_OFF(cpu.cr4) + (int32_t)bit / 8, 1u << bit % 8);
	cold_add(t, COLD_STEP, asm_jcc(&t->e, CC_E));
}

static void step_unless_canonical(struct trans *t, unsigned reg)
{
	asm_mov(&t->e, H_DELTA, reg);
	asm_shift_imm(&t->e, SH_SHL, 8, H_DELTA, 16);
	asm_shift_imm(&t->e, SH_SAR, 8, H_DELTA, 16);
	asm_rr(&t->e, 0x3b, 8, H_DELTA, reg);
	cold_add(t, COLD_STEP, asm_jcc(&t->e, CC_NE));
}

/* RDFSBASE and its like, of 64 bits. */
static bool inline_base(struct trans *t, const struct x86_insn *insn, unsigned seg, bool write)
{
	int32_t base = VCPU_OFF(cpu.seg[0].base) + (int32_t)(seg * sizeof(struct x86_segment));
	if (insn->flags & INSN_MEM || !(insn->flags & INSN_REXW))
		return false;
	regs_fixed(t);
	flags_clobber(t);
	step_unless_fsgsbase(t);
	if (write) {
		unsigned reg = guest_reg(t, insn->rm, H_ADDR);
		step_unless_canonical(t, reg);
		asm_store_gs(&t->e, 8, reg, base);
		return true;
	}
	unsigned reg = spilled(insn->rm) ? H_TMP : insn->rm;
	asm_load_gs(&t->e, 8, reg, base);
	if (spilled(insn->rm))
		asm_store_gs(&t->e, 8, reg, (int32_t)insn->rm * 8);
	return true;
}

/* STAC, CLAC: on with code for the other way of looking at memory, if SMAP makes one. */
static bool inline_ac(struct trans *t, bool set)
{
	unsigned mmu = set ? MMU_KERNEL_AC : key_mmu_kernel(t->key);
	uint32_t key = (next_key(t) & ~(uint32_t)KEY_MMU) | mmu << KEY_MMU_SHIFT;
	flags_clobber(t);
	asm_alu_gs_imm(&t->e, set ? ALU_OR : ALU_AND, 4, VCPU_OFF(cpu.rflags), set ? FL_AC : ~FL_AC);
	if (mmu == t->mmu)
		return true;
	asm_store_gs_imm(&t->e, 4, VCPU_OFF(key), (int32_t)key);
	if (key_windowed(key) && !t->window)
		window_stack_moved(t);
	if (!key_windowed(key))
		quick_tell_page(t);
	jump_to(t, t->next, key);
	return true;
}

/* Those that F3 belongs to. */
static bool trans_inline_f3(struct trans *t, const struct x86_insn *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_RDFSBASE:
		return inline_base(t, insn, SEG_FS, false);
	case ZYDIS_MNEMONIC_RDGSBASE:
		return inline_base(t, insn, SEG_GS, false);
	case ZYDIS_MNEMONIC_WRFSBASE:
		return inline_base(t, insn, SEG_FS, true);
	case ZYDIS_MNEMONIC_WRGSBASE:
		return inline_base(t, insn, SEG_GS, true);
	default:
		return false;
	}
}

/* At any CPL. */
static bool trans_inline3(struct trans *t, const struct x86_insn *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_PUSHFQ:
		return inline_pushf(t, insn);
	case ZYDIS_MNEMONIC_RDTSC:
		return !(t->key & KEY_TSD) && inline_rdtsc(t);
	case ZYDIS_MNEMONIC_RDTSCP:
		return !(t->key & KEY_TSD) && inline_rdtscp(t);
	default:
		return false;
	}
}

static bool trans_inline0(struct trans *t, const struct x86_insn *insn)
{
	switch (insn->mnemonic) {
	case ZYDIS_MNEMONIC_CLI:
		return inline_cli(t);
	case ZYDIS_MNEMONIC_STI:
		return inline_sti(t);
	case ZYDIS_MNEMONIC_SWAPGS:
		return inline_swapgs(t);
	case ZYDIS_MNEMONIC_STAC:
		return inline_ac(t, true);
	case ZYDIS_MNEMONIC_CLAC:
		return inline_ac(t, false);
	default:
		return false;
	}
}

bool trans_inline(struct trans *t, const struct x86_insn *insn)
{
	if (t->mode != MODE_64 || t->shadow || t->eng->no_inline || insn->flags & (INSN_LOCK | INSN_REPNE))
		return false;
	if (insn->flags & INSN_REP)
		return trans_inline_f3(t, insn);
	if (insn->mnemonic == ZYDIS_MNEMONIC_MOV)
		return inline_selector(t, insn);
	regs_fixed(t);
	return trans_inline3(t, insn) || (ring0(t) && trans_inline0(t, insn));
}

/*
 * BT, BTS, BTR, BTC with a bit string in memory: the register's high bits move the operand by whole words, the low ones
 * pick the bit (SDM Vol. 2, BT).
 */
bool trans_bit_string(struct trans *t, const struct x86_insn *insn)
{
	struct emit *e = &t->e;
	if (t->mode != MODE_64 || insn->addrsize != 8 || insn->opsize < 4 || t->eng->no_inline)
		return false;
	unsigned size = insn->opsize, log_bits = size == 8 ? 6 : 5;
	regs_fixed(t);
	flags_clobber(t);
	mem_address(t, insn, true);
	unsigned reg = guest_reg(t, insn->reg, H_TMP);
	asm_rr(e, size == 8 ? 0x8b : 0x63, 8, H_DELTA, reg); /* mov or movsxd */
	asm_shift_imm(e, SH_SAR, 8, H_DELTA, (uint8_t)log_bits);
	asm_lea(e, 8, H_ADDR, H_ADDR, H_DELTA, size, 0);
	asm_rr(e, 0x8b, 4, H_TMP, reg);
	asm_alu_imm(e, ALU_AND, 4, H_TMP, (int32_t)size * 8 - 1);
	asm_store_gs(e, 8, H_TMP, VCPU_OFF(temp));
	struct host_mem m = mem_check(t, size, insn->mem_write);
	if (flags_merge(insn))
		flags_need(t);
	asm_load_gs(e, 8, H_TMP, VCPU_OFF(temp));
	struct rewrite_map map = {.mem_base = (int8_t)m.base, .mem_index = m.index, .mem_disp = m.disp};
	map.gpr[insn->reg] = H_TMP;
	map_here(t);
	if (!rewrite_plain(e, insn, &map)) {
		trans_step(t);
		return true;
	}
	t->flags = FLAGS_HOST;
	return true;
}
