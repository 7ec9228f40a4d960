/*
 * Which pages of an address space the process is shown in which its user code runs directly (direct.h): some of those
 * that are shown through windows, so what is said of those (window.h) is true of these, at the guest's own addresses.
 * Compiled for general registers only.
 */
#include "engine/translate/window_space.h"

#include "engine/translate/code.h"
#include "engine/translate/direct.h"

#define TOGETHER GiB(1) /* of one change at most; the host wants less than 4 */

/* With the last change where they are one; false: no room. */
static bool change_add(struct window_space *s, const struct host_space_change *c)
{
	struct host_space_change *last = s->changes ? &s->change[s->changes - 1] : NULL;
	if (last && last->len >= TOGETHER)
		last = NULL;
	if (last && !last->rights && last->at == c->at && last->len == c->len) {
		*last = *c;
		return true;
	}
	if (last && last->rights == c->rights && last->copy == c->copy && last->at + last->len == c->at &&
	    (!c->rights || last->offset + last->len == c->offset)) {
		last->len += c->len;
		return true;
	}
	if (last && !c->rights && !last->rights && c->at + c->len == last->at) {
		last->at = c->at;
		last->len += c->len;
		return true;
	}
	if (s->changes == WINDOW_CHANGES)
		return false;
	s->change[s->changes++] = *c;
	return true;
}

/* --- breakpoints, in pages of code with few instructions that must not be carried out */

static void breaks_drop(struct window_space *s, uint64_t va, uint64_t size)
{
	for (unsigned i = 0; i < HOST_SPACE_BREAKS; i++)
		if (s->breaks[i] && s->breaks[i] - va < size) {
			s->breaks[i] = 0;
			s->breaks_changed = true;
		}
}

static void breaks_add(struct window_space *s, uint64_t va, const uint16_t *at)
{
	for (unsigned i = 0, n = 0; i < HOST_SPACE_BREAKS && n < HOST_SPACE_BREAKS && at[n]; i++)
		if (!s->breaks[i]) {
			s->breaks[i] = va + at[n++];
			s->breaks_changed = true;
		}
}

static unsigned count_breaks(const uint16_t *at)
{
	unsigned n = 0;
	while (n < HOST_SPACE_BREAKS && at[n])
		n++;
	return n;
}

bool apart_has_breaks_for(const struct tr_engine *eng, const struct window_space *s, uint64_t gpa)
{
	unsigned left = 0;
	for (unsigned i = 0; i < HOST_SPACE_BREAKS; i++)
		left += !s->breaks[i];
	return count_breaks(code_breaks(eng, gpa)) <= left;
}

static void hide_page(struct window_space *s, struct window_page *p)
{
	p->va &= ~(WINDOW_APART | WINDOW_APART_EXEC);
	apart_hide(s, p->va & PAGE_MASK, PAGE_SIZE);
}

/* No page with breakpoints is executed any more: they are free. */
static void breaks_make_room(struct window_space *s)
{
	for (unsigned i = 0; i < HOST_SPACE_BREAKS; i++) {
		struct window_page *p = s->breaks[i] ? space_page_of(s, s->breaks[i]) : NULL;
		if (p)
			hide_page(s, p);
	}
}

/* --- pages */

void apart_clear(struct window_space *s)
{
	if (!s->apart)
		return;
	for (unsigned i = 0; i < HOST_SPACE_BREAKS; i++)
		s->breaks[i] = 0;
	s->breaks_changed = true;
	for (unsigned i = 0; i < s->count; i++)
		s->page[i].va &= ~(WINDOW_APART | WINDOW_APART_EXEC);
	s->changes = 0;
	s->apart_lost = true;
}

void apart_hide(struct window_space *s, uint64_t va, uint64_t size)
{
	const struct host_space_change c = {.at = va, .len = size};
	if (!s->apart)
		return;
	breaks_drop(s, va, size);
	if (!change_add(s, &c))
		apart_clear(s);
}

void apart_release(struct tr_vcpu *v, struct window_space *s)
{
	if (!s->apart)
		return;
	direct_program_judge(&v->direct.programs, &s->account);
	v->direct.idle[v->direct.idle_count++] = s->apart;
	s->apart = NULL;
}

bool apart_show(struct tr_vcpu *v, struct window_space *s, struct window_page *p, bool exec)
{
	struct host_space_change c = {
		.at = p->va & PAGE_MASK,
		.len = window_page_size(p),
		.rights = HOST_SPACE_READ | (exec                      ? HOST_SPACE_EXEC
					     : p->va & WINDOW_WRITABLE ? HOST_SPACE_WRITE
								       : 0),
		.offset = window_offset(v->engine->mem, p->gpa, window_page_size(p)),
	};
	unsigned copy = exec ? code_copy(v->engine, p->gpa) : 0;
	if (copy) {
		c.copy = 1;
		c.rights = HOST_SPACE_EXEC;
		c.offset = direct_copy_offset(copy);
	}
	if (!host_space_may_show(host_spaces_place(v->engine->spaces), c.at, c.len))
		return false;
	breaks_drop(s, c.at, c.len);
	if (exec && !apart_has_breaks_for(v->engine, s, p->gpa))
		breaks_make_room(s);
	if (!change_add(s, &c)) {
		apart_clear(s);
		change_add(s, &c);
	}
	if (exec)
		breaks_add(s, c.at, code_breaks(v->engine, p->gpa));
	p->va = (p->va & ~WINDOW_APART_EXEC) | WINDOW_APART | (exec ? WINDOW_APART_EXEC : 0);
	return true;
}

static void revoke(struct window_space *s, uint64_t gpa)
{
	for (unsigned i = 0; i < s->count; i++) {
		struct window_page *p = &s->page[i];
		if (p->gpa == gpa && p->va & WINDOW_APART_EXEC)
			hide_page(s, p);
	}
}

static void for_each(struct tr_engine *eng, void (*what)(struct window_space *s, uint64_t gpa), uint64_t gpa)
{
	for (unsigned c = 0; c < eng->cpus; c++) {
		struct windows *w = eng->vcpu[c] ? &eng->vcpu[c]->windows : NULL;
		if (!w)
			continue;
		window_lock(&w->lock);
		for (unsigned i = 0; i < WINDOW_SPACES; i++)
			if (w->space[i] && w->space[i]->apart)
				what(w->space[i], gpa);
		window_unlock(&w->lock);
	}
}

void apart_revoke(struct tr_engine *eng, uint64_t gpa)
{
	for_each(eng, revoke, gpa);
}

static void clear(struct window_space *s, uint64_t gpa)
{
	apart_clear(s);
}

void apart_revoke_all(struct tr_engine *eng)
{
	for_each(eng, clear, 0);
}
