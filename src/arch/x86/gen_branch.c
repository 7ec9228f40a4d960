/* Near branches: JMP, Jcc, CALL, RET, LOOPcc, JrCXZ (SDM Vol. 1 7.3.8, Vol. 2). */
#include "arch/x86/cpuid.h"
#include "arch/x86/gen.h"

/* Condition code `cc` of Jcc, SETcc, CMOVcc (SDM Vol. 1 appendix B). */
static bool condition(uint64_t fl, unsigned cc)
{
	bool sf_of = !(fl & FL_SF) != !(fl & FL_OF);
	bool r = false;
	switch (cc >> 1) {
	case 0:
		r = fl & FL_OF;
		break;
	case 1:
		r = fl & FL_CF;
		break;
	case 2:
		r = fl & FL_ZF;
		break;
	case 3:
		r = fl & (FL_CF | FL_ZF);
		break;
	case 4:
		r = fl & FL_SF;
		break;
	case 5:
		r = fl & FL_PF;
		break;
	case 6:
		r = sf_of;
		break;
	case 7:
		r = sf_of || (fl & FL_ZF);
		break;
	}
	return r != (cc & 1);
}

/* Checks a branch target cut to the operand size; *rip gets it. Nothing is changed on #GP(0). */
static enum verdict check_target(struct x86_cpu *cpu, uint64_t target, unsigned opsize, uint64_t *rip)
{
	target = zext(target, opsize);
	if (x86_code64(cpu) ? !x86_canonical(target) : target > cpu->seg[SEG_CS].limit)
		return x86_raise_error(cpu, X86_GP, 0);
	*rip = target;
	return V_DONE;
}

static uint64_t next_rip(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return cpu->rip + insn->len;
}

static enum verdict jump(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t target)
{
	uint64_t rip = 0;
	enum verdict v = check_target(cpu, target, insn->opsize, &rip);
	if (v == V_DONE)
		cpu->rip = rip;
	return v;
}

static enum verdict jump_relative(struct x86_cpu *cpu, const struct x86_insn *insn, bool taken)
{
	if (!taken)
		return gen_retire(cpu, insn, V_DONE);
	return jump(cpu, insn, next_rip(cpu, insn) + insn->imm);
}

/* E0 LOOPNE, E1 LOOPE, E2 LOOP count in CX, ECX or RCX by the address size; E3 JrCXZ only looks. */
static enum verdict loop(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t count = zext(cpu->gpr[RCX], insn->addrsize);
	if (insn->opcode == 0xe3)
		return jump_relative(cpu, insn, count == 0);
	count = zext(count - 1, insn->addrsize);
	bool zf = cpu->rflags & FL_ZF;
	bool taken = count && (insn->opcode == 0xe2 || zf == (insn->opcode == 0xe1));
	enum verdict v = jump_relative(cpu, insn, taken);
	if (v == V_DONE)
		gen_set_reg(cpu, RCX, count, insn->addrsize);
	return v;
}

static enum verdict call(struct x86_cpu *cpu, const struct x86_insn *insn, uint64_t target)
{
	uint64_t rip;
	unsigned stack = gen_stack_size(cpu);
	uint64_t sp = zext(cpu->gpr[RSP] - insn->opsize, stack);
	enum verdict v = gen_probe_write(cpu, SEG_SS, sp, insn->opsize); /* the stack's faults come first */
	if (v != V_DONE)
		return v;
	enum verdict target_good = check_target(cpu, target, insn->opsize, &rip);
	if (target_good != V_DONE && x86_is_amd(cpu))
		return target_good;
	v = gen_write(cpu, SEG_SS, sp, next_rip(cpu, insn), insn->opsize); /* Intel's have done so before they fault */
	if (v != V_DONE && v != V_EXIT)
		return v;
	if (target_good != V_DONE)
		return target_good;
	gen_set_reg(cpu, RSP, sp, stack);
	cpu->rip = rip;
	return v;
}

static enum verdict ret(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned stack = gen_stack_size(cpu);
	uint64_t target, sp = zext(cpu->gpr[RSP], stack);
	uint16_t release = insn->opcode == 0xc2 ? insn->bytes[insn->imm_off] | insn->bytes[insn->imm_off + 1] << 8 : 0;
	enum verdict v = gen_read(cpu, SEG_SS, sp, &target, insn->opsize);
	if (v == V_DONE)
		v = jump(cpu, insn, target);
	if (v == V_DONE)
		gen_set_reg(cpu, RSP, sp + insn->opsize + release, stack);
	return v;
}

/* FF /2 CALL r/m, FF /4 JMP r/m. */
static enum verdict indirect(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t target;
	enum verdict v = gen_read_rm(cpu, insn, &target, insn->opsize);
	if (v != V_DONE)
		return v;
	return (insn->modrm >> 3 & 7) == 2 ? call(cpu, insn, target) : jump(cpu, insn, target);
}

enum verdict gen_branch(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint8_t op = insn->opcode;
	if (insn->map == 1 ? (op & 0xf0) == 0x80 : (op & 0xf0) == 0x70)
		return jump_relative(cpu, insn, condition(cpu->rflags, op & 15));
	switch (insn->map ? 0 : op) {
	case 0xc2:
	case 0xc3:
		return ret(cpu, insn);
	case 0xe0:
	case 0xe1:
	case 0xe2:
	case 0xe3:
		return loop(cpu, insn);
	case 0xe8:
		return call(cpu, insn, next_rip(cpu, insn) + insn->imm);
	case 0xe9:
	case 0xeb:
		return jump_relative(cpu, insn, true);
	case 0xff:
		return indirect(cpu, insn);
	default:
		return x86_raise(cpu, X86_UD);
	}
}
