/* --disk FILE[,WORD]... */
#include "cli/cli.h"
#include "cli/options.h"

#include <stdlib.h>
#include <string.h>

static bool set_flag(unsigned *flags, unsigned flag, const char *value)
{
	*flags = !strcmp(value, "on") ? *flags | flag : *flags & ~flag;
	return !strcmp(value, "on") || !strcmp(value, "off");
}

static bool set_block_size(doppel_disk *disk, const char *value)
{
	disk->block_size = !strcmp(value, "512") ? 512 : 4096;
	return !strcmp(value, "512") || !strcmp(value, "4096");
}

static bool set_format(doppel_disk *disk, const char *value)
{
	disk->format = !strcmp(value, "raw") ? "raw" : "qcow2";
	return !strcmp(value, disk->format);
}

static bool set_cap(uint64_t *cap, const char *value)
{
	return parse_size(value, cap) && *cap;
}

/* The value of "name=value", if `word` has that name. */
static const char *value_of(const char *word, const char *name)
{
	size_t len = strlen(name);

	return !strncmp(word, name, len) && word[len] == '=' ? word + len + 1 : NULL;
}

static bool set_word(doppel_disk *disk, const char *word)
{
	const char *value;

	if (!strcmp(word, "readonly")) {
		disk->flags |= DOPPEL_DISK_READONLY;
		return true;
	}
	if ((value = value_of(word, "snapshot")))
		return set_flag(&disk->flags, DOPPEL_DISK_SNAPSHOT, value);
	if ((value = value_of(word, "direct")))
		return set_flag(&disk->flags, DOPPEL_DISK_DIRECT, value);
	if ((value = value_of(word, "blocksize")))
		return set_block_size(disk, value);
	if ((value = value_of(word, "format")))
		return set_format(disk, value);
	if ((value = value_of(word, "iops")))
		return set_cap(&disk->iops, value);
	if ((value = value_of(word, "bps")))
		return set_cap(&disk->bps, value);
	return false;
}

static bool bad_word(const char *word, const char *path)
{
	return complain(
		"--disk %s: unknown word '%s': there are readonly, snapshot=on|off, direct=on|off, "
		"blocksize=512|4096, format=raw|qcow2, iops=N and bps=N (a comma in the file's name is written twice)",
		path, word);
}

bool config_disk(doppel_config *config, const char *spec)
{
	size_t size = strlen(spec) + 1;
	char *path = malloc(size), *word = malloc(size);
	doppel_disk disk = {.path = path};
	bool good = path && word;

	if (good) {
		const char *rest = next_part(spec, path);
		good = path[0] || complain("--disk '%s' names no file", spec);
		while (good && rest) {
			rest = next_part(rest, word);
			good = set_word(&disk, word) || bad_word(word, path);
		}
		if (good)
			doppel_config_add_disk(config, &disk, sizeof(disk));
	}
	free(path);
	free(word);
	return good;
}
