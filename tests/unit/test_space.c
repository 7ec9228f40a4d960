/* Address spaces apart: what runs in one reaches what it is shown, and nothing of ours or of the system's. */
#include "host/host.h"
#include "host/shared.h"
#include "host/space.h"
#include "host/thread.h"
#include "unit/unit.h"

#include <dirent.h>
#include <unistd.h>

#define CODE 0x10000ull
#define DATA 0x20000ull
#define STACK 0x30000ull

static struct host_shared mem; /* a page of each, in this order */
static struct host_shared copies;
static struct host_spaces *from;
static struct host_space *space;
static struct host_space_state state;

static bool change(uint64_t at, uint64_t len, uint64_t rights, uint64_t offset)
{
	const struct host_space_change c = {.at = at, .len = len, .rights = rights, .offset = offset};

	return host_space_change(space, &c, 1);
}

/* The three pages, and nothing else. */
static bool show_all(void)
{
	uint64_t place = host_spaces_place(from), behind = place + HOST_SPACE_OURS;
	const struct host_space_change all[] = {
		{.len = place},
		{.at = behind, .len = HOST_SPACE_TOP - behind},
		{.at = CODE, .len = PAGE_SIZE, .rights = HOST_SPACE_READ | HOST_SPACE_EXEC},
		{.at = DATA, .len = PAGE_SIZE, .rights = HOST_SPACE_READ | HOST_SPACE_WRITE, .offset = PAGE_SIZE},
		{.at = STACK, .len = PAGE_SIZE, .rights = HOST_SPACE_READ | HOST_SPACE_WRITE, .offset = 2 * PAGE_SIZE},
	};

	return host_space_change(space, all, ARRAY_LEN(all));
}

/* A host that lets nobody trace (kernel.yama.ptrace_scope) is one without. */
static bool set_up(const void *code, size_t len)
{
	REQUIRE(host_shared_alloc(&mem, MiB(1)));
	REQUIRE(host_shared_alloc(&copies, MiB(1)));
	from = host_spaces_create(&mem, &copies, 2);
	REQUIRE(from);
	for (unsigned i = 0; i < 1000 && !(space = host_space_create(from)); i++)
		host_sleep_ns(1000000);
	if (!space) {
		printf("# this host has no spaces to give\n");
		return false;
	}
	REQUIRE(show_all());
	memcpy(mem.at, code, len);
	state = (struct host_space_state){
		.rip = CODE, .rflags = 0x202, .sel = {0, HOST_SPACE_CS, HOST_SPACE_SS, 0, 0, 0}};
	state.gpr[4] = STACK + PAGE_SIZE;
	return true;
}
#define SET_UP(code) set_up(code, sizeof(code) - 1)

static void tear_down(void)
{
	host_spaces_destroy(from);
	host_shared_free(&mem);
	host_shared_free(&copies);
}

static enum host_space_stop run(uint64_t *address)
{
	uint64_t ignored;

	return host_space_run(space, &state, address ? address : &ignored);
}

/* A thread of its own for each, as each space ends with its thread. */
#define SPACE_TEST(id)                                              \
	static void id(void);                                       \
	static void *id##_thread(void *arg)                         \
	{                                                           \
		if (!setjmp(unit_out))                              \
			id();                                       \
		return arg;                                         \
	}                                                           \
	TEST(id##_)                                                 \
	{                                                           \
		struct host_thread t;                               \
		if (!host_thread_start(&t, #id, id##_thread, NULL)) \
			UNIT_FAIL("no thread");                     \
		else                                                \
			host_thread_join(&t);                       \
		if (from)                                           \
			tear_down();                                \
		from = NULL;                                        \
	}                                                           \
	static void id(void)

/* movq (%rdi), %rax; addq $1, %rax; movq %rax, (%rdi); ud2 */
SPACE_TEST(run_and_fault)
{
	uint64_t address, value = 41;

	if (!SET_UP("\x48\x8b\x07\x48\x83\xc0\x01\x48\x89\x07\x0f\x0b"))
		return;
	memcpy(mem.at + PAGE_SIZE + 8, &value, 8);
	state.gpr[7] = DATA + 8;
	state.gpr[15] = 0xfeed;
	CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
	CHECK_EQ(state.rip, CODE + 10);
	CHECK_EQ(state.gpr[0], 42);
	CHECK_EQ(state.gpr[15], 0xfeed);
	memcpy(&value, mem.at + PAGE_SIZE + 8, 8);
	CHECK_EQ(value, 42);
	CHECK(host_space_time_ns(space) > 0);
	CHECK(host_space_system_ns(space) > 0);
	const struct host_space_costs *c = host_space_costs(space);
	printf("# a stop takes %llu ns, a page %llu, a page fault %llu\n", (unsigned long long)c->stop,
	       (unsigned long long)c->show, (unsigned long long)c->page_fault);
	CHECK(c->stop && c->show && c->page_fault);

	/* Read only, and then not there. */
	CHECK(change(DATA, PAGE_SIZE, HOST_SPACE_READ, PAGE_SIZE));
	state.rip = CODE;
	CHECK_EQ(run(&address), HOST_SPACE_FAULT);
	CHECK_EQ(address, DATA + 8);
	CHECK_EQ(state.rip, CODE + 7);
	CHECK(change(DATA, PAGE_SIZE, 0, 0));
	state.rip = CODE;
	CHECK_EQ(run(&address), HOST_SPACE_FAULT);
	CHECK_EQ(state.rip, CODE);

	/* Data is not code. */
	CHECK(change(DATA, PAGE_SIZE, HOST_SPACE_READ | HOST_SPACE_WRITE, PAGE_SIZE));
	state.rip = DATA;
	CHECK_EQ(run(&address), HOST_SPACE_FAULT);
	CHECK_EQ(address, DATA);
}

/* Nothing but what is shown and the two pages: each page of the address space's likely places, and the kernel's half.
 */
SPACE_TEST(nothing_else_is_there)
{
	static const uint64_t likely[] = {0,
					  0x400000,
					  0x10000000,
					  0x555555554000,
					  0x7ffff7ffd000,
					  0x7fffffffe000,
					  0x7ffffffff000,
					  0xffffffff81000000,
					  0xffff888000000000};

	if (!SET_UP("\x48\x8b\x07\x0f\x0b"))
		return;
	for (unsigned i = 0; i < ARRAY_LEN(likely); i++) {
		state.rip = CODE;
		state.gpr[7] = likely[i];
		CHECK_EQ(run(NULL), HOST_SPACE_FAULT);
		CHECK_EQ(state.rip, CODE);
	}
	/* Linux' own page, which it would carry out itself (vsyscall), though not where it has none. */
	state.rip = 0xffffffffff600000;
	state.gpr[4] = STACK + 8;
	CHECK(run(NULL) != HOST_SPACE_LOST);
	CHECK_EQ(state.rip, 0xffffffffff600000);
	CHECK_EQ(state.gpr[4], STACK + 8);
	const void *ours[] = {&mem, mem.at, (void *)(uintptr_t)run, __builtin_frame_address(0), stdout};
	for (unsigned i = 0; i < ARRAY_LEN(ours); i++) {
		state.rip = CODE;
		state.gpr[7] = (uint64_t)(uintptr_t)ours[i];
		CHECK_EQ(run(NULL), HOST_SPACE_FAULT);
	}
}

/* syscall; int $0x80; int3; int1 */
SPACE_TEST(no_system_call)
{
	if (!SET_UP("\x0f\x05\xcd\x80\xcc\xf1"))
		return;
	state.gpr[0] = 39; /* getpid */
	state.gpr[1] = 5;
	CHECK_EQ(run(NULL), HOST_SPACE_CALL);
	CHECK_EQ(state.rip, CODE);
	CHECK_EQ(state.gpr[0], 39);
	state.gpr[0] = 231; /* exit_group: not here */
	CHECK_EQ(run(NULL), HOST_SPACE_CALL);
	state.rip = CODE + 2;
	state.gpr[0] = 1;
	enum host_space_stop stop = run(NULL); /* a kernel without 32-bit calls raises #GP */
	CHECK(stop == HOST_SPACE_CALL || stop == HOST_SPACE_EXCEPTION);
	CHECK_EQ(state.rip, CODE + 2);
	CHECK_EQ(state.gpr[0], 1);
	state.rip = CODE + 4;
	CHECK_EQ(run(NULL), HOST_SPACE_INT3);
	CHECK_EQ(state.rip, CODE + 5);
	CHECK_EQ(run(NULL), HOST_SPACE_INT1);
	CHECK(state.rip == CODE + 6 || state.rip == CODE + 5);

	/* Nor by way of our own page: what calls there, from where it may, are calls of its own. */
	for (unsigned at = 0; at < PAGE_SIZE; at += 16) {
		state.rip = host_spaces_place(from) + at;
		state.gpr[0] = 231;
		CHECK(run(NULL) != HOST_SPACE_LOST);
	}
	state.rip = CODE;
	state.gpr[0] = 39;
	CHECK_EQ(run(NULL), HOST_SPACE_CALL);
}

/* jmp . */
SPACE_TEST(kicked)
{
	if (!SET_UP("\xeb\xfe"))
		return;
	host_space_kick(space); /* before it runs */
	CHECK_EQ(run(NULL), HOST_SPACE_KICKED);
	CHECK_EQ(state.rip, CODE);
}

static void *kick_later(void *arg)
{
	host_sleep_ns(20000000);
	host_space_kick(space);
	return arg;
}
SPACE_TEST(kicked_by_another)
{
	struct host_thread t;

	if (!SET_UP("\xeb\xfe"))
		return;
	REQUIRE(host_thread_start(&t, "kick", kick_later, NULL));
	CHECK_EQ(run(NULL), HOST_SPACE_KICKED);
	CHECK_EQ(state.rip, CODE);
	host_thread_join(&t);
}

static _Atomic bool kicks_end;
static _Atomic uint64_t kicks_every; /* ns */

static void *kick_on(void *arg)
{
	while (!kicks_end) {
		host_sleep_ns(kicks_every);
		host_space_kick(space);
	}
	return arg;
}

static void kicks_start(struct host_thread *t, uint64_t every)
{
	kicks_end = false;
	kicks_every = every;
	REQUIRE(host_thread_start(t, "kicks", kick_on, NULL));
}

static void kicks_stop(struct host_thread *t)
{
	kicks_end = true;
	host_thread_join(t);
}

/* int3; ud2: what a kick was quicker than is no news of what runs next. */
SPACE_TEST(kicked_at_a_trap)
{
	struct host_thread t;
	unsigned kicked = 0;

	if (!SET_UP("\xcc\x0f\x0b"))
		return;
	kicks_start(&t, 1000);
	for (unsigned i = 0; i < 100000 && kicked < 200; i++) {
		state.rip = CODE;
		enum host_space_stop stop = run(NULL);
		CHECK(stop == HOST_SPACE_INT3 || stop == HOST_SPACE_KICKED);
		CHECK_EQ(state.rip, stop == HOST_SPACE_INT3 ? CODE + 1 : CODE);
		kicked += stop == HOST_SPACE_KICKED;
		state.rip = CODE + 1;
		stop = run(NULL);
		CHECK(stop == HOST_SPACE_EXCEPTION || stop == HOST_SPACE_KICKED);
		CHECK_EQ(state.rip, CODE + 1);
	}
	CHECK(kicked);
	kicks_stop(&t);
}

/* paddq %xmm0, %xmm1; fldpi; ud2 */
SPACE_TEST(vector_state)
{
	uint8_t image[HOST_SPACE_XSTATE] = {0};
	uint64_t v = 21;

	if (!SET_UP("\x66\x0f\xd4\xc8\xd9\xeb\x0f\x0b"))
		return;
	image[0] = 0x7f; /* FCW 037f, MXCSR 1f80 */
	image[1] = 0x03;
	image[24] = 0x80;
	image[25] = 0x1f;
	image[512] = 7;
	memcpy(image + 160, &v, 8);
	memcpy(image + 176, &v, 8);
	memcpy(image + 576 + 16, &v, 8); /* YMM1's upper half */
	CHECK(host_space_set_xstate(space, image));
	CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
	memset(image, 0xee, sizeof(image));
	CHECK(host_space_get_xstate(space, image));
	memcpy(&v, image + 176, 8);
	CHECK_EQ(v, 42);
	memcpy(&v, image + 32, 8);
	CHECK_EQ(v, 0xc90fdaa22168c235); /* pi */
	memcpy(&v, image + 576 + 16, 8);
	CHECK_EQ(v, 21);
	CHECK_EQ(image[464], 0xee); /* not Linux' business */
}

/* pushfq; orb $1, 1(%rsp); popfq; nop; nop */
SPACE_TEST(single_step)
{
	if (!SET_UP("\x9c\x80\x4c\x24\x01\x01\x9d\x90\x90"))
		return;
	CHECK_EQ(run(NULL), HOST_SPACE_STEPPED);
	CHECK_EQ(state.rip, CODE + 8);
	CHECK_EQ(state.rflags & 0x100, 0x100);
}

/* movq %fs:(0), %rax; movq %gs:(0), %rbx; ud2 */
SPACE_TEST(bases)
{
	if (!SET_UP("\x64\x48\x8b\x04\x25\x00\x00\x00\x00\x65\x48\x8b\x1c\x25\x00\x00\x00\x00\x0f\x0b"))
		return;
	mem.at[PAGE_SIZE] = 11;
	mem.at[PAGE_SIZE + 8] = 22;
	state.fs_base = DATA;
	state.gs_base = DATA + 8;
	CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
	CHECK_EQ(state.gpr[0], 11);
	CHECK_EQ(state.gpr[3], 22);
	CHECK_EQ(state.fs_base, DATA);
}

/* movl (%rdi), %eax; ud2; what is executed in place of a page cannot be read, whatever the state beside it. */
SPACE_TEST(copies_are_not_read)
{
	struct host_space_change copy = {
		.at = CODE, .len = PAGE_SIZE, .rights = HOST_SPACE_EXEC, .copy = 1, .offset = 3 * PAGE_SIZE};
	uint8_t image[HOST_SPACE_XSTATE] = {0};
	uint64_t address;

	if (!SET_UP("\x0f\x0b"))
		return;
	if (!(host_space_faults(space) & HOST_SPACE_CODE_FAULTS)) {
		printf("# this host lets all code be read\n");
		return;
	}
	memcpy(copies.at + 3 * PAGE_SIZE, "\x8b\x07\x0f\x0b", 4);
	for (unsigned i = 0; i < 3; i++) {
		CHECK(host_space_change(space, &copy, 1));
		state.rip = CODE;
		state.gpr[7] = CODE + 8;
		CHECK_EQ(run(&address), HOST_SPACE_FAULT);
		CHECK_EQ(address, CODE + 8);
		CHECK_EQ(state.rip, CODE);
		mem.at[PAGE_SIZE] = 9;
		state.gpr[7] = DATA;
		CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
		CHECK_EQ(state.rip, CODE + 2);
		CHECK_EQ(state.gpr[0], 9);
		CHECK(host_space_get_xstate(space, image));
		image[32]++; /* so that there is something to set */
		CHECK(host_space_set_xstate(space, image));
	}
	/* Nor written, nor shown as anything else. */
	copy.rights = HOST_SPACE_READ | HOST_SPACE_WRITE;
	CHECK(host_space_change(space, &copy, 1));
	CHECK_EQ(run(NULL), HOST_SPACE_UNSHOWN);
	/* And the page itself is, where it is. */
	CHECK(change(CODE, PAGE_SIZE, HOST_SPACE_READ | HOST_SPACE_EXEC, 0));
	state.rip = CODE;
	CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
	CHECK_EQ(state.rip, CODE);
}

/* cpuid; nop; cpuid; nop; ud2, which stop where they begin, in any order, as long as that is wanted. */
SPACE_TEST(breakpoints)
{
	uint64_t at[HOST_SPACE_BREAKS] = {CODE + 3, 0, 0, CODE};
	const uint64_t none[HOST_SPACE_BREAKS] = {0};

	if (!SET_UP("\x0f\xa2\x90\x0f\xa2\x90\x0f\x0b"))
		return;
	if (!host_space_can_break(space)) {
		printf("# this host has no breakpoints\n");
		return;
	}
	for (unsigned i = 0; i < 2; i++) {
		CHECK(host_space_break(space, at));
		state.rip = CODE;
		state.gpr[0] = 7;
		CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
		CHECK_EQ(state.rip, CODE);
		state.rip = CODE + 2;
		CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
		CHECK_EQ(state.rip, CODE + 3);
		CHECK_EQ(state.gpr[0], 7);
		state.rip = CODE + 5;
		CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
		CHECK_EQ(state.rip, CODE + 6);
		at[i + 1] = at[i]; /* another register has it */
		at[i] = 0;
	}
	CHECK(host_space_break(space, none));
	state.rip = CODE;
	CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
	CHECK_EQ(state.rip, CODE + 6);
}

/* A list that cannot be done says so, and the space lives on. */
SPACE_TEST(impossible_change)
{
	if (!SET_UP("\x0f\x0b"))
		return;
	CHECK(change(0x40000, PAGE_SIZE, HOST_SPACE_READ, 123)); /* no page's offset */
	CHECK_EQ(run(NULL), HOST_SPACE_UNSHOWN);
	CHECK_EQ(state.rip, CODE);
	CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
	CHECK(change(0x40000, PAGE_SIZE, HOST_SPACE_READ, 123));
	CHECK(!change(0x40000, PAGE_SIZE, HOST_SPACE_READ, 0));
	CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
	CHECK_EQ(state.rip, CODE);
}

static void have_changes(void)
{
	CHECK(change(DATA, PAGE_SIZE, HOST_SPACE_READ | HOST_SPACE_WRITE, PAGE_SIZE));
}

/* lea 8(%rax,%rbx), %rcx; sbb %rdx, %rdx; ud2: all registers and flags arrive where changes come first. */
SPACE_TEST(changes_on_the_way)
{
	if (!SET_UP("\x48\x8d\x4c\x18\x08\x48\x19\xd2\x0f\x0b"))
		return;
	for (unsigned i = 0; i < 16; i++)
		state.gpr[i] = 0x1000 * (i + 1);
	state.rflags = 0x203;
	have_changes();
	CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
	CHECK_EQ(state.rip, CODE + 8);
	for (unsigned i = 0; i < 16; i++)
		CHECK_EQ(state.gpr[i], i == 1 ? 0x5008 : i == 2 ? UINT64_MAX : 0x1000 * (i + 1));
}

/* syscall; movq (%rdi), %rax; nop */
SPACE_TEST(no_system_call_behind_changes)
{
	if (!SET_UP("\x0f\x05\x48\x8b\x07"))
		return;
	state.gpr[0] = 231;
	have_changes();
	CHECK_EQ(run(NULL), HOST_SPACE_CALL);
	CHECK_EQ(state.rip, CODE);
	CHECK_EQ(state.gpr[0], 231);
	have_changes();
	state.rip = 0xffffffffff600000;
	state.gpr[4] = STACK + 8;
	CHECK(run(NULL) != HOST_SPACE_LOST);
	CHECK_EQ(state.rip, 0xffffffffff600000);
	CHECK_EQ(state.gpr[4], STACK + 8);
	have_changes();
	state.rip = 0x8000000000000000; /* nor anywhere else */
	CHECK(run(NULL) != HOST_SPACE_UNSHOWN);
	CHECK_EQ(state.rip, 0x8000000000000000);
}

/* syscall; ud2: a number like that of Linux' own errors, after which calls are made again (ERESTARTSYS) */
SPACE_TEST(no_call_is_made_again)
{
	if (!SET_UP("\x0f\x05\x0f\x0b"))
		return;
	for (unsigned i = 0; i < 2; i++) {
		if (i)
			have_changes();
		state.rip = CODE;
		state.gpr[0] = (uint64_t)-512;
		CHECK_EQ(run(NULL), HOST_SPACE_CALL);
		CHECK_EQ(state.rip, CODE);
		CHECK_EQ(state.gpr[0], (uint64_t)-512);
		state.rip = CODE + 2;
		CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
		CHECK_EQ(state.rip, CODE + 2);
	}
}

/* movl (%rdi), %eax; ud2 */
SPACE_TEST(kicked_with_changes)
{
	if (!SET_UP("\x8b\x07\x0f\x0b"))
		return;
	for (unsigned i = 0; i < 100; i++) {
		CHECK(change(DATA, PAGE_SIZE, HOST_SPACE_READ, (i % 2 + 1) * PAGE_SIZE));
		mem.at[PAGE_SIZE] = 1;
		mem.at[2 * PAGE_SIZE] = 2;
		state.rip = CODE;
		state.gpr[0] = 77;
		state.gpr[7] = DATA;
		host_space_kick(space);
		CHECK_EQ(run(NULL), HOST_SPACE_KICKED);
		CHECK_EQ(state.rip, CODE);
		CHECK_EQ(state.gpr[0], 77);
		CHECK_EQ(run(NULL), HOST_SPACE_EXCEPTION);
		CHECK_EQ(state.gpr[0], i % 2 + 1);
	}
	struct host_thread t;
	kicks_start(&t, 1000);
	for (unsigned i = 0; i < 10000; i++) {
		have_changes();
		state.rip = CODE + 2;
		enum host_space_stop stop = run(NULL);
		CHECK(stop == HOST_SPACE_EXCEPTION || stop == HOST_SPACE_KICKED);
		CHECK_EQ(state.rip, CODE + 2);
	}
	kicks_stop(&t);
}

#define STRAY 0x50000ull /* where code that is not ours would like to see something */

/* What a system call that makes a change finds in its registers, or a list of such that is not ours, or ours. */
static void want(uint64_t number, uint64_t at, uint64_t len, uint64_t list, bool copy)
{
	uint64_t rights = copy ? HOST_SPACE_EXEC : HOST_SPACE_READ;
	const uint64_t entry[] = {at, len, rights | (uint64_t)copy << 32, 0, 0, 0, 0, 0};

	memcpy(mem.at + PAGE_SIZE, entry, sizeof(entry));
	state.gpr[0] = number;
	state.gpr[3] = list;
	state.gpr[7] = at;
	state.gpr[6] = len;
	state.gpr[2] = rights;
	state.gpr[10] = 0x8011;
	state.gpr[8] = 1 + copy;
	state.gpr[9] = 0;
}

static enum host_space_stop reads(uint64_t at)
{
	enum host_space_stop stop;

	do {
		state.rip = CODE + 3;
		state.gpr[7] = at;
	} while ((stop = run(NULL)) == HOST_SPACE_KICKED);
	return stop;
}

static enum host_space_stop executes(uint64_t at)
{
	enum host_space_stop stop;

	do
		state.rip = at;
	while ((stop = run(NULL)) == HOST_SPACE_KICKED);
	return stop;
}

/* jmp *%r15; movq (%rdi), %rax; ud2 */
SPACE_TEST(no_change_of_its_own)
{
	struct host_thread t;
	unsigned unshown = 0;

	if (!SET_UP("\x41\xff\xe7\x48\x8b\x07\x0f\x0b"))
		return;
	uint64_t place = host_spaces_place(from);
	memcpy(copies.at, "\x0f\x0b", 2);
	const struct {
		uint64_t number, at, len;
		bool copy;
	} wanted[] = {{9, STRAY, PAGE_SIZE, false},
		      {9, STRAY, PAGE_SIZE, true},
		      {11, DATA, PAGE_SIZE, false},
		      {11, place, 2 * PAGE_SIZE, false},
		      {9, place, PAGE_SIZE, false},
		      {11, 0, HOST_SPACE_TOP, false},
		      {11, place - GiB(4), GiB(4) + PAGE_SIZE, false},
		      {231, 0, 0, false},
		      {56, 17, 0, false}};
	const uint64_t lists[] = {DATA, place + PAGE_SIZE, place + PAGE_SIZE + 32, place + PAGE_SIZE + 8};

	kicks_start(&t, 300000); /* some of it goes round in circles */
	for (unsigned i = 0; i < ARRAY_LEN(wanted) * ARRAY_LEN(lists); i++) {
		for (unsigned at = 0; at < PAGE_SIZE / 2; at++) {
			want(wanted[i / 4].number, wanted[i / 4].at, wanted[i / 4].len, lists[i % 4],
			     wanted[i / 4].copy);
			state.rip = CODE;
			state.gpr[15] = place + at;
			have_changes();
			enum host_space_stop stop = run(NULL);
			CHECK(stop != HOST_SPACE_LOST);
			unshown += stop == HOST_SPACE_UNSHOWN;
			if (stop == HOST_SPACE_UNSHOWN)
				CHECK(show_all());
			CHECK_EQ(reads(STRAY), HOST_SPACE_FAULT);
			CHECK_EQ(executes(STRAY), HOST_SPACE_FAULT);
		}
		CHECK_EQ(reads(DATA), HOST_SPACE_EXCEPTION);
	}
	CHECK(unshown);
	kicks_stop(&t);
}

/* jmp *%r15; movl (%rdi), %eax; ud2: what makes the change that is in the list, but of the memory in place of the
 * copies. */
SPACE_TEST(no_memory_for_a_copy)
{
	const struct host_space_change copy = {
		.at = CODE, .len = PAGE_SIZE, .rights = HOST_SPACE_EXEC, .copy = 1, .offset = PAGE_SIZE};
	struct host_thread t;

	if (!SET_UP("\x0f\x0b"))
		return;
	memcpy(copies.at + PAGE_SIZE, "\x41\xff\xe7\x8b\x07\x0f\x0b", 7);
	CHECK(host_space_change(space, &copy, 1));
	kicks_start(&t, 300000);
	for (unsigned at = 0; at < PAGE_SIZE / 2; at++) {
		CHECK(host_space_change(space, &copy, 1));
		want(9, CODE, PAGE_SIZE, 0, true);
		state.gpr[3] = host_spaces_place(from) + PAGE_SIZE;
		state.gpr[8] = 1;
		state.gpr[9] = PAGE_SIZE;
		state.rip = CODE;
		state.gpr[15] = host_spaces_place(from) + at;
		memcpy(mem.at + PAGE_SIZE, "\x41\xff\xe7\x0f\x0b", 5);
		if (run(NULL) == HOST_SPACE_UNSHOWN) {
			CHECK(show_all());
			CHECK(host_space_change(space, &copy, 1));
		}
		state.gpr[7] = STACK;
		CHECK_EQ(executes(CODE + 3), HOST_SPACE_EXCEPTION);
		CHECK_EQ(state.rip, CODE + 5);
	}
	kicks_stop(&t);
}

/* What Linux says behind `word`, into `text`; NULL: nothing, or there is no such process. */
static const char *status_text(int pid, const char *word, char *text, size_t size)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	FILE *f = fopen(path, "r");
	size_t len = f ? fread(text, 1, size - 1, f) : 0;
	if (f)
		fclose(f);
	text[len] = 0;
	const char *at = strstr(text, word);
	return at ? at + strlen(word) : NULL;
}

/* The number there, or 0. */
static int status_of(int pid, const char *word)
{
	char text[1024];
	const char *at = status_text(pid, word, text, sizeof(text));

	return at ? atoi(at) : 0;
}

/* One that has ended, and whose parent, init by then, has not asked for it yet, does not run any more. */
static bool runs(int pid)
{
	char text[1024];
	const char *at = status_text(pid, "\nState:\t", text, sizeof(text));

	return at && *at != 'Z' && *at != 'X';
}

/* Those that come from this one: the first process and the spaces. */
static unsigned processes(int *list, unsigned most)
{
	DIR *dir = opendir("/proc");
	unsigned n = 0;

	for (struct dirent *e; dir && n < most && (e = readdir(dir));) {
		int pid = atoi(e->d_name), parent = pid ? status_of(pid, "\nPPid:\t") : 0;
		if (parent && (parent == getpid() || status_of(parent, "\nPPid:\t") == getpid()))
			list[n++] = pid;
	}
	if (dir)
		closedir(dir);
	return n;
}

static int before[16];
static unsigned count_before;

SPACE_TEST(are_processes)
{
	if (SET_UP("\x0f\x0b")) {
		count_before = processes(before, ARRAY_LEN(before));
		CHECK(count_before >= 2);
	}
}

/* After the thread and what they come from there are none left. */
TEST(nobody_stays)
{
	for (unsigned i = 0; i < count_before; i++) {
		for (unsigned wait = 0; wait < 1000 && runs(before[i]); wait++)
			host_sleep_ns(1000000);
		CHECK(!runs(before[i]));
	}
}

UNIT_MAIN()
