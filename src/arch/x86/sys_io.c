/* Port I/O: permission by IOPL and the TSS's bitmap (SDM Vol. 1 ch. 19), then an exit. */
#include "arch/x86/internal.h"

/* The bitmap says yes with zeroes; it may end early, and the byte after its last one must be inside the TSS too. */
static enum verdict check_bitmap(struct x86_cpu *cpu, uint16_t port, unsigned len)
{
	const struct x86_segment *tr = &cpu->seg[SEG_TR];
	uint16_t base, map;
	uint32_t off;

	if (!(tr->attr & SEG_ATTR_P) || !(tr->attr & 8) || tr->limit < 0x67)
		return raise_gp(cpu, 0);
	TRY(mem_read(cpu, tr->base + 0x66, &base, 2, ACC_IMPLICIT));
	off = base + port / 8u;
	if (off + 1 > tr->limit)
		return raise_gp(cpu, 0);
	TRY(mem_read(cpu, tr->base + off, &map, 2, ACC_IMPLICIT));
	if (map >> (port & 7) & (BIT(len) - 1))
		return raise_gp(cpu, 0);
	return V_DONE;
}

static enum verdict check_io(struct x86_cpu *cpu, uint16_t port, unsigned len)
{
	if (real_mode(cpu) || (cpu->cpl <= iopl(cpu) && !vm86_mode(cpu)))
		return V_DONE;
	return check_bitmap(cpu, port, len);
}

/* The low opcode bit tells bytes from words and doublewords, for all eight forms. */
static unsigned io_size(const struct x86_insn *insn)
{
	unsigned size = plain_opsize(insn);

	if (!(insn->opcode & 1))
		return 1;
	return size == 2 ? 2 : 4; /* REX.W does nothing */
}

static uint16_t io_port(const struct x86_cpu *cpu, const struct x86_insn *insn)
{
	return insn->opcode & 8 ? (uint16_t)cpu->gpr[RDX] : (uint16_t)(insn->imm & 0xff);
}

/* V_DONE when the monitor has answered this read, else V_EXIT with the question. */
static enum verdict port_read(struct x86_cpu *cpu, uint16_t port, unsigned len, uint64_t *value)
{
	struct x86_exit *x = &cpu->exit;

	if (x->kind == EXIT_IO && !x->write && x->completed && x->addr == port && x->len == len) {
		*value = x->data;
		*x = (struct x86_exit){0};
		return V_DONE;
	}
	*x = (struct x86_exit){.kind = EXIT_IO, .len = (uint8_t)len, .addr = port};
	return V_EXIT;
}

static enum verdict port_write(struct x86_cpu *cpu, uint16_t port, unsigned len, uint64_t value)
{
	cpu->exit = (struct x86_exit){
		.kind = EXIT_IO, .write = true, .len = (uint8_t)len, .addr = port, .data = zext(value, len)};
	return V_EXIT;
}

static void note_io(struct x86_cpu *cpu, uint16_t port, unsigned len)
{
	if (x86_data_breakpoints_armed(cpu))
		x86_io_breakpoint(cpu, port, len);
}

enum verdict sys_in(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint16_t port = io_port(cpu, insn);
	unsigned size = io_size(insn);
	uint64_t value;

	TRY(check_io(cpu, port, size));
	TRY(port_read(cpu, port, size, &value));
	note_io(cpu, port, size);
	gpr_set(cpu, RAX, value, size);
	return V_DONE;
}

enum verdict sys_out(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint16_t port = io_port(cpu, insn);
	unsigned size = io_size(insn);

	TRY(check_io(cpu, port, size));
	note_io(cpu, port, size);
	return port_write(cpu, port, size, cpu->gpr[RAX]);
}

static bool repeats(const struct x86_insn *insn)
{
	return insn->flags & (INSN_REP | INSN_REPNE);
}

/* RCX is counted down and RSI or RDI moved with the address size. */
static void advance(struct x86_cpu *cpu, const struct x86_insn *insn, unsigned index, unsigned size)
{
	uint64_t step = cpu->rflags & FL_DF ? -(uint64_t)size : size;
	bool more = false;

	gpr_set(cpu, index, cpu->gpr[index] + step, insn->addrsize);
	if (repeats(insn)) {
		gpr_set(cpu, RCX, cpu->gpr[RCX] - 1, insn->addrsize);
		more = gpr_get(cpu, RCX, insn->addrsize);
	}
	if (!more)
		cpu->rip = next_rip(cpu, insn);
}

static bool nothing_to_do(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	if (!repeats(insn) || gpr_get(cpu, RCX, insn->addrsize))
		return false;
	cpu->rip = next_rip(cpu, insn);
	return true;
}

enum verdict sys_ins(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint16_t port = (uint16_t)cpu->gpr[RDX];
	unsigned size = io_size(insn), mode = x86_access_mode(cpu);
	uint64_t linear, value;
	enum verdict v;

	TRY(check_io(cpu, port, size));
	if (nothing_to_do(cpu, insn))
		return V_DONE;
	TRY(x86_linear(cpu, SEG_ES, gpr_get(cpu, RDI, insn->addrsize), size, ACC_WRITE, &linear));
	TRY(check_alignment(cpu, linear, size));
	TRY(mem_probe(cpu, linear, size, mode | ACC_WRITE)); /* before the device gives its byte away */
	TRY(port_read(cpu, port, size, &value));
	v = mem_write(cpu, linear, &value, size, mode);
	if (x86_retires(cpu, v)) {
		note_io(cpu, port, size);
		advance(cpu, insn, RDI, size);
	}
	return v;
}

enum verdict sys_outs(struct x86_cpu *cpu, const struct x86_insn *insn)
{
	uint16_t port = (uint16_t)cpu->gpr[RDX];
	unsigned size = io_size(insn);
	uint64_t linear, value = 0;

	TRY(check_io(cpu, port, size));
	if (nothing_to_do(cpu, insn))
		return V_DONE;
	TRY(x86_linear(cpu, insn->seg, gpr_get(cpu, RSI, insn->addrsize), size, ACC_READ, &linear));
	TRY(check_alignment(cpu, linear, size));
	TRY(mem_read(cpu, linear, &value, size, x86_access_mode(cpu)));
	note_io(cpu, port, size);
	advance(cpu, insn, RSI, size);
	return port_write(cpu, port, size, value);
}
