/*
 * To see where time goes: names of translated blocks for perf(1), and a sampler that finds the hottest of them. Only
 * with the debug switches perf-map and hot.
 */
#ifndef DOPPEL_ENGINE_TRANSLATE_PROFILE_H
#define DOPPEL_ENGINE_TRANSLATE_PROFILE_H

#include "engine/translate/code.h"

/* True: there is nothing to profile, or eng->profile has been made. After code_init. */
/* Whether a debug switch of `len` bytes is one of profiles. */
bool profile_knows(const char *word, size_t len);
bool profile_create(struct tr_engine *eng, const struct engine_config *config, struct error *err);
/* Tells on standard error what was hot. Before code_destroy. */
void profile_destroy(struct tr_engine *eng);
/* `b` has been made for the code at `linear`. */
void profile_block(struct tr_engine *eng, struct tr_vcpu *v, const struct block *b, uint64_t linear);
/* The parts of stats->time_translated that were user's and kernel's code. */
void profile_times(const struct tr_vcpu *v, struct engine_stats *stats);
/* engine_ops.hot */
size_t profile_hot(struct tr_engine *eng, enum engine_hot_kind kind, struct engine_hot *list, size_t most,
		   uint64_t *total);
/* On the virtual CPU's thread. */
bool profile_thread_enter(struct tr_vcpu *v);
void profile_thread_leave(struct tr_vcpu *v);

#endif
