/* The file server: requests are checked, told apart and answered. What they do is in share_ops.c and share_data.c. */
#include "dev/share_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define READAHEAD KiB(512)
#define BACKGROUND 64
#define DESCRIPTORS_LEFT 128u /* for all the rest of the process */

enum {
	WRITES = 1 << 0, /* changes the folder: refused when that is read-only */
	SILENT = 1 << 1, /* has no answer */
};

static share_op init_op, forget_op, batch_forget_op, destroy_op, interrupt_op;

/* What each request has after its header: this many bytes at least. */
static const struct {
	share_op *op;
	size_t arg;
	unsigned flags;
} ops[FUSE_OPS] = {
	[FUSE_LOOKUP] = {share_lookup, 0, 0},
	[FUSE_FORGET] = {forget_op, sizeof(struct fuse_forget_in), SILENT},
	[FUSE_GETATTR] = {share_getattr, sizeof(struct fuse_getattr_in), 0},
	[FUSE_SETATTR] = {share_setattr, sizeof(struct fuse_setattr_in), WRITES},
	[FUSE_READLINK] = {share_readlink, 0, 0},
	[FUSE_SYMLINK] = {share_symlink, 0, WRITES},
	[FUSE_MKNOD] = {share_mknod, sizeof(struct fuse_mknod_in), WRITES},
	[FUSE_MKDIR] = {share_mkdir, sizeof(struct fuse_mkdir_in), WRITES},
	[FUSE_UNLINK] = {share_unlink, 0, WRITES},
	[FUSE_RMDIR] = {share_rmdir, 0, WRITES},
	[FUSE_RENAME] = {share_rename, sizeof(struct fuse_rename_in), WRITES},
	[FUSE_LINK] = {share_link, sizeof(struct fuse_link_in), WRITES},
	[FUSE_OPEN] = {share_open, sizeof(struct fuse_open_in), 0},
	[FUSE_STATFS] = {share_statfs, 0, 0},
	[FUSE_RELEASE] = {share_release, sizeof(struct fuse_release_in), 0},
	[FUSE_FSYNC] = {share_fsync, sizeof(struct fuse_fsync_in), 0},
	[FUSE_SETXATTR] = {share_setxattr, sizeof(struct fuse_setxattr_in), WRITES},
	[FUSE_GETXATTR] = {share_getxattr, sizeof(struct fuse_getxattr_in), 0},
	[FUSE_LISTXATTR] = {share_listxattr, sizeof(struct fuse_getxattr_in), 0},
	[FUSE_REMOVEXATTR] = {share_removexattr, 0, WRITES},
	[FUSE_INIT] = {init_op, sizeof(struct fuse_init_in), 0},
	[FUSE_OPENDIR] = {share_opendir, sizeof(struct fuse_open_in), 0},
	[FUSE_READDIR] = {share_readdir, sizeof(struct fuse_rw_in), 0},
	[FUSE_RELEASEDIR] = {share_releasedir, sizeof(struct fuse_release_in), 0},
	[FUSE_FSYNCDIR] = {share_fsyncdir, sizeof(struct fuse_fsync_in), 0},
	[FUSE_CREATE] = {share_create_file, sizeof(struct fuse_create_in), WRITES},
	[FUSE_INTERRUPT] = {interrupt_op, 0, SILENT},
	[FUSE_DESTROY] = {destroy_op, 0, 0},
	[FUSE_BATCH_FORGET] = {batch_forget_op, sizeof(struct fuse_batch_forget_in), SILENT},
	[FUSE_FALLOCATE] = {share_fallocate, sizeof(struct fuse_fallocate_in), WRITES},
	[FUSE_READDIRPLUS] = {share_readdirplus, sizeof(struct fuse_rw_in), 0},
	[FUSE_RENAME2] = {share_rename2, sizeof(struct fuse_rename2_in), WRITES},
	[FUSE_LSEEK] = {share_lseek, sizeof(struct fuse_lseek_in), 0},
	[FUSE_COPY_FILE_RANGE] = {share_copy, sizeof(struct fuse_copy_in), WRITES},
	[FUSE_SYNCFS] = {share_syncfs, 0, 0},
};

/* ---- Bytes of a request and of its answer ---- */

size_t share_gather(const struct host_iovec *iov, unsigned n, uint64_t off, void *dst, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		if (off >= iov[i].len) {
			off -= iov[i].len;
			continue;
		}
		size_t part = MIN(iov[i].len - off, len - done);
		memcpy((char *)dst + done, (const char *)iov[i].base + off, part);
		done += part;
		off = 0;
	}
	return done;
}

static void scatter(const struct host_iovec *iov, unsigned n, uint64_t off, const void *src, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < n && done < len; i++) {
		if (off >= iov[i].len) {
			off -= iov[i].len;
			continue;
		}
		size_t part = MIN(iov[i].len - off, len - done);
		memcpy((char *)iov[i].base + off, (const char *)src + done, part);
		done += part;
		off = 0;
	}
}

unsigned share_slice(const struct host_iovec *iov, unsigned n, uint64_t off, uint64_t len, struct host_iovec *out)
{
	unsigned count = 0;

	for (unsigned i = 0; i < n && len; i++) {
		if (off >= iov[i].len) {
			off -= iov[i].len;
			continue;
		}
		uint64_t part = MIN(iov[i].len - off, len);
		out[count++] = (struct host_iovec){(char *)iov[i].base + off, part};
		len -= part;
		off = 0;
	}
	return count;
}

const char *share_string(struct share_call *c)
{
	const char *text = (const char *)c->more;
	const char *end = memchr(text, 0, c->more_len);

	if (!end)
		return NULL;
	c->more_len -= (size_t)(end + 1 - text);
	c->more += end + 1 - text;
	return text;
}

const char *share_name(struct share_call *c, int *error)
{
	const char *name = share_string(c);

	*error = -EINVAL;
	if (!name || !*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return NULL;
	if (strlen(name) > HOST_NAME_MAX) {
		*error = -ENAMETOOLONG;
		return NULL;
	}
	return name;
}

int share_answer(struct share_call *c, const void *answer, size_t len)
{
	if (len > c->room - c->done)
		return -EINVAL;
	memcpy(c->out + c->done, answer, len);
	c->done += len;
	return 0;
}

/* ---- Requests about the connection ---- */

static int init_op(struct share_call *c)
{
	struct fuse_init_in in;
	const uint64_t wanted = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA |
				FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
				FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2;

	memcpy(&in, c->arg, sizeof(in));
	/* A newer one says its number again, and speaks ours. */
	struct fuse_init_out out = {.major = FUSE_MAJOR, .minor = FUSE_MINOR};
	if (in.major > FUSE_MAJOR)
		return share_answer(c, &out, sizeof(out));
	if (in.major < FUSE_MAJOR || in.minor < FUSE_MINOR_LEAST)
		return -EPROTO;
	share_handles_drop(c->share);
	share_nodes_drop(c->share);
	out.minor = MIN(in.minor, (uint32_t)FUSE_MINOR);
	out.max_readahead = MIN(in.max_readahead, (uint32_t)READAHEAD);
	out.flags = in.flags & wanted;
	out.max_background = BACKGROUND;
	out.congestion_threshold = BACKGROUND * 3 / 4;
	out.max_write = SHARE_TRANSFER;
	out.time_gran = 1;
	out.max_pages = SHARE_TRANSFER / PAGE_SIZE;
	return share_answer(c, &out, sizeof(out));
}

static int destroy_op(struct share_call *c)
{
	share_handles_drop(c->share);
	share_nodes_drop(c->share);
	return 0;
}

static int forget_op(struct share_call *c)
{
	struct fuse_forget_in in;

	memcpy(&in, c->arg, sizeof(in));
	share_node_forget(c->share, c->head.nodeid, in.nlookup);
	return 0;
}

static int batch_forget_op(struct share_call *c)
{
	struct fuse_batch_forget_in in;
	struct fuse_forget_one one;

	memcpy(&in, c->arg, sizeof(in));
	for (uint32_t i = 0; i < in.count && sizeof(one) <= c->more_len; i++) {
		memcpy(&one, c->more, sizeof(one));
		c->more += sizeof(one);
		c->more_len -= sizeof(one);
		share_node_forget(c->share, one.nodeid, one.nlookup);
	}
	return 0;
}

/* Nothing that we do waits for long enough to be interrupted. */
static int interrupt_op(struct share_call *c)
{
	return 0;
}

/* ---- Serving ---- */

static int64_t put_answer(const struct share_call *c, int error, size_t len)
{
	const struct fuse_out out = {(uint32_t)(sizeof(out) + len), error, c->head.unique};

	if (c->request->out_len < sizeof(out) + len)
		return -1;
	scatter(c->request->out, c->request->outs, 0, &out, sizeof(out));
	return (int64_t)(sizeof(out) + len);
}

static int64_t answer(struct share_call *c, int error)
{
	ENSURE(error <= 0);
	if (error)
		return put_answer(c, error, 0);
	scatter(c->request->out, c->request->outs, sizeof(struct fuse_out), c->out, c->done);
	return put_answer(c, 0, c->done);
}

/* Both move data from or to the guest's memory; their results are counts. */
static int64_t serve_data(struct share_call *c)
{
	struct share *s = c->share;
	struct fuse_write_out out = {0};
	struct fuse_rw_in arg;
	int64_t n = -EINVAL;

	if (c->head.len >= sizeof(c->head) + sizeof(arg)) {
		share_gather(c->request->in, c->request->ins, sizeof(c->head), &arg, sizeof(arg));
		n = c->head.opcode == FUSE_READ ? share_read(s, c->request, &arg)
		    : s->readonly               ? -EROFS
						: share_write(s, c->request, &arg, c->head.len);
	}
	if (n < 0)
		return put_answer(c, (int)n, 0);
	if (c->head.opcode == FUSE_READ)
		return put_answer(c, 0, (size_t)n);
	if (c->request->out_len < sizeof(struct fuse_out) + sizeof(out))
		return -1;
	out.size = (uint32_t)n;
	scatter(c->request->out, c->request->outs, sizeof(struct fuse_out), &out, sizeof(out));
	return put_answer(c, 0, sizeof(out));
}

static int run(struct share_call *c, uint8_t *in, size_t room)
{
	size_t len = c->head.len - sizeof(c->head), arg = ops[c->head.opcode].arg;

	if (len < arg)
		return -EINVAL;
	if (len > room)
		return -E2BIG;
	if (c->share->readonly && ops[c->head.opcode].flags & WRITES)
		return -EROFS;
	share_gather(c->request->in, c->request->ins, sizeof(c->head), in, len);
	c->arg = in;
	c->more = in + arg;
	c->more_len = len - arg;
	host_lock(&c->share->lock);
	c->share->call++;
	int error = ops[c->head.opcode].op(c);
	host_unlock(&c->share->lock);
	return error;
}

int64_t share_serve(struct share *share, const struct share_request *request)
{
	uint64_t in[SHARE_MESSAGE / 8], out[SHARE_MESSAGE / 8]; /* aligned */
	struct share_call c = {.share = share, .request = request, .out = (uint8_t *)out};

	if (share_gather(request->in, request->ins, 0, &c.head, sizeof(c.head)) < sizeof(c.head) ||
	    c.head.len < sizeof(c.head) || c.head.len > request->in_len)
		return -1;
	bool known = c.head.opcode < FUSE_OPS && ops[c.head.opcode].op;
	if (known && ops[c.head.opcode].flags & SILENT) {
		run(&c, (uint8_t *)in, sizeof(in));
		return 0;
	}
	if (request->out_len < sizeof(struct fuse_out))
		return -1;
	c.room = MIN(sizeof(out), request->out_len - sizeof(struct fuse_out));
	if (c.head.opcode == FUSE_READ || c.head.opcode == FUSE_WRITE)
		return serve_data(&c);
	return answer(&c, known ? run(&c, (uint8_t *)in, sizeof(in)) : -ENOSYS);
}

/* ---- Life ---- */

struct share *share_create(const struct share_config *config, struct error *err)
{
	struct share *s = calloc(1, sizeof(*s));
	unsigned limit = host_file_limit();

	if (!s) {
		error_set(err, "out of memory");
		return NULL;
	}
	host_mutex_init(&s->lock);
	memcpy(s->tag, config->tag, strnlen(config->tag, sizeof(s->tag) - 1));
	s->readonly = config->readonly;
	s->chowns = host_folder_may_chown();
	s->host = host_folder_open(config->path, config->readonly, err);
	if (s->host && share_tables_create(s, (limit - MIN(limit, DESCRIPTORS_LEFT)) / MAX(config->shares, 1u)))
		return s;
	if (s->host)
		error_set(err, "cannot share the folder %s: the host is out of memory", config->path);
	share_destroy(s);
	return NULL;
}

void share_destroy(struct share *s)
{
	if (!s)
		return;
	share_tables_destroy(s);
	host_folder_close(s->host);
	host_mutex_destroy(&s->lock);
	free(s);
}

void share_reset(struct share *s)
{
	host_lock(&s->lock);
	share_handles_drop(s);
	share_nodes_drop(s);
	host_unlock(&s->lock);
}
