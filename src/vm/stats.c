/* Where the time went: counters of the engine and of the processors' threads, summed, and as JSON. */
#include "host/host.h"
#include "vm/internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* How long a processor's thread has been there and had something to do, in ns. */
static uint64_t busy_time(const struct vcpu *v)
{
	uint64_t from = v->started, to = v->ended ? v->ended : host_now_ns(), idle = v->time_halted + v->time_held;

	return from && to - from > idle ? to - from - idle : 0;
}

static void set_monitor_time(struct engine_stats *e, uint64_t busy)
{
	e->time_monitor = busy - MIN(busy, e->time_translated + e->time_translator + e->time_direct);
}

void vm_stats(struct vm *vm, struct vm_stats *stats)
{
	uint64_t busy = 0;

	*stats = (struct vm_stats){0};
	vm->ops->stats(vm->engine, &stats->engine);
	for (unsigned i = 0; i < vm->cpus; i++) {
		stats->interrupts += vm->vcpu[i].interrupts;
		stats->time_halted += vm->vcpu[i].time_halted;
		busy += busy_time(&vm->vcpu[i]);
	}
	set_monitor_time(&stats->engine, busy);
}

static void vcpu_stats(struct vcpu *v, struct vm_stats *stats)
{
	*stats = (struct vm_stats){.interrupts = v->interrupts, .time_halted = v->time_halted};
	if (v->vm->ops->vcpu_stats)
		v->vm->ops->vcpu_stats(v->engine, &stats->engine);
	set_monitor_time(&stats->engine, busy_time(v));
}

/* --- JSON --- */

struct text {
	char *p;
	size_t len, room;
	bool failed;
};

__attribute__((format(printf, 2, 3))) static void put(struct text *t, const char *fmt, ...)
{
	for (;;) {
		va_list ap;
		va_start(ap, fmt);
		int n = vsnprintf(t->p ? t->p + t->len : NULL, t->room - t->len, fmt, ap);
		va_end(ap);
		if (n < 0 || t->failed)
			return;
		if (t->len + (size_t)n < t->room) {
			t->len += (size_t)n;
			return;
		}
		size_t room = t->room * 2 + (size_t)n + 4096;
		char *p = realloc(t->p, room);
		t->failed = !p;
		t->p = p ? p : t->p;
		t->room = p ? room : t->room;
	}
}

static void put_string(struct text *t, const char *s)
{
	put(t, "\"");
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			put(t, "\\%c", *s);
		else if ((unsigned char)*s < 0x20)
			put(t, "\\u%04x", (unsigned char)*s);
		else
			put(t, "%c", *s);
	}
	put(t, "\"");
}

static void put_group(struct text *t, const char *name, const char *const *names, const uint64_t *values, size_t count,
		      const char *end)
{
	put(t, "\"%s\": {", name);
	for (size_t i = 0; i < count; i++)
		put(t, "%s\"%s\": %" PRIu64, i ? ", " : "", names[i], values[i]);
	put(t, "}%s", end);
}

#define PUT_GROUP(t, name, end, names, ...)                                           \
	put_group(t, name, (const char *const[])names, (const uint64_t[])__VA_ARGS__, \
		  sizeof((const uint64_t[])__VA_ARGS__) / sizeof(uint64_t), end)
#define LIST(...)           \
	{                   \
		__VA_ARGS__ \
	}

/* What a processor has of its own; times in ns. */
static void put_cpu(struct text *t, const struct vm_stats *s)
{
	const struct engine_stats *e = &s->engine;
	const uint64_t *exits = e->exits, *miss = e->tlb_miss;

	PUT_GROUP(t, "time", ",\n   ", LIST("user", "kernel", "translated", "direct", "translator", "monitor", "idle"),
		  LIST(e->time_user, e->time_kernel, e->time_translated, e->time_direct, e->time_translator,
		       e->time_monitor, s->time_halted));
	PUT_GROUP(t, "exits", ",\n   ", LIST("interrupted", "io", "mmio", "msr", "cr8", "halt"),
		  LIST(exits[EXIT_INTERRUPTED], exits[EXIT_IO], exits[EXIT_MMIO], exits[EXIT_MSR], exits[EXIT_CR8],
		       exits[EXIT_HLT]));
	PUT_GROUP(t, "tlb_misses", ",\n   ", LIST("user_read", "user_write", "kernel_read", "kernel_write"),
		  LIST(miss[TLB_MISS_USER_READ], miss[TLB_MISS_USER_WRITE], miss[TLB_MISS_KERNEL_READ],
		       miss[TLB_MISS_KERNEL_WRITE]));
	PUT_GROUP(t, "windows", ",\n   ", LIST("faults", "shown", "hidden", "given_up"),
		  LIST(e->window_faults, e->window_shown, e->window_hidden, e->window_given_up));
	PUT_GROUP(t, "direct", ",\n   ", LIST("stops", "calls", "faults", "exceptions", "kicks", "refused", "bursts"),
		  LIST(e->direct_stops, e->direct_calls, e->direct_faults, e->direct_exceptions, e->direct_kicks,
		       e->direct_refused, e->direct_bursts));
	PUT_GROUP(t, "events", "",
		  LIST("interrupts", "tlb_flushes", "tlb_restored", "dispatches", "helper_calls", "single_steps",
		       "at_once"),
		  LIST(s->interrupts, e->tlb_flushes, e->tlb_restored, e->dispatches, e->helper_calls, e->single_steps,
		       e->at_once));
}

static void put_cpus(struct text *t, struct vm *vm)
{
	put(t, " \"cpus\": [");
	for (unsigned i = 0; i < vm->cpus; i++) {
		struct vm_stats s;
		vcpu_stats(&vm->vcpu[i], &s);
		put(t, "%s\n  {", i ? "," : "");
		put_cpu(t, &s);
		put(t, "}");
	}
	put(t, "\n ],\n");
}

#define HOTTEST 20

static void put_hot(struct text *t, struct vm *vm, const char *name, enum engine_hot_kind kind, const char *end)
{
	struct engine_hot hot[HOTTEST];
	uint64_t total = 0;
	size_t n = vm->ops->hot ? vm->ops->hot(vm->engine, kind, hot, HOTTEST, &total) : 0;

	put(t, "  \"%s\": [", name);
	for (size_t i = 0; i < n; i++) {
		put(t,
		    "%s\n   {\"share\": %.4f, \"mode\": \"%s\", \"linear\": \"0x%" PRIx64
		    "\", \"physical\": \"0x%" PRIx64 "\"",
		    i ? "," : "", (double)hot[i].samples / (double)total, hot[i].user ? "user" : "kernel",
		    hot[i].linear, hot[i].gpa);
		if (hot[i].name[0]) {
			put(t, ", \"symbol\": ");
			put_string(t, hot[i].name);
		}
		put(t, "}");
	}
	put(t, "]%s\n", end);
}

char *vm_stats_json(struct vm *vm)
{
	struct text t = {NULL, 0, 0, false};
	struct vm_stats s;

	vm_stats(vm, &s);
	const struct engine_stats *e = &s.engine;
	put(&t, "{\n \"description\": ");
	put_string(&t, vm->description);
	put(&t, ",\n \"total\": {");
	put_cpu(&t, &s);
	put(&t, "},\n");
	put_cpus(&t, vm);
	put(&t, " ");
	PUT_GROUP(&t, "translation", ",\n",
		  LIST("blocks", "guest_bytes", "host_bytes", "cache_flushes", "invalidations"),
		  LIST(e->blocks, e->guest_bytes, e->host_bytes, e->flushes, e->invalidations));
	put(&t, " \"hottest\": {\n");
	put_hot(&t, vm, "functions", HOT_FUNCTIONS, ",");
	put_hot(&t, vm, "pages", HOT_PAGES, ",");
	put_hot(&t, vm, "blocks", HOT_BLOCKS, "");
	put(&t, " }\n}\n");
	if (!t.failed)
		return t.p;
	free(t.p);
	return NULL;
}
