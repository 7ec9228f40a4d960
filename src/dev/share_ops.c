/* The file server's requests about names and attributes. The lock is held. */
#include "dev/share_internal.h"

#include <errno.h>
#include <string.h>

#define RENAME_KNOWN 3u /* RENAME_NOREPLACE, RENAME_EXCHANGE */
#define RENAME_EXCHANGE 2u
#define NSEC_MAX 999999999u
#define USER_PREFIX "user."
#define PREFIX_LEN (sizeof(USER_PREFIX) - 1)

/* ---- What is told of a thing ---- */

static void put_attr(const struct host_stat *st, struct fuse_attr *attr)
{
	*attr = (struct fuse_attr){
		.ino = st->ino,
		.size = st->size,
		.blocks = st->blocks,
		.atime = (uint64_t)st->atime.sec,
		.mtime = (uint64_t)st->mtime.sec,
		.ctime = (uint64_t)st->ctime.sec,
		.atimensec = st->atime.nsec,
		.mtimensec = st->mtime.nsec,
		.ctimensec = st->ctime.nsec,
		.mode = st->mode,
		.nlink = st->nlink,
		.uid = st->uid,
		.gid = st->gid,
		.rdev = st->rdev,
		.blksize = st->blksize,
	};
}

int share_found(struct share *s, int place, const struct host_stat *st, struct fuse_entry_out *entry)
{
	*entry = (struct fuse_entry_out){.entry_valid = SHARE_VALID, .attr_valid = SHARE_VALID};
	put_attr(st, &entry->attr);
	return share_node_add(s, place, st, &entry->nodeid);
}

int share_find(struct share *s, int dir, const char *name, struct host_stat *st)
{
	int place = host_folder_find(dir, name, st);

	if ((place == -EMFILE || place == -ENFILE) && share_node_evict(s))
		place = host_folder_find(dir, name, st);
	return place == -EMFILE ? -ENFILE : place;
}

static int answer_attr(struct share_call *c, int at)
{
	struct fuse_attr_out out = {.attr_valid = SHARE_VALID};
	struct host_stat st;
	int r = host_folder_stat(at, &st);

	if (r)
		return r;
	put_attr(&st, &out.attr);
	return share_answer(c, &out, sizeof(out));
}

/* Where the attributes of what a request is about are: the open file that it names, or the node's place. */
static int subject(struct share_call *c, bool by_handle, uint64_t fh)
{
	struct share_handle *h = by_handle ? share_handle_get(c->share, fh, false) : NULL;

	return h ? h->file : share_node_place(c->share, c->head.nodeid);
}

int share_lookup(struct share_call *c)
{
	int error, dir = share_node_place(c->share, c->head.nodeid), place;
	const char *name = share_name(c, &error);
	struct fuse_entry_out out;
	struct host_stat st;

	if (!name || dir < 0)
		return name ? dir : error;
	place = share_find(c->share, dir, name, &st);
	if (place == -ENOENT) {
		/* That it is not there is to be believed as long as an entry is. */
		out = (struct fuse_entry_out){.entry_valid = SHARE_VALID};
		return share_answer(c, &out, sizeof(out));
	}
	error = place < 0 ? place : share_found(c->share, place, &st, &out);
	return error ? error : share_answer(c, &out, sizeof(out));
}

int share_getattr(struct share_call *c)
{
	struct fuse_getattr_in in;

	memcpy(&in, c->arg, sizeof(in));
	int at = subject(c, in.flags & FUSE_GETATTR_FH, in.fh);
	return at < 0 ? at : answer_attr(c, at);
}

/* ---- Attributes ---- */

int share_drop_setid(struct share *s, int at)
{
	struct host_stat st;
	int r = host_folder_stat(at, &st);

	if (r || (st.mode & MODE_KIND) != MODE_FILE)
		return r;
	uint32_t mode = st.mode & ~04000u;
	if ((mode & 02010) == 02010)
		mode &= ~02000u;
	return mode == st.mode ? 0 : host_folder_chmod(s->host, at, mode & 07777);
}

/* A program that runs as its owner, or its group, is nothing for a guest to make on the host. */
static int set_mode(struct share *s, int at, uint32_t mode)
{
	struct host_stat st;
	int r = host_folder_stat(at, &st);

	if (r)
		return r;
	if ((st.mode & MODE_KIND) != MODE_FOLDER)
		mode &= ~MODE_SETID;
	return host_folder_chmod(s->host, at, mode & 07777);
}

static struct host_time new_time(const struct fuse_setattr_in *in, uint32_t set, uint32_t now, uint64_t sec,
				 uint32_t nsec)
{
	if (in->valid & now)
		return (struct host_time){HOST_TIME_NOW, UINT32_MAX};
	if (in->valid & set)
		return (struct host_time){(int64_t)sec, MIN(nsec, NSEC_MAX)};
	return (struct host_time){HOST_TIME_KEEP, UINT32_MAX};
}

static int set_times(struct share *s, int at, const struct fuse_setattr_in *in)
{
	struct host_time atime = new_time(in, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec);
	struct host_time mtime = new_time(in, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec);

	return host_folder_utimes(s->host, at, &atime, &mtime);
}

static int set_attributes(struct share *s, int at, const struct fuse_setattr_in *in)
{
	int r = 0;

	if (in->valid & FATTR_MODE)
		r = set_mode(s, at, in->mode);
	if (!r && in->valid & (FATTR_UID | FATTR_GID))
		r = host_folder_chown(at, in->valid & FATTR_UID ? in->uid : UINT32_MAX,
				      in->valid & FATTR_GID ? in->gid : UINT32_MAX);
	if (!r && in->valid & FATTR_SIZE)
		r = host_folder_truncate(s->host, at, in->size);
	if (!r && in->valid & FATTR_KILL_SUIDGID)
		r = share_drop_setid(s, at);
	if (!r && in->valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW))
		r = set_times(s, at, in);
	return r;
}

int share_setattr(struct share_call *c)
{
	struct fuse_setattr_in in;

	memcpy(&in, c->arg, sizeof(in));
	int at = subject(c, in.valid & FATTR_FH, in.fh);
	int r = at < 0 ? at : set_attributes(c->share, at, &in);
	return r ? r : answer_attr(c, at);
}

int share_readlink(struct share_call *c)
{
	char target[HOST_PATH_MAX];
	int place = share_node_place(c->share, c->head.nodeid);
	int n = place < 0 ? place : host_folder_readlink(place, target, sizeof(target));

	return n < 0 ? n : share_answer(c, target, (size_t)n);
}

int share_statfs(struct share_call *c)
{
	struct host_statfs st;
	int r = host_folder_statfs(c->share->host, &st);

	if (r)
		return r;
	struct fuse_statfs_out out = {
		.blocks = st.blocks,
		.bfree = st.bfree,
		.bavail = st.bavail,
		.files = st.files,
		.ffree = st.ffree,
		.bsize = st.bsize,
		.namelen = st.namelen,
		.frsize = st.frsize,
	};
	return share_answer(c, &out, sizeof(out));
}

int share_syncfs(struct share_call *c)
{
	struct share *s = c->share;

	if (s->readonly)
		return 0;
	host_unlock(&s->lock);
	int r = host_folder_sync(s->host);
	host_lock(&s->lock);
	return r;
}

/* ---- New things ---- */

void share_give(struct share *s, const struct fuse_in *head, int dir, int place, struct host_stat *st)
{
	struct host_stat parent;

	if (!s->chowns || host_folder_stat(dir, &parent))
		return;
	/* In a folder with the set-group-id bit the group is the folder's. */
	host_folder_chown(place, head->uid, parent.mode & 02000 ? UINT32_MAX : head->gid);
	host_folder_stat(place, st);
}

/* After something was made: answers with what is there now. */
static int made(struct share_call *c, int dir, const char *name)
{
	struct fuse_entry_out out;
	struct host_stat st;
	int place = share_find(c->share, dir, name, &st);

	if (place < 0)
		return place;
	share_give(c->share, &c->head, dir, place, &st);
	int r = share_found(c->share, place, &st, &out);
	return r ? r : share_answer(c, &out, sizeof(out));
}

int share_symlink(struct share_call *c)
{
	int error, dir = share_node_place(c->share, c->head.nodeid);
	const char *name = share_name(c, &error), *target = name ? share_string(c) : NULL;

	if (!name || dir < 0)
		return name ? dir : error;
	if (!target)
		return -EINVAL;
	error = host_folder_symlink(dir, name, target);
	return error ? error : made(c, dir, name);
}

int share_mknod(struct share_call *c)
{
	struct fuse_mknod_in in;
	int error, dir = share_node_place(c->share, c->head.nodeid);
	const char *name = share_name(c, &error);

	memcpy(&in, c->arg, sizeof(in));
	if (!name || dir < 0)
		return name ? dir : error;
	error = host_folder_mknod(dir, name, in.mode);
	return error ? error : made(c, dir, name);
}

int share_mkdir(struct share_call *c)
{
	struct fuse_mkdir_in in;
	int error, dir = share_node_place(c->share, c->head.nodeid);
	const char *name = share_name(c, &error);

	memcpy(&in, c->arg, sizeof(in));
	if (!name || dir < 0)
		return name ? dir : error;
	error = host_folder_mkdir(dir, name, in.mode);
	return error ? error : made(c, dir, name);
}

int share_link(struct share_call *c)
{
	struct fuse_link_in in;
	int error, dir = share_node_place(c->share, c->head.nodeid);
	const char *name = share_name(c, &error);

	memcpy(&in, c->arg, sizeof(in));
	if (!name || dir < 0)
		return name ? dir : error;
	int place = share_node_place(c->share, in.oldnodeid);
	error = place < 0 ? place : host_folder_link(c->share->host, place, dir, name);
	if (error)
		return error;
	struct fuse_entry_out out;
	struct host_stat st;
	place = share_find(c->share, dir, name, &st);
	error = place < 0 ? place : share_found(c->share, place, &st, &out);
	return error ? error : share_answer(c, &out, sizeof(out));
}

/* ---- Names that go or change ---- */

static int remove_name(struct share_call *c, bool folder)
{
	int error, dir = share_node_place(c->share, c->head.nodeid);
	const char *name = share_name(c, &error);

	if (!name || dir < 0)
		return name ? dir : error;
	return host_folder_remove(dir, name, folder);
}

int share_unlink(struct share_call *c)
{
	return remove_name(c, false);
}

int share_rmdir(struct share_call *c)
{
	return remove_name(c, true);
}

/* The path of a name in a folder; false: it is too long to be kept anywhere. */
static bool path_of(struct share *s, int dir, const char *name, char *path)
{
	if (host_folder_path(s->host, dir, path))
		return false;
	size_t len = strlen(path), more = strlen(name);
	if (len + more + 2 > HOST_PATH_MAX)
		return false;
	if (len)
		path[len++] = '/';
	memcpy(path + len, name, more + 1);
	return true;
}

static void moved(struct share *s, const char *from, const char *to, bool exchanged)
{
	static const char aside[] = "//"; /* no path is that */

	share_nodes_moved(s, from, exchanged ? aside : to);
	if (!exchanged)
		return;
	share_nodes_moved(s, to, from);
	share_nodes_moved(s, aside, to);
}

static int rename_to(struct share_call *c, uint64_t new_dir, unsigned flags)
{
	struct share *s = c->share;
	char from[HOST_PATH_MAX], to[HOST_PATH_MAX];
	int error, dir = share_node_place(s, c->head.nodeid), dir2;
	const char *name = share_name(c, &error), *name2 = name ? share_name(c, &error) : NULL;

	if (!name || !name2)
		return error;
	if (dir < 0)
		return dir;
	dir2 = share_node_place(s, new_dir);
	if (dir2 < 0)
		return dir2;
	if (flags & ~RENAME_KNOWN)
		return -EINVAL;
	bool known = path_of(s, dir, name, from) && path_of(s, dir2, name2, to);
	error = host_folder_rename(dir, name, dir2, name2, flags);
	if (!error && known)
		moved(s, from, to, flags & RENAME_EXCHANGE);
	return error;
}

int share_rename(struct share_call *c)
{
	struct fuse_rename_in in;

	memcpy(&in, c->arg, sizeof(in));
	return rename_to(c, in.newdir, 0);
}

int share_rename2(struct share_call *c)
{
	struct fuse_rename2_in in;

	memcpy(&in, c->arg, sizeof(in));
	return rename_to(c, in.newdir, in.flags);
}

/* ---- Extended attributes: the users' own; what means something to the host is not the guest's to see or set ---- */

static const char *attribute(struct share_call *c, int *error)
{
	const char *name = share_string(c);

	*error = -EINVAL;
	if (!name || strlen(name) > HOST_NAME_MAX)
		return NULL;
	*error = -EOPNOTSUPP;
	return strncmp(name, USER_PREFIX, PREFIX_LEN) ? NULL : name;
}

int share_setxattr(struct share_call *c)
{
	struct fuse_setxattr_in in;
	int error, place = share_node_place(c->share, c->head.nodeid);
	const char *name = attribute(c, &error);

	memcpy(&in, c->arg, sizeof(in));
	if (!name || place < 0)
		return name ? place : error;
	if (in.size > c->more_len)
		return -EINVAL;
	return host_folder_setxattr(c->share->host, place, name, c->more, in.size, (int)in.flags);
}

/* The answer to a question for `asked` bytes of which there are `len` in c->out. */
static int answer_attribute(struct share_call *c, uint32_t asked, int len)
{
	struct fuse_getxattr_out out = {.size = (uint32_t)len};

	if (len < 0)
		return len;
	if (!asked)
		return share_answer(c, &out, sizeof(out));
	if ((uint32_t)len > asked || (size_t)len > c->room)
		return -ERANGE;
	c->done = (size_t)len;
	return 0;
}

int share_getxattr(struct share_call *c)
{
	struct fuse_getxattr_in in;
	int error, place = share_node_place(c->share, c->head.nodeid);
	const char *name = attribute(c, &error);

	memcpy(&in, c->arg, sizeof(in));
	if (!name || place < 0)
		return name ? place : error;
	size_t size = MIN((size_t)in.size, c->room);
	return answer_attribute(c, in.size, host_folder_getxattr(c->share->host, place, name, c->out, size));
}

/* Leaves the names that attribute() takes; returns their length. */
static int filter(char *names, int len)
{
	int done = 0;

	for (int at = 0; at < len;) {
		int n = (int)strlen(names + at) + 1;
		if (!strncmp(names + at, USER_PREFIX, PREFIX_LEN)) {
			memmove(names + done, names + at, (size_t)n);
			done += n;
		}
		at += n;
	}
	return done;
}

int share_listxattr(struct share_call *c)
{
	struct fuse_getxattr_in in;
	char names[KiB(64)];
	int place = share_node_place(c->share, c->head.nodeid);

	memcpy(&in, c->arg, sizeof(in));
	if (place < 0)
		return place;
	int len = host_folder_listxattr(c->share->host, place, names, sizeof(names));
	if (len > 0)
		len = filter(names, len);
	int error = answer_attribute(c, in.size, len);
	if (!error && in.size)
		memcpy(c->out, names, c->done);
	return error;
}

int share_removexattr(struct share_call *c)
{
	int error, place = share_node_place(c->share, c->head.nodeid);
	const char *name = attribute(c, &error);

	if (!name || place < 0)
		return name ? place : error;
	return host_folder_removexattr(c->share->host, place, name);
}
