/*
 * The other end of the workloads of the network, on the host: listens on the loopback interface, prints the port, and
 * serves connections one at a time until standard input ends.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peer.h"

static char block[PEER_BLOCK];

static int whole_read(int fd, void *p, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = read(fd, (char *)p + done, len - done);

		if (n <= 0)
			return 0;
		done += (size_t)n;
	}
	return 1;
}

static int whole_write(int fd, const void *p, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = write(fd, (const char *)p + done, len - done);

		if (n <= 0)
			return 0;
		done += (size_t)n;
	}
	return 1;
}

static void read_blocks(int fd, uint64_t n)
{
	uint64_t left = n * PEER_BLOCK;

	while (left) {
		ssize_t got = read(fd, block, left < PEER_BLOCK ? left : PEER_BLOCK);

		if (got <= 0)
			return;
		left -= (uint64_t)got;
	}
	whole_write(fd, block, 1);
}

static void serve(int fd)
{
	struct peer_order order;

	if (!whole_read(fd, &order, sizeof(order)))
		return;
	if (order.does == PEER_READS) {
		read_blocks(fd, order.n);
		return;
	}
	while (order.n--) {
		switch (order.does) {
		case PEER_WRITES:
			if (!whole_write(fd, block, sizeof(block)))
				return;
			break;
		case PEER_ANSWERS:
			if (!whole_read(fd, block, 1) || !whole_write(fd, block, 1))
				return;
			break;
		case PEER_REQUESTS:
			if (!whole_write(fd, block, 1) || !whole_read(fd, block, 1))
				return;
			break;
		default:
			return;
		}
	}
	whole_read(fd, block, 1); /* until the other side has closed */
}

static void fail(const char *what)
{
	fprintf(stderr, "bench: peer: %s: %s\n", what, strerror(errno));
	exit(1);
}

int main(void)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(at);
	int one = 1, s = socket(AF_INET, SOCK_STREAM, 0);

	signal(SIGPIPE, SIG_IGN);
	if (s < 0 || bind(s, (struct sockaddr *)&at, len) || listen(s, 8) ||
	    getsockname(s, (struct sockaddr *)&at, &len))
		fail("listen");
	printf("%d\n", ntohs(at.sin_port));
	fflush(stdout);
	for (;;) {
		struct pollfd wait[2] = {{.fd = s, .events = POLLIN}, {.fd = 0, .events = POLLIN}};

		if (poll(wait, 2, -1) < 0)
			fail("poll");
		if (wait[1].revents)
			return 0;
		int fd = accept(s, NULL, NULL);
		if (fd < 0)
			continue;
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		serve(fd);
		close(fd);
	}
}
