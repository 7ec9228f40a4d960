/* Linux's boot protocol, and the words for files that no loader takes. */
#include "boot_setup.h"

TEST(bzimage_64bit_entry)
{
	make_bzimage(&file);
	REQUIRE(load());
	CHECK_EQ(cpu.rip, 0x1000200);
	CHECK_EQ(cpu.gpr[RSI], 0x7000);
	CHECK_EQ(cpu.efer, EFER_LME | EFER_LMA);
	CHECK_EQ(cpu.cr0, CR0_PE | CR0_ET | CR0_NE | CR0_PG);
	CHECK_EQ(cpu.cr4, CR4_PAE);
	CHECK_EQ(cpu.rflags, FL_FIXED1);
	CHECK_EQ(cpu.seg[SEG_CS].sel, 0x10);
	CHECK_EQ(cpu.seg[SEG_CS].attr, 0xa09b);
	CHECK_EQ(cpu.seg[SEG_DS].sel, 0x18);
	CHECK_EQ(guest(0x1000000, 8), 0x9090909090909090);
	guest_memory_destroy(&mem);
}

TEST(bzimage_page_tables_are_identity)
{
	static const uint64_t probes[] = {0, 0x1000200, 0xc0000123, 0xffffffff};

	make_bzimage(&file);
	REQUIRE(load());
	for (unsigned i = 0; i < ARRAY_LEN(probes); i++) {
		uint64_t va = probes[i], pml4e = guest(cpu.cr3 + bits(va, 47, 39) * 8, 8);
		uint64_t pdpte = guest((pml4e & ~0xfffull) + bits(va, 38, 30) * 8, 8);
		uint64_t pde = guest((pdpte & ~0xfffull) + bits(va, 29, 21) * 8, 8);
		CHECK_EQ(pml4e & 3, 3);
		CHECK_EQ(pdpte & 3, 3);
		CHECK_EQ(pde & 0x83, 0x83);
		CHECK_EQ(pde & ~0x1fffffull, va & ~0x1fffffull);
	}
	guest_memory_destroy(&mem);
}

TEST(bzimage_gdt_matches_segments)
{
	make_bzimage(&file);
	REQUIRE(load());
	CHECK_EQ(guest(cpu.gdtr.base + 0x10, 8), 0x00af9b000000ffff);
	CHECK_EQ(guest(cpu.gdtr.base + 0x18, 8), 0x00cf93000000ffff);
	CHECK(cpu.gdtr.limit >= 0x1f);
	guest_memory_destroy(&mem);
}

TEST(bzimage_zero_page)
{
	char cmdline[32];

	make_bzimage(&file);
	REQUIRE(load());
	CHECK_EQ(guest(0x7000 + 0x202, 4), 0x53726448); /* HdrS */
	CHECK_EQ(guest(0x7000 + 0x210, 1), 0xff);
	CHECK_EQ(guest(0x7000 + 0x214, 4), 0x1000000);
	CHECK_EQ(guest(0x7000 + 0x070, 8), 0xe0000);
	CHECK_EQ(guest(0x7000 + 0x1e8, 1), 2);
	CHECK_EQ(guest(0x7000 + 0x2d0 + 20, 8), 0x100000);
	CHECK_EQ(guest(0x7000 + 0x2d0 + 28, 8), MiB(63));
	CHECK_EQ(guest(0x7000 + 0x2d0 + 36, 4), 1);
	REQUIRE(guest_memory_read(&mem, guest(0x7000 + 0x228, 4), cmdline, sizeof(cmdline)));
	CHECK_STR(cmdline, "console=ttyS0");
	guest_memory_destroy(&mem);
}

TEST(bzimage_initrd_lies_high_and_apart)
{
	static uint8_t initrd[5000];
	struct boot_config config;
	uint64_t at;

	make_bzimage(&file);
	memset(initrd, 0x77, sizeof(initrd));
	config = setup(MiB(64));
	config.initrd = (struct boot_file){"initrd", initrd, sizeof(initrd), NULL};
	REQUIRE(boot_load(&config, &err));
	at = guest(0x7000 + 0x218, 4);
	CHECK_EQ(at, MiB(64) - 8192);
	CHECK_EQ(guest(0x7000 + 0x21c, 4), sizeof(initrd));
	CHECK_EQ(guest(at + sizeof(initrd) - 1, 1), 0x77);
	guest_memory_destroy(&mem);
}

TEST(bzimage_initrd_keeps_below_its_limit)
{
	static uint8_t initrd[4096];
	struct boot_config config;

	make_bzimage(&file);
	set32(&file, 0x22c, MiB(32) - 1);
	config = setup(MiB(64));
	config.initrd = (struct boot_file){"initrd", initrd, sizeof(initrd), NULL};
	REQUIRE(boot_load(&config, &err));
	CHECK_EQ(guest(0x7000 + 0x218, 4), MiB(32) - 4096);
	guest_memory_destroy(&mem);
}

TEST(bzimage_initrd_too_big)
{
	size_t len = MiB(50);
	uint8_t *initrd = calloc(1, len);
	struct boot_config config;

	REQUIRE(initrd);
	make_bzimage(&file);
	config = setup(MiB(64));
	config.initrd = (struct boot_file){"initrd.img", initrd, len, NULL};
	CHECK(!boot_load(&config, &err));
	CHECK(strstr(err.text, "initrd.img") && strstr(err.text, "--memory"));
	guest_memory_destroy(&mem);
	free(initrd);
}

TEST(bzimage_32bit_entry)
{
	make_bzimage(&file);
	set16(&file, 0x236, 0);
	REQUIRE(load());
	check_protected(0x1000000);
	CHECK_EQ(cpu.gpr[RSI], 0x7000);
	CHECK_EQ(cpu.gpr[RBP] | cpu.gpr[RDI] | cpu.gpr[RBX], 0);
	CHECK_EQ(cpu.seg[SEG_CS].sel, 0x10);
	CHECK_EQ(cpu.seg[SEG_DS].sel, 0x18);
	guest_memory_destroy(&mem);
}

TEST(bzimage_old_protocol_loads_at_code32_start)
{
	make_bzimage(&file);
	set16(&file, 0x206, 0x206);
	REQUIRE(load());
	check_protected(0x100000);
	guest_memory_destroy(&mem);
}

TEST(bzimage_needs_memory_from_its_address_on)
{
	struct boot_config config;

	make_bzimage(&file);
	config = setup(MiB(24)); /* 8 MiB from 16 MiB on */
	REQUIRE(boot_load(&config, &err));
	CHECK_EQ(cpu.rip, 0x1000200);
	guest_memory_destroy(&mem);
	config = setup(MiB(24) - PAGE_SIZE);
	CHECK(!boot_load(&config, &err));
	CHECK(strstr(err.text, "needs 24 MiB"));
	CHECK(strstr(err.text, "--memory"));
	guest_memory_destroy(&mem);
}

TEST(bzimage_loads_again_the_same)
{
	struct boot_config config;
	struct x86_cpu first;

	make_bzimage(&file);
	config = setup(MiB(64));
	REQUIRE(boot_load(&config, &err));
	first = cpu;
	memset(guest_memory_ptr(&mem, 0, MiB(32), true), 0xcc, MiB(32));
	REQUIRE(boot_load(&config, &err));
	CHECK_MEM(&first, &cpu, sizeof(cpu));
	CHECK_EQ(guest(0x1000000, 8), 0x9090909090909090);
	CHECK_EQ(guest(0x7000 + 0x214, 4), 0x1000000);
	guest_memory_destroy(&mem);
}

/* A kernel and an initrd of which only the beginning has been read yet. */
#define LONG_BODY (BOOT_HEAD + 5000)
#define LONG_INITRD 300000

struct on_disk {
	struct host_file *kernel, *initrd;
	uint8_t *head; /* of the kernel */
};

static struct on_disk put_on_disk(void)
{
	struct on_disk d = {host_file_temp(), host_file_temp(), calloc(1, BOOT_HEAD)};

	REQUIRE(d.kernel && d.initrd && d.head);
	make_bzimage(&file);
	set32(&file, 0x1f4, LONG_BODY / 16);
	REQUIRE(host_file_pwrite(d.kernel, file.data, file.len, 0) == (int64_t)file.len);
	REQUIRE(host_file_pwrite(d.kernel, "end", 3, 1024 + LONG_BODY - 3) == 3);
	REQUIRE(host_file_pread(d.kernel, d.head, BOOT_HEAD, 0) == BOOT_HEAD);
	REQUIRE(host_file_pwrite(d.initrd, "end", 3, LONG_INITRD - 3) == 3);
	return d;
}

static void take_away(struct on_disk *d)
{
	host_file_close(d->kernel);
	host_file_close(d->initrd);
	free(d->head);
	guest_memory_destroy(&mem);
}

TEST(bzimage_rest_is_read_when_placed)
{
	struct on_disk d = put_on_disk();
	struct boot_config config = setup(MiB(64));
	uint64_t initrd;

	config.kernel = (struct boot_file){"kernel", d.head, 1024 + LONG_BODY, d.kernel};
	config.initrd = (struct boot_file){"initrd", d.head, LONG_INITRD, d.initrd};
	REQUIRE(boot_load(&config, &err));
	CHECK_EQ(guest(0x1000000 + 2047, 2), 0x0090);
	CHECK_EQ(guest(0x1000000 + LONG_BODY - 3, 3), 0x646e65);
	initrd = guest(0x7000 + 0x218, 4);
	CHECK_EQ(guest(initrd + 0x202, 4), 0x53726448); /* what had been read already */
	CHECK_EQ(guest(initrd + LONG_INITRD - 3, 3), 0x646e65);
	take_away(&d);
}

TEST(bzimage_that_became_shorter)
{
	struct on_disk d = put_on_disk();
	struct boot_config config = setup(MiB(64));

	config.kernel = (struct boot_file){"kernel", d.head, 1024 + LONG_BODY + 1, d.kernel};
	CHECK(!boot_load(&config, &err));
	CHECK(strstr(err.text, "cannot read all of kernel: it has become shorter"));
	take_away(&d);
}

TEST(bzimage_damaged)
{
	make_bzimage(&file);
	file.len = 2000;
	refused("truncated");
	make_bzimage(&file);
	set16(&file, 0x206, 0x204);
	refused("2.04");
	make_bzimage(&file);
	file.data[0x211] = 0;
	refused("zImage");
	make_bzimage(&file);
	set64(&file, 0x258, 0x1000);
	refused("damaged");
	make_bzimage(&file);
	set32(&file, 0x230, 0x300000);
	refused("alignment");
	make_bzimage(&file);
	set32(&file, 0x260, UINT32_MAX);
	refused("--memory");
	make_bzimage(&file);
	set32(&file, 0x238, 5);
	refused("command line");
}

TEST(foreign_files)
{
	static const struct {
		unsigned at;
		const char *magic;
		unsigned len;
		const char *words;
	} foreign[] = {
		{56, "ARM\x64", 4, "arm64"},
		{56, "RSC\x05", 4, "RISC-V"},
		{0, "\x1f\x8b", 2, "gunzip"},
		{0, "070701", 6, "--initrd"},
		{0, "MZ", 2, "EFI"},
		{0x438, "\x53\xef", 2, "--disk"},
		{0, "\177ELF\2\1", 6, "unknown machine"},
		{0, "what", 4, "no kernel"},
	};

	for (unsigned i = 0; i < ARRAY_LEN(foreign); i++) {
		memset(&file, 0, sizeof(file));
		file.len = 4096;
		memcpy(file.data + foreign[i].at, foreign[i].magic, foreign[i].len);
		refused(foreign[i].words);
	}
	make_elf(&file, true);
	set16(&file, 18, 183);
	refused("arm64");
	make_elf(&file, true);
	set64(&file, 64 + 32, 1 << 20); /* a segment that is longer than the file */
	refused("truncated");
	make_elf(&file, true);
	file.len = 40;
	refused("truncated");
	make_elf(&file, true);
	refused("PVH note");
	file.len = 0;
	refused("empty");
}

/* EFI programs, as kernels for other machines are when they unpack themselves. */
TEST(efi_programs)
{
	static const struct {
		unsigned machine;
		const char *words;
	} pe[] = {{0xaa64, "arm64"}, {0x5064, "RISC-V"}, {0x6264, "LoongArch"}, {0x1c2, "32-bit ARM"}, {0x8664, "EFI"}};

	for (unsigned i = 0; i < ARRAY_LEN(pe); i++) {
		memset(&file, 0, sizeof(file));
		file.len = 4096;
		memcpy(file.data, "MZ", 2);
		file.data[60] = 0x80;
		memcpy(file.data + 0x80, "PE", 2);
		set16(&file, 0x84, pe[i].machine);
		refused(pe[i].words);
	}
	file.len = 100;
	refused("truncated");
	file.len = 2;
	refused("DOS program");
}

/* What is seen from the first 64 KiB: whatever might be a kernel passes. */
TEST(the_beginning_is_enough)
{
	struct boot_file head = {"kernel", file.data, 1024, NULL};

	make_bzimage(&file);
	CHECK(boot_check(head, &err));
	make_elf(&file, true);
	CHECK(boot_check(head, &err));
	memset(&file, 0, sizeof(file));
	CHECK(!boot_check(head, &err));
	head.len = 0;
	CHECK(!boot_check(head, &err));
	CHECK(strstr(err.text, "empty"));
}

UNIT_MAIN()
