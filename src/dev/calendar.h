/* Dates of the Gregorian calendar, UTC, and seconds since 1970. */
#ifndef DOPPEL_DEV_CALENDAR_H
#define DOPPEL_DEV_CALENDAR_H

#include "base/base.h"

struct calendar {
	int year, month, day, weekday, hour, minute, second; /* month, day, weekday from 1; Sunday is 1 */
};

/* Rounds down, unlike the division of C. */
static inline int64_t floor_div(int64_t a, int64_t b)
{
	return a / b - (a % b < 0);
}

/* Years 1 to 9999; what is outside is shown as the nearest that is inside. */
struct calendar calendar_from_seconds(int64_t seconds);
/* Any values: what lies outside its range carries over, as hours 24 is the next day. */
int64_t calendar_to_seconds(const struct calendar *c);

#endif
