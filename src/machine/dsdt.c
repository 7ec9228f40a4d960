/* The DSDT: the PCI root with its windows and interrupts, what is wired to fixed addresses, the processors, soft-off.
 */
#include "dev/acpi_pm.h"
#include "dev/pci.h"
#include "machine/acpi.h"
#include "machine/aml.h"
#include "machine/pc.h"

/* A routing table (ACPI 6.4, 6.2.13): which interrupt each slot's four pins reach, `irq` being that of the four inputs.
 */
static void routing_table(struct aml *aml, const char *name, const uint8_t irq[4])
{
	aml_name(aml, name);
	aml_package(aml, PCI_SLOTS * 4);
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		for (unsigned pin = 0; pin < 4; pin++) {
			aml_package(aml, 4);
			aml_integer(aml, slot << 16 | 0xffff);
			aml_integer(aml, pin);
			aml_integer(aml, 0); /* no link device: the next is the interrupt itself */
			aml_integer(aml, irq[pci_intx(slot, pin)]);
			aml_end(aml);
		}
	}
	aml_end(aml);
}

/* _PRT: the I/O APIC's inputs, or those of the 8259s until the system said by _PIC that it uses the former. */
static void pci_routing(struct aml *aml)
{
	static const uint8_t apic[4] = {PC_PCI_GSI, PC_PCI_GSI + 1, PC_PCI_GSI + 2, PC_PCI_GSI + 3};
	static const uint8_t pic[4] = PC_PCI_ISA_IRQS;

	routing_table(aml, "PRTA", apic);
	routing_table(aml, "PRTP", pic);
	aml_method(aml, "_PRT", 0);
	aml_if(aml);
	aml_path(aml, "\\PICM");
	aml_op(aml, AML_RETURN);
	aml_path(aml, "PRTA");
	aml_end(aml);
	aml_op(aml, AML_RETURN);
	aml_path(aml, "PRTP");
	aml_end(aml);
}

/* _PIC (5.8.1): 0 8259s, 1 I/O APIC. */
static void pic_mode(struct aml *aml)
{
	aml_name_integer(aml, "\\PICM", 0);
	aml_method(aml, "\\_PIC", 1);
	aml_op(aml, AML_STORE);
	aml_op(aml, AML_ARG0);
	aml_path(aml, "\\PICM");
	aml_end(aml);
}

static void pci_windows(struct aml *aml, const struct acpi_config *config)
{
	struct aml_resources res = {0};

	aml_res_window16(&res, AML_WINDOW_BUS, 0, PC_ECAM_BUSES);
	aml_res_io(&res, 0xcf8, 8);
	aml_res_window16(&res, AML_WINDOW_IO, 0, 0xcf8);
	aml_res_window16(&res, AML_WINDOW_IO, 0xd00, 0x10000 - 0xd00);
	aml_res_window32(&res, PC_PCI_WINDOW, PC_PCI_WINDOW_END - PC_PCI_WINDOW);
	if (config->window64)
		aml_res_window64(&res, PC_PCI_WINDOW64, PC_PCI_WINDOW64_SIZE);
	aml_name_resources(aml, "_CRS", &res);
}

static void create_dword_field(struct aml *aml, unsigned off, const char *name)
{
	aml_op(aml, AML_CREATE_DWORD_FIELD);
	aml_op(aml, AML_ARG3);
	aml_integer(aml, off);
	aml_path(aml, name);
}

/* CDW1 |= bits */
static void or_status(struct aml *aml, unsigned bits)
{
	aml_op(aml, AML_OR);
	aml_path(aml, "CDW1");
	aml_integer(aml, bits);
	aml_path(aml, "CDW1");
}

/*
 * _OSC (6.2.11): the system may control all that it asks for, for there is no firmware that would. CDW1 bit 2 says
 * "unknown UUID", bit 3 "unknown revision".
 */
static void pci_osc(struct aml *aml)
{
	static const uint8_t pci_uuid[16] = {0x5b, 0x4d, 0xdb, 0x33, 0xf7, 0x1f, 0x1c, 0x40,
					     0x96, 0x57, 0x74, 0x41, 0xc0, 0x3d, 0xd7, 0x66};

	aml_method(aml, "_OSC", 4 | AML_SERIALIZED);
	create_dword_field(aml, 0, "CDW1");
	aml_if(aml);
	aml_op(aml, AML_LEQUAL);
	aml_op(aml, AML_ARG0);
	aml_buffer(aml, pci_uuid, sizeof(pci_uuid));
	aml_if(aml);
	aml_op(aml, AML_LNOT);
	aml_op(aml, AML_LEQUAL);
	aml_op(aml, AML_ARG1);
	aml_integer(aml, 1);
	or_status(aml, 8);
	aml_end(aml);
	aml_end(aml);
	aml_else(aml);
	or_status(aml, 4);
	aml_end(aml);
	aml_op(aml, AML_RETURN);
	aml_op(aml, AML_ARG3);
	aml_end(aml);
}

static void pci_root(struct aml *aml, const struct acpi_config *config)
{
	aml_device(aml, "PCI0");
	aml_name_eisa(aml, "_HID", "PNP0A08");
	aml_name_eisa(aml, "_CID", "PNP0A03");
	aml_name_integer(aml, "_UID", 0);
	aml_name_integer(aml, "_SEG", 0);
	aml_name_integer(aml, "_BBN", 0);
	pci_windows(aml, config);
	pci_routing(aml);
	pci_osc(aml);
	aml_end(aml);
}

static void fixed_device(struct aml *aml, const char *name, const char *id, struct aml_resources *res)
{
	aml_device(aml, name);
	aml_name_eisa(aml, "_HID", id);
	aml_name_integer(aml, "_UID", 0);
	aml_name_resources(aml, "_CRS", res);
	aml_end(aml);
}

static void fixed_devices(struct aml *aml, const struct acpi_config *config)
{
	struct aml_resources board = {0}, com = {0}, rtc = {0}, keyboard = {0};

	aml_res_memory(&board, PC_ECAM, PC_ECAM_BUSES << 20);
	aml_res_io(&board, PC_PM_BASE, ACPI_PM_SIZE);
	fixed_device(aml, "MBRD", "PNP0C02", &board);
	aml_res_io(&com, PC_COM1, 8);
	aml_res_irq(&com, PC_COM1_IRQ);
	fixed_device(aml, "COM1", "PNP0501", &com);
	aml_res_io(&rtc, 0x70, 2);
	aml_res_irq(&rtc, PC_RTC_IRQ);
	fixed_device(aml, "RTC", "PNP0B00", &rtc);
	if (!config->keyboard)
		return;
	aml_res_io(&keyboard, 0x60, 1);
	aml_res_io(&keyboard, 0x64, 1);
	aml_res_irq(&keyboard, PC_KEYBOARD_IRQ);
	fixed_device(aml, "KBD", "PNP0303", &keyboard);
}

static void processors(struct aml *aml, unsigned cpus)
{
	static const char digits[] = "0123456789ABCDEF";

	for (unsigned i = 0; i < cpus; i++) {
		char name[] = {'C', digits[i >> 8 & 15], digits[i >> 4 & 15], digits[i & 15], 0};
		aml_device(aml, name);
		aml_name(aml, "_HID");
		aml_string(aml, "ACPI0007");
		aml_name_integer(aml, "_UID", i);
		aml_end(aml);
	}
}

/* _S5 (7.4.2): what goes into PM1a control's SLP_TYP to switch off. */
static void soft_off(struct aml *aml)
{
	aml_name(aml, "\\_S5");
	aml_package(aml, 4);
	aml_integer(aml, ACPI_S5_TYPE);
	aml_integer(aml, ACPI_S5_TYPE);
	aml_integer(aml, 0);
	aml_integer(aml, 0);
	aml_end(aml);
}

void dsdt_build(struct aml *aml, const struct acpi_config *config)
{
	soft_off(aml);
	pic_mode(aml);
	aml_scope(aml, "\\_SB");
	pci_root(aml, config);
	fixed_devices(aml, config);
	processors(aml, config->cpus);
	aml_end(aml);
}
