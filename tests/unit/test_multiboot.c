/* Multiboot v1. */
#include "boot_setup.h"

TEST(multiboot_elf32)
{
	make_elf(&file, false);
	add_multiboot(&file, 0x300, 3);
	REQUIRE(load());
	check_protected(0x200010);
	CHECK_EQ(cpu.gpr[RAX], 0x2badb002);
	CHECK_EQ(guest(0x200000, 8), 0x9090909090909090);
	guest_memory_destroy(&mem);
}

TEST(multiboot_entry_given_as_virtual_address)
{
	make_elf(&file, false);
	set32(&file, 64 + 8, 0xc0200000); /* vaddr */
	set32(&file, 24, 0xc0200010);
	add_multiboot(&file, 0x300, 0);
	REQUIRE(load());
	CHECK_EQ(cpu.rip, 0x200010);
	guest_memory_destroy(&mem);
}

TEST(multiboot_information)
{
	uint64_t info, map;

	make_elf(&file, false);
	add_multiboot(&file, 0x300, 3);
	REQUIRE(load());
	info = cpu.gpr[RBX];
	CHECK_EQ(guest(info, 4), 1 | 4 | 64 | 512);
	CHECK_EQ(guest(info + 4, 4), 639);
	CHECK_EQ(guest(info + 8, 4), 63 * 1024);
	CHECK_EQ(guest(guest(info + 16, 4), 8), 0x3d656c6f736e6f63); /* "console=" */
	CHECK_EQ(guest(info + 44, 4), 48);
	map = guest(info + 48, 4);
	CHECK_EQ(guest(map, 4), 20);
	CHECK_EQ(guest(map + 24 + 4, 8), 0x100000);
	CHECK_EQ(guest(map + 24 + 12, 8), MiB(63));
	CHECK_EQ(guest(map + 24 + 20, 4), 1);
	guest_memory_destroy(&mem);
}

TEST(multiboot_module)
{
	static uint8_t initrd[5000] = {0x42};
	struct boot_config config;
	uint64_t module;

	make_elf(&file, false);
	add_multiboot(&file, 0x300, 3);
	config = setup(MiB(64));
	config.initrd = (struct boot_file){"some/initrd", initrd, sizeof(initrd), NULL};
	REQUIRE(boot_load(&config, &err));
	CHECK(guest(cpu.gpr[RBX], 4) & 8);
	CHECK_EQ(guest(cpu.gpr[RBX] + 20, 4), 1);
	module = guest(cpu.gpr[RBX] + 24, 4);
	CHECK_EQ(guest(module, 4) % 4096, 0);
	CHECK_EQ(guest(module + 4, 4) - guest(module, 4), sizeof(initrd));
	CHECK_EQ(guest(guest(module, 4), 1), 0x42);
	CHECK_EQ(guest(guest(module + 8, 4), 4), 0x656d6f73);
	guest_memory_destroy(&mem);
}

TEST(multiboot_address_fields)
{
	memset(&file, 0, sizeof(file));
	file.len = 0x600;
	memset(file.data + 0x10, 0x90, 0x500 - 0x10);
	add_multiboot(&file, 0x40, 0x10003);
	REQUIRE(load());
	check_protected(0x100020);
	CHECK_EQ(guest(0x1004ff, 2), 0x0090);
	guest_memory_destroy(&mem);
}

TEST(multiboot_damaged)
{
	make_elf(&file, false);
	add_multiboot(&file, 0x300, 8);
	refused("unknown");
	make_elf(&file, true);
	add_multiboot(&file, 0x300, 3);
	refused("ELF32");
	memset(&file, 0, sizeof(file));
	file.len = 0x400; /* less than the header says */
	add_multiboot(&file, 0x40, 0x10003);
	refused("shorter");
	file.len = 0x600;
	set32(&file, 0x40 + 16, 0x200000); /* load address above the header's */
	refused("damaged");
	add_multiboot(&file, 0x40, 0x10003);
	set32(&file, 0x40 + 12, 0x40);
	set32(&file, 0x40 + 16, 0);
	set32(&file, 0x40 + 20, 0x100);
	refused("1 MiB and above");
	add_multiboot(&file, 0x40, 0x10003);
	set32(&file, 0x40 + 24, UINT32_MAX);
	refused("--memory");
	add_multiboot(&file, 0x1fc, 3); /* the first one counts */
	set32(&file, 0x40 + 8, 1);
	refused("ELF32");
}

UNIT_MAIN()
