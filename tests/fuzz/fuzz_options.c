/*
 * The command line: the input is the words, with a zero byte after each. Everything up to the making of the VM, which
 * would open the files that are named.
 */
#include "fuzz.h"

#define doppel_vm_create no_vm_create
#include "cli/disk.c"
#include "cli/options.c"
#include "cli/run.c"

#define WORDS 64

doppel_vm *no_vm_create(const doppel_config *config, doppel_error *error)
{
	snprintf(error->text, sizeof(error->text), "no VM is made here");
	return NULL;
}

void print_stats(doppel_vm *vm) {}

/* What is said is of no interest here; libFuzzer writes to the descriptor, not to this stream. */
static int hushed(int words, char **word)
{
	static FILE *nowhere;
	FILE *out = stdout, *err = stderr;
	int status;

	if (!nowhere)
		nowhere = fopen("/dev/null", "w");
	EXPECT(nowhere);
	stdout = stderr = nowhere;
	status = command_run(words, word);
	stdout = out;
	stderr = err;
	return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1), *word[WORDS + 2] = {(char[]){"run"}};
	int words = 1, status;

	EXPECT(text);
	memcpy(text, data, size);
	text[size] = 0;
	for (size_t at = 0; at < size && words <= WORDS; at += strlen(text + at) + 1)
		word[words++] = text + at;
	status = hushed(words, word);
	EXPECT(status == STATUS_OK || status == STATUS_USAGE);
	free(text);
	return 0;
}
