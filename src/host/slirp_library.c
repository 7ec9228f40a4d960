#include "host/slirp_library.h"

#include "host/net.h"
#include "host/thread.h"

#include <dlfcn.h>

/* The process's, as a library is that is linked; never unloaded. */
struct libslirp libslirp;

static struct {
	struct host_mutex lock;
	bool loaded, begun; /* begun: `thread` loads it, and is to be joined */
	struct host_thread thread;
	const char *why;
} state = {.lock = {PTHREAD_MUTEX_INITIALIZER}};

static void *load(void *unused)
{
	void *library = dlopen("libslirp.so.0", RTLD_NOW | RTLD_LOCAL);
	const char *why = library ? NULL : "libslirp.so.0 cannot be loaded: install libslirp0";

#define FIND(name)                                                                                \
	if (!why && !(libslirp.name = (__typeof__(libslirp.name))dlsym(library, "slirp_" #name))) \
		why = "libslirp.so.0 has no slirp_" #name ": install a newer libslirp0";
	LIBSLIRP_FUNCTIONS(FIND)
#undef FIND
	state.why = why;
	return unused;
}

void host_net_expect_user(void)
{
	host_lock(&state.lock);
	if (!state.loaded && !state.begun)
		state.begun = host_thread_start(&state.thread, "libslirp", load, NULL);
	host_unlock(&state.lock);
}

const char *libslirp_load(void)
{
	host_lock(&state.lock);
	if (state.begun)
		host_thread_join(&state.thread);
	else if (!state.loaded)
		load(NULL);
	state.begun = false;
	state.loaded = true;
	host_unlock(&state.lock);
	return state.why;
}
