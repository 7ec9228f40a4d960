/* Split virtqueues: virtio 1.2, 2.7. */
#include "dev/virtio.h"

#include <stdatomic.h>
#include <string.h>

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { AVAIL_NO_INTERRUPT = 1 };
enum { USED_NO_NOTIFY = 1 };

/* Areas of the queue: two 16-bit words, the ring, and a 16-bit event index. */
#define RING_FLAGS 0
#define RING_INDEX 2
#define RING_ENTRIES 4
#define USED_ENTRY 8

struct descriptor {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

static uint16_t load16(const uint8_t *p, int order)
{
	return __atomic_load_n((const uint16_t *)p, order);
}

static void store16(struct virtqueue *q, unsigned off, uint16_t value)
{
	__atomic_store_n((uint16_t *)(q->used_at + off), value, __ATOMIC_RELEASE);
	guest_memory_wrote(q->mem, q->used + off, sizeof(value));
}

void virtq_reset(struct virtqueue *q)
{
	*q = (struct virtqueue){.size = q->size_max, .size_max = q->size_max, .vector = PCI_NO_VECTOR};
}

bool virtq_map(struct virtqueue *q, struct guest_memory *mem)
{
	q->mem = mem;
	q->desc_at = q->avail_at = q->used_at = NULL;
	if (q->desc % 16 || q->avail % 2 || q->used % 4 || !q->size)
		return false;
	q->desc_at = guest_memory_ptr(mem, q->desc, sizeof(struct descriptor) * q->size, false);
	q->avail_at = guest_memory_ptr(mem, q->avail, RING_ENTRIES + 2 * q->size + 2, false);
	q->used_at = guest_memory_ptr(mem, q->used, RING_ENTRIES + USED_ENTRY * q->size + 2, true);
	return q->desc_at && q->avail_at && q->used_at;
}

static bool virtq_mapped(const struct virtqueue *q)
{
	return q->desc_at && q->avail_at && q->used_at;
}

bool virtq_has_more(const struct virtqueue *q)
{
	return virtq_mapped(q) && load16(q->avail_at + RING_INDEX, __ATOMIC_ACQUIRE) != q->next_avail;
}

/* The table that is being followed: the queue's own, or an indirect one (2.7.5.3). */
struct walk {
	const uint8_t *table;
	unsigned entries, left; /* `left` bounds loops: no chain is longer than its table */
	unsigned index;
	bool indirect;
};

static struct descriptor walk_read(const struct walk *w)
{
	struct descriptor d;

	memcpy(&d, w->table + sizeof(d) * w->index, sizeof(d));
	/* What was read is what counts: no second look at memory that the guest may change meanwhile. */
	__asm__ volatile("" : "+m"(d) : : "memory");
	return d;
}

static const char *walk_indirect(const struct virtqueue *q, struct walk *w, const struct descriptor *d)
{
	if (!q->indirect)
		return "an indirect descriptor without the feature";
	if (w->indirect)
		return "an indirect descriptor in an indirect table";
	if (d->flags & DESC_NEXT)
		return "an indirect descriptor with a next one";
	if (d->len == 0 || d->len % sizeof(*d) || d->len / sizeof(*d) > UINT16_MAX)
		return "an indirect table of bad length";
	w->table = guest_memory_ptr(q->mem, d->addr, d->len, false);
	if (!w->table)
		return "an indirect table outside memory";
	w->entries = w->left = d->len / sizeof(*d);
	w->index = 0;
	w->indirect = true;
	return NULL;
}

static const char *chain_add(const struct virtqueue *q, struct virtq_chain *chain, const struct descriptor *d,
			     uint64_t max_bytes)
{
	bool write = d->flags & DESC_WRITE;
	unsigned n = chain->readable + chain->writable;

	if (n == VIRTQ_SEGMENTS)
		return "a chain of too many pieces";
	if (!write && chain->writable)
		return "a readable piece after a writable one";
	if (d->len > max_bytes - chain->read_len - chain->write_len)
		return "a chain of too many bytes";
	chain->seg[n] = (struct virtq_segment){d->addr, guest_memory_ptr(q->mem, d->addr, d->len, write), d->len};
	if (!chain->seg[n].host)
		return d->len ? "a piece outside memory" : "an empty piece";
	chain->readable += !write;
	chain->writable += write;
	*(write ? &chain->write_len : &chain->read_len) += d->len;
	return NULL;
}

static const char *chain_build(const struct virtqueue *q, struct virtq_chain *chain, uint64_t max_bytes)
{
	struct walk w = {q->desc_at, q->size, q->size, chain->head, false};

	for (;;) {
		const char *why;
		if (w.index >= w.entries)
			return "a descriptor index out of range";
		if (w.left-- == 0)
			return "a loop of descriptors";
		struct descriptor d = walk_read(&w);
		if (d.flags & DESC_INDIRECT) {
			if ((why = walk_indirect(q, &w, &d)))
				return why;
			continue;
		}
		if ((why = chain_add(q, chain, &d, max_bytes)))
			return why;
		if (!(d.flags & DESC_NEXT))
			return NULL;
		w.index = d.next;
	}
}

enum virtq_result virtq_pop(struct virtqueue *q, struct virtq_chain *chain, uint64_t max_bytes, const char **why)
{
	*why = NULL;
	if (!virtq_mapped(q)) {
		*why = "a queue outside memory";
		return VIRTQ_BROKEN;
	}
	/* Acquire: the entry and its descriptors were written before the index. */
	uint16_t ready = load16(q->avail_at + RING_INDEX, __ATOMIC_ACQUIRE) - q->next_avail;
	if (ready == 0)
		return VIRTQ_EMPTY;
	if (ready > q->size) {
		*why = "an available index that jumps";
		return VIRTQ_BROKEN;
	}
	size_t slot = q->next_avail % q->size;
	chain->head = load16(q->avail_at + RING_ENTRIES + 2 * slot, __ATOMIC_RELAXED);
	chain->readable = chain->writable = 0;
	chain->read_len = chain->write_len = 0;
	*why = chain_build(q, chain, max_bytes);
	if (*why)
		return VIRTQ_BROKEN;
	q->next_avail++;
	return VIRTQ_CHAIN;
}

void virtq_unpop(struct virtqueue *q, unsigned n)
{
	q->next_avail -= n;
}

void virtq_fill(struct virtqueue *q, unsigned i, uint16_t head, uint32_t len)
{
	const uint32_t entry[2] = {head, len};

	if (!virtq_mapped(q))
		return;
	unsigned off = RING_ENTRIES + USED_ENTRY * ((uint16_t)(q->next_used + i) % q->size);
	memcpy(q->used_at + off, entry, sizeof(entry));
	guest_memory_wrote(q->mem, q->used + off, sizeof(entry));
}

void virtq_show(struct virtqueue *q, unsigned n)
{
	if (!virtq_mapped(q))
		return;
	q->next_used += n;
	store16(q, RING_INDEX, q->next_used); /* releases the entries */
}

void virtq_push(struct virtqueue *q, uint16_t head, uint32_t len)
{
	virtq_fill(q, 0, head, len);
	virtq_show(q, 1);
}

bool virtq_wants_interrupt(struct virtqueue *q)
{
	uint16_t now = q->next_used, before = q->signalled;
	bool known = q->signalled_valid;

	if (!virtq_mapped(q))
		return false;
	/* The driver sets its wish and then looks at the used index: one of us sees the other's store (2.7.7.1). */
	atomic_thread_fence(memory_order_seq_cst);
	if (!q->event_idx)
		return !(load16(q->avail_at + RING_FLAGS, __ATOMIC_RELAXED) & AVAIL_NO_INTERRUPT);
	uint16_t event = load16(q->avail_at + RING_ENTRIES + 2 * (size_t)q->size, __ATOMIC_RELAXED);
	q->signalled = now;
	q->signalled_valid = true;
	return !known || (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

bool virtq_arm(struct virtqueue *q)
{
	if (!virtq_mapped(q))
		return false;
	if (q->event_idx)
		store16(q, RING_ENTRIES + USED_ENTRY * q->size, q->next_avail);
	else if (q->silenced)
		store16(q, RING_FLAGS, 0);
	q->silenced = false;
	/* The driver stores its index and then looks at our wish: one of us sees the other's store (2.7.10.1). */
	atomic_thread_fence(memory_order_seq_cst);
	return virtq_has_more(q);
}

void virtq_silence(struct virtqueue *q)
{
	/* With event_idx the old index stays where it is, and is passed once. */
	if (!q->silenced && !q->event_idx && virtq_mapped(q))
		store16(q, RING_FLAGS, USED_NO_NOTIFY);
	q->silenced = true;
}

size_t virtq_chain_read(const struct virtq_chain *chain, uint64_t off, void *dst, size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < chain->readable && done < len; i++) {
		const struct virtq_segment *s = &chain->seg[i];
		if (off < s->len) {
			size_t n = MIN(s->len - off, len - done);
			memcpy((char *)dst + done, s->host + off, n);
			done += n;
			off = 0;
		} else {
			off -= s->len;
		}
	}
	return done;
}

size_t virtq_chain_write(struct guest_memory *mem, const struct virtq_chain *chain, uint64_t off, const void *src,
			 size_t len)
{
	size_t done = 0;

	for (unsigned i = 0; i < chain->writable && done < len; i++) {
		const struct virtq_segment *s = &chain->seg[chain->readable + i];
		if (off < s->len) {
			size_t n = MIN(s->len - off, len - done);
			memcpy(s->host + off, (const char *)src + done, n);
			guest_memory_wrote(mem, s->gpa + off, n);
			done += n;
			off = 0;
		} else {
			off -= s->len;
		}
	}
	return done;
}
