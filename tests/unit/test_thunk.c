/*
 * The thunk where the differential tests do not reach: gates by CR0, CR4 and XCR0, device memory, operands across
 * pages, atomic operations, supervisor's XSAVES.
 */
#include "arch/x86/cpuid.h"
#include "bus/memory.h"
#include "engine/translate/thunk.h"
#include "host/guest_signals.h"
#include "unit.h"

#include "host/thread.h"

static struct guest_memory mem;
static struct x86_cpuid_model model;

struct rig {
	struct x86_cpu cpu;
	struct thunk *t;
};

/* 64-bit supervisor mode with paging off in effect: the tables map the first gigabyte as it is. */
static void tables(void)
{
	uint64_t pml4 = 0x2000 | 7, pdpt = 0x87;

	guest_memory_write(&mem, 0x1000, &pml4, 8);
	guest_memory_write(&mem, 0x2000, &pdpt, 8);
}

static void rig_init(struct rig *r)
{
	struct error err;

	if (!mem.shared.at) {
		REQUIRE(guest_memory_init(&mem, MiB(4), &err));
		REQUIRE(host_guest_signals_init(thunk_claim_fault));
		REQUIRE(host_guest_signals_thread_enter());
		x86_cpuid_init(&model, 1, 1000000000);
		tables();
	}
	memset(&r->cpu, 0, sizeof(r->cpu));
	r->cpu.mem = &mem;
	r->cpu.model = &model;
	x86_cpu_reset(&r->cpu, false);
	r->cpu.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	r->cpu.cr3 = 0x1000;
	r->cpu.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
	r->cpu.efer = EFER_LME | EFER_LMA | EFER_NXE;
	r->cpu.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
	r->cpu.seg[SEG_CS] = (struct x86_segment){.limit = 0xffffffff, .sel = 8, .attr = 0xa09b};
	r->cpu.rip = 0x100000;
	r->cpu.rflags = FL_FIXED1;
	r->t = thunk_create();
	REQUIRE(r->t);
}

static enum verdict step_bytes(struct rig *r, const char *bytes, size_t len)
{
	struct x86_insn insn;

	x86_decode(&insn, (const uint8_t *)bytes, len, MODE_64, &model);
	return thunk_step(r->t, &r->cpu, &insn);
}

#define STEP(r, bytes) step_bytes(r, bytes, sizeof(bytes) - 1)

static uint64_t get(uint64_t gpa, unsigned len)
{
	uint64_t v = 0;

	guest_memory_read(&mem, gpa, &v, len);
	return v;
}

static void put(uint64_t gpa, uint64_t v)
{
	guest_memory_write(&mem, gpa, &v, 8);
}

TEST(registers_and_flags)
{
	static struct rig r;

	rig_init(&r);
	r.cpu.gpr[RSP] = 0xffffffffffffffff;
	r.cpu.gpr[RAX] = 1;
	CHECK_EQ(STEP(&r, "\x48\x01\xc4"), V_DONE); /* add rsp, rax */
	CHECK_EQ(r.cpu.gpr[RSP], 0);
	CHECK_EQ(r.cpu.rflags, FL_FIXED1 | FL_CF | FL_ZF | FL_AF | FL_PF);
	CHECK_EQ(r.cpu.rip, 0x100003);
	r.cpu.gpr[RSP] = 0x8000;
	r.cpu.gpr[RBP] = 7;
	CHECK_EQ(STEP(&r, "\x48\x87\x24\x24"), V_DONE); /* xchg [rsp], rsp */
	CHECK_EQ(get(0x8000, 8), 0x8000);
	CHECK_EQ(r.cpu.gpr[RBP], 7);
	thunk_destroy(r.t);
}

static void check_fault(struct rig *r, const char *bytes, size_t len, unsigned vector)
{
	CHECK_EQ(step_bytes(r, bytes, len), V_INJECT);
	CHECK_EQ(r->cpu.exc.vector, vector);
	CHECK_EQ(r->cpu.rip, 0x100000);
}

#define FAULTS(r, bytes, vector) check_fault(r, bytes, sizeof(bytes) - 1, vector)

TEST(gates)
{
	static struct rig r;

	rig_init(&r);
	r.cpu.cr0 |= CR0_TS;
	FAULTS(&r, "\xd9\xe8", X86_NM);     /* fld1 */
	FAULTS(&r, "\x0f\x58\xc1", X86_NM); /* addps */
	if (x86_has(&model, FEAT_AVX))
		FAULTS(&r, "\xc5\xf8\x58\xc1", X86_NM); /* vaddps */
	FAULTS(&r, "\x0f\xae\x00", X86_NM);             /* fxsave */
	FAULTS(&r, "\x9b", X86_NM);                     /* fwait, with MP set */
	r.cpu.cr0 &= ~CR0_TS;
	r.cpu.cr0 |= CR0_EM;
	FAULTS(&r, "\xd9\xe8", X86_NM);
	FAULTS(&r, "\x0f\x58\xc1", X86_UD);
	FAULTS(&r, "\x0f\xfe\xc1", X86_UD); /* paddd mm */
	r.cpu.cr0 &= ~CR0_EM;
	r.cpu.cr4 &= ~CR4_OSFXSR;
	FAULTS(&r, "\x0f\x58\xc1", X86_UD);
	r.cpu.cr4 |= CR4_OSFXSR;
	r.cpu.xcr0 = XCR0_X87 | XCR0_SSE;
	FAULTS(&r, "\xc5\xf8\x58\xc1", X86_UD);
	r.cpu.cr4 &= ~CR4_OSXSAVE;
	FAULTS(&r, "\x0f\xae\x20", X86_UD); /* xsave */
	thunk_destroy(r.t);
}

TEST(host_faults_become_the_guest_s)
{
	static struct rig r;

	rig_init(&r);
	FAULTS(&r, "\xf7\xf1", X86_DE); /* div ecx */
	r.cpu.gpr[RAX] = 0x8008;
	FAULTS(&r, "\x0f\x28\x00", X86_GP); /* movaps xmm0, [rax] */
	CHECK_EQ(r.cpu.exc.error, 0);
	r.cpu.xsave[24] = 0; /* MXCSR: divide by zero unmasked */
	r.cpu.xsave[25] = 0x1d;
	memset(r.cpu.xsave + 160, 0, 32);
	r.cpu.xsave[160 + 3] = 0x3f;
	FAULTS(&r, "\x0f\x5e\xc1", X86_XM); /* divps */
	r.cpu.cr4 &= ~CR4_OSXMMEXCPT;
	FAULTS(&r, "\x0f\x5e\xc1", X86_UD);
	thunk_destroy(r.t);
}

TEST(operand_across_pages)
{
	static struct rig r;

	rig_init(&r);
	put(0x8ff8, 0x1122334455667788);
	put(0x9000, 0x99aabbccddeeff00);
	r.cpu.gpr[RAX] = 0x8ffc;
	r.cpu.gpr[RCX] = 1;
	CHECK_EQ(STEP(&r, "\xf0\x48\x0f\xc1\x08"), V_DONE); /* lock xadd [rax], rcx */
	CHECK_EQ(r.cpu.gpr[RCX], 0xddeeff0011223344);
	CHECK_EQ(get(0x8ffc, 8), 0xddeeff0011223345);
	thunk_destroy(r.t);
}

#define DEVICE 0x30000000 /* nothing there but devices */

TEST(device_memory)
{
	static struct rig r;
	struct x86_exit *x = &r.cpu.exit;

	rig_init(&r);
	r.cpu.gpr[RAX] = DEVICE;
	r.cpu.gpr[RCX] = 5;
	CHECK_EQ(STEP(&r, "\x01\x08"), V_EXIT); /* add [rax], ecx: the read */
	CHECK(x->kind == EXIT_MMIO && !x->write && x->addr == DEVICE && x->len == 4);
	CHECK_EQ(r.cpu.rip, 0x100000);
	x->data = 37;
	x->completed = true;
	CHECK_EQ(STEP(&r, "\x01\x08"), V_EXIT); /* again: the write */
	CHECK(x->kind == EXIT_MMIO && x->write && x->data == 42 && x->len == 4);
	CHECK_EQ(r.cpu.rip, 0x100002);
	thunk_destroy(r.t);
}

TEST(device_store_of_vectors)
{
	static struct rig r;

	rig_init(&r);
	r.cpu.gpr[RAX] = DEVICE;
	memset(r.cpu.xsave + 160, 0x11, 8);
	memset(r.cpu.xsave + 168, 0x22, 8);
	r.cpu.xsave[512] |= XCR0_SSE;
	CHECK_EQ(STEP(&r, "\x0f\x11\x00"), V_EXIT); /* movups [rax], xmm0 */
	CHECK_EQ(r.cpu.exit.data, 0x1111111111111111);
	CHECK_EQ(x86_resume(&r.cpu), V_EXIT);
	CHECK_EQ(r.cpu.exit.data, 0x2222222222222222);
	CHECK_EQ(r.cpu.exit.addr, DEVICE + 8);
	thunk_destroy(r.t);
}

TEST(xsaves_and_xrstors)
{
	static struct rig r;
	uint8_t before[X86_XSAVE_SIZE];

	rig_init(&r);
	if (!x86_has(&model, FEAT_XSAVES) || !x86_has(&model, FEAT_AVX))
		return;
	for (unsigned i = 0; i < 256; i++)
		r.cpu.xsave[160 + i] = r.cpu.xsave[576 + i] = (uint8_t)i;
	r.cpu.xsave[512] = 7;
	memcpy(before, r.cpu.xsave, sizeof(before));
	r.cpu.gpr[RAX] = 7;
	r.cpu.gpr[RDX] = 0;
	r.cpu.gpr[RDI] = 0x9f00;                        /* crosses a page */
	CHECK_EQ(STEP(&r, "\x48\x0f\xc7\x2f"), V_DONE); /* xsaves64 [rdi] */
	CHECK_EQ(get(0x9f00 + 520, 8), BIT(63) | 7);
	memset(r.cpu.xsave + 160, 0, 256);
	memset(r.cpu.xsave + 576, 0, 256);
	CHECK_EQ(STEP(&r, "\x48\x0f\xc7\x1f"), V_DONE); /* xrstors64 [rdi] */
	CHECK(memcmp(before + 160, r.cpu.xsave + 160, 256) == 0);
	CHECK(memcmp(before + 576, r.cpu.xsave + 576, 256) == 0);
	r.cpu.cpl = 3;
	r.cpu.rip = 0x100000;
	FAULTS(&r, "\x48\x0f\xc7\x1f", X86_GP);
	thunk_destroy(r.t);
}

#define ROUNDS 20000

static void *count_up(void *arg)
{
	struct rig *r = arg;

	if (!host_guest_signals_thread_enter())
		return NULL;
	for (unsigned i = 0; i < ROUNDS; i++)
		STEP(r, "\xf0\x48\xff\x00"); /* lock inc qword [rax] */
	host_guest_signals_thread_leave();
	return NULL;
}

TEST(locked_operations_are_atomic)
{
	static struct rig r[2];
	struct host_thread thread[2];

	put(0x8000, 0);
	for (unsigned i = 0; i < 2; i++) {
		rig_init(&r[i]);
		r[i].cpu.gpr[RAX] = 0x8000;
	}
	for (unsigned i = 0; i < 2; i++)
		REQUIRE(host_thread_start(&thread[i], "count", count_up, &r[i]));
	for (unsigned i = 0; i < 2; i++)
		host_thread_join(&thread[i]);
	CHECK_EQ(get(0x8000, 8), 2 * ROUNDS);
	for (unsigned i = 0; i < 2; i++)
		thunk_destroy(r[i].t);
}

TEST(host_addresses_do_not_show)
{
	static struct rig r;
	uint64_t fip, fdp;

	rig_init(&r);
	r.cpu.gpr[RAX] = 0x8000;
	CHECK_EQ(STEP(&r, "\xdd\x00"), V_DONE); /* fld qword [rax] */
	memcpy(&fip, r.cpu.xsave + 8, 8);
	memcpy(&fdp, r.cpu.xsave + 16, 8);
	CHECK(fip == 0x100000 || fip == 0);
	CHECK(fdp == 0x8000 || fdp == 0);
	thunk_destroy(r.t);
}

UNIT_MAIN()
