#ifndef BENCH_PEER_H
#define BENCH_PEER_H

#include <stdint.h>

/* What the workloads of the network ask of their peer, at the begin of a connection. */
enum peer_does {
	PEER_READS,    /* n blocks; one byte when it has them all */
	PEER_WRITES,   /* n blocks */
	PEER_ANSWERS,  /* n requests: one byte, one byte back */
	PEER_REQUESTS, /* makes n requests itself */
};

struct peer_order {
	uint32_t does; /* little endian, as both sides are */
	uint32_t zero;
	uint64_t n;
};

#define PEER_BLOCK 65536UL

#endif
