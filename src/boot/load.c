/* Which loader a file is for, and clear words about files that are for none. */
#include "boot/elf.h"

#include <string.h>

struct foreign {
	uint32_t off;
	const char *magic;
	unsigned len;
	const char *what;
};

/* Files that people give a virtual machine by mistake. */
static const struct foreign foreign_files[] = {
	{56, "ARM\x64", 4, "is a Linux kernel for arm64; this machine is an x86-64 PC"},
	{56, "RSC\x05", 4, "is a Linux kernel for RISC-V; this machine is an x86-64 PC"},
	{36, "\x18\x28\x6f\x01", 4, "is a Linux kernel for 32-bit ARM; this machine is an x86-64 PC"},
	{0, "\x1f\x8b", 2, "is compressed by gzip: unpack it with gunzip first"},
	{0, "\3757zXZ", 5, "is compressed by xz: unpack it with unxz first"},
	{0, "\x28\xb5\x2f\xfd", 4, "is compressed by zstd: unpack it with unzstd first"},
	{0, "BZh", 3, "is compressed by bzip2: unpack it with bunzip2 first"},
	{0, "\x04\x22\x4d\x18", 4, "is compressed by lz4: unpack it with unlz4 first"},
	{0, "\x02\x21\x4c\x18", 4, "is compressed by lz4: unpack it with unlz4 first"}, /* lz4 -l, as kernels are */
	{0, "\x5d\0\0", 3, "is compressed by lzma: unpack it with unlzma first"},
	{0, "\x89LZO", 4, "is compressed by lzop: unpack it with lzop -d first"},
	{0, "PK\3\4", 4, "is a zip archive: unpack it with unzip first"},
	{0, "\x27\x05\x19\x56", 4, "is an image for the boot loader U-Boot: give a bzImage (Debian's /boot/vmlinuz-*)"},
	{0, "070701", 6, "is a cpio archive: give it as --initrd"},
	{0, "!<arch>", 7, "is a package or library: unpack it (dpkg-deb -x) and give its boot/vmlinuz-*"},
	{0, "\xed\xab\xee\xdb", 4, "is a package: unpack it (rpm2cpio) and give the vmlinuz that is in it"},
	{257, "ustar", 5, "is a tar archive: unpack it and give the kernel that is in it"},
	{0x8001, "CD001", 5, "is a CD image: give the kernel that is on it"},
	{0x438, "\x53\xef", 2, "is a file system: give it as --disk, and a kernel as --kernel"},
	{0, "QFI\xfb", 4, "is a qcow2 disk image: give a kernel as --kernel"},
	{0, "MZ", 2, "is an EFI or DOS program: give a bzImage (Debian's /boot/vmlinuz-*)"},
	{510, "\x55\xaa", 2, "is a boot sector or disk image: give a kernel as --kernel"},
};

struct machine_name {
	uint16_t machine;
	const char *name;
};

static const struct machine_name elf_machines[] = {
	{2, "SPARC"},   {8, "MIPS"},        {20, "PowerPC"},      {21, "64-bit PowerPC"},
	{22, "S/390"},  {40, "32-bit ARM"}, {43, "64-bit SPARC"}, {50, "Itanium"},
	{183, "arm64"}, {243, "RISC-V"},    {258, "LoongArch"},
};

static bool refuse_elf(const struct boot_file *file, struct error *err)
{
	unsigned machine = file->len >= 20 ? get16(file->data + 18) : 0;
	bool mine = machine == 3 || machine == 62;

	if (file->len < 64)
		return error_set(err, "%s is truncated: an ELF file of %zu bytes; copy it again", file->name,
				 file->len);
	for (unsigned i = 0; i < ARRAY_LEN(elf_machines); i++)
		if (elf_machines[i].machine == machine)
			return error_set(err, "%s is an ELF file for %s; this machine is an x86-64 PC", file->name,
					 elf_machines[i].name);
	if (!mine || file->data[5] != 1)
		return error_set(err, "%s is an ELF file for an unknown machine (%u); this machine is an x86-64 PC",
				 file->name, machine);
	if (elf_is_truncated(file))
		return error_set(err, "%s is truncated: its ELF header names parts beyond its end; copy it again",
				 file->name);
	return error_set(err,
			 "%s is an ELF file without a PVH note and without a multiboot header: "
			 "give a bzImage (Debian's /boot/vmlinuz-*)",
			 file->name);
}

/* The machine types of PE, in which EFI's programs are; newer kernels for other machines are such programs. */
static const struct machine_name pe_machines[] = {
	{0x1c0, "32-bit ARM"}, {0x1c2, "32-bit ARM"}, {0x1c4, "32-bit ARM"}, {0x200, "Itanium"},    {0xaa64, "arm64"},
	{0x5032, "RISC-V"},    {0x5064, "RISC-V"},    {0x6232, "LoongArch"}, {0x6264, "LoongArch"},
};

static bool refuse_pe(const struct boot_file *file, struct error *err)
{
	uint32_t header = file->len >= 64 && !memcmp(file->data, "MZ", 2) ? get32(file->data + 60) : 0;
	uint8_t pe[6];

	if (header && !in_file(header, sizeof(pe), file->len))
		return error_set(err,
				 "%s is truncated: it begins as an EFI or DOS program and has %zu bytes; copy it again",
				 file->name, file->len);
	if (!header || !boot_peek(file, header, pe, sizeof(pe)) || memcmp(pe, "PE\0\0", 4) != 0)
		return true;
	for (unsigned i = 0; i < ARRAY_LEN(pe_machines); i++)
		if (pe_machines[i].machine == get16(pe + 4))
			return error_set(err, "%s is an EFI program for %s; this machine is an x86-64 PC", file->name,
					 pe_machines[i].name);
	return true;
}

static bool refuse(const struct boot_file *file, struct error *err)
{
	for (unsigned i = 0; i < ARRAY_LEN(foreign_files); i++) {
		const struct foreign *f = &foreign_files[i];
		if (!in_file(f->off, f->len, file->len) || memcmp(file->data + f->off, f->magic, f->len) != 0)
			continue;
		return refuse_pe(file, err) && error_set(err, "%s %s", file->name, f->what);
	}
	return error_set(err,
			 "%s is no kernel that is known here (bzImage, ELF with a PVH note, multiboot): "
			 "give Debian's /boot/vmlinuz-*, for one",
			 file->name);
}

static bool is_elf(const struct boot_file *file)
{
	return file->len >= 4 && !memcmp(file->data, "\177ELF", 4);
}

bool boot_check(struct boot_file head, struct error *err)
{
	if (!head.len)
		return error_set(err, "%s is empty: give a kernel", head.name);
	if (boot_is_bzimage(&head) || boot_is_multiboot(&head) || is_elf(&head))
		return true; /* whether it is good will be seen when all of it is there */
	return refuse(&head, err);
}

bool boot_load(const struct boot_config *config, struct error *err)
{
	const struct boot_file *kernel = &config->kernel;

	if (!boot_check(*kernel, err))
		return false;
	if (boot_low_ram(config->mem) <= LAYOUT_KERNEL_MIN)
		return error_set(err, "the machine has too little memory for a kernel: give it more with --memory");
	if (boot_is_bzimage(kernel))
		return boot_bzimage(config, err);
	if (boot_is_pvh(kernel))
		return boot_pvh(config, err);
	if (boot_is_multiboot(kernel))
		return boot_multiboot(config, err);
	return refuse_elf(kernel, err);
}
