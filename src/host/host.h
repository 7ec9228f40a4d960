/*
 * All that doppel asks of the system it runs on, but for threads (thread.h). The only operating-system headers in the
 * tree are included from src/host. Functions that can fail return -1 or NULL and leave the reason in host_error_text().
 */
#ifndef DOPPEL_HOST_HOST_H
#define DOPPEL_HOST_HOST_H

#include "base/base.h"

#include <sys/types.h>

/* Monotonic time in ns. */
uint64_t host_now_ns(void);
/* How long this thread has been running on a processor, in ns. */
uint64_t host_thread_time_ns(void);
void host_wall_time(uint64_t *sec, uint32_t *nsec);
void host_sleep_ns(uint64_t ns);
/*
 * Frequency of this processor's TSC in Hz: from CPUID where it says, else measured against the monotonic clock. That
 * needs some milliseconds, which the first caller waits for unless they have passed since host_tsc_begin.
 */
uint64_t host_tsc_hz(void);
void host_tsc_begin(void);
/* The text of the last failure on this thread ("No such file or directory"). */
const char *host_error_text(void);
unsigned host_cpu_count(void);
uint64_t host_memory_total(void);
bool host_random(void *buf, size_t len);

/* Anonymous zeroed memory, touched only when used; huge pages asked for where they help. NULL when there is none. */
void *host_memory_alloc(uint64_t size);
void host_memory_free(void *p, uint64_t size);
/* Whole pages of it, or of generated code's, that are not to be large ones. A wish. */
void host_memory_small_pages(void *p, uint64_t size);
/* Makes the host find the pages now instead of one by one. A wish. */
void host_memory_populate(void *p, uint64_t size);
/* How many bytes of it the host has given pages to. */
uint64_t host_memory_resident(const void *p, uint64_t size);
/* Leaves whole pages of it out of core dumps: they are the guest's. */
void host_memory_hide(void *p, uint64_t size);

/*
 * Memory for generated code, seen twice: never writable and executable through one mapping; rw and rx are the same
 * bytes. Not after host_confine.
 */
struct host_code {
	uint8_t *rw, *rx;
	size_t size;
};
bool host_code_alloc(struct host_code *code, size_t size);
void host_code_free(struct host_code *code);
/* Makes the host find the pages of [offset, offset + len) now, for both views, instead of one by one. A wish. */
void host_code_populate(const struct host_code *code, size_t offset, size_t len);

/* Sets this thread's GS base. */
bool host_set_gs_base(uint64_t base);

/* Files. */
struct host_file;
enum {
	HOST_FILE_READ = 1,
	HOST_FILE_WRITE = 2,
	HOST_FILE_CREATE = 4,
	HOST_FILE_DIRECT = 8 /* past the host's cache */
};
/*
 * Only files and block devices; nothing else is touched. A block device that is opened for writing is the caller's
 * alone, and not mounted: else the error is EBUSY.
 */
struct host_file *host_file_open(const char *path, unsigned flags);
/* For the process: to write beyond the limit on the size of files (ulimit -f) is an error, and no signal that ends it.
 */
void host_file_mind_limit(void);
/* An unnamed temporary file in the host's temporary folder, for snapshot=on. */
struct host_file *host_file_temp(void);
void host_file_close(struct host_file *f);
int64_t host_file_size(struct host_file *f); /* also of block devices */
bool host_file_is_regular(struct host_file *f);
/*
 * Locks the file for reading, which others may as well, or for writing, until it is closed. 1: another process, or
 * another host_file here, stands against it, and has for 0.4 s; 0: locked; -1: the file system has no locks. QEMU minds
 * these locks, and we mind its own.
 */
int host_file_lock(struct host_file *f, bool write);
/* What offsets and lengths must be multiples of; 1 but for HOST_FILE_DIRECT. */
unsigned host_file_alignment(struct host_file *f);
/* Whole transfers: -1 on error, else bytes done (fewer only at the end of the file). */
int64_t host_file_pread(struct host_file *f, void *buf, uint64_t len, uint64_t off);
int64_t host_file_pwrite(struct host_file *f, const void *buf, uint64_t len, uint64_t off);
struct host_iovec {
	void *base;
	size_t len;
};
int64_t host_file_preadv(struct host_file *f, const struct host_iovec *iov, unsigned n, uint64_t off);
int64_t host_file_pwritev(struct host_file *f, const struct host_iovec *iov, unsigned n, uint64_t off);
int host_file_sync(struct host_file *f);
/* The range reads as zeroes afterwards. punch: its room on the host is given back, where that is possible. */
int host_file_punch(struct host_file *f, uint64_t off, uint64_t len);
int host_file_zero(struct host_file *f, uint64_t off, uint64_t len);
/*
 * Reads a whole file into memory owned by the caller (free). NULL: error. It may be a pipe, also one whose writer comes
 * within half a second.
 */
void *host_file_slurp(const char *path, size_t *len);
/*
 * The same, of `limit` bytes at most (a longer one fails at once if its size is known). `look`, which may be NULL, is
 * shown the first 64 KiB, or all of a shorter file, and returns false when no more is wanted: NULL then, too.
 */
typedef bool host_look(void *opaque, const uint8_t *data, size_t len);
void *host_file_read_whole(const char *path, uint64_t limit, host_look *look, void *opaque, size_t *len);
/*
 * What can be read a second time, kept open, so that it stays the same when another file takes its name; NULL for what
 * can not, as a pipe.
 */
struct host_file *host_file_keep(const char *path);
/* Reads the first `most` bytes of such a file, or all of a shorter one; *len is how many it has. */
void *host_file_read_head(struct host_file *f, size_t most, uint64_t limit, size_t *len);
bool host_failed_too_long(void); /* the last failure: the file was longer than the limit */

#endif
