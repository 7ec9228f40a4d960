/* Which pages of code can run directly, and the length of instructions by which that is found out. */
#include "arch/x86/insn.h"
#include "engine/translate/direct.h"
#include "unit/unit.h"

#include <link.h>
#include <Zydis/Zydis.h>

static uint8_t page[PAGE_SIZE];

#define ALL (HOST_SPACE_TSC_FAULTS | HOST_SPACE_INT80_FAULTS)
static const struct direct_host all = {.faults = ALL, .other_states = BIT(9)};

/* `code` in the middle of a page of instructions like these. */
static bool fits(const void *code, size_t len, unsigned faults)
{
	static const uint8_t around[] = {0x48, 0x8b, 0x45, 0xf8, 0x48, 0x83, 0xc0, 0x08, 0x0f, 0xb6, 0x10, 0x89, 0xd0};

	for (unsigned i = 0; i < PAGE_SIZE; i++)
		page[i] = i + ARRAY_LEN(around) > PAGE_SIZE ? 0x90 : around[i % ARRAY_LEN(around)];
	memset(page + 1992, 0x90, 8);
	memcpy(page + 2000, code, len);
	memset(page + 2000 + len, 0x90, 16);
	return direct_scan(page, NULL, &(struct direct_host){.faults = faults, .other_states = BIT(9)});
}
#define FITS(code) fits(code, sizeof(code) - 1, ALL)

TEST(what_must_be_translated)
{
	static const char *const rows[] = {
		"\x0f\xa2",         "\x48\x0f\xa2",         "\x0f\x01\xd0",     "\x0f\x01\x07",
		"\x0f\x01\x4f\x10", "\x0f\x01\xe0",         "\x0f\x01\xc1",     "\x0f\x01\xd9",
		"\x0f\x01\xee",     "\x0f\x01\xfd",         "\x0f\x02\xc1",     "\x66\x0f\x03\xc1",
		"\x0f\xae\x27",     "\x0f\xae\x2f",         "\x48\x0f\xae\x37", "\x0f\xc7\x27",
		"\x0f\x34",         "\xf3\x0f\xc7\xf8",     "\xcd\x04",         "\x0f\x02\x07",
		"\xf3\x0f\xae\xc0", "\xf3\x48\x0f\xae\xd0",
	};

	for (unsigned i = 0; i < ARRAY_LEN(rows); i++)
		if (fits(rows[i], strlen(rows[i]), ALL))
			UNIT_FAIL("row %u was let through", i);
	CHECK(!FITS("\x0f\x00\xc8")); /* STR */
	CHECK(!FITS("\x0f\x00\x00")); /* SLDT in memory */
	CHECK(!fits("\x0f\x31", 2, 0));
	CHECK(!fits("\x0f\x01\xf9", 3, 0));
	CHECK(!fits("\xcd\x80", 2, HOST_SPACE_TSC_FAULTS));
}

TEST(what_need_not_be)
{
	CHECK(FITS("\x90"));
	CHECK(FITS("\x0f\x05\x0f\x0b"));                 /* SYSCALL, UD2: they stop */
	CHECK(FITS("\x0f\x31\x0f\x01\xf9"));             /* where reading the TSC is a fault */
	CHECK(FITS("\xb8\x0f\x00\x00\x00"));             /* mov $15, %eax */
	CHECK(FITS("\xb8\x00\x0f\xa2\x00"));             /* mov $0xa20f00, %eax */
	CHECK(FITS("\x48\xc7\x04\x24\x0f\x00\x00\x00")); /* movq $15, (%rsp) */
	CHECK(FITS("\x81\xf9\x0f\x02\x00\x00"));         /* cmp $0x20f, %ecx */
	CHECK(FITS("\xba\x0f\x01\x00\x00"));             /* mov $0x10f, %edx */
	CHECK(FITS("\x0f\xb6\x0f\x31\xc0"));             /* movzbl (%rdi), %ecx; xor %eax, %eax */
	CHECK(FITS("\xb8\xcd\x04\x00\x00"));
	CHECK(FITS("\x0f\xae\xf0\x0f\xae\xe8"));         /* MFENCE, LFENCE */
	CHECK(FITS("\x0f\xae\x5d\xf8\x0f\xae\x55\xf8")); /* STMXCSR, LDMXCSR */
	CHECK(FITS("\x0f\xc7\x0f\x0f\xc7\xf0"));         /* CMPXCHG8B, RDRAND */
	CHECK(fits("\xb8\x0f\x31\x00\x00", 5, 0));
	CHECK(fits("\xb8\xcd\x80\x00\x00", 5, 0));
	CHECK(FITS("\xcd\x80\xcd\x21\xcc"));
}

/* As in _dl_runtime_resolve_xsavec, of what is the same on both sides, or is not. */
TEST(states_that_are_known)
{
	CHECK(FITS("\xb8\xee\x00\x00\x00\x31\xd2\x48\x89\x94\x24\x50\x02\x00\x00\x48\x89\x54\x24\x58\x0f\xc7\x64\x24"
		   "\x40"));
	CHECK(FITS("\xb8\xee\x00\x00\x00\x31\xd2\x0f\xae\x6c\x24\x40"));
	CHECK(FITS("\xb8\x07\x00\x00\x00\x31\xd2\x0f\xae\x64\x24\x40"));
	CHECK(!FITS("\xb8\xee\x02\x00\x00\x31\xd2\x0f\xae\x6c\x24\x40"));
	CHECK(!FITS("\xb9\xee\x00\x00\x00\x31\xd2\x0f\xae\x6c\x24\x40"));
	CHECK(!FITS("\xb8\xee\x00\x00\x00\x31\xc2\x0f\xae\x6c\x24\x40"));
	CHECK(!FITS("\xb8\xee\x00\x00\x00\x31\xd2\x48\x89\x95\x24\x50\x02\x00\x0f\xc7\x64\x24\x40"));
}

/* In two pages: neither has it whole. */
TEST(joins)
{
	static const struct {
		const char *first, *second;
		bool fits;
	} rows[] = {
		{"\x0f", "\xa2\x90", false},     {"\x0f", "\x05\x90", true},
		{"\x0f\x01", "\xd0\x90", false}, {"\x0f\x01", "\xf9\x90", true},
		{"\xf3\x0f\xc7", "\xf8", false}, {"\xb8\x00\x00\x00\x0f", "\xa2\x90", true},
		{"\xcd", "\x04\x90", false},     {"\x48", "\x0f\xa2", true /* all of it is in the second */},
	};
	uint8_t next[PAGE_SIZE];

	for (unsigned i = 0; i < ARRAY_LEN(rows); i++) {
		FITS("\x90");
		memset(page + PAGE_SIZE - 64, 0x90, 64);
		memset(next, 0x90, sizeof(next));
		memcpy(page + PAGE_SIZE - strlen(rows[i].first), rows[i].first, strlen(rows[i].first));
		memcpy(next, rows[i].second, strlen(rows[i].second));
		if (direct_scan_join(page, next, &all) != rows[i].fits)
			UNIT_FAIL("row %u", i);
		if (!direct_scan(page, NULL, &all))
			UNIT_FAIL("row %u, the first page", i);
	}
	memset(next, 0, PAGE_SIZE);
	memcpy(next, "\x0f\x00\xc8", 3);
	CHECK(!direct_scan(next, NULL, &all));
}

/* Near its beginning, where the page before says what is the end of an instruction of that, and what is one. */
TEST(behind_another)
{
	uint8_t next[PAGE_SIZE];

	FITS("\x90");
	memset(next, 0x90, sizeof(next));
	memcpy(next, "\x90\x0f\xa2", 3);
	CHECK(!direct_scan(next, NULL, &all));
	CHECK(!direct_scan(next, page, &all));
	memset(page + PAGE_SIZE - 64, 0x90, 64);
	memcpy(page + PAGE_SIZE - 2, "\xb8\x00", 2); /* mov $0xa20f9000, %eax */
	CHECK(direct_scan(next, page, &all));
	CHECK(!direct_scan(next, NULL, &all));
	memcpy(next + 3, "\x0f\xa2", 2); /* and CPUID */
	CHECK(!direct_scan(next, page, &all));
}

/* Whoever executes the copy from `at` on comes to a trap there, or to an instruction of the page, with no trap in it.
 */
static bool is_true_at(const uint8_t *copy, unsigned at)
{
	unsigned len = x86_length(page + at, PAGE_SIZE - at);

	return copy[at] == 0xf4 || !memcmp(copy + at, page + at, at + len > PAGE_SIZE ? PAGE_SIZE - at : len);
}

static unsigned untrue(const uint8_t *copy)
{
	unsigned n = 0;

	for (unsigned at = 0; at < PAGE_SIZE; at++)
		n += !is_true_at(copy, at);
	return n;
}

TEST(traps)
{
	uint8_t copy[PAGE_SIZE];

	CHECK(!FITS("\x48\x0f\xa2\xb8\x0f\xa2\x00\x00"));
	CHECK(direct_trap(copy, page, NULL, &all));
	CHECK_EQ(copy[1999], 0x90);
	CHECK_EQ(copy[2000], 0xf4); /* the prefix */
	CHECK_EQ(copy[2001], 0xf4);
	CHECK_EQ(copy[2002], 0xa2);
	CHECK_EQ(copy[2004], 0x0f); /* in the middle of an instruction */
	CHECK_EQ(untrue(copy), 0);
	/* MOV to an address in it: who begins at its opcode would have the second as a part of that. */
	CHECK(!FITS("\x0f\xa2\x90\x90\x0f\xa2"));
	CHECK(direct_trap(copy, page, NULL, &all));
	CHECK_EQ(copy[2001], 0xf4);
	CHECK_EQ(copy[2002], 0x90);
	CHECK_EQ(untrue(copy), 0);
	/* So near the beginning that what comes from the page before would end in it. */
	CHECK(!FITS("\x0f\xa2"));
	memcpy(page + 15, "\x90\x0f\xa2", 3);
	CHECK(direct_trap(copy, page, NULL, &all));
	memcpy(page + 13, "\x90\x0f\xa2", 3);
	CHECK(!direct_trap(copy, page, NULL, &all));
	/* Anything, with CPUID in it everywhere. */
	for (unsigned i = 0; i < 20; i++) {
		uint64_t x = i + 1;
		for (unsigned k = 0; k < PAGE_SIZE; k++) {
			x = x * 6364136223846793005 + 1442695040888963407;
			page[k] = (uint8_t)(x >> 56);
		}
		for (unsigned k = 100; k + 1 < PAGE_SIZE; k += 200 - 7 * i)
			memcpy(page + k, "\x0f\xa2", 2);
		direct_trap(copy, page, NULL, &all);
		CHECK_EQ(untrue(copy), 0);
	}
}

static bool breaks(const void *code, size_t len, uint16_t at[HOST_SPACE_BREAKS])
{
	if (fits(code, len, ALL))
		UNIT_FAIL("not sensitive");
	return direct_breaks(at, page, NULL, &all);
}

TEST(where_breakpoints_are)
{
	static const struct {
		const char *code;
		uint16_t at[HOST_SPACE_BREAKS]; /* behind 2000; none: there are too many, or they would not stop */
	} rows[] = {
		{"\x90\x0f\xa2\x90", {1}},
		{"\x48\x0f\xa2\x90", {1, 0xffff}},               /* with REX */
		{"\x66\xf3\x48\x0f\xc7\xf8", {3, 2, 1, 0xffff}}, /* RDPID with REX and more */
		{"\x89\xf0\x0f\xa2\x90", {2}},                   /* mov %esi, %eax, of which F0 is no prefix */
		{"\x90\xf0\x0f\xa2", {2}},                       /* LOCK: undefined */
		{"\x90\x0f\xa2\x0f\x01\xd0\x0f\xa2\x0f\x01\xe0", {1, 3, 6, 8}},
		{"\x90\x0f\xa2\x0f\x01\xd0\x0f\xa2\x0f\x01\xe0\x0f\xa2", {}},
		{"\x8e\xd2\x0f\xa2", {}},     /* mov %edx, %ss */
		{"\x8e\x14\x24\x0f\xa2", {}}, /* mov (%rsp), %ss */
		{"\x8e\xc2\x0f\xa2", {2}},    /* mov %edx, %es */
	};

	for (unsigned i = 0; i < ARRAY_LEN(rows); i++) {
		uint16_t at[HOST_SPACE_BREAKS];
		size_t len = strlen(rows[i].code);
		if (breaks(rows[i].code, len, at) != (rows[i].at[0] != 0))
			UNIT_FAIL("row %u", i);
		for (unsigned n = 0; n < HOST_SPACE_BREAKS && rows[i].at[0]; n++) {
			uint16_t want = rows[i].at[n] == 0xffff ? 2000 : rows[i].at[n] ? 2000 + rows[i].at[n] : 0;
			if (at[n] != want)
				UNIT_FAIL("row %u: %u is %u", i, n, at[n]);
		}
	}
}

TEST(no_breakpoint_before_the_page)
{
	uint16_t at[HOST_SPACE_BREAKS];

	CHECK(!FITS("\x0f\xa2"));
	memset(page, 0x90, 3000);
	memcpy(page, "\x0f\xa2", 2);
	CHECK(!direct_breaks(at, page, NULL, &all));
	memcpy(page, "\x48\x0f\xa2", 3);
	CHECK(!direct_breaks(at, page, NULL, &all));
	memcpy(page, "\x90\x0f\xa2", 3);
	CHECK(direct_breaks(at, page, NULL, &all));
	CHECK_EQ(at[0], 1);
}

/* They are found again when they are given back, and there are so many and no more. */
TEST(copies)
{
	struct direct_host host = {.faults = ALL | HOST_SPACE_CODE_FAULTS};
	struct direct_copies c;
	unsigned number;

	REQUIRE(direct_copies_init(&c));
	CHECK(!FITS("\x0f\xa2"));
	CHECK_EQ(direct_copy_make(&c, page, NULL, &all), 0); /* not on such a host */
	for (unsigned i = 1; i <= DIRECT_COPIES; i++)
		CHECK_EQ(direct_copy_make(&c, page, NULL, &host), i);
	CHECK_EQ(direct_copy_make(&c, page, NULL, &host), 0);
	direct_copy_release(&c, 0); /* that of a page that has none */
	CHECK_EQ(direct_copy_make(&c, page, NULL, &host), 0);
	direct_copy_release(&c, 130);
	CHECK_EQ(number = direct_copy_make(&c, page, NULL, &host), 130);
	CHECK_EQ(c.pages.at[direct_copy_offset(number) + 2000], 0xf4);
	direct_copies_destroy(&c);
}

/* The C library's code: lengths are Zydis', and most pages can run. */
static struct {
	unsigned pages, fit, insns, wrong;
} seen;

static void look_at(const uint8_t *code, size_t len)
{
	ZydisDecoder decoder;
	ZydisDecodedInstruction zi;

	ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
	for (size_t at = 0; at + 15 < len; at += zi.length, seen.insns++) {
		zi.length = 1;
		if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, NULL, code + at, 15, &zi)))
			continue;
		seen.wrong += x86_length(code + at, 15) != zi.length;
	}
	for (size_t at = 0; at + PAGE_SIZE <= len; at += PAGE_SIZE, seen.pages++)
		seen.fit += direct_scan(code + at, at ? code + at - PAGE_SIZE : NULL, &all);
}

static int on_object(struct dl_phdr_info *info, size_t size, void *arg)
{
	for (unsigned i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		if (p->p_type == PT_LOAD && p->p_flags & PF_X && info->dlpi_name[0])
			look_at((const uint8_t *)(uintptr_t)(info->dlpi_addr + p->p_vaddr), p->p_filesz);
	}
	(void)arg;
	return 0;
}

TEST(real_code)
{
	dl_iterate_phdr(on_object, NULL);
	printf("# %u of %u pages; %u of %u instructions of another length\n", seen.fit, seen.pages, seen.wrong,
	       seen.insns);
	CHECK(seen.pages > 100);
	CHECK(seen.fit * 10 > seen.pages * 9);
	CHECK(seen.wrong * 10000 <= seen.insns);
}

UNIT_MAIN()
