/*
 * Unit tests: each file is a program.
 *
 *	TEST(adds) { CHECK_EQ(add(1, 2), 3); }
 *	UNIT_MAIN()
 *
 * A CHECK that fails is printed and the test goes on; a REQUIRE that fails ends the test (only on the test's own
 *thread). `program NAME...` runs only the tests named. Exit status 1 when one failed.
 */
#ifndef DOPPEL_TESTS_UNIT_H
#define DOPPEL_TESTS_UNIT_H

#include "base/base.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct unit_test {
	const char *name;
	void (*run)(void);
	struct unit_test *next;
};

static struct unit_test *unit_first, **unit_last = &unit_first;
static const char *unit_name = "";
static _Atomic unsigned unit_failures; /* of the test that runs */
static jmp_buf unit_out;

__attribute__((unused)) static void unit_add(struct unit_test *test)
{
	*unit_last = test;
	unit_last = &test->next;
}

#define TEST(id)                                                                \
	static void test_##id(void);                                            \
	__attribute__((constructor)) static void unit_add_##id(void)            \
	{                                                                       \
		static struct unit_test test = {.name = #id, .run = test_##id}; \
		unit_add(&test);                                                \
	}                                                                       \
	static void test_##id(void)

__attribute__((unused, format(printf, 3, 4))) static void unit_fail(const char *file, int line, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	unit_failures++;
	printf("FAIL %s: %s:%d: %s\n", unit_name, file, line, text);
}

#define UNIT_FAIL(...) unit_fail(__FILE__, __LINE__, __VA_ARGS__)

#define CHECK(cond) ((cond) ? (void)0 : UNIT_FAIL("%s", #cond))
#define REQUIRE(cond) ((cond) ? (void)0 : (UNIT_FAIL("%s", #cond), longjmp(unit_out, 1)))

/* Integers and pointers, compared as 64 bits (signed ones sign-extended). */
#define CHECK_EQ(a, b)                                                                                      \
	do {                                                                                                \
		uint64_t unit_a_ = (uint64_t)(a), unit_b_ = (uint64_t)(b);                                  \
		if (unit_a_ != unit_b_)                                                                     \
			UNIT_FAIL("%s is 0x%" PRIx64 ", not %s (0x%" PRIx64 ")", #a, unit_a_, #b, unit_b_); \
	} while (0)

#define CHECK_STR(a, b)                                                                         \
	do {                                                                                    \
		const char *unit_a_ = (a), *unit_b_ = (b);                                      \
		if (!unit_a_ || !unit_b_ || strcmp(unit_a_, unit_b_))                           \
			UNIT_FAIL("%s is \"%s\", not \"%s\"", #a, unit_a_ ? unit_a_ : "(null)", \
				  unit_b_ ? unit_b_ : "(null)");                                \
	} while (0)

/* The same bytes; the first difference is printed. */
#define CHECK_MEM(a, b, len)                                                                                         \
	do {                                                                                                         \
		const uint8_t *unit_a_ = (const void *)(a), *unit_b_ = (const void *)(b);                            \
		size_t unit_n_ = (len), unit_i_ = 0;                                                                 \
		while (unit_i_ < unit_n_ && unit_a_[unit_i_] == unit_b_[unit_i_])                                    \
			unit_i_++;                                                                                   \
		if (unit_i_ < unit_n_)                                                                               \
			UNIT_FAIL("%s and %s differ at byte %zu: 0x%02x, 0x%02x", #a, #b, unit_i_, unit_a_[unit_i_], \
				  unit_b_[unit_i_]);                                                                 \
	} while (0)

__attribute__((unused)) static bool unit_wanted(const char *name, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], name))
			return true;
	return argc < 2;
}

__attribute__((unused)) static bool unit_run(const struct unit_test *test)
{
	unit_name = test->name;
	unit_failures = 0;
	if (!setjmp(unit_out))
		test->run();
	if (!unit_failures)
		printf("ok %s\n", unit_name);
	return !unit_failures;
}

__attribute__((unused)) static int unit_main(int argc, char **argv)
{
	bool ok = true;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (struct unit_test *t = unit_first; t; t = t->next)
		if (unit_wanted(t->name, argc, argv))
			ok = unit_run(t) && ok;
	return !ok;
}

#define UNIT_MAIN()                           \
	int main(int argc, char **argv)       \
	{                                     \
		return unit_main(argc, argv); \
	}

#endif
