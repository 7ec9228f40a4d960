#ifndef DOPPEL_ENGINE_TRANSLATE_RUN_H
#define DOPPEL_ENGINE_TRANSLATE_RUN_H

#include "engine/translate/vcpu.h"
#include "host/guest_signals.h"

/* engine_ops.run. */
enum x86_exit_kind run(struct tr_vcpu *v);

/* A fault of the host in translated code is the guest's: the slow path runs the instruction and raises what is due. */
bool run_claim_fault(struct host_fault_context *ctx);

#endif
