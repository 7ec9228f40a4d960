/*
 * Access to guest memory at linear addresses: one or two pages, each RAM, ROM or MMIO. Everything is checked before
 * anything is changed.
 */
#include "arch/x86/internal.h"
#include "bus/memory.h"

#define ACCESS_MAX 64

/* Loads and stores of any alignment that the compiler may neither split nor turn into calls. */
typedef uint64_t __attribute__((aligned(1), may_alias)) any64;
typedef uint32_t __attribute__((aligned(1), may_alias)) any32;
typedef uint16_t __attribute__((aligned(1), may_alias)) any16;

/* An aligned operand of 1, 2, 4 or 8 bytes goes in one piece, so that other processors see it whole. */
static void copy(void *dst, const void *src, unsigned len)
{
	volatile uint8_t *d = dst;
	const volatile uint8_t *s = src;

	for (; len >= 8; len -= 8, d += 8, s += 8)
		*(volatile any64 *)d = *(const volatile any64 *)s;
	if (len & 4) {
		*(volatile any32 *)d = *(const volatile any32 *)s;
		d += 4;
		s += 4;
	}
	if (len & 2) {
		*(volatile any16 *)d = *(const volatile any16 *)s;
		d += 2;
		s += 2;
	}
	if (len & 1)
		*d = *s;
}

static void fill_ones(uint8_t *dst, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		((volatile uint8_t *)dst)[i] = 0xff;
}

/* A part of an access that lies in one page. */
struct part {
	uint64_t gpa;
	unsigned len;
};

struct span {
	unsigned count;
	struct part part[2];
};

/* Translates all pages that [va, va+len) touches. */
static enum verdict span_translate(struct x86_cpu *cpu, uint64_t va, unsigned len, unsigned access, struct span *s)
{
	unsigned room = PAGE_SIZE - (va & ~PAGE_MASK);
	struct x86_mapping m;

	TRY(mmu_translate(cpu, va, access, &m));
	s->count = 1;
	s->part[0] = (struct part){m.gpa, MIN(len, room)};
	if (likely(len <= room))
		return V_DONE;
	TRY(mmu_translate(cpu, va + room, access, &m));
	s->count = 2;
	s->part[1] = (struct part){m.gpa, len - room};
	return V_DONE;
}

/* The size of the next piece of an MMIO access: the largest power of two up to 8 that fits. */
static unsigned piece_size(unsigned len)
{
	return len >= 8 ? 8 : len >= 4 ? 4 : len >= 2 ? 2 : 1;
}

/* The answer to the MMIO read that the last exit asked for joins those that the instruction got before. */
static bool take_answer(struct x86_cpu *cpu, uint64_t gpa, unsigned len)
{
	struct x86_exit *x = &cpu->exit;
	struct x86_mmio_replay *m = &cpu->mmio;

	if (x->kind != EXIT_MMIO || x->write || !x->completed || x->addr != gpa || x->len != len)
		return false;
	m->piece[m->count++] = (struct x86_mmio_piece){gpa, x->data, (uint8_t)len};
	x->kind = EXIT_NONE;
	x->completed = false;
	return true;
}

static enum verdict mmio_read_piece(struct x86_cpu *cpu, uint64_t gpa, unsigned len, uint64_t *data)
{
	struct x86_mmio_replay *m = &cpu->mmio;
	struct x86_mmio_piece *p = &m->piece[m->next];

	if (m->next < m->count && (p->addr != gpa || p->len != len))
		m->count = m->next; /* the instruction takes another course than last time */
	if (m->next == X86_MMIO_PENDING) {
		*data = ~0ull;
		return V_DONE;
	}
	if (m->next == m->count && !take_answer(cpu, gpa, len)) {
		cpu->exit = (struct x86_exit){.kind = EXIT_MMIO, .len = (uint8_t)len, .addr = gpa};
		m->next = 0;
		return V_EXIT;
	}
	*data = p->data;
	m->next++;
	return V_DONE;
}

static enum verdict mmio_read(struct x86_cpu *cpu, uint64_t gpa, uint8_t *dst, unsigned len)
{
	while (len) {
		unsigned n = piece_size(len);
		uint64_t data;

		TRY(mmio_read_piece(cpu, gpa, n, &data));
		copy(dst, &data, n);
		gpa += n;
		dst += n;
		len -= n;
	}
	return V_DONE;
}

static enum verdict part_read(struct x86_cpu *cpu, const struct part *p, uint8_t *dst, unsigned access)
{
	const void *src = guest_memory_ptr(cpu->mem, p->gpa, p->len, false);

	if (likely(src))
		copy(dst, src, p->len);
	else if (access & ACC_IMPLICIT)
		fill_ones(dst, p->len);
	else
		return mmio_read(cpu, p->gpa, dst, p->len);
	return V_DONE;
}

uint8_t *mem_pointer(struct x86_cpu *cpu, uint64_t va, unsigned len, unsigned access)
{
	if (!cpu->ops || !cpu->ops->pointer || x86_data_breakpoints_armed(cpu))
		return NULL;
	return cpu->ops->pointer(cpu, va, len, access);
}

enum verdict mem_read(struct x86_cpu *cpu, uint64_t va, void *dst, unsigned len, unsigned access)
{
	const uint8_t *host = mem_pointer(cpu, va, len, access);
	struct span s;
	uint8_t buf[ACCESS_MAX];

	if (likely(host)) {
		copy(dst, host, len);
		return V_DONE;
	}
	TRY(span_translate(cpu, va, len, access, &s));
	if (x86_data_breakpoints_armed(cpu) && !(access & ACC_IMPLICIT))
		x86_data_breakpoint(cpu, va, len, false);
	if (likely(s.count == 1))
		return part_read(cpu, &s.part[0], dst, access);
	TRY(part_read(cpu, &s.part[0], buf, access));
	TRY(part_read(cpu, &s.part[1], buf + s.part[0].len, access));
	copy(dst, buf, len);
	return V_DONE;
}

/* Puts a piece into the exit if that is free (*first), else into the queue behind it. */
static void mmio_write_piece(struct x86_cpu *cpu, uint64_t gpa, uint64_t data, unsigned len, bool *first)
{
	struct x86_mmio_queue *q = &cpu->mmio_out;

	if (*first) {
		cpu->exit = (struct x86_exit){
			.kind = EXIT_MMIO, .write = true, .len = (uint8_t)len, .addr = gpa, .data = data};
		q->count = q->next = 0;
		*first = false;
	} else if (q->count < X86_MMIO_PENDING) {
		q->piece[q->count++] = (struct x86_mmio_piece){gpa, data, (uint8_t)len};
	}
}

static void mmio_write(struct x86_cpu *cpu, uint64_t gpa, const uint8_t *src, unsigned len, bool *first)
{
	while (len) {
		unsigned n = piece_size(len);
		uint64_t data = 0;

		copy(&data, src, n);
		mmio_write_piece(cpu, gpa, data, n, first);
		gpa += n;
		src += n;
		len -= n;
	}
}

static void part_write(struct x86_cpu *cpu, const struct part *p, const uint8_t *src, unsigned access, bool *first)
{
	const struct guest_range *r = guest_range_find(cpu->mem, p->gpa, p->len);

	if (likely(r && !r->readonly)) {
		guest_memory_touch(cpu->mem, r->host + (p->gpa - r->gpa));
		copy(r->host + (p->gpa - r->gpa), src, p->len);
		guest_memory_wrote(cpu->mem, p->gpa, p->len);
	} else if (!r && !(access & ACC_IMPLICIT)) {
		mmio_write(cpu, p->gpa, src, p->len, first);
	}
}

enum verdict mem_write(struct x86_cpu *cpu, uint64_t va, const void *src, unsigned len, unsigned access)
{
	uint8_t *host = mem_pointer(cpu, va, len, access | ACC_WRITE);
	const uint8_t *from = src;
	bool first = true;
	struct span s;

	if (likely(host)) {
		copy(host, src, len);
		return V_DONE;
	}
	TRY(span_translate(cpu, va, len, access | ACC_WRITE, &s));
	if (x86_data_breakpoints_armed(cpu) && !(access & ACC_IMPLICIT))
		x86_data_breakpoint(cpu, va, len, true);
	part_write(cpu, &s.part[0], from, access, &first);
	if (unlikely(s.count == 2))
		part_write(cpu, &s.part[1], from + s.part[0].len, access, &first);
	return first ? V_DONE : V_EXIT;
}

enum verdict mem_probe(struct x86_cpu *cpu, uint64_t va, unsigned len, unsigned access)
{
	struct x86_mapping m;
	uint64_t last = va + len - 1;

	TRY(mmu_translate(cpu, va, access, &m));
	for (uint64_t page = (va & PAGE_MASK) + PAGE_SIZE; len && page - (va & PAGE_MASK) <= last - (va & PAGE_MASK);
	     page += PAGE_SIZE)
		TRY(mmu_translate(cpu, page, access, &m));
	return V_DONE;
}

/* Behind the last address instructions go on at 0 outside 64-bit mode, and nowhere behind the last canonical one. */
static enum verdict fetch_translate(struct x86_cpu *cpu, uint64_t va, struct x86_mapping *m)
{
	if (!x86_code64(cpu))
		va = (uint32_t)va;
	else if (!x86_canonical(va))
		return raise_gp(cpu, 0);
	return mmu_translate(cpu, va, ACC_EXEC | x86_access_mode(cpu), m);
}

unsigned mem_fetch(struct x86_cpu *cpu, uint64_t linear, uint8_t *dst, unsigned len, enum verdict *v)
{
	unsigned done = 0;

	*v = V_DONE;
	while (done < len) {
		uint64_t va = linear + done;
		unsigned n = MIN(len - done, (unsigned)(PAGE_SIZE - (va & ~PAGE_MASK)));
		struct x86_mapping m;

		*v = fetch_translate(cpu, va, &m);
		if (*v != V_DONE)
			break;
		/* Code in device memory reads as an empty bus does: FF FF is #UD. */
		part_read(cpu, &(struct part){m.gpa, n}, dst + done, ACC_IMPLICIT);
		done += n;
	}
	return done;
}

enum verdict x86_resume(struct x86_cpu *cpu)
{
	struct x86_exit *x = &cpu->exit;
	struct x86_mmio_queue *q = &cpu->mmio_out;

	if (x->kind == EXIT_MSR && x->write && x->fault) {
		cpu->rip -= x->len;
		*x = (struct x86_exit){0};
		return raise_gp(cpu, 0);
	}
	if (q->next < q->count) {
		const struct x86_mmio_piece *p = &q->piece[q->next++];

		*x = (struct x86_exit){
			.kind = EXIT_MMIO, .write = true, .len = p->len, .addr = p->addr, .data = p->data};
		return V_EXIT;
	}
	q->count = q->next = 0;
	if (x->write)
		x->kind = EXIT_NONE;
	return V_DONE;
}
