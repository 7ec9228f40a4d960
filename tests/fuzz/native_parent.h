#ifndef DOPPEL_TESTS_FUZZ_NATIVE_PARENT_H
#define DOPPEL_TESTS_FUZZ_NATIVE_PARENT_H

#include "native.h"

void native_start(void);
/* False: the child came to no result, and is replaced. */
bool native_ask(const struct diff_case *c, struct diff_result *r);

#endif
