/*
 * Hostile kernel files against the loaders. With libFuzzer:
 *	clang -g -O1 -fsanitize=fuzzer,address,undefined -DFUZZ_ENGINE -D_GNU_SOURCE -Isrc tests/fuzz/fuzz_boot.c \
 *		src/boot/[a-z]*.c src/bus/memory.c src/base/[a-z]*.c src/host/[a-z]*.c -o fuzz_boot
 * Without, it is a test that mutates small kernels for some seconds: fuzz_boot [SEED [ROUNDS]].
 *
 * A loader may refuse anything. What it accepts must leave the processor at an entry, with tables in place.
 */
#include "../unit/boot_files.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define MEMORY MiB(40)

static struct guest_memory mem;

static void run(const uint8_t *data, size_t len)
{
	struct x86_cpu cpu = {0};
	struct error err = {{0}};
	uint64_t gdt;
	struct boot_config config = {
		.mem = &mem,
		.cpu = &cpu,
		.kernel = {"kernel", data, len},
		.initrd = {"initrd", data, MIN(len, 100)},
		.cmdline = "console=ttyS0",
		.rsdp = 0xe0000,
		.regions = 1,
		.region = {{0x100000, MEMORY - 0x100000, BOOT_RAM}},
	};

	if (boot_load(&config, &err)) {
		ENSURE(cpu.cr0 & CR0_PE);
		ENSURE(cpu.rip < GiB(4));
		ENSURE(guest_memory_read(&mem, cpu.gdtr.base + cpu.seg[SEG_CS].sel, &gdt, sizeof(gdt)) && gdt);
	} else {
		ENSURE(err.text[0]);
	}
}

static void start(void)
{
	struct error err;

	if (!mem.mapping && !guest_memory_init(&mem, MEMORY, &err)) {
		fprintf(stderr, "%s\n", err.text);
		exit(2);
	}
}

#ifdef FUZZ_ENGINE

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	start();
	run(data, len);
	return 0;
}

#else

static uint64_t state;

/* xorshift64* */
static uint64_t next(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1d;
}

static void make(struct test_file *f, unsigned kind)
{
	switch (kind) {
	case 0:
		make_bzimage(f);
		break;
	case 1:
	case 2:
		make_pvh(f, kind == 1);
		break;
	case 3:
		make_elf(f, false);
		add_multiboot(f, 0x300, 3);
		break;
	default:
		make_elf(f, false);
		add_multiboot(f, 0x300, 0x10003);
	}
}

/* Values at which checks of lengths and sums break. */
static uint64_t edge(void)
{
	static const uint64_t values[] = {0,
					  1,
					  0x7f,
					  0xfff,
					  0x1000,
					  0xfffff,
					  0x100000,
					  0x200000,
					  MEMORY - 1,
					  MEMORY,
					  INT32_MAX,
					  0x80000000,
					  UINT32_MAX,
					  0x100000000,
					  INT64_MAX,
					  UINT64_MAX,
					  UINT64_MAX - 0xfff};

	return next() % 4 ? values[next() % ARRAY_LEN(values)] : next();
}

static void mutate(struct test_file *f)
{
	for (unsigned n = next() % 6; n; n--) {
		unsigned width = 1u << next() % 4;
		/* Headers are at the front; most of them within 0x280 bytes, notes and multiboot's further on. */
		size_t at = next() % (next() % 2 ? 0x280 : 0x600);
		uint64_t v = edge();
		if (next() % 2)
			at &= ~(size_t)3;
		memcpy(f->data + at, &v, width);
	}
	if (next() % 8 == 0)
		f->len = next() % (f->len + 1);
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 1,
		 rounds = argc > 2 ? strtoull(argv[2], NULL, 0) : 200000;
	static struct test_file file;

	printf("seed %" PRIu64 ", %" PRIu64 " rounds\n", seed, rounds);
	start();
	for (uint64_t i = 0; i < rounds; i++) {
		uint8_t *exact;
		state = seed * 0x9e3779b97f4a7c15 + i * 0xd1342543de82ef95 + 1;
		next();
		make(&file, next() % 5);
		mutate(&file);
		/* A copy of just that length, so that a sanitizer sees a read beyond it. */
		exact = malloc(file.len);
		if (file.len && exact)
			memcpy(exact, file.data, file.len);
		run(exact, exact ? file.len : 0);
		free(exact);
	}
	printf("ok fuzz_boot\n");
	return 0;
}

#endif
