/*
 * A guest's doings to the virtio devices: configuration space, BARs, rings, saved states. The devices' threads are
 * held, and their work is done here, so that an input always does the same.
 */
#include "fuzz.h"

#include "../unit/virtio_guest.h"

#include "dev/virtio.h"
#include "dev/virtio_balloon.h"
#include "dev/virtio_blk.h"
#include "dev/virtio_console.h"
#include "dev/virtio_fs.h"
#include "dev/virtio_net.h"
#include "dev/virtio_rng.h"

enum { BLK, CONSOLE, RNG, NET, BALLOON, FS, DEVICES };
/* The upper half of an operation's byte; in this order kept inputs keep their sense. */
static const uint8_t devices[16] = {BLK, CONSOLE, RNG, NET,     BALLOON, FS,  FS, RNG,
				    NET, BALLOON, FS,  CONSOLE, FS,      NET, FS, BLK};
#define WORK_MAX 600 /* chains served after one operation */

static struct rig rig;
static struct device device[DEVICES];
static struct drv drv[DEVICES];
static struct virtio_console *console;
static struct virtio_balloon *balloon;

static void console_write(void *opaque, const uint8_t *data, size_t len)
{
	look_at(data, len);
}

/* --- A network that takes every frame and has none but the input's --- */

static const struct host_net_client *net_client;
static void *net_opaque;

static bool net_start(struct host_net *net, const struct host_net_client *client, void *opaque, struct error *err)
{
	net_client = client;
	net_opaque = opaque;
	return true;
}

static void net_wake(struct host_net *net) {}

static void net_send(struct host_net *net, const struct host_net_header *header, const struct host_iovec *iov,
		     unsigned n, size_t len)
{
	size_t all = 0;

	for (unsigned i = 0; i < n; all += iov[i++].len)
		look_at(iov[i].base, iov[i].len);
	EXPECT(all == len && len <= HOST_NET_FRAME_MAX);
}

static void net_guest_takes(struct host_net *net, const struct host_net_offloads *offloads) {}

static void net_close(struct host_net *net) {}

static const struct host_net_ops net_ops = {net_start, net_wake, net_send, net_guest_takes, net_close};
static struct host_net net = {&net_ops, {true, true, true, true}, {true, true, true, true}};

/* --- The machine --- */

static void make_disk(struct error *err)
{
	char path[64];
	static uint8_t zeroes[65536];
	struct disk_config config = {.image = {.path = path, .snapshot = true}, .id = "fuzz"};

	snprintf(path, sizeof(path), "/tmp/doppel-fuzz-%llu", (unsigned long long)host_now_ns());
	struct host_file *f = host_file_open(path, HOST_FILE_READ | HOST_FILE_WRITE | HOST_FILE_CREATE);
	if (!f || host_file_pwrite(f, zeroes, sizeof(zeroes), 0) != sizeof(zeroes))
		rig_die("no disk image");
	host_file_close(f);
	if (!virtio_blk_create(rig.pci, &rig.mem, &config, &device[BLK], err))
		rig_die(err->text);
	remove(path);
}

static char share_file[64];
static const char *share_folder;

static void remove_share(void)
{
	remove(share_file);
	remove(share_folder);
}

/* Nothing can be written, so that an input leaves nothing behind. */
static void make_share(struct error *err)
{
	static char path[] = "/tmp/doppel-fuzz-share-XXXXXX";
	char file[64];
	struct share_config config = {.path = path, .tag = "fuzz", .readonly = true, .shares = 1};

	if (!mkdtemp(path))
		rig_die("no folder");
	snprintf(file, sizeof(file), "%s/file", path);
	struct host_file *f = host_file_open(file, HOST_FILE_WRITE | HOST_FILE_CREATE);
	if (!f || host_file_pwrite(f, path, sizeof(path), 0) != sizeof(path))
		rig_die("no file");
	host_file_close(f);
	if (!virtio_fs_create(rig.pci, &rig.mem, &config, &device[FS], err))
		rig_die(err->text);
	snprintf(share_file, sizeof(share_file), "%s", file);
	share_folder = path;
	atexit(remove_share);
}

static void start(void)
{
	const struct virtio_console_config c = {console_write, NULL, NULL, 80, 25};
	const struct virtio_net_config n = {{2, 3, 4, 5, 6, 7}, 9000, 0, &net};
	struct error err;

	log_set_level(-1);
	rig_init(&rig);
	make_disk(&err);
	console = virtio_console_create(rig.pci, &rig.mem, &c, &device[CONSOLE], &err);
	if (!console || !virtio_rng_create(rig.pci, &rig.mem, &device[RNG], &err) ||
	    !virtio_net_create(rig.pci, &rig.mem, &n, &device[NET], &err))
		rig_die(err.text);
	balloon = virtio_balloon_create(rig.pci, &rig.mem, 0, &device[BALLOON], &err);
	if (!balloon)
		rig_die(err.text);
	make_share(&err);
	for (unsigned i = 0; i < DEVICES; i++)
		device[i].pause(device[i].opaque);
}

/*
 * The device is held but for these moments, in which this thread does what its own would do, and then waits for what
 * it began on others.
 */
static void work(unsigned n)
{
	struct virtio_device *dev = device[n].opaque;
	const struct virtio_ops *ops = dev->spec->ops;
	unsigned held;

	host_lock(&dev->lock);
	held = dev->held;
	dev->held = 0;
	if (virtio_may_work(dev) && ops->notify)
		ops->notify(dev);
	for (unsigned i = 0; i < WORK_MAX && ops->work && virtio_may_work(dev) && ops->work(dev); i++)
		;
	if (n == NET) {
		host_unlock(&dev->lock);
		net_client->turn(net_opaque);
		host_lock(&dev->lock);
	}
	dev->held = held;
	while (dev->busy)
		host_cond_wait(&dev->idle, &dev->lock);
	host_unlock(&dev->lock);
}

/* A frame for the guest, from the input's next bytes; the device takes it only while it is not held. */
static void receive_frame(struct input *in, size_t len)
{
	struct virtio_device *dev = device[NET].opaque;
	struct host_net_header header = {.flags = (uint8_t)(len & 3)};
	static uint8_t frame[HOST_NET_FRAME_MAX];

	len = MIN(len, sizeof(frame));
	memcpy(frame, in->p, MIN(in->left, len));
	host_lock(&dev->lock);
	dev->held--;
	host_unlock(&dev->lock);
	net_client->receive(net_opaque, &header, frame, len);
	host_lock(&dev->lock);
	dev->held++;
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
	for (unsigned i = 0; i < MIN(DRV_QUEUES, common_read(d, C_QUEUES, 2)); i++)
		drv_queue(d, i, 8u << (take(in, 1) & 3));
	drv_ok(d);
}

static void chain(unsigned n, struct input *in)
{
	struct drv *d = &drv[n];
	unsigned which = take(in, 1);
	struct drv_queue *q = &d->q[which % DRV_QUEUES];
	unsigned pieces = which / DRV_QUEUES & 7;

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
	unsigned op = take(in, 1), n = devices[op >> 4], slot = n + 1;
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
		if (n == NET)
			receive_frame(in, take(in, 2));
		else if (n == BALLOON)
			virtio_balloon_set(balloon, take(in, 4) & ~0xfffull);
		else
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
