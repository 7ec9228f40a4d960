/* RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG; the DSDT's contents are dsdt.c's. */
#include "machine/acpi.h"

#include "dev/acpi_pm.h"
#include "dev/rtc.h"
#include "machine/aml.h"
#include "machine/pc.h"

#include <string.h>

enum { HEADER = 36, HEADER_LENGTH = 4, HEADER_CHECKSUM = 9, RSDP_SIZE = 36, FACS_SIZE = 64, FADT_SIZE = 276 };

/* The tables grow in an AML buffer: it appends bytes and knows when there is no room. */
struct tables {
	struct aml out;
	unsigned count;
	uint64_t listed[4]; /* what RSDT and XSDT name */
};

static void put(struct tables *t, uint64_t value, unsigned len)
{
	for (unsigned i = 0; i < len; i++)
		aml_byte(&t->out, value >> (8 * i));
}

static void store(struct tables *t, size_t at, uint64_t value, unsigned len)
{
	for (unsigned i = 0; i < len && !t->out.overflow; i++)
		t->out.data[at + i] = value >> (8 * i);
}

static void align(struct tables *t, size_t a)
{
	while (t->out.len % a && !t->out.overflow)
		aml_byte(&t->out, 0);
}

/* All bytes of a structure sum up to 0 (5.2.6). */
static void checksum(struct tables *t, size_t at, size_t len, size_t field)
{
	uint8_t sum = 0;

	if (t->out.overflow)
		return;
	t->out.data[at + field] = 0;
	for (size_t i = 0; i < len; i++)
		sum += t->out.data[at + i];
	t->out.data[at + field] = -sum;
}

/* The header that all but RSDP and FACS share (5.2.6); returns where the table starts. */
static size_t begin_table(struct tables *t, const char *signature, unsigned revision)
{
	size_t at;

	align(t, 16);
	at = t->out.len;
	aml_bytes(&t->out, signature, 4);
	put(t, 0, 4); /* length, later */
	put(t, revision, 1);
	put(t, 0, 1); /* checksum, later */
	aml_bytes(&t->out, "DOPPELDOPPELPC", 14);
	put(t, 1, 4);
	aml_bytes(&t->out, "DPPL", 4);
	put(t, 1, 4);
	return at;
}

static uint64_t end_table(struct tables *t, size_t at)
{
	store(t, at + HEADER_LENGTH, t->out.len - at, 4);
	checksum(t, at, t->out.len - at, HEADER_CHECKSUM);
	return ACPI_TABLES + at;
}

/* Generic address structure (5.2.3.2); access: 1 byte, 2 word, 3 dword. */
static void store_port(struct tables *t, size_t at, unsigned bits, unsigned access, uint64_t port)
{
	store(t, at, 1, 1); /* system I/O */
	store(t, at + 1, bits, 1);
	store(t, at + 3, access, 1);
	store(t, at + 4, port, 8);
}

/* FADT flags (table 5.10) and boot architecture flags (table 5.11). */
enum {
	FADT_WBINVD = 1 << 0,
	FADT_PROC_C1 = 1 << 2,
	FADT_NO_SLEEP_BUTTON = 1 << 5,
	FADT_NO_RTC_WAKE = 1 << 6,
	FADT_TIMER_32 = 1 << 8,
	FADT_RESET_REGISTER = 1 << 10,
};
enum { BOOT_LEGACY_DEVICES = 1 << 0, BOOT_8042 = 1 << 1, BOOT_NO_VGA = 1 << 2 };
enum { PROFILE_SERVER = 4, NO_C2 = 0xfff, NO_C3 = 0xfff };

struct field {
	uint16_t at;
	uint8_t len;
	uint32_t value;
};

static const struct field fadt_fields[] = {
	{45, 1, PROFILE_SERVER},
	{46, 2, PC_SCI_IRQ},
	{56, 4, PC_PM_BASE + ACPI_PM_EVENT},
	{64, 4, PC_PM_BASE + ACPI_PM_CONTROL},
	{76, 4, PC_PM_BASE + ACPI_PM_TIMER},
	{88, 1, 4}, /* lengths of the event block, the control block and the timer */
	{89, 1, 2},
	{91, 1, 4},
	{96, 2, NO_C2},
	{98, 2, NO_C3},
	{108, 1, RTC_CENTURY},
	{112, 4,
	 FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLEEP_BUTTON | FADT_NO_RTC_WAKE | FADT_TIMER_32 | FADT_RESET_REGISTER},
	{128, 1, PC_RESET_VALUE},
	{131, 1, 4}, /* minor version: 6.4 */
};

static uint64_t fadt(struct tables *t, uint64_t facs, uint64_t dsdt, bool keyboard)
{
	size_t at = begin_table(t, "FACP", 6);

	for (unsigned i = HEADER; i < FADT_SIZE; i++)
		aml_byte(&t->out, 0);
	for (unsigned i = 0; i < ARRAY_LEN(fadt_fields); i++)
		store(t, at + fadt_fields[i].at, fadt_fields[i].value, fadt_fields[i].len);
	store(t, at + 36, facs, 4);
	store(t, at + 40, dsdt, 4);
	store(t, at + 109, BOOT_LEGACY_DEVICES | BOOT_NO_VGA | (keyboard ? BOOT_8042 : 0), 2);
	store_port(t, at + 116, 8, 1, PC_RESET_PORT);
	store(t, at + 140, dsdt, 8);
	store_port(t, at + 148, 32, 2, PC_PM_BASE + ACPI_PM_EVENT);
	store_port(t, at + 172, 16, 2, PC_PM_BASE + ACPI_PM_CONTROL);
	store_port(t, at + 208, 32, 3, PC_PM_BASE + ACPI_PM_TIMER);
	return end_table(t, at);
}

/* Firmware ACPI control structure (5.2.10): there for its lock only. */
static uint64_t facs(struct tables *t)
{
	size_t at;

	align(t, 64);
	at = t->out.len;
	aml_bytes(&t->out, "FACS", 4);
	put(t, FACS_SIZE, 4);
	for (unsigned i = 8; i < FACS_SIZE; i++)
		aml_byte(&t->out, 0);
	store(t, at + 32, 2, 1); /* version */
	return ACPI_TABLES + at;
}

static uint64_t dsdt(struct tables *t, const struct acpi_config *config)
{
	size_t at = begin_table(t, "DSDT", 2);

	dsdt_build(&t->out, config);
	return end_table(t, at);
}

/* Where an ISA interrupt comes out on the I/O APIC; flags: polarity in bits 0-1, trigger in 2-3; 0: as the bus. */
static void madt_override(struct tables *t, unsigned irq, unsigned gsi, unsigned flags)
{
	put(t, 2, 1);
	put(t, 10, 1);
	put(t, 0, 1); /* ISA */
	put(t, irq, 1);
	put(t, gsi, 4);
	put(t, flags, 2);
}

/* Interrupt controllers (5.2.12). APIC IDs are the CPU's index and below 255: no x2APIC entries are needed. */
static uint64_t madt(struct tables *t, unsigned cpus)
{
	size_t at = begin_table(t, "APIC", 5);

	put(t, PC_LAPIC, 4);
	put(t, 1, 4); /* there are 8259s too */
	for (unsigned i = 0; i < cpus; i++) {
		put(t, 0, 1);
		put(t, 8, 1);
		put(t, i, 1);
		put(t, i, 1);
		put(t, 1, 4); /* enabled */
	}
	put(t, 1, 1);
	put(t, 12, 1);
	put(t, PC_IOAPIC_ID, 1);
	put(t, 0, 1);
	put(t, PC_IOAPIC, 4);
	put(t, 0, 4); /* first GSI */
	madt_override(t, 0, PC_TIMER_GSI, 0);
	madt_override(t, PC_SCI_IRQ, PC_SCI_IRQ, 0xd); /* level, active high */
	put(t, 4, 1);                                  /* NMI at LINT1 of all processors */
	put(t, 6, 1);
	put(t, 0xff, 1);
	put(t, 0, 2);
	put(t, 1, 1);
	return end_table(t, at);
}

/* Where ECAM is (PCI Firmware Specification 3.0, 4.1.2). */
static uint64_t mcfg(struct tables *t)
{
	size_t at = begin_table(t, "MCFG", 1);

	put(t, 0, 8);
	put(t, PC_ECAM, 8);
	put(t, 0, 2); /* segment */
	put(t, 0, 1);
	put(t, PC_ECAM_BUSES - 1, 1);
	put(t, 0, 4);
	return end_table(t, at);
}

static uint64_t root_table(struct tables *t, const char *signature, unsigned width)
{
	size_t at = begin_table(t, signature, 1);

	for (unsigned i = 0; i < t->count; i++)
		put(t, t->listed[i], width);
	return end_table(t, at);
}

/* Root system description pointer (5.2.5.3), at the start. */
static void rsdp(struct tables *t, uint64_t rsdt, uint64_t xsdt)
{
	if (t->out.overflow)
		return;
	memcpy(t->out.data, "RSD PTR ", 8);
	memcpy(t->out.data + 9, "DOPPEL", 6);
	store(t, 15, 2, 1);
	store(t, 16, rsdt, 4);
	store(t, 20, RSDP_SIZE, 4);
	store(t, 24, xsdt, 8);
	checksum(t, 0, 20, 8);
	checksum(t, 0, RSDP_SIZE, 32);
}

size_t acpi_build(uint8_t *buf, const struct acpi_config *config)
{
	struct tables t = {0};
	uint64_t facs_at, dsdt_at, rsdt_at;

	aml_init(&t.out, buf, ACPI_TABLES_SIZE);
	for (unsigned i = 0; i < RSDP_SIZE; i++)
		aml_byte(&t.out, 0);
	facs_at = facs(&t);
	dsdt_at = dsdt(&t, config);
	t.listed[t.count++] = fadt(&t, facs_at, dsdt_at, config->keyboard);
	t.listed[t.count++] = madt(&t, config->cpus);
	t.listed[t.count++] = mcfg(&t);
	rsdt_at = root_table(&t, "RSDT", 4);
	rsdp(&t, rsdt_at, root_table(&t, "XSDT", 8));
	ENSURE(!t.out.overflow); /* 255 processors need a third of it */
	return t.out.len;
}

uint64_t acpi_write(struct guest_memory *mem, const struct acpi_config *config)
{
	uint8_t *p = guest_memory_ptr(mem, ACPI_TABLES, ACPI_TABLES_SIZE, true);

	if (!p)
		return 0;
	memset(p, 0, ACPI_TABLES_SIZE);
	acpi_build(p, config);
	guest_memory_wrote(mem, ACPI_TABLES, ACPI_TABLES_SIZE);
	return ACPI_TABLES;
}
