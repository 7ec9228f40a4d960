/* PVH: ELF files with Xen's note. */
#include "boot_setup.h"

static void check_start_info(void)
{
	uint64_t info = cpu.gpr[RBX];

	CHECK_EQ(guest(info, 4), 0x336ec578);
	CHECK_EQ(guest(info + 4, 4), 1);
	CHECK_EQ(guest(info + 32, 8), 0xe0000);
	CHECK_EQ(guest(info + 48, 4), 2);
	CHECK_EQ(guest(guest(info + 40, 8) + 24, 8), 0x100000);
	CHECK_EQ(guest(guest(info + 40, 8) + 40, 4), 1);
	CHECK_EQ(guest(guest(info + 24, 8), 8), 0x3d656c6f736e6f63); /* "console=" */
}

static void check_loaded(bool is64)
{
	make_pvh(&file, is64);
	memset(file.data + 0x400 + 0xff, 0x91, 1);
	REQUIRE(load());
	check_protected(0x200040);
	check_start_info();
	CHECK_EQ(guest(0x2000ff, 2), 0x0091);
	guest_memory_destroy(&mem);
}

TEST(pvh_elf64)
{
	check_loaded(true);
}

TEST(pvh_elf32)
{
	check_loaded(false);
}

/* Linux's own ELF file has its notes, and may have its program headers, far from the beginning. */
TEST(pvh_notes_behind_what_has_been_read)
{
	enum { FAR = BOOT_HEAD + 4096 };
	struct host_file *f = host_file_temp();
	uint8_t *head = calloc(1, BOOT_HEAD);
	struct boot_config config;

	REQUIRE(f && head);
	make_pvh(&file, true);
	set64(&file, 64 + 56 + 8, FAR);
	REQUIRE(host_file_pwrite(f, file.data + 0x500, file.len - 0x500, FAR) > 0);
	memset(file.data + 0x500, 0, file.len - 0x500);
	REQUIRE(host_file_pwrite(f, file.data, file.len, 0) == (int64_t)file.len);
	REQUIRE(host_file_pread(f, head, BOOT_HEAD, 0) == BOOT_HEAD);
	config = setup(MiB(64));
	config.kernel = (struct boot_file){"kernel", head, (size_t)host_file_size(f), f};
	CHECK(boot_load(&config, &err));
	check_protected(0x200040);
	host_file_close(f);
	free(head);
	guest_memory_destroy(&mem);
}

TEST(pvh_initrd_is_a_module)
{
	static uint8_t initrd[100] = {0x42};
	struct boot_config config;
	uint64_t module;

	make_pvh(&file, true);
	config = setup(MiB(64));
	config.initrd = (struct boot_file){"initrd", initrd, sizeof(initrd), NULL};
	REQUIRE(boot_load(&config, &err));
	CHECK_EQ(guest(cpu.gpr[RBX] + 12, 4), 1);
	module = guest(cpu.gpr[RBX] + 16, 8);
	CHECK_EQ(guest(module + 8, 8), sizeof(initrd));
	CHECK_EQ(guest(guest(module, 8), 1), 0x42);
	guest_memory_destroy(&mem);
}

TEST(pvh_zeroes_bss_of_a_used_machine)
{
	struct boot_config config;

	make_pvh(&file, true);
	config = setup(MiB(64));
	memset(guest_memory_ptr(&mem, 0x200000, 4096, true), 0xcc, 4096);
	REQUIRE(boot_load(&config, &err));
	CHECK_EQ(guest(0x200100, 8), 0);
	CHECK_EQ(guest(0x2001f8, 8), 0);
	CHECK_EQ(guest(0x200200, 1), 0xcc);
	guest_memory_destroy(&mem);
}

TEST(pvh_damaged)
{
	make_pvh(&file, true);
	set32(&file, 0x500 + 40, 0x1000);
	refused("PVH entry");
	make_pvh(&file, true);
	set64(&file, 64 + 24, 0x1000); /* paddr */
	refused("1 MiB and above");
	make_pvh(&file, true);
	set64(&file, 64 + 24, MiB(64) - 0x100);
	refused("no memory");
	make_pvh(&file, true);
	set64(&file, 64 + 40, UINT64_MAX); /* memsz */
	refused("no memory");
	make_pvh(&file, true);
	set64(&file, 64 + 40, 0x10);
	refused("damaged");
	make_pvh(&file, true);
	set64(&file, 64 + 8, 0x7f000000); /* offset beyond the file */
	refused("truncated");
}

UNIT_MAIN()
