/* virtio memory balloon: virtio 1.2, 5.5. Pages that are given back to the host read as zeroes when they are used
 * again. */
#include "dev/virtio_balloon.h"

#include "dev/virtio.h"

#include <stdlib.h>
#include <string.h>

#define F_STATS_VQ BIT(1)
#define F_DEFLATE_ON_OOM BIT(2)
#define F_REPORTING BIT(5)

/*
 * Statistics and reports have queues 2 and 4 by the specification, as if that of the feature in between (3) were always
 * there; Linux counts only those that are. The last three are told apart by what their buffers are for: statistics are
 * to be read, and reported pages may be written.
 */
enum { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_FIRST_OTHER, QUEUES = 5 };

#define PAGES_AT_ONCE 4096u /* page numbers in a request; Linux's has 256 */
#define REPORT_MOST GiB(1)  /* bytes in a report; Linux's has 32 pieces of up to 4 MiB */
#define STATS_MOST 64u      /* figures */
#define FIGURE_LEN 10u      /* a 16-bit tag and a 64-bit value */
enum { STAT_FREE = 4, STAT_TOTAL = 5, STAT_AVAILABLE = 6, STATS = 7 };

/* Device configuration (5.5.4), as far as the features make it valid. */
struct balloon_config {
	uint32_t num_pages, actual; /* of 4096 bytes */
};

struct virtio_balloon {
	struct virtio_device dev;
	struct balloon_config config;
	uint64_t returned;
	uint64_t stat[STATS];
	/* The buffer for statistics stays here until new ones are wanted (5.5.6.3). */
	bool stats_held;
	uint16_t stats_head;
	uint8_t stats_queue;
};

static void give_back(struct virtio_balloon *b, uint64_t gpa, uint64_t len)
{
	if (guest_memory_discard(b->dev.mem, gpa, len))
		b->returned += len;
}

/* Neighbours go together: one call of the host's, and no huge page is broken up bit by bit. */
static void inflate(struct virtio_balloon *b, const uint32_t *page, unsigned count)
{
	uint64_t start = 0, len = 0;

	for (unsigned i = 0; i < count; i++) {
		uint64_t gpa = (uint64_t)page[i] << PAGE_SHIFT;
		if (!guest_memory_ptr(b->dev.mem, gpa, PAGE_SIZE, true))
			continue; /* no memory, or none of the guest's to give */
		if (len && gpa == start + len && guest_memory_ptr(b->dev.mem, start, len + PAGE_SIZE, true)) {
			len += PAGE_SIZE;
		} else if (len && gpa + PAGE_SIZE == start &&
			   guest_memory_ptr(b->dev.mem, gpa, len + PAGE_SIZE, true)) {
			start = gpa;
			len += PAGE_SIZE;
		} else {
			give_back(b, start, len);
			start = gpa;
			len = PAGE_SIZE;
		}
	}
	give_back(b, start, len);
}

static bool inflate_work(struct virtio_balloon *b)
{
	struct virtio_device *dev = &b->dev;
	uint32_t page[PAGES_AT_ONCE];
	struct virtq_chain chain;

	if (!virtio_pop(dev, QUEUE_INFLATE, &chain))
		return false;
	if (chain.writable || chain.read_len > sizeof(page)) {
		virtio_fail(dev, "a request with too many pages");
		return false;
	}
	virtio_busy_begin(dev);
	inflate(b, page, virtq_chain_read(&chain, 0, page, sizeof(page)) / sizeof(page[0]));
	virtio_busy_end(dev);
	virtio_push(dev, QUEUE_INFLATE, &chain, 0);
	return true;
}

/* Pages that the guest takes back are there as soon as it uses them. */
static bool deflate_work(struct virtio_balloon *b)
{
	struct virtq_chain chain;

	if (!virtio_pop(&b->dev, QUEUE_DEFLATE, &chain))
		return false;
	virtio_push(&b->dev, QUEUE_DEFLATE, &chain, 0);
	return true;
}

static void report(struct virtio_balloon *b, const struct virtq_chain *chain)
{
	for (unsigned i = 0; i < chain->writable; i++) {
		const struct virtq_segment *s = &chain->seg[i];
		uint64_t start = align_up(s->gpa, PAGE_SIZE), end = align_down(s->gpa + s->len, PAGE_SIZE);
		if (end > start)
			give_back(b, start, end - start);
	}
}

/* Lets the driver have the buffer, so that it brings new figures. */
static void ask_for_stats(struct virtio_balloon *b)
{
	struct virtq_chain chain = {.head = b->stats_head};

	if (!b->stats_held)
		return;
	b->stats_held = false;
	virtio_push(&b->dev, b->stats_queue, &chain, 0);
}

static void take_stats(struct virtio_balloon *b, unsigned queue, const struct virtq_chain *chain)
{
	uint8_t figure[FIGURE_LEN];

	for (unsigned i = 0; i < STATS_MOST; i++) {
		uint16_t tag;
		uint64_t value;
		if (virtq_chain_read(chain, (uint64_t)i * FIGURE_LEN, figure, FIGURE_LEN) < FIGURE_LEN)
			break;
		memcpy(&tag, figure, sizeof(tag));
		memcpy(&value, figure + sizeof(tag), sizeof(value));
		if (tag < STATS)
			b->stat[tag] = value;
	}
	ask_for_stats(b); /* one too many: there is to be only one */
	b->stats_held = true;
	b->stats_head = chain->head;
	b->stats_queue = (uint8_t)queue;
}

static bool other_work(struct virtio_balloon *b, unsigned queue)
{
	struct virtio_device *dev = &b->dev;
	struct virtq_chain chain;

	if (!virtio_pop(dev, queue, &chain))
		return false;
	if (!chain.writable) {
		take_stats(b, queue, &chain);
		return true;
	}
	if (chain.readable || chain.write_len > REPORT_MOST) {
		virtio_fail(dev, "a report of too many pages");
		return false;
	}
	virtio_busy_begin(dev);
	report(b, &chain);
	virtio_busy_end(dev);
	virtio_push(dev, queue, &chain, 0);
	return true;
}

static bool balloon_work(struct virtio_device *dev)
{
	struct virtio_balloon *b = container_of(dev, struct virtio_balloon, dev);

	if (inflate_work(b) || deflate_work(b))
		return true;
	for (unsigned q = QUEUE_FIRST_OTHER; q < QUEUES; q++)
		if (other_work(b, q))
			return true;
	return false;
}

/* The driver says in `actual` how much it has given. */
static void balloon_config_write(struct virtio_device *dev, uint64_t off, unsigned len, uint64_t value)
{
	struct virtio_balloon *b = container_of(dev, struct virtio_balloon, dev);

	if (off == offsetof(struct balloon_config, actual) && len == sizeof(b->config.actual))
		b->config.actual = (uint32_t)value;
}

/* What is wanted of the next driver stays. */
static void balloon_reset(struct virtio_device *dev)
{
	struct virtio_balloon *b = container_of(dev, struct virtio_balloon, dev);

	b->config.actual = 0;
	b->stats_held = false;
	memset(b->stat, 0, sizeof(b->stat));
}

static void balloon_state(struct virtio_device *dev, struct state_stream *s)
{
	struct virtio_balloon *b = container_of(dev, struct virtio_balloon, dev);

	state_field(s, b->config);
	state_field(s, b->stat);
	state_flag(s, &b->stats_held);
	state_field(s, b->stats_head);
	state_field(s, b->stats_queue);
	b->stats_held = b->stats_held && b->stats_queue < QUEUES;
}

static void balloon_free(struct virtio_device *dev)
{
	free(container_of(dev, struct virtio_balloon, dev));
}

static const struct virtio_ops balloon_ops = {
	.work = balloon_work,
	.config_write = balloon_config_write,
	.reset = balloon_reset,
	.state = balloon_state,
	.free = balloon_free,
};

static const struct virtio_spec balloon_spec = {
	.name = "virtio-balloon",
	.type = VIRTIO_TYPE_BALLOON,
	.pci_class = 0x00ff00,
	.queues = QUEUES,
	.threads = 1,
	.queue_size = 128,
	.max_bytes = REPORT_MOST,
	.config_len = sizeof(struct balloon_config),
	.ops = &balloon_ops,
};

struct virtio_balloon *virtio_balloon_create(struct pci_bus *pci, struct guest_memory *mem, uint64_t target,
					     struct device *out, struct error *err)
{
	struct virtio_balloon *b;

	if (target > mem->pages * PAGE_SIZE) {
		error_set(err, "a balloon of %llu MiB is more than the guest's memory of %llu MiB: give less",
			  (unsigned long long)target >> 20, (unsigned long long)(mem->pages * PAGE_SIZE) >> 20);
		return NULL;
	}
	b = calloc(1, sizeof(*b));
	if (!b) {
		error_set(err, "out of memory");
		return NULL;
	}
	b->config.num_pages = (uint32_t)(target >> PAGE_SHIFT);
	b->dev.spec = &balloon_spec;
	b->dev.config = &b->config;
	b->dev.offered = F_STATS_VQ | F_DEFLATE_ON_OOM | F_REPORTING;
	if (!virtio_device_create(&b->dev, pci, mem, out, err)) {
		free(b);
		return NULL;
	}
	return b;
}

bool virtio_balloon_set(struct virtio_balloon *b, uint64_t target)
{
	if (target > b->dev.mem->pages * PAGE_SIZE)
		return false;
	host_lock(&b->dev.lock);
	b->config.num_pages = (uint32_t)(target >> PAGE_SHIFT);
	virtio_config_changed(&b->dev);
	host_unlock(&b->dev.lock);
	return true;
}

void virtio_balloon_info(struct virtio_balloon *b, struct balloon_info *info)
{
	host_lock(&b->dev.lock);
	*info = (struct balloon_info){
		.target = (uint64_t)b->config.num_pages << PAGE_SHIFT,
		.taken = (uint64_t)b->config.actual << PAGE_SHIFT,
		.returned = b->returned,
		.guest_free = b->stat[STAT_FREE],
		.guest_available = b->stat[STAT_AVAILABLE],
		.guest_total = b->stat[STAT_TOTAL],
	};
	if (virtio_may_work(&b->dev))
		ask_for_stats(b);
	host_unlock(&b->dev.lock);
}
