/* Two processors, each of which mostly has one of the host's: what takes both at the same moment. */
#include "guest.h"

const char payload[] = "race";

#define CODE_VA TEST_VA

static volatile u32 version;
static volatile unsigned wrong;
static volatile bool stop;

static void runner(void *arg)
{
	(void)arg;
	for (unsigned i = 0; !stop; i++) {
		u32 v = version, b[4];
		delay_us(i % 37);
		cpuid(0, 0, b); /* serializes, as cross-modifying code must (SDM Vol. 3A 8.1.3) */
		if ((u32)call(CODE_VA) < v)
			wrong++;
	}
}

/* An emulator looks the page up once for both stores, and the other processor has time to begin to run it between them.
 */
static void store_slowly(u8 *p, u32 n)
{
	asm volatile("fninit; fldpi; movl %1, 0x40(%0)\n"
		     ".rept 50; fsin; .endr; fstp %%st(0)\n"
		     "movl %1, 4(%0)"
		     :
		     : "r"(p), "r"(n)
		     : "memory"); /* the x87 stack is as before */
}

/* The page is written, and so data; then, sooner or later while the other begins to run it, written again. */
TEST(cross_modifying)
{
	static const u8 code[] = {0x90, 0x90, 0x90, 0xb8, 0, 0, 0, 0, 0xc3};
	if (cpus < 2)
		skip("one processor");
	smp_start();
	u8 *p = map_fresh(CODE_VA, 1, PTE_KERNEL);
	memcpy(p, code, sizeof(code));
	stop = false;
	version = wrong = 0;
	smp_post(1, runner, NULL);
	for (u32 n = 1; n <= 20000; n++) {
		*(volatile u32 *)(p + 4) = n - 1;
		delay_us(n % 40);
		store_slowly(p, n);
		version = n;
		delay_us(60);
	}
	stop = true;
	smp_wait(1);
	CHECK_EQ(wrong, 0);
}

/* run: cpus=2 doppel=--debug:no-window */
