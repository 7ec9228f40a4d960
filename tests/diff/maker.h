/* What the parts of the generator share: encode.c, arrange.c, generate.c. */
#ifndef DOPPEL_TESTS_DIFF_MAKER_H
#define DOPPEL_TESTS_DIFF_MAKER_H

#include "diff.h"

struct maker {
	struct rng r;
	struct diff_case *c;
	const struct x86_cpuid_model *model;
	uint8_t *p;      /* next byte */
	uint16_t bases;  /* registers that may be a base */
	bool plain_form; /* base and displacement only: for blocks */
};

/* One instance of the template at m->p, up to ModRM and SIB; displacement and immediates are what follows. */
void encode(struct maker *m, const struct template *t);

/* Gives registers and memory values with which the case's instruction does something; false when it is not fit to be
 * compared. */
bool arrange(struct maker *m);

#endif
