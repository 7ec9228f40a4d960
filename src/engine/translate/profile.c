#include "engine/translate/profile.h"

#include "engine/symbols.h"
#include "engine/translate/light.h"
#include "host/confine.h"
#include "host/profile.h"
#include "host/thread_timer.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <Zydis/Zydis.h>

#define SAMPLE_NS 997000 /* not in step with a guest's timer */
#define PLACES (1u << 16)
#define HOT_DEFAULT 10
#define NAME_SIZE 160

/* A host address in a block at which samples were taken. */
struct place {
	const uint8_t *pc;
	uint64_t linear, gpa; /* of the block's first instruction */
	uint32_t key;
	uint32_t count;
};

/* Of one virtual CPU; written by the signal handler on its thread. */
struct samples {
	uint64_t total, user, kernel, glue, helper, engine, lost;
	uint64_t translated[2];     /* user, kernel, helpers and glue: by the mode in which they were */
	struct place place[PLACES]; /* hashed by pc */
};

struct profile {
	struct host_perf_map *map;
	struct symbols *symbols;
	bool sampling, show, shifted;
	uint64_t shift; /* where the guest's kernel is above its symbols */
	unsigned hot;
	char want[64]; /* show this function's blocks, or those around this address */
	struct samples *cpu[255];
};

/* A switch with a value, "name=VALUE", copied to `value`. */
static bool switch_value(const char *list, const char *name, char *value, size_t size)
{
	size_t n = strlen(name);

	for (const char *p = list; p && *p; p += strcspn(p, ","), p += *p == ',') {
		if (strncmp(p, name, n) != 0 || (p[n] != '=' && p[n] != ',' && p[n]))
			continue;
		p += n + (p[n] == '=');
		snprintf(value, size, "%.*s", (int)strcspn(p, ","), p);
		return true;
	}
	return false;
}

bool profile_knows(const char *word, size_t len)
{
	size_t name = MIN(strcspn(word, "="), len);

	return (name == 8 && !strncmp(word, "perf-map", name)) || (name == 3 && !strncmp(word, "hot", name));
}

static bool open_map(struct tr_engine *eng, struct profile *p, struct error *err)
{
	p->map = host_perf_map_open();
	if (!p->map)
		return error_set(err, "cannot write perf's map in /tmp: %s", host_error_text());
	host_perf_map_add(p->map, eng->code.rx, (size_t)(eng->part_start[PART_HOT] - eng->code.rw), "doppel glue");
	return true;
}

bool profile_create(struct tr_engine *eng, const struct engine_config *config, struct error *err)
{
	char hot[64] = "", none[2];
	bool map = switch_value(config->debug, "perf-map", none, sizeof(none));
	bool show = switch_value(config->debug, "hot", hot, sizeof(hot)), sampling = show || config->profile;

	if (!map && !sampling)
		return true;
	struct profile *p = calloc(1, sizeof(*p));
	if (!p)
		return error_set(err, "no memory for a profile");
	host_need(HOST_NEED_PROFILE);
	eng->profile = p;
	p->sampling = sampling;
	p->show = show;
	p->hot = (unsigned)strtoul(hot, NULL, 10);
	if (!hot[0])
		p->hot = HOT_DEFAULT;
	else if (!p->hot || !strncmp(hot, "0x", 2))
		snprintf(p->want, sizeof(p->want), "%s", hot);
	if (config->symbols && !(p->symbols = symbols_load(config->symbols, err)))
		return false;
	return !map || open_map(eng, p, err);
}

/* "function+0x12 k:ffffffff81000012"; without symbols the address alone. */
static const char *name_of(struct profile *p, uint64_t linear, uint32_t key, char *name)
{
	uint64_t offset, shift = linear >> 63 ? p->shift : 0;
	const char *symbol = p->shifted || !(linear >> 63) ? symbols_find(p->symbols, linear - shift, &offset) : NULL;
	char kind = key & KEY_USER ? 'u' : 'k';

	if (symbol)
		snprintf(name, NAME_SIZE, "%s+0x%" PRIx64 " %c:%016" PRIx64, symbol, offset, kind, linear);
	else
		snprintf(name, NAME_SIZE, "%c:%016" PRIx64, kind, linear);
	return name;
}

void profile_block(struct tr_engine *eng, struct tr_vcpu *v, const struct block *b, uint64_t linear)
{
	struct profile *p = eng->profile;
	char name[NAME_SIZE];

	if (!p->shifted)
		p->shifted = symbols_shift(p->symbols, v->cpu.lstar, &p->shift);
	for (unsigned i = 0; p->map && i < PARTS; i++)
		host_perf_map_add(p->map, block_part(eng, b, i), b->size[i], name_of(p, linear, b->key, name));
}

/* Where the block that is running begins. */
static uint64_t linear_of(const struct tr_vcpu *v, const struct block *b)
{
	unsigned slot = page_of(v->engine, b->page)->slot;
	return (key_windowed(b->key) ? v->place[slot][key_ring0(b->key)].linear : v->vpage) + b->off;
}

/* Signal handler, on the virtual CPU's thread. The block cannot go away while its code is being run. */
static void count(struct tr_vcpu *v, struct samples *s, const uint8_t *pc)
{
	unsigned part;
	const struct block *b = code_find_host(v->engine, pc, &part);

	if (!b) {
		s->glue++;
		return;
	}
	if (b->key & KEY_USER)
		s->user++;
	else
		s->kernel++;
	uint64_t gpa = page_of(v->engine, b->page)->gpa + b->off;
	unsigned h = (unsigned)((uintptr_t)pc * 0x9e3779b97f4a7c15ull >> 48);
	for (unsigned i = 0; i < 16; i++) {
		struct place *place = &s->place[(h + i) % PLACES];
		if (!place->count)
			*place = (struct place){pc, linear_of(v, b), gpa, b->key, 0};
		if (place->pc == pc && place->gpa == gpa && place->key == b->key) {
			place->count++;
			return;
		}
	}
	s->lost++;
}

static void on_sample(void *opaque, uint64_t pc)
{
	struct tr_vcpu *v = opaque;
	struct tr_engine *eng = v->engine;
	struct samples *s = eng->profile->cpu[v->index];

	bool in_code = atomic_load(&v->in_code) && !v->stepping;

	s->total++;
	if (in_code)
		s->translated[!(v->key & KEY_USER)]++;
	if (pc - (uintptr_t)eng->code.rx < eng->code.size)
		count(v, s, (const uint8_t *)(uintptr_t)pc);
	else if (in_code)
		s->helper++;
	else if (v->running)
		s->engine++;
}

bool profile_thread_enter(struct tr_vcpu *v)
{
	struct profile *p = v->engine->profile;

	if (!p || !p->sampling)
		return true;
	if (!p->cpu[v->index])
		p->cpu[v->index] = calloc(1, sizeof(struct samples));
	if (!p->cpu[v->index] || !host_thread_timer_enter(HOST_TIMER_SAMPLE, on_sample, v))
		return false;
	host_thread_timer_set(HOST_TIMER_SAMPLE, SAMPLE_NS, SAMPLE_NS);
	return true;
}

void profile_thread_leave(struct tr_vcpu *v)
{
	struct profile *p = v->engine->profile;

	if (!p)
		return;
	host_thread_timer_leave(HOST_TIMER_SAMPLE);
	if (!p->shifted)
		p->shifted = symbols_shift(p->symbols, v->cpu.lstar, &p->shift);
}

/* --- the report --- */

struct report {
	struct tr_engine *eng;
	struct profile *p;
	struct place *place; /* of all CPUs */
	size_t count;
	uint64_t total; /* samples in blocks */
};

static void collect(struct report *r)
{
	size_t room = 0;

	for (unsigned cpu = 0; cpu < r->eng->cpus; cpu++)
		for (unsigned i = 0; r->p->cpu[cpu] && i < PLACES; i++)
			room += r->p->cpu[cpu]->place[i].count != 0;
	r->place = calloc(room + 1, sizeof(*r->place));
	ENSURE(r->place);
	for (unsigned cpu = 0; cpu < r->eng->cpus; cpu++)
		for (unsigned i = 0; r->p->cpu[cpu] && i < PLACES; i++)
			if (r->p->cpu[cpu]->place[i].count)
				r->place[r->count++] = r->p->cpu[cpu]->place[i];
	for (size_t i = 0; i < r->count; i++)
		r->total += r->place[i].count;
}

/* Groups of places: those that a function below gives the same number. */
struct group {
	uint64_t id;
	uint64_t count;
	const struct place *first;
};

typedef uint64_t group_id(const struct report *r, const struct place *place);

static uint64_t block_id(const struct report *r, const struct place *place)
{
	return place->gpa << 16 | (place->key & 0xffff);
}

static uint64_t page_id(const struct report *r, const struct place *place)
{
	return (place->gpa >> PAGE_SHIFT) << 1 | !(place->key & KEY_USER);
}

static uint64_t function_id(const struct report *r, const struct place *place)
{
	uint64_t offset, shift = place->linear >> 63 ? r->p->shift : 0;

	return (uint64_t)(uintptr_t)symbols_find(r->p->symbols, place->linear - shift, &offset);
}

static int by_id(const void *a, const void *b)
{
	const struct group *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

static int by_count(const void *a, const void *b)
{
	const struct group *x = a, *y = b;

	return x->count > y->count ? -1 : x->count < y->count;
}

/* All groups, the largest first; the caller frees them. */
static struct group *group(const struct report *r, group_id *id, size_t *count)
{
	struct group *g = calloc(r->count + 1, sizeof(*g));
	size_t n = 0;

	ENSURE(g);
	for (size_t i = 0; i < r->count; i++)
		g[i] = (struct group){id(r, &r->place[i]), r->place[i].count, &r->place[i]};
	qsort(g, r->count, sizeof(*g), by_id);
	for (size_t i = 0; i < r->count; i++) {
		if (n && g[n - 1].id == g[i].id)
			g[n - 1].count += g[i].count;
		else
			g[n++] = g[i];
	}
	qsort(g, n, sizeof(*g), by_count);
	*count = n;
	return g;
}

static double percent(uint64_t part, uint64_t whole)
{
	return whole ? 100.0 * (double)part / (double)whole : 0;
}

void profile_times(const struct tr_vcpu *v, struct engine_stats *stats)
{
	const struct profile *p = v->engine->profile;
	const struct samples *s = p ? p->cpu[v->index] : NULL;

	if (!s)
		return;
	stats->time_user = (uint64_t)(percent(s->translated[0], s->translated[0] + s->translated[1]) / 100 *
				      (double)stats->time_translated);
	stats->time_kernel = stats->time_translated - stats->time_user;
}

size_t profile_hot(struct tr_engine *eng, enum engine_hot_kind kind, struct engine_hot *list, size_t most,
		   uint64_t *total)
{
	static group_id *const ids[] = {[HOT_FUNCTIONS] = function_id, [HOT_PAGES] = page_id, [HOT_BLOCKS] = block_id};
	struct report r = {.eng = eng, .p = eng->profile};
	size_t n, count = 0;

	*total = 0;
	if (!r.p || !r.p->sampling || (kind == HOT_FUNCTIONS && !r.p->symbols))
		return 0;
	collect(&r);
	*total = r.total;
	struct group *g = group(&r, ids[kind], &n);
	uint64_t page = kind == HOT_PAGES ? PAGE_MASK : ~0ull;
	for (; count < n && count < most; count++) {
		const struct place *first = g[count].first;
		struct engine_hot *h = &list[count];
		uint64_t offset, shift = first->linear >> 63 ? r.p->shift : 0;
		const char *symbol = symbols_find(r.p->symbols, first->linear - shift, &offset);
		*h = (struct engine_hot){first->linear & page, first->gpa & page, g[count].count, first->key & KEY_USER,
					 ""};
		if (symbol && kind == HOT_BLOCKS)
			snprintf(h->name, sizeof(h->name), "%s+0x%" PRIx64, symbol, offset);
		else if (symbol && kind == HOT_FUNCTIONS)
			snprintf(h->name, sizeof(h->name), "%s", symbol);
	}
	free(g);
	free(r.place);
	return count;
}

static void print_totals(const struct report *r)
{
	for (unsigned i = 0; i < r->eng->cpus; i++) {
		const struct samples *s = r->p->cpu[i];
		if (!s)
			continue;
		uint64_t known = s->user + s->kernel + s->glue + s->helper + s->engine;
		fprintf(stderr,
			"  CPU %u: %" PRIu64 " samples: user %.1f %%, kernel %.1f %%, glue %.1f %%, helpers %.1f %%, "
			"slow path and translator %.1f %%, asleep or in the monitor %.1f %%\n",
			i, s->total, percent(s->user, s->total), percent(s->kernel, s->total),
			percent(s->glue, s->total), percent(s->helper, s->total), percent(s->engine, s->total),
			percent(s->total - known, s->total));
		if (s->lost)
			fprintf(stderr, "         %" PRIu64 " of them had no place left\n", s->lost);
	}
}

static void print_pages(const struct report *r, unsigned most)
{
	size_t n;
	struct group *g = group(r, page_id, &n);

	fprintf(stderr, " hottest pages of %zu (guest-physical, linear)\n", n);
	for (size_t i = 0; i < n && i < most; i++)
		fprintf(stderr, "  %5.1f %%  %012" PRIx64 "  %c:%016" PRIx64 "\n", percent(g[i].count, r->total),
			(uint64_t)(g[i].first->gpa & PAGE_MASK), g[i].first->key & KEY_USER ? 'u' : 'k',
			(uint64_t)(g[i].first->linear & PAGE_MASK));
	free(g);
}

static void print_functions(const struct report *r, unsigned most)
{
	size_t n;
	struct group *g = group(r, function_id, &n);
	uint64_t offset;

	fputs(" hottest functions\n", stderr);
	for (size_t i = 0; i < n && i < most; i++) {
		const struct place *place = g[i].first;
		uint64_t shift = place->linear >> 63 ? r->p->shift : 0;
		const char *name = symbols_find(r->p->symbols, place->linear - shift, &offset);
		fprintf(stderr, "  %5.1f %%  %s\n", percent(g[i].count, r->total), name ? name : "(no symbol)");
	}
	free(g);
}

static unsigned samples_at(const struct report *r, const struct place *block, const uint8_t *from, const uint8_t *to)
{
	unsigned n = 0;

	for (size_t i = 0; i < r->count; i++) {
		const struct place *place = &r->place[i];
		if (place->pc >= from && place->pc < to && place->gpa == block->gpa && place->key == block->key)
			n += place->count;
	}
	return n;
}

static unsigned disassemble(enum x86_mode mode, const uint8_t *code, size_t len, uint64_t address, char *text,
			    size_t size)
{
	static const ZydisMachineMode modes[] = {
		[MODE_16] = ZYDIS_MACHINE_MODE_LEGACY_16,
		[MODE_32] = ZYDIS_MACHINE_MODE_LEGACY_32,
		[MODE_64] = ZYDIS_MACHINE_MODE_LONG_64,
	};
	ZydisDisassembledInstruction insn;

	if (ZYAN_FAILED(ZydisDisassembleIntel(modes[mode], address, code, len, &insn))) {
		snprintf(text, size, "(bad)");
		return 1;
	}
	snprintf(text, size, "%s", insn.text);
	return insn.info.length;
}

static void print_host(const struct report *r, const struct place *place, const uint8_t *from, const uint8_t *to)
{
	char text[128];

	while (from < to) {
		unsigned len = disassemble(MODE_64, from, (size_t)(to - from), (uintptr_t)from, text, sizeof(text));
		unsigned hits = samples_at(r, place, from, from + len);
		if (hits)
			fprintf(stderr, "   %6u  %20s %" PRIxPTR "  %s\n", hits, "", (uintptr_t)from, text);
		else
			fprintf(stderr, "   %6s  %20s %" PRIxPTR "  %s\n", "", "", (uintptr_t)from, text);
		from += len;
	}
}

static void print_guest(const struct report *r, const struct block *b, uint64_t linear, unsigned off)
{
	const uint8_t *bytes = guest_memory_ptr(r->eng->mem, page_of(r->eng, b->page)->gpa, PAGE_SIZE, false);
	char text[128];

	if (!bytes)
		return;
	disassemble((enum x86_mode)(b->key & KEY_MODE), bytes + off, MIN(PAGE_SIZE - off, 15), linear + off - b->off,
		    text, sizeof(text));
	fprintf(stderr, "   %016" PRIx64 "  %s\n", linear + off - b->off, text);
}

static void print_part(const struct report *r, const struct place *place, const struct block *b, unsigned part)
{
	const uint8_t *start = block_part(r->eng, b, part);
	struct insn_map_reader reader = insn_map_read(record(r->eng, b->map), part);
	int off = -1;

	for (bool more = insn_map_next(&reader); more;) {
		struct insn_map m = reader.at;
		if (m.off != off)
			print_guest(r, b, place->linear, m.off);
		off = m.off;
		more = insn_map_next(&reader);
		print_host(r, place, start + m.host, start + (more ? reader.at.host : b->size[part]));
	}
}

/* Each guest instruction, and the host's that it has become; the cold code that they jump to comes last. */
static void print_block(const struct report *r, const struct place *place)
{
	struct code_page *page = code_page_at(r->eng, place->gpa);
	const struct block *b = block_find(r->eng, page, place->gpa & ~PAGE_MASK, place->key);

	if (!b) {
		fputs("   no longer in the code cache\n", stderr);
		return;
	}
	for (unsigned i = 0; i < PARTS; i++)
		print_part(r, place, b, i);
}

static bool wanted(const struct report *r, const struct group *g, size_t rank)
{
	uint64_t offset, shift = g->first->linear >> 63 ? r->p->shift : 0;
	const char *name;

	if (!r->p->want[0])
		return rank < r->p->hot;
	if (!strncmp(r->p->want, "0x", 2)) {
		uint64_t at = strtoull(r->p->want, NULL, 16);
		return at >= g->first->linear && at < g->first->linear + 64;
	}
	name = symbols_find(r->p->symbols, g->first->linear - shift, &offset);
	return name && !strcmp(name, r->p->want);
}

static void print_blocks(const struct report *r)
{
	size_t n;
	struct group *g = group(r, block_id, &n);
	char name[NAME_SIZE];

	fprintf(stderr, " hottest blocks of %zu: samples at each host instruction, the guest's instructions between\n",
		n);
	for (size_t i = 0; i < n; i++) {
		const struct place *first = g[i].first;
		if (!wanted(r, &g[i], i))
			continue;
		fprintf(stderr, "  %5.1f %%  %s (key %x)\n", percent(g[i].count, r->total),
			name_of(r->p, first->linear, first->key, name), first->key);
		print_block(r, first);
	}
	free(g);
}

static void report(struct tr_engine *eng)
{
	struct report r = {.eng = eng, .p = eng->profile};

	collect(&r);
	fputs("doppel: profile\n", stderr);
	print_totals(&r);
	print_pages(&r, MAX(r.p->hot, HOT_DEFAULT));
	if (r.p->symbols)
		print_functions(&r, MAX(r.p->hot, HOT_DEFAULT) * 2);
	print_blocks(&r);
	free(r.place);
}

void profile_destroy(struct tr_engine *eng)
{
	struct profile *p = eng->profile;

	if (!p)
		return;
	if (p->show)
		report(eng);
	host_perf_map_close(p->map);
	symbols_free(p->symbols);
	for (unsigned i = 0; i < ARRAY_LEN(p->cpu); i++)
		free(p->cpu[i]);
	free(p);
	eng->profile = NULL;
}
