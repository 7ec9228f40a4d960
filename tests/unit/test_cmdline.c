/* Which console the kernel's command line gets. */
#include "unit.h"
#include "vm/internal.h"

#include <stdlib.h>

static void becomes(const char *append, const char *console, const char *virtio, const char *line)
{
	struct vm_config config = {.append = append, .console = console, .virtio_console = virtio};
	char *got = vm_command_line(&config);

	CHECK_STR(got, line);
	free(got);
}

TEST(the_default)
{
	becomes(NULL, NULL, NULL, "console=ttyS0");
	becomes("", "stdio", NULL, "console=ttyS0");
	becomes(NULL, "pty", "none", "console=ttyS0");
	becomes(NULL, "none", NULL, "");
	becomes(NULL, "none", "none", "");
	becomes(NULL, "none", "pty", "console=hvc0");
	becomes(NULL, "file=log", "stdio", "console=hvc0");
	becomes(NULL, "stdio", "file=log", "console=ttyS0");
}

TEST(the_users_words)
{
	becomes("root=/dev/vda", NULL, NULL, "console=ttyS0 root=/dev/vda");
	becomes("quiet -- single", "none", "stdio", "console=hvc0 quiet -- single");
	becomes("quiet", "none", NULL, "quiet");
	becomes("console=tty0", NULL, NULL, "console=tty0");
	becomes("quiet console=null", NULL, NULL, "quiet console=null");
	becomes("netconsole=a,b", NULL, NULL, "console=ttyS0 netconsole=a,b");
	becomes("noconsole= console=", NULL, NULL, "noconsole= console=");
}

UNIT_MAIN()
