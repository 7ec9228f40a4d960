/* Instructions that give up windows and go by the TLB: see window_gives_up. Compiled for general registers only. */
#include "engine/translate/window_space.h"

#define DEBT_NS 25000000u /* what faults may cost beside their share of the time (charge) before anybody gives up */
#define SITE_FAULTS 6     /* of an instruction meanwhile, or by stores to translated code, and it does */
#define IMPATIENT 16      /* so often that many of those that are to but do not yet */
#define CHANCE_NS 10000000000u /* all forget it again: programs change */

static bool noted(const struct tr_vcpu *v, uint64_t gpa)
{
	for (unsigned i = 0; i < v->gave_up_count; i++)
		if (v->gave_up[i] == gpa)
			return true;
	return false;
}

/* The instruction at `gpa` had SITE_FAULTS faults. */
static void give_up(struct tr_vcpu *v, uint64_t gpa)
{
	if (noted(v, gpa)) {
		v->windows.impatience++;
	} else if (v->gave_up_count < ARRAY_LEN(v->gave_up)) {
		v->gave_up[v->gave_up_count++] = gpa;
		v->windows.given_up++;
	}
}

/*
 * Where faults cost much, the instructions that meet most of them go by the TLB, which learns of a page at a tenth of
 * the price; and so do those that store into translated code time and again, as kernels do that patch themselves. Each
 * change costs everything that jump caches know, so several go at once, unless the faults go on.
 */
bool window_gives_up(struct tr_vcpu *v, bool kernel, uint64_t gpa)
{
	struct windows *w = &v->windows;
	const struct window_space *s = kernel ? w->kernel : w->now;
	struct window_site *site = &w->site[(gpa ^ gpa >> 8 ^ gpa >> 16) % WINDOW_SITES];
	if (w->device) { /* nothing of it will ever be shown */
		w->device = false;
		give_up(v, gpa);
		v->give_up = true;
		return true;
	}
	bool hopeless = w->hopeless, to_code = w->to_code;
	w->hopeless = w->to_code = false;
	if (!hopeless && !to_code && (!s || s->debt < ns_to_tsc(v, DEBT_NS)))
		return false;
	if (site->gpa != gpa)
		*site = (struct window_site){.gpa = gpa};
	if (++site->faults < SITE_FAULTS && !hopeless)
		return false;
	site->faults = 0;
	give_up(v, gpa);
	v->give_up = to_code || w->impatience > IMPATIENT || v->gave_up_count == ARRAY_LEN(v->gave_up);
	return v->give_up;
}

void window_give_chances(struct tr_vcpu *v, uint64_t tsc)
{
	uint64_t since = v->engine->by_tlb_since;
	if (!since || tsc - since < ns_to_tsc(v, CHANCE_NS))
		return;
	code_by_windows(v->engine, v);
}
