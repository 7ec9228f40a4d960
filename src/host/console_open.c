/* Opening the host's end of a console, by kind. */
#include "host/console_io.h"
#include "host/host.h"
#include "host/internal.h"
#include "host/stream.h"
#include "host/terminal.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

/*
 * Standard output opened anew, so that O_NONBLOCK is ours alone and not the shell's as well (open file descriptions are
 * shared). Only for terminals and pipes: a file opened anew would start at its beginning. Where it cannot be, it stays
 * as it is.
 */
static int own_output(bool *ours)
{
	struct stat st;
	int fd = -1;

	if (!fstat(STDOUT_FILENO, &st) && (S_ISFIFO(st.st_mode) || isatty(STDOUT_FILENO)))
		fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	*ours = fd >= 0;
	return *ours ? fd : STDOUT_FILENO;
}

static bool open_stdio(struct console_io *io, const char *arg, struct error *err)
{
	io->terminal = host_terminal_is_one();
	io->in = fcntl(STDIN_FILENO, F_GETFD) < 0 ? -1 : STDIN_FILENO;
	io->out = own_output(&io->close_out);
	return true;
}

static bool open_none(struct console_io *io, const char *arg, struct error *err)
{
	return true;
}

static bool open_file(struct console_io *io, const char *path, struct error *err)
{
	/* Not to wait at a pipe that nobody reads from. The writer polls before it writes, in any case. */
	const int flags = O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

	io->out = RETRY_EINTR(open(path, flags));
	io->created = io->out < 0 && errno == ENOENT && strlen(path) < sizeof(io->where);
	if (io->out < 0 && errno == ENOENT)
		io->out = RETRY_EINTR(open(path, flags | O_CREAT, 0666));
	io->file = io->close_out = true;
	if (io->out < 0)
		return error_set(err, "cannot open console file '%s': %s", path,
				 errno == ENXIO ? "it is a pipe that nobody reads from: start its reader first"
						: strerror(errno));
	return true;
}

/* No echo and no line editing on the way to the guest, which has a terminal of its own behind the wire. */
static bool make_raw(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct termios modes;
	bool ok = fd >= 0 && !tcgetattr(fd, &modes);

	if (ok) {
		cfmakeraw(&modes);
		ok = !tcsetattr(fd, TCSANOW, &modes);
	}
	if (fd >= 0)
		close(fd);
	return ok;
}

static bool open_pty(struct console_io *io, const char *arg, struct error *err)
{
	int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);

	io->in = io->out = fd;
	io->close_in = true;
	io->pty = true;
	if (fd < 0 || grantpt(fd) || unlockpt(fd) || ptsname_r(fd, io->where, sizeof(io->where)) ||
	    !make_raw(io->where))
		return error_set(err, "cannot open a pseudo-terminal for the console: %s; is /dev/pts mounted?",
				 strerror(errno));
	return true;
}

static bool open_unix(struct console_io *io, const char *path, struct error *err)
{
	if (strlen(path) > HOST_STREAM_PATH)
		return error_set(err, "console socket path '%s' is too long; at most %d characters", path,
				 HOST_STREAM_PATH);
	io->listen = host_stream_listen(path, 1);
	io->close_in = true;
	return io->listen >= 0 ||
	       error_set(err, "cannot listen on console socket '%s': %s%s", path, host_error_text(),
			 errno == EADDRINUSE ? "; another process uses it, choose another path" : "");
}

static const struct kind {
	const char *name;
	bool argument;
	bool (*open)(struct console_io *io, const char *arg, struct error *err);
} kinds[] = {
	{"stdio", false, open_stdio}, {"file", true, open_file},  {"pty", false, open_pty},
	{"unix", true, open_unix},    {"none", false, open_none},
};

static const struct kind *find_kind(const char *spec, const char **arg)
{
	size_t len = strcspn(spec, "=");

	for (unsigned i = 0; i < ARRAY_LEN(kinds); i++) {
		const struct kind *k = &kinds[i];

		*arg = spec[len] ? spec + len + 1 : "";
		if (strlen(k->name) == len && !strncmp(k->name, spec, len) && k->argument == !!**arg &&
		    (k->argument || !spec[len]))
			return k;
	}
	return NULL;
}

bool console_open(struct console_io *io, const char *spec, struct error *err)
{
	const char *arg;
	const struct kind *kind = find_kind(spec, &arg);

	*io = (struct console_io){.in = -1, .out = -1, .listen = -1};
	if (!kind)
		return error_set(err, "unknown console '%s'; use stdio, file=PATH, pty, unix=PATH or none", spec);
	snprintf(io->where, sizeof(io->where), "%s", kind->argument ? arg : kind->name);
	if (kind->open(io, arg, err))
		return true;
	console_close(io);
	return false;
}

void console_begin(struct console_io *io)
{
	io->created = false;
	if (io->file)
		(void)!ftruncate(io->out, 0); /* a device or a pipe stays as it is */
}

/* A file that was made for a machine which never started goes again. */
void console_close(struct console_io *io)
{
	if (io->created && io->out >= 0)
		unlink(io->where);
	if (io->close_out && io->out >= 0 && io->out != io->in)
		close(io->out);
	if (io->close_in && io->in >= 0)
		close(io->in);
	host_stream_unlisten(io->listen);
	io->in = io->out = io->listen = -1;
}
