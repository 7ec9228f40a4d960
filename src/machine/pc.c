/* The board's life: made, reset, saved, destroyed. */
#include "machine/board.h"

#include "dev/pit8254.h"
#include "dev/uart16550.h"
#include "dev/virtio_balloon.h"
#include "dev/virtio_console.h"

#include <stdlib.h>
#include <string.h>

/* False when there is no memory; a NULL string stays NULL. */
static bool copy_string(char **copy, const char *s)
{
	*copy = s ? strdup(s) : NULL;
	return *copy || !s;
}

struct pc *pc_create(const struct pc_config *config, struct error *err)
{
	struct pc *pc = calloc(1, sizeof(*pc));

	ENSURE(config->cpus >= 1 && config->cpus <= PC_CPUS && config->disks <= PC_DISKS);
	if (!pc) {
		error_set(err, "cannot make the machine: the host is out of memory");
		return NULL;
	}
	pc->c = *config;
	pc->window64 = BIT(config->model->phys_bits) >= PC_PCI_WINDOW64 + PC_PCI_WINDOW64_SIZE;
	if (!copy_string(&pc->kernel_path, config->kernel) || !copy_string(&pc->initrd_path, config->initrd) ||
	    !copy_string(&pc->cmdline, config->cmdline ? config->cmdline : "")) {
		error_set(err, "cannot make the machine: the host is out of memory");
		pc_destroy(pc);
		return NULL;
	}
	if (!board_create(pc, err)) {
		pc_destroy(pc);
		return NULL;
	}
	return pc;
}

void pc_destroy(struct pc *pc)
{
	if (!pc)
		return;
	while (pc->devices) {
		const struct device *d = &pc->device[--pc->devices];
		if (d->destroy)
			d->destroy(d->opaque);
	}
	free(pc->kernel_path);
	free(pc->initrd_path);
	free(pc->cmdline);
	if (pc->kernel_file)
		host_file_close(pc->kernel_file);
	if (pc->initrd_file)
		host_file_close(pc->initrd_file);
	free(pc->kernel);
	free(pc->initrd);
	free(pc);
}

void pc_reset(struct pc *pc)
{
	for (unsigned i = 0; i < pc->c.cpus; i++)
		x86_cpu_reset(pc->c.cpu[i], false);
	for (unsigned i = 0; i < pc->devices; i++)
		if (pc->device[i].reset)
			pc->device[i].reset(pc->device[i].opaque);
}

void pc_pause(struct pc *pc)
{
	for (unsigned i = 0; i < pc->devices; i++)
		if (pc->device[i].pause)
			pc->device[i].pause(pc->device[i].opaque);
}

void pc_resume(struct pc *pc)
{
	for (unsigned i = pc->devices; i-- > 0;)
		if (pc->device[i].resume)
			pc->device[i].resume(pc->device[i].opaque);
}

/* Each part is preceded by its name, so that a stream of another machine is refused instead of misread. */
void pc_state(struct pc *pc, struct state_stream *s)
{
	for (unsigned i = 0; i < pc->devices && !s->failed; i++) {
		const struct device *d = &pc->device[i];
		char name[16] = {0}, found[16];

		memcpy(name, d->name, MIN(strlen(d->name), sizeof(name) - 1));
		memcpy(found, name, sizeof(found));
		state_bytes(s, found, sizeof(found));
		if (memcmp(name, found, sizeof(name)) != 0)
			state_refuse(s, "other devices");
		else if (d->state)
			d->state(d->opaque, s);
	}
}

void pc_interrupt_taken(struct pc *pc)
{
	pit8254_interrupt_taken(pc->pit);
}

const char *pc_device_name(const struct pc *pc, unsigned index)
{
	return index < pc->devices ? pc->device[index].name : NULL;
}

struct apic_bus *pc_apic(struct pc *pc)
{
	return pc->apics;
}

bool pc_balloon_set(struct pc *pc, uint64_t bytes)
{
	return pc->balloon && virtio_balloon_set(pc->balloon, bytes);
}

bool pc_balloon_info(struct pc *pc, struct balloon_info *info)
{
	if (pc->balloon)
		virtio_balloon_info(pc->balloon, info);
	return pc->balloon;
}

size_t pc_serial_input(struct pc *pc, const uint8_t *data, size_t len)
{
	return uart16550_receive(pc->uart, data, len);
}

size_t pc_virtio_input(struct pc *pc, const uint8_t *data, size_t len)
{
	return pc->console ? virtio_console_input(pc->console, data, len) : len;
}
