/* Life of a virtio device: status, features, failure (virtio 1.2, 2.1, 2.2, 3.1), and what the board sees of it. */
#include "dev/virtio.h"

#include <string.h>

static bool features_acceptable(const struct virtio_device *dev)
{
	return (dev->accepted & ~dev->offered) == 0 && (dev->accepted & VIRTIO_F_VERSION_1);
}

void virtio_accept(struct virtio_device *dev, unsigned select, uint32_t features)
{
	if (dev->status & VIRTIO_FEATURES_OK)
		return;
	if (select == 0)
		dev->accepted = (dev->accepted & ~0xffffffffull) | features;
	else if (select == 1)
		dev->accepted = (dev->accepted & 0xffffffff) | (uint64_t)features << 32;
}

void virtio_set_status(struct virtio_device *dev, uint8_t status)
{
	if (status == 0) {
		virtio_reset(dev);
		return;
	}
	/* The driver sets bits and never clears one (2.1.1). */
	status = dev->status | (status & ~VIRTIO_NEEDS_RESET);
	if (!(dev->status & VIRTIO_FEATURES_OK) && !features_acceptable(dev))
		status &= ~VIRTIO_FEATURES_OK;
	if (!(status & VIRTIO_FEATURES_OK))
		status &= ~VIRTIO_DRIVER_OK;
	bool ready = status & ~dev->status & VIRTIO_DRIVER_OK;
	dev->status = status;
	if (ready && dev->spec->ops->ready)
		dev->spec->ops->ready(dev);
	virtio_wake(dev);
}

static void queue_features(struct virtio_device *dev, struct virtqueue *q)
{
	q->event_idx = dev->accepted & VIRTIO_F_EVENT_IDX;
	q->indirect = dev->accepted & VIRTIO_F_INDIRECT_DESC;
}

void virtio_enable_queue(struct virtio_device *dev, unsigned queue)
{
	struct virtqueue *q = &dev->queue[queue];

	if (q->enabled)
		return;
	q->enabled = true;
	queue_features(dev, q);
	if (!virtq_map(q, dev->mem))
		virtio_fail(dev, "a queue outside memory");
	virtio_wake(dev);
}

void virtio_fail(struct virtio_device *dev, const char *why)
{
	bool first = !(dev->status & VIRTIO_NEEDS_RESET);

	log_msg(dev->warned ? LOG_DEBUG : LOG_WARN, "%s: the guest's driver made %s; the device needs a reset",
		dev->spec->name, why);
	dev->warned = true;
	dev->status |= VIRTIO_NEEDS_RESET;
	if (first && (dev->status & VIRTIO_DRIVER_OK))
		virtio_pci_interrupt_config(dev->pci);
}

void virtio_config_changed(struct virtio_device *dev)
{
	dev->generation++;
	if (dev->status & VIRTIO_DRIVER_OK)
		virtio_pci_interrupt_config(dev->pci);
}

bool virtio_pop(struct virtio_device *dev, unsigned queue, struct virtq_chain *chain)
{
	struct virtqueue *q = &dev->queue[queue];
	const char *why;

	if (!q->enabled)
		return false;
	virtq_silence(q);
	for (unsigned tries = 0; tries < 2; tries++) {
		switch (virtq_pop(q, chain, dev->spec->max_bytes, &why)) {
		case VIRTQ_CHAIN:
			return true;
		case VIRTQ_BROKEN:
			virtio_fail(dev, why);
			return false;
		case VIRTQ_EMPTY:
			if (!virtq_arm(q))
				return false;
		}
	}
	virtio_fail(dev, "an available index that goes back");
	return false;
}

void virtio_unpop(struct virtio_device *dev, unsigned queue)
{
	dev->queue[queue].next_avail--;
}

void virtio_push(struct virtio_device *dev, unsigned queue, const struct virtq_chain *chain, uint32_t len)
{
	virtio_push_quiet(dev, queue, chain, len);
	virtio_signal(dev, queue);
}

void virtio_push_quiet(struct virtio_device *dev, unsigned queue, const struct virtq_chain *chain, uint32_t len)
{
	if (!(dev->status & VIRTIO_NEEDS_RESET))
		virtq_push(&dev->queue[queue], chain->head, len);
}

void virtio_signal(struct virtio_device *dev, unsigned queue)
{
	struct virtqueue *q = &dev->queue[queue];

	if (!(dev->status & VIRTIO_NEEDS_RESET) && virtq_wants_interrupt(q))
		virtio_pci_interrupt_queue(dev->pci, q->vector);
}

void virtio_reset(struct virtio_device *dev)
{
	virtio_hold(dev);
	for (unsigned i = 0; i < dev->spec->queues; i++)
		virtq_reset(&dev->queue[i]);
	dev->status = 0;
	dev->accepted = 0;
	if (dev->spec->ops->reset)
		dev->spec->ops->reset(dev);
	virtio_pci_restart(dev->pci);
	virtio_release(dev);
}

static void queue_state(struct virtio_device *dev, struct virtqueue *q, struct state_stream *s)
{
	state_field(s, q->size);
	state_flag(s, &q->enabled);
	state_field(s, q->vector);
	state_field(s, q->desc);
	state_field(s, q->avail);
	state_field(s, q->used);
	state_flag(s, &q->silenced);
	state_field(s, q->next_avail);
	state_field(s, q->next_used);
	state_field(s, q->signalled);
	state_flag(s, &q->signalled_valid);
	if (s->saving)
		return;
	if (q->size > q->size_max || (q->size & (q->size - 1)))
		q->size = 0; /* not what we saved; maps to nothing */
	queue_features(dev, q);
	if (q->enabled)
		virtq_map(q, dev->mem); /* if not, the next pop fails */
}

static void virtio_state(struct virtio_device *dev, struct state_stream *s)
{
	state_field(s, dev->status);
	state_field(s, dev->generation);
	state_field(s, dev->accepted);
	dev->accepted &= dev->offered;
	for (unsigned i = 0; i < dev->spec->queues; i++)
		queue_state(dev, &dev->queue[i], s);
	if (dev->spec->ops->state)
		dev->spec->ops->state(dev, s);
}

static void device_reset(void *opaque)
{
	struct virtio_device *dev = opaque;

	host_lock(&dev->lock);
	dev->master = false;
	virtio_reset(dev);
	host_unlock(&dev->lock);
	virtio_pci_reset(dev->pci);
}

static void device_pause(void *opaque)
{
	struct virtio_device *dev = opaque;

	host_lock(&dev->lock);
	virtio_hold(dev);
	host_unlock(&dev->lock);
}

static void device_resume(void *opaque)
{
	struct virtio_device *dev = opaque;

	host_lock(&dev->lock);
	virtio_release(dev);
	host_unlock(&dev->lock);
}

static void device_state(void *opaque, struct state_stream *s)
{
	struct virtio_device *dev = opaque;

	device_pause(dev);
	host_lock(&dev->lock);
	virtio_state(dev, s);
	host_unlock(&dev->lock);
	virtio_pci_state(dev->pci, s);
	device_resume(dev);
}

static void device_end(struct virtio_device *dev)
{
	device_pause(dev); /* for good: what is under way ends before its queues go */
	virtio_threads_stop(dev);
	if (dev->spec->ops->stop)
		dev->spec->ops->stop(dev);
	virtio_pci_destroy(dev->pci);
	host_cond_destroy(&dev->idle);
	host_cond_destroy(&dev->work);
	host_mutex_destroy(&dev->lock);
}

static void device_destroy(void *opaque)
{
	struct virtio_device *dev = opaque;

	device_end(dev);
	dev->spec->ops->free(dev);
}

bool virtio_device_create(struct virtio_device *dev, struct pci_bus *pci, struct guest_memory *mem, struct device *out,
			  struct error *err)
{
	ENSURE(dev->spec->queues <= VIRTIO_QUEUES && dev->spec->queue_size <= VIRTQ_SIZE_MAX);
	dev->mem = mem;
	dev->wake_at = UINT64_MAX;
	dev->offered |= VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC;
	for (unsigned i = 0; i < dev->spec->queues; i++) {
		dev->queue[i].size_max = dev->spec->queue_size;
		virtq_reset(&dev->queue[i]);
	}
	host_mutex_init(&dev->lock);
	host_cond_init(&dev->work);
	host_cond_init(&dev->idle);
	dev->pci = virtio_pci_create(dev, pci, err);
	if (!dev->pci || !virtio_threads_start(dev, dev->spec->threads)) {
		if (dev->pci)
			error_set(err, "cannot start a thread for %s; see the limit on processes (ulimit -u)",
				  dev->spec->name);
		device_end(dev);
		return false;
	}
	*out = (struct device){dev->spec->name, dev,          device_reset, device_state,
			       device_destroy,  device_pause, device_resume};
	return true;
}
