/* Which block host code belongs to. Compiled for general registers only: light helpers and fault handlers ask. */
#include "engine/translate/code.h"

/* Blocks are made one after the other, so that they are sorted by the address of either part. */
static struct block *find_in(const struct tr_engine *eng, unsigned part, uint32_t at)
{
	unsigned lo = 0, hi = eng->blocks;
	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;
		if (block_of(eng, eng->sorted[mid])->start[part] <= at)
			lo = mid + 1;
		else
			hi = mid;
	}
	struct block *b = lo ? block_of(eng, eng->sorted[lo - 1]) : NULL;
	return b && at - b->start[part] < b->size[part] ? b : NULL;
}

struct block *code_find_host(const struct tr_engine *eng, const uint8_t *pc, unsigned *part)
{
	if (pc < eng->code.rx || pc >= eng->code.rx + eng->code.size)
		return NULL;
	*part = pc < code_rx(eng, eng->part_start[PART_COLD]) ? PART_HOT : PART_COLD;
	return find_in(eng, *part, (uint32_t)(pc - eng->code.rx));
}
