/*
 * Faults of the host's processor while it runs translated code: the engine claims them by program counter. The handler
 * runs on an alternate stack with SS_AUTODISARM, because the stack pointer is the guest's in translated code.
 */
#ifndef DOPPEL_HOST_GUEST_SIGNALS_H
#define DOPPEL_HOST_GUEST_SIGNALS_H

#include "base/base.h"

enum host_fault {
	HOST_FAULT_DIVIDE,
	HOST_FAULT_FPU,
	HOST_FAULT_SIMD,
	HOST_FAULT_MEMORY,
	HOST_FAULT_PROTECTION,
	HOST_FAULT_ILLEGAL,
	HOST_FAULT_BUS,
	HOST_FAULT_TRAP
};

/*
 * The interrupted registers: gpr in x86 encoding order (RAX 0 … R15 15), rip, rflags. `address` is the faulting address
 * of HOST_FAULT_MEMORY. A handler that claims the fault changes them and returns true; execution goes on from there,
 * vector registers as they were.
 */
struct host_fault_context {
	enum host_fault fault;
	uint64_t address;
	bool write; /* HOST_FAULT_MEMORY: the access was a write */
	uint64_t gpr[16], rip, rflags;
};

typedef bool (*host_fault_handler)(struct host_fault_context *ctx);

/* Once per process; an unclaimed fault ends the process as it would have. */
bool host_guest_signals_init(host_fault_handler handler);
/* Per thread that runs translated code: its alternate stack. */
bool host_guest_signals_thread_enter(void);
void host_guest_signals_thread_leave(void);

#endif
