/* doppel(1): finds the verb and does it. */
#include "cli/cli.h"
#include "cli/options.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int command_help(int argc, char **argv);
static int command_version(int argc, char **argv);

static const struct command commands[] = {
	{"run", "run a virtual machine", command_run},
	{"help", "this text; 'doppel help run' for the options of run", command_help},
	{"version", "the version of doppel", command_version},
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static const struct command *find(const char *name)
{
	for (size_t i = 0; i < COMMANDS; i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

static int unknown(const char *name)
{
	const char *near = nearest(name, &commands[0].name, COMMANDS, sizeof(commands[0]));

	if (name[0] == '-')
		complain("unknown option '%s': options follow a command, as in 'doppel run --kernel FILE'", name);
	else if (near)
		complain("unknown command '%s': did you mean '%s'?", name, near);
	else
		complain("unknown command '%s': 'doppel help' lists the commands", name);
	return STATUS_USAGE;
}

static int command_help(int argc, char **argv)
{
	if (argc > 1) {
		const struct command *c = find(argv[1]);
		if (!c)
			return unknown(argv[1]);
		if (c->run == command_run)
			return c->run(2, (char *[]){argv[1], (char[]){"--help"}, NULL});
	}
	puts("doppel boots a PC's operating systems as an ordinary process, without hardware virtualization.\n"
	     "\n"
	     "Usage: doppel COMMAND [OPTIONS]\n"
	     "\n"
	     "Commands:");
	for (size_t i = 0; i < COMMANDS; i++)
		printf("  %-10s %s\n", commands[i].name, commands[i].help);
	puts("\n"
	     "Example:\n"
	     "  doppel run --kernel vmlinuz --initrd initrd.gz --memory 1G --cpus 2 --disk root.ext4");
	return STATUS_OK;
}

static int command_version(int argc, char **argv)
{
	printf("doppel %s\n", doppel_version());
	return STATUS_OK;
}

static const char *spelled(const char *arg)
{
	if (!strcmp(arg, "--help") || !strcmp(arg, "-h"))
		return "help";
	return strcmp(arg, "--version") ? arg : "version";
}

/* What a person sees who gave nothing at all. */
static int short_help(void)
{
	complain("no command: 'doppel run --kernel FILE' runs a virtual machine");
	for (size_t i = 0; i < COMMANDS; i++)
		fprintf(stderr, "  doppel %-10s %s\n", commands[i].name, commands[i].help);
	return STATUS_USAGE;
}

static int run(int argc, char **argv)
{
	if (argc < 2)
		return short_help();
	const struct command *c = find(spelled(argv[1]));
	return c ? c->run(argc - 1, argv + 1) : unknown(argv[1]);
}

int main(int argc, char **argv)
{
	int status = run(argc, argv);

	/* What was asked for has not arrived, on a full disk for one. */
	if (fflush(stdout) || ferror(stdout)) {
		complain("cannot write to standard output: %s", strerror(errno));
		return STATUS_USAGE;
	}
	return status;
}
