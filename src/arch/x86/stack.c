/* Frames on stacks, the current one or one that is being switched to: pushed and popped whole or not at all. */
#include "arch/x86/internal.h"

void stack_current(const struct x86_cpu *cpu, struct stack *s)
{
	bool wide = x86_code64(cpu);
	uint64_t mask = wide ? ~0ull : cpu->seg[SEG_SS].attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;

	s->ss = cpu->seg[SEG_SS];
	s->mask = mask;
	s->sp = cpu->gpr[RSP] & mask;
	s->access = x86_access_mode(cpu);
	s->wide = wide;
	s->ext = 0;
	s->sel = 0;
}

static enum verdict stack_offset(struct x86_cpu *cpu, const struct stack *s, uint64_t off, unsigned len,
				 unsigned access, uint64_t *linear)
{
	if (!s->wide)
		return seg_linear(cpu, &s->ss, true, (s->sel & ~3u) | s->ext, off, len, access, linear);
	*linear = off;
	if (!x86_canonical(off) || !x86_canonical(off + len - 1))
		return x86_raise_error(cpu, X86_SS, s->ext);
	return V_DONE;
}

/* The linear address of `n` items of `size` bytes at `off`, checked. */
static enum verdict stack_linear(struct x86_cpu *cpu, const struct stack *s, uint64_t off, unsigned n, unsigned size,
				 unsigned access, uint64_t *linear)
{
	TRY(stack_offset(cpu, s, off, n * size, access, linear));
	return s->access & ACC_USER ? check_alignment(cpu, *linear, size) : V_DONE;
}

#define FRAME_MAX 64

union frame {
	uint64_t q[FRAME_MAX / 8];
	uint8_t b[FRAME_MAX];
};

/* A frame that would not wrap around the stack pointer's mask and fits the buffer. */
static bool in_one_piece(const struct stack *s, uint64_t low, unsigned total)
{
	return total <= FRAME_MAX && low + (total - 1) <= s->mask && low + (total - 1) >= low;
}

static void frame_put(union frame *f, unsigned i, unsigned size, uint64_t value)
{
	if (size == 8) {
		f->q[i] = value;
		return;
	}
	for (unsigned k = 0; k < size; k++)
		f->b[i * size + k] = (uint8_t)(value >> (8 * k));
}

static uint64_t frame_get(const union frame *f, unsigned i, unsigned size)
{
	uint64_t value = 0;

	if (size == 8)
		return f->q[i];
	for (unsigned k = 0; k < size; k++)
		value |= (uint64_t)f->b[i * size + k] << (8 * k);
	return value;
}

static enum verdict push_whole(struct x86_cpu *cpu, const struct stack *s, uint64_t low, const uint64_t *items,
			       unsigned n, unsigned size)
{
	union frame f;
	uint64_t linear;

	TRY(stack_linear(cpu, s, low, n, size, ACC_WRITE, &linear));
	for (unsigned i = 0; i < n; i++)
		frame_put(&f, n - 1 - i, size, items[i]);
	return mem_write(cpu, linear, f.b, n * size, s->access);
}

/* Where the item is that is pushed as number i, from 0. */
static uint64_t item_below(const struct stack *s, unsigned i, unsigned size)
{
	return (s->sp - (i + 1ull) * size) & s->mask;
}

/* Item by item: checked in a first round, written in a second. */
static enum verdict push_pieces(struct x86_cpu *cpu, const struct stack *s, const uint64_t *items, unsigned n,
				unsigned size)
{
	enum verdict result = V_DONE;
	uint64_t linear;

	for (unsigned i = 0; i < n; i++) {
		TRY(stack_linear(cpu, s, item_below(s, i, size), 1, size, ACC_WRITE, &linear));
		TRY(mem_probe(cpu, linear, size, s->access | ACC_WRITE));
	}
	for (unsigned i = 0; i < n; i++) {
		TRY(stack_linear(cpu, s, item_below(s, i, size), 1, size, ACC_WRITE, &linear));
		if (mem_write(cpu, linear, &items[i], size, s->access) == V_EXIT)
			result = V_EXIT;
	}
	return result;
}

enum verdict stack_push(struct x86_cpu *cpu, struct stack *s, const uint64_t *items, unsigned n, unsigned size)
{
	uint64_t low = item_below(s, n - 1, size);
	enum verdict v;

	if (in_one_piece(s, low, n * size))
		v = push_whole(cpu, s, low, items, n, size);
	else
		v = push_pieces(cpu, s, items, n, size);
	if (v == V_DONE || v == V_EXIT)
		s->sp = low;
	return v;
}

static enum verdict pop_whole(struct x86_cpu *cpu, const struct stack *s, uint64_t *items, unsigned n, unsigned size)
{
	union frame f;
	uint64_t linear;

	TRY(stack_linear(cpu, s, s->sp, n, size, ACC_READ, &linear));
	TRY(mem_read(cpu, linear, f.b, n * size, s->access));
	for (unsigned i = 0; i < n; i++)
		items[i] = frame_get(&f, i, size);
	return V_DONE;
}

static enum verdict pop_pieces(struct x86_cpu *cpu, const struct stack *s, uint64_t *items, unsigned n, unsigned size)
{
	uint64_t linear;

	for (unsigned i = 0; i < n; i++) {
		items[i] = 0;
		TRY(stack_linear(cpu, s, (s->sp + (uint64_t)i * size) & s->mask, 1, size, ACC_READ, &linear));
		TRY(mem_read(cpu, linear, &items[i], size, s->access));
	}
	return V_DONE;
}

enum verdict stack_pop(struct x86_cpu *cpu, struct stack *s, uint64_t *items, unsigned n, unsigned size)
{
	if (in_one_piece(s, s->sp, n * size))
		TRY(pop_whole(cpu, s, items, n, size));
	else
		TRY(pop_pieces(cpu, s, items, n, size));
	s->sp = (s->sp + (uint64_t)n * size) & s->mask;
	return V_DONE;
}

void stack_commit(struct x86_cpu *cpu, const struct stack *s)
{
	if (s->mask == 0xffff)
		gpr_set(cpu, RSP, s->sp, 2);
	else
		cpu->gpr[RSP] = s->sp;
}
