/*
 * Any bytes through the decoder and the rewriter: whatever a guest's code page holds, fields stay in their ranges and
 * nothing is written beyond what is promised.
 */
#include "fuzz.h"

#include "arch/x86/decode_cache.h"
#include "engine/translate/rewrite.h"

static const char *check(const struct x86_insn *i, size_t len)
{
	if (i->len > 15 || i->len > len)
		return "length";
	if (i->cls > CLS_PARTIAL || (i->cls == CLS_PARTIAL) != (i->len == 0))
		return "class";
	if (i->cls == CLS_INVALID || i->cls == CLS_PARTIAL || i->cls == CLS_TOOLONG)
		return NULL;
	if (i->imm_off + i->imm_len > i->len || i->modrm_off >= i->len || i->opcode_off >= i->len)
		return "offsets";
	if (i->reg > 15 || i->rm > 15 || i->vvvv > 15 || i->opreg > 15 || i->base > 16 || i->index > 15 ||
	    i->base < -1 || i->index < -1)
		return "registers";
	if (i->seg >= X86_SEGS || (i->scale & (i->scale - 1)) || !i->scale || i->map > 3)
		return "operand";
	if (i->cls == CLS_PLAIN && (i->flags & INSN_MEM) && (i->mem_size == 0 || i->mem_size > 64))
		return "operand size";
	return NULL;
}

static const char *rewrite(const struct x86_insn *insn, struct input *in)
{
	uint8_t out[64];
	struct emit e = {out, out + sizeof(out)};
	unsigned choice = (unsigned)take(in, 1);
	struct rewrite_map map = {.mem_gs = choice & 1,
				  .mem_base = (int8_t)(choice >> 4),
				  .mem_index = -1,
				  .mem_disp = (int32_t)take(in, 4)};

	for (unsigned i = 0; i < X86_GPRS; i++) {
		uint8_t other = (uint8_t)take(in, 1);
		map.gpr[i] = other & 0xf0 ? (uint8_t)i : other & 15;
	}
	if (!rewrite_plain(&e, insn, &map) && e.p != out)
		return "bytes of an instruction that cannot be rewritten";
	return e.p - out > REWRITE_MAX ? "too long" : NULL;
}

/* Whatever the cache has met before. */
static bool cached_differs(const struct x86_insn *insn, const uint8_t *p, size_t len, enum x86_mode mode)
{
	static struct x86_decode_cache cache;
	struct x86_insn again[2];
	for (unsigned i = 0; i < 2; i++) {
		x86_decode_cached(&cache, &again[i], p, len, mode, NULL);
		if (memcmp(&again[i], insn, sizeof(*insn)))
			return true;
	}
	return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	enum x86_mode mode = (enum x86_mode)(take(&in, 1) % 3);
	struct x86_insn insn;
	size_t len = MIN(in.left, 16);
	const char *why;

	x86_decode(&insn, in.p, len, mode, NULL);
	if (cached_differs(&insn, in.p, len, mode))
		found("what was kept of an instruction like it");
	in.p += len;
	in.left -= len;
	why = check(&insn, len);
	if (!why && (insn.cls == CLS_PLAIN || insn.cls == CLS_SPECIAL))
		why = rewrite(&insn, &in);
	if (why)
		found(why);
	return 0;
}
