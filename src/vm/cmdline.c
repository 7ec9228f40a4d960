/* The kernel's command line. */
#include "vm/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A word of `text` begins with "console=": whoever wrote it knows better. */
static bool names_console(const char *text)
{
	const char *p = text;

	while ((p = strstr(p, "console="))) {
		if (p == text || p[-1] == ' ')
			return true;
		p++;
	}
	return false;
}

static bool is(const char *spec, const char *where)
{
	return spec && !strcmp(spec, where);
}

/* Where a person, or whoever reads the output, expects the system's messages and its login. */
static const char *console(const struct vm_config *config)
{
	bool serial = !is(config->console, "none"),
	     virtio = config->virtio_console && !is(config->virtio_console, "none");

	if (virtio && (!serial || is(config->virtio_console, "stdio")))
		return "console=hvc0";
	return serial ? "console=ttyS0" : "";
}

char *vm_command_line(const struct vm_config *config)
{
	const char *append = config->append ? config->append : "",
		   *first = names_console(append) ? "" : console(config);
	size_t size = strlen(first) + strlen(append) + 2;
	char *line = malloc(size);

	if (line)
		snprintf(line, size, "%s%s%s", first, *first && *append ? " " : "", append);
	return line;
}
