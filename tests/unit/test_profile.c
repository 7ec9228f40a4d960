/* Names of guest code, and perf's map. */
#include "engine/symbols.h"
#include "host/host.h"
#include "host/profile.h"
#include "unit/unit.h"

#include <unistd.h>

static const char *write_text(const char *text)
{
	static char path[] = "/tmp/doppel-test-symbols";
	FILE *f = fopen(path, "w");

	REQUIRE(f);
	fputs(text, f);
	fclose(f);
	return path;
}

TEST(system_map)
{
	struct error err = {""};
	uint64_t offset = 0, shift = 0;
	struct symbols *s = symbols_load(write_text("0000000000000000 A fixed_percpu_data\n"
						    "ffffffff81000100 T later\n"
						    "ffffffff81000000 T entry_SYSCALL_64\n"
						    "not a line\n"
						    "ffffffff81000180 d data\n"
						    "ffffffffc0001000 t helper\t[module]"),
					 &err);

	REQUIRE(s);
	CHECK_STR(symbols_find(s, 0xffffffff81000000, &offset), "entry_SYSCALL_64");
	CHECK_EQ(offset, 0);
	CHECK_STR(symbols_find(s, 0xffffffff81000190, &offset), "later");
	CHECK_EQ(offset, 0x90);
	CHECK_STR(symbols_find(s, 0xffffffffc0001001, &offset), "helper");
	CHECK(!symbols_find(s, 0xffffffff80ffffff, &offset));
	CHECK(!symbols_find(s, 0xffffffffd0000000, &offset));
	CHECK(!symbols_find(s, 0, &offset));
	/* A kernel that has moved by 32 MiB, one that has not yet said where it is, and what cannot be. */
	CHECK(symbols_shift(s, 0xffffffff83000000, &shift));
	CHECK_EQ(shift, MiB(32));
	CHECK(!symbols_shift(s, 0, &shift));
	CHECK(!symbols_shift(s, 0xffffffff83000040, &shift));
	CHECK(!symbols_shift(NULL, 0xffffffff83000000, &shift));
	CHECK(!symbols_find(NULL, 0xffffffff83000000, &offset));
	symbols_free(s);
	symbols_free(NULL);
}

TEST(symbols_of_elf)
{
	struct error err = {""};
	uint64_t offset = 1;
	struct symbols *s = symbols_load("/proc/self/exe", &err);
	bool found = false;

	REQUIRE(s);
	for (uint64_t at = 0; at < MiB(4) && !found; at++) {
		const char *name = symbols_find(s, at, &offset);
		found = name && !offset && !strcmp(name, "main");
	}
	CHECK(found);
	symbols_free(s);
}

TEST(no_symbols)
{
	struct error err = {""};

	CHECK(!symbols_load("/nonexistent/System.map", &err));
	CHECK_STR(err.text, "cannot read symbols from '/nonexistent/System.map': No such file or directory");
	CHECK(!symbols_load(write_text(""), &err));
	CHECK(strstr(err.text, "names no code"));
	CHECK(!symbols_load(write_text("0000000000000000 T hidden\n"), &err)); /* /proc/kallsyms for others than root */
	err.text[0] = 0;
	CHECK(!symbols_load(write_text("\177ELF, but no more"), &err));
	CHECK(strstr(err.text, "names no code"));
	unlink("/tmp/doppel-test-symbols");
}

TEST(perf_map)
{
	char path[64], expect[128];
	size_t len;
	struct host_perf_map *map = host_perf_map_open();

	REQUIRE(map);
	host_perf_map_add(map, path, 0x40, "f+0x10 k:1234");
	host_perf_map_close(map);
	host_perf_map_close(NULL);
	snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
	snprintf(expect, sizeof(expect), "%" PRIxPTR " 40 f+0x10 k:1234\n", (uintptr_t)path);
	char *text = host_file_slurp(path, &len);
	REQUIRE(text);
	CHECK_EQ(len, strlen(expect));
	CHECK_MEM(text, expect, len);
	free(text);
	unlink(path);
}

UNIT_MAIN()
