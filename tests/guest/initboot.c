/* INIT of the boot processor: firmware would reset the machine, and so it does; here that is the end (--no-reboot). */
#include "guest.h"

const char payload[] = "initboot";

TEST(by_itself)
{
	apic_icr(0, ICR_INIT | ICR_ASSERT);
	for (;;)
		pause();
}

static void stop_boot_processor(void *arg)
{
	(void)arg;
	apic_enable();
	apic_icr(0, ICR_INIT | ICR_ASSERT);
}
TEST(by_another)
{
	smp_start();
	smp_post(1, stop_boot_processor, NULL);
	for (;;)
		pause();
}

/* run: cpus=3 ends=0 timeout=20 doppel=--no-reboot */
