/*
 * libslirp, loaded when a network needs it, and by another thread meanwhile where that can be told in time: it brings
 * glib, and they take longer to load than all other libraries together.
 */
#ifndef DOPPEL_HOST_SLIRP_LIBRARY_H
#define DOPPEL_HOST_SLIRP_LIBRARY_H

#include <slirp/libslirp.h>

#define LIBSLIRP_FUNCTIONS(F) \
	F(add_hostxfwd)       \
	F(cleanup)            \
	F(handle_timer)       \
	F(input)              \
	F(new)                \
	F(pollfds_fill)       \
	F(pollfds_poll)

/* Its functions, without their prefix. */
struct libslirp {
#define FIELD(name) __typeof__(slirp_##name) *(name);
	LIBSLIRP_FUNCTIONS(FIELD)
#undef FIELD
};
extern struct libslirp libslirp;

/* Before anything else of it, and before the process is confined. NULL, or why it cannot be loaded. */
const char *libslirp_load(void);

#endif
