/* The threads of a virtio device: they serve the queues so that virtual CPUs do not wait for the host's disks. */
#include "dev/virtio.h"

bool virtio_may_work(const struct virtio_device *dev)
{
	return !dev->held && dev->master && (dev->status & VIRTIO_DRIVER_OK) &&
	       !(dev->status & (VIRTIO_NEEDS_RESET | VIRTIO_FAILED));
}

static void *worker(void *arg)
{
	struct virtio_device *dev = arg;

	host_lock(&dev->lock);
	while (!dev->stop) {
		/* `work` says false only if it kept the lock since it looked: no notification is lost. */
		if (!virtio_may_work(dev))
			host_cond_wait(&dev->work, &dev->lock);
		else if (!dev->spec->ops->work(dev))
			host_cond_wait_until(&dev->work, &dev->lock, dev->wake_at);
	}
	host_unlock(&dev->lock);
	return NULL;
}

void virtio_wake(struct virtio_device *dev)
{
	if (dev->spec->ops->wake)
		dev->spec->ops->wake(dev);
	else if (virtio_may_work(dev))
		host_cond_signal(&dev->work);
}

void virtio_notify(struct virtio_device *dev)
{
	if (!virtio_may_work(dev))
		return;
	if (dev->spec->ops->notify)
		dev->spec->ops->notify(dev);
	else
		host_cond_signal(&dev->work);
}

void virtio_async_begin(struct virtio_device *dev)
{
	dev->busy++;
}

void virtio_async_end(struct virtio_device *dev)
{
	ENSURE(dev->busy);
	if (--dev->busy == 0 && dev->held)
		host_cond_broadcast(&dev->idle);
}

void virtio_busy_begin(struct virtio_device *dev)
{
	virtio_async_begin(dev);
	host_unlock(&dev->lock);
}

void virtio_busy_end(struct virtio_device *dev)
{
	host_lock(&dev->lock);
	virtio_async_end(dev);
}

void virtio_hold(struct virtio_device *dev)
{
	dev->held++;
	while (dev->busy)
		host_cond_wait(&dev->idle, &dev->lock);
}

void virtio_release(struct virtio_device *dev)
{
	ENSURE(dev->held);
	if (--dev->held)
		return;
	host_cond_broadcast(&dev->work);
	virtio_wake(dev);
}

bool virtio_threads_start(struct virtio_device *dev, unsigned count)
{
	ENSURE(count <= VIRTIO_THREADS);
	for (; dev->threads < count; dev->threads++) {
		if (!host_thread_start(&dev->thread[dev->threads], dev->spec->name, worker, dev))
			return false;
	}
	return true;
}

void virtio_threads_stop(struct virtio_device *dev)
{
	host_lock(&dev->lock);
	dev->stop = true;
	host_cond_broadcast(&dev->work);
	host_unlock(&dev->lock);
	while (dev->threads)
		host_thread_join(&dev->thread[--dev->threads]);
}
