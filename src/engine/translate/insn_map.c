#include "engine/translate/insn_map.h"

#include <string.h>

/*
 * An entry is a head, what `host` advances by, and what the head announces. The head's low four bits are what `off`
 * advances by, or OFF_FOLLOWS.
 */
#define HEAD_OFF 0x0f
#define OFF_FOLLOWS 0x0f  /* two bytes: off itself */
#define HEAD_STATE 0x10   /* a byte: flags_in_host, dirty, moved */
#define HEAD_LENT 0x20    /* a byte: lent */
#define HEAD_END 0x80     /* instead of all of that */
#define HOST_FOLLOWS 0xff /* as what host advances by: two bytes: host itself */

static uint8_t state(const struct insn_map *m)
{
	return (uint8_t)(m->flags_in_host | m->dirty << 1 | m->moved << 4);
}

static bool same_insn(const struct insn_map *a, const struct insn_map *b)
{
	return a->off == b->off && a->lent == b->lent && state(a) == state(b);
}

static uint8_t *put16(uint8_t *out, uint16_t v)
{
	out[0] = (uint8_t)v;
	out[1] = (uint8_t)(v >> 8);
	return out + 2;
}

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint8_t *pack(uint8_t *out, const struct insn_map *m, const struct insn_map *last)
{
	uint8_t *head = out++;
	unsigned off = (unsigned)(m->off - last->off), host = (unsigned)(m->host - last->host);
	*head = (uint8_t)(off < OFF_FOLLOWS ? off : OFF_FOLLOWS);
	if (host < HOST_FOLLOWS) {
		*out++ = (uint8_t)host;
	} else {
		*out++ = HOST_FOLLOWS;
		out = put16(out, m->host);
	}
	if (*head == OFF_FOLLOWS)
		out = put16(out, m->off);
	if (state(m) != state(last)) {
		*head |= HEAD_STATE;
		*out++ = state(m);
	}
	if (m->lent != last->lent) {
		*head |= HEAD_LENT;
		*out++ = m->lent;
	}
	return out;
}

size_t insn_map_pack(uint8_t *out, const struct insn_map *map, unsigned n)
{
	uint8_t *p = out;
	struct insn_map last = {0};
	bool first = true;
	for (unsigned i = 0; i < n; i++) {
		if ((i + 1 < n && map[i + 1].host == map[i].host) || (!first && same_insn(&map[i], &last)))
			continue;
		p = pack(p, &map[i], &last);
		last = map[i];
		first = false;
	}
	*p++ = HEAD_END;
	return (size_t)(p - out);
}

bool insn_map_next(struct insn_map_reader *reader)
{
	struct insn_map *m = &reader->at;
	uint8_t head = *reader->p++;
	if (head & HEAD_END)
		return false;
	uint8_t host = *reader->p++;
	if (host == HOST_FOLLOWS) {
		m->host = get16(reader->p);
		reader->p += 2;
	} else {
		m->host = (uint16_t)(m->host + host);
	}
	if ((head & HEAD_OFF) == OFF_FOLLOWS) {
		m->off = get16(reader->p);
		reader->p += 2;
	} else {
		m->off = (uint16_t)(m->off + (head & HEAD_OFF));
	}
	if (head & HEAD_STATE) {
		uint8_t s = *reader->p++;
		m->flags_in_host = s & 1;
		m->dirty = s >> 1 & 7;
		m->moved = s >> 4 & 3;
	}
	if (head & HEAD_LENT)
		m->lent = *reader->p++;
	return true;
}

struct insn_map_reader insn_map_read(const uint8_t *packed, unsigned number)
{
	struct insn_map_reader reader = {.p = packed};
	while (number--) {
		while (insn_map_next(&reader))
			;
		reader.at = (struct insn_map){0};
	}
	return reader;
}

struct insn_map insn_map_find(const uint8_t *packed, unsigned number, uint16_t host)
{
	struct insn_map_reader reader = insn_map_read(packed, number);
	struct insn_map found = {0};
	while (insn_map_next(&reader) && reader.at.host <= host)
		found = reader.at;
	return found;
}
