/*
 * Writing x86-64 machine code. An emitter has a write pointer into the writable view of the code buffer and knows how
 * far the executable view is from it. It never checks for space per byte: the owner asks emit_room() before each guest
 * instruction.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_EMIT_H
#define DOPPEL_ENGINE_TRANSLATE_EMIT_H

#include "arch/x86/insn.h"

#include <string.h>

struct emit {
	uint8_t *p; /* next byte, writable view */
	uint8_t *end;
};

static inline size_t emit_room(const struct emit *e)
{
	return (size_t)(e->end - e->p);
}

static inline void emit8(struct emit *e, uint8_t v)
{
	*e->p++ = v;
}

static inline void emit32(struct emit *e, uint32_t v)
{
	memcpy(e->p, &v, 4);
	e->p += 4;
}

static inline void emit64(struct emit *e, uint64_t v)
{
	memcpy(e->p, &v, 8);
	e->p += 8;
}

static inline void emit_bytes(struct emit *e, const void *src, size_t n)
{
	memcpy(e->p, src, n);
	e->p += n;
}

#endif
