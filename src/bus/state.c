/* Saving and loading: the same calls in the same order both ways. */
#include "bus/bus.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_ROOM 4096u

/* The room of a stream that is being saved is not stored: it is what doubling from FIRST_ROOM has reached. */
static size_t room_for(size_t len)
{
	size_t room = FIRST_ROOM;

	while (room < len && room <= SIZE_MAX / 2)
		room *= 2;
	return MAX(room, len);
}

void state_refuse(struct state_stream *s, const char *why)
{
	if (!s->failed)
		s->why = why;
	s->failed = true;
}

static void save(struct state_stream *s, const void *field, size_t len)
{
	if (len > SIZE_MAX - s->len) {
		state_refuse(s, "more than fits into memory");
		return;
	}
	if (!s->data || room_for(s->len + len) != room_for(s->len)) {
		uint8_t *data = realloc(s->data, room_for(s->len + len));

		if (!data) {
			state_refuse(s, "more than fits into memory");
			return;
		}
		s->data = data;
	}
	memcpy(s->data + s->len, field, len);
	s->len += len;
	s->pos = s->len;
}

static void load(struct state_stream *s, void *field, size_t len)
{
	if (len > s->len - s->pos) {
		state_refuse(s, "an end too early");
		return;
	}
	memcpy(field, s->data + s->pos, len);
	s->pos += len;
}

void state_bytes(struct state_stream *s, void *field, size_t len)
{
	if (!len || s->failed)
		return;
	if (s->saving)
		save(s, field, len);
	else
		load(s, field, len);
}

void state_mark(struct state_stream *s, uint32_t mark)
{
	uint32_t found = mark;

	state_field(s, found);
	if (found != mark)
		state_refuse(s, "a part where another should be");
}

void state_end(struct state_stream *s)
{
	if (s->saving)
		free(s->data);
	*s = (struct state_stream){0};
}
