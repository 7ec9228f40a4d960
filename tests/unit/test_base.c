/* Bit helpers, errors, logging. */
#include "unit/child.h"

TEST(bits)
{
	CHECK_EQ(bits(0xdeadbeefcafef00d, 63, 0), 0xdeadbeefcafef00d);
	CHECK_EQ(bits(0xdeadbeefcafef00d, 63, 60), 0xd);
	CHECK_EQ(bits(0xdeadbeefcafef00d, 7, 4), 0);
	CHECK_EQ(bits(0x10, 4, 4), 1);
	CHECK_EQ(BIT(63), 1ull << 63);
}

TEST(extend)
{
	CHECK_EQ(zext(0xffffffffffffffff, 1), 0xff);
	CHECK_EQ(zext(0xffffffffffffffff, 4), 0xffffffff);
	CHECK_EQ(zext(0xffffffffffffffff, 8), 0xffffffffffffffff);
	CHECK_EQ(sext(0x80, 1), -128);
	CHECK_EQ(sext(0x7fff, 2), 0x7fff);
	CHECK_EQ(sext(0x80000000, 4), INT32_MIN);
	CHECK_EQ(sext(0x8000000000000000, 8), INT64_MIN);
}

TEST(align)
{
	CHECK_EQ(align_up(0, PAGE_SIZE), 0);
	CHECK_EQ(align_up(1, PAGE_SIZE), 4096);
	CHECK_EQ(align_up(4096, PAGE_SIZE), 4096);
	CHECK_EQ(align_down(8191, PAGE_SIZE), 4096);
	CHECK_EQ(GiB(3), 0xc0000000);
}

TEST(error)
{
	struct error err;
	char much[1000];

	CHECK(!error_set(&err, "disk '%s': %d", "a.img", 7));
	CHECK_STR(err.text, "disk 'a.img': 7");
	memset(much, 'x', sizeof(much) - 1);
	much[sizeof(much) - 1] = 0;
	error_set(&err, "%s", much);
	CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
	CHECK(!error_set(NULL, "nobody wants to know"));
	/* A name that is too long loses its middle, not the message around it. */
	error_set(&err, "cannot read %s: %s", much, "No such file");
	CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
	CHECK(!strncmp(err.text, "cannot read xxx", 15));
	CHECK(strstr(err.text, "xxx ... xxx"));
	CHECK_STR(err.text + sizeof(err.text) - 1 - 17, "xxx: No such file");
	much[511 - strlen("cannot read : No such file")] = 0;
	error_set(&err, "cannot read %s: %s", much, "No such file");
	CHECK_EQ(strlen(err.text), 511);
	CHECK(!strstr(err.text, " ... "));
	error_set(&err, "cannot read %s", "a\nb\033[1m\177\303\274");
	CHECK_STR(err.text, "cannot read a?b?[1m?\303\274");
}

static void log_things(void)
{
	char much[2000];

	log_info("one %d", 1);
	log_debug("not this");
	log_set_level(LOG_ERROR);
	log_warn("nor this");
	log_error("two");
	memset(much, 'x', sizeof(much) - 1);
	much[sizeof(much) - 1] = 0;
	log_error("%s", much);
}

TEST(log)
{
	static const char begin[] = "doppel: one 1\ndoppel: two\ndoppel: xxx";
	char out[4096];

	CHECK_EQ(in_child(log_things, 0, out, sizeof(out)), 0);
	CHECK(!strncmp(out, begin, sizeof(begin) - 1));
	CHECK_EQ(out[strlen(out) - 1], '\n');
	CHECK(strlen(out) < 1100);
}

static void break_invariant(void)
{
	int two = 2;

	ENSURE(two == 2);
	ENSURE(two == 3);
}

TEST(invariant)
{
	char out[4096];
	int status = in_child(break_invariant, 0, out, sizeof(out));

	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
	CHECK(strstr(out, "test_base.c:"));
	CHECK(strstr(out, "two == 3"));
}

UNIT_MAIN()
