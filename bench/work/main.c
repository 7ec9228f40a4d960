/*
 * Runs the workloads in order and times each by CLOCK_MONOTONIC, from before its process is forked until it has ended:
 *
 *	work [-r REPETITIONS] [-s PERCENT] [-w PERCENT] [NAME...]
 *
 * Prints "bench-begin NAME" and "bench NAME SECONDS", or "bench-fail NAME STATUS". -s scales the amount of work; -w
 *runs each workload first, untimed, with that much of its work (0: not at all), so that files are in memory.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "work.h"

/* Seconds after which a workload is given up. */
#define LIMIT 200

#define DIR "/opt/bench"
#define DATA "head -c $(($N * 65536)) " DIR "/data"

struct work {
	const char *name;
	/* How much is done at a scale of 100%: 0.2 to 1 s of a processor of 2024. */
	unsigned long n;
	work_fn *fn;
	/* Shell commands, where it is not C: what is to be done, $N times, and before that, untimed, what prepares it.
	 */
	const char *command, *prepare;
	int on_request; /* only where it is named: how much two CPUs do more than one */
};

static const struct work table[] = {
	{"lua", 225, NULL, "lua5.4 " DIR "/work.lua $N", NULL, 0},
	{"perl", 75, NULL, "perl " DIR "/work.pl $N", NULL, 0},
	{"python", 90, NULL, "python3 " DIR "/work.py $N", NULL, 0},
	{"gzip", 120, NULL, "gzip -c /tmp/data >/dev/null", DATA " >/tmp/data", 0},
	{"xz", 20, NULL, "xz -T1 -c /tmp/data >/dev/null", DATA " >/tmp/data", 0},
	{"sha256", 20, NULL,
	 "i=0; while [ $i -lt $N ]; do set -- \"$@\" /tmp/data; i=$((i + 1)); done; sha256sum \"$@\" >/dev/null",
	 "cat " DIR "/data >/tmp/data", 0},
	{"float", 12000, work_float, NULL, NULL, 0},
	{"matrix-sse", 10000, work_matrix_sse, NULL, NULL, 0},
	{"matrix-avx", 4000, work_matrix_avx, NULL, NULL, 0},
	{"sort", 120, NULL, "LC_ALL=C sort --parallel=1 -S 200M /tmp/data >/dev/null",
	 DATA " | tr ' ' '\\n' >/tmp/data", 0},
	{"gcc", 3, NULL,
	 "cd " DIR "/lua && set -- lstrlib.c lgc.c lcode.c ltable.c lparser.c lapi.c ldebug.c lvm.c && "
	 "i=0; while [ $i -lt $N ]; do gcc -O2 -c $1 -o /tmp/out.o || exit 1; i=$((i + 1)); shift; done",
	 NULL, 0},
	{"fork-exec", 400, work_fork_exec, NULL, NULL, 0},
	{"bytes", 800000, work_bytes, NULL, NULL, 0},
	{"getpid", 3000000, work_getpid, NULL, NULL, 0},
	{"pipe", 60000, work_pipe, NULL, NULL, 0},
	{"futex", 60000, work_futex, NULL, NULL, 0},
	{"mmap", 40, work_mmap, NULL, NULL, 0},
	{"find", 8, NULL, "i=0; while [ $i -lt $N ]; do find /usr -type f -size +1k >/dev/null; i=$((i + 1)); done",
	 NULL, 0},
	{"tar", 15, NULL,
	 "i=0; while [ $i -lt $N ]; do tar -C /usr/share -cf - perl | cat >/dev/null; i=$((i + 1)); done", NULL, 0},
	{"disk-seq-read", 25000, work_seq_read, NULL, NULL, 0},
	{"disk-seq-write", 25000, work_seq_write, NULL, NULL, 0},
	{"disk-rand-read", 25000, work_rand_read, NULL, NULL, 0},
	{"disk-rand-write", 25000, work_rand_write, NULL, NULL, 0},
	{"net-send", 24000, work_net_send, NULL, NULL, 0},
	{"net-receive", 24000, work_net_receive, NULL, NULL, 0},
	{"net-ask", 15000, work_net_ask, NULL, NULL, 0},
	{"net-answer", 15000, work_net_answer, NULL, NULL, 0},
	{"loops", 250, work_loops, NULL, NULL, 1},
	{"make-j2", 12, NULL,
	 "[ $N -ge 8 ] || N=8; mkdir -p /tmp/out && " DIR "/make -s -j2 -C " DIR "/lua -f " DIR
	 "/tree.mk N=$N && rm -r /tmp/out",
	 NULL, 1},
};

void die(const char *what)
{
	fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void in_child(const struct work *w, const char *command, unsigned long n)
{
	char number[24];

	setpgid(0, 0);
	alarm(LIMIT);
	if (!command) {
		w->fn(n);
		exit(0);
	}
	snprintf(number, sizeof(number), "%lu", n);
	setenv("N", number, 1);
	execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	_exit(127);
}

/* Runs the workload, or `command` instead where that is not NULL. Returns the status of wait, 0 when all went well. */
static int run(const struct work *w, const char *command, unsigned long n)
{
	int status;
	pid_t child = fork();

	if (!child)
		in_child(w, command ? command : w->command, n);
	if (child < 0 || waitpid(child, &status, 0) != child)
		die("fork");
	/* Only a workload that was cut short leaves anyone behind. */
	if (status)
		kill(-child, SIGKILL);
	return status;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static unsigned long amount(const struct work *w, unsigned long percent)
{
	unsigned long n = w->n * percent / 100;

	return n ? n : 1;
}

static int prepare(const struct work *w, unsigned long n)
{
	return w->prepare ? run(w, w->prepare, n) : 0;
}

static void measure(const struct work *w, int repetitions, unsigned long scale, unsigned long warm)
{
	int status = 0;
	unsigned long n = amount(w, scale);

	if (warm) {
		unsigned long less = amount(w, scale * warm / 100);

		status = prepare(w, less);
		status = status ? status : run(w, NULL, less);
	}
	status = status ? status : prepare(w, n);
	for (int i = 0; !status && i < repetitions; i++) {
		double start;

		printf("bench-begin %s\n", w->name);
		start = now();
		status = run(w, NULL, n);
		if (!status)
			printf("bench %s %.6f\n", w->name, now() - start);
	}
	if (status)
		printf("bench-fail %s %d\n", w->name, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	unlink("/tmp/data");
}

static int wanted(const struct work *w, char **names)
{
	if (!*names)
		return !w->on_request;
	for (; *names; names++)
		if (!strcmp(*names, w->name))
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	int repetitions = 1;
	unsigned long scale = 100, warm = 10;
	int option;

	while ((option = getopt(argc, argv, "r:s:w:")) != -1) {
		switch (option) {
		case 'r':
			repetitions = atoi(optarg);
			break;
		case 's':
			scale = strtoul(optarg, NULL, 10);
			break;
		case 'w':
			warm = strtoul(optarg, NULL, 10);
			break;
		default:
			return 2;
		}
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (wanted(&table[i], argv + optind))
			measure(&table[i], repetitions, scale, warm);
	printf("bench-end\n");
	return 0;
}
