#include "host/nbd_library.h"

#include <dlfcn.h>
#include <pthread.h>

/* The process's, as a library is that is linked; never unloaded. */
struct libnbd libnbd;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *why;

static void load(void)
{
	void *library = dlopen("libnbd.so.0", RTLD_NOW | RTLD_LOCAL);

	why = library ? NULL : "libnbd.so.0 cannot be loaded: install libnbd0";
#define FIND(name)                                                                          \
	if (!why && !(libnbd.name = (__typeof__(libnbd.name))dlsym(library, "nbd_" #name))) \
		why = "libnbd.so.0 has no nbd_" #name ": install a newer libnbd0";
	LIBNBD_FUNCTIONS(FIND)
#undef FIND
}

const char *libnbd_load(void)
{
	pthread_once(&once, load);
	return why;
}
