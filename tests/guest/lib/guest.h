/*
 * The runtime under every payload: 64-bit mode at 1 MiB, the first 4 GiB mapped onto themselves, traps caught and
 * recorded, other processors, the local APIC, a console on COM1.
 */
#ifndef GUEST_GUEST_H
#define GUEST_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* Tests. */
struct test {
	const char *name;
	void (*fn)(void);
};
#define TEST(n)                                                                                       \
	static void test_##n(void);                                                                   \
	static const struct test entry_##n __attribute__((used, section(".tests"))) = {#n, test_##n}; \
	static void test_##n(void)

/* The payload's name, before each test's. */
extern const char payload[];

void print(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* %s %c %d %u %x %lx %p */
void fail(const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Ends the test at once as not applicable. */
_Noreturn void skip(const char *why);
_Noreturn void machine_exit(unsigned value);
#define CHECK(c)                                            \
	do {                                                \
		if (!(c))                                   \
			fail(__FILE__, __LINE__, "%s", #c); \
	} while (0)
#define CHECK_EQ(a, b)                                                                  \
	do {                                                                            \
		u64 a_ = (u64)(a), b_ = (u64)(b);                                       \
		if (a_ != b_)                                                           \
			fail(__FILE__, __LINE__, "%s is 0x%lx, not 0x%lx", #a, a_, b_); \
	} while (0)
/* The same with a word on which case it was. */
#define CHECK_EQ_IN(a, b, ...)                                                          \
	do {                                                                            \
		u64 a_ = (u64)(a), b_ = (u64)(b);                                       \
		if (a_ != b_) {                                                         \
			fail(__FILE__, __LINE__, "%s is 0x%lx, not 0x%lx", #a, a_, b_); \
			print("  with " __VA_ARGS__);                                   \
			print("\n");                                                    \
		}                                                                       \
	} while (0)

/* Traps. */
struct frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	u64 vector, error;
	u64 rip, cs, rflags, rsp, ss;
};

struct trap {
	struct frame f;
	u64 cr2, dr6;
};

#define NO_TRAP 0x100u

/*
 * Runs `code` and gives the vector of the exception that ended it, or NO_TRAP. last_trap() has the rest. Locals changed
 * inside must be volatile.
 */
#define CATCH(...)                                \
	({                                        \
		if (!catch_save(catch_begin())) { \
			__VA_ARGS__;              \
			catch_end();              \
		}                                 \
		catch_vector();                   \
	})
int catch_save(u64 *buf) __attribute__((returns_twice));
u64 *catch_begin(void);
void catch_end(void);
unsigned catch_vector(void);
struct trap *last_trap(void);

/* Loads all registers from `f` and goes there; comes back with the next trap that has no handler. */
struct trap *run_frame(const struct frame *f);
/*
 * A frame for user (ring 3) or supervisor code: flat 64-bit segments, given stack, interrupts off; user code's are on
 * with the word "programs" on the command line, and AVX enabled: as they are under any system.
 */
struct frame user_frame(u64 rip, u64 rsp);
void enable_for_programs(void); /* that, for another processor than the first */
struct frame kernel_frame(u64 rip, u64 rsp);

/* A handler for one vector; returns true to go on from the frame (which it may change), false for "not mine". */
typedef bool (*trap_handler)(struct frame *f);
void set_handler(unsigned vector, trap_handler handler);

struct idt_gate {
	u16 off0, sel;
	u8 ist, attr;
	u16 off1;
	u32 off2, zero;
};
extern struct idt_gate idt[256];
extern u64 gdt[GDT_ENTRIES];
void set_gate(unsigned vector, void *entry, unsigned ist, unsigned attr);
extern u8 trap_stubs[256][16];

struct tss {
	u32 zero0;
	u64 rsp[3], zero1, ist[7], zero2;
	u16 zero3, iomap;
	u8 bitmap[132]; /* for tests: ports 0 to 1023 */
} __attribute__((packed));
extern struct tss tss[CPUS_MAX];

/* Processors. */
extern unsigned cpus; /* from the command line, "cpus=N" */
unsigned this_cpu(void);
void smp_start(void);         /* starts those that are not running yet */
void ap_forget(unsigned cpu); /* the next smp_start() starts it again by INIT and SIPI */
/* Runs fn(arg) on another processor; smp_wait waits until it is done. */
void smp_post(unsigned cpu, void (*fn)(void *), void *arg);
void smp_wait(unsigned cpu);
/* Starts all and runs fn(arg) on each, this one too, until all are done. */
void smp_all(void (*fn)(void *), void *arg);
void barrier_wait(volatile u32 *b, u32 n); /* `*b` starts as 0; each use adds n */

/* Memory. Physical = virtual below 4 GiB. */
#define PAGE 4096ull
#define PTE_P 1ull
#define PTE_W 2ull
#define PTE_U 4ull
#define PTE_PWT 8ull
#define PTE_PCD 16ull
#define PTE_A 0x20ull
#define PTE_D 0x40ull
#define PTE_PS 0x80ull
#define PTE_G 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull
#define PTE_KERNEL (PTE_P | PTE_W | PTE_A | PTE_D)
#define PTE_USER (PTE_KERNEL | PTE_U)
#define TEST_VA 0x0000008000000000ull /* PML4 entry 1: emptied before each test */

void *alloc_pages(unsigned n); /* zeroed; given back after each test */
void *alloc_aligned(u64 size, u64 align);
volatile u64 *walk(u64 va, unsigned level,
		   bool make);       /* entry at `level` (1 = 4 KiB PTE, 2 = PDE ...); NULL if not there */
void map(u64 va, u64 pa, u64 flags); /* one 4 KiB page, then invlpg */
/* `n` fresh pages at `va`; returns va as a pointer */
void *map_fresh(u64 va, unsigned n, u64 flags);
/* A copy of code between labels `name` and `name_end` into fresh pages that ring 3 may run, at `va` */
void *map_code(u64 va, const void *begin, const void *end, u64 flags);
#define CODE(name) extern u8 name[], name##_end[]
/* Assembly outside any function, between two labels; `mode` is 64, 32 or 16 */
#define SNIPPET(name, mode, text)                                                                               \
	CODE(name);                                                                                             \
	asm(".pushsection .text\n.globl " #name ", " #name "_end\n.code" #mode "\n" #name ":\n" text "\n" #name \
	    "_end:\n.code64\n.popsection\n")
/*
 * A frame that runs a copy of such code (position independent) in ring 3, as 64-bit or as 32-bit code. Code lies at
 * USER_CODE, a stack of one page below USER_STACK, one page of data at USER_DATA, all below 4 GiB.
 */
#define USER_CODE 0xa0000000ull
#define USER_STACK 0xa1000000ull
#define USER_DATA 0xa2000000ull
struct frame user_code(const void *begin, const void *end, unsigned mode);

void invlpg(u64 va);
#define barrier() asm volatile("" : : : "memory")

static inline u64 rdmsr(u32 n)
{
	u32 lo, hi;
	asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(n));
	return (u64)hi << 32 | lo;
}
static inline void wrmsr(u32 n, u64 v)
{
	asm volatile("wrmsr" : : "c"(n), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}
#define CR_FUNCS(n)                                                    \
	static inline u64 read_cr##n(void)                             \
	{                                                              \
		u64 v;                                                 \
		asm volatile("mov %%cr" #n ", %0" : "=r"(v));          \
		return v;                                              \
	}                                                              \
	static inline void write_cr##n(u64 v)                          \
	{                                                              \
		asm volatile("mov %0, %%cr" #n : : "r"(v) : "memory"); \
	}
CR_FUNCS(0)
CR_FUNCS(2)
CR_FUNCS(3)
CR_FUNCS(4)
CR_FUNCS(8)
#define CR3_KEEP (1ull << 63) /* with PCIDs: nothing is flushed */
static inline void invpcid(u64 type, u64 pcid, u64 address)
{
	u64 d[2] = {pcid, address};
	asm volatile("invpcid %0, %1" : : "m"(d), "r"(type) : "memory");
}
static inline u64 rdtsc(void)
{
	u32 lo, hi;
	asm volatile("rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
	return (u64)hi << 32 | lo;
}
static inline void outb(u16 port, u8 v)
{
	asm volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}
static inline u8 inb(u16 port)
{
	u8 v;
	asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline void outl(u16 port, u32 v)
{
	asm volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}
static inline u32 inl(u16 port)
{
	u32 v;
	asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline u64 read_flags(void)
{
	u64 v;
	asm volatile("pushfq; popq %0" : "=r"(v));
	return v;
}
static inline void write_flags(u64 v)
{
	asm volatile("pushq %0; popfq" : : "r"(v) : "memory", "cc");
}
static inline void cpuid(u32 leaf, u32 sub, u32 r[4])
{
	asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
/* A function that is not C's: it may change all registers that C's may. Returns RAX. */
static inline u64 call(u64 at)
{
	u64 rax;
	asm volatile("call *%1"
		     : "=a"(rax)
		     : "r"(at)
		     : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
	return rax;
}
#define cli() asm volatile("cli" : : : "memory")
#define sti() asm volatile("sti" : : : "memory")
#define pause() asm volatile("pause" : : : "memory")

/* CPUID features that tests ask about: (leaf, register, bit). */
bool has_feature(u32 leaf, unsigned reg, unsigned bit);
#define HAS_MONITOR has_feature(1, 2, 3)
#define HAS_PCID has_feature(1, 2, 17)
#define HAS_X2APIC has_feature(1, 2, 21)
#define HAS_DEADLINE has_feature(1, 2, 24)
#define HAS_XSAVE has_feature(1, 2, 26)
#define HAS_AVX has_feature(1, 2, 28)
#define HAS_SMEP has_feature(7, 1, 7)
#define HAS_INVPCID has_feature(7, 1, 10)
#define HAS_SMAP has_feature(7, 1, 20)
#define HAS_UMIP has_feature(7, 2, 2)
#define HAS_FSGSBASE has_feature(7, 1, 0)
#define HAS_GB_PAGES has_feature(0x80000001, 3, 26)
#define HAS_RDTSCP has_feature(0x80000001, 3, 27)
/* The vendor decides some corners. */
bool is_amd(void);
/* A word on the command line ("engine=qemu"). */
bool have_option(const char *word);
/* The number after a word ("seed="). */
u64 option_number(const char *word, u64 otherwise);

#define CR0_MP (1ull << 1)
#define CR0_EM (1ull << 2)
#define CR0_TS (1ull << 3)
#define CR0_NE (1ull << 5)
#define CR0_WP (1ull << 16)
#define CR0_AM (1ull << 18)
#define CR4_TSD (1ull << 2)
#define CR4_DE (1ull << 3)
#define CR4_PGE (1ull << 7)
#define CR4_OSXMMEXCPT (1ull << 10)
#define CR4_UMIP (1ull << 11)
#define CR4_FSGSBASE (1ull << 16)
#define CR4_PCIDE (1ull << 17)
#define CR4_OSXSAVE (1ull << 18)
#define CR4_SMEP (1ull << 20)
#define CR4_SMAP (1ull << 21)
#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_TSC_AUX 0xc0000103
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176

#define FL_CF 1ull
#define FL_PF 4ull
#define FL_AF 0x10ull
#define FL_ZF 0x40ull
#define FL_SF 0x80ull
#define FL_TF 0x100ull
#define FL_IF 0x200ull
#define FL_DF 0x400ull
#define FL_OF 0x800ull
#define FL_IOPL 0x3000ull
#define FL_NT 0x4000ull
#define FL_RF 0x10000ull
#define FL_AC 0x40000ull
#define FL_ID 0x200000ull
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

enum {
	DE = 0,
	DB = 1,
	NMI = 2,
	BP = 3,
	OF = 4,
	BR = 5,
	UD = 6,
	NM = 7,
	DF = 8,
	TS = 10,
	NP = 11,
	SS = 12,
	GP = 13,
	PF = 14,
	MF = 16,
	AC = 17,
	XM = 19
};
enum { PF_P = 1, PF_W = 2, PF_U = 4, PF_RSVD = 8, PF_I = 16 };

/* Local APIC of this processor, xAPIC or x2APIC as it is set. `reg` as in the xAPIC's map (0x20 ID, 0xb0 EOI ...). */
enum {
	APIC_ID = 0x20,
	APIC_TPR = 0x80,
	APIC_EOI = 0xb0,
	APIC_SVR = 0xf0,
	APIC_ISR = 0x100,
	APIC_TMR = 0x180,
	APIC_IRR = 0x200,
	APIC_ESR = 0x280,
	APIC_ICR = 0x300,
	APIC_LVT_TIMER = 0x320,
	APIC_LVT_LINT0 = 0x350,
	APIC_LVT_ERROR = 0x370,
	APIC_TIMER_INIT = 0x380,
	APIC_TIMER_NOW = 0x390,
	APIC_TIMER_DIVIDE = 0x3e0
};
bool apic_x2(void);
u32 apic_read(unsigned reg);
void apic_write(unsigned reg, u32 v);
void apic_icr(u32 dest, u32 low);    /* waits until it is sent */
void apic_timer(u32 lvt, u32 ticks); /* starts it at its full rate; `lvt`: vector and mode */
bool apic_end(struct frame *f);      /* a handler: ends what run_frame runs with its vector */
void apic_enable(void);              /* xAPIC mode, software-enabled, all masked; the 8259s masked too */
void apic_set_x2(bool on);
#define ICR_NMI 0x400
#define ICR_INIT 0x500
#define ICR_SIPI 0x600
#define ICR_ASSERT 0x4000
#define ICR_SELF 0x40000
#define ICR_ALL 0x80000
#define ICR_OTHERS 0xc0000

/* Time by the ACPI PM timer (3.579545 MHz), port 0x608; from a start of this processor's own. */
u64 now_us(void);
void delay_us(u64 us);
/* Waits until `cond` or `us` have gone by; true if cond. */
#define WAIT_FOR(cond, us)                                 \
	({                                                 \
		u64 end_ = now_us() + (us);                \
		bool ok_;                                  \
		while (!(ok_ = (cond)) && now_us() < end_) \
			pause();                           \
		ok_;                                       \
	})

void *memcpy(void *d, const void *s, size_t n);
void *memset(void *d, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);
u64 random64(void); /* the same sequence in each run of a test; tests/guest/run --seed gives others */

#endif
