/* Numbers that assembly and C share. */
#ifndef GUEST_LAYOUT_H
#define GUEST_LAYOUT_H

#define CPUS_MAX 8
#define STACK_SHIFT 14
#define TRAMPOLINE 0x8000

/* Those of Linux: user code can only run directly where an engine's host has the same. */
#define SEL_CODE32K 0x08
#define SEL_CODE64 0x10
#define SEL_DATA 0x18
#define SEL_USER_CODE32 0x23
#define SEL_USER_DATA 0x2b
#define SEL_USER_CODE64 0x33
#define SEL_CODE16 0x40
#define SEL_DATA16 0x48
#define SEL_TEST 0x50 /* six entries for tests */
#define SEL_TSS 0x80
#define GDT_ENTRIES (16 + 2 * CPUS_MAX)

#define CR0_DEFAULT 0x80050033 /* PG AM WP NE ET MP PE */
#define CR4_DEFAULT 0x6a0      /* OSXMMEXCPT OSFXSR PGE PAE */
#define EFER_DEFAULT 0x901     /* NXE LME SCE */
#define EFER_SCE 1

#endif
