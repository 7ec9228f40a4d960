/* virtio console: virtio 1.2, 5.3, without multiport. */
#include "dev/virtio_console.h"

#include "dev/virtio.h"

#include <stdlib.h>
#include <string.h>

#define F_SIZE BIT(0)
enum { QUEUE_RECEIVE, QUEUE_TRANSMIT, QUEUES };
#define INPUT_SIZE 4096u

/* Device configuration (5.3.4), as much of it as F_SIZE makes valid. */
struct console_config {
	uint16_t cols, rows;
};

struct virtio_console {
	struct virtio_device dev;
	struct virtio_console_config c;
	struct console_config config;
	uint8_t input[INPUT_SIZE]; /* typed and not yet taken by the guest: `used` bytes from `first` on */
	uint32_t first, used;
	bool refused; /* some input was, and input_ready is owed */
};

/* Takes up to `len` bytes of input into dst. */
static uint32_t input_take(struct virtio_console *con, void *dst, uint32_t len)
{
	uint32_t n = MIN(MIN(len, con->used), INPUT_SIZE - con->first);

	memcpy(dst, con->input + con->first, n);
	con->first = (con->first + n) % INPUT_SIZE;
	con->used -= n;
	return n;
}

static uint32_t input_put(struct virtio_console *con, const uint8_t *src, size_t len)
{
	uint32_t last = (con->first + con->used) % INPUT_SIZE;
	uint32_t n = MIN(len, MIN(INPUT_SIZE - con->used, INPUT_SIZE - last));

	memcpy(con->input + last, src, n);
	con->used += n;
	return n;
}

static bool receive(struct virtio_console *con)
{
	struct virtio_device *dev = &con->dev;
	struct virtq_chain chain;
	uint32_t done = 0;

	if (!con->used || !virtio_pop(dev, QUEUE_RECEIVE, &chain))
		return false;
	if (!chain.writable) {
		virtio_fail(dev, "a buffer for input with no room");
		return false;
	}
	for (unsigned i = chain.readable; i < chain.readable + chain.writable && con->used; i++) {
		const struct virtq_segment *s = &chain.seg[i];
		uint32_t n = input_take(con, s->host, s->len);
		if (n < s->len) /* the rest of a ring that wraps */
			n += input_take(con, s->host + n, s->len - n);
		guest_memory_wrote(dev->mem, s->gpa, n);
		done += n;
	}
	virtio_push(dev, QUEUE_RECEIVE, &chain, done);
	if (con->refused && con->c.input_ready) {
		con->refused = false;
		virtio_busy_begin(dev);
		con->c.input_ready(con->c.opaque);
		virtio_busy_end(dev);
	}
	return true;
}

static bool transmit(struct virtio_console *con)
{
	struct virtio_device *dev = &con->dev;
	struct virtq_chain chain;

	if (!virtio_pop(dev, QUEUE_TRANSMIT, &chain))
		return false;
	virtio_busy_begin(dev);
	for (unsigned i = 0; i < chain.readable && con->c.write; i++)
		con->c.write(con->c.opaque, chain.seg[i].host, chain.seg[i].len);
	virtio_busy_end(dev);
	virtio_push(dev, QUEUE_TRANSMIT, &chain, 0);
	return true;
}

static bool console_work(struct virtio_device *dev)
{
	struct virtio_console *con = container_of(dev, struct virtio_console, dev);

	return receive(con) || transmit(con);
}

static void console_state(struct virtio_device *dev, struct state_stream *s)
{
	struct virtio_console *con = container_of(dev, struct virtio_console, dev);

	state_field(s, con->config);
	state_field(s, con->input);
	state_field(s, con->first);
	state_field(s, con->used);
	con->first %= INPUT_SIZE;
	con->used = MIN(con->used, INPUT_SIZE);
}

static void console_free(struct virtio_device *dev)
{
	free(container_of(dev, struct virtio_console, dev));
}

/* No reset: input that nobody took is for whoever comes next, as with a keyboard. */
static const struct virtio_ops console_ops = {.work = console_work, .state = console_state, .free = console_free};

static const struct virtio_spec console_spec = {
	.name = "virtio-console",
	.type = VIRTIO_TYPE_CONSOLE,
	.pci_class = 0x078000,
	.queues = QUEUES,
	.threads = 1,
	.queue_size = 128,
	.max_bytes = MiB(16),
	.config_len = sizeof(struct console_config),
	.ops = &console_ops,
};

struct virtio_console *virtio_console_create(struct pci_bus *pci, struct guest_memory *mem,
					     const struct virtio_console_config *config, struct device *out,
					     struct error *err)
{
	struct virtio_console *con = calloc(1, sizeof(*con));

	if (!con) {
		error_set(err, "out of memory");
		return NULL;
	}
	con->c = *config;
	con->config = (struct console_config){config->cols, config->rows};
	con->dev.spec = &console_spec;
	con->dev.config = &con->config;
	con->dev.offered = config->cols && config->rows ? F_SIZE : 0;
	if (!virtio_device_create(&con->dev, pci, mem, out, err)) {
		free(con);
		return NULL;
	}
	return con;
}

size_t virtio_console_input(struct virtio_console *con, const uint8_t *data, size_t len)
{
	host_lock(&con->dev.lock);
	size_t n = input_put(con, data, len);
	n += input_put(con, data + n, len - n);
	con->refused |= n < len;
	if (n)
		virtio_wake(&con->dev);
	host_unlock(&con->dev.lock);
	return n;
}

void virtio_console_resize(struct virtio_console *con, uint16_t cols, uint16_t rows)
{
	host_lock(&con->dev.lock);
	if (con->config.cols != cols || con->config.rows != rows) {
		con->config = (struct console_config){cols, rows};
		virtio_config_changed(&con->dev);
	}
	host_unlock(&con->dev.lock);
}
