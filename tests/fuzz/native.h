/*
 * The real processor, in a process of its own: what a case's code does to addresses that happen to be there natively,
 * or to the shadow memory of a sanitizer, must not hurt the fuzzer. The two share a `struct native_shared`, file
 * descriptor 3 of the child; a byte on standard input asks for a run and one on standard output tells that it is done.
 */
#ifndef DOPPEL_TESTS_FUZZ_NATIVE_H
#define DOPPEL_TESTS_FUZZ_NATIVE_H

#include "../diff/diff.h"

#define NATIVE_FD 3

struct native_shared {
	struct diff_case c;
	struct diff_result r;
	uint8_t memory[WINDOW_SIZE]; /* for r.memory, which is a pointer */
};

#endif
