/*
 * A guest's doings to the virtio devices: configuration space, BARs, rings, saved states. The devices' threads are
 * held, and their work is done here, so that an input always does the same.
 */
#include "fuzz.h"

#include "../unit/virtio_guest.h"

#include "dev/virtio.h"
#include "dev/virtio_blk.h"
#include "dev/virtio_console.h"
#include "dev/virtio_rng.h"

#define DEVICES 3
#define WORK_MAX 600 /* chains served after one operation */

static struct rig rig;
static struct device device[DEVICES];
static struct drv drv[DEVICES];
static struct virtio_console *console;

static void write_nothing(void *opaque, const uint8_t *data, size_t len)
{
	volatile uint8_t sum = 0;

	for (size_t i = 0; i < len; i += 4096)
		sum += data[i];
}

static void make_disk(struct error *err)
{
	char path[64];
	static uint8_t zeroes[65536];

	snprintf(path, sizeof(path), "/tmp/doppel-fuzz-%llu", (unsigned long long)host_now_ns());
	struct host_file *f = host_file_open(path, HOST_FILE_READ | HOST_FILE_WRITE | HOST_FILE_CREATE);
	if (!f || host_file_pwrite(f, zeroes, sizeof(zeroes), 0) != sizeof(zeroes))
		rig_die("no disk image");
	host_file_close(f);
	if (!virtio_blk_create(rig.pci, &rig.mem, &(struct disk_config){.image = {.path = path, .snapshot = true}, .id = "fuzz"}, &device[0], err))
		rig_die(err->text);
	remove(path);
}

static void start(void)
{
	const struct virtio_console_config c = {write_nothing, NULL, NULL, 80, 25};
	struct error err;

	log_set_level(-1);
	rig_init(&rig);
	make_disk(&err);
	console = virtio_console_create(rig.pci, &rig.mem, &c, &device[1], &err);
	if (!console || !virtio_rng_create(rig.pci, &rig.mem, &device[2], &err))
		rig_die(err.text);
	for (unsigned i = 0; i < DEVICES; i++)
		device[i].pause(device[i].opaque);
}

static void work(unsigned n)
{
	struct virtio_device *dev = device[n].opaque;

	host_lock(&dev->lock);
	for (unsigned i = 0; i < WORK_MAX; i++) {
		if (!dev->master || (dev->status & (VIRTIO_DRIVER_OK | VIRTIO_NEEDS_RESET | VIRTIO_FAILED)) != 4)
			break;
		if (!dev->spec->ops->work(dev))
			break;
	}
	host_unlock(&dev->lock);
}

static void save_and_load(unsigned n, struct input *in)
{
	struct state_stream s = {.saving = true};

	device[n].state(device[n].opaque, &s);
	if (s.failed)
		rig_die("saving failed");
	/* As it was, or with a byte changed, or cut short. */
	size_t at = take(in, 2), change = take(in, 1);
	struct state_stream l = {.data = s.data, .len = s.len};
	if (change & 1)
		s.data[at % s.len] ^= change;
	if (change & 2)
		l.len = at % s.len;
	device[n].state(device[n].opaque, &l);
	if (!change && (l.failed || l.pos != l.len))
		rig_die("what was saved does not load");
	free(s.data);
}

/* A whole initialization, so that inputs need not find it bit by bit. */
static void bring_up(unsigned n, struct input *in)
{
	struct drv *d = &drv[n];
	uint64_t features = take(in, 1) & 1 ? ~0ull : F_VERSION_1;

	cfg_write(&rig, d->slot, PCI_COMMAND, 2, 0);
	cfg_write(&rig, d->slot, PCI_BAR0, 4, 0xc8000000 + n * 0x100000);
	cfg_write(&rig, d->slot, PCI_BAR0 + 4, 4, 0);
	cfg_write(&rig, d->slot, PCI_BAR0 + 8, 4, 0xc8010000 + n * 0x100000);
	drv_find(d, &rig, d->slot);
	drv_begin(d, features);
	for (unsigned i = 0; i < 2; i++)
		drv_queue(d, i, 8u << (take(in, 1) & 3));
	drv_ok(d);
}

static void chain(unsigned n, struct input *in)
{
	struct drv *d = &drv[n];
	unsigned which = take(in, 1);
	struct drv_queue *q = &d->q[which & 1];
	unsigned pieces = which >> 1 & 7;

	if (!q->size)
		return;
	for (unsigned i = 0; i < pieces; i++) {
		struct guest_desc *at = drv_desc(d, q, take(in, 1) % q->size);
		at->addr = RIG_BUFFERS + take(in, 2) * 16;
		at->len = take(in, 2);
		at->flags = take(in, 1) & 7;
		at->next = take(in, 1);
		if (at->flags & D_INDIRECT)
			at->len = (at->len & 31) * 16;
	}
	drv_publish(d, q, take(in, 1));
	if (which & 0x80)
		drv_kick(d, q);
}

static void poke_memory(struct input *in)
{
	uint64_t at = take(in, 1) & 1 ? RIG_BUFFERS : RIG_QUEUES;
	uint64_t off = take(in, 2) & ~1ull;
	unsigned len = take(in, 1);

	for (unsigned i = 0; i < len; i++) {
		uint8_t byte = take(in, 1);
		guest_memory_write(&rig.mem, at + off + i, &byte, 1);
	}
}

static void operation(struct input *in)
{
	unsigned op = take(in, 1), n = (op >> 4) % DEVICES, slot = n + 1;
	unsigned len = 1u << (op >> 6);
	uint64_t off;

	switch (op & 15) {
	case 0:
	case 1:
		chain(n, in);
		break;
	case 2:
		poke_memory(in);
		break;
	case 3:
		off = take(in, 1);
		cfg_write(&rig, slot, off & -(uint64_t)MIN(len, 4u), MIN(len, 4u), take(in, 4));
		break;
	case 4:
		off = take(in, 1);
		cfg_read(&rig, slot, off & -(uint64_t)MIN(len, 4u), MIN(len, 4u));
		break;
	case 5:
		off = take(in, 1);
		mmio_write(&rig, drv[n].common + off % 80, len, take(in, len));
		break;
	case 6:
		mmio_read(&rig, bar_address(&rig, slot, 0) + take(in, 2) % 0x4000, len);
		break;
	case 7:
		off = take(in, 2);
		mmio_write(&rig, bar_address(&rig, slot, 0) + off % 0x4000, len, take(in, len));
		break;
	case 8:
		off = take(in, 2);
		mmio_write(&rig, bar_address(&rig, slot, 2) + off % 0x1000, len, take(in, len));
		mmio_read(&rig, bar_address(&rig, slot, 2) + off % 0x1000, len);
		break;
	case 9:
		save_and_load(n, in);
		break;
	case 10:
		bring_up(n, in);
		break;
	case 11:
		off = take(in, 2);
		mmio_write(&rig, RIG_ECAM + (slot << 15) + off % 0x1001, len, take(in, len));
		break;
	case 12:
		off = take(in, 2);
		virtio_console_input(console, in->p, MIN(in->left, off));
		break;
	case 13:
		virtio_console_resize(console, take(in, 1), 5);
		break;
	case 14:
		device[n].reset(device[n].opaque);
		break;
	case 15:
		break;
	}
	work(n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};

	if (!rig.pci)
		start();
	rig.host.reset(rig.host.opaque);
	for (unsigned i = 0; i < DEVICES; i++) {
		device[i].reset(device[i].opaque);
		drv_find(&drv[i], &rig, i + 1);
	}
	while (in.left)
		operation(&in);
	return 0;
}
