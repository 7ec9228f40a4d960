/* TCP, in both directions, with the peer on the host that the environment's PEER names (ADDRESS:PORT). */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "peer.h"
#include "work.h"

static char block[PEER_BLOCK];

/* A connection whose other end does what `does` says, n times. */
static int peer(enum peer_does does, unsigned long n)
{
	struct sockaddr_in at = {.sin_family = AF_INET};
	struct peer_order order = {.does = (uint32_t)does, .n = n};
	const char *where = getenv("PEER");
	char address[16] = "";
	int port = 0, one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);

	errno = EDESTADDRREQ;
	if (!where || sscanf(where, "%15[0-9.]:%d", address, &port) != 2 || !inet_aton(address, &at.sin_addr))
		die("PEER");
	at.sin_port = htons((uint16_t)port);
	if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof(at)))
		die(where);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (write(fd, &order, sizeof(order)) != sizeof(order))
		die(where);
	return fd;
}

/* n blocks of 64 KiB to the peer, until it has them all. */
void work_net_send(unsigned long n)
{
	int fd = peer(PEER_READS, n);

	while (n--) {
		for (size_t done = 0; done < sizeof(block);) {
			ssize_t some = write(fd, block + done, sizeof(block) - done);

			if (some <= 0)
				die("send");
			done += (size_t)some;
		}
	}
	if (read(fd, block, 1) != 1)
		die("send");
}

void work_net_receive(unsigned long n)
{
	int fd = peer(PEER_WRITES, n);

	for (unsigned long left = n * sizeof(block); left;) {
		ssize_t some = read(fd, block, left < sizeof(block) ? left : sizeof(block));

		if (some <= 0)
			die("receive");
		left -= (unsigned long)some;
	}
}

/* n requests of one byte, each answered with one. */
void work_net_ask(unsigned long n)
{
	int fd = peer(PEER_ANSWERS, n);

	while (n--)
		if (write(fd, block, 1) != 1 || read(fd, block, 1) != 1)
			die("request");
}

void work_net_answer(unsigned long n)
{
	int fd = peer(PEER_REQUESTS, n);

	while (n--)
		if (read(fd, block, 1) != 1 || write(fd, block, 1) != 1)
			die("answer");
}
