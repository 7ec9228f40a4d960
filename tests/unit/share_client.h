/* A guest's side of a shared folder: FUSE requests to the server, and a folder to share with one beside it that must
 * not be reached. */
#ifndef DOPPEL_TESTS_SHARE_CLIENT_H
#define DOPPEL_TESTS_SHARE_CLIENT_H

#include "dev/fuse.h"
#include "dev/share.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ROOM (SHARE_TRANSFER + 4096)

struct client {
	struct share *share;
	char base[64], in[80], out[80]; /* `in` is shared; `out` is its neighbour */
	uint64_t unique;
	uint8_t request[ROOM], answer[ROOM];
	size_t len, room; /* of the request; for the answer */
	int64_t got;      /* what the server said */
	uint32_t uid, gid;
};

static inline void client_die(const char *what)
{
	fprintf(stderr, "%s\n", what);
	abort();
}

static inline void client_put_file(const char *folder, const char *name, const char *content)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	FILE *f = fopen(path, "w");
	if (!f || fputs(content, f) < 0 || fclose(f))
		client_die("cannot make a test's file");
}

/* Starts a request; its arguments follow by client_arg and client_text. */
static inline void client_begin(struct client *c, uint32_t op, uint64_t node)
{
	struct fuse_in *h = (void *)c->request;

	*h = (struct fuse_in){.opcode = op, .unique = ++c->unique, .nodeid = node, .uid = c->uid, .gid = c->gid};
	c->len = sizeof(*h);
	c->room = ROOM;
}

static inline void client_arg(struct client *c, const void *arg, size_t len)
{
	memcpy(c->request + c->len, arg, len);
	c->len += len;
}

static inline void client_text(struct client *c, const char *text)
{
	client_arg(c, text, strlen(text) + 1);
}

/* Sends the request as it is, in odd pieces; 0 or -errno. The answer's body is client_body. */
static inline int client_send_raw(struct client *c)
{
	struct host_iovec iov[6] = {{c->request, MIN(c->len, (size_t)3)}};
	struct share_request r = {.in = iov, .ins = 1, .in_len = c->len, .out_len = c->room};

	if (c->len > 3)
		iov[r.ins++] = (struct host_iovec){c->request + 3, MIN(c->len - 3, (size_t)46)};
	if (c->len > 49)
		iov[r.ins++] = (struct host_iovec){c->request + 49, c->len - 49};
	r.out = iov + r.ins;
	iov[r.ins] = (struct host_iovec){c->answer, MIN(c->room, (size_t)21)};
	iov[r.ins + 1] = (struct host_iovec){c->answer + 21, c->room - MIN(c->room, (size_t)21)};
	r.outs = 2;
	c->got = share_serve(c->share, &r);
	struct fuse_out *out = (void *)c->answer;
	return c->got >= (int64_t)sizeof(*out) ? out->error : 0;
}

static inline int client_send(struct client *c)
{
	struct fuse_in *h = (void *)c->request;
	struct fuse_out *out = (void *)c->answer;

	h->len = (uint32_t)c->len;
	int error = client_send_raw(c);
	if (c->got > 0 &&
	    (c->got < (int64_t)sizeof(*out) || out->len != c->got || out->unique != c->unique || error > 0))
		client_die("an answer that is none");
	return error;
}

static inline void *client_body(struct client *c)
{
	return c->answer + sizeof(struct fuse_out);
}

static inline size_t client_body_len(struct client *c)
{
	return (size_t)c->got - sizeof(struct fuse_out);
}

/* ---- Requests in one call ---- */

static inline int client_init(struct client *c)
{
	struct fuse_init_in in = {FUSE_MAJOR, FUSE_MINOR, 131072, ~0u};

	client_begin(c, FUSE_INIT, 0);
	client_arg(c, &in, sizeof(in));
	return client_send(c);
}

/* One with a name and nothing else, or after some bytes. */
static inline int client_name(struct client *c, uint32_t op, uint64_t node, const void *arg, size_t len,
			      const char *name)
{
	client_begin(c, op, node);
	client_arg(c, arg, len);
	client_text(c, name);
	return client_send(c);
}

/* 0: not there, or an error, which goes to *error (may be NULL). */
static inline uint64_t client_lookup(struct client *c, uint64_t dir, const char *name, int *error)
{
	int r = client_name(c, FUSE_LOOKUP, dir, "", 0, name);

	if (error)
		*error = r;
	return r ? 0 : ((struct fuse_entry_out *)client_body(c))->nodeid;
}

static inline uint64_t client_open(struct client *c, uint64_t node, uint32_t flags, int *error)
{
	struct fuse_open_in in = {flags, 0};

	client_begin(c, flags & O_DIRECTORY ? FUSE_OPENDIR : FUSE_OPEN, node);
	client_arg(c, &in, sizeof(in));
	int r = client_send(c);
	if (error)
		*error = r;
	return r ? 0 : ((struct fuse_open_out *)client_body(c))->fh;
}

/* Returns the node; *fh the handle. 0: failed, see *error. */
static inline uint64_t client_create(struct client *c, uint64_t dir, const char *name, uint32_t flags, uint32_t mode,
				     uint64_t *fh, int *error)
{
	struct fuse_create_in in = {flags, mode, 0, 0};

	*error = client_name(c, FUSE_CREATE, dir, &in, sizeof(in), name);
	if (*error)
		return 0;
	struct fuse_entry_out *e = client_body(c);
	*fh = ((struct fuse_open_out *)(e + 1))->fh;
	return e->nodeid;
}

static inline int client_read(struct client *c, uint64_t fh, uint64_t off, uint32_t size)
{
	struct fuse_rw_in in = {.fh = fh, .offset = off, .size = size};

	client_begin(c, FUSE_READ, 2);
	client_arg(c, &in, sizeof(in));
	return client_send(c);
}

/* Bytes written, or -errno. */
static inline int client_write(struct client *c, uint64_t fh, uint64_t off, const void *data, uint32_t size)
{
	struct fuse_rw_in in = {.fh = fh, .offset = off, .size = size};

	client_begin(c, FUSE_WRITE, 2);
	client_arg(c, &in, sizeof(in));
	client_arg(c, data, size);
	int r = client_send(c);
	return r ? r : (int)((struct fuse_write_out *)client_body(c))->size;
}

static inline int client_release(struct client *c, uint32_t op, uint64_t fh)
{
	struct fuse_release_in in = {.fh = fh};

	client_begin(c, op, 2);
	client_arg(c, &in, sizeof(in));
	return client_send(c);
}

static inline void client_forget(struct client *c, uint64_t node, uint64_t n)
{
	struct fuse_forget_in in = {n};

	client_begin(c, FUSE_FORGET, node);
	client_arg(c, &in, sizeof(in));
	client_send(c);
}

static inline int client_getattr(struct client *c, uint64_t node, struct fuse_attr *attr)
{
	struct fuse_getattr_in in = {0};

	client_begin(c, FUSE_GETATTR, node);
	client_arg(c, &in, sizeof(in));
	int r = client_send(c);
	if (!r)
		*attr = ((struct fuse_attr_out *)client_body(c))->attr;
	return r;
}

/* ---- The folders ---- */

static inline void client_folders(struct client *c)
{
	memset(c, 0, sizeof(*c));
	c->uid = (uint32_t)getuid();
	c->gid = (uint32_t)getgid();
	snprintf(c->base, sizeof(c->base), "/tmp/doppel-test-share-XXXXXX");
	if (!mkdtemp(c->base))
		client_die("no temporary folder");
	snprintf(c->in, sizeof(c->in), "%s/in", c->base);
	snprintf(c->out, sizeof(c->out), "%s/out", c->base);
	if (mkdir(c->in, 0755) || mkdir(c->out, 0755))
		client_die("no temporary folder");
	client_put_file(c->out, "secret", "secret");
}

static inline void client_serve(struct client *c, bool readonly, unsigned shares)
{
	struct share_config config = {c->in, "test", readonly, shares};
	struct error err;

	c->share = share_create(&config, &err);
	if (!c->share)
		client_die(err.text);
	if (client_init(c))
		client_die("no connection");
}

static inline void client_remove_folders(struct client *c)
{
	char command[192];

	snprintf(command, sizeof(command), "chmod -R u+rwX %s; rm -rf %s", c->base, c->base);
	if (system(command))
		client_die("the temporary folder stays");
}

static inline void client_end(struct client *c)
{
	share_destroy(c->share);
	client_remove_folders(c);
}

#endif
