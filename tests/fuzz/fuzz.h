/*
 * Fuzz targets: each fuzz_NAME.c defines LLVMFuzzerTestOneInput, which must do the same for the same input. Built with
 * clang and -Dfuzz=true they are libFuzzer's; otherwise driver.c replays the kept inputs and tries others for some
 * seconds. docs/testing.md tells how to run them.
 */
#ifndef DOPPEL_TESTS_FUZZ_FUZZ_H
#define DOPPEL_TESTS_FUZZ_FUZZ_H

#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *p;
	size_t left;
};

/* The next `len` bytes, little-endian; zeroes when there are none left. */
static inline uint64_t take(struct input *in, unsigned len)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < len && in->left; i++, in->left--)
		value |= (uint64_t)*in->p++ << (8 * i);
	return value;
}

/* Reads what a device hands out, so that a sanitizer looks at it. */
static inline void look_at(const uint8_t *data, size_t len)
{
	volatile uint8_t sum = 0;

	for (size_t i = 0; i < len; i += 512)
		sum ^= data[i];
	if (len)
		sum ^= data[len - 1];
	(void)sum;
}

/* A finding: ends the process, so that the input is kept. */
_Noreturn static inline void found(const char *what)
{
	fprintf(stderr, "fuzz: %s\n", what);
	abort();
}

#define EXPECT(cond) ((cond) ? (void)0 : found(#cond))

#endif
