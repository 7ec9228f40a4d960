/* String instructions on whole stretches of RAM, through host pointers: what makes REP MOVS and REP STOS worth their
 * name. */
#include "arch/x86/gen.h"

#include "bus/memory.h"

/* One operand's stretch: `count` elements from `p`, towards lower addresses when the direction flag is set. */
struct span {
	uint8_t *p;
	uint64_t gpa; /* of the lowest element, or SPAN_TOLD */
	uint64_t count;
};
#define SPAN_TOLD UINT64_MAX /* whoever wants to know of stores there sees to it (x86_cpu_ops.pointer) */

/* Elements of `size` bytes from `at` on that stay within `room` bytes above or `at` bytes below. */
static uint64_t fit(uint64_t at, uint64_t room, unsigned size, bool down)
{
	if (at + size > room)
		return 0;
	return down ? at / size + 1 : (room - at) / size;
}

/* Elements before the address register wraps around its size. */
static uint64_t fit_register(uint64_t off, unsigned addrsize, unsigned size, bool down)
{
	uint64_t mask = gen_mask(addrsize);
	if (off > mask - (size - 1))
		return 0;
	return down ? off / size + 1 : (mask - off - (size - 1)) / size + 1;
}

/* By the page tables: from `first` on, for an access that begins at `linear`. */
static bool span_find(struct x86_cpu *cpu, struct span *s, uint64_t linear, uint64_t first, unsigned size,
		      unsigned access)
{
	struct x86_mapping map;
	if (mmu_translate(cpu, linear, access, &map) != V_DONE)
		return false;
	s->gpa = map.gpa - (linear - first);
	s->p = guest_memory_ptr(cpu->mem, s->gpa, s->count * size, access & ACC_WRITE);
	if (!s->p)
		return false;
	guest_memory_touch(cpu->mem, s->p);
	return true;
}

/* False: no fast way from here (a page crossing, a fault to be, device memory), for `one` to sort out. */
static bool span_open(struct x86_cpu *cpu, struct span *s, enum x86_seg seg, uint64_t off,
		      const struct gen_string_op *op, uint64_t count, unsigned access)
{
	bool down = cpu->rflags & FL_DF;
	unsigned size = op->size;
	uint64_t linear, first;
	access |= x86_access_mode(cpu);
	if (x86_linear(cpu, seg, off, size, access, &linear) != V_DONE)
		return false;
	count = MIN(count, fit_register(off, op->addrsize, size, down));
	count = MIN(count, fit(linear & ~PAGE_MASK, PAGE_SIZE, size, down));
	if (!count)
		return false;
	first = down ? off - (count - 1) * size : off;
	if (x86_linear(cpu, seg, first, count * size, access, &first) != V_DONE)
		return false;
	s->count = count;
	s->gpa = SPAN_TOLD;
	s->p = mem_pointer(cpu, first, (unsigned)(count * size), access);
	if (!s->p && !span_find(cpu, s, linear, first, size, access))
		return false;
	s->p += linear - first;
	return true;
}

static inline uint64_t load(const uint8_t *p, unsigned size)
{
	switch (size) {
	case 1:
		return *(const volatile uint8_t *)p;
	case 2:
		return *(const volatile uint16_t *)p;
	case 4:
		return *(const volatile uint32_t *)p;
	default:
		return *(const volatile uint64_t *)p;
	}
}

/*
 * The host's own instruction of the same element size, so that operands that overlap come out as they must, and
 * elements are written whole. The host's direction flag is turned only around the instruction.
 */
#define HOST_MOVS(letter)                                                                                      \
	do {                                                                                                   \
		if (down)                                                                                      \
			asm volatile("std; rep movs" letter "; cld" : "+D"(d), "+S"(s), "+c"(n) : : "memory"); \
		else                                                                                           \
			asm volatile("rep movs" letter : "+D"(d), "+S"(s), "+c"(n) : : "memory");              \
	} while (0)
#define HOST_STOS(letter)                                                                                    \
	do {                                                                                                 \
		if (down)                                                                                    \
			asm volatile("std; rep stos" letter "; cld" : "+D"(d), "+c"(n) : "a"(v) : "memory"); \
		else                                                                                         \
			asm volatile("rep stos" letter : "+D"(d), "+c"(n) : "a"(v) : "memory");              \
	} while (0)

static void host_movs(uint8_t *d, const uint8_t *s, uint64_t n, unsigned size, bool down)
{
	switch (size) {
	case 1:
		HOST_MOVS("b");
		break;
	case 2:
		HOST_MOVS("w");
		break;
	case 4:
		HOST_MOVS("l");
		break;
	default:
		HOST_MOVS("q");
		break;
	}
}

static void host_stos(uint8_t *d, uint64_t v, uint64_t n, unsigned size, bool down)
{
	switch (size) {
	case 1:
		HOST_STOS("b");
		break;
	case 2:
		HOST_STOS("w");
		break;
	case 4:
		HOST_STOS("l");
		break;
	default:
		HOST_STOS("q");
		break;
	}
}

/* Compares until the ending ZF comes up or `n` are done; returns how many were. Flags are those of the last. */
static uint64_t compare(struct x86_cpu *cpu, const struct gen_string_op *op, const uint8_t *s, const uint8_t *d,
			uint64_t n)
{
	int64_t step = cpu->rflags & FL_DF ? -(int64_t)op->size : op->size;
	uint64_t a = zext(cpu->gpr[RAX], op->size), b = 0, done = 0;
	while (done < n) {
		if (s)
			a = load(s + (int64_t)done * step, op->size);
		b = load(d + (int64_t)done * step, op->size);
		done++;
		if ((a == b) == op->stop_zf)
			break;
	}
	gen_flags_compare(cpu, a, b, op->size);
	return done;
}

static void step_register(struct x86_cpu *cpu, const struct gen_string_op *op, unsigned reg, uint64_t n)
{
	uint64_t bytes = n * op->size;
	gen_set_reg(cpu, reg, cpu->rflags & FL_DF ? cpu->gpr[reg] - bytes : cpu->gpr[reg] + bytes, op->addrsize);
}

uint64_t gen_string_bulk(struct x86_cpu *cpu, const struct gen_string_op *op, uint64_t count)
{
	struct span src = {.count = count}, dst = {.count = count};
	bool down = cpu->rflags & FL_DF;
	uint64_t rsi = zext(cpu->gpr[RSI], op->addrsize), rdi = zext(cpu->gpr[RDI], op->addrsize);
	if (op->src && !span_open(cpu, &src, op->src_seg, rsi, op, count, ACC_READ))
		return 0;
	if (op->dst && !span_open(cpu, &dst, SEG_ES, rdi, op, src.count, op->compare ? ACC_READ : ACC_WRITE))
		return 0;
	uint64_t n = MIN(src.count, dst.count);
	if (op->compare && dst.p)
		n = compare(cpu, op, src.p, dst.p, n);
	else if (op->opcode == 0xa5)
		host_movs(dst.p, src.p, n, op->size, down);
	else if (op->opcode == 0xab)
		host_stos(dst.p, cpu->gpr[RAX], n, op->size, down);
	else if (src.p) /* LODS: the last element is what stays */
		gen_set_reg(cpu, RAX, load(src.p + (down ? -1 : 1) * (int64_t)((n - 1) * op->size), op->size),
			    op->size);
	if (op->dst && !op->compare && dst.gpa != SPAN_TOLD)
		guest_memory_wrote(cpu->mem, dst.gpa + (down ? (dst.count - n) * op->size : 0), n * op->size);
	if (op->src)
		step_register(cpu, op, RSI, n);
	if (op->dst)
		step_register(cpu, op, RDI, n);
	return n;
}
