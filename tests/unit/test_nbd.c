/* Requests to a server of blocks: it takes whole blocks only, and the guest's pieces end where they like. */
#include "unit.h"

#include "host/nbd.h"
#include "host/thread.h"

#include <endian.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SIZE MiB(1)
#define BLOCK 4096u

/* ---- A server for one client (NBD's doc/proto.md: fixed newstyle, simple replies) ---- */

enum { OPT_INFO = 6, OPT_GO = 7, REP_ACK = 1, REP_INFO = 3, INFO_EXPORT = 0, INFO_BLOCK_SIZE = 3 };
enum { CMD_READ = 0, CMD_WRITE = 1, CMD_DISC = 2 };
#define REP_UNSUP 0x80000001u

struct server {
	char path[64];
	int listener, fd;
	unsigned bad; /* requests for parts of blocks */
	uint8_t disk[SIZE];
};

static bool get(struct server *s, void *at, size_t len)
{
	for (ssize_t n; len; at = (char *)at + n, len -= (size_t)n)
		if ((n = read(s->fd, at, len)) <= 0)
			return false;
	return true;
}

static void put(struct server *s, const void *at, size_t len)
{
	for (ssize_t n; len; at = (const char *)at + n, len -= (size_t)n)
		if ((n = write(s->fd, at, len)) <= 0)
			return;
}

static void reply(struct server *s, uint32_t option, uint32_t type, const void *data, uint32_t len)
{
	const struct {
		uint64_t magic;
		uint32_t option, type, len;
	} __attribute__((packed)) head = {htobe64(0x3e889045565a9), htobe32(option), htobe32(type), htobe32(len)};

	put(s, &head, sizeof(head));
	put(s, data, len);
}

static void describe(struct server *s, uint32_t option)
{
	const struct {
		uint16_t type;
		uint64_t size;
		uint16_t flags;
	} __attribute__((packed)) export = {htobe16(INFO_EXPORT), htobe64(SIZE), htobe16(1)};
	const struct {
		uint16_t type;
		uint32_t least, preferred, most;
	} __attribute__((packed)) blocks = {htobe16(INFO_BLOCK_SIZE), htobe32(BLOCK), htobe32(BLOCK), htobe32(MiB(32))};

	reply(s, option, REP_INFO, &export, sizeof(export));
	reply(s, option, REP_INFO, &blocks, sizeof(blocks));
	reply(s, option, REP_ACK, NULL, 0);
}

static bool negotiate(struct server *s)
{
	struct {
		uint64_t magic;
		uint32_t option, len;
	} __attribute__((packed)) head;
	uint8_t data[4096];
	const uint16_t flags = htobe16(1);

	put(s, "NBDMAGICIHAVEOPT", 16);
	put(s, &flags, sizeof(flags));
	if (!get(s, data, 4))
		return false;
	do {
		if (!get(s, &head, sizeof(head)) || be32toh(head.len) > sizeof(data) ||
		    !get(s, data, be32toh(head.len)))
			return false;
		head.option = be32toh(head.option);
		if (head.option == OPT_INFO || head.option == OPT_GO)
			describe(s, head.option);
		else
			reply(s, head.option, REP_UNSUP, NULL, 0);
	} while (head.option != OPT_GO);
	return true;
}

/* False: the client says goodbye, or makes no sense. */
static bool serve(struct server *s)
{
	struct {
		uint32_t magic;
		uint16_t flags, type;
		uint64_t cookie, off;
		uint32_t len;
	} __attribute__((packed)) r;
	struct {
		uint32_t magic, error;
		uint64_t cookie;
	} __attribute__((packed)) answer = {htobe32(0x67446698), 0, 0};

	if (!get(s, &r, sizeof(r)) || be16toh(r.type) == CMD_DISC)
		return false;
	uint64_t off = be64toh(r.off), len = be32toh(r.len);
	if (off > SIZE || len > SIZE - off)
		return false;
	s->bad += off % BLOCK || len % BLOCK;
	answer.cookie = r.cookie;
	if (be16toh(r.type) == CMD_WRITE && !get(s, s->disk + off, len))
		return false;
	put(s, &answer, sizeof(answer));
	if (be16toh(r.type) == CMD_READ)
		put(s, s->disk + off, len);
	return true;
}

static void *server_main(void *arg)
{
	struct server *s = arg;

	s->fd = accept(s->listener, NULL, NULL);
	if (negotiate(s))
		while (serve(s))
			;
	close(s->fd);
	return NULL;
}

static void listen_there(struct server *s)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	snprintf(s->path, sizeof(s->path), "/tmp/doppel-nbd-%d", getpid());
	memcpy(addr.sun_path, s->path, strlen(s->path) + 1);
	s->listener = socket(AF_UNIX, SOCK_STREAM, 0);
	REQUIRE(!bind(s->listener, (struct sockaddr *)&addr, sizeof(addr)) && !listen(s->listener, 1));
}

/* ---- The tests ---- */

static void done(void *opaque, struct host_io *list) {}

TEST(pieces_that_are_no_blocks)
{
	static struct server s;
	static uint8_t data[2][SIZE], back[SIZE];
	static const size_t first[] = {100, 65535, 65536 + 1, 65536 + 512, BLOCK * 20, BLOCK * 20 + 2048};
	struct host_thread t;
	struct host_nbd_info info;
	char uri[128], why[256];

	listen_there(&s);
	REQUIRE(host_thread_start(&t, "server", server_main, &s));
	snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s", s.path);
	struct host_nbd_config config = {.uri = uri, .done = done};
	struct host_nbd *nbd = host_nbd_open(&config, &info, why, sizeof(why));
	REQUIRE(nbd);
	CHECK_EQ(info.block_min, BLOCK);
	for (unsigned i = 0; i < SIZE; i++)
		data[0][i] = (uint8_t)(i * 7 + i / 251);
	for (unsigned i = 0; i < ARRAY_LEN(first); i++) {
		uint64_t len = BLOCK * 40, rest = len - first[i];
		memcpy(data[1], data[0] + first[i], rest);
		struct host_iovec out[] = {{data[0], first[i]}, {data[1], rest}};
		struct host_io w = {.op = HOST_IO_WRITE, .off = i * BLOCK, .len = len, .iov = out, .n = 2};
		host_nbd_run(nbd, &w);
		CHECK_EQ(w.error, 0);
		CHECK_MEM(s.disk + i * BLOCK, data[0], len);
		struct host_iovec in[] = {{back, first[i]}, {back + SIZE / 2, rest}};
		struct host_io r = {.op = HOST_IO_READ, .off = i * BLOCK, .len = len, .iov = in, .n = 2};
		host_nbd_run(nbd, &r);
		CHECK_EQ(r.error, 0);
		CHECK_MEM(back, data[0], first[i]);
		CHECK_MEM(back + SIZE / 2, data[1], rest);
	}
	host_nbd_close(nbd);
	host_thread_join(&t);
	CHECK_EQ(s.bad, 0);
	close(s.listener);
	unlink(s.path);
}

UNIT_MAIN()
