/* Unprivileged instructions that are not to be copied: XLAT, BOUND, direction flag, cache hints, decimal adjustment. */
#include "arch/x86/cpuid.h"
#include "arch/x86/gen.h"

/* The host's own comparison gives the flags. LAHF has SF ZF AF PF CF in RFLAGS' own places. */
#define HOST_COMPARE(type)                                                                          \
	({                                                                                          \
		uint16_t ax;                                                                        \
		asm("cmp %2, %1; lahf; seto %%al" : "=&a"(ax) : "r"((type)a), "r"((type)b) : "cc"); \
		ax;                                                                                 \
	})

void gen_flags_compare(struct x86_cpu *cpu, uint64_t a, uint64_t b, unsigned size)
{
	uint16_t ax;
	switch (size) {
	case 1:
		ax = HOST_COMPARE(uint8_t);
		break;
	case 2:
		ax = HOST_COMPARE(uint16_t);
		break;
	case 4:
		ax = HOST_COMPARE(uint32_t);
		break;
	default:
		ax = HOST_COMPARE(uint64_t);
		break;
	}
	uint64_t fl = (ax >> 8 & (FL_ARITH & 0xff)) | (ax & 1 ? FL_OF : 0);
	cpu->rflags = (cpu->rflags & ~(uint64_t)FL_ARITH) | fl;
}

static enum verdict xlat(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint64_t value, off = zext(cpu->gpr[RBX] + (uint8_t)cpu->gpr[RAX], insn->addrsize);
	enum verdict v = gen_read(cpu, gen_data_segment(insn), off, &value, 1);
	if (v != V_DONE)
		return v;
	gen_set_reg(cpu, RAX, value, 1);
	return gen_retire(cpu, insn, V_DONE);
}

/*
 * BOUND: two signed words in memory, lower and upper bound, both inclusive. Intel's processors look at the upper one
 * only where the lower one holds, which tells when they are in two pages.
 */
static enum verdict bound(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned size = insn->opsize;
	uint64_t lower, upper, off = x86_effective_address(cpu, insn);
	enum verdict v = gen_read(cpu, insn->seg, off, &lower, size);
	int64_t index = sext(cpu->gpr[insn->reg], size);
	if (v == V_DONE && index < sext(lower, size) && !x86_is_amd(cpu))
		return x86_raise(cpu, X86_BR);
	if (v == V_DONE)
		v = gen_read(cpu, insn->seg, zext(off + size, insn->addrsize), &upper, size);
	if (v != V_DONE)
		return v;
	if (index < sext(lower, size) || index > sext(upper, size))
		return x86_raise(cpu, X86_BR);
	return gen_retire(cpu, insn, V_DONE);
}

/* CLFLUSH, CLFLUSHOPT, CLWB: checked as a load of one byte, else nothing to do (Vol. 2, CLFLUSH). */
static enum verdict flush_line(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned access = ACC_READ | x86_access_mode(cpu);
	uint64_t linear;
	enum verdict v = x86_linear(cpu, insn->seg, x86_effective_address(cpu, insn), 1, access, &linear);
	if (v == V_DONE)
		v = mem_probe(cpu, linear, 1, access);
	return v != V_DONE ? v : gen_retire(cpu, insn, V_DONE);
}

/* CLZERO: the 64-byte line that holds the address in rAX (APM Vol. 3). */
static enum verdict clzero(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	static const uint64_t zeroes[8];
	unsigned access = ACC_WRITE | x86_access_mode(cpu);
	uint64_t linear, off = zext(cpu->gpr[RAX], insn->addrsize);
	enum verdict v = x86_linear(cpu, gen_data_segment(insn), off, 1, access, &linear);
	if (v == V_DONE)
		v = mem_write(cpu, linear & ~63ull, zeroes, 64, access);
	return v != V_DONE && v != V_EXIT ? v : gen_retire(cpu, insn, v);
}

/* 0F AE group: 66 /7 CLFLUSHOPT, /7 CLFLUSH, 66 /6 CLWB; and the fences, should they come here. */
static enum verdict group_ae(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	unsigned op = insn->modrm >> 3 & 7;
	if (insn->modrm >> 6 == 3 && op >= 5)
		return gen_retire(cpu, insn, V_DONE);
	if (op == 7 || (op == 6 && (insn->flags & INSN_OPSIZE)))
		return flush_line(cpu, insn);
	return x86_raise(cpu, X86_UD);
}

static enum verdict special_0f(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	switch (insn->opcode) {
	case 0x01:
		return insn->modrm == 0xfc ? clzero(cpu, insn) : x86_raise(cpu, X86_UD);
	case 0x0d: /* PREFETCHW and its kin */
	case 0x18 ... 0x1f:
		return gen_retire(cpu, insn, V_DONE);
	case 0xae:
		return group_ae(cpu, insn);
	default:
		return x86_raise(cpu, X86_UD);
	}
}

static enum verdict direction(struct x86_cpu *cpu, const struct x86_insn *insn, bool down)
{
	cpu->rflags = down ? cpu->rflags | FL_DF : cpu->rflags & ~(uint64_t)FL_DF;
	return gen_retire(cpu, insn, V_DONE);
}

enum verdict gen_special(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (insn->map == 1)
		return special_0f(cpu, insn);
	switch (insn->map ? 0 : insn->opcode) {
	case 0x62:
		return bound(cpu, insn);
	case 0xd7:
		return xlat(cpu, insn);
	case 0xfc:
		return direction(cpu, insn, false);
	case 0xfd:
		return direction(cpu, insn, true);
	default:
		return gen_bcd(cpu, insn);
	}
}
