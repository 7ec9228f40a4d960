/* The loop of a network's thread, for the back ends (net_user.c, net_tap.c). */
#ifndef DOPPEL_HOST_NET_LOOP_H
#define DOPPEL_HOST_NET_LOOP_H

#include "host/net.h"
#include "host/thread.h"

#include <poll.h>
#include <stdatomic.h>

struct net_loop {
	int event; /* eventfd: ends the sleep of the loop */
	_Atomic bool
		woken; /* it is to turn; who sets it then reads `asleep`, the thread sets `asleep` and then reads it */
	_Atomic bool asleep, quit;
	struct host_linger linger;
	bool started;
	struct host_thread thread;
	const struct host_net_client *client;
	void *opaque;
};

bool net_loop_init(struct net_loop *loop, struct error *err);
/* `run` is the thread: while (net_loop_turn(loop, &turn)) ... net_loop_wait(...) */
bool net_loop_start(struct net_loop *loop, void *(*run)(void *), void *arg, const struct host_net_client *client,
		    void *opaque, struct error *err);
void net_loop_wake(struct net_loop *loop);
/* Ends and joins the thread, if there is one. */
void net_loop_end(struct net_loop *loop);

/* Asks the client. False: the thread is to end. */
bool net_loop_turn(struct net_loop *loop, struct host_net_turn *turn);
/* Waits until something of poll[1...n-1] is ready, a wake, or `when`. poll[0] is the loop's own. */
void net_loop_wait(struct net_loop *loop, struct pollfd *poll, unsigned n, uint64_t when);

#endif
