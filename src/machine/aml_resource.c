/* Resource descriptors (ACPI 6.4, 6.4.2 and 6.4.3). */
#include "machine/aml.h"

#include <string.h>

enum {
	RES_IRQ = 0x22,
	RES_IO = 0x47,
	RES_END = 0x79,
	RES_MEMORY32 = 0x86,
	RES_DWORD = 0x87,
	RES_WORD = 0x88,
	RES_QWORD = 0x8a
};
enum { WINDOW_FIXED = 0x0c /* producer, positive decode, both ends fixed */, MEMORY_RW = 1, IO_WHOLE = 3 };

static void add(struct aml_resources *res, uint64_t value, unsigned len)
{
	ENSURE(res->len + len <= sizeof(res->data));
	for (unsigned i = 0; i < len; i++)
		res->data[res->len++] = value >> (8 * i);
}

void aml_res_io(struct aml_resources *res, uint16_t base, uint8_t len)
{
	add(res, RES_IO, 1);
	add(res, 1, 1); /* 16 address bits decoded */
	add(res, base, 2);
	add(res, base, 2);
	add(res, 1, 1); /* alignment */
	add(res, len, 1);
}

void aml_res_irq(struct aml_resources *res, unsigned irq)
{
	add(res, RES_IRQ, 1);
	add(res, BIT(irq), 2);
}

void aml_res_memory(struct aml_resources *res, uint32_t base, uint32_t size)
{
	add(res, RES_MEMORY32, 1);
	add(res, 9, 2);
	add(res, MEMORY_RW, 1);
	add(res, base, 4);
	add(res, size, 4);
}

/* Address space descriptor with fields of `width` bytes: granularity, first, last, offset, size. */
static void window(struct aml_resources *res, uint8_t tag, enum aml_window kind, unsigned width, uint64_t base,
		   uint64_t size)
{
	static const uint8_t flags[] = {
		[AML_WINDOW_MEMORY] = MEMORY_RW, [AML_WINDOW_IO] = IO_WHOLE, [AML_WINDOW_BUS] = 0};

	add(res, tag, 1);
	add(res, 3 + 5 * width, 2);
	add(res, kind, 1);
	add(res, WINDOW_FIXED, 1);
	add(res, flags[kind], 1);
	add(res, 0, width);
	add(res, base, width);
	add(res, base + size - 1, width);
	add(res, 0, width);
	add(res, size, width);
}

void aml_res_window16(struct aml_resources *res, enum aml_window kind, uint16_t base, uint32_t size)
{
	window(res, RES_WORD, kind, 2, base, size);
}

void aml_res_window32(struct aml_resources *res, uint32_t base, uint32_t size)
{
	window(res, RES_DWORD, AML_WINDOW_MEMORY, 4, base, size);
}

void aml_res_window64(struct aml_resources *res, uint64_t base, uint64_t size)
{
	window(res, RES_QWORD, AML_WINDOW_MEMORY, 8, base, size);
}

void aml_name_resources(struct aml *aml, const char *path, struct aml_resources *res)
{
	add(res, RES_END, 1);
	add(res, 0, 1); /* no checksum */
	aml_name(aml, path);
	aml_buffer(aml, res->data, res->len);
}
