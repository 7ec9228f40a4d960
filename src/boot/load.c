/* Which loader a file is for, and clear words about files that are for none. */
#include "boot/layout.h"

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
	{0, "070701", 6, "is a cpio archive: give it as --initrd"},
	{0, "!<arch>", 7, "is a package or library: unpack it (dpkg-deb -x) and give its boot/vmlinuz-*"},
	{0x8001, "CD001", 5, "is a CD image: give the kernel that is on it"},
	{0x438, "\x53\xef", 2, "is a file system: give it as --disk, and a kernel as --kernel"},
	{0, "QFI\xfb", 4, "is a qcow2 disk image: give a kernel as --kernel"},
	{0, "MZ", 2, "is an EFI program: give a bzImage (Debian's /boot/vmlinuz-*)"},
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

	for (unsigned i = 0; i < ARRAY_LEN(elf_machines); i++)
		if (elf_machines[i].machine == machine)
			return error_set(err, "%s is an ELF file for %s; this machine is an x86-64 PC", file->name,
					 elf_machines[i].name);
	if (machine != 3 && machine != 62)
		return error_set(err, "%s is an ELF file for an unknown machine (%u); this machine is an x86-64 PC",
				 file->name, machine);
	return error_set(err,
			 "%s is an ELF file without a PVH note and without a multiboot header: "
			 "give a bzImage (Debian's /boot/vmlinuz-*)",
			 file->name);
}

static bool refuse(const struct boot_file *file, struct error *err)
{
	for (unsigned i = 0; i < ARRAY_LEN(foreign_files); i++) {
		const struct foreign *f = &foreign_files[i];
		if (in_file(f->off, f->len, file->len) && !memcmp(file->data + f->off, f->magic, f->len))
			return error_set(err, "%s %s", file->name, f->what);
	}
	return error_set(err,
			 "%s is no kernel that is known here (bzImage, ELF with a PVH note, multiboot): "
			 "give Debian's /boot/vmlinuz-*, for one",
			 file->name);
}

bool boot_load(const struct boot_config *config, struct error *err)
{
	const struct boot_file *kernel = &config->kernel;

	if (!kernel->len)
		return error_set(err, "%s is empty: give a kernel", kernel->name);
	if (boot_low_ram(config->mem) <= LAYOUT_KERNEL_MIN)
		return error_set(err, "the machine has too little memory for a kernel: give it more with --memory");
	if (boot_is_bzimage(kernel))
		return boot_bzimage(config, err);
	if (boot_is_pvh(kernel))
		return boot_pvh(config, err);
	if (boot_is_multiboot(kernel))
		return boot_multiboot(config, err);
	if (kernel->len >= 4 && !memcmp(kernel->data, "\177ELF", 4))
		return refuse_elf(kernel, err);
	return refuse(kernel, err);
}
