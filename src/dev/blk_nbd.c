/* Disks that a server has: NBD by its URI; and qcow2 images, which Debian's qemu-nbd serves to us alone. */
#include "dev/blk_image.h"
#include "host/nbd.h"

#include <inttypes.h>
#include <stdlib.h>

struct blk_nbd {
	struct blk_backend be;
	struct host_nbd *nbd;
};

static struct blk_nbd *remote(struct blk_backend *be)
{
	return container_of(be, struct blk_nbd, be);
}

static void nbd_run(struct blk_backend *be, struct host_io *io)
{
	host_nbd_run(remote(be)->nbd, io);
}

static void nbd_submit(struct blk_backend *be, struct host_io *list)
{
	host_nbd_submit(remote(be)->nbd, list);
}

static void nbd_close(struct blk_backend *be)
{
	struct blk_nbd *n = remote(be);

	if (n->nbd)
		host_nbd_close(n->nbd);
	free(n);
}

static const struct blk_backend_ops nbd_ops = {.run = nbd_run, .submit = nbd_submit, .close = nbd_close};

static void nbd_done(void *opaque, struct host_io *list)
{
	struct blk_nbd *n = opaque;

	n->be.done(n->be.opaque, list);
}

static bool check(const struct host_nbd_info *info, const char *name, bool readonly, struct error *err)
{
	if (info->readonly && !readonly)
		return error_set(err, "disk '%s' cannot be written to: add ',readonly' or ',snapshot=on'", name);
	if (info->size == 0 || info->size % BLK_SECTOR)
		return error_set(err, "disk '%s' has %" PRIu64 " bytes: it needs to be a multiple of %d", name,
				 info->size, BLK_SECTOR);
	if (info->block_min > PAGE_SIZE)
		return error_set(err, "disk '%s' has blocks of %u bytes, and 4096 is the most", name, info->block_min);
	return true;
}

static bool connect_to(struct blk_nbd *n, const struct blk_nbd_config *c, struct host_nbd_info *info, struct error *err)
{
	/* In a session of its own: what ends us from the terminal leaves it until we have written everything. */
	char *const server[] = {"setsid",
				"qemu-nbd",
				"--format=qcow2",
				"--discard=unmap",
				c->direct ? "--cache=none" : "--cache=writeback",
				c->readonly ? "--read-only" : "--shared=1",
				"--",
				(char *)(uintptr_t)c->qcow2,
				NULL};
	struct host_nbd_config config = {
		.uri = c->uri, .server = server, .readonly = c->readonly, .done = nbd_done, .opaque = n};
	char why[256];

	n->nbd = host_nbd_open(&config, info, why, sizeof(why));
	if (n->nbd)
		return true;
	if (c->uri)
		return error_set(err, "cannot reach disk '%s': %s; is its server running, and has it that export?",
				 c->uri, why);
	return error_set(err, "qemu-nbd cannot serve disk image '%s': %s; 'qemu-img check' looks at it", c->qcow2, why);
}

struct blk_backend *blk_nbd_open(const struct blk_nbd_config *config, struct error *err)
{
	struct blk_nbd *n = calloc(1, sizeof(*n));
	struct host_nbd_info info;

	if (!n) {
		error_set(err, "out of memory");
		return NULL;
	}
	n->be.ops = &nbd_ops;
	if (connect_to(n, config, &info, err) &&
	    check(&info, config->uri ? config->uri : config->qcow2, config->readonly, err)) {
		n->be = (struct blk_backend){.ops = &nbd_ops,
					     .size = info.size,
					     .alignment = info.block_min,
					     .readonly = config->readonly,
					     .discards = info.trims,
					     .zeroes = info.zeroes};
		return &n->be;
	}
	nbd_close(&n->be);
	return NULL;
}
