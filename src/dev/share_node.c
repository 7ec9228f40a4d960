/*
 * What a guest knows of a shared folder and has open there: tables with bounds. A node id and a handle are a slot and
 * the number of times it was used before, so that one that was given back is not mistaken for its successor.
 */
#include "dev/share_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_ROOM 256u
#define HANDLES_LEAST 16u
#define TABLE_MOST 16384u
#define EVICT_TRIES 64u

static uint64_t make_id(uint32_t slot, uint32_t generation)
{
	return (uint64_t)generation << 32 | slot;
}

/* ---- Places: the most recently used keep their descriptors ---- */

static void list_add(struct share *s, uint32_t slot)
{
	struct share_node *n = &s->node[slot];

	n->newer = NO_NODE;
	n->older = s->newest;
	if (s->newest != NO_NODE)
		s->node[s->newest].newer = slot;
	else
		s->oldest = slot;
	s->newest = slot;
	s->places++;
}

static void list_remove(struct share *s, uint32_t slot)
{
	struct share_node *n = &s->node[slot];

	*(n->newer == NO_NODE ? &s->newest : &s->node[n->newer].older) = n->older;
	*(n->older == NO_NODE ? &s->oldest : &s->node[n->older].newer) = n->newer;
	s->places--;
}

static void drop_place(struct share *s, uint32_t slot)
{
	struct share_node *n = &s->node[slot];

	if (n->place < 0)
		return;
	list_remove(s, slot);
	host_folder_drop(n->place);
	n->place = -1;
}

/* Its descriptor goes and its path is kept. False: it has none to which it could be brought back. */
static bool evict(struct share *s, uint32_t slot)
{
	struct share_node *n = &s->node[slot];
	char path[HOST_PATH_MAX];

	if (n->handles || host_folder_path(s->host, n->place, path))
		return false;
	char *copy = strdup(path);
	if (!copy)
		return false;
	free(n->path);
	n->path = copy;
	drop_place(s, slot);
	return true;
}

bool share_node_evict(struct share *s)
{
	for (unsigned tries = EVICT_TRIES; tries && s->oldest != NO_NODE; tries--) {
		uint32_t slot = s->oldest;
		if (s->node[slot].used != s->call && evict(s, slot))
			return true;
		/* What must stay is not looked at again soon. */
		list_remove(s, slot);
		list_add(s, slot);
	}
	return false;
}

/* Most recently used, and not to be evicted by the call that uses it. */
static void touch(struct share *s, uint32_t slot)
{
	list_remove(s, slot);
	list_add(s, slot);
	s->node[slot].used = s->call;
}

/* False: there is no room for one more. */
static bool set_place(struct share *s, uint32_t slot, int place)
{
	while (s->places >= s->places_max)
		if (!share_node_evict(s))
			return false;
	s->node[slot].place = place;
	s->node[slot].used = s->call;
	list_add(s, slot);
	return true;
}

/* ---- Nodes ---- */

static uint32_t *bucket(struct share *s, uint64_t dev, uint64_t ino)
{
	uint64_t h = (ino ^ dev << 40) * 0x9e3779b97f4a7c15ull;

	return &s->hash[h >> 32 & (s->hash_size - 1)];
}

static bool same_thing(const struct share_node *n, const struct host_stat *st)
{
	return n->dev == st->dev && n->ino == st->ino && n->btime.sec == st->btime.sec &&
	       n->btime.nsec == st->btime.nsec && !((n->mode ^ st->mode) & MODE_KIND);
}

static uint32_t find(struct share *s, const struct host_stat *st)
{
	uint32_t slot = *bucket(s, st->dev, st->ino);

	while (slot != NO_NODE && !same_thing(&s->node[slot], st))
		slot = s->node[slot].next;
	return slot;
}

static void rehash(struct share *s)
{
	memset(s->hash, 0xff, s->hash_size * sizeof(*s->hash));
	for (uint32_t i = 0; i < s->nodes; i++) {
		struct share_node *n = &s->node[i];
		if (!n->lookups)
			continue;
		uint32_t *b = bucket(s, n->dev, n->ino);
		n->next = *b;
		*b = i;
	}
}

static bool grow(struct share *s)
{
	uint32_t room = s->node_room ? s->node_room * 2 : FIRST_ROOM;

	if (room > SHARE_NODES)
		return false;
	struct share_node *node = realloc(s->node, room * sizeof(*node));
	if (!node)
		return false;
	s->node = node;
	uint32_t *hash = realloc(s->hash, room * sizeof(*hash));
	if (!hash)
		return false;
	s->hash = hash;
	s->node_room = s->hash_size = room;
	rehash(s);
	return true;
}

static uint32_t take_slot(struct share *s)
{
	uint32_t slot = s->free_node;

	if (slot != NO_NODE) {
		s->free_node = s->node[slot].next;
		return slot;
	}
	if (s->nodes == s->node_room && !grow(s))
		return NO_NODE;
	s->node[s->nodes] = (struct share_node){.place = -1};
	return s->nodes++;
}

static void fill(struct share *s, uint32_t slot, const struct host_stat *st)
{
	struct share_node *n = &s->node[slot];
	uint32_t *b = bucket(s, st->dev, st->ino);

	*n = (struct share_node){
		.dev = st->dev,
		.ino = st->ino,
		.btime = st->btime,
		.mode = st->mode,
		.generation = n->generation,
		.place = -1,
		.next = *b,
	};
	*b = slot;
}

/* A new node without a place. NO_NODE: there is no room. */
static uint32_t new_node(struct share *s, const struct host_stat *st)
{
	uint32_t slot = take_slot(s);

	if (slot == NO_NODE)
		return slot;
	fill(s, slot, st);
	s->node[slot].lookups = 1;
	s->live++;
	return slot;
}

int share_node_add(struct share *s, int place, const struct host_stat *st, uint64_t *id)
{
	uint32_t slot = find(s, st);
	bool known = slot != NO_NODE;

	if (known)
		s->node[slot].lookups++;
	else
		slot = new_node(s, st);
	if (slot == NO_NODE) {
		host_folder_drop(place);
		return -ENFILE;
	}
	*id = make_id(slot, s->node[slot].generation);
	if (known && s->node[slot].place >= 0) {
		host_folder_drop(place);
		if (slot != FUSE_ROOT)
			touch(s, slot);
	} else if (!set_place(s, slot, place)) {
		host_folder_drop(place);
		share_node_forget(s, *id, 1);
		return -ENFILE;
	}
	return 0;
}

struct share_node *share_node_get(struct share *s, uint64_t id)
{
	uint32_t slot = (uint32_t)id;

	if (slot >= s->nodes || !s->node[slot].lookups || s->node[slot].generation != id >> 32)
		return NULL;
	return &s->node[slot];
}

/* Finds an evicted node again. */
static int bring_back(struct share *s, uint32_t slot)
{
	struct share_node *n = &s->node[slot];
	struct host_stat st;

	if (!n->path)
		return -ESTALE;
	int place = host_folder_walk(s->host, n->path, &st);
	if (place == -EMFILE && share_node_evict(s))
		place = host_folder_walk(s->host, n->path, &st);
	if (place < 0)
		return place == -EMFILE || place == -ENFILE ? -ENFILE : -ESTALE;
	if (!same_thing(n, &st)) {
		host_folder_drop(place);
		return -ESTALE;
	}
	if (set_place(s, slot, place))
		return place;
	host_folder_drop(place);
	return -ENFILE;
}

int share_node_place(struct share *s, uint64_t id)
{
	struct share_node *n = share_node_get(s, id);
	uint32_t slot = (uint32_t)id;
	char path[HOST_PATH_MAX];

	if (!n)
		return -ESTALE;
	if (slot == FUSE_ROOT)
		return n->place;
	if (n->place < 0)
		return bring_back(s, slot);
	touch(s, slot);
	/* What was moved out of the folder is out of reach, for all that we hold it. */
	int r = host_folder_path(s->host, n->place, path);
	return r == -ENAMETOOLONG || !r ? n->place : r;
}

static void unlink_hash(struct share *s, uint32_t slot)
{
	uint32_t *b = bucket(s, s->node[slot].dev, s->node[slot].ino);

	while (*b != slot)
		b = &s->node[*b].next;
	*b = s->node[slot].next;
}

static void free_node(struct share *s, uint32_t slot)
{
	struct share_node *n = &s->node[slot];

	for (unsigned i = 0; n->handles && i < s->handles; i++) {
		struct share_handle *h = &s->handle[i];
		if (h->file >= 0 && h->node == slot) {
			h->node = NO_NODE;
			n->handles--;
		}
	}
	unlink_hash(s, slot);
	drop_place(s, slot);
	free(n->path);
	*n = (struct share_node){.generation = n->generation + 1, .place = -1, .next = s->free_node};
	s->free_node = slot;
	s->live--;
}

void share_node_forget(struct share *s, uint64_t id, uint64_t lookups)
{
	struct share_node *n = share_node_get(s, id);

	if (!n || (uint32_t)id == FUSE_ROOT)
		return;
	if (n->lookups > lookups)
		n->lookups -= lookups;
	else
		free_node(s, (uint32_t)id);
}

void share_nodes_drop(struct share *s)
{
	for (uint32_t i = FUSE_ROOT + 1; i < s->nodes; i++)
		if (s->node[i].lookups)
			free_node(s, i);
}

void share_nodes_moved(struct share *s, const char *from, const char *to)
{
	size_t len = strlen(from), to_len = strlen(to);

	if (s->live == s->places)
		return; /* all have descriptors, which stay right by themselves */
	for (uint32_t i = FUSE_ROOT + 1; i < s->nodes; i++) {
		struct share_node *n = &s->node[i];
		if (!n->path || n->place >= 0 || strncmp(n->path, from, len) != 0 ||
		    (n->path[len] && n->path[len] != '/'))
			continue;
		size_t rest = strlen(n->path + len) + 1;
		char *copy = to_len + rest <= HOST_PATH_MAX ? malloc(to_len + rest) : NULL;
		if (copy)
			snprintf(copy, to_len + rest, "%s%s", to, n->path + len);
		free(n->path);
		n->path = copy; /* NULL: looked up anew, or stale */
	}
}

/* ---- Handles ---- */

uint64_t share_handle_id(const struct share *s, const struct share_handle *h)
{
	return make_id((uint32_t)(h - s->handle), h->generation);
}

static struct share_handle *free_handle(struct share *s)
{
	for (unsigned i = 0; i < s->handles; i++)
		if (s->handle[i].file < 0)
			return &s->handle[i];
	return s->handles < s->handles_max ? &s->handle[s->handles++] : NULL;
}

int share_handle_add(struct share *s, int file, uint64_t node, unsigned flags, bool folder, uint64_t *fh)
{
	struct share_handle *h = free_handle(s);
	struct share_node *n = share_node_get(s, node);

	if (!h) {
		host_folder_drop(file);
		return -ENFILE;
	}
	*h = (struct share_handle){
		.file = file,
		.node = n ? (uint32_t)node : NO_NODE,
		.generation = h->generation + 1,
		.flags = flags,
		.folder = folder,
	};
	if (n)
		n->handles++;
	*fh = share_handle_id(s, h);
	return 0;
}

static struct share_handle *slot_of(struct share *s, uint64_t fh)
{
	uint32_t slot = (uint32_t)fh;

	if (slot >= s->handles || s->handle[slot].file < 0 || s->handle[slot].generation != fh >> 32)
		return NULL;
	return &s->handle[slot];
}

struct share_handle *share_handle_get(struct share *s, uint64_t fh, bool folder)
{
	struct share_handle *h = slot_of(s, fh);

	return h && !h->gone && h->folder == folder ? h : NULL;
}

static void close_handle(struct share *s, struct share_handle *h)
{
	if (h->node != NO_NODE)
		s->node[h->node].handles--;
	host_folder_drop(h->file);
	h->file = -1;
}

void share_handle_release(struct share *s, uint64_t fh, bool folder)
{
	struct share_handle *h = share_handle_get(s, fh, folder);

	if (!h)
		return;
	h->gone = true;
	if (!h->users)
		close_handle(s, h);
}

void share_handle_use(struct share_handle *h)
{
	h->users++;
}

void share_handle_done(struct share *s, uint64_t fh)
{
	struct share_handle *h = slot_of(s, fh);

	ENSURE(h && h->users);
	if (!--h->users && h->gone)
		close_handle(s, h);
}

void share_handles_drop(struct share *s)
{
	for (unsigned i = 0; i < s->handles; i++)
		if (s->handle[i].file >= 0)
			share_handle_release(s, share_handle_id(s, &s->handle[i]), s->handle[i].folder);
}

/* ---- For loading ---- */

static bool has_room(struct share *s, uint32_t slot)
{
	if (slot >= SHARE_NODES)
		return false;
	while (slot >= s->node_room)
		if (!grow(s))
			return false;
	for (; s->nodes <= slot; s->nodes++)
		s->node[s->nodes] = (struct share_node){.place = -1};
	return true;
}

bool share_node_load(struct share *s, uint64_t id, uint64_t lookups, const char *path, const struct host_stat *st)
{
	uint32_t slot = (uint32_t)id;

	if (slot <= FUSE_ROOT || !lookups || !has_room(s, slot) || s->node[slot].lookups)
		return false;
	s->node[slot].generation = id >> 32;
	fill(s, slot, st);
	s->node[slot].lookups = lookups;
	s->node[slot].path = path ? strdup(path) : NULL;
	s->live++;
	return true;
}

bool share_handle_load(struct share *s, uint64_t fh, int file, uint64_t node, unsigned flags, bool folder)
{
	uint32_t slot = (uint32_t)fh;
	struct share_node *n = share_node_get(s, node);

	if (slot >= s->handles_max || s->handle[slot].file >= 0) {
		host_folder_drop(file);
		return false;
	}
	s->handle[slot] = (struct share_handle){
		.file = file,
		.node = n ? (uint32_t)node : NO_NODE,
		.generation = fh >> 32,
		.flags = flags,
		.folder = folder,
	};
	s->handles = MAX(s->handles, slot + 1);
	if (n)
		n->handles++;
	return true;
}

void share_loaded(struct share *s)
{
	s->free_node = NO_NODE;
	for (uint32_t i = s->nodes; i-- > FUSE_ROOT + 1;) {
		if (s->node[i].lookups)
			continue;
		s->node[i].next = s->free_node;
		s->free_node = i;
	}
}

uint64_t share_node_id(const struct share *s, uint32_t slot)
{
	return make_id(slot, s->node[slot].generation);
}

/* ---- All of it ---- */

bool share_tables_create(struct share *s, unsigned descriptors)
{
	struct host_stat st;

	s->handles_max = MIN(MAX(descriptors / 4, HANDLES_LEAST), TABLE_MOST);
	/* Those of open files must stay. */
	s->places_max = 2 * s->handles_max;
	s->newest = s->oldest = s->free_node = NO_NODE;
	s->handle = calloc(s->handles_max, sizeof(*s->handle));
	if (!s->handle || !grow(s) || host_folder_stat(host_folder_root(s->host), &st))
		return false;
	for (unsigned i = 0; i < s->handles_max; i++)
		s->handle[i].file = -1;
	/* Slot 0 is never used, so that no id is 0; slot 1 is the root. */
	s->nodes = FUSE_ROOT + 1;
	memset(s->node, 0, s->nodes * sizeof(*s->node));
	s->node[0].place = -1;
	fill(s, FUSE_ROOT, &st);
	s->node[FUSE_ROOT].lookups = 1;
	s->node[FUSE_ROOT].place = host_folder_root(s->host); /* not in the list: it stays */
	return true;
}

void share_tables_destroy(struct share *s)
{
	if (s->handle && s->node) {
		share_handles_drop(s);
		share_nodes_drop(s);
	}
	free(s->handle);
	free(s->node);
	free(s->hash);
}
