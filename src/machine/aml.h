/*
 * Writing ACPI Machine Language (ACPI 6.4, ch. 20): a buffer that terms are appended to. Whatever opens a package is
 * closed by aml_end, innermost first. A buffer that is too small sets `overflow`, and nothing more is written.
 */
#ifndef DOPPEL_MACHINE_AML_H
#define DOPPEL_MACHINE_AML_H

#include "base/base.h"

#define AML_DEPTH 8

struct aml {
	uint8_t *data;
	size_t size, len;
	bool overflow;
	unsigned depth;
	size_t open[AML_DEPTH]; /* where the package lengths are to go */
};

void aml_init(struct aml *aml, void *data, size_t size);

void aml_byte(struct aml *aml, uint8_t byte);
void aml_bytes(struct aml *aml, const void *bytes, size_t len);
/* A name or path: "\\_SB", "PCI0", "\\_SB.PCI0"; segments shorter than four characters are filled with '_'. */
void aml_path(struct aml *aml, const char *path);
void aml_integer(struct aml *aml, uint64_t value);
void aml_string(struct aml *aml, const char *s);
/* The operator of an expression, e.g. AML_AND; its operands and target follow. */
void aml_op(struct aml *aml, uint8_t op);

void aml_scope(struct aml *aml, const char *path);
void aml_device(struct aml *aml, const char *name);
void aml_method(struct aml *aml, const char *name, unsigned args); /* `args`, and perhaps AML_SERIALIZED */
void aml_package(struct aml *aml, unsigned elements);
void aml_buffer(struct aml *aml, const void *bytes, size_t len);
void aml_if(struct aml *aml); /* the predicate follows, then the statements */
void aml_else(struct aml *aml);
void aml_end(struct aml *aml);

/* Name(path, ...), the value follows; and the common ones whole. */
void aml_name(struct aml *aml, const char *path);
void aml_name_integer(struct aml *aml, const char *path, uint64_t value);
void aml_name_eisa(struct aml *aml, const char *path, const char *id);

/* Opcodes that are written by aml_op (20.3). */
enum {
	AML_ZERO = 0x00,
	AML_ONE = 0x01,
	AML_SERIALIZED = 0x08 /* in a method's argument count */,
	AML_LOCAL0 = 0x60,
	AML_ARG0 = 0x68,
	AML_ARG1,
	AML_ARG2,
	AML_ARG3,
	AML_STORE = 0x70,
	AML_AND = 0x7b,
	AML_OR = 0x7d,
	AML_CREATE_DWORD_FIELD = 0x8a,
	AML_LNOT = 0x92,
	AML_LEQUAL = 0x93,
	AML_RETURN = 0xa4,
};

/* Resource descriptors (6.4), gathered and then written as one Name(_CRS, ResourceTemplate). */
struct aml_resources {
	uint8_t data[256];
	size_t len;
};

enum aml_window { AML_WINDOW_MEMORY = 0, AML_WINDOW_IO = 1, AML_WINDOW_BUS = 2 };

/* Fixed ports, decoded whole. */
void aml_res_io(struct aml_resources *res, uint16_t base, uint8_t len);
/* An ISA interrupt, edge, active high, not shared. */
void aml_res_irq(struct aml_resources *res, unsigned irq);
void aml_res_memory(struct aml_resources *res, uint32_t base, uint32_t size);
/* What a bridge hands down: 16 bits wide for ports and buses, 32 or 64 for memory. */
void aml_res_window16(struct aml_resources *res, enum aml_window kind, uint16_t base, uint32_t size);
void aml_res_window32(struct aml_resources *res, uint32_t base, uint32_t size);
void aml_res_window64(struct aml_resources *res, uint64_t base, uint64_t size);
void aml_name_resources(struct aml *aml, const char *path, struct aml_resources *res);

#endif
