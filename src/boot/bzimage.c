/* Linux's boot protocol (Documentation/arch/x86/boot.rst, zero-page.rst): bzImage, by its 64-bit or its 32-bit entry.
 */
#include "boot/layout.h"

#include <string.h>

/* Offsets in the file's setup header, which are those in the zero page too. */
enum {
	HDR = 0x1f1,
	HDR_SETUP_SECTS = 0x1f1,
	HDR_SYSSIZE = 0x1f4, /* in units of 16 bytes */
	HDR_BOOT_FLAG = 0x1fe,
	HDR_JUMP = 0x200,
	HDR_MAGIC = 0x202,
	HDR_VERSION = 0x206,
	HDR_TYPE_OF_LOADER = 0x210,
	HDR_LOADFLAGS = 0x211,
	HDR_CODE32_START = 0x214,
	HDR_RAMDISK_IMAGE = 0x218,
	HDR_RAMDISK_SIZE = 0x21c,
	HDR_CMD_LINE_PTR = 0x228,
	HDR_INITRD_ADDR_MAX = 0x22c,  /* 2.03 */
	HDR_KERNEL_ALIGNMENT = 0x230, /* 2.05 */
	HDR_RELOCATABLE = 0x234,      /* 2.05 */
	HDR_XLOADFLAGS = 0x236,       /* 2.12 */
	HDR_CMDLINE_SIZE = 0x238,     /* 2.06 */
	HDR_PREF_ADDRESS = 0x258,     /* 2.10 */
	HDR_INIT_SIZE = 0x260,        /* 2.10 */
	HDR_MIN_END = 0x264,
	HDR_MAX_END = 0x290, /* where the zero page has other things */
};

enum { LOADED_HIGH = 1 << 0, CAN_USE_HEAP = 1 << 7 };
enum { XLF_KERNEL_64 = 1 << 0, XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1 };
enum { ENTRY_64 = 0x200, LOADER_UNDEFINED = 0xff };

/* Other fields of the zero page. */
enum {
	ZP_EXT_MEM_K = 0x002,
	ZP_RSDP = 0x070,
	ZP_EXT_RAMDISK_IMAGE = 0x0c0,
	ZP_EXT_RAMDISK_SIZE = 0x0c4,
	ZP_EXT_CMD_LINE_PTR = 0x0c8,
	ZP_ALT_MEM_K = 0x1e0,
	ZP_E820_ENTRIES = 0x1e8,
	ZP_E820_TABLE = 0x2d0,
	ZP_E820_ENTRY = 20,
	ZP_SIZE = 0x1000,
};

/* What the header says, checked. */
struct bzimage {
	const uint8_t *header; /* the file's start */
	unsigned header_end;
	unsigned version;
	uint64_t body, body_len; /* protected-mode part in the file */
	bool entry64, above_4g;
	bool relocatable;
	uint64_t alignment;
	uint64_t pref_address;
	uint64_t init_size; /* memory it needs from its load address on */
	uint64_t initrd_limit;
	uint64_t cmdline_max;
};

bool boot_is_bzimage(const struct boot_file *file)
{
	return file->len >= HDR_MAGIC + 4 && !memcmp(file->data + HDR_MAGIC, "HdrS", 4) &&
	       get16(file->data + HDR_BOOT_FLAG) == 0xaa55;
}

/* Where and how big the parts of the file are. */
static bool parse_sizes(const struct boot_file *file, struct bzimage *bz, struct error *err)
{
	const uint8_t *p = file->data;
	unsigned sects = p[HDR_SETUP_SECTS] ? p[HDR_SETUP_SECTS] : 4; /* boot.rst: 0 means 4 */

	bz->header = p;
	bz->header_end = HDR_MAGIC + p[HDR_JUMP + 1];
	bz->body = (sects + 1ull) * 512;
	bz->body_len = (uint64_t)get32(p + HDR_SYSSIZE) * 16;
	/* Some linkers leave out the padding of the last 16 bytes. */
	if (!in_file(bz->body, align_down(MAX(bz->body_len, 1ull) - 1, 16), file->len) || bz->header_end > file->len)
		return error_set(
			err, "%s is truncated: its header says %llu bytes and the file has %llu; copy it again",
			file->name, (unsigned long long)bz->body + bz->body_len, (unsigned long long)file->len);
	if (bz->header_end > HDR_MAX_END)
		bz->header_end = HDR_MAX_END;
	/* The last bytes may be a signature or padding that the unpacker wants to see. */
	bz->body_len = file->len - bz->body;
	if (!bz->body_len)
		return error_set(err, "%s has a setup part only: copy it again", file->name);
	return true;
}

/* What the version of the header promises. */
static bool parse_protocol(const struct boot_file *file, struct bzimage *bz, struct error *err)
{
	const uint8_t *p = file->data;

	bz->version = get16(p + HDR_VERSION);
	if (bz->version < 0x206 || file->len < HDR_MIN_END)
		return error_set(err,
				 "%s speaks version %u.%02u of the boot protocol: take a kernel of 2.06 (Linux 2.6.22) "
				 "or newer",
				 file->name, bz->version >> 8, bz->version & 0xff);
	if (!(p[HDR_LOADFLAGS] & LOADED_HIGH))
		return error_set(err, "%s is a zImage, which loads low: take a bzImage", file->name);
	bz->initrd_limit = (uint64_t)get32(p + HDR_INITRD_ADDR_MAX) + 1;
	bz->cmdline_max = get32(p + HDR_CMDLINE_SIZE);
	bz->relocatable = p[HDR_RELOCATABLE];
	bz->alignment = get32(p + HDR_KERNEL_ALIGNMENT);
	bz->pref_address = get32(p + HDR_CODE32_START);
	bz->init_size = bz->body_len;
	if (bz->version >= 0x20a) {
		bz->pref_address = get64(p + HDR_PREF_ADDRESS);
		bz->init_size = MAX(bz->body_len, get32(p + HDR_INIT_SIZE));
	}
	if (bz->version >= 0x20c) {
		bz->entry64 = get16(p + HDR_XLOADFLAGS) & XLF_KERNEL_64;
		bz->above_4g = get16(p + HDR_XLOADFLAGS) & XLF_CAN_BE_LOADED_ABOVE_4G;
	}
	return true;
}

static bool check_protocol(const struct boot_file *file, const struct bzimage *bz, struct error *err)
{
	if (bz->pref_address < LAYOUT_KERNEL_MIN || bz->pref_address >= GiB(4))
		return error_set(
			err,
			"%s wants to be loaded at %#llx, which is not between 1 MiB and 4 GiB: its header is damaged",
			file->name, (unsigned long long)bz->pref_address);
	if (bz->relocatable && (!bz->alignment || (bz->alignment & (bz->alignment - 1))))
		return error_set(err, "%s asks for an alignment of %#llx, no power of two: its header is damaged",
				 file->name, (unsigned long long)bz->alignment);
	if (bz->entry64 && bz->body_len <= ENTRY_64)
		return error_set(err, "%s is truncated before its 64-bit entry: copy it again", file->name);
	return true;
}

/*
 * Where the kernel goes: where it prefers. A kernel that can move may be loaded lower, but its first act is to move to
 * the preferred address at least (Linux: LOAD_PHYSICAL_ADDR in arch/x86/boot/compressed/head_64.S and head_32.S),
 * without asking whether there is memory; so nothing would be gained, and whoever has too little is told here.
 */
static bool choose_address(const struct boot_config *config, const struct bzimage *bz, uint64_t *addr,
			   struct error *err)
{
	uint64_t top = boot_low_ram(config->mem);

	*addr = bz->pref_address;
	if (*addr <= top && bz->init_size <= top - *addr)
		return true;
	return error_set(err, "%s needs %llu MiB of memory below 3 GiB to start: give the machine more with --memory",
			 config->kernel.name, (unsigned long long)(align_up(*addr + bz->init_size, MiB(1)) >> 20));
}

static void put_memory_map(const struct boot_config *config, uint8_t *zp)
{
	/* Sizes above 1 MiB for kernels that find no e820 map; the first saturates at 64 MiB. */
	uint64_t ext_k = (boot_low_ram(config->mem) - MiB(1)) >> 10;
	uint32_t ext16 = MIN(ext_k, 0xfc00);

	zp[ZP_EXT_MEM_K] = ext16;
	zp[ZP_EXT_MEM_K + 1] = ext16 >> 8;
	put32(zp + ZP_ALT_MEM_K, ext_k);
	zp[ZP_E820_ENTRIES] = config->regions;
	for (unsigned i = 0; i < config->regions; i++) {
		uint8_t *e = zp + ZP_E820_TABLE + (size_t)i * ZP_E820_ENTRY;
		put64(e, config->region[i].base);
		put64(e + 8, config->region[i].size);
		put32(e + 16, config->region[i].type);
	}
}

/* The zero page: the file's header with the loader's fields filled in, and what firmware would have told. */
static bool write_zero_page(const struct boot_config *config, const struct bzimage *bz, uint64_t load, uint64_t initrd)
{
	uint8_t zp[ZP_SIZE] = {0};
	uint64_t initrd_len = initrd ? config->initrd.len : 0;

	memcpy(zp + HDR, bz->header + HDR, bz->header_end - HDR);
	zp[HDR_TYPE_OF_LOADER] = LOADER_UNDEFINED;
	zp[HDR_LOADFLAGS] &= ~CAN_USE_HEAP;
	put32(zp + HDR_CODE32_START, load);
	put32(zp + HDR_RAMDISK_IMAGE, initrd);
	put32(zp + ZP_EXT_RAMDISK_IMAGE, initrd >> 32);
	put32(zp + HDR_RAMDISK_SIZE, initrd_len);
	put32(zp + ZP_EXT_RAMDISK_SIZE, initrd_len >> 32);
	put32(zp + HDR_CMD_LINE_PTR, LAYOUT_CMDLINE);
	put64(zp + ZP_RSDP, config->rsdp);
	put_memory_map(config, zp);
	return guest_memory_write(config->mem, LAYOUT_INFO, zp, sizeof(zp));
}

bool boot_bzimage(const struct boot_config *config, struct error *err)
{
	const struct boot_file *file = &config->kernel;
	struct bzimage bz = {0};
	uint64_t load, initrd;

	if (!parse_sizes(file, &bz, err) || !parse_protocol(file, &bz, err) || !check_protocol(file, &bz, err) ||
	    !choose_address(config, &bz, &load, err))
		return false;
	if (!boot_has_room(config, load, bz.body_len))
		return error_set(err, "%s does not fit into memory: give the machine more with --memory", file->name);
	if (!boot_put(config, load, file, bz.body, bz.body_len, err) ||
	    !boot_place_initrd(config, load + bz.init_size, bz.initrd_limit, bz.above_4g, &initrd, err) ||
	    !boot_place_cmdline(config, bz.cmdline_max, err))
		return false;
	if (!write_zero_page(config, &bz, load, initrd))
		return error_set(err, "the machine has too little memory for a kernel: give it more with --memory");
	if (bz.entry64)
		boot_enter_long(config, load + ENTRY_64);
	else
		boot_enter_protected(config, load);
	config->cpu->gpr[RSI] = LAYOUT_INFO;
	return true;
}
