/*
 * What the TLB has of an address space, put by while CR3 names another one: its entries from mappings that are not
 * global, by PCID, as a processor's TLB has them beside those of other PCIDs. They are in the TLB again when CR3 names
 * that PCID and says that nothing of it is to be flushed (SDM Vol. 3A, 4.10.4.1). Compiled for general registers only:
 * light helpers call it.
 */
#include "engine/translate/light.h"

static struct tlb_space *find(struct tr_vcpu *v, int pcid)
{
	for (unsigned i = 0; i < TLB_SPACES; i++)
		if (v->tlb_space[i].count && v->tlb_space[i].pcid == pcid)
			return &v->tlb_space[i];
	return NULL;
}

/* One that holds nothing, or else what has been away longest. None is of the PCID at hand: tlb_restore empties that. */
static struct tlb_space *take(struct tr_vcpu *v)
{
	struct tlb_space *oldest = &v->tlb_space[0];
	for (unsigned i = 0; i < TLB_SPACES && oldest->count; i++)
		if (!v->tlb_space[i].count || v->tlb_space[i].saved < oldest->saved)
			oldest = &v->tlb_space[i];
	return oldest;
}

static struct tlb_entry *entry_at(struct tr_vcpu *v, uint16_t place)
{
	return &v->tlb[place / TLB_ENTRIES][place % TLB_ENTRIES];
}

static bool is_filled(const struct tlb_entry *e)
{
	return e->tag_read != TLB_NONE;
}

/*
 * So many times, and what is needed is found out anew: to move what is not used any more costs more than to miss what
 * is, now and then.
 */
#define TURNS 8

/*
 * The log has each place once for each time that it was filled, so the entry that is there now is found by the last of
 * these: the first that is met from the end, which leaves the place empty. Global ones have come into places since.
 */
void tlb_save(struct tr_vcpu *v, int pcid)
{
	unsigned turns = v->tlb_turns;
	v->tlb_turns = 0;
	if (pcid < 0 || turns == TURNS || !v->tlb_logged || v->tlb_logged > ARRAY_LEN(v->tlb_log))
		return;
	struct tlb_space *s = take(v);
	s->pcid = pcid;
	s->turns = turns + 1;
	s->count = 0;
	s->saved = ++v->tlb_saves;
	for (unsigned i = v->tlb_logged; i-- && s->count < TLB_SAVED;) {
		struct tlb_entry *e = entry_at(v, v->tlb_log[i]);
		if (!is_filled(e) || e->meta & TLB_META_GLOBAL)
			continue;
		s->entry[s->count++] = (struct tlb_saved){
			.page = e->tag_read,
			.delta = e->delta,
			.meta = e->meta,
			.place = v->tlb_log[i],
			.write = e->tag_write != TLB_NONE,
		};
		tlb_entry_drop(e);
	}
}

/* Those saved first were made last, and are to be saved first again. */
void tlb_restore(struct tr_vcpu *v, int pcid)
{
	struct tlb_space *s = find(v, pcid);
	for (unsigned i = s ? s->count : 0; i--;) {
		const struct tlb_saved *saved = &s->entry[i];
		struct tlb_entry *e = entry_at(v, saved->place);
		if (e->meta & TLB_META_GLOBAL)
			continue;
		tlb_entry_fill(v, e, saved->page, saved->delta, saved->meta, saved->write);
		v->stats.tlb_restored++;
	}
	if (!s)
		return;
	v->tlb_turns = s->turns;
	s->count = 0;
}

void tlb_saved_forget(struct tr_vcpu *v, int pcid)
{
	for (unsigned i = 0; i < TLB_SPACES; i++)
		if (pcid < 0 || v->tlb_space[i].pcid == pcid)
			v->tlb_space[i].count = 0;
}

/* A piece of a larger page goes with all of it. */
void tlb_saved_forget_page(struct tr_vcpu *v, int pcid, uint64_t page)
{
	struct tlb_space *s = find(v, pcid);
	unsigned kept = 0;
	if (!s)
		return;
	for (unsigned i = 0; i < s->count; i++) {
		const struct tlb_saved *saved = &s->entry[i];
		bool large = saved->meta & TLB_META_LARGE && tlb_large_bit(saved->page) == tlb_large_bit(page);
		if (saved->page != page && !large)
			s->entry[kept++] = *saved;
	}
	s->count = kept;
}
