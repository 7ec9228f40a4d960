/* SMBIOS 2.8: the 32-bit entry point (5.2.1) and the structures that must be there (6.2), short of the hardware's
 * inventory. */
#include "machine/smbios.h"

#include <string.h>

enum { ENTRY_LENGTH = 0x1f, INTERMEDIATE = 0x10, STRUCTURES = 0x20 };
enum { TYPE_BIOS = 0, TYPE_SYSTEM = 1, TYPE_CHASSIS = 3, TYPE_BOOT = 32, TYPE_END = 127 };

/* The formatted part after type, length and handle; where it is all zeroes only its length counts. Strings are numbered
 * from 1. */
struct structure {
	uint8_t type, length;
	uint8_t data[26];
	const char *strings; /* each ended by a zero, all together by one more */
};

static const struct structure structures[] = {
	/* Segment 0xe000, 64 KiB, "characteristics not supported", "a virtual machine", release 1.0, no embedded
	   controller. */
	{TYPE_BIOS,
	 24,
	 {1, 2, 0, 0xe0, 3, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 1, 0, 0xff, 0xff},
	 "doppel\0"
	 "1\0"
	 "11/01/2026\0"},
	/* No serial number, no UUID; woken by the power switch. */
	{TYPE_SYSTEM,
	 27,
	 {1, 2, 3, 0, [20] = 6},
	 "doppel\0"
	 "PC\0"
	 "1\0"},
	/* Kind "other"; states "safe"; security "unknown". */
	{TYPE_CHASSIS, 21, {1, 1, 0, 0, 0, 3, 3, 3, 2}, "doppel\0"},
	{TYPE_BOOT, 11, {0}, ""},
	{TYPE_END, 4, {0}, ""},
};

static size_t strings_length(const char *strings)
{
	size_t len = 0;

	while (strings[len])
		len += strlen(strings + len) + 1;
	return len ? len + 1 : 2; /* without strings there are two zeroes */
}

static size_t put_structure(uint8_t *p, const struct structure *s, unsigned handle)
{
	size_t strings = strings_length(s->strings);

	p[0] = s->type;
	p[1] = s->length;
	p[2] = handle;
	memcpy(p + 4, s->data, s->length - 4);
	if (strings > 2)
		memcpy(p + s->length, s->strings, strings);
	return s->length + strings;
}

static void put16(uint8_t *p, unsigned v)
{
	p[0] = v;
	p[1] = v >> 8;
}

static uint8_t checksum(const uint8_t *p, size_t len)
{
	uint8_t sum = 0;

	for (size_t i = 0; i < len; i++)
		sum += p[i];
	return -sum;
}

void smbios_build(uint8_t *buf)
{
	static const char anchor[] = {'_', 'S', 'M', '_'}, intermediate[] = {'_', 'D', 'M', 'I', '_'};
	size_t len = 0, longest = 0;

	memset(buf, 0, SMBIOS_TABLES_SIZE);
	for (unsigned i = 0; i < ARRAY_LEN(structures); i++) {
		size_t one = put_structure(buf + STRUCTURES + len, &structures[i], i);
		len += one;
		longest = MAX(longest, one);
	}
	memcpy(buf, anchor, sizeof(anchor));
	buf[5] = ENTRY_LENGTH;
	buf[6] = 2;
	buf[7] = 8;
	put16(buf + 8, longest);
	memcpy(buf + INTERMEDIATE, intermediate, sizeof(intermediate));
	put16(buf + 0x16, len);
	put16(buf + 0x18, (SMBIOS_TABLES + STRUCTURES) & 0xffff);
	put16(buf + 0x1a, (SMBIOS_TABLES + STRUCTURES) >> 16);
	put16(buf + 0x1c, ARRAY_LEN(structures));
	buf[0x1e] = 0x28;
	buf[INTERMEDIATE + 5] = checksum(buf + INTERMEDIATE, ENTRY_LENGTH - INTERMEDIATE);
	buf[4] = checksum(buf, ENTRY_LENGTH);
}

bool smbios_write(struct guest_memory *mem)
{
	uint8_t *p = guest_memory_ptr(mem, SMBIOS_TABLES, SMBIOS_TABLES_SIZE, true);

	if (!p)
		return false;
	smbios_build(p);
	guest_memory_wrote(mem, SMBIOS_TABLES, SMBIOS_TABLES_SIZE);
	return true;
}
