/*
 * Included with MULTIPLY, a function's name, VECTOR, a vector type, and ATTRIBUTES: c = a * b, by rows and 32 columns
 * at a time. Those are as many registers as the vectors of one row's part take: eight of SSE, four of AVX.
 */
#define LANES (sizeof(VECTOR) / sizeof(float))
#define PARTS (32 / LANES)

ATTRIBUTES static void MULTIPLY(struct matrices *m)
{
	for (int i = 0; i < SIDE; i++) {
		for (int j = 0; j < SIDE; j += 32) {
			VECTOR sum[PARTS] = {0};

			for (int k = 0; k < SIDE; k++) {
				const VECTOR *b = (const VECTOR *)&m->b[k][j];

#pragma GCC unroll 8
				for (unsigned p = 0; p < PARTS; p++)
					sum[p] += m->a[i][k] * b[p];
			}
			for (unsigned p = 0; p < PARTS; p++)
				((VECTOR *)&m->c[i][j])[p] = sum[p];
		}
	}
}

#undef LANES
#undef PARTS
#undef MULTIPLY
#undef VECTOR
#undef ATTRIBUTES
