/*
 * MC146818A. Its time is the host's wall clock (UTC) plus a difference that the guest made by setting it: it can't
 * drift. While the guest holds it (SET, or the divider in reset), the ten registers stand still and are just bytes.
 */
#include "dev/rtc.h"

#include "dev/calendar.h"
#include "host/thread.h"

#include <stdlib.h>
#include <string.h>

#define NS_PER_S 1000000000ll
#define CRYSTAL_HZ 32768

enum {
	SECONDS = 0,
	SECONDS_ALARM = 1,
	MINUTES = 2,
	MINUTES_ALARM = 3,
	HOURS = 4,
	HOURS_ALARM = 5,
	WEEKDAY = 6,
	DAY = 7,
	MONTH = 8,
	YEAR = 9,
	REG_A = 10,
	REG_B = 11,
	REG_C = 12,
	REG_D = 13,
	CMOS_SIZE = 128
};
enum { A_UIP = 0x80, B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 4, B_24H = 2 };
enum { C_IRQ = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10 };
#define D_VALID 0x80

/* The update takes 1984 us, and UIP is set 244 us before it begins (figure 14). The new time shows when it ends. */
#define UIP_NS 2228000

/* What 64 bits of ns can hold, with the host's own time taken off: the years 1811 to 2223. */
#define SECONDS_MIN (-5000000000ll)
#define SECONDS_MAX 8000000000ll
#define OFFSET_MAX (7000000000ll * NS_PER_S)
#define TIME_MAX (9000000000ll * NS_PER_S) /* the clock stands still there */

struct rtc {
	struct rtc_config config;
	struct host_mutex lock; /* held while the line is set */
	struct clock_timer *timer;
	uint8_t index;
	uint8_t cmos[CMOS_SIZE]; /* time registers count only while held; REG_C: flags not read yet */
	int64_t offset;          /* ns, added to the host's time */
	int64_t seen_second;     /* updates until here have set their flags */
	uint64_t seen_period;    /* periods of the VM's clock, likewise */
};

/* ---- Time ---- */

/* ns since 1970. */
static int64_t host_time(void)
{
	uint64_t sec;
	uint32_t nsec;

	clock_wall(&sec, &nsec);
	return (int64_t)MIN((unsigned __int128)sec * NS_PER_S + nsec, (unsigned __int128)TIME_MAX);
}

static int64_t sum(int64_t a, int64_t b)
{
	return (int64_t)MAX(-TIME_MAX, MIN((__int128)a + b, TIME_MAX));
}

/* Likewise, as the clock shows it. */
static int64_t rtc_now(const struct rtc *rtc)
{
	return sum(host_time(), rtc->offset);
}

/* ---- Registers ---- */

static uint8_t encode(const struct rtc *rtc, unsigned v)
{
	return rtc->cmos[REG_B] & B_BINARY ? v : v / 10 % 10 << 4 | v % 10;
}

static unsigned decode(const struct rtc *rtc, uint8_t v)
{
	return rtc->cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10 + (v & 15);
}

/* In 12-hour mode midnight is 12 AM, and bit 7 is PM. */
static uint8_t encode_hour(const struct rtc *rtc, unsigned hour)
{
	if (rtc->cmos[REG_B] & B_24H)
		return encode(rtc, hour);
	return encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned decode_hour(const struct rtc *rtc, uint8_t v)
{
	if (rtc->cmos[REG_B] & B_24H)
		return decode(rtc, v);
	return decode(rtc, v & 0x7f) % 12 + (v & 0x80 ? 12 : 0);
}

static bool divider_held(uint8_t reg_a)
{
	return (reg_a & 0x60) == 0x60;
}

static bool held(const struct rtc *rtc)
{
	return (rtc->cmos[REG_B] & B_SET) || divider_held(rtc->cmos[REG_A]);
}

/* Brings the time registers up to the clock. */
static void show(struct rtc *rtc)
{
	struct calendar c = calendar_from_seconds(floor_div(rtc_now(rtc), NS_PER_S));

	rtc->cmos[SECONDS] = encode(rtc, c.second);
	rtc->cmos[MINUTES] = encode(rtc, c.minute);
	rtc->cmos[HOURS] = encode_hour(rtc, c.hour);
	rtc->cmos[WEEKDAY] = c.weekday;
	rtc->cmos[DAY] = encode(rtc, c.day);
	rtc->cmos[MONTH] = encode(rtc, c.month);
	rtc->cmos[YEAR] = encode(rtc, c.year % 100);
	rtc->cmos[RTC_CENTURY] = encode(rtc, c.year / 100);
}

/* Sets the clock by the time registers; `fraction` of a second has passed since. */
static void set_clock(struct rtc *rtc, int64_t fraction)
{
	struct calendar c = {
		.second = decode(rtc, rtc->cmos[SECONDS]),
		.minute = decode(rtc, rtc->cmos[MINUTES]),
		.hour = decode_hour(rtc, rtc->cmos[HOURS]),
		.day = decode(rtc, rtc->cmos[DAY]),
		.month = decode(rtc, rtc->cmos[MONTH]),
		.year = decode(rtc, rtc->cmos[RTC_CENTURY]) * 100 + decode(rtc, rtc->cmos[YEAR]),
	};

	int64_t seconds = MAX(SECONDS_MIN, MIN(calendar_to_seconds(&c), SECONDS_MAX));

	rtc->offset = sum(seconds * NS_PER_S + fraction, -host_time());
	rtc->seen_second = floor_div(rtc_now(rtc), NS_PER_S);
}

static bool is_time(unsigned index)
{
	return index == SECONDS || index == MINUTES || (index >= HOURS && index <= YEAR && index != HOURS_ALARM) ||
	       index == RTC_CENTURY;
}

/* ---- Interrupts ---- */

/* Periods of the periodic interrupt in crystal ticks, 0 for none (table 5, with the 32.768 kHz time base). */
static uint32_t period_ticks(const struct rtc *rtc)
{
	unsigned rate = rtc->cmos[REG_A] & 15;

	return !rate ? 0 : rate <= 2 ? 1u << (rate + 6) : 1u << (rate - 1);
}

static uint64_t periods_at(const struct rtc *rtc, uint64_t ns)
{
	return (uint64_t)((unsigned __int128)ns * CRYSTAL_HZ / NS_PER_S) / period_ticks(rtc);
}

static bool alarm_field(uint8_t alarm, uint8_t now)
{
	return alarm >= 0xc0 || alarm == now;
}

static bool alarm_at(const struct rtc *rtc, int64_t second)
{
	struct calendar c = calendar_from_seconds(second);

	return alarm_field(rtc->cmos[SECONDS_ALARM], encode(rtc, c.second)) &&
	       alarm_field(rtc->cmos[MINUTES_ALARM], encode(rtc, c.minute)) &&
	       alarm_field(rtc->cmos[HOURS_ALARM], encode_hour(rtc, c.hour));
}

/* Sets the flags of the updates since they were last looked at. */
static void note_updates(struct rtc *rtc)
{
	int64_t now = floor_div(rtc_now(rtc), NS_PER_S), from = rtc->seen_second;

	rtc->seen_second = now;
	if (held(rtc) || now <= from)
		return;
	rtc->cmos[REG_C] |= C_UF;
	for (int64_t s = MAX(from + 1, now - 86399); s <= now && !(rtc->cmos[REG_C] & C_AF); s++)
		if (alarm_at(rtc, s))
			rtc->cmos[REG_C] |= C_AF;
}

static void note_periods(struct rtc *rtc)
{
	uint64_t now;

	if (!period_ticks(rtc) || divider_held(rtc->cmos[REG_A]))
		return;
	now = periods_at(rtc, clock_now(rtc->config.clock));
	if (now != rtc->seen_period)
		rtc->cmos[REG_C] |= C_PF;
	rtc->seen_period = now;
}

/* When a flag may next be set that interrupts, in ns of the VM's clock. */
static uint64_t next_event(const struct rtc *rtc)
{
	uint64_t now = clock_now(rtc->config.clock), at = CLOCK_NEVER;
	uint8_t b = rtc->cmos[REG_B];
	int64_t t = rtc_now(rtc);

	if ((b & (B_UIE | B_AIE)) && !held(rtc))
		at = now + (uint64_t)(NS_PER_S - (t - floor_div(t, NS_PER_S) * NS_PER_S));
	if ((b & B_PIE) && period_ticks(rtc) && !divider_held(rtc->cmos[REG_A]) && !(rtc->cmos[REG_C] & C_PF)) {
		uint64_t tick = (rtc->seen_period + 1) * period_ticks(rtc);

		at = MIN(at, (uint64_t)(((unsigned __int128)tick * NS_PER_S + CRYSTAL_HZ - 1) / CRYSTAL_HZ));
	}
	return at;
}

/* The lock is held. Every access and the timer end with this. */
static void update(struct rtc *rtc)
{
	uint8_t *c = &rtc->cmos[REG_C];

	note_updates(rtc);
	note_periods(rtc);
	*c &= C_PF | C_AF | C_UF;
	if (*c & rtc->cmos[REG_B] & (B_PIE | B_AIE | B_UIE))
		*c |= C_IRQ;
	irq_set(&rtc->config.irq, *c & C_IRQ);
	clock_timer_set(rtc->timer, next_event(rtc));
}

static void fire(void *opaque)
{
	struct rtc *rtc = opaque;

	host_lock(&rtc->lock);
	update(rtc);
	host_unlock(&rtc->lock);
}

/* ---- Access ---- */

static bool update_in_progress(const struct rtc *rtc)
{
	int64_t t = rtc_now(rtc);

	return !held(rtc) && t - floor_div(t, NS_PER_S) * NS_PER_S >= NS_PER_S - UIP_NS;
}

static uint8_t read_reg(struct rtc *rtc)
{
	uint8_t value;

	if (is_time(rtc->index) && !held(rtc))
		show(rtc);
	value = rtc->cmos[rtc->index];
	switch (rtc->index) {
	case REG_A:
		return value | (update_in_progress(rtc) ? A_UIP : 0);
	case REG_C: /* reading clears, and lets go of the line */
		rtc->cmos[REG_C] = 0;
		return value;
	case REG_D:
		return D_VALID;
	default:
		return value;
	}
}

/*
 * A change of A or B may hold the clock or let it go. Out of the divider's reset the first update comes after half a
 * second; after SET alone, the fraction of the second has gone on meanwhile.
 */
static void write_control(struct rtc *rtc, unsigned reg, uint8_t value)
{
	bool was_held = held(rtc), was_divided = divider_held(rtc->cmos[REG_A]);
	int64_t t = rtc_now(rtc), fraction = t - floor_div(t, NS_PER_S) * NS_PER_S;

	if (!was_held)
		show(rtc);
	rtc->cmos[reg] = reg == REG_A ? value & 0x7f : value;
	if ((rtc->cmos[REG_B] & B_SET)) /* SET clears UIE */
		rtc->cmos[REG_B] &= ~B_UIE;
	if (was_held && !held(rtc))
		set_clock(rtc, was_divided ? NS_PER_S / 2 : fraction);
	if (period_ticks(rtc))
		rtc->seen_period = periods_at(rtc, clock_now(rtc->config.clock));
}

static void write_time(struct rtc *rtc, uint8_t value)
{
	int64_t t = rtc_now(rtc), fraction = t - floor_div(t, NS_PER_S) * NS_PER_S;

	if (!held(rtc))
		show(rtc);
	rtc->cmos[rtc->index] = value;
	if (!held(rtc) && rtc->index != WEEKDAY)
		set_clock(rtc, fraction);
}

static void write_reg(struct rtc *rtc, uint8_t value)
{
	if (rtc->index == REG_A || rtc->index == REG_B)
		write_control(rtc, rtc->index, value);
	else if (is_time(rtc->index))
		write_time(rtc, value);
	else if (rtc->index != REG_C && rtc->index != REG_D)
		rtc->cmos[rtc->index] = value;
}

static uint64_t port_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct rtc *rtc = opaque;
	uint64_t value;

	host_lock(&rtc->lock);
	update(rtc);
	value = off ? read_reg(rtc) : rtc->index;
	if (!off && len > 1)
		value |= (uint64_t)read_reg(rtc) << 8;
	update(rtc);
	host_unlock(&rtc->lock);
	return value;
}

static void port_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	struct rtc *rtc = opaque;

	host_lock(&rtc->lock);
	update(rtc);
	if (!off)
		rtc->index = value & 0x7f; /* bit 7 masks NMI, of which there are none */
	if (off || len > 1)
		write_reg(rtc, off ? value : value >> 8);
	update(rtc);
	host_unlock(&rtc->lock);
}

static const struct bus_ops ops = {port_read, port_write};

void rtc_set_nvram(struct rtc *rtc, unsigned index, uint8_t value)
{
	if (index <= REG_D || index >= CMOS_SIZE || index == RTC_CENTURY)
		return;
	host_lock(&rtc->lock);
	rtc->cmos[index] = value;
	host_unlock(&rtc->lock);
}

/* RESET leaves time, RAM and register A alone, clears interrupt enables and flags (data sheet, "RESET"). */
static void reset(void *opaque)
{
	struct rtc *rtc = opaque;

	host_lock(&rtc->lock);
	rtc->index = 0;
	rtc->cmos[REG_B] &= ~(B_PIE | B_AIE | B_UIE);
	rtc->cmos[REG_C] = 0;
	update(rtc);
	host_unlock(&rtc->lock);
}

static void state(void *opaque, struct state_stream *s)
{
	struct rtc *rtc = opaque;

	host_lock(&rtc->lock);
	if (s->saving) /* else the line is not ours: who it leads to has been loaded already */
		update(rtc);
	state_field(s, rtc->index);
	state_field(s, rtc->cmos);
	state_field(s, rtc->offset);
	state_field(s, rtc->seen_second);
	if (!s->saving) {
		rtc->index &= 0x7f;
		rtc->offset = MAX(-OFFSET_MAX, MIN(rtc->offset, OFFSET_MAX));
		rtc->seen_second = MIN(rtc->seen_second, floor_div(rtc_now(rtc), NS_PER_S));
		if (period_ticks(rtc))
			rtc->seen_period = periods_at(rtc, clock_now(rtc->config.clock));
		update(rtc);
	}
	host_unlock(&rtc->lock);
}

static void release(struct rtc *rtc)
{
	if (rtc->timer)
		clock_timer_destroy(rtc->timer);
	host_mutex_destroy(&rtc->lock);
	free(rtc);
}

static void destroy(void *opaque)
{
	struct rtc *rtc = opaque;

	bus_remove(rtc->config.bus, BUS_PORT, 0x70);
	release(rtc);
}

struct rtc *rtc_create(const struct rtc_config *config)
{
	struct rtc *rtc = calloc(1, sizeof(*rtc));

	if (!rtc)
		return NULL;
	rtc->config = *config;
	host_mutex_init(&rtc->lock);
	rtc->timer = clock_timer_create(config->clock, fire, rtc);
	rtc->cmos[REG_A] = 0x26; /* 32.768 kHz, 1024 Hz */
	rtc->cmos[REG_B] = B_24H;
	rtc->seen_second = floor_div(rtc_now(rtc), NS_PER_S);
	if (!rtc->timer || !bus_add(config->bus, BUS_PORT, (struct bus_region){"CMOS clock", 0x70, 2, &ops, rtc})) {
		release(rtc);
		return NULL;
	}
	return rtc;
}

struct device rtc_device(struct rtc *rtc)
{
	return (struct device){.name = "CMOS clock", .opaque = rtc, .reset = reset, .state = state, .destroy = destroy};
}
