/* The local APIC and the PM timer. */
#include "guest.h"

#define APIC_MMIO 0xfee00000ull

bool apic_x2(void)
{
	return rdmsr(MSR_APIC_BASE) & 0x400;
}

u32 apic_read(unsigned reg)
{
	return apic_x2() ? (u32)rdmsr(0x800 + (reg >> 4)) : *(volatile u32 *)(APIC_MMIO + reg);
}

void apic_write(unsigned reg, u32 v)
{
	if (apic_x2())
		wrmsr(0x800 + (reg >> 4), v);
	else
		*(volatile u32 *)(APIC_MMIO + reg) = v;
}

void apic_icr(u32 dest, u32 low)
{
	if (apic_x2()) {
		wrmsr(0x830, (u64)dest << 32 | low);
		return;
	}
	*(volatile u32 *)(APIC_MMIO + 0x310) = dest << 24;
	*(volatile u32 *)(APIC_MMIO + 0x300) = low;
	while (*(volatile u32 *)(APIC_MMIO + 0x300) & 0x1000)
		pause();
}

void apic_set_x2(bool on)
{
	u64 base = rdmsr(MSR_APIC_BASE);
	if (on) {
		wrmsr(MSR_APIC_BASE, base | 0xc00);
	} else if (base & 0x400) {
		wrmsr(MSR_APIC_BASE, base & ~0xc00ull); /* only by way of disabled (SDM Vol. 3A 10.12.5) */
		wrmsr(MSR_APIC_BASE, (base & ~0x400ull) | 0x800);
	}
}

void apic_timer(u32 lvt, u32 ticks)
{
	apic_write(APIC_TIMER_DIVIDE, 0xb);
	apic_write(APIC_LVT_TIMER, lvt);
	apic_write(APIC_TIMER_INIT, ticks);
}

bool apic_end(struct frame *f)
{
	apic_write(APIC_EOI, 0);
	(void)f;
	return false;
}

void apic_enable(void)
{
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
	apic_set_x2(false);
	wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0x800);
	apic_write(APIC_TPR, 0);
	apic_write(APIC_SVR, 0x1ff);
	apic_write(APIC_LVT_TIMER, 0x10000);
	apic_write(APIC_LVT_LINT0, 0x10000);
	apic_write(APIC_LVT_ERROR, 0x10000);
}

/* Each processor counts for itself: a lock would make all wait for one that its host has put aside. */
u64 now_us(void)
{
	static struct {
		u64 total;
		u32 last;
	} clock[CPUS_MAX];
	unsigned n = this_cpu();
	u32 now = inl(0x608) & 0xffffff; /* 24 bits: 4.7 s; within a wait it is called often enough */
	clock[n].total += (now - clock[n].last) & 0xffffff;
	clock[n].last = now;
	return clock[n].total * 1000000 / 3579545;
}

void delay_us(u64 us)
{
	u64 end = now_us() + us;
	while (now_us() < end)
		pause();
}
