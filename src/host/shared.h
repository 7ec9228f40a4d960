/*
 * Memory that can be seen at several addresses at once, and address space to see it in. The functions that say so may
 * be called while a guest's vector state is live in the host's registers, and from fault handlers: they are compiled
 * for general registers only and call the kernel directly.
 */
#ifndef DOPPEL_HOST_SHARED_H
#define DOPPEL_HOST_SHARED_H

#include "base/base.h"

struct host_file;

struct host_shared {
	uint8_t *at; /* all of it, readable and writable */
	uint64_t size;
	int fd;
	bool huge; /* in large pages, if the host has any left */
};

/* Zeroed memory, touched only when used. False: the reason is in host_error_text(). */
bool host_shared_alloc(struct host_shared *mem, uint64_t size);
void host_shared_free(struct host_shared *mem);
/* Gives the pages of [offset, offset + len) back to the host, wherever they are shown; used again, they are zeroes. */
void host_shared_discard(const struct host_shared *mem, uint64_t offset, uint64_t len);
/*
 * Copies `len` bytes from `src` to [offset, offset + len). For much, into pages that may not have been used yet: small
 * ones the host finds and fills without showing each to this process.
 */
void host_shared_write(const struct host_shared *mem, uint64_t offset, const void *src, uint64_t len);
/* The same from byte `from` of a file on. False: not all could be read. */
bool host_shared_read(const struct host_shared *mem, uint64_t offset, struct host_file *file, uint64_t from,
		      uint64_t len);
/* Makes the host find the pages of [offset, offset + len) now, at once instead of one by one. A wish. General registers
 * only. */
void host_shared_populate(const struct host_shared *mem, uint64_t offset, uint64_t len);

/*
 * Address space of `size` bytes in which nothing is, with `margin` more of it on either side that stays so. 0 when
 * there is none. General registers only.
 */
uint64_t host_window_reserve(uint64_t size, uint64_t margin);
void host_window_release(uint64_t at, uint64_t size, uint64_t margin);
/* Shows [offset, offset + len) of `mem` at `at`, in reserved space. General registers only. */
bool host_window_show(const struct host_shared *mem, uint64_t at, uint64_t offset, uint64_t len, bool writable);
/* Makes [at, at + len) empty again. General registers only. */
bool host_window_hide(uint64_t at, uint64_t len);

#endif
