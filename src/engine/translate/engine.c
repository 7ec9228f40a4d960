/* The engine `translate`: creation, destruction and the operations of engine.h. */
#include "arch/x86/emulate.h"
#include "engine/translate/light.h"
#include "engine/translate/profile.h"
#include "engine/translate/run.h"
#include "engine/translate/thunk.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* A quarter of the guest's memory, for that bounds the code it has, within these. */
#define CODE_CACHE_LEAST MiB(64)
#define CODE_CACHE_MOST MiB(256)
#define CODE_CACHE_MIN MiB(1)
#define CODE_CACHE_MAX MiB(1024) /* jumps within it are 32 bits wide */

#define SWITCH(field) offsetof(struct tr_engine, field)
static const struct debug_switch {
	const char *name;
	size_t at;
} switches[] = {
	{"step", SWITCH(step_only)},
	{"no-share", SWITCH(no_share)},
	{"no-inline", SWITCH(no_inline)},
	{"no-link", SWITCH(no_link)},
	{"no-window", SWITCH(no_window)},
	{"no-kernel-window", SWITCH(no_kernel_window)},
	{"eager-window", SWITCH(eager_window)},
	{"mixed-window", SWITCH(mixed_window)},
	{"no-pdep", SWITCH(no_pdep)},
	{"no-lazy-flags", SWITCH(no_lazy_flags)},
	{"no-carry", SWITCH(no_carry)},
	{"no-trace", SWITCH(no_trace)},
	{"no-loop", SWITCH(no_loop)},
	{"no-return", SWITCH(no_return)},
	{"no-copy", SWITCH(no_copy)},
	{"no-break", SWITCH(no_break)},
	{"no-string", SWITCH(no_string)},
	{"no-reuse", SWITCH(no_reuse)},
	{"no-decode-cache", SWITCH(no_decode_cache)},
	{"no-at-once", SWITCH(no_at_once)},
	{"no-direct", SWITCH(no_direct)},
	{"no-burst", SWITCH(no_burst)},
	{"eager-direct", SWITCH(eager_direct)},
	{"eager-burst", SWITCH(eager_burst)},
};

/* Sets the switches in a list with commas between them; profile.c has more of them. */
static bool take_switches(struct tr_engine *eng, const char *list, struct error *err)
{
	for (const char *p = list; p && *p; p += *p == ',') {
		size_t n = strcspn(p, ","), i = 0;
		while (i < ARRAY_LEN(switches) &&
		       (strlen(switches[i].name) != n || strncmp(p, switches[i].name, n) != 0))
			i++;
		if (i < ARRAY_LEN(switches))
			*((bool *)((char *)eng + switches[i].at)) = true;
		else if (!profile_knows(p, n))
			return error_set(
				err,
				"--debug %.*s: there is no such switch; see docs/translator.md, \"Debug switches\"",
				(int)n, p);
		p += n;
	}
	return true;
}

/* Of guests whose user code runs directly: what glue.c takes along. */
#define DIRECT_XCR0 (XCR0_X87 | XCR0_SSE | XCR0_AVX)

static uint64_t cache_default(const struct guest_memory *mem)
{
	return MIN(MAX((mem->pages << PAGE_SHIFT) / 4, CODE_CACHE_LEAST), CODE_CACHE_MOST);
}

static bool check_cache(uint64_t size, struct error *err)
{
	return (size >= CODE_CACHE_MIN && size <= CODE_CACHE_MAX) ||
	       error_set(err, "a code cache of %" PRIu64 " bytes is not possible: give --code-cache 1M to 1G", size);
}

static bool host_has_bmi2(void)
{
	uint32_t a = 7, b, c = 0, d;
	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	return b & BIT(8);
}

/* AMD's processors before Zen 3 take a hundred cycles and more for a PDEP. */
static bool host_pdep_is_slow(void)
{
	uint32_t a = 0, b, c = 0, d;
	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	bool amd = c == 0x444d4163 /* "cAMD" */ || c == 0x656e6975 /* "uine", Hygon's */;
	a = 1;
	__asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	unsigned family = a >> 8 & 15;
	return amd && family == 15 && family + (a >> 20 & 255) < 0x19;
}

static void destroy(struct engine *e)
{
	struct tr_engine *eng = (struct tr_engine *)e;
	eng->mem->code_written = NULL;
	profile_destroy(eng);
	window_destroy(eng);
	code_destroy(eng);
	host_spaces_destroy(eng->spaces);
	direct_copies_destroy(&eng->copies);
	free(eng);
}

static struct engine *create(const struct engine_config *config, struct error *err)
{
	uint32_t xcr0 = x86_host_xcr0();
	if (!xcr0) {
		error_set(err, "this processor, or its system, has no XSAVE, which engine 'translate' needs");
		return NULL;
	}
	if (!host_guest_signals_init(run_claim_fault)) {
		error_set(err, "cannot handle processor faults: %s", host_error_text());
		return NULL;
	}
	struct tr_engine *eng = calloc(1, sizeof(*eng));
	if (!eng) {
		error_set(err, "no memory for the engine");
		return NULL;
	}
	uint64_t cache = config->code_cache ? config->code_cache : cache_default(config->mem);
	eng->mem = config->mem;
	eng->model = config->model;
	eng->cpus = config->cpus;
	if (!take_switches(eng, config->debug, err) || !check_cache(cache, err)) {
		free(eng);
		return NULL;
	}
	eng->at_once = eng->no_at_once ? NULL : config->at_once;
	eng->monitor = config->opaque;
	eng->eager_window |= eng->mixed_window || eng->eager_direct;
	eng->no_pdep |= host_pdep_is_slow();
	eng->no_window |= !host_has_bmi2() || !window_init(eng);
	if (!eng->no_window && !eng->no_direct && direct_copies_init(&eng->copies))
		eng->spaces = host_spaces_create(&eng->mem->shared, &eng->copies.pages, eng->cpus * WINDOW_SPACES);
	eng->direct_host.other_states = xcr0 ^ DIRECT_XCR0;
	if (!code_init(eng, cache, err) || !profile_create(eng, config, err)) {
		destroy((struct engine *)eng);
		return NULL;
	}
	eng->mem->code_opaque = eng;
	eng->mem->code_written = light_code_written;
	return (struct engine *)eng;
}

static const struct x86_cpu_ops cpu_ops = {
	.flush_page = tlb_flush_page,
	.flush_all = tlb_flush_all,
	.space_changed = tlb_space_changed,
	.mode_changed = tlb_mode_changed,
	.pointer = light_access,
};

/* In one large page of the host's, if it has them: its tables are used all over, and made all at once. */
#define VCPU_SIZE align_up(sizeof(struct tr_vcpu), MiB(2))

static struct engine_vcpu *vcpu_create(struct engine *e, unsigned index, struct x86_cpu **cpu, struct error *err)
{
	struct tr_engine *eng = (struct tr_engine *)e;
	struct tr_vcpu *v = host_memory_alloc(VCPU_SIZE);
	if (!v) {
		error_set(err, "no memory for a virtual CPU");
		return NULL;
	}
	/* Not on its own thread: there is code memory only until the process is confined. */
	v->thunk = thunk_create();
	if (!v->thunk) {
		host_memory_free(v, VCPU_SIZE);
		error_set(err, "no memory for a virtual CPU's code");
		return NULL;
	}
	v->engine = eng;
	v->index = index;
	v->self = (uint64_t)(uintptr_t)v;
	poll_clear(v);
	v->jump_any = (uint64_t)(uintptr_t)eng->glue_jump_any;
	window_vcpu_init(v);
	direct_init(v);
	v->cpu.id = index;
	v->cpu.mem = eng->mem;
	v->cpu.model = eng->model;
	v->cpu.ops = &cpu_ops;
	tlb_init(v);
	x86_cpu_reset(&v->cpu, false);
	tlb_mode_changed(&v->cpu);
	eng->vcpu[index] = v;
	*cpu = &v->cpu;
	return (struct engine_vcpu *)v;
}

static void vcpu_destroy(struct engine_vcpu *ev)
{
	struct tr_vcpu *v = (struct tr_vcpu *)ev;
	v->engine->vcpu[v->index] = NULL;
	window_vcpu_destroy(v);
	quick_saved_free(v);
	thunk_destroy(v->thunk);
	host_memory_free(v, VCPU_SIZE);
}

static bool thread_enter(struct engine_vcpu *ev)
{
	struct tr_vcpu *v = (struct tr_vcpu *)ev;
	if (!host_guest_signals_thread_enter() || !host_set_gs_base(v->self))
		return false;
	tr_current = v;
	direct_thread_enter(v);
	return profile_thread_enter(v);
}

static void thread_leave(struct engine_vcpu *ev)
{
	struct tr_vcpu *v = (struct tr_vcpu *)ev;
	profile_thread_leave(v);
	direct_thread_leave(v);
	tr_current = NULL;
	host_set_gs_base(0);
	host_guest_signals_thread_leave();
}

static enum x86_exit_kind engine_run(struct engine_vcpu *ev)
{
	struct tr_vcpu *v = (struct tr_vcpu *)ev;
	v->running = true;
	enum x86_exit_kind kind = run(v);
	v->running = false;
	return kind;
}

static void kick(struct engine_vcpu *ev)
{
	poll_set((struct tr_vcpu *)ev);
	direct_kick((struct tr_vcpu *)ev);
}

static enum verdict finish_delivery(struct tr_vcpu *v, enum verdict r)
{
	tlb_mode_changed(&v->cpu);
	return r;
}

static enum verdict interrupt(struct engine_vcpu *ev, uint8_t vector)
{
	struct tr_vcpu *v = (struct tr_vcpu *)ev;
	return finish_delivery(v, x86_deliver_interrupt(&v->cpu, vector));
}

static enum verdict nmi(struct engine_vcpu *ev)
{
	struct tr_vcpu *v = (struct tr_vcpu *)ev;
	return finish_delivery(v, x86_deliver_nmi(&v->cpu));
}

static void want_window(struct engine_vcpu *ev, bool interrupt, bool nmi)
{
	((struct tr_vcpu *)ev)->window = interrupt;
	((struct tr_vcpu *)ev)->nmi_window = nmi;
}

static uint64_t time_elsewhere(const struct engine_vcpu *ev)
{
	return atomic_load_explicit(&((const struct tr_vcpu *)ev)->direct.time_ns, memory_order_relaxed);
}

static uint64_t tsc_ns(const struct tr_engine *eng, uint64_t tsc)
{
	return (uint64_t)((__uint128_t)tsc * 1000000000 / (eng->model->tsc_hz ? eng->model->tsc_hz : 1));
}

static void vcpu_stats(struct engine_vcpu *ev, struct engine_stats *out)
{
	const struct tr_vcpu *v = (struct tr_vcpu *)ev;
	*out = v->stats;
	for (unsigned k = 0; k < TLB_MISS_KINDS; k++)
		out->tlb_misses += out->tlb_miss[k];
	out->time_translated = tsc_ns(v->engine, v->tsc_translated);
	out->time_translator = tsc_ns(v->engine, v->tsc_translator);
	out->window_faults = v->windows.faults;
	out->window_shown = v->windows.shown;
	out->window_hidden = v->windows.hidden;
	out->window_given_up = v->windows.given_up;
	out->time_direct = atomic_load_explicit(&v->direct.time_ns, memory_order_relaxed);
	out->direct_stops = v->direct.stops;
	out->direct_calls = v->direct.calls;
	out->direct_faults = v->direct.faults;
	out->direct_exceptions = v->direct.exceptions;
	out->direct_kicks = v->direct.kicks;
	out->direct_refused = v->direct.refused;
	out->direct_bursts = v->direct.bursts;
	profile_times(v, out);
}

static void stats(struct engine *e, struct engine_stats *out)
{
	struct tr_engine *eng = (struct tr_engine *)e;
	*out = eng->stats;
	for (unsigned i = 0; i < eng->cpus; i++) {
		struct engine_stats one;
		if (!eng->vcpu[i])
			continue;
		vcpu_stats((struct engine_vcpu *)eng->vcpu[i], &one);
		out->time_translated += one.time_translated;
		out->time_translator += one.time_translator;
		out->time_user += one.time_user;
		out->time_kernel += one.time_kernel;
		for (unsigned k = 0; k < EXIT_KINDS; k++)
			out->exits[k] += one.exits[k];
		for (unsigned k = 0; k < TLB_MISS_KINDS; k++)
			out->tlb_miss[k] += one.tlb_miss[k];
		out->tlb_misses += one.tlb_misses;
		out->tlb_flushes += one.tlb_flushes;
		out->tlb_restored += one.tlb_restored;
		out->dispatches += one.dispatches;
		out->helper_calls += one.helper_calls;
		out->single_steps += one.single_steps;
		out->at_once += one.at_once;
		out->window_faults += one.window_faults;
		out->window_shown += one.window_shown;
		out->window_hidden += one.window_hidden;
		out->window_given_up += one.window_given_up;
		out->time_direct += one.time_direct;
		out->direct_stops += one.direct_stops;
		out->direct_calls += one.direct_calls;
		out->direct_faults += one.direct_faults;
		out->direct_exceptions += one.direct_exceptions;
		out->direct_kicks += one.direct_kicks;
		out->direct_refused += one.direct_refused;
		out->direct_bursts += one.direct_bursts;
	}
}

static size_t hot(struct engine *e, enum engine_hot_kind kind, struct engine_hot *list, size_t most, uint64_t *total)
{
	return profile_hot((struct tr_engine *)e, kind, list, most, total);
}

#define DESCRIBE_BLOCKS 32

static void describe(struct engine_vcpu *ev, char *buf, size_t size)
{
	struct tr_vcpu *v = (struct tr_vcpu *)ev;
	size_t at = (size_t)snprintf(buf, size, "last blocks looked up, newest first:\n");
	for (unsigned i = 1; i <= DESCRIBE_BLOCKS && i <= v->trace_next && at < size; i++)
		at += (size_t)snprintf(buf + at, size - at, "%s%016llx", i % 4 == 1 ? "\n  " : " ",
				       (unsigned long long)v->trace[(v->trace_next - i) % ARRAY_LEN(v->trace)]);
}

const struct engine_ops engine_translate = {
	.name = "translate",
	.create = create,
	.destroy = destroy,
	.vcpu_create = vcpu_create,
	.vcpu_destroy = vcpu_destroy,
	.thread_enter = thread_enter,
	.thread_leave = thread_leave,
	.run = engine_run,
	.kick = kick,
	.interrupt = interrupt,
	.nmi = nmi,
	.want_window = want_window,
	.time_elsewhere = time_elsewhere,
	.stats = stats,
	.vcpu_stats = vcpu_stats,
	.hot = hot,
	.describe = describe,
};
