/* ACPI tables: checksums, links between them, a few fields, and what ACPICA's own compiler makes of them. */
#include "machine/acpi.h"

#include "machine/aml.h"
#include "machine/pc.h"
#include "machine/smbios.h"

#include "unit.h"

static uint8_t tables[ACPI_TABLES_SIZE];

static uint64_t field(uint64_t gpa, unsigned off, unsigned len)
{
	uint64_t v = 0;

	if (gpa < ACPI_TABLES || gpa + off + len > ACPI_TABLES + sizeof(tables)) {
		UNIT_FAIL("%#llx is outside of the tables", (unsigned long long)gpa);
		return 0;
	}
	memcpy(&v, tables + (gpa - ACPI_TABLES) + off, len);
	return v;
}

static uint8_t sum(uint64_t gpa, unsigned len)
{
	uint8_t s = 0;

	for (unsigned i = 0; i < len; i++)
		s += field(gpa, i, 1);
	return s;
}

static void build(unsigned cpus)
{
	struct acpi_config config = {.cpus = cpus, .keyboard = true, .window64 = true};

	memset(tables, 0, sizeof(tables));
	CHECK(acpi_build(tables, &config) < sizeof(tables) / 2);
}

/* The table with that signature, by way of the XSDT; 0 and a failure when there is none. */
static uint64_t find(const char *signature)
{
	uint64_t xsdt = field(ACPI_TABLES, 24, 8);
	uint32_t wanted;

	memcpy(&wanted, signature, 4);
	for (unsigned off = 36; off < field(xsdt, 4, 4); off += 8)
		if (field(field(xsdt, off, 8), 0, 4) == wanted)
			return field(xsdt, off, 8);
	UNIT_FAIL("no %s", signature);
	return ACPI_TABLES;
}

TEST(acpi_checksums)
{
	static const char *const names[] = {"FACP", "APIC", "MCFG"};

	build(4);
	CHECK_MEM(tables, "RSD PTR ", 8);
	CHECK_EQ(sum(ACPI_TABLES, 20), 0);
	CHECK_EQ(sum(ACPI_TABLES, 36), 0);
	for (unsigned i = 0; i < ARRAY_LEN(names); i++)
		CHECK_EQ(sum(find(names[i]), field(find(names[i]), 4, 4)), 0);
	CHECK_EQ(sum(field(ACPI_TABLES, 16, 4), field(field(ACPI_TABLES, 16, 4), 4, 4)), 0);
	CHECK_EQ(sum(field(ACPI_TABLES, 24, 8), field(field(ACPI_TABLES, 24, 8), 4, 4)), 0);
	CHECK_EQ(sum(field(find("FACP"), 40, 4), field(field(find("FACP"), 40, 4), 4, 4)), 0);
}

TEST(acpi_rsdt_names_what_xsdt_names)
{
	uint64_t rsdt, xsdt;

	build(1);
	rsdt = field(ACPI_TABLES, 16, 4), xsdt = field(ACPI_TABLES, 24, 8);
	CHECK_EQ((field(rsdt, 4, 4) - 36) / 4, (field(xsdt, 4, 4) - 36) / 8);
	for (unsigned i = 0; i < (field(rsdt, 4, 4) - 36) / 4; i++)
		CHECK_EQ(field(rsdt, 36 + 4 * i, 4), field(xsdt, 36 + 8 * i, 8));
}

TEST(acpi_fadt)
{
	uint64_t fadt;

	build(1);
	fadt = find("FACP");
	CHECK_EQ(field(fadt, 4, 4), 276);
	CHECK_EQ(field(fadt, 36, 4) % 64, 0); /* FACS */
	CHECK_EQ(field(fadt, 46, 2), 9);
	CHECK_EQ(field(fadt, 56, 4), 0x600);
	CHECK_EQ(field(fadt, 64, 4), 0x604);
	CHECK_EQ(field(fadt, 76, 4), 0x608);
	CHECK_EQ(field(fadt, 120, 8), 0xcf9);
	CHECK_EQ(field(fadt, 128, 1), 6);
	CHECK_EQ(field(fadt, 112, 4) & BIT(10), BIT(10));
	CHECK_EQ(field(fadt, 112, 4) & BIT(20), 0); /* not hardware-reduced */
	CHECK_EQ(field(fadt, 40, 4), field(fadt, 140, 8));
}

TEST(acpi_madt_lists_every_processor)
{
	uint64_t madt;
	unsigned cpus = 0, off, len;

	build(255);
	madt = find("APIC");
	for (off = 44; off < field(madt, 4, 4); off += len) {
		len = field(madt, off + 1, 1);
		REQUIRE(len);
		if (field(madt, off, 1) == 0)
			CHECK_EQ(field(madt, off + 3, 1), cpus++);
	}
	CHECK_EQ(off, field(madt, 4, 4));
	CHECK_EQ(cpus, 255);
}

TEST(smbios)
{
	static uint8_t buf[SMBIOS_TABLES_SIZE];
	unsigned count = 0, at = 0x20, end;
	uint8_t sum = 0, type = 0;

	smbios_build(buf);
	for (unsigned i = 0; i < buf[5]; i++)
		sum += buf[i];
	CHECK_EQ(sum, 0);
	for (unsigned i = 0x10; i < buf[5]; i++)
		sum += buf[i];
	CHECK_EQ(sum, 0);
	end = at + (buf[0x16] | buf[0x17] << 8);
	for (; at < end; count++) {
		type = buf[at];
		at += buf[at + 1];
		while (at < end && (buf[at] || buf[at + 1]))
			at++;
		at += 2;
	}
	CHECK_EQ(at, end);
	CHECK_EQ(count, buf[0x1c]);
	CHECK_EQ(type, 127);
}

TEST(aml_package_lengths)
{
	static const unsigned sizes[] = {0, 61, 62, 63, 4092, 4093, 4094, 5000};
	static uint8_t buf[8192];

	for (unsigned i = 0; i < ARRAY_LEN(sizes); i++) {
		struct aml aml;
		unsigned follow, length;
		aml_init(&aml, buf, sizeof(buf));
		aml_if(&aml);
		for (unsigned n = 0; n < sizes[i]; n++)
			aml_op(&aml, AML_ONE);
		aml_end(&aml);
		follow = buf[1] >> 6;
		length = follow ? buf[1] & 15 : buf[1];
		for (unsigned n = 0; n < follow; n++)
			length |= buf[2 + n] << (4 + 8 * n);
		CHECK_EQ(length, aml.len - 1);
		CHECK_EQ(length, sizes[i] + 1 + follow);
		CHECK_EQ(buf[aml.len - 1], sizes[i] ? AML_ONE : buf[aml.len - 1]);
	}
}

TEST(aml_without_room_writes_nothing_more)
{
	uint8_t buf[16];
	struct aml aml;

	memset(buf, 0xee, sizeof(buf));
	aml_init(&aml, buf, 8);
	aml_scope(&aml, "\\_SB");
	aml_name_integer(&aml, "ABCD", 0x12345678);
	aml_end(&aml);
	CHECK(aml.overflow);
	CHECK_EQ(buf[8], 0xee);
}

/* Writes the table at `gpa` to DIR/NAME.dat. */
static bool dump(const char *dir, const char *name, uint64_t gpa)
{
	char path[256];
	FILE *f;
	bool ok;

	snprintf(path, sizeof(path), "%s/%s.dat", dir, name);
	f = fopen(path, "wb");
	if (!f)
		return false;
	ok = fwrite(tables + (gpa - ACPI_TABLES), field(gpa, 4, 4), 1, f) == 1;
	return !fclose(f) && ok;
}

/* iasl disassembles each table, and compiles it again without a remark; acpiexec loads the namespace. */
static const char checks[] =
	"cd %s && for t in FACP APIC MCFG DSDT; do iasl -d $t.dat >$t.log 2>&1 && iasl -p new_$t $t.dsl >>$t.log 2>&1 "
	"&&"
	" grep -q '0 Errors, 0 Warnings, 0 Remarks' $t.log || { cat $t.log; exit 1; }; done;"
	" ! command -v acpiexec >/dev/null || { acpiexec -b 'execute \\_SB.PCI0._PRT; quit' DSDT.dat >exec.log 2>&1;"
	" ! grep -iE 'error|warning|exception' exec.log; }";

TEST(acpi_tables_compile)
{
	char dir[] = "/tmp/doppel-acpi-XXXXXX", command[1024];

	if (system("command -v iasl >/dev/null")) {
		printf("skip acpi_tables_compile: iasl (acpica-tools) is not installed\n");
		return;
	}
	build(3);
	REQUIRE(mkdtemp(dir));
	CHECK(dump(dir, "FACP", find("FACP")) && dump(dir, "APIC", find("APIC")) && dump(dir, "MCFG", find("MCFG")) &&
	      dump(dir, "DSDT", field(find("FACP"), 40, 4)));
	snprintf(command, sizeof(command), checks, dir);
	CHECK_EQ(system(command), 0);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	CHECK_EQ(system(command), 0);
}

UNIT_MAIN()
