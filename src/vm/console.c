/* A console of the guest's on the host, and the keys that are the monitor's own when it is a person's terminal. */
#include "host/console.h"

#include "host/host.h"
#include "vm/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CTRL_A 1
#define STUCK_NS 2000000000ull /* a guest that takes no key for so long is thought to hang */

struct vm_console {
	struct vm *vm;
	vm_console_input *input;
	struct host_console *host;
	struct host_mutex out;  /* a leaf: guards `host` against writers when it is closed */
	struct host_mutex lock; /* held while input goes to the board; a device's lock may be taken under it */
	bool open;              /* the board is there */
	bool held;              /* it is paused, and takes no input */
	bool escape;            /* Ctrl-A was the last key */
	uint64_t stuck;         /* since when keys are refused, by host_now_ns(); 0: none is */
};

static void console_write(void *opaque, const uint8_t *data, size_t len)
{
	struct vm_console *console = opaque;

	host_lock(&console->out);
	if (console->host)
		host_console_write(console->host, data, len);
	host_unlock(&console->out);
}

static void console_ready(void *opaque)
{
	struct vm_console *console = opaque;

	host_lock(&console->out);
	if (console->host)
		host_console_more(console->host);
	host_unlock(&console->out);
}

struct pc_console vm_console_port(struct vm_console *console)
{
	return (struct pc_console){console_write, console_ready, console};
}

static void list_keys(void)
{
	fputs("\ndoppel: Ctrl-A X  quit\n"
	      "doppel: Ctrl-A P  pause, or go on\n"
	      "doppel: Ctrl-A S  show the machine's state\n"
	      "doppel: Ctrl-A H  this list\n"
	      "doppel: Ctrl-A Ctrl-A  send one Ctrl-A to the guest\n",
	      stderr);
}

/* Returns how many bytes the guest took. */
static size_t give(struct vm_console *console, const uint8_t *data, size_t len)
{
	size_t took = console->held ? 0 : console->input(console->vm->pc, data, len);

	if (took)
		console->stuck = 0;
	return took;
}

/* A person's keys: those typed while he himself has paused the machine are lost, so that the next Ctrl-A is seen. */
static size_t give_keys(struct vm_console *console, const uint8_t *data, size_t len)
{
	return console->held && vm_is_key_paused(console->vm) ? len : give(console, data, len);
}

static void do_key(struct vm_console *console, uint8_t key)
{
	switch (key) {
	case 'x':
	case 'X':
		vm_stop(console->vm, VM_END_QUIT, 0);
		break;
	case 'p':
	case 'P':
		vm_ask(console->vm, TODO_PAUSE);
		break;
	case 's':
	case 'S':
		vm_ask(console->vm, TODO_SHOW);
		break;
	case 'h':
	case 'H':
	case '?':
		list_keys();
		break;
	}
}

/* The key after Ctrl-A. False: it is the guest's, who does not take it now. */
static bool escape_key(struct vm_console *console, uint8_t key)
{
	if (key == CTRL_A && !give_keys(console, &key, 1))
		return false;
	do_key(console, key);
	console->escape = false;
	return true;
}

/* A person's keys: all but what follows Ctrl-A goes to the guest. Returns how many were taken. */
static size_t take_keys(struct vm_console *console, const uint8_t *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		if (console->escape) {
			if (!escape_key(console, data[done]))
				break;
			done++;
			continue;
		}
		const uint8_t *stop = memchr(data + done, CTRL_A, len - done);
		size_t run = stop ? (size_t)(stop - data) - done : len - done;
		size_t took = run ? give_keys(console, data + done, run) : 0;
		done += took;
		if (took < run)
			break;
		if (stop) {
			console->escape = true;
			done++;
		}
	}
	return done;
}

/* Among keys that the guest refused: does as the one says that ends it. Returns whether Ctrl-A is the last. */
static bool find_quit(struct vm_console *console, const uint8_t *data, size_t len)
{
	bool escape = console->escape;

	for (size_t i = 0; i < len; i++) {
		if (escape && (data[i] == 'x' || data[i] == 'X'))
			vm_stop(console->vm, VM_END_QUIT, 0);
		escape = !escape && data[i] == CTRL_A;
	}
	return escape;
}

/*
 * A guest that hangs takes no keys, but a person must be able to end it: so keys that it refuses are looked through,
 * and when it seems to hang they are dropped, so that those typed later are read.
 */
static size_t take_terminal(struct vm_console *console, const uint8_t *data, size_t len)
{
	size_t done = take_keys(console, data, len);
	uint64_t now = host_now_ns();

	if (done == len)
		return len;
	bool escape = find_quit(console, data + done, len - done);
	if (console->held)
		return done;
	if (!console->stuck)
		console->stuck = now;
	if (now - console->stuck <= STUCK_NS)
		return done;
	console->escape = escape;
	return len;
}

static size_t console_input(void *opaque, const uint8_t *data, size_t len)
{
	struct vm_console *console = opaque;
	size_t took = len;

	host_lock(&console->lock);
	if (console->open)
		took = host_console_is_terminal(console->host) ? take_terminal(console, data, len)
							       : give(console, data, len);
	host_unlock(&console->lock);
	return took;
}

struct vm_console *vm_console_create(struct vm *vm, const char *spec, vm_console_input *input, struct error *err)
{
	struct vm_console *console = calloc(1, sizeof(*console));

	if (!console) {
		error_set(err, "out of memory");
		return NULL;
	}
	console->vm = vm;
	console->input = input;
	host_mutex_init(&console->out);
	host_mutex_init(&console->lock);
	console->host = host_console_create(spec, err);
	if (console->host)
		return console;
	vm_console_destroy(console);
	return NULL;
}

const char *vm_console_where(const struct vm_console *console)
{
	return host_console_where(console->host);
}

bool vm_console_start(struct vm_console *console, struct error *err)
{
	console->open = true;
	return host_console_start(console->host, console_input, console, err);
}

void vm_console_hold(struct vm_console *console, bool held)
{
	host_lock(&console->lock);
	console->held = held;
	console->stuck = 0;
	host_unlock(&console->lock);
	if (!held)
		console_ready(console);
}

void vm_console_close(struct vm_console *console)
{
	struct host_console *host = console->host;

	host_lock(&console->lock);
	console->open = false;
	host_unlock(&console->lock);
	host_lock(&console->out);
	console->host = NULL;
	host_unlock(&console->out);
	host_console_destroy(host);
}

void vm_console_destroy(struct vm_console *console)
{
	if (!console)
		return;
	vm_console_close(console);
	host_mutex_destroy(&console->lock);
	host_mutex_destroy(&console->out);
	free(console);
}
