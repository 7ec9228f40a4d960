/* A UDP echo server for the guest, and its client: udp serve PORT | udp ask ADDRESS PORT BYTES COUNT. Prints "all came
 * back". */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

static char sent[65536], got[65536];

static int serve(int fd, struct sockaddr_in *here)
{
	struct sockaddr_in peer;
	socklen_t size;

	if (bind(fd, (struct sockaddr *)here, sizeof(*here)))
		return 1;
	for (;;) {
		size = sizeof(peer);
		ssize_t n = recvfrom(fd, got, sizeof(got), 0, (struct sockaddr *)&peer, &size);
		if (n >= 0)
			(void)!sendto(fd, got, (size_t)n, 0, (struct sockaddr *)&peer, size);
	}
}

/* UDP may lose a datagram: each has some tries. */
static int ask(int fd, struct sockaddr_in *there, size_t bytes, int count)
{
	struct timeval patience = {.tv_sec = 2};

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)there, sizeof(*there)))
		return 1;
	for (int i = 0, tries = 0; i < count; i++) {
		memset(sent, i + 1, bytes);
		if (send(fd, sent, bytes, 0) == (ssize_t)bytes && recv(fd, got, sizeof(got), 0) == (ssize_t)bytes &&
		    !memcmp(sent, got, bytes))
			tries = 0;
		else if (i--, ++tries == 5)
			return 1;
	}
	puts("all came back");
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in a = {.sin_family = AF_INET};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (argc == 3 && !strcmp(argv[1], "serve")) {
		a.sin_port = htons((uint16_t)atoi(argv[2]));
		return serve(fd, &a);
	}
	if (argc != 6 || strcmp(argv[1], "ask") != 0)
		return 2;
	inet_pton(AF_INET, argv[2], &a.sin_addr);
	a.sin_port = htons((uint16_t)atoi(argv[3]));
	return ask(fd, &a, (size_t)atoi(argv[4]), atoi(argv[5]));
}
