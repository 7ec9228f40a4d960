/*
 * Runs a fuzz target without libFuzzer, where there is no clang: fuzz_NAME [--seconds N] [--seed S] [FILE|FOLDER...]
 *
 * Each file, and each file of a folder, is an input; what follows, for N seconds, are mutations of them and random
 * bytes. An input that ends the process is kept as fuzz_NAME.input beside the program; given as FILE it runs again.
 */
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define INPUT_MAX 4096
#define INPUTS 4096

struct sample {
	uint8_t *data;
	size_t len;
};

static struct sample corpus[INPUTS];
static unsigned count;
static const char *name, *phase = "corpus";
static char kept[4096];
static const uint8_t *now_data;
static size_t now_len;
static uint64_t rng;

static void keep_input(void)
{
	int fd = open(kept, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

	if (fd < 0 || write(fd, now_data, now_len) != (ssize_t)now_len)
		return;
	close(fd);
	printf("FAIL %s/%s: the input is kept in %s\n", name, phase, kept);
	fflush(stdout);
}

static void on_end(int sig, siginfo_t *info, void *context)
{
	const ucontext_t *uc = context;

	fprintf(stderr, "fuzz: %s at %#llx, address %p, stack %#llx\n", strsignal(sig), uc->uc_mcontext.gregs[REG_RIP],
		info->si_addr, uc->uc_mcontext.gregs[REG_RSP]);
	keep_input();
	signal(sig, SIG_DFL);
	raise(sig);
}

/* A sanitizer that has found something does not raise a signal. */
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

static uint64_t next(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng * 0x2545f4914f6cdd1dull >> 8;
}

static size_t below(size_t n)
{
	return n ? next() % n : 0;
}

/* A copy of just that length, so that a sanitizer sees a read beyond it. */
static void run(const uint8_t *data, size_t len)
{
	uint8_t *exact = malloc(len ? len : 1);

	if (!exact)
		abort();
	memcpy(exact, data, len);
	now_data = exact;
	now_len = len;
	LLVMFuzzerTestOneInput(exact, len);
	free(exact);
}

static void add_file(const char *path)
{
	FILE *f = fopen(path, "rb");
	uint8_t *data = malloc(INPUT_MAX);

	if (!f || !data) {
		printf("FAIL %s: cannot read %s\n", name, path);
		exit(1);
	}
	if (count < INPUTS)
		corpus[count++] = (struct sample){data, fread(data, 1, INPUT_MAX, f)};
	fclose(f);
}

static int is_plain(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

static void add(const char *path)
{
	struct dirent **entry;
	struct stat st;
	char file[4096];
	int n;

	if (stat(path, &st) || !S_ISDIR(st.st_mode)) {
		add_file(path);
		return;
	}
	n = scandir(path, &entry, is_plain, alphasort);
	for (int i = 0; i < n; i++) {
		snprintf(file, sizeof(file), "%s/%s", path, entry[i]->d_name);
		add_file(file);
		free(entry[i]);
	}
	if (n >= 0)
		free(entry);
}

/* Values at which checks of lengths and sums break. */
static uint64_t edge(void)
{
	static const uint64_t values[] = {0,          1,          0x7f,       0xff,        0xfff,     0x1000,
					  0xffff,     0xfffff,    0x100000,   0x200000,    MiB(40),   INT32_MAX,
					  0x80000000, UINT32_MAX, UINT32_MAX, 0x100000000, INT64_MAX, UINT64_MAX};

	switch (next() % 4) {
	case 0:
		return next();
	case 1:
		return values[below(ARRAY_LEN(values))] - next() % 16;
	default:
		return values[below(ARRAY_LEN(values))];
	}
}

static size_t mutate(uint8_t *d, size_t len)
{
	uint8_t piece[64];
	size_t at = below(len), n = 1 + below(sizeof(piece)), width = (size_t)1 << next() % 4;
	const struct sample *other;
	uint64_t v;

	switch (next() % 8) {
	case 0:
		if (len)
			d[at] ^= 1u << next() % 8;
		break;
	case 1:
	case 2: /* Fields tend to be aligned. */
		at = next() % 2 ? at & ~(width - 1) : at;
		v = edge();
		if (at + width <= len)
			memcpy(d + at, &v, width);
		break;
	case 3: /* bytes come in */
		n = MIN(n, INPUT_MAX - len);
		memmove(d + at + n, d + at, len - at);
		for (size_t i = 0; i < n; i++)
			d[at + i] = (uint8_t)next();
		len += n;
		break;
	case 4: /* bytes go */
		n = MIN(n, len - at);
		memmove(d + at, d + at + n, len - at - n);
		len -= n;
		break;
	case 5: /* bytes of another place */
		n = MIN(n, len - at);
		memcpy(piece, d + at, n);
		at = below(len - n + 1);
		memcpy(d + at, piece, n);
		break;
	case 6: /* the end of another input */
		if (count) {
			other = &corpus[below(count)];
			at = below(MIN(len, other->len));
			memcpy(d + at, other->data + at, other->len - at);
			len = other->len;
		}
		break;
	case 7:
		if (next() % 4 == 0)
			len = at;
		break;
	}
	return len;
}

static void run_random(void)
{
	static uint8_t data[INPUT_MAX];
	size_t len;

	if (count && next() % 8) {
		const struct sample *s = &corpus[below(count)];
		len = s->len;
		memcpy(data, s->data, len);
		for (unsigned n = 1 + (unsigned)below(6); n; n--)
			len = mutate(data, len);
	} else {
		len = below(next() % 4 ? 256 : 2048);
		for (size_t i = 0; i < len; i++)
			data[i] = (uint8_t)next();
	}
	run(data, len);
}

static double seconds_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void prepare(const char *program)
{
	static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
	struct sigaction sa = {.sa_sigaction = on_end, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	name = strrchr(program, '/') ? strrchr(program, '/') + 1 : program;
	snprintf(kept, sizeof(kept), "%s.input", program);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		sigaction(signals[i], &sa, NULL);
	if (__sanitizer_set_death_callback)
		__sanitizer_set_death_callback(keep_input);
}

int main(int argc, char **argv)
{
	uint64_t rounds = 0, seed = (uint64_t)time(NULL);
	double seconds = 0, end;

	prepare(argv[0]);
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--seconds") && i + 1 < argc)
			seconds = atof(argv[++i]);
		else if (!strcmp(argv[i], "--seed") && i + 1 < argc)
			seed = strtoull(argv[++i], NULL, 0);
		else
			add(argv[i]);
	}
	for (unsigned i = 0; i < count; i++)
		run(corpus[i].data, corpus[i].len);
	printf("ok %s/corpus: %u inputs\n", name, count);
	if (seconds <= 0)
		return 0;
	phase = "random";
	rng = seed * 0x9e3779b97f4a7c15ull | 1;
	printf("  seed %" PRIu64 "\n", seed);
	for (end = seconds_now() + seconds; seconds_now() < end; rounds++)
		run_random();
	printf("ok %s/random: %" PRIu64 " inputs\n", name, rounds);
	return 0;
}
