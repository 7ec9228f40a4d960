/* Instructions that are claimed but whose cases cannot be compared with the processor in user mode, and why. */
#include "diff.h"

#include <Zydis/Mnemonic.h>

static const struct {
	uint16_t mnemonic;
	const char *why;
} unreachable[] = {
	{ZYDIS_MNEMONIC_SYSCALL, "enters the host's kernel; tested by guest payloads"},
	{ZYDIS_MNEMONIC_SYSEXIT, "processors differ in which fault it is; tested by guest payloads"},
	{ZYDIS_MNEMONIC_SYSENTER, "enters the host's kernel; tested by guest payloads"},
	{ZYDIS_MNEMONIC_INT, "enters the host's kernel; tested by guest payloads"},
	{ZYDIS_MNEMONIC_INT1, "ends a case; tested by guest payloads"},
	{ZYDIS_MNEMONIC_INT3, "ends every case"},
	{ZYDIS_MNEMONIC_INTO, "depends on the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_RDTSC, "never the same twice"},
	{ZYDIS_MNEMONIC_RDTSCP, "never the same twice"},
	{ZYDIS_MNEMONIC_RDRAND, "never the same twice"},
	{ZYDIS_MNEMONIC_RDSEED, "never the same twice"},
	{ZYDIS_MNEMONIC_RDPMC, "depends on the host's settings"},
	{ZYDIS_MNEMONIC_RDPID, "tells the host's processor"},
	{ZYDIS_MNEMONIC_CPUID, "the model differs from the host by design"},
	{ZYDIS_MNEMONIC_XGETBV, "the host has components that the model has not"},
	{ZYDIS_MNEMONIC_SGDT, "tells the host's tables, or is emulated by its kernel (UMIP)"},
	{ZYDIS_MNEMONIC_SIDT, "tells the host's tables, or is emulated by its kernel (UMIP)"},
	{ZYDIS_MNEMONIC_SLDT, "tells the host's tables, or is emulated by its kernel (UMIP)"},
	{ZYDIS_MNEMONIC_STR, "tells the host's tables, or is emulated by its kernel (UMIP)"},
	{ZYDIS_MNEMONIC_SMSW, "tells the host's CR0, or is emulated by its kernel (UMIP)"},
	{ZYDIS_MNEMONIC_LAR, "reads the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_LSL, "reads the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_VERR, "reads the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_VERW, "reads the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_LDS, "loads from the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_LES, "loads from the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_LSS, "loads from the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_LFS, "loads from the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_LGS, "loads from the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_IRET, "loads from the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_IRETD, "loads from the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_IRETQ, "loads from the host's descriptor tables; tested by guest payloads"},
	{ZYDIS_MNEMONIC_RDFSBASE, "depends on the host's settings; tested by guest payloads"},
	{ZYDIS_MNEMONIC_RDGSBASE, "depends on the host's settings; tested by guest payloads"},
	{ZYDIS_MNEMONIC_WRFSBASE, "depends on the host's settings; tested by guest payloads"},
	{ZYDIS_MNEMONIC_WRGSBASE, "depends on the host's settings; tested by guest payloads"},
	{ZYDIS_MNEMONIC_VMCALL, "answered by the hypervisor under the host, if there is one; tested by guest payloads"},
	{ZYDIS_MNEMONIC_VMMCALL,
	 "answered by the hypervisor under the host, if there is one; tested by guest payloads"},
};

const char *not_reachable(uint16_t mnemonic, enum x86_mode mode)
{
	for (unsigned i = 0; i < ARRAY_LEN(unreachable); i++) {
		if (unreachable[i].mnemonic == mnemonic)
			return unreachable[i].why;
	}
	return NULL;
}
