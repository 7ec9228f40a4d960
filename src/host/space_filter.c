/*
 * What system calls the processes of space.h may make (seccomp(2)). While they run what is not ours they are traced so
 * that they make none, as a rule. Where they change what is shown on the way (space_program.S) they are not: then this
 * is what stands between that code and Linux.
 */
#include "host/space_internal.h"
#include "host/space_program.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>

#define MOST 48 /* instructions of a filter */

struct filter {
	struct sock_filter insn[MOST];
	unsigned count;
};

_Static_assert(sizeof(struct sock_fprog) == 16 && sizeof(struct sock_filter) == 8, "as in Linux");

#define FIELD(name) offsetof(struct seccomp_data, name)
#define ARG(n) (FIELD(args) + sizeof(uint64_t) * (n))
#define HIGH 4 /* the upper half of a field is there */

static void add(struct filter *f, struct sock_filter insn)
{
	ENSURE(f->count < MOST);
	f->insn[f->count++] = insn;
}

static void load(struct filter *f, size_t at)
{
	add(f, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)at));
}

static void answer(struct filter *f, uint32_t what)
{
	add(f, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, what));
}

/* Jumps over so many instructions where what was loaded last is so, or is not. */
static void skip_if(struct filter *f, uint64_t value, uint8_t equal, uint8_t other)
{
	add(f, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)value, equal, other));
}

/* It must be so, or must not. */
static void need(struct filter *f, uint64_t value)
{
	skip_if(f, value, 1, 0);
	answer(f, SECCOMP_RET_TRAP);
}

static void refuse(struct filter *f, uint64_t value)
{
	skip_if(f, value, 0, 1);
	answer(f, SECCOMP_RET_TRAP);
}

static void allow(struct filter *f, uint64_t value)
{
	skip_if(f, value, 0, 1);
	answer(f, SECCOMP_RET_ALLOW);
}

/* Only the page of the program's makes any, of the 64-bit kind. For Linux's vsyscall page there is no other way. */
static void first(struct filter *f, uint64_t place)
{
	static const uint32_t calls[] = {SYS_mmap, SYS_munmap, SYS_pause, SYS_rt_sigprocmask, SYS_prctl,
					 SYS_read, SYS_clone,  SYS_futex, SYS_exit_group,     SYS_seccomp};
	load(f, FIELD(arch));
	need(f, AUDIT_ARCH_X86_64);
	load(f, FIELD(instruction_pointer) + HIGH);
	need(f, place >> 32);
	load(f, FIELD(instruction_pointer));
	add(f, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, (uint32_t)PAGE_MASK));
	need(f, place);
	load(f, FIELD(nr));
	for (unsigned i = 0; i < ARRAY_LEN(calls); i++)
		allow(f, calls[i]);
	answer(f, SECCOMP_RET_TRAP);
}

/*
 * What is shorter than 4 GiB reaches the place only from the same 4 GiB or those before, where nobody is shown anything
 * (host_space_may_show). What is longer is all that there is on one side of it.
 */
static void range(struct filter *f, uint64_t place)
{
	uint64_t behind = place + HOST_SPACE_OURS;
	load(f, ARG(1) + HIGH);
	skip_if(f, 0, 0, 6);
	load(f, ARG(0) + HIGH);
	refuse(f, place >> 32);
	refuse(f, (place >> 32) - 1);
	answer(f, SECCOMP_RET_ALLOW);
	load(f, ARG(0) + HIGH);
	skip_if(f, 0, 6, 0);
	need(f, behind >> 32);
	load(f, ARG(0));
	need(f, behind);
	answer(f, SECCOMP_RET_ALLOW);
	load(f, ARG(0));
	need(f, 0);
	load(f, ARG(1) + HIGH);
	need(f, place >> 32);
	load(f, ARG(1));
	need(f, place);
	answer(f, SECCOMP_RET_ALLOW);
}

/* Only the call that makes changes is left, of what is shown, and not of what is ours. Copies are for execution alone.
 */
static void second(struct filter *f, uint64_t place)
{
	load(f, FIELD(instruction_pointer));
	need(f, place + (uint64_t)(host_space_changed - host_space_program));
	load(f, ARG(3));
	need(f, CHANGE_FLAGS);
	load(f, ARG(4));
	skip_if(f, SPACE_FD_MEMORY, 5, 0);
	need(f, SPACE_FD_COPIES);
	load(f, ARG(2));
	need(f, HOST_SPACE_EXEC);
	load(f, FIELD(nr));
	skip_if(f, SYS_munmap, 2, 0);
	need(f, SYS_mmap);
	range(f, place);
}

#define FILTERS ((size_t)(host_space_filters - host_space_program))
#define CODE (FILTERS + 2 * sizeof(struct sock_fprog))

static size_t write_one(uint8_t *image, uint64_t place, size_t header, size_t code, const struct filter *f)
{
	size_t size = f->count * sizeof(f->insn[0]);
	uint16_t count = (uint16_t)f->count;
	uint64_t address = place + code;
	ENSURE(code + size <= FILTERS + SPACE_FILTERS_SIZE);
	memcpy(image + header + offsetof(struct sock_fprog, len), &count, sizeof(count));
	memcpy(image + header + offsetof(struct sock_fprog, filter), &address, sizeof(address));
	memcpy(image + code, f->insn, size);
	return code + size;
}

void space_filters_write(uint8_t *image, uint64_t place)
{
	struct filter a = {.count = 0}, b = {.count = 0};
	first(&a, place);
	second(&b, place);
	size_t end = write_one(image, place, FILTERS, CODE, &a);
	write_one(image, place, FILTERS + sizeof(struct sock_fprog), end, &b);
}

uint64_t space_filter_second(uint64_t place)
{
	return place + FILTERS + sizeof(struct sock_fprog);
}
