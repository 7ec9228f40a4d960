/*
 * virtio block device: virtio 1.2, 5.2.
 *
 * The thread of the virtual CPU that notifies takes the requests. Those that need no waiting, because the host has
 * their bytes in memory, it serves itself, and the guest has its interrupt before its next instruction; the others go
 * to the image's threads and come back by blk_done. The device's own thread is for what cannot be begun now.
 */
#include "dev/virtio_blk.h"

#include "base/rate.h"
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
#define F_CONFIG_WCE BIT(11)
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
#define INLINE_BYTES KiB(256) /* that a processor serves for one notification */
#define SERVE_MAX 256         /* requests that are taken in a row: no driver keeps a thread here */

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

/* A request between the two rings. */
struct request {
	struct host_io io; /* what is under way */
	struct virtio_blk *b;
	struct request *next; /* among the free */
	uint32_t type, written;
	uint8_t status;
	bool last; /* the flush after a write has been begun */
	unsigned ranges, range;
	struct zero_range zero[ZERO_SEGMENTS];
	struct virtq_chain chain;
	struct host_iovec iov[VIRTQ_SEGMENTS];
};

struct virtio_blk {
	struct virtio_device dev;
	struct blk_config config;
	struct blk_image *image;
	char id[ID_LEN];

	/* Under the device's lock. */
	struct rate iops, bps;
	struct request *free; /* used before; of the others the first is request[fresh] */
	unsigned fresh;
	bool starved; /* chains may be left because no request was free */
	bool owed;    /* an interrupt, for what was finished */
	struct request request[QUEUE_SIZE];
};

static bool in_range(const struct virtio_blk *b, uint64_t sector, uint64_t sectors)
{
	return sector <= b->config.capacity && sectors <= b->config.capacity - sector;
}

/* Sets up the transfer of bytes [skip, skip+len) of some pieces. False: not on this disk. */
static bool set_transfer(struct request *r, const struct virtq_segment *seg, unsigned n, uint64_t skip, uint64_t len,
			 uint64_t sector)
{
	struct host_iovec all[VIRTQ_SEGMENTS];

	if (len % BLK_SECTOR || !in_range(r->b, sector, len / BLK_SECTOR))
		return false;
	for (unsigned i = 0; i < n; i++)
		all[i] = (struct host_iovec){seg[i].host, seg[i].len};
	r->io.iov = r->iov;
	r->io.n = blk_iov_slice(all, n, skip, len, r->iov);
	r->io.off = sector * BLK_SECTOR;
	r->io.len = len;
	return true;
}

static bool set_read(struct request *r, uint64_t sector)
{
	const struct virtq_chain *c = &r->chain;

	r->io.op = HOST_IO_READ;
	return set_transfer(r, c->seg + c->readable, c->writable, 0, c->write_len - 1, sector);
}

static bool set_write(struct request *r, uint64_t sector)
{
	const struct virtq_chain *c = &r->chain;

	r->io.op = HOST_IO_WRITE;
	return !(r->b->dev.offered & F_RO) &&
	       set_transfer(r, c->seg, c->readable, sizeof(struct header), c->read_len - sizeof(struct header), sector);
}

static uint8_t check_range(const struct request *r, const struct zero_range *range)
{
	if (range->flags & ~(r->type == T_WRITE_ZEROES ? FLAG_UNMAP : 0))
		return S_UNSUPP;
	if (range->sectors > ZERO_SECTORS || !in_range(r->b, range->sector, range->sectors))
		return S_IOERR;
	return S_OK;
}

static void set_range(struct request *r)
{
	const struct zero_range *range = &r->zero[r->range++];

	r->io.op = r->type == T_DISCARD ? HOST_IO_DISCARD : HOST_IO_ZERO;
	r->io.unmap = range->flags & FLAG_UNMAP;
	r->io.off = range->sector * BLK_SECTOR;
	r->io.len = (uint64_t)range->sectors * BLK_SECTOR;
}

/* All ranges are checked before the first is begun. */
static uint8_t set_ranges(struct request *r)
{
	uint64_t len = r->chain.read_len - sizeof(struct header);

	if (r->b->dev.offered & F_RO)
		return S_IOERR;
	if (!(r->b->dev.offered & (r->type == T_DISCARD ? F_DISCARD : F_WRITE_ZEROES)))
		return S_UNSUPP;
	if (len == 0 || len % sizeof(r->zero[0]) || len > sizeof(r->zero))
		return S_UNSUPP;
	virtq_chain_read(&r->chain, sizeof(struct header), r->zero, len);
	r->ranges = len / sizeof(r->zero[0]);
	r->range = 0;
	for (unsigned i = 0; i < r->ranges; i++) {
		uint8_t status = check_range(r, &r->zero[i]);
		if (status != S_OK)
			return status;
	}
	set_range(r);
	return S_OK;
}

/* Reads the request. True: r->io is to be carried out; false: r->status is the answer. */
static bool begin(struct request *r)
{
	struct virtio_blk *b = r->b;
	uint64_t room = r->chain.write_len - 1; /* the last byte is for the status */
	struct header h;

	virtq_chain_read(&r->chain, 0, &h, sizeof(h));
	r->type = h.type;
	r->written = 0;
	r->ranges = r->range = 0;
	r->last = false;
	r->io = (struct host_io){.own = r};
	switch (h.type) {
	case T_IN:
		r->status = set_read(r, h.sector) ? S_OK : S_IOERR;
		return r->status == S_OK;
	case T_OUT:
		r->status = set_write(r, h.sector) ? S_OK : S_IOERR;
		return r->status == S_OK;
	case T_FLUSH:
		r->io.op = HOST_IO_FLUSH;
		r->status = S_OK;
		return true;
	case T_DISCARD:
	case T_WRITE_ZEROES:
		r->status = set_ranges(r);
		return r->status == S_OK;
	case T_GET_ID:
		r->written = virtq_chain_write(b->dev.mem, &r->chain, 0, b->id, MIN(room, (uint64_t)ID_LEN));
		r->status = S_OK;
		return false;
	default:
		r->status = S_UNSUPP;
		return false;
	}
}

/* A driver that knows no flush, or chose so, expects writes to last when they are done (5.2.6.2). */
static bool writes_through(const struct virtio_blk *b)
{
	if (b->dev.accepted & F_CONFIG_WCE)
		return !b->config.writeback;
	return !(b->dev.accepted & F_FLUSH);
}

/* A part has been carried out. True: r->io is the next one. */
static bool goes_on(struct request *r)
{
	if (r->io.error) {
		r->status = S_IOERR;
		return false;
	}
	if (r->range < r->ranges) {
		set_range(r);
		return true;
	}
	if (r->type == T_IN || r->type == T_FLUSH || r->last || !writes_through(r->b))
		return false;
	r->last = true;
	r->io = (struct host_io){.op = HOST_IO_FLUSH, .own = r};
	return true;
}

/* Gives the request back to the driver; an interrupt for it is still owed. */
static void finish(struct request *r)
{
	struct virtio_blk *b = r->b;
	struct virtq_chain *c = &r->chain;

	if (r->type == T_IN) {
		for (unsigned i = c->readable; i < c->readable + c->writable; i++)
			guest_memory_wrote(b->dev.mem, c->seg[i].gpa, c->seg[i].len);
		r->written = r->status == S_OK ? c->write_len - 1 : 0;
	}
	virtq_chain_write(b->dev.mem, c, c->write_len - 1, &r->status, 1);
	virtio_push_quiet(&b->dev, 0, c, r->written + 1);
	b->owed = true;
	r->next = b->free;
	b->free = r;
}

static void signal_driver(struct virtio_blk *b)
{
	if (b->owed)
		virtio_signal(&b->dev, 0);
	b->owed = false;
}

/* Requests came back from the image. */
static void blk_done(void *opaque, struct host_io *list)
{
	struct virtio_blk *b = opaque;
	struct host_io *again = NULL, **end = &again, *next;

	host_lock(&b->dev.lock);
	for (struct host_io *io = list; io; io = next) {
		struct request *r = io->own;
		next = io->next;
		if (goes_on(r)) {
			*end = &r->io;
			end = &r->io.next;
			r->io.next = NULL;
			continue;
		}
		finish(r);
		virtio_async_end(&b->dev);
	}
	signal_driver(b);
	if (b->starved) {
		b->starved = false;
		virtio_wake(&b->dev);
	}
	host_unlock(&b->dev.lock);
	if (again)
		blk_image_submit(b->image, again);
}

/* Tries to carry the request out on this thread. The lock is let go meanwhile. */
static bool serve_here(struct request *r)
{
	struct virtio_blk *b = r->b;
	bool done, more = true;

	virtio_busy_begin(&b->dev);
	do
		done = blk_image_try(b->image, &r->io);
	while (done && (more = goes_on(r)));
	virtio_busy_end(&b->dev);
	return !more;
}

/* One to use, or NULL. Those that were never needed take no memory: it is not touched. */
static struct request *peek_unused(struct virtio_blk *b)
{
	if (b->free)
		return b->free;
	return b->fresh < QUEUE_SIZE ? &b->request[b->fresh] : NULL;
}

static void mark_used(struct virtio_blk *b, struct request *r)
{
	if (r == b->free) {
		b->free = r->next;
		return;
	}
	b->fresh++;
	r->b = b;
}

/* Takes the next request, if the caps let it. */
static struct request *take(struct virtio_blk *b)
{
	struct request *r = peek_unused(b);
	uint64_t now = b->iops.per_second || b->bps.per_second ? host_now_ns() : 0;
	uint64_t wait = MAX(rate_wait(&b->iops, now), rate_wait(&b->bps, now));

	if (wait) {
		b->dev.wake_at = now + wait;
		return NULL;
	}
	b->starved = !r;
	if (!r || !virtio_pop(&b->dev, 0, &r->chain))
		return NULL;
	if (r->chain.read_len < sizeof(struct header) || r->chain.write_len < 1) {
		virtio_fail(&b->dev, "a request without header or status");
		return NULL;
	}
	mark_used(b, r);
	rate_take(&b->iops, 1, now);
	rate_take(&b->bps, r->chain.read_len + r->chain.write_len, now);
	return r;
}

/*
 * Takes what the driver has, with the lock held. here: serves on this thread what needs no waiting, as long as nothing
 * has been met that does. True: there may be more.
 */
static bool serve(struct virtio_blk *b, bool here)
{
	struct host_io *list = NULL, **end = &list;
	uint64_t bytes = 0;
	unsigned n = 0;

	for (struct request *r; n < SERVE_MAX && virtio_may_work(&b->dev) && (r = take(b)); n++) {
		if (!begin(r)) {
			finish(r);
			continue;
		}
		bytes += r->io.len;
		here = here && bytes <= INLINE_BYTES;
		if (here && serve_here(r)) {
			finish(r);
			continue;
		}
		here = false;
		virtio_async_begin(&b->dev);
		*end = &r->io;
		end = &r->io.next;
	}
	if (list)
		blk_image_submit(b->image, list);
	signal_driver(b);
	return n == SERVE_MAX;
}

static bool blk_work(struct virtio_device *dev)
{
	struct virtio_blk *b = container_of(dev, struct virtio_blk, dev);

	dev->wake_at = UINT64_MAX;
	return serve(b, false);
}

static void blk_notify(struct virtio_device *dev)
{
	struct virtio_blk *b = container_of(dev, struct virtio_blk, dev);
	bool waits = dev->wake_at != UINT64_MAX;

	if (serve(b, true) || (!waits && dev->wake_at != UINT64_MAX))
		virtio_wake(dev);
}

static void blk_config_write(struct virtio_device *dev, uint64_t off, unsigned len, uint64_t value)
{
	struct virtio_blk *b = container_of(dev, struct virtio_blk, dev);

	if (off == offsetof(struct blk_config, writeback) && len == 1 && (dev->accepted & F_CONFIG_WCE))
		b->config.writeback = value & 1;
}

static void blk_reset(struct virtio_device *dev)
{
	container_of(dev, struct virtio_blk, dev)->config.writeback = 1;
}

static void blk_state(struct virtio_device *dev, struct state_stream *s)
{
	struct virtio_blk *b = container_of(dev, struct virtio_blk, dev);

	state_field(s, b->config.writeback);
	b->config.writeback &= 1;
	blk_image_state(b->image, s);
}

static void blk_free(struct virtio_device *dev)
{
	struct virtio_blk *b = container_of(dev, struct virtio_blk, dev);

	blk_image_close(b->image);
	free(b);
}

static const struct virtio_ops blk_ops = {
	.work = blk_work,
	.notify = blk_notify,
	.config_write = blk_config_write,
	.reset = blk_reset,
	.state = blk_state,
	.free = blk_free,
};

static const struct virtio_spec blk_spec = {
	.name = "virtio-blk",
	.type = VIRTIO_TYPE_BLOCK,
	.pci_class = 0x010000,
	.queues = 1,
	.threads = 1,
	.queue_size = QUEUE_SIZE,
	.max_bytes = REQUEST_MAX,
	.config_len = sizeof(struct blk_config),
	.ops = &blk_ops,
};

static void fill_config(struct virtio_blk *b)
{
	unsigned block = blk_image_block_size(b->image);

	b->config = (struct blk_config){
		.capacity = blk_image_size(b->image) / BLK_SECTOR,
		.size_max = SIZE_MAX_BYTES,
		.seg_max = SEG_MAX,
		.blk_size = block,
		.physical_block_exp = block < PAGE_SIZE ? __builtin_ctzll(PAGE_SIZE / block) : 0, /* the host's cache */
		.min_io_size = 1,
		.writeback = 1,
		.num_queues = 1,
		.max_discard_sectors = ZERO_SECTORS,
		.max_discard_seg = ZERO_SEGMENTS,
		.discard_sector_alignment = PAGE_SIZE / BLK_SECTOR,
		.max_write_zeroes_sectors = ZERO_SECTORS,
		.max_write_zeroes_seg = ZERO_SEGMENTS,
		.write_zeroes_may_unmap = 1,
	};
}

static uint64_t features(const struct blk_image *image)
{
	uint64_t f = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY;

	if (blk_image_readonly(image))
		return f | F_RO;
	f |= F_CONFIG_WCE;
	f |= blk_image_discards(image) ? F_DISCARD : 0;
	return f | (blk_image_zeroes(image) ? F_WRITE_ZEROES : 0);
}

/* Takes the image over, also when it fails. */
static bool create_on(struct blk_image *image, struct pci_bus *pci, struct guest_memory *mem,
		      const struct disk_config *config, struct device *out, struct error *err)
{
	struct virtio_blk *b = calloc(1, sizeof(*b));

	if (!b) {
		blk_image_close(image);
		return error_set(err, "out of memory");
	}
	b->image = image;
	blk_image_start(image, blk_done, b);
	rate_init(&b->iops, config->iops, 0, host_now_ns());
	rate_init(&b->bps, config->bps, 0, host_now_ns());
	if (config->id)
		memcpy(b->id, config->id, strnlen(config->id, ID_LEN));
	fill_config(b);
	b->dev.spec = &blk_spec;
	b->dev.config = &b->config;
	b->dev.offered = features(image);
	if (virtio_device_create(&b->dev, pci, mem, out, err))
		return true;
	blk_free(&b->dev);
	return false;
}

bool virtio_blk_create(struct pci_bus *pci, struct guest_memory *mem, const struct disk_config *config,
		       struct device *out, struct error *err)
{
	struct blk_image *image = blk_image_open(&config->image, err);

	return image && create_on(image, pci, mem, config, out, err);
}

bool virtio_blk_create_on(struct pci_bus *pci, struct guest_memory *mem, const struct disk_config *config,
			  struct blk_backend *be, struct device *out, struct error *err)
{
	struct blk_image *image = blk_image_on(be, &config->image, config->image.path, err);

	return image && create_on(image, pci, mem, config, out, err);
}
