/* Keyboard controller and keyboard (IBM PC/AT Technical Reference: 8042 commands, keyboard commands). */
#include "dev/i8042.h"

#include "host/thread.h"

#include <stdlib.h>
#include <string.h>

enum {
	STATUS_OUT_FULL = 1 << 0,
	STATUS_SYSTEM = 1 << 2,
	STATUS_COMMAND = 1 << 3,
	STATUS_UNLOCKED = 1 << 4,
	STATUS_TIMEOUT = 1 << 6
};
/* Command byte, controller's RAM byte 0. */
enum {
	CMD_IRQ1 = 1 << 0,
	CMD_SYSTEM = 1 << 2,
	CMD_KEYBOARD_OFF = 1 << 4,
	CMD_AUX_OFF = 1 << 5,
	CMD_TRANSLATE = 1 << 6
};
/* Output port. */
enum { OUT_NO_RESET = 1 << 0, OUT_A20 = 1 << 1 };
#define OUTPUT_PORT (0xcc | OUT_NO_RESET | OUT_A20)
#define QUEUE 16

struct i8042 {
	struct i8042_config config;
	struct host_mutex lock; /* held while the line is set */
	uint8_t ram[32];        /* byte 0 is the command byte */
	uint8_t command;        /* controller command that waits for its data byte, or 0 */
	uint8_t key_command;    /* the keyboard's that does */
	bool last_was_command;  /* status bit 3 */
	bool timeout;
	uint8_t queue[QUEUE]; /* bytes for port 0x60, the first is in the output buffer */
	uint8_t queued;
};

/* The output buffer full flag drives IRQ 1. The lock is held. */
static void update(struct i8042 *kbc)
{
	irq_set(&kbc->config.irq, kbc->queued && (kbc->ram[0] & CMD_IRQ1));
}

/* A byte that finds no room is lost: the guest asked for more than it reads. */
static void push(struct i8042 *kbc, uint8_t byte)
{
	if (kbc->queued < QUEUE)
		kbc->queue[kbc->queued++] = byte;
}

static uint8_t pop(struct i8042 *kbc)
{
	uint8_t byte = kbc->queue[0];

	if (!kbc->queued)
		return byte; /* the last one again */
	if (--kbc->queued)
		memmove(kbc->queue, kbc->queue + 1, kbc->queued);
	kbc->timeout = false;
	return byte;
}

/* Keyboard commands and what they answer after ACK; `takes` says that a data byte follows. */
static const struct key_command {
	uint8_t command, takes, answers;
	uint8_t answer[2];
} key_commands[] = {
	{0xed, 1, 0, {0}},          /* LEDs */
	{0xf0, 1, 0, {0}},          /* scan code set */
	{0xf2, 0, 2, {0xab, 0x83}}, /* identify: MF II */
	{0xf3, 1, 0, {0}},          /* typematic rate */
	{0xf4, 0, 0, {0}},          /* enable */
	{0xf5, 0, 0, {0}},          /* disable, defaults */
	{0xf6, 0, 0, {0}},          /* defaults */
	{0xff, 0, 1, {0xaa}},       /* reset and self test */
};

enum { KEY_ECHO = 0xee, KEY_ACK = 0xfa, KEY_RESEND = 0xfe };

static const struct key_command *find_key_command(uint8_t command)
{
	for (unsigned i = 0; i < ARRAY_LEN(key_commands); i++)
		if (key_commands[i].command == command)
			return &key_commands[i];
	return NULL;
}

/* With translation on, the controller turns set 2 into set 1: of our answers, the keyboard's second ID byte. */
static uint8_t translate(const struct i8042 *kbc, uint8_t byte)
{
	return (kbc->ram[0] & CMD_TRANSLATE) && byte == 0x83 ? 0x41 : byte;
}

static void key_parameter(struct i8042 *kbc, uint8_t byte)
{
	push(kbc, KEY_ACK);
	if (kbc->key_command == 0xf0 && !byte) /* which set? 2, seen through translation */
		push(kbc, kbc->ram[0] & CMD_TRANSLATE ? 0x41 : 2);
	kbc->key_command = 0;
}

/* A byte for the keyboard. Nobody there: the controller times out. */
static void to_keyboard(struct i8042 *kbc, uint8_t byte)
{
	const struct key_command *c;

	kbc->ram[0] &= ~CMD_KEYBOARD_OFF;
	if (!kbc->config.keyboard) {
		push(kbc, KEY_RESEND);
		kbc->timeout = true;
		return;
	}
	c = find_key_command(byte);
	if (kbc->key_command && !c) {
		key_parameter(kbc, byte);
		return;
	}
	kbc->key_command = c && c->takes ? byte : 0;
	if (byte == KEY_ECHO || !c) {
		push(kbc, byte == KEY_ECHO ? KEY_ECHO : KEY_RESEND);
		return;
	}
	push(kbc, KEY_ACK);
	for (unsigned i = 0; i < c->answers; i++)
		push(kbc, translate(kbc, c->answer[i]));
}

/* A byte at port 0x60, after a controller command that waits for it, or for the keyboard. True: reset is wanted. */
static bool write_data(struct i8042 *kbc, uint8_t byte)
{
	uint8_t command = kbc->command;

	kbc->command = 0;
	kbc->last_was_command = false;
	switch (command) {
	case 0x60 ... 0x7f:
		kbc->ram[command & 31] = byte;
		return false;
	case 0xd1: /* output port; A20 stays on */
		return !(byte & OUT_NO_RESET);
	case 0xd2: /* as if from the keyboard */
		push(kbc, byte);
		return false;
	case 0xd3: /* as if from the auxiliary device, which isn't there */
	case 0xd4:
		return false;
	default:
		to_keyboard(kbc, byte);
		return false;
	}
}

/* True: reset is wanted. */
static bool write_command(struct i8042 *kbc, uint8_t command)
{
	kbc->last_was_command = true;
	kbc->command = 0;
	switch (command) {
	case 0x20 ... 0x3f:
		push(kbc, kbc->ram[command & 31]);
		break;
	case 0x60 ... 0x7f:
	case 0xd1 ... 0xd4:
		kbc->command = command;
		break;
	case 0xaa: /* self test: passed */
		kbc->ram[0] |= CMD_SYSTEM;
		push(kbc, 0x55);
		break;
	case 0xab: /* test of the keyboard's lines: good; without it, the clock line is stuck low */
		push(kbc, kbc->config.keyboard ? 0 : 1);
		break;
	case 0xad:
		kbc->ram[0] |= CMD_KEYBOARD_OFF;
		break;
	case 0xae:
		kbc->ram[0] &= ~CMD_KEYBOARD_OFF;
		break;
	case 0xc0: /* input port: not locked */
		push(kbc, 0x80);
		break;
	case 0xd0:
		push(kbc, OUTPUT_PORT);
		break;
	case 0xf0 ... 0xff: /* pulses the output port's bits that are 0; bit 0 is reset */
		return !(command & 1);
	default: /* auxiliary device (0xa7..0xa9) and others: a controller without knows them not */
		break;
	}
	return false;
}

static uint8_t status(const struct i8042 *kbc)
{
	return (kbc->queued ? STATUS_OUT_FULL : 0) | (kbc->ram[0] & CMD_SYSTEM ? STATUS_SYSTEM : 0) |
	       (kbc->last_was_command ? STATUS_COMMAND : 0) | STATUS_UNLOCKED | (kbc->timeout ? STATUS_TIMEOUT : 0);
}

static uint64_t data_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct i8042 *kbc = opaque;
	uint8_t byte;

	host_lock(&kbc->lock);
	byte = pop(kbc);
	/* Each byte is an edge of its own. */
	irq_set(&kbc->config.irq, false);
	update(kbc);
	host_unlock(&kbc->lock);
	return byte;
}

static uint64_t status_read(void *opaque, uint64_t off, unsigned len, unsigned cpu)
{
	struct i8042 *kbc = opaque;
	uint8_t value;

	host_lock(&kbc->lock);
	value = status(kbc);
	host_unlock(&kbc->lock);
	return value;
}

static void write(struct i8042 *kbc, bool command, uint8_t value)
{
	bool wants_reset;

	host_lock(&kbc->lock);
	wants_reset = command ? write_command(kbc, value) : write_data(kbc, value);
	update(kbc);
	host_unlock(&kbc->lock);
	if (wants_reset)
		kbc->config.reset(kbc->config.opaque);
}

static void data_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	write(opaque, false, value);
}

static void command_write(void *opaque, uint64_t off, unsigned len, uint64_t value, unsigned cpu)
{
	write(opaque, true, value);
}

static const struct bus_ops data_ops = {data_read, data_write};
static const struct bus_ops command_ops = {status_read, command_write};

static void reset(void *opaque)
{
	struct i8042 *kbc = opaque;

	host_lock(&kbc->lock);
	memset(kbc->ram, 0, sizeof(kbc->ram));
	kbc->ram[0] = CMD_SYSTEM | CMD_TRANSLATE | CMD_AUX_OFF; /* as firmware leaves it, interrupts off */
	kbc->command = kbc->key_command = kbc->queued = kbc->queue[0] = 0;
	kbc->last_was_command = kbc->timeout = false;
	update(kbc);
	host_unlock(&kbc->lock);
}

static void state(void *opaque, struct state_stream *s)
{
	struct i8042 *kbc = opaque;
	uint8_t flags = kbc->last_was_command | kbc->timeout << 1;

	host_lock(&kbc->lock);
	state_field(s, kbc->ram);
	state_field(s, kbc->command);
	state_field(s, kbc->key_command);
	state_field(s, flags);
	state_field(s, kbc->queue);
	state_field(s, kbc->queued);
	kbc->queued = MIN(kbc->queued, QUEUE);
	kbc->last_was_command = flags & 1;
	kbc->timeout = flags & 2;
	update(kbc);
	host_unlock(&kbc->lock);
}

static void release(struct i8042 *kbc)
{
	host_mutex_destroy(&kbc->lock);
	free(kbc);
}

static void destroy(void *opaque)
{
	struct i8042 *kbc = opaque;

	bus_remove(kbc->config.bus, BUS_PORT, 0x60);
	bus_remove(kbc->config.bus, BUS_PORT, 0x64);
	release(kbc);
}

struct i8042 *i8042_create(const struct i8042_config *config)
{
	struct i8042 *kbc = calloc(1, sizeof(*kbc));

	if (!kbc)
		return NULL;
	kbc->config = *config;
	host_mutex_init(&kbc->lock);
	if (!bus_add(config->bus, BUS_PORT, (struct bus_region){"8042 data", 0x60, 1, &data_ops, kbc})) {
		release(kbc);
		return NULL;
	}
	if (!bus_add(config->bus, BUS_PORT, (struct bus_region){"8042 command", 0x64, 1, &command_ops, kbc})) {
		bus_remove(config->bus, BUS_PORT, 0x60);
		release(kbc);
		return NULL;
	}
	reset(kbc);
	return kbc;
}

struct device i8042_device(struct i8042 *kbc)
{
	return (struct device){.name = "8042", .opaque = kbc, .reset = reset, .state = state, .destroy = destroy};
}
