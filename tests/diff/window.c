/* What the pages of the window are. */
#include "diff.h"

const enum page_kind window_kind[WINDOW_PAGES] = {PAGE_RW, PAGE_RW, PAGE_RO,   PAGE_NONE,
						  PAGE_RW, PAGE_RW, PAGE_NONE, PAGE_RW};
