/* Names of a guest's code: from System.map, a copy of /proc/kallsyms, or an ELF file's symbol table. */
#ifndef DOPPEL_ENGINE_SYMBOLS_H
#define DOPPEL_ENGINE_SYMBOLS_H

#include "base/base.h"

struct symbols;
/* NULL: err says why. */
struct symbols *symbols_load(const char *path, struct error *err);
void symbols_free(struct symbols *s); /* NULL is accepted */
/* The name of the code at `addr`, and how far into it that is; NULL when there is none. `s` may be NULL. */
const char *symbols_find(const struct symbols *s, uint64_t addr, uint64_t *offset);
/*
 * How far a kernel that gives itself a random place lies above the addresses of its symbols, told by where its entry
 * for SYSCALL is (LSTAR). False: not known (yet).
 */
bool symbols_shift(const struct symbols *s, uint64_t lstar, uint64_t *shift);

#endif
