/* Options of a subcommand, as a table: parsing, help and suggestions come from it. */
#ifndef DOPPEL_CLI_OPTIONS_H
#define DOPPEL_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LIST_MAX 32

struct string_list {
	const char *item[LIST_MAX];
	unsigned count;
};

/* What `field` of the caller's struct is. */
enum option_kind {
	OPT_FLAG,   /* bool; takes no value */
	OPT_MAYBE,  /* const char *: "" without a value, else the value, which only follows '=' */
	OPT_STRING, /* const char * */
	OPT_FILE,   /* the same, not empty */
	OPT_NUMBER, /* unsigned */
	OPT_SIZE,   /* uint64_t, in bytes; K, M and G are powers of 1024 */
	OPT_LIST,   /* struct string_list: may be given several times */
};

struct option {
	const char *name; /* without the dashes; a table ends with NULL */
	enum option_kind kind;
	size_t field;      /* offset in the caller's struct */
	const char *value; /* what help calls the value; NULL for flags */
	const char *help;  /* one line; \n starts another */
};

/* Exit statuses of doppel itself. */
enum { STATUS_OK = 0, STATUS_USAGE = 2 };

/*
 * Fills `out` from argv[1..argc-1]. False: a line has been printed on standard error, and the status is STATUS_USAGE.
 * Values point into argv. `verb` is for the messages.
 */
bool options_parse(const struct option *table, void *out, const char *verb, int argc, char **argv);
void options_help(const struct option *table);

/* "512M" → bytes; false when it is not a size. */
bool parse_size(const char *text, uint64_t *bytes);
/*
 * Takes the next part of "a,b,,c" up to a single comma into `part`, which has room for all of it (",," stands for a
 * comma); returns what follows, NULL at the end.
 */
const char *next_part(const char *spec, char *part);
/* The one of `count` words nearest to `word` by edit distance, or NULL if none is near. `stride`: bytes between two
 * pointers to words. */
const char *nearest(const char *word, const void *words, size_t count, size_t stride);

/* A line on standard error, "doppel: " before it. Returns false. */
bool complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
