/* virtio entropy device: virtio 1.2, 5.4. */
#include "dev/virtio_rng.h"

#include "dev/virtio.h"
#include "host/host.h"

#include <stdlib.h>

#define ANSWER_MAX KiB(64) /* bytes for one buffer; the device may give fewer than asked for */

static bool rng_work(struct virtio_device *dev)
{
	struct virtq_chain chain;
	uint32_t done = 0;

	if (!virtio_pop(dev, 0, &chain))
		return false;
	if (chain.readable || !chain.writable) {
		virtio_fail(dev, "a request for random bytes with no room for them");
		return false;
	}
	virtio_busy_begin(dev);
	for (unsigned i = 0; i < chain.writable && done < ANSWER_MAX; i++) {
		uint32_t len = MIN(chain.seg[i].len, ANSWER_MAX - done);
		if (!host_random(chain.seg[i].host, len))
			break;
		guest_memory_wrote(dev->mem, chain.seg[i].gpa, len);
		done += len;
	}
	virtio_busy_end(dev);
	virtio_push(dev, 0, &chain, done);
	return true;
}

static void rng_free(struct virtio_device *dev)
{
	free(dev);
}

static const struct virtio_ops rng_ops = {.work = rng_work, .free = rng_free};

static const struct virtio_spec rng_spec = {
	.name = "virtio-rng",
	.type = VIRTIO_TYPE_ENTROPY,
	.pci_class = 0xff0000,
	.queues = 1,
	.threads = 1,
	.queue_size = 64,
	.max_bytes = MiB(16),
	.ops = &rng_ops,
};

bool virtio_rng_create(struct pci_bus *pci, struct guest_memory *mem, struct device *out, struct error *err)
{
	struct virtio_device *dev = calloc(1, sizeof(*dev));

	if (!dev)
		return error_set(err, "out of memory");
	dev->spec = &rng_spec;
	if (!virtio_device_create(dev, pci, mem, out, err)) {
		free(dev);
		return false;
	}
	return true;
}
