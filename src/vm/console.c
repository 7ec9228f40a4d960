/* The guest's first serial port on the host, and the keys that are the monitor's own when it is a person's terminal. */
#include "host/console.h"

#include "vm/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CTRL_A 1

struct vm_console {
	struct vm *vm;
	struct host_console *host;
	struct host_mutex out;  /* a leaf: guards `host` against writers when it is closed */
	struct host_mutex lock; /* held while input goes to the board; a device's lock may be taken under it */
	bool open;              /* the board takes input */
	bool escape;            /* Ctrl-A was the last key */
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

struct pc_console vm_console_serial(struct vm_console *console)
{
	return (struct pc_console){console_write, console_ready, console};
}

static void list_keys(void)
{
	fputs("\ndoppel: Ctrl-A X  quit\n"
	      "doppel: Ctrl-A H  this list\n"
	      "doppel: Ctrl-A Ctrl-A  send one Ctrl-A to the guest\n",
	      stderr);
}

/* The key after Ctrl-A. False: it is the guest's, who does not take it now. */
static bool escape_key(struct vm_console *console, uint8_t key)
{
	if (key == CTRL_A && !pc_serial_input(console->vm->pc, &key, 1))
		return false;
	if (key == 'x' || key == 'X')
		vm_stop(console->vm, VM_END_QUIT, 0);
	else if (key == 'h' || key == 'H' || key == '?')
		list_keys();
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
		size_t took = run ? pc_serial_input(console->vm->pc, data + done, run) : 0;
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

static size_t console_input(void *opaque, const uint8_t *data, size_t len)
{
	struct vm_console *console = opaque;
	size_t took = len;

	host_lock(&console->lock);
	if (console->open)
		took = host_console_is_terminal(console->host) ? take_keys(console, data, len)
							       : pc_serial_input(console->vm->pc, data, len);
	host_unlock(&console->lock);
	return took;
}

struct vm_console *vm_console_create(struct vm *vm, const char *spec, struct error *err)
{
	struct vm_console *console = calloc(1, sizeof(*console));

	if (!console) {
		error_set(err, "out of memory");
		return NULL;
	}
	console->vm = vm;
	host_mutex_init(&console->out);
	host_mutex_init(&console->lock);
	console->host = host_console_create(spec ? spec : "stdio", err);
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
