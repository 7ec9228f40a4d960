/* AML terms (ACPI 6.4, 20.2). */
#include "machine/aml.h"

#include <string.h>

enum {
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_QWORD = 0x0e,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_METHOD = 0x14,
	OP_DUAL_NAME = 0x2e,
	OP_EXT = 0x5b,
	OP_EXT_DEVICE = 0x82,
	OP_IF = 0xa0,
	OP_ELSE = 0xa1,
};

void aml_init(struct aml *aml, void *data, size_t size)
{
	*aml = (struct aml){.data = data, .size = size};
}

void aml_bytes(struct aml *aml, const void *bytes, size_t len)
{
	if (aml->overflow || len > aml->size - aml->len) {
		aml->overflow = true;
		return;
	}
	memcpy(aml->data + aml->len, bytes, len);
	aml->len += len;
}

void aml_byte(struct aml *aml, uint8_t byte)
{
	aml_bytes(aml, &byte, 1);
}

void aml_op(struct aml *aml, uint8_t op)
{
	aml_byte(aml, op);
}

static void put(struct aml *aml, uint64_t value, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		aml_byte(aml, value >> (8 * i));
}

/* One name segment; returns what follows it in the path. */
static const char *segment(struct aml *aml, const char *path)
{
	char name[4] = {'_', '_', '_', '_'};

	for (unsigned i = 0; i < 4 && *path && *path != '.'; i++)
		name[i] = *path++;
	aml_bytes(aml, name, sizeof(name));
	return path;
}

void aml_path(struct aml *aml, const char *path)
{
	if (*path == '\\')
		aml_byte(aml, *path++);
	if (strchr(path, '.'))
		aml_byte(aml, OP_DUAL_NAME);
	path = segment(aml, path);
	if (*path == '.')
		path = segment(aml, path + 1);
	ENSURE(!*path);
}

void aml_integer(struct aml *aml, uint64_t value)
{
	static const struct {
		uint64_t max;
		uint8_t op, len;
	} forms[] = {{UINT8_MAX, OP_BYTE, 1},
		     {UINT16_MAX, OP_WORD, 2},
		     {UINT32_MAX, OP_DWORD, 4},
		     {UINT64_MAX, OP_QWORD, 8}};

	if (value <= 1) {
		aml_op(aml, value ? AML_ONE : AML_ZERO);
		return;
	}
	for (unsigned i = 0; i < ARRAY_LEN(forms); i++) {
		if (value <= forms[i].max) {
			aml_byte(aml, forms[i].op);
			put(aml, value, forms[i].len);
			return;
		}
	}
}

void aml_string(struct aml *aml, const char *s)
{
	aml_byte(aml, OP_STRING);
	aml_bytes(aml, s, strlen(s) + 1);
}

static unsigned hex_digit(char c)
{
	return c <= '9' ? c - '0' : c - 'A' + 10;
}

/* An identifier such as "PNP0A08", compressed as EISA IDs are (6.1.5). */
static void aml_eisa(struct aml *aml, const char *id)
{
	uint32_t v = 0;

	ENSURE(strlen(id) == 7);
	for (unsigned i = 0; i < 3; i++)
		v = v << 5 | (id[i] & 0x1f);
	for (unsigned i = 3; i < 7; i++)
		v = v << 4 | hex_digit(id[i]);
	aml_byte(aml, OP_DWORD);
	put(aml, __builtin_bswap32(v), 4);
}

/* A package's length goes before its contents and has a length of its own: it is put in when the package ends. */
static void begin(struct aml *aml)
{
	ENSURE(aml->depth < AML_DEPTH);
	aml->open[aml->depth++] = aml->len;
}

/* PkgLength counts itself: 6 bits in one byte, or 4 bits and up to three bytes more (20.2.4). */
void aml_end(struct aml *aml)
{
	size_t at = aml->open[--aml->depth], len = aml->len - at;
	uint8_t field[4];
	unsigned n = 1;

	while (len + n >= (n == 1 ? 1u << 6 : 1u << (4 + 8 * (n - 1))))
		n++;
	len += n;
	field[0] = n == 1 ? len : (n - 1) << 6 | (len & 0xf);
	for (unsigned i = 1; i < n; i++)
		field[i] = len >> (4 + 8 * (i - 1));
	aml_bytes(aml, field, n); /* makes room, or finds that there is none */
	if (aml->overflow)
		return;
	memmove(aml->data + at + n, aml->data + at, aml->len - n - at);
	memcpy(aml->data + at, field, n);
}

void aml_scope(struct aml *aml, const char *path)
{
	aml_byte(aml, OP_SCOPE);
	begin(aml);
	aml_path(aml, path);
}

void aml_device(struct aml *aml, const char *name)
{
	aml_byte(aml, OP_EXT);
	aml_byte(aml, OP_EXT_DEVICE);
	begin(aml);
	aml_path(aml, name);
}

void aml_method(struct aml *aml, const char *name, unsigned args)
{
	aml_byte(aml, OP_METHOD);
	begin(aml);
	aml_path(aml, name);
	aml_byte(aml, args);
}

void aml_package(struct aml *aml, unsigned elements)
{
	aml_byte(aml, OP_PACKAGE);
	begin(aml);
	aml_byte(aml, elements);
}

void aml_buffer(struct aml *aml, const void *bytes, size_t len)
{
	aml_byte(aml, OP_BUFFER);
	begin(aml);
	aml_integer(aml, len);
	aml_bytes(aml, bytes, len);
	aml_end(aml);
}

void aml_if(struct aml *aml)
{
	aml_byte(aml, OP_IF);
	begin(aml);
}

void aml_else(struct aml *aml)
{
	aml_byte(aml, OP_ELSE);
	begin(aml);
}

void aml_name(struct aml *aml, const char *path)
{
	aml_byte(aml, OP_NAME);
	aml_path(aml, path);
}

void aml_name_integer(struct aml *aml, const char *path, uint64_t value)
{
	aml_name(aml, path);
	aml_integer(aml, value);
}

void aml_name_eisa(struct aml *aml, const char *path, const char *id)
{
	aml_name(aml, path);
	aml_eisa(aml, id);
}
