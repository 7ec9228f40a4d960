/*
 * What the process gives up before a guest's first instruction, so that a guest that got hold of the monitor has little
 * to take: docs/confinement.md. It is the process's, once and for good, and for every VM in it.
 */
#ifndef DOPPEL_HOST_CONFINE_H
#define DOPPEL_HOST_CONFINE_H

#include "base/base.h"

/*
 * What only some machines need after their start. The part of src/host that opens such a thing says so when it does,
 * and keeps the groups of system calls named so in confine_calls.c.
 */
enum host_need {
	HOST_NEED_CLIENTS = 1 << 0,   /* to take callers on a listening socket, and remove its name at the end */
	HOST_NEED_PROFILE = 1 << 1,   /* a sampling timer for each thread that runs guest code */
	HOST_NEED_INTERNET = 1 << 2,  /* connections of its own, and resolving names */
	HOST_NEED_TAP = 1 << 3,       /* to say what the guest takes */
	HOST_NEED_FOLDER = 1 << 4,    /* to find and open files in a folder */
	HOST_NEED_FOLDER_RW = 1 << 5, /* and to change it */
	HOST_NEED_STREAMS = 1 << 7,   /* Unix sockets for the guest's, and waiting for many of them */
	HOST_NEED_SERVER = 1 << 6, /* to connect to a disk's server again, or to see the end of one that we started */
	HOST_NEED_SPACES = 1 << 8, /* to trace the processes of space.h */
};
void host_need(unsigned needs);

/* The same for what may be opened: the file or all that is under the folder open as `fd` (borrowed; O_PATH will do). */
enum {
	HOST_PATH_READ = 1 << 0,  /* open for reading; list folders */
	HOST_PATH_WRITE = 1 << 1, /* open for writing, make, rename and remove whatever is in the folder */
	HOST_PATH_REMOVE = 1 << 2 /* remove files in the folder */
};
bool host_need_path(int fd, unsigned access);
/* Whoever needed it does so no more; nothing to do once the process is confined. */
void host_unneed_path(int fd, unsigned access);
/* To read a file of the system's, should it be there. One that takes its place later is another file. */
void host_need_file(const char *path);
void host_unneed_file(const char *path);

/*
 * First of all in a program that is nothing but a monitor: standard input, output and error are open from now on (on
 * /dev/null where they were not), and all other descriptors that the process has inherited are closed by host_confine.
 */
void host_inherited(void);

/*
 * Gives up what nobody has said to need, on every thread of host_thread_start, on the caller's, and on all threads that
 * these start later. A call that is not kept ends the process with a line that names it and the status of SIGSYS: it is
 * a defect of ours. False: err says why, and some of it may be in force.
 */
bool host_confine(struct error *err);
/* "sandbox on", "sandbox on, but this kernel has no Landlock", "sandbox off". */
const char *host_confinement(void);
/* For a thread that runs guest code, when it is ready to: it keeps still less. Nothing if the process is not confined.
 */
void host_confine_guest_thread(void);

#endif
