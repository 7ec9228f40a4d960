/* The engine itself. */
#include "diff.h"
static bool start(const struct x86_cpuid_model *model) { return false; }
static void run(const struct diff_case *c, struct diff_result *r) {}
const struct backend backend_translate = {"translate", start, run};
