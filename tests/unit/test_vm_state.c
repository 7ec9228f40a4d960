/*
 * Saving a running VM and going on in another one, with the real engine: the guest computes, counts the ticks of its
 * timer and watches its TSC meanwhile, and neither of the two VMs may notice.
 */
#include "host/host.h"
#include "host/thread.h"
#include "vm/internal.h"

#include "unit.h"

#define STEPS 100000000 /* of the computation: longer than it takes until the VM is saved */
#define TICKS 1000      /* of 1 ms each: the guest runs at least so long */
#define TICKS_SAVED 100
#define TICKS_AT 0x105000

#define STRING(x) #x
#define VALUE(x) STRING(x)

/* A multiboot kernel, loaded to 1 MiB; gives the result to the debug-exit port. */
__asm__(".pushsection .rodata\n"
	".macro outp port, value\n	movb $\\value, %al\n	outb %al, $\\port\n.endm\n"
	".set base, 0x100000\n"
	".set ticks, " VALUE(
		TICKS_AT) "\n"
			  ".set tsc, ticks + 8\n"
			  ".set backward, ticks + 16\n"
			  ".set idt, 0x104000\n"
			  ".balign 16\n"
			  "payload: .code32\n"
			  "	.long 0x1badb002, 0x10000, -(0x1badb002 + 0x10000)\n"
			  "	.long base, base, 0, 0, start - payload + base\n"
			  "gdt:	.quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff\n"
			  "gdtr:	.word 23\n	.long gdt - payload + base\n"
			  "idtr:	.word 0x7ff\n	.long idt\n"
			  "start:	movl $0x108000, %esp\n"
			  "	lgdt gdtr - payload + base\n"
			  "	ljmp $8, $(flat - payload + base)\n"
			  "flat:	movw $16, %ax\n	movw %ax, %ds\n	movw %ax, %ss\n"
			  "	movl $(tick - payload + base), %eax\n"
			  "	movw %ax, idt + 0x100\n	movw $8, idt + 0x102\n	movw $0x8e00, idt + 0x104\n"
			  "	shrl $16, %eax\n	movw %ax, idt + 0x106\n"
			  "	lidt idtr - payload + base\n"
			  "	outp 0x20 0x11\n	outp 0x21 0x20\n	outp 0x21 4\n	outp 0x21 1\n"
			  "	outp 0x21 0xfe\n	outp 0xa1 0xff\n"
			  "	outp 0x43 0x34\n	outp 0x40 0xa9\n	outp 0x40 0x04\n"
			  "	movl $1, %ebx\n	xorl %ecx, %ecx\n"
			  "	sti\n"
			  "1:	imull $1664525, %ebx\n	addl $1013904223, %ebx\n"
			  "	incl %ecx\n	cmpl $" VALUE(
				  STEPS) ", %ecx\n	jb 1b\n"
					 "2:	hlt\n	cmpl $" VALUE(
						 TICKS) ", ticks\n	jb 2b\n"
							"	cli\n	addl backward, %ebx\n"
							"	movl %ebx, %eax\n	outl %eax, $0xf4\n"
							"3:	hlt\n	jmp 3b\n"
							"tick:	pushal\n	incl ticks\n	rdtsc\n"
							"	movl tsc, %esi\n	movl tsc + 4, %edi\n"
							"	movl %eax, tsc\n	movl %edx, tsc + 4\n"
							"	subl %esi, %eax\n	sbbl %edi, %edx\n	jae "
							"4f\n	incl backward\n"
							"4:	outp 0x20 0x20\n	popal\n	iret\n"
							"payload_end: .code64\n"
							".popsection\n");
extern const uint8_t payload[], payload_end[];

static uint32_t expected(void)
{
	uint32_t x = 1;

	for (unsigned i = 0; i < STEPS; i++)
		x = x * 1664525 + 1013904223;
	return x;
}

static struct vm *make(unsigned cpus, uint64_t memory)
{
	char path[64];
	struct error err = {""};
	struct vm_config config = {.kernel = path,
				   .memory = memory,
				   .cpus = cpus,
				   .console = "none",
				   .virtio_console = "none",
				   .debug_exit = true};

	snprintf(path, sizeof(path), "/tmp/doppel-test-vm-state.%u", (unsigned)(host_now_ns() & 0xffffffff));
	struct host_file *file = host_file_open(path, HOST_FILE_WRITE | HOST_FILE_CREATE);
	REQUIRE(file);
	ssize_t len = payload_end - payload;
	REQUIRE(host_file_pwrite(file, payload, (size_t)len, 0) == len);
	host_file_close(file);
	struct vm *vm = vm_create(&config, &err);
	remove(path);
	if (!vm)
		UNIT_FAIL("%s", err.text);
	REQUIRE(vm);
	return vm;
}

static uint32_t ticks(struct vm *vm)
{
	uint32_t n = 0;

	guest_memory_read(&vm->mem, TICKS_AT, &n, sizeof(n));
	return n;
}

struct saver {
	struct host_thread thread;
	struct vm *vm;
	struct state_stream s;
	uint32_t ticks; /* when it was saved */
};

static void *save(void *arg)
{
	struct saver *save = arg;

	for (unsigned i = 0; i < 20000 && ticks(save->vm) < TICKS_SAVED; i++)
		host_sleep_ns(1000000);
	vm_pause(save->vm);
	save->ticks = ticks(save->vm);
	save->s.saving = true;
	vm_state(save->vm, &save->s);
	host_sleep_ns(50000000); /* time that the guest does not see */
	CHECK_EQ(ticks(save->vm), save->ticks);
	if (save->ticks < TICKS_SAVED) /* it does not run: let vm_run return */
		vm_stop(save->vm, VM_END_FAILED, 0);
	vm_resume(save->vm);
	return NULL;
}

static void run_to_result(struct vm *vm, uint32_t result)
{
	struct vm_end end = vm_run(vm);

	CHECK_EQ(end.reason, VM_END_DEBUG_EXIT);
	CHECK_EQ(end.value, result);
	vm_destroy(vm);
}

/* False: the host was so busy that the guest had ended before it was saved. */
static bool save_while_running(struct saver *s, uint32_t result)
{
	*s = (struct saver){.vm = make(2, MiB(16))};
	REQUIRE(host_thread_start(&s->thread, "save", save, s));
	struct vm_end end = vm_run(s->vm);
	host_thread_join(&s->thread);
	CHECK_EQ(end.reason, VM_END_DEBUG_EXIT);
	CHECK_EQ(end.value, result);
	CHECK(!s->s.failed);
	CHECK(s->ticks >= TICKS_SAVED);
	vm_destroy(s->vm);
	return s->ticks < TICKS;
}

TEST(goes_on_elsewhere)
{
	uint32_t result = expected();
	struct saver s;

	for (unsigned tries = 0; !save_while_running(&s, result); tries++) {
		REQUIRE(tries < 5);
		state_end(&s.s);
	}
	struct vm *vm = make(2, MiB(16));
	struct state_stream load = {.data = s.s.data, .len = s.s.len};
	vm_state(vm, &load);
	CHECK(!load.failed);
	CHECK_EQ(load.pos, load.len);
	CHECK_EQ(ticks(vm), s.ticks);
	run_to_result(vm, result);

	/* Machines of another shape refuse it and are as they were. */
	vm = make(1, MiB(16));
	load = (struct state_stream){.data = s.s.data, .len = s.s.len};
	vm_state(vm, &load);
	CHECK(load.failed);
	CHECK_EQ(ticks(vm), 0);
	vm_destroy(vm);
	vm = make(2, MiB(20));
	load = (struct state_stream){.data = s.s.data, .len = s.s.len};
	vm_state(vm, &load);
	CHECK(load.failed);
	vm_destroy(vm);
	state_end(&s.s);
}

UNIT_MAIN()
