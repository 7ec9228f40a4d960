/* What every part of doppel uses: fixed-width types, bit helpers, assertions, logging, results. */
#ifndef DOPPEL_BASE_BASE_H
#define DOPPEL_BASE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define BIT(n) (1ull << (n))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define KiB(n) ((uint64_t)(n) << 10)
#define MiB(n) ((uint64_t)(n) << 20)
#define GiB(n) ((uint64_t)(n) << 30)

#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ull
#define PAGE_MASK (~(PAGE_SIZE - 1))

/* Rounds `v` up or down to a multiple of `a`, a power of two. */
static inline uint64_t align_up(uint64_t v, uint64_t a)
{
	return (v + a - 1) & ~(a - 1);
}

static inline uint64_t align_down(uint64_t v, uint64_t a)
{
	return v & ~(a - 1);
}

/* Bits [hi:lo] of `v`, shifted down. */
static inline uint64_t bits(uint64_t v, unsigned hi, unsigned lo)
{
	return (v >> lo) & (~0ull >> (63 - (hi - lo)));
}

/* The low `bytes` bytes of `v` (1, 2, 4 or 8), zero- or sign-extended. */
static inline uint64_t zext(uint64_t v, unsigned bytes)
{
	return bytes >= 8 ? v : v & ((1ull << (bytes * 8)) - 1);
}

static inline int64_t sext(uint64_t v, unsigned bytes)
{
	unsigned shift = 64 - bytes * 8;
	return (int64_t)(v << shift) >> shift;
}

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/*
 * Our own broken invariant: prints where and ends the process. Stays on in release builds. Never for anything that a
 * guest or a user can cause.
 */
_Noreturn void invariant_failed(const char *what, const char *file, int line);
#define ENSURE(cond) (likely(cond) ? (void)0 : invariant_failed(#cond, __FILE__, __LINE__))

/* Log levels: what the user must see, what he may want to, what a developer asks for. */
enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level max);
/* One line on standard error, "doppel: " before it. printf's format; no newline needed. */
void log_msg(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
#define log_error(...) log_msg(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_msg(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_msg(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_msg(LOG_DEBUG, __VA_ARGS__)

/*
 * The user's mistake, carried up to whoever tells him: one clear line naming the thing and the fix. A function that can
 * meet one takes a `struct error *` and returns false (or NULL) after error_set(). The caller owns the struct.
 */
struct error {
	char text[512];
};

/* Returns false. Control characters become '?', and what does not fit loses its middle. */
bool error_set(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
