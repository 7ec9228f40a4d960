/* Into a case on the real processor and back out of the signal that ends it. struct native is in native.c. */
#define N_GPR 0
#define N_FLAGS 128
#define N_XSAVE 136
#define N_RSP 144
#define N_FS 152
#define N_GS 160
#define N_HOST_FS 168
#define N_HOST_GS 176
#define N_BASES 184
#define N_COMPAT 188

/* arch_prctl, where the kernel does not let programs set the bases themselves */
#define ARCH_PRCTL 158
#define SET_GS 0x1001
#define SET_FS 0x1002
	.macro set_base which, base
	mov	\base, %rsi
	mov	$\which, %edi
	mov	$ARCH_PRCTL, %eax
	syscall
	.endm

	.text
	.hidden	native_run
	.globl	native_run
	.type	native_run, @function
native_run:
	endbr64
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	sub	$8, %rsp
	mov	%rsp, N_RSP(%rdi)
	mov	N_XSAVE(%rdi), %rcx
	mov	$7, %eax
	xor	%edx, %edx
	xrstor64 (%rcx)
	cmpl	$0, N_BASES(%rdi)
	je	1f
	rdfsbase %rax
	mov	%rax, N_HOST_FS(%rdi)
	rdgsbase %rax
	mov	%rax, N_HOST_GS(%rdi)
	mov	N_FS(%rdi), %rax
	wrfsbase %rax
	mov	N_GS(%rdi), %rax
	wrgsbase %rax
	jmp	2f
1:
	mov	%rdi, %r12
	set_base SET_FS, N_FS(%r12)
	set_base SET_GS, N_GS(%r12)
	mov	%r12, %rdi
2:
	movl	$1, native_active(%rip)
	mov	$0x2b, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	push	N_FLAGS(%rdi)
	popfq
	mov	N_GPR + 0(%rdi), %rax
	mov	N_GPR + 8(%rdi), %rcx
	mov	N_GPR + 16(%rdi), %rdx
	mov	N_GPR + 24(%rdi), %rbx
	mov	N_GPR + 32(%rdi), %rsp
	mov	N_GPR + 40(%rdi), %rbp
	mov	N_GPR + 48(%rdi), %rsi
	mov	N_GPR + 64(%rdi), %r8
	mov	N_GPR + 72(%rdi), %r9
	mov	N_GPR + 80(%rdi), %r10
	mov	N_GPR + 88(%rdi), %r11
	mov	N_GPR + 96(%rdi), %r12
	mov	N_GPR + 104(%rdi), %r13
	mov	N_GPR + 112(%rdi), %r14
	mov	N_GPR + 120(%rdi), %r15
	mov	N_GPR + 56(%rdi), %rdi
	ljmp	*native_target(%rip)	/* sets CS, and with it the code size */

	.hidden	native_leave
	.globl	native_leave
	.type	native_leave, @function
native_leave:
	endbr64
	fninit
	push	$0x1f80
	ldmxcsr	(%rsp)
	add	$16, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	ret

/* The signal handler: the case's FS base and AC flag are not for C code. */
	.hidden	native_signal
	.globl	native_signal
	.type	native_signal, @function
native_signal:
	endbr64
	pushfq
	andl	$~0x40000, (%rsp)
	popfq
	cmpl	$0, native_active(%rip)
	je	2f
	cmpl	$0, native_state + N_BASES(%rip)
	je	1f
	mov	native_state + N_HOST_FS(%rip), %rax
	wrfsbase %rax
	mov	native_state + N_HOST_GS(%rip), %rax
	wrgsbase %rax
	jmp	2f
1:
	push	%rdi
	push	%rsi
	push	%rdx
	set_base SET_FS, native_state + N_HOST_FS(%rip)
	set_base SET_GS, native_state + N_HOST_GS(%rip)
	pop	%rdx
	pop	%rsi
	pop	%rdi
2:
	jmp	native_signal_c

	.section .note.GNU-stack, "", @progbits
