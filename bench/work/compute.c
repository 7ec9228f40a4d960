/* Floating point and vectors: loops that stay in user code. */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "work.h"

static volatile double sink;

static double escape(double cr, double ci)
{
	double zr = 0, zi = 0;
	int i;

	for (i = 0; i < 200 && zr * zr + zi * zi < 4; i++) {
		double t = zr * zr - zi * zi + cr;

		zi = 2 * zr * zi + ci;
		zr = t;
	}
	return i + sqrt(zr * zr + zi * zi) / 4;
}

/* n rows of 256 points of the Mandelbrot set, in doubles one by one. */
void work_float(unsigned long n)
{
	double sum = 0;

	for (unsigned long y = 0; y < n; y++)
		for (int x = 0; x < 256; x++)
			sum += escape(-2 + x * (3.0 / 256), -1.25 + (double)(y % 256) * (2.5 / 256));
	sink = sum;
}

#define SIDE 96

struct matrices {
	float a[SIDE][SIDE], b[SIDE][SIDE], c[SIDE][SIDE];
} __attribute__((aligned(64)));

typedef float sse_vector __attribute__((vector_size(16), may_alias));
typedef float avx_vector __attribute__((vector_size(32), may_alias));

#define MULTIPLY multiply_sse
#define VECTOR sse_vector
#define ATTRIBUTES __attribute__((noinline))
#include "matrix.h"

#define MULTIPLY multiply_avx
#define VECTOR avx_vector
#define ATTRIBUTES __attribute__((noinline, target("avx2,fma")))
#include "matrix.h"

static struct matrices *matrices(void)
{
	struct matrices *m = aligned_alloc(64, sizeof(*m));

	if (!m)
		die("matrices");
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++) {
			m->a[i][j] = (float)(i + j) / SIDE;
			m->b[i][j] = (float)(i - j) / SIDE;
		}
	return m;
}

static void products(unsigned long n, void (*multiply)(struct matrices *))
{
	struct matrices *m = matrices();

	while (n--) {
		multiply(m);
		sink = m->c[n % SIDE][3];
	}
}

void work_matrix_sse(unsigned long n)
{
	products(n, multiply_sse);
}

void work_matrix_avx(unsigned long n)
{
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
		errno = ENOTSUP;
		die("AVX2 and FMA");
	}
	products(n, multiply_avx);
}

/* Two processes that have nothing to do with each other, each with n times a million steps of a generator of numbers.
 */
void work_loops(unsigned long n)
{
	int status;

	for (int i = 0; i < 2; i++) {
		pid_t child = fork();

		if (child < 0)
			die("fork");
		if (!child) {
			volatile uint64_t end;
			uint64_t x = 88172645463325252u + (uint64_t)i;

			for (unsigned long step = 0; step < n * 1000000; step++) {
				x ^= x << 13;
				x ^= x >> 7;
				x ^= x << 17;
			}
			end = x;
			_exit(end ? 0 : 1);
		}
	}
	while (wait(&status) > 0)
		if (status)
			die("loop");
}
