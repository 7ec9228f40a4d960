/* Tables that leave a processor no way to go on: the machine ends with a report, whatever they are. */
#include "guest.h"

const char payload[] = "crash";

#define RAM (128ull << 20)

static void jump_to_tables(u64 at)
{
	write_cr3(at);
	for (;;)
		asm volatile("int3");
}
TEST(root_in_device)
{
	jump_to_tables(0xfee00000);
}
TEST(root_in_io_apic)
{
	jump_to_tables(0xfec00000);
}
TEST(root_in_configuration_space)
{
	jump_to_tables(0xe0000000);
}
TEST(root_past_ram)
{
	jump_to_tables(RAM);
}
TEST(root_far_away)
{
	jump_to_tables(1ull << 38);
}
TEST(root_of_random_entries)
{
	u64 *p = alloc_pages(1);
	for (unsigned i = 0; i < 512; i++)
		p[i] = random64() | 1ull << 45;
	jump_to_tables((u64)p);
}

static void load_idt(u64 base, u16 limit)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) r = {limit, base};
	asm volatile("lidt %0; ud2" : : "m"(r));
}
TEST(idt_in_device)
{
	load_idt(0xfee00000, 0xfff);
}
TEST(idt_past_ram)
{
	load_idt(RAM, 0xfff);
}
TEST(idt_not_there)
{
	load_idt(0, 0);
}
TEST(idt_of_random_gates)
{
	u64 *p = alloc_pages(1);
	for (unsigned i = 0; i < 512; i++)
		p[i] = random64() & ~(3ull << 16 | 0xfff80000); /* no segment has such a selector, or it is null */
	load_idt((u64)p, 0xfff);
}
/* A handler that is where nothing is: each of its faults has a handler of that kind. */
TEST(handlers_nowhere)
{
	for (unsigned v = 0; v < 32; v++)
		set_gate(v, (void *)0x700000000000, 0, 0x8e);
	asm volatile("mov %0, %%rsp; ud2" : : "r"(0x700000001000));
}
TEST(gdt_in_device)
{
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) r = {0xfff, 0xfee00000};
	asm volatile("lgdt %0; ud2" : : "m"(r));
}
static void jump_away(void *arg)
{
	jump_to_tables((u64)arg);
}
TEST(on_another_processor)
{
	if (cpus < 2)
		skip("one processor");
	smp_start();
	smp_post(1, jump_away, (void *)RAM);
	for (;;)
		pause();
}
/* run: cpus=2 ends=3 timeout=20 */
