/* From the PVH entry (32-bit, no paging) or a SIPI (real mode) to 64-bit C; trap stubs; context switches. */
#include "layout.h"

	.section .note.pvh, "a"
	.balign 4
	.long 4, 8, 18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.quad start32

	.text
	.code32
	.globl start32
start32:
	cld
	cli
	movl %ebx, start_info
	/* identity map of the first 4 GiB in 2 MiB pages: present, writable; device space uncached */
	movl $boot_pdpt + 3, boot_pml4
	movl $boot_pd + 3, boot_pdpt
	movl $boot_pd + 0x1003, boot_pdpt + 8
	movl $boot_pd + 0x2003, boot_pdpt + 16
	movl $boot_pd + 0x3003, boot_pdpt + 24
	xorl %ecx, %ecx
1:	movl %ecx, %eax
	shll $21, %eax
	orl $0x83, %eax
	cmpl $0x600, %ecx
	jb 2f
	orl $0x18, %eax
2:	movl %eax, boot_pd(, %ecx, 8)
	incl %ecx
	cmpl $2048, %ecx
	jb 1b
	xorl %edi, %edi			/* processor 0 */

/* Processor number in EDI; protected mode, flat segments, paging off. */
to_long:
	movl $CR4_DEFAULT, %eax
	movl %eax, %cr4
	movl $boot_pml4, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx
	xorl %edx, %edx
	movl $EFER_DEFAULT, %eax
	wrmsr
	movl $CR0_DEFAULT, %eax
	movl %eax, %cr0
	lgdt gdt_pointer
	ljmp $SEL_CODE64, $1f
	.code64
1:	movl $SEL_USER_DATA, %eax	/* DS and ES of ring 3 live through IRET, for 32-bit user code */
	movl %eax, %ds
	movl %eax, %es
	movl $SEL_DATA, %eax
	movl %eax, %ss
	xorl %eax, %eax
	movl %eax, %fs
	movl %eax, %gs
	movl %edi, %edi
	movq %rdi, %rax
	incq %rax
	shlq $STACK_SHIFT, %rax
	leaq stacks(%rax), %rsp
	xorl %ebp, %ebp
	call cpu_main
	ud2

/* Copied to TRAMPOLINE; a SIPI starts here with CS = TRAMPOLINE >> 4. */
	.code16
	.globl trampoline, trampoline_end
trampoline:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	lgdtl TRAMPOLINE + (trampoline_gdt_pointer - trampoline)
	movl %cr0, %eax
	andl $0x9fffffff, %eax		/* caches on */
	orl $1, %eax
	movl %eax, %cr0
	ljmpl $SEL_CODE32K, $ap32
	.balign 8
trampoline_gdt_pointer:
	.word GDT_ENTRIES * 8 - 1
	.long gdt
trampoline_end:

	.code32
ap32:
	movl $SEL_DATA, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl $1, %eax
	cpuid
	shrl $24, %ebx
	movl %ebx, %edi
	jmp to_long

	.code64
/* One stub for each vector: error code (or 0) and vector pushed, then the registers of struct frame. */
	.balign 16
	.globl trap_stubs
trap_stubs:
	.set vector, 0
	.rept 256
	.balign 16
	.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
	pushq $0
	.endif
	pushq $vector
	jmp trap_common
	.set vector, vector + 1
	.endr

trap_common:
	pushq %rax
	pushq %rcx
	pushq %rdx
	pushq %rbx
	pushq %rbp
	pushq %rsi
	pushq %rdi
	pushq %r8
	pushq %r9
	pushq %r10
	pushq %r11
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	cld
	movq %rsp, %rdi
	call trap_entry
	movq %rsp, %rdi
/* void frame_enter(const struct frame *): loads all of it and goes there by IRETQ */
	.globl frame_enter
frame_enter:
	movq %rdi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %r11
	popq %r10
	popq %r9
	popq %r8
	popq %rdi
	popq %rsi
	popq %rbp
	popq %rbx
	popq %rdx
	popq %rcx
	popq %rax
	addq $16, %rsp
	.globl frame_iretq
frame_iretq:
	iretq

/* int catch_save(uint64_t buf[9]): 0 now, 1 when catch_resume() comes back */
	.globl catch_save
catch_save:
	movq (%rsp), %rax
	movq %rax, (%rdi)
	leaq 8(%rsp), %rax
	movq %rax, 8(%rdi)
	movq %rbx, 16(%rdi)
	movq %rbp, 24(%rdi)
	movq %r12, 32(%rdi)
	movq %r13, 40(%rdi)
	movq %r14, 48(%rdi)
	movq %r15, 56(%rdi)
	pushfq
	popq 64(%rdi)
	xorl %eax, %eax
	ret

	.globl catch_resume
catch_resume:
	movl $SEL_DATA, %eax
	movl %eax, %ss
	movl $SEL_USER_DATA, %eax
	movl %eax, %ds
	movl %eax, %es
	movq 8(%rdi), %rsp
	movq 16(%rdi), %rbx
	movq 24(%rdi), %rbp
	movq 32(%rdi), %r12
	movq 40(%rdi), %r13
	movq 48(%rdi), %r14
	movq 56(%rdi), %r15
	pushq (%rdi)
	pushq 64(%rdi)
	movl $1, %eax
	popfq
	ret

	.data
	.balign 16
	.globl gdt_pointer
gdt_pointer:
	.word GDT_ENTRIES * 8 - 1
	.quad gdt
	.balign 16
	.globl gdt
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff	/* 08 32-bit code */
	.quad 0x00af9b000000ffff	/* 10 64-bit code */
	.quad 0x00cf93000000ffff	/* 18 data */
	.quad 0x00cffb000000ffff	/* 20 user 32-bit code */
	.quad 0x00cff3000000ffff	/* 28 user data */
	.quad 0x00affb000000ffff	/* 30 user 64-bit code */
	.quad 0x00cff3000000ffff	/* 38 user data, for SYSEXIT */
	.quad 0x00009b000000ffff	/* 40 16-bit code, base 0 */
	.quad 0x000093000000ffff	/* 48 16-bit data, base 0 */
	.fill 6, 8, 0			/* 50 ... 78: for tests */
	.fill 2 * CPUS_MAX, 8, 0	/* 80: TSSs */

	.bss
	.balign 4096
	.globl boot_pml4, boot_pdpt, boot_pd, stacks, start_info
boot_pml4:
	.skip 4096
boot_pdpt:
	.skip 4096
boot_pd:
	.skip 4 * 4096
stacks:
	.skip CPUS_MAX << STACK_SHIFT
start_info:
	.skip 8
