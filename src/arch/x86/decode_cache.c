#include "arch/x86/decode_cache.h"

#include <string.h>

static unsigned hash(uint32_t bytes, unsigned bits)
{
	return bytes * 0x9e3779b1u >> (32 - bits);
}

/* Where an instruction of these bytes is if its head has one, two or more of them. */
static unsigned place(uint32_t bytes, unsigned head)
{
	if (head == 1)
		return DECODE_ONE + bytes;
	return head == 2 ? DECODE_TWO + hash(bytes, DECODE_TWO_BITS) : DECODE_MORE + hash(bytes, DECODE_MORE_BITS);
}

static uint32_t first_bytes(const uint8_t *p, unsigned n)
{
	uint32_t bytes = p[0];
	for (unsigned i = 1; i < n; i++)
		bytes |= (uint32_t)p[i] << 8 * i;
	return bytes;
}

static uint32_t tag(uint32_t bytes, enum x86_mode mode)
{
	return bytes | ((uint32_t)mode + 1) << 24;
}

/* The tag tells of three bytes. */
static bool is(const struct decode_entry *e, const uint8_t *p, size_t len)
{
	if (e->insn.len > len)
		return false;
	for (unsigned i = 3; i < e->shape.head; i++)
		if (e->insn.bytes[i] != p[i])
			return false;
	return true;
}

/* No instruction's head begins another's, so at most one is there. */
static const struct decode_entry *find(const struct x86_decode_cache *c, const uint8_t *p, size_t len,
				       enum x86_mode mode)
{
	for (unsigned head = 1; head <= 3 && head <= len; head++) {
		uint32_t bytes = first_bytes(p, head);
		unsigned at = place(bytes, head);
		if (c->tag[at] == tag(bytes, mode) && is(&c->entry[at], p, len))
			return &c->entry[at];
	}
	return NULL;
}

static uint64_t value(const uint8_t *p, unsigned len, bool is_signed)
{
	uint64_t v = 0;
	unsigned shift = 64 - 8 * len;
	if (!len)
		return 0;
	for (unsigned i = 0; i < len; i++)
		v |= (uint64_t)p[i] << 8 * i;
	return is_signed ? (uint64_t)((int64_t)(v << shift) >> shift) : v;
}

static void fill(struct x86_insn *insn, const struct decode_entry *e, const uint8_t *p)
{
	const struct decode_shape *s = &e->shape;
	*insn = e->insn;
	if (s->head == insn->len)
		return;
	memcpy(insn->bytes, p, insn->len);
	insn->disp = (int64_t)value(p + s->head, s->disp_len, true);
	insn->imm = value(p + s->head + s->disp_len, insn->imm_len, s->imm_signed);
}

void x86_decode_cached(struct x86_decode_cache *c, struct x86_insn *insn, const uint8_t *p, size_t len,
		       enum x86_mode mode, const struct x86_cpuid_model *model)
{
	const struct decode_entry *known = find(c, p, len, mode);
	struct decode_shape shape;
	if (known) {
		fill(insn, known, p);
		return;
	}
	decode_shaped(insn, p, len, mode, model, &shape);
	if (insn->cls == CLS_INVALID || insn->cls == CLS_TOOLONG || insn->cls == CLS_PARTIAL)
		return;
	unsigned head = MIN(shape.head, 3);
	uint32_t bytes = first_bytes(p, head);
	unsigned at = place(bytes, head);
	c->tag[at] = tag(bytes, mode);
	c->entry[at] = (struct decode_entry){*insn, shape};
}
