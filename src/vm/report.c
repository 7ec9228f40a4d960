/* What people are told: what was chosen for them at the start, and what the processor looked like at a crash. */
#include "arch/x86/mmu.h"
#include "vm/internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPORT_SIZE 16384

void say(struct note *t, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(t->p + t->len, t->size - t->len, fmt, ap);
	va_end(ap);
	if (n > 0)
		t->len = MIN(t->len + (size_t)n, t->size - 1);
}

static void say_gprs(struct note *t, const struct x86_cpu *cpu)
{
	static const char name[X86_GPRS][4] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
					       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

	for (unsigned i = 0; i < X86_GPRS; i++)
		say(t, "  %-3s %016" PRIx64 "%s", name[i], cpu->gpr[i], i % 4 == 3 ? "\n" : "");
	say(t, "  rip %016" PRIx64 "  rflags %08" PRIx64 "  cpl %u%s%s%s\n", cpu->rip, cpu->rflags, cpu->cpl,
	    cpu->halted ? "  halted" : "", cpu->shadow ? "  interrupt shadow" : "",
	    cpu->nmi_blocked ? "  NMI blocked" : "");
}

static void say_segments(struct note *t, const struct x86_cpu *cpu)
{
	static const char name[X86_SEGS_ALL][4] = {"es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr"};

	for (unsigned i = 0; i < X86_SEGS_ALL; i++) {
		const struct x86_segment *seg = &cpu->seg[i];
		say(t, "  %-3s %04x base %016" PRIx64 " limit %08x attributes %04x\n", name[i], seg->sel, seg->base,
		    seg->limit, seg->attr);
	}
	say(t, "  gdt base %016" PRIx64 " limit %04x  idt base %016" PRIx64 " limit %04x\n", cpu->gdtr.base,
	    cpu->gdtr.limit, cpu->idtr.base, cpu->idtr.limit);
}

static void say_control(struct note *t, const struct x86_cpu *cpu)
{
	say(t, "  cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64 "\n", cpu->cr0, cpu->cr2,
	    cpu->cr3, cpu->cr4);
	say(t,
	    "  efer %04" PRIx64 "  xcr0 %" PRIx64 "  dr6 %08" PRIx64 "  dr7 %08" PRIx64 "  apic base %08" PRIx64 "\n",
	    cpu->efer, cpu->xcr0, cpu->dr6, cpu->dr7, cpu->apic_base);
	say(t, "  last exception: vector %u, error code %x, address %016" PRIx64 "\n", cpu->exc.vector,
	    cpu->exc.has_error ? cpu->exc.error : 0, cpu->exc.cr2);
}

/* Bytes at a linear address, as far as they can be read; what the look changes in the page tables does not matter any
 * more. */
static void say_bytes(struct note *t, struct x86_cpu *cpu, const char *what, uint64_t va, unsigned count)
{
	say(t, "  %s:", what);
	for (unsigned i = 0; i < count; i++) {
		uint8_t byte;
		if (mem_read(cpu, va + i, &byte, 1, ACC_READ) != V_DONE) {
			say(t, " ??");
			break;
		}
		say(t, " %02x", byte);
	}
	say(t, "\n");
}

static void say_cpu(struct note *t, struct vcpu *v)
{
	struct x86_cpu *cpu = v->cpu;
	uint64_t code = cpu->rip + (x86_code64(cpu) ? 0 : cpu->seg[SEG_CS].base);
	uint64_t stack = cpu->gpr[RSP] + (x86_code64(cpu) ? 0 : cpu->seg[SEG_SS].base);

	say_gprs(t, cpu);
	say_segments(t, cpu);
	say_control(t, cpu);
	/* The look itself may fault: on a copy, so that what was said above stays true. */
	struct x86_cpu copy = *cpu;
	copy.ops = NULL;
	copy.rflags |= FL_AC;
	say_bytes(t, &copy, "code before rip", code - 32, 32);
	say_bytes(t, &copy, "code at rip", code, 32);
	say_bytes(t, &copy, "stack", stack, 64);
}

/* Takes ownership of `text`; the first report is the one that counts. */
static void keep_report(struct vm *vm, char *text)
{
	host_lock(&vm->lock);
	if (!vm->report) {
		vm->report = text;
		text = NULL;
	}
	host_unlock(&vm->lock);
	free(text);
}

void vm_report_crash(struct vcpu *v, const char *what)
{
	struct note t = {malloc(REPORT_SIZE), REPORT_SIZE, 0};

	if (!t.p)
		return;
	say(&t, "the guest crashed: %s on CPU %u of '%s'\n", what, v->index, v->vm->name);
	say_cpu(&t, v);
	if (v->vm->ops->describe)
		v->vm->ops->describe(v->engine, t.p + t.len, t.size - t.len);
	keep_report(v->vm, t.p);
}

void vm_report_text(struct vm *vm, const char *fmt, ...)
{
	va_list ap;
	char *text = malloc(REPORT_SIZE);

	if (!text)
		return;
	va_start(ap, fmt);
	vsnprintf(text, REPORT_SIZE, fmt, ap);
	va_end(ap);
	keep_report(vm, text);
}

/* CPUID 80000002..4: the brand string, with runs of spaces made one. */
static void brand(const struct vm *vm, char *out, size_t size)
{
	uint32_t raw[13] = {0};
	size_t n = 0;

	for (unsigned i = 0; i < vm->model.count; i++) {
		const struct x86_cpuid_leaf *l = &vm->model.leaf[i];
		if (l->leaf >= 0x80000002 && l->leaf <= 0x80000004)
			memcpy(&raw[(size_t)(l->leaf - 0x80000002) * 4], &l->eax, 16);
	}
	for (const char *p = (const char *)raw; *p && n + 1 < size; p++)
		if (*p != ' ' || (n && p[1] && p[1] != ' '))
			out[n++] = *p;
	out[n] = 0;
}

/* The psABI's levels: what a distribution's programs are built for. */
static const char *level(const struct x86_cpuid_model *m)
{
	const uint64_t v2 = BIT(FEAT_SSE3) | BIT(FEAT_SSSE3) | BIT(FEAT_SSE41) | BIT(FEAT_SSE42) | BIT(FEAT_CX16) |
			    BIT(FEAT_POPCNT) | BIT(FEAT_LAHF64);
	const uint64_t v3 = v2 | BIT(FEAT_AVX) | BIT(FEAT_AVX2) | BIT(FEAT_BMI1) | BIT(FEAT_BMI2) | BIT(FEAT_F16C) |
			    BIT(FEAT_FMA) | BIT(FEAT_LZCNT) | BIT(FEAT_MOVBE) | BIT(FEAT_XSAVE);

	return (m->features & v3) == v3 ? "x86-64-v3" : (m->features & v2) == v2 ? "x86-64-v2" : "x86-64";
}

void vm_describe(struct vm *vm)
{
	char name[52];
	uint64_t bytes = vm->mem.pages * PAGE_SIZE;
	bool gib = bytes % GiB(1) == 0;

	brand(vm, name, sizeof(name));
	snprintf(vm->description, sizeof(vm->description),
		 "engine %s, CPU %s (%s), %" PRIu64 " %s of memory, %u CPU%s, console on %s%s%s, %s", vm->ops->name,
		 name[0] ? name : "unnamed", level(&vm->model), bytes >> (gib ? 30 : 20), gib ? "GiB" : "MiB", vm->cpus,
		 vm->cpus == 1 ? "" : "s", vm_console_where(vm->console),
		 vm->virtio_console ? ", virtio console on " : "",
		 vm->virtio_console ? vm_console_where(vm->virtio_console) : "", vm->networks);
}
