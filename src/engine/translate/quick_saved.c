/*
 * What is known of where an address space's code is, kept while another one runs: programs that take turns find it
 * again. It may be used again if each page of code is where it was, by the page tables as they are then, and no block
 * has gone since. Compiled for general registers only.
 */
#include "engine/translate/code.h"
#include "engine/translate/light.h"
#include "engine/translate/quick.h"

/* What has more of these is not kept. */
#define SAVED_PAGES 8192
#define SAVED_SECONDS 8192

struct quick_saved {
	uint64_t cr3;    /* what it was when this was known; QUICK_FREE: nothing is */
	uint32_t common; /* KEY_COMMON of all blocks */
	uint64_t used;   /* when, for who must go */
	struct quick_turns turns;
	unsigned pages, jumps, seconds, fars;
	struct {
		uint64_t linear;
		uint32_t slot;
	} page[SAVED_PAGES];
	/* Host code by its number (host_at). */
	struct saved_jump {
		uint64_t minus;
		uint32_t host;
		uint16_t index;
	} jump[QUICK_LOG], second[SAVED_SECONDS];
	struct {
		uint32_t host, index;
	} far[QUICK_LOG];
};
_Static_assert(sizeof(struct saved_jump) == 16 && QUICK_ENTRIES <= 1 << 16, "a set is to be small");
#define QUICK_FREE UINT64_MAX

/*
 * So many turns, and it is found out anew: what the program does not use any more is not to be kept, for programs that
 * take turns often. Where most of it has come back when the turns are over, there are twice as many.
 */
#define TURNS 8
#define TURNS_MOST 512

static struct quick_saved *find(const struct tr_vcpu *v, uint64_t cr3)
{
	for (unsigned i = 0; i < QUICK_SPACES; i++)
		if (v->quick_saved[i] && v->quick_saved[i]->cr3 == cr3)
			return v->quick_saved[i];
	return NULL;
}

/* One for the address space at hand, which has none: quick_restore gave it back. NULL: there is no memory. */
static struct quick_saved *take(struct tr_vcpu *v)
{
	struct quick_saved **oldest = &v->quick_saved[0];
	for (unsigned i = 0; i < QUICK_SPACES; i++) {
		struct quick_saved **at = &v->quick_saved[i];
		if (!*at)
			return *at = host_memory_alloc(sizeof(**at));
		if ((*at)->cr3 == QUICK_FREE)
			return *at;
		if ((*at)->used < (*oldest)->used)
			oldest = at;
	}
	return *oldest;
}

static bool fits(const struct quick_log *log)
{
	return log->page.count <= SAVED_PAGES && log->jump.count <= QUICK_LOG && log->second.count <= SAVED_SECONDS &&
	       log->far.count <= QUICK_LOG;
}

static uint32_t number_of(const struct tr_engine *eng, uint64_t host)
{
	return (uint32_t)(host - (uint64_t)(uintptr_t)eng->code.rx);
}

static uint64_t host_of(const struct tr_engine *eng, uint32_t number)
{
	return (uint64_t)(uintptr_t)host_at(eng, number);
}

static unsigned jumps_save(const struct tr_engine *eng, struct saved_jump *saved, const struct quick_list *list,
			   const struct quick_jump *table)
{
	for (unsigned i = 0; i < list->count; i++) {
		const struct quick_jump *jump = &table[list->at[i]];
		saved[i] = (struct saved_jump){jump->minus, number_of(eng, jump->host), (uint16_t)list->at[i]};
	}
	return list->count;
}

static void jumps_restore(const struct tr_engine *eng, const struct saved_jump *saved, unsigned n,
			  struct quick_list *list, struct quick_jump *table)
{
	for (unsigned i = 0; i < n; i++) {
		quick_list_add(list, saved[i].index);
		table[saved[i].index] = (struct quick_jump){saved[i].minus, host_of(eng, saved[i].host)};
	}
}

static unsigned entries(const struct quick_saved *s)
{
	return s->jumps + s->seconds + s->fars;
}

/* All turns have been taken: how many there are to be next. */
static struct quick_turns turns_next(const struct quick_saved *s)
{
	unsigned now = entries(s), before = s->turns.before;
	bool in_vain = before && now > before / 2;
	return (struct quick_turns){.before = now, .most = in_vain ? MIN(2 * s->turns.most, TURNS_MOST) : TURNS};
}

void quick_save(struct tr_vcpu *v, uint64_t cr3)
{
	const struct quick_log *log = &v->quick_log[false];
	struct quick_saved *s = fits(log) ? take(v) : NULL;
	if (!s)
		return;
	s->cr3 = cr3;
	s->common = v->jc_common;
	s->used = ++v->quick_saves;
	s->pages = log->page.count;
	for (unsigned i = 0; i < s->pages; i++) {
		s->page[i].slot = log->page.at[i];
		s->page[i].linear = v->place[log->page.at[i]][false].linear;
	}
	s->jumps = jumps_save(v->engine, s->jump, &log->jump, v->quick[false].jump);
	s->seconds = jumps_save(v->engine, s->second, &log->second, v->quick[false].second);
	s->fars = log->far.count;
	for (unsigned i = 0; i < s->fars; i++) {
		s->far[i].index = log->far.at[i];
		s->far[i].host = number_of(v->engine, v->far[log->far.at[i]]);
	}
	s->turns = v->quick_turns;
}

static bool stays(struct tr_vcpu *v, const struct quick_saved *s)
{
	for (unsigned i = 0; i < s->pages; i++)
		if (!quick_page_stays(v, s->page[i].slot, s->page[i].linear))
			return false;
	return true;
}

void quick_restore(struct tr_vcpu *v, uint64_t cr3)
{
	struct quick_log *log = &v->quick_log[false];
	struct quick_saved *s = find(v, cr3);
	v->quick_turns = (struct quick_turns){.most = TURNS};
	if (!s)
		return;
	s->cr3 = QUICK_FREE;
	if (s->turns.taken == s->turns.most) {
		v->quick_turns = turns_next(s);
		return;
	}
	if (s->common != v->jc_common || !stays(v, s))
		return;
	v->quick_turns = s->turns;
	v->quick_turns.taken++;
	for (unsigned i = 0; i < s->pages; i++)
		quick_slot_is_at(v, false, s->page[i].slot, s->page[i].linear);
	jumps_restore(v->engine, s->jump, s->jumps, &log->jump, v->quick[false].jump);
	jumps_restore(v->engine, s->second, s->seconds, &log->second, v->quick[false].second);
	for (unsigned i = 0; i < s->fars; i++) {
		quick_list_add(&log->far, s->far[i].index);
		v->far[s->far[i].index] = host_of(v->engine, s->far[i].host);
	}
}

void quick_saved_forget(struct tr_vcpu *v)
{
	for (unsigned i = 0; i < QUICK_SPACES; i++)
		if (v->quick_saved[i])
			v->quick_saved[i]->cr3 = QUICK_FREE;
}

void quick_saved_free(struct tr_vcpu *v)
{
	for (unsigned i = 0; i < QUICK_SPACES; i++)
		if (v->quick_saved[i])
			host_memory_free(v->quick_saved[i], sizeof(*v->quick_saved[i]));
}
