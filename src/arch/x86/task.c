/* Task switches through TSS descriptors and task gates. */
#include "arch/x86/internal.h"

enum verdict task_switch(struct x86_cpu *cpu, uint16_t sel, enum task_source source, uint32_t ext)
{
	return x86_raise_error(cpu, X86_TS, (sel & ~3u) | ext);
}
