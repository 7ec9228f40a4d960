/*
 * The whole program of the processes of space.h: an ELF file of one page, which uses no stack and no memory but its
 * control page. The first process forks when it is asked to. The others do nothing by themselves: who traces them sets
 * their registers, either to run code of theirs, or to have one of the routines below carried out, which end at INT3.
 */
#include "host/space_program.h"

#include <asm/unistd.h>

#define LOAD 0x10000000 /* where it begins to run */
#define AT(label) (label - host_space_program)

	.macro	invoke number
	mov	$\number, %eax
	syscall
	.endm

	.macro	export label
	.globl	\label
	.hidden	\label
\label:
	.endm

	.section .rodata
	.balign	16
	export	host_space_program
	/* The ELF header, then the program headers (elf(5)). */
	.byte	0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
	.short	2, 62
	.long	1
	.quad	LOAD + AT(start), 64, 0
	.long	0
	.short	64, 56, 2, 64, 0, 0
	.long	1, 5
	.quad	0, LOAD, LOAD, AT(host_space_program_end), AT(host_space_program_end), 4096
	.long	0x6474e551, 6 /* a stack that cannot be executed */
	.quad	0, 0, 0, 0, 0, 16

start:
	/* The program once more, where it stays, and its control page, to which RBX points from now on. */
	mov	host_space_place(%rip), %rdi
	lea	4096(%rdi), %rbx
	mov	$4096, %esi
	mov	$5, %edx /* PROT_READ | PROT_EXEC */
	mov	$0x12, %r10d /* MAP_PRIVATE | MAP_FIXED */
	mov	$SPACE_FD_PROGRAM, %r8d
	xor	%r9d, %r9d
	invoke	__NR_mmap
	mov	%rbx, %rdi
	mov	$3, %edx /* PROT_READ | PROT_WRITE */
	mov	$0x11, %r10d /* MAP_SHARED | MAP_FIXED */
	mov	$SPACE_FD_CONTROL, %r8d
	invoke	__NR_mmap
	cmp	%rbx, %rax
	jne	leave
	lea	AT(settle) - 4096(%rbx), %rax
	jmp	*%rax

settle: /* nothing else stays */
	xor	%edi, %edi
	lea	-4096(%rbx), %rsi
	invoke	__NR_munmap
	test	%rax, %rax
	jnz	leave
	lea	4096(%rbx), %rdi
	movabs	$SPACE_TOP, %rsi
	sub	%rdi, %rsi
	invoke	__NR_munmap
	test	%rax, %rax
	jnz	leave
	mov	$38, %edi /* PR_SET_NO_NEW_PRIVS: a filter may be set */
	mov	$1, %esi
	xor	%edx, %edx
	xor	%r10d, %r10d
	xor	%r8d, %r8d
	invoke	__NR_prctl
	mov	$26, %edi /* PR_SET_TSC: PR_TSC_SIGSEGV, where the processor has it */
	mov	$2, %esi
	invoke	__NR_prctl
	mov	$15, %edi /* PR_SET_NAME */
	lea	name(%rip), %rsi
	invoke	__NR_prctl
	mov	$17, %edi /* SIGCHLD is ignored: those who end are gone */
	lea	ignore(%rip), %rsi
	mov	$8, %r10d
	invoke	__NR_rt_sigaction
	mov	$1, %edi /* SECCOMP_SET_MODE_FILTER */
	xor	%esi, %esi
	lea	host_space_filters(%rip), %rdx
	invoke	__NR_seccomp
	test	%rax, %rax
	jnz	leave
	movl	$1, CONTROL_READY(%rbx)

wait:
	mov	$SPACE_FD_ASKED, %edi
	lea	CONTROL_BYTE(%rbx), %rsi
	mov	$1, %edx
	invoke	__NR_read
	cmp	$1, %rax
	jne	leave /* nobody is left to ask */
	mov	$17, %edi /* a fork; SIGCHLD at its end */
	xor	%esi, %esi
	xor	%edx, %edx
	xor	%r10d, %r10d
	xor	%r8d, %r8d
	invoke	__NR_clone
	test	%eax, %eax
	jz	forked
	mov	%eax, CONTROL_PID(%rbx)
	lea	CONTROL_PID(%rbx), %rdi
	mov	$1, %esi /* FUTEX_WAKE */
	mov	$1, %edx
	invoke	__NR_futex
	jmp	wait

leave:
	xor	%edi, %edi
	invoke	__NR_exit_group

forked:
	mov	$1, %edi /* PR_SET_PDEATHSIG: it ends with the first */
	mov	$9, %esi
	invoke	__NR_prctl
1:
	invoke	__NR_pause /* until it is traced */
	jmp	1b

	/* One system call. */
	export	host_space_call
	syscall
	int3

	/*
	 * The changes in the control page, and then INT3, or what is to run. The call is the only one that the second filter leaves to those
	 * who run code that is not ours, and they may come here by themselves, with registers of their own. So what was called for is
	 * compared with the list before anything else runs: each change in it has been made already, and to make it once more, and all
	 * behind it, changes nothing.
	 */
	export	host_space_changes
	lea	host_space_program + 4096(%rip), %rbx
change:
	mov	CHANGE_AT(%rbx), %rdi
	mov	CHANGE_LEN(%rbx), %rsi
	test	%rsi, %rsi
	jz	2f
	mov	$__NR_munmap, %eax
	mov	CHANGE_RIGHTS(%rbx), %edx
	mov	CHANGE_COPY(%rbx), %r8d
	add	$SPACE_FD_MEMORY, %r8
	mov	CHANGE_OFFSET(%rbx), %r9
	mov	$CHANGE_FLAGS, %r10d
	test	%edx, %edx
	jz	1f
	mov	$__NR_mmap, %eax
1:
	syscall
	export	host_space_changed
	lea	host_space_program + 4096(%rip), %rcx
	mov	%rbx, %r11
	sub	%rcx, %r11
	cmp	CONTROL_END(%rcx), %r11
	jae	3f
	test	$(CHANGE_SIZE - 1), %r11b
	jnz	3f
	cmp	CHANGE_AT(%rbx), %rdi
	jne	3f
	cmp	CHANGE_LEN(%rbx), %rsi
	jne	3f
	mov	CHANGE_RIGHTS(%rbx), %r10d
	cmp	%r10, %rdx
	jne	3f
	mov	CHANGE_COPY(%rbx), %r10d
	add	$SPACE_FD_MEMORY, %r10
	cmp	%r10, %r8
	jne	3f
	cmp	CHANGE_OFFSET(%rbx), %r9
	jne	3f
	add	$CHANGE_SIZE, %rbx
	cmp	$-4096, %rax
	jbe	change
3:
	ud2

	/* All changes are made. */
2:
	export	host_space_made
	cmpl	$0, host_space_program + 4096 + CONTROL_STOP(%rip)
	jz	4f
	int3
	.macro	restore from, to
	mov	host_space_program + 4096 + CONTROL_REGS + 8 * \from(%rip), \to
	.endm
4:
	lea	host_space_program + 4096 + CONTROL_RFLAGS(%rip), %rsp
	popfq
	restore	0, %rax
	restore	1, %rcx
	restore	2, %rdx
	restore	3, %rbx
	restore	5, %rbp
	restore	6, %rsi
	restore	7, %rdi
	restore	8, %r8
	restore	9, %r9
	restore	10, %r10
	restore	11, %r11
	restore	12, %r12
	restore	13, %r13
	restore	14, %r14
	restore	15, %r15
	restore	4, %rsp
	jmp	*host_space_program + 4096 + CONTROL_RIP(%rip)

	/* Nothing. */
	export	host_space_stop
	int3

	/* Can it be read? */
	export	host_space_read
	mov	(%rdi), %eax
	int3

	/* Do these fault? Linux' filter stops the latter where there are system calls of 32 bits. */
	export	host_space_tsc
	rdtsc
	int3
	export	host_space_int80
	mov	$20, %eax
	int	$0x80
	int3

	.balign	8
	export	host_space_zeros /* a set of signals */
	.quad	0
ignore: /* struct kernel_sigaction: SIG_IGN */
	.quad	1, 0, 0, 0
name:
	.asciz	"doppel-user"
	/* Where the program stays, and the filters of system calls: for who writes the file. */
	.balign	8
	export	host_space_place
	.quad	0
	export	host_space_filters
	.space	SPACE_FILTERS_SIZE
	export	host_space_program_end
	.section .note.GNU-stack, "", @progbits
