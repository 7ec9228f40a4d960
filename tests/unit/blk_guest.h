/* For tests of the block device: a driver's requests, each in a slot of guest memory. */
#ifndef DOPPEL_TESTS_BLK_GUEST_H
#define DOPPEL_TESTS_BLK_GUEST_H

#include "unit.h"
#include "virtio_guest.h"

#include "dev/virtio_blk.h"

#define F_FLUSH BIT(9)
#define ALL (F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | 0x7fffff)
#define SECTORS 2050 /* no multiple of 4096 bytes */
#define BYTES (SECTORS * 512)

enum { IN, OUT, FLUSH = 4, GET_ID = 8, DISCARD = 11, ZEROES = 13 };
enum { OK, IOERR, UNSUPP };

/* Buffers of request `slot`: header, status and up to 64 KiB of data. */
#define SLOTS 60
#define HEADER(slot) (RIG_BUFFERS + (slot)*64)
#define STATUS(slot) (HEADER(slot) + 32)
#define BUFFER(slot) (RIG_BUFFERS + 0x10000 + (slot)*0x10000)

struct header {
	uint32_t type, reserved;
	uint64_t sector;
};

struct bench {
	struct rig r;
	struct drv d;
	struct drv_queue *q;
	char path[64];
};

static inline void up(struct bench *b, uint64_t features)
{
	drv_begin(&b->d, features);
	b->q = drv_queue(&b->d, 0, 256);
	drv_ok(&b->d);
}

/* Makes a request with `len` bytes of data at BUFFER(slot) available; returns its head. */
static inline uint16_t place(struct bench *b, unsigned slot, uint32_t type, uint64_t sector, uint32_t len)
{
	struct header h = {type, 0, sector};
	bool in = type == IN || type == GET_ID;
	struct guest_desc piece[3] = {{HEADER(slot), sizeof(h), 0, 0},
				      {BUFFER(slot), len, in ? D_WRITE : 0, 0},
				      {STATUS(slot), 1, D_WRITE, 0}};

	memcpy(rig_at(&b->r, HEADER(slot), sizeof(h)), &h, sizeof(h));
	*(uint8_t *)rig_at(&b->r, STATUS(slot), 1) = 0xee;
	if (!len)
		piece[1] = piece[2];
	uint16_t head = drv_chain(&b->d, b->q, piece, len ? 3 : 2);
	drv_publish(&b->d, b->q, head);
	return head;
}

/* ... and tells the device. */
static inline void request(struct bench *b, unsigned slot, uint32_t type, uint64_t sector, uint32_t len)
{
	place(b, slot, type, sector, len);
	drv_kick(&b->d, b->q);
}

static inline uint8_t status(struct bench *b, unsigned slot)
{
	return *(uint8_t *)rig_at(&b->r, STATUS(slot), 1);
}

static inline uint8_t transfer(struct bench *b, uint32_t type, uint64_t sector, uint32_t len)
{
	struct guest_used used;

	request(b, 0, type, sector, len);
	REQUIRE(drv_take(&b->d, b->q, &used));
	CHECK(used.len >= 1);
	return status(b, 0);
}

static inline uint8_t *data(struct bench *b, unsigned slot)
{
	return rig_at(&b->r, BUFFER(slot), 0x10000);
}

static inline bool is_all(const uint8_t *p, uint8_t value, uint64_t len)
{
	for (uint64_t i = 0; i < len; i++)
		if (p[i] != value)
			return false;
	return true;
}

#endif
