/* The option parser: --name value, --name=value; what is unknown is met with the nearest that is known. */
#include "cli/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool complain(const char *fmt, ...)
{
	va_list ap;

	fputs("doppel: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return false;
}

/* Levenshtein's distance by two rows; words longer than a row are far from everything. */
#define WORD_MAX 32

static unsigned distance(const char *a, const char *b)
{
	unsigned row[WORD_MAX + 1];
	size_t la = strlen(a), lb = strlen(b);

	if (la > WORD_MAX || lb > WORD_MAX)
		return WORD_MAX;
	for (unsigned j = 0; j <= lb; j++)
		row[j] = j;
	for (unsigned i = 1; i <= la; i++) {
		unsigned corner = row[0];
		row[0] = i;
		for (unsigned j = 1; j <= lb; j++) {
			unsigned best = corner + (a[i - 1] != b[j - 1]);
			corner = row[j];
			best = best < corner + 1 ? best : corner + 1;
			row[j] = best < row[j - 1] + 1 ? best : row[j - 1] + 1;
		}
	}
	return row[lb];
}

const char *nearest(const char *word, const void *words, size_t count, size_t stride)
{
	const char *found = NULL;
	unsigned best = (unsigned)strlen(word) / 3 + 2;

	for (size_t i = 0; i < count; i++) {
		const char *known = *(const char *const *)((const char *)words + i * stride);
		unsigned d = distance(word, known);
		/* A beginning of the word is what was meant more often than a word of the same length. */
		if (strlen(word) >= 3 && !strncmp(word, known, strlen(word)))
			d = 1;
		if (d < best) {
			best = d;
			found = known;
		}
	}
	return found;
}

static unsigned size_shift(char unit)
{
	switch (unit) {
	case 'k':
	case 'K':
		return 10;
	case 'm':
	case 'M':
		return 20;
	case 'g':
	case 'G':
		return 30;
	default:
		return 0;
	}
}

bool parse_size(const char *text, uint64_t *bytes)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return false;
	errno = 0;
	unsigned long long n = strtoull(text, &end, 10);
	unsigned shift = size_shift(*end);
	if (errno || n > UINT64_MAX >> shift || (shift ? end[1] : end[0]))
		return false;
	*bytes = (uint64_t)n << shift;
	return true;
}

const char *next_part(const char *spec, char *part)
{
	for (;; spec++) {
		if (*spec == ',' && spec[1] != ',')
			break;
		if (!*spec)
			break;
		if (*spec == ',')
			spec++;
		*part++ = *spec;
	}
	*part = 0;
	return *spec ? spec + 1 : NULL;
}

static bool parse_number(const char *text, unsigned *number)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return false;
	errno = 0;
	unsigned long n = strtoul(text, &end, 10);
	*number = (unsigned)n;
	return !errno && !*end && n <= 0xffffffff;
}

static bool set_value(const struct option *o, void *out, const char *value)
{
	void *field = (char *)out + o->field;
	struct string_list *list = field;

	switch (o->kind) {
	case OPT_FLAG:
		*(bool *)field = true;
		return true;
	case OPT_MAYBE:
		*(const char **)field = value ? value : "";
		return true;
	case OPT_FILE:
		*(const char **)field = value;
		return value[0] || complain("--%s '' names no file: --%s %s", o->name, o->name, o->value);
	case OPT_STRING:
		*(const char **)field = value;
		return true;
	case OPT_NUMBER:
		return parse_number(value, field) ||
		       complain("--%s '%s' is not a whole number: give one, as --%s 2", o->name, value, o->name);
	case OPT_SIZE:
		return parse_size(value, field) ||
		       complain("--%s '%s' is not a size: give a whole number with K, M or G, as --%s 512M", o->name,
				value, o->name);
	case OPT_LIST:
		if (list->count == LIST_MAX)
			return complain("--%s is given more than %d times", o->name, LIST_MAX);
		list->item[list->count++] = value;
		return true;
	}
	return false;
}

static size_t table_length(const struct option *table)
{
	size_t n = 0;

	while (table[n].name)
		n++;
	return n;
}

static const struct option *find(const struct option *table, const char *name, size_t len)
{
	for (; table->name; table++)
		if (strlen(table->name) == len && !memcmp(table->name, name, len))
			return table;
	return NULL;
}

static bool unknown(const struct option *table, const char *verb, const char *name, size_t len)
{
	char word[64];

	snprintf(word, sizeof(word), "%.*s", (int)len, name);
	const char *near = nearest(word, table, table_length(table), sizeof(*table));
	if (near)
		return complain("unknown option --%s: did you mean --%s?", word, near);
	return complain("unknown option --%s: 'doppel %s --help' lists the options", word, verb);
}

/* One option; *i is its place in argv and moves on over its value. */
static bool parse_option(const struct option *table, void *out, const char *verb, int argc, char **argv, int *i)
{
	const char *name = argv[*i] + 2, *equals = strchr(name, '=');
	size_t len = equals ? (size_t)(equals - name) : strlen(name);
	const struct option *o = find(table, name, len);

	if (!o)
		return unknown(table, verb, name, len);
	if (o->kind == OPT_FLAG)
		return equals ? complain("--%s takes no value: leave '%s' out", o->name, equals)
			      : set_value(o, out, NULL);
	if (equals)
		return set_value(o, out, equals + 1);
	if (o->kind == OPT_MAYBE)
		return set_value(o, out, NULL);
	if (*i + 1 >= argc)
		return complain("--%s needs a value: --%s %s", o->name, o->name, o->value);
	return set_value(o, out, argv[++*i]);
}

/* "-kernel", as other programs have it, and words that belong to no option. */
static bool stray(const struct option *table, const char *verb, const char *word)
{
	const char *name = word + 1;
	size_t len = strcspn(name, "=");

	if (word[0] == '-' && find(table, name, len))
		return complain("'%s' is not an option: did you mean -%s?", word, word);
	return complain("'%s' is not an option: 'doppel %s' takes only options, and they begin with --", word, verb);
}

bool options_parse(const struct option *table, void *out, const char *verb, int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		static char help[] = "--help";
		if (!strcmp(argv[i], "-h"))
			argv[i] = help;
		if (strncmp(argv[i], "--", 2) != 0)
			return stray(table, verb, argv[i]);
		if (!parse_option(table, out, verb, argc, argv, &i))
			return false;
	}
	return true;
}

/* Help lines: the option on the left, its text in a column on the right. */
#define HELP_COLUMN 28

static void help_text(const char *text, int column)
{
	while (*text) {
		size_t len = strcspn(text, "\n");
		printf("%*s%.*s\n", HELP_COLUMN - column, "", (int)len, text);
		text += len + (text[len] == '\n');
		column = 0;
	}
}

void options_help(const struct option *table)
{
	for (; table->name; table++) {
		const char *before = !table->value || table->kind == OPT_MAYBE ? "" : " ";
		int n = printf("  --%s%s%s", table->name, before, table->value ? table->value : "");
		if (n + 2 > HELP_COLUMN) {
			putchar('\n');
			n = 0;
		}
		help_text(table->help, n);
	}
}
