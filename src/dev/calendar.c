/* Dates of the Gregorian calendar: leap years are those divisible by 4, but of the hundreds only the 400s. */
#include "dev/calendar.h"

static bool is_leap(int year)
{
	return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

static int days_of_month(int year, int month)
{
	static const uint8_t days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

	return days[month - 1] + (month == 2 && is_leap(year));
}

/* Days from 1 January of year 1 to that of `year`. */
static int64_t days_before_year(int64_t year)
{
	int64_t y = year - 1;

	return y * 365 + y / 4 - y / 100 + y / 400;
}

#define DAYS_TO_1970 719162

struct calendar calendar_from_seconds(int64_t seconds)
{
	int64_t days = floor_div(seconds, 86400) + DAYS_TO_1970, rest;
	struct calendar c = {.month = 1};

	rest = seconds - floor_div(seconds, 86400) * 86400;
	days = MAX(0, MIN(days, days_before_year(10000) - 1));
	c.weekday = (days + 1) % 7 + 1; /* 1 January of year 1 was a Monday */
	c.year = days / 365 + 1;
	while (days_before_year(c.year) > days)
		c.year--;
	days -= days_before_year(c.year);
	while (days >= days_of_month(c.year, c.month))
		days -= days_of_month(c.year, c.month++);
	c.day = days + 1;
	c.hour = rest / 3600;
	c.minute = rest / 60 % 60;
	c.second = rest % 60;
	return c;
}

int64_t calendar_to_seconds(const struct calendar *c)
{
	int64_t days = days_before_year(MAX(c->year, 1)) - DAYS_TO_1970;

	for (int m = 1; m < MIN(c->month, 12); m++)
		days += days_of_month(c->year, m);
	return ((days + c->day - 1) * 24 + c->hour) * 3600 + c->minute * 60l + c->second;
}
