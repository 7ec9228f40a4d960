/*
 * A shared folder that is only to be read, as a driver sees it who does not believe that: each request is answered, and
 * none ends the machine.
 */
#include "virtio.h"

const char payload[] = "share";

#define QUEUE 16
#define REQUESTS 1 /* their queue */

static struct {
	struct desc desc[QUEUE];
	struct {
		u16 flags, index, ring[QUEUE], event;
	} avail __attribute__((aligned(4096)));
	volatile struct {
		u16 flags, index;
		struct {
			u32 id, len;
		} ring[QUEUE];
		u16 event;
	} used __attribute__((aligned(4096)));
} queue __attribute__((aligned(4096)));

/* FUSE's (Linux's include/uapi/linux/fuse.h). */
struct request {
	u32 len, op;
	u64 unique, node;
	u32 uid, gid, pid, more;
	u8 arg[64];
};
struct answer {
	u32 len;
	int error;
	u64 unique;
	u64 body[32];
};
enum {
	LOOKUP = 1,
	FORGET = 2,
	OPEN = 14,
	FSYNC = 20,
	INIT = 26,
	OPENDIR = 27,
	FSYNCDIR = 30,
	INTERRUPT = 36,
	DESTROY = 38,
	BATCH_FORGET = 42,
	SYNCFS = 50,
};
enum { ROOT = 1, DATA_ONLY = 1 };

static volatile u8 *common;
static volatile u16 *doorbell;
static struct request request;
static volatile struct answer answer;

static void open_device(void)
{
	virtio_open(26, &common, &doorbell);
	memset(&queue, 0, sizeof(queue));
	CFG16(22) = REQUESTS;
	CFG16(24) = QUEUE;
	CFG64(32, (u64)queue.desc);
	CFG64(40, (u64)&queue.avail);
	CFG64(48, (u64)&queue.used);
	CFG16(28) = 1;
	CFG8(20) = 15;
}

/* The answer's error. */
static int ask(u32 op, u64 node, const void *arg, u32 len)
{
	request = (struct request){.len = 40 + len, .op = op, .unique = queue.avail.index + 1, .node = node};
	memcpy(request.arg, arg, len);
	answer.len = 0;
	queue.desc[0] = (struct desc){(u64)&request, request.len, NEXT, 1};
	queue.desc[1] = (struct desc){(u64)&answer, sizeof(answer), WRITE, 0};
	barrier();
	queue.avail.index++;
	barrier();
	doorbell[REQUESTS * 2] = REQUESTS;
	CHECK(WAIT_FOR(queue.used.index == queue.avail.index, 5000000));
	CHECK(answer.len >= 16);
	return answer.error;
}

static void begin(void)
{
	const u32 init[4] = {7, 38, 0, 0};

	open_device();
	CHECK_EQ(ask(INIT, 0, init, sizeof(init)), 0);
}

static u64 look_up(const char *name)
{
	CHECK_EQ(ask(LOOKUP, ROOT, name, strlen(name) + 1), 0);
	CHECK(answer.body[0]);
	return answer.body[0];
}

static u64 open_it(u32 op, u64 node, u32 flags)
{
	const u32 in[2] = {flags, 0};

	CHECK_EQ(ask(op, node, in, sizeof(in)), 0);
	return answer.body[0];
}

/* What was never written is on the host's disk as far as a guest can tell. */
TEST(readonly_sync)
{
	begin();
	u64 node = look_up("ab");
	u64 file[2] = {open_it(OPEN, node, 0)}, folder[2] = {open_it(OPENDIR, ROOT, 0)};
	CHECK_EQ(ask(FSYNC, node, file, 16), 0);
	CHECK_EQ(ask(FSYNCDIR, ROOT, folder, 16), 0);
	file[1] = folder[1] = DATA_ONLY;
	CHECK_EQ(ask(FSYNC, node, file, 16), 0);
	CHECK_EQ(ask(FSYNCDIR, ROOT, folder, 16), 0);
	CHECK_EQ(ask(SYNCFS, ROOT, file, 8), 0);
}

/* Whatever the request, and whatever it says. */
TEST(readonly_requests)
{
	begin();
	u64 node = look_up("ab");
	u64 file[8] = {open_it(OPEN, node, 0)}, folder[8] = {open_it(OPENDIR, ROOT, 0)};
	for (u32 op = 0; op < 60; op++) {
		if (op == INIT || op == FORGET || op == INTERRUPT || op == DESTROY || op == BATCH_FORGET)
			continue;
		for (unsigned i = 1; i < 8; i++)
			file[i] = folder[i] = random64() & 1;
		CHECK(ask(op, node, file, 64) <= 0);
		CHECK(ask(op, ROOT, folder, 64) <= 0);
		CHECK(ask(op, ROOT, "ab\0ab", 6) <= 0);
	}
}
/* run: doppel=--share:{share},readonly */
