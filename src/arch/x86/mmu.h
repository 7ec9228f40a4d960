/*
 * Linear addresses: segmentation checks, the page walk, and access to guest memory through both (SDM Vol. 3A ch. 3-4).
 * All of this is compiled for general registers only and calls nothing of the C library, so that engines can call it
 * while the guest's vector state is still in the host's vector registers.
 */
#ifndef DOPPEL_ARCH_X86_MMU_H
#define DOPPEL_ARCH_X86_MMU_H

#include "arch/x86/state.h"

enum {
	ACC_READ = 0,
	ACC_WRITE = 1,
	ACC_EXEC = 2,
	ACC_USER = 4,     /* as CPL 3 would; without it a supervisor access, explicit: SMAP applies unless RFLAGS.AC */
	ACC_IMPLICIT = 8, /* supervisor access by the processor itself (GDT, IDT, TSS): SMAP applies whatever AC says;
			     what is not RAM reads as ones and drops writes, so it never exits */
};

struct x86_mapping {
	uint64_t gpa;       /* of the byte asked for */
	uint8_t page_shift; /* 12, 21, 30 (22 for 32-bit PSE); 12 when paging is off */
	bool writable;      /* a write of the same kind would succeed with no change to the tables (dirty bit is set) */
	bool user;          /* U/S set at all levels */
	bool global;
	bool nx;
};

/*
 * Walks the guest's tables for one byte at `va`, sets accessed and (for a write) dirty bits, and fills `out`.
 * V_INJECT: cpu->exc holds the #PF, with its error code and cr2 (a non-canonical address is x86_linear's to refuse).
 */
enum verdict mmu_translate(struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_mapping *out);
/*
 * The same without consequences: true only if the access would be allowed and all accessed bits are set already, so
 * that a TLB could hold the mapping now.
 */
bool mmu_probe(const struct x86_cpu *cpu, uint64_t va, unsigned access, struct x86_mapping *out);

/*
 * Reads or writes `len` (1..64) bytes at linear address `va`. A range that crosses a page is checked whole before
 * anything is changed. An address that is not RAM makes V_EXIT (EXIT_MMIO): a read is answered by running the
 * instruction again (cpu->mmio replays what has been answered); for a write cpu->exit is filled and the caller goes on
 * to retire the instruction, then returns V_EXIT. `retired` says so: mem_write returns V_EXIT with the write pending.
 */
enum verdict mem_read(struct x86_cpu *cpu, uint64_t va, void *dst, unsigned len, unsigned access);
enum verdict mem_write(struct x86_cpu *cpu, uint64_t va, const void *src, unsigned len, unsigned access);
/* x86_cpu_ops.pointer; NULL as well while a data breakpoint may be armed. */
uint8_t *mem_pointer(struct x86_cpu *cpu, uint64_t va, unsigned len, unsigned access);
/* Checks only: would the access fault? Touches accessed and dirty bits as it would. */
enum verdict mem_probe(struct x86_cpu *cpu, uint64_t va, unsigned len, unsigned access);
/* Reads instruction bytes: up to `len` (at most 15) at rip; returns how many before the first fault, verdict in *v. */
unsigned mem_fetch(struct x86_cpu *cpu, uint64_t linear, uint8_t *dst, unsigned len, enum verdict *v);

/*
 * Segment `seg` + `off` → linear address, with the limit, type, presence and canonicality checks of the current mode
 * for `len` bytes. V_INJECT: #GP(0), or #SS(0) for the stack segment.
 */
enum verdict x86_linear(struct x86_cpu *cpu, enum x86_seg seg, uint64_t off, unsigned len, unsigned access,
			uint64_t *linear);

/* ACC_USER when the processor runs at CPL 3, else 0. */
static inline unsigned x86_access_mode(const struct x86_cpu *cpu)
{
	return cpu->cpl == 3 ? ACC_USER : 0;
}

#endif
