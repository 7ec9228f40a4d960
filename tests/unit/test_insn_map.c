/* A packed map says of each host byte what was packed. */
#include "engine/translate/insn_map.h"
#include "unit.h"

#define ENTRIES 200

static uint64_t seed = 1;

static unsigned pick(unsigned below)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(seed >> 33) % below;
}

/* Mostly as a block's: the next instruction a little further on, the state as before. */
static unsigned make(struct insn_map *map)
{
	unsigned n = 1 + pick(ENTRIES);
	map[0] = (struct insn_map){.host = 0, .off = (uint16_t)pick(4096), .flags_in_host = pick(2)};
	for (unsigned i = 1; i < n; i++) {
		map[i] = map[i - 1];
		map[i].host = (uint16_t)(map[i].host + (pick(10) ? pick(40) : pick(600)));
		if (pick(4))
			map[i].off = (uint16_t)(pick(10) ? (map[i].off + pick(16)) % 4096 : pick(4096));
		if (!pick(4))
			map[i].flags_in_host = pick(2);
		if (!pick(8))
			if (!pick(4))
				map[i].dirty = pick(8) & 7;
		if (!pick(8))
			map[i].moved = pick(4) & 3;
		if (!pick(4))
			map[i].lent = pick(2) ? (uint8_t)pick(256) : 0;
	}
	return n;
}

static bool same(const struct insn_map *a, const struct insn_map *b)
{
	return a->off == b->off && a->flags_in_host == b->flags_in_host && a->dirty == b->dirty &&
	       a->moved == b->moved && a->lent == b->lent;
}

static void check(const struct insn_map *map, unsigned n, const uint8_t *packed, unsigned number)
{
	unsigned at = 0;
	for (unsigned host = 0; host < map[n - 1].host + 20u; host++) {
		while (at + 1 < n && map[at + 1].host <= host)
			at++;
		struct insn_map found = insn_map_find(packed, number, (uint16_t)host);
		if (!same(&found, &map[at])) {
			CHECK(same(&found, &map[at]));
			return;
		}
	}
}

TEST(says_what_was_packed)
{
	struct insn_map a[ENTRIES], b[ENTRIES];
	uint8_t packed[2 * ENTRIES * INSN_MAP_PACKED_MAX];
	for (unsigned i = 0; i < 50; i++) {
		unsigned n = make(a), m = make(b);
		size_t size = insn_map_pack(packed, a, n);
		CHECK(size <= (n + 1) * INSN_MAP_PACKED_MAX);
		size += insn_map_pack(packed + size, b, m);
		check(a, n, packed, 0);
		check(b, m, packed, 1);
	}
}

TEST(highest_values)
{
	struct insn_map map[2] = {{.off = 4095, .flags_in_host = true, .dirty = 7, .moved = 3, .lent = 255},
				  {.host = UINT16_MAX, .off = 0, .lent = 1}};
	uint8_t packed[3 * INSN_MAP_PACKED_MAX];
	struct insn_map found;
	insn_map_pack(packed, map, 2);
	found = insn_map_find(packed, 0, UINT16_MAX - 1);
	CHECK(same(&found, &map[0]));
	found = insn_map_find(packed, 0, UINT16_MAX);
	CHECK(same(&found, &map[1]));
}

/* What one entry says for both, and what is said of no byte, is left out. */
TEST(leaves_out)
{
	struct insn_map map[] = {{.off = 3}, {.host = 4, .off = 3}, {.host = 8, .off = 9}, {.host = 8, .off = 5}};
	uint8_t packed[5 * INSN_MAP_PACKED_MAX];
	insn_map_pack(packed, map, ARRAY_LEN(map));
	struct insn_map_reader r = insn_map_read(packed, 0);
	REQUIRE(insn_map_next(&r));
	CHECK_EQ(r.at.off, 3);
	REQUIRE(insn_map_next(&r));
	CHECK_EQ(r.at.host, 8);
	CHECK_EQ(r.at.off, 5);
	CHECK(!insn_map_next(&r));
}

TEST(empty)
{
	uint8_t packed[INSN_MAP_PACKED_MAX];
	CHECK_EQ(insn_map_pack(packed, NULL, 0), 1);
	struct insn_map_reader r = insn_map_read(packed, 0);
	CHECK(!insn_map_next(&r));
}

UNIT_MAIN()
