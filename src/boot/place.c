/* Placing a kernel's companions in guest memory, and the processor's state at its entry. */
#include "boot/layout.h"

#include <string.h>

uint64_t boot_low_ram(const struct guest_memory *mem)
{
	const struct guest_range *r = guest_range_find(mem, 0, 1);

	return r && !r->readonly ? r->size : 0;
}

bool boot_has_room(const struct boot_config *config, uint64_t gpa, uint64_t len)
{
	return !len || (gpa >= LAYOUT_KERNEL_MIN && guest_memory_ptr(config->mem, gpa, len, true));
}

bool boot_peek(const struct boot_file *file, uint64_t off, void *dst, size_t len)
{
	if (file->rest && off + len > BOOT_HEAD)
		return host_file_pread(file->rest, dst, len, off) == (int64_t)len;
	memcpy(dst, file->data + off, len);
	return true;
}

/* What is at `data` is not read again: another file may have come into its place meanwhile. */
bool boot_put(const struct boot_config *config, uint64_t gpa, const struct boot_file *file, uint64_t off, uint64_t len,
	      struct error *err)
{
	uint64_t there = file->rest ? BOOT_HEAD : file->len, n = off < there ? MIN(len, there - off) : 0;

	ENSURE(guest_memory_write(config->mem, gpa, file->data + off, n));
	if (n == len || guest_memory_read_file(config->mem, gpa + n, file->rest, off + n, len - n))
		return true;
	return error_set(err, "cannot read all of %s: %s", file->name,
			 host_file_size(file->rest) < (int64_t)file->len ? "it has become shorter" : host_error_text());
}

bool boot_zero(const struct boot_config *config, uint64_t gpa, uint64_t len)
{
	void *p = guest_memory_ptr(config->mem, gpa, len, true);

	if (!len)
		return true;
	if (!p || gpa < LAYOUT_KERNEL_MIN)
		return false;
	memset(p, 0, len);
	guest_memory_wrote(config->mem, gpa, len);
	return true;
}

/* Address of the initrd in the RAM from 4 GiB up, or 0. */
static uint64_t place_high(const struct guest_memory *mem, uint64_t size)
{
	for (unsigned i = mem->count; i-- > 0;) {
		const struct guest_range *r = &mem->range[i];
		if (r->gpa >= GiB(4) && !r->readonly && size <= r->size)
			return align_down(r->gpa + r->size - size, PAGE_SIZE);
	}
	return 0;
}

bool boot_place_initrd(const struct boot_config *config, uint64_t floor, uint64_t limit, bool high, uint64_t *gpa,
		       struct error *err)
{
	uint64_t size = config->initrd.len, top = MIN(limit, boot_low_ram(config->mem));

	*gpa = 0;
	if (!size)
		return true;
	floor = align_up(floor, PAGE_SIZE);
	if (floor <= top && size <= top - floor && align_down(top - size, PAGE_SIZE) >= floor)
		*gpa = align_down(top - size, PAGE_SIZE);
	else if (high)
		*gpa = place_high(config->mem, size);
	if (*gpa && boot_has_room(config, *gpa, size))
		return boot_put(config, *gpa, &config->initrd, 0, size, err);
	return error_set(err,
			 "the initrd %s (%llu MiB) does not fit into memory beside the kernel: "
			 "give the machine more with --memory",
			 config->initrd.name, (unsigned long long)(align_up(size, MiB(1)) >> 20));
}

bool boot_place_cmdline(const struct boot_config *config, uint64_t max, struct error *err)
{
	uint64_t len = strlen(config->cmdline);

	max = MIN(max, LAYOUT_CMDLINE_MAX - 1);
	if (len > max)
		return error_set(
			err, "the kernel's command line is %llu characters long and %s takes %llu: shorten --append",
			(unsigned long long)len, config->kernel.name, (unsigned long long)max);
	return guest_memory_write(config->mem, LAYOUT_CMDLINE, config->cmdline, len + 1);
}

/* Descriptors, and the same as hidden parts of segment registers (struct x86_segment says how attr is packed). */
#define GDT_CODE32 0x00cf9b000000ffffull
#define GDT_CODE64 0x00af9b000000ffffull
#define GDT_DATA 0x00cf93000000ffffull
#define GDT_TSS 0x00008b0000000067ull
#define ATTR_CODE32 0xc09b
#define ATTR_CODE64 0xa09b
#define ATTR_DATA 0xc093
#define ATTR_TSS 0x008b

static void set_segments(struct x86_cpu *cpu, uint16_t code_attr)
{
	struct x86_segment data = {.limit = UINT32_MAX, .sel = BOOT_DS, .attr = ATTR_DATA};

	for (unsigned i = 0; i < X86_SEGS; i++)
		cpu->seg[i] = data;
	cpu->seg[SEG_CS] = (struct x86_segment){.limit = UINT32_MAX, .sel = BOOT_CS, .attr = code_attr};
	cpu->seg[SEG_TR] = (struct x86_segment){.limit = 0x67, .sel = BOOT_TSS, .attr = ATTR_TSS};
	cpu->seg[SEG_LDTR] = (struct x86_segment){.attr = 0};
	cpu->cpl = 0;
}

/* What both modes have in common. LAYOUT_GDT is RAM: boot_load saw that there is more than 1 MiB. */
static void enter(const struct boot_config *config, uint64_t entry, uint64_t code_descriptor, uint16_t code_attr)
{
	struct x86_cpu *cpu = config->cpu;
	uint64_t gdt[] = {0, 0, code_descriptor, GDT_DATA, GDT_TSS, 0};

	guest_memory_write(config->mem, LAYOUT_GDT, gdt, sizeof(gdt));
	memset(cpu->gpr, 0, sizeof(cpu->gpr));
	cpu->gpr[RSP] = LAYOUT_STACK;
	cpu->rip = entry;
	cpu->rflags = FL_FIXED1;
	cpu->gdtr = (struct x86_table){.base = LAYOUT_GDT, .limit = sizeof(gdt) - 1};
	cpu->idtr = (struct x86_table){0};
	cpu->cr0 = CR0_PE | CR0_ET | CR0_NE;
	cpu->cr3 = cpu->cr4 = cpu->efer = 0;
	cpu->halted = false;
	set_segments(cpu, code_attr);
}

static void notify(struct x86_cpu *cpu)
{
	if (!cpu->ops)
		return;
	cpu->ops->flush_all(cpu, true, -1);
	cpu->ops->mode_changed(cpu);
}

void boot_enter_protected(const struct boot_config *config, uint32_t entry)
{
	enter(config, entry, GDT_CODE32, ATTR_CODE32);
	notify(config->cpu);
}

/* Present, writable; large pages (SDM Vol. 3A 4.5). */
#define PTE_TABLE 0x3
#define PTE_LARGE 0x83

static void write_page_tables(struct guest_memory *mem)
{
	uint64_t table[512] = {LAYOUT_PAGES + PAGE_SIZE + PTE_TABLE};

	guest_memory_write(mem, LAYOUT_PAGES, table, sizeof(table));
	for (unsigned i = 0; i < 4; i++)
		table[i] = LAYOUT_PAGES + (2 + i) * PAGE_SIZE + PTE_TABLE;
	guest_memory_write(mem, LAYOUT_PAGES + PAGE_SIZE, table, sizeof(table));
	for (unsigned dir = 0; dir < 4; dir++) {
		for (unsigned i = 0; i < 512; i++)
			table[i] = (dir * 512 + i) * MiB(2) + PTE_LARGE;
		guest_memory_write(mem, LAYOUT_PAGES + (2 + dir) * PAGE_SIZE, table, sizeof(table));
	}
}

void boot_enter_long(const struct boot_config *config, uint64_t entry)
{
	struct x86_cpu *cpu = config->cpu;

	write_page_tables(config->mem);
	enter(config, entry, GDT_CODE64, ATTR_CODE64);
	cpu->cr0 |= CR0_PG;
	cpu->cr3 = LAYOUT_PAGES;
	cpu->cr4 = CR4_PAE;
	cpu->efer = EFER_LME | EFER_LMA;
	notify(cpu);
}
