/* Start, tests and their report, console, traps, memory. */
#include "guest.h"

#include <stdarg.h>

extern const struct test tests_begin[], tests_end[];
extern u8 image_end[];
extern u8 gdt_pointer[];
extern u64 boot_pml4[], boot_pdpt[], boot_pd[];
extern u32 start_info;
extern u8 trampoline[], trampoline_end[];
_Noreturn void catch_resume(u64 *buf);
_Noreturn void frame_enter(const struct frame *f);

struct idt_gate idt[256] __attribute__((aligned(16)));
struct tss tss[CPUS_MAX] __attribute__((aligned(16)));
unsigned cpus = 1;

struct cpu {
	struct trap trap;
	u64 catch_buf[9];
	bool catching;
	unsigned vector;
	void (*volatile job)(void *);
	void *volatile arg;
	volatile bool online;
	u8 stack_int[8192] __attribute__((aligned(16)));
	u8 stack_trap[8192] __attribute__((aligned(16)));
	u8 stack_nmi[4096] __attribute__((aligned(16)));
	u8 stack_df[4096] __attribute__((aligned(16)));
};
static struct cpu cpu_data[CPUS_MAX];

/* ---- the C library's share ---- */
void *memcpy(void *d, const void *s, size_t n)
{
	void *r = d;
	asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
	return r;
}
void *memset(void *d, int c, size_t n)
{
	void *r = d;
	asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return r;
}
int memcmp(const void *a, const void *b, size_t n)
{
	const u8 *p = a, *q = b;
	for (; n; n--, p++, q++) {
		if (*p != *q)
			return *p - *q;
	}
	return 0;
}
size_t strlen(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}
static u64 seed, random_state;
u64 random64(void)
{
	u64 x = random_state;
	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	random_state = x;
	return x * 0x2545f4914f6cdd1d;
}

/* ---- console ---- */
static void put(char c)
{
	if (c == '\n')
		put('\r');
	for (unsigned i = 0; i < 100000 && !(inb(0x3fd) & 0x20); i++)
		pause();
	outb(0x3f8, c);
}
static void put_number(u64 v, unsigned base)
{
	char buf[24];
	unsigned n = 0;
	do
		buf[n++] = "0123456789abcdef"[v % base];
	while (v /= base);
	while (n)
		put(buf[--n]);
}
static void vprint(const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		if (*fmt != '%') {
			put(*fmt);
			continue;
		}
		bool wide = false;
		while (*++fmt == 'l')
			wide = true;
		switch (*fmt) {
		case 's':
			for (const char *s = va_arg(ap, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put(va_arg(ap, int));
			break;
		case 'd': {
			int64_t v = wide ? va_arg(ap, int64_t) : va_arg(ap, int);
			if (v < 0)
				put('-');
			put_number(v < 0 ? -v : v, 10);
			break;
		}
		case 'u':
			put_number(wide ? va_arg(ap, u64) : va_arg(ap, u32), 10);
			break;
		case 'p':
			put_number(va_arg(ap, u64), 16);
			break;
		case 'x':
			put_number(wide ? va_arg(ap, u64) : va_arg(ap, u32), 16);
			break;
		default:
			put(*fmt);
		}
	}
}
static volatile u32 print_lock;
static void lock_print(void)
{
	while (__atomic_exchange_n(&print_lock, 1, __ATOMIC_ACQUIRE))
		pause();
}
void print(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	lock_print();
	vprint(fmt, ap);
	print_lock = 0;
	va_end(ap);
}

void machine_exit(unsigned value)
{
	outl(0xf4, value);
	for (;;)
		asm volatile("cli; hlt");
}

/* ---- tests ---- */
static const struct test *current;
static volatile unsigned failures_here, failures;
static const char *skipped;
static u64 skip_buf[9];

void fail(const char *file, int line, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	__atomic_add_fetch(&failures_here, 1, __ATOMIC_RELAXED);
	if (failures_here > 12)
		return;
	print("FAIL %s.%s: %s:%d: ", payload, current ? current->name : "start", file, line);
	lock_print();
	vprint(fmt, ap);
	put('\n');
	print_lock = 0;
	va_end(ap);
}

void skip(const char *why)
{
	skipped = why;
	catch_resume(skip_buf);
}

static const char *command_line(void)
{
	u64 line = *(u64 *)(u64)(start_info + 24);
	return line ? (const char *)line : "";
}

/* Finds `word` at the start of a word of the command line; returns what follows it. */
static const char *find_option(const char *word)
{
	size_t n = strlen(word);
	for (const char *s = command_line(); *s; s++) {
		if (!memcmp(s, word, n))
			return s + n;
		while (s[1] && *s != ' ')
			s++;
	}
	return NULL;
}
bool have_option(const char *word)
{
	return find_option(word);
}

u64 option_number(const char *word, u64 otherwise)
{
	const char *s = find_option(word);
	u64 n = 0;
	for (; s && *s >= '0' && *s <= '9'; s++)
		n = n * 10 + (*s - '0');
	return s ? n : otherwise;
}

static void reset_environment(void);

static void run_test(const struct test *t)
{
	const char *only = find_option("only=");
	size_t n = strlen(t->name);
	if (only && (memcmp(only, t->name, n) || (only[n] && only[n] != ' ')))
		return;
	current = t;
	failures_here = 0;
	random_state = (seed + 1) * 0x9e3779b97f4a7c15;
	skipped = NULL;
	reset_environment();
	if (have_option("verbose"))
		print("run %s.%s\n", payload, t->name);
	if (!catch_save(skip_buf))
		t->fn();
	reset_environment();
	if (skipped)
		print("skip %s.%s: %s\n", payload, t->name, skipped);
	else if (!failures_here)
		print("ok %s.%s\n", payload, t->name);
	else
		print("  seed=%lu\n", seed);
	failures += failures_here;
}

static void set_up_cpu(unsigned n);

static _Noreturn void ap_loop(struct cpu *c)
{
	c->online = true;
	for (;;) {
		void (*job)(void *) = c->job;
		if (!job) {
			pause();
			continue;
		}
		job(c->arg);
		barrier();
		c->job = NULL;
	}
}

_Noreturn void cpu_main(unsigned n)
{
	set_up_cpu(n);
	if (n)
		ap_loop(&cpu_data[n]);
	cpus = option_number("cpus=", cpus);
	seed = option_number("seed=", 0);
	apic_enable();
	for (const struct test *t = tests_begin; t < tests_end; t++)
		run_test(t);
	machine_exit(failures ? 1 : 0);
}

/* ---- traps ---- */
static trap_handler handlers[256];
static const u8 default_ist[32] = {1, 1, 2, 1, 1, 1, 1, 1, 3, 1, 1, 1, 1, 1, 1, 1,
				   1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

unsigned this_cpu(void)
{
	u16 tr;
	asm volatile("str %0" : "=r"(tr));
	return tr ? (tr - SEL_TSS) >> 4 : 0;
}

void set_handler(unsigned vector, trap_handler handler)
{
	handlers[vector] = handler;
}

void set_gate(unsigned vector, void *entry, unsigned ist, unsigned attr)
{
	u64 e = (u64)entry;
	idt[vector] = (struct idt_gate){e, SEL_CODE64, ist, attr, e >> 16, e >> 32, 0};
}

static void set_up_cpu(unsigned n)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) idtr = {sizeof(idt) - 1, (u64)idt};
	struct cpu *c = &cpu_data[n];
	u64 base = (u64)&tss[n];
	tss[n].rsp[0] = (u64)(c->stack_int + sizeof(c->stack_int));
	tss[n].ist[0] = (u64)(c->stack_trap + sizeof(c->stack_trap));
	tss[n].ist[1] = (u64)(c->stack_nmi + sizeof(c->stack_nmi));
	tss[n].ist[2] = (u64)(c->stack_df + sizeof(c->stack_df));
	tss[n].iomap = sizeof(struct tss);
	u64 limit = sizeof(struct tss) - 1;
	u64 *d = &gdt[SEL_TSS / 8 + 2 * n];
	d[0] = limit | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
	d[1] = base >> 32;
	asm volatile("lidt %0; ltr %w1" : : "m"(idtr), "r"(SEL_TSS + 16 * n) : "memory");
}

u64 *catch_begin(void)
{
	struct cpu *c = &cpu_data[this_cpu()];
	c->catching = true;
	c->vector = NO_TRAP;
	return c->catch_buf;
}
void catch_end(void)
{
	cpu_data[this_cpu()].catching = false;
}
unsigned catch_vector(void)
{
	return cpu_data[this_cpu()].vector;
}
struct trap *last_trap(void)
{
	return &cpu_data[this_cpu()].trap;
}

static _Noreturn void unexpected(const struct trap *t)
{
	const struct frame *f = &t->f;
	print_lock = 0;
	print("  seed=%lu\n", seed);
	print("FAIL %s.%s: unexpected trap %lu error 0x%lx at %lx:%lx rflags 0x%lx cr2 0x%lx rsp %lx on cpu %u\n",
	      payload, current ? current->name : "start", f->vector, f->error, f->cs, f->rip, f->rflags, t->cr2, f->rsp,
	      this_cpu());
	print("  rax %lx rbx %lx rcx %lx rdx %lx rsi %lx rdi %lx rbp %lx r8 %lx\n", f->rax, f->rbx, f->rcx, f->rdx,
	      f->rsi, f->rdi, f->rbp, f->r8);
	machine_exit(1);
}

void trap_entry(struct frame *f);
void trap_entry(struct frame *f)
{
	struct cpu *c = &cpu_data[this_cpu()];
	if (handlers[f->vector] && handlers[f->vector](f))
		return;
	c->trap.f = *f;
	c->trap.cr2 = read_cr2();
	asm volatile("mov %%dr6, %0" : "=r"(c->trap.dr6));
	if (!c->catching)
		unexpected(&c->trap);
	c->catching = false;
	c->vector = f->vector;
	catch_resume(c->catch_buf);
}

struct trap *run_frame(const struct frame *f)
{
	if (!catch_save(catch_begin()))
		frame_enter(f);
	return last_trap();
}

struct frame user_frame(u64 rip, u64 rsp)
{
	u64 rflags = have_option("programs") ? 2 | FL_IF : 2;
	return (struct frame){.rip = rip, .cs = SEL_USER_CODE64, .rflags = rflags, .rsp = rsp, .ss = SEL_USER_DATA};
}
struct frame kernel_frame(u64 rip, u64 rsp)
{
	return (struct frame){.rip = rip, .cs = SEL_CODE64, .rflags = 2, .rsp = rsp, .ss = SEL_DATA};
}

/* ---- memory ---- */
#define HEAP_BEGIN 0x1000000ull
#define HEAP_END 0x7000000ull
static u64 heap = HEAP_BEGIN;

void *alloc_aligned(u64 size, u64 align)
{
	u64 p = (heap + align - 1) & ~(align - 1);
	heap = p + ((size + PAGE - 1) & ~(PAGE - 1));
	if (heap > HEAP_END) {
		print("FAIL %s: out of memory\n", payload);
		machine_exit(1);
	}
	return memset((void *)p, 0, size);
}
void *alloc_pages(unsigned n)
{
	return alloc_aligned(n * PAGE, PAGE);
}

void invlpg(u64 va)
{
	asm volatile("invlpg (%0)" : : "r"(va) : "memory");
}

volatile u64 *walk(u64 va, unsigned level, bool make)
{
	volatile u64 *table = (u64 *)(read_cr3() & PTE_ADDR);
	for (unsigned l = 4;; l--) {
		volatile u64 *e = &table[va >> (12 + 9 * (l - 1)) & 511];
		if (l == level)
			return e;
		if (!(*e & PTE_P)) {
			if (!make)
				return NULL;
			*e = (u64)alloc_pages(1) | PTE_USER;
		}
		if (*e & PTE_PS)
			return NULL;
		table = (u64 *)(*e & PTE_ADDR);
	}
}

void map(u64 va, u64 pa, u64 flags)
{
	*walk(va, 1, true) = pa | flags;
	invlpg(va);
}

void *map_fresh(u64 va, unsigned n, u64 flags)
{
	for (unsigned i = 0; i < n; i++)
		map(va + i * PAGE, (u64)alloc_pages(1), flags);
	return (void *)va;
}

void *map_code(u64 va, const void *begin, const void *end, u64 flags)
{
	u64 len = (const u8 *)end - (const u8 *)begin;
	u64 n = (len + PAGE - 1) / PAGE;
	u8 *pages = alloc_pages(n);
	memcpy(pages, begin, len);
	for (u64 i = 0; i < n; i++)
		map(va + i * PAGE, (u64)pages + i * PAGE, flags);
	return (void *)va;
}

/* The low identity map has 2 MiB pages; the three areas get tables of their own in their stead. */
static void make_area(u64 va, u64 pa)
{
	boot_pd[va >> 21] = 0;
	boot_pdpt[va >> 30] |= PTE_U;
	boot_pml4[0] |= PTE_U;
	map(va, pa, PTE_USER);
}

struct frame user_code(const void *begin, const void *end, unsigned mode)
{
	u64 len = (const u8 *)end - (const u8 *)begin;
	u64 code = (u64)alloc_pages(2);
	memcpy((void *)code, begin, len);
	make_area(USER_CODE, code);
	map(USER_CODE + PAGE, code + PAGE, PTE_USER);
	make_area(USER_STACK - PAGE, (u64)alloc_pages(1));
	make_area(USER_DATA, (u64)alloc_pages(1));
	struct frame f = user_frame(USER_CODE, USER_STACK);
	if (mode != 64)
		f.cs = SEL_USER_CODE32;
	return f;
}

bool has_feature(u32 leaf, unsigned reg, unsigned bit)
{
	u32 r[4];
	cpuid(leaf & 0x80000000, 0, r);
	if (r[0] < leaf)
		return false;
	cpuid(leaf, 0, r);
	return r[reg] >> bit & 1;
}

bool is_amd(void)
{
	u32 r[4];
	cpuid(0, 0, r);
	return r[1] == 0x68747541; /* Auth */
}

void enable_for_programs(void)
{
	if (!have_option("programs") || !HAS_AVX)
		return;
	write_cr4(read_cr4() | CR4_OSXSAVE);
	asm volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
}

/* Each test starts from the same state, whatever the one before left. */
static void reset_environment(void)
{
	cli();
	write_flags(2);
	asm volatile("clts");
	asm volatile("mov %0, %%dr7" : : "r"(0x400ull));
	write_cr0(CR0_DEFAULT);
	if (!(read_cr4() & CR4_PCIDE) || (read_cr3() & 0xfff) == 0)
		write_cr3((u64)boot_pml4);
	else
		write_cr3((u64)boot_pml4);
	write_cr4(CR4_DEFAULT & ~CR4_PGE);
	write_cr4(CR4_DEFAULT);
	enable_for_programs();
	boot_pml4[1] = 0;
	for (u64 va = USER_CODE; va <= USER_DATA + PAGE; va += 0x200000)
		boot_pd[va >> 21] = va | PTE_KERNEL | PTE_PS | PTE_PCD | PTE_PWT;
	write_cr3((u64)boot_pml4);
	wrmsr(MSR_EFER, EFER_DEFAULT);
	wrmsr(MSR_GS_BASE, 0);
	wrmsr(MSR_FS_BASE, 0);
	wrmsr(MSR_KERNEL_GS_BASE, 0);
	u16 zero = 0;
	asm volatile("lldt %0" : : "r"(zero));
	for (unsigned i = 0; i < 6; i++)
		gdt[SEL_TEST / 8 + i] = 0;
	for (unsigned v = 0; v < 256; v++) {
		handlers[v] = NULL;
		set_gate(v, trap_stubs[v], v < 32 ? default_ist[v] : 0, v == BP || v == OF || v == 0x80 ? 0xee : 0x8e);
	}
	asm volatile("fninit");
	u32 mxcsr = 0x1f80;
	asm volatile("ldmxcsr %0" : : "m"(mxcsr));
	heap = HEAP_BEGIN;
}

/* ---- other processors ---- */
static void start_cpu(unsigned n)
{
	apic_icr(n, ICR_INIT | ICR_ASSERT);
	delay_us(10000);
	apic_icr(n, ICR_SIPI | ICR_ASSERT | TRAMPOLINE >> 12);
	if (!WAIT_FOR(cpu_data[n].online, 1000))
		apic_icr(n, ICR_SIPI | ICR_ASSERT | TRAMPOLINE >> 12);
	if (!WAIT_FOR(cpu_data[n].online, 2000000)) {
		print("FAIL %s: processor %u does not start\n", payload, n);
		machine_exit(1);
	}
}

void smp_start(void)
{
	memcpy((void *)TRAMPOLINE, trampoline, trampoline_end - trampoline);
	for (unsigned n = 1; n < cpus; n++) {
		if (!cpu_data[n].online)
			start_cpu(n);
	}
}

void ap_forget(unsigned cpu)
{
	cpu_data[cpu].online = false;
	cpu_data[cpu].job = NULL;
	gdt[SEL_TSS / 8 + 2 * cpu] = 0;
}

void smp_post(unsigned cpu, void (*fn)(void *), void *arg)
{
	cpu_data[cpu].arg = arg;
	barrier();
	cpu_data[cpu].job = fn;
}

void smp_wait(unsigned cpu)
{
	if (!WAIT_FOR(!cpu_data[cpu].job, 60000000)) {
		print("FAIL %s.%s: processor %u hangs\n", payload, current->name, cpu);
		machine_exit(1);
	}
}

void smp_all(void (*fn)(void *), void *arg)
{
	smp_start();
	for (unsigned i = 1; i < cpus; i++)
		smp_post(i, fn, arg);
	fn(arg);
	for (unsigned i = 1; i < cpus; i++)
		smp_wait(i);
}

void barrier_wait(volatile u32 *b, u32 n)
{
	u32 mine = __atomic_fetch_add(b, 1, __ATOMIC_SEQ_CST);
	u32 target = (mine / n + 1) * n;
	while ((int32_t)(__atomic_load_n(b, __ATOMIC_SEQ_CST) - target) < 0)
		pause();
}
