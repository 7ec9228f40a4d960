/* virtio block device: virtio 1.2, 5.2. */
#include "dev/virtio_blk.h"

#include "dev/blk_image.h"
#include "dev/virtio.h"

#include <stdlib.h>
#include <string.h>

#define F_SIZE_MAX BIT(1)
#define F_SEG_MAX BIT(2)
#define F_RO BIT(5)
#define F_BLK_SIZE BIT(6)
#define F_FLUSH BIT(9)
#define F_TOPOLOGY BIT(10)
#define F_DISCARD BIT(13)
#define F_WRITE_ZEROES BIT(14)

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };

#define QUEUE_SIZE 256
#define SEG_MAX (VIRTQ_SEGMENTS - 2) /* besides header and status */
#define SIZE_MAX_BYTES MiB(1)        /* of one piece */
#define REQUEST_MAX MiB(256)         /* a reset waits for requests that are under way, so none may take forever */
#define ID_LEN 20
#define ZERO_SECTORS (MiB(512) / BLK_SECTOR)
#define ZERO_SEGMENTS 16
#define FLAG_UNMAP 1u

/* Device configuration (5.2.4). */
struct blk_config {
	uint64_t capacity; /* in 512-byte sectors */
	uint32_t size_max, seg_max;
	uint16_t cylinders;
	uint8_t heads, sectors;
	uint32_t blk_size;
	uint8_t physical_block_exp, alignment_offset;
	uint16_t min_io_size;
	uint32_t opt_io_size;
	uint8_t writeback, unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));

struct header {
	uint32_t type, reserved;
	uint64_t sector;
};

/* One range to discard or to fill with zeroes (5.2.6). */
struct zero_range {
	uint64_t sector;
	uint32_t sectors, flags;
};

struct virtio_blk {
	struct virtio_device dev;
	struct blk_config config;
	struct blk_image *image;
	char id[ID_LEN];
};

/* Bytes [skip, skip+len) of some pieces, for the host's transfers. */
static unsigned pieces(const struct virtq_segment *seg, unsigned n, uint64_t skip, uint64_t len, struct host_iovec *iov)
{
	struct host_iovec all[VIRTQ_SEGMENTS];

	for (unsigned i = 0; i < n; i++)
		all[i] = (struct host_iovec){seg[i].host, seg[i].len};
	return blk_iov_slice(all, n, skip, len, iov);
}

static bool in_range(const struct virtio_blk *b, uint64_t sector, uint64_t sectors)
{
	return sector <= b->config.capacity && sectors <= b->config.capacity - sector;
}

static bool read_sectors(struct virtio_blk *b, const struct virtq_chain *c, uint64_t sector, uint64_t len)
{
	const struct virtq_segment *seg = c->seg + c->readable;
	struct host_iovec iov[VIRTQ_SEGMENTS];

	if (len % BLK_SECTOR || !in_range(b, sector, len / BLK_SECTOR))
		return false;
	unsigned n = pieces(seg, c->writable, 0, len, iov);
	bool ok = blk_image_read(b->image, iov, n, sector * BLK_SECTOR, len);
	for (unsigned i = 0; i < n; i++)
		guest_memory_wrote(b->dev.mem, seg[i].gpa, iov[i].len);
	return ok;
}

static bool write_through(struct virtio_blk *b, bool ok)
{
	/* A driver that knows no flush expects writes to last when they are done (5.2.6.2). */
	return ok && ((b->dev.accepted & F_FLUSH) || blk_image_flush(b->image));
}

static bool write_sectors(struct virtio_blk *b, const struct virtq_chain *c, uint64_t sector)
{
	uint64_t len = c->read_len - sizeof(struct header);
	struct host_iovec iov[VIRTQ_SEGMENTS];

	if (len % BLK_SECTOR || !in_range(b, sector, len / BLK_SECTOR) || (b->dev.offered & F_RO))
		return false;
	unsigned n = pieces(c->seg, c->readable, sizeof(struct header), len, iov);
	return write_through(b, blk_image_write(b->image, iov, n, sector * BLK_SECTOR, len));
}

static uint8_t zero_range(struct virtio_blk *b, uint32_t type, const struct zero_range *r)
{
	if (r->flags & ~(type == T_WRITE_ZEROES ? FLAG_UNMAP : 0))
		return S_UNSUPP;
	if (r->sectors > ZERO_SECTORS || !in_range(b, r->sector, r->sectors))
		return S_IOERR;
	if (!blk_image_zero(b->image, r->sector * BLK_SECTOR, (uint64_t)r->sectors * BLK_SECTOR))
		return S_IOERR;
	return S_OK;
}

static uint8_t zero_sectors(struct virtio_blk *b, const struct virtq_chain *c, uint32_t type)
{
	struct zero_range range[ZERO_SEGMENTS];
	uint64_t len = c->read_len - sizeof(struct header);
	uint8_t status = S_OK;

	if (b->dev.offered & F_RO)
		return S_IOERR;
	if (len == 0 || len % sizeof(range[0]) || len > sizeof(range))
		return S_UNSUPP;
	virtq_chain_read(c, sizeof(struct header), range, len);
	for (unsigned i = 0; i < len / sizeof(range[0]) && status == S_OK; i++)
		status = zero_range(b, type, &range[i]);
	return status == S_OK && !write_through(b, true) ? S_IOERR : status;
}

/* Carries out a request; *written says how many bytes of data the driver gets. */
static uint8_t serve(struct virtio_blk *b, const struct virtq_chain *c, uint32_t *written)
{
	struct header h;
	uint64_t room = c->write_len - 1; /* the last byte is for the status */

	virtq_chain_read(c, 0, &h, sizeof(h));
	*written = 0;
	switch (h.type) {
	case T_IN:
		if (!read_sectors(b, c, h.sector, room))
			return S_IOERR;
		*written = room;
		return S_OK;
	case T_OUT:
		return write_sectors(b, c, h.sector) ? S_OK : S_IOERR;
	case T_FLUSH:
		return blk_image_flush(b->image) ? S_OK : S_IOERR;
	case T_GET_ID:
		*written = virtq_chain_write(b->dev.mem, c, 0, b->id, MIN(room, (uint64_t)ID_LEN));
		return S_OK;
	case T_DISCARD:
	case T_WRITE_ZEROES:
		return zero_sectors(b, c, h.type);
	default:
		return S_UNSUPP;
	}
}

static bool blk_work(struct virtio_device *dev)
{
	struct virtio_blk *b = container_of(dev, struct virtio_blk, dev);
	struct virtq_chain chain;
	uint32_t written;

	if (!virtio_pop(dev, 0, &chain))
		return false;
	if (chain.read_len < sizeof(struct header) || chain.write_len < 1) {
		virtio_fail(dev, "a request without header or status");
		return false;
	}
	if (virtq_has_more(&dev->queue[0]))
		virtio_wake(dev);
	virtio_busy_begin(dev);
	uint8_t status = serve(b, &chain, &written);
	virtq_chain_write(dev->mem, &chain, chain.write_len - 1, &status, 1);
	virtio_busy_end(dev);
	virtio_push(dev, 0, &chain, written + 1);
	return true;
}

static void blk_state(struct virtio_device *dev, struct state_stream *s)
{
	blk_image_state(container_of(dev, struct virtio_blk, dev)->image, s);
}

static void blk_free(struct virtio_device *dev)
{
	struct virtio_blk *b = container_of(dev, struct virtio_blk, dev);

	blk_image_close(b->image);
	free(b);
}

static const struct virtio_ops blk_ops = {.work = blk_work, .state = blk_state, .free = blk_free};

static const struct virtio_spec blk_spec = {
	.name = "virtio-blk",
	.type = VIRTIO_TYPE_BLOCK,
	.pci_class = 0x010000,
	.queues = 1,
	.threads = VIRTIO_THREADS,
	.queue_size = QUEUE_SIZE,
	.max_bytes = REQUEST_MAX,
	.config_len = sizeof(struct blk_config),
	.ops = &blk_ops,
};

static void fill_config(struct virtio_blk *b)
{
	b->config = (struct blk_config){
		.capacity = blk_image_size(b->image) / BLK_SECTOR,
		.size_max = SIZE_MAX_BYTES,
		.seg_max = SEG_MAX,
		.blk_size = BLK_SECTOR,
		.physical_block_exp = 3, /* pages of the host's cache: 4096 bytes */
		.min_io_size = 1,
		.writeback = 1,
		.num_queues = 1,
		.max_discard_sectors = ZERO_SECTORS,
		.max_discard_seg = ZERO_SEGMENTS,
		.discard_sector_alignment = 8,
		.max_write_zeroes_sectors = ZERO_SECTORS,
		.max_write_zeroes_seg = ZERO_SEGMENTS,
		.write_zeroes_may_unmap = 1,
	};
}

bool virtio_blk_create(struct pci_bus *pci, struct guest_memory *mem, const struct disk_config *config,
		       struct device *out, struct error *err)
{
	struct virtio_blk *b = calloc(1, sizeof(*b));

	if (!b)
		return error_set(err, "out of memory");
	b->image = blk_image_open(config->path, config->readonly, config->snapshot, err);
	if (!b->image) {
		free(b);
		return false;
	}
	if (config->id)
		memcpy(b->id, config->id, strnlen(config->id, ID_LEN));
	fill_config(b);
	b->dev.spec = &blk_spec;
	b->dev.config = &b->config;
	b->dev.offered = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY;
	b->dev.offered |= config->readonly ? F_RO : F_DISCARD | F_WRITE_ZEROES;
	if (!virtio_device_create(&b->dev, pci, mem, out, err)) {
		blk_free(&b->dev);
		return false;
	}
	return true;
}
