/*
 * The flags in a fault's frame are those of the last instruction that made any, though what follows the fault would
 * overwrite them at once: a translator that leaves out dead flags must still have them. Each case is run with the
 * fault, and with PUSHF in its place.
 */
#include "guest.h"

const char payload[] = "flags";

#define DATA (TEST_VA + 0x100000) /* a page that is there */
#define HOLE (TEST_VA + 0x300000) /* one that is not */

/* `op` may use all registers but rdi, rbp, rsp and r15; rsi points to data. */
struct op {
	const char *name;
	const u8 *fault, *push;
	bool sse4, bmi, adx, avx;
};
#define OP(name, text, ...)                                                                   \
	SNIPPET(f_##name, 64, text "; movb %al, (%rdi); xorl %eax, %eax; addb $1, %al; ud2"); \
	SNIPPET(p_##name, 64, text "; pushfq; popq %rbp; xorl %eax, %eax; ud2");
#define OPS(X)                                                                                                        \
	X(add, "addq %rbx, %rax")                                                                                     \
	X(add32, "addl %ebx, %eax")                                                                                   \
	X(add16, "addw %bx, %ax")                                                                                     \
	X(add8, "addb %bl, %al")                                                                                      \
	X(addh, "addb %bh, %ah")                                                                                      \
	X(add_imm, "addl $0x7fffffff, %eax")                                                                          \
	X(add_mem, "addq (%rsi), %rax")                                                                               \
	X(add_rmw, "addl %eax, (%rsi)")                                                                               \
	X(sub, "subq %rbx, %rax")                                                                                     \
	X(sub8, "subb %bl, %al")                                                                                      \
	X(cmp, "cmpq %rbx, %rax")                                                                                     \
	X(cmp32, "cmpl %ebx, %eax")                                                                                   \
	X(cmp8, "cmpb %bl, %al")                                                                                      \
	X(cmp_mem, "cmpq %rax, (%rsi)")                                                                               \
	X(cmp_mem_imm, "cmpb $5, (%rsi)")                                                                             \
	X(test, "testq %rbx, %rax")                                                                                   \
	X(test_imm, "testb $0x80, %al")                                                                               \
	X(and, "andl %ebx, %eax")                                                                                     \
	X(or, "orw %bx, %ax")                                                                                         \
	X(xor, "xorq %rbx, %rax")                                                                                     \
	X(inc, "incl %eax")                                                                                           \
	X(inc8, "incb %al")                                                                                           \
	X(dec, "decq %rax")                                                                                           \
	X(inc_mem, "incq (%rsi)")                                                                                     \
	X(neg, "negl %eax")                                                                                           \
	X(adc, "adcq %rbx, %rax")                                                                                     \
	X(sbb, "sbbl %ebx, %eax")                                                                                     \
	X(sbb_self, "sbbq %rax, %rax")                                                                                \
	X(adc_chain, "addq %rbx, %rax; adcq %rcx, %rdx; adcq $0, %r8")                                                \
	X(shl1, "shlq %rax")                                                                                          \
	X(shl5, "shll $5, %eax")                                                                                      \
	X(shr, "shrq $3, %rax")                                                                                       \
	X(sar, "sarw $1, %ax")                                                                                        \
	X(shl_cl, "shlq %cl, %rax")                                                                                   \
	X(shl_cl0, "addl %ebx, %eax; xchgl %ecx, %edx; movb $0, %cl; shll %cl, %eax")                                 \
	X(sar_cl, "sarl %cl, %eax")                                                                                   \
	X(rol, "rolq $7, %rax")                                                                                       \
	X(ror_cl, "rorl %cl, %eax")                                                                                   \
	X(rcl, "rclq $1, %rax")                                                                                       \
	X(rcr_cl, "rcrl %cl, %eax")                                                                                   \
	X(shld, "shldq $9, %rbx, %rax")                                                                               \
	X(shrd_cl, "shrdl %cl, %ebx, %eax")                                                                           \
	X(imul2, "imulq %rbx, %rax")                                                                                  \
	X(imul3, "imull $77, %ebx, %eax")                                                                             \
	X(mul, "mulq %rbx")                                                                                           \
	X(bt, "btq %rbx, %rax")                                                                                       \
	X(bts, "btsl $3, %eax")                                                                                       \
	X(btc_mem, "btcq $17, (%rsi)")                                                                                \
	X(bsf, "bsfq %rbx, %rax")                                                                                     \
	X(bsr, "bsrl %ebx, %eax")                                                                                     \
	X(xadd, "xaddq %rbx, %rax")                                                                                   \
	X(lock_xadd, "lock xaddq %rbx, (%rsi)")                                                                       \
	X(lock_add, "lock addl $1, (%rsi)")                                                                           \
	X(cmpxchg, "cmpxchgq %rbx, %rcx")                                                                             \
	X(lock_cmpxchg, "lock cmpxchgl %ebx, (%rsi)")                                                                 \
	X(cmpxchg8b, "lock cmpxchg8b (%rsi)")                                                                         \
	X(cmpxchg16b, "lock cmpxchg16b (%rsi)")                                                                       \
	X(cmc, "cmc")                                                                                                 \
	X(stc, "stc")                                                                                                 \
	X(clc, "clc")                                                                                                 \
	X(std, "std")                                                                                                 \
	X(sahf, "sahf")                                                                                               \
	X(popf, "pushq $0x8d5; popfq")                                                                                \
	X(comisd, "movq %rax, %xmm0; movq %rbx, %xmm1; comisd %xmm1, %xmm0")                                          \
	X(ucomiss, "movq %rax, %xmm0; movq %rax, %xmm1; ucomiss %xmm1, %xmm0")                                        \
	X(fcomi, "fninit; fld1; fldz; fcomip %st(1), %st; fstp %st(0)")                                               \
	X(cmps, "movq %rdi, %r14; leaq 8(%rsi), %rdi; cmpsq; movq %r14, %rdi")                                        \
	X(scas, "movq %rdi, %r14; movq %rsi, %rdi; scasb; movq %r14, %rdi")                                           \
	X(repe, "movq %rdi, %r14; leaq 64(%rsi), %rdi; movl $16, %ecx; repe cmpsb; movq %r14, %rdi")                  \
	X(no_flags, "addq %rbx, %rax; movq %rax, %rcx; leaq 1(%rcx), %rdx; notq %rdx; bswapq %rdx; movzbl %dl, %ecx") \
	X(loads, "subq %rbx, %rax; movq (%rsi), %rcx; movq 8(%rsi), %rdx; movq %rcx, 16(%rsi)")                       \
	X(stack, "subq %rbx, %rax; pushq %rax; popq %rcx; pushq %rcx; popq %rdx")                                     \
	X(setcc, "cmpq %rbx, %rax; setb %cl; setg %dl; cmovsq %rbx, %rax")                                            \
	X(branch, "cmpq %rbx, %rax; jb 1f; nop; 1: jz 2f; nop; 2:")                                                   \
	X(branch_over, "testq %rax, %rax; js 1f; addq %rbx, %rax; 1:")                                                \
	X(call, "subq %rbx, %rax; call 1f; jmp 2f; 1: ret; 2:")                                                       \
	X(loop, "movl $5, %ecx; 1: addq %rbx, %rax; loop 1b")                                                         \
	X(loop_dec, "movl $5, %ecx; 1: addq %rbx, %rax; decl %ecx; jnz 1b")                                           \
	X(dead_between, "addq %rbx, %rax; subq %rcx, %rdx")
OPS(OP)
/* Those that need more than the base set. */
#define OPS_MORE(X)                                                                    \
	X(popcnt, "popcntq %rbx, %rax")                                                \
	X(ptest, "movq %rax, %xmm0; movq %rbx, %xmm1; ptest %xmm1, %xmm0")             \
	X(pcmpistri, "movq %rax, %xmm0; movq %rbx, %xmm1; pcmpistri $8, %xmm1, %xmm0") \
	X(crc32, "addq %rbx, %rax; crc32q %rbx, %rax")
OPS_MORE(OP)
#define OPS_BMI(X)                                                                                                  \
	X(andn, "andnq %rbx, %rax, %rcx")                                                                           \
	X(blsr, "blsrq %rbx, %rax")                                                                                 \
	X(bextr, "bextrq %rcx, %rbx, %rax")                                                                         \
	X(bzhi, "bzhiq %rcx, %rbx, %rax")                                                                           \
	X(lzcnt, "lzcntq %rbx, %rax")                                                                               \
	X(tzcnt, "tzcntl %ebx, %eax")                                                                               \
	X(rorx, "addq %rbx, %rax; rorxq $5, %rax, %rcx; shlxq %rcx, %rax, %rdx; mulxq %rax, %r8, %r9; pdepq %rax, " \
		"%rbx, %rcx")
OPS_BMI(OP)
#define OPS_ADX(X) X(adcx, "adcxq %rbx, %rax; adoxq %rcx, %rdx")
OPS_ADX(OP)

#define ENTRY(name, text) {#name, f_##name, p_##name, 0, 0, 0, 0},
static const struct op base_ops[] = {OPS(ENTRY)};
static const struct op sse4_ops[] = {OPS_MORE(ENTRY)};
static const struct op bmi_ops[] = {OPS_BMI(ENTRY)};
static const struct op adx_ops[] = {OPS_ADX(ENTRY)};

static u64 operand(void)
{
	static const u64 corners[] = {0,
				      1,
				      ~0ull,
				      0x7f,
				      0x80,
				      0xff,
				      0x7fff,
				      0x8000,
				      0x7fffffff,
				      0x80000000,
				      0xffffffff,
				      1ull << 63,
				      (1ull << 63) - 1,
				      0x8000000080008080};
	u64 r = random64();
	return r % 3 ? r : corners[(r >> 8) % (sizeof(corners) / 8)];
}

static void set_up(void)
{
	map_fresh(DATA, 1, PTE_KERNEL);
	map_fresh(DATA + 2 * PAGE, 1, PTE_KERNEL); /* stack */
	walk(HOLE, 1, true);
}

static void fill_data(u64 seed)
{
	for (unsigned i = 0; i < 32; i++)
		((volatile u64 *)DATA)[i] = i & 1 ? seed * i : seed;
}

/* Flags that an instruction leaves undefined (SDM Vol. 1 appendix A) are not compared. */
static u64 undefined(const char *name)
{
	static const struct {
		const char *name;
		u64 flags;
	} table[] = {
		{"imul", FL_SF | FL_ZF | FL_AF | FL_PF},
		{"mul", FL_SF | FL_ZF | FL_AF | FL_PF},
		{"bt", FL_OF | FL_SF | FL_AF | FL_PF},
		{"bs", FL_ARITH & ~FL_ZF},
		{"sh", FL_AF | FL_OF},
		{"sar", FL_AF | FL_OF},
		{"ro", FL_OF},
		{"rc", FL_OF},
		{"and", FL_AF | FL_PF},
		{"or", FL_AF},
		{"xor", FL_AF},
		{"test", FL_AF},
		{"bl", FL_AF | FL_PF},
		{"bextr", FL_AF | FL_SF | FL_PF},
		{"bzhi", FL_AF | FL_PF},
		{"lzcnt", FL_OF | FL_SF | FL_PF | FL_AF},
		{"tzcnt", FL_OF | FL_SF | FL_PF | FL_AF},
	};
	for (unsigned i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		if (!memcmp(name, table[i].name, strlen(table[i].name)))
			return table[i].flags;
	}
	return 0;
}

static void check_op(const struct op *op)
{
	for (unsigned i = 0; i < 24; i++) {
		struct frame f = kernel_frame((u64)op->push, DATA + 3 * PAGE);
		f.rax = operand();
		f.rbx = operand();
		f.rcx = operand();
		f.rdx = operand();
		f.rsi = DATA;
		f.rdi = HOLE;
		f.rflags = 2 | (random64() & (FL_ARITH | FL_DF));
		if (!memcmp(op->name, "cmps", 5) || !memcmp(op->name, "scas", 5) || !memcmp(op->name, "repe", 5))
			f.rflags &= ~FL_DF;
		u64 seed = i & 1 ? f.rax : operand();
		fill_data(seed);
		struct trap *t = run_frame(&f);
		CHECK_EQ_IN(t->f.vector, UD, "%s", op->name);
		u64 want = t->f.rbp & ~undefined(op->name);
		fill_data(seed);
		f.rip = (u64)op->fault;
		t = run_frame(&f);
		u64 got = t->f.rflags & ~FL_RF & ~undefined(op->name);
		CHECK_EQ_IN(t->f.vector, PF, "%s", op->name);
		CHECK_EQ_IN(got, want, "%s rax %lx rbx %lx rcx %lx flags %lx", op->name, f.rax, f.rbx, f.rcx, f.rflags);
		if (got != want)
			break;
	}
}

#define CHECK_OPS(ops)                                              \
	for (unsigned i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) \
	check_op(&ops[i])

TEST(fault_after)
{
	set_up();
	CHECK_OPS(base_ops);
}

TEST(fault_after_sse4)
{
	if (!has_feature(1, 2, 20) || !has_feature(1, 2, 23))
		skip("no SSE4.2");
	set_up();
	CHECK_OPS(sse4_ops);
}

TEST(fault_after_bmi)
{
	if (!has_feature(7, 1, 8) || !has_feature(7, 1, 3))
		skip("no BMI");
	set_up();
	CHECK_OPS(bmi_ops);
}

TEST(fault_after_adx)
{
	if (!has_feature(7, 1, 19))
		skip("no ADX");
	set_up();
	CHECK_OPS(adx_ops);
}

/* Known values, so that both ways above cannot be wrong together. */
static void check_value(const u8 *code, u64 rax, u64 rbx, u64 flags, u64 want)
{
	struct frame f = kernel_frame((u64)code, DATA + 3 * PAGE);
	f.rax = rax;
	f.rbx = rbx;
	f.rsi = DATA;
	f.rdi = HOLE;
	f.rflags = 2 | flags;
	struct trap *t = run_frame(&f);
	CHECK_EQ(t->f.vector, PF);
	CHECK_EQ(t->f.rflags & FL_ARITH, want);
}

TEST(known_values)
{
	set_up();
	check_value(f_add, 1, ~0ull, 0, FL_CF | FL_AF | FL_ZF | FL_PF);
	check_value(f_add, (1ull << 63) - 1, 1, 0, FL_OF | FL_SF | FL_AF | FL_PF);
	check_value(f_add8, 0x7f, 1, 0, FL_OF | FL_SF | FL_AF);
	check_value(f_sub, 0, 1, 0, FL_CF | FL_SF | FL_AF | FL_PF);
	check_value(f_cmp32, 5, 5, FL_CF, FL_ZF | FL_PF);
	check_value(f_inc, 0xffffffff, 0, FL_CF, FL_CF | FL_ZF | FL_PF | FL_AF);
	check_value(f_inc, 0x7fffffff, 0, 0, FL_OF | FL_SF | FL_PF | FL_AF);
	check_value(f_adc, ~0ull, 0, FL_CF, FL_CF | FL_AF | FL_ZF | FL_PF);
	check_value(f_sbb_self, 7, 0, FL_CF, FL_CF | FL_AF | FL_SF | FL_PF);
	check_value(f_cmc, 0, 0, FL_CF | FL_ZF, FL_ZF);
	check_value(f_neg, 0x80000000, 0, 0, FL_OF | FL_CF | FL_SF | FL_PF);
}

/* The other kinds of faulting instruction, after ADD that overflows. */
#define FAULTS(X)                               \
	X(load, "movb (%rdi), %al")             \
	X(load_op, "addq (%rdi), %rax")         \
	X(rmw, "subq %rax, (%rdi)")             \
	X(lock, "lock incl (%rdi)")             \
	X(movs, "movsb")                        \
	X(rep, "movl $9, %ecx; rep stosb")      \
	X(push, "movq %rdi, %rsp; pushq %rax")  \
	X(pop, "movq %rdi, %rsp; popq %rax")    \
	X(call, "movq %rdi, %rsp; call 1f; 1:") \
	X(ret, "movq %rdi, %rsp; ret")          \
	X(jmp, "jmp *(%rdi)")                   \
	X(fetch, "jmp *%rdi")                   \
	X(sse, "movups (%rdi), %xmm0")          \
	X(sse_store, "movups %xmm0, (%rdi)")    \
	X(x87, "fldl (%rdi)")                   \
	X(fxsave, "fxsave (%rdi)")              \
	X(cmov, "cmovc (%rdi), %eax")           \
	X(setcc, "setc (%rdi)")                 \
	X(xchg, "xchgq %rax, (%rdi)")           \
	X(cmpxchg, "cmpxchgq %rbx, (%rdi)")     \
	X(bt, "btq $3, (%rdi)")                 \
	X(shl, "shlq $3, (%rdi)")               \
	X(neg, "negb (%rdi)")                   \
	X(mul, "mulq (%rdi)")                   \
	X(div, "divq (%rdi)")                   \
	X(cross, "movq -4(%rdi), %rax")         \
	X(invlpg_free, "movb -1(%rdi), %al")    \
	X(prefetched, "prefetcht0 (%rdi); movb (%rdi), %al")
#define FAULT(name, text) SNIPPET(k_##name, 64, "addq %rbx, %rax; " text "; xorl %eax, %eax; addb $1, %al; ud2");
FAULTS(FAULT)

TEST(fault_kinds)
{
#define FAULT_ENTRY(name, text) {#name, k_##name},
	static const struct {
		const char *name;
		const u8 *code;
	} kinds[] = {FAULTS(FAULT_ENTRY)};
	set_up();
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		for (unsigned j = 0; j < 2; j++) {
			struct frame f = kernel_frame((u64)kinds[i].code, DATA + 3 * PAGE);
			f.rax = j ? 1ull << 63 : 0x17;
			f.rbx = j ? 1ull << 63 : 0x29;
			f.rsi = DATA;
			f.rdi = HOLE;
			u64 want = j ? FL_OF | FL_CF | FL_ZF | FL_PF : FL_AF;
			struct trap *t = run_frame(&f);
			CHECK_EQ_IN(t->f.vector, PF, "%s", kinds[i].name);
			CHECK_EQ_IN(t->f.rflags & FL_ARITH, want | (j ? 0 : 0x40 & 0), "%s %u", kinds[i].name, j);
			CHECK_EQ_IN(t->f.rax == f.rax + f.rbx, 1, "%s rax %lx", kinds[i].name, t->f.rax);
		}
	}
}

/* After the fault is mended the flags are still there. */
static bool mend(struct frame *f)
{
	map_fresh(HOLE, 1, PTE_KERNEL);
	(void)f;
	return true;
}
SNIPPET(resumed, 64, "addq %rbx, %rax; movb %al, (%rdi); pushfq; popq %rbp; ud2");
TEST(resume)
{
	set_up();
	set_handler(PF, mend);
	for (unsigned i = 0; i < 20; i++) {
		map(HOLE, 0, 0);
		struct frame f = kernel_frame((u64)resumed, DATA + 3 * PAGE);
		f.rax = operand();
		f.rbx = -f.rax + (i & 1);
		f.rdi = HOLE;
		struct trap *t = run_frame(&f);
		CHECK_EQ(t->f.vector, UD);
		CHECK_EQ(t->f.rbp & FL_ZF, i & 1 ? 0 : FL_ZF);
		CHECK_EQ(t->f.rbp & FL_CF, f.rax + f.rbx < f.rax ? FL_CF : 0);
	}
}

/* LAHF, SETcc and PUSHF after every state of the flags agree with POPF. */
TEST(all_states)
{
	for (unsigned n = 0; n < 64; n++) {
		u64 fl = 2 | (n & 1 ? FL_CF : 0) | (n & 2 ? FL_PF : 0) | (n & 4 ? FL_AF : 0) | (n & 8 ? FL_ZF : 0) |
			 (n & 16 ? FL_SF : 0) | (n & 32 ? FL_OF : 0);
		u64 got;
		u8 ah, o, le, b;
		asm volatile("pushq %5; popfq; lahf; movb %%ah, %1; seto %2; setle %3; setb %4; pushfq; popq %0"
			     : "=&r"(got), "=&m"(ah), "=&m"(o), "=&m"(le), "=&m"(b)
			     : "r"(fl)
			     : "rax", "cc");
		CHECK_EQ(got & FL_ARITH, fl & FL_ARITH);
		CHECK_EQ(ah, (fl & 0xd5) | 2);
		CHECK_EQ(o, !!(fl & FL_OF));
		CHECK_EQ(b, !!(fl & FL_CF));
		CHECK_EQ(le, (fl & FL_ZF) || !(fl & FL_SF) != !(fl & FL_OF));
	}
}

/* Flags that only software sets survive ordinary code. */
TEST(other_flags)
{
	u64 v;
	write_flags(2 | FL_ID | FL_AC | FL_NT | FL_DF | FL_IOPL);
	asm volatile("addl $1, %%eax; cmpl %%eax, %%ecx; pushfq; popq %0" : "=r"(v) : : "rax", "cc");
	write_flags(2);
	CHECK_EQ(v & ~FL_ARITH, 2 | FL_ID | FL_AC | FL_NT | FL_DF | FL_IOPL);
	CHECK_EQ(read_flags() & ~FL_ARITH, 2);
}
