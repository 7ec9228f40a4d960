/* virtio file system device: virtio 1.2, 5.11. The requests are FUSE's, and share.c serves them. */
#include "dev/virtio_fs.h"

#include "dev/virtio.h"

#include <stdlib.h>
#include <string.h>

enum { QUEUE_HIPRIO, QUEUE_REQUEST, QUEUES };
#define THREADS 3

/* Device configuration (5.11.4). */
struct fs_config {
	char tag[VIRTIO_FS_TAG];
	uint32_t num_request_queues;
};

struct virtio_fs {
	struct virtio_device dev;
	struct fs_config config;
	struct share *share;
};

static int64_t serve(struct virtio_fs *fs, const struct virtq_chain *c)
{
	struct host_iovec iov[VIRTQ_SEGMENTS];
	struct share_request r = {
		.in = iov,
		.ins = c->readable,
		.in_len = c->read_len,
		.out = iov + c->readable,
		.outs = c->writable,
		.out_len = c->write_len,
	};

	for (unsigned i = 0; i < c->readable + c->writable; i++)
		iov[i] = (struct host_iovec){c->seg[i].host, c->seg[i].len};
	return share_serve(fs->share, &r);
}

/* Whatever of the answer's room was written to, it may have held code. */
static void wrote(struct virtio_fs *fs, const struct virtq_chain *c, uint64_t len)
{
	for (unsigned i = c->readable; i < c->readable + c->writable && len; i++) {
		uint64_t n = MIN(len, (uint64_t)c->seg[i].len);
		guest_memory_wrote(fs->dev.mem, c->seg[i].gpa, n);
		len -= n;
	}
}

static bool fs_work(struct virtio_device *dev)
{
	struct virtio_fs *fs = container_of(dev, struct virtio_fs, dev);
	struct virtq_chain chain;
	unsigned queue = QUEUE_HIPRIO;

	if (!virtio_pop(dev, queue, &chain)) {
		queue = QUEUE_REQUEST;
		if (!virtio_pop(dev, queue, &chain))
			return false;
	}
	if (virtq_has_more(&dev->queue[queue]))
		virtio_wake(dev);
	virtio_busy_begin(dev);
	int64_t len = serve(fs, &chain);
	wrote(fs, &chain, chain.write_len);
	virtio_busy_end(dev);
	if (len < 0)
		virtio_fail(dev, "a request without header, or without room for the answer");
	else
		virtio_push(dev, queue, &chain, (uint32_t)len);
	return true;
}

static void fs_reset(struct virtio_device *dev)
{
	share_reset(container_of(dev, struct virtio_fs, dev)->share);
}

static void fs_state(struct virtio_device *dev, struct state_stream *s)
{
	share_state(container_of(dev, struct virtio_fs, dev)->share, s);
}

static void fs_free(struct virtio_device *dev)
{
	struct virtio_fs *fs = container_of(dev, struct virtio_fs, dev);

	share_destroy(fs->share);
	free(fs);
}

static const struct virtio_ops fs_ops = {.work = fs_work, .reset = fs_reset, .state = fs_state, .free = fs_free};

static const struct virtio_spec fs_spec = {
	.name = "virtio-fs",
	.type = VIRTIO_TYPE_FS,
	.pci_class = 0x018000,
	.queues = QUEUES,
	.threads = THREADS,
	.queue_size = VIRTQ_SIZE_MAX,
	.max_bytes = SHARE_TRANSFER + MiB(1),
	.config_len = sizeof(struct fs_config),
	.ops = &fs_ops,
};

bool virtio_fs_create(struct pci_bus *pci, struct guest_memory *mem, const struct share_config *config,
		      struct device *out, struct error *err)
{
	if (!config->tag[0] || strlen(config->tag) > VIRTIO_FS_TAG)
		return error_set(
			err, "the tag '%s' of the share %s is not 1 to %d bytes long: give another, as --share %s:TAG",
			config->tag, config->path, VIRTIO_FS_TAG, config->path);
	struct virtio_fs *fs = calloc(1, sizeof(*fs));
	if (!fs)
		return error_set(err, "out of memory");
	fs->share = share_create(config, err);
	if (!fs->share) {
		free(fs);
		return false;
	}
	memcpy(fs->config.tag, config->tag, strnlen(config->tag, VIRTIO_FS_TAG));
	fs->config.num_request_queues = 1;
	fs->dev.spec = &fs_spec;
	fs->dev.config = &fs->config;
	if (!virtio_device_create(&fs->dev, pci, mem, out, err)) {
		fs_free(&fs->dev);
		return false;
	}
	return true;
}
