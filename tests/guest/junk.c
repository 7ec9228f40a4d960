/* Random bytes as programs, in ring 3: whatever they are, they end in a trap or are interrupted, and nothing else is
 * harmed. */
#include "guest.h"

const char payload[] = "junk";

#define PAGES 8
#define ROUNDS 4000
#define TIMER 0x60

static u64 words[PAGES * PAGE / 8];

static void fill(u8 *junk)
{
	for (u64 i = 0; i < PAGES * PAGE; i += 8) {
		words[i / 8] = random64();
		memcpy(junk + i, &words[i / 8], 8);
	}
}

/* Registers that point into the junk and its surroundings, or anywhere. */
static u64 some_value(void)
{
	u64 r = random64();
	switch (r & 3) {
	case 0:
		return r;
	case 1:
		return r >> 60;
	default:
		return USER_CODE + (r >> 8) % (PAGES * PAGE);
	}
}

static void run_junk(unsigned mode)
{
	static const u8 nop[] = {0x90}, *const nop_end = nop + 1;
	struct frame base = user_code(nop, nop_end, mode);
	unsigned seen = 0;

	wrmsr(MSR_EFER, EFER_DEFAULT & ~EFER_SCE); /* SYSCALL would go on in ring 0, rightly */
	apic_enable();
	apic_timer(0x20000 | TIMER, 300000);
	u8 *junk = map_fresh(USER_CODE, PAGES, PTE_USER);
	for (unsigned i = 0; i < ROUNDS; i++) {
		if (i % 256 == 0)
			fill(junk);
		struct frame f = base;
		u64 *r = &f.r15;
		for (unsigned k = 0; k < 15; k++)
			r[k] = some_value();
		f.rip = USER_CODE + random64() % (PAGES * PAGE);
		f.rsp = some_value();
		f.rflags = 0x202 | (random64() & 0x8d5);
		struct trap *t = run_frame(&f);
		if (t->f.vector == TIMER)
			apic_write(APIC_EOI, 0);
		CHECK_EQ(t->f.cs & 3, 3);
		CHECK(t->f.rflags & 0x200);
		seen |= t->f.vector < 32 ? 1u << t->f.vector : 0;
	}
	apic_write(APIC_TIMER_INIT, 0);
	CHECK(seen & 1u << UD);
	CHECK(seen & 1u << PF);
	CHECK(seen & 1u << GP);
}

TEST(user64)
{
	run_junk(64);
}

TEST(user32)
{
	run_junk(32);
}
/* run: timeout=120 */
