/*
 * The file server's requests about open files and folders. The lock is held, but for what moves data or waits for the
 * host's disk: the handle is marked as in use meanwhile.
 */
#include "dev/share_internal.h"

#include <errno.h>
#include <string.h>

/* Linux's open(2), lseek(2) and fallocate(2). */
enum { O_ACCESS = 3, O_READ_ONLY = 0, O_WRITE_ONLY = 1, O_EXCLUSIVE = 0200, O_TRUNCATE = 01000 };
enum { SEEK_TO_DATA = 3, SEEK_TO_HOLE = 4 };
#define FALLOCATE_KNOWN 0x7bu /* all but what has no meaning here (NO_HIDE_STALE) */

#define COPY_MOST MiB(16)
#define ENTRIES_AT_ONCE KiB(16)
#define SETTLED_SEC 2u

static bool writes(unsigned flags)
{
	return (flags & O_ACCESS) != O_READ_ONLY || flags & O_TRUNCATE;
}

/* ---- Opening ---- */

/*
 * Whether what the guest has in its cache of a file is still good: when the file is as it was at the last opening, and
 * had been for so long that its time would tell a change.
 */
static bool unchanged(struct share_node *n, int file)
{
	struct host_stat st;
	uint64_t now;
	uint32_t nsec;

	if (!n || host_folder_stat(file, &st))
		return false;
	bool same =
		n->seen.sec && n->seen.sec == st.mtime.sec && n->seen.nsec == st.mtime.nsec && n->seen_size == st.size;
	host_wall_time(&now, &nsec);
	n->seen = st.mtime;
	n->seen_size = st.size;
	if (st.mtime.sec < 0 || (uint64_t)st.mtime.sec + SETTLED_SEC > now)
		n->seen.sec = 0;
	return same;
}

static int reopen(struct share *s, int place, unsigned flags)
{
	int file = host_folder_reopen(s->host, place, flags);

	if ((file == -EMFILE || file == -ENFILE) && share_node_evict(s))
		file = host_folder_reopen(s->host, place, flags);
	return file == -EMFILE ? -ENFILE : file;
}

int share_open(struct share_call *c)
{
	struct share *s = c->share;
	struct fuse_open_in in;
	struct fuse_open_out out = {0};
	int place = share_node_place(s, c->head.nodeid);

	memcpy(&in, c->arg, sizeof(in));
	if (place < 0)
		return place;
	if ((share_node_get(s, c->head.nodeid)->mode & MODE_KIND) == MODE_FOLDER)
		return -EISDIR; /* there is OPENDIR */
	if (s->readonly && writes(in.flags))
		return -EROFS;
	int file = reopen(s, place, in.flags);
	if (file < 0)
		return file;
	if (writes(in.flags) && in.open_flags & FUSE_OPEN_KILL_SUIDGID)
		share_drop_setid(s, file);
	if (unchanged(share_node_get(s, c->head.nodeid), file))
		out.open_flags |= FOPEN_KEEP_CACHE;
	int r = share_handle_add(s, file, c->head.nodeid, in.flags, false, &out.fh);
	return r ? r : share_answer(c, &out, sizeof(out));
}

/* Makes and opens a file, or opens the one that somebody has made first. */
static int create(struct share_call *c, int dir, const char *name, const struct fuse_create_in *in, int *place,
		  struct host_stat *st)
{
	struct share *s = c->share;
	struct host_stat opened;
	int file = host_folder_create(dir, name, in->flags, in->mode);

	if (file == -EEXIST && !(in->flags & O_EXCLUSIVE)) {
		*place = share_find(s, dir, name, st);
		if (*place < 0)
			return *place;
		file = (st->mode & MODE_KIND) == MODE_FOLDER ? -EISDIR : reopen(s, *place, in->flags);
	} else if (file >= 0) {
		*place = share_find(s, dir, name, st);
		if (*place >= 0)
			share_give(s, &c->head, dir, *place, st);
		if (*place < 0 || host_folder_stat(file, &opened) || opened.ino != st->ino) {
			host_folder_drop(file);
			file = *place < 0 ? *place : -ESTALE; /* replaced at once, on the host */
		}
	} else {
		*place = -1;
	}
	if (file < 0)
		host_folder_drop(*place);
	return file;
}

int share_create_file(struct share_call *c)
{
	struct fuse_create_in in;
	struct {
		struct fuse_entry_out entry;
		struct fuse_open_out open;
	} out = {0};
	struct host_stat st;
	int error, place, dir = share_node_place(c->share, c->head.nodeid);
	const char *name = share_name(c, &error);

	memcpy(&in, c->arg, sizeof(in));
	if (!name || dir < 0)
		return name ? dir : error;
	int file = create(c, dir, name, &in, &place, &st);
	if (file < 0)
		return file;
	error = share_found(c->share, place, &st, &out.entry);
	if (error) {
		host_folder_drop(file);
		return error;
	}
	error = share_handle_add(c->share, file, out.entry.nodeid, in.flags, false, &out.open.fh);
	if (!error)
		error = share_answer(c, &out, sizeof(out));
	if (error)
		share_node_forget(c->share, out.entry.nodeid, 1);
	return error;
}

int share_opendir(struct share_call *c)
{
	struct share *s = c->share;
	struct fuse_open_out out = {0};
	struct share_node *n = share_node_get(s, c->head.nodeid);
	int place = share_node_place(s, c->head.nodeid);

	if (place < 0)
		return place;
	if ((n->mode & MODE_KIND) != MODE_FOLDER)
		return -ENOTDIR;
	int file = reopen(s, place, 0);
	if (file < 0)
		return file;
	int r = share_handle_add(s, file, c->head.nodeid, 0, true, &out.fh);
	return r ? r : share_answer(c, &out, sizeof(out));
}

static int release(struct share_call *c, bool folder)
{
	struct fuse_release_in in;

	memcpy(&in, c->arg, sizeof(in));
	share_handle_release(c->share, in.fh, folder);
	return 0;
}

int share_release(struct share_call *c)
{
	return release(c, false);
}

int share_releasedir(struct share_call *c)
{
	return release(c, true);
}

/* ---- Data ---- */

/* Marks an open file as in use; its descriptor. -EBADF: there is none that may do this. */
static int use(struct share *s, uint64_t fh, bool folder, int not_access)
{
	struct share_handle *h = share_handle_get(s, fh, folder);

	if (!h || (int)(h->flags & O_ACCESS) == not_access)
		return -EBADF;
	share_handle_use(h);
	return h->file;
}

int64_t share_read(struct share *s, const struct share_request *r, const struct fuse_rw_in *in)
{
	struct host_iovec iov[r->outs];
	uint64_t room = MIN(r->out_len - sizeof(struct fuse_out), (uint64_t)SHARE_TRANSFER);

	host_lock(&s->lock);
	int file = use(s, in->fh, false, O_WRITE_ONLY);
	host_unlock(&s->lock);
	if (file < 0)
		return file;
	unsigned n = share_slice(r->out, r->outs, sizeof(struct fuse_out), MIN(room, (uint64_t)in->size), iov);
	int64_t done = host_folder_read(file, iov, n, in->offset);
	host_lock(&s->lock);
	share_handle_done(s, in->fh);
	host_unlock(&s->lock);
	return done;
}

int64_t share_write(struct share *s, const struct share_request *r, const struct fuse_rw_in *in, uint64_t len)
{
	struct host_iovec iov[r->ins];
	uint64_t head = sizeof(struct fuse_in) + sizeof(*in);

	if (in->size > SHARE_TRANSFER || in->size > len - head)
		return -EINVAL;
	host_lock(&s->lock);
	int file = use(s, in->fh, false, O_READ_ONLY);
	if (file >= 0 && in->rw_flags & FUSE_WRITE_KILL_SUIDGID)
		share_drop_setid(s, file);
	host_unlock(&s->lock);
	if (file < 0)
		return file;
	unsigned n = share_slice(r->in, r->ins, head, in->size, iov);
	int64_t done = host_folder_write(file, iov, n, in->offset);
	host_lock(&s->lock);
	share_handle_done(s, in->fh);
	host_unlock(&s->lock);
	return done;
}

static int sync_handle(struct share_call *c, bool folder)
{
	struct fuse_fsync_in in;

	memcpy(&in, c->arg, sizeof(in));
	int file = use(c->share, in.fh, folder, -1);
	if (file < 0)
		return file;
	host_unlock(&c->share->lock);
	/* Nothing was written, and a sandbox for reading keeps no fsync. */
	int r = c->share->readonly ? 0 : host_folder_fsync(file, in.fsync_flags & FUSE_FSYNC_FDATASYNC);
	host_lock(&c->share->lock);
	share_handle_done(c->share, in.fh);
	return r;
}

int share_fsync(struct share_call *c)
{
	return sync_handle(c, false);
}

int share_fsyncdir(struct share_call *c)
{
	return sync_handle(c, true);
}

int share_fallocate(struct share_call *c)
{
	struct fuse_fallocate_in in;

	memcpy(&in, c->arg, sizeof(in));
	if (in.mode & ~FALLOCATE_KNOWN)
		return -EOPNOTSUPP;
	int file = use(c->share, in.fh, false, O_READ_ONLY);
	if (file < 0)
		return file;
	host_unlock(&c->share->lock);
	int r = host_folder_fallocate(file, in.mode, in.offset, in.length);
	host_lock(&c->share->lock);
	share_handle_done(c->share, in.fh);
	return r;
}

int share_lseek(struct share_call *c)
{
	struct fuse_lseek_in in;
	struct fuse_lseek_out out;

	memcpy(&in, c->arg, sizeof(in));
	struct share_handle *h = share_handle_get(c->share, in.fh, false);
	if (!h || (in.whence != SEEK_TO_DATA && in.whence != SEEK_TO_HOLE))
		return h ? -EINVAL : -EBADF;
	int64_t at = host_folder_seek(h->file, (int64_t)in.offset, in.whence);
	if (at < 0)
		return (int)at;
	out.offset = (uint64_t)at;
	return share_answer(c, &out, sizeof(out));
}

int share_copy(struct share_call *c)
{
	struct fuse_copy_in in;
	struct fuse_write_out out = {0};
	struct share *s = c->share;

	memcpy(&in, c->arg, sizeof(in));
	if (in.flags)
		return -EINVAL;
	int from = use(s, in.fh_in, false, O_WRITE_ONLY);
	if (from < 0)
		return from;
	int to = use(s, in.fh_out, false, O_READ_ONLY);
	if (to < 0) {
		share_handle_done(s, in.fh_in);
		return to;
	}
	host_unlock(&s->lock);
	int64_t n = host_folder_copy(from, in.off_in, to, in.off_out, MIN(in.len, (uint64_t)COPY_MOST));
	host_lock(&s->lock);
	share_handle_done(s, in.fh_in);
	share_handle_done(s, in.fh_out);
	if (n < 0)
		return (int)n;
	out.size = (uint32_t)n;
	return share_answer(c, &out, sizeof(out));
}

/* ---- Reading folders ---- */

static bool is_dots(const struct host_entry *e)
{
	return e->name[0] == '.' && (e->len == 1 || (e->len == 2 && e->name[1] == '.'));
}

/* What is to know of an entry beforehand; nothing but its name if that fails. */
static void look_up(struct share *s, int dir, const struct host_entry *e, struct fuse_entry_out *out)
{
	struct host_stat st;

	*out = (struct fuse_entry_out){0};
	if (is_dots(e))
		return;
	int place = share_find(s, dir, e->name, &st);
	if (place >= 0 && share_found(s, place, &st, out))
		*out = (struct fuse_entry_out){0};
}

static int put_entry(struct share_call *c, const struct host_entry *e, const struct fuse_entry_out *known)
{
	struct fuse_dirent d = {e->ino, e->next, e->len, e->type};
	static const uint8_t zeroes[8];
	size_t len = sizeof(d) + e->len;

	if (known)
		share_answer(c, known, sizeof(*known));
	share_answer(c, &d, sizeof(d));
	share_answer(c, e->name, e->len);
	return share_answer(c, zeroes, align_up(len, 8) - len);
}

/* As many entries of those read as fit; false: there is no room for the next one. */
static bool put_entries(struct share_call *c, const struct share_handle *h, const void *buf, size_t len, bool plus,
			uint64_t *next)
{
	struct fuse_entry_out known;
	struct host_entry e;

	for (size_t at = 0; host_folder_entry(buf, len, &at, &e);) {
		size_t size = align_up(sizeof(struct fuse_dirent) + e.len, 8) + (plus ? sizeof(known) : 0);
		if (size > c->room - c->done)
			return false;
		if (plus)
			look_up(c->share, h->file, &e, &known);
		if (e.len == 2 && is_dots(&e))
			e.ino = 1; /* what is above the folder is none of the guest's business */
		put_entry(c, &e, plus ? &known : NULL);
		*next = e.next;
	}
	return true;
}

static int read_folder(struct share_call *c, bool plus)
{
	uint64_t buf[ENTRIES_AT_ONCE / 8];
	char path[HOST_PATH_MAX];
	struct fuse_rw_in in;

	memcpy(&in, c->arg, sizeof(in));
	struct share_handle *h = share_handle_get(c->share, in.fh, true);
	if (!h)
		return -EBADF;
	int n = host_folder_path(c->share->host, h->file, path);
	if (n && n != -ENAMETOOLONG)
		return n;
	c->room = MIN(c->room, in.size);
	do {
		n = host_folder_read_entries(h->file, in.offset, buf, sizeof(buf));
		if (n < 0 && !c->done)
			return n;
	} while (n > 0 && put_entries(c, h, buf, (size_t)n, plus, &in.offset));
	return 0;
}

int share_readdir(struct share_call *c)
{
	return read_folder(c, false);
}

int share_readdirplus(struct share_call *c)
{
	return read_folder(c, true);
}
