/* Interrupts: when they are taken and when not, priorities, nesting, HLT, NMIs (SDM Vol. 3A 6.6 to 6.8, 10.8). */
#include "guest.h"

const char payload[] = "irq";

static struct frame seen;
static volatile unsigned count;
static u64 handler_rsp, handler_flags;
static volatile u8 order[16];

static bool on_irq(struct frame *f)
{
	seen = *f;
	handler_rsp = (u64)f;
	handler_flags = read_flags();
	if (count < sizeof(order))
		order[count] = f->vector;
	count++;
	apic_write(APIC_EOI, 0);
	return true;
}

static void self_ipi(unsigned vector)
{
	apic_icr(0, ICR_SELF | ICR_ASSERT | vector);
	/* delivery to oneself may take a moment */
	for (unsigned i = 0; i < 1000 && !(apic_read(APIC_IRR + (vector >> 5) * 16) >> (vector & 31) & 1); i++)
		pause();
}

static void set_up(void)
{
	apic_enable();
	for (unsigned v = 0x30; v < 0xf0; v++) {
		if (v != 0x80)
			set_handler(v, on_irq);
	}
	asm volatile("sti; nop; nop; cli" : : : "memory"); /* a last tick that the test before left pending */
	count = 0;
	seen = (struct frame){};
}

CODE(sti_at);
TEST(sti_shadow)
{
	set_up();
	self_ipi(0x40);
	CHECK_EQ(count, 0);
	asm volatile(".globl sti_at, sti_at_end\nsti_at: sti; nop; nop; nop; cli; sti_at_end:" : : : "memory");
	CHECK_EQ(count, 1);
	CHECK_EQ(seen.rip, (u64)sti_at + 2); /* after STI and one instruction */
	CHECK_EQ(seen.vector, 0x40);
	CHECK_EQ(seen.rflags & FL_IF, FL_IF);
}

/* STI; CLI is no window at all. */
TEST(sti_cli)
{
	set_up();
	self_ipi(0x40);
	for (unsigned i = 0; i < 100; i++)
		asm volatile("sti; cli" : : : "memory");
	CHECK_EQ(count, 0);
	asm volatile("sti; nop; cli" : : : "memory");
	CHECK_EQ(count, 1);
	/* STI with IF set already casts no shadow, so the second one does not hold it off any longer */
	self_ipi(0x41);
	asm volatile("sti; sti; cli" : : : "memory");
	CHECK_EQ(count, 2);
}

CODE(popf_at);
TEST(popf_no_shadow)
{
	set_up();
	self_ipi(0x40);
	asm volatile("pushq $0x202\n.globl popf_at\npopf_at: popfq; nop; cli" : : : "memory", "cc");
	CHECK_EQ(count, 1);
	CHECK_EQ(seen.rip, (u64)popf_at + 1);
}

SNIPPET(ss_shadow, 64, "sti; movl %eax, %ss; nop; nop; cli; ud2");
TEST(mov_ss)
{
	set_up();
	self_ipi(0x40);
	static u8 stack[1024];
	struct frame f = kernel_frame((u64)ss_shadow, (u64)stack + 1024);
	f.rax = SEL_DATA;
	CHECK_EQ(run_frame(&f)->f.vector, UD);
	CHECK_EQ(count, 1);
	/* after MOV SS or after the NOP: two shadows in a row, only the first is promised */
	CHECK(seen.rip == (u64)ss_shadow + 3 || seen.rip == (u64)ss_shadow + 4);
}

/* IRET that sets IF opens the window at once. */
CODE(after_iret);
TEST(iret_window)
{
	set_up();
	self_ipi(0x40);
	asm volatile("movq %%rsp, %%rcx; pushq %0; pushq %%rcx; pushq $0x202; pushq %1; pushq $1f; iretq\n"
		     ".globl after_iret\nafter_iret: 1: nop; cli"
		     :
		     : "i"(SEL_DATA), "i"(SEL_CODE64)
		     : "rcx", "memory");
	CHECK_EQ(count, 1);
	CHECK_EQ(seen.rip, (u64)after_iret);
}

/*
 * Two interrupts wait, one of them from the 8259, which ends by itself: the second is taken as soon as the first one's
 * handler is through, although nothing in between leaves the processor.
 */
static volatile unsigned from_pic;

static bool on_pic(struct frame *f)
{
	from_pic++;
	if (count + from_pic <= sizeof(order))
		order[count + from_pic - 1] = f->vector;
	return true;
}

static void pic_begin(u8 icw4)
{
	outb(0x20, 0x11);
	outb(0x21, 0x20);
	outb(0x21, 4);
	outb(0x21, icw4);
	outb(0x21, 0xff);
}

TEST(second_of_two)
{
	set_up();
	set_handler(0x20, on_pic);
	from_pic = 0;
	pic_begin(3);     /* automatic end of interrupt */
	outb(0x43, 0x30); /* the 8254's output falls, rises once, and stays */
	outb(0x40, 50);
	outb(0x40, 0);
	while (!(inb(0x20) & 1))
		pause();
	outb(0x21, 0xfe);
	apic_write(APIC_LVT_LINT0, 0x700);
	self_ipi(0x41);
	sti();
	for (volatile unsigned i = 0; i < 100000 && !(count && from_pic); i++)
		;
	cli();
	CHECK_EQ(from_pic, 1);
	CHECK_EQ(count, 1);
	apic_write(APIC_LVT_LINT0, 0x10000);
	pic_begin(1);
}

CODE(hlt_at);
TEST(hlt_pending)
{
	set_up();
	self_ipi(0x40);
	asm volatile(".globl hlt_at\nhlt_at: sti; hlt; cli" : : : "memory");
	CHECK_EQ(count, 1);
	CHECK_EQ(seen.rip, (u64)hlt_at + 2);
}

TEST(hlt_wakes)
{
	set_up();
	for (unsigned i = 1; i <= 20; i++) {
		apic_timer(0x50, 100000);
		asm volatile("sti; hlt; cli" : : : "memory");
		CHECK_EQ(count, i);
	}
}

/* The processor spins with interrupts on: the timer gets through without any help of the code. */
SNIPPET(spin_jmp, 64, "1: jmp 1b");
SNIPPET(spin_loop, 64, "xorl %eax, %eax; 1: incq %rax; movq %rax, %rcx; cmpq $0, %rcx; jne 1b");
SNIPPET(spin_call, 64, "1: call 2f; jmp 1b; 2: pushq %rax; popq %rax; ret");
SNIPPET(spin_indirect, 64, "leaq 1f(%rip), %rax; 1: jmp *%rax");
SNIPPET(spin_ret, 64, "leaq 1f(%rip), %rax; 1: pushq %rax; ret");
SNIPPET(spin_pause, 64, "1: pause; jmp 1b");
SNIPPET(spin_rep, 64, "1: movq %rsp, %rdi; subq $1024, %rdi; movl $1024, %ecx; rep stosb; jmp 1b");
SNIPPET(spin_in, 64, "movl $0x80, %edx; 1: inb %dx, %al; jmp 1b");
TEST(spinning)
{
	static const u8 *const spins[] = {spin_jmp, spin_loop,  spin_call, spin_indirect,
					  spin_ret, spin_pause, spin_rep,  spin_in};
	static u8 stack[4096];
	set_up();
	set_handler(0x50, apic_end);
	for (unsigned i = 0; i < 8; i++) {
		for (unsigned user = 0; user < 2; user++) {
			if (user && i == 7)
				continue;
			struct frame f = user ? user_code(spins[i], spins[i] + 64, 64)
					      : kernel_frame((u64)spins[i], (u64)stack + 4096);
			f.rflags |= FL_IF;
			apic_timer(0x50, 50000);
			CHECK_EQ_IN(run_frame(&f)->f.vector, 0x50, "spin %u user %u", i, user);
		}
	}
}

/* Two pages that jump to each other, and call each other and throw the return address away. */
TEST(spinning_across_pages)
{
	static u8 stack[4096];
	u8 *p = map_fresh(TEST_VA, 2, PTE_KERNEL);
	set_up();
	set_handler(0x50, apic_end);
	for (unsigned call = 0; call < 2; call++) {
		memcpy(p, call ? "\x58\xe8\xfa\x0f\x00\x00" : "\x90\xe9\xfa\x0f\x00\x00", 6);
		memcpy(p + PAGE, call ? "\x58\xe8\xfa\xef\xff\xff" : "\x90\xe9\xfa\xef\xff\xff", 6);
		struct frame f = kernel_frame(TEST_VA, (u64)stack + 2048);
		f.rflags |= FL_IF;
		apic_timer(0x50, 50000);
		CHECK_EQ(run_frame(&f)->f.vector, 0x50);
	}
}

TEST(priority)
{
	set_up();
	self_ipi(0x41);
	self_ipi(0x61);
	self_ipi(0x51);
	asm volatile("sti; nop; nop; nop; nop; nop; cli" : : : "memory");
	CHECK_EQ(count, 3);
	CHECK_EQ(order[0], 0x61);
	CHECK_EQ(order[1], 0x51);
	CHECK_EQ(order[2], 0x41);
}

TEST(task_priority)
{
	set_up();
	write_cr8(5);
	CHECK_EQ(apic_read(APIC_TPR), 0x50);
	self_ipi(0x51);
	asm volatile("sti; nop; nop" : : : "memory");
	CHECK_EQ(count, 0);
	self_ipi(0x60);
	asm volatile("nop; nop");
	CHECK_EQ(count, 1);
	CHECK_EQ(order[0], 0x60);
	write_cr8(4);
	asm volatile("nop; cli" : : : "memory");
	CHECK_EQ(count, 2);
	CHECK_EQ(order[1], 0x51);
	apic_write(APIC_TPR, 0x70);
	CHECK_EQ(read_cr8(), 7);
	apic_write(APIC_TPR, 0);
}

static volatile unsigned depth, max_depth;
static bool nesting(struct frame *f)
{
	order[count++] = f->vector;
	if (++depth > max_depth)
		max_depth = depth;
	unsigned isr = apic_read(APIC_ISR + (f->vector >> 5) * 16) >> (f->vector & 31) & 1;
	CHECK_EQ(isr, 1);
	if (f->vector == 0x41) {
		self_ipi(0x61);
		self_ipi(0x42); /* the same class: waits for EOI */
		asm volatile("sti; nop; nop; cli" : : : "memory");
	}
	depth--;
	apic_write(APIC_EOI, 0);
	order[count++] = 0;
	return true;
}
TEST(nested)
{
	set_up();
	max_depth = 0;
	set_handler(0x41, nesting);
	set_handler(0x42, nesting);
	set_handler(0x61, nesting);
	self_ipi(0x41);
	asm volatile("sti; nop; nop; nop; cli" : : : "memory");
	static const u8 want[] = {0x41, 0x61, 0, 0, 0x42, 0};
	CHECK_EQ(count, 6);
	CHECK_EQ(memcmp((void *)order, want, 6), 0);
	CHECK_EQ(max_depth, 2);
}

static volatile bool ran_off;
TEST(gates)
{
	set_up();
	self_ipi(0x40);
	asm volatile("sti; nop; cli" : : : "memory");
	CHECK_EQ(handler_flags & (FL_IF | FL_TF | FL_NT), 0);
	set_gate(0x40, trap_stubs[0x40], 0, 0x8f); /* a trap gate leaves IF */
	self_ipi(0x40);
	asm volatile("sti; nop; cli" : : : "memory");
	CHECK_EQ(handler_flags & FL_IF, FL_IF);
	CHECK_EQ(count, 2);
	/* NT is pushed and cleared */
	set_gate(0x40, trap_stubs[0x40], 0, 0x8e);
	self_ipi(0x40);
	write_flags(2 | FL_NT);
	asm volatile("sti; nop; cli" : : : "memory");
	write_flags(2);
	CHECK_EQ(seen.rflags & FL_NT, FL_NT);
	CHECK_EQ(handler_flags & FL_NT, 0);
}

/* The stack: aligned to 16 before the push, IST where the gate says so. */
SNIPPET(take_one, 64, "sti; nop; cli; ud2");
TEST(stacks)
{
	static u8 stack[4096] __attribute__((aligned(16)));
	set_up();
	for (unsigned off = 0; off < 16; off++) {
		struct frame f = kernel_frame((u64)take_one, (u64)stack + 4096 - off);
		self_ipi(0x40);
		CHECK_EQ(run_frame(&f)->f.vector, UD);
		CHECK_EQ(seen.rsp, f.rsp);
		CHECK_EQ(handler_rsp, (f.rsp & ~15ull) - sizeof(struct frame));
		CHECK_EQ(seen.ss, SEL_DATA);
	}
	set_gate(0x40, trap_stubs[0x40], 5, 0x8e);
	static u8 other[4096] __attribute__((aligned(16)));
	tss[0].ist[4] = (u64)other + 4096;
	struct frame f = kernel_frame((u64)take_one, (u64)stack + 2048);
	self_ipi(0x40);
	CHECK_EQ(run_frame(&f)->f.vector, UD);
	CHECK_EQ(handler_rsp, (u64)other + 4096 - sizeof(struct frame));
	CHECK_EQ(seen.rsp, f.rsp);
}

/* From ring 3: the stack of the TSS, a null SS, and all registers as they were. */
static u16 handler_ss;
static bool user_irq(struct frame *f)
{
	asm volatile("mov %%ss, %0" : "=r"(handler_ss));
	return on_irq(f);
}
SNIPPET(user_count, 64,
	"xorl %ecx, %ecx; 1: incq %rcx; addq %rcx, %rbx; xorq %rcx, %rdx; cmpq $1000000, %rcx; jne 1b; int $0x80");
TEST(user)
{
	set_up();
	set_handler(0x50, user_irq);
	struct frame f = user_code(user_count, user_count_end, 64);
	f.rflags |= FL_IF;
	apic_timer(0x20050, 30000); /* periodic */
	/* again until ticks have come: a busy host may bring them late */
	for (u64 end = now_us() + 5000000; count < 5 && now_us() < end;) {
		struct trap *t = run_frame(&f);
		CHECK_EQ(t->f.vector, 0x80);
		CHECK_EQ(t->f.rcx, 1000000);
		CHECK_EQ(t->f.rbx, 1000000ull * 1000001 / 2);
	}
	apic_write(APIC_TIMER_INIT, 0);
	CHECK(count >= 5);
	CHECK_EQ(seen.cs, SEL_USER_CODE64);
	CHECK_EQ(seen.ss, SEL_USER_DATA);
	CHECK_EQ(handler_rsp, tss[0].rsp[0] - sizeof(struct frame));
	CHECK_EQ(handler_ss, 0);
}

/* Periodic interrupts through a long REP: it goes on where it was, and nothing is done twice. */
TEST(rep_interrupted)
{
	set_up();
	enum { N = 8 << 20 };
	u8 *a = alloc_pages(N / PAGE), *b = alloc_pages(N / PAGE);
	for (unsigned i = 0; i < N; i += 8)
		*(u64 *)(a + i) = random64();
	apic_timer(0x20050, 20000);
	for (u64 end = now_us() + 5000000; count < 5 && now_us() < end;) {
		memset(b, 0, N);
		sti();
		memcpy(b, a, N);
		u64 n = N;
		u8 *s = a, *d = b;
		asm volatile("repe cmpsb" : "+c"(n), "+S"(s), "+D"(d) : : "memory", "cc");
		cli();
		CHECK_EQ(n, 0);
		CHECK_EQ(d, (u64)b + N);
		CHECK_EQ(memcmp(a, b, 65536), 0);
	}
	apic_write(APIC_TIMER_INIT, 0);
	CHECK(count >= 5);
}

/* Code that opens a window for one instruction at a time: a return address is only ever there. */
CODE(window);
CODE(window_end_at);
TEST(narrow_windows)
{
	set_up();
	static volatile unsigned wrong;
	wrong = 0;
	apic_timer(0x20050, 20000);
	for (u64 i = 0, end = now_us() + 5000000; count < 50 && (i % 1024 || now_us() < end); i++) {
		unsigned before = count;
		asm volatile(".globl window\nwindow: sti; nop; cli" : : : "memory");
		if (count != before && seen.rip != (u64)window + 2)
			wrong++;
	}
	apic_write(APIC_TIMER_INIT, 0);
	CHECK_EQ(wrong, 0);
	CHECK(count >= 50);
}

/* NMIs: taken with IF clear, held off until IRET, also when an exception's IRET comes first. */
static volatile unsigned nmi_count, nmi_depth, nmi_max, nmi_after_int3;
static bool nmi_with_int3;
static void send_nmi(void)
{
	apic_icr(apic_x2() ? apic_read(APIC_ID) : apic_read(APIC_ID) >> 24, ICR_NMI | ICR_ASSERT);
}
static bool on_bp(struct frame *f)
{
	(void)f;
	return true;
}
static bool on_nmi(struct frame *f)
{
	seen = *f;
	nmi_count++;
	nmi_depth++;
	if (nmi_depth > nmi_max)
		nmi_max = nmi_depth;
	if (nmi_count == 1) {
		send_nmi();
		for (unsigned i = 0; i < 1000; i++)
			pause();
		if (nmi_with_int3) {
			tss[0].ist[1] -= 1024; /* the nested one must not use our stack */
			asm volatile("int3; nop; nop");
			for (unsigned i = 0; i < 1000; i++)
				pause();
			nmi_after_int3 = nmi_count;
			tss[0].ist[1] += 1024;
		}
	}
	nmi_depth--;
	return true;
}
static void nmi_set_up(bool int3)
{
	set_up();
	nmi_count = nmi_depth = nmi_max = nmi_after_int3 = 0;
	nmi_with_int3 = int3;
	set_handler(NMI, on_nmi);
	set_handler(BP, on_bp);
}
TEST(nmi)
{
	nmi_set_up(false);
	send_nmi();
	WAIT_FOR(nmi_count >= 2, 100000);
	CHECK_EQ(nmi_count, 2);
	CHECK_EQ(nmi_max, 1);
}
TEST(nmi_unblocked_by_iret)
{
	nmi_set_up(true);
	send_nmi();
	WAIT_FOR(nmi_count >= 2, 100000);
	CHECK_EQ(nmi_count, 2);
	CHECK_EQ(nmi_max, 2);
	CHECK_EQ(nmi_after_int3, 2);
}

static void nmi_to_0(void *arg)
{
	(void)arg;
	delay_us(2000);
	apic_icr(0, ICR_NMI | ICR_ASSERT);
}
/* HLT with interrupts off ends by an NMI; needs another processor to send it. */
CODE(nmi_hlt);
TEST(nmi_wakes_hlt)
{
	if (cpus < 2)
		skip("one processor");
	smp_start();
	nmi_set_up(false);
	nmi_count = 1; /* no second one from the handler */
	smp_post(1, nmi_to_0, NULL);
	asm volatile(".globl nmi_hlt\nnmi_hlt: hlt; nop" : : : "memory");
	smp_wait(1);
	CHECK_EQ(nmi_count, 2);
	CHECK_EQ(seen.rip, (u64)nmi_hlt + 1);
	CHECK_EQ(seen.rflags & FL_IF, 0);
}

/* An exception between STI and its next instruction: the interrupt comes after the handler's return at the soonest. */
static bool skip_ud(struct frame *f)
{
	f->rip += 2;
	CHECK_EQ(count, 0);
	return true;
}
TEST(shadow_and_fault)
{
	set_up();
	set_handler(UD, skip_ud);
	self_ipi(0x40);
	asm volatile("sti; ud2; nop; cli" : : : "memory");
	CHECK_EQ(count, 1);
}
/* run: cpus=2 */
