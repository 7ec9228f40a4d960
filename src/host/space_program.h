/* What space_program.S and space.c agree on. Also read by the assembler. */
#ifndef DOPPEL_HOST_SPACE_PROGRAM_H
#define DOPPEL_HOST_SPACE_PROGRAM_H

/* Its descriptors. */
#define SPACE_FD_ASKED 0   /* the reading end of a pipe: a byte for each process that is wanted */
#define SPACE_FD_MEMORY 1  /* what is to be shown */
#define SPACE_FD_COPIES 2  /* what is to be executed in its place */
#define SPACE_FD_CONTROL 3 /* a page for each process */
#define SPACE_FD_PROGRAM 4

#define SPACE_TOP 0x7ffffffff000 /* of all addresses that a process has */
#define SPACE_OURS 8192          /* the program, where it stays, and its control page behind it */

/* The first process's control page. */
#define CONTROL_READY 0 /* not 0: it waits to be asked */
#define CONTROL_PID 4   /* the answer: a process, or an error number, negated */
#define CONTROL_BYTE 8

/*
 * The others': changes, each of these fields of 64 bits, RIGHTS and COPY of 32, the last of length 0; how many bytes
 * those before it are; whether it stops then; and, if not, what it goes on with.
 */
#define CHANGE_AT 0
#define CHANGE_LEN 8
#define CHANGE_RIGHTS 16
#define CHANGE_COPY 20 /* SPACE_FD_COPIES for SPACE_FD_MEMORY: 1 for 0 */
#define CHANGE_OFFSET 24
#define CHANGE_SIZE 32
#define CHANGE_FLAGS 0x8011 /* MAP_SHARED | MAP_FIXED | MAP_POPULATE */
#define CONTROL_END 3904
#define CONTROL_STOP 3912
#define CONTROL_RFLAGS 3920
#define CONTROL_RIP 3928
#define CONTROL_REGS 3936 /* 16 of them, in x86 encoding order */

#define SPACE_FILTERS_SIZE 768

#endif
