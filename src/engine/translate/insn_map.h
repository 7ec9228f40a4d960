/*
 * Where each guest instruction's own host code is, and where the guest's state is there, to find the guest's from a
 * host fault. A block has ten of these or more and seldom needs one, so they are kept packed, two or three bytes each.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_INSN_MAP_H
#define DOPPEL_ENGINE_TRANSLATE_INSN_MAP_H

#include "base/base.h"

struct insn_map {
	uint16_t host; /* first byte after the part's start that belongs to this instruction or a later one */
	uint16_t off;  /* of the guest instruction in the page */
	bool flags_in_host : 1;
	uint8_t dirty : 3; /* guest registers R9, R10, R11 that the host's of the same number have, and memory has not
			    */
	uint8_t moved : 2; /* MOVED_*: these have host addresses, by the deltas in H_ADDR and H_DELTA */
	uint8_t lent; /* LENT(register, holder): a host register has something else for now, and another its value; 0:
			 none */
};
#define MOVED_RSI 1 /* by H_ADDR */
#define MOVED_RDI 2 /* by H_DELTA */
#define LENT(reg, holder) ((uint8_t)((holder) << 4 | (reg)))

#define INSN_MAP_PACKED_MAX 8 /* bytes an entry, and for the end */

/*
 * Packs `n` entries in the order of `host`, of which the first has host 0, and an end. What says the same as what is
 * before it is left out, and what says something of no byte. Returns the bytes at `out`.
 */
size_t insn_map_pack(uint8_t *out, const struct insn_map *map, unsigned n);

struct insn_map_reader {
	const uint8_t *p;
	struct insn_map at;
};

/* Of the map that is `number` maps behind the one at `packed`. */
struct insn_map_reader insn_map_read(const uint8_t *packed, unsigned number);
/* The next entry into reader->at; false at the end. */
bool insn_map_next(struct insn_map_reader *reader);
/* What the map says of host byte `host` of its part. */
struct insn_map insn_map_find(const uint8_t *packed, unsigned number, uint16_t host);

#endif
