/* For what ends the process, or changes all of it: a child process. */
#ifndef DOPPEL_TESTS_UNIT_CHILD_H
#define DOPPEL_TESTS_UNIT_CHILD_H

#include "unit/unit.h"

#include <sys/wait.h>
#include <unistd.h>

/*
 * How a child ends that does fn(), as waitpid() tells it: with exit status `end` if that returns. The first of what it
 * says on standard error goes to `said`.
 */
static inline int in_child(void (*fn)(void), int end, char *said, size_t size)
{
	int status = 0, ends[2];
	size_t len = 0;
	ssize_t n;
	pid_t pid;

	REQUIRE(!pipe(ends));
	pid = fork();
	REQUIRE(pid >= 0);
	if (!pid) {
		dup2(ends[1], STDERR_FILENO);
		close(ends[1]);
		fn();
		_exit(end);
	}
	close(ends[1]);
	while (len < size - 1 && (n = read(ends[0], said + len, size - 1 - len)) > 0)
		len += (size_t)n;
	said[len] = 0;
	close(ends[0]);
	waitpid(pid, &status, 0);
	return status;
}

#endif
