/* Console ends: files, sockets, ptys, pipes and the terminal. */
#include "host/console.h"
#include "host/guest_signals.h"
#include "host/host.h"
#include "host/thread.h"
#include "unit/unit.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define MS 1000000ull

static struct error err;
static char path[64];

/* What the guest has got; it takes up to `room` bytes. */
static struct {
	struct host_mutex lock;
	char data[65536];
	size_t len, room;
} guest;

static size_t on_input(void *opaque, const uint8_t *data, size_t len)
{
	host_lock(&guest.lock);
	len = MIN(len, MIN(guest.room, sizeof(guest.data) - 1 - guest.len));
	memcpy(guest.data + guest.len, data, len);
	guest.len += len;
	guest.data[guest.len] = 0;
	guest.room -= len;
	host_unlock(&guest.lock);
	return len;
}

static size_t guest_len(void)
{
	size_t len;

	host_lock(&guest.lock);
	len = guest.len;
	host_unlock(&guest.lock);
	return len;
}

static void wait_guest(size_t len)
{
	for (unsigned i = 0; i < 5000 && guest_len() < len; i++)
		host_sleep_ns(MS);
	CHECK_EQ(guest_len(), len);
}

static void give_room(size_t room)
{
	host_lock(&guest.lock);
	guest.room = room;
	host_unlock(&guest.lock);
}

static struct host_console *started(const char *spec)
{
	struct host_console *c = host_console_create(spec, &err);

	REQUIRE(c);
	host_mutex_init(&guest.lock);
	guest.len = 0;
	guest.data[0] = 0;
	guest.room = SIZE_MAX;
	REQUIRE(host_console_start(c, on_input, NULL, &err));
	return c;
}

static void say(struct host_console *c, const char *text)
{
	host_console_write(c, (const uint8_t *)text, strlen(text));
}

/* Reads until `len` bytes have come, the end, or 5 s without any. */
static size_t read_for(int fd, char *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		ssize_t n = poll(&p, 1, 5000) > 0 ? read(fd, buf + done, len - done) : 0;

		if (n <= 0)
			break;
		done += (size_t)n;
	}
	buf[done] = 0;
	return done;
}

TEST(bad_specs)
{
	static const char *const bad[] = {
		"", "stdi", "stdio=", "stdio=x", "file", "file=", "pty=3", "unix=", "none=", "=", "files=x"};

	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		CHECK(!host_console_create(bad[i], &err));
		CHECK(strstr(err.text, "unknown console"));
	}
	CHECK(!host_console_create("file=/nowhere/at/all", &err));
	CHECK_STR(err.text, "cannot open console file '/nowhere/at/all': No such file or directory");
	CHECK(!host_console_create("unix=/nowhere/at/all", &err));
	CHECK(strstr(err.text, "No such file"));
	CHECK(!host_console_create("unix=/tmp/a-path-that-is-much-longer-than-what-fits-into-the-address-of-a-socket-"
				   "which-is-a-hundred-and-eight-bytes",
				   &err));
	CHECK(strstr(err.text, "too long"));
}

TEST(none)
{
	struct host_console *c = started("none");

	for (unsigned i = 0; i < 10000; i++)
		say(c, "into the void, again and again");
	CHECK_STR(host_console_where(c), "none");
	CHECK(!host_console_is_terminal(c));
	host_console_destroy(c);
	host_console_destroy(NULL);
	c = host_console_create("none", &err); /* never started */
	host_console_destroy(c);
}

TEST(file)
{
	struct host_console *c;
	char *spec, *data;
	size_t len;

	snprintf(path, sizeof(path), "/tmp/doppel-console-%d", getpid());
	REQUIRE(asprintf(&spec, "file=%s", path) > 0);
	c = host_console_create(spec, &err);
	REQUIRE(c);
	say(c, "early ");
	REQUIRE(host_console_start(c, NULL, NULL, &err));
	for (unsigned i = 0; i < 50000; i++) {
		char line[16];

		snprintf(line, sizeof(line), "%05u\n", i);
		say(c, line);
	}
	host_console_destroy(c);
	data = host_file_slurp(path, &len);
	REQUIRE(data);
	CHECK_EQ(len, 6 + 50000 * 6);
	CHECK_MEM(data, "early 00000\n00001\n", 18);
	CHECK_MEM(data + len - 6, "49999\n", 6);
	free(data);
	unlink(path);
	free(spec);
}

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path, path);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Says it until the client hears something: the console may not have taken him in yet. */
static void greet(struct host_console *c, int fd, char *buf)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	for (unsigned i = 0; i < 500 && poll(&p, 1, 10) <= 0; i++)
		say(c, "!");
	host_sleep_ns(10 * MS);
	CHECK(recv(fd, buf, 1000, MSG_DONTWAIT) > 0);
}

TEST(unix_socket)
{
	struct host_console *c;
	char *spec, buf[1001];
	int one, two;

	snprintf(path, sizeof(path), "/tmp/doppel-console-%d", getpid());
	REQUIRE(asprintf(&spec, "unix=%s", path) > 0);
	c = started(spec);
	CHECK_STR(host_console_where(c), path);
	CHECK(!host_console_create(spec, &err));
	CHECK(strstr(err.text, "another process uses it"));
	one = dial();
	REQUIRE(one >= 0);
	greet(c, one, buf);
	CHECK_EQ(write(one, "hello", 5), 5);
	wait_guest(5);
	CHECK_STR(guest.data, "hello");
	/* The second waits until the first is gone. */
	two = dial();
	REQUIRE(two >= 0);
	CHECK_EQ(write(two, " again", 6), 6);
	say(c, "for the first");
	CHECK_EQ(read_for(one, buf, 13), 13);
	CHECK_STR(buf, "for the first");
	CHECK_EQ(guest_len(), 5);
	close(one);
	wait_guest(11);
	say(c, "for the second");
	CHECK_EQ(read_for(two, buf, 14), 14);
	CHECK_STR(buf, "for the second");
	say(c, "last words");
	host_console_destroy(c);
	CHECK_EQ(read_for(two, buf, 1000), 10);
	CHECK_STR(buf, "last words");
	close(two);
	CHECK(access(path, F_OK));
	free(spec);
}

TEST(unix_stale)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct host_console *c;
	char *spec;
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(path, sizeof(path), "/tmp/doppel-console-%d", getpid());
	REQUIRE(asprintf(&spec, "unix=%s", path) > 0);
	strcpy(addr.sun_path, path);
	REQUIRE(!bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
	close(fd);
	c = started(spec);
	fd = dial();
	CHECK(fd >= 0);
	close(fd);
	host_console_destroy(c);
	/* But nothing that is not a socket is removed. */
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	close(fd);
	CHECK(!host_console_create(spec, &err));
	CHECK(!access(path, F_OK));
	unlink(path);
	free(spec);
}

/* Clients that come and go while the guest writes. */
TEST(unix_restless)
{
	struct host_console *c;
	char *spec, buf[1001];

	snprintf(path, sizeof(path), "/tmp/doppel-console-%d", getpid());
	REQUIRE(asprintf(&spec, "unix=%s", path) > 0);
	c = started(spec);
	for (unsigned i = 0; i < 100; i++) {
		int fd = dial();

		REQUIRE(fd >= 0);
		for (unsigned j = 0; j < 20; j++)
			say(c, "the guest goes on talking");
		if (i % 3)
			(void)!recv(fd, buf, i % 3 == 1 ? 1000 : 1, MSG_DONTWAIT);
		close(fd);
	}
	host_console_destroy(c);
	free(spec);
}

TEST(pty)
{
	struct host_console *c = started("pty");
	const char *where = host_console_where(c);
	uint64_t start = host_now_ns();
	struct termios modes;
	char buf[1001];

	CHECK(!strncmp(where, "/dev/", 5));
	for (unsigned i = 0; i < 10000; i++) /* nobody listens: dropped, at once */
		say(c, "nobody has it open, nobody reads");
	CHECK(host_now_ns() - start < 1500 * MS);
	host_sleep_ns(200 * MS); /* what is still buffered goes the same way */
	for (unsigned i = 0; i < 2; i++) {
		int fd = open(where, O_RDWR | O_NOCTTY);

		REQUIRE(fd >= 0);
		CHECK(!tcgetattr(fd, &modes));
		CHECK(!(modes.c_lflag & (ECHO | ICANON)));
		host_sleep_ns(150 * MS);
		tcflush(fd, TCIFLUSH);
		CHECK_EQ(write(fd, "ab\r\x03", 4), 4);
		wait_guest(4 * (i + 1));
		CHECK_MEM(guest.data + 4 * i, "ab\r\x03", 4);
		say(c, "line\r\n");
		CHECK_EQ(read_for(fd, buf, 6), 6);
		CHECK_STR(buf, "line\r\n");
		close(fd);
	}
	host_console_destroy(c);
}

TEST(input_refused)
{
	struct host_console *c = started("pty");
	int fd = open(host_console_where(c), O_RDWR | O_NOCTTY);

	REQUIRE(fd >= 0);
	give_room(3);
	CHECK_EQ(write(fd, "0123456789", 10), 10);
	wait_guest(3);
	give_room(4);
	host_console_more(c);
	wait_guest(7);
	host_console_more(c);
	host_console_more(c);
	CHECK_EQ(guest_len(), 7);
	give_room(100); /* nobody says so: it is found out all the same */
	wait_guest(10);
	CHECK_STR(guest.data, "0123456789");
	close(fd);
	host_console_destroy(c);
}

/* Runs fn in a child with the given standard input, output and error; the parent closes its copies of in and out. */
static pid_t start_child(int (*fn)(void), int in, int out)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	REQUIRE(pid >= 0);
	if (!pid) {
		int null = open("/dev/null", O_RDWR);

		dup2(in, 0);
		dup2(out, 1);
		dup2(null, 2);
		_exit(fn());
	}
	close(in);
	if (out != in)
		close(out);
	return pid;
}

static int status_of(pid_t pid)
{
	int status = -1;

	waitpid(pid, &status, 0);
	return status;
}

/* Echoes until it has got an X. */
static int echo_until_x(void)
{
	struct host_console *c = started("stdio");
	size_t done = 0;

	while (!strchr(guest.data, 'X')) {
		size_t len = guest_len();

		if (len > done)
			host_console_write(c, (const uint8_t *)guest.data + done, len - done);
		done = len;
		host_sleep_ns(MS);
	}
	say(c, "bye\n");
	host_console_destroy(c);
	return guest.len > 100 ? 7 : 5;
}

TEST(pipes)
{
	int in[2], out[2];
	char buf[1001];
	pid_t pid;

	REQUIRE(!pipe2(in, O_CLOEXEC) && !pipe2(out, O_CLOEXEC));
	pid = start_child(echo_until_x, in[0], out[1]);
	CHECK_EQ(write(in[1], "hello", 5), 5);
	CHECK_EQ(read_for(out[0], buf, 5), 5);
	CHECK_STR(buf, "hello");
	CHECK_EQ(write(in[1], "X", 1), 1);
	close(in[1]); /* input may end, too */
	CHECK_EQ(read_for(out[0], buf, 1000), 4);
	CHECK_STR(buf, "bye\n");
	CHECK_EQ(status_of(pid), 5 << 8);
	close(out[0]);
}

/* Much output, and input at its end from the start. */
static int flood(void)
{
	struct host_console *c = started("stdio");
	uint64_t start = host_now_ns(), waited;

	for (unsigned i = 0; i < 100000; i++)
		say(c, "0123456789");
	waited = host_now_ns() - start;
	host_console_destroy(c);
	return waited < 6000 * MS && host_now_ns() - start < 8000 * MS ? 0 : 1;
}

TEST(reader_slow_stopped_or_gone)
{
	static char all[1000001];
	int null, out[2];
	pid_t pid;

	for (unsigned how = 0; how < 3; how++) {
		REQUIRE(!pipe2(out, O_CLOEXEC));
		null = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (how == 1)
			close(out[0]);
		pid = start_child(flood, null, out[1]);
		if (how == 0) {
			host_sleep_ns(100 * MS);
			CHECK_EQ(read_for(out[0], all, 1000000), 1000000);
			CHECK_EQ(all[999999], '9');
		}
		CHECK_EQ(status_of(pid), 0);
		if (how != 1)
			close(out[0]);
	}
}

/* A terminal of our own for a child: its slave, and the master for us. */
static int own_terminal(int *slave)
{
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);

	REQUIRE(master >= 0 && !grantpt(master) && !unlockpt(master));
	*slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
	REQUIRE(*slave >= 0);
	return master;
}

static int die_raw(void)
{
	started("stdio");
	abort();
}

static bool claim_nothing(struct host_fault_context *ctx)
{
	return false;
}

static int fault_raw(void)
{
	host_guest_signals_init(claim_nothing);
	host_guest_signals_thread_enter();
	started("stdio");
	__asm__ volatile("mov 0x4000, %%rax" : : : "rax");
	return 0;
}

static int exit_raw(void)
{
	started("stdio");
	exit(3);
}

TEST(terminal)
{
	struct termios before, during, after;
	char buf[1001];
	int slave, master = own_terminal(&slave);
	pid_t pid;

	CHECK(!tcgetattr(slave, &before));
	pid = start_child(echo_until_x, dup(slave), dup(slave));
	for (unsigned i = 0; i < 1000; i++) {
		tcgetattr(slave, &during);
		if (!(during.c_lflag & ECHO))
			break;
		host_sleep_ns(MS);
	}
	CHECK(!(during.c_lflag & (ECHO | ICANON | ISIG)));
	CHECK(during.c_oflag & OPOST);
	CHECK_EQ(write(master, "\x03hi\r", 4), 4);
	CHECK_EQ(read_for(master, buf, 4), 4);
	CHECK_STR(buf, "\x03hi\r");
	CHECK_EQ(write(master, "X", 1), 1);
	CHECK_EQ(read_for(master, buf, 5), 5);
	CHECK_STR(buf, "bye\r\n");
	CHECK_EQ(status_of(pid), 5 << 8);
	CHECK(!tcgetattr(slave, &after));
	CHECK_EQ(after.c_lflag, before.c_lflag);
	CHECK_EQ(after.c_iflag, before.c_iflag);
	CHECK_EQ(after.c_cc[VMIN], before.c_cc[VMIN]);
	close(slave);
	close(master);
}

TEST(terminal_put_back)
{
	static int (*const ends[])(void) = {die_raw, fault_raw, exit_raw};
	struct termios before, after;
	int slave, master = own_terminal(&slave);

	CHECK(!tcgetattr(slave, &before));
	for (unsigned i = 0; i < ARRAY_LEN(ends); i++) {
		CHECK(status_of(start_child(ends[i], dup(slave), dup(slave))));
		CHECK(!tcgetattr(slave, &after));
		CHECK_EQ(after.c_lflag, before.c_lflag);
		CHECK_EQ(after.c_iflag, before.c_iflag);
	}
	close(slave);
	close(master);
}

UNIT_MAIN()
