/*
 * libnbd, loaded when the first disk needs it: with what it needs in turn (TLS, XML, C++) it takes longer to load than
 * all else takes to a guest's first instruction.
 */
#ifndef DOPPEL_HOST_NBD_LIBRARY_H
#define DOPPEL_HOST_NBD_LIBRARY_H

#include <libnbd.h>
#include <stdbool.h>

#define LIBNBD_FUNCTIONS(F)                      \
	F(aio_connect_systemd_socket_activation) \
	F(aio_connect_uri)                       \
	F(aio_flush)                             \
	F(aio_get_direction)                     \
	F(aio_get_fd)                            \
	F(aio_is_closed)                         \
	F(aio_is_dead)                           \
	F(aio_is_ready)                          \
	F(aio_notify_read)                       \
	F(aio_notify_write)                      \
	F(aio_pread)                             \
	F(aio_pwrite)                            \
	F(aio_trim)                              \
	F(aio_zero)                              \
	F(can_flush)                             \
	F(can_trim)                              \
	F(can_zero)                              \
	F(close)                                 \
	F(create)                                \
	F(get_block_size)                        \
	F(get_errno)                             \
	F(get_error)                             \
	F(get_size)                              \
	F(is_read_only)                          \
	F(shutdown)

/* Its functions, without their prefix. */
struct libnbd {
#define FIELD(name) __typeof__(nbd_##name) *(name);
	LIBNBD_FUNCTIONS(FIELD)
#undef FIELD
};
extern struct libnbd libnbd;

/* Before anything else of it, and before the process is confined. NULL, or why it cannot be loaded. */
const char *libnbd_load(void);

#endif
