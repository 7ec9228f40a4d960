/* Saving and loading the file server: what the guest knows and has open, by paths. */
#include "dev/share_internal.h"

#include <errno.h>
#include <string.h>

#define MARK 0x73686172u /* "shar" */

struct node_record {
	uint64_t id, lookups;
	uint32_t mode, path_len; /* path_len UINT32_MAX: it is nowhere any more */
};

struct handle_record {
	uint64_t fh, node;
	uint32_t flags, folder, path_len;
};

/* Whether what is open as `at` is found by its path, which is filled in. */
static bool has_path(struct share *s, int at, char *path)
{
	struct host_stat is, there;
	int place;

	if (host_folder_stat(at, &is) || host_folder_path(s->host, at, path))
		return false;
	place = host_folder_walk(s->host, path, &there);
	host_folder_drop(place);
	return place >= 0 && is.dev == there.dev && is.ino == there.ino;
}

static void save_node(struct share *s, uint32_t slot, struct state_stream *st)
{
	struct share_node *n = &s->node[slot];
	struct node_record r = {share_node_id(s, slot), n->lookups, n->mode, UINT32_MAX};
	char path[HOST_PATH_MAX];

	if (n->place < 0 && n->path) {
		memcpy(path, n->path, strlen(n->path) + 1);
		r.path_len = (uint32_t)strlen(path);
	} else if (n->place >= 0 && has_path(s, n->place, path)) {
		r.path_len = (uint32_t)strlen(path);
	}
	state_field(st, r);
	if (r.path_len != UINT32_MAX)
		state_bytes(st, path, r.path_len);
}

static void save_handle(struct share *s, struct share_handle *h, struct state_stream *st)
{
	struct handle_record r = {.fh = share_handle_id(s, h), .flags = h->flags, .folder = h->folder};
	char path[HOST_PATH_MAX] = "";

	if (!has_path(s, h->file, path)) {
		log_error(
			"share %s: the guest has %s open, which is not in the folder any more, and so cannot be saved: "
			"let it be closed first",
			s->tag, path[0] ? path : "a file");
		state_refuse(st, "an open file that is not in its shared folder any more");
		return;
	}
	if (h->node != NO_NODE)
		r.node = share_node_id(s, h->node);
	r.path_len = (uint32_t)strlen(path);
	state_field(st, r);
	state_bytes(st, path, r.path_len);
}

static void save(struct share *s, struct state_stream *st)
{
	uint32_t nodes = s->live, handles = 0;

	state_field(st, nodes);
	for (uint32_t i = FUSE_ROOT + 1; i < s->nodes; i++)
		if (s->node[i].lookups)
			save_node(s, i, st);
	for (unsigned i = 0; i < s->handles; i++)
		handles += s->handle[i].file >= 0;
	state_field(st, handles);
	for (unsigned i = 0; i < s->handles && !st->failed; i++)
		if (s->handle[i].file >= 0)
			save_handle(s, &s->handle[i], st);
}

static bool load_path(struct state_stream *st, char *path, uint32_t len)
{
	if (len >= HOST_PATH_MAX) {
		state_refuse(st, "a path that is too long");
		return false;
	}
	state_bytes(st, path, len);
	path[len] = 0;
	return !st->failed;
}

static void load_node(struct share *s, struct state_stream *st)
{
	struct node_record r = {0};
	struct host_stat is = {0};
	char path[HOST_PATH_MAX];
	int place = -1;

	state_field(st, r);
	if (st->failed || (r.path_len != UINT32_MAX && !load_path(st, path, r.path_len)))
		return;
	if (r.path_len != UINT32_MAX)
		place = host_folder_walk(s->host, path, &is);
	if (place < 0 || (is.mode ^ r.mode) & MODE_KIND) {
		/* The guest finds it stale, and looks it up anew. */
		is = (struct host_stat){.dev = UINT64_MAX, .ino = r.id, .mode = r.mode};
	}
	if (!share_node_load(s, r.id, r.lookups, place < 0 ? NULL : path, &is))
		state_refuse(st, "a shared folder's files in disorder");
	host_folder_drop(place);
}

static int load_file(struct share *s, const struct handle_record *r, const char *path)
{
	struct host_stat is;
	int place = host_folder_walk(s->host, path, &is);

	if (place < 0)
		return place;
	bool folder = (is.mode & MODE_KIND) == MODE_FOLDER;
	int file = folder != (r->folder != 0)                 ? -ENOTDIR
		   : s->readonly && (r->flags & 3) && !folder ? -EROFS
							      : host_folder_reopen(s->host, place, r->flags & ~01000u);
	host_folder_drop(place);
	return file;
}

static void load_handle(struct share *s, struct state_stream *st)
{
	struct handle_record r = {0};
	char path[HOST_PATH_MAX];

	state_field(st, r);
	if (st->failed || !load_path(st, path, r.path_len))
		return;
	int file = load_file(s, &r, path);
	if (file < 0) {
		log_error("share %s: the guest had %s open, which cannot be opened here", s->tag, path);
		state_refuse(st, "an open file that is not in the shared folder here");
		return;
	}
	if (!share_handle_load(s, r.fh, file, r.node, r.flags, r.folder))
		state_refuse(st, "a shared folder's open files in disorder");
	else
		share_node_place(s, r.node);
}

static void load(struct share *s, struct state_stream *st)
{
	uint32_t nodes = 0, handles = 0;

	share_handles_drop(s);
	share_nodes_drop(s);
	state_field(st, nodes);
	for (uint32_t i = 0; i < nodes && !st->failed; i++)
		load_node(s, st);
	share_loaded(s);
	state_field(st, handles);
	for (uint32_t i = 0; i < handles && !st->failed; i++)
		load_handle(s, st);
}

void share_state(struct share *s, struct state_stream *st)
{
	host_lock(&s->lock);
	s->call++;
	state_mark(st, MARK);
	if (st->saving)
		save(s, st);
	else
		load(s, st);
	host_unlock(&s->lock);
}
