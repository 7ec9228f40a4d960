/* Giving up: inherited descriptors, privileges, paths, system calls, in this order; each needs those after it. */
#include "host/confine.h"

#include "host/confine_internal.h"
#include "host/internal.h"
#include "host/space_internal.h"
#include "host/thread.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Confinement belongs to the process. */
static struct {
	_Atomic unsigned needs;
	int *inherited; /* descriptors that were open before us */
	size_t inherited_count;
	int ruleset;
	_Atomic bool failed, on;
	bool no_landlock;
} state = {.ruleset = -1};

void host_need(unsigned needs)
{
	atomic_fetch_or(&state.needs, needs);
}

static void note_inherited(int fd)
{
	int *more = realloc(state.inherited, (state.inherited_count + 1) * sizeof(*more));

	if (!more)
		return;
	state.inherited = more;
	more[state.inherited_count++] = fd;
}

#define TRIED_MAX 65536

/* Without /proc. */
static void try_inherited(void)
{
	struct rlimit limit = {.rlim_cur = TRIED_MAX};

	getrlimit(RLIMIT_NOFILE, &limit);
	for (int fd = STDERR_FILENO + 1; fd < (int)MIN(limit.rlim_cur, TRIED_MAX); fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			note_inherited(fd);
}

static void find_inherited(void)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		int fd = (int)strtol(entry->d_name, NULL, 10);

		if (fd > STDERR_FILENO && fd != dirfd(dir))
			note_inherited(fd);
	}
	if (dir)
		closedir(dir);
	else
		try_inherited();
}

void host_inherited(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", O_RDWR | O_NOCTTY) != fd)
			return;
	find_inherited();
}

static void close_inherited(void)
{
	for (size_t i = 0; i < state.inherited_count; i++)
		close(state.inherited[i]);
	free(state.inherited);
	state.inherited = NULL;
	state.inherited_count = 0;
}

/* A share of root's has files of all users, and gives new ones to those who made them in the guest. */
#define FOLDER_CAPS (BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_FOWNER))

/* Root's privileges. What is not there to give up is no failure. */
static bool drop_capabilities(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct set[_LINUX_CAPABILITY_U32S_3] = {{0}};
	unsigned needs = atomic_load(&state.needs);

	if (needs & (HOST_NEED_FOLDER | HOST_NEED_FOLDER_RW) && !syscall(SYS_capget, &header, set)) {
		uint32_t kept = needs & HOST_NEED_FOLDER_RW ? FOLDER_CAPS : BIT(CAP_DAC_OVERRIDE);

		set[0].effective &= kept;
		set[0].permitted &= kept;
		set[0].inheritable = 0;
		set[1] = (struct __user_cap_data_struct){0};
	}
	for (unsigned long cap = 0; !prctl(PR_CAPBSET_DROP, cap, 0, 0, 0); cap++)
		; /* until there are no more; who may not drop one may drop none */
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return !syscall(SYS_capset, &header, set);
}

/*
 * Shared memory is the guest's, as generated code is, and shown at addresses that change: bits 1 and 3 (core(5)).
 * Before Linux's Landlock is in force; where there is no /proc, MADV_DONTDUMP has hidden most of it.
 */
static void dump_less(void)
{
	int fd = open("/proc/self/coredump_filter", O_RDWR | O_CLOEXEC);
	char text[16] = "";

	if (fd < 0)
		return;
	if (read(fd, text, sizeof(text) - 1) > 0) {
		unsigned long filter = strtoul(text, NULL, 16) & ~0xaul;
		int len = snprintf(text, sizeof(text), "0x%lx", filter);

		(void)!write(fd, text, (size_t)len);
	}
	close(fd);
}

/* What Linux keeps by thread; in a signal handler on all but the caller's. */
static void confine_thread(void)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || !drop_capabilities() || !confine_paths_enter(state.ruleset))
		atomic_store(&state.failed, true);
}

static bool confine(struct error *err)
{
	unsigned needs = atomic_load(&state.needs);

	close_inherited();
	dump_less();
	if (!confine_paths_prepare(needs, &state.ruleset, err))
		return false;
	state.no_landlock = state.ruleset < 0;
	if (!host_thread_all(confine_thread) || atomic_load(&state.failed))
		return error_set(err, "cannot give up the process's privileges; --sandbox off runs without");
	/*
	 * Who may trace anybody could take over the user's other programs, if Landlock did not keep them apart. Some
	 * versions of it keep our own threads apart as well, and kicks from each other.
	 */
	bool spaces = !state.no_landlock && host_thread_reach_all();
	if (!spaces)
		needs &= ~(unsigned)HOST_NEED_SPACES;
	spaces_start_all(spaces);
	return confine_calls(needs, err);
}

/* The sanitizers' own threads, files and system calls are not ours to list. */
#ifdef __has_feature
#define HAS_FEATURE(f) __has_feature(f)
#else
#define HAS_FEATURE(f) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || HAS_FEATURE(address_sanitizer) || \
	HAS_FEATURE(thread_sanitizer)
#define SANITIZED true
#else
#define SANITIZED false
#endif

bool host_confine(struct error *err)
{
	if (SANITIZED || atomic_load(&state.on))
		return true;
	if (!confine(err))
		return false;
	atomic_store(&state.on, true);
	return true;
}

const char *host_confinement(void)
{
	if (!atomic_load(&state.on))
		return SANITIZED ? "sandbox off in this build" : "sandbox off";
	return state.no_landlock ? "sandbox on, but this kernel has no Landlock" : "sandbox on";
}
