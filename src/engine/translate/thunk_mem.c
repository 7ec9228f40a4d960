/* Memory operands of thunks. */
#include "engine/translate/thunk_internal.h"

#include "bus/memory.h"

#include <string.h>

static unsigned access_of(const struct x86_cpu *cpu, bool write)
{
	return x86_access_mode(cpu) | (write ? ACC_WRITE : ACC_READ);
}

enum verdict thunk_linear(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, unsigned len, bool write,
			  uint64_t *linear)
{
	return x86_linear(cpu, seg, off, len, access_of(cpu, write), linear);
}

enum verdict thunk_probe(struct x86_cpu *cpu, uint64_t linear, unsigned len, bool write)
{
	return mem_probe(cpu, linear, len, access_of(cpu, write));
}

/* Long ranges go page by page when all of them are RAM; what is not goes in pieces that mem_read and mem_write take. */
static unsigned next_piece(uint64_t linear, unsigned len)
{
	return MIN(len, 64u - (unsigned)(linear & 63));
}

enum verdict thunk_read(struct x86_cpu *cpu, uint64_t linear, void *dst, unsigned len)
{
	enum verdict v;

	if (len <= 64)
		return mem_read(cpu, linear, dst, len, access_of(cpu, false));
	for (unsigned n; len; len -= n, linear += n, dst = (uint8_t *)dst + n) {
		n = next_piece(linear, len);
		v = mem_read(cpu, linear, dst, n, access_of(cpu, false));
		if (v != V_DONE)
			return v;
	}
	return V_DONE;
}

enum verdict thunk_write(struct x86_cpu *cpu, uint64_t linear, const void *src, unsigned len)
{
	enum verdict v;

	if (len <= 64)
		return mem_write(cpu, linear, src, len, access_of(cpu, true));
	v = thunk_probe(cpu, linear, len, true);
	for (unsigned n; len && v == V_DONE; len -= n, linear += n, src = (const uint8_t *)src + n) {
		n = next_piece(linear, len);
		v = mem_write(cpu, linear, src, n, access_of(cpu, true));
	}
	return v;
}

/* Guest memory itself, when the operand lies in one page of RAM: so it is atomic as far as the host's instruction is.
 */
static enum verdict open_in_place(struct x86_cpu *cpu, struct thunk_operand *op)
{
	struct x86_mapping m;
	enum verdict v;

	op->in_place = false;
	if ((op->linear & ~PAGE_MASK) + op->size > PAGE_SIZE)
		return V_DONE;
	v = mmu_translate(cpu, op->linear, access_of(cpu, op->write), &m);
	if (v != V_DONE)
		return v;
	op->gpa = m.gpa;
	op->host = guest_memory_ptr(cpu->mem, m.gpa, op->size, op->write);
	op->in_place = op->host;
	if (!op->in_place)
		return V_DONE;
	guest_memory_touch(cpu->mem, op->host);
	x86_note_access(cpu, op->linear, op->size, op->write);
	return V_DONE;
}

/*
 * What is in RAM there now: an x87 store with an unmasked exception leaves it so. Device memory is not read.
 */
static void prefill(struct x86_cpu *cpu, const struct thunk_operand *op)
{
	struct x86_mapping m;
	unsigned n;

	memset(op->host, 0, op->size);
	for (unsigned done = 0; done < op->size; done += n) {
		uint64_t at = op->linear + done;
		const void *p;

		n = MIN(op->size - done, (unsigned)(PAGE_SIZE - (at & ~PAGE_MASK)));
		if (mmu_translate(cpu, at, access_of(cpu, true), &m) != V_DONE)
			return;
		p = guest_memory_ptr(cpu->mem, m.gpa, n, false);
		if (p) {
			guest_memory_touch(cpu->mem, p);
			memcpy(op->host + done, p, n);
		}
	}
}

enum verdict thunk_operand_open(struct thunk *t, struct x86_cpu *cpu, struct thunk_operand *op)
{
	enum verdict v = open_in_place(cpu, op);

	if (v != V_DONE || op->in_place)
		return v;
	op->host = t->bounce + (op->linear & 63);
	if (op->write) {
		v = thunk_probe(cpu, op->linear, op->size, true);
		if (v != V_DONE)
			return v;
	}
	if (op->read)
		return thunk_read(cpu, op->linear, op->host, op->size);
	prefill(cpu, op);
	return V_DONE;
}

enum verdict thunk_operand_close(struct thunk *t, struct x86_cpu *cpu, const struct thunk_operand *op)
{
	if (!op->write)
		return V_DONE;
	if (!op->in_place)
		return thunk_write(cpu, op->linear, op->host, op->size);
	guest_memory_wrote(cpu->mem, op->gpa, op->size);
	return V_DONE;
}
