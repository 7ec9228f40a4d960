/* The command line: a verb each, one file per verb. It uses libdoppel by its public header alone. */
#ifndef DOPPEL_CLI_CLI_H
#define DOPPEL_CLI_CLI_H

#include "doppel/doppel.h"

struct command {
	const char *name, *help;
	/* argv[0] is the verb. Returns the exit status. */
	int (*run)(int argc, char **argv);
};

int command_run(int argc, char **argv);

/* Adds what --disk says to the config. False: a line has been printed. */
bool config_disk(doppel_config *config, const char *spec);

/* The counters of a VM that has ended, on standard error. */
void print_stats(doppel_vm *vm);

#endif
