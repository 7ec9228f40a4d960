/* The loop of a network's thread: waking it costs a system call only when it sleeps and has not been woken already. */
#include "host/net_loop.h"

#include "host/internal.h"

#include <sys/eventfd.h>
#include <unistd.h>

bool net_loop_init(struct net_loop *loop, struct error *err)
{
	loop->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->event >= 0)
		return true;
	host_fail();
	return error_set(err, "cannot make an event for the network: %s", host_error_text());
}

bool net_loop_start(struct net_loop *loop, void *(*run)(void *), void *arg, const struct host_net_client *client,
		    void *opaque, struct error *err)
{
	loop->client = client;
	loop->opaque = opaque;
	loop->started = host_thread_start(&loop->thread, "network", run, arg);
	return loop->started || error_set(err, "cannot start a thread for the network; see the limit on processes "
					       "(ulimit -u)");
}

void net_loop_wake(struct net_loop *loop)
{
	uint64_t one = 1;

	if (!atomic_exchange(&loop->woken, true) && atomic_load(&loop->asleep))
		(void)!write(loop->event, &one, sizeof(one));
}

void net_loop_end(struct net_loop *loop)
{
	if (loop->started) {
		atomic_store(&loop->quit, true);
		net_loop_wake(loop);
		host_thread_join(&loop->thread);
	}
	if (loop->event >= 0)
		close(loop->event);
}

bool net_loop_turn(struct net_loop *loop, struct host_net_turn *turn)
{
	/* Before the client looks: who sees `woken` still set has made its change before this exchange. */
	atomic_exchange(&loop->woken, false);
	if (atomic_load(&loop->quit))
		return false;
	*turn = loop->client->turn(loop->opaque);
	return true;
}

/* Returns how many are ready, not counting poll[0]. wait: in ns, or HOST_NET_NEVER. */
static unsigned look(struct pollfd *poll, unsigned n, uint64_t wait)
{
	const struct timespec ts = {(time_t)(wait / 1000000000), (long)(wait % 1000000000)};
	int ready = ppoll(poll, n, wait == HOST_NET_NEVER ? NULL : &ts, NULL);

	/* A signal, or no memory for the moment: nothing is ready. */
	for (unsigned i = 0; ready < 0 && i < n; i++)
		poll[i].revents = 0;
	return ready > 0 ? (unsigned)ready - !!poll[0].revents : 0;
}

static bool linger(struct net_loop *loop, struct pollfd *poll, unsigned n)
{
	while (host_linger(&loop->linger))
		if (look(poll, n, 0) || atomic_load(&loop->woken))
			return true;
	return false;
}

static void sleep_for(struct net_loop *loop, struct pollfd *poll, unsigned n, uint64_t wait)
{
	uint64_t count;

	atomic_store(&loop->asleep, true);
	look(poll, n, atomic_load(&loop->woken) ? 0 : wait);
	atomic_store(&loop->asleep, false);
	if (poll[0].revents)
		(void)!read(loop->event, &count, sizeof(count));
}

void net_loop_wait(struct net_loop *loop, struct pollfd *poll, unsigned n, uint64_t when)
{
	uint64_t now = when == HOST_NET_NEVER || !when ? 0 : host_now_ns();
	uint64_t wait = when == HOST_NET_NEVER ? when : when > now ? when - now : 0;

	poll[0] = (struct pollfd){.fd = loop->event, .events = POLLIN};
	if (!wait) {
		look(poll, n, 0);
		return;
	}
	host_linger_begin(&loop->linger);
	if (wait < HOST_LINGER_NS || !linger(loop, poll, n))
		sleep_for(loop, poll, n, wait);
	host_linger_end(&loop->linger);
}
