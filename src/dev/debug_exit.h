/* A port by which a test tells its result: a write ends the VM (QEMU's isa-debug-exit, docs/specs). */
#ifndef DOPPEL_DEV_DEBUG_EXIT_H
#define DOPPEL_DEV_DEBUG_EXIT_H

#include "bus/bus.h"

struct debug_exit;

struct debug_exit_config {
	struct bus *bus;
	uint16_t port;                                /* 0xf4; four ports */
	void (*exited)(void *opaque, uint32_t value); /* on the writer's thread: the value written */
	void *opaque;
};

struct debug_exit *debug_exit_create(const struct debug_exit_config *config);
struct device debug_exit_device(struct debug_exit *dev);

#endif
