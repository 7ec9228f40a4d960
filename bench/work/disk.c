/* Reads and writes of 4 KiB with O_DIRECT, one at a time, on the scratch disk that the environment's DISK names. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "work.h"

#define BLOCK 4096UL

struct disk {
	int fd;
	unsigned long blocks;
	char *buffer;
};

static void disk_open(struct disk *d, int mode)
{
	const char *path = getenv("DISK");
	off_t size;

	errno = ENOENT;
	d->fd = path ? open(path, mode | O_DIRECT) : -1;
	if (d->fd < 0)
		die(path ? path : "DISK");
	size = lseek(d->fd, 0, SEEK_END);
	d->blocks = (unsigned long)size / BLOCK;
	d->buffer = aligned_alloc(BLOCK, BLOCK);
	if (!d->blocks || !d->buffer)
		die(path);
	memset(d->buffer, 0x5a, BLOCK);
}

/* The i-th block to touch: in order, or by a fixed pseudo-random series (a 64-bit linear congruential generator's high
 * bits). */
static off_t place(const struct disk *d, unsigned long i, int shuffled, uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return (off_t)((shuffled ? *state >> 33 : i) % d->blocks * BLOCK);
}

static void reads(unsigned long n, int shuffled)
{
	struct disk d;
	uint64_t state = 1;

	disk_open(&d, O_RDONLY);
	for (unsigned long i = 0; i < n; i++)
		if (pread(d.fd, d.buffer, BLOCK, place(&d, i, shuffled, &state)) != BLOCK)
			die("read of the disk");
}

static void writes(unsigned long n, int shuffled)
{
	struct disk d;
	uint64_t state = 1;

	disk_open(&d, O_RDWR);
	for (unsigned long i = 0; i < n; i++) {
		memcpy(d.buffer, &i, sizeof(i));
		if (pwrite(d.fd, d.buffer, BLOCK, place(&d, i, shuffled, &state)) != BLOCK)
			die("write of the disk");
	}
}

void work_seq_read(unsigned long n)
{
	reads(n, 0);
}

void work_seq_write(unsigned long n)
{
	writes(n, 0);
}

void work_rand_read(unsigned long n)
{
	reads(n, 1);
}

void work_rand_write(unsigned long n)
{
	writes(n, 1);
}
