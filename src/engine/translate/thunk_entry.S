/*
 * void thunk_run_code(struct thunk_run *run): loads the guest's registers, jumps to run->code, and stores them when the code jumps to
 * thunk_run_done (a fault handler sends it there too). The stack stays the host's: its pointer is all that survives.
 */
#include "engine/translate/thunk_internal.h"

	.text
	.hidden	thunk_run_code
	.globl	thunk_run_code
	.type	thunk_run_code, @function
thunk_run_code:
	endbr64
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	sub	$24, %rsp
	mov	RUN_CODE(%rdi), %rax
	mov	%rax, (%rsp)
	mov	%rdi, 8(%rsp)
	mov	RUN_XSAVE(%rdi), %rcx
	test	%rcx, %rcx
	jz	1f
	stmxcsr	RUN_MXCSR(%rdi)
	fnstcw	RUN_FCW(%rdi)
	mov	$7, %eax
	xor	%edx, %edx
	xrstor64 (%rcx)
1:
	mov	RUN_GPR + 0(%rdi), %rax
	mov	RUN_GPR + 8(%rdi), %rcx
	mov	RUN_GPR + 16(%rdi), %rdx
	mov	RUN_GPR + 24(%rdi), %rbx
	mov	RUN_GPR + 40(%rdi), %rbp
	mov	RUN_GPR + 48(%rdi), %rsi
	mov	RUN_GPR + 64(%rdi), %r8
	mov	RUN_GPR + 72(%rdi), %r9
	mov	RUN_GPR + 80(%rdi), %r10
	mov	RUN_GPR + 88(%rdi), %r11
	mov	RUN_GPR + 96(%rdi), %r12
	mov	RUN_GPR + 104(%rdi), %r13
	mov	RUN_GPR + 112(%rdi), %r14
	mov	RUN_GPR + 120(%rdi), %r15
	push	RUN_FLAGS(%rdi)
	mov	RUN_GPR + 56(%rdi), %rdi
	popfq
	jmp	*(%rsp)
	.size	thunk_run_code, . - thunk_run_code

	.hidden	thunk_run_done
	.globl	thunk_run_done
	.type	thunk_run_done, @function
thunk_run_done:
	endbr64
	mov	%rdi, 16(%rsp)
	mov	8(%rsp), %rdi
	mov	%rax, RUN_GPR + 0(%rdi)
	mov	%rcx, RUN_GPR + 8(%rdi)
	mov	%rdx, RUN_GPR + 16(%rdi)
	mov	%rbx, RUN_GPR + 24(%rdi)
	mov	%rbp, RUN_GPR + 40(%rdi)
	mov	%rsi, RUN_GPR + 48(%rdi)
	mov	%r8, RUN_GPR + 64(%rdi)
	mov	%r9, RUN_GPR + 72(%rdi)
	mov	%r10, RUN_GPR + 80(%rdi)
	mov	%r11, RUN_GPR + 88(%rdi)
	mov	%r12, RUN_GPR + 96(%rdi)
	mov	%r13, RUN_GPR + 104(%rdi)
	mov	%r14, RUN_GPR + 112(%rdi)
	mov	%r15, RUN_GPR + 120(%rdi)
	pushfq
	mov	16 + 8(%rsp), %rax
	mov	%rax, RUN_GPR + 56(%rdi)
	pop	RUN_FLAGS(%rdi)
	push	$0x202			/* the guest's AC must not stay */
	popfq
	mov	RUN_XSAVE(%rdi), %rcx
	test	%rcx, %rcx
	jz	2f
	mov	$7, %eax
	xor	%edx, %edx
	xsave64	(%rcx)
	cmpq	$0, RUN_AVX(%rdi)
	je	1f
	vzeroupper
1:
	fninit
	fldcw	RUN_FCW(%rdi)
	ldmxcsr	RUN_MXCSR(%rdi)
2:
	add	$24, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	ret
	.size	thunk_run_done, . - thunk_run_done
	.section .note.GNU-stack, "", @progbits
