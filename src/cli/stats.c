/* --stats: where the time went, on standard error. */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdio.h>

static void seconds(const char *what, uint64_t ns)
{
	fprintf(stderr, "  %-34s %12.3f s\n", what, (double)ns / 1e9);
}

static void count(const char *what, uint64_t n)
{
	fprintf(stderr, "  %-34s %14" PRIu64 "\n", what, n);
}

void print_stats(doppel_vm *vm)
{
	doppel_stats s = {0};

	doppel_vm_stats(vm, &s, sizeof(s));
	fputs("doppel: statistics, summed over the virtual CPUs\n time\n", stderr);
	seconds("in translated code", s.time_translated);
	seconds("in user code run directly", s.time_direct);
	seconds("in the translator", s.time_translator);
	seconds("in the monitor and the slow path", s.time_monitor);
	seconds("halted or waiting to be started", s.time_halted);
	fputs(" exits to the monitor\n", stderr);
	count("port I/O", s.exits_io);
	count("device memory", s.exits_mmio);
	count("local APIC registers (MSR, CR8)", s.exits_msr + s.exits_cr8);
	count("halts", s.exits_halt);
	count("kicks and interrupt windows", s.exits_interrupted);
	count("interrupts delivered", s.interrupts);
	fputs(" translation\n", stderr);
	count("blocks translated", s.blocks);
	count("bytes of guest code", s.guest_bytes);
	count("bytes of host code", s.host_bytes);
	count("code cache flushed", s.cache_flushes);
	count("pages invalidated", s.invalidations);
	fputs(" execution\n", stderr);
	count("TLB misses", s.tlb_misses);
	count("  user: read", s.tlb_misses_user_read);
	count("  user: write", s.tlb_misses_user_write);
	count("  kernel: read", s.tlb_misses_kernel_read);
	count("  kernel: write", s.tlb_misses_kernel_write);
	count("TLB flushes", s.tlb_flushes);
	count("window faults", s.window_faults);
	count("  pages shown", s.window_shown);
	count("  pages hidden", s.window_hidden);
	count("  instructions that gave up", s.window_given_up);
	count("stops of user code run directly", s.direct_stops);
	count("  system calls", s.direct_calls);
	count("  page faults", s.direct_faults);
	count("  other exceptions", s.direct_exceptions);
	count("  kicks", s.direct_kicks);
	count("  address spaces refused", s.direct_refused);
	count("  bursts of page faults and system calls", s.direct_bursts);
	count("blocks looked up", s.dispatches);
	count("helper calls", s.helper_calls);
	count("instructions by the slow path", s.single_steps);
	count("writes to the local APIC without an exit", s.at_once);
}
